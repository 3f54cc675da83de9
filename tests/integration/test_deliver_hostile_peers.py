"""Peers that lie, drip and say back what they were shown: each is an outcome, and none of them holds a worker."""

from __future__ import annotations

import binascii
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE

from ich_node.deliver import scu
from ich_node.deliver.commitment import CommitmentState, request_commitment
from ich_node.deliver.query import Presence, StoredObject, stored
from ich_node.deliver.scu import DeliveryResult, Destination, Timeouts
from ich_node.deliver.stow import send
from ich_node.deliver.web_client import WebDestination
from ich_node.notify import mail
from ich_node.notify.mail import MailRelay, send_mail
from ich_node.notify.outcome import NoticeResult
from ich_node.receive.commitment_results import CommitmentResults
from ich_node.receive.upper_layer import configure_pynetdicom
from tests.integration.test_notify import dribble, server_of
from tests.notice_builders import notice
from tests.small_objects import saved, small_object
from tests.web_service import Exchange, reply, web_service

SHORT = Timeouts(connection_s=2.0, acse_s=2.0, dimse_s=2.0, network_s=2.0)
SLACK_S = 8.0
NO_HOSTS = ["pacs..example", "x" * 64]


@contextmanager
def dripping_pacs(length: int) -> Iterator[Destination]:
    """Answers the association request with a PDU that claims so much, a byte at a time."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(struct.pack(">BBI", 2, 0, length))
        dribble(connection, b"\0")

    with server_of(serve) as port:
        yield Destination(name="the PACS", ae_title="PACS", host="127.0.0.1", port=port)


@pytest.mark.parametrize("length", [2_000, 2**32 - 1])
def test_a_pacs_that_drips_a_pdu_holds_nobody(tmp_path: Path, length: int) -> None:
    asked = StoredObject(study_instance_uid="1.2", series_instance_uid="1.3", sop_instance_uid="1.4")
    began = time.monotonic()
    with dripping_pacs(length) as pacs:
        (outcome,) = scu.send([saved(small_object(), tmp_path)], pacs, timeouts=SHORT)
        (confirmation,) = stored([asked], pacs, timeouts=SHORT)
        commitment = request_commitment(
            [("1.2", "1.4")], "2.25.7", pacs, results=CommitmentResults(tmp_path / "results"), timeouts=SHORT
        )
    assert time.monotonic() - began < 3 * SHORT.network_s + SLACK_S
    assert outcome.result is DeliveryResult.TRANSIENT
    assert confirmation.presence is Presence.CANNOT_TELL
    assert commitment.state is CommitmentState.NO_ANSWER


@contextmanager
def pacs_with_one_answer_too_many(id_offset: int) -> Iterator[Destination]:
    """Says success once more with the first object, and refuses all others."""
    seen: list[str] = []

    def store(event: evt.Event) -> int:
        seen.append(str(event.request.AffectedSOPInstanceUID))
        if len(seen) > 1:
            return 0xC001
        extra = C_STORE()
        extra.MessageIDBeingRespondedTo = event.request.MessageID + id_offset
        extra.AffectedSOPClassUID = event.request.AffectedSOPClassUID
        extra.AffectedSOPInstanceUID = event.request.AffectedSOPInstanceUID
        extra.Status = 0x0000
        event.assoc.dimse.send_msg(extra, event.context.context_id)
        return 0x0000

    configure_pynetdicom()
    entity = AE(ae_title="PACS")
    entity.add_supported_context(CTImageStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        port = int(server.socket.getsockname()[1])
        yield Destination(name="the PACS", ae_title="PACS", host="127.0.0.1", port=port)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("id_offset", [0, 1, 7])
def test_the_verdict_on_one_object_is_not_taken_for_that_on_another(tmp_path: Path, id_offset: int) -> None:
    paths = [saved(small_object(), tmp_path) for _ in range(3)]
    with pacs_with_one_answer_too_many(id_offset) as pacs:
        outcomes = scu.send(paths, pacs, timeouts=SHORT)
    assert DeliveryResult.SENT not in {outcome.result for outcome in outcomes[1:]}
    assert outcomes[-1].result is DeliveryResult.TRANSIENT
    assert "answered another request than it was sent" in outcomes[-1].detail


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_is_no_host_name_is_said(tmp_path: Path, host: str) -> None:
    pacs = Destination(name="the PACS", ae_title="PACS", host=host, port=104)
    (outcome,) = scu.send([saved(small_object(), tmp_path)], pacs, timeouts=SHORT)
    assert outcome.result is DeliveryResult.TRANSIENT
    assert host in outcome.detail
    relay = MailRelay(host=host, sender="node@hospital.example", recipients=("a@x.example",), security="none")
    told = send_mail(notice(), relay)
    assert told.result is NoticeResult.TRANSIENT
    assert host in told.detail


def test_a_challenge_that_is_no_base64_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refuse(_: MailRelay) -> Iterator[Any]:
        binascii.a2b_base64("abc")
        yield

    monkeypatch.setattr(mail, "_connection", refuse)
    relay = MailRelay(host="mail.invalid", sender="node@hospital.example", recipients=("a@x.example",))
    assert send_mail(notice(), relay).result is NoticeResult.TRANSIENT


@pytest.mark.parametrize(
    "credentials",
    [{"token": "abc.def.ghi"}, {"user": "node", "password": "a pass-word"}],
    ids=["token", "user"],
)
def test_credentials_as_they_went_out_are_not_said_back(tmp_path: Path, credentials: dict[str, str]) -> None:
    def serve(exchange: Exchange) -> None:
        exchange.body()
        shown = exchange.headers["authorization"]
        exchange.answer(f"403 not with {shown}", f"not with {shown}".encode())

    with web_service(serve) as service:
        to = WebDestination(name="the PACS", url=service.url, **credentials)
        (outcome,) = send([saved(small_object(), tmp_path)], to, timeouts=SHORT)
        shown = service.asked[0].headers["authorization"].partition(" ")[2]
    assert outcome.detail.count("not with") == 2
    assert shown not in outcome.detail


def test_a_chunk_of_a_negative_size_is_no_answer(tmp_path: Path) -> None:
    def serve(exchange: Exchange) -> None:
        exchange.body()
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n")

    with web_service(serve) as service:
        to = WebDestination(name="the PACS", url=service.url)
        (outcome,) = send([saved(small_object(), tmp_path)], to, timeouts=SHORT)
    assert outcome.result is DeliveryResult.TRANSIENT


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_answer_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    item = small_object()
    said = (
        f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?><NativeDicomModel>'
        '<DicomAttribute tag="00081199" vr="SQ"><Item number="1"><DicomAttribute tag="00081155" vr="UI">'
        f'<Value number="1">{item.SOPInstanceUID}</Value></DicomAttribute></Item></DicomAttribute></NativeDicomModel>'
    )
    with web_service(reply("200 OK", said.encode(encoding))) as service:
        to = WebDestination(name="the PACS", url=service.url)
        (outcome,) = send([saved(item, tmp_path)], to, timeouts=SHORT)
    assert outcome.result is DeliveryResult.SENT
