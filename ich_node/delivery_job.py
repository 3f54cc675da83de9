"""A worker's job with a PACS: send what waits for it. `ich_node.tasks` runs it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ich_node.database import outbox
from ich_node.database.engine import Database
from ich_node.database.outbox import Delivery
from ich_node.deliver.outbox import next_attempt
from ich_node.deliver.scu import DeliveryOutcome, DeliveryResult, Destination, send
from ich_node.lease import showing_life, work_owner
from ich_node.settings import Settings

logger = logging.getLogger(__name__)

_LEASE = timedelta(seconds=20)
_BATCH = 10
"""Objects for one association; what is more urgent and came meanwhile goes with the next."""
_THREADS_FOR_ONE = 2


@dataclass(frozen=True, kw_only=True)
class Node:
    """What the jobs need of this installation."""

    settings: Settings
    database: Database

    @property
    def destination_names(self) -> tuple[str, ...]:
        """The PACS that results go to."""
        return tuple(pacs.name for pacs in self.settings.pacs)


class Deliverer:
    """Delivers from several threads, of which one destination gets two at most.

    So a PACS that is dead or slow leaves threads to the others.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._free: dict[str, threading.BoundedSemaphore] = {}

    def deliver_due(self, destination_name: str) -> None:
        """Send a PACS what waits for it, unless enough threads are at that already."""
        free = self._free.setdefault(destination_name, threading.BoundedSemaphore(_THREADS_FOR_ONE))
        if not free.acquire(blocking=False):
            return
        try:
            deliver_due(self._node, destination_name)
        finally:
            free.release()


def deliver_due(node: Node, destination_name: str) -> None:
    """Send a PACS what waits for it, the most urgent first, until nothing is due."""
    destination = _destination(node.settings, destination_name)
    while True:
        with node.database.writing() as session:
            claimed = outbox.claim_deliveries(
                session, destination_name, owner=work_owner(), now=_now(), lease=_LEASE, limit=_BATCH
            )
        if not claimed:
            return
        if destination is None:
            _record_unknown(node.database, claimed)
            return
        paths = [node.settings.results_dir / delivery.file_name for delivery in claimed]
        with showing_life(_renewal(node.database, claimed), _LEASE):
            outcomes = send(paths, destination, calling_ae_title=node.settings.receiver.ae_title)
            _record_outcomes(node.database, claimed, outcomes)


def _record_outcomes(
    database: Database, claimed: Sequence[Delivery], outcomes: Sequence[DeliveryOutcome]
) -> None:
    now = _now()
    with database.writing() as session:
        if any(outcome.is_delivered for outcome in outcomes):
            outbox.wake(session, claimed[0].destination, now=now)
        for delivery, outcome in zip(claimed, outcomes, strict=True):
            if outcome.is_delivered:
                note = outcome.detail if outcome.result is DeliveryResult.WARNING else None
                outbox.record_sent(session, delivery, now=now, note=note)
                continue
            logger.warning(
                "%s did not take %s: %s", delivery.destination, delivery.sop_instance_uid, outcome.result
            )
            may_pass = outcome.result is DeliveryResult.TRANSIENT
            again = next_attempt(delivery.attempts, now) if may_pass else None
            outbox.record_failed(session, delivery, next_attempt_at=again, note=outcome.detail)


def _renewal(database: Database, claimed: Sequence[Delivery]) -> Callable[[], bool]:
    def renew() -> bool:
        with database.writing() as session:
            return outbox.renew_leases(session, claimed, now=_now(), lease=_LEASE) > 0

    return renew


def _record_unknown(database: Database, claimed: Sequence[Delivery]) -> None:
    with database.writing() as session:
        for delivery in claimed:
            note = (
                f"no [[pacs]] is named {delivery.destination}; add it and run 'ich-node deliveries --retry'"
            )
            outbox.record_failed(session, delivery, next_attempt_at=None, note=note)


def _destination(settings: Settings, name: str) -> Destination | None:
    for pacs in settings.pacs:
        if pacs.name == name:
            return Destination(name=pacs.name, ae_title=pacs.ae_title, host=pacs.host, port=pacs.port)
    return None


def _now() -> datetime:
    return datetime.now(UTC)
