"""Rows about received images. All of them can be rebuilt from the spool."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ich_node.database.tables import InstanceRow, SeriesRow, StudyRow, Table
from ich_node.findings import Priority, StudyState
from ich_node.study import Instance, StudyHeader


class Receipt(StrEnum):
    """What an arriving object was."""

    NEW = "NEW"
    DUPLICATE = "DUPLICATE"
    """The same object again; nothing changed."""
    CONFLICT = "CONFLICT"
    """The same SOP Instance UID with other bytes; kept, shown, not read."""


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

    Parameters
    ----------
    file_name
        Below the spool folder.
    due_at
        When a worker may look at the series if nothing else arrives.
    """
    _insert_if_absent(session, StudyRow, _study_values(header, source_ae_title, received_at))
    _insert_if_absent(session, SeriesRow, _series_values(instance))
    known = list(
        session.scalars(
            select(InstanceRow.sha256).where(InstanceRow.sop_instance_uid == instance.sop_instance_uid)
        )
    )
    if sha256 in known:
        return Receipt.DUPLICATE
    session.add(
        InstanceRow(
            sop_instance_uid=instance.sop_instance_uid,
            series_instance_uid=instance.series_instance_uid,
            sop_class_uid=instance.sop_class_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            instance_number=instance.instance_number,
            position_mm=_as_list(instance.image_position_patient_mm),
            orientation=_as_list(instance.image_orientation_patient),
            file_name=file_name,
            size_bytes=size_bytes,
            sha256=sha256,
            source_ae_title=source_ae_title,
            received_at=received_at,
            conflict=bool(known),
        )
    )
    if known:
        return Receipt.CONFLICT
    session.execute(
        update(SeriesRow)
        .where(SeriesRow.series_instance_uid == instance.series_instance_uid)
        .values(revision=SeriesRow.revision + 1, due_at=due_at)
    )
    session.execute(
        update(StudyRow)
        .where(StudyRow.study_instance_uid == header.study_instance_uid)
        .values(last_received_at=received_at)
    )
    session.execute(
        update(StudyRow)
        .where(StudyRow.study_instance_uid == header.study_instance_uid, StudyRow.state != StudyState.READING)
        .values(state=StudyState.RECEIVING)
    )
    return Receipt.NEW


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
    session.execute(
        update(SeriesRow)
        .where(SeriesRow.series_instance_uid == series_instance_uid, SeriesRow.due_at.is_not(None))
        .values(due_at=due_at)
    )


def known_file_names(session: Session) -> set[str]:
    """Spool files that have a row."""
    return set(session.scalars(select(InstanceRow.file_name)))


def conflicts(session: Session, *, since: timedelta, now: datetime) -> int:
    """How many objects arrived under a UID that another object already had."""
    rows = select(InstanceRow.id).where(
        InstanceRow.conflict.is_(True), InstanceRow.received_at >= now - since
    )
    return len(list(session.scalars(rows)))


def _study_values(header: StudyHeader, source_ae_title: str, received_at: datetime) -> dict[str, Any]:
    return {
        "study_instance_uid": header.study_instance_uid,
        "patient_id": header.patient_id,
        "patient_name": header.patient_name,
        "patient_birth_date": header.patient_birth_date,
        "patient_sex": header.patient_sex,
        "accession_number": header.accession_number,
        "study_date": header.study_date,
        "study_time": header.study_time,
        "study_description": header.study_description,
        "modality_ae_title": source_ae_title,
        "received_at": received_at,
        "last_received_at": received_at,
        "state": StudyState.RECEIVING,
        "priority": Priority.MEDIUM,  # not read yet: never shown as negative
        "attempts": 0,
    }


def _series_values(instance: Instance) -> dict[str, Any]:
    return {
        "series_instance_uid": instance.series_instance_uid,
        "study_instance_uid": instance.study_instance_uid,
        "modality": instance.modality,
        "series_number": instance.series_number,
        "series_description": instance.series_description,
        "revision": 0,
        "handled_revision": 0,
    }


def _insert_if_absent(session: Session, table: type[Table], values: dict[str, Any]) -> None:
    dialect = session.get_bind().dialect.name
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    session.execute(insert(table).values(**values).on_conflict_do_nothing())


def _as_list(values: Iterable[float] | None) -> list[float] | None:
    return None if values is None else list(values)
