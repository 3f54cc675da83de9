"""Logins that failed, and how long the next one has to wait."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from ich_node.database.web_tables import LoginFailureRow

REMEMBERED = timedelta(hours=1)
FREE_FOR_A_USER, FREE_FOR_A_SOURCE = 5, 20
"""Failures without a wait; many people may sit behind one address."""
LONGEST_FOR_A_USER, LONGEST_FOR_A_SOURCE = timedelta(seconds=60), timedelta(minutes=5)
"""The first is short, since anybody can make somebody else wait."""


def waiting_time(session: Session, *, user_name: str, source: str, now: datetime) -> timedelta:
    """How long a user, known or not, and a network address have to wait; it doubles with each failure."""
    return max(
        _wait(
            session, LoginFailureRow.user_name == _digest(user_name), FREE_FOR_A_USER, LONGEST_FOR_A_USER, now
        ),
        _wait(session, LoginFailureRow.source == source, FREE_FOR_A_SOURCE, LONGEST_FOR_A_SOURCE, now),
    )


def add_failure(session: Session, *, user_name: str, source: str, now: datetime) -> None:
    """Write down a failure; old ones go."""
    session.execute(delete(LoginFailureRow).where(LoginFailureRow.at <= now - REMEMBERED))
    session.add(LoginFailureRow(at=now, user_name=_digest(user_name), source=source))


def forget_failures(session: Session, *, user_name: str) -> None:
    """Somebody has logged in."""
    session.execute(delete(LoginFailureRow).where(LoginFailureRow.user_name == _digest(user_name)))


def _wait(
    session: Session, whose: ColumnElement[bool], free: int, longest: timedelta, now: datetime
) -> timedelta:
    count, last = session.execute(
        select(func.count(), func.max(LoginFailureRow.at)).where(whose, LoginFailureRow.at > now - REMEMBERED)
    ).one()
    if count < free:
        return timedelta(0)
    wait = min(timedelta(seconds=2.0 ** min(count - free, 20)), longest)
    # A clock that was set back makes nobody wait longer than that.
    return max(timedelta(0), min(last + wait - now, wait))


def _digest(user_name: str) -> str:
    """What is kept of a name that was typed: sometimes it is a password."""
    return hashlib.sha256(user_name.encode("utf-8", "replace")).hexdigest()
