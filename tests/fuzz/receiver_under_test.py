"""A receiver that is talked to over real connections, and what must hold after each of them."""

from __future__ import annotations

import gc
import os
import re
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from ich_node.receive.commitment import CommitmentDesk
from ich_node.receive.commitment_results import CommitmentResults
from ich_node.receive.limits import Limits
from ich_node.receive.received import AssociationSummary, ReceivedInstance, read_received
from ich_node.receive.register import AssociationRegister
from ich_node.receive.scp import StorageScp
from ich_node.receive.spool import Spool
from ich_node.receive.upper_layer import StorageAssociation
from tests.fuzz import wire
from tests.fuzz.conversations import AE_TITLE, seed_conversations
from tests.fuzz.expected import Answers, Finding, Request, check_answers, read_answers, read_requests
from tests.fuzz.log_keeper import LogKeeper

DEADLINE_S = 60.0
"""A conversation of a few milliseconds that takes longer hangs."""
LIMITS = Limits(
    max_object_bytes=2**17,
    max_association_bytes=2**18,
    max_pdu_bytes=65536,
    network_timeout_s=DEADLINE_S * 2,
    acse_timeout_s=DEADLINE_S * 2,
)
"""Small, so that what exceeds them is cheap; no time-out that could pass for an end."""
_RESET = struct.pack("ii", 1, 0)
_FITS_INTO_SOCKET_BYTES = 50_000
_IP_BIND_ADDRESS_NO_PORT = 24


_Key: TypeAlias = tuple[bytes, str, bytes]
"""SOP Instance UID, transfer syntax and bytes of an object."""


class Delivery(StrEnum):
    """How the bytes of a conversation come."""

    AT_ONCE = "at once"
    """They lie in the socket before the receiver looks, then the sender says no more and listens."""
    IN_CHUNKS = "in chunks"
    """The receiver waits for them already."""
    VANISHING = "vanishing"
    """The sender resets the connection instead of listening."""


