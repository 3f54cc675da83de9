"""What people are told of studies: written with the finding, sent from the outbox."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from ich_node.database.outbox import DeliveryState, is_due
from ich_node.database.standing import lock_study
from ich_node.database.tables import NoticeRow, OutboxRow, ReadingRow, ResultObjectRow, StudyRow
from ich_node.findings import DISCLAIMER, IchSubtype, Priority, StudyState
from ich_node.notify.notice import Notice, PatientIdentity, notice_from_json

logger = logging.getLogger(__name__)

_OVERTAKEN = "not told: a later notice says how the study stands"
_TOLD = (StudyState.READ, StudyState.NOT_READ, StudyState.FAILED)


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Somebody who is told of studies."""

    name: str
    """Of the destination in the outbox."""
    priorities: frozenset[Priority]
    """Of the studies that it is told of."""


@dataclass(frozen=True, kw_only=True)
class NoticeDelivery:
    """One notice that this process may send now."""

    id: int
    destination: str
    notice: Notice
    """With the patient's identity; what of it is told is for the sender to decide."""
    attempts: int


def add_notice(session: Session, study: StudyRow, listeners: Sequence[Listener], *, now: datetime) -> None:
    """Tell whoever is to be told how a study stands now; nothing while it has come to no end."""
    priority = Priority(study.priority)
    told = [listener.name for listener in listeners if priority in listener.priorities]
    if not told or study.state not in _TOLD:
        return
    reading = session.get(ReadingRow, study.reading_id) if study.reading_id is not None else None
    if study.state == StudyState.READ and reading is None:
        return
    try:
        notice = _notice(session, study, reading, now)
    except ValueError:  # telling people must never cost the finding
        logger.exception("nobody is told of study %s", study.study_instance_uid)
        return
    row = NoticeRow(
        study_instance_uid=study.study_instance_uid,
        reading_id=None if reading is None else reading.id,
        facts=json.loads(notice.as_json()),
        created_at=now,
    )
    session.add(row)
    session.flush()
    for name in dict.fromkeys(told):
        session.add(
            OutboxRow(
                notice_id=row.id,
                destination=name,
                urgency=priority.urgency,
                state=DeliveryState.PENDING,
                attempts=0,
                created_at=now,
                next_attempt_at=now,
            )
        )


