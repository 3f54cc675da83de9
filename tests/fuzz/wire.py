"""DICOM's upper layer and command sets as bytes, written and read without the product and without pynetdicom.

What is compared with the receiver must not come from it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
"""PDU types of PS3.8 section 9.3."""
COMMAND, LAST = 1, 2
"""Bits of the message control header (PS3.8 E.2)."""
C_STORE_RQ, C_STORE_RSP, C_ECHO_RQ, C_ECHO_RSP = 0x0001, 0x8001, 0x0030, 0x8030
C_FIND_RQ, C_CANCEL_RQ = 0x0020, 0x0FFF
N_EVENT_REPORT_RQ, N_EVENT_REPORT_RSP, N_ACTION_RQ, N_ACTION_RSP = 0x0100, 0x8100, 0x0130, 0x8130
NO_DATA_SET = 0x0101

_HEADER = struct.Struct(">BBI")
_PDV = struct.Struct(">IBB")
_ELEMENT = struct.Struct("<HHI")


@dataclass(frozen=True, kw_only=True)
class Value:
    """One presentation data value of a P-DATA-TF PDU."""

    context_id: int
    control: int
    fragment: bytes


def pdu(kind: int, body: bytes) -> bytes:
    return _HEADER.pack(kind, 0, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    """An item of an association request."""
    return struct.pack(">BBH", kind, 0, len(body)) + body


def context_item(context_id: int, abstract: str, transfers: Iterable[str]) -> bytes:
    syntaxes = b"".join(item(0x40, uid.encode()) for uid in transfers)
    return item(0x20, bytes([context_id, 0, 0, 0]) + item(0x30, abstract.encode()) + syntaxes)


def role_item(sop_class_uid: str, *, scu: bool, scp: bool) -> bytes:
    """SCP/SCU role selection (PS3.7 D.3.3.4)."""
    uid = sop_class_uid.encode()
    return item(0x54, struct.pack(">H", len(uid)) + uid + bytes([scu, scp]))


def user_information(*extra: bytes, maximum_length: int = 16384) -> bytes:
    return item(
        0x50,
        item(0x51, struct.pack(">I", maximum_length))
        + item(0x52, b"1.2.826.0.1.3680043.8.498.99")
        + b"".join(extra)
        + item(0x55, b"FUZZ"),
    )


def associate_rq(
    contexts: Mapping[int, tuple[str, tuple[str, ...]]],
    *,
    called: str = "ICH_FUZZ",
    calling: str = "SCANNER",
    application_context: str = "1.2.840.10008.3.1.1.1",
    user: bytes | None = None,
) -> bytes:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    items = [item(0x10, application_context.encode())]
    items += [context_item(number, *context) for number, context in contexts.items()]
    items.append(user_information() if user is None else user)
    fixed = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), calling.ljust(16).encode())
    return pdu(ASSOCIATE_RQ, fixed + b"".join(items))


def data_tf(values: Iterable[Value]) -> bytes:
    """P-DATA-TF (PS3.8 9.3.5)."""
    parts = [_PDV.pack(len(v.fragment) + 2, v.context_id & 255, v.control & 255) + v.fragment for v in values]
    return pdu(DATA_TF, b"".join(parts))


def abort(source: int = 0, reason: int = 0) -> bytes:
    return pdu(ABORT, bytes([0, 0, source & 255, reason & 255]))


RELEASE_REQUEST = pdu(RELEASE_RQ, bytes(4))
RELEASE_REPLY = pdu(RELEASE_RP, bytes(4))


def command_set(elements: Iterable[tuple[int, bytes]]) -> bytes:
    """A command set with its group length (PS3.7 6.3.1)."""
    encoded = b"".join(_ELEMENT.pack(0, element, len(value)) + value for element, value in elements)
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(encoded)) + encoded


def us(number: int) -> bytes:
    return struct.pack("<H", number & 0xFFFF)


def ui(uid: str | bytes) -> bytes:
    value = uid.encode("latin-1") if isinstance(uid, str) else uid
    return value + b"\0" * (len(value) % 2)


def read_pdus(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each whole PDU; what is cut off at the end is left out."""
    at = 0
    while at + 6 <= len(stream):
        kind, _, length = _HEADER.unpack_from(stream, at)
        if at + 6 + length > len(stream):
            return
        yield kind, stream[at + 6 : at + 6 + length]
        at += 6 + length


def read_values(body: bytes) -> Iterator[Value]:
    """Values of a P-DATA-TF PDU.

    Raises
    ------
    ValueError
        A length is wrong.
    """
    at = 0
    while at < len(body):
        if at + 6 > len(body):
            raise ValueError("cut off")
        length, context_id, control = _PDV.unpack_from(body, at)
        if length < 2 or at + 4 + length > len(body):
            raise ValueError("wrong length")
        yield Value(context_id=context_id, control=control, fragment=body[at + 6 : at + 4 + length])
        at += 4 + length


def read_command(encoded: bytes) -> dict[int, bytes]:
    """Elements of a command set by their numbers.

    Raises
    ------
    ValueError
        It is cut off, or holds elements of another group.
    """
    found: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if at + 8 > len(encoded):
            raise ValueError("cut off")
        group, element, length = _ELEMENT.unpack_from(encoded, at)
        at += 8
        if group or at + length > len(encoded):
            raise ValueError("no command element")
        found[element] = encoded[at : at + length]
        at += length
    return found


def number(command: Mapping[int, bytes], element: int, default: int = -1) -> int:
    value = command.get(element, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else default


def accepted_contexts(associate_ac: bytes) -> dict[int, str]:
    """Transfer syntax of each accepted presentation context, out of the body of an A-ASSOCIATE-AC."""
    accepted: dict[int, str] = {}
    at = 68
    while at + 4 <= len(associate_ac):
        kind, length = associate_ac[at], int.from_bytes(associate_ac[at + 2 : at + 4], "big")
        body = associate_ac[at + 4 : at + 4 + length]
        if kind == 0x21 and body[2] == 0:
            accepted[body[0]] = body[8:].decode()
        at += 4 + length
    return accepted
