"""What people and other systems see: the view ``worklist_v1``, in reading order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    Column,
    Float,
    MetaData,
    Select,
    Table,
    Text,
    func,
    select,
)
from sqlalchemy.orm import Session

from ich_node.database.among import among
from ich_node.database.column_types import UtcDateTime, iso_text
from ich_node.database.study_report import study_report as study_report
from ich_node.database.tables import (
    ResultObjectRow,
    StudyRow,
)
from ich_node.database.worklist_order import Wanted, first_studies, place_of
from ich_node.findings import Priority, StudyState

_TIMES = ("received_at", "read_at", "flagged_at", "delivered_at", "reviewed_at")
COLUMNS = (
    "study_instance_uid",
    "accession_number",
    "patient_id",
    "patient_name",
    "study_date",
    "study_time",
    "modality_ae_title",
    "received_at",
    "read_at",
    "flagged_at",
    "priority",
    "state",
    "reason",
    "suspicion",
    "subtypes",
    "model_name",
    "model_version",
    "sr_sop_instance_uid",
    "delivered_at",
    "reviewed_at",
    "reviewed_by",
)
"""Of ``worklist_v1``; other systems rely on names and meaning."""


_VIEW = Table(
    "worklist_v1",
    MetaData(),
    *(
        Column(name, UtcDateTime() if name in _TIMES else Float() if name == "suspicion" else Text())
        for name in COLUMNS
    ),
)
_PLAIN = select(
    *(iso_text(column).label(column.name) if column.name in _TIMES else column for column in _VIEW.c)
)


def worklist(
    session: Session,
    *,
    limit: int = 200,
    priorities: Collection[Priority] | None = None,
    states: Collection[StudyState] | None = None,
    unreviewed: bool | None = None,
    received_since: datetime | None = None,
    modality_ae_title: str | None = None,
    search: str | None = None,
    before: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``worklist_v1`` in reading order: the unreviewed, the most urgent, the longest waiting first.

    Where there are more than ``limit``, what is left out is the least urgent, and among equals the oldest:
    what has just come in is always shown.

    Parameters
    ----------
    limit
        Most rows.
    priorities, states
        Of the studies that are wanted; ``None``: all.
    unreviewed
        Only those that nobody has reviewed (true), or only those that somebody has (false).
    received_since
        When the first image must have arrived, at the earliest.
    modality_ae_title
        Who must have sent it.
    search
        Words that must all be in the patient's name or ID, the accession number or the Study Instance UID, in
        capitals or not. Studies of which one of the last three is just the text come alone.
    before
        The Study Instance UID that `page_end` gave for an earlier page: what that one left out comes.
    """
    after = None if before is None else place_of(session, before)
    if before is not None and after is None:
        return []
    wanted = Wanted(
        priorities=priorities,
        states=states,
        unreviewed=unreviewed,
        received_since=received_since,
        modality_ae_title=modality_ae_title,
    )
    first = first_studies(session, wanted, limit=limit, search=search or "", after=after)
    rows = {row["study_instance_uid"]: row for row in _rows(session, [uid for _, uid in first])}
    alike = (list(group) for _, group in groupby(first, key=itemgetter(0)))
    return [rows[uid] for group in alike for _, uid in reversed(group) if uid in rows]


def page_end(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The row of a page of `worklist` that the next page continues after; ``None`` where there is no row."""
    if not rows:
        return None
    last = rows[-1]
    alike = (r for r in rows if _class(r) == _class(last))
    return str(next(alike)["study_instance_uid"])


def worklist_row(session: Session, study_instance_uid: str) -> dict[str, Any] | None:
    """One study's row of ``worklist_v1``."""
    return next(iter(_rows(session, [study_instance_uid])), None)


def delivered_at(session: Session, study_instance_uid: str) -> datetime | None:
    """When the last PACS was known to keep the last result of the reading that counts; ``None`` while one is not."""
    query = select(_VIEW.c.delivered_at).where(_VIEW.c.study_instance_uid == study_instance_uid)
    delivered: datetime | None = session.scalar(query)
    return delivered


def delivered_before(before: datetime) -> Select[str]:
    """A query for studies that are read and whose results were delivered before a time, the longest ago first."""
    return (
        select(StudyRow.study_instance_uid)
        .join(_VIEW, _VIEW.c.study_instance_uid == StudyRow.study_instance_uid)
        .where(StudyRow.state == StudyState.READ, _VIEW.c.delivered_at <= before)
        .order_by(_VIEW.c.delivered_at)
    )


def result_files(session: Session, study_instance_uid: str) -> list[tuple[str, str, str]]:
    """(kind, SOP Instance UID, file name) of the objects that the priority rests on, in viewing order."""
    rows = session.execute(
        select(ResultObjectRow.kind, ResultObjectRow.sop_instance_uid, ResultObjectRow.file_name)
        .join(StudyRow, StudyRow.reading_id == ResultObjectRow.reading_id)
        .where(StudyRow.study_instance_uid == study_instance_uid)
        .order_by(ResultObjectRow.position)
    )
    return [(kind, uid, file_name) for kind, uid, file_name in rows]


def result_file(session: Session, sop_instance_uid: str) -> ResultObjectRow | None:
    """One result object, of whichever reading; its file is below the results folder."""
    return session.get(ResultObjectRow, sop_instance_uid)


def find_studies(
    session: Session,
    *,
    study_instance_uids: Collection[str] | None = None,
    states: Collection[StudyState] | None = None,
    received_since: datetime | None = None,
) -> list[str]:
    """Study Instance UIDs that fit every condition given, the oldest first."""
    query = select(StudyRow.study_instance_uid).order_by(StudyRow.received_at)
    if study_instance_uids is not None:
        query = query.where(StudyRow.study_instance_uid.in_(list(study_instance_uids)))
    if states is not None:
        query = query.where(StudyRow.state.in_([str(s) for s in states]))
    if received_since is not None:
        query = query.where(StudyRow.received_at >= received_since)
    return list(session.scalars(query))


def overdue(session: Session, *, before: datetime) -> int:
    """How many studies got their last image before a time and have come to no end yet."""
    under_way = (StudyState.RECEIVING, StudyState.QUEUED, StudyState.READING)
    query = select(func.count()).where(
        StudyRow.last_received_at < before, StudyRow.state.in_([str(s) for s in under_way])
    )
    return session.scalar(query) or 0


def state_counts(session: Session) -> dict[str, int]:
    """How many studies are in each state."""
    rows = session.execute(select(StudyRow.state, func.count()).group_by(StudyRow.state))
    return {row[0]: row[1] for row in rows}


def _rows(session: Session, study_instance_uids: Sequence[str]) -> list[dict[str, Any]]:
    connection = session.connection()
    wanted = among(_VIEW.c.study_instance_uid, study_instance_uids, dialect=connection.dialect.name)
    return [dict(zip(COLUMNS, row, strict=True)) for row in connection.execute(_PLAIN.where(wanted)).all()]


def _class(row: Mapping[str, Any]) -> tuple[bool, str]:
    return row["reviewed_at"] is None, row["priority"]
