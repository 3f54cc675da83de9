"""One of the processes that receive: ``python -m ich_node.receive.receiving_process`` with four descriptors.

It gets its connections from `ich_node.receive.processes.ReceivingProcesses`, which listens, and hands back
what it stored. It ends when that process does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ich_node.receive.arrival import Gate
from ich_node.receive.commitment import CommitmentDesk
from ich_node.receive.commitment_reports import CommitmentReporter
from ich_node.receive.commitment_results import CommitmentResults, results_folder
from ich_node.receive.free_space import FreeSpace
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.received import log_without_values
from ich_node.receive.register import AssociationRegister
from ich_node.receive.scp import StorageScp
from ich_node.receive.spool import Spool
from ich_node.receive.tls import ServerIdentity, TlsFiles, client_context
from ich_node.receive.worklist_line import WorklistLine

_LOG = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_BEAT_SECONDS = 5.0
_GATHERING_SECONDS = 0.1
_MANY = 50
"""Messages that wait for no more."""
_MOST_WAITING = 200
OVER_TLS, PLAIN = b"T", b"P"
"""Come with each connection."""


@dataclass(frozen=True, kw_only=True)
class ScpOptions:
    """What a receiving process is told at its start; goes from process to process."""

    ae_title: str
    spool_dir: Path
    commitment_dir: Path
    limits: Limits
    peers: tuple[AllowedPeer, ...] = ()
    min_free_bytes: int = 0
    """Below that, objects are refused."""
    tls: TlsFiles | None = None
    serves_worklist: bool = False
    """Whether the listening process answers questions about the worklist."""
    log_level: int = logging.INFO

    def scp(self, register: AssociationRegister | None = None, **callbacks: Any) -> tuple[StorageScp, Gate]:
        """Build the provider that obeys these options, and the gate that keeps objects out of it.

        Raises
        ------
        ConfigurationError
            The files of TLS do not fit.
        """
        spool = Spool(self.spool_dir)
        gate = Gate(disk_is_low=FreeSpace(self.spool_dir, self.min_free_bytes).is_low)
        scp = StorageScp(
            ae_title=self.ae_title,
            spool=spool,
            peers=self.peers,
            limits=self.limits,
            gate=gate,
            register=register,
            tls=ServerIdentity(self.tls) if self.tls else None,
            commitment=CommitmentDesk(self.commitment_dir, spool),
            results=CommitmentResults(results_folder(self.commitment_dir)),
            **callbacks,
        )
        return scp, gate

    def reporter(self, scp: StorageScp) -> CommitmentReporter:
        """Build what calls peers back with their storage commitment reports."""
        assert scp.commitment is not None
        return CommitmentReporter(
            scp.commitment,
            peers=self.peers,
            ae_title=self.ae_title,
            tls_context=client_context(self.tls) if self.tls else None,
        )


@dataclass(frozen=True, kw_only=True)
class KeepOut:
    """Tells a receiving process whom and what to refuse from now on."""

    full_studies: frozenset[str] = frozenset()
    spent_peers: frozenset[str] = frozenset()


class Messages:
    """Messages to the listening process, from any thread, in lists of those that come in quick succession.

    One that goes alone takes both processes as long as many together, which have most of their values in common.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: list[object] = []
        self._changed = threading.Condition()
        self._closed = False
        self._hurried = False
        self._thread = threading.Thread(target=self._run, name="messages", daemon=True)
        self._thread.start()

    def send(self, message: object) -> None:
        """Let a message go soon; waits while the listening process does not keep up."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < _MOST_WAITING)
            self._waiting.append(message)
            if len(self._waiting) in (1, _MANY):
                self._changed.notify_all()

    def send_at_once(self, message: object) -> None:
        """Let a message go with all before it."""
        self.send(message)
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def close(self) -> None:
        """Return when everything was sent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while messages := self._take():
            try:
                self._connection.send(messages)
            except OSError:  # the listening process has died, and this one with it
                return
            except Exception as error:  # out of memory, for example: then the spool is looked through
                log_without_values(_LOG, "what was stored cannot be told", error)
                os._exit(1)

    def _take(self) -> list[object]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(
                lambda: self._closed or self._hurried or len(self._waiting) >= _MANY, _GATHERING_SECONDS
            )
            messages, self._waiting = self._waiting, []
            self._hurried = False
            self._changed.notify_all()
            return messages


def main(arguments: list[str]) -> None:
    """Serve connections until the listening process closes the channel that they come over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the listening process says when to end
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # it has died already
        channel, questions = Connection(int(arguments[0])), Connection(int(arguments[3]))
        _serve(channel, int(arguments[1]), int(arguments[2]), questions)


def _serve(
    channel: Connection, connections_descriptor: int, register_descriptor: int, questions: Connection
) -> None:
    options: ScpOptions = channel.recv()
    logging.basicConfig(
        level=options.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    messages = Messages(channel)
    register = AssociationRegister(options.limits, register_descriptor)
    worklist = WorklistLine(questions).look_up if options.serves_worklist else None
    scp, gate = options.scp(
        register, on_instance=messages.send, on_association_end=messages.send_at_once, worklist=worklist
    )
    reporter = options.reporter(scp)
    reporter.start()
    threading.Thread(target=_obey, args=(channel, gate), daemon=True).start()
    gc.collect()
    gc.freeze()  # what the start has left, pydicom's dictionary above all, is not looked through again and again
    with socket.socket(fileno=connections_descriptor) as connections:
        connections.settimeout(_BEAT_SECONDS)
        messages.send(None)  # ready
        said_s = time.monotonic()
        while True:
            if time.monotonic() - said_s >= _BEAT_SECONDS:
                messages.send(None)  # alive
                said_s = time.monotonic()
            try:
                how, descriptors, _, _ = socket.recv_fds(connections, 1, 1)
            except TimeoutError:
                continue
            if not how:
                break
            for descriptor in descriptors:
                scp.serve(socket.socket(fileno=descriptor), over_tls=how == OVER_TLS)
    scp.stop()
    reporter.stop()
    messages.close()


def _die_with_parent() -> None:
    """End at once when the listening process dies, whatever is under way (Linux).

    What would still be acknowledged then, by a process that waits for a slow disk perhaps, would be found in
    the spool by nobody: the successor has looked through it when it started.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _obey(channel: Connection, gate: Gate) -> None:
    while True:
        try:
            keep_out: KeepOut = channel.recv()
        except (EOFError, OSError):
            return
        gate.full_studies, gate.spent_peers = keep_out.full_studies, keep_out.spent_peers


if __name__ == "__main__":
    main(sys.argv[1:])
