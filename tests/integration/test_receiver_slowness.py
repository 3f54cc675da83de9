"""Peers that say nothing, or too little in too long a time, against a receiver with short waits."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ich_node.receive import paced_connection
from ich_node.receive.limits import Limits
from ich_node.receive.listener import Endpoint
from ich_node.receive.received import AssociationSummary
from ich_node.receive.receiver import Receiver
from ich_node.receive.spool import Spool
from ich_node.receive.tls import ServerIdentity, TlsFiles, client_context
from tests.bare_peer import (
    A_ABORT,
    A_RELEASE_RP,
    C_FIND_RQ,
    COMMAND,
    DATA,
    HOST,
    LAST,
    STORE_CONTEXT,
    BarePeer,
    associate_rq,
    command_set,
    p_data,
    pdv,
    store_message,
    store_rq,
)
from tests.certificates import Authority
from tests.integration.test_receiver_attacks import connections
from tests.receiver_process import wait_until
from tests.small_objects import encoded, small_object

SLACK_S = 8.0
"""What is cut off after a second is cut off so much later at the latest, on a busy machine."""
STEP_S = 0.05


@dataclass
class Desk:
    """A receiver in this process, with what it was told about associations."""

    receiver: Receiver
    spool: Spool
    ended: list[AssociationSummary] = field(default_factory=list)

    @property
    def connections(self) -> int:
        return self.receiver._scp.connections


OpenDesk = Callable[..., Desk]


@pytest.fixture
def open_desk(tmp_path: Path, authority: Authority) -> Iterator[OpenDesk]:
    opened: list[Desk] = []

    def start(**limits: float) -> Desk:
        ended: list[AssociationSummary] = []
        spool = Spool(tmp_path / "spool")
        receiver = Receiver(
            ae_title="ICH_NODE",
            spool=spool,
            on_instance=lambda _: None,
            on_association_end=ended.append,
            endpoints=(Endpoint(host=HOST, port=0), Endpoint(host=HOST, port=0, tls=True)),
            limits=Limits(**limits),  # type: ignore[arg-type]
            tls=ServerIdentity(authority.issue("node.example")),
        )
        receiver.start()
        opened.append(Desk(receiver=receiver, spool=spool, ended=ended))
        return opened[-1]

    yield start
    for desk in opened:
        desk.receiver.stop()


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message may be slow for half a second."""
    monkeypatch.setattr(paced_connection, "_GRACE_SECONDS", 0.5)


def drip(connection: socket.socket, content: bytes, *, size: int = 1) -> float:
    """Send little by little until the peer has had enough or it is all sent; gives the seconds that it took."""
    began = time.monotonic()
    ended = threading.Event()
    for at in range(0, len(content), size):
        try:
            connection.sendall(content[at : at + size])
        except OSError:
            break
        ended.wait(STEP_S)
    return time.monotonic() - began


def assert_served(desk: Desk) -> None:
    dataset = small_object()
    with BarePeer.associated(desk.receiver.port) as peer:
        assert peer.store(dataset.SOPInstanceUID, encoded(dataset)) == 0x0000
        assert peer.echo() == 0x0000
        peer.release()


def test_an_association_request_byte_by_byte(open_desk: OpenDesk, caplog: pytest.LogCaptureFixture) -> None:
    desk = open_desk(acse_timeout_s=1.0)
    request = associate_rq()
    assert len(request) * STEP_S > 10
    with BarePeer(desk.receiver.port) as slow:
        dripping = threading.Thread(target=drip, args=(slow.connection, request))
        began = time.monotonic()
        dripping.start()
        assert_served(desk)
        dripping.join()
        assert time.monotonic() - began < 1.0 + SLACK_S
        assert slow.answer()[0] in (0, A_ABORT)
    wait_until(lambda: desk.connections == 0, "the connection is given up")
    assert "from 127.0.0.1: the association was not requested in time" in caplog.text


def test_half_an_association_request(open_desk: OpenDesk, caplog: pytest.LogCaptureFixture) -> None:
    desk = open_desk(acse_timeout_s=1.0)
    with connections(desk.receiver.port, 50, associate_rq()[:100]) as begun:
        wait_until(lambda: desk.connections == 50, "all are being served")
        assert_served(desk)
        for connection in begun:
            connection.settimeout(1.0 + SLACK_S)
            assert connection.recv(1) == b""
    wait_until(lambda: desk.connections == 0, "the connections are given up")
    assert caplog.text.count("closing a connection from 127.0.0.1: no association was requested") == 50


