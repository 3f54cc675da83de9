"""What is changed about pynetdicom: held to the version that it was written against, and to what it is for.

Where one of the first tests fails after an update of pynetdicom, read what it names, compare it with the
override in `ich_node.receive.upper_layer`, and write down the new digest when both still fit.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import inspect
import logging
import resource
import socket
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pynetdicom
import pytest
from pynetdicom import AE, _config, events, fsm
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.service_class import VerificationServiceClass
from pynetdicom.transport import AddressInformation, AssociationSocket

from ich_node.receive import paced_connection, upper_layer
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.received import AssociationSummary, ReceivedInstance
from ich_node.receive.register import AssociationRegister
from ich_node.receive.scp import StorageScp
from ich_node.receive.spool import Spool
from ich_node.receive.upper_layer import StorageAssociation, configure_pynetdicom
from tests.bare_peer import (
    A_ABORT,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_RELEASE_RP,
    A_RELEASE_RQ,
    COMMAND,
    ECHO_CONTEXT,
    LAST,
    BarePeer,
    associate_rq,
    echo_rq,
    p_data,
    pdu,
    pdv,
)
from tests.small_objects import encoded, small_object

DEADLINE_S = 30.0


# the version that the overrides were written against


def test_this_is_the_version_that_the_overrides_were_written_against() -> None:
    assert pynetdicom.__version__ == "3.0.4"


def digest(function: Callable[..., Any]) -> str:
    """Of a function without its comments, docstring and indentation."""
    source = textwrap.dedent(inspect.getsource(function))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    lines: list[str | None] = [line.strip() for line in source.splitlines()]
    first = definition.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        assert first.end_lineno is not None
        lines[first.lineno - 1 : first.end_lineno] = [None] * (first.end_lineno - first.lineno + 1)
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


UPSTREAM: list[tuple[Callable[..., Any], str, str]] = [
    # replaced
    (AssociationSocket._shutdown_socket, "952302f39480", "_shut_down_and_close stands in for it everywhere"),
    (DULServiceProvider.run_reactor, "04cbedd43ec4", "step and run_events do its work; it never runs"),
    (Association._run_reactor, "797ae2cf9caa", "replaced: the same ends of an association must be seen"),
    (Association.kill, "1ab7e35d2c45", "replaced: sets _kill and is_established, and waits for no thread"),
    # extended
    (AssociationSocket.__init__, "bdf50f86ecb7", "must put Evt5 and take a connected socket as it is"),
    (DULServiceProvider.__init__, "ffe207491026", "queues and flags that _UpperLayer uses"),
    (
        DULServiceProvider.send_pdu,
        "497d549128dc",
        "must put the primitive where _process_recv_primitive looks",
    ),
    (DULServiceProvider.receive_pdu, "ddd9460b7576", "called without waiting"),
    (
        Association.__init__,
        "af0fd7a4e2dc",
        "makes the DUL that is replaced, and the flags that are set after it",
    ),
    # called, or calls what is replaced
    (AssociationSocket.send, "8c73c3700d18", "sends all at once and puts Evt17 where the peer is gone"),
    (
        AssociationSocket.close,
        "133b8ed26d42",
        "shuts down and puts Evt17, which nobody takes once all is over",
    ),
    (DULServiceProvider._decode_pdu, "2e5239405d45", "gives the PDU and its event, and reads nothing itself"),
    (
        DULServiceProvider._process_recv_primitive,
        "f467d87e80eb",
        "puts an event, leaves the primitive queued",
    ),
    (DULServiceProvider.peek_next_pdu, "0f0a00067a59", "release and abort are seen by it"),
    (DULServiceProvider.kill_dul, "520147596bc9", "ends run_events"),
    (DULServiceProvider._send, "da4e9fdc6ae7", "sends at once"),
    (StateMachine.do_action, "2cdf573753c4", "acts at once, and raises for an event out of place"),
    (fsm.AE_6, "25303b61f419", "takes the request out of _recv_pdu; rejects another protocol version"),
    (fsm.AA_1, "9d2108b86087", "aborts while no association is open"),
    (fsm.AA_8, "5b6c97def155", "aborts an association after an invalid PDU"),
    (fsm.AR_4, "807cf786358d", "answers a release and waits for the connection's end"),
    (Association.set_socket, "888e8b6f2ff9", "binds the socket to the DUL"),
    (Association.run_reactor, "1a6f765e5975", "waits for the request, asks EVT_REQUESTED, runs _run_reactor"),
    (Association._abort_blocking, "4ba41dab4af1", "sends A-ABORT in the thread that calls it"),
    (Association._serve_request, "0da4bdd86a21", "answers C-ECHO and N-ACTION in the thread that calls it"),
    (ACSE._negotiate_as_acceptor, "3afafbf02214", "its own limits must not come before ours"),
    (ACSE.is_aborted, "a95fc5409f6a", "looks and takes nothing"),
    (ACSE.is_release_requested, "27b26984b872", "takes the request that it reports"),
    (ACSE.send_release, "336beb190abf", "sent at once"),
    (ACSE.send_reject, "6557125c7046", "sent at once"),
    (ACSE.send_abort, "223776fb92ce", "sent at once; sets is_aborted"),
    (
        DIMSEServiceProvider.receive_primitive,
        "635ba0b4d8e5",
        "serves an N-EVENT-REPORT request in a thread of its own, which hand_on does not",
    ),
    (A_ASSOCIATE_RQ.to_primitive, "477385228251", "makes what nobody changes"),
    (ACSE.send_accept, "ceb20e3482cc", "only reads the request"),
    (DIMSEMessage.decode_msg, "5da2cb186443", "says when a message is whole, and raises where it is damaged"),
    (DIMSEMessage.message_to_primitive, "d8ec80da1a66", "raises where a message is damaged"),
    (DIMSEServiceProvider.get_msg, "01b745945441", "does not wait"),
    (DIMSEServiceProvider.send_msg, "c117e2e77e63", "sent at once"),
    (VerificationServiceClass.SCP, "6d85f7417eff", "answers C-ECHO"),
    (events.trigger, "64f2e3830138", "swallows what a handler of EVT_REQUESTED raises: ours must not raise"),
]


@pytest.mark.parametrize(
    ("function", "expected", "reason"), [pytest.param(*row, id=row[0].__qualname__) for row in UPSTREAM]
)
def test_upstream_is_as_it_was(function: Callable[..., Any], expected: str, reason: str) -> None:
    assert digest(function) == expected, f"pynetdicom's {function.__qualname__} has changed: {reason}"


OURS = {"__module__", "__doc__", "__init__", "__annotations__"}


@pytest.mark.parametrize(
    ("ours", "overridden"),
    [
        (upper_layer._Socket, set()),
        (upper_layer._UpperLayer, {"send_pdu", "receive_pdu"}),
        (StorageAssociation, {"kill", "_run_reactor"}),
    ],
)
def test_nothing_else_of_upstream_is_overridden(ours: type, overridden: set[str]) -> None:
    (upstream,) = ours.__bases__
    assert set(vars(ours)) & set(dir(upstream)) - OURS == overridden
    for name in overridden:
        mine, theirs = inspect.signature(getattr(ours, name)), inspect.signature(getattr(upstream, name))
        assert list(mine.parameters) == list(theirs.parameters)


def test_no_attribute_of_ours_has_a_name_that_upstream_uses(tcp: Callable[[], Any]) -> None:
    served, _ = tcp()
    entity = AE()
    ours = StorageAssociation(
        entity,
        served,
        limits=Limits(),
        contexts=[],
        handlers=[],
        service=None,  # type: ignore[arg-type]
    )
    upstream = Association(entity, "acceptor")
    mine = {"_service", "_socket", "_messages", "connection", "limits", "is_interrupted"}
    mine |= {"was_established", "received_bytes", "find_is_canceled"}
    assert set(vars(ours)) - set(vars(upstream)) == mine
    assert not mine & set(dir(Association))
    assert set(vars(ours.dul)) - set(vars(upstream.dul)) == {"_limits"}
    assert not {"_limits", "step", "run_events"} & set(dir(DULServiceProvider))
    assert set(vars(ours._socket)) - set(vars(AssociationSocket(upstream, served))) == {"paced"}


@pytest.mark.parametrize(
    ("event", "state", "action"),
    [
        ("Evt5", "Sta1", "AE-5"),
        ("Evt6", "Sta2", "AE-6"),
        ("Evt17", "Sta2", "AA-5"),
        ("Evt18", "Sta2", "AA-2"),
        ("Evt19", "Sta2", "AA-1"),
        ("Evt17", "Sta6", "AA-4"),
        ("Evt19", "Sta6", "AA-8"),
        ("Evt9", "Sta6", "DT-1"),
        ("Evt17", "Sta13", "AR-5"),
        ("Evt18", "Sta13", "AA-2"),
    ],
)
def test_the_state_machine_has_what_is_asked_of_it(event: str, state: str, action: str) -> None:
    assert fsm.TRANSITION_TABLE[(event, state)] == action


def test_the_options_of_pynetdicom_are_there_and_are_set() -> None:
    names = (
        "LOG_HANDLER_LEVEL",
        "LOG_REQUEST_IDENTIFIERS",
        "LOG_RESPONSE_IDENTIFIERS",
        "ENFORCE_UID_CONFORMANCE",
        "STORE_SEND_CHUNKED_DATASET",
        "STORE_RECV_CHUNKED_DATASET",
        "UNRESTRICTED_STORAGE_SERVICE",
    )
    assert set(names) <= set(vars(_config))
    configure_pynetdicom()
    assert [getattr(_config, name) for name in names] == ["none", False, False, False, True, False, False]
    assert AssociationSocket._shutdown_socket is upper_layer._shut_down_and_close
    assert not logging.getLogger("pynetdicom.association").isEnabledFor(logging.ERROR)


def test_our_bytes_of_an_abort_are_those_of_pynetdicom() -> None:
    abort = pynetdicom.pdu.A_ABORT_RQ()
    abort.source, abort.reason_diagnostic = 0x02, 0x00
    assert abort.encode() == upper_layer._A_ABORT_BY_PROVIDER


def test_only_the_first_bit_of_the_protocol_version_is_looked_at() -> None:
    assert upper_layer._VERSION_1 == 0x0001
    request = A_ASSOCIATE_RQ()
    request.decode(associate_rq(protocol_version=0x0003))
    assert request.protocol_version == 0x0003  # upstream keeps all of them, and AE-6 compares
    assert isinstance(request.to_primitive(), A_ASSOCIATE)


# what they are for


@dataclass
class Desk:
    """A provider, and what it has handed on."""

    scp: StorageScp
    limits: Limits
    register: AssociationRegister
    received: list[ReceivedInstance] = field(default_factory=list)
    ended: list[AssociationSummary] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for_end(self, count: int = 1) -> AssociationSummary:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.ended) >= count, DEADLINE_S)
        # The connection's own thread closes it after that.
        while self.scp.connections:
            for thread in threading.enumerate():
                if thread.name == "association":
                    thread.join(DEADLINE_S)
        return self.ended[-1]


class Peer(BarePeer):
    """A bare peer over a connection that is there already."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(DEADLINE_S)

    def release(self) -> None:
        super().release()
        self.connection.close()  # else the provider lingers for it


