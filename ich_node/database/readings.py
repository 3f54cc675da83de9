"""What workers found, committed in one transaction with the worklist row and the outbox."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ich_node.database import reviews
from ich_node.database.audit import record_change
from ich_node.database.notices import Listener, add_notice
from ich_node.database.queue import StudyClaim, finish_claim, owned_study
from ich_node.database.result_objects import NewObject as NewObject
from ich_node.database.result_objects import add_objects
from ich_node.database.standing import apply_priority, has_unread_images, set_state
from ich_node.database.tables import AuditRow, OutboxRow, ReadingRow, ResultObjectRow, SeriesRow, StudyRow
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.findings import IchSubtype, Priority, SeriesFinding, SliceFinding, StudyState
from ich_node.selection import SeriesExclusion


@dataclass(frozen=True, kw_only=True)
class NewReading:
    """Everything that one run over one series produced."""

    series_instance_uid: str
    run_number: int
    finding: SeriesFinding
    sop_instance_uids: tuple[str, ...]
    """Of the source images, parallel to ``finding.slices``."""
    frame_numbers: tuple[int | None, ...] = ()
    """Of the frames in those images, ``None`` for an image of a single frame; empty: all are such images."""
    content_sha256: str
    caveats: tuple[str, ...]
    timeline: Mapping[str, str]
    """Stage to ISO 8601 time."""
    read_at: datetime
    sr_sop_instance_uid: str
    sr_series_instance_uid: str
    objects: tuple[NewObject, ...]
    """In the order in which a person looks at them."""
    maps_file_name: str | None = None
    """File with the likelihood maps that the study page shows, below the results folder."""


@dataclass(frozen=True, kw_only=True)
class EarlierReading:
    """The last reading of a series by a model."""

    run_number: int
    model_name: str
    model_version: str
    weights_sha256: str
    operating_points: Mapping[str, float]
    counts: bool
    """Whether it has not been superseded."""
    content_sha256: str
    sop_instance_uids: frozenset[str]
    """Of the images that were read."""
    sr_sop_instance_uid: str
    sr_series_instance_uid: str
    sent_kinds: frozenset[str] = frozenset()
    """Of its objects that somebody was to get, with their forms."""


def earlier_readings(session: Session, series_instance_uid: str) -> dict[str, EarlierReading]:
    """The last reading of a series by each model that has read it, by the model's name."""
    rows = session.scalars(
        select(ReadingRow)
        .where(ReadingRow.series_instance_uid == series_instance_uid)
        .order_by(ReadingRow.id)
    )
    last = {row.model_name: row for row in rows}
    return {name: _earlier(row, _sent_kinds(session, row)) for name, row in last.items()}


def _sent_kinds(session: Session, row: ReadingRow) -> frozenset[str]:
    query = (
        select(ResultObjectRow.kind)
        .join(OutboxRow, OutboxRow.sop_instance_uid == ResultObjectRow.sop_instance_uid)
        .where(ResultObjectRow.reading_id == row.id)
    )
    return frozenset(session.scalars(query))


def _earlier(row: ReadingRow, sent_kinds: frozenset[str]) -> EarlierReading:
    return EarlierReading(
        run_number=row.run_number,
        model_name=row.model_name,
        model_version=row.model_version,
        weights_sha256=row.weights_sha256,
        operating_points=row.operating_points,
        counts=not row.superseded,
        content_sha256=row.content_sha256,
        sop_instance_uids=frozenset(found["sop_instance_uid"] for found in row.slices),
        sr_sop_instance_uid=row.sr_sop_instance_uid,
        sr_series_instance_uid=row.sr_series_instance_uid,
        sent_kinds=sent_kinds,
    )


def last_run_numbers(session: Session, series_instance_uid: str) -> dict[str, int]:
    """Run number of the last reading of a series by each model that has read it."""
    rows = session.execute(
        select(ReadingRow.model_name, func.max(ReadingRow.run_number))
        .where(ReadingRow.series_instance_uid == series_instance_uid)
        .group_by(ReadingRow.model_name)
    )
    return {row[0]: row[1] for row in rows}


