"""Objects that a destination took, until it is known that it keeps them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from ich_node.database.outbox import DeliveryState, is_due
from ich_node.database.tables import OutboxRow, ResultObjectRow

_NOT_CONFIRMED = "not confirmed: "
"""Stands in a note before what was said when it was asked about, behind what was said when it was taken."""


@dataclass(frozen=True, kw_only=True)
class Unconfirmed:
    """One object that a destination is to be asked about now, by this process."""

    id: int
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    file_name: str
    attempts: int
    """How often it was asked, this time included."""
    sends: int
    """How often it was sent."""
    transaction_uid: str | None
    """Of the last request for storage commitment."""


def claim_unconfirmed(
    session: Session, destination: str, *, owner: str, now: datetime, lease: timedelta, limit: int
) -> list[Unconfirmed]:
    """Take what a destination took and is due to be asked about, those of one study together."""
    rows = session.execute(
        select(OutboxRow, ResultObjectRow)
        .join(ResultObjectRow, ResultObjectRow.sop_instance_uid == OutboxRow.sop_instance_uid)
        .where(OutboxRow.destination == destination, is_due(now, DeliveryState.SENT))
        .order_by(OutboxRow.urgency, OutboxRow.created_at, OutboxRow.id)
        .limit(limit)
        .with_for_update(of=OutboxRow, skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    for row, _ in rows:
        row.lease_owner, row.lease_until = owner, now + lease
        row.confirm_attempts += 1
    return [
        Unconfirmed(
            id=row.id,
            sop_class_uid=item.sop_class_uid,
            sop_instance_uid=item.sop_instance_uid,
            study_instance_uid=item.study_instance_uid,
            file_name=item.file_name,
            attempts=row.confirm_attempts,
            sends=row.attempts,
            transaction_uid=row.transaction_uid,
        )
        for row, item in rows
    ]


def renew_leases(
    session: Session, claimed: Collection[Unconfirmed], *, now: datetime, lease: timedelta
) -> int:
    """Show life while asking; how many are still this process's."""
    renewed: Sequence[int] = session.scalars(
        update(OutboxRow)
        .where(OutboxRow.lease_owner.is_not(None), or_(*(_is_mine(each) for each in claimed)))
        .values(lease_until=now + lease)
        .returning(OutboxRow.id)
    ).all()
    return len(renewed)


def record_request(
    session: Session, claimed: Collection[Unconfirmed], transaction_uid: str, *, answer_by: datetime
) -> None:
    """Storage commitment is about to be asked for: written down first, since the answer may come at once."""
    session.execute(
        update(OutboxRow)
        .where(or_(*(_is_mine(each) for each in claimed)))
        .values(transaction_uid=transaction_uid, next_attempt_at=answer_by)
    )


def record_waiting(
    session: Session, claimed: Collection[Unconfirmed], *, next_attempt_at: datetime | None, note: str | None
) -> None:
    """The destination has not said it yet; ``None`` as next attempt makes dead letters.

    Parameters
    ----------
    note
        What it said instead; ``None`` leaves what stands there.
    """
    for row in _locked(session, or_(*(_is_mine(each) for each in claimed))):
        row.lease_owner = row.lease_until = None
        if note is not None:
            row.note = " ".join([*filter(None, [_said_when_taken(row.note)]), _NOT_CONFIRMED + note])
        if next_attempt_at is None:
            row.state = DeliveryState.DEAD
        else:
            row.next_attempt_at = next_attempt_at


def record_kept(session: Session, claimed: Collection[Unconfirmed], *, now: datetime) -> None:
    """The destination keeps these; that holds whoever asked, unless they are to be sent again since."""
    for row in _locked(session, or_(*(_is_same_sending(each) for each in claimed))):
        _set(row, _delivered(row, now))


def record_lost(
    session: Session, claimed: Collection[Unconfirmed], *, again_at: datetime | None, note: str
) -> None:
    """The destination took these and does not have them: they are sent again, or are dead letters."""
    session.execute(
        update(OutboxRow).where(or_(*(_is_mine(each) for each in claimed))).values(_lost(again_at, note))
    )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a destination said of a transaction of storage commitment."""

    transaction_uid: str
    committed: Collection[str]
    """SOP Instance UIDs."""
    failed: Mapping[str, str]
    """SOP Instance UID to the reason in words."""


def record_answer(
    session: Session, answer: Answer, *, now: datetime, again_at: Callable[[int], datetime | None]
) -> int:
    """Write down an answer, from wherever it came; how many objects of this node it was about.

    Parameters
    ----------
    again_at
        When to send again what the destination failed to commit, from how often it was sent; ``None``: not again.
    """
    is_asked = OutboxRow.transaction_uid == answer.transaction_uid
    known = 0
    for row in _locked(session, is_asked & (OutboxRow.state == DeliveryState.SENT)):
        uid = str(row.sop_instance_uid)
        if uid in answer.committed:
            values = _delivered(row, now)
        elif uid in answer.failed:
            values = _lost(again_at(row.attempts), f"taken, then not committed: {answer.failed[uid]}")
        else:
            continue
        known += 1
        _set(row, values)
    return known


def _locked(session: Session, which: ColumnElement[bool]) -> Sequence[OutboxRow]:
    query = select(OutboxRow).where(which).order_by(OutboxRow.id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).all()


def _set(row: OutboxRow, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(row, name, value)


def _said_when_taken(note: str | None) -> str | None:
    """A warning of then, without why it was not confirmed later."""
    return (note or "").partition(_NOT_CONFIRMED)[0].strip() or None


def _delivered(row: OutboxRow, now: datetime) -> dict[str, Any]:
    return {
        "state": DeliveryState.DELIVERED,
        "delivered_at": now,
        "note": _said_when_taken(row.note),
        "lease_owner": None,
        "lease_until": None,
    }


def _lost(again_at: datetime | None, note: str) -> dict[str, Any]:
    values: dict[str, Any] = {"state": DeliveryState.DEAD}
    if again_at is not None:
        values = {"state": DeliveryState.PENDING, "next_attempt_at": again_at}
    return {
        **values,
        "confirm_attempts": 0,
        "transaction_uid": None,
        "note": note,
        "lease_owner": None,
        "lease_until": None,
    }


def _is_same_sending(each: Unconfirmed) -> ColumnElement[bool]:
    return and_(
        OutboxRow.id == each.id, OutboxRow.state == DeliveryState.SENT, OutboxRow.attempts == each.sends
    )


def _is_mine(each: Unconfirmed) -> ColumnElement[bool]:
    return _is_same_sending(each) & (OutboxRow.confirm_attempts == each.attempts)
