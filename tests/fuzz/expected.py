"""What must be answered to what was sent, found out without the receiver, and what was answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.fuzz import wire


class Finding(AssertionError):
    """The receiver did what it must not do. The text holds no value of what was sent."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that came whole."""

    context_id: int
    command: Mapping[int, bytes]
    data: bytes

    @property
    def field(self) -> int:
        return wire.number(self.command, 0x0100)

    @property
    def message_id(self) -> int:
        return wire.number(self.command, 0x0110, 0)

    @property
    def sop_instance_uid(self) -> bytes:
        return self.command.get(0x1000, b"").rstrip(b"\0 ")


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer."""

    context_id: int
    field: int
    message_id: int
    status: int
    sop_instance_uid: bytes
    comment: bytes


@dataclass(kw_only=True)
class Answers:
    """Everything that the receiver said, which has been found to follow PS3.8."""

    accepted: dict[int, str] | None = None
    """Transfer syntax by presentation context; None: it accepted no association."""
    rejected: bool = False
    aborted: bool = False
    released: bool = False
    responses: list[Response] = field(default_factory=list)
    reports: int = 0
    """N-EVENT-REPORT requests."""


def read_answers(stream: bytes) -> Answers:
    """Read what the receiver sent, and hold it to the order of PS3.8 section 9.2.

    Raises
    ------
    Finding
        Something is malformed, or follows what must be the last.
    """
    answers = Answers()
    length = 0
    unfinished: dict[int, bytes] = {}
    for kind, body in wire.read_pdus(stream):
        length += 6 + len(body)
        if answers.rejected or answers.aborted or answers.released:
            raise Finding(f"a PDU of type {kind} follows the last one of an association")
        if kind == wire.ABORT:
            answers.aborted = True
        elif answers.accepted is None:
            if kind == wire.ASSOCIATE_AC:
                answers.accepted = wire.accepted_contexts(body)
            elif kind == wire.ASSOCIATE_RJ:
                answers.rejected = True
            else:
                raise Finding(f"a PDU of type {kind} comes before the association is accepted")
        elif kind == wire.DATA_TF:
            _read_message(body, answers, unfinished)
        elif kind == wire.RELEASE_RP:
            answers.released = True
        else:
            raise Finding(f"a PDU of type {kind} comes within an association")
    if length != len(stream):
        raise Finding("the receiver's last PDU is cut off")
    return answers


def _read_message(body: bytes, answers: Answers, unfinished: dict[int, bytes]) -> None:
    try:
        for value in wire.read_values(body):
            if answers.accepted is None or value.context_id not in answers.accepted:
                raise Finding("an answer comes over a presentation context that was not accepted")
            if not value.control & wire.COMMAND:  # of a report
                continue
            encoded = unfinished.pop(value.context_id, b"") + value.fragment
            if value.control & wire.LAST:
                _take_command(value.context_id, wire.read_command(encoded), answers)
            else:
                unfinished[value.context_id] = encoded
    except ValueError as error:
        raise Finding("an answer is malformed") from error


def _take_command(context_id: int, command: Mapping[int, bytes], answers: Answers) -> None:
    if wire.number(command, 0x0100) == wire.N_EVENT_REPORT_RQ:
        answers.reports += 1
        return
    answers.responses.append(
        Response(
            context_id=context_id,
            field=wire.number(command, 0x0100),
            message_id=wire.number(command, 0x0120),
            status=wire.number(command, 0x0900),
            sop_instance_uid=command.get(0x1000, b"").rstrip(b"\0 "),
            comment=command.get(0x0902, b""),
        )
    )


def read_requests(stream: bytes, accepted: Mapping[int, str] | None) -> tuple[list[Request], bool]:
    """The requests of an association that came whole and are answered, up to the first fault.

    Returns
    -------
    tuple of list of Request and bool
        In the order in which they were complete; and whether what stopped the reading is a fault that the
        receiver must answer with A-ABORT.
    """
    requests: list[Request] = []
    if accepted is None:
        return requests, False
    command, data, context_id = b"", b"", -1
    current: Mapping[int, bytes] | None = None
    pdus = wire.read_pdus(stream)
    next(pdus, None)
    for kind, body in pdus:
        if kind in (wire.RELEASE_RQ, wire.ABORT) and len(body) <= 4:
            return requests, False
        if kind != wire.DATA_TF:
            return requests, True
        try:
            values = wire.read_values(body)
            for value in values:
                if value.context_id not in accepted:
                    return requests, True
                if (command or current is not None) and value.context_id != context_id:
                    return requests, True
                context_id = value.context_id
                if value.control & wire.COMMAND:
                    if current is not None:
                        return requests, True
                    command += value.fragment
                    if not value.control & wire.LAST:
                        continue
                    current, command = wire.read_command(command), b""
                elif current is None:
                    return requests, True
                else:
                    data += value.fragment
                    if not value.control & wire.LAST:
                        continue
                    requests.append(Request(context_id=context_id, command=current, data=data))
                    current, data = None, b""
                    continue
                if wire.number(current, 0x0800, wire.NO_DATA_SET) == wire.NO_DATA_SET:
                    requests.append(Request(context_id=context_id, command=current, data=b""))
                    current = None
        except ValueError:
            return requests, True
    return requests, False


def check_answers(requests: list[Request], answers: Answers) -> None:
    """Hold the answers against the requests.

    Parameters
    ----------
    requests
        Of `read_requests`.
    answers
        Of `read_answers`, to the end.

    Raises
    ------
    Finding
        An answer has no request, another message ID or UID, or is missing.
    """
    due = Counter(_answer_to(r) for r in requests if not r.field & 0x8000 and r.field != wire.C_CANCEL_RQ)
    given = Counter((r.field, r.context_id, r.message_id) for r in answers.responses)
    # In any order: a sender that asks again before it is answered, although only one request at a time was
    # agreed upon, cannot complain of that.
    if given - due:
        raise Finding(f"0x{min(given - due)[0]:04X} answers no request")
    if due - given and not answers.aborted:
        raise Finding(f"0x{min(due - given)[0]:04X} is missing")
    if any(response.status < 0 for response in answers.responses):
        raise Finding("an answer has no status")


def _answer_to(request: Request) -> tuple[int, int, int]:
    return request.field | 0x8000, request.context_id, request.message_id
