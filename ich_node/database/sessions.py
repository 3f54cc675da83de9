"""Browsers that somebody has logged in with. A cookie holds 256 random bits; its SHA-256 alone is kept."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import CursorResult, delete, func, or_, select, update
from sqlalchemy.orm import Session

from ich_node.database.web_tables import SessionRow, UserRow

TOUCH_EVERY = timedelta(seconds=60)
"""How often it is written down that a session is used."""

_TOKEN_BYTES = 32


class SessionOrigin(StrEnum):
    """How somebody has logged in."""

    LOCAL = "LOCAL"
    """By a password that this node keeps the hash of."""
    OIDC = "OIDC"


@dataclass(frozen=True, kw_only=True)
class WebSession:
    """Somebody who is logged in."""

    user_name: str
    role: str
    csrf_token: str
    last_seen_at: datetime


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_sha256(token: str) -> str:
    """What is kept of a token. It has so many random bits that no slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def open_session(
    session: Session,
    *,
    user_name: str,
    role: str,
    origin: SessionOrigin,
    now: datetime,
    lifetime: timedelta,
) -> str:
    """Begin a session and give the token for its cookie; those that have expired go."""
    session.execute(delete(SessionRow).where(SessionRow.expires_at <= now))
    token = new_token()
    session.add(
        SessionRow(
            token_sha256=token_sha256(token),
            user_name=user_name,
            role=role,
            origin=origin,
            csrf_token=new_token(),
            created_at=now,
            last_seen_at=now,
            expires_at=now + lifetime,
        )
    )
    return token


def session_of(session: Session, token: str, *, now: datetime, idle: timedelta) -> WebSession | None:
    """Whoever holds a cookie's token; nobody where it has expired, or its user is not who it was at the login."""
    row = session.scalar(
        select(SessionRow)
        .outerjoin(UserRow, UserRow.name == SessionRow.user_name)
        .where(
            SessionRow.token_sha256 == token_sha256(token),
            SessionRow.expires_at > now,
            SessionRow.last_seen_at > now - idle,
            or_(
                SessionRow.origin != SessionOrigin.LOCAL,
                UserRow.disabled_at.is_(None) & (UserRow.role == SessionRow.role),
            ),
        )
    )
    if row is None:
        return None
    return WebSession(
        user_name=row.user_name, role=row.role, csrf_token=row.csrf_token, last_seen_at=row.last_seen_at
    )


def touch_session(session: Session, token: str, *, now: datetime) -> None:
    """Write down that a session is used."""
    session.execute(
        update(SessionRow).where(SessionRow.token_sha256 == token_sha256(token)).values(last_seen_at=now)
    )


def end_session(session: Session, token: str) -> None:
    """Log a browser out."""
    session.execute(delete(SessionRow).where(SessionRow.token_sha256 == token_sha256(token)))


def end_sessions_of(session: Session, user_name: str) -> int:
    """Log somebody out everywhere; gives how many sessions that were."""
    result = session.execute(delete(SessionRow).where(SessionRow.user_name == user_name))
    assert isinstance(result, CursorResult)
    return result.rowcount


def open_sessions(session: Session, *, now: datetime, idle: timedelta) -> dict[str, int]:
    """How many sessions each user has, by name."""
    rows = session.execute(
        select(SessionRow.user_name, func.count())
        .where(SessionRow.expires_at > now, SessionRow.last_seen_at > now - idle)
        .group_by(SessionRow.user_name)
        .order_by(SessionRow.user_name)
    )
    return {row[0]: row[1] for row in rows}
