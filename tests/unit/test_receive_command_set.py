"""Command sets that are read and written here, held to those of pynetdicom and to PS3.7."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage
from pynetdicom.dimse_messages import C_ECHO_RQ as EchoRequest
from pynetdicom.dimse_messages import C_STORE_RQ as StoreRequest
from pynetdicom.dimse_messages import C_STORE_RSP as StoreResponse
from pynetdicom.dimse_messages import N_ACTION_RQ as ActionRequest
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE, N_ACTION
from pynetdicom.pdu import P_DATA_TF

from ich_node.receive.command_set import (
    C_ECHO_RQ,
    C_STORE_RQ,
    N_ACTION_RQ,
    CommandSet,
    CommandSetError,
    read_command_set,
    response_pdu,
)
from tests.bare_peer import command_set, elements_of, store_rq, us

EVEN, ODD = "1.2.3.40", "1.2.3.456"
uids = st.lists(st.integers(0, 10**9), min_size=2, max_size=6).map(lambda parts: ".".join(map(str, parts)))
unsigned = st.integers(0, 0xFFFF)


def request(sop_instance_uid: str, *, sop_class_uid: str = CTImageStorage, message_id: int = 7) -> CommandSet:
    return CommandSet(
        command_field=C_STORE_RQ,
        message_id=message_id,
        has_data_set=True,
        sop_class_uid=sop_class_uid.encode(),
        sop_instance_uid=sop_instance_uid.encode(),
    )


def as_pdu(message: DIMSEMessage, context_id: int) -> bytes:
    (values,) = message.encode_msg(context_id, 16384)
    return bytes(P_DATA_TF(values).encode())


def response_of_pynetdicom(answered: CommandSet, context_id: int, status: int, comment: str) -> bytes:
    primitive = C_STORE()
    primitive.MessageIDBeingRespondedTo = answered.message_id
    primitive.AffectedSOPClassUID = answered.sop_class_uid.decode()
    primitive.AffectedSOPInstanceUID = answered.sop_instance_uid.decode()
    primitive.Status = status
    if comment:
        primitive.ErrorComment = comment
    message = StoreResponse()
    message.primitive_to_message(primitive)
    return as_pdu(message, context_id)


def value_of(pdu: bytes) -> bytes:
    """The command set in a PDU with one value."""
    assert struct.unpack_from(">BBI", pdu) == (0x04, 0, len(pdu) - 6)
    assert int.from_bytes(pdu[6:10], "big") == len(pdu) - 10
    return pdu[12:]


@pytest.mark.parametrize("comment", ["", "disk is full", "odd", "x" * 64])
@pytest.mark.parametrize("status", [0x0000, 0x0117, 0xA700, 0xC000])
@pytest.mark.parametrize("sop_instance_uid", [EVEN, ODD])
@pytest.mark.parametrize("sop_class_uid", [CTImageStorage, f"{CTImageStorage}.1"])
def test_a_response_is_that_of_pynetdicom_byte_for_byte(
    sop_class_uid: str, sop_instance_uid: str, status: int, comment: str
) -> None:
    answered = request(sop_instance_uid, sop_class_uid=sop_class_uid)
    assert response_pdu(answered, 3, status, comment) == response_of_pynetdicom(answered, 3, status, comment)


@given(uids, unsigned, st.integers(0, 127).map(lambda n: 2 * n + 1))
def test_any_response_is_that_of_pynetdicom(uid: str, message_id: int, context_id: int) -> None:
    answered = request(uid, message_id=message_id)
    assert response_pdu(answered, context_id, 0) == response_of_pynetdicom(answered, context_id, 0, "")


@given(st.binary(max_size=80), st.binary(max_size=80), st.text(max_size=80), unsigned)
def test_the_elements_of_a_response_ascend_and_are_even(
    sop_class_uid: bytes, sop_instance_uid: bytes, comment: str, status: int
) -> None:
    answered = CommandSet(C_ECHO_RQ, 1, False, sop_class_uid, sop_instance_uid)
    elements = elements_of(value_of(response_pdu(answered, 1, status, comment)))
    assert list(elements) == sorted(elements)
    assert all(len(value) % 2 == 0 for value in elements.values())
    group_length = int.from_bytes(elements.pop(0x0000), "little")
    assert group_length == sum(8 + len(value) for value in elements.values())
    assert elements[0x0100] == us(0x8030)
    assert elements[0x0120] == us(1)
    assert elements[0x0900] == us(status)
    assert 0x0110 not in elements  # Message ID is the requester's alone
    assert len(elements.get(0x0902, b"")) <= 64
    assert elements.get(0x0902, b"").isascii()


@pytest.mark.parametrize("uid", [EVEN, ODD])
def test_a_store_request_of_pynetdicom_is_read(uid: str) -> None:
    primitive = C_STORE()
    primitive.MessageID = 300
    primitive.AffectedSOPClassUID = CTImageStorage
    primitive.AffectedSOPInstanceUID = uid
    primitive.Priority = 0
    primitive.MoveOriginatorApplicationEntityTitle = "MOVER"
    primitive.MoveOriginatorMessageID = 5
    message = StoreRequest()
    message.primitive_to_message(primitive)
    message.command_set.CommandDataSetType = 0x0001
    found = read_command_set(value_of(as_pdu(message, 1)))
    assert found == request(uid, message_id=300)


def test_requests_of_other_services_are_read() -> None:
    echo = C_ECHO()
    echo.MessageID, echo.AffectedSOPClassUID = 9, "1.2.840.10008.1.1"
    message = EchoRequest()
    message.primitive_to_message(echo)
    assert read_command_set(value_of(as_pdu(message, 1))) == CommandSet(
        C_ECHO_RQ, 9, False, b"1.2.840.10008.1.1", b""
    )
    action = N_ACTION()
    action.MessageID, action.ActionTypeID = 10, 1
    action.RequestedSOPClassUID, action.RequestedSOPInstanceUID = "1.2.840.10008.1.20.1", "1.2.3"
    message = ActionRequest()
    message.primitive_to_message(action)
    # Affected and Requested SOP are different elements; pynetdicom reads the latter.
    assert read_command_set(value_of(as_pdu(message, 1))) == CommandSet(N_ACTION_RQ, 10, False, b"", b"")


@pytest.mark.parametrize("padding", [b"", b"\0", b" ", b"\0\0\0"])
def test_padding_of_a_uid_is_not_part_of_it(padding: bytes) -> None:
    assert read_command_set(store_rq(b"1.2.3" + padding)).sop_instance_uid == b"1.2.3"


@pytest.mark.parametrize("data_set_type", [0x0000, 0x0001, 0x0102, 0xFEFE])
def test_every_type_but_one_announces_a_data_set(data_set_type: int) -> None:
    assert read_command_set(command_set(C_STORE_RQ, {0x0800: us(data_set_type)})).has_data_set
    assert not read_command_set(command_set(C_STORE_RQ, {0x0800: us(0x0101)})).has_data_set


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\0" * 7,
        command_set(C_STORE_RQ)[:-1],
        command_set(C_STORE_RQ) + b"\0" * 4,
        command_set(C_STORE_RQ, {0x0100: None}),
        command_set(C_STORE_RQ, {0x0100: b""}),
        command_set(C_STORE_RQ, {0x0100: b"\1\0\0\0"}),
        command_set(C_STORE_RQ, {0x0110: b"\1"}),
        command_set(C_STORE_RQ, {0x0800: b"\1\1\0\0"}),
        command_set(C_STORE_RQ) + struct.pack("<HHI", 0x0008, 0x0018, 2) + b"1\0",
        command_set(C_STORE_RQ) + struct.pack("<HHI", 0, 0x1000, 0xFFFFFFFF),
    ],
    ids=[
        "nothing",
        "cut off in a tag",
        "cut off in a value",
        "bytes behind",
        "no command field",
        "empty command field",
        "long command field",
        "odd message ID",
        "long data set type",
        "element of a data set",
        "undefined length",
    ],
)
def test_what_is_no_command_set_is_said_to_be_none(encoded: bytes) -> None:
    with pytest.raises(CommandSetError):
        read_command_set(encoded)


@given(st.binary(max_size=60), st.integers(0, 120), st.integers(0, 20))
def test_damage_is_read_or_refused(junk: bytes, place: int, cut: int) -> None:
    encoded = store_rq("1.2.3.4.5.6.7.8.9")
    damaged = encoded[:place] + junk + encoded[place + cut :]
    try:
        found = read_command_set(damaged)
    except CommandSetError:
        return
    assert 0 <= found.command_field <= 0xFFFF
    assert 0 <= found.message_id <= 0xFFFF
    assert found.sop_instance_uid in damaged


@given(
    st.dictionaries(
        st.sampled_from([0x0002, 0x0600, 0x0700, 0x1000, 0x1001, 0x1031]), st.binary(max_size=40), max_size=6
    ),
    st.permutations([0x0100, 0x0110, 0x0800]),
)
def test_the_order_of_elements_and_what_else_is_there_do_not_matter(
    others: dict[int, bytes], order: list[int]
) -> None:
    values = {0x0100: us(C_STORE_RQ), 0x0110: us(12), 0x0800: us(1)}
    elements = [*((number, values[number]) for number in order), *others.items()]
    encoded = b"".join(struct.pack("<HHI", 0, number, len(value)) + value for number, value in elements)
    found = read_command_set(encoded)
    assert (found.command_field, found.message_id, found.has_data_set) == (C_STORE_RQ, 12, True)
    assert found.sop_class_uid == others.get(0x0002, b"").rstrip(b"\0 ")
    assert found.sop_instance_uid == others.get(0x1000, b"").rstrip(b"\0 ")
