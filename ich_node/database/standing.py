"""Where one study stands: state, reason and priority, changed only by whoever holds its row's lock.

Every transaction that changes a study, its series or its instances locks the study's row first. So what it
then reads stays as it is until it commits, on PostgreSQL too, and no two transactions wait for each other.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from ich_node.database.tables import ReadingRow, SeriesRow, StudyRow
from ich_node.errors import RejectionReason
from ich_node.findings import Priority, StudyState


def lock_study(session: Session, study_instance_uid: str) -> StudyRow | None:
    """The study's row as it is now, locked until the transaction ends; ``None`` where it is not here."""
    return session.scalar(
        select(StudyRow)
        .where(StudyRow.study_instance_uid == study_instance_uid)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def set_state(
    study: StudyRow, state: StudyState, *, reason: RejectionReason | None = None, detail: str | None = None
) -> None:
    """Change the state; a reason belongs to the state that it came with."""
    study.state, study.reason, study.reason_detail = state, reason, detail


def has_unread_images(session: Session, study_instance_uid: str) -> bool:
    """Whether images have arrived that no worker has looked at yet."""
    unread = exists().where(SeriesRow.study_instance_uid == study_instance_uid, SeriesRow.due_at.is_not(None))
    return bool(session.scalar(select(unread)))


def never_negative(study: StudyRow) -> None:
    """Where images are unread, "nothing found" becomes "a person must look"; a flag stays up."""
    _set_priority(study, _looked_at(Priority(study.priority)))


def _looked_at(priority: Priority) -> Priority:
    """At least "a person must look"."""
    return min(priority, Priority.MEDIUM, key=lambda p: p.urgency)


def _set_priority(study: StudyRow, priority: Priority) -> None:
    """Change the priority, once in a transaction: a study that becomes more urgent must be seen anew."""
    if priority.urgency < Priority(study.priority).urgency:
        study.reviewed_at = study.reviewed_by = None
    study.priority = priority


def apply_priority(session: Session, study: StudyRow, *, now: datetime, unread: bool) -> None:
    """Take the most urgent of the readings that count, and "a person must look" where images are unread."""
    session.flush()
    priority = Priority(study.priority)
    readings = list(
        session.scalars(
            select(ReadingRow).where(
                ReadingRow.study_instance_uid == study.study_instance_uid, ReadingRow.superseded.is_(False)
            )
        )
    )
    if readings:
        leading = min(readings, key=lambda r: (Priority(r.priority).urgency, -r.suspicion, -r.id))
        priority, study.reading_id = Priority(leading.priority), leading.id
        study.suspicion, study.subtypes, study.read_at = leading.suspicion, leading.subtypes, leading.read_at
    if unread or not readings:
        priority = _looked_at(priority)
    _set_priority(study, priority)
    flagged = study.priority in (Priority.STAT, Priority.HIGH)
    study.flagged_at = (study.flagged_at or now) if flagged else None
