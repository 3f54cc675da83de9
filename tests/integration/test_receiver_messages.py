"""Odd and wrong messages and negotiations, byte by byte: PS3.7 and PS3.8 say what comes back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from tests.bare_peer import (
    A_ABORT,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_RELEASE_RP,
    A_RELEASE_RQ,
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_FIND_RQ,
    C_STORE_RQ,
    COMMAND,
    DATA,
    ECHO_CONTEXT,
    LAST,
    N_EVENT_REPORT_RSP,
    NO_DATA_SET,
    P_DATA_TF,
    STORE_CONTEXT,
    VERIFICATION,
    WITH_DATA_SET,
    BarePeer,
    associate_rq,
    command_set,
    echo_rq,
    fragments,
    item,
    p_data,
    pdu,
    pdv,
    store_rq,
    ui,
    us,
    with_length,
)
from tests.integration.conftest import Attacked
from tests.integration.test_receiver_attacks import assert_aborted, assert_given_up, half_an_object, results
from tests.receiver_process import HOST
from tests.small_objects import data_set_of, encoded, small_object

COMMITMENT = "1.2.840.10008.1.20.1"
EXPLICIT = (str(ExplicitVRLittleEndian),)
UNRECOGNIZED_OPERATION, NO_SUCH_ACTION = 0x0211, 0x0123
ALL = COMMAND | LAST


def message(context: int, command: bytes, data_set: bytes = b"") -> bytes:
    values = [pdv(context, ALL, command)]
    if data_set:
        values.append(pdv(context, DATA | LAST, data_set))
    return b"".join(map(p_data, values))


# command sets


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64])
def test_a_command_set_may_come_in_fragments(attacked: Attacked, size: int) -> None:
    dataset = small_object()
    for kind in ("each in its PDU", "all in one"):
        with attacked.peer() as peer:
            values = fragments(STORE_CONTEXT, COMMAND, store_rq(dataset.SOPInstanceUID), size)
            values += fragments(STORE_CONTEXT, DATA, encoded(dataset), 100)
            peer.send(p_data(*values) if kind == "all in one" else b"".join(map(p_data, values)))
            assert peer.status() == 0x0000
            peer.send(b"".join(map(p_data, fragments(ECHO_CONTEXT, COMMAND, echo_rq(), size))))
            assert peer.status() == 0x0000
            peer.release()


def test_a_command_in_the_middle_of_a_data_set(attacked: Attacked) -> None:
    for intruder in (
        pdv(STORE_CONTEXT, ALL, store_rq("1.2.3")),
        pdv(STORE_CONTEXT, COMMAND, b"ab"),
        pdv(ECHO_CONTEXT, ALL, echo_rq()),
        pdv(STORE_CONTEXT, ALL, command_set(C_CANCEL_RQ)),
    ):
        with attacked.peer() as peer:
            peer.send(half_an_object() + p_data(intruder))
            assert_aborted(peer)
    attacked.logs("a command comes in the midst of a data set")


@pytest.mark.parametrize(
    "second",
    [
        pdv(ECHO_CONTEXT, DATA, b"ab"),
        pdv(5, DATA, b"ab"),
        pdv(2, DATA, b"ab"),
        pdv(0, DATA, b"ab"),
        pdv(255, DATA | LAST, b"ab"),
    ],
    ids=["another", "not agreed upon", "even", "zero", "255"],
)
def test_a_message_that_changes_its_presentation_context(attacked: Attacked, second: bytes) -> None:
    with attacked.peer() as peer:
        peer.send(half_an_object() + p_data(second))
        assert_aborted(peer)
    with attacked.peer() as peer:
        peer.send(p_data(pdv(STORE_CONTEXT, COMMAND, store_rq("1.2.3")[:20]), second))
        assert_aborted(peer)
    attacked.logs("presentation context")


def test_a_data_set_that_no_command_announced(attacked: Attacked) -> None:
    with attacked.peer() as peer:
        peer.send(p_data(pdv(STORE_CONTEXT, DATA | LAST, b"ab" * 50)))
        assert_aborted(peer)
    with attacked.peer() as peer:
        assert peer.echo() == 0
        peer.send(p_data(pdv(ECHO_CONTEXT, DATA | LAST, b"ab" * 50)))
        assert_aborted(peer)
    attacked.logs("a data set comes without a command")


_UNKNOWN_FIELDS = [0x0000, 0x0002, 0x0010, 0x0021, 0x0100, 0x0110, 0x0120, 0x0140, 0x0150, 0x7FFF, C_FIND_RQ]


@pytest.mark.parametrize("field", _UNKNOWN_FIELDS, ids=hex)
@pytest.mark.parametrize("context", [ECHO_CONTEXT, STORE_CONTEXT])
def test_an_operation_that_was_not_agreed_upon(attacked: Attacked, field: int, context: int) -> None:
    """Without a data set it is answered, and the association goes on; with one it is aborted or answered."""
    with attacked.peer() as peer:
        peer.send(message(context, command_set(field, {0x0110: us(77)})))
        response = peer.response()
        assert response[0x0900] == us(UNRECOGNIZED_OPERATION)
        assert response[0x0120] == us(77)
        assert response[0x0100] == us(field | 0x8000)
        attacked.store_with(peer)
        peer.send(message(context, command_set(field, {0x0800: us(WITH_DATA_SET)}), b"ab" * 40))
        assert_aborted(peer)
    attacked.logs("a request comes for a service that was not agreed upon")


@pytest.mark.parametrize("field", [0x8001, 0x8030, 0x8020, 0x8130, 0xFFFF], ids=hex)
def test_an_answer_to_nothing(attacked: Attacked, field: int) -> None:
    with attacked.peer() as peer:
        peer.send(message(STORE_CONTEXT, command_set(field, {0x0120: us(1), 0x0900: us(0)})))
        assert_aborted(peer)
    attacked.logs("a response comes that nothing was asked for")


@pytest.mark.parametrize("context", [ECHO_CONTEXT, STORE_CONTEXT, 5])
def test_an_answer_to_a_report_that_was_never_made(attacked: Attacked, context: int) -> None:
    contexts = [(VERIFICATION, EXPLICIT), (CTImageStorage, EXPLICIT), (COMMITMENT, EXPLICIT)]
    answer = command_set(
        N_EVENT_REPORT_RSP, {0x0002: ui(COMMITMENT), 0x0110: None, 0x0120: us(9), 0x0900: us(0)}
    )
    with attacked.peer(associate_rq(contexts)) as peer:
        peer.send(message(context, answer))
        attacked.store_with(peer)
        peer.release()


def test_a_cancel_is_passed_over(attacked: Attacked) -> None:
    cancel = command_set(C_CANCEL_RQ, {0x0110: None, 0x0120: us(3)})
    with attacked.peer() as peer:
        peer.send(message(STORE_CONTEXT, cancel) + message(ECHO_CONTEXT, cancel))
        attacked.store_with(peer)
        peer.release()


@pytest.mark.parametrize("number", [0, 1, 65535])
def test_any_message_id_comes_back(attacked: Attacked, number: int) -> None:
    dataset = small_object()
    with attacked.peer() as peer:
        command = store_rq(dataset.SOPInstanceUID, {0x0110: us(number)})
        peer.send(message(STORE_CONTEXT, command, encoded(dataset)))
        response = peer.response()
        assert response[0x0120] == us(number)
        assert response[0x0900] == us(0)
        assert response[0x0002] == ui(CTImageStorage)
        assert response[0x1000] == ui(dataset.SOPInstanceUID)
        peer.send(message(ECHO_CONTEXT, echo_rq({0x0110: us(number)})))
        response = peer.response()
        assert (response[0x0120], response[0x0900]) == (us(number), us(0))
        peer.release()


@pytest.mark.parametrize(
    ("missing", "status"), [(0x1000, 0x0117), (0x0002, 0xA900), (0x0700, 0x0000)], ids=hex
)
def test_a_store_request_that_lacks_an_element(attacked: Attacked, missing: int, status: int) -> None:
    dataset = small_object()
    with attacked.peer() as peer:
        command = store_rq(dataset.SOPInstanceUID, {missing: None})
        peer.send(message(STORE_CONTEXT, command, encoded(dataset)))
        assert peer.status() == status
        attacked.store_with(peer)
        peer.release()


def test_a_store_request_without_a_data_set(attacked: Attacked) -> None:
    with attacked.peer() as peer:
        peer.send(message(STORE_CONTEXT, store_rq("1.2.3", {0x0800: us(NO_DATA_SET)})))
        assert peer.status() == 0xC000
        peer.send(message(STORE_CONTEXT, store_rq("1.2.3")) + p_data(pdv(STORE_CONTEXT, DATA | LAST, b"")))
        assert peer.status() == 0xC000
        attacked.store_with(peer)
        peer.release()
    attacked.logs("0xC000 data set is empty")


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\0" * 7,
        command_set(C_STORE_RQ, {0x0100: None}),
        command_set(C_STORE_RQ, {0x0110: None}),
        command_set(C_STORE_RQ, {0x0100: b"\x01"}),
        command_set(C_STORE_RQ, {0x0800: b"\x01\x00\x01\x00"}),
        command_set(C_STORE_RQ) + struct.pack("<HHI", 8, 0x18, 4) + b"1.2 ",
        command_set(C_STORE_RQ)[:-1],
        bytes(range(256)),
    ],
    ids=[
        "empty",
        "cut off",
        "no field",
        "no number",
        "short field",
        "long type",
        "another group",
        "cut value",
        "noise",
    ],
)
def test_what_is_no_command_set(attacked: Attacked, command: bytes) -> None:
    with attacked.peer() as peer:
        peer.send(p_data(pdv(STORE_CONTEXT, ALL, command)))
        assert_aborted(peer)
    attacked.logs("command set")


def test_a_command_set_without_end(attacked: Attacked) -> None:
    with attacked.peer() as peer:
        piece = p_data(pdv(STORE_CONTEXT, COMMAND, bytes(16000)))
        peer.send(piece * 5)
        assert_aborted(peer)
    attacked.logs("a command set is too long")


def test_services_over_the_contexts_of_others(attacked: Attacked) -> None:
    """C-STORE over Verification is refused, and so is C-ECHO with the name of a storage class."""
    with attacked.peer() as peer:
        dataset = small_object()
        peer.send(message(ECHO_CONTEXT, store_rq(dataset.SOPInstanceUID), encoded(dataset)))
        assert peer.status() == 0xA900
        attacked.store_with(peer)
        peer.release()
    for context, sop_class in (
        (STORE_CONTEXT, CTImageStorage),
        (ECHO_CONTEXT, CTImageStorage),
        (ECHO_CONTEXT, "1.2.3.4"),
        (ECHO_CONTEXT, COMMITMENT),
    ):
        with attacked.peer() as peer:
            peer.send(message(context, command_set(C_ECHO_RQ, {0x0002: ui(sop_class)})))
            assert_aborted_by_user(peer)
    attacked.logs("a request names the SOP class of another service")


def assert_aborted_by_user(peer: BarePeer) -> None:
    """The receiver aborts because of what was asked, not of how."""
    kind, body = peer.answer()
    assert kind == A_ABORT, (kind, body)
    assert peer.answer()[0] == 0


def action(sop_class: str) -> bytes:
    """An N-ACTION request of a type that there is not."""
    elements: dict[int, bytes | None] = {
        0x0002: None,
        0x0003: ui(sop_class),
        0x0800: us(WITH_DATA_SET),
        0x1001: ui("1.2.840.10008.1.20.1.1"),
        0x1008: us(99),
    }
    return command_set(0x0130, elements)


def test_an_action_that_nobody_offers(attacked: Attacked) -> None:
    contexts = [(VERIFICATION, EXPLICIT), (CTImageStorage, EXPLICIT), (COMMITMENT, EXPLICIT)]
    for context, sop_class in ((ECHO_CONTEXT, VERIFICATION), (STORE_CONTEXT, CTImageStorage), (5, "1.2.3")):
        with attacked.peer(associate_rq(contexts)) as peer:
            peer.send(message(context, action(sop_class), encoded(small_object())))
            assert_aborted_by_user(peer)
    attacked.logs("a request names the SOP class of another service")
    with attacked.peer(associate_rq(contexts)) as peer:
        peer.send(message(5, action(COMMITMENT), encoded(small_object())))
        assert peer.status() == NO_SUCH_ACTION
        attacked.store_with(peer)
        peer.release()


# fragments


def test_a_data_set_in_fragments_of_every_size(attacked: Attacked) -> None:
    with attacked.peer() as peer:
        length = len(encoded(small_object()))
        for size in (*range(1, 40), *range(41, length, 23), length - 1, length, length + 1):
            dataset = small_object()
            content = encoded(dataset)
            values = fragments(STORE_CONTEXT, DATA, content, size)
            peer.send(message(STORE_CONTEXT, store_rq(dataset.SOPInstanceUID)))
            peer.send(b"".join(map(p_data, values)) if size % 2 else p_data(*values))
            assert peer.status() == 0x0000, size
        peer.release()
    stored = {data_set_of(path) for path in attacked.process.objects()}
    assert content in stored


def test_ten_thousand_fragments_in_one_pdu(attacked: Attacked) -> None:
    dataset = small_object(PixelData=bytes(range(256)) * 40)
    content = encoded(dataset)
    assert len(content) > 10_000
    with attacked.peer() as peer:
        peer.send(message(STORE_CONTEXT, store_rq(dataset.SOPInstanceUID)))
        peer.send(p_data(*fragments(STORE_CONTEXT, DATA, content, 1)))
        assert peer.status() == 0x0000
        peer.release()
    assert content in {data_set_of(path) for path in attacked.process.objects()}


@pytest.mark.parametrize("empty_at", [0, 1, 2])
def test_empty_fragments_change_nothing(attacked: Attacked, empty_at: int) -> None:
    dataset = small_object()
    content = encoded(dataset)
    values = [pdv(STORE_CONTEXT, DATA, content[:100]), pdv(STORE_CONTEXT, DATA, content[100:])]
    for _ in range(3):
        values.insert(empty_at, pdv(STORE_CONTEXT, DATA, b""))
    values.append(pdv(STORE_CONTEXT, DATA | LAST, b""))
    with attacked.peer() as peer:
        peer.send(message(STORE_CONTEXT, store_rq(dataset.SOPInstanceUID)) + p_data(*values))
        assert peer.status() == 0x0000
        peer.release()
    assert content in {data_set_of(path) for path in attacked.process.objects()}


def test_many_messages_in_one_pdu(attacked: Attacked) -> None:
    datasets = [small_object() for _ in range(20)]
    values = []
    for dataset in datasets:
        values += [pdv(STORE_CONTEXT, ALL, store_rq(dataset.SOPInstanceUID))]
        values += [pdv(STORE_CONTEXT, DATA | LAST, encoded(dataset))]
    with attacked.peer() as peer:
        peer.send(p_data(*values))
        assert [peer.status() for _ in datasets] == [0x0000] * 20
        peer.release()


def test_a_p_data_without_values_is_passed_over(attacked: Attacked) -> None:
    with attacked.peer() as peer:
        peer.send(p_data() * 3)
        attacked.store_with(peer)
        peer.send(half_an_object() + p_data())
        peer.send(pdu(A_ABORT, bytes(4)))
        assert peer.answer()[0] == 0


@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_value_that_is_cut_off(attacked: Attacked, length: int) -> None:
    with attacked.peer() as peer:
        peer.send(pdu(P_DATA_TF, bytes(length)))
        assert_aborted(peer)
    attacked.logs("a presentation data value is cut off")


def test_reserved_bits_of_the_control_header_are_not_looked_at(attacked: Attacked) -> None:
    dataset = small_object()
    with attacked.peer() as peer:
        peer.send(
            p_data(
                pdv(STORE_CONTEXT, ALL | 0xFC, store_rq(dataset.SOPInstanceUID)),
                pdv(STORE_CONTEXT, DATA | LAST | 0xFC, encoded(dataset)),
            )
        )
        assert peer.status() == 0x0000
        peer.release()


# the order of things


def test_an_association_requested_twice(attacked: Attacked) -> None:
    with attacked.peer() as peer:
        attacked.store_with(peer)
        peer.send(associate_rq())
        assert_aborted(peer)
    with BarePeer(attacked.port) as peer:
        peer.send(associate_rq() + associate_rq())
        assert peer.answer()[0] == A_ASSOCIATE_AC
        peer.is_associated = True
        assert_aborted(peer)
    attacked.logs("a PDU of type 0x01 has no place here")


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 6], ids=hex)
def test_an_association_that_begins_with_something_else(attacked: Attacked, kind: int) -> None:
    with BarePeer(attacked.port) as peer:
        peer.send(pdu(kind, bytes(4)))
        assert_aborted(peer)


@pytest.mark.parametrize("kind", [2, 3, 6], ids=hex)
def test_a_pdu_that_only_an_acceptor_sends(attacked: Attacked, kind: int) -> None:
    with attacked.peer() as peer:
        peer.send(pdu(kind, bytes(4)))
        assert_aborted(peer)


def test_data_after_the_release(attacked: Attacked) -> None:
    before = set(attacked.process.objects())
    dataset = small_object()
    late = message(STORE_CONTEXT, store_rq(dataset.SOPInstanceUID), encoded(dataset))
    with attacked.peer() as peer:
        peer.send(pdu(A_RELEASE_RQ, bytes(4)) + late)
        assert peer.answer()[0] == A_RELEASE_RP
        assert_given_up(peer)
    assert set(attacked.process.objects()) == before


def test_everything_at_once(attacked: Attacked) -> None:
    """A sender that does not wait for the acceptance: what came before its release is stored."""
    dataset = small_object()
    whole = message(STORE_CONTEXT, store_rq(dataset.SOPInstanceUID), encoded(dataset))
    with BarePeer(attacked.port) as peer:
        peer.send(associate_rq() + whole + pdu(A_RELEASE_RQ, bytes(4)))
        assert peer.answer()[0] == A_ASSOCIATE_AC
        assert peer.status() == 0x0000
        assert peer.answer()[0] == A_RELEASE_RP


def test_requests_that_do_not_wait_for_their_answers(attacked: Attacked) -> None:
    with attacked.peer() as peer:
        objects = [small_object() for _ in range(10)]
        for number, dataset in enumerate(objects, start=1):
            command = store_rq(dataset.SOPInstanceUID, {0x0110: us(number)})
            peer.send(message(STORE_CONTEXT, command, encoded(dataset)))
            peer.send(message(ECHO_CONTEXT, echo_rq({0x0110: us(100 + number)})))
        answers = [peer.response() for _ in range(20)]
        assert [int.from_bytes(answer[0x0120], "little") for answer in answers] == [
            number for pair in zip(range(1, 11), range(101, 111), strict=True) for number in pair
        ]
        assert {answer[0x0900] for answer in answers} == {us(0)}
        peer.release()


# negotiation


def accepted(attacked: Attacked, request: bytes) -> bytes:
    """The A-ASSOCIATE-AC of a request; a store and an echo work over the association."""
    with BarePeer(attacked.port) as peer:
        peer.send(request)
        kind, body = peer.answer()
        assert kind == A_ASSOCIATE_AC, (kind, body)
        attacked.store_with(peer)
        assert peer.echo() == 0
        peer.release()
    return body


def user_items(accept: bytes) -> list[tuple[int, bytes]]:
    """The sub-items of the user information of an A-ASSOCIATE-AC."""
    found: list[tuple[int, bytes]] = []
    at, end = 68, len(accept)
    while at < end:
        kind, _, length = struct.unpack_from(">BBH", accept, at)
        if kind == 0x50:
            at += 4
            continue
        if kind >= 0x50:
            found.append((kind, accept[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


@pytest.mark.parametrize("window", [(0, 0), (8, 8), (65535, 3)])
def test_the_asynchronous_operations_window_is_one(attacked: Attacked, window: tuple[int, int]) -> None:
    accept = accepted(attacked, associate_rq(extra=item(0x53, struct.pack(">HH", *window))))
    assert [value for kind, value in user_items(accept) if kind == 0x53] == [struct.pack(">HH", 1, 1)]


@pytest.mark.parametrize("extra", [b"", item(0x53, struct.pack(">HH", 1, 1))], ids=["none", "one"])
def test_no_window_is_answered_where_it_is_one_anyway(attacked: Attacked, extra: bytes) -> None:
    accept = accepted(attacked, associate_rq(extra=extra))
    assert [kind for kind, _ in user_items(accept)] == [0x51, 0x52, 0x55]


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_user_identities_are_passed_over(attacked: Attacked, kind: int, positive: int) -> None:
    """PS3.7 D.3.3.7: an acceptor that knows no user identification does not answer it."""
    secondary = b"secret" if kind == 2 else b""
    identity = struct.pack(">BB", kind, positive) + with_length(b"somebody", secondary)
    accept = accepted(attacked, associate_rq(extra=item(0x58, identity)))
    assert [kind for kind, _ in user_items(accept)] == [0x51, 0x52, 0x55]
    for word in ("somebody", "secret"):
        assert word not in attacked.log


def test_extended_negotiation_is_passed_over(attacked: Attacked) -> None:
    extended = item(0x56, with_length(CTImageStorage.encode()) + b"\2\0\3\0\1\0")
    general = with_length(b"1.2.840.10008.5.1.4.1.1.7")
    body = with_length(EnhancedCTImageStorage.encode(), b"1.2.840.10008.4.2", general)
    common = struct.pack(">BBH", 0x57, 0, len(body)) + body
    accept = accepted(attacked, associate_rq(extra=extended + common))
    assert {kind for kind, _ in user_items(accept)} <= {0x51, 0x52, 0x55, 0x56}


def test_a_class_that_calls_itself_like_another(attacked: Attacked) -> None:
    """Common extended negotiation does not turn one service into another."""
    body = with_length(CTImageStorage.encode(), VERIFICATION.encode(), b"")
    common = struct.pack(">BBH", 0x57, 0, len(body)) + body
    accepted(attacked, associate_rq(extra=common))


@pytest.mark.parametrize("roles", [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_storage_as_a_provider_is_not_granted(attacked: Attacked, roles: tuple[int, int]) -> None:
    role = item(0x54, with_length(CTImageStorage.encode()) + bytes(roles))
    with BarePeer(attacked.port) as peer:
        peer.send(associate_rq(extra=role))
        kind, body = peer.answer()
        assert kind == A_ASSOCIATE_AC
        if roles[0]:
            attacked.store_with(peer)
        peer.send(pdu(A_RELEASE_RQ, bytes(4)))
    granted = [value for kind, value in user_items(body) if kind == 0x54]
    assert all(value[-1] == 0 for value in granted)


def test_128_presentation_contexts(attacked: Attacked) -> None:
    syntaxes = [str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian), "1.2.840.10008.1.2.4.90"]
    classes = [VERIFICATION, CTImageStorage] + [f"1.2.3.{number}" for number in range(124)]
    contexts: list[tuple[str, Sequence[str]]] = [(uid, syntaxes) for uid in classes]
    contexts += [(SecondaryCaptureImageStorage, EXPLICIT), (EnhancedCTImageStorage, EXPLICIT)]
    assert len(contexts) == 128
    with attacked.peer(associate_rq(contexts)) as peer:
        assert peer.echo() == 0
        peer.release()
    with BarePeer(attacked.port) as peer:
        peer.send(associate_rq(contexts))
        found = results(peer.answer()[1])
    assert len(found) == 128
    assert [number for number, result in found.items() if result == 0] == [1, 3, 253, 255]
    assert {result for number, result in found.items() if 3 < number < 253} == {3}


@pytest.mark.parametrize(
    "numbers", [(1, 1), (2, 4), (0, 3), (3, 1)], ids=["the same twice", "even", "zero", "descending"]
)
def test_odd_numbers_of_presentation_contexts(attacked: Attacked, numbers: tuple[int, int]) -> None:
    with BarePeer(attacked.port) as peer:
        peer.send(associate_rq(context_numbers=numbers))
        assert peer.answer()[0] in (A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ABORT)


@pytest.mark.parametrize("contexts", [(), ((CTImageStorage, ()),), (("1.2.3", EXPLICIT),)])
def test_an_association_for_nothing(
    attacked: Attacked, contexts: Sequence[tuple[str, Sequence[str]]]
) -> None:
    with BarePeer(attacked.port) as peer:
        peer.send(associate_rq(contexts))
        kind, body = peer.answer()
        assert kind in (A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ABORT)
        if kind == A_ASSOCIATE_AC:
            assert 0 not in results(body).values()
            peer.send(half_an_object())
            assert_given_up(peer)


def _rejection(attacked: Attacked, request: bytes) -> tuple[int, int, int]:
    with BarePeer(attacked.port) as peer:
        peer.send(request)
        kind, body = peer.answer()
        assert kind == A_ASSOCIATE_RJ
        assert peer.answer()[0] == 0
        return body[1], body[2], body[3]


@pytest.mark.parametrize("name", ["1.2.840.10008.3.1.1.2", "1.2", "not.a.uid"])
def test_another_application_context(attacked: Attacked, name: str) -> None:
    assert _rejection(attacked, associate_rq(application_context=name)) == (1, 1, 2)
    attacked.logs(f"rejected an association of 'SCANNER' from {HOST}: Application context name not supported")


@pytest.mark.parametrize("version", [0, 2, 0xFFFE])
def test_another_protocol_version(attacked: Attacked, version: int) -> None:
    assert _rejection(attacked, associate_rq(protocol_version=version)) == (1, 2, 2)
    attacked.logs(f"rejected an association from {HOST}: protocol version")


@pytest.mark.parametrize("version", [3, 0xFFFF])
def test_version_1_among_others(attacked: Attacked, version: int) -> None:
    accepted(attacked, associate_rq(protocol_version=version))


_WHOLE = associate_rq()[6:]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        _WHOLE[:40],
        _WHOLE[:74],
        _WHOLE[:-10],
        _WHOLE[:68],
        _WHOLE + item(0x50, b"abc", claimed=65535),
        _WHOLE + item(0x99, b"unknown"),
        _WHOLE + b"\x20",
        _WHOLE[:68] + item(0x10, b"1.2") * 300 + _WHOLE[68:],
        _WHOLE[:68] + item(0x20, b"") * 100 + _WHOLE[68:],
        _WHOLE[:68] + item(0x20, bytes(4) + item(0x30, b"", claimed=65535)) + _WHOLE[68:],
        bytes(range(256)) * 4,
        bytes(2**17),
        b"\xff" * 2**17,
    ],
    ids=[
        "empty",
        "fixed part cut off",
        "item cut off",
        "end cut off",
        "no items",
        "claims too much",
        "unknown item",
        "half a header",
        "300 contexts of application",
        "empty contexts",
        "sub-item claims too much",
        "noise",
        "zeros",
        "ones",
    ],
)
def test_an_association_request_that_is_damaged(attacked: Attacked, body: bytes) -> None:
    with BarePeer(attacked.port) as peer:
        peer.send(pdu(1, body))
        assert peer.answer()[0] in (A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ABORT)


_DAMAGED: list[Callable[[], bytes]] = [
    lambda: item(0x51, b""),
    lambda: item(0x51, bytes(4)),
    lambda: item(0x51, struct.pack(">I", 1)),
    lambda: item(0x51, b"\xff" * 4),
    lambda: item(0x53, b"\0"),
    lambda: item(0x54, with_length(b"")),
    lambda: item(0x54, struct.pack(">H", 60000) + b"1.2"),
    lambda: item(0x56, struct.pack(">H", 60000) + b"1.2"),
    lambda: item(0x57, struct.pack(">H", 60000) + b"1.2"),
    lambda: item(0x58, b"\x09\x01" + with_length(b"x", b"")),
    lambda: item(0x58, b"\x02\x01" + struct.pack(">H", 60000)),
    lambda: item(0x52, b"x" * 200),
    lambda: item(0x55, b"\xff" * 40),
    lambda: item(0x5F, b"unknown"),
]


@pytest.mark.parametrize("damaged", _DAMAGED)
def test_user_information_that_is_damaged(attacked: Attacked, damaged: Callable[[], bytes]) -> None:
    with BarePeer(attacked.port) as peer:
        peer.send(associate_rq(extra=damaged()))
        assert peer.answer()[0] in (A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ABORT)


@pytest.mark.parametrize("longest", [0, 1, 12, 128, 4096, 2**32 - 1])
def test_answers_are_no_longer_than_the_peer_takes(attacked: Attacked, longest: int) -> None:
    """A peer may ask for PDUs that are shorter than any answer; then it gets it all the same, or an abort."""
    request = associate_rq().replace(
        item(0x51, struct.pack(">I", 16384)), item(0x51, struct.pack(">I", longest))
    )
    with BarePeer(attacked.port) as peer:
        peer.send(request)
        kind, _ = peer.answer()
        assert kind in (A_ASSOCIATE_AC, A_ABORT)
        if kind == A_ASSOCIATE_AC:
            dataset = small_object()
            peer.send(message(STORE_CONTEXT, store_rq(dataset.SOPInstanceUID), encoded(dataset)))
            assert peer.answer()[0] in (P_DATA_TF, A_ABORT)
