"""HL7 v2 messages to a receiver by MLLP, one connection each, until it has acknowledged."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from hl7apy.exceptions import HL7apyException

from ich_node.client_tls import ClientTls
from ich_node.errors import ConfigurationError
from ich_node.notify.hl7 import Acknowledgment, Hl7Header, message_control_id, oru_r01, read_acknowledgment
from ich_node.notify.notice import Notice
from ich_node.notify.outcome import NoticeOutcome, NoticeResult, outcome

_START, _END = b"\x0b", b"\x1c"
_MAX_ACKNOWLEDGMENT_BYTES = 64 * 1024
_ACCEPTED = frozenset({"AA", "CA"})
_ERROR = frozenset({"AE", "CE"})
_REJECTED = frozenset({"AR", "CR"})
_IN_THE_MESSAGE = frozenset({"100", "101", "102", "103", "200", "201", "202", "203", "205"})
"""Error conditions (table 0357) that the same message will meet again."""
_IN_THE_RECEIVER = frozenset({"204", "206", "207"})
"""Those that pass: an order or a patient that is not known yet, a locked record, an internal error."""


@dataclass(frozen=True, kw_only=True)
class MllpDestination:
    """An HL7 receiver.

    Raises
    ------
    ConfigurationError
        There is no such port.
    """

    host: str
    port: int
    trust: ClientTls | None = None
    """``None``: without TLS."""

    def __post_init__(self) -> None:
        if not self.host or not 0 < self.port < 65536:
            raise ConfigurationError(f"an HL7 receiver needs host and port, got {self.host!r}:{self.port}")


@dataclass(frozen=True, kw_only=True)
class MllpTimeouts:
    """How long to wait for an HL7 receiver, in seconds."""

    connection_s: float = 10.0
    """For the TCP connection."""
    exchange_s: float = 30.0
    """For all that follows: handshake, message and the whole acknowledgment."""


class _NoAcknowledgment(Exception):
    """What came, or did not come, instead of an acknowledgment."""


def send_oru(
    notice: Notice, header: Hl7Header, destination: MllpDestination, *, timeouts: MllpTimeouts | None = None
) -> NoticeOutcome:
    """Send a notice as ORU^R01 and wait for its acknowledgment (original mode).

    Returns
    -------
    NoticeOutcome
        ``SENT`` for AA and CA with our control id. An error condition of table 0357 decides between ``REFUSED`` and
        ``TRANSIENT``; where there is none, AE and CE are ``TRANSIENT``, AR and CR ``REFUSED``. An answer to another
        message, an answer that is none, and no answer in time are ``TRANSIENT``. Nothing is raised for any of it.
    """
    control_id = message_control_id(notice)
    try:
        message = oru_r01(notice, header, control_id=control_id)
    except HL7apyException as error:  # its words may quote a value
        why = f"the notice cannot be written as HL7 {header.version}: {type(error).__name__}"
        return outcome(NoticeResult.REFUSED, why)
    try:
        reply = _exchange(message.encode(_codec(message)), destination, timeouts or MllpTimeouts())
        acknowledgment = read_acknowledgment(reply.decode("utf-8", errors="replace"))
    except (_NoAcknowledgment, ConfigurationError, ValueError) as error:
        return outcome(NoticeResult.TRANSIENT, f"no acknowledgment: {error}")
    except TimeoutError:
        return outcome(NoticeResult.TRANSIENT, f"{destination.host} did not acknowledge in time")
    except OSError as error:
        why = error.strerror or str(error)
        return outcome(NoticeResult.TRANSIENT, f"cannot reach {destination.host}:{destination.port}: {why}")
    return _judged(acknowledgment, control_id)


def _codec(message: str) -> str:
    # hl7.oru_r01 leaves nothing that its character set lacks; ASCII is a part of both others.
    return "latin-1" if message.split("\r", 1)[0].endswith("8859/1") else "utf-8"


def _exchange(message: bytes, destination: MllpDestination, timeouts: MllpTimeouts) -> bytes:
    context = destination.trust.context() if destination.trust else None
    address = (destination.host, destination.port)
    with socket.create_connection(address, timeout=timeouts.connection_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ends_at = time.monotonic() + timeouts.exchange_s
        connection.settimeout(timeouts.exchange_s)
        if context is None:
            return _ask(connection, message, ends_at)
        with context.wrap_socket(connection, server_hostname=destination.host) as secured:
            return _ask(secured, message, ends_at)


def _ask(connection: socket.socket, message: bytes, ends_at: float) -> bytes:
    connection.settimeout(_left(ends_at))
    connection.sendall(_START + message + _END + b"\r")
    received = bytearray()
    while True:
        connection.settimeout(_left(ends_at))
        piece = connection.recv(4096)
        if not piece:
            raise _NoAcknowledgment("the receiver closed the connection" + (" within it" if received else ""))
        received += piece
        if not received.startswith(_START):
            raise _NoAcknowledgment("the receiver does not speak MLLP")
        # Some receivers leave out the carriage return that should follow.
        if (end := received.find(_END)) >= 0:
            return bytes(received[1:end])
        if len(received) > _MAX_ACKNOWLEDGMENT_BYTES:
            raise _NoAcknowledgment(f"more than {_MAX_ACKNOWLEDGMENT_BYTES} bytes came")


def _left(ends_at: float) -> float:
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _judged(acknowledgment: Acknowledgment, control_id: str) -> NoticeOutcome:
    code, conditions = acknowledgment.code, frozenset(acknowledgment.conditions)
    said = " ".join(part for part in (code, acknowledgment.words) if part)
    if acknowledgment.control_id != control_id:
        return outcome(NoticeResult.TRANSIENT, f"another message was acknowledged: {said}")
    if code in _ACCEPTED:
        return outcome(NoticeResult.SENT, said)
    if code not in _ERROR | _REJECTED:
        return outcome(NoticeResult.TRANSIENT, f"an acknowledgment code that HL7 does not have: {said}")
    if conditions & _IN_THE_RECEIVER:
        return outcome(NoticeResult.TRANSIENT, said)
    if conditions & _IN_THE_MESSAGE or code in _REJECTED:
        return outcome(NoticeResult.REFUSED, said)
    return outcome(NoticeResult.TRANSIENT, said)
