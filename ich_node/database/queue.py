"""Which study is due, and who works on it: at most one worker, the holder of an unexpired lease."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, exists, or_, select, union, update
from sqlalchemy.orm import Session

from ich_node.database.audit import record_change
from ich_node.database.notices import Listener, add_notice
from ich_node.database.retention import ImagesPurged, can_be_read_again
from ich_node.database.standing import has_unread_images, lock_study, never_negative, set_state
from ich_node.database.tables import InstanceRow, SeriesRow, StudyRow
from ich_node.errors import IchNodeError, RejectionReason
from ich_node.findings import StudyState

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
    content_hashes: tuple[str, ...]
    sop_instance_uids: tuple[str, ...] = ()
    """Parallel to ``file_names``."""
    purged_instances: int = 0
    """How many images it had when they were purged; 0: it has as many again."""


_BEGUN = "*"
"""Stands before the models of a request that a worker has begun with; what is asked for then is another request."""


@dataclass(frozen=True, kw_only=True)
class Reprocess:
    """A person asked for another run."""

    series_instance_uid: str | None
    models: tuple[str | None, ...]
    """Names of bundles; ``None`` stands for those that the settings name."""
    requested_at: datetime

    @property
    def is_partial(self) -> bool:
        """Whether it leaves out a series or the models that the settings name."""
        return self.series_instance_uid is not None or None not in self.models


@dataclass(frozen=True, kw_only=True)
class StudyClaim:
    """The right to work on a study until the lease runs out."""

    study_instance_uid: str
    owner: str
    claim_number: int
    """Tells this claim from an earlier one, even by the same owner."""
    series: tuple[ClaimedSeries, ...]
    """Those that a worker may look at now."""
    still_receiving: bool
    """Whether other series of the study are still arriving."""
    reprocess: Reprocess | None


@dataclass(frozen=True, kw_only=True)
class GivenUp:
    """A study that is `FAILED` now, because it took too many workers down."""

    claim: StudyClaim
    """What would have been read; nobody holds it."""
    detail: str


def has_due_study(session: Session, now: datetime) -> bool:
    """Whether `take_due_studies` would find anything; locks nothing."""
    return bool(session.scalar(select(exists(select(StudyRow).where(*_wants_a_message(now))))))


def take_due_studies(session: Session, now: datetime, *, limit: int = 50) -> list[str]:
    """Studies that a worker should take up now, most waiting first; marks them as queued."""
    due = (
        select(StudyRow)
        .where(*_wants_a_message(now))
        .order_by(StudyRow.received_at, StudyRow.study_instance_uid)
        .limit(limit)
        .with_for_update(skip_locked=True, of=StudyRow)
        .execution_options(populate_existing=True)
    )
    locked = list(session.scalars(due))
    # A worker may have finished between the query's snapshot and the lock: ask again, nothing can change now.
    still_due = _still_due(session, [study.study_instance_uid for study in locked], now)
    studies = [study for study in locked if study.study_instance_uid in still_due]
    for study in studies:
        study.enqueued_at = now
        if study.state != StudyState.QUEUED:
            set_state(study, StudyState.QUEUED)
            why = f"{study.lease_owner} shows no life" if study.lease_owner else None
            record_change(session, study, at=now, actor="node", action="queued", why=why)
    return [study.study_instance_uid for study in studies]


def forget_enqueued(session: Session, studies: Collection[str] | None = None) -> None:
    """Have waiting studies (``None``: all) enqueued again, as after a broker lost or refused messages."""
    forget = update(StudyRow).where(StudyRow.enqueued_at.is_not(None)).values(enqueued_at=None)
    if studies is not None:
        forget = forget.where(StudyRow.study_instance_uid.in_(studies))
    session.execute(forget)


def claim_study(
    session: Session,
    study_instance_uid: str,
    *,
    owner: str,
    now: datetime,
    lease: timedelta,
    max_attempts: int,
    listeners: Sequence[Listener] = (),
) -> StudyClaim | GivenUp | None:
    """Take a study up, unless it is not due, another worker has it, or it took too many workers down.

    Parameters
    ----------
    listeners
        Who is told that it took too many workers down.

    Returns
    -------
    The claim; what was given up; or ``None`` where there is nothing to do.
    """
    study = lock_study(session, study_instance_uid)
    if study is None or (study.lease_until is not None and study.lease_until >= now):
        return None
    study.enqueued_at = None  # the message is used up; a study that is due later needs another
    if not _still_due(session, [study_instance_uid], now):
        return None
    if study.attempts >= max_attempts:
        given_up = _give_up(session, study, owner, now)
        add_notice(session, study, listeners, now=now)
        return given_up
    study.attempts += 1
    study.claim_number += 1
    study.lease_owner, study.lease_until, study.retry_at = owner, now + lease, None
    set_state(study, StudyState.READING)
    record_change(session, study, at=now, actor=owner, action="reading")
    return _claim(session, study, owner, now)


def renew_lease(session: Session, claim: StudyClaim, *, now: datetime, lease: timedelta) -> bool:
    """Show life; false where another worker has taken over."""
    renewed = session.scalars(
        update(StudyRow)
        .where(StudyRow.study_instance_uid == claim.study_instance_uid, _is_held_by(claim))
        .values(lease_until=now + lease)
        .returning(StudyRow.study_instance_uid)
    )
    return renewed.first() is not None


def give_back(session: Session, claim: StudyClaim, *, now: datetime, again_at: datetime) -> None:
    """Put a study back because something outside did not answer; it is due again at ``again_at``.

    Raises
    ------
    LeaseLost
        Another worker has it.
    """
    study = owned_study(session, claim)
    study.lease_owner = study.lease_until = study.enqueued_at = None
    study.attempts -= 1
    study.retry_at = again_at
    set_state(study, StudyState.QUEUED)
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
        .where(StudyRow.study_instance_uid == claim.study_instance_uid, _is_held_by(claim))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if study is None:
        raise LeaseLost("another worker has taken the study over")
    return study


def finish_claim(session: Session, study: StudyRow, claim: StudyClaim) -> None:
    """Mark what was seen as handled and let the study go; what came or was asked for meanwhile stays due.

    Images that came before a person's request for a part was carried out are still to be read by all and in full.
    """
    is_partial = claim.reprocess is not None and claim.reprocess.is_partial
    for seen in claim.series:
        series = session.get_one(SeriesRow, seen.series_instance_uid, populate_existing=True)
        if is_partial and series.due_at is not None:
            continue
        series.handled_revision = seen.revision
        if series.revision == seen.revision:
            series.due_at = None
    study.lease_owner = study.lease_until = study.enqueued_at = None
    study.attempts = 0
    if claim.reprocess is not None and study.reprocess_requested_at == claim.reprocess.requested_at:
        _forget_reprocess(study)


def request_reprocess(
    session: Session,
    study_instance_uid: str,
    *,
    series_instance_uid: str | None,
    model: str | None,
    actor: str,
    now: datetime,
) -> None:
    """Ask for another run of a study. A run that is under way is not disturbed; the new one follows it.

    Requests that nobody has begun with are joined: each model that was asked for reads. Of several series the one
    named last is read.

    Raises
    ------
    LookupError
        The study, or the series in it, is not here.
    ImagesPurged
        There is nothing of it that could be read.
    """
    study = lock_study(session, study_instance_uid)
    if study is None:
        raise LookupError(f"no study {study_instance_uid} is here")
    if series_instance_uid is not None:
        series = session.get(SeriesRow, series_instance_uid)
        if series is None or series.study_instance_uid != study_instance_uid:
            raise LookupError(f"no series {series_instance_uid} is in study {study_instance_uid}")
    if not can_be_read_again(session, study, series_instance_uid):
        raise ImagesPurged(
            f"the images of study {study_instance_uid} were purged at {study.purged_at:%Y-%m-%d %H:%M} UTC: "
            "send it again from the PACS"
        )
    waiting: tuple[str | None, ...] = ()
    if study.reprocess_requested_at is not None and not (study.reprocess_model or "").startswith(_BEGUN):
        waiting = _models(study.reprocess_model)
    study.reprocess_requested_at = now
    study.reprocess_series_instance_uid = series_instance_uid
    study.reprocess_model = _as_text(tuple(dict.fromkeys((*waiting, model))))
    study.enqueued_at = study.retry_at = None
    if study.state != StudyState.READING:
        study.attempts = 0
        set_state(study, StudyState.QUEUED)
    record_change(session, study, at=now, actor=actor, action="reprocess")


def _claim(session: Session, study: StudyRow, owner: str, now: datetime) -> StudyClaim:
    with_images = select(SeriesRow).where(
        SeriesRow.study_instance_uid == study.study_instance_uid, SeriesRow.revision > 0
    )
    series = list(
        session.scalars(
            with_images.order_by(SeriesRow.series_instance_uid).execution_options(populate_existing=True)
        )
    )
    ready = [s for s in series if s.due_at is None or s.due_at <= now]
    models = _models(study.reprocess_model)
    if study.reprocess_requested_at is not None:
        study.reprocess_model = _BEGUN + (_as_text(models) or "")
    return StudyClaim(
        study_instance_uid=study.study_instance_uid,
        owner=owner,
        claim_number=study.claim_number,
        series=tuple(_claimed(session, s) for s in ready),
        still_receiving=len(ready) < len(series),
        reprocess=None
        if study.reprocess_requested_at is None
        else Reprocess(
            series_instance_uid=study.reprocess_series_instance_uid,
            models=models,
            requested_at=study.reprocess_requested_at,
        ),
    )


def _claimed(session: Session, series: SeriesRow) -> ClaimedSeries:
    rows = session.execute(
        select(InstanceRow.file_name, InstanceRow.content_hash, InstanceRow.sop_instance_uid)
        .where(InstanceRow.series_instance_uid == series.series_instance_uid, InstanceRow.conflict.is_(False))
        .order_by(InstanceRow.sop_instance_uid)
    ).all()
    return ClaimedSeries(
        series_instance_uid=series.series_instance_uid,
        revision=series.revision,
        file_names=tuple(row.file_name for row in rows),
        content_hashes=tuple(row.content_hash for row in rows),
        sop_instance_uids=tuple(row.sop_instance_uid for row in rows),
        purged_instances=series.purged_instances if len(rows) < series.purged_instances else 0,
    )


def _give_up(session: Session, study: StudyRow, owner: str, now: datetime) -> GivenUp:
    claim = _claim(session, study, owner, now)
    died = f"{study.attempts} workers died while they read this study"
    detail = f"{died}; see the worker's log, then 'ich-node reprocess'"
    study.lease_owner = study.lease_until = study.retry_at = None
    study.attempts = 0  # what arrives from now on is another input and is tried again
    _forget_reprocess(study)
    for series in session.scalars(_due_series(study.study_instance_uid, now)):
        series.handled_revision, series.due_at = series.revision, None
    set_state(study, StudyState.FAILED, reason=RejectionReason.WORKER_LOST, detail=detail)
    never_negative(study)
    record_change(session, study, at=now, actor="node", action="failed", why=detail)
    if has_unread_images(session, study.study_instance_uid):
        set_state(study, StudyState.RECEIVING)
        record_change(session, study, at=now, actor="node", action="more images")
    return GivenUp(claim=claim, detail=detail)


def _models(text: str | None) -> tuple[str | None, ...]:
    """Read `StudyRow.reprocess_model`."""
    return tuple(name or None for name in (text or "").removeprefix(_BEGUN).split(","))


def _as_text(models: tuple[str | None, ...]) -> str | None:
    return None if models == (None,) else ",".join(name or "" for name in models)


def _forget_reprocess(study: StudyRow) -> None:
    study.reprocess_requested_at = study.reprocess_series_instance_uid = study.reprocess_model = None


def _due_series(study_instance_uid: str, now: datetime) -> Select[SeriesRow]:
    return (
        select(SeriesRow)
        .where(SeriesRow.study_instance_uid == study_instance_uid, SeriesRow.due_at <= now)
        .execution_options(populate_existing=True)
    )


def _due_studies(now: datetime) -> Select[str]:
    """Studies with a series that is due or a run that was asked for, found by two small indexes."""
    found = union(
        select(SeriesRow.study_instance_uid).where(SeriesRow.due_at <= now),
        select(StudyRow.study_instance_uid).where(StudyRow.reprocess_requested_at.is_not(None)),
    ).subquery()
    return select(found.c.study_instance_uid)


def _wants_a_message(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        StudyRow.study_instance_uid.in_(_due_studies(now)),
        _is_free(now),
        _may_be_tried(now),
        or_(StudyRow.enqueued_at.is_(None), StudyRow.enqueued_at < now - ENQUEUE_AGAIN),
    )


def _still_due(session: Session, study_instance_uids: Collection[str], now: datetime) -> set[str]:
    return set(
        session.scalars(
            select(StudyRow.study_instance_uid).where(
                StudyRow.study_instance_uid.in_(study_instance_uids),
                StudyRow.study_instance_uid.in_(_due_studies(now)),
                _may_be_tried(now),
            )
        )
    )


def _may_be_tried(now: datetime) -> ColumnElement[bool]:
    return or_(StudyRow.retry_at.is_(None), StudyRow.retry_at <= now)


def _is_free(now: datetime) -> ColumnElement[bool]:
    return or_(StudyRow.lease_until.is_(None), StudyRow.lease_until < now)


def _is_held_by(claim: StudyClaim) -> ColumnElement[bool]:
    return (StudyRow.lease_owner == claim.owner) & (StudyRow.claim_number == claim.claim_number)
