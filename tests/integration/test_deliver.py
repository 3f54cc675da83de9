"""Delivery to real PACS: Orthanc and DCMTK's storescp, and to peers that misbehave in ways those do not."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt

from ich_node.client_tls import ClientTls
from ich_node.deliver.scu import DeliveryOutcome, DeliveryResult, Destination, Timeouts, echo, send
from ich_node.receive.tls import TlsFiles
from ich_node.receive.upper_layer import configure_pynetdicom
from tests.certificates import Authority
from tests.small_objects import data_set_of, saved, small_object

DEADLINE_S = 60.0
SHORT = Timeouts(connection_s=2.0, acse_s=2.0, dimse_s=2.0, network_s=2.0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(condition: Callable[[], bool]) -> None:
    pause, end = threading.Event(), time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.05)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_until(lambda: process.poll() is not None or is_listening(port))
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def destination(port: int, ae_title: str = "PACS") -> Destination:
    return Destination(name="the PACS", ae_title=ae_title, host="127.0.0.1", port=port)


def results_of_a_reading(folder: Path) -> list[Path]:
    report = small_object(sop_class_uid=ComprehensiveSRStorage, Modality="SR", PixelData=None)
    overlays = [small_object(sop_class_uid=SecondaryCaptureImageStorage, Modality="OT") for _ in range(2)]
    return [saved(dataset, folder) for dataset in [report, *overlays]]


# Orthanc


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Destination, str]]:
    program = shutil.which("Orthanc")
    if program is None:
        pytest.skip("Orthanc is not installed")
    folder = tmp_path_factory.mktemp("orthanc")
    dicom, http = free_port(), free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomPort": dicom,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with running([program, str(folder / "orthanc.json")], dicom, folder / "log"):
        wait_until(lambda: is_listening(http))
        yield destination(dicom, "ORTHANC"), f"http://127.0.0.1:{http}"


def stored_in_orthanc(url: str, sop_instance_uid: str) -> Dataset:
    def post(body: dict[str, Any]) -> Any:
        with urllib.request.urlopen(f"{url}/tools/find", json.dumps(body).encode()) as answer:
            return json.load(answer)

    (found,) = post({"Level": "Instance", "Query": {"SOPInstanceUID": sop_instance_uid}})
    with urllib.request.urlopen(f"{url}/instances/{found}/file") as answer:
        return pydicom.dcmread(pydicom.filebase.DicomBytesIO(answer.read()))


def test_orthanc_takes_report_and_overlays(orthanc: tuple[Destination, str], tmp_path: Path) -> None:
    to, url = orthanc
    paths = results_of_a_reading(tmp_path)
    outcomes = send(paths, to)
    assert [outcome.path for outcome in outcomes] == paths
    assert [outcome.result for outcome in outcomes] == [DeliveryResult.SENT] * 3
    assert all(outcome.is_delivered and outcome.status == 0x0000 for outcome in outcomes)
    for path in paths:
        sent = pydicom.dcmread(path)
        assert stored_in_orthanc(url, sent.SOPInstanceUID) == sent
    assert [outcome.is_delivered for outcome in send(paths, to)] == [True] * 3


def test_orthanc_answers_the_echo(orthanc: tuple[Destination, str]) -> None:
    outcome = echo(orthanc[0])
    assert outcome.ok
    assert 0 < outcome.seconds < DEADLINE_S


def test_orthanc_rejects_a_wrong_ae_title_in_words(orthanc: tuple[Destination, str], tmp_path: Path) -> None:
    to = destination(orthanc[0].port, "SOMEBODY")
    assert "rejected the association" in echo(to).detail
    assert not echo(to).ok
    (outcome,) = send([saved(small_object(), tmp_path)], to)
    assert outcome.result is DeliveryResult.TRANSIENT
    assert "Called AE title not recognised" in outcome.detail


# DCMTK


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[tuple[Destination, Path]]:
    program = shutil.which("storescp")
    if program is None:
        pytest.skip("DCMTK's storescp is not installed")
    port, inbox = free_port(), folder / "inbox"
    inbox.mkdir()
    command = [program, "--bit-preserving", "-od", str(inbox), *options, str(port)]
    with running(command, port, folder / "log"):
        yield destination(port), inbox


def test_storescp_gets_the_bytes_of_the_files(tmp_path: Path) -> None:
    paths = results_of_a_reading(tmp_path)
    with storescp(tmp_path, "+xa") as (to, inbox):
        assert echo(to).ok
        assert {outcome.result for outcome in send(paths, to)} == {DeliveryResult.SENT}
    got = sorted(data_set_of(path) for path in inbox.iterdir())
    assert got == sorted(data_set_of(path) for path in paths)


def test_a_destination_that_takes_implicit_vr_only_gets_that(tmp_path: Path) -> None:
    paths = results_of_a_reading(tmp_path)
    compressed = small_object()
    pixels = compressed.pixel_array
    compressed.compress(RLELossless, generate_instance_uid=False)
    paths.append(saved(compressed, tmp_path))
    with storescp(tmp_path, "+xi") as (to, inbox):
        assert {outcome.result for outcome in send(paths, to)} == {DeliveryResult.SENT}
    got = {dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, inbox.iterdir())}
    assert set(got) == {pydicom.dcmread(path).SOPInstanceUID for path in paths}
    assert {dataset.file_meta.TransferSyntaxUID for dataset in got.values()} == {ImplicitVRLittleEndian}
    assert (got[compressed.SOPInstanceUID].pixel_array == pixels).all()


def test_a_destination_that_refuses_every_association(tmp_path: Path) -> None:
    with storescp(tmp_path, "--refuse") as (to, _):
        outcomes = send(results_of_a_reading(tmp_path), to)
        assert not echo(to).ok
    assert {outcome.result for outcome in outcomes} == {DeliveryResult.TRANSIENT}
    assert all("rejected the association" in outcome.detail for outcome in outcomes)


def test_a_destination_that_breaks_off_after_the_first_object(tmp_path: Path) -> None:
    with storescp(tmp_path, "--abort-after") as (to, _):
        outcomes = send(results_of_a_reading(tmp_path), to, timeouts=SHORT)
    assert DeliveryResult.TRANSIENT in {outcome.result for outcome in outcomes}
    assert {outcome.result for outcome in outcomes} <= {DeliveryResult.SENT, DeliveryResult.TRANSIENT}
    assert outcomes[-1].result is DeliveryResult.TRANSIENT
    assert "the PACS" in outcomes[-1].detail


# peers that answer as they are told


@contextmanager
def pacs(
    answer: Callable[[evt.Event], Dataset | int], *, classes: tuple[str, ...] = (CTImageStorage,)
) -> Iterator[Destination]:
    configure_pynetdicom()
    entity = AE(ae_title="PACS")
    for sop_class in classes:
        entity.add_supported_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    try:
        yield destination(server.server_address[1])
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "result", "words"),
    [
        (0x0000, DeliveryResult.SENT, "0x0000 Success"),
        (0xB000, DeliveryResult.WARNING, "0xB000 Coercion of Data Elements"),
        (0xB007, DeliveryResult.WARNING, "0xB007"),
        (0x0111, DeliveryResult.WARNING, "0x0111"),
        (0xA700, DeliveryResult.TRANSIENT, "0xA700 Refused: Out of Resources"),
        (0x0110, DeliveryResult.TRANSIENT, "0x0110 Processing Failure"),
        (0xA900, DeliveryResult.REFUSED, "0xA900 Data Set Does Not Match SOP Class"),
        (0xC123, DeliveryResult.REFUSED, "0xC123 Cannot Understand"),
        (0x0124, DeliveryResult.REFUSED, "0x0124 Refused: Not Authorised"),
        (0x1234, DeliveryResult.TRANSIENT, "0x1234 unknown status"),
    ],
)
def test_each_status_is_told_in_the_words_of_the_pacs(
    tmp_path: Path, status: int, result: DeliveryResult, words: str
) -> None:
    def answer(_: evt.Event) -> Dataset:
        said = Dataset()
        said.Status = status
        said.ErrorComment = "because of the moon"
        return said

    with pacs(answer) as to:
        (outcome,) = send([saved(small_object(), tmp_path)], to)
    assert (outcome.result, outcome.status) == (result, status)
    assert outcome.detail.startswith(words)
    assert outcome.detail.endswith(": because of the moon")


def test_one_refused_object_does_not_keep_the_others(tmp_path: Path) -> None:
    datasets = [small_object() for _ in range(3)]

    def answer(event: evt.Event) -> int:
        return 0xC000 if event.request.AffectedSOPInstanceUID == datasets[1].SOPInstanceUID else 0x0000

    with pacs(answer) as to:
        outcomes = send([saved(dataset, tmp_path) for dataset in datasets], to)
    assert [outcome.status for outcome in outcomes] == [0x0000, 0xC000, 0x0000]


def test_a_sop_class_that_the_destination_does_not_take_is_refused_for_good(tmp_path: Path) -> None:
    paths = [*results_of_a_reading(tmp_path), saved(small_object(), tmp_path)]
    with pacs(lambda _: 0x0000, classes=(SecondaryCaptureImageStorage,)) as to:
        outcomes = send(paths, to)
        (alone,) = send(paths[:1], to)
    refused, sent = DeliveryResult.REFUSED, DeliveryResult.SENT
    assert [outcome.result for outcome in outcomes] == [refused, sent, sent, refused]
    assert "Comprehensive SR Storage" in outcomes[0].detail
    assert alone.result is refused
    assert "Comprehensive SR Storage" in alone.detail


def test_an_echo_to_a_destination_without_verification_says_so() -> None:
    with pacs(lambda _: 0x0000) as to:
        outcome = echo(to)
    assert not outcome.ok
    assert "verification" in outcome.detail


def test_files_that_cannot_be_sent_do_not_keep_the_others(tmp_path: Path) -> None:
    no_dicom, absent = tmp_path / "text.dcm", tmp_path / "absent.dcm"
    no_dicom.write_text("no DICOM")
    with pacs(lambda _: 0x0000) as to:
        outcomes = send([no_dicom, saved(small_object(), tmp_path), absent], to)
    refused, sent = DeliveryResult.REFUSED, DeliveryResult.SENT
    assert [outcome.result for outcome in outcomes] == [refused, sent, refused]
    assert send([], to) == ()


# nobody there


def test_a_closed_port_and_an_unknown_host_are_worth_another_attempt(tmp_path: Path) -> None:
    path = saved(small_object(), tmp_path)
    nowhere = Destination(name="gone", ae_title="PACS", host="pacs.invalid", port=104)
    for to in (destination(free_port()), nowhere):
        (outcome,) = send([path], to, timeouts=SHORT)
        assert outcome.result is DeliveryResult.TRANSIENT
        assert outcome.status is None
        assert to.host in outcome.detail
        assert to.host in echo(to, timeouts=SHORT).detail


@pytest.mark.parametrize("reply", [b"", b"\x02\x00\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_peer_that_speaks_no_dicom_holds_nobody_up(tmp_path: Path, reply: bytes) -> None:
    path = saved(small_object(), tmp_path)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(reply)
                done.wait(DEADLINE_S)

        peer = threading.Thread(target=serve)
        peer.start()
        begin = time.monotonic()
        (outcome,) = send([path], destination(server.getsockname()[1]), timeouts=SHORT)
        seconds = time.monotonic() - begin
        done.set()
        peer.join(DEADLINE_S)
    assert outcome.result is DeliveryResult.TRANSIENT
    assert seconds < 15.0


def test_many_destinations_at_once(tmp_path: Path) -> None:
    path = saved(small_object(), tmp_path)
    with pacs(lambda _: 0x0000) as to:
        results: list[DeliveryResult] = []
        threads = [
            threading.Thread(target=lambda: results.append(send([path], to)[0].result)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert results == [DeliveryResult.SENT] * 4


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> ClientTls:
    files = authority.issue("node.example")
    return ClientTls(ca=files.ca, certificate=files.certificate, key=files.key)


@contextmanager
def storescp_with_tls(folder: Path, files: TlsFiles) -> Iterator[tuple[Destination, Path]]:
    options = ["+tls", files.key, files.certificate, "+cf", files.ca]
    with storescp(folder, "+xa", *map(str, options)) as running_one:
        yield running_one


def sent_over_tls(folder: Path, files: TlsFiles, tls: ClientTls) -> DeliveryOutcome:
    """What became of an object; the bytes are there if, and only if, it was sent."""
    path = saved(small_object(), folder)
    with storescp_with_tls(folder, files) as (to, inbox):
        (outcome,) = send([path], dataclasses.replace(to, tls=tls), timeouts=SHORT)
        got = [data_set_of(file) for file in inbox.iterdir()]
    assert got == ([data_set_of(path)] if outcome.result is DeliveryResult.SENT else [])
    return outcome


def test_objects_go_over_tls_when_both_sides_know_each_other(
    tmp_path: Path, authority: Authority, ours: ClientTls
) -> None:
    outcome = sent_over_tls(tmp_path, authority.issue("127.0.0.1"), ours)
    assert outcome.result is DeliveryResult.SENT


def test_many_objects_and_an_echo_over_tls(tmp_path: Path, authority: Authority, ours: ClientTls) -> None:
    paths = [*results_of_a_reading(tmp_path), saved(small_object(PixelData=bytes(2**21)), tmp_path)]
    with storescp_with_tls(tmp_path, authority.issue("127.0.0.1")) as (to, inbox):
        secured = dataclasses.replace(to, tls=ours)
        assert echo(secured).ok
        assert {outcome.result for outcome in send(paths, secured)} == {DeliveryResult.SENT}
        assert not echo(to, timeouts=SHORT).ok
        got = sorted(data_set_of(path) for path in inbox.iterdir())
    assert got == sorted(data_set_of(path) for path in paths)


@pytest.mark.parametrize("by", ["fingerprint", "name"])
def test_a_certificate_may_be_bound_by_fingerprint_or_name(
    tmp_path: Path, authority: Authority, ours: ClientTls, by: str
) -> None:
    files = authority.issue("pacs.hospital.example")
    own, end, _ = files.certificate.read_text().partition("-----END CERTIFICATE-----")
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(own + end)).hexdigest()
    expected = fingerprint if by == "fingerprint" else "pacs.hospital.example"
    outcome = sent_over_tls(tmp_path, files, dataclasses.replace(ours, expected=expected))
    assert outcome.result is DeliveryResult.SENT


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("elsewhere.example", {}, "its certificate is not for the host that is called"),
        ("127.0.0.1", {"expected": "ab" * 32}, "its certificate is not the one that it is bound to"),
        (
            "127.0.0.1",
            {"expected": "elsewhere.example"},
            "its certificate is not the one that it is bound to",
        ),
        ("127.0.0.1", {"ca": None}, "of an unknown authority, that is, of none in [[pacs]] ca"),
        ("127.0.0.1", {"ca": Path("absent.pem")}, "[[pacs]] ca: absent.pem does not exist"),
    ],
)
def test_nothing_goes_to_whom_it_should_not(
    tmp_path: Path, authority: Authority, ours: ClientTls, name: str, changes: dict[str, Any], words: str
) -> None:
    outcome = sent_over_tls(tmp_path, authority.issue(name), dataclasses.replace(ours, **changes))
    assert outcome.result is DeliveryResult.TRANSIENT
    assert words in outcome.detail


def test_a_peer_may_refuse_a_node_without_a_certificate(
    tmp_path: Path, authority: Authority, ours: ClientTls
) -> None:
    anonymous = dataclasses.replace(ours, certificate=None, key=None)
    outcome = sent_over_tls(tmp_path, authority.issue("127.0.0.1"), anonymous)
    assert outcome.result is DeliveryResult.TRANSIENT
    # The end of the connection may overtake the alert that says why.
    assert (
        "the peer refused what this node showed" in outcome.detail or "ended the connection" in outcome.detail
    )


def test_a_peer_of_another_authority_is_refused(
    tmp_path: Path, authority: Authority, ours: ClientTls
) -> None:
    stranger = Authority(tmp_path / "stranger").issue("127.0.0.1", trusts=authority.file)
    outcome = sent_over_tls(tmp_path, stranger, ours)
    assert outcome.result is DeliveryResult.TRANSIENT
    assert "unknown authority" in outcome.detail


def test_a_peer_without_tls_is_told_so(tmp_path: Path, ours: ClientTls) -> None:
    with storescp(tmp_path) as (to, _):
        outcome = echo(dataclasses.replace(to, tls=ours), timeouts=SHORT)
    assert not outcome.ok
    assert f"no TLS with {to.host} port {to.port}" in outcome.detail


@pytest.mark.parametrize("drips", [False, True])
def test_a_handshake_that_does_not_end_is_broken_off(ours: ClientTls, drips: bool) -> None:
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                # the head of a record of 16 KiB, and then a byte of it from time to time
                if drips:
                    connection.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")
                while not done.wait(0.1):
                    if drips:
                        connection.sendall(b"\0")

        peer = threading.Thread(target=serve)
        peer.start()
        begin = time.monotonic()
        to = dataclasses.replace(destination(server.getsockname()[1]), tls=ours)
        outcome = echo(to, timeouts=SHORT)
        seconds = time.monotonic() - begin
        done.set()
        peer.join(DEADLINE_S)
    assert not outcome.ok
    assert "timed out" in outcome.detail
    assert SHORT.connection_s <= seconds < SHORT.connection_s + 10.0


def test_after_a_request_without_answer_no_other_waits_as_long(tmp_path: Path) -> None:
    asked: list[str] = []
    over = threading.Event()

    def answer(event: evt.Event) -> int:
        asked.append(str(event.request.AffectedSOPInstanceUID))
        if len(asked) > 1:
            over.wait(DEADLINE_S)
        return 0x0000

    paths = [saved(small_object(), tmp_path) for _ in range(4)]
    try:
        with pacs(answer) as to:
            outcomes = send(paths, to, timeouts=dataclasses.replace(SHORT, dimse_s=1.0))
            over.set()
    finally:
        over.set()
    assert [outcome.result for outcome in outcomes] == [DeliveryResult.SENT, *[DeliveryResult.TRANSIENT] * 3]
    assert len(asked) == 2
