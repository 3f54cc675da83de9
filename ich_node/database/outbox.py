"""Objects on their way to their destinations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from ich_node.database.tables import OutboxRow, ReadingRow, ResultObjectRow


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "PENDING"
    SENT = "SENT"
    DEAD = "DEAD"
    """Given up or refused for good; a person must look."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One object that this process may send now."""

    id: int
    destination: str
    sop_instance_uid: str
    file_name: str
    attempts: int
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class DeliveryRecord:
    """One line of ``ich-node deliveries``."""

    id: int
    study_instance_uid: str
    sop_instance_uid: str
    kind: str
    destination: str
    state: str
    attempts: int
    created_at: datetime
    next_attempt_at: datetime
    sent_at: datetime | None
    note: str | None


def destinations_due(session: Session, now: datetime) -> list[str]:
    """Destinations that something waits for."""
    return list(session.scalars(select(OutboxRow.destination).where(_is_due(now)).distinct()))


def claim_deliveries(
    session: Session, destination: str, *, owner: str, now: datetime, lease: timedelta, limit: int = 50
) -> list[Delivery]:
    """Take what is due for one destination, the most urgent first."""
    rows = session.execute(
        select(OutboxRow, ResultObjectRow.file_name)
        .join(ResultObjectRow, ResultObjectRow.sop_instance_uid == OutboxRow.sop_instance_uid)
        .where(OutboxRow.destination == destination, _is_due(now))
        .order_by(OutboxRow.urgency, OutboxRow.created_at, OutboxRow.id)
        .limit(limit)
        .with_for_update(of=OutboxRow, skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    claimed = []
    for row, file_name in rows:
        row.lease_owner, row.lease_until = owner, now + lease
        row.attempts += 1
        claimed.append(
            Delivery(
                id=row.id,
                destination=destination,
                sop_instance_uid=row.sop_instance_uid,
                file_name=file_name,
                attempts=row.attempts,
                created_at=row.created_at,
            )
        )
    return claimed


def renew_leases(session: Session, claimed: Collection[Delivery], *, now: datetime, lease: timedelta) -> int:
    """Show life while sending; how many of the deliveries are still this process's."""
    mine = [
        and_(OutboxRow.id == delivery.id, OutboxRow.attempts == delivery.attempts) for delivery in claimed
    ]
    renewed: Sequence[int] = session.scalars(
        update(OutboxRow)
        .where(OutboxRow.state == DeliveryState.PENDING, OutboxRow.lease_owner.is_not(None), or_(*mine))
        .values(lease_until=now + lease)
        .returning(OutboxRow.id)
    ).all()
    return len(renewed)


def record_sent(session: Session, delivery: Delivery, *, now: datetime, note: str | None) -> None:
    """The destination has answered success, with a note where it was a warning.

    It has the object, whatever another process that tried the same meanwhile has written down.
    """
    session.execute(
        update(OutboxRow)
        .where(OutboxRow.id == delivery.id, OutboxRow.state != DeliveryState.SENT)
        .values(state=DeliveryState.SENT, sent_at=now, note=note, lease_owner=None, lease_until=None)
    )


def record_failed(
    session: Session, delivery: Delivery, *, next_attempt_at: datetime | None, note: str
) -> None:
    """The destination did not take it; ``None`` as next attempt makes it a dead letter.

    Nothing changes where the lease ran out and another process has taken the delivery up since.
    """
    values: dict[str, Any] = {"state": DeliveryState.DEAD}
    if next_attempt_at is not None:
        values = {"next_attempt_at": next_attempt_at}
    session.execute(
        update(OutboxRow)
        .where(
            OutboxRow.id == delivery.id,
            OutboxRow.state == DeliveryState.PENDING,
            OutboxRow.attempts == delivery.attempts,
        )
        .values(note=note, lease_owner=None, lease_until=None, **values)
    )


def wake(session: Session, destination: str, *, now: datetime) -> None:
    """Try everything that waits for a destination now: it has just taken something, so it is back."""
    session.execute(
        update(OutboxRow)
        .where(
            OutboxRow.destination == destination,
            OutboxRow.state == DeliveryState.PENDING,
            OutboxRow.next_attempt_at > now,
        )
        .values(next_attempt_at=now)
    )


def deliveries(session: Session, *, failed: bool = False, limit: int = 1000) -> list[DeliveryRecord]:
    """Deliveries, the newest first; ``failed``: dead letters and those that failed at least once."""
    query = (
        select(OutboxRow, ResultObjectRow.kind, ReadingRow.study_instance_uid)
        .join(ResultObjectRow, ResultObjectRow.sop_instance_uid == OutboxRow.sop_instance_uid)
        .join(ReadingRow, ReadingRow.id == ResultObjectRow.reading_id)
        .order_by(OutboxRow.id.desc())
        .limit(limit)
    )
    if failed:
        query = query.where(OutboxRow.state != DeliveryState.SENT, OutboxRow.note.is_not(None))
    return [
        DeliveryRecord(
            id=row.id,
            study_instance_uid=study_instance_uid,
            sop_instance_uid=row.sop_instance_uid,
            kind=kind,
            destination=row.destination,
            state=row.state,
            attempts=row.attempts,
            created_at=row.created_at,
            next_attempt_at=row.next_attempt_at,
            sent_at=row.sent_at,
            note=row.note,
        )
        for row, kind, study_instance_uid in session.execute(query)
    ]


def retry_failed(session: Session, *, now: datetime) -> int:
    """Send dead letters and waiting retries again now, with a fresh 72 h; how many."""
    rows: Sequence[int] = session.scalars(
        update(OutboxRow)
        .where(OutboxRow.state != DeliveryState.SENT, OutboxRow.note.is_not(None))
        .values(state=DeliveryState.PENDING, attempts=0, created_at=now, next_attempt_at=now)
        .returning(OutboxRow.id)
    ).all()
    return len(rows)


def _is_due(now: datetime) -> ColumnElement[bool]:
    free = or_(OutboxRow.lease_until.is_(None), OutboxRow.lease_until < now)
    return (OutboxRow.state == DeliveryState.PENDING) & (OutboxRow.next_attempt_at <= now) & free
