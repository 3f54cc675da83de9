"""What people and other systems see: the view ``worklist_v1`` and one study with its readings."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Float, FromClause, MetaData, Row, Select, Table, Text, case, func, select
from sqlalchemy.orm import Session

from ich_node.database.tables import (
    AuditRow,
    InstanceRow,
    OutboxRow,
    ReadingRow,
    ResultObjectRow,
    SeriesRow,
    StudyRow,
    UtcDateTime,
)
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


def worklist(
    session: Session,
    *,
    limit: int = 200,
    priorities: Collection[Priority] | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``worklist_v1`` in reading order: the unreviewed, the most urgent, the longest waiting first.

    Where there are more than ``limit``, what is left out is the least urgent, and among equals the oldest:
    what has just come in is always shown.
    """
    kept = _ranked(_VIEW, newest_first=True).limit(limit)
    if priorities is not None:
        kept = kept.where(_VIEW.c.priority.in_([str(p) for p in priorities]))
    return [_plain(row) for row in session.execute(_ranked(kept.subquery(), newest_first=False))]


def worklist_row(session: Session, study_instance_uid: str) -> dict[str, Any] | None:
    """One study's row of ``worklist_v1``."""
    row = session.execute(select(_VIEW).where(_VIEW.c.study_instance_uid == study_instance_uid)).first()
    return None if row is None else _plain(row)


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


def study_report(session: Session, study_instance_uid: str) -> dict[str, Any] | None:
    """A study with its readings, newest first, as ``ich-node study show UID --json`` prints it."""
    study = session.get(StudyRow, study_instance_uid)
    if study is None:
        return None
    readings = session.scalars(
        select(ReadingRow)
        .where(ReadingRow.study_instance_uid == study_instance_uid)
        .order_by(ReadingRow.id.desc())
    )
    return {
        "study_instance_uid": study.study_instance_uid,
        "priority": study.priority,
        "state": study.state,
        "reason": study.reason,
        "reason_detail": study.reason_detail,
        "purged_at": _iso(study.purged_at),
        "series": [_series(session, s) for s in _series_rows(session, study_instance_uid)],
        "readings": [_reading(session, r) for r in readings],
        "history": _history(session, study_instance_uid),
    }


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
    ended = (StudyState.READ, StudyState.NOT_READ, StudyState.FAILED)
    query = select(func.count()).where(
        StudyRow.last_received_at < before, StudyRow.state.not_in([str(s) for s in ended])
    )
    return session.scalar(query) or 0


def state_counts(session: Session) -> dict[str, int]:
    """How many studies are in each state."""
    rows = session.execute(select(StudyRow.state, func.count()).group_by(StudyRow.state))
    return {row[0]: row[1] for row in rows}


def _ranked(rows: FromClause, *, newest_first: bool) -> Select[Any]:
    urgency = case({str(p): p.urgency for p in Priority}, value=rows.c.priority)
    received_at = rows.c.received_at.desc() if newest_first else rows.c.received_at
    return select(rows).order_by(
        rows.c.reviewed_at.is_not(None), urgency, received_at, rows.c.study_instance_uid
    )


def _plain(row: Row[Any]) -> dict[str, Any]:
    return {name: _iso(value) for name, value in row._mapping.items()}


def _iso(value: Any) -> Any:
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value


def _series_rows(session: Session, study_instance_uid: str) -> list[SeriesRow]:
    query = select(SeriesRow).where(SeriesRow.study_instance_uid == study_instance_uid)
    return list(session.scalars(query.order_by(SeriesRow.series_number, SeriesRow.series_instance_uid)))


def _series(session: Session, row: SeriesRow) -> dict[str, Any]:
    images = select(func.count(), func.sum(case((InstanceRow.conflict, 1), else_=0))).where(
        InstanceRow.series_instance_uid == row.series_instance_uid
    )
    count, conflicts = session.execute(images).one()
    present = count - (conflicts or 0)
    return {
        "series_instance_uid": row.series_instance_uid,
        "modality": row.modality,
        "series_number": row.series_number,
        "series_description": row.series_description,
        "instances": present,
        "conflicting_instances": conflicts or 0,
        "purged_instances": row.purged_instances if present < row.purged_instances else 0,
        "exclusion_reason": row.exclusion_reason,
        "exclusion_detail": row.exclusion_detail,
    }


def _reading(session: Session, row: ReadingRow) -> dict[str, Any]:
    objects = session.execute(
        select(ResultObjectRow.kind, ResultObjectRow.sop_instance_uid, ResultObjectRow.purged_at)
        .where(ResultObjectRow.reading_id == row.id)
        .order_by(ResultObjectRow.position)
    )
    return {
        "series_instance_uid": row.series_instance_uid,
        "run_number": row.run_number,
        "model_name": row.model_name,
        "model_version": row.model_version,
        "weights_sha256": row.weights_sha256,
        "priority": row.priority,
        "suspicion": row.suspicion,
        "operating_points": row.operating_points,
        "subtypes": row.subtypes,
        "caveats": row.caveats,
        "input_features": row.input_features or {},
        "unlike_training": row.unlike_training,
        "timeline": row.timeline,
        "read_at": _iso(row.read_at),
        "superseded": row.superseded,
        "slices": [{**found, "frame_number": found.get("frame_number")} for found in row.slices],
        "objects": [
            {"kind": kind, "sop_instance_uid": uid, "purged_at": _iso(purged_at)}
            for kind, uid, purged_at in objects
        ],
        "deliveries": _deliveries(session, row.id),
    }


def _deliveries(session: Session, reading_id: int) -> list[dict[str, Any]]:
    rows = session.scalars(
        select(OutboxRow)
        .join(ResultObjectRow, ResultObjectRow.sop_instance_uid == OutboxRow.sop_instance_uid)
        .where(ResultObjectRow.reading_id == reading_id)
        .order_by(OutboxRow.id)
    )
    return [
        {
            "sop_instance_uid": row.sop_instance_uid,
            "destination": row.destination,
            "state": row.state,
            "attempts": row.attempts,
            "sent_at": _iso(row.sent_at),
            "delivered_at": _iso(row.delivered_at),
            "note": row.note,
        }
        for row in rows
    ]


def _history(session: Session, study_instance_uid: str) -> list[dict[str, Any]]:
    rows = session.scalars(
        select(AuditRow).where(AuditRow.study_instance_uid == study_instance_uid).order_by(AuditRow.id)
    )
    return [
        {
            "at": _iso(row.at),
            "actor": row.actor,
            "action": row.action,
            "state": row.state,
            "priority": row.priority,
            "why": row.why,
        }
        for row in rows
    ]