def finish_read(
    session: Session,
    claim: StudyClaim,
    *,
    exclusions: Sequence[SeriesExclusion],
    readings: Sequence[NewReading],
    now: datetime,
    configured: Collection[str] | None = None,
    fault: StudyRejected | None = None,
    listeners: Sequence[Listener] = (),
) -> Priority:
    """Commit readings, or that the study's readings still hold (there are no new ones).

    Readings replace earlier ones of the series by the same models and, unless a person asked for certain models
    alone, by models that the settings no longer name. Of those that stand the most urgent gives the study its
    priority. Whether the study has been read is for the models that the settings name: a run of another neither
    makes it so nor undoes it.

    Parameters
    ----------
    configured
        Names of the models that the settings name; ``None``: those that read now.
    fault
        Why another model gave no reading: the study has failed, with what was found.
    listeners
        Who is told, unless nothing new was found.

    Raises
    ------
    LeaseLost
        Another worker has the study; nothing is written.
    """
    study = owned_study(session, claim)
    asked_for = _asked_for(claim, configured)
    _supersede(session, readings, None if asked_for else configured)
    for reading in readings:
        row = _reading_row(study.study_instance_uid, reading)
        session.add(row)
        session.flush()
        add_objects(session, study, reading.objects, row, now)
    _record_exclusions(session, claim, exclusions)
    state, reason, detail = _state_after(session, study, readings, fault, configured, asked_for=asked_for)
    set_state(study, state, reason=reason, detail=detail)
    action = "failed" if fault is not None else "read" if readings else "unchanged"
    why = None if fault is None else f"{fault.reason}: {fault.detail}"
    if fault is None and state is not StudyState.READ:
        why = f"still {reason}: {detail}"
    told = listeners if action != "unchanged" else ()
    unread = state is not StudyState.READ
    _finish(session, study, claim, now, action=action, why=why, unread=unread, listeners=told)
    return Priority(study.priority)


def _asked_for(claim: StudyClaim, configured: Collection[str] | None) -> bool:
    """Whether a person asked for models that are not all of those that the settings name."""
    if claim.reprocess is None or configured is None or None in claim.reprocess.models:
        return False
    return not set(configured) <= set(claim.reprocess.models)


_State = tuple[StudyState, RejectionReason | None, str | None]


def _state_after(
    session: Session,
    study: StudyRow,
    readings: Sequence[NewReading],
    fault: StudyRejected | None,
    configured: Collection[str] | None,
    *,
    asked_for: bool,
) -> _State:
    read: _State = (StudyState.READ, None, None)
    failed = None if fault is None else (StudyState.FAILED, fault.reason, fault.detail)
    if not asked_for and (failed or readings):
        return failed or read
    if failed is None and _covered(session, study, readings, configured or ()):
        return read
    return _former_state(session, study) or failed or read


def _covered(
    session: Session, study: StudyRow, readings: Sequence[NewReading], configured: Collection[str]
) -> bool:
    """Whether each model that the settings name has a standing reading, of the same images as the new ones."""
    session.flush()
    rows = session.scalars(
        select(ReadingRow).where(
            ReadingRow.study_instance_uid == study.study_instance_uid, ReadingRow.superseded.is_(False)
        )
    )
    images = {(r.series_instance_uid, r.content_sha256) for r in readings}
    return set(configured) <= {
        row.model_name
        for row in rows
        if not images or (row.series_instance_uid, row.content_sha256) in images
    }


def _former_state(session: Session, study: StudyRow) -> _State | None:
    """How the study stood when it was last finished with; the audit has it."""
    row = session.scalar(
        select(AuditRow)
        .where(
            AuditRow.study_instance_uid == study.study_instance_uid,
            AuditRow.state.in_([StudyState.READ, StudyState.NOT_READ, StudyState.FAILED]),
            AuditRow.action.not_in(tuple(reviews.ACTIONS.values())),
        )
        .order_by(AuditRow.id.desc())
        .limit(1)
    )
    if row is None:
        return None
    if row.state == StudyState.READ:
        return StudyState.READ, None, None
    reason, _, detail = (row.why or "").removeprefix("still ").partition(": ")
    known = reason in list(RejectionReason)
    return (
        StudyState(row.state),
        RejectionReason(reason) if known else RejectionReason.INTERNAL_ERROR,
        detail if known else row.why,
    )


def finish_not_read(
    session: Session,
    claim: StudyClaim,
    *,
    exclusions: Sequence[SeriesExclusion],
    reason: RejectionReason,
    detail: str,
    now: datetime,
    state: StudyState = StudyState.NOT_READ,
    objects: Sequence[NewObject] = (),
    listeners: Sequence[Listener] = (),
) -> None:
    """Commit that a study could not be read, and why. A flag that an earlier reading raised stays up.

    Parameters
    ----------
    objects
        Reports that say so.
    listeners
        Who is told.

    Raises
    ------
    LeaseLost
        Another worker has the study; nothing is written.
    """
    study = owned_study(session, claim)
    _record_exclusions(session, claim, exclusions)
    set_state(study, state, reason=reason, detail=detail)
    why = f"{reason}: {detail}"
    _finish(
        session,
        study,
        claim,
        now,
        action=state.lower(),
        why=why,
        unread=True,
        reports=objects,
        listeners=listeners,
    )