@pytest.fixture
def tcp() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Connections over the loopback, as their two ends: the one to serve, and the peer's."""
    opened: list[socket.socket] = []

    def connect() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname(), DEADLINE_S)
            theirs, _ = server.accept()
        opened.extend((theirs, ours))
        return theirs, ours

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    return Spool(tmp_path_factory.mktemp("spool") / "spool")


@pytest.fixture
def open_desk(spool: Spool) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def start(*, peers: tuple[AllowedPeer, ...] = (), **limits: Any) -> Desk:
        bounds = Limits(**limits)
        register = AssociationRegister(bounds)

        def note(what: list[Any], item: Any) -> None:
            with desk.changed:
                what.append(item)
                desk.changed.notify_all()

        scp = StorageScp(
            ae_title="ICH_NODE",
            spool=spool,
            on_instance=lambda received: note(desk.received, received),
            on_association_end=lambda summary: note(desk.ended, summary),
            peers=peers,
            limits=bounds,
            register=register,
        )
        desk = Desk(scp=scp, limits=bounds, register=register)
        desks.append(desk)
        return desk

    yield start
    for desk in desks:
        desk.scp.stop()


@pytest.fixture
def call(tcp: Callable[[], tuple[socket.socket, socket.socket]]) -> Callable[..., Peer]:
    """Be served by a desk; gives the caller's end, associated."""

    def connect(desk: Desk, request: bytes | None = None) -> Peer:
        served, ours = tcp()
        assert desk.scp.serve(served.dup())
        served.close()
        peer = Peer(ours)
        if request is None:
            peer.send(associate_rq())
            assert peer.answer()[0] == A_ASSOCIATE_AC
        else:
            peer.send(request)
        return peer

    return connect


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("pynetdicom")]


