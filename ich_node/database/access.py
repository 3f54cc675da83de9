"""Who looked at what: rows that are only ever added, and those the site's audit repository is still to be told of."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ich_node.database.engine import Database
from ich_node.database.tables import StudyRow
from ich_node.database.web_tables import AccessExportRow, AccessRow
from ich_node.errors import IchNodeError

logger = logging.getLogger(__name__)

MOST_UNWRITTEN = 10_000
"""Accesses that are kept in memory while the database cannot be written; the oldest are lost first."""


class AccessAction(StrEnum):
    """What somebody did, or tried to."""

    LOGIN = "LOGIN"
    LOGOUT = "LOGOUT"
    VIEW = "VIEW"
    """A page or a picture of one study."""
    RETRIEVE = "RETRIEVE"
    """Objects of a study, or their metadata."""
    QUERY = "QUERY"
    """A search that named studies."""
    CHANGE = "CHANGE"
    """A review, a reprocessing, a workitem's state."""
    ADMINISTER = "ADMINISTER"
    """Users, tokens."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """That somebody did something, or tried to."""

    at: datetime
    caller: str
    role: str
    source: str
    """Network address of the caller."""
    action: AccessAction
    study_instance_uid: str | None = None
    refused: bool = False
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class UnsentAccess:
    """An access that the audit repository is still to be told of."""

    id: int
    access: Access
    patient_id: str | None
    """Of the study, where there is one."""


class AccessLog:
    """Writes accesses down, at once where the database can be written, otherwise as soon as it can.

    Parameters
    ----------
    export
        Whether an audit repository is to be told.
    """

    def __init__(self, database: Database, *, export: bool = False) -> None:
        self._database = database
        self._export = export
        self._unwritten: deque[Access] = deque()
        self._lock = threading.Lock()

    def add(self, access: Access) -> None:
        """Write one down; whether that is possible is no concern of the caller's."""
        with self._lock:
            accesses = [*self._unwritten, access]
            self._unwritten.clear()
        try:
            with self._database.writing() as session:
                for each in accesses:
                    record_access(session, each, export=self._export)
        except IchNodeError as error:
            self._keep(accesses, error)

    def _keep(self, accesses: list[Access], error: IchNodeError) -> None:
        with self._lock:
            self._unwritten.extendleft(reversed(accesses))
            lost = max(0, len(self._unwritten) - MOST_UNWRITTEN)
            for _ in range(lost):
                self._unwritten.popleft()
            count = len(self._unwritten)
        logger.error(
            "the access log cannot be written (%s): %d accesses wait in memory, %d are lost",
            error,
            count,
            lost,
        )


def record_access(session: Session, access: Access, *, export: bool = False) -> None:
    """Write down an access.

    Parameters
    ----------
    export
        Whether an audit repository is to be told.
    """
    row = AccessRow(
        at=access.at,
        caller=access.caller,
        role=access.role,
        source=access.source,
        action=access.action,
        study_instance_uid=access.study_instance_uid,
        outcome="REFUSED" if access.refused else "SUCCESS",
        detail=access.detail,
    )
    session.add(row)
    if export:
        session.flush()
        session.add(AccessExportRow(access_id=row.id))


def unsent_accesses(session: Session, *, limit: int) -> list[UnsentAccess]:
    """What the audit repository is still to be told of, the oldest first."""
    rows = session.execute(
        select(AccessRow, StudyRow.patient_id)
        .join(AccessExportRow, AccessExportRow.access_id == AccessRow.id)
        .outerjoin(StudyRow, StudyRow.study_instance_uid == AccessRow.study_instance_uid)
        .order_by(AccessExportRow.access_id)
        .limit(limit)
    )
    return [UnsentAccess(id=row.id, access=_access(row), patient_id=patient_id) for row, patient_id in rows]


def accesses_were_sent(session: Session, ids: Sequence[int]) -> None:
    """The audit repository has been told."""
    session.execute(delete(AccessExportRow).where(AccessExportRow.access_id.in_(ids)))


def _access(row: AccessRow) -> Access:
    return Access(
        at=row.at,
        caller=row.caller,
        role=row.role,
        source=row.source,
        action=AccessAction(row.action),
        study_instance_uid=row.study_instance_uid,
        refused=row.outcome == "REFUSED",
        detail=row.detail,
    )
