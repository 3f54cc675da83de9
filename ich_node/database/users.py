"""People who log in by a password that this node keeps the Argon2 hash of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from ich_node.database.sessions import end_sessions_of
from ich_node.database.web_tables import UserRow
from ich_node.errors import IchNodeError

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")


class UserError(IchNodeError):
    """There is no such user, there is one already, or the name is none."""


@dataclass(frozen=True, kw_only=True)
class User:
    """A person, as an administrator sees it."""

    name: str
    role: str
    created_at: datetime
    password_changed_at: datetime
    disabled_at: datetime | None


def user_name(text: str) -> str:
    """A name as it is kept: in lower case, so that nobody is there twice.

    Raises
    ------
    UserError
        It is none.
    """
    name = text.strip().lower()
    if _NAME.fullmatch(name) is None:
        raise UserError(
            f"{text!r} is no user name: 1 to 64 of the letters a to z, digits and . _ @ -, a letter or digit first"
        )
    return name


def users(session: Session) -> list[User]:
    """Everybody, by name."""
    return [_user(row) for row in session.scalars(select(UserRow).order_by(UserRow.name))]


def password_of(session: Session, name: str) -> tuple[User, str] | None:
    """A user with the hash of its password; nobody has a name that `user_name` would not give."""
    # A name with a NUL in it would find the one without.
    row = session.get(UserRow, name) if _NAME.fullmatch(name) else None
    return None if row is None else (_user(row), row.password_hash)


def add_user(session: Session, *, name: str, role: str, password_hash: str, now: datetime) -> None:
    """Let somebody log in.

    Raises
    ------
    UserError
        The name is taken.
    """
    if session.get(UserRow, name) is not None:
        raise UserError(
            f"there is a user {name} already: 'ich-node users set-password {name}' changes the password"
        )
    session.add(
        UserRow(
            name=name,
            role=role,
            password_hash=password_hash,
            created_at=now,
            password_changed_at=now,
            disabled_at=None,
        )
    )


def set_password(session: Session, *, name: str, password_hash: str, now: datetime) -> int:
    """Change a password; gives how many sessions that has ended.

    Raises
    ------
    UserError
        There is no such user; so do all of the following.
    """
    row = _row(session, name)
    row.password_hash, row.password_changed_at = password_hash, now
    return end_sessions_of(session, name)


def rehash_password(session: Session, *, name: str, before: str, after: str) -> None:
    """Keep the same password under a stronger hash, unless it was changed meanwhile."""
    row = session.get(UserRow, name)
    if row is not None and row.password_hash == before:
        row.password_hash = after


def set_role(session: Session, *, name: str, role: str) -> int:
    """Change what somebody may do; gives how many sessions that has ended."""
    _row(session, name).role = role
    return end_sessions_of(session, name)


def disable_user(session: Session, *, name: str, now: datetime) -> int:
    """Let somebody in no more; gives how many sessions that has ended."""
    row = _row(session, name)
    row.disabled_at = row.disabled_at or now
    return end_sessions_of(session, name)


def enable_user(session: Session, *, name: str) -> None:
    """Let somebody in again."""
    _row(session, name).disabled_at = None


def remove_user(session: Session, *, name: str) -> int:
    """Forget somebody; what was said and looked at under that name stays. Gives how many sessions that has ended."""
    session.delete(_row(session, name))
    return end_sessions_of(session, name)


def _row(session: Session, name: str) -> UserRow:
    row = session.get(UserRow, name)
    if row is None:
        raise UserError(f"there is no user {name}: 'ich-node users list' names all")
    return row


def _user(row: UserRow) -> User:
    return User(
        name=row.name,
        role=row.role,
        created_at=row.created_at,
        password_changed_at=row.password_changed_at,
        disabled_at=row.disabled_at,
    )
