"""A worker's job with a destination: send what waits for it. `ich_node.tasks` runs it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from ich_node.confirmation_job import confirm_due
from ich_node.database import outbox
from ich_node.database.engine import Database
from ich_node.database.outbox import Delivery, Takes
from ich_node.deliver import scu, stow
from ich_node.deliver.outbox import GIVE_UP_AFTER, LONGEST_DELAY, next_attempt
from ich_node.deliver.scu import DeliveryOutcome, DeliveryResult
from ich_node.deliver.web_client import WebDestination
from ich_node.destination_settings import PacsSettings
from ich_node.destinations import pacs_destination
from ich_node.errors import ConfigurationError
from ich_node.lease import showing_life, work_owner
from ich_node.node import Node, now
from ich_node.notice_job import tell_due

logger = logging.getLogger(__name__)

_LEASE = timedelta(seconds=20)
_BATCH = 10
"""Objects for one association; what is more urgent and came meanwhile goes with the next."""
_THREADS_FOR_ONE = 2


class Deliverer:
    """Delivers from several threads, of which one destination gets two at most, and a third to ask what it keeps.

    So a PACS that is dead or slow leaves threads to the others, and one that is slow to confirm still gets results.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._sending: dict[str, threading.BoundedSemaphore] = {}
        self._confirming: dict[str, threading.BoundedSemaphore] = {}

    def deliver_due(self, destination_name: str) -> None:
        """Send a destination what waits for it and ask what it keeps, unless enough threads are at that already."""
        sending = self._sending.setdefault(destination_name, threading.BoundedSemaphore(_THREADS_FOR_ONE))
        _unless_busy(sending, lambda: deliver_due(self._node, destination_name))
        pacs = _pacs(self._node, destination_name)
        if pacs is not None:
            confirming = self._confirming.setdefault(destination_name, threading.BoundedSemaphore(1))
            _unless_busy(confirming, lambda: confirm_due(self._node, pacs))


def _unless_busy(free: threading.BoundedSemaphore, work: Callable[[], None]) -> None:
    if not free.acquire(blocking=False):
        return
    try:
        work()
    finally:
        free.release()


def deliver_due(node: Node, destination_name: str) -> None:
    """Send a destination what waits for it, the most urgent first, until nothing is due or nobody answers.

    What is still due then goes with the next message: a destination that is away holds its thread for one batch.
    """
    for listener in node.settings.notified:
        if listener.name == destination_name:
            _give_up(node.database, destination_name, takes=Takes.NOTICES)
            tell_due(node, listener)
            return
    pacs = _pacs(node, destination_name)
    _give_up(node.database, destination_name, takes=None if pacs is None else Takes.OBJECTS)
    if pacs is None:
        return
    while True:
        with node.database.writing() as session:
            claimed = outbox.claim_deliveries(
                session, destination_name, owner=work_owner(), now=now(), lease=_LEASE, limit=_BATCH
            )
        if not claimed:
            return
        with showing_life(_renewal(node.database, claimed), _LEASE):
            outcomes = _send(node, pacs, [node.settings.results_dir / each.file_name for each in claimed])
            _record_outcomes(node.database, claimed, outcomes, confirm=pacs.confirm != "none")
        if not any(map(_is_answer, outcomes)):
            return


def _is_answer(outcome: DeliveryOutcome) -> bool:
    return outcome.result is not DeliveryResult.TRANSIENT or outcome.status is not None


def _send(node: Node, pacs: PacsSettings, paths: Sequence[Path]) -> Sequence[DeliveryOutcome]:
    try:
        destination = pacs_destination(pacs)
        if isinstance(destination, WebDestination):
            return stow.send(paths, destination)
        return scu.send(paths, destination, calling_ae_title=node.settings.receiver.ae_title)
    except ConfigurationError as error:  # a file of the settings that can be mended
        return [
            DeliveryOutcome(path=path, result=DeliveryResult.TRANSIENT, detail=str(error)) for path in paths
        ]


def _record_outcomes(
    database: Database, claimed: Sequence[Delivery], outcomes: Sequence[DeliveryOutcome], *, confirm: bool
) -> None:
    at = now()
    with database.writing() as session:
        if any(outcome.is_delivered for outcome in outcomes):
            outbox.wake(session, claimed[0].destination, now=at)
        for delivery, outcome in zip(claimed, outcomes, strict=True):
            if outcome.is_delivered:
                note = outcome.detail if outcome.result is DeliveryResult.WARNING else None
                outbox.record_taken(session, delivery, now=at, note=note, confirm=confirm)
                continue
            logger.warning(
                "%s did not take %s: %s", delivery.destination, delivery.sop_instance_uid, outcome.result
            )
            may_pass = outcome.result is DeliveryResult.TRANSIENT
            again = _again(delivery, outcome, at) if may_pass else None
            outbox.record_failed(session, delivery, next_attempt_at=again, note=outcome.detail)


def _again(delivery: Delivery, outcome: DeliveryOutcome, at: datetime) -> datetime | None:
    again = next_attempt(delivery.attempts, at)
    if again is None and at - delivery.created_at < GIVE_UP_AFTER:
        again = at + LONGEST_DELAY  # it was tried more often than by itself
    if again is None or outcome.retry_after_s is None:
        return again
    return max(again, at + timedelta(seconds=outcome.retry_after_s))


def _renewal(database: Database, claimed: Sequence[Delivery]) -> Callable[[], bool]:
    def renew() -> bool:
        with database.writing() as session:
            return outbox.renew_leases(session, claimed, now=now(), lease=_LEASE) > 0

    return renew


def _give_up(database: Database, destination_name: str, *, takes: Takes | None) -> None:
    """Make dead letters of what nobody of that name can take; only a person knows where it should go."""
    note = f"no [[pacs]] is named {destination_name}; add it and run 'ich-node deliveries --retry'"
    if takes is Takes.OBJECTS:
        note = f"{destination_name} is a [[pacs]] now, which takes no notices"
    elif takes is Takes.NOTICES:
        note = f"{destination_name} is no [[pacs]] any more; give that its name back, or send the study anew"
    with database.writing() as session:
        count = outbox.give_up(session, destination_name, now=now(), note=note, takes=takes)
    if count:
        logger.warning("%d deliveries are for %s, which cannot take them", count, destination_name)


def _pacs(node: Node, name: str) -> PacsSettings | None:
    return next((pacs for pacs in node.settings.pacs if pacs.name == name), None)
