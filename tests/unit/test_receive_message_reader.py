"""Messages are put together from fragments, however they come, and never from what does not belong together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.receive import message_reader
from ich_node.receive.arrival import Arrival
from ich_node.receive.command_set import C_STORE_RQ, UNRECOGNIZED_OPERATION, CommandSet, CommandSetError
from ich_node.receive.limits import Limits
from ich_node.receive.message_reader import MessageReader
from ich_node.receive.paced_connection import LimitExceeded, PeerFault, ProtocolViolation
from tests.bare_peer import (
    C_CANCEL_RQ,
    C_FIND_RQ,
    COMMAND,
    DATA,
    LAST,
    N_EVENT_REPORT_RSP,
    WITH_DATA_SET,
    command_set,
    echo_rq,
    elements_of,
    pdv,
    store_rq,
    ui,
    us,
)

UID = "1.2.3.4"
CONTEXT, OTHER, NOT_ACCEPTED = 1, 3, 5
N_ACTION_RQ = 0x0130
N_ACTION = command_set(N_ACTION_RQ, {0x0002: None, 0x0800: us(WITH_DATA_SET), 0x1001: b"1.2.3.40"})


@dataclass
class Recorded:
    """An object as it was taken up."""

    content: bytearray = field(default_factory=bytearray)
    is_discarded: bool = False

    def write(self, *pieces: memoryview) -> None:
        self.content += b"".join(pieces)

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def discard(self) -> None:
        self.is_discarded = True


@dataclass
class Recorder:
    """Takes down what a reader does with the messages."""

    begun: list[tuple[CommandSet, int, Recorded]] = field(default_factory=list)
    ended: list[tuple[CommandSet, int, bytes]] = field(default_factory=list)
    handed_on: list[tuple[int, bytes]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    worklist_contexts: tuple[int, ...] = ()
    cancels: int = 0

    def begin_store(self, command: CommandSet, context_id: int) -> Arrival:
        self.begun.append((command, context_id, Recorded()))
        return cast(Arrival, self.begun[-1][2])

    def end_store(self, command: CommandSet, context_id: int, arrival: Arrival) -> None:
        self.ended.append((command, context_id, bytes(cast(Recorded, arrival).content)))

    def hand_on(self, context_id: int, value: bytes) -> None:
        self.handed_on.append((context_id, bytes(value)))

    def finds_over(self, context_id: int) -> bool:
        return context_id in self.worklist_contexts

    def cancel_find(self) -> None:
        self.cancels += 1

    def send(self, pdu: bytes) -> None:
        self.sent.append(pdu)


class Conversation:
    """A reader and what it has made of the values that it was given."""

    def __init__(self, **limits: Any) -> None:
        self.recorder = Recorder()
        self.reader = MessageReader(Limits(**limits), self.recorder)

    def take(self, *pdus: bytes) -> None:
        """Each argument holds the values of one PDU; its memory is used again after it, as that of a connection."""
        for values in pdus:
            buffer = bytearray(values)
            self.reader.take(memoryview(buffer), (CONTEXT, OTHER))
            buffer[:] = b"\xee" * len(buffer)

    def refuses(self, *pdus: bytes, error: type[PeerFault] = ProtocolViolation) -> str:
        *before, last = pdus
        self.take(*before)
        with pytest.raises(error) as caught:
            self.take(last)
        return str(caught.value)


def command(encoded: bytes, context: int = CONTEXT) -> bytes:
    return pdv(context, COMMAND | LAST, encoded)


def store(uid: str = UID, context: int = CONTEXT) -> bytes:
    return command(store_rq(uid), context)


def data(value: bytes, *, last: bool = True, context: int = CONTEXT) -> bytes:
    return pdv(context, DATA | (LAST if last else 0), value)


# objects


def test_an_object_in_one_piece() -> None:
    talk = Conversation()
    talk.take(store(), data(b"content"))
    ((request, context, content),) = talk.recorder.ended
    assert (request.command_field, request.sop_instance_uid) == (C_STORE_RQ, UID.encode())
    assert (context, content) == (CONTEXT, b"content")
    assert talk.reader.is_between_messages
    assert talk.recorder.handed_on == []


def test_command_and_data_may_share_a_pdu() -> None:
    talk = Conversation()
    talk.take(store() + data(b"con", last=False) + data(b"tent"))
    assert [content for _, _, content in talk.recorder.ended] == [b"content"]


def test_the_end_of_one_message_and_the_beginning_of_the_next_may_share_a_pdu() -> None:
    talk = Conversation()
    talk.take(
        store("1.1") + data(b"one", last=False), data(b"!") + store("1.2", OTHER), data(b"two", context=OTHER)
    )
    assert [(r.sop_instance_uid, context, content) for r, context, content in talk.recorder.ended] == [
        (b"1.1", CONTEXT, b"one!"),
        (b"1.2", OTHER, b"two"),
    ]


def test_fragments_may_be_empty() -> None:
    talk = Conversation()
    half = store_rq(UID)
    talk.take(
        pdv(CONTEXT, COMMAND, b"")
        + pdv(CONTEXT, COMMAND, half[:20])
        + pdv(CONTEXT, COMMAND | LAST, half[20:]),
        data(b"", last=False) + data(b"content", last=False) + data(b""),
    )
    assert [content for _, _, content in talk.recorder.ended] == [b"content"]


def test_a_store_without_a_data_set_ends_at_once() -> None:
    talk = Conversation()
    talk.take(command(store_rq(UID, {0x0800: us(0x0101)})))
    assert [content for _, _, content in talk.recorder.ended] == [b""]
    assert talk.reader.is_between_messages
    assert "without a command" in talk.refuses(data(b"content"))


@given(st.data())
def test_however_it_is_cut_the_object_is_the_same(drawn: st.DataObject) -> None:
    contents = drawn.draw(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
    values: list[bytes] = []
    for number, content in enumerate(contents):
        values += cut(drawn, store_rq(f"1.2.{number}"), COMMAND) + cut(drawn, content, DATA)
    talk = Conversation()
    while values:
        count = drawn.draw(st.integers(1, len(values)))
        talk.take(b"".join(values[:count]))
        values = values[count:]
    assert [(r.sop_instance_uid, content) for r, _, content in talk.recorder.ended] == [
        (f"1.2.{number}".encode(), content) for number, content in enumerate(contents)
    ]
    assert talk.reader.is_between_messages


def cut(drawn: st.DataObject, value: bytes, kind: int) -> list[bytes]:
    places = sorted(drawn.draw(st.lists(st.integers(0, len(value)), max_size=5)))
    pieces = [value[a:b] for a, b in zip([0, *places], [*places, len(value)], strict=True)]
    return [
        pdv(CONTEXT, kind | (LAST if number == len(pieces) else 0), piece)
        for number, piece in enumerate(pieces, start=1)
    ]


def test_an_object_that_breaks_off_is_discarded() -> None:
    talk = Conversation()
    talk.take(store(), data(b"half", last=False))
    assert not talk.reader.is_between_messages
    talk.reader.abandon()
    assert talk.recorder.begun[0][2].is_discarded
    assert talk.recorder.ended == []


def test_an_object_that_is_complete_is_not_discarded_afterwards() -> None:
    talk = Conversation()
    talk.take(store(), data(b"whole"))
    talk.reader.abandon()
    assert not talk.recorder.begun[0][2].is_discarded


def test_an_object_may_be_as_large_as_the_limit_and_no_larger() -> None:
    talk = Conversation(max_object_bytes=10)
    talk.take(store(), data(b"12345", last=False), data(b"67890"))
    assert len(talk.recorder.ended) == 1
    talk.refuses(store(), data(b"12345", last=False), data(b"678901"), error=LimitExceeded)
    assert len(talk.recorder.ended) == 1


# other messages


def test_an_echo_is_handed_on_whole() -> None:
    talk = Conversation()
    request = echo_rq()
    talk.take(pdv(CONTEXT, COMMAND, request[:11]) + pdv(CONTEXT, COMMAND | LAST, request[11:]))
    assert talk.recorder.handed_on == [(CONTEXT, b"\x03" + request)]
    assert talk.reader.is_between_messages


def test_a_commitment_request_is_handed_on_with_its_data_set() -> None:
    talk = Conversation()
    talk.take(command(N_ACTION), data(b"ab", last=False))
    assert not talk.reader.is_between_messages
    talk.take(data(b"cd"))
    assert talk.reader.is_between_messages
    assert talk.recorder.handed_on == [
        (CONTEXT, b"\x03" + N_ACTION),
        (CONTEXT, b"\x00ab"),
        (CONTEXT, b"\x02cd"),
    ]
    talk.take(store(), data(b"content"))
    assert len(talk.recorder.ended) == 1


def test_the_answer_to_a_report_is_handed_on() -> None:
    talk = Conversation()
    answer = command_set(N_EVENT_REPORT_RSP, {0x0110: None, 0x0120: us(1), 0x0900: us(0)})
    talk.take(command(answer))
    assert talk.recorder.handed_on == [(CONTEXT, b"\x03" + answer)]


def test_a_report_of_storage_commitment_is_handed_on_and_no_other() -> None:
    talk = Conversation()
    of_commitment = {0x0002: ui("1.2.840.10008.1.20.1"), 0x0800: us(WITH_DATA_SET)}
    report = command_set(0x0100, of_commitment)
    talk.take(command(report), data(b"abcd"))
    assert talk.recorder.handed_on == [(CONTEXT, b"\x03" + report), (CONTEXT, b"\x02abcd")]
    other = Conversation()
    other.take(command(command_set(0x0100)))
    assert other.recorder.handed_on == []
    assert len(other.recorder.sent) == 1


def test_a_cancel_is_noted_and_never_answered() -> None:
    talk = Conversation()
    talk.take(command(command_set(C_CANCEL_RQ)), store(), data(b"content"))
    assert (talk.recorder.sent, talk.recorder.handed_on) == ([], [])
    assert len(talk.recorder.ended) == talk.recorder.cancels == 1


def test_a_question_about_the_worklist_is_handed_on_where_that_was_agreed_upon() -> None:
    talk = Conversation()
    talk.recorder.worklist_contexts = (OTHER,)
    question = command_set(C_FIND_RQ, {0x0800: us(WITH_DATA_SET)})
    talk.take(command(question, OTHER), pdv(OTHER, DATA | LAST, b"keys"))
    assert talk.recorder.handed_on == [
        (OTHER, bytes([COMMAND | LAST]) + question),
        (OTHER, bytes([LAST]) + b"keys"),
    ]
    assert "not agreed upon" in talk.refuses(command(question))


def test_a_service_that_is_not_offered_is_answered_so() -> None:
    talk = Conversation()
    talk.take(command(command_set(C_FIND_RQ, {0x0110: us(77)}), OTHER), store(), data(b"content"))
    (answer,) = talk.recorder.sent
    assert answer[10] == OTHER
    found = elements_of(answer[12:])
    assert (found[0x0100], found[0x0120]) == (us(C_FIND_RQ | 0x8000), us(77))
    assert found[0x0900] == us(UNRECOGNIZED_OPERATION)
    assert len(talk.recorder.ended) == 1


# what has no place


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([b"\0\0\0\4\1"], "cut off"),
        ([pdv(CONTEXT, DATA, b"", claimed=1)], "wrong length"),
        ([pdv(CONTEXT, DATA, b"", claimed=0)], "wrong length"),
        ([pdv(CONTEXT, COMMAND | LAST, echo_rq(), claimed=500)], "wrong length"),
        ([pdv(CONTEXT, COMMAND | LAST, echo_rq(), claimed=0xFFFFFFFF)], "wrong length"),
        ([store() + b"\0"], "cut off"),
        ([store(context=NOT_ACCEPTED)], "not accepted"),
        ([store(), data(b"x", context=NOT_ACCEPTED)], "not accepted"),
        ([data(b"x")], "without a command"),
        ([pdv(CONTEXT, COMMAND, store_rq(UID)[:9]), data(b"x")], "without a command"),
        ([command(echo_rq()), data(b"x")], "without a command"),
        ([store(), data(b"x"), data(b"x")], "without a command"),
        ([store(), data(b"x", last=False), data(b"x", context=OTHER)], "changes its presentation context"),
        ([store(), data(b"x", context=OTHER)], "changes its presentation context"),
        (
            [pdv(CONTEXT, COMMAND, store_rq(UID)[:9]), pdv(OTHER, COMMAND | LAST, store_rq(UID)[9:])],
            "changes its presentation context",
        ),
        ([store(), store()], "in the midst"),
        ([store(), data(b"x", last=False), command(echo_rq())], "in the midst"),
        ([command(N_ACTION), command(echo_rq())], "in the midst"),
        ([command(command_set(0x8001))], "nothing was asked for"),
        ([command(command_set(0x8030))], "nothing was asked for"),
        ([command(command_set(C_FIND_RQ, {0x0800: us(WITH_DATA_SET)}))], "not agreed upon"),
        ([command(command_set(C_CANCEL_RQ, {0x0800: us(WITH_DATA_SET)})), data(b"x")], "without a command"),
    ],
)
def test_what_has_no_place_ends_the_association(values: list[bytes], words: str) -> None:
    talk = Conversation()
    assert words in talk.refuses(*values)
    assert talk.recorder.sent == []


@pytest.mark.parametrize("encoded", [b"", b"\0" * 5, b"\xff" * 40, echo_rq()[:-1]])
def test_what_is_no_command_set_ends_the_association(encoded: bytes) -> None:
    Conversation().refuses(command(encoded), error=CommandSetError)


def test_a_command_set_has_an_end() -> None:
    piece = pdv(CONTEXT, COMMAND, b"\0" * 30_000)
    Conversation().refuses(piece, piece, piece, error=LimitExceeded)


def test_the_data_set_of_another_message_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_reader, "_LONGEST_OTHER_DATA_SET_BYTES", 100)
    talk = Conversation()
    talk.take(command(N_ACTION), data(b"x" * 100))
    talk.refuses(command(N_ACTION), data(b"x" * 100, last=False), data(b"x"), error=LimitExceeded)


@given(st.lists(st.binary(max_size=80), max_size=8), st.integers(0, 60), st.integers(0, 255))
def test_no_bytes_make_it_fail_otherwise(noise: list[bytes], place: int, byte: int) -> None:
    damaged = bytearray(store() + data(b"content", last=False) + data(b"more") + command(echo_rq()))
    damaged[place] = byte
    talk = Conversation(max_object_bytes=50)
    with contextlib.suppress(PeerFault):
        talk.take(bytes(damaged), *noise)
    talk.reader.abandon()
    discarded = [arrival for _, _, arrival in talk.recorder.begun if arrival.is_discarded]
    assert len(talk.recorder.begun) == len(talk.recorder.ended) + len(discarded)


# several PDUs at once


def p_data_tf(*values: bytes) -> bytes:
    length = sum(map(len, values))
    return b"\x04\x00" + length.to_bytes(4, "big") + b"".join(values)


def taken_in_runs(talk: Conversation, stream: bytes, arrivals: Sequence[int]) -> None:
    """Give the stream to `take_run` and `take` as the upper layer does, as much of it at a time as has come."""
    at, come = 0, 0
    for arrived in [*arrivals, len(stream)]:
        come = min(come + arrived, len(stream))
        while come - at >= 6 and come - at >= 6 + int.from_bytes(stream[at + 2 : at + 6], "big"):
            first = 6 + int.from_bytes(stream[at + 2 : at + 6], "big")
            buffer = bytearray(stream[at:come])
            taken = talk.reader.take_run(memoryview(buffer))
            if not taken:
                talk.reader.take(memoryview(buffer)[6:first], (CONTEXT, OTHER))
                taken = first
            buffer[:] = b"\xee" * len(buffer)
            assert taken >= first
            at += taken


@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=12), min_size=1, max_size=4),
    st.lists(st.integers(1, 300), max_size=12),
    st.booleans(),
)
def test_pdus_that_are_taken_together_give_what_they_give_alone(
    objects: list[list[bytes]], arrivals: list[int], several_values: bool
) -> None:
    alone, together = Conversation(), Conversation()
    stream = b""
    for number, pieces in enumerate(objects):
        values = [data(piece, last=place == len(pieces) - 1) for place, piece in enumerate(pieces)]
        pdus = [store(f"1.2.{number + 1}"), *values]
        if several_values:
            pdus = [b"".join(pdus[at : at + 2]) for at in range(0, len(pdus), 2)]
        alone.take(*pdus)
        stream += b"".join(map(p_data_tf, pdus))
    taken_in_runs(together, stream, arrivals)
    assert together.recorder.ended == alone.recorder.ended
    assert [content for _, _, content in together.recorder.ended] == [b"".join(pieces) for pieces in objects]


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(p_data_tf(data(b"x", context=OTHER)), id="of another context"),
        pytest.param(p_data_tf(command(echo_rq())), id="a command"),
        pytest.param(p_data_tf(data(b"x"), data(b"y")), id="of two values"),
        pytest.param(b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00" + bytes(20), id="of another type"),
        pytest.param(p_data_tf(data(b"x")[:-1]), id="with a value that is longer"),
        pytest.param(p_data_tf(b"\x00\x00\x00\x01\x01\x02"), id="with a value that is too short"),
        pytest.param(p_data_tf(data(b"long"))[:-1], id="that is not whole"),
        pytest.param(p_data_tf(data(b"z" * 4096)), id="that is longer than was agreed"),
    ],
)
def test_a_run_ends_before_what_is_not_plain(odd: bytes) -> None:
    talk = Conversation(max_pdu_bytes=1024)
    talk.take(store())
    plain = p_data_tf(data(b"ab", last=False))
    assert talk.reader.take_run(memoryview(plain + odd)) == len(plain)
    assert bytes(talk.recorder.begun[0][2].content) == b"ab"
    assert talk.reader.take_run(memoryview(odd)) == 0


def test_a_run_ends_with_its_object() -> None:
    talk = Conversation()
    talk.take(store())
    both = p_data_tf(data(b"ab")) + p_data_tf(data(b"cd"))
    assert talk.reader.take_run(memoryview(both)) == len(both) // 2
    assert talk.recorder.ended[0][2] == b"ab"
    assert talk.reader.take_run(memoryview(both)) == 0  # no object is under way


def test_a_run_is_bounded() -> None:
    talk = Conversation()
    talk.take(store())
    one = p_data_tf(data(b"", last=False))
    assert talk.reader.take_run(memoryview(one * 2000)) == len(one) * 512


def test_a_run_that_makes_an_object_too_large_is_refused() -> None:
    talk = Conversation(max_object_bytes=5)
    talk.take(store())
    with pytest.raises(LimitExceeded):
        talk.reader.take_run(memoryview(p_data_tf(data(b"abc", last=False)) * 2))
