"""The receiver dies, and the disk fills up, while senders send: acknowledged is on disk, whole, exactly once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bare_peer import (
    COMMAND,
    DATA,
    LAST,
    STORE_CONTEXT,
    BarePeer,
    associate_rq,
    p_data,
    pdv,
    store_rq,
)
from tests.receiver_process import ReceiverProcess, is_running, running_receiver, wait_until
from tests.small_objects import data_set_of, encoded, small_object

ROUNDS = int(os.environ.get("ICH_NODE_CRASH_ROUNDS", "50"))
SEED = int(os.environ.get("ICH_NODE_CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
SENDERS = 4
OBJECT_BYTES = (128, 2_000, 60_000, 300_000)
WAIT_S = 60.0
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700


@dataclass
class Journal:
    """What the senders sent, and what was acknowledged."""

    sent: dict[str, str] = field(default_factory=dict)
    """SOP Instance UID by SHA-256 of the data set."""
    acknowledged: set[str] = field(default_factory=set)
    """SHA-256 of the data sets."""
    resent: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more objects are acknowledged."""
        with self.changed:
            wanted = len(self.acknowledged) + count
            assert self.changed.wait_for(lambda: len(self.acknowledged) >= wanted, WAIT_S), "no progress"


class Sender(threading.Thread):
    """Sends objects one after the other, and each again until it is acknowledged."""

    def __init__(self, number: int, port: int, journal: Journal) -> None:
        super().__init__(name=f"sender-{number}", daemon=True)
        self._request = associate_rq(calling=f"CT{number}".encode())
        self._random = random.Random(SEED + number)
        self._port = port
        self._journal = journal
        self._stopping = threading.Event()
        self._peer: BarePeer | None = None

    def stop(self) -> None:
        """End when the object at hand is acknowledged."""
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            pixels = self._random.randbytes(self._random.choice(OBJECT_BYTES))
            dataset = small_object(PixelData=pixels)
            self._deliver(dataset.SOPInstanceUID, encoded(dataset))
        if self._peer is not None:
            self._peer.release()
            self._peer.connection.close()

    def _deliver(self, uid: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        self._journal.sent[digest] = uid
        while not self._is_taken(uid, content):
            self._journal.resent += 1
            self._stopping.wait(0.05)
        with self._journal.changed:
            self._journal.acknowledged.add(digest)
            self._journal.changed.notify_all()

    def _is_taken(self, uid: str, content: bytes) -> bool:
        try:
            if self._peer is None:
                self._peer = BarePeer.associated(self._port, self._request)
            return self._peer.store(uid, content) == SUCCESS
        except (OSError, AssertionError):  # it is gone, or aborts
            if self._peer is not None:
                self._peer.connection.close()
            self._peer = None
            return False


@contextlib.contextmanager
def senders(port: int, journal: Journal) -> Iterator[None]:
    """Some that send until the end of the block, and have all of their objects acknowledged after it."""
    running = [Sender(number, port, journal) for number in range(SENDERS)]
    for sender in running:
        sender.start()
    try:
        yield
    finally:
        for sender in running:
            sender.stop()
        for sender in running:
            sender.join(WAIT_S)
    assert not any(sender.is_alive() for sender in running)


class Ledger:
    """Looks at the spool from outside, at each file once."""

    def __init__(self, receiver: ReceiverProcess, journal: Journal) -> None:
        self._receiver, self._journal = receiver, journal
        self._looked_at: dict[Path, str] = {}

    def check(self) -> None:
        """Every file is what was sent, each once, and nothing acknowledged is missing."""
        acknowledged = set(self._journal.acknowledged)  # before the look: it may grow meanwhile
        for path in self._receiver.objects():
            if path not in self._looked_at:
                digest = hashlib.sha256(data_set_of(path)).hexdigest()
                assert digest in self._journal.sent, f"{path.name} is nothing that was sent"
                self._looked_at[path] = digest
        once = Counter(self._looked_at.values())
        assert [digest for digest, count in once.items() if count > 1] == []
        assert acknowledged - set(once) == set(), "acknowledged and lost"

    def check_rows(self) -> None:
        """Every object has its row, and every row its object."""
        rows = self._receiver.wait_for_rows(len(self._looked_at), WAIT_S)
        assert sorted(row["file_name"] for row in rows) == sorted(
            path.relative_to(self._receiver.spool).as_posix() for path in self._looked_at
        )
        assert not any(row["conflict"] for row in rows)
        assert {row["sop_instance_uid"] for row in rows} == {
            self._journal.sent[digest] for digest in self._looked_at.values()
        }


def crash(receiver: ReceiverProcess, dice: random.Random) -> str:
    """Kill something of the receiver, and see to it that it runs again; says what."""
    victims = dice.choices(["all", "one child", "the parent"], [4, 4, 2])[0]
    children = receiver.children()
    if victims == "one child" and children:
        receiver.kill(dice.choice(children))
        return victims
    if victims == "the parent":
        receiver.kill(receiver.pid_now())
        if dice.random() < 0.5:
            wait_until(lambda: not any(map(is_running, children)), "its children have ended")
    else:
        receiver.kill()
    if dice.random() < 0.15:  # and once more while it starts
        receiver.start(wait=False)
        threading.Event().wait(dice.uniform(0, 2.5))
        receiver.kill()
    receiver.start()
    wait_until(lambda: not any(map(is_running, children)), "no process of the earlier receiver runs")
    return victims


@pytest.mark.timeout(900)
def test_kill_9_at_any_moment_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """Set ICH_NODE_CRASH_SEED to the seed that is printed to have the same objects and victims again."""
    print(f"ICH_NODE_CRASH_SEED={SEED} ICH_NODE_CRASH_ROUNDS={ROUNDS}")
    dice, journal = random.Random(SEED), Journal()
    with running_receiver(tmp_path) as receiver:
        ledger, victims = Ledger(receiver, journal), Counter[str]()
        with senders(receiver.port, journal):
            for _ in range(ROUNDS):
                journal.wait_for_more(dice.randint(1, 12))
                threading.Event().wait(dice.uniform(0, 0.02))
                victims[crash(receiver, dice)] += 1
                ledger.check()
        ledger.check()
        receiver.kill()
        ledger.check()
        receiver.start()
        ledger.check_rows()
        assert receiver.unfinished() == []
        assert len(receiver.objects()) == len(journal.acknowledged) == len(journal.sent)
        log = receiver.log
    print(f"{victims}; {len(journal.sent)} objects, sent again {journal.resent} times")
    assert journal.resent >= ROUNDS / 2  # the moments were not idle ones
    if ROUNDS >= 50:
        assert len(victims) == 3
    assert "Traceback" not in log


def test_what_is_half_written_is_removed_at_the_next_start(tmp_path: Path) -> None:
    dataset = small_object(PixelData=bytes(500_000))
    with running_receiver(tmp_path) as receiver:
        with receiver.peer() as peer:
            message = encoded(dataset)
            peer.send(p_data(pdv(STORE_CONTEXT, COMMAND | LAST, store_rq(dataset.SOPInstanceUID))))
            for at in range(0, 320_000, 16_000):
                peer.send(p_data(pdv(STORE_CONTEXT, DATA, message[at : at + 16_000])))
            wait_until(
                lambda: any(p.stat().st_size > 300_000 for p in receiver.unfinished()), "half is there"
            )
            receiver.kill()
        assert len(receiver.unfinished()) >= 1
        receiver.start()
        assert receiver.unfinished() == []
        assert receiver.objects() == []
        assert "objects that were not completely received" in receiver.log
        with receiver.peer() as peer:
            assert peer.store(dataset.SOPInstanceUID, message) == SUCCESS
            peer.release()


def test_children_do_not_outlive_their_parent(tmp_path: Path) -> None:
    """Not even one that hangs: it would acknowledge objects that nobody makes rows of."""
    with running_receiver(tmp_path) as receiver:
        children = receiver.children()
        assert len(children) >= 1
        os.kill(children[0], signal.SIGSTOP)
        receiver.kill(receiver.pid_now())
        wait_until(lambda: not any(map(is_running, children)), "the children have ended", 10.0)


def test_a_child_that_dies_is_replaced_and_its_rows_are_made(tmp_path: Path) -> None:
    with running_receiver(tmp_path) as receiver:
        before = receiver.children()
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(receiver.peer()) for _ in before * 3]  # some with each process
            uids = {store(peer) for peer in peers}
            receiver.kill(before[0])
        uids |= {store_at(receiver)}  # by another, or by the new one
        wait_until(lambda: len(set(receiver.children()) - set(before)) == 1, "another process has started")
        wait_until(lambda: uids <= {row["sop_instance_uid"] for row in receiver.rows()}, "rows are made")
        assert "has died and is started again" in receiver.log


