"""A worker's job with a PACS that took results: find out whether it keeps them. `ich_node.tasks` runs it.

Storage commitment first, where the PACS does that; a query where it does not, or where its answer does not come.
Nothing is delivered before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pydicom
from pydicom.uid import generate_uid

from ich_node.database import confirmation
from ich_node.database.confirmation import Answer, Unconfirmed
from ich_node.database.engine import Database
from ich_node.deliver.commitment import CommitmentOutcome, CommitmentState, request_commitment
from ich_node.deliver.outbox import next_attempt
from ich_node.deliver.query import Presence, StoredObject, stored
from ich_node.deliver.scu import Destination
from ich_node.destination_settings import PacsSettings
from ich_node.destinations import pacs_destination
from ich_node.errors import ConfigurationError
from ich_node.lease import showing_life, work_owner
from ich_node.node import Node, now
from ich_node.receive.commitment_results import CommitmentResult, CommitmentResults, results_folder

logger = logging.getLogger(__name__)

_LEASE = timedelta(seconds=20)
_BATCH = 100
"""Objects of one question."""
_ANSWER_WITHIN = timedelta(seconds=60)
"""A PACS that was asked to commit has so long before it is asked otherwise."""
_ABSENT_AT_FIRST = 5
"""So often a PACS may list an object not yet (over a minute, by `next_attempt`) before it counts as lost."""


def confirm_due(node: Node, pacs: PacsSettings) -> None:
    """Ask a PACS whether it keeps what it took, until nothing is due."""
    while True:
        with node.database.writing() as session:
            claimed = confirmation.claim_unconfirmed(
                session, pacs.name, owner=work_owner(), now=now(), lease=_LEASE, limit=_BATCH
            )
        if not claimed:
            return
        with showing_life(_renewal(node.database, claimed), _LEASE):
            try:
                _confirm(node, pacs, claimed)
            except ConfigurationError as error:  # a file of the settings that can be mended
                for each in claimed:
                    _record_presence(node.database, each, Presence.CANNOT_TELL, str(error))


def take_answers(node: Node) -> None:
    """Write down what PACS have reported of storage commitment, and forget the reports."""
    results = _results(node)
    for result in results.read():
        _record_answer(node.database, result)
        results.remove([result])


def has_answers(node: Node) -> bool:
    """Whether there is any report to be written down."""
    folder = results_folder(node.settings.commitment_dir)
    return folder.is_dir() and any(path.suffix == ".json" for path in folder.iterdir())


def _confirm(node: Node, pacs: PacsSettings, claimed: Sequence[Unconfirmed]) -> None:
    if pacs.confirm == "none":  # so the settings say now
        with node.database.writing() as session:
            confirmation.record_kept(session, claimed, now=now())
        return
    asked = [each for each in claimed if each.transaction_uid is not None]
    if pacs.url or pacs.confirm == "query":
        asked = list(claimed)
    elif pacs.confirm == "commitment":
        asked = []
    unasked = [each for each in claimed if each not in asked]
    if unasked and not _commit(node, pacs, unasked):
        asked = [*asked, *unasked]
    if asked:
        _query(node, pacs, asked)


def _commit(node: Node, pacs: PacsSettings, claimed: Sequence[Unconfirmed]) -> bool:
    """Ask for storage commitment; whether there is nothing left to do now."""
    destination, transaction_uid = pacs_destination(pacs), generate_uid(prefix=None)
    assert isinstance(destination, Destination)
    with node.database.writing() as session:
        confirmation.record_request(session, claimed, transaction_uid, answer_by=now() + _ANSWER_WITHIN)
    outcome = request_commitment(
        [(each.sop_class_uid, each.sop_instance_uid) for each in claimed],
        transaction_uid,
        destination,
        results=_results(node),
        calling_ae_title=node.settings.receiver.ae_title,
    )
    if outcome.result is not None:
        _record_answer(node.database, outcome.result)
        _results(node).remove([outcome.result])
        return True
    if pacs.confirm == "auto" and outcome.state is not CommitmentState.REQUESTED:
        return False
    _wait(node, claimed, outcome, at_least=_patience(outcome))
    return True


def _patience(outcome: CommitmentOutcome) -> timedelta:
    return _ANSWER_WITHIN if outcome.state is CommitmentState.REQUESTED else timedelta()


def _wait(
    node: Node, claimed: Sequence[Unconfirmed], outcome: CommitmentOutcome, *, at_least: timedelta
) -> None:
    note = None if outcome.state is CommitmentState.REQUESTED else outcome.detail
    for each in claimed:
        again = next_attempt(each.attempts, now())
        with node.database.writing() as session:
            confirmation.record_waiting(
                session,
                [each],
                next_attempt_at=None if again is None else max(again, now() + at_least),
                note=note or (None if again else "it was asked to commit and never did"),
            )


def _query(node: Node, pacs: PacsSettings, claimed: Sequence[Unconfirmed]) -> None:
    places = [_place(each, node.settings.results_dir) for each in claimed]
    known = [(each, place) for each, place in zip(claimed, places, strict=True) if place is not None]
    answers = stored(
        [place for _, place in known],
        pacs_destination(pacs),
        calling_ae_title=node.settings.receiver.ae_title,
    )
    for (each, _), answer in zip(known, answers, strict=True):
        _record_presence(node.database, each, answer.presence, answer.detail)
    for each, place in zip(claimed, places, strict=True):
        if place is None:
            detail = "its file is gone here, so that the PACS cannot be asked for its series"
            _record_presence(node.database, each, Presence.CANNOT_TELL, detail)


def _record_presence(database: Database, each: Unconfirmed, presence: Presence, detail: str) -> None:
    at = now()
    with database.writing() as session:
        if presence is Presence.PRESENT:
            confirmation.record_kept(session, [each], now=at)
        elif presence is Presence.ABSENT and each.attempts > _ABSENT_AT_FIRST:
            note = f"taken, then lost: {detail}"
            confirmation.record_lost(session, [each], again_at=_send_again(each.sends, at), note=note)
        else:
            again = next_attempt(each.attempts, at)
            confirmation.record_waiting(session, [each], next_attempt_at=again, note=detail)


def _place(each: Unconfirmed, results_dir: Path) -> StoredObject | None:
    try:
        header = pydicom.dcmread(
            results_dir / each.file_name, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True
        )
        series_instance_uid = str(header.SeriesInstanceUID)
    except Exception as error:  # pydicom raises whatever the damage leads to
        logger.warning("%s among the results cannot be read: %s", each.file_name, type(error).__name__)
        return None
    return StoredObject(
        study_instance_uid=each.study_instance_uid,
        series_instance_uid=series_instance_uid,
        sop_instance_uid=each.sop_instance_uid,
    )


def _record_answer(database: Database, result: CommitmentResult) -> None:
    report, at = result.report, now()
    answer = Answer(
        transaction_uid=report.transaction_uid,
        committed={one.sop_instance_uid for one in report.committed},
        failed={one.reference.sop_instance_uid: one.words for one in report.failed},
    )
    with database.writing() as session:
        known = confirmation.record_answer(
            session, answer, now=at, again_at=lambda sends: _send_again(sends, at)
        )
    if not known:
        logger.info("a report of storage commitment is about nothing that waits for it")


def _send_again(sends: int, at: datetime) -> datetime | None:
    """Of what was taken while somebody had it sent again from the beginning, the count of sends is 0."""
    return next_attempt(max(1, sends), at)


def _results(node: Node) -> CommitmentResults:
    return CommitmentResults(results_folder(node.settings.commitment_dir))


def _renewal(database: Database, claimed: Sequence[Unconfirmed]) -> Callable[[], bool]:
    def renew() -> bool:
        with database.writing() as session:
            return confirmation.renew_leases(session, claimed, now=now(), lease=_LEASE) > 0

    return renew
