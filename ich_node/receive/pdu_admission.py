"""Which PDU may come in which state, and how long it may be (PS3.8 sections 9.2 and 9.3)."""

from __future__ import annotations

from enum import IntEnum

from ich_node.receive.limits import Limits
from ich_node.receive.paced_connection import LimitExceeded, ProtocolViolation

OPENING, IN_TRANSFER, AWAITING_CLOSE = "Sta2", "Sta6", "Sta13"
"""States of PS3.8 tables 9-1 to 9-5: awaiting A-ASSOCIATE-RQ, ready for data transfer, awaiting the close."""
PDU_TOLERANCE_BYTES = 1024
"""Some senders count the PDU or PDV headers differently and exceed the negotiated length by a few bytes."""
_LONGEST_ASSOCIATE_RQ_BYTES = 2**18
"""128 presentation contexts with every transfer syntax there is need some 150 KiB."""
_SHORT_PDU_BYTES = 4
"""Of A-RELEASE-RQ, A-RELEASE-RP and A-ABORT (PS3.8 9.3.6 to 9.3.8)."""


class PduType(IntEnum):
    """PDU types that an acceptor may get."""

    A_ASSOCIATE_RQ = 0x01
    P_DATA_TF = 0x04
    A_RELEASE_RQ = 0x05
    A_RELEASE_RP = 0x06
    A_ABORT = 0x07


def longest_pdu_bytes(limits: Limits) -> int:
    """The length of the longest PDU that `admit` lets through, whatever its type."""
    return max(_LONGEST_ASSOCIATE_RQ_BYTES, longest_data_bytes(limits))


def longest_data_bytes(limits: Limits) -> int:
    """The length of the longest P-DATA-TF PDU that `admit` lets through."""
    return limits.max_pdu_bytes + PDU_TOLERANCE_BYTES


def admit(kind: int, length: int, state: str, limits: Limits) -> None:
    """Judge a PDU by its type, the state and the length that it claims, before any of it is read.

    Raises
    ------
    ProtocolViolation, LimitExceeded
        It is not to be read.
    """
    if kind == PduType.A_ASSOCIATE_RQ and state == OPENING:
        longest = _LONGEST_ASSOCIATE_RQ_BYTES
    elif kind == PduType.P_DATA_TF and state in (IN_TRANSFER, AWAITING_CLOSE):
        longest = longest_data_bytes(limits)
    elif kind in (PduType.A_RELEASE_RQ, PduType.A_RELEASE_RP, PduType.A_ABORT):
        longest = _SHORT_PDU_BYTES
    else:
        raise ProtocolViolation(f"a PDU of type 0x{kind:02X} has no place here")
    if length > longest:
        raise LimitExceeded("a PDU is longer than is allowed for its type")