def test_an_association_has_one_thread_and_none_of_upstream(
    open_desk: Callable[..., Desk], call: Callable[..., Peer]
) -> None:
    desk = open_desk()
    before = set(threading.enumerate())
    peer = call(desk)
    assert peer.echo() == 0
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["association"]
    assert not [
        thread for thread in threading.enumerate() if isinstance(thread, DULServiceProvider | Association)
    ]
    peer.release()
    assert desk.wait_for_end().released


def test_who_asks_again_with_the_same_bytes_is_answered_alike_and_has_an_association_of_its_own(
    open_desk: Callable[..., Desk], call: Callable[..., Peer]
) -> None:
    desk = open_desk()
    upper_layer._decoded_request.cache_clear()
    peers, answers = [], []
    for _ in range(3):
        peers.append(call(desk, associate_rq()))
        answers.append(peers[-1].answer())
    assert answers[0][0] == A_ASSOCIATE_AC
    assert answers == answers[:1] * 3
    assert upper_layer._decoded_request.cache_info()[:2] == (2, 1)
    stranger = call(desk, associate_rq(called=b"ELSEWHERE"))
    assert stranger.answer()[0] == A_ASSOCIATE_RJ
    peers[0].send(pdu(A_ABORT, bytes(4)))
    for peer in peers[1:]:
        dataset = small_object()
        assert peer.store(str(dataset.SOPInstanceUID), encoded(dataset)) == 0
        peer.release()
    desk.wait_for_end(3)
    assert sorted(summary.stored for summary in desk.ended) == [0, 1, 1]


