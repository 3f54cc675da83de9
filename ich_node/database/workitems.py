"""UPS workitems: one for each study, made of its row; what a performer did with it stands in a row of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from ich_node.database.matching import is_universal, text_matches
from ich_node.database.standing import lock_study
from ich_node.database.tables import InstanceRow, ReadingRow, ResultObjectRow, SeriesRow, StudyRow
from ich_node.database.web_tables import WorkitemRow
from ich_node.database.workitem_events import (
    ensure_workitem,
    readiness,
    standing_state,
    step_priority,
    workitem_uid,
)
from ich_node.database.workitem_states import WorkitemState
from ich_node.findings import Priority, StudyState

_MOST_UIDS = 1000
_LONGEST_GLOB = 1000
_TEXTS: Mapping[str, InstrumentedAttribute[str]] = {
    "PatientID": StudyRow.patient_id,
    "PatientName": StudyRow.patient_name,
    "PatientSex": StudyRow.patient_sex,
    "AccessionNumber": StudyRow.accession_number,
    "RequestedProcedureDescription": StudyRow.study_description,
}
_RESULT_NAMES = (
    "model_name",
    "model_version",
    "suspicion",
    "subtypes",
    "sr_sop_instance_uid",
    "sr_series_instance_uid",
)
_RESULT = tuple(getattr(ReadingRow, name) for name in _RESULT_NAMES)
"""Not the whole row: it holds what was found in each slice."""
TEXT_KEYS = frozenset(_TEXTS)
"""Attributes that text is looked for in."""


@dataclass(frozen=True, kw_only=True)
class SourceImages:
    """Images of one series that a performer looks at, and structured reports about them."""

    series_instance_uid: str
    references: tuple[tuple[str, str], ...]
    """SOP Class UID and SOP Instance UID of each."""


@dataclass(frozen=True, kw_only=True)
class AiResult:
    """What the reading found that the priority comes from."""

    model_name: str
    model_version: str
    suspicion: float
    subtypes: Mapping[str, float]
    sr_sop_instance_uid: str
    sr_series_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class Workitem:
    """A workitem as it stands. Identifying: never logged."""

    sop_instance_uid: str
    study_instance_uid: str
    patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str
    accession_number: str
    study_description: str
    received_at: datetime
    changed_at: datetime
    state: WorkitemState
    study_state: str
    reason: str | None
    priority: Priority
    step_priority: str
    readiness: str
    reviewed_at: datetime | None
    reviewed_by: str | None
    result: AiResult | None
    attributes: Mapping[str, Any]
    """What performers have set, in the DICOM JSON model."""


@dataclass(frozen=True, kw_only=True)
class WorkitemQuery:
    """What is looked for; ``None``: anything."""

    states: frozenset[WorkitemState] | None = None
    step_priorities: frozenset[str] | None = None
    readiness: frozenset[str] | None = None
    sop_instance_uids: frozenset[str] | None = None
    study_instance_uids: frozenset[str] | None = None
    texts: Mapping[str, str] | None = None
    """Attribute of `TEXT_KEYS` to a value or wild card pattern."""
    birth_dates: tuple[str, str] | None = None
    """First and last, either may be empty."""
    start: tuple[datetime | None, datetime | None] = (None, None)
    """From, and before: Scheduled Procedure Step Start DateTime."""
    is_impossible: bool = False
    """Whether an attribute that no workitem has a value of was asked for."""


def find_workitem(session: Session, sop_instance_uid: str) -> Workitem | None:
    """One workitem by its SOP Instance UID."""
    query = _workitems().where(WorkitemRow.sop_instance_uid == sop_instance_uid)
    row = session.execute(query).first()
    return None if row is None else _workitem(*row)


def search_workitems(
    session: Session, query: WorkitemQuery, *, limit: int, offset: int = 0
) -> list[Workitem]:
    """Workitems that fit, as they are to be worked on: the unreviewed, the most urgent, the longest waiting first."""
    if query.is_impossible:
        return []
    found = (
        _workitems()
        .where(*_conditions(query, session.get_bind().dialect.name))
        .order_by(StudyRow.precedence.desc(), StudyRow.received_at, StudyRow.study_instance_uid)
        .limit(limit)
        .offset(offset)
    )
    return [_workitem(*row) for row in session.execute(found)]


def make_known(session: Session, workitems: Collection[Workitem], now: datetime) -> None:
    """Give rows to workitems of studies that came before there were workitems: somebody has their UIDs now."""
    uids = [item.sop_instance_uid for item in workitems]
    known: set[str] = set()
    for at in range(0, len(uids), _MOST_UIDS):
        some = uids[at : at + _MOST_UIDS]
        known |= set(
            session.scalars(
                select(WorkitemRow.sop_instance_uid).where(WorkitemRow.sop_instance_uid.in_(some))
            )
        )
    missing = sorted(item.study_instance_uid for item in workitems if item.sop_instance_uid not in known)
    for study_instance_uid in missing:
        study = lock_study(session, study_instance_uid)
        assert study is not None
        ensure_workitem(session, study, now)


def source_images(session: Session, item: Workitem) -> list[SourceImages]:
    """What a performer of a workitem looks at: the images that are here, and the report on them."""
    rows = session.execute(
        select(InstanceRow.series_instance_uid, InstanceRow.sop_class_uid, InstanceRow.sop_instance_uid)
        .join(SeriesRow, SeriesRow.series_instance_uid == InstanceRow.series_instance_uid)
        .where(SeriesRow.study_instance_uid == item.study_instance_uid, InstanceRow.conflict.is_(False))
        .order_by(
            SeriesRow.series_number,
            InstanceRow.series_instance_uid,
            InstanceRow.instance_number,
            InstanceRow.sop_instance_uid,
        )
    )
    by_series: dict[str, list[tuple[str, str]]] = {}
    for series_instance_uid, sop_class_uid, sop_instance_uid in rows:
        by_series.setdefault(series_instance_uid, []).append((sop_class_uid, sop_instance_uid))
    report = None if item.result is None else session.get(ResultObjectRow, item.result.sr_sop_instance_uid)
    if item.result is not None and report is not None:
        reference = (report.sop_class_uid, report.sop_instance_uid)
        by_series.setdefault(item.result.sr_series_instance_uid, []).append(reference)
    return [
        SourceImages(series_instance_uid=uid, references=tuple(references))
        for uid, references in by_series.items()
    ]


def matching_workitems(
    session: Session, query: WorkitemQuery, sop_instance_uids: Collection[str]
) -> set[str]:
    """Those of the workitems that fit."""
    if query.is_impossible or not sop_instance_uids:
        return set()
    found = (
        select(WorkitemRow.sop_instance_uid)
        .join(StudyRow, StudyRow.study_instance_uid == WorkitemRow.study_instance_uid)
        .where(
            WorkitemRow.sop_instance_uid.in_(list(sop_instance_uids)),
            *_conditions(query, session.get_bind().dialect.name),
        )
    )
    return set(session.scalars(found))


def _workitems() -> Select[*tuple[Any, ...]]:
    return (
        select(StudyRow, WorkitemRow, *_RESULT)
        .select_from(StudyRow)
        .outerjoin(WorkitemRow, WorkitemRow.study_instance_uid == StudyRow.study_instance_uid)
        .outerjoin(ReadingRow, ReadingRow.id == StudyRow.reading_id)
        .execution_options(populate_existing=True)
    )


def _conditions(query: WorkitemQuery, dialect: str) -> list[ColumnElement[bool]]:
    conditions = [
        text_matches(_TEXTS[key], value[:_LONGEST_GLOB], dialect=dialect, is_name=key == "PatientName")
        for key, value in (query.texts or {}).items()
        if not is_universal(value)
    ]
    if query.states is not None:
        conditions.append(or_(False, *(_is_in(state) for state in sorted(query.states))))
    if query.step_priorities is not None:
        fitting = [str(p) for p in Priority if step_priority(p) in query.step_priorities]
        conditions.append(StudyRow.priority.in_(fitting))
    if query.readiness is not None:
        fitting = [str(s) for s in StudyState if readiness(s) in query.readiness]
        conditions.append(StudyRow.state.in_(fitting))
    if query.sop_instance_uids is not None:
        conditions.append(WorkitemRow.sop_instance_uid.in_(sorted(query.sop_instance_uids)))
    if query.study_instance_uids is not None:
        conditions.append(StudyRow.study_instance_uid.in_(sorted(query.study_instance_uids)))
    return conditions + _ranges(query)


def _ranges(query: WorkitemQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.birth_dates is not None:
        first, last = query.birth_dates
        conditions.append(StudyRow.patient_birth_date != "")
        conditions += [StudyRow.patient_birth_date >= first] if first else []
        conditions += [StudyRow.patient_birth_date <= last] if last else []
    after, before = query.start
    conditions += [StudyRow.received_at >= after] if after is not None else []
    conditions += [StudyRow.received_at < before] if before is not None else []
    return conditions


def _is_in(state: WorkitemState) -> ColumnElement[bool]:
    """`standing_state` in SQL."""
    column = WorkitemRow.procedure_step_state
    untouched = or_(column.is_(None), column == WorkitemState.SCHEDULED)
    if state is WorkitemState.SCHEDULED:
        return and_(untouched, StudyRow.reviewed_at.is_(None))
    if state is WorkitemState.COMPLETED:
        return or_(column == state, and_(untouched, StudyRow.reviewed_at.is_not(None)))
    return column == state


def _workitem(study: StudyRow, row: WorkitemRow | None, *result: Any) -> Workitem:
    return Workitem(
        sop_instance_uid=workitem_uid(study.study_instance_uid),
        study_instance_uid=study.study_instance_uid,
        patient_id=study.patient_id,
        patient_name=study.patient_name,
        patient_birth_date=study.patient_birth_date,
        patient_sex=study.patient_sex,
        accession_number=study.accession_number,
        study_description=study.study_description,
        received_at=study.received_at,
        changed_at=study.received_at if row is None else row.changed_at,
        state=standing_state(row, study.reviewed_at),
        study_state=study.state,
        reason=study.reason,
        priority=Priority(study.priority),
        step_priority=step_priority(study.priority),
        readiness=readiness(study.state),
        reviewed_at=study.reviewed_at,
        reviewed_by=study.reviewed_by,
        result=None if result[0] is None else AiResult(**dict(zip(_RESULT_NAMES, result, strict=True))),
        attributes={} if row is None else row.attributes,
    )
