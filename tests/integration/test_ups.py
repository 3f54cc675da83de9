"""UPS-RS as another system uses it: HTTP and WebSockets to web services in two processes on one database."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from pydicom.dataset import Dataset
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from ich_node.database.engine import Database
from ich_node.database.tables import StudyRow
from ich_node.database.workitem_events import workitem_uid
from ich_node.database.workitem_subscriptions import FILTERED_UID, GLOBAL_UID
from ich_node.findings import Priority
from ich_node.settings import Settings
from ich_node.web import create_app
from tests.receiver_process import free_port, wait_until
from tests.stored_studies import StoredStudies
from tests.unit.test_ups_states import DONE

TOLD_S = 2.0
"""In so much time a subscriber hears of a change that was committed elsewhere (more on a machine that is busy)."""
WAIT_S = 30.0


@dataclass
class Client:
    """A worklist client: claims, completes and cancels workitems and hears of the others'."""

    port: int
    ae_title: str
    heard: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    connection: ClientConnection | None = None
    open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web/workitems"

    def search(self, **keys: str) -> list[Dataset]:
        answer = httpx.get(
            self.base, params=keys, headers={"Accept": "application/dicom+json"}, timeout=WAIT_S
        )
        answer.raise_for_status()
        return [] if answer.status_code == 204 else [Dataset.from_json(one) for one in answer.json()]

    def change(self, uid: str, state: str, transaction: str) -> httpx.Response:
        data = {
            "00741000": {"vr": "CS", "Value": [state]},
            "00081195": {"vr": "UI", "Value": [transaction]},
        }
        return httpx.put(
            f"{self.base}/{uid}/state",
            content=json.dumps(data),
            headers={"Content-Type": "application/dicom+json"},
            timeout=WAIT_S,
        )

    def subscribe(self, uid: str, **query: str) -> httpx.Response:
        return httpx.post(f"{self.base}/{uid}/subscribers/{self.ae_title}", params=query, timeout=WAIT_S)

    def unsubscribe(self, uid: str) -> httpx.Response:
        return httpx.delete(f"{self.base}/{uid}/subscribers/{self.ae_title}", timeout=WAIT_S)

    def listen(self) -> None:
        address = f"ws://127.0.0.1:{self.port}/ws/subscribers/{self.ae_title}"
        self.connection = self.open.enter_context(connect(address, open_timeout=WAIT_S))
        threading.Thread(target=self._hear, args=(self.connection,), daemon=True).start()

    def hang_up(self) -> None:
        self.open.close()

    def _hear(self, connection: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                self.heard.put(json.loads(message))

    def next(self) -> dict[str, str]:
        """The next report: workitem, event type, and what it says."""
        report = self.heard.get(timeout=WAIT_S)
        values = {tag: element["Value"][0] for tag, element in report.items()}
        assert values["00000002"] == "1.2.840.10008.5.1.4.34.6.1"
        assert 0 < values["00000110"] <= 0xFFFF
        names = {
            "00001000": "uid",
            "00001002": "type",
            "00741000": "state",
            "00404041": "inputs",
            "00741200": "priority",
        }
        return {name: values[tag] for tag, name in names.items() if tag in values}

    def hears_nothing(self) -> None:
        with pytest.raises(queue.Empty):
            self.heard.get(timeout=1.2)


@dataclass
class Installation:
    """Web services in two processes on one database, which this process writes as a worker does."""

    studies: StoredStudies
    ports: tuple[int, int]
    clients: list[Client] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def client(self, ae_title: str, at: int = 0) -> Client:
        self.clients.append(Client(port=self.ports[at], ae_title=f"{ae_title}{next(self._numbers)}"))
        return self.clients[-1]

    def study(self) -> str:
        study = f"1.2.3.{next(self._numbers)}"
        self.studies.receive(study, at=datetime.now(UTC), patient_id=f"ID{study}")
        return study

    def set_priority(self, study: str, priority: Priority) -> None:
        with self.studies.database.writing() as session:
            session.get_one(StudyRow, study).priority = priority


def _web(folder: Path, port: int) -> subprocess.Popen[bytes]:
    config = folder / f"{port}.toml"
    config.write_text(f"data_dir = {json.dumps(str(folder))}\n[web]\nport = {port}\n")
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ICH_NODE_")}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ich_node", "--config", str(config), "web"],
            stdout=log,
            stderr=log,
            env={**environ, "OMP_NUM_THREADS": "1"},
        )