def claim_notices(
    session: Session, destination: str, *, owner: str, now: datetime, lease: timedelta, limit: int
) -> list[NoticeDelivery]:
    """Take the notices that are due for one destination, the most urgent first."""
    rows = session.execute(
        select(OutboxRow, NoticeRow, StudyRow)
        .join(NoticeRow, NoticeRow.id == OutboxRow.notice_id)
        .join(StudyRow, StudyRow.study_instance_uid == NoticeRow.study_instance_uid)
        .where(OutboxRow.destination == destination, is_due(now, DeliveryState.PENDING))
        .order_by(OutboxRow.urgency, OutboxRow.created_at, OutboxRow.id)
        .limit(limit)
        .with_for_update(of=OutboxRow, skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    claimed = (_claimed(row, owner, now + lease) for row in rows)
    return [delivery for delivery in claimed if delivery is not None]


def claim_last_notice(
    session: Session,
    destination: str,
    study_instance_uid: str,
    *,
    owner: str,
    now: datetime,
    lease: timedelta,
) -> NoticeDelivery | None:
    """Take a study's last notice for a destination that keeps one standing of each study.

    An earlier one that still waits is done with: what it says is no longer so. Nothing is taken while another process
    has one of the study's, so that what was known first is never written last.
    """
    if lock_study(session, study_instance_uid) is None:
        return None
    rows = session.execute(
        select(OutboxRow, NoticeRow, StudyRow)
        .join(NoticeRow, NoticeRow.id == OutboxRow.notice_id)
        .join(StudyRow, StudyRow.study_instance_uid == NoticeRow.study_instance_uid)
        .where(OutboxRow.destination == destination, NoticeRow.study_instance_uid == study_instance_uid)
        .order_by(NoticeRow.id)
        .with_for_update(of=OutboxRow)
        .execution_options(populate_existing=True)
    ).all()
    waiting = [row for row, _, _ in rows if row.state == DeliveryState.PENDING]
    if not rows or any(row.lease_until is not None and row.lease_until >= now for row in waiting):
        return None
    last = rows[-1]
    for row in waiting:
        if row is not last.OutboxRow:
            row.state, row.delivered_at, row.note = DeliveryState.DELIVERED, now, _OVERTAKEN
    if last.OutboxRow not in waiting or last.OutboxRow.next_attempt_at > now:
        return None
    return _claimed(last, owner, now + lease)


def studies_to_tell(session: Session, destination: str, *, now: datetime, limit: int) -> list[str]:
    """Studies of which a notice is due for a destination, the most urgent first."""
    rows = session.scalars(
        select(NoticeRow.study_instance_uid)
        .join(OutboxRow, OutboxRow.notice_id == NoticeRow.id)
        .where(OutboxRow.destination == destination, is_due(now, DeliveryState.PENDING))
        .order_by(OutboxRow.urgency, OutboxRow.created_at, OutboxRow.id)
        .limit(limit)
    )
    return list(dict.fromkeys(rows))


def _claimed(
    found: Row[OutboxRow, NoticeRow, StudyRow], owner: str, until: datetime
) -> NoticeDelivery | None:
    """The notice of an outbox row, which is leased; ``None`` where it cannot be read."""
    row, notice, study = found
    row.attempts += 1
    try:
        told = notice_from_json(json.dumps(notice.facts))
    except ValueError as error:  # of another version; it must not keep the others
        row.state, row.note = DeliveryState.DEAD, f"the notice cannot be read: {error}"
        return None
    row.lease_owner, row.lease_until = owner, until
    identity = PatientIdentity(
        accession_number=study.accession_number,
        patient_id=study.patient_id,
        patient_name=study.patient_name,
    )
    return NoticeDelivery(
        id=row.id,
        destination=row.destination,
        notice=replace(told, identity=identity),
        attempts=row.attempts,
    )


def _notice(session: Session, study: StudyRow, reading: ReadingRow | None, now: datetime) -> Notice:
    is_read = study.state == StudyState.READ and reading is not None
    return Notice(
        notice_id=uuid.uuid4().hex,
        study_instance_uid=study.study_instance_uid,
        priority=Priority(study.priority),
        state=StudyState(study.state),
        happened_at=now,
        received_at=study.received_at,
        read_at=reading.read_at if reading is not None and is_read else None,
        suspicion=study.suspicion if is_read else None,
        subtypes=_flagged(study, reading) if reading is not None and is_read else (),
        model_name=reading.model_name if reading is not None and is_read else "",
        model_version=reading.model_version if reading is not None and is_read else "",
        reason=study.reason or "",
        reason_detail=study.reason_detail or "",
        report_sop_instance_uids=_reports(session, study, reading),
        disclaimer=DISCLAIMER,
    )


def _flagged(study: StudyRow, reading: ReadingRow) -> tuple[IchSubtype, ...]:
    """Subtypes that are at least at the sensitive operating point, as the study is."""
    sensitive = float(reading.operating_points["sensitive"])
    if (study.suspicion or 0.0) < sensitive:
        return ()
    found: Collection[str] = [name for name, score in reading.subtypes.items() if score >= sensitive]
    return tuple(s for s in IchSubtype if s in found and s is not IchSubtype.ANY)


def _reports(session: Session, study: StudyRow, reading: ReadingRow | None) -> tuple[str, ...]:
    query = select(ResultObjectRow.sop_instance_uid).where(
        ResultObjectRow.study_instance_uid == study.study_instance_uid
    )
    if study.state == StudyState.READ and reading is not None:
        query = query.where(ResultObjectRow.reading_id == reading.id)
    else:
        query = query.where(ResultObjectRow.reading_id.is_(None))
    return tuple(session.scalars(query.order_by(ResultObjectRow.position)))
