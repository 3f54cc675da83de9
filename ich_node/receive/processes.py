"""Receiving in several processes: this one listens, hands connections out, and is told what was stored."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import TypeAlias

from ich_node.errors import ConfigurationError
from ich_node.receive.listener import Endpoint, Listener
from ich_node.receive.priority import yield_to_receiving
from ich_node.receive.received import AssociationSummary, ReceivedInstance, log_without_values
from ich_node.receive.receiving_process import OVER_TLS, PLAIN, KeepOut, ScpOptions
from ich_node.receive.register import AssociationRegister
from ich_node.receive.spool import Spool
from ich_node.receive.tls import ServerIdentity
from ich_node.receive.worklist_find import LookUp
from ich_node.receive.worklist_line import answer_questions

_LOG = logging.getLogger(__name__)

HandedOn: TypeAlias = ReceivedInstance | AssociationSummary

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_RESTART_SECONDS = 1.0
_SILENT_SECONDS = 30.0
"""A process says every few seconds that it lives."""
_WAITING_LISTS = 20
"""A process that has said so much that nobody had time for waits before it takes more."""
_LONGEST_RESTART_SECONDS = 30.0


class ReceivingProcesses:
    """Listens for associations and serves them in several processes.

    Parameters
    ----------
    options
        What each process is told.
    endpoints
        Where to listen.
    processes
        How many serve.
    on_handed_on
        Called for every acknowledged object and every ended association, from one thread for each process and
        in the order of each association. While it blocks, that process waits before it takes more.
    on_loss
        Called when a process has died: what it stored last may not have been handed on, so that
        `ich_node.receive.received.rebuild` is due.
    worklist
        Finds what is asked for by C-FIND, in one thread for each process; without it nobody may ask.
    """

    def __init__(
        self,
        options: ScpOptions,
        endpoints: Sequence[Endpoint],
        *,
        processes: int,
        on_handed_on: Callable[[HandedOn], None],
        on_loss: Callable[[], None],
        worklist: LookUp | None = None,
    ) -> None:
        self._options = replace(options, serves_worklist=worklist is not None)
        self._worklist = worklist
        self._endpoints = tuple(endpoints)
        self._on_handed_on = on_handed_on
        self._on_loss = on_loss
        self._register = AssociationRegister(options.limits)
        self._children = [_Child(self, number) for number in range(processes)]
        self._listener: Listener | None = None
        self._last = 0
        self._keep_out = KeepOut()
        self._stopping = threading.Event()

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports that are listened on, in the order of the endpoints."""
        return self._listener.ports if self._listener else tuple(e.port for e in self._endpoints)

    def start(self) -> None:
        """Listen, remove what an earlier receiver left unfinished, and return when every process serves.

        Raises
        ------
        ConfigurationError
            An address cannot be listened on, the files of TLS do not fit, or no process starts.
        """
        if self._options.tls is not None:
            ServerIdentity(self._options.tls)  # said here, and not by each process in its log
        self._listener = listener = Listener(self._endpoints, self._hand_out, self._options.limits)
        Spool(self._options.spool_dir).remove_leftovers()
        for child in self._children:
            child.start()
        ends_at = time.monotonic() + _START_SECONDS
        ready = [child.wait_until_ready(ends_at - time.monotonic()) for child in self._children]
        if not any(ready):
            self.stop()
            raise ConfigurationError("no receiving process has started; the log says why")
        listener.start()
        for endpoint, port in zip(self._endpoints, listener.ports, strict=True):
            how = " over TLS" if endpoint.tls else ""
            _LOG.info("receiving as %s on %s port %d%s", self._options.ae_title, endpoint.host, port, how)

    def stop(self) -> None:
        """Stop listening, let stores that are under way finish, and return when everything was handed on."""
        self._stopping.set()
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        for child in self._children:
            child.end()
        for child in self._children:
            child.join(_STOP_SECONDS)

    def keep_out(self, keep_out: KeepOut) -> None:
        """Tell every process whom and what to refuse from now on."""
        if keep_out != self._keep_out:
            self._keep_out = keep_out
            for child in self._children:
                child.tell(keep_out)

    def is_behind(self) -> bool:
        """Whether objects have been acknowledged that were not handed on yet."""
        return any(child.unsaid for child in self._children)

    def associations(self) -> int:
        """How many are open."""
        return self._register.count()

    def _hand_out(self, connection: socket.socket, over_tls: bool) -> None:
        """Give a connection to the process with the fewest associations, taking turns among equals."""
        open_by_process = self._register.count_by_process()
        self._last += 1
        turn = self._last
        order = sorted(
            range(len(self._children)),
            key=lambda at: (
                open_by_process.get(self._children[at].process_id, 0),
                (at - turn) % len(self._children),
            ),
        )
        with connection:
            for at in order:
                if self._children[at].take(connection, over_tls):
                    return
        _LOG.warning("closed a connection that no process could take")


