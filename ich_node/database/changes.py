"""Whether what the worklist shows has changed, asked so cheaply that it can be asked all the time."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ich_node.database.outbox import UNDELIVERED
from ich_node.database.tables import AuditRow, OutboxRow

_LAST = 100
"""Changes that are looked at: one that took a lower number commits later at times, and must not be missed."""
_MOST = 5000
"""Deliveries under way that are counted; how many more there are says nothing new."""


def worklist_version(session: Session) -> str:
    """A text that is another one after every change of a study's state or priority, and after most deliveries.

    Two short stretches of two indexes, however many studies there are.
    """
    last = select(AuditRow.id).order_by(AuditRow.id.desc()).limit(_LAST).subquery()
    states = [str(state) for state in UNDELIVERED]
    under_way = select(OutboxRow.id).where(OutboxRow.state.in_(states)).limit(_MOST).subquery()
    changes = session.scalar(select(func.sum(last.c.id))) or 0
    deliveries = session.scalar(select(func.count()).select_from(under_way)) or 0
    return f"{changes}-{deliveries}"
