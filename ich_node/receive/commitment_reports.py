"""Storage commitment reports over a new association: this node calls the peer that asked (PS3.4 J.3.3).

The peer is the ``[[peers]]`` entry with the AE title and the address of the request, at that entry's port.
A request of a peer without a port stays where it is, so that it is reported once a port is set and the
receiver started again.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ich_node.receive.commitment_association import CommitmentProvider
from ich_node.receive.commitment_call import CallTimeouts, CommitmentCall
from ich_node.receive.commitment_folder import PendingCommitment, WaitingReport, peer_key
from ich_node.receive.limits import AllowedPeer
from ich_node.receive.received import log_without_values

_LOG = logging.getLogger(__name__)

_STOP_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class RetrySchedule:
    """When a peer that could not be told is called again, in seconds."""

    first_s: float = 5.0
    """After the first attempt. The wait then doubles: each is as long as all before it."""
    longest_s: float = 3600.0
    give_up_s: float = 7 * 86400.0
    """After the request was accepted: longer than a weekend with holidays. The last attempt comes later."""
    least_s: float = 5.0
    """Between failed calls of one peer, whatever the clock says."""

    def due_s(self, report: WaitingReport, now_s: float) -> float:
        """When the peer is to be called, since the epoch."""
        attempted_s = report.attempted_s
        if attempted_s is None or attempted_s > now_s + self.longest_s:  # the clock was wrong then, or is now
            return now_s
        return attempted_s + min(max(self.first_s, attempted_s - report.accepted_s), self.longest_s)

    def is_over(self, report: WaitingReport, now_s: float, *, can_be_called: bool) -> bool:
        """Whether to give up: its time is over, and the peer was called since where it can be called."""
        end_s = report.accepted_s + self.give_up_s
        return now_s > end_s and (not can_be_called or (report.attempted_s or 0.0) > end_s)


class CommitmentReporter:
    """Calls peers in the background until they have their reports.

    Every process that receives may run one: they share the folder and never report a request at once. Peers
    are called side by side, so that one that does not answer holds up no other.

    Parameters
    ----------
    provider
        Reports over the associations that requests came by; what it could not is reported here.
    peers
        Whom to call.
    ae_title
        Ours.
    tls_context
        For peers with TLS.
    schedule, timeouts
        When to try again, and how long to wait.
    idle_seconds
        How often to look for what other processes have left.
    """

    def __init__(
        self,
        provider: CommitmentProvider,
        *,
        peers: Sequence[AllowedPeer],
        ae_title: str,
        tls_context: ssl.SSLContext | None = None,
        schedule: RetrySchedule | None = None,
        timeouts: CallTimeouts | None = None,
        idle_seconds: float = 15.0,
    ) -> None:
        self._provider = provider
        self._desk = provider.desk
        self._peers = {peer_key(peer.ae_title, peer.host): peer for peer in reversed(peers) if peer.port}
        self._ae_title = ae_title
        self._tls_context = tls_context
        self._schedule = schedule or RetrySchedule()
        self._timeouts = timeouts or CallTimeouts()
        self._idle_seconds = idle_seconds
        self._started_s = self._desk.clock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._calls: dict[str, threading.Thread] = {}
        self._open: set[CommitmentCall] = set()
        self._not_before_s: dict[str, float] = {}
        self._warned: set[str] = set()

    def start(self) -> None:
        """Report what waits, what an earlier process has left first."""
        self._desk.on_waiting = self._wake.set
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="commitment-reporter", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Break off what is under way; it is reported by the next one."""
        self._stopping.set()
        self._wake.set()
        with self._lock:
            for call in self._open:
                call.abort()
            threads = [*self._calls.values(), *([self._thread] if self._thread else [])]
        end_s = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        self._thread = None

    def report_due(self) -> None:
        """Call every peer that is due now, once, and return when all have been told or have failed."""
        self._start_calls()
        with self._lock:
            calls = list(self._calls.values())
        for call in calls:
            call.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                wait_s = self._start_calls()
            except Exception as error:
                log_without_values(_LOG, "storage commitment reports were not sent", error)
                wait_s = self._idle_seconds
            self._wake.wait(wait_s)

    def _start_calls(self) -> float:
        """Begin a call of every peer for which something is due; gives the seconds until more may be."""
        self._provider.drop_silent_lines()
        now_s = self._desk.clock()
        wait_s = self._idle_seconds
        due: dict[str, list[str]] = {}
        for report in self._desk.folder.reports():
            if self._desk.folder.holds(report.file_name):
                continue
            can_be_called = report.peer in self._peers
            if self._schedule.is_over(report, now_s, can_be_called=can_be_called):
                self._give_up(report)
            elif not can_be_called:
                self._warn(report)
            elif (left_s := self._due_s(report, now_s) - now_s) <= 0:
                due.setdefault(report.peer, []).append(report.file_name)
            else:
                wait_s = min(wait_s, left_s)
        for key, names in due.items():
            wait_s = min(wait_s, self._begin(key, names))
        return wait_s

    def _due_s(self, report: WaitingReport, now_s: float) -> float:
        # After a start everything is tried at once: a port or an address may have been mended.
        if report.attempted_s is not None and report.attempted_s < self._started_s:
            return now_s
        return self._schedule.due_s(report, now_s)

    def _begin(self, key: str, names: list[str]) -> float:
        """Call a peer unless that is under way; gives the seconds after which to try again."""
        with self._lock:
            pause_s = self._not_before_s.get(key, 0.0) - time.monotonic()
            if pause_s > 0:
                return pause_s
            if key not in self._calls and not self._stopping.is_set():
                thread = threading.Thread(
                    target=self._call, args=(key, names), name="commitment-report", daemon=True
                )
                self._calls[key] = thread
                thread.start()
        return self._idle_seconds

    def _call(self, key: str, names: list[str]) -> None:
        peer = self._peers[key]
        tried, failure = 0, ""
        call = CommitmentCall(
            peer, ae_title=self._ae_title, timeouts=self._timeouts, tls_context=self._tls_context
        )
        with self._lock:
            self._open.add(call)
        try:
            with call:
                for name in names:
                    if self._stopping.is_set():
                        break
                    pending = self._desk.folder.claim(name)
                    if pending is not None:
                        tried += 1
                        failure = self._tell(call, pending) or failure
        except Exception as error:
            log_without_values(_LOG, "a storage commitment report was not sent", error)
            failure = "internal error"
        self._ended(key, call, tried, failure)

    def _tell(self, call: CommitmentCall, pending: PendingCommitment) -> str:
        """Report one request; gives what went wrong, or nothing."""
        # Later than its acceptance even if the clock was set back, or it would never count as tried.
        attempted_s = max(self._desk.clock(), pending.accepted_at.timestamp() + 1e-3)
        self._desk.folder.touch(pending.file_name, attempted_s)
        try:
            failure = call.report(self._desk, pending)
            if not failure:
                self._desk.reported(pending)
            return failure
        finally:
            self._desk.folder.release(pending.file_name)

    def _ended(self, key: str, call: CommitmentCall, tried: int, failure: str) -> None:
        peer = self._peers[key]
        if failure and not self._stopping.is_set():
            _LOG.warning(
                "storage commitment: %r at %s port %d could not be told, and will be called again: %s",
                peer.ae_title,
                peer.host,
                peer.port,
                failure,
            )
        with self._lock:
            self._open.discard(call)
            del self._calls[key]
            if failure:
                self._not_before_s[key] = time.monotonic() + self._schedule.least_s
        if tried:  # more may have come meanwhile; where nothing was tried, others have it at work
            self._wake.set()

    def _give_up(self, report: WaitingReport) -> None:
        pending = self._desk.folder.claim(report.file_name)
        if pending is not None:
            _LOG.error(
                "storage commitment: %r at %s could not be told in %.0f h and never will be; %s is set aside",
                pending.calling_ae_title,
                pending.host,
                self._schedule.give_up_s / 3600,
                pending.file_name,
            )
            self._desk.folder.give_up(report.file_name)

    def _warn(self, report: WaitingReport) -> None:
        """Say once what to set for a peer that waits for a report and cannot be called."""
        if report.peer in self._warned:
            return
        pending = self._desk.folder.claim(report.file_name)
        if pending is None:
            return
        self._desk.folder.release(report.file_name)
        self._warned.add(report.peer)
        _LOG.warning(
            "storage commitment: %r at %s waits for a report and cannot be called: set port, at which it takes "
            "storage commitment reports, in its [[peers]] entry; until then its reports are kept for %.0f h",
            pending.calling_ae_title,
            pending.host,
            self._schedule.give_up_s / 3600,
        )
