"""A worker's job with a study: claim it, read it, commit what came of it. `ich_node.tasks` runs it."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from ich_node.database import queue, readings
from ich_node.database.engine import Database, Session
from ich_node.database.queue import LeaseLost, StudyClaim
from ich_node.database.result_objects import NewObject, add_not_read_reports
from ich_node.errors import (
    ConfigurationError,
    IchNodeError,
    RejectionReason,
    StudyRejected,
    TransientError,
)
from ich_node.findings import StudyState
from ich_node.lease import showing_life, work_owner
from ich_node.node import Node
from ich_node.notice_job import listeners_of
from ich_node.pipeline import FAULTS_OF_THE_NODE, History, NotRead, Predictor, Read, StudyOutcome, read_study
from ich_node.pixels import DecodeLimits
from ich_node.result_files import ResultFiles
from ich_node.selection import SeriesExclusion

logger = logging.getLogger(__name__)

Loaded = Sequence[Predictor | ConfigurationError]
"""Predictors, and why some could not be loaded."""
_READ_AGAIN = timedelta(seconds=10)
_COMMIT_AGAIN_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_PASSING_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM)


def read_due_study(
    node: Node, study_instance_uid: str, load_predictors: Callable[[str | None], Loaded]
) -> bool:
    """Read a study if it is due and free, and commit what came of it.

    Parameters
    ----------
    load_predictors
        Gives the predictor of a bundle by its name; for ``None`` those of all bundles that the settings name. In
        place of one that cannot be loaded it has why: what the others find is not lost for it.

    Returns
    -------
    Whether there may be something to deliver.
    """
    lease = timedelta(seconds=node.settings.worker.lease_seconds)
    owner = work_owner()
    with node.database.writing() as session:
        claim = queue.claim_study(
            session,
            study_instance_uid,
            owner=owner,
            now=_now(),
            lease=lease,
            max_attempts=node.settings.worker.max_attempts,
            listeners=listeners_of(node.settings),
        )
    if claim is None:
        return False
    if isinstance(claim, queue.GivenUp):
        return _report_given_up(node, claim)
    try:
        with showing_life(_renewal(node.database, claim, lease), lease):
            outcome = _read(node, claim, load_predictors)
            _commit_when_possible(node, claim, outcome)
    except LeaseLost:
        logger.warning("study %s was taken over by another worker; dropping this reading", study_instance_uid)
        return False
    return isinstance(outcome, Read)


def _read(
    node: Node, claim: StudyClaim, load_predictors: Callable[[str | None], Loaded]
) -> StudyOutcome | Exception:
    """Read; an error comes back as a value so that it is committed as the study's state."""
    try:
        names = claim.reprocess.models if claim.reprocess else (None,)
        loaded = list(dict.fromkeys(each for name in names for each in load_predictors(name)))
        faults = [each for each in loaded if isinstance(each, ConfigurationError)]
        predictors = [each for each in loaded if not isinstance(each, ConfigurationError)]
        if not predictors:
            return faults[0]
        outcome = read_study(
            claim,
            spool_dir=node.settings.spool_dir,
            results=ResultFiles.of(node.settings, claim),
            predictors=predictors,
            history=_history(node.database),
            limits=_decode_limits(node),
        )
        return _with_fault(outcome, faults[0]) if faults else outcome
    except Exception as error:  # the worker's one boundary: no study may end without a row that says why
        if isinstance(error, OSError) and error.errno in _PASSING_FAULTS:
            return TransientError(f"{os.strerror(error.errno)} on this host")
        if not isinstance(error, TransientError):
            logger.exception("study %s could not be read", claim.study_instance_uid)
        return error


def _with_fault(outcome: StudyOutcome, error: ConfigurationError) -> StudyOutcome:
    """Say beside what was read that a bundle could not be loaded; its text says what to mend."""
    if isinstance(outcome, NotRead):
        return outcome
    fault = StudyRejected(RejectionReason.INTERNAL_ERROR, str(error))
    if isinstance(outcome, Read):
        return replace(outcome, fault=outcome.fault or fault)
    return Read(readings=(), exclusions=outcome.exclusions, fault=fault)


def _decode_limits(node: Node) -> DecodeLimits:
    worker = node.settings.worker
    return DecodeLimits(
        max_image_bytes=worker.max_image_mib * 2**20, decoder_memory_bytes=worker.decoder_memory_mib * 2**20
    )


def _commit_when_possible(node: Node, claim: StudyClaim, outcome: StudyOutcome | Exception) -> None:
    """Commit, and again while the database does not answer: the reading is paid for, and its lease is kept alive."""
    pause = threading.Event()
    reports = _not_read_reports(node, claim, outcome)
    for wait_s in (*_COMMIT_AGAIN_S, None):
        try:
            _commit_or_fail(node, claim, outcome, reports)
            return
        except TransientError as error:
            if wait_s is None:
                raise
            logger.warning("study %s is not committed yet: %s", claim.study_instance_uid, error)
            pause.wait(wait_s)