def test_silent_connections_are_closed(open_desk: OpenDesk, caplog: pytest.LogCaptureFixture) -> None:
    desk = open_desk(acse_timeout_s=1.0, max_silent=30)
    caplog.set_level("INFO")
    with connections(desk.receiver.port, 40) as silent:
        assert_served(desk)
        for connection in silent:
            connection.settimeout(1.0 + SLACK_S)
            assert connection.recv(1) == b""
    assert desk.connections == 0
    wait_until(lambda: "connections that said nothing" in caplog.text, "it is logged")


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("over_tls", [False, True])
def test_a_data_set_byte_by_byte(
    open_desk: OpenDesk, ct_certificate: TlsFiles, caplog: pytest.LogCaptureFixture, over_tls: bool
) -> None:
    desk = open_desk(min_bytes_per_second=4096)
    port, context = desk.receiver.ports[over_tls], client_context(ct_certificate) if over_tls else None
    dataset = small_object()
    message = store_message(dataset.SOPInstanceUID, encoded(dataset) * 3)
    with BarePeer.associated(port, context=context) as slow:
        seconds = drip(slow.connection, message)
        assert seconds < 0.5 + SLACK_S
        assert slow.answer()[0] in (0, A_ABORT)
    wait_until(lambda: desk.ended, "the association is over")
    assert (desk.ended[0].stored, desk.ended[0].released) == (0, False)
    assert list(desk.spool.scan()) == []
    assert "from 127.0.0.1: the peer sends too slowly" in caplog.text
    assert_served(desk)


@pytest.mark.usefixtures("short_grace")
def test_fragments_without_content_do_not_count_as_speed(open_desk: OpenDesk) -> None:
    """Each is a whole PDU, so that no wait for a byte ever ends."""
    desk = open_desk(min_bytes_per_second=4096)
    with BarePeer.associated(desk.receiver.port) as slow:
        slow.send(p_data(pdv(STORE_CONTEXT, COMMAND | LAST, store_rq("1.2.3"))))
        assert drip(slow.connection, p_data(pdv(STORE_CONTEXT, DATA, b"")) * 1000, size=12) < 0.5 + SLACK_S
        assert slow.answer()[0] in (0, A_ABORT)


@pytest.mark.usefixtures("short_grace")
def test_a_sender_that_is_just_fast_enough_is_served(open_desk: OpenDesk) -> None:
    desk = open_desk(min_bytes_per_second=100)
    dataset = small_object()
    message = store_message(dataset.SOPInstanceUID, encoded(dataset))
    with BarePeer.associated(desk.receiver.port) as slow:
        seconds = drip(slow.connection, message, size=len(message) // 25)
        assert seconds > 1.0
        assert slow.status() == 0x0000
        slow.release()
    assert len(list(desk.spool.scan())) == 1


@pytest.mark.usefixtures("short_grace")
def test_pauses_between_messages_are_no_slowness(open_desk: OpenDesk) -> None:
    desk = open_desk(min_bytes_per_second=4096)
    pause = threading.Event()
    with BarePeer.associated(desk.receiver.port) as peer:
        for _ in range(3):
            dataset = small_object()
            assert peer.store(dataset.SOPInstanceUID, encoded(dataset)) == 0x0000
            pause.wait(0.8)
            assert peer.echo() == 0x0000
            pause.wait(0.8)
        peer.release()


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("in_an_object", [False, True])
def test_an_idle_association_is_aborted(
    open_desk: OpenDesk,
    ct_certificate: TlsFiles,
    caplog: pytest.LogCaptureFixture,
    over_tls: bool,
    in_an_object: bool,
) -> None:
    desk = open_desk(network_timeout_s=1.0)
    port, context = desk.receiver.ports[over_tls], client_context(ct_certificate) if over_tls else None
    with BarePeer.associated(port, context=context) as idle:
        if in_an_object:
            idle.send(p_data(pdv(STORE_CONTEXT, COMMAND | LAST, store_rq("1.2.3"))))
        began = time.monotonic()
        assert idle.answer()[0] == A_ABORT
        assert 0.5 < time.monotonic() - began < 1.0 + SLACK_S
    wait_until(lambda: desk.connections == 0, "the connection is given up")
    assert "aborting an association from 127.0.0.1: it is idle" in caplog.text


def test_a_peer_that_never_reads_its_answers_is_given_up(open_desk: OpenDesk) -> None:
    desk = open_desk(network_timeout_s=1.0)
    questions = p_data(pdv(1, COMMAND | LAST, command_set(C_FIND_RQ))) * 500
    with BarePeer.associated(desk.receiver.port, receive_buffer_bytes=4096) as deaf:
        deaf.connection.settimeout(1.0 + SLACK_S)
        try:
            while True:
                deaf.send(questions)
        except (ConnectionResetError, BrokenPipeError):
            pass
    wait_until(lambda: desk.connections == 0, "the connection is given up")
    assert_served(desk)


def test_a_peer_that_stays_after_its_release_is_closed(open_desk: OpenDesk) -> None:
    desk = open_desk()
    with BarePeer.associated(desk.receiver.port) as peer:
        peer.send(b"\x05\x00\x00\x00\x00\x04" + bytes(4))
        assert peer.answer()[0] == A_RELEASE_RP
        wait_until(lambda: desk.connections == 0, "the connection is closed", SLACK_S)


def test_a_tls_client_that_says_nothing_after_its_handshake(
    open_desk: OpenDesk, ct_certificate: TlsFiles
) -> None:
    desk = open_desk(acse_timeout_s=1.0)
    with BarePeer(desk.receiver.ports[1], context=client_context(ct_certificate)) as silent:
        assert isinstance(silent.connection, ssl.SSLSocket)
        wait_until(lambda: desk.connections == 1, "it is being served")
        assert_served(desk)
        assert silent.answer()[0] in (0, A_ABORT)
    wait_until(lambda: desk.connections == 0, "the connection is given up")
