"""Bearer tokens of systems (RFC 6750): 256 random bits, of which the SHA-256 alone is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from ich_node.database.sessions import new_token, token_sha256
from ich_node.database.web_tables import TokenRow
from ich_node.errors import IchNodeError

PREFIX = "ich_"
"""So that a token is known for what it is where it does not belong."""
USED_EVERY = timedelta(minutes=10)
"""How often it is written down that a token is used."""


class TokenError(IchNodeError):
    """There is no such token, or there is one already."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """A system's token, as an administrator sees it."""

    name: str
    role: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


def tokens(session: Session) -> list[Token]:
    """All of them, by name."""
    return [_token(row) for row in session.scalars(select(TokenRow).order_by(TokenRow.name))]


def create_token(
    session: Session, *, name: str, role: str, created_by: str, now: datetime, expires_at: datetime | None
) -> str:
    """Let a system in and give its token, which can be seen only now.

    A name that was revoked may be used again.

    Raises
    ------
    TokenError
        The name is taken.
    """
    row = session.scalar(select(TokenRow).where(TokenRow.name == name))
    if row is not None and row.revoked_at is None:
        raise TokenError(f"there is a token {name} already: 'ich-node tokens revoke {name}' makes room")
    if row is not None:
        session.delete(row)
        session.flush()
    token = PREFIX + new_token()
    session.add(
        TokenRow(
            token_sha256=token_sha256(token),
            name=name,
            role=role,
            created_at=now,
            created_by=created_by,
            expires_at=expires_at,
            last_used_at=None,
            revoked_at=None,
        )
    )
    return token


def revoke_token(session: Session, *, name: str, now: datetime) -> None:
    """Let a system in no more.

    Raises
    ------
    TokenError
        There is no such token.
    """
    row = session.scalar(select(TokenRow).where(TokenRow.name == name))
    if row is None:
        raise TokenError(f"there is no token {name}: 'ich-node tokens list' names all")
    row.revoked_at = row.revoked_at or now


def token_of(session: Session, token: str, *, now: datetime) -> Token | None:
    """The system that holds a token; none where it was revoked or has expired."""
    row = session.scalar(
        select(TokenRow).where(
            TokenRow.token_sha256 == token_sha256(token),
            TokenRow.revoked_at.is_(None),
            or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > now),
        )
    )
    return None if row is None else _token(row)


def token_was_used(session: Session, name: str, *, now: datetime) -> None:
    """Write down that a token is used."""
    session.execute(update(TokenRow).where(TokenRow.name == name).values(last_used_at=now))


def _token(row: TokenRow) -> Token:
    return Token(
        name=row.name,
        role=row.role,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
