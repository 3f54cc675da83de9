"""Which slices a reading looked at, in order, and which received object each of them lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ich_node.database.tables import InstanceRow, ReadingRow, StudyRow

_CONTENT_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class ReadSeries:
    """A series as one reading saw it."""

    reading_id: int
    series_instance_uid: str
    content: str
    """Beginning of the hash over all objects that were read: another reading of the same objects has the same."""
    slices: Sequence[dict[str, Any]]
    """From inferior to superior, as `ich_node.database.worklist.study_report` gives them."""
    sensitive: float
    """Score from which on the model calls a slice suspicious."""
    maps_file_name: str | None


@dataclass(frozen=True, kw_only=True)
class SliceSource:
    """Where the pixels of one slice are."""

    file_name: str
    """Below the spool folder."""
    frame_number: int | None
    content_hash: str
    """Of the object."""


def read_series_of(session: Session, study_instance_uid: str) -> ReadSeries | None:
    """What the reading that counts looked at; ``None`` where the study was not read."""
    row = session.scalar(
        select(ReadingRow)
        .join(StudyRow, StudyRow.reading_id == ReadingRow.id)
        .where(StudyRow.study_instance_uid == study_instance_uid)
    )
    return None if row is None else _read_series(row)


def read_series(
    session: Session, study_instance_uid: str, series_instance_uid: str, content: str
) -> ReadSeries | None:
    """What the last reading of a series with this content looked at, whether or not it counts."""
    rows = session.scalars(
        select(ReadingRow)
        .where(
            ReadingRow.study_instance_uid == study_instance_uid,
            ReadingRow.series_instance_uid == series_instance_uid,
        )
        .order_by(ReadingRow.id.desc())
    )
    return next((_read_series(row) for row in rows if row.content_sha256[:_CONTENT_DIGITS] == content), None)


def slice_source(session: Session, series: ReadSeries, index: int) -> SliceSource | None:
    """Where a slice's pixels are; ``None`` where the object is no longer here."""
    found = series.slices[index]
    row = session.scalar(
        select(InstanceRow).where(
            InstanceRow.sop_instance_uid == found["sop_instance_uid"],
            InstanceRow.series_instance_uid == series.series_instance_uid,
            InstanceRow.conflict.is_(False),
        )
    )
    if row is None:
        return None
    return SliceSource(
        file_name=row.file_name, frame_number=found.get("frame_number"), content_hash=row.content_hash
    )


def count_present(session: Session, series: ReadSeries) -> int:
    """How many of the objects that were read are still here."""
    wanted = {found["sop_instance_uid"] for found in series.slices}
    rows = session.scalars(
        select(InstanceRow.sop_instance_uid).where(
            InstanceRow.series_instance_uid == series.series_instance_uid, InstanceRow.conflict.is_(False)
        )
    )
    return len(wanted & set(rows))


def maps_file_name(session: Session, study_instance_uid: str, reading_id: int) -> str | None:
    """File with the likelihood maps of a reading of the study, below the results folder."""
    row = session.get(ReadingRow, reading_id)
    return row.maps_file_name if row is not None and row.study_instance_uid == study_instance_uid else None


def _read_series(row: ReadingRow) -> ReadSeries:
    return ReadSeries(
        reading_id=row.id,
        series_instance_uid=row.series_instance_uid,
        content=row.content_sha256[:_CONTENT_DIGITS],
        slices=row.slices,
        sensitive=float(row.operating_points.get("sensitive", 1.0)),
        maps_file_name=row.maps_file_name,
    )
