"""A DICOM peer that says whatever a test wants said: PDUs and command sets built byte by byte (PS3.8, PS3.7)."""

from __future__ import annotations

import itertools
import socket
import ssl
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

HOST = "127.0.0.1"
WAIT_S = 30.0
VERIFICATION = "1.2.840.10008.1.1"
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
A_ASSOCIATE_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, P_DATA_TF, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = range(1, 8)
C_STORE_RQ, C_ECHO_RQ, C_FIND_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0020, 0x0FFF
N_EVENT_REPORT_RSP = 0x8100
NO_DATA_SET, WITH_DATA_SET = 0x0101, 0x0001
COMMAND, DATA, LAST = 1, 0, 2
"""Bits of the message control header (PS3.8 E.2)."""
DEFAULT_CONTEXTS = ((VERIFICATION, (ExplicitVRLittleEndian,)), (CTImageStorage, (ExplicitVRLittleEndian,)))
ECHO_CONTEXT, STORE_CONTEXT = 1, 3
_serial = itertools.count(1)


def pdu(kind: int, body: bytes = b"", *, claimed: int | None = None) -> bytes:
    """A PDU; ``claimed`` is the length that it says it has."""
    return struct.pack(">BBI", kind, 0, len(body) if claimed is None else claimed) + body


def item(kind: int, body: bytes, *, claimed: int | None = None) -> bytes:
    """An item or sub-item of an association request."""
    return struct.pack(">BBH", kind, 0, len(body) if claimed is None else claimed) + body


def with_length(*values: bytes) -> bytes:
    """Values, each behind its length in two bytes."""
    return b"".join(struct.pack(">H", len(value)) + value for value in values)


def presentation_context(number: int, abstract_syntax: str, transfer_syntaxes: Iterable[str]) -> bytes:
    syntaxes = b"".join(item(0x40, syntax.encode()) for syntax in transfer_syntaxes)
    return item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + item(0x30, abstract_syntax.encode()) + syntaxes)


def associate_rq(
    contexts: Sequence[tuple[str, Sequence[str]]] = DEFAULT_CONTEXTS,
    *,
    called: bytes = b"ICH_NODE",
    calling: bytes = b"SCANNER",
    extra: bytes = b"",
    after: bytes = b"",
    protocol_version: int = 1,
    application_context: str = APPLICATION_CONTEXT,
    context_numbers: Sequence[int] = (),
) -> bytes:
    """An A-ASSOCIATE-RQ; ``extra`` are sub-items of the user information, ``after`` items behind it."""
    numbers = context_numbers or range(1, 2 * len(contexts), 2)
    listed = b"".join(
        presentation_context(number, *context) for number, context in zip(numbers, contexts, strict=True)
    )
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.826.0.1.3680043.8.498.9") + extra
    head = struct.pack(">HH", protocol_version, 0) + called.ljust(16) + calling.ljust(16) + bytes(32)
    body = head + item(0x10, application_context.encode()) + listed + item(0x50, user) + after
    return pdu(A_ASSOCIATE_RQ, body)


def us(value: int) -> bytes:
    return struct.pack("<H", value)


def ui(text: str | bytes) -> bytes:
    value = text.encode() if isinstance(text, str) else text
    return value + b"\0" * (len(value) % 2)


def command_set(field: int, elements: dict[int, bytes | None] | None = None) -> bytes:
    """A command set; ``elements`` replace or, where None, remove those that a request usually has."""
    values: dict[int, bytes | None] = {
        0x0002: ui(CTImageStorage),
        0x0100: us(field),
        0x0110: us(next(_serial) % 65535),
        0x0800: us(NO_DATA_SET),
        **(elements or {}),
    }
    encoded = b"".join(
        struct.pack("<HHI", 0, element, len(value)) + value
        for element, value in sorted(values.items())
        if value is not None
    )
    return struct.pack("<HHII", 0, 0, 4, len(encoded)) + encoded


def store_rq(sop_instance_uid: str | bytes | None, elements: dict[int, bytes | None] | None = None) -> bytes:
    """The command set of a C-STORE request of a CT image."""
    uid = None if sop_instance_uid is None else ui(sop_instance_uid)
    usual: dict[int, bytes | None] = {0x0700: us(0), 0x0800: us(WITH_DATA_SET), 0x1000: uid}
    return command_set(C_STORE_RQ, {**usual, **(elements or {})})


