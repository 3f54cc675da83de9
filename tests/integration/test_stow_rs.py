"""STOW-RS over real sockets: dicomweb-client, Python's http.client and bare sockets against a real server."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dicomweb_client
import pytest
import requests
import uvicorn
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy import text

from ich_node.database.engine import Database
from ich_node.receive.arrival import Gate
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.received import AssociationSummary, ReceivedInstance
from ich_node.receive.spool import Spool
from ich_node.receive.stow import StoreDesk
from ich_node.settings import Settings
from ich_node.web import create_app
from ich_node.web import stow as web_stow
from tests.small_objects import PATIENT_ID, PATIENT_NAME, ROOT, data_set_of, encoded, small_object
from tests.unit.test_receive_stow import body_of, part10, part10_of

DEADLINE_S = 30.0
MULTIPART = 'multipart/related; type="application/dicom"; boundary="b-01"'
STUDIES = "/dicom-web/studies"


@dataclass
class Node:
    """A running server and what its desk has handed on."""

    port: int
    spool: Spool
    gate: Gate
    handed_on: list[ReceivedInstance | AssociationSummary]
    changed: threading.Condition

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    @property
    def files(self) -> list[Path]:
        return list(self.spool.scan())

    def is_clean(self) -> bool:
        return not list(self.spool.root.glob("incoming/*"))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S)

    def summaries(self) -> list[AssociationSummary]:
        return [one for one in self.handed_on if isinstance(one, AssociationSummary)]

    def received(self) -> list[ReceivedInstance]:
        return [one for one in self.handed_on if isinstance(one, ReceivedInstance)]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def post(self, body: Any, *, path: str = STUDIES, **headers: str) -> Answer:
        sent = {"Content-Type": MULTIPART, **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection = self.connect()
        try:
            connection.request("POST", path, body, sent)
            return Answer.read(connection.getresponse())
        finally:
            connection.close()

    @contextmanager
    def socket(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), DEADLINE_S) as connection:
            yield connection

    @contextmanager
    def begun(self, *, length: int = 1_000_000, first: bytes = b"--b-01\r\n") -> Iterator[socket.socket]:
        """A request of which the server has seen the beginning."""
        with self.socket() as connection:
            connection.sendall(head(length) + first)
            yield connection


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @classmethod
    def read(cls, response: http.client.HTTPResponse) -> Answer:
        return cls(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    @property
    def data_set(self) -> Dataset:
        return Dataset.from_json(self.content.decode())

    def stored(self) -> list[str]:
        return [i.ReferencedSOPInstanceUID for i in self.data_set.get("ReferencedSOPSequence", [])]

    def reasons(self) -> list[int]:
        failed = [
            *self.data_set.get("FailedSOPSequence", []),
            *self.data_set.get("OtherFailuresSequence", []),
        ]
        return [item.FailureReason for item in failed]


def head(length: int, **headers: str) -> bytes:
    lines = [
        f"POST {STUDIES} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {MULTIPART}",
        f"Content-Length: {length}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def read_answer(connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer.read(response)


OpenNode = Callable[..., Node]


@dataclass
class _Server:
    server: uvicorn.Server
    thread: threading.Thread
    desk: StoreDesk
    database: Database
    listener: socket.socket = field(repr=False)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        self.desk.close()
        self.database.dispose()
        self.listener.close()


@pytest.fixture
def open_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenNode]:
    opened: list[_Server] = []

    def start(
        *,
        route: dict[str, Any] | None = None,
        on_hand_on: Callable[[ReceivedInstance | AssociationSummary], None] | None = None,
        **options: Any,
    ) -> Node:
        changed = threading.Condition()
        handed_on: list[ReceivedInstance | AssociationSummary] = []

        def hand_on(one: ReceivedInstance | AssociationSummary) -> None:
            if on_hand_on is not None:
                on_hand_on(one)
            with changed:
                handed_on.append(one)
                changed.notify_all()

        folder = tmp_path / str(len(opened))
        database = Database(f"sqlite:///{tmp_path / f'{len(opened)}.sqlite'}")
        database.upgrade()
        gate = Gate()
        desk = StoreDesk(spool=Spool(folder), hand_on=hand_on, gate=gate, **options)
        if route is not None:
            monkeypatch.setattr(
                "ich_node.web.app.StoreRoute", lambda desk: web_stow.StoreRoute(desk, **route)
            )
        app = create_app(Settings(data_dir=tmp_path), database, desk)
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        opened.append(_Server(server, thread, desk, database, listener))
        port = listener.getsockname()[1]
        node = Node(port=port, spool=desk.spool, gate=gate, handed_on=handed_on, changed=changed)
        connection = node.connect()  # answered as soon as the server has started: the socket listens already
        connection.request("GET", "/health/live")
        assert connection.getresponse().status == 200
        connection.close()
        return node

    yield start
    for server in opened:
        server.stop()


@pytest.fixture
def node(open_node: OpenNode) -> Node:
    return open_node()


# --- dicomweb-client ----------------------------------------------------------------------------------------


def test_dicomweb_client_stores_a_series(node: Node) -> None:
    datasets = [small_object(InstanceNumber=number) for number in range(1, 41)]
    client = dicomweb_client.DICOMwebClient(url=node.url)
    answer = client.store_instances(datasets)
    assert [i.ReferencedSOPInstanceUID for i in answer.ReferencedSOPSequence] == [
        dataset.SOPInstanceUID for dataset in datasets
    ]
    assert "FailedSOPSequence" not in answer
    assert sorted(map(data_set_of, node.files)) == sorted(map(encoded, datasets))
    (summary,) = node.summaries()
    assert (summary.stored, summary.refused, summary.released) == (40, 0, True)


def test_dicomweb_client_with_chunked_transfer_and_a_study(node: Node) -> None:
    datasets = [
        small_object(
            transfer_syntax_uid=ImplicitVRLittleEndian, Rows=512, Columns=512, PixelData=os.urandom(2**19)
        )
        for _ in range(6)
    ]
    client = dicomweb_client.DICOMwebClient(url=node.url, chunk_size=100_000)
    answer = client.store_instances(datasets, study_instance_uid=f"{ROOT}.1")
    assert len(answer.ReferencedSOPSequence) == 6
    assert sorted(map(data_set_of, node.files)) == sorted(map(encoded, datasets))


def test_dicomweb_client_learns_what_was_not_stored(node: Node) -> None:
    client = dicomweb_client.DICOMwebClient(url=node.url)
    other = small_object(StudyInstanceUID=f"{ROOT}.5")
    answer = client.store_instances([small_object(), other], study_instance_uid=f"{ROOT}.1")
    assert len(answer.ReferencedSOPSequence) == 1
    (failed,) = answer.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (other.SOPInstanceUID, 0xA900)
    with pytest.raises(requests.HTTPError, match="409"):
        client.store_instances([other], study_instance_uid=f"{ROOT}.1")


def test_dicomweb_client_reads_the_answer_in_xml(node: Node) -> None:
    client = dicomweb_client.DICOMwebClient(url=node.url, headers={"Accept": "application/dicom+xml"})
    dataset = small_object()
    answer = client.store_instances([dataset])
    assert answer.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == dataset.SOPInstanceUID


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_of_the_documents_with_curl(node: Node, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/installation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```\n(curl .*?)```", text, re.DOTALL)
    examples = (
        block.replace("\\\n", "").replace("127.0.0.1:8080", f"127.0.0.1:{node.port}").strip().split("\n\n")
    )
    assert len(examples) == 2
    datasets = [
        small_object(),
        small_object(PixelData=bytes(3_000_000)),
    ]  # curl asks before it sends the second
    for number, dataset in enumerate(datasets, start=1):
        (tmp_path / f"slice{number}.dcm").write_bytes(part10(dataset))
    for example in examples:
        done = subprocess.run(
            [*shlex.split(example), "-sS", "--fail"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert datasets[0].SOPInstanceUID in done.stdout
    assert sorted(map(data_set_of, node.files)) == sorted(map(encoded, datasets))


# --- status codes -------------------------------------------------------------------------------------------


def test_all_stored(node: Node) -> None:
    dataset = small_object()
    answer = node.post(body_of(part10(dataset)))
    assert (answer.status, answer.stored()) == (200, [dataset.SOPInstanceUID])
    assert answer.headers["content-type"] == "application/dicom+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert data_set_of(node.files[0]) == encoded(dataset)


def test_some_stored(node: Node) -> None:
    deflated = part10_of(b"", instance="1.2.3", transfer_syntax=DeflatedExplicitVRLittleEndian)
    answer = node.post(body_of(part10(small_object()), deflated, b"no DICOM"))
    assert answer.status == 202
    assert answer.reasons() == [0xC122, 0xC000]
    assert len(answer.stored()) == 1


def test_none_stored(node: Node) -> None:
    answer = node.post(body_of(b"no DICOM"))
    assert (answer.status, answer.reasons(), answer.stored()) == (409, [0xC000], [])


def test_another_study(node: Node) -> None:
    answer = node.post(body_of(part10(small_object())), path=f"{STUDIES}/1.2.3")
    assert (answer.status, answer.reasons()) == (409, [0xA900])
    assert node.files == []


def test_a_body_that_is_one_object(node: Node) -> None:
    dataset = small_object()
    answer = node.post(part10(dataset), Content_Type="application/dicom")
    assert (answer.status, answer.stored()) == (200, [dataset.SOPInstanceUID])
    assert node.post(b"no DICOM", Content_Type="application/dicom").status == 409
    assert node.post(b"", Content_Type="application/dicom").status == 400


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        (STUDIES, {"Content_Type": "multipart/related; type=application/dicom"}, b"", 400),
        (STUDIES, {"Content_Type": f"multipart/related; boundary={'a' * 71}"}, b"", 400),
        (STUDIES, {}, b"no boundary", 400),
        (STUDIES, {}, b"", 400),
        (STUDIES, {}, b"--b-01--\r\n", 400),
        (STUDIES, {}, b"--b-01\r\nno header\r\n\r\n", 400),
        (STUDIES, {}, body_of(part10(small_object()))[:-6], 400),
        (f"{STUDIES}/1.02.3", {}, b"", 400),
        (f"{STUDIES}/%2e%2e", {}, b"", 400),
        (f"{STUDIES}/abc", {}, b"", 400),
        (STUDIES, {"Accept": "text/html"}, b"", 406),
        (STUDIES, {"Content_Type": "application/json"}, b"", 415),
        (STUDIES, {"Content_Type": "multipart/form-data; boundary=b-01"}, b"", 415),
        (STUDIES, {"Content_Type": 'multipart/related; type="application/dicom+json"; boundary=b-01'}, b"", 415),
        (STUDIES, {"Content_Type": 'multipart/related; type="application/dicom+xml"; boundary=b-01'}, b"", 415),
        (STUDIES, {"Content_Encoding": "gzip"}, b"", 415),
        (f"{STUDIES}/1.2.3/series", {}, b"", 405),
    ],
)  # fmt: skip
def test_refusals(node: Node, path: str, headers: dict[str, str], body: bytes, status: int) -> None:
    assert node.post(body, path=path, **headers).status == status
    assert node.files == []
    assert node.is_clean()


def test_a_client_that_sends_all_before_it_reads_gets_its_answer(node: Node) -> None:
    body = body_of(part10(small_object())) + bytes(20_000_000)
    assert node.post(bytes(20_000_000)).status == 400
    assert node.post(b"--b-01\r\nno header\r\n\r\n" + bytes(20_000_000)).status == 400
    assert node.post(body, Content_Type="application/json").status == 415
    assert node.post(body).status == 200  # text after the last boundary


def test_no_content_type(node: Node) -> None:
    connection = node.connect()
    connection.request("POST", STUDIES, b"")
    assert connection.getresponse().status == 415
    connection.close()


def test_other_methods_are_not_allowed(node: Node) -> None:
    for method in ("PUT", "DELETE"):
        connection = node.connect()
        connection.request(method, STUDIES)
        assert connection.getresponse().status == 405
        connection.close()


def test_a_missing_last_boundary_keeps_what_was_whole(node: Node) -> None:
    answer = node.post(body_of(part10(small_object()), part10(small_object()))[:-6])
    assert (answer.status, answer.reasons(), len(answer.stored())) == (202, [0xC000], 1)
    assert len(node.files) == 1
    assert node.is_clean()


def test_answers_in_xml_and_json(node: Node) -> None:
    body = body_of(part10(small_object()))
    xml = node.post(body, Accept="application/dicom+xml")
    assert (xml.status, xml.headers["content-type"]) == (200, "application/dicom+xml")
    assert b"<DicomAttribute " in xml.content
    as_json = node.post(body, Accept="application/json, text/plain;q=0.5")
    assert (as_json.status, as_json.headers["content-type"]) == (200, "application/json")
    assert json.loads(as_json.content)["00081190"] == {"vr": "UR"}


def test_a_connection_serves_many_requests(node: Node) -> None:
    connection = node.connect()
    for _ in range(5):
        connection.request("POST", STUDIES, body_of(part10(small_object())), {"Content-Type": MULTIPART})
        assert Answer.read(connection.getresponse()).status == 200
    connection.close()
    assert len(node.files) == 5


def test_a_thousand_parts(node: Node) -> None:
    answer = node.post(body_of(*[b"no DICOM"] * 1_000, part10(small_object())))
    assert (answer.status, len(answer.reasons()), len(answer.stored())) == (202, 1_000, 1)


# --- room ---------------------------------------------------------------------------------------------------


def test_a_low_disk_says_when_to_try_again(node: Node) -> None:
    node.gate.disk_is_low = lambda: True
    body = body_of(part10(small_object(PixelData=bytes(3_000_000))))
    answer = node.post(body)
    assert (answer.status, answer.headers["retry-after"]) == (503, "60")
    assert b"disk is nearly full" in answer.content
    node.gate.disk_is_low = lambda: False
    assert node.post(body).status == 200


def test_a_client_that_asks_first_is_told_before_it_sends(node: Node) -> None:
    node.gate.disk_is_low = lambda: True
    with node.socket() as connection:
        connection.sendall(head(2**30, Expect="100-continue"))
        answer = b""
        while received := connection.recv(4096):  # until it is closed
            answer += received
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer.lower()


def test_a_client_that_asks_first_is_let_in(node: Node) -> None:
    body = body_of(part10(small_object()))
    with node.socket() as connection:
        connection.sendall(head(len(body), Expect="100-continue"))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_answer(connection).status == 200


def test_a_disk_that_becomes_low_on_the_way(node: Node) -> None:
    session_low = [False, False, True]  # asked for the request, then for each object
    node.gate.disk_is_low = lambda: session_low.pop(0) if session_low else True
    answer = node.post(body_of(*[part10(small_object()) for _ in range(3)]))
    assert (answer.status, len(answer.stored()), answer.reasons()) == (202, 1, [0xA700, 0xA700])
    session_low[:] = [False]
    answer = node.post(body_of(part10(small_object())))
    assert (answer.status, answer.headers["retry-after"], answer.reasons()) == (503, "60", [0xA700])


def test_too_many_bytes_that_are_announced(open_node: OpenNode) -> None:
    node = open_node(limits=Limits(max_object_bytes=100_000, max_association_bytes=400_000))
    assert node.post(bytes(500_000)).status == 413
    assert node.post(bytes(150_000), Content_Type="application/dicom").status == 413
    assert node.handed_on == []


def test_too_many_bytes_that_are_not_announced(open_node: OpenNode) -> None:
    node = open_node(limits=Limits(max_association_bytes=1_000_000))
    body = body_of(*[part10(small_object(PixelData=os.urandom(300_000))) for _ in range(6)])
    answer = node.post(iter([body[i : i + 50_000] for i in range(0, len(body), 50_000)]))
    assert (answer.status, len(answer.stored()), answer.reasons()) == (413, 3, [0xA701])
    assert len(node.files) == 3
    assert node.is_clean()


def test_an_object_that_is_too_large(open_node: OpenNode) -> None:
    node = open_node(limits=Limits(max_object_bytes=100_000))
    answer = node.post(body_of(part10(small_object()), part10(small_object(PixelData=bytes(200_000)))))
    assert (answer.status, len(answer.stored()), answer.reasons()) == (202, 1, [0xA701])


def test_one_request_too_many_at_once(open_node: OpenNode) -> None:
    node = open_node(route={"requests_at_once": 2})
    stored = body_of(part10(small_object()))[:-4]  # stored once the next boundary is here
    with node.begun(first=stored + b"\r\n"), node.begun(first=stored + b"\r\n"):
        node.wait_for(lambda: len(node.received()) == 2)
        answer = node.post(body_of(part10(small_object())))
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    node.wait_for(lambda: len(node.summaries()) == 2)
    deadline = time.monotonic() + DEADLINE_S
    while (status := node.post(body_of(part10(small_object()))).status) == 503:
        assert time.monotonic() < deadline
    assert status == 200


# --- clients that misbehave ---------------------------------------------------------------------------------


def test_a_client_that_vanishes_within_an_object(node: Node) -> None:
    first, second = small_object(), small_object(PixelData=bytes(900_000))
    body = body_of(part10(first), part10(second))
    with node.socket() as connection:
        connection.sendall(head(len(body)) + body[: len(body) // 2])
        node.wait_for(lambda: len(node.received()) == 1)
    node.wait_for(lambda: len(node.summaries()) == 1)
    (summary,) = node.summaries()
    assert (summary.stored, summary.refused, summary.released) == (1, 1, False)
    assert summary.association_id == node.received()[0].association_id
    assert [data_set_of(path) for path in node.files] == [encoded(first)]
    assert node.is_clean()


@pytest.mark.parametrize(
    ("limits", "pause_s"),
    [(Limits(network_timeout_s=0.3), None), (Limits(min_bytes_per_second=10_000), 0.02)],
    ids=["silent", "drip"],
)
def test_a_client_that_is_too_slow(open_node: OpenNode, limits: Limits, pause_s: float | None) -> None:
    node = open_node(limits=limits, route={"pace_window_s": 0.5})
    whole, cut = part10(small_object()), part10(small_object(PixelData=bytes(900_000)))
    body = body_of(whole, cut)
    with node.socket() as connection:
        connection.sendall(head(len(body)) + body[:50_000])
        stop = threading.Event()

        def drip() -> None:
            assert pause_s is not None
            for byte in body[50_000:]:
                try:
                    connection.send(bytes([byte]))
                except OSError:
                    return
                if stop.wait(pause_s):
                    return

        dripper = threading.Thread(target=drip) if pause_s is not None else None
        if dripper:
            dripper.start()
        answer = read_answer(connection)
        stop.set()
        if dripper:
            dripper.join()
    assert (answer.status, len(answer.stored()), answer.reasons()) == (408, 1, [0xC000])
    assert not node.summaries()[0].released
    assert len(node.files) == 1
    assert node.is_clean()


def test_a_slow_disk_is_not_the_clients_fault(open_node: OpenNode) -> None:
    go_on = threading.Event()
    threading.Timer(1.0, go_on.set).start()
    limits = Limits(network_timeout_s=0.5, min_bytes_per_second=2**30)
    node = open_node(
        limits=limits, route={"pace_window_s": 0.5}, on_hand_on=lambda _: bool(go_on.wait(DEADLINE_S))
    )
    files = [part10(small_object(PixelData=bytes(300_000))) for _ in range(3)]
    assert node.post(body_of(*files)).status == 200


def test_pages_stay_quick_while_objects_are_written(open_node: OpenNode) -> None:
    held, go_on = threading.Semaphore(0), threading.Event()

    def hold(_: object) -> None:
        held.release()
        assert go_on.wait(DEADLINE_S)

    node = open_node(on_hand_on=hold)
    answers: list[int] = []
    senders = [
        threading.Thread(target=lambda: answers.append(node.post(body_of(part10(small_object()))).status))
        for _ in range(web_stow.REQUESTS_AT_ONCE)
    ]
    for sender in senders:
        sender.start()
    for _ in senders:
        assert held.acquire(timeout=DEADLINE_S)  # each thread that writes is stuck now
    connection = node.connect()
    connection.request("GET", "/worklist")
    assert connection.getresponse().status == 200
    connection.close()
    go_on.set()
    for sender in senders:
        sender.join(DEADLINE_S)
    assert answers == [200] * web_stow.REQUESTS_AT_ONCE


def test_memory_does_not_grow_with_the_object(node: Node) -> None:
    size = 200 * 2**20
    dataset = small_object(PixelData=b"")
    beginning = part10(dataset)[:-12] + b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little")
    piece = os.urandom(2**20)
    before, after = body_of(beginning).split(beginning)

    def body() -> Iterator[bytes]:
        yield before + beginning
        for _ in range(size // len(piece)):
            yield piece
        yield after

    tracemalloc.start()
    try:
        answer = node.post(body())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.stored()) == (200, [dataset.SOPInstanceUID])
    assert node.files[0].stat().st_size > size
    assert peak < 16 * 2**20


# --- who may push -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_cannot_push(node: Node, headers: dict[str, str]) -> None:
    assert node.post(body_of(part10(small_object())), **headers).status == 403
    assert node.files == []


def test_a_page_of_this_origin_may_push(node: Node) -> None:
    origin = f"http://127.0.0.1:{node.port}"
    body = body_of(part10(small_object()))
    assert node.post(body, Origin=origin, Sec_Fetch_Site="same-origin").status == 200


def test_another_host_name_is_not_served(node: Node) -> None:
    assert node.post(body_of(part10(small_object())), Host="evil.example").status == 421
    assert node.files == []


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("192.0.2.1", 403)])
def test_callers_are_listed(open_node: OpenNode, host: str, status: int) -> None:
    node = open_node(peers=[AllowedPeer(ae_title="STOW-RS", host=host)])
    body = body_of(part10(small_object()))
    assert node.post(body, X_Forwarded_For="192.0.2.1").status == status


def test_nothing_that_identifies_is_logged(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    node.post(body_of(part10(small_object()), b"no DICOM"), path=f"{STUDIES}/{ROOT}.1")
    node.post(body_of(part10(small_object())), path=f"{STUDIES}/1.2.3")
    node.post(b"", path=f"{STUDIES}/{ROOT}.x")
    assert "0xA900" in caplog.text
    for value in (PATIENT_NAME, PATIENT_ID, ROOT, "1.2.3"):
        assert value not in caplog.text


# --- the command --------------------------------------------------------------------------------------------


@dataclass
class WebProcess:
    """``ich-node web``, as a process."""

    folder: Path
    config: str = ""

    def __post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.data_dir = self.folder / "data"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        (self.folder / "ready").mkdir()
        (self.folder / "node.toml").write_text(
            f'data_dir = "{self.data_dir}"\n[web]\nport = {self.port}\n[disk]\nmin_free_gib = 0\n{self.config}'
        )
        environ = {**os.environ, "ICH_NODE_READY_FOLDER": str(self.folder / "ready")}
        command = [sys.executable, "-m", "ich_node", "--config", str(self.folder / "node.toml"), "web"]
        process = subprocess.Popen(command, env=environ)
        try:
            deadline = time.monotonic() + 2 * DEADLINE_S
            while not (self.folder / "ready" / "web").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)  # a file in another process has no event
            yield process
        finally:
            process.kill()
            process.wait()

    def rows(self) -> set[str]:
        database = Database(f"sqlite:///{self.data_dir / 'ich-node.sqlite'}")
        with database.reading() as session:
            rows = session.execute(text("select sop_instance_uid from instance")).scalars().all()
        database.dispose()
        return set(rows)


def test_the_web_process_stores_and_records_and_ends_in_the_middle_of_an_object(tmp_path: Path) -> None:
    web = WebProcess(folder=tmp_path)
    stored, whole, cut = small_object(), small_object(), small_object(PixelData=bytes(900_000))
    body = body_of(part10(whole), part10(cut))
    with web.running() as process:
        client = dicomweb_client.DICOMwebClient(url=web.url)
        assert len(client.store_instances([stored]).ReferencedSOPSequence) == 1
        with socket.create_connection(("127.0.0.1", web.port), DEADLINE_S) as connection:
            connection.sendall(head(len(body), Expect="100-continue"))
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # it is being read
            connection.sendall(body[: len(body) // 2])
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
    spool = Spool(web.data_dir / "spool")
    assert sorted(map(data_set_of, spool.scan())) == sorted([encoded(stored), encoded(whole)])
    assert not list(spool.root.glob("incoming/*"))
    assert web.rows() == {stored.SOPInstanceUID, whole.SOPInstanceUID}


def test_the_web_process_believes_no_forwarded_address(tmp_path: Path) -> None:
    peer = '[[peers]]\nname = "gateway"\nae_title = "STOW-RS"\nhost = "192.0.2.1"\n'
    web = WebProcess(folder=tmp_path, config=peer)
    with web.running():
        answer = requests.post(
            f"{web.url}/studies",
            body_of(part10(small_object())),
            headers={"Content-Type": MULTIPART, "X-Forwarded-For": "192.0.2.1"},
            timeout=DEADLINE_S,
        )
    assert answer.status_code == 403