def test_every_usual_end_is_one_for_pynetdicom_too(
    open_desk: Callable[..., Desk], call: Callable[..., Peer], caplog: pytest.LogCaptureFixture
) -> None:
    desk = open_desk()
    caplog.set_level(logging.WARNING, "pynetdicom")  # which is not heard otherwise
    dataset = small_object()
    peer = call(desk)
    assert peer.store(str(dataset.SOPInstanceUID), encoded(dataset)) == 0
    peer.release()
    summary = desk.wait_for_end(1)
    assert (summary.released, summary.stored) == (True, 1)

    call(desk).send(pdu(A_ABORT, bytes(4)))
    assert not desk.wait_for_end(2).released

    call(desk).connection.close()
    assert not desk.wait_for_end(3).released

    call(desk).reset()
    assert not desk.wait_for_end(4).released

    peer = call(desk)
    peer.send(p_data(pdv(ECHO_CONTEXT, COMMAND | LAST, echo_rq())) + pdu(A_RELEASE_RQ, bytes(4)))
    assert peer.status() == 0
    assert peer.answer()[0] == A_RELEASE_RP
    peer.connection.close()
    assert desk.wait_for_end(5).released
    assert complaints(caplog) == []
    assert desk.register.count() == 0


def test_who_says_nothing_more_is_a_usual_end_too(
    open_desk: Callable[..., Desk], call: Callable[..., Peer], caplog: pytest.LogCaptureFixture
) -> None:
    desk = open_desk(acse_timeout_s=0.2, network_timeout_s=0.2)
    caplog.set_level(logging.WARNING, "pynetdicom")
    assert call(desk, associate_rq()[:50]).answer() == (0, b"")
    peer = call(desk)
    assert peer.answer()[0] == A_ABORT  # idle
    assert desk.ended == [] or not desk.ended[0].released
    peer.connection.close()
    desk.wait_for_end()
    assert len(desk.ended) == 1  # the first was never established
    assert complaints(caplog) == []


def test_a_pause_before_the_first_message_is_no_slowness(
    open_desk: Callable[..., Desk], call: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paced_connection, "_GRACE_SECONDS", 0.05)
    desk = open_desk(min_bytes_per_second=2000)
    peer = call(desk)
    dataset = small_object()
    for _ in range(2):  # after the request for the association, and between messages
        assert not threading.Event().wait(0.2)
        assert peer.echo() == 0
        assert not threading.Event().wait(0.2)
        assert peer.store(str(dataset.SOPInstanceUID), encoded(dataset)) == 0
    peer.release()