class _Child:
    """A receiving process, started again whenever it dies."""

    def __init__(self, owner: ReceivingProcesses, number: int) -> None:
        self._owner = owner
        self._name = f"receiving-{number}"
        self._ready = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        self._connections: socket.socket | None = None
        self._guard = threading.Lock()
        self._said: queue.Queue[bytes | None] = queue.Queue(_WAITING_LISTS)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    @property
    def process_id(self) -> int:
        """Of the process, 0 while there is none."""
        return self._process.pid if self._process else 0

    @property
    def unsaid(self) -> int:
        """How many lists of things it has said that were not passed on."""
        return self._said.unfinished_tasks

    def start(self) -> None:
        self._thread.start()

    def wait_until_ready(self, seconds: float) -> bool:
        if self._ready.wait(max(seconds, 0.0)):
            return True
        _LOG.error("%s has not started in time", self._name)
        return False

    def take(self, connection: socket.socket, over_tls: bool) -> bool:
        with self._guard:
            if self._connections is None:
                return False
            try:
                socket.send_fds(self._connections, [OVER_TLS if over_tls else PLAIN], [connection.fileno()])
            except OSError:  # it is dying, or does not keep up
                return False
            return True

    def tell(self, keep_out: KeepOut) -> None:
        channel = self._channel  # without the guard: one that hangs must not hold up the others
        if channel is not None:
            try:
                channel.send(keep_out)
            except OSError:  # it is dying; its successor is told
                return

    def end(self) -> None:
        with self._guard:
            if self._connections is not None:
                self._connections.close()
                self._connections = None

    def join(self, seconds: float) -> None:
        if self._thread.ident is None:  # never started
            return
        self._thread.join(seconds)
        if self._thread.is_alive() and self._process is not None:
            _LOG.error("%s does not end and is killed", self._name)
            self._process.kill()
            # Not for ever: what it stored is in the spool, and whoever takes it over may be stuck.
            self._thread.join(seconds)

    def _run(self) -> None:
        pause = _RESTART_SECONDS
        while not self._owner._stopping.is_set():
            began = time.monotonic()
            try:
                self._live()
            except Exception as error:  # out of processes or memory, for example: it is tried again
                log_without_values(_LOG, f"{self._name} could not be started", error)
            if self._owner._stopping.is_set():
                return
            _LOG.error("%s has died and is started again", self._name)
            self._owner._on_loss()
            pause = (
                _RESTART_SECONDS
                if time.monotonic() - began > 60
                else min(pause * 2, _LONGEST_RESTART_SECONDS)
            )
            self._owner._stopping.wait(pause)

    def _live(self) -> None:
        """Start a process and pass on what it says, until it has ended."""
        channel, questions, process = self._spawn()
        worklist = self._owner._worklist
        if worklist is None:
            questions.close()
        else:
            threading.Thread(
                target=answer_questions,
                args=(questions, worklist),
                name=f"{self._name}-worklist",
                daemon=True,
            ).start()
        said = self._said = queue.Queue(_WAITING_LISTS)
        listener = threading.Thread(target=self._obey, args=(said,), name=f"{self._name}-rows", daemon=True)
        listener.start()
        try:
            while channel.poll(_SILENT_SECONDS):
                said.put(channel.recv_bytes())
            _LOG.error("%s hangs and is killed", self._name)
            process.kill()
        except (EOFError, OSError):
            pass
        finally:
            said.put(None)
            self.end()
            with self._guard:
                channel.close()
                self._channel = None
            process.wait()
            self._owner._register.release_all(process.pid)
        listener.join()

    def _obey(self, said: queue.Queue[bytes | None]) -> None:
        """Pass on what a process says, behind those that receive: what is said is safe on disk."""
        yield_to_receiving()
        open_associations: dict[str, ReceivedInstance] = {}
        while (encoded := said.get()) is not None:
            messages: list[HandedOn | None] = pickle.loads(encoded)  # of our own process
            for message in messages:
                if message is None:
                    self._ready.set()  # and then from time to time: it lives
                    continue
                if isinstance(message, ReceivedInstance):
                    open_associations[message.association_id] = message
                else:
                    open_associations.pop(message.association_id, None)
                self._pass_on(message)
            said.task_done()
        for association_id, last in open_associations.items():
            self._pass_on(_abandoned(association_id, last))
        said.task_done()

    def _pass_on(self, message: HandedOn) -> None:
        try:
            self._owner._on_handed_on(message)
        except Exception as error:
            log_without_values(_LOG, "what was received was not handed on", error)
            self._owner._on_loss()

    def _spawn(self) -> tuple[Connection, Connection, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        answering, asking = socket.socketpair()
        # Of packets, so that a connection never arrives without its descriptor.
        giving, taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        giving.setblocking(False)
        register = self._owner._register.descriptor
        with theirs, taking, asking:
            descriptors = (theirs.fileno(), taking.fileno(), register, asking.fileno())
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "ich_node.receive.receiving_process",
                    *(str(fd) for fd in descriptors),
                ],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
            )
        channel = Connection(ours.detach())
        level = logging.getLogger().getEffectiveLevel()
        with self._guard:
            self._process, self._channel, self._connections = process, channel, giving
            try:
                channel.send(replace(self._owner._options, log_level=level))
                channel.send(self._owner._keep_out)
            except OSError:  # it has died already, which is noticed next
                pass
        if self._owner._stopping.is_set():  # since the thread last looked
            self.end()
        return channel, Connection(answering.detach()), process


def _abandoned(association_id: str, last: ReceivedInstance) -> AssociationSummary:
    """What can be said of an association whose process has died."""
    return AssociationSummary(
        association_id=association_id,
        calling_ae_title=last.source_ae_title,
        peer_host="",
        released=False,
        series_instance_uids=(last.instance.series_instance_uid,),
        stored=0,
        refused=0,
        unrecorded=0,
        ended_at=datetime.now(UTC),
    )


def default_processes() -> int:
    """One per core that this process may use, four at most: the disk is the next limit."""
    return min(4, len(os.sched_getaffinity(0)))
