"""Rows about received images. All of them can be rebuilt from the spool."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import exists, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ich_node.database.audit import record_change
from ich_node.database.standing import lock_study, never_negative, set_state
from ich_node.database.tables import InstanceRow, SeriesRow, StudyRow, Table
from ich_node.errors import RejectionReason
from ich_node.findings import Priority, StudyState
from ich_node.study import Instance, StudyHeader


class Receipt(StrEnum):
    """What an arriving object was."""

    NEW = "NEW"
    DUPLICATE = "DUPLICATE"
    """The same object again; nothing changed."""
    CONFLICT = "CONFLICT"
    """Other bytes under a known SOP Instance UID, or another study's image under a known Series Instance UID;
    kept, shown, not read."""


def record_instance(
    session: Session,
    instance: Instance,
    header: StudyHeader,
    *,
    file_name: str,
    size_bytes: int,
    sha256: str,
    source_ae_title: str,
    received_at: datetime,
    due_at: datetime,
) -> Receipt:
    """Record one object that is safe in the spool.

    One transaction should record objects of one study only: two that lock the same studies in different
    orders wait for each other, and PostgreSQL ends one of them.

    Parameters
    ----------
    file_name
        Below the spool folder.
    due_at
        When a worker may look at the series if nothing else arrives.

    Raises
    ------
    ValueError
        Instance and header are of different studies.
    """
    if header.study_instance_uid != instance.study_instance_uid:
        raise ValueError("instance and header are of different studies")
    actor = source_ae_title or "node"
    study = _lock_or_add_study(session, header, source_ae_title, received_at)
    series = _get_or_add_series(session, instance)
    values = {
        **_instance_values(instance),
        "file_name": file_name,
        "size_bytes": size_bytes,
        "sha256": sha256,
        "source_ae_title": source_ae_title,
        "received_at": received_at,
    }
    ours = series.study_instance_uid == study.study_instance_uid
    # The unique constraints decide, not a query before: two senders may bring the same UID at the same time.
    if ours and _insert_if_absent(session, InstanceRow, {**values, "conflict": False}):
        series.revision, series.due_at = series.revision + 1, due_at
        _images_arrived(session, study, header, actor=actor, at=received_at)
        return Receipt.NEW
    if _insert_if_absent(session, InstanceRow, {**values, "conflict": True}):
        _conflict_arrived(session, study, actor=actor, at=received_at)
        return Receipt.CONFLICT
    return Receipt.DUPLICATE


def series_geometry(session: Session, series_instance_uid: str) -> list[InstanceRow]:
    """The received instances of a series, for the completeness check."""
    return list(
        session.scalars(
            select(InstanceRow).where(
                InstanceRow.series_instance_uid == series_instance_uid, InstanceRow.conflict.is_(False)
            )
        )
    )


def set_due(session: Session, series_instance_uid: str, due_at: datetime) -> None:
    """Say when a worker may look at a series, unless it has been looked at since its last object arrived."""
    study_instance_uid = session.scalar(
        select(SeriesRow.study_instance_uid).where(SeriesRow.series_instance_uid == series_instance_uid)
    )
    if study_instance_uid is None or lock_study(session, study_instance_uid) is None:
        return
    series = session.get_one(SeriesRow, series_instance_uid, populate_existing=True)
    if series.due_at is not None:
        series.due_at = due_at


def known_file_names(session: Session) -> set[str]:
    """Spool files that have a row."""
    return set(session.scalars(select(InstanceRow.file_name)))


def conflicts(session: Session, *, since: timedelta, now: datetime) -> int:
    """How many objects arrived under a UID that another object already had."""
    rows = select(func.count()).where(InstanceRow.conflict.is_(True), InstanceRow.received_at >= now - since)
    return session.scalar(rows) or 0


def _lock_or_add_study(
    session: Session, header: StudyHeader, source_ae_title: str, received_at: datetime
) -> StudyRow:
    study = lock_study(session, header.study_instance_uid)
    if study is not None:
        return study
    added = _insert_if_absent(session, StudyRow, _study_values(header, source_ae_title, received_at))
    study = lock_study(session, header.study_instance_uid)
    assert study is not None
    if added:
        record_change(session, study, at=received_at, actor=source_ae_title or "node", action="received")
    return study


def _get_or_add_series(session: Session, instance: Instance) -> SeriesRow:
    series = session.get(SeriesRow, instance.series_instance_uid, populate_existing=True)
    if series is not None:
        return series
    _insert_if_absent(session, SeriesRow, _series_values(instance))
    return session.get_one(SeriesRow, instance.series_instance_uid, populate_existing=True)


def _images_arrived(
    session: Session, study: StudyRow, header: StudyHeader, *, actor: str, at: datetime
) -> None:
    before = (study.state, study.priority)
    for name, value in _header_values(header).items():
        if not getattr(study, name):  # some scanners leave attributes out of their localizers
            setattr(study, name, value)
    study.last_received_at = max(study.last_received_at, at)
    if study.state != StudyState.READING:
        set_state(study, StudyState.RECEIVING)
    never_negative(study)
    if (study.state, study.priority) != before:
        record_change(session, study, at=at, actor=actor, action="more images")


def _conflict_arrived(session: Session, study: StudyRow, *, actor: str, at: datetime) -> None:
    readable = exists().where(
        SeriesRow.study_instance_uid == study.study_instance_uid, SeriesRow.revision > 0
    )
    if session.scalar(select(readable)):
        return
    # Nothing of this study will ever be due, so no worker would say why it is not read.
    detail = "every object of this study has a UID that another object already has; the sender must mend that"
    set_state(study, StudyState.NOT_READ, reason=RejectionReason.CONFLICTING_UID, detail=detail)
    record_change(session, study, at=at, actor=actor, action="not_read", why=detail)


def _header_values(header: StudyHeader) -> dict[str, str]:
    return {
        "patient_id": header.patient_id,
        "patient_name": header.patient_name,
        "patient_birth_date": header.patient_birth_date,
        "patient_sex": header.patient_sex,
        "accession_number": header.accession_number,
        "study_date": header.study_date,
        "study_time": header.study_time,
        "study_description": header.study_description,
    }


def _study_values(header: StudyHeader, source_ae_title: str, received_at: datetime) -> dict[str, Any]:
    return {
        "study_instance_uid": header.study_instance_uid,
        **_header_values(header),
        "modality_ae_title": source_ae_title,
        "received_at": received_at,
        "last_received_at": received_at,
        "state": StudyState.RECEIVING,
        "priority": Priority.MEDIUM,  # not read yet: never shown as negative
        "claim_number": 0,
        "attempts": 0,
    }


def _series_values(instance: Instance) -> dict[str, Any]:
    return {
        "series_instance_uid": instance.series_instance_uid,
        "study_instance_uid": instance.study_instance_uid,
        "modality": instance.modality,
        "series_number": _as_integer_string(instance.series_number),
        "series_description": instance.series_description,
        "revision": 0,
        "handled_revision": 0,
    }


def _instance_values(instance: Instance) -> dict[str, Any]:
    return {
        "sop_instance_uid": instance.sop_instance_uid,
        "series_instance_uid": instance.series_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "instance_number": _as_integer_string(instance.instance_number),
        "number_of_frames": _as_integer_string(instance.number_of_frames) or 1,
        "position_mm": _as_list(instance.image_position_patient_mm),
        "orientation": _as_list(instance.image_orientation_patient),
    }


def _insert_if_absent(session: Session, table: type[Table], values: dict[str, Any]) -> bool:
    """Insert a row unless one with the same unique values is here; whether it was inserted."""
    dialect = session.get_bind().dialect.name
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    key = inspect(table).primary_key[0]
    inserted = insert(table).values(**values).on_conflict_do_nothing().returning(key)
    return session.execute(inserted).first() is not None


def _as_integer_string(value: int | None) -> int | None:
    """An IS value; what the VR cannot hold (PS3.5 6.2) is as good as absent."""
    return value if value is not None and -(2**31) <= value < 2**31 else None


def _as_list(values: Iterable[float] | None) -> list[float] | None:
    numbers = [] if values is None else [float(value) for value in values]
    return numbers if numbers and all(map(math.isfinite, numbers)) else None
