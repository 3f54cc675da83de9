"""What `RequestingEntity` mends of pynetdicom, with the races made to happen."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket

from ich_node.receive.requestor import RequestingEntity, _Checkpoint
from ich_node.receive.upper_layer import configure_pynetdicom
from tests.unit.test_receive_upper_layer import digest

DEADLINE_S = 3.0
_LATE_S = 0.05


@pytest.mark.parametrize(
    ("function", "expected", "reason"),
    [
        pytest.param(*row, id=row[0].__qualname__)
        for row in [
            (AE.associate, "fe3857940b90", "calls _create_socket last before it starts the threads"),
            (AE._create_socket, "6243360609f1", "must make the socket and start nothing"),
            (
                ACSE._negotiate_as_requestor,
                "207cd0710a02",
                "looks at _is_connected too late; takes the answer if not",
            ),
            (Association._run_reactor, "797ae2cf9caa", "stops in the checkpoint's wait on each round"),
            (Association.send_c_echo, "9fa67d235af8", "clears the checkpoint, then waits for _is_paused"),
            (Association.send_c_store, "e5327abfaa65", "clears the checkpoint, then waits for _is_paused"),
            (Association.send_n_action, "04aaae4d1f6e", "clears the checkpoint, then waits for _is_paused"),
            (
                Association.send_n_event_report,
                "6ee49eecddc4",
                "clears the checkpoint, then waits for _is_paused",
            ),
            (Association.release, "8b798ecd2d5f", "clears the checkpoint, then waits for _is_paused"),
            (Association.kill, "1ab7e35d2c45", "sets the checkpoint before it tells the reactor to end"),
            (Association._serve_request, "0da4bdd86a21", "says that the reactor goes on, whoever calls it"),
        ]
    ],
)
def test_upstream_is_as_it_was(function: Any, expected: str, reason: str) -> None:
    assert digest(function) == expected, f"pynetdicom's {function.__qualname__} has changed: {reason}"


@pytest.fixture
def peer() -> Iterator[int]:
    """The port of one that answers C-ECHO, and rejects who does not call it PEER."""
    configure_pynetdicom()
    entity = AE(ae_title="PEER")
    entity.require_called_aet = True
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    yield int(server.server_address[1])
    server.shutdown()
    entity.shutdown()


def requested(
    entity: AE, port: int, called: str = "PEER", context: str = Verification, **options: Any
) -> Association:
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = DEADLINE_S
    entity.requested_contexts = []
    entity.add_requested_context(context)
    return entity.associate("127.0.0.1", port, ae_title=called, **options)


class _LateToLook(threading.Event):
    """Lets the thread that waits go on only when the answer has come."""

    def wait(self, timeout: float | None = None) -> bool:
        done = super().wait(timeout)
        time.sleep(0.3)
        return done


class _LateEntity(RequestingEntity):
    def _create_socket(self, assoc: Association, *args: Any) -> AssociationSocket:
        made = super()._create_socket(assoc, *args)
        made._ready = _LateToLook()
        return made


def test_a_rejection_that_comes_before_anybody_looks_is_a_rejection(peer: int) -> None:
    association = requested(_LateEntity(), peer, "SOMEBODY")
    assert (association.is_rejected, association.is_aborted, association.is_established) == (
        True,
        False,
        False,
    )
    answer = association.acceptor.primitive
    assert isinstance(answer, A_ASSOCIATE)
    assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 7)


def test_what_did_not_connect_is_no_rejection(peer: int) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        association = requested(_LateEntity(), bound.getsockname()[1])
    assert (association.is_rejected, association.is_established) == (False, False)
    assert association.acceptor.primitive is None


def _make_late(association: Association) -> None:
    """Let the reactor dawdle after its checkpoint, and the sender, for longer, before it asks for the answer."""
    checkpoint, messages = association._reactor_checkpoint, association.dimse
    wait, get_msg = checkpoint.wait, messages.get_msg

    def wait_and_dawdle(timeout: float | None = None) -> bool:
        done = wait(timeout)
        time.sleep(_LATE_S)
        return done

    def dawdle_and_get(block: bool = False) -> Any:
        if block:
            time.sleep(3 * _LATE_S)
        return get_msg(block)

    checkpoint.wait = wait_and_dawdle  # type: ignore[method-assign]
    messages.get_msg = dawdle_and_get  # type: ignore[method-assign]


def _answered(association: Association, times: int = 8) -> int:
    for answered in range(times):
        time.sleep(_LATE_S * answered / times)  # to meet the reactor everywhere on its round
        if "Status" not in association.send_c_echo():
            return answered
    return times


def test_no_answer_is_taken_by_a_reactor_that_is_late_to_stop(peer: int) -> None:
    association = requested(RequestingEntity(), peer)
    _make_late(association)
    assert _answered(association) == 8
    association.release()
    assert association.is_released


def test_upstream_still_loses_such_an_answer(peer: int) -> None:
    """When this fails upstream has mended it, and `RequestedAssociation` can go."""
    association = requested(AE(), peer)
    _make_late(association)
    assert _answered(association) < 8


def test_the_reactor_goes_on_between_requests(peer: int) -> None:
    """A peer that ends the association is noticed without a request."""
    entity = RequestingEntity()
    ended = threading.Event()
    association = requested(entity, peer, evt_handlers=[(evt.EVT_ABORTED, lambda _: ended.set())])
    assert association.send_c_echo().Status == 0x0000
    connection = association.dul.socket.socket  # type: ignore[union-attr]
    connection.shutdown(2)  # type: ignore[union-attr]
    assert ended.wait(DEADLINE_S)
    assert not association.is_established
    with pytest.raises(RuntimeError):
        association.send_c_echo()


def test_a_report_that_is_served_meanwhile_does_not_stop_the_sender(peer: int) -> None:
    """Upstream's thread for an N-EVENT-REPORT says that the reactor goes on, and the sender would wait on."""
    association = requested(RequestingEntity(), peer)
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.001)
    association._is_paused = False
    assert association._is_paused
    association._reactor_checkpoint.set()
    association.release()


