"""Figures about the whole node, cheap enough to be asked for every few seconds, and about no one's person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import case, func, literal_column, or_, select
from sqlalchemy.orm import Session

from ich_node.database.outbox import UNDELIVERED, DeliveryState
from ich_node.database.tables import InstanceRow, OutboxRow, ReadingRow, RemovalRow, SeriesRow, StudyRow
from ich_node.database.worklist_order import precedence
from ich_node.findings import Priority, StudyState

_UNREAD = (StudyState.RECEIVING, StudyState.QUEUED, StudyState.READING)
_LAST = 200
"""Readings that the times are taken from."""


@dataclass(frozen=True, kw_only=True)
class SpoolStanding:
    """What the spool holds by the rows, and what came in all."""

    objects: int
    size_bytes: int
    conflicts: int
    received: int
    """Objects received ever, each once; what was purged still counts, and counts anew when it comes again."""
    removals: int
    """Files that are still to be removed."""


@dataclass(frozen=True, kw_only=True)
class UnreadImages:
    """What has not come to an end."""

    studies: int
    objects: int
    oldest_at: datetime | None
    """Arrival of the first image of the study that came first."""


@dataclass(frozen=True, kw_only=True)
class OutboxStanding:
    """What waits for one destination."""

    destination: str
    pending: int
    dead: int
    unconfirmed: int
    """It took them and has not said yet that it keeps them."""
    oldest_at: datetime | None
    """Since when the oldest of the pending ones waits."""
    oldest_unconfirmed_at: datetime | None
    """When it took the oldest of the unconfirmed ones."""


@dataclass(frozen=True, kw_only=True)
class TurnaroundTimes:
    """Seconds from the last image received to the result, of the last studies that were read for the first time."""

    to_reading_s: tuple[float, ...]
    to_flag_s: tuple[float, ...]
    """Of those that were flagged."""


def study_counts(session: Session) -> dict[tuple[str, str], int]:
    """How many studies there are of each state and priority that occurs."""
    # By precedence, which stands in an index with the state; it says the priority too.
    rows = session.execute(
        select(StudyRow.state, StudyRow.precedence, func.count()).group_by(
            StudyRow.state, StudyRow.precedence
        )
    )
    priorities = {precedence(p, reviewed=r): str(p) for p in Priority for r in (False, True)}
    counts: Counter[tuple[str, str]] = Counter()
    for state, rank, count in rows:
        counts[state, priorities[rank]] += count
    return dict(counts)


def spool_standing(session: Session) -> SpoolStanding:
    """What the spool holds."""
    objects, size_bytes = session.execute(select(func.count(), func.sum(InstanceRow.size_bytes))).one()
    conflicts = select(func.count()).select_from(InstanceRow).where(literal_column("conflict"))
    return SpoolStanding(
        objects=objects,
        size_bytes=int(size_bytes or 0),
        conflicts=session.scalar(conflicts) or 0,
        received=int(session.scalar(select(func.sum(SeriesRow.revision))) or 0),
        removals=session.scalar(select(func.count()).select_from(RemovalRow)) or 0,
    )


def unread_images(session: Session) -> UnreadImages:
    """What is arriving, waiting or being read."""
    unread = StudyRow.state.in_([str(state) for state in _UNREAD])
    studies, oldest_at = session.execute(
        select(func.count(), func.min(StudyRow.received_at)).where(unread)
    ).one()
    objects = session.scalar(
        select(func.count(InstanceRow.id))
        .select_from(StudyRow)
        .join(SeriesRow, SeriesRow.study_instance_uid == StudyRow.study_instance_uid)
        .join(InstanceRow, InstanceRow.series_instance_uid == SeriesRow.series_instance_uid)
        .where(unread)
    )
    return UnreadImages(studies=studies, objects=objects or 0, oldest_at=oldest_at)


def outbox_standing(session: Session) -> list[OutboxStanding]:
    """What waits for each destination that something waits for."""
    pending, dead = OutboxRow.state == DeliveryState.PENDING, OutboxRow.state == DeliveryState.DEAD
    rows = session.execute(
        select(
            OutboxRow.destination,
            func.sum(case((pending, 1), else_=0)).label("pending"),
            func.sum(case((dead, 1), else_=0)).label("dead"),
            func.sum(case((or_(pending, dead), 0), else_=1)).label("unconfirmed"),
            func.min(case((pending, OutboxRow.created_at))).label("oldest_at"),
            func.min(case((or_(pending, dead), None), else_=OutboxRow.sent_at)).label(
                "oldest_unconfirmed_at"
            ),
        )
        .where(OutboxRow.state.in_([str(state) for state in UNDELIVERED]))
        .group_by(OutboxRow.destination)
        .order_by(OutboxRow.destination)
    )
    return [
        OutboxStanding(
            destination=row.destination,
            pending=int(row.pending),
            dead=int(row.dead),
            unconfirmed=int(row.unconfirmed),
            oldest_at=row.oldest_at,
            oldest_unconfirmed_at=row.oldest_unconfirmed_at,
        )
        for row in rows
    ]


def turnaround_times(session: Session) -> TurnaroundTimes:
    """How long the last studies took; a study that got more images later, or was read again, does not count."""
    first_run = select(StudyRow).join(ReadingRow, ReadingRow.id == StudyRow.reading_id)
    read = (
        first_run.with_only_columns(StudyRow.last_received_at, StudyRow.read_at, ReadingRow.run_number)
        .where(StudyRow.read_at.is_not(None))
        .order_by(StudyRow.read_at.desc())
        .limit(_LAST)
    )
    flagged = (
        first_run.with_only_columns(StudyRow.last_received_at, StudyRow.flagged_at, ReadingRow.run_number)
        .where(StudyRow.flagged_at.is_not(None))
        .order_by(StudyRow.flagged_at.desc())
        .limit(_LAST)
    )
    return TurnaroundTimes(
        to_reading_s=_seconds(session.execute(read)),
        to_flag_s=_seconds(session.execute(flagged)),
    )


def _seconds(rows: Iterable[tuple[datetime, datetime | None, int]]) -> tuple[float, ...]:
    return tuple(
        (ended - received).total_seconds()
        for received, ended, run_number in rows
        if ended is not None and run_number == 1 and ended >= received
    )
