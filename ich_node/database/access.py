"""Who looked at what: rows that are only ever added, and those the site's audit repository is still to be told of."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy.orm import Session

from ich_node.database.web_tables import AccessExportRow, AccessRow


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


def record_access(
    session: Session,
    *,
    at: datetime,
    caller: str,
    role: str,
    source: str,
    action: AccessAction,
    study_instance_uid: str | None = None,
    refused: bool = False,
    detail: str | None = None,
    export: bool = False,
) -> None:
    """Write down an access.

    Parameters
    ----------
    source
        Network address of the caller.
    export
        Whether an audit repository is to be told.
    """
    row = AccessRow(
        at=at,
        caller=caller,
        role=role,
        source=source,
        action=action,
        study_instance_uid=study_instance_uid,
        outcome="REFUSED" if refused else "SUCCESS",
        detail=detail,
    )
    session.add(row)
    if export:
        session.flush()
        session.add(AccessExportRow(access_id=row.id))
