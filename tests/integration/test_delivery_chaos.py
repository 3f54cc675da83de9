"""Two hundred studies for two PACS to which befalls what befalls PACS: each ends with exactly one set of them."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import Comprehensive3DSRStorage
from sqlalchemy import update

from ich_node.confirmation_job import has_answers, take_answers
from ich_node.database import outbox
from ich_node.database.engine import Database
from ich_node.database.outbox import DeliveryRecord
from ich_node.database.tables import OutboxRow
from ich_node.delivery_job import Deliverer, deliver_due
from ich_node.node import Node
from ich_node.receive.commitment import CommitmentDesk
from ich_node.receive.commitment_results import CommitmentResults, results_folder
from ich_node.receive.receiver import Receiver
from ich_node.receive.spool import Spool
from ich_node.settings import PacsSettings, ReceiverSettings, Settings
from ich_node.testing.pacs import DemoPacs
from tests.integration.test_deliver import free_port, is_listening, running
from tests.small_objects import data_set_of
from tests.stored_studies import StoredStudies, picture

STUDIES = 200
THREADS = 8
NODE_TITLE = "ICH_TEST"
DEADLINE_S = 60.0


class Line:
    """The network before a PACS: it passes bytes on, slowly if told so, cuts connections, or swallows them."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.seconds_per_piece = 0.0
        self.cut_after: int | None = None
        """Bytes to the PACS on each connection."""
        self.is_dead = False
        """What is sent disappears, and nothing is answered."""
        self.cuts = 0
        self.swallowed = 0
        self._dead: list[socket.socket] = []
        threading.Thread(target=self._accept, name="line", daemon=True).start()

    def revive(self) -> None:
        """Carry again; what was sent into the void is reset."""
        self.is_dead = False
        for connection in self._dead:
            connection.close()

    def close(self) -> None:
        self._server.close()
        self.revive()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:  # closed
                return
            if self.is_dead:
                self.swallowed += 1
                self._dead.append(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._to_port), 5.0)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink, cut_after in ((near, far, self.cut_after), (far, near, None)):
                carry = threading.Thread(target=self._carry, args=(source, sink, cut_after), daemon=True)
                carry.start()

    def _carry(self, source: socket.socket, sink: socket.socket, cut_after: int | None) -> None:
        carried, pause = 0, threading.Event()
        with contextlib.suppress(OSError), source, sink:
            while piece := source.recv(2**14):
                carried += len(piece)
                if cut_after is not None and carried > cut_after:
                    self.cuts += 1
                    break
                pause.wait(self.seconds_per_piece)
                sink.sendall(piece)
            for one in (sink, source):
                with contextlib.suppress(OSError):  # its end is gone already
                    one.shutdown(socket.SHUT_RDWR)