def test_slowness_within_a_message_is(
    open_desk: Callable[..., Desk],
    call: Callable[..., Peer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(paced_connection, "_GRACE_SECONDS", 0.05)
    desk = open_desk(min_bytes_per_second=2000)
    peer = call(desk)
    dataset = small_object(PixelData=bytes(50_000))  # what it brought quickly does not count for the next
    assert peer.store(str(dataset.SOPInstanceUID), encoded(dataset), size=60_000) == 0
    request = p_data(pdv(ECHO_CONTEXT, COMMAND | LAST, echo_rq()))
    peer.send(request[:40])
    assert not threading.Event().wait(0.2)
    peer.send(request[40:])
    assert peer.answer()[0] == A_ABORT
    assert "too slowly" in caplog.text


@pytest.mark.parametrize("missing", [0x0110, 0x0002])
def test_a_request_without_what_it_must_have_is_answered_with_an_abort(
    open_desk: Callable[..., Desk], call: Callable[..., Peer], missing: int
) -> None:
    desk = open_desk()
    peer = call(desk)
    peer.send(p_data(pdv(ECHO_CONTEXT, COMMAND | LAST, echo_rq({missing: None}))))
    assert peer.answer()[0] == A_ABORT
    peer.connection.close()
    assert not desk.wait_for_end().released


def test_a_caller_that_cannot_be_checked_does_not_get_in(
    open_desk: Callable[..., Desk], call: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no locks left")

    desk = open_desk(peers=(AllowedPeer(ae_title="SCANNER", host="127.0.0.1"),))
    with monkeypatch.context() as patch:
        patch.setattr(AssociationRegister, "enter", broken)
        peer = call(desk, associate_rq())
        assert peer.answer()[0] == A_ABORT
        peer.connection.close()
        patch.setattr(StorageAssociation, "_abort_blocking", broken)
        peer = call(desk, associate_rq())
        assert peer.answer() == (0, b"")
    assert call(desk).echo() == 0


def test_a_descriptor_that_select_cannot_take_is_served(
    open_desk: Callable[..., Desk], tcp: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 1100:
        pytest.skip("this process may not have so many descriptors")
    served, ours = tcp()
    desk = open_desk()
    assert desk.scp.serve(socket.socket(fileno=fcntl.fcntl(served.fileno(), fcntl.F_DUPFD, 1100)))
    served.close()
    peer = Peer(ours)
    peer.send(associate_rq())
    assert peer.answer()[0] == A_ASSOCIATE_AC
    assert peer.echo() == 0
    peer.release()


def test_a_thread_that_cannot_be_started_costs_one_connection(
    open_desk: Callable[..., Desk],
    call: Callable[..., Peer],
    tcp: Callable[[], tuple[socket.socket, socket.socket]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    desk = open_desk()
    served, ours = tcp()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        assert not desk.scp.serve(served)
    assert ours.recv(1) == b""
    assert desk.scp.connections == 0
    assert call(desk).echo() == 0


def test_a_connection_that_pynetdicom_shuts_down_is_closed_even_if_the_peer_was_quicker(
    tcp: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    configure_pynetdicom()
    served, ours = tcp()
    association_socket = AssociationSocket(Association(AE(), "acceptor"), served)
    ours.close()
    served.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError):  # noqa: PT011 - a second time fails, for whatever reason
        served.shutdown(socket.SHUT_RDWR)
    association_socket.close()
    assert served.fileno() == -1
    assert AddressInformation.from_tuple(("127.0.0.1", 1)).as_tuple == ("127.0.0.1", 1)


def test_stopping_reports_what_is_open(open_desk: Callable[..., Desk], call: Callable[..., Peer]) -> None:
    desk = open_desk()
    peer = call(desk)
    dataset = small_object()
    assert peer.store(str(dataset.SOPInstanceUID), encoded(dataset)) == 0
    desk.scp.stop()
    assert [(summary.released, summary.stored) for summary in desk.ended] == [(False, 1)]
    assert peer.answer()[0] == A_ABORT
    assert desk.register.count() == 0
