"""Received objects become rows, and the end of an association decides when their series are due."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Self

from ich_node.database import receipt
from ich_node.database.engine import Database
from ich_node.database.known_files import KnownFiles
from ich_node.database.receipt import Receipt
from ich_node.database.study_sizes import StudySizes
from ich_node.due_series import DueSeries
from ich_node.errors import IchNodeError, TransientError
from ich_node.receive.priority import yield_to_receiving
from ich_node.receive.received import (
    AssociationSummary,
    RebuildSummary,
    ReceivedInstance,
    log_without_values,
    rebuild,
)
from ich_node.receive.spool import Spool
from ich_node.receive.waiting import HandedOn, Patience, WaitingLine
from ich_node.settings import Settings

logger = logging.getLogger(__name__)

_TICK_SECONDS = 2.0
_ASK_SIZES_SECONDS = 60.0
_RECENT = timedelta(days=7)
"""A study that has had nothing for so long is asked for its size only when something comes."""
_REBUILD_BATCH = 2000


class Intake:
    """Writes rows about received objects, in the background and many at once.

    Every object is durable in the spool and acknowledged before it comes here, and is never sent again. So a
    row that cannot be written now is made from the spool when the database answers again.

    Parameters
    ----------
    settings
        The waits and the limit per study of ``[receiver]`` are used.
    database, spool
        Where rows and objects are.
    """

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._settings = settings.receiver
        self._database = database
        self._spool = spool
        self._line = WaitingLine()
        self._recording = threading.Lock()  # one transaction at a time; guards the sizes
        self._sizes = StudySizes(int(settings.receiver.max_study_gib * 2**30))
        self._rebuilding = threading.Lock()
        self.is_behind: Callable[[], bool] = lambda: False
        """Whether objects have been acknowledged that were not put yet; set by whoever knows."""
        self._rows_missing = threading.Event()
        self._rows_missing.set()  # of what came before this start; nobody knows until `rebuild` has looked
        self._due = DueSeries(settings.receiver, database, rows_missing=self._may_miss_rows)
        self._mending = Patience(longest_s=10.0)
        self._odd_objects = Patience(longest_s=300.0)
        self._away = False
        self._stopping = threading.Event()
        self._recorder = threading.Thread(target=self._keep_recording, name="intake", daemon=True)
        self._mender = threading.Thread(target=self._keep_mending, name="mender", daemon=True)

    def start(self) -> None:
        """Write rows from now on, and look through the spool for objects that have none."""
        self._ask_sizes(first=True)
        self._recorder.start()
        self._mender.start()

    def close(self) -> None:
        """Write the rows of what waits, then stop. Whoever calls `put` has stopped before."""
        self._stopping.set()
        self._line.close()
        self._recorder.join()
        self._mender.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, handed_on: HandedOn) -> None:
        """Take an object that was acknowledged, or the end of the association that brought it, in this order.

        Quick; from any thread. Waits while `ich_node.receive.waiting.LINE_LENGTH` others wait.

        Raises
        ------
        RuntimeError
            This intake is closed.
        """
        self._line.join(handed_on)

    def flush(self) -> None:
        """Return when everything that was put has been dealt with."""
        self._line.flush()

    def full_studies(self) -> frozenset[str]:
        """Study Instance UIDs that hold more than ``max_study_gib``; the same object while nothing changes."""
        return self._sizes.full

    def look_again(self) -> None:
        """Look through the spool soon: objects may be there that were acknowledged and never put.

        For when a process that receives has died.
        """
        self._rows_missing.set()

    def mend(self) -> None:
        """Write the rows that could not be written when their objects came, if there are any; raises nothing."""
        missing = self._rows_missing.is_set() and not self._mending.is_pausing
        odd = self._odd_objects.has_failed and not self._odd_objects.is_pausing
        if not (missing or odd):
            return
        try:
            self.rebuild()
            self._mending.end()
        except Exception as error:
            self._mending.lengthen()
            log_without_values(logger, "rows of received objects are still missing", error)

    def rebuild(self) -> RebuildSummary:
        """Write the rows that the spool has objects for and the database does not, also while objects arrive.

        Raises
        ------
        TransientError
            The database did not answer.
        ConfigurationError
            Its file, its schema or this user's rights do not fit.
        """
        with self._rebuilding:
            self._rows_missing.clear()
            try:
                summary = self._rebuild()
            except Exception:
                self._rows_missing.set()
                raise
        if summary.recorded or summary.failed:
            logger.warning(
                "rows made from the spool: %d; objects that cannot be read or recorded: %d",
                summary.recorded,
                len(summary.failed),
            )
        return summary

    def _rebuild(self) -> RebuildSummary:
        found: list[ReceivedInstance] = []
        failed: list[str] = []

        def record_found() -> None:
            failed.extend(self._record_all(found, from_spool=True))
            found.clear()

        def collect(received: ReceivedInstance) -> None:
            found.append(received)
            if len(found) >= _REBUILD_BATCH:
                record_found()

        self._away = False
        known = KnownFiles(self._database, stopped=self._is_in_vain)
        summary = rebuild(self._spool, collect, known=known)
        record_found()
        if self._away:
            raise TransientError("the database did not answer while rows were made from the spool")
        if failed or summary.failed:  # one that cannot be read now may be readable later
            self._odd_objects.lengthen()
        else:
            self._odd_objects.end()
        return replace(summary, recorded=summary.recorded - len(failed), failed=(*summary.failed, *failed))

    def _is_in_vain(self) -> bool:
        return self._stopping.is_set() or self._away

    def _may_miss_rows(self) -> bool:
        return self._rows_missing.is_set() or self._rebuilding.locked() or self._odd_objects.has_failed

    def _keep_recording(self) -> None:
        yield_to_receiving()
        while batch := self._line.take():
            try:
                # Nobody waits for a database that is away: the next start makes the rows from the spool.
                if not (self._stopping.is_set() and self._away):
                    self._handle(batch)
            except Exception as error:  # the thread's one boundary: what comes next is recorded
                self._rows_missing.set()
                log_without_values(logger, "received objects were not recorded", error)
            finally:
                self._line.done()

    def _handle(self, batch: Sequence[HandedOn]) -> None:
        self._record_all([one for one in batch if isinstance(one, ReceivedInstance)])
        # Also after objects that came later: they may show that another association brings the same series.
        for one in batch:
            if isinstance(one, AssociationSummary):
                _log_end(one)
                if one.unrecorded:
                    self.look_again()
                self._due.end(one)
        self._decide()

    def _decide(self) -> None:
        if not self.is_behind():  # what waits may belong to a series whose association has ended
            self._due.decide()

    def _record_all(self, received: Iterable[ReceivedInstance], *, from_spool: bool = False) -> list[str]:
        """Record objects of any studies; gives the names of those that were not."""
        studies: dict[str, list[ReceivedInstance]] = {}
        for one in received:
            studies.setdefault(one.study.study_instance_uid, []).append(one)
        failed: list[str] = []
        odd: list[Exception] = []
        for group in studies.values():
            begun = set() if from_spool else self._due.begin(group)
            failed += self._record(group, begun, odd, from_spool=from_spool)
        if odd:
            self._odd_objects.begin()
            log_without_values(logger, f"{len(odd)} objects are in the spool and cannot be recorded", odd[0])
        return failed

    def _record(
        self, group: Sequence[ReceivedInstance], begun: set[str], odd: list[Exception], *, from_spool: bool
    ) -> list[str]:
        try:
            self._write(group, begun, from_spool=from_spool)
            self._away = False
            return []
        except IchNodeError as error:
            self._away = True
            if not self._rows_missing.is_set():
                logger.warning("rows of received objects are made later: %s", error)
            self._rows_missing.set()
        except Exception as error:
            if len(group) > 1:  # one that the database cannot hold must not take the others with it
                half = len(group) // 2
                first = self._record(group[:half], begun, odd, from_spool=from_spool)
                return first + self._record(group[half:], begun, odd, from_spool=from_spool)
            odd.append(error)
        return [received.spooled.file_name for received in group]

    def _write(self, group: Sequence[ReceivedInstance], begun: set[str], *, from_spool: bool) -> None:
        study_instance_uid = group[0].study.study_instance_uid
        with self._recording, self._database.writing() as session:
            wait = self._due.wait_for_next(group, from_spool=from_spool)
            receipts = receipt.record_instances(session, group, due_at=datetime.now(UTC) + wait)
            self._due.hold(session, begun, group, receipts)
            size_bytes = sum(
                r.spooled.size_bytes
                for r, what in zip(group, receipts, strict=True)
                if what is not Receipt.DUPLICATE
            )
            is_full_now = self._sizes.add(session, study_instance_uid, size_bytes)
        if is_full_now:
            limit = self._settings.max_study_gib
            logger.warning("a study holds more than %g GiB (receiver.max_study_gib): no more is taken", limit)
        _log_conflicts(group, receipts)

    def _keep_mending(self) -> None:
        sizes_asked_s = time.monotonic()
        while True:
            self.mend()
            try:
                self._decide()
                self._due.forget_silent()
            except Exception as error:  # the thread's one boundary: what is missing is mended all the same
                log_without_values(logger, "the ends of associations have no effect", error)
            if time.monotonic() - sizes_asked_s > _ASK_SIZES_SECONDS:
                self._ask_sizes()
                sizes_asked_s = time.monotonic()
            if self._stopping.wait(_TICK_SECONDS):
                return

    def _ask_sizes(self, *, first: bool = False) -> None:
        try:
            with self._recording, self._database.reading() as session:
                if first:
                    self._sizes.ask(session, since=datetime.now(UTC) - _RECENT)
                else:
                    self._sizes.ask_again(session)
        except Exception as error:
            log_without_values(logger, "the sizes of studies are not known", error)


def _log_conflicts(group: Iterable[ReceivedInstance], receipts: Iterable[Receipt]) -> None:
    for received, what in zip(group, receipts, strict=True):
        if what is Receipt.CONFLICT:
            logger.error(
                "%s sent other content under a SOP Instance UID that is already here; it is kept as %s and not read",
                received.source_ae_title,
                received.spooled.file_name,
            )


def _log_end(summary: AssociationSummary) -> None:
    logger.info(
        "%s: %d images stored, %d refused, association %s",
        summary.calling_ae_title,
        summary.stored,
        summary.refused,
        "released" if summary.released else "aborted",
    )
