"""Puts DIMSE messages together from the fragments of P-DATA-TF PDUs (PS3.8 9.3.5 and annex E).

The data set of a C-STORE request goes to its `Arrival` fragment by fragment. Upstream holds each message whole
in memory, as many copies of it at times as it has fragments.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Sequence
from typing import Protocol

from ich_node.receive.arrival import Arrival
from ich_node.receive.command_set import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_FIND_RQ,
    C_STORE_RQ,
    N_ACTION_RQ,
    N_EVENT_REPORT_RQ,
    N_EVENT_REPORT_RSP,
    RESPONSE_BIT,
    UNRECOGNIZED_OPERATION,
    CommandSet,
    read_command_set,
    response_pdu,
    without_message_id,
)
from ich_node.receive.commitment_request import SOP_CLASS_UID as COMMITMENT_SOP_CLASS_UID
from ich_node.receive.limits import Limits
from ich_node.receive.paced_connection import LimitExceeded, ProtocolViolation
from ich_node.receive.pdu_admission import PduType, longest_data_bytes

_PDV_HEADER = struct.Struct(">IBB")
_PDU_AND_PDV_HEADER = struct.Struct(">BxIIBB")
_LONGEST_RUN = 512
"""So many pieces go to the file with one call; the system takes 1024."""
_IS_COMMAND, _IS_LAST = 1, 2
"""Bits of the message control header (PS3.8 E.2)."""
_LONGEST_COMMAND_SET_BYTES = 65536
_LONGEST_OTHER_DATA_SET_BYTES = 2**24
"""Of a message that is no C-STORE: a storage commitment request for 10,000 objects has some 2 MiB."""


class Sink(Protocol):
    """What is done with the messages."""

    def begin_store(self, command: CommandSet, context_id: int) -> Arrival:
        """Take up an object."""
        ...

    def end_store(self, command: CommandSet, context_id: int, arrival: Arrival) -> None:
        """Its data set is complete: answer."""
        ...

    def finds_over(self, context_id: int) -> bool:
        """Whether a presentation context was accepted for questions about the worklist."""
        ...

    def cancel_find(self) -> None:
        """The question that is being answered is to be answered no further."""
        ...

    def hand_on(self, context_id: int, value: bytes) -> None:
        """A fragment of another message that is served here, with its message control header."""
        ...

    def send(self, pdu: bytes) -> None:
        """Send an answer."""
        ...


class MessageReader:
    """The message that an association is in the midst of.

    Parameters
    ----------
    limits
        ``max_object_bytes`` is used.
    sink
        What is done with the messages.
    """

    def __init__(self, limits: Limits, sink: Sink) -> None:
        self._limits = limits
        self._longest_pdu_bytes = longest_data_bytes(limits)
        self._sink = sink
        self._command = bytearray()
        self._context_id = 0
        self._request: CommandSet | None = None
        self._arrival: Arrival | None = None
        self._other_bytes: int | None = None

    def take(self, values: memoryview, accepted_context_ids: Container[int]) -> None:
        """Take the presentation data values of one P-DATA-TF PDU.

        Raises
        ------
        PeerFault
            The association is to be aborted.
        """
        at, end = 0, len(values)
        while at < end:
            if at + 6 > end:
                raise ProtocolViolation("a presentation data value is cut off")
            length, context_id, control = _PDV_HEADER.unpack_from(values, at)
            if length < 2 or at + 4 + length > end:
                raise ProtocolViolation("a presentation data value has a wrong length")
            if context_id not in accepted_context_ids:
                raise ProtocolViolation("a message comes over a presentation context that was not accepted")
            fragment = values[at + 6 : at + 4 + length]
            if control & _IS_COMMAND:
                self._take_command(context_id, fragment, bool(control & _IS_LAST))
            else:
                self._take_data(context_id, fragment, bool(control & _IS_LAST))
            at += 4 + length

    def take_run(self, pdus: memoryview) -> int:
        """Take the P-DATA-TF PDUs at the beginning that are whole and plainly go on with an object's data set.

        All at once: what is done for each PDU costs more than its bytes where a sender makes them short.

        Returns
        -------
        int
            How many bytes were taken, 0 where the first PDU is to be looked at by `take`.

        Raises
        ------
        PeerFault
            The association is to be aborted.
        """
        if self._arrival is None:
            return 0
        pieces: list[memoryview] = []
        at, end, is_last = 0, len(pdus), False
        while at + 12 <= end and not is_last and len(pieces) < _LONGEST_RUN:
            kind, length, value_length, context_id, control = _PDU_AND_PDV_HEADER.unpack_from(pdus, at)
            after = at + 6 + length
            if (
                kind != PduType.P_DATA_TF
                or not 6 <= length <= self._longest_pdu_bytes
                or value_length + 4 != length
                or context_id != self._context_id
                or control & _IS_COMMAND
                or after > end
            ):
                break
            pieces.append(pdus[at + 12 : after])
            is_last = bool(control & _IS_LAST)
            at = after
        if pieces:
            self._take_pieces(pieces, is_last=is_last)
        return at

    @property
    def is_between_messages(self) -> bool:
        """Whether nothing has come of a message that is not complete."""
        return self._arrival is None and self._other_bytes is None and not self._command

    def abandon(self) -> None:
        """Leave nothing behind of an object that was not complete."""
        if self._arrival is not None:
            self._arrival.discard()

    def _take_command(self, context_id: int, fragment: memoryview, is_last: bool) -> None:
        if self._arrival is not None or self._other_bytes is not None:
            raise ProtocolViolation("a command comes in the midst of a data set")
        if self._command and context_id != self._context_id:
            raise ProtocolViolation("a message changes its presentation context")
        if len(self._command) + len(fragment) > _LONGEST_COMMAND_SET_BYTES:
            raise LimitExceeded("a command set is too long")
        self._context_id = context_id
        self._command += fragment
        if is_last:
            encoded, self._command = bytes(self._command), bytearray()
            self._begin(encoded, read_command_set(encoded))

    def _begin(self, encoded: bytes, command: CommandSet) -> None:
        field = command.command_field
        if field == C_STORE_RQ:
            self._request = command
            self._arrival = self._sink.begin_store(command, self._context_id)
            if not command.has_data_set:
                self._end_store()
        elif (
            field in (C_ECHO_RQ, N_ACTION_RQ, N_EVENT_REPORT_RSP)
            or _is_commitment_report(command)
            or (field == C_FIND_RQ and self._sink.finds_over(self._context_id))
        ):
            self._other_bytes = 0 if command.has_data_set else None
            if field == N_EVENT_REPORT_RSP:
                encoded = without_message_id(encoded)
            self._sink.hand_on(self._context_id, bytes([_IS_COMMAND | _IS_LAST]) + encoded)
        elif field & RESPONSE_BIT:
            raise ProtocolViolation("a response comes that nothing was asked for")
        elif field == C_CANCEL_RQ:
            self._sink.cancel_find()
        else:
            if command.has_data_set:
                raise ProtocolViolation("a request comes for a service that was not agreed upon")
            self._sink.send(response_pdu(command, self._context_id, UNRECOGNIZED_OPERATION))

    def _take_data(self, context_id: int, fragment: memoryview, is_last: bool) -> None:
        if self._arrival is None and self._other_bytes is None:
            raise ProtocolViolation("a data set comes without a command")
        if context_id != self._context_id:
            raise ProtocolViolation("a message changes its presentation context")
        if self._arrival is not None:
            self._take_pieces([fragment], is_last=is_last)
        elif self._other_bytes is not None:
            self._other_bytes += len(fragment)
            if self._other_bytes > _LONGEST_OTHER_DATA_SET_BYTES:
                raise LimitExceeded("a message is too long")
            self._sink.hand_on(context_id, bytes([_IS_LAST if is_last else 0]) + fragment)
            if is_last:
                self._other_bytes = None

    def _take_pieces(self, pieces: Sequence[memoryview], *, is_last: bool) -> None:
        assert self._arrival is not None
        self._arrival.write(*pieces)
        if self._arrival.size_bytes > self._limits.max_object_bytes:
            raise LimitExceeded("an object is larger than this node accepts")
        if is_last:
            self._end_store()

    def _end_store(self) -> None:
        arrival, self._arrival = self._arrival, None
        assert arrival is not None
        assert self._request is not None
        self._sink.end_store(self._request, self._context_id, arrival)


def _is_commitment_report(command: CommandSet) -> bool:
    """Whether it is a report of storage commitment; other services report nothing to this node."""
    return (
        command.command_field == N_EVENT_REPORT_RQ
        and command.sop_class_uid == COMMITMENT_SOP_CLASS_UID.encode()
    )
