"""Receiving in several processes, with the processes: what is handed out, handed back, and outlives a death."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from ich_node.errors import ConfigurationError
from ich_node.receive import processes, receiving_process
from ich_node.receive.limits import Limits
from ich_node.receive.listener import Endpoint
from ich_node.receive.processes import HandedOn, ReceivingProcesses, default_processes
from ich_node.receive.received import AssociationSummary, ReceivedInstance
from ich_node.receive.receiving_process import KeepOut, Messages, ScpOptions
from ich_node.receive.spool import Spool
from ich_node.receive.tls import TlsFiles, client_context
from tests.bare_peer import A_ABORT, A_ASSOCIATE_AC, BarePeer, associate_rq
from tests.certificates import Authority
from tests.small_objects import ROOT, encoded, small_object

DEADLINE_S = 60.0
LOCAL = Endpoint(host="127.0.0.1", port=0)


@dataclass
class Desk:
    """Receiving processes and what they have handed on."""

    receiving: ReceivingProcesses
    spool: Spool
    received: list[ReceivedInstance] = field(default_factory=list)
    ended: list[AssociationSummary] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    losses: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    open: threading.Event = field(default_factory=threading.Event)
    """While it is not set, nothing is taken over."""

    def take(self, what: HandedOn) -> None:
        self.open.wait(DEADLINE_S)
        with self.changed:
            if isinstance(what, ReceivedInstance):
                self.received.append(what)
            else:
                self.ended.append(what)
            self.changed.notify_all()

    def lose(self) -> None:
        with self.changed:
            self.losses += 1
            self.changed.notify_all()

    def wait_until(self, holds: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, DEADLINE_S)

    def peer(self, **options: Any) -> BarePeer:
        return BarePeer.associated(self.receiving.ports[-1 if options else 0], **options)

    def store(self, peer: BarePeer, **changes: Any) -> int:
        """Send an object; gives its status."""
        dataset = small_object(**changes)
        status = peer.store(str(dataset.SOPInstanceUID), encoded(dataset))
        if status == 0:
            self.acknowledged.append(dataset.SOPInstanceUID)
        return status

    def children(self) -> list[int]:
        return [child.process_id for child in self.receiving._children]


def options(folder: Path, **changes: Any) -> ScpOptions:
    values: dict[str, Any] = {
        "ae_title": "ICH_NODE",
        "spool_dir": folder / "spool",
        "commitment_dir": folder / "commitment",
        "limits": Limits(),
    }
    return ScpOptions(**{**values, **changes})


OpenDesk = Callable[..., Desk]


@pytest.fixture
def open_desk(tmp_path: Path) -> Iterator[OpenDesk]:
    desks: list[Desk] = []

    def start(count: int, endpoints: tuple[Endpoint, ...] = (LOCAL,), **changes: Any) -> Desk:
        receiving = ReceivingProcesses(
            options(tmp_path, **changes),
            endpoints,
            processes=count,
            on_handed_on=lambda what: desk.take(what),
            on_loss=lambda: desk.lose(),
        )
        desk = Desk(receiving=receiving, spool=Spool(tmp_path / "spool"))
        desk.open.set()
        desks.append(desk)
        receiving.start()
        return desk

    yield start
    for desk in desks:
        desk.open.set()
        desk.receiving.stop()


def wait_for_death(pid: int) -> None:
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([watched], [], [], DEADLINE_S)[0], f"process {pid} goes on"
    finally:
        os.close(watched)


def test_connections_are_spread_and_everything_is_handed_on_at_the_end(
    open_desk: OpenDesk, tmp_path: Path
) -> None:
    files = Authority(tmp_path).issue("node.example")
    desk = open_desk(2, (LOCAL, Endpoint(host="127.0.0.1", port=0, tls=True)), tls=files)
    children = desk.children()
    with ExitStack() as stack:
        peers = [stack.enter_context(desk.peer()) for _ in range(3)]
        peers.append(stack.enter_context(desk.peer(context=client_context(files))))
        for peer in peers:
            assert peer.echo() == 0
            assert desk.store(peer) == 0
        assert desk.receiving._register.count_by_process() == dict.fromkeys(children, 2)
        assert desk.receiving.associations() == 4
        desk.wait_until(lambda: len(desk.received) == 4)
        assert len({one.association_id for one in desk.received}) == 4
        assert {one.source_ae_title for one in desk.received} == {"SCANNER"}

        for peer in (peers[0], peers[2]):  # of one process, as the two took turns
            peer.release()
        desk.wait_until(lambda: len(desk.ended) == 2)
        assert list(desk.receiving._register.count_by_process().values()) == [2]
        peers[0], peers[2] = (stack.enter_context(desk.peer()) for _ in range(2))
        assert desk.receiving._register.count_by_process() == dict.fromkeys(children, 2)

        refuse_and_admit(desk, *peers[:2])

        # What was acknowledged and not handed on yet, when the end comes.
        peers[3].connection.close()
        desk.wait_until(lambda: len(desk.ended) == 3)
        desk.open.clear()
        assert [desk.store(peer) for peer in peers[:3]] == [0, 0, 0]
        stopping = threading.Thread(target=desk.receiving.stop)
        stopping.start()
        assert [peer.answer()[0] for peer in peers[:3]] == [A_ABORT] * 3
        assert stopping.is_alive()
        desk.open.set()
        stopping.join(DEADLINE_S)
    received = [one.instance.sop_instance_uid for one in desk.received]
    assert sorted(received) == sorted(desk.acknowledged)
    assert [summary.released for summary in desk.ended] == [True] * 2 + [False] * 4
    assert sum(summary.stored for summary in desk.ended) == len(received)
    assert desk.losses == 0
    for pid in children:
        wait_for_death(pid)


def refuse_and_admit(desk: Desk, *peers: BarePeer) -> None:
    """What is told to one process is told to all of them."""
    for keep_out in (
        KeepOut(spent_peers=frozenset({"SCANNER"})),
        KeepOut(full_studies=frozenset({f"{ROOT}.1"})),
    ):
        for told, status in ((keep_out, 0xA700), (KeepOut(), 0x0000)):
            desk.receiving.keep_out(told)
            until = time.monotonic() + DEADLINE_S
            for peer in peers:
                while desk.store(peer) != status:  # obeyed at once, but not at this instant
                    assert time.monotonic() < until


def test_a_process_that_dies_is_replaced_and_what_it_had_open_is_reported(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_RESTART_SECONDS", 0.05)
    desk = open_desk(1, limits=Limits(max_associations=1))
    desk.receiving.keep_out(KeepOut(spent_peers=frozenset({"OTHER"})))
    (killed,) = desk.children()
    peer = desk.peer()
    assert desk.store(peer, SeriesInstanceUID=f"{ROOT}.2.7") == 0
    desk.wait_until(lambda: len(desk.received) == 1)
    os.kill(killed, signal.SIGKILL)
    assert peer.answer() == (0, b"")
    desk.wait_until(lambda: desk.losses == 1 and len(desk.ended) == 1)
    (summary,) = desk.ended
    assert summary.association_id == desk.received[0].association_id
    assert summary.calling_ae_title == "SCANNER"
    assert not summary.released
    assert summary.series_instance_uids == (f"{ROOT}.2.7",)
    peer.connection.close()

    # Its place is free again, though it never gave it back, and its successor has been told what it was told.
    until = time.monotonic() + DEADLINE_S
    while True:
        with BarePeer(desk.receiving.ports[0]) as again:
            again.send(associate_rq(calling=b"OTHER"))
            kind, _ = again.answer()
            if kind == A_ASSOCIATE_AC:
                assert desk.store(again) == 0xA700
                break
        assert time.monotonic() < until
    assert desk.children() != [killed]
    assert desk.receiving._register.count_by_process().keys() <= set(desk.children())


def test_a_failing_hand_over_is_a_loss_and_one_that_hangs_does_not_hold_up_the_end(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk(1)
    with desk.peer() as peer:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(desk, "take", lambda _: 1 / 0)
            assert desk.store(peer) == 0
            desk.wait_until(lambda: desk.losses == 1)
        assert desk.store(peer) == 0
        desk.wait_until(lambda: len(desk.received) == 1)
        desk.open.clear()
        assert desk.store(peer) == 0
    monkeypatch.setattr(processes, "_STOP_SECONDS", 0.2)
    desk.receiving.stop()
    assert not desk.open.is_set()
    for pid in desk.children():
        wait_for_death(pid)


_PARENT = """
import sys
from pathlib import Path
from ich_node.receive.limits import Limits
from ich_node.receive.listener import Endpoint
from ich_node.receive.processes import ReceivingProcesses
from ich_node.receive.receiving_process import ScpOptions
folder = Path(sys.argv[1])
receiving = ReceivingProcesses(
    ScpOptions(ae_title="ICH_NODE", spool_dir=folder / "spool", commitment_dir=folder / "commitment",
               limits=Limits()),
    [Endpoint(host="127.0.0.1", port=0)], processes=2, on_handed_on=lambda _: None, on_loss=lambda: None)