def store(peer: BarePeer) -> str:
    """Send an object; gives its SOP Instance UID."""
    dataset = small_object()
    assert peer.store(dataset.SOPInstanceUID, encoded(dataset)) == SUCCESS
    return str(dataset.SOPInstanceUID)


def store_at(receiver: ReceiverProcess) -> str:
    with receiver.peer() as peer:
        return store(peer)


# the disk


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """A file system of that size; where none can be mounted the test is skipped."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


@pytest.mark.parametrize("place", ["data", "data/spool"])
def test_a_full_disk_refuses_and_nothing_acknowledged_is_lost(tmp_path: Path, place: str) -> None:
    """With the database on the same disk, and on another; free space is not watched, so that it fills up."""
    disk = tmp_path / place
    with small_disk(disk, 64), running_receiver(tmp_path) as receiver:
        filler = disk / "filler"
        filler.write_bytes(bytes(free_bytes(disk) - 3 * 2**20))
        journal, statuses = {}, []
        with receiver.peer() as peer:
            for _ in range(60):
                dataset = small_object(PixelData=os.urandom(200_000))
                content = encoded(dataset)
                statuses.append(peer.store(dataset.SOPInstanceUID, content))
                if statuses[-1] == SUCCESS:
                    journal[dataset.SOPInstanceUID] = content
            assert set(statuses) == {SUCCESS, OUT_OF_RESOURCES}
            assert statuses[-1] == OUT_OF_RESOURCES
            assert peer.echo() == 0
            assert sorted(map(data_set_of, receiver.objects())) == sorted(journal.values())
            assert "0xA700 cannot write: No space left on device" in receiver.log
            filler.unlink()
            for _ in range(10):
                dataset = small_object(PixelData=os.urandom(200_000))
                journal[dataset.SOPInstanceUID] = encoded(dataset)
                assert peer.store(dataset.SOPInstanceUID, journal[dataset.SOPInstanceUID]) == SUCCESS
            peer.release()
        assert sorted(map(data_set_of, receiver.objects())) == sorted(journal.values())
        rows = receiver.wait_for_rows(len(journal), WAIT_S)
        assert {row["sop_instance_uid"] for row in rows} == set(journal)
        wait_until(lambda: receiver.unfinished() == [], "nothing unfinished is left")


def test_new_objects_are_refused_before_the_disk_is_full(tmp_path: Path) -> None:
    disk, mark = tmp_path / "data", 32 * 2**20
    settings = f"[disk]\nmin_free_gib = {mark / 2**30}\n"
    with small_disk(disk, 64), running_receiver(tmp_path, settings) as receiver, receiver.peer() as peer:

        def status() -> int:
            dataset = small_object(PixelData=os.urandom(20_000))
            return peer.store(dataset.SOPInstanceUID, encoded(dataset))

        assert status() == SUCCESS
        filler = disk / "filler"
        filler.write_bytes(bytes(free_bytes(disk) - mark - 2**20))
        taken = 0
        while status() == SUCCESS:
            taken += 1
            assert free_bytes(disk) > mark / 2, "it goes on below the mark"
        assert free_bytes(disk) > mark / 2
        assert peer.echo() == 0
        before = len(receiver.objects())
        assert [status() for _ in range(5)] == [OUT_OF_RESOURCES] * 5
        assert len(receiver.objects()) == before
        assert "new objects are refused until" in receiver.log
        assert "0xA700 disk is nearly full" in receiver.log
        filler.unlink()
        wait_until(lambda: status() == SUCCESS, "receiving resumes by itself", 10.0)
        assert "new objects are accepted again" in receiver.log
        peer.release()
