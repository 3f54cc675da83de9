"""Objects on their way to their destinations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from ich_node.database.tables import NoticeRow, OutboxRow, ResultObjectRow

NOTICE = "NOTICE"
"""Kind of what is no object."""
_BACK_AFTER = timedelta(minutes=1)
"""A destination that took nothing for so long, and then something, was away."""
CONFIRMED_SOON = 4
"""A destination that has been asked more often whether it keeps an object is slower than one would expect."""


class Takes(StrEnum):
    """What a kind of destination takes."""

    OBJECTS = "OBJECTS"
    NOTICES = "NOTICES"


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "PENDING"
    SENT = "SENT"
    """The destination took it, and is still to say that it keeps it."""
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"
    """Given up or refused for good; a person must look."""


UNDELIVERED = (DeliveryState.PENDING, DeliveryState.SENT, DeliveryState.DEAD)
"""Few rows of many; a query that names them finds them by index."""


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
    sop_instance_uid: str | None
    """``None`` for a notice."""
    kind: str
    """SR, SC and so on, or NOTICE."""
    destination: str
    state: str
    attempts: int
    created_at: datetime
    next_attempt_at: datetime
    sent_at: datetime | None
    delivered_at: datetime | None
    note: str | None


def destinations_due(session: Session, now: datetime) -> list[str]:
    """Destinations to which something is to be sent, or that are to be asked whether they keep it."""
    due = is_due(now, DeliveryState.PENDING, DeliveryState.SENT)
    return list(session.scalars(select(OutboxRow.destination).where(due).distinct()))


def claim_deliveries(
    session: Session, destination: str, *, owner: str, now: datetime, lease: timedelta, limit: int = 50
) -> list[Delivery]:
    """Take the objects that are due for one destination, the most urgent first."""
    rows = session.execute(
        select(OutboxRow, ResultObjectRow.file_name)
        .join(ResultObjectRow, ResultObjectRow.sop_instance_uid == OutboxRow.sop_instance_uid)
        .where(OutboxRow.destination == destination, is_due(now, DeliveryState.PENDING))
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
                sop_instance_uid=str(row.sop_instance_uid),
                file_name=file_name,
                attempts=row.attempts,
                created_at=row.created_at,
            )
        )
    return claimed


class Claimed(Protocol):
    """Anything of the outbox that this process works on."""

    @property
    def id(self) -> int:
        """Of the row."""
        ...

    @property
    def attempts(self) -> int:
        """Tells this claim from a later one."""
        ...


def renew_leases(session: Session, claimed: Collection[Claimed], *, now: datetime, lease: timedelta) -> int:
    """Show life while sending; how many of the deliveries are still this process's."""
    mine = [and_(OutboxRow.id == each.id, OutboxRow.attempts == each.attempts) for each in claimed]
    renewed: Sequence[int] = session.scalars(
        update(OutboxRow)
        .where(OutboxRow.state == DeliveryState.PENDING, OutboxRow.lease_owner.is_not(None), or_(*mine))
        .values(lease_until=now + lease)
        .returning(OutboxRow.id)
    ).all()
    return len(renewed)


def record_taken(
    session: Session, delivery: Claimed, *, now: datetime, note: str | None, confirm: bool
) -> None:
    """The destination has answered success, with a note where it was a warning.

    It has taken it, whatever another process that tried the same meanwhile has written down.

    Parameters
    ----------
    confirm
        Whether it is still to say that it keeps it; else it is delivered by that.
    """
    open_states = (DeliveryState.PENDING, DeliveryState.DEAD)
    values: dict[str, Any] = {"state": DeliveryState.SENT, "next_attempt_at": now}
    if not confirm:
        values = {"state": DeliveryState.DELIVERED, "delivered_at": now}
    session.execute(
        update(OutboxRow)
        .where(OutboxRow.id == delivery.id, OutboxRow.state.in_(open_states))
        .values(
            sent_at=now,
            note=note,
            lease_owner=None,
            lease_until=None,
            confirm_attempts=0,
            transaction_uid=None,
            **values,
        )
    )


def record_failed(
    session: Session, delivery: Claimed, *, next_attempt_at: datetime | None, note: str
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


def give_up(
    session: Session, destination: str, *, now: datetime, note: str, takes: Takes | None = None
) -> int:
    """Make dead letters of what is due for a destination that cannot take it any more; how many.

    Also of what it took and cannot be asked about.

    Parameters
    ----------
    takes
        What it does take, where its name belonged to a destination of another kind; ``None``: there is none of that
        name.
    """
    due = is_due(now, DeliveryState.PENDING, DeliveryState.SENT)
    if takes is not None:
        due &= OutboxRow.notice_id.is_not(None) if takes is Takes.OBJECTS else OutboxRow.notice_id.is_(None)
    rows: Sequence[int] = session.scalars(
        update(OutboxRow)
        .where(OutboxRow.destination == destination, due)
        .values(state=DeliveryState.DEAD, note=note, lease_owner=None, lease_until=None)
        .returning(OutboxRow.id)
    ).all()
    return len(rows)


def wake(session: Session, destination: str, *, now: datetime) -> None:
    """Try everything that waits for a destination now, if it takes something again after a while without.

    Call it before what it took is recorded. Where it takes one thing after the other, what waits does so since it
    was refused for a reason of its own, and trying that with each of the others would be of no use to anybody.
    """
    is_at_work = exists().where(OutboxRow.destination == destination, OutboxRow.sent_at > now - _BACK_AFTER)
    if session.scalar(select(is_at_work)):
        return
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
        select(
            OutboxRow,
            func.coalesce(ResultObjectRow.kind, NOTICE),
            func.coalesce(ResultObjectRow.study_instance_uid, NoticeRow.study_instance_uid),
        )
        .outerjoin(ResultObjectRow, ResultObjectRow.sop_instance_uid == OutboxRow.sop_instance_uid)
        .outerjoin(NoticeRow, NoticeRow.id == OutboxRow.notice_id)
        .order_by(OutboxRow.id.desc())
        .limit(limit)
    )
    if failed:
        query = query.where(_has_failed())
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
            delivered_at=row.delivered_at,
            note=row.note,
        )
        for row, kind, study_instance_uid in session.execute(query)
    ]


def retry_failed(session: Session, *, now: datetime) -> int:
    """Send dead letters and waiting retries again now, with a fresh 72 h; how many."""
    rows: Sequence[int] = session.scalars(
        update(OutboxRow)
        .where(_has_failed())
        .values(
            state=DeliveryState.PENDING,
            attempts=0,
            created_at=now,
            next_attempt_at=now,
            confirm_attempts=0,
            transaction_uid=None,
        )
        .returning(OutboxRow.id)
    ).all()
    return len(rows)


def is_due(now: datetime, *states: DeliveryState) -> ColumnElement[bool]:
    """Whether the time of a row in one of these states has come and nobody works on it."""
    free = or_(OutboxRow.lease_until.is_(None), OutboxRow.lease_until < now)
    return OutboxRow.state.in_([str(s) for s in states]) & (OutboxRow.next_attempt_at <= now) & free


def _has_failed() -> ColumnElement[bool]:
    """Dead, failed at least once, or taken and then not confirmed at least twice."""
    waits = (OutboxRow.state == DeliveryState.PENDING) & OutboxRow.note.is_not(None)
    doubtful = (OutboxRow.state == DeliveryState.SENT) & (OutboxRow.confirm_attempts > CONFIRMED_SOON)
    undelivered = OutboxRow.state.in_([str(state) for state in UNDELIVERED])
    return undelivered & or_(OutboxRow.state == DeliveryState.DEAD, waits, doubtful)
