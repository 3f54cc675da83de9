"""Work that is done now and then, by one process of all hosts at a time."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ich_node.database.tables import ChoreRow

_UNFINISHED_AGAIN = timedelta(minutes=10)
"""A round that came to no end, because its process died or something did not answer, is done again so soon."""


def last_round(session: Session, name: str) -> ChoreRow | None:
    """What is known of the last round; ``None`` before the first."""
    return session.scalar(
        select(ChoreRow).where(ChoreRow.name == name).execution_options(populate_existing=True)
    )


def is_due(session: Session, name: str, *, every: timedelta, now: datetime) -> bool:
    """Whether a round should begin now, and nobody is at one."""
    return _is_due(last_round(session, name), every, now)


def take_turn(
    session: Session, name: str, *, owner: str, every: timedelta, lease: timedelta, now: datetime
) -> bool:
    """Begin a round, unless none is due or another process has begun it."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(insert(ChoreRow).values(name=name).on_conflict_do_nothing())
    chore = session.scalar(
        select(ChoreRow)
        .where(ChoreRow.name == name)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if chore is None or not _is_due(chore, every, now):
        return False
    chore.lease_owner, chore.lease_until, chore.started_at = owner, now + lease, now
    return True


def show_life(session: Session, name: str, *, owner: str, lease: timedelta, now: datetime) -> bool:
    """Renew the lease; false where another process has taken over."""
    renewed = session.scalars(
        update(ChoreRow)
        .where(ChoreRow.name == name, ChoreRow.lease_owner == owner)
        .values(lease_until=now + lease)
        .returning(ChoreRow.name)
    )
    return renewed.first() is not None


def end_turn(session: Session, name: str, *, owner: str, now: datetime, note: str) -> None:
    """End a round that has done what it could."""
    session.execute(
        update(ChoreRow)
        .where(ChoreRow.name == name, ChoreRow.lease_owner == owner)
        .values(lease_owner=None, lease_until=None, ended_at=now, note=note)
    )


def _is_due(chore: ChoreRow | None, every: timedelta, now: datetime) -> bool:
    if chore is None or chore.started_at is None:
        return True
    if chore.lease_until is not None and chore.lease_until >= now:
        return False
    ended = chore.ended_at is not None and chore.ended_at >= chore.started_at
    return now >= chore.started_at + (every if ended else min(every, _UNFINISHED_AGAIN))
