"""What a doctor asks of the database and nobody else does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ich_node.database.outbox import UNDELIVERED
from ich_node.database.tables import AuditRow, OutboxRow, StudyRow
from ich_node.findings import StudyState


@dataclass(frozen=True, kw_only=True)
class Orphans:
    """Work that somebody took up and shows no life with."""

    studies: int
    deliveries: int


def server_time(session: Session) -> datetime | None:
    """The database server's clock; ``None`` where the database is a file of this host."""
    if session.get_bind().dialect.name == "sqlite":
        return None
    time: datetime | None = session.scalar(select(func.clock_timestamp()))
    return time


def last_change_at(session: Session) -> datetime | None:
    """When the last change of a study was written down, by the clock of whoever did."""
    return session.scalar(select(AuditRow.at).order_by(AuditRow.id.desc()).limit(1))


def orphans(session: Session, *, before: datetime) -> Orphans:
    """Studies and deliveries whose lease ran out before a time and that nobody has taken up since."""
    studies = select(func.count()).where(
        StudyRow.state == StudyState.READING, StudyRow.lease_until.is_not(None), StudyRow.lease_until < before
    )
    deliveries = select(func.count()).where(
        OutboxRow.state.in_([str(state) for state in UNDELIVERED]),
        OutboxRow.lease_until.is_not(None),
        OutboxRow.lease_until < before,
        OutboxRow.next_attempt_at < before,
    )
    return Orphans(studies=session.scalar(studies) or 0, deliveries=session.scalar(deliveries) or 0)
