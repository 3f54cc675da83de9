"""What DICOM objects are here, received and made: searched by attributes of studies, and listed study by study."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Select, exists, false, func, not_, or_, select
from sqlalchemy.orm import Session

from ich_node.database.matching import Key, any_of
from ich_node.database.retention import Folder
from ich_node.database.tables import InstanceRow, ResultObjectRow, SeriesRow, StudyRow

_STUDY_COLUMNS = {
    "StudyInstanceUID": "study_instance_uid",
    "PatientID": "patient_id",
    "PatientName": "patient_name",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
    "AccessionNumber": "accession_number",
    "StudyDate": "study_date",
    "StudyTime": "study_time",
    "StudyDescription": "study_description",
}
STUDY_KEYWORDS = frozenset((*_STUDY_COLUMNS, "ModalitiesInStudy"))
"""Attributes of studies that the database matches by itself."""
RESULT_MODALITIES = {"SR": "SR", "SC": "OT", "SEG": "SEG", "GSPS": "PR", "KOS": "KO", "PM": "OT"}
"""Modality (0008,0060) of each kind of result object."""
_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class HeldStudy:
    """A study as its row tells it."""

    study_instance_uid: str
    values: dict[str, str]
    """By keyword; text as it was received, decoded."""
    purged_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class HeldInstance:
    """One object on disk."""

    study_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    folder: Folder
    file_name: str
    """Below that folder."""
    series_instance_uid: str = ""
    """Empty for a result object, whose file tells it."""
    transfer_syntax_uid: str = ""
    """Empty for a result object, whose file tells it."""
    instance_number: int | None = None
    number_of_frames: int = 1


@dataclass(frozen=True, kw_only=True)
class HeldSeries:
    """A series of received images."""

    series_instance_uid: str
    modality: str
    series_number: int | None
    series_description: str
    was_purged: bool


@dataclass(kw_only=True)
class StudySummary:
    """How much of a study is here."""

    series: int = 0
    instances: int = 0
    modalities: set[str] = field(default_factory=set)
    sample: tuple[Folder, str] | None = None
    """A file of it; a received one where there is one."""


def studies(session: Session, keys: Sequence[Key], *, offset: int = 0, limit: int) -> list[HeldStudy]:
    """Studies that match every key, the newest first.

    Parameters
    ----------
    keys
        Of `STUDY_KEYWORDS`, and SeriesInstanceUID, SOPInstanceUID and Modality, by which studies without such a series
        or object are passed over where a row tells it.
    """
    query = _matching(session, keys).order_by(
        StudyRow.study_date.desc(), StudyRow.study_time.desc(), StudyRow.study_instance_uid.desc()
    )
    return [_study(row) for row in session.scalars(query.offset(offset).limit(limit))]


def count_studies(session: Session, keys: Sequence[Key], *, most: int) -> int:
    """How many studies match, counted up to ``most``, the newest first: these are most often still here."""
    ordered = _matching(session, keys).order_by(StudyRow.study_date.desc()).limit(most)
    some = ordered.with_only_columns(StudyRow.study_instance_uid).subquery()
    return session.scalar(select(func.count()).select_from(some)) or 0


def study(session: Session, study_instance_uid: str) -> HeldStudy | None:
    """One study."""
    row = session.get(StudyRow, study_instance_uid)
    return None if row is None else _study(row)


def summaries(session: Session, study_instance_uids: Collection[str]) -> dict[str, StudySummary]:
    """How much of each of these studies is here."""
    found: dict[str, StudySummary] = defaultdict(StudySummary)
    uids = list(study_instance_uids)
    for at in range(0, len(uids), _AT_ONCE):
        some = uids[at : at + _AT_ONCE]
        _add_received(session, some, found)
        _add_results(session, some, found)
    return found


def series_of(session: Session, study_instance_uid: str) -> list[HeldSeries]:
    """The series of received images of a study, also those that were purged."""
    rows = session.scalars(
        select(SeriesRow)
        .where(SeriesRow.study_instance_uid == study_instance_uid)
        .order_by(SeriesRow.series_number, SeriesRow.series_instance_uid)
    )
    return [
        HeldSeries(
            series_instance_uid=row.series_instance_uid,
            modality=row.modality,
            series_number=row.series_number,
            series_description=row.series_description,
            was_purged=row.purged_instances > 0,
        )
        for row in rows
    ]


def received_of(
    session: Session, study_instance_uid: str, series_instance_uid: str | None = None
) -> list[HeldInstance]:
    """Received objects of a study or of one of its series, by series and number; none that is in conflict."""
    query = _received().where(SeriesRow.study_instance_uid == study_instance_uid)
    if series_instance_uid is not None:
        query = query.where(SeriesRow.series_instance_uid == series_instance_uid)
    ordered = query.order_by(
        SeriesRow.series_number,
        SeriesRow.series_instance_uid,
        InstanceRow.instance_number,
        InstanceRow.sop_instance_uid,
    )
    return [_instance(row, study) for row, study in session.execute(ordered)]


def results_of(session: Session, study_instance_uid: str) -> list[HeldInstance]:
    """Result objects of a study whose files are here, those that the last reading made first."""
    query = _results().where(ResultObjectRow.study_instance_uid == study_instance_uid)
    ordered = query.order_by(ResultObjectRow.reading_id.desc(), ResultObjectRow.position)
    return [_result(row) for row in session.scalars(ordered)]


def instance(session: Session, sop_instance_uid: str) -> HeldInstance | None:
    """One object; where it was received and made here as well, the received one."""
    received = session.execute(_received().where(InstanceRow.sop_instance_uid == sop_instance_uid)).first()
    if received is not None:
        return _instance(received[0], received[1])
    made = session.scalar(_results().where(ResultObjectRow.sop_instance_uid == sop_instance_uid))
    return None if made is None else _result(made)


def was_purged(session: Session, sop_instance_uid: str) -> bool:
    """Whether a result object of this UID was made here and its file has been given up since."""
    row = session.get(ResultObjectRow, sop_instance_uid)
    return row is not None and row.purged_at is not None


def _study(row: StudyRow) -> HeldStudy:
    return HeldStudy(
        study_instance_uid=row.study_instance_uid,
        values={keyword: getattr(row, name) for keyword, name in _STUDY_COLUMNS.items()},
        purged_at=row.purged_at,
    )


def _received() -> Select[InstanceRow, str]:
    return (
        select(InstanceRow, SeriesRow.study_instance_uid)
        .join(SeriesRow, SeriesRow.series_instance_uid == InstanceRow.series_instance_uid)
        .where(not_(InstanceRow.conflict))
    )


def _results() -> Select[ResultObjectRow]:
    """Those that did not come back from a PACS: these are among the received."""
    came_back = exists().where(
        InstanceRow.sop_instance_uid == ResultObjectRow.sop_instance_uid, not_(InstanceRow.conflict)
    )
    return select(ResultObjectRow).where(ResultObjectRow.purged_at.is_(None), ~came_back)


def _instance(row: InstanceRow, study_instance_uid: str) -> HeldInstance:
    return HeldInstance(
        study_instance_uid=study_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        folder=Folder.SPOOL,
        file_name=row.file_name,
        series_instance_uid=row.series_instance_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        instance_number=row.instance_number,
        number_of_frames=row.number_of_frames,
    )


def _result(row: ResultObjectRow) -> HeldInstance:
    return HeldInstance(
        study_instance_uid=row.study_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        folder=Folder.RESULTS,
        file_name=row.file_name,
    )


def _add_received(session: Session, uids: Sequence[str], found: dict[str, StudySummary]) -> None:
    rows = session.execute(
        select(
            SeriesRow.study_instance_uid,
            SeriesRow.modality,
            func.count(),
            func.min(InstanceRow.file_name),
        )
        .join(InstanceRow, InstanceRow.series_instance_uid == SeriesRow.series_instance_uid)
        .where(SeriesRow.study_instance_uid.in_(uids), not_(InstanceRow.conflict))
        .group_by(SeriesRow.study_instance_uid, SeriesRow.series_instance_uid, SeriesRow.modality)
        .order_by(SeriesRow.series_instance_uid)
    )
    for uid, modality, count, file_name in rows:
        summary = found[uid]
        summary.series += 1
        summary.instances += count
        summary.modalities |= {modality} - {""}
        summary.sample = summary.sample or (Folder.SPOOL, file_name)


def _add_results(session: Session, uids: Sequence[str], found: dict[str, StudySummary]) -> None:
    series: dict[str, set[object]] = defaultdict(set)
    for row in session.scalars(_results().where(ResultObjectRow.study_instance_uid.in_(uids))):
        summary = found[row.study_instance_uid]
        kind, _, _ = row.kind.partition("/")
        # Captures in every compression make one series; every form of a report is a series of its own.
        place = (row.reading_id, kind if kind == "SC" else row.kind)
        series[row.study_instance_uid].add(row.sop_instance_uid if row.reading_id is None else place)
        summary.instances += 1
        summary.modalities.add(RESULT_MODALITIES.get(kind, "OT"))
        summary.sample = summary.sample or (Folder.RESULTS, row.file_name)
    for uid, places in series.items():
        found[uid].series += len(places)


def _matching(session: Session, keys: Sequence[Key]) -> Select[StudyRow]:
    dialect = session.get_bind().dialect.name
    return select(StudyRow).where(*(_condition(key, dialect) for key in keys))


def _condition(key: Key, dialect: str) -> ColumnElement[bool]:
    if key.keyword in _STUDY_COLUMNS:
        return any_of(getattr(StudyRow, _STUDY_COLUMNS[key.keyword]), key, dialect)
    if key.keyword in ("ModalitiesInStudy", "Modality"):
        return or_(_has_received(any_of(SeriesRow.modality, key, dialect)), _has_results(key))
    if key.keyword == "SeriesInstanceUID":
        return StudyRow.study_instance_uid.in_(
            select(SeriesRow.study_instance_uid).where(any_of(SeriesRow.series_instance_uid, key, dialect))
        )
    if key.keyword == "SOPInstanceUID":
        received = _received().where(any_of(InstanceRow.sop_instance_uid, key, dialect))
        made = _results().where(any_of(ResultObjectRow.sop_instance_uid, key, dialect))
        return or_(
            StudyRow.study_instance_uid.in_(received.with_only_columns(SeriesRow.study_instance_uid)),
            StudyRow.study_instance_uid.in_(made.with_only_columns(ResultObjectRow.study_instance_uid)),
        )
    raise ValueError(f"{key.keyword} is in no column")


def _has_received(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(
        SeriesRow.study_instance_uid == StudyRow.study_instance_uid,
        condition,
        InstanceRow.series_instance_uid == SeriesRow.series_instance_uid,
        not_(InstanceRow.conflict),
    )


def _has_results(key: Key) -> ColumnElement[bool]:
    kinds = [kind for kind, modality in RESULT_MODALITIES.items() if key.fits((modality,))]
    if not kinds:
        return false()
    return exists().where(
        ResultObjectRow.study_instance_uid == StudyRow.study_instance_uid,
        ResultObjectRow.purged_at.is_(None),
        or_(*(ResultObjectRow.kind.startswith(kind, autoescape=True) for kind in kinds)),
    )
