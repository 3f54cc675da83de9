"""Receiving as the settings say: the receiving processes and the intake that writes their rows."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ich_node.database.access import Access, AccessAction, AccessLog
from ich_node.database.engine import Database
from ich_node.database.worklist_items import find_worklist_items
from ich_node.errors import ConfigurationError, TransientError
from ich_node.intake import Intake
from ich_node.receive.ledger import PeerLedger
from ich_node.receive.listener import Endpoint
from ich_node.receive.processes import ReceivingProcesses, default_processes
from ich_node.receive.received import ReceivedInstance
from ich_node.receive.receiving_process import KeepOut, ScpOptions
from ich_node.receive.spool import Spool
from ich_node.receive.tls_files import TlsFiles
from ich_node.receive.waiting import HandedOn
from ich_node.receive.worklist_find import FindRefused, FindStatus, WorklistItem, WorklistQuestion
from ich_node.receiver_terms import limits, peers
from ich_node.settings import ReceiverSettings, Settings

_LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0


@contextmanager
def open_receiver(settings: Settings, database: Database) -> Iterator[ReceivingProcesses]:
    """Receive from now on; the rows of whatever the spool holds without them are made good meanwhile.

    Raises
    ------
    ConfigurationError
        An address cannot be listened on, or the files of TLS do not fit.
    """
    worklist = WorklistDesk(database, export=bool(settings.web.audit.host))
    intake = Intake(settings, database, Spool(settings.spool_dir))
    ledger = PeerLedger(settings.receiver.max_peer_gib_per_day * 2**30)

    def hand_on(what: HandedOn) -> None:
        if isinstance(what, ReceivedInstance):
            ledger.add(what.source_ae_title, what.spooled.size_bytes)
        intake.put(what)

    receiving = ReceivingProcesses(
        scp_options(settings),
        endpoints(settings.receiver),
        processes=settings.receiver.processes or default_processes(),
        on_handed_on=hand_on,
        on_loss=intake.look_again,
        worklist=worklist.look_up,
    )
    stopped = threading.Event()
    watcher = threading.Thread(
        target=_keep_out, args=(receiving, intake, ledger, stopped), name="shares", daemon=True
    )
    intake.is_behind = receiving.is_behind
    with intake:
        try:
            receiving.start()
            gc.collect()
            gc.freeze()  # what the start has left is not looked through again and again
            watcher.start()
            yield receiving
        finally:
            stopped.set()
            receiving.stop()


class WorklistDesk:
    """Answers questions about the worklist, and writes down who asked.

    Parameters
    ----------
    database
        Whoever made it closes it.
    export
        Whether an audit repository is to be told.
    """

    def __init__(self, database: Database, *, export: bool) -> None:
        self._database = database
        self._accesses = AccessLog(database, export=export)

    def look_up(self, question: WorklistQuestion) -> list[WorklistItem]:
        """Find what is asked for.

        Raises
        ------
        FindRefused
            The database does not answer, or cannot be used.
        """
        try:
            with self._database.reading() as session:
                found = find_worklist_items(session, question)
        except TransientError as error:
            _LOG.warning("the worklist cannot be looked up: %s", error)
            raise FindRefused(FindStatus.OUT_OF_RESOURCES, "the database does not answer") from None
        except ConfigurationError as error:
            _LOG.error("the worklist cannot be looked up: %s", error)
            raise FindRefused(FindStatus.UNABLE_TO_PROCESS, "the database cannot be used") from None
        self._accesses.add(
            Access(
                at=datetime.now(UTC),
                caller=question.asker,
                role="peer",
                source=question.host,
                action=AccessAction.QUERY,
                detail=f"C-FIND of the worklist: {len(found)} found",
            )
        )
        return found


def scp_options(settings: Settings) -> ScpOptions:
    """What the receiving processes are told."""
    tls = settings.receiver.tls
    files = TlsFiles(certificate=Path(tls.certificate), key=Path(tls.key), ca=Path(tls.ca))
    return ScpOptions(
        ae_title=settings.receiver.ae_title,
        spool_dir=settings.spool_dir,
        commitment_dir=settings.commitment_dir,
        limits=limits(settings.receiver),
        peers=peers(settings),
        min_free_bytes=int(settings.disk.min_free_gib * 2**30),
        tls=files if tls.certificate else None,
    )


def endpoints(receiver: ReceiverSettings) -> list[Endpoint]:
    """Where to listen."""
    listed = []
    if not receiver.tls.only:
        listed.append(Endpoint(host=receiver.host, port=receiver.port))
    if receiver.tls.certificate:
        listed.append(Endpoint(host=receiver.host, port=receiver.tls.port, tls=True))
    return listed


def _keep_out(
    receiving: ReceivingProcesses, intake: Intake, ledger: PeerLedger, stopped: threading.Event
) -> None:
    spent: frozenset[str] = frozenset()
    while not stopped.wait(_LOOK_SECONDS):
        before, spent = spent, ledger.spent()
        for ae_title in spent - before:
            _LOG.warning("%r has brought more than receiver.max_peer_gib_per_day: no more is taken", ae_title)
        receiving.keep_out(KeepOut(full_studies=intake.full_studies(), spent_peers=spent))
