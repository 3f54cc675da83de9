"""One study with its series, readings, deliveries and history, as ``ich-node study show UID --json`` prints it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from ich_node.database.tables import (
    AuditRow,
    InstanceRow,
    OutboxRow,
    ReadingRow,
    ResultObjectRow,
    SeriesRow,
    StudyRow,
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
        "slices": [
            {**found, "frame_number": found.get("frame_number"), "shown_on": found.get("shown_on")}
            for found in row.slices
        ],
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


def _iso(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="milliseconds")