def _answers(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
    return False


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("ups")
    database = Database(Settings(data_dir=folder).database_url)
    database.upgrade()
    studies = StoredStudies(database=database, results_dir=folder / "results")
    other_port = free_port()
    other = _web(folder, other_port)
    try:
        with _served(studies) as port:
            wait_until(lambda: _answers(other_port), "the other web service answers", 120.0)
            yield Installation(studies, (port, other_port))
    finally:
        other.send_signal(signal.SIGTERM)
        code = other.wait(WAIT_S)
        database.dispose()
    assert "Traceback" not in (folder / "log").read_text()
    assert code in (0, -signal.SIGTERM)


@contextlib.contextmanager
def _served(studies: StoredStudies) -> Iterator[int]:
    """In this process, on a port that is returned."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(studies.settings, studies.database)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


@pytest.fixture
def node(installation: Installation) -> Iterator[Installation]:
    yield installation
    while installation.clients:
        client = installation.clients.pop()
        client.hang_up()
        client.unsubscribe(GLOBAL_UID)


def test_a_radiologist_is_told_of_a_stat_study_that_another_process_found(node: Installation) -> None:
    client = node.client("WS", at=1)
    client.listen()
    assert node.clients[0].subscribe(GLOBAL_UID).status_code == 201
    study = node.study()
    uid = workitem_uid(study)
    assert client.next() == {
        "uid": uid,
        "type": 1,
        "state": "SCHEDULED",
        "inputs": "INCOMPLETE",
        "priority": "MEDIUM",
    }
    began = time.monotonic()
    node.set_priority(study, Priority.STAT)
    assert client.next()["priority"] == "HIGH"
    assert time.monotonic() - began < TOLD_S * 5
    client.hears_nothing()  # each change is told once, though two processes look
    assert (
        client.search(ScheduledProcedureStepPriority="HIGH", StudyInstanceUID=study)[0].SOPInstanceUID == uid
    )


def test_of_two_who_claim_at_once_one_wins(node: Installation) -> None:
    clients = [node.client("WS", at=0), node.client("WS", at=1)]
    for round_ in range(4):
        uid = workitem_uid(node.study())
        barrier = threading.Barrier(2)

        def claim(
            number: int, uid: str = uid, barrier: threading.Barrier = barrier, round_: int = round_
        ) -> int:
            barrier.wait(WAIT_S)
            return clients[number].change(uid, "IN PROGRESS", f"1.2.9.{round_}.{number + 1}").status_code

        with ThreadPoolExecutor(2) as pool:
            codes = list(pool.map(claim, range(2)))
        assert sorted(codes) == [200, 409]
        winner = codes.index(200)
        assert clients[1 - winner].change(uid, "CANCELED", f"1.2.9.{round_}.{2 - winner}").status_code == 400
        assert clients[1 - winner].change(uid, "CANCELED", f"1.2.9.{round_}.{winner + 1}").status_code == 200


def test_the_whole_way_of_a_workitem_with_two_systems(node: Installation) -> None:
    performer, watcher = node.client("WS", at=0), node.client("RIS", at=1)
    study = node.study()
    uid = workitem_uid(study)
    watcher.listen()
    assert watcher.subscribe(uid).status_code == 201
    assert watcher.next()["state"] == "SCHEDULED"  # how it stands when the subscription begins
    assert performer.change(uid, "IN PROGRESS", "1.2.7.1").status_code == 200
    assert watcher.next()["state"] == "IN PROGRESS"
    performer.listen()
    assert performer.subscribe(uid).status_code == 201
    assert performer.next()["state"] == "IN PROGRESS"
    reason = {"00741238": {"vr": "LT", "Value": ["duplicate order"]}}
    answer = httpx.post(f"{watcher.base}/{uid}/cancelrequest", json=reason, timeout=WAIT_S)
    assert answer.status_code == 202
    assert performer.heard.get(timeout=WAIT_S)["00741238"]["Value"] == ["duplicate order"]
    answer = httpx.post(f"{performer.base}/{uid}?1.2.7.1", json=DONE, timeout=WAIT_S)
    assert answer.status_code == 200
    assert performer.change(uid, "COMPLETED", "1.2.7.1").status_code == 200
    assert watcher.next()["type"] == 2
    assert watcher.next()["state"] == "COMPLETED"
    with node.studies.database.reading() as session:
        assert session.get_one(StudyRow, study).reviewed_by == "local"
    assert watcher.search(StudyInstanceUID=study, ProcedureStepState="SCHEDULED") == []


def test_a_filtered_subscription(node: Installation) -> None:
    client = node.client("STAT")
    client.listen()
    assert client.subscribe(FILTERED_UID, ScheduledProcedureStepPriority="HIGH").status_code == 201
    quiet, loud = node.study(), node.study()
    node.set_priority(quiet, Priority.ROUTINE)
    node.set_priority(loud, Priority.STAT)
    report = client.next()
    while (
        report["priority"] != "HIGH"
    ):  # it stood on MEDIUM when it came, and fits by the time it is looked at
        assert report["uid"] == workitem_uid(loud)
        report = client.next()
    assert report["uid"] == workitem_uid(loud)
    client.hears_nothing()


def test_who_was_cut_off_gets_what_came_meanwhile(node: Installation) -> None:
    client = node.client("WS")
    assert client.subscribe(GLOBAL_UID).status_code == 201
    client.listen()
    first = workitem_uid(node.study())
    assert client.next()["uid"] == first
    client.hang_up()
    second = workitem_uid(node.study())
    client.listen()
    assert {client.next()["uid"], client.next()["uid"]} == {first, second}


def test_a_page_of_another_site_opens_no_socket(node: Installation) -> None:
    port = node.ports[0]

    def refused(host: str, ae_title: str, **options: Any) -> int:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            pytest.raises(InvalidStatus) as caught,
            connect(f"ws://{host}:{port}/ws/subscribers/{ae_title}", sock=plain, **options),
        ):
            pass
        return int(caught.value.response.status_code)

    assert refused("127.0.0.1", "EVIL", origin="https://evil.example") == 403
    assert refused("evil.example", "EVIL") == 403
    assert refused("127.0.0.1", "X" * 17) == 403


def test_what_a_subscriber_says_is_passed_over(node: Installation) -> None:
    client = node.client("CHATTY")
    client.listen()
    assert client.connection is not None
    client.connection.send("nonsense")
    client.connection.send(b"\x00" * 1000)
    assert client.subscribe(GLOBAL_UID).status_code == 201
    uid = workitem_uid(node.study())
    assert client.next()["uid"] == uid