class ReceiverUnderTest:
    """The real one: its state machine, message reader, arrival and spool, and a thread per connection.

    What is left out is the listener, which sees no byte of a conversation.

    Parameters
    ----------
    folder
        For the spool. In memory, it makes a case ten times quicker.
    """

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder / "spool")
        self._incoming = folder / "spool" / "incoming"
        self._commitments = folder / "commitments"
        self._results = CommitmentResults(folder / "results")
        self._received: list[ReceivedInstance] = []
        self._ended: list[AssociationSummary] = []
        self._register = AssociationRegister(LIMITS)
        self.desk = CommitmentDesk(self._commitments, self.spool)
        self._scp = StorageScp(
            ae_title=AE_TITLE,
            spool=self.spool,
            on_instance=self._received.append,
            on_association_end=self._ended.append,
            limits=LIMITS,
            register=self._register,
            commitment=self.desk,
            results=self._results,
        )
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(DEADLINE_S)
        self._log = LogKeeper()
        self._serial = 0
        gc.collect()
        self._resources_at_start = resources()
        self.answered = 0
        """Requests that were answered so far."""
        self.stored = 0
        """Objects that were acknowledged so far."""
        self.accepted = 0
        """Associations that were accepted so far."""

    def watched(self) -> AbstractContextManager[None]:
        """Listen to every log and warning of this process."""
        return self._log.listening()

    def close(self) -> None:
        """Stop it."""
        self._scp.stop()
        self._server.close()
        os.close(self._register.descriptor)

    def converse(
        self, stream: bytes, delivery: Delivery = Delivery.AT_ONCE, chunks: Sequence[bytes] = ()
    ) -> Answers:
        """Send a conversation, listen to the end, and check everything that must hold.

        Parameters
        ----------
        stream
            All that the sender says.
        delivery
            How it comes.
        chunks
            The stream in pieces, where it comes so.

        Raises
        ------
        Finding
            Something does not hold.
        """
        try:
            with self.connection() as (client, server):
                answers = self._exchange(client, server, stream, delivery, chunks)
            self._wait_for_threads()
            self._check(stream, answers, heard_all=delivery is not Delivery.VANISHING)
        finally:
            self._wait_for_threads()
            self._clean_up()
        return answers

    def _exchange(
        self,
        client: socket.socket,
        server: socket.socket,
        stream: bytes,
        delivery: Delivery,
        chunks: Sequence[bytes],
    ) -> Answers:
        if delivery is Delivery.AT_ONCE and len(stream) <= _FITS_INTO_SOCKET_BYTES:
            self._say(client, stream)
            self.serve(server)
        else:
            self.serve(server)
            for chunk in chunks or (stream,):
                self._say(client, chunk)
        if delivery is Delivery.VANISHING:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return Answers()
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        return read_answers(self.listen(client))

    @contextmanager
    def connection(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Both ends of a connection over loopback, the sender's first. Each from an address of its own.

        Otherwise a million of them would wait for free ports, which are kept back for a minute each.
        """
        client = socket.socket()
        try:
            client.settimeout(DEADLINE_S)
            client.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            self._serial += 1
            client.bind((f"127.{1 + self._serial // 200 % 50}.1.{1 + self._serial % 200}", 0))
            client.connect(self._server.getsockname())
            server, _ = self._server.accept()
            server.settimeout(None)
            yield client, server
        finally:
            client.close()

    def serve(self, server: socket.socket) -> None:
        """Let the receiver have its end."""
        if not self._scp.serve(server):
            raise Finding("the receiver takes no more connections")

    def listen(self, client: socket.socket) -> bytes:
        """Everything that the receiver says until it closes."""
        heard = bytearray()
        patience = 2  # this process may have been stopped for longer than the deadline
        while patience:
            try:
                chunk = client.recv(65536)
            except TimeoutError:
                patience -= 1
                continue
            except ConnectionError:
                return bytes(heard)
            if not chunk:
                return bytes(heard)
            heard += chunk
        raise Finding(f"the receiver hangs\n{_stacks()}")

    def _wait_for_threads(self) -> None:
        """Wait until no connection is served any more."""
        for thread in threading.enumerate():
            if thread.name == "association":
                thread.join(DEADLINE_S)
                if thread.is_alive():
                    raise Finding(f"the receiver hangs\n{_stacks()}")

    def _check(self, stream: bytes, answers: Answers, *, heard_all: bool) -> None:
        """Check what must hold when a conversation is over."""
        self.check_log()
        self._check_resources()
        accepted = answers.accepted if heard_all else _AnyContext()
        requests, must_abort = read_requests(stream, accepted)
        if heard_all:
            if must_abort and not answers.aborted:
                raise Finding("a violation of the protocol did not end the association with A-ABORT")
            check_answers(requests, answers)
            self._check_handed_on(answers)
            self._check_spool(requests, answers)
            self._check_results(answers)
        else:
            self._check_whole(requests)
        self.accepted += answers.accepted is not None
        self.answered += len(answers.responses)
        self.stored += sum(r.field == wire.C_STORE_RSP and r.status == 0 for r in answers.responses)

    def check_rest(self) -> None:
        """Check that nothing is left of connections that are over, and forget what they brought."""
        self._wait_for_threads()
        self.check_log()
        self._check_resources()
        self._received.clear()
        self._ended.clear()

    def check_node(self) -> None:
        """Check what is too slow for every case: strays, leaks, and that valid conversations succeed."""
        if strays := [path.name for path in self.spool.scan()]:
            raise Finding(f"{len(strays)} files in the spool belong to no object that was sent whole")
        for conversation in seed_conversations():
            stream = b"".join(pdu for step in conversation for pdu in step.pdus())
            answers = self.converse(stream)
            if answers.accepted is None or answers.aborted:
                raise Finding("a valid conversation is refused")
            if any(response.status for response in answers.responses):
                raise Finding("a valid request is refused")
        gc.collect()
        if left := sum(isinstance(thing, StorageAssociation) for thing in gc.get_objects()):
            raise Finding(f"{left} associations are kept in memory")
        now = resources()
        if any(more > before for more, before in zip(now, self._resources_at_start, strict=True)):
            raise Finding(f"descriptors and threads were {self._resources_at_start} and are {now}")

    def _say(self, client: socket.socket, words: bytes) -> None:
        try:
            client.sendall(words)
        except TimeoutError:
            raise Finding(f"the receiver does not read on\n{_stacks()}") from None
        except ConnectionError:
            pass  # it has aborted

    def check_log(self) -> None:
        """Check what was logged since the last case."""
        faults, self._log.faults = self._log.faults, []
        if faults:
            raise Finding(faults[0])

    def _check_resources(self) -> None:
        if self._scp.connections:
            raise Finding("a connection is counted that is over")
        if self._register.count():
            raise Finding("an association keeps its place")
        if os.listdir(self._incoming):  # noqa: PTH208 - names are enough
            raise Finding("an unfinished file is left in the spool")
        if self.desk.folder._claims:
            raise Finding("a storage commitment request stays claimed")

    def _check_handed_on(self, answers: Answers) -> None:
        stored = [r for r in answers.responses if r.field == wire.C_STORE_RSP and r.status == 0]
        if len(self._received) != len(stored):
            raise Finding(f"{len(stored)} objects were acknowledged, {len(self._received)} handed on")
        if len(self._ended) != (answers.accepted is not None):
            raise Finding(f"the end of an association was reported {len(self._ended)} times")

    def _check_spool(self, requests: list[Request], answers: Answers) -> None:
        """What was acknowledged is there with the bytes that were sent; what was refused is not."""
        stores = [request for request in requests if request.field == wire.C_STORE_RQ]
        statuses = [r.status for r in answers.responses if r.field == wire.C_STORE_RSP]
        due = {
            _key(request, answers) for request, status in zip(stores, statuses, strict=False) if status == 0
        }
        found = {key for request in stores for key in self._found(request.sop_instance_uid)}
        if due - found:
            raise Finding("an object that was acknowledged is not in the spool, or not as it was sent")
        if found - due:
            raise Finding("an object is in the spool that was not acknowledged")
        for received in self._received:
            again = read_received(self.spool, received.spooled.path)
            if (again.instance, again.study) != (received.instance, received.study):
                raise Finding("a header says another thing when it is read back")

    def _check_results(self, answers: Answers) -> None:
        """A report that was answered with success is kept, and no other.

        An association that is aborted may take the answer with it: the report is made again then, and kept once.
        """
        taken = any(r.field == wire.N_EVENT_REPORT_RSP and r.status == 0 for r in answers.responses)
        kept = bool(self._results.read())
        if taken and not kept:
            raise Finding("a storage commitment report was answered with success and is not kept")
        if kept and not taken and not answers.aborted:
            raise Finding("a storage commitment report was kept and not answered with success")

    def _found(self, sop_instance_uid: bytes) -> Iterator[_Key]:
        """What the spool holds under a UID."""
        for path in self.spool.files_of(sop_instance_uid.decode("ascii", "replace")):
            content = path.read_bytes()
            at = end_of_meta(content)
            syntax = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", content[:at], re.DOTALL)
            yield sop_instance_uid, syntax[1].decode() if syntax else "", content[at:]

    def _check_whole(self, requests: list[Request]) -> None:
        sent = {(request.sop_instance_uid, request.data) for request in requests}
        for received in self._received:
            uid = received.instance.sop_instance_uid.encode()
            content = received.spooled.path.read_bytes()
            if (uid, content[end_of_meta(content) :]) not in sent:
                raise Finding("an object in the spool was not sent, or not whole")

    def _clean_up(self) -> None:
        """Leave nothing of a conversation to the next one."""
        for received in self._received:
            received.spooled.path.unlink(missing_ok=True)
        for kept_in in (self._commitments, self._results.root):
            for name in os.listdir(kept_in):  # noqa: PTH208 - as above
                if name != ".lock":
                    (kept_in / name).unlink()
        for kept in (self._received, self._ended):
            kept.clear()


class _AnyContext(dict[int, str]):
    def __contains__(self, key: object) -> bool:
        return True


def resources() -> tuple[int, int]:
    """Open descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _key(request: Request, answers: Answers) -> _Key:
    assert answers.accepted is not None
    return request.sop_instance_uid, answers.accepted[request.context_id], request.data


def end_of_meta(content: bytes) -> int:
    """Where the data set of a DICOM file begins (PS3.10 section 7.1)."""
    if content[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00":
        raise Finding("a file in the spool does not begin as a DICOM file")
    return 144 + int.from_bytes(content[140:144], "little")


def _stacks() -> str:
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        "".join(traceback.format_stack(frame)[-6:])
        for ident, frame in frames.items()
        if names.get(ident) == "association"
    )
