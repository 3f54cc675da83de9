"""Which study is due, and who works on it. A study has at most one worker: the holder of an unexpired lease."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select, update
from sqlalchemy.orm import Session

from ich_node.database.audit import record_change
from ich_node.database.tables import InstanceRow, SeriesRow, StudyRow
from ich_node.errors import IchNodeError, RejectionReason
from ich_node.findings import Priority, StudyState

ENQUEUE_AGAIN = timedelta(seconds=120)
"""A message that has had no effect for so long is taken for lost."""


class LeaseLost(IchNodeError):
    """Another worker has taken the study over; what this one found is dropped."""


@dataclass(frozen=True, kw_only=True)
class ClaimedSeries:
    """A series as it stood when the study was claimed."""

    series_instance_uid: str
    revision: int
    file_names: tuple[str, ...]
    content_sha256s: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reprocess:
    """A person asked for another run."""

    series_instance_uid: str | None
    model: str | None


@dataclass(frozen=True, kw_only=True)
class StudyClaim:
    """The right to work on a study until the lease runs out."""

    study_instance_uid: str
    owner: str
    series: tuple[ClaimedSeries, ...]
    """Those that a worker may look at now."""
    still_receiving: bool
    """Whether other series of the study are still arriving."""
    reprocess: Reprocess | None


def take_due_studies(session: Session, now: datetime, *, limit: int = 50) -> list[str]:
    """Studies that a worker should take up now, most waiting first; marks them as queued."""
    due = (
        select(StudyRow)
        .where(_is_due(now), _is_free(now))
        .where(or_(StudyRow.enqueued_at.is_(None), StudyRow.enqueued_at < now - ENQUEUE_AGAIN))
        .order_by(StudyRow.received_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    studies = list(session.scalars(due))
    for study in studies:
        study.enqueued_at = now
        if study.state != StudyState.QUEUED:
            study.state = StudyState.QUEUED
            record_change(session, study, at=now, actor="node", action="queued")
    return [study.study_instance_uid for study in studies]


def forget_enqueued(session: Session) -> None:
    """Have every waiting study enqueued again, as after a broker lost its messages."""
    session.execute(update(StudyRow).where(StudyRow.enqueued_at.is_not(None)).values(enqueued_at=None))


def claim_study(
    session: Session,
    study_instance_uid: str,
    *,
    owner: str,
    now: datetime,
    lease: timedelta,
    max_attempts: int,
) -> StudyClaim | None:
    """Take a study up, unless it is not due, another worker has it, or it took too many workers down.

    Returns
    -------
    The claim, or ``None`` where there is nothing to do.
    """
    study = session.scalar(
        select(StudyRow)
        .where(StudyRow.study_instance_uid == study_instance_uid, _is_due(now), _is_free(now))
        .with_for_update()
    )
    if study is None:
        return None
    study.enqueued_at = None
    if study.attempts >= max_attempts:
        _give_up(session, study, now)
        return None
    study.attempts += 1
    study.lease_owner, study.lease_until = owner, now + lease
    study.state = StudyState.READING
    record_change(session, study, at=now, actor=owner, action="reading")
    series = list(
        session.scalars(select(SeriesRow).where(SeriesRow.study_instance_uid == study_instance_uid))
    )
    ready = [s for s in series if s.due_at is None or s.due_at <= now]
    asked = study.reprocess_requested_at is not None
    return StudyClaim(
        study_instance_uid=study_instance_uid,
        owner=owner,
        series=tuple(_claimed(session, s) for s in ready),
        still_receiving=len(ready) < len(series),
        reprocess=Reprocess(
            series_instance_uid=study.reprocess_series_instance_uid, model=study.reprocess_model
        )
        if asked
        else None,
    )


def renew_lease(session: Session, claim: StudyClaim, *, now: datetime, lease: timedelta) -> bool:
    """Show life; false where another worker has taken over."""
    renewed = session.scalars(
        update(StudyRow)
        .where(StudyRow.study_instance_uid == claim.study_instance_uid, StudyRow.lease_owner == claim.owner)
        .values(lease_until=now + lease)
        .returning(StudyRow.study_instance_uid)
    )
    return renewed.first() is not None


def give_back(session: Session, claim: StudyClaim, *, now: datetime, again_at: datetime) -> None:
    """Put a study back because something outside did not answer; it is due again at ``again_at``."""
    study = owned_study(session, claim)
    study.lease_owner = study.lease_until = None
    study.attempts -= 1
    study.enqueued_at = again_at - ENQUEUE_AGAIN  # take_due_studies passes it over until then
    study.state = StudyState.QUEUED
    record_change(session, study, at=now, actor=claim.owner, action="given back")


def owned_study(session: Session, claim: StudyClaim) -> StudyRow:
    """The claimed study's row, locked.

    Raises
    ------
    LeaseLost
        Another worker has it.
    """
    study = session.scalar(
        select(StudyRow)
        .where(StudyRow.study_instance_uid == claim.study_instance_uid, StudyRow.lease_owner == claim.owner)
        .with_for_update()
    )
    if study is None:
        raise LeaseLost("another worker has taken the study over")
    return study


def finish_claim(session: Session, study: StudyRow, claim: StudyClaim) -> None:
    """Mark what was seen as handled and let the study go; what arrived meanwhile stays due."""
    for seen in claim.series:
        series = session.get_one(SeriesRow, seen.series_instance_uid)
        series.handled_revision = seen.revision
        if series.revision == seen.revision:
            series.due_at = None
    study.lease_owner = study.lease_until = study.enqueued_at = None
    study.attempts = 0
    study.reprocess_requested_at = study.reprocess_series_instance_uid = study.reprocess_model = None


def request_reprocess(
    session: Session,
    study_instance_uid: str,
    *,
    series_instance_uid: str | None,
    model: str | None,
    actor: str,
    now: datetime,
) -> None:
    """Ask for another run of a study.

    Raises
    ------
    LookupError
        The study is not here.
    """
    study = session.get(StudyRow, study_instance_uid, with_for_update=True)
    if study is None:
        raise LookupError(f"no study {study_instance_uid} is here")
    study.reprocess_requested_at = now
    study.reprocess_series_instance_uid = series_instance_uid
    study.reprocess_model = model
    study.enqueued_at = None
    if study.state != StudyState.READING:
        study.attempts = 0
        study.state = StudyState.QUEUED
    record_change(session, study, at=now, actor=actor, action="reprocess")


def _give_up(session: Session, study: StudyRow, now: datetime) -> None:
    study.state = StudyState.FAILED
    study.reason = RejectionReason.WORKER_LOST
    study.reason_detail = f"{study.attempts} workers died while they read this study; see the worker's log, then 'ich-node reprocess'"
    if study.reading_id is None:
        study.priority = Priority.MEDIUM
    study.lease_owner = study.lease_until = None
    study.reprocess_requested_at = None
    for series in session.scalars(_due_series(study.study_instance_uid, now)):
        series.handled_revision, series.due_at = series.revision, None
    record_change(session, study, at=now, actor="node", action="failed", why=study.reason_detail)


def _claimed(session: Session, series: SeriesRow) -> ClaimedSeries:
    rows = session.execute(
        select(InstanceRow.file_name, InstanceRow.sha256)
        .where(InstanceRow.series_instance_uid == series.series_instance_uid, InstanceRow.conflict.is_(False))
        .order_by(InstanceRow.sop_instance_uid)
    ).all()
    return ClaimedSeries(
        series_instance_uid=series.series_instance_uid,
        revision=series.revision,
        file_names=tuple(row.file_name for row in rows),
        content_sha256s=tuple(row.sha256 for row in rows),
    )


def _due_series(study_instance_uid: str, now: datetime) -> Select[SeriesRow]:
    return select(SeriesRow).where(
        SeriesRow.study_instance_uid == study_instance_uid,
        SeriesRow.due_at.is_not(None),
        SeriesRow.due_at <= now,
    )


def _is_due(now: datetime) -> ColumnElement[bool]:
    due_series = exists().where(
        and_(
            SeriesRow.study_instance_uid == StudyRow.study_instance_uid,
            SeriesRow.due_at.is_not(None),
            SeriesRow.due_at <= now,
        )
    )
    return or_(StudyRow.reprocess_requested_at.is_not(None), due_series)


def _is_free(now: datetime) -> ColumnElement[bool]:
    return or_(StudyRow.lease_until.is_(None), StudyRow.lease_until < now)