class OrthancProcess:
    """An Orthanc that can be stopped and started again with what it holds."""

    def __init__(self, folder: Path, *, node_port: int) -> None:
        program = shutil.which("Orthanc")
        if program is None:
            pytest.skip("Orthanc is not installed")
        self.dicom_port, self.http_port = free_port(), free_port()
        folder.mkdir()
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "index"),
            "DicomAet": "ORTHANC",
            "DicomPort": self.dicom_port,
            "DicomAlwaysAllowFind": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "SyncStorageArea": False,
            "DicomModalities": {
                "node": {
                    "AET": NODE_TITLE,
                    "Host": "127.0.0.1",
                    "Port": node_port,
                    "AllowStorageCommitment": True,
                }
            },
            "Plugins": [],
        }
        configuration = folder / "orthanc.json"
        configuration.write_text(json.dumps(settings))
        self._command, self._log = [program, str(configuration)], folder / "log"
        self._life = contextlib.ExitStack()

    def start(self) -> None:
        self._life.enter_context(running(self._command, self.dicom_port, self._log))
        wait_for("Orthanc answers", lambda: is_listening(self.http_port))

    def stop(self) -> None:
        self._life.close()

    def rest(self, path: str, *, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", method=method)
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            content: bytes = answer.read()
        return content

    def instances(self) -> dict[str, str]:
        """Its own name for each object, by SOP Instance UID."""
        listed = json.loads(self.rest("/instances?expand"))
        found = Counter(each["MainDicomTags"]["SOPInstanceUID"] for each in listed)
        assert set(found.values()) <= {1}
        return {each["MainDicomTags"]["SOPInstanceUID"]: each["ID"] for each in listed}


class Worker:
    """Delivers from several threads as the worker does, and looks for what is due much more often."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._deliverer = Deliverer(node)
        self._pool = ThreadPoolExecutor(THREADS)
        self._stopped = threading.Event()
        self._looking = threading.Thread(target=self._look, name="reconciler")
        self.faults: list[BaseException] = []

    def __enter__(self) -> Worker:
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._looking.join()
        self._pool.shutdown()

    def _look(self) -> None:
        while not self._stopped.wait(0.1):
            if has_answers(self._node):
                take_answers(self._node)
            with self._node.database.reading() as session:
                due = outbox.destinations_due(session, datetime.now(UTC))
            for destination in due:
                self._pool.submit(self._deliver, destination)

    def _deliver(self, destination: str) -> None:
        try:
            self._deliverer.deliver_due(destination)
        except BaseException as fault:
            self.faults.append(fault)


@cache
def header_of(path: Path) -> Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True)


def index_of(path: Path, **_: Any) -> Dataset:
    """What an archive knows of an object without reading it again."""
    return header_of(path)


def wait_for(what: str, holds: Callable[[], Any], *, meanwhile: Callable[[], None] = lambda: None) -> None:
    pause, end = threading.Event(), time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, what
        meanwhile()
        pause.wait(0.2)


@contextlib.contextmanager
def receiving(node: Node) -> Iterator[None]:
    """The node's receiver, which hears the reports of storage commitment."""
    spool = Spool(node.settings.spool_dir)
    receiver = Receiver(
        ae_title=NODE_TITLE,
        port=node.settings.receiver.port,
        spool=spool,
        on_instance=lambda _: None,
        on_association_end=lambda _: None,
        commitment=CommitmentDesk(node.settings.commitment_dir, spool),
        results=CommitmentResults(results_folder(node.settings.commitment_dir)),
    )
    receiver.start()
    try:
        yield
    finally:
        receiver.stop()


def make_node(folder: Path, node_port: int, ports: dict[str, int]) -> Node:
    titles = {"orthanc": "ORTHANC", "archive": "DEMO_PACS"}
    settings = Settings(
        data_dir=folder / "data",
        receiver=ReceiverSettings(ae_title=NODE_TITLE, port=node_port),
        pacs=tuple(
            PacsSettings(name=name, ae_title=titles[name], host="127.0.0.1", port=port)
            for name, port in ports.items()
        ),
    )
    database = Database(settings.database_url)
    database.upgrade()
    return Node(settings=settings, database=database)


def records(node: Node, destination: str) -> list[DeliveryRecord]:
    with node.database.reading() as session:
        return [r for r in outbox.deliveries(session) if r.destination == destination]


def count_of(node: Node, destination: str, state: str) -> int:
    return sum(record.state == state for record in records(node, destination))


def is_noted(node: Node, destination: str, words: str) -> bool:
    return any(words in (record.note or "") for record in records(node, destination))


def hurry(node: Node) -> None:
    """Let the waits that were set come to their end."""
    with node.database.writing() as session:
        session.execute(
            update(OutboxRow)
            .where(OutboxRow.state.in_(["PENDING", "SENT"]))
            .values(next_attempt_at=datetime.now(UTC))
        )


class Chaos:
    """What befalls two PACS, one thing after the other, each with studies that come meanwhile."""

    def __init__(
        self, node: Node, orthanc: OrthancProcess, archive: DemoPacs, lines: dict[str, Line]
    ) -> None:
        self.node, self.orthanc, self.archive, self.lines = node, orthanc, archive, lines
        self._studies = StoredStudies(database=node.database, results_dir=node.settings.results_dir, slices=1)
        self._read = 0

    def read(self, studies: int) -> None:
        """So many more studies are read, for both."""
        at = datetime.now(UTC)
        for number in range(self._read, self._read + studies):
            self._studies.receive(f"1.2.{number}", at=at)
            self._studies.read(
                f"1.2.{number}",
                at=at,
                suspicion=(0.1, 0.5, 0.9)[number % 3],
                captures=[picture(0, 8)],
                destinations=tuple(self.lines),
            )
        self._read += studies

    def lose(self) -> None:
        """Both take what there is, and lose half of it before they are asked."""
        for name in self.lines:
            deliver_due(self.node, name)
            assert {record.state for record in records(self.node, name)} == {"SENT"}
        for instance in list(self.orthanc.instances().values())[::2]:
            self.orthanc.rest(f"/instances/{instance}", method="DELETE")
        for taken in self.archive.received[::2]:
            taken.path.unlink()

    def until(self, what: str, holds: Callable[[], Any]) -> None:
        """Wait, and let the waits of deliveries come to their end meanwhile."""
        wait_for(what, holds, meanwhile=lambda: hurry(self.node))

    def delivered(self, name: str) -> int:
        return count_of(self.node, name, "DELIVERED")

    def orthanc_gets_all_while_the_archive_is_dead(self) -> None:
        wait_for("Orthanc has all", lambda: self.delivered("orthanc") == 2 * self._read)
        assert self.delivered("archive") == 0
        assert self.lines["archive"].swallowed > 0

    def connections_break(self, name: str) -> None:
        """Each within the data set of a report, be it the only one: no report gets through."""
        line = self.lines[name]
        line.cut_after = 1_500
        self.read(30)
        self.until("connections break", lambda: line.cuts >= 4)
        line.cut_after = None

    def orthanc_is_slow(self) -> None:
        before = self.delivered("orthanc")
        self.lines["orthanc"].seconds_per_piece = 0.1
        self.read(20)
        self.until("some gets through", lambda: self.delivered("orthanc") > before)
        self.lines["orthanc"].seconds_per_piece = 0.0

    def orthanc_is_stopped_and_started(self) -> None:
        self.orthanc.stop()
        self.read(30)
        self.until("it is missed", lambda: is_noted(self.node, "orthanc", "ended the connection"))
        self.orthanc.start()

    def the_archive_refuses(self) -> None:
        """Associations, then objects, then reports only."""
        self.archive.reject_associations = True
        self.lines["archive"].revive()
        self.until("it rejects", lambda: is_noted(self.node, "archive", "rejected the association"))
        self.archive.store_status = 0xA700
        self.archive.reject_associations = False
        self.until("it is full", lambda: is_noted(self.node, "archive", "0xA700"))
        self.archive.store_status = lambda sop_class: 0xA700 if sop_class == Comprehensive3DSRStorage else 0
        before = len(self.archive.received)
        hurry(self.node)  # once: the captures do not stand behind the reports that are refused
        wait_for("captures go through", lambda: len(self.archive.received) > before + 60)
        tries = [r.attempts for r in records(self.node, "archive") if "0xA700" in (r.note or "")]
        assert max(tries) < 20, "they are not tried again with each of the captures"
        self.archive.store_status = 0


def test_two_hundred_studies_end_with_one_set_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TCP_NODELAY", "1")  # or Orthanc waits 40 ms with each answer
    # An archive has an index; DemoPacs reads each header again for each query.
    monkeypatch.setattr("ich_node.testing.pacs.dcmread", index_of)
    with contextlib.ExitStack() as life:
        node_port = free_port()
        orthanc = OrthancProcess(tmp_path / "orthanc", node_port=node_port)
        archive = life.enter_context(DemoPacs(tmp_path / "archive"))
        lines = {
            name: life.enter_context(contextlib.closing(Line(port)))
            for name, port in (("orthanc", orthanc.dicom_port), ("archive", archive.port))
        }
        node = make_node(tmp_path, node_port, {name: line.port for name, line in lines.items()})
        life.callback(node.database.dispose)
        life.enter_context(receiving(node))
        life.callback(orthanc.stop)
        orthanc.start()

        chaos = Chaos(node, orthanc, archive, lines)
        chaos.read(20)
        chaos.lose()
        lines["archive"].is_dead = True
        chaos.read(40)
        with Worker(node) as worker, contextlib.ExitStack() as calm:
            calm.callback(lines["archive"].revive)
            chaos.orthanc_gets_all_while_the_archive_is_dead()
            chaos.connections_break("orthanc")
            chaos.orthanc_is_slow()
            chaos.orthanc_is_stopped_and_started()
            chaos.the_archive_refuses()
            chaos.connections_break("archive")
            chaos.read(30)
            everything = 2 * STUDIES
            for name in lines:
                chaos.until(f"{name} has all", lambda name=name: chaos.delivered(name) == everything)
        assert worker.faults == []
        assert_one_set_each(node, orthanc, archive)
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


def assert_one_set_each(node: Node, orthanc: OrthancProcess, archive: DemoPacs) -> None:
    files = {path.stem: data_set_of(path) for path in node.settings.results_dir.iterdir()}
    assert len(files) == 2 * STUDIES
    instances = orthanc.instances()
    assert set(instances) == set(files)
    changed = [
        uid for uid, one in instances.items() if files[uid] not in orthanc.rest(f"/instances/{one}/file")
    ]
    assert changed == []
    kept = {path.stem: data_set_of(path) for path in archive.received[0].path.parent.iterdir()}
    assert kept == files
    for name in ("orthanc", "archive"):
        assert Counter(record.sop_instance_uid for record in records(node, name)) == Counter(list(files))
        assert {record.state for record in records(node, name)} == {"DELIVERED"}
        assert {record.note for record in records(node, name)} == {None}