def test_a_reactor_that_has_ended_is_not_waited_for(peer: int) -> None:
    association = requested(RequestingEntity(), peer)
    association._kill = True  # what an error in the state machine's thread does
    association.join(DEADLINE_S)
    association._is_paused = False
    association._reactor_checkpoint.clear()
    assert association._is_paused
    association.abort()


def test_a_handler_in_the_reactor_may_send(peer: int) -> None:
    association = requested(RequestingEntity(), peer)
    paused: list[bool] = []
    is_release_requested = association.acse.is_release_requested

    def look() -> bool:  # as a handler would: in the reactor, between its checkpoint and the next
        association._reactor_checkpoint.clear()
        paused.append(association._is_paused)
        association._reactor_checkpoint.set()
        return is_release_requested()

    association.acse.is_release_requested = look  # type: ignore[method-assign]
    end = time.monotonic() + DEADLINE_S
    while not paused and time.monotonic() < end:
        time.sleep(0.001)
    assert paused[0]
    association.release()


def test_a_reactor_that_somebody_lets_go_meanwhile_is_not_waited_for_for_ever(peer: int) -> None:
    association = requested(RequestingEntity(), peer)
    stop = threading.Event()

    def let_go() -> None:
        while not stop.is_set():
            association._reactor_checkpoint.set()

    other = threading.Thread(target=let_go)
    other.start()
    try:
        for _ in range(20):
            association._reactor_checkpoint.clear()
            end = time.monotonic() + DEADLINE_S
            while not association._is_paused:
                assert time.monotonic() < end
    finally:
        stop.set()
        other.join()
    association._reactor_checkpoint.set()
    association.release()


def test_the_checkpoint_holds_who_was_seen_there() -> None:
    """However fast it is set and cleared again: a reactor that was seen there has not gone on."""
    checkpoint = _Checkpoint()
    checkpoint.clear()
    rounds = [0]

    def go_round() -> None:
        while not stop.is_set():
            checkpoint.wait()
            rounds[0] += 1

    stop = threading.Event()
    reactor = threading.Thread(target=go_round)
    reactor.start()
    for time_between in [0.0, 0.00001, 0.0001] * 60:
        checkpoint.set()
        time.sleep(time_between)
        checkpoint.clear()
        while not checkpoint.is_reached:
            pass
        before = rounds[0]
        time.sleep(0)
        assert rounds[0] == before
    assert rounds[0] > 0
    stop.set()
    checkpoint.set()
    reactor.join(DEADLINE_S)
    assert not reactor.is_alive()


def test_a_requestor_that_offers_what_the_peer_lacks_is_as_upstream_has_it(peer: int) -> None:
    association = requested(RequestingEntity(), peer, context=CTImageStorage)
    assert not association.is_rejected
    assert association.is_aborted
    assert [context.abstract_syntax for context in association.rejected_contexts] == [CTImageStorage]
