"""What whoever keeps the node running asks of it: each question is answered from short stretches of indexes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ich_node.database.tables import AuditRow, ReadingRow, StudyRow
from ich_node.findings import StudyState

WAITING = (StudyState.RECEIVING, StudyState.QUEUED, StudyState.READING)
"""States that end by themselves; few studies of many are in them."""
MOST_TIMES = 2000
"""Studies that a percentile is of, at most: the last ones."""
_LAST_CHANGES = 500
_LAST_READINGS = 500


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Studies in one state that ends by itself."""

    state: str
    studies: int
    oldest: str
    """Study Instance UID of the one that came first."""
    oldest_at: datetime
    """When its first image came."""


@dataclass(frozen=True, kw_only=True)
class FlagTime:
    """How long one study took from its last image to its flag."""

    study_instance_uid: str
    flagged_at: datetime
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Studies that were not read for one reason."""

    state: str
    reason: str
    studies: int
    newest: str
    """Study Instance UID of the one that came last."""
    newest_at: datetime


@dataclass(frozen=True, kw_only=True)
class WorkerLife:
    """The last that was heard of a worker process."""

    owner: str
    """Host and process."""
    at: datetime
    action: str
    study_instance_uid: str
    is_reading: bool
    """Whether it holds a study now."""


@dataclass(frozen=True, kw_only=True)
class ModelInUse:
    """A model with one set of weights, and what it read lately."""

    model_name: str
    model_version: str
    weights_sha256: str
    readings: int
    """Among the last few hundred of all."""
    last_read_at: datetime


def received_since(session: Session, since: datetime) -> list[datetime]:
    """When the first image of each study came that has come since."""
    return list(session.scalars(select(StudyRow.received_at).where(StudyRow.received_at >= since)))


def read_since(session: Session, since: datetime) -> list[datetime]:
    """When each study was read last that was read since."""
    query = select(StudyRow.read_at).where(StudyRow.read_at >= since)
    return [moment for moment in session.scalars(query) if moment is not None]


def waiting(session: Session) -> list[Waiting]:
    """What is arriving, waiting and being read; states without a study are left out."""
    found = []
    for state in WAITING:
        studies = session.scalar(select(func.count()).where(StudyRow.state == state)) or 0
        oldest = session.execute(
            select(StudyRow.study_instance_uid, StudyRow.received_at)
            .where(StudyRow.state == state)
            .order_by(StudyRow.received_at)
            .limit(1)
        ).first()
        if oldest is not None:
            found.append(Waiting(state=state, studies=studies, oldest=oldest[0], oldest_at=oldest[1]))
    return found


def flag_times(session: Session, since: datetime) -> list[FlagTime]:
    """How long the studies took that were flagged since, the last first, `MOST_TIMES` at most.

    A study that got more images later, or was read again, does not count: nobody waited for it from its last image on.
    """
    rows = session.execute(
        select(
            StudyRow.study_instance_uid, StudyRow.last_received_at, StudyRow.flagged_at, ReadingRow.run_number
        )
        .join(ReadingRow, ReadingRow.id == StudyRow.reading_id)
        .where(StudyRow.flagged_at >= since)
        .order_by(StudyRow.flagged_at.desc())
        .limit(MOST_TIMES)
    )
    return [
        FlagTime(study_instance_uid=uid, flagged_at=flagged, seconds=(flagged - received).total_seconds())
        for uid, received, flagged, run_number in rows
        if flagged is not None and run_number == 1 and flagged >= received
    ]


def failures(session: Session, since: datetime) -> list[Failure]:
    """What was not read of what came since, by state and reason, the most frequent first."""
    rows = session.execute(
        select(
            StudyRow.state,
            StudyRow.reason,
            func.count().label("studies"),
            func.max(StudyRow.received_at).label("newest_at"),
        )
        .where(_fell_through(), StudyRow.received_at >= since)
        .group_by(StudyRow.state, StudyRow.reason)
        .order_by(func.count().desc(), StudyRow.state, StudyRow.reason)
    ).all()
    return [
        Failure(
            state=row.state,
            reason=row.reason or "",
            studies=row.studies,
            newest=_newest(session, row.state, row.reason, row.newest_at),
            newest_at=row.newest_at,
        )
        for row in rows
    ]


def workers(session: Session, *, now: datetime, since: datetime) -> list[WorkerLife]:
    """Processes that have worked on a study since, the last first; one that has had nothing to do is not known.

    Taken from the last few hundred changes of studies and from the leases that run.
    """
    leases = select(StudyRow.lease_owner).where(
        StudyRow.state == StudyState.READING, StudyRow.lease_until >= now
    )
    reading = {_process(owner or "") for owner in session.scalars(leases)}
    changes = session.execute(
        select(AuditRow.actor, AuditRow.at, AuditRow.action, AuditRow.study_instance_uid)
        .order_by(AuditRow.id.desc())
        .limit(_LAST_CHANGES)
    )
    found: dict[str, WorkerLife] = {}
    for actor, at, action, study_instance_uid in changes:
        process = _process(actor)
        if process is not None and process not in found and at >= since:
            found[process] = WorkerLife(
                owner=process,
                at=at,
                action=action,
                study_instance_uid=study_instance_uid,
                is_reading=process in reading,
            )
    return list(found.values())


def models_in_use(session: Session) -> list[ModelInUse]:
    """Models of the last few hundred readings, the one that read last first."""
    last = (
        select(ReadingRow.model_name, ReadingRow.model_version, ReadingRow.weights_sha256, ReadingRow.read_at)
        .order_by(ReadingRow.read_at.desc())
        .limit(_LAST_READINGS)
        .subquery()
    )
    model = (last.c.model_name, last.c.model_version, last.c.weights_sha256)
    rows = session.execute(
        select(*model, func.count().label("readings"), func.max(last.c.read_at).label("last_read_at"))
        .group_by(*model)
        .order_by(func.max(last.c.read_at).desc())
    )
    return [
        ModelInUse(
            model_name=row.model_name,
            model_version=row.model_version,
            weights_sha256=row.weights_sha256,
            readings=row.readings,
            last_read_at=row.last_read_at,
        )
        for row in rows
    ]


def percentile(values: Sequence[float], share: float) -> float | None:
    """By nearest rank: a value that was measured, not one in between; ``None`` of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def full_hours(now: datetime, hours: int) -> list[datetime]:
    """Beginnings of the hour that runs and of those before it, the oldest first."""
    this = now.replace(minute=0, second=0, microsecond=0)
    return [this - timedelta(hours=back) for back in reversed(range(hours))]


def _fell_through() -> ColumnElement[bool]:
    return StudyRow.state.in_([str(StudyState.NOT_READ), str(StudyState.FAILED)])


def _newest(session: Session, state: str, reason: str | None, received_at: datetime) -> str:
    query = select(StudyRow.study_instance_uid).where(
        StudyRow.received_at == received_at, StudyRow.state == state, StudyRow.reason == reason
    )
    return session.scalar(query.limit(1)) or ""


def _process(actor: str) -> str | None:
    """Host and process of the holder of a lease (`ich_node.lease.work_owner`); ``None`` for any other actor."""
    parts = actor.split("/")
    return "/".join(parts[:2]) if len(parts) == 3 and parts[1].isdigit() else None