receiving.start()
print(receiving.ports[0], *(child.process_id for child in receiving._children), flush=True)
sys.stdin.read()
"""


def an_object() -> tuple[str, bytes]:
    dataset = small_object()
    return str(dataset.SOPInstanceUID), encoded(dataset)


def test_the_processes_end_with_the_one_that_listens(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        port, *children = map(int, parent.stdout.readline().split())
        assert len(children) == 2
        with BarePeer.associated(port) as peer:
            assert peer.store(*an_object()) == 0
            for child in children:
                os.kill(child, signal.SIGINT)  # Ctrl-C goes to all of a terminal's processes
                os.kill(child, signal.SIGTERM)
            assert peer.store(*an_object()) == 0
            parent.kill()
            for child in children:
                wait_for_death(child)
            assert peer.answer()[0] in (0, A_ABORT)  # as it dies, it may say so or not
    assert len(list(Spool(tmp_path / "spool").scan())) == 2


def test_an_address_that_is_taken_is_said_plainly_before_anything_is_started(
    open_desk: OpenDesk, tmp_path: Path
) -> None:
    leftover = tmp_path / "spool" / "incoming" / "1-1-aa.part"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}"):
            open_desk(2, (Endpoint(host="127.0.0.1", port=port),))
    assert leftover.exists()  # it may be the other one's


def test_files_of_tls_that_do_not_fit_are_said_before_anything_is_started(
    open_desk: OpenDesk, tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    mixed = TlsFiles(
        certificate=authority.issue("node.example").certificate,
        key=other.issue("node.example").key,
        ca=authority.file,
    )
    with pytest.raises(ConfigurationError, match="key"):
        open_desk(1, tls=mixed)


def test_processes_that_do_not_start_are_said(
    open_desk: OpenDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_START_SECONDS", 3.0)
    (tmp_path / "commitment").write_text("where a folder should be")
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="no receiving process"):
        open_desk(1)
    assert time.monotonic() - began < 30


def test_there_are_as_many_processes_as_cores_but_not_too_many() -> None:
    assert 1 <= default_processes() <= 4
    assert default_processes() <= len(os.sched_getaffinity(0))


# messages between the processes


def test_messages_that_come_together_go_together_and_in_order() -> None:
    taking, giving = Pipe(duplex=False)
    messages = Messages(giving)
    for number in range(100):
        messages.send(number)
    messages.close()
    giving.close()
    lists: list[list[int]] = []
    with suppress(EOFError):
        while True:
            lists.append(taking.recv())
    assert [number for several in lists for number in several] == list(range(100))
    assert len(lists) < 50


def test_what_is_sent_at_once_takes_along_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving_process, "_GATHERING_SECONDS", DEADLINE_S * 10)
    taking, giving = Pipe(duplex=False)
    messages = Messages(giving)
    messages.send(1)
    messages.send_at_once(2)
    messages.send_at_once(3)
    received: list[int] = []
    while len(received) < 3:
        assert taking.poll(DEADLINE_S)
        received += taking.recv()
    assert received == [1, 2, 3]
    messages.close()


def test_whoever_says_too_much_to_a_process_that_does_not_listen_waits() -> None:
    taking, giving = Pipe(duplex=False)
    messages = Messages(giving)
    many = threading.Thread(target=lambda: [messages.send(bytes(1000)) for _ in range(3000)], daemon=True)
    many.start()
    many.join(1.0)
    assert many.is_alive()
    assert len(messages._waiting) <= 200
    count = 0
    while count < 3000:
        count += len(taking.recv())
    many.join(DEADLINE_S)
    assert not many.is_alive()
    messages.close()
