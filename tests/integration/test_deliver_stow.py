"""Delivery by STOW-RS to Orthanc, to this node's own service, and to services that misbehave."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import ssl
import time
import tracemalloc
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from ich_node.client_tls import ClientTls
from ich_node.deliver.scu import DeliveryOutcome, DeliveryResult, Timeouts
from ich_node.deliver.stow import send
from ich_node.deliver.web_client import WebDestination
from ich_node.receive.tls import TlsFiles, server_context
from tests.certificates import Authority
from tests.integration.test_deliver import free_port, is_listening, results_of_a_reading, running, wait_until
from tests.integration.test_stow_rs import OpenNode, open_node  # noqa: F401
from tests.small_objects import data_set_of, saved, small_object
from tests.web_service import Exchange, Reply, WebService, reply, web_service

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SHORT = Timeouts(connection_s=2.0, acse_s=2.0, dimse_s=2.0, network_s=2.0)
SLACK_S = 10.0
SENT, WARNING = DeliveryResult.SENT, DeliveryResult.WARNING
REFUSED, TRANSIENT = DeliveryResult.REFUSED, DeliveryResult.TRANSIENT


def to(service: WebService, **changes: Any) -> WebDestination:
    return WebDestination(name="the PACS", url=service.url, **changes)


def uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def told(*, stored: dict[Path, int] | None = None, failed: dict[Path, int] | None = None) -> bytes:
    """A Store Instances Response Module; a warning of 0 is none."""

    def items(of: dict[Path, int] | None, reason: str) -> dict[str, Any]:
        return {
            "vr": "SQ",
            "Value": [
                {
                    "00081155": {"vr": "UI", "Value": [uid_of(path)]},
                    **({reason: {"vr": "US", "Value": [code]}} if code else {}),
                }
                for path, code in (of or {}).items()
            ],
        }

    return json.dumps({"00081199": items(stored, "00081196"), "00081198": items(failed, "00081197")}).encode()


def results(outcomes: tuple[DeliveryOutcome, ...]) -> list[DeliveryResult]:
    return [outcome.result for outcome in outcomes]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return results_of_a_reading(tmp_path)


# Orthanc


@contextlib.contextmanager
def orthanc_with_dicomweb(folder: Path) -> Iterator[tuple[WebDestination, int]]:
    """Its web service, and its port for DICOM."""
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.exists():
        pytest.skip("Orthanc or its DICOMweb plugin is not installed")
    dicom, http = free_port(), free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "DicomAlwaysAllowFind": True,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"node": "a pass-word"},
        "Plugins": [str(PLUGIN)],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with running([program, str(folder / "orthanc.json")], dicom, folder / "log"):
        wait_until(lambda: is_listening(http))
        url = f"http://127.0.0.1:{http}/dicom-web"
        yield WebDestination(name="Orthanc", url=url, user="node", password="a pass-word\n"), dicom


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDestination]:
    with orthanc_with_dicomweb(tmp_path_factory.mktemp("orthanc")) as (service, _):
        yield service


def retrieved(service: WebDestination, path: Path) -> bytes:
    """An object as WADO-RS gives it back, unchanged."""
    dataset = pydicom.dcmread(path)
    uids = dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID
    request = urllib.request.Request(f"{service.url}/studies/{uids[0]}/series/{uids[1]}/instances/{uids[2]}")
    request.add_header("Accept", 'multipart/related; type="application/dicom"; transfer-syntax=*')
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, service.url, service.user, service.password.strip())
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    with opener.open(request) as answer:
        content: bytes = answer.read()
    return content


def test_orthanc_gives_back_the_bytes_that_it_was_sent(orthanc: WebDestination, paths: list[Path]) -> None:
    outcomes = send(paths, orthanc)
    assert [outcome.path for outcome in outcomes] == paths
    assert results(outcomes) == [SENT] * 3
    for path in paths:
        assert path.read_bytes() in retrieved(orthanc, path)
    assert all(outcome.is_delivered for outcome in send(paths, orthanc))


def test_an_object_that_orthanc_does_not_take_keeps_no_other_out(
    orthanc: WebDestination, paths: list[Path], tmp_path: Path
) -> None:
    bad = saved(small_object(StudyInstanceUID=None), tmp_path)
    outcomes = send([paths[0], bad, *paths[1:]], orthanc)
    assert results(outcomes) == [SENT, REFUSED, SENT, SENT]
    assert outcomes[1].detail == "0xC000 Cannot Understand (HTTP 400)"


def test_a_wrong_password_may_be_mended(orthanc: WebDestination, paths: list[Path]) -> None:
    outcomes = send(paths, dataclasses.replace(orthanc, password="another one"))
    assert results(outcomes) == [TRANSIENT] * 3
    assert outcomes[0].detail == "HTTP 401 Unauthorized"


def test_a_wrong_path_may_be_mended(orthanc: WebDestination, paths: list[Path]) -> None:
    outcomes = send(paths, dataclasses.replace(orthanc, url=orthanc.url.replace("dicom-web", "dicomweb")))
    assert results(outcomes) == [TRANSIENT] * 3
    assert "HTTP 404 Not Found" in outcomes[0].detail
    assert "Unknown resource" in outcomes[0].detail


# this node's own service


def test_this_nodes_own_service_takes_what_this_node_sends(
    open_node: OpenNode,  # noqa: F811
    paths: list[Path],
) -> None:
    node = open_node()
    outcomes = send(paths, WebDestination(name="node", url=node.url))
    assert results(outcomes) == [SENT] * 3
    assert sorted(map(data_set_of, node.files)) == sorted(map(data_set_of, paths))


def test_this_nodes_own_service_says_which_object_it_refuses(
    open_node: OpenNode,  # noqa: F811
    paths: list[Path],
    tmp_path: Path,
) -> None:
    node = open_node()
    bad = saved(small_object(SOPClassUID="1.2.3.4"), tmp_path)
    outcomes = send([*paths, bad], WebDestination(name="node", url=node.url))
    assert results(outcomes) == [SENT, SENT, SENT, REFUSED]
    assert outcomes[3].status is not None
    assert f"0x{outcomes[3].status:04X}" in outcomes[3].detail


# what answers mean


def test_success_with_failures_inside_is_a_failure_of_those(tmp_path: Path) -> None:
    paths = [saved(small_object(), tmp_path) for _ in range(8)]
    answer = told(
        stored={paths[0]: 0, paths[1]: 0xB000, paths[2]: 0},
        failed={paths[2]: 0xA900, paths[3]: 0xA700, paths[4]: 0x0122, paths[5]: 0, paths[6]: 0xB00E},
    )
    with web_service(reply("200 OK", answer)) as service:
        outcomes = send(paths, to(service))
    assert results(outcomes) == [SENT, WARNING, REFUSED, TRANSIENT, REFUSED, TRANSIENT, WARNING, TRANSIENT]
    assert [outcome.status for outcome in outcomes] == [
        *(None, 0xB000, 0xA900, 0xA700, 0x0122, None, 0xB00E, None)
    ]
    assert outcomes[1].detail == "0xB000 Coercion of Data Elements (HTTP 200)"
    assert outcomes[2].detail == "0xA900 Data Set Does Not Match SOP Class (HTTP 200)"
    assert "does not say why" in outcomes[5].detail
    assert "does not say that it is stored" in outcomes[7].detail
    assert len(service.asked) == 1


@pytest.mark.parametrize("status", ["202 Accepted", "409 Conflict"])
def test_some_of_a_batch_may_be_refused(paths: list[Path], status: str) -> None:
    failed = dict.fromkeys(paths, 0xC122) if status.startswith("409") else {paths[1]: 0xC122}
    stored = {} if status.startswith("409") else {paths[0]: 0, paths[2]: 0}
    with web_service(reply(status, told(stored=stored, failed=failed))) as service:
        outcomes = send(paths, to(service))
    assert [path for path, outcome in zip(paths, outcomes, strict=True) if outcome.result is REFUSED] == [
        *failed
    ]
    assert [path for path, outcome in zip(paths, outcomes, strict=True) if outcome.is_delivered] == [*stored]
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("status", "result"),
    [
        ("200 OK", TRANSIENT),
        ("204 No Content", TRANSIENT),
        ("301 Moved Permanently", TRANSIENT),
        ("400 Bad Request", REFUSED),
        ("401 Unauthorized", TRANSIENT),
        ("403 Forbidden", TRANSIENT),
        ("404 Not Found", TRANSIENT),
        ("409 Conflict", REFUSED),
        ("413 Content Too Large", REFUSED),
        ("415 Unsupported Media Type", REFUSED),
        ("429 Too Many Requests", TRANSIENT),
        ("500 Internal Server Error", TRANSIENT),
        ("503 Service Unavailable", TRANSIENT),
        ("599 Moon", TRANSIENT),
    ],
)
def test_a_status_without_a_word_on_objects(tmp_path: Path, status: str, result: DeliveryResult) -> None:
    page = (
        b"" if status.startswith("204") else b"<html><style>p { }</style><p>because of the\n\x07moon</html>"
    )
    with web_service(reply(status, page)) as service:
        (outcome,) = send([saved(small_object(), tmp_path)], to(service))
    assert outcome.result is result
    assert f"HTTP {status}" in outcome.detail
    assert outcome.detail.endswith("because of the moon") == bool(page)
    assert outcome.status is None


def test_an_object_to_blame_is_found_by_sending_each_alone(paths: list[Path]) -> None:
    def serve(exchange: Exchange) -> None:
        body = exchange.body()
        there = [path for path in paths if path.read_bytes() in body]
        if paths[1] in there:
            exchange.answer("400 Bad Request", b"I do not like one of them")
        else:
            exchange.answer("200 OK", told(stored=dict.fromkeys(there, 0)))

    with web_service(serve) as service:
        outcomes = send(paths, to(service))
    assert results(outcomes) == [SENT, REFUSED, SENT]
    assert len(service.asked) == 4


def test_unavailable_then_well(paths: list[Path]) -> None:
    busy = reply("503 Service Unavailable", b"archiving", Retry_After="120")
    with web_service(busy, reply("200 OK", told(stored=dict.fromkeys(paths, 0)))) as service:
        first, second = send(paths, to(service)), send(paths, to(service))
    assert [(outcome.result, outcome.retry_after_s) for outcome in first] == [(TRANSIENT, 120.0)] * 3
    assert first[0].detail == "HTTP 503 Service Unavailable: archiving"
    assert results(second) == [SENT] * 3


@pytest.mark.parametrize("wait", ["soon", "-5", "9" * 5000])
def test_a_senseless_wish_to_wait_is_none(tmp_path: Path, wait: str) -> None:
    with web_service(reply("503 Service Unavailable", Retry_After=wait)) as service:
        (outcome,) = send([saved(small_object(), tmp_path)], to(service))
    assert outcome.result is TRANSIENT
    assert outcome.retry_after_s is None


def test_redirects_are_told_and_not_followed(tmp_path: Path) -> None:
    with web_service(reply("200 OK")) as other:
        url = f"{other.url}/studies"
        away = reply("307 Temporary Redirect", Location=url)
        with web_service(away) as service:
            (outcome,) = send([saved(small_object(), tmp_path)], to(service, token="t0ken"))
        assert other.asked == []
    assert outcome.result is TRANSIENT
    assert outcome.detail == f"HTTP 307 Temporary Redirect: {url}"


# who sends


@pytest.mark.parametrize(
    ("credentials", "header"),
    [
        ({}, None),
        ({"token": "abc.def\n"}, "Bearer abc.def"),
        ({"user": "nöde", "password": "pass:word\n"}, "Basic bsO2ZGU6cGFzczp3b3Jk"),
    ],
)
def test_credentials_are_shown_to_the_service_and_to_nobody_else(
    tmp_path: Path, credentials: dict[str, str], header: str | None
) -> None:
    def serve(exchange: Exchange) -> None:
        exchange.body()
        said = "you are pass:word abc.def"
        exchange.answer("403 Forbidden", said.encode())

    with web_service(serve) as service:
        (outcome,) = send([saved(small_object(), tmp_path)], to(service, **credentials))
    (asked,) = service.asked
    assert asked.headers.get("authorization") == header
    assert (asked.method, asked.target) == ("POST", "/dicom-web/studies")
    for secret in ("token", "password"):
        value = credentials.get(secret, "").strip()
        assert not value or value not in outcome.detail
    assert "you are" in outcome.detail


@pytest.mark.parametrize("token", ["a\r\nX-Evil: 1", "schlüssel"])
def test_a_token_that_is_none_is_not_sent(tmp_path: Path, token: str) -> None:
    with web_service(reply("200 OK")) as service:
        (outcome,) = send([saved(small_object(), tmp_path)], to(service, token=token))
    assert service.asked == []
    assert outcome.result is TRANSIENT
    assert token not in outcome.detail
    assert "token" in outcome.detail


# services that misbehave


def silent(exchange: Exchange) -> None:
    exchange.body()
    exchange.ended.wait(60.0)


def dripping(exchange: Exchange) -> None:
    """Each byte in time, and never a whole answer."""
    exchange.body()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not exchange.ended.wait(0.1):
        exchange.connection.sendall(b"z")


def dripping_body(exchange: Exchange) -> None:
    exchange.body()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not exchange.ended.wait(0.1):
        exchange.connection.sendall(b" ")


def cut_off(exchange: Exchange) -> None:
    exchange.body()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}")


def endless(exchange: Exchange) -> None:
    exchange.body()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        exchange.connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def endless_head(exchange: Exchange) -> None:
    exchange.body()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        exchange.connection.sendall(b"X: " + bytes(b"y" * 1000) + b"\r\n")


def no_http(exchange: Exchange) -> None:
    exchange.body()
    exchange.connection.sendall(b"220 smtp.example ESMTP\r\n")


def gone(exchange: Exchange) -> None:
    exchange.body()


@pytest.mark.parametrize(
    "misbehaviour", [silent, dripping, dripping_body, cut_off, endless, endless_head, no_http, gone]
)
def test_a_service_that_misbehaves_is_worth_another_attempt(tmp_path: Path, misbehaviour: Reply) -> None:
    with web_service(misbehaviour) as service:
        began = time.monotonic()
        (outcome,) = send([saved(small_object(), tmp_path)], to(service), timeouts=SHORT)
        seconds = time.monotonic() - began
    assert outcome.result is TRANSIENT
    assert "the PACS" in outcome.detail
    assert seconds < SHORT.dimse_s + SLACK_S
    slow = misbehaviour in (silent, dripping, dripping_body)
    assert ("in time" in outcome.detail) == slow


def large_object(folder: Path, size: int) -> Path:
    return saved(small_object(PixelData=bytes(size)), folder)


def test_who_will_not_have_the_rest_is_heard(tmp_path: Path) -> None:
    def too_large(exchange: Exchange) -> None:
        exchange.answer("413 Content Too Large", b"too much")
        exchange.connection.shutdown(socket.SHUT_WR)
        while exchange.connection.recv(2**20):
            pass

    with web_service(too_large) as service:
        (outcome,) = send([large_object(tmp_path, 2**24)], to(service))
    assert outcome.result is REFUSED
    assert outcome.detail == "HTTP 413 Content Too Large: too much"


def test_who_takes_nothing_holds_nobody_up(tmp_path: Path) -> None:
    with web_service(lambda exchange: exchange.ended.wait(60.0) and None) as service:
        began = time.monotonic()
        (outcome,) = send([large_object(tmp_path, 2**24)], to(service), timeouts=SHORT)
        assert time.monotonic() - began < SHORT.dimse_s + SLACK_S
    assert outcome.result is TRANSIENT
    assert "in time" in outcome.detail


def test_large_files_are_not_held_in_memory(tmp_path: Path) -> None:
    paths = [large_object(tmp_path, 2**24) for _ in range(2)]

    def swallow(exchange: Exchange) -> None:
        left = int(exchange.headers["content-length"]) - len(exchange.first)
        while left:
            left -= len(exchange.connection.recv(65536))
        exchange.answer("200 OK", told(stored=dict.fromkeys(paths, 0)))

    with web_service(swallow) as service:
        tracemalloc.start()
        outcomes = send(paths, to(service))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert results(outcomes) == [SENT, SENT]
    assert peak < 4 * 2**20


# files


def test_files_that_cannot_be_sent_do_not_keep_the_others(paths: list[Path], tmp_path: Path) -> None:
    no_dicom, absent = tmp_path / "text.dcm", tmp_path / "absent.dcm"
    no_dicom.write_text("no DICOM")
    with web_service(reply("200 OK", told(stored={paths[0]: 0}))) as service:
        outcomes = send([no_dicom, paths[0], absent], to(service))
        assert results(outcomes) == [REFUSED, SENT, REFUSED]
        assert send([absent], to(service))[0].result is REFUSED
        assert send([], to(service)) == ()
    assert len(service.asked) == 1


def test_a_file_that_shrinks_while_it_is_sent_is_tried_again(tmp_path: Path) -> None:
    paths = [large_object(tmp_path, 2**24), saved(small_object(), tmp_path)]

    def shrink(exchange: Exchange) -> None:
        os.truncate(paths[1], 500)
        while exchange.connection.recv(2**20):
            pass

    with web_service(shrink) as service:
        outcomes = send(paths, to(service))
    assert results(outcomes) == [TRANSIENT, TRANSIENT]
    assert "cannot be read" in outcomes[1].detail


# nobody there


def test_a_closed_port_and_an_unknown_host_are_worth_another_attempt(tmp_path: Path) -> None:
    path = saved(small_object(), tmp_path)
    nowhere = [f"http://127.0.0.1:{free_port()}/dicom-web", "http://pacs.invalid/dicom-web"]
    for url in nowhere:
        (outcome,) = send([path], WebDestination(name="gone", url=url), timeouts=SHORT)
        assert outcome.result is TRANSIENT
        assert url.split("/")[2].split(":")[0] in outcome.detail


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> TlsFiles:
    return authority.issue("node.example")


def trusting(files: TlsFiles, **changes: Any) -> ClientTls:
    return dataclasses.replace(
        ClientTls(ca=files.ca, certificate=files.certificate, key=files.key), **changes
    )


def sent_over_tls(path: Path, context: ssl.SSLContext, tls: ClientTls) -> tuple[DeliveryOutcome, int]:
    """What became of it, and how many requests the service got."""
    with web_service(reply("200 OK", told(stored={path: 0})), context=context) as service:
        (outcome,) = send([path], to(service, tls=tls), timeouts=SHORT)
    return outcome, len(service.asked)


def test_both_sides_show_a_certificate(tmp_path: Path, authority: Authority, ours: TlsFiles) -> None:
    context = server_context(authority.issue("localhost"))
    outcome, asked = sent_over_tls(saved(small_object(), tmp_path), context, trusting(ours))
    assert (outcome.result, asked) == (SENT, 1)


def test_a_certificate_may_be_bound_by_fingerprint_or_name(
    tmp_path: Path, authority: Authority, ours: TlsFiles
) -> None:
    files = authority.issue("pacs.hospital.example")
    own, end, _ = files.certificate.read_text().partition("-----END CERTIFICATE-----")
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(own + end)).hexdigest()
    path = saved(small_object(), tmp_path)
    for expected in (fingerprint, "pacs.hospital.example"):
        outcome, asked = sent_over_tls(path, server_context(files), trusting(ours, expected=expected))
        assert (outcome.result, asked) == (SENT, 1)
    outcome, asked = sent_over_tls(path, server_context(files), trusting(ours, expected="ab" * 32))
    assert (outcome.result, asked) == (TRANSIENT, 0)
    assert outcome.detail == "no TLS with localhost: its certificate is not the one that it is bound to"


def test_a_certificate_for_another_host_gets_nothing(
    tmp_path: Path, authority: Authority, ours: TlsFiles
) -> None:
    context = server_context(authority.issue("elsewhere.example"))
    outcome, asked = sent_over_tls(saved(small_object(), tmp_path), context, trusting(ours))
    assert (outcome.result, asked) == (TRANSIENT, 0)
    assert "not for the host that is called" in outcome.detail


def test_an_unknown_authority_gets_nothing(tmp_path: Path, authority: Authority, ours: TlsFiles) -> None:
    stranger = Authority(tmp_path / "stranger").issue("localhost", trusts=authority.file)
    path = saved(small_object(), tmp_path)
    for tls in (trusting(ours), trusting(ours, ca=None)):  # ours, and those of the system
        outcome, asked = sent_over_tls(path, server_context(stranger), tls)
        assert (outcome.result, asked) == (TRANSIENT, 0)
        assert "unknown authority, that is, of none in [[pacs]] ca" in outcome.detail


def test_without_the_nodes_certificate_a_service_may_refuse(
    tmp_path: Path, authority: Authority, ours: TlsFiles
) -> None:
    context = server_context(authority.issue("localhost"))
    tls = trusting(ours, certificate=None, key=None)
    outcome, asked = sent_over_tls(saved(small_object(), tmp_path), context, tls)
    assert (outcome.result, asked) == (TRANSIENT, 0)
    # The end of the connection may overtake the alert that says why.
    assert "the peer refused what this node showed" in outcome.detail or "broke off" in outcome.detail


def test_files_that_cannot_be_used_are_named(tmp_path: Path, authority: Authority, ours: TlsFiles) -> None:
    context = server_context(authority.issue("localhost"))
    outcome, asked = sent_over_tls(
        saved(small_object(), tmp_path), context, trusting(ours, ca=tmp_path / "absent.pem")
    )
    assert (outcome.result, asked) == (TRANSIENT, 0)
    assert outcome.detail.startswith(f"[[pacs]] ca: {tmp_path / 'absent.pem'} does not exist")


def test_a_service_without_tls_is_told_so(tmp_path: Path, ours: TlsFiles) -> None:
    path = saved(small_object(), tmp_path)
    with web_service(reply("200 OK")) as service:
        secured = dataclasses.replace(
            to(service, tls=trusting(ours)), url=service.url.replace("http:", "https:")
        )
        (outcome,) = send([path], secured, timeouts=SHORT)
    assert outcome.result is TRANSIENT
    assert "no TLS" in outcome.detail


def test_a_handshake_that_does_not_come_ends_in_time(tmp_path: Path, ours: TlsFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"https://localhost:{nobody.getsockname()[1]}"
        began = time.monotonic()
        destination = WebDestination(name="the PACS", url=url, tls=trusting(ours))
        (outcome,) = send([saved(small_object(), tmp_path)], destination, timeouts=SHORT)
        assert time.monotonic() - began < SHORT.connection_s + SLACK_S
    assert outcome.result is TRANSIENT
    assert "timed out" in outcome.detail