def echo_rq(elements: dict[int, bytes | None] | None = None) -> bytes:
    return command_set(C_ECHO_RQ, {0x0002: ui(VERIFICATION), **(elements or {})})


def pdv(context: int, control: int, value: bytes, *, claimed: int | None = None) -> bytes:
    """A presentation data value."""
    return struct.pack(">IBB", len(value) + 2 if claimed is None else claimed, context, control) + value


def p_data(*values: bytes) -> bytes:
    """A P-DATA-TF PDU."""
    return pdu(P_DATA_TF, b"".join(values))


def fragments(context: int, kind: int, value: bytes, size: int) -> list[bytes]:
    """The value in presentation data values of so many bytes."""
    pieces = [value[at : at + size] for at in range(0, len(value), size)]
    return [
        pdv(context, kind | (LAST if number == len(pieces) else 0), piece)
        for number, piece in enumerate(pieces, start=1)
    ]


def store_message(sop_instance_uid: str | bytes, data_set: bytes, *, size: int = 16000) -> bytes:
    """A whole C-STORE request."""
    command = pdv(STORE_CONTEXT, COMMAND | LAST, store_rq(sop_instance_uid))
    values = fragments(STORE_CONTEXT, DATA, data_set, size)
    return p_data(command) + b"".join(p_data(value) for value in values)


def elements_of(encoded: bytes) -> dict[int, bytes]:
    """The elements of a command set by number."""
    found, at = {}, 0
    while at < len(encoded):
        group, element, length = struct.unpack_from("<HHI", encoded, at)
        assert group == 0
        found[element] = encoded[at + 8 : at + 8 + length]
        at += 8 + length
    return found


class BarePeer:
    """A connection to a receiver."""

    def __init__(
        self, port: int, *, context: ssl.SSLContext | None = None, receive_buffer_bytes: int = 0
    ) -> None:
        connection = socket.socket()
        connection.settimeout(WAIT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            connection.connect((HOST, port))
            self.connection = context.wrap_socket(connection) if context else connection
        except OSError:
            connection.close()
            raise
        self.is_associated = False

    @classmethod
    def associated(cls, port: int, request: bytes = b"", **options: Any) -> Self:
        """A peer whose association was accepted."""
        peer = cls(port, **options)
        try:
            peer.send(request or associate_rq())
            kind, body = peer.answer()
            assert kind == A_ASSOCIATE_AC, (kind, body)
        except (OSError, AssertionError):
            peer.connection.close()
            raise
        peer.is_associated = True
        return peer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def send(self, content: bytes) -> None:
        self.connection.sendall(content)

    def answer(self) -> tuple[int, bytes]:
        """The next PDU, type and body; (0, b"") where the connection has ended."""
        head = self._read(6)
        if len(head) < 6:
            return 0, b""
        kind, _, length = struct.unpack(">BBI", head)
        return kind, self._read(length)

    def status(self) -> int:
        """Status of the next answer, which is one to a request."""
        return int.from_bytes(self.response()[0x0900], "little")

    def response(self) -> dict[int, bytes]:
        """The next answer's command set."""
        kind, body = self.answer()
        assert kind == P_DATA_TF, (kind, body)
        assert body[5] == COMMAND | LAST
        return elements_of(body[6:])

    def store(self, sop_instance_uid: str | bytes, data_set: bytes, *, size: int = 16000) -> int:
        """Send an object; gives its status."""
        self.send(store_message(sop_instance_uid, data_set, size=size))
        return self.status()

    def echo(self) -> int:
        self.send(p_data(pdv(ECHO_CONTEXT, COMMAND | LAST, echo_rq())))
        return self.status()

    def release(self) -> None:
        self.send(pdu(A_RELEASE_RQ, bytes(4)))
        assert self.answer()[0] == A_RELEASE_RP
        assert self.answer()[0] == 0

    def reset(self) -> None:
        """End the connection with a TCP RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _read(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            try:
                piece = self.connection.recv(count - len(content))
            except (ConnectionResetError, BrokenPipeError):
                break
            if not piece:
                break
            content += piece
        return content