def finish_waiting(
    session: Session, claim: StudyClaim, *, exclusions: Sequence[SeriesExclusion], now: datetime
) -> None:
    """Commit that nothing can be read yet because other series of the study are still arriving.

    Raises
    ------
    LeaseLost
        Another worker has the study; nothing is written.
    ValueError
        Nothing else is arriving, so that nothing would ever end the wait.
    """
    study = owned_study(session, claim)
    if not claim.still_receiving:
        raise ValueError("no other series of this study is arriving")
    _record_exclusions(session, claim, exclusions)
    why = "other series of the study are still arriving"
    _finish(session, study, claim, now, action="waiting", why=why, unread=True)


def _finish(
    session: Session,
    study: StudyRow,
    claim: StudyClaim,
    now: datetime,
    *,
    action: str,
    why: str | None = None,
    unread: bool,
    reports: Sequence[NewObject] = (),
    listeners: Sequence[Listener] = (),
) -> None:
    finish_claim(session, study, claim)
    waiting = has_unread_images(session, study.study_instance_uid)
    if waiting:  # images that came meanwhile: what was just found is not the last word
        set_state(study, StudyState.RECEIVING)
    apply_priority(session, study, now=now, unread=unread or waiting)
    record_change(session, study, at=now, actor=claim.owner, action=action, why=why)
    add_objects(session, study, reports, None, now)
    add_notice(session, study, listeners, now=now)


def _supersede(session: Session, readings: Sequence[NewReading], beside: Collection[str] | None) -> None:
    """Let the new readings replace those of the same models, and of models that read no longer."""
    new = {reading.finding.algorithm.name for reading in readings}
    series = {reading.series_instance_uid for reading in readings}
    for row in session.scalars(
        select(ReadingRow).where(ReadingRow.series_instance_uid.in_(series), ReadingRow.superseded.is_(False))
    ):
        row.superseded = row.model_name in new or (beside is not None and row.model_name not in beside)


def _record_exclusions(session: Session, claim: StudyClaim, exclusions: Sequence[SeriesExclusion]) -> None:
    excluded = {exclusion.series_instance_uid: exclusion for exclusion in exclusions}
    for seen in claim.series:
        if not seen.file_names:
            continue  # its images are purged: what was found then holds
        row = session.get_one(SeriesRow, seen.series_instance_uid)
        exclusion = excluded.get(seen.series_instance_uid)
        row.exclusion_reason = exclusion.reason if exclusion else None
        row.exclusion_detail = exclusion.detail if exclusion else None


def _reading_row(study_instance_uid: str, reading: NewReading) -> ReadingRow:
    finding = reading.finding
    return ReadingRow(
        study_instance_uid=study_instance_uid,
        series_instance_uid=reading.series_instance_uid,
        run_number=reading.run_number,
        model_name=finding.algorithm.name,
        model_version=finding.algorithm.version,
        weights_sha256=finding.algorithm.weights_sha256,
        content_sha256=reading.content_sha256,
        suspicion=finding.suspicion,
        operating_points=asdict(finding.algorithm.operating_points),
        priority=finding.priority,
        subtypes={str(k): v for k, v in finding.subtypes.items()},
        caveats=list(reading.caveats),
        slices=_slices(reading),
        timeline=dict(reading.timeline),
        read_at=reading.read_at,
        superseded=False,
        sr_sop_instance_uid=reading.sr_sop_instance_uid,
        sr_series_instance_uid=reading.sr_series_instance_uid,
        input_features=dict(finding.input_features),
        unlike_training=None if finding.unlike_training is None else list(finding.unlike_training),
        maps_file_name=reading.maps_file_name,
    )


def _slices(reading: NewReading) -> list[dict[str, Any]]:
    frames = reading.frame_numbers or (None,) * len(reading.sop_instance_uids)
    parts = zip(reading.sop_instance_uids, frames, reading.finding.slices, strict=True)
    return [_slice(uid, frame_number, finding) for uid, frame_number, finding in parts]


def _slice(sop_instance_uid: str, frame_number: int | None, finding: SliceFinding) -> dict[str, Any]:
    return {
        "sop_instance_uid": sop_instance_uid,
        "frame_number": frame_number,
        "probabilities": {str(s): finding.probabilities.get(s) for s in IchSubtype},
        "shown_on": finding.shown_on,
        "localizations": [
            {
                "kind": place.kind,
                "subtype": str(place.subtype),
                "coordinates": list(place.coordinates),
                "score": place.score,
            }
            for place in finding.localizations
        ],
    }
