"""DIMSE command sets as bytes (PS3.7 section 6.3): Implicit VR Little Endian, group 0000 only.

pynetdicom builds a `Dataset` for each command and each answer, which is a third of what it spends on an
image. The few elements of C-STORE are read and written here directly; everything else goes through
pynetdicom.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ich_node.receive.paced_connection import ProtocolViolation

C_STORE_RQ = 0x0001
C_FIND_RQ = 0x0020
C_ECHO_RQ = 0x0030
N_EVENT_REPORT_RQ = 0x0100
N_ACTION_RQ = 0x0130
N_EVENT_REPORT_RSP = 0x8100
C_CANCEL_RQ = 0x0FFF
RESPONSE_BIT = 0x8000
UNRECOGNIZED_OPERATION = 0x0211
"""PS3.7 C.5.23: the operation is none of those that were agreed upon."""

_AFFECTED_SOP_CLASS_UID = 0x0002
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
_COMMAND_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE_UID = 0x1000
_NO_DATA_SET = 0x0101
_LONGEST_TEXT = 64

_ELEMENT = struct.Struct("<HHI")
_US_ELEMENT = struct.Struct("<HHIH")
_PDU_AND_PDV = struct.Struct(">BBIIBB")
_P_DATA_TF = 0x04
_LAST_COMMAND_FRAGMENT = 0x03


class CommandSetError(ProtocolViolation):
    """The bytes are no command set. Carries no value of it."""


@dataclass(frozen=True, slots=True)
class CommandSet:
    """What the receiver needs of a request's command set."""

    command_field: int
    message_id: int
    has_data_set: bool
    sop_class_uid: bytes
    """Affected SOP Class UID as sent, without padding."""
    sop_instance_uid: bytes
    """Affected SOP Instance UID as sent, without padding."""


def read_command_set(encoded: bytes) -> CommandSet:
    """Decode a command set.

    Raises
    ------
    CommandSetError
        It is cut off, holds elements outside group 0000, or lacks Command Field, Command Data Set Type or, in
        a request, Message ID.
    """
    found: dict[int, bytes] = {}
    at, end = 0, len(encoded)
    while at < end:
        if at + 8 > end:
            raise CommandSetError("an element of the command set is cut off")
        group, element, length = _ELEMENT.unpack_from(encoded, at)
        at += 8
        if group != 0 or at + length > end:
            raise CommandSetError("the command set holds what is no command element")
        found[element] = encoded[at : at + length]
        at += length
    field = _unsigned(found, _COMMAND_FIELD)
    answers_another = bool(field & RESPONSE_BIT) or field == C_CANCEL_RQ
    return CommandSet(
        command_field=field,
        message_id=_unsigned(found, _MESSAGE_ID, 0 if answers_another else None),
        has_data_set=_unsigned(found, _COMMAND_DATA_SET_TYPE) != _NO_DATA_SET,
        sop_class_uid=found.get(_AFFECTED_SOP_CLASS_UID, b"").rstrip(b"\0 "),
        sop_instance_uid=found.get(_AFFECTED_SOP_INSTANCE_UID, b"").rstrip(b"\0 "),
    )


def without_message_id(encoded: bytes) -> bytes:
    """Take Message ID out of a command set that `read_command_set` has read: an answer has none.

    pynetdicom takes an answer that has one for a request.
    """
    kept, at = [], 0
    while at < len(encoded):
        _, element, length = _ELEMENT.unpack_from(encoded, at)
        after = at + _ELEMENT.size + length
        if element != _MESSAGE_ID:
            kept.append(encoded[at:after])
        at = after
    return b"".join(kept)


def response_pdu(request: CommandSet, context_id: int, status: int, comment: str = "") -> bytes:
    """Encode the answer to a request that has no data set in its answer, as one P-DATA-TF PDU (PS3.8 9.3.5).

    Parameters
    ----------
    request
        What is answered; its UIDs are repeated as they came.
    context_id
        Presentation context of the request.
    status
        Status (0000,0900).
    comment
        Error Comment (0000,0902), ASCII, at most 64 characters; left out where empty.
    """
    elements = b"".join(
        [
            _text_element(_AFFECTED_SOP_CLASS_UID, request.sop_class_uid, b"\0"),
            _US_ELEMENT.pack(0, _COMMAND_FIELD, 2, request.command_field | RESPONSE_BIT),
            _US_ELEMENT.pack(0, _MESSAGE_ID_BEING_RESPONDED_TO, 2, request.message_id),
            _US_ELEMENT.pack(0, _COMMAND_DATA_SET_TYPE, 2, _NO_DATA_SET),
            _US_ELEMENT.pack(0, _STATUS, 2, status),
            _text_element(_ERROR_COMMENT, comment.encode("ascii", "replace")[:64], b" "),
            _text_element(_AFFECTED_SOP_INSTANCE_UID, request.sop_instance_uid, b"\0"),
        ]
    )
    pdv_length = 2 + 12 + len(elements)
    return (
        _PDU_AND_PDV.pack(_P_DATA_TF, 0, 4 + pdv_length, pdv_length, context_id, _LAST_COMMAND_FRAGMENT)
        + _ELEMENT.pack(0, 0, 4)
        + len(elements).to_bytes(4, "little")
        + elements
    )


def _text_element(element: int, value: bytes, padding: bytes) -> bytes:
    if not value or len(value) > _LONGEST_TEXT:  # a UID of more characters is none, and is not repeated
        return b""
    if len(value) % 2:
        value += padding
    return _ELEMENT.pack(0, element, len(value)) + value


def _unsigned(found: dict[int, bytes], element: int, default: int | None = None) -> int:
    value = found.get(element, b"")
    if len(value) == 2:
        return int.from_bytes(value, "little")
    if default is None or value:
        raise CommandSetError(f"element (0000,{element:04X}) of the command set is absent or no number")
    return default
