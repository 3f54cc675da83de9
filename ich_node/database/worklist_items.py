"""The worklist as a Modality Worklist client asks for it: studies that nobody has reviewed."""

from __future__ import annotations

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from ich_node.database.matching import is_universal, text_matches
from ich_node.database.tables import SeriesRow, StudyRow
from ich_node.receive.worklist_find import WorklistItem, WorklistQuestion


def find_worklist_items(session: Session, question: WorklistQuestion) -> list[WorklistItem]:
    """Studies that fit, the most urgent and then the longest waiting first."""
    query = (
        select(StudyRow)
        .where(StudyRow.reviewed_at.is_(None), *_conditions(question, session.get_bind().dialect.name))
        .order_by(StudyRow.precedence.desc(), StudyRow.received_at, StudyRow.study_instance_uid)
        .limit(question.limit)
    )
    studies = list(session.scalars(query))
    modalities = _modalities(session, [study.study_instance_uid for study in studies])
    return [_item(study, modalities.get(study.study_instance_uid, "CT")) for study in studies]


def _conditions(question: WorklistQuestion, dialect: str) -> list[ColumnElement[bool]]:
    texts = (
        (StudyRow.patient_name, question.patient_name, True),
        (StudyRow.patient_id, question.patient_id, False),
        (StudyRow.accession_number, question.accession_number, False),
        (StudyRow.modality_ae_title, question.station_ae_title, False),
    )
    conditions = [
        text_matches(column, text, dialect=dialect, is_name=is_name)
        for column, text, is_name in texts
        if not is_universal(text)
    ]
    if not is_universal(question.modality):
        of_study = SeriesRow.study_instance_uid == StudyRow.study_instance_uid
        matches = text_matches(SeriesRow.modality, question.modality, dialect=dialect)
        conditions.append(exists().where(of_study, matches))
    if question.study_instance_uids:
        conditions.append(StudyRow.study_instance_uid.in_(question.study_instance_uids))
    if question.priorities:
        conditions.append(StudyRow.priority.in_(question.priorities))
    if question.received_from is not None:
        conditions.append(StudyRow.received_at >= question.received_from)
    if question.received_before is not None:
        conditions.append(StudyRow.received_at < question.received_before)
    return conditions


def _modalities(session: Session, study_instance_uids: list[str]) -> dict[str, str]:
    """Modality of each study: CT where one of its series is."""
    rows = session.execute(
        select(SeriesRow.study_instance_uid, SeriesRow.modality)
        .where(SeriesRow.study_instance_uid.in_(study_instance_uids))
        .order_by(SeriesRow.modality == "CT", SeriesRow.modality)
    )
    return {row.study_instance_uid: row.modality for row in rows if row.modality}


def _item(study: StudyRow, modality: str) -> WorklistItem:
    return WorklistItem(
        study_instance_uid=study.study_instance_uid,
        patient_name=study.patient_name,
        patient_id=study.patient_id,
        patient_birth_date=study.patient_birth_date,
        patient_sex=study.patient_sex,
        accession_number=study.accession_number,
        study_description=study.study_description,
        modality=modality,
        station_ae_title=study.modality_ae_title,
        received_at=study.received_at,
        reason=study.reason,
        priority=study.priority,
        suspicion=study.suspicion,
    )