def _commit_or_fail(
    node: Node, claim: StudyClaim, outcome: StudyOutcome | Exception, reports: Sequence[NewObject]
) -> None:
    try:
        with node.database.writing() as session:
            _commit(session, node, claim, outcome, reports)
    except IchNodeError:
        raise
    except Exception as error:  # tried again, it would end as WORKER_LOST, which is not true
        logger.exception("the reading of study %s cannot be committed", claim.study_instance_uid)
        with node.database.writing() as session:
            _commit(session, node, claim, error)


def _commit(
    session: Session,
    node: Node,
    claim: StudyClaim,
    outcome: StudyOutcome | Exception,
    reports: Sequence[NewObject] = (),
) -> None:
    now = _now()
    if isinstance(outcome, TransientError):
        logger.warning("study %s is read again later: %s", claim.study_instance_uid, outcome)
        queue.give_back(session, claim, now=now, again_at=now + _READ_AGAIN)
    elif isinstance(outcome, Exception):
        _commit_fault(session, node, claim, _fault_of(outcome), now, reports=reports)
    elif not isinstance(outcome, NotRead):
        readings.finish_read(
            session,
            claim,
            exclusions=outcome.exclusions,
            readings=outcome.readings if isinstance(outcome, Read) else (),
            now=now,
            configured=node.settings.model.bundles,
            fault=outcome.fault if isinstance(outcome, Read) else None,
            listeners=listeners_of(node.settings),
        )
    elif claim.still_receiving and not claim.reprocess:
        readings.finish_waiting(session, claim, exclusions=outcome.exclusions, now=now)
    elif outcome.reason in FAULTS_OF_THE_NODE:
        fault = StudyRejected(outcome.reason, outcome.detail)
        _commit_fault(session, node, claim, fault, now, outcome.exclusions, reports=reports)
    else:
        readings.finish_not_read(
            session,
            claim,
            exclusions=outcome.exclusions,
            reason=outcome.reason,
            detail=outcome.detail,
            now=now,
            objects=reports,
            listeners=listeners_of(node.settings),
        )


def _fault_of(error: Exception) -> StudyRejected:
    detail = f"{type(error).__name__} while reading; the worker's log has the whole of it"
    if isinstance(error, ConfigurationError):  # its text says what to mend, and names no patient
        detail = str(error)
    return StudyRejected(RejectionReason.INTERNAL_ERROR, detail)


def _report_given_up(node: Node, given_up: queue.GivenUp) -> bool:
    """Tell who wants reports; the row says it already, for what took the workers down may do so once more."""
    fault = StudyRejected(RejectionReason.WORKER_LOST, given_up.detail)
    reports = _written(node, given_up.claim, fault)
    with node.database.writing() as session:
        add_not_read_reports(session, given_up.claim.study_instance_uid, reports, now=_now())
    return bool(reports)


def _not_read_reports(
    node: Node, claim: StudyClaim, outcome: StudyOutcome | Exception
) -> tuple[NewObject, ...]:
    """Reports for destinations that want them."""
    if isinstance(outcome, TransientError) or not isinstance(outcome, NotRead | Exception):
        return ()
    if claim.still_receiving and not claim.reprocess and isinstance(outcome, NotRead):
        return ()
    return _written(node, claim, _fault_of(outcome) if isinstance(outcome, Exception) else outcome)


def _written(node: Node, claim: StudyClaim, fault: StudyRejected | NotRead) -> tuple[NewObject, ...]:
    """That a report cannot be written does not keep the row back."""
    try:
        results = ResultFiles.of(node.settings)
        return results.write_not_read(
            claim, node.settings.spool_dir, reason=fault.reason, detail=fault.detail
        )
    except Exception:
        logger.exception("no report that study %s was not read", claim.study_instance_uid)
        return ()


def _commit_fault(
    session: Session,
    node: Node,
    claim: StudyClaim,
    fault: StudyRejected,
    now: datetime,
    exclusions: Sequence[SeriesExclusion] = (),
    *,
    reports: Sequence[NewObject],
) -> None:
    """Commit that no model gave a reading, and why."""
    if claim.reprocess is None or None in claim.reprocess.models:
        readings.finish_not_read(
            session,
            claim,
            exclusions=exclusions,
            reason=fault.reason,
            detail=fault.detail,
            now=now,
            state=StudyState.FAILED,
            objects=reports,
            listeners=listeners_of(node.settings),
        )
        return
    readings.finish_read(
        session,
        claim,
        exclusions=exclusions,
        readings=(),
        now=now,
        configured=node.settings.model.bundles,
        fault=fault,
        listeners=listeners_of(node.settings),
    )


def _history(database: Database) -> Callable[[str], History]:
    def look_up(series_instance_uid: str) -> History:
        with database.reading() as session:
            return History(
                last_run_numbers=readings.last_run_numbers(session, series_instance_uid),
                earlier=readings.earlier_readings(session, series_instance_uid),
            )

    return look_up


def _renewal(database: Database, claim: StudyClaim, lease: timedelta) -> Callable[[], bool]:
    def renew() -> bool:
        with database.writing() as session:
            return queue.renew_lease(session, claim, now=_now(), lease=lease)

    return renew


def _now() -> datetime:
    return datetime.now(UTC)
