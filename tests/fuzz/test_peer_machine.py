"""A peer that says legal and illegal things in any order, and hears what PS3.8 tables 9-6 to 9-10 say."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fuzz import wire
from tests.fuzz.conversations import Message, Opening, context_of, echo, seed_contexts, store
from tests.fuzz.data_sets import SeedDataSet, seed_data_sets
from tests.fuzz.expected import read_answers
from tests.fuzz.receiver_under_test import DEADLINE_S
from tests.fuzz.targets import Targets
from tests.fuzz.wire import Value

DATA_SETS = st.sampled_from(seed_data_sets())
MESSAGE_IDS = st.integers(0, 65535)
FRAGMENTS = st.integers(50, 2000)
UNEXPECTED = st.sampled_from(
    [
        wire.pdu(wire.ASSOCIATE_AC, bytes(68)),
        wire.pdu(wire.ASSOCIATE_RJ, b"\0\1\1\1"),
        wire.pdu(0x08, b""),
        wire.pdu(0x00, b"1234"),
        b"GET / HTTP/1.1\r\n\r\n",
    ]
)
"""Of no use in any state of the acceptor."""


class Peer(RuleBasedStateMachine):
    """One connection, from its first byte to its last."""

    targets: Targets
    """Set by the test."""
    answers: int
    """That were heard over all connections."""

    def __init__(self) -> None:
        super().__init__()
        self.state = "Sta2"
        """Of the receiver: Sta2, awaiting a request; Sta6, in data transfer; Sta13, awaiting our close."""
        self.heard = b""
        self.said = b""
        self.unsaid: list[Value] = []
        """Of a message that was begun."""
        self.due: tuple[int, int] | None = None
        """Message ID and status of the answer to it."""
        self.acknowledged: dict[str, bytes] = {}
        self.patience = 0
        """How many legal things come before the first that ends the association."""

    @initialize(patience=st.integers(0, 12))
    def connect(self, patience: int) -> None:
        self.stack = ExitStack()
        self.client, server = self.stack.enter_context(self.targets.receiver.connection())
        self.targets.receiver.serve(server)
        self.patience = patience
        if patience:
            self.associate(fewer=False)

    @precondition(lambda self: self.state == "Sta2")
    @rule(fewer=st.booleans())
    def associate(self, fewer: bool) -> None:
        contexts = dict(list(seed_contexts().items())[: 3 if fewer else None])
        self.say(*Opening(contexts=contexts).pdus())
        kind, body = self.hear()
        assert kind == wire.ASSOCIATE_AC
        self.accepted = wire.accepted_contexts(body)
        assert self.accepted == {number: syntaxes[0] for number, (_, syntaxes) in contexts.items()}
        self.state = "Sta6"

    @precondition(lambda self: self.state == "Sta2")
    @rule()
    def call_another(self) -> None:
        self.say(*Opening(contexts=seed_contexts(), called="SOMEBODY").pdus())
        assert self.hear() == (wire.ASSOCIATE_RJ, b"\0\1\1\7")
        self.state = "Sta13"

    @precondition(lambda self: self.state == "Sta2")
    @rule(
        pdu=st.one_of(
            UNEXPECTED,
            st.sampled_from(
                [
                    wire.RELEASE_REQUEST,
                    wire.RELEASE_REPLY,
                    wire.data_tf([]),
                    wire.pdu(wire.ASSOCIATE_RQ, bytes(10)),
                    b"\1\0\xff\xff\xff\xff",
                ]
            ),
        )
    )
    def begin_otherwise(self, pdu: bytes) -> None:
        self.is_aborted_by(pdu)

    @precondition(lambda self: not self.patience and self.state in ("Sta2", "Sta6"))
    @rule(source=st.sampled_from([0, 2]), reason=st.sampled_from([0, 1, 2, 4, 5, 6]))
    def abort(self, source: int, reason: int) -> None:
        self.say(wire.abort(source, reason))
        self.state = "over"

    @precondition(lambda self: self.state == "Sta6" and not self.unsaid)
    @rule(message_id=MESSAGE_IDS)
    def echo(self, message_id: int) -> None:
        self.say(*echo(message_id).pdus())
        self.hears_answer(wire.C_ECHO_RSP, message_id, 0)

    @precondition(lambda self: self.state == "Sta6" and not self.unsaid)
    @rule(data=DATA_SETS, message_id=MESSAGE_IDS, fragment_bytes=FRAGMENTS, is_right=st.booleans())
    def begin_object(self, data: SeedDataSet, message_id: int, fragment_bytes: int, is_right: bool) -> None:
        context_id = context_of(data)
        if context_id not in self.accepted:
            return
        message = store(data, context_id=context_id, message_id=message_id, fragment_bytes=fragment_bytes)
        if not is_right:
            message = _of_another_name(message)
        self.unsaid = message.values()
        self.due = message_id, 0 if is_right else 0xA900
        if is_right:
            self.coming = data
        self.go_on(1, 1)

    @precondition(lambda self: self.state == "Sta6" and self.unsaid)
    @rule(count=st.integers(1, 30), per_pdu=st.integers(1, 5))
    def go_on(self, count: int, per_pdu: int) -> None:
        values, self.unsaid = self.unsaid[:count], self.unsaid[count:]
        self.say(*(wire.data_tf(values[at : at + per_pdu]) for at in range(0, len(values), per_pdu)))
        if not self.unsaid:
            assert self.due is not None
            self.hears_answer(wire.C_STORE_RSP, *self.due)
            if self.due[1] == 0:
                self.acknowledged[self.coming.sop_instance_uid] = self.coming.encoded
            self.due = None

    @precondition(lambda self: not self.patience and self.state == "Sta6")
    @rule(
        pdu=st.one_of(
            UNEXPECTED,
            st.sampled_from(
                [
                    wire.RELEASE_REPLY,
                    *Opening(contexts=seed_contexts()).pdus(),
                    wire.data_tf([Value(context_id=99, control=3, fragment=b"")]),
                    wire.data_tf([Value(context_id=1, control=3, fragment=b"\1\2\3")]),
                    wire.pdu(wire.DATA_TF, b"\0\0\0\1\1\3"),
                    wire.pdu(wire.DATA_TF, b"\xff\xff\xff\xff\1\3"),
                    b"\4\0\xff\xff\xff\xff",
                    wire.pdu(wire.RELEASE_RQ, bytes(5)),
                ]
            ),
        )
    )
    def break_the_protocol(self, pdu: bytes) -> None:
        self.is_aborted_by(pdu)

    @precondition(lambda self: not self.patience and self.state == "Sta6" and not self.unsaid)
    @rule()
    def send_data_without_a_command(self) -> None:
        self.is_aborted_by(wire.data_tf([Value(context_id=1, control=2, fragment=b"data")]))

    @precondition(lambda self: not self.patience and self.state == "Sta6" and self.unsaid)
    @rule(context_id=st.sampled_from([1, 3]), control=st.sampled_from([1, 3]))
    def interrupt_an_object(self, context_id: int, control: int) -> None:
        command = wire.command_set(echo(1).command)
        self.is_aborted_by(wire.data_tf([Value(context_id=context_id, control=control, fragment=command)]))

    @precondition(lambda self: not self.patience and self.state == "Sta6")
    @rule()
    def release(self) -> None:
        self.say(wire.RELEASE_REQUEST)
        assert self.hear() == (wire.RELEASE_RP, bytes(4))
        self.state = "Sta13"

    @precondition(lambda self: self.state in ("Sta13", "over"))
    @rule(words=st.one_of(UNEXPECTED, st.just(wire.RELEASE_REQUEST), st.just(wire.abort()), st.binary()))
    def talk_on(self, words: bytes) -> None:
        self.say(words)

    def say(self, *pdus: bytes) -> None:
        try:
            self.client.sendall(b"".join(pdus))
        except ConnectionError:
            assert self.state in ("Sta13", "over")

    def hear(self) -> tuple[int, bytes]:
        """The next PDU."""
        head = self.client.recv(6, socket.MSG_WAITALL)
        assert len(head) == 6
        length = int.from_bytes(head[2:], "big")
        body = self.client.recv(length, socket.MSG_WAITALL) if length else b""
        self.heard += head + body
        return head[0], body

    def hears_answer(self, field: int, message_id: int, status: int) -> None:
        kind, body = self.hear()
        assert kind == wire.DATA_TF
        (value,) = wire.read_values(body)
        answer = wire.read_command(value.fragment)
        found = tuple(wire.number(answer, element) for element in (0x0100, 0x0120, 0x0900))
        assert found == (field, message_id, status)
        self.patience = max(0, self.patience - 1)
        Peer.answers += 1

    def is_aborted_by(self, pdu: bytes) -> None:
        self.say(pdu)
        kind, body = self.hear()
        assert (kind, body[2]) == (wire.ABORT, 0 if self.state == "Sta2" else 2)  # AA-1, AA-8
        self.state = "Sta13"

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        receiver = self.targets.receiver
        with self.stack:
            with suppress(OSError):
                self.client.shutdown(socket.SHUT_WR)
            self.heard += receiver.listen(self.client)
        answers = read_answers(self.heard)  # nothing came after the last PDU
        assert answers.released + answers.aborted + answers.rejected == (self.state == "Sta13")
        receiver.check_rest()
        stored = {
            uid: [path.read_bytes() for path in receiver.spool.files_of(uid)] for uid in self.acknowledged
        }
        for uid, encoded in self.acknowledged.items():
            assert [content.endswith(encoded) for content in stored[uid]] == [True]
        for data in seed_data_sets():
            for path in receiver.spool.files_of(data.sop_instance_uid):
                path.unlink()
                assert data.sop_instance_uid in self.acknowledged


def _of_another_name(message: Message) -> Message:
    return replace(
        message,
        command=tuple(
            (number, wire.ui("1.2.3.4") if number == 0x1000 else value) for number, value in message.command
        ),
    )


@pytest.fixture
def peer(targets: Targets) -> Iterator[type[Peer]]:
    Peer.targets, Peer.answers = targets, 0
    yield Peer
    targets.receiver.check_node()


def test_every_answer_is_legal(peer: type[Peer]) -> None:
    run_state_machine_as_test(
        peer,
        settings=settings(
            max_examples=200,
            stateful_step_count=25,
            deadline=DEADLINE_S * 1000,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    print("ANS", peer.answers)
    assert peer.answers > 100  # it does not only knock at the door
