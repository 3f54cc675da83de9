"""What is fuzzed: each target takes bytes and raises `Finding` where the product does what it must not do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

from pynetdicom.dsutils import decode

from ich_node.errors import StudyRejected
from ich_node.receive.admission import Examined, Refusal, StoreRequest, examine, examine_beginning
from ich_node.receive.arrival import Gate
from ich_node.receive.command_set import CommandSetError, read_command_set, response_pdu
from ich_node.receive.commitment_event import ReportRefused, read_report
from ich_node.receive.commitment_request import CommitmentRefused, read_request
from ich_node.receive.header import read_header
from ich_node.receive.limits import is_valid_uid
from ich_node.receive.multipart_related import MediaType, MultipartError
from ich_node.receive.received import AssociationSummary, ReceivedInstance, read_received
from ich_node.receive.spool import Spool
from ich_node.receive.store_response import ResponseType, StoreReport, choose_response_type
from ich_node.receive.stow import BodyTooLarge, StoreDesk
from tests.fuzz import wire
from tests.fuzz.conversations import COMMITMENT, COMMITMENT_INSTANCE
from tests.fuzz.data_sets import SeedDataSet, part10, seed_data_sets
from tests.fuzz.expected import Finding
from tests.fuzz.mutations import chunked
from tests.fuzz.receiver_under_test import LIMITS, Delivery, ReceiverUnderTest, end_of_meta

SECONDS_AT_MOST = 2.0
"""Processor time that one input of some kilobytes may take, on a slow machine."""
BOUNDARY = "boundary 7"
_DELIVERIES = tuple(Delivery)
_MAX_REFERENCES = 100


class Targets:
    """Everything that is fuzzed, with one receiver and one spool.

    Parameters
    ----------
    folder
        For what is written; best in memory.
    """

    def __init__(self, folder: Path) -> None:
        self.receiver = ReceiverUnderTest(folder)
        self._folder = folder
        self._file = folder / "file.dcm"
        self._handed_on: list[ReceivedInstance | AssociationSummary] = []
        self._desk = StoreDesk(
            spool=Spool(folder / "stow"), hand_on=self._handed_on.append, gate=Gate(), limits=LIMITS
        )

    def close(self) -> None:
        """Stop the receiver."""
        self.receiver.close()

    def run(self, target: str, content: bytes) -> None:
        """Give an input to a target.

        Raises
        ------
        Finding
            What must hold does not hold.
        """
        with _in_time():
            by_name[target](self, content)
            self.receiver.check_log()

    def conversation(self, content: bytes) -> None:
        """How it is delivered, how it is cut into pieces, and what a sender says over one connection."""
        delivery = _DELIVERIES[content[0] % len(_DELIVERIES)] if content else Delivery.AT_ONCE
        stream = content[2:]
        pieces = chunked(stream, Random(content[1])) if delivery is Delivery.IN_CHUNKS and stream else ()
        self.receiver.converse(stream, delivery, pieces)

    def command_set(self, content: bytes) -> None:
        """A command set: it is refused, or its answer repeats it."""
        try:
            command = read_command_set(content)
        except CommandSetError:
            return
        _, body = next(wire.read_pdus(response_pdu(command, 3, 0xC000, "comment")))
        (value,) = wire.read_values(body)
        answer = wire.read_command(value.fragment)
        if wire.number(answer, 0x0120) != command.message_id:
            raise Finding("an answer has another message ID")
        if wire.number(answer, 0x0900) != 0xC000 or value.context_id != 3:
            raise Finding("an answer has another status or presentation context")
        if answer.get(0x1000, b"").rstrip(b"\0 ") != command.sop_instance_uid:
            raise Finding("an answer has another SOP Instance UID")

    def data_set(self, content: bytes) -> None:
        """Which object is announced, and a data set: all ways to look at it agree."""
        seed = _seed_of(content)
        encoded = content[1:]
        request = _request(seed)
        by_beginning = _outcome(lambda: examine_beginning(request, encoded))
        whole = _outcome(lambda: examine(request, BytesIO(encoded)))
        if by_beginning is not None and by_beginning != whole:
            raise Finding("the beginning of a data set is judged other than the whole")
        if isinstance(whole, Refusal | str):
            return
        self._file.write_bytes(part10(seed, encoded))
        if whole != _outcome(lambda: read_header(self._file)):
            raise Finding("a header says another thing when it is read back")

    def file(self, content: bytes) -> None:
        """A DICOM file: it is rejected with a reason, or it has a header."""
        self._file.write_bytes(content)
        try:
            instance, study = read_header(self._file)
        except StudyRejected:
            return
        if not all(
            map(
                is_valid_uid_or_odd,
                (instance.sop_instance_uid, instance.series_instance_uid, study.study_instance_uid),
            )
        ):
            raise Finding("a header has an identity that is none")

    def store_request(self, content: bytes) -> None:
        """How it is cut into pieces, and the body of a STOW-RS request: the pieces make no difference."""
        body = content[1:]
        at_once = self._stow([body])
        if body and at_once != self._stow(chunked(body, Random(content[0]))):
            raise Finding("what is stored depends on how the body was cut into pieces")

    def http_header(self, content: bytes) -> None:
        """A Content-Type or Accept header."""
        text = content.decode("latin-1")
        MediaType.parse(text)
        choose_response_type(text)

    def commitment(self, content: bytes) -> None:
        """Action Information of a storage commitment request: it is refused, or all its UIDs are valid."""
        try:
            information: Any = decode(BytesIO(content[1:]), bool(content[:1] == b"\1"), True)
        except Exception:  # as the receiver has it: it is refused
            return
        try:
            transaction_uid, references = read_request(
                information,
                action_type=1,
                requested_sop_class_uid=COMMITMENT,
                requested_sop_instance_uid=COMMITMENT_INSTANCE,
                max_references=_MAX_REFERENCES,
            )
        except CommitmentRefused:
            return
        uids = [transaction_uid, *(uid for one in references for uid in dataclasses.astuple(one))]
        if not all(map(is_valid_uid, uids)) or not 0 < len(references) <= _MAX_REFERENCES:
            raise Finding("a request was accepted that is not valid")

    def commitment_report(self, content: bytes) -> None:
        """Event Information of a storage commitment report: it is refused, or all its UIDs are valid."""
        try:
            information: Any = decode(BytesIO(content[1:]), bool(content[:1] == b"\1"), True)
        except Exception:  # as the receiver has it: it is refused
            return
        try:
            report = read_report(
                information,
                event_type=2,
                affected_sop_class_uid=COMMITMENT,
                affected_sop_instance_uid=COMMITMENT_INSTANCE,
                max_references=_MAX_REFERENCES,
            )
        except ReportRefused:
            return
        named = [*report.committed, *(one.reference for one in report.failed)]
        uids = [report.transaction_uid, *(uid for one in named for uid in dataclasses.astuple(one))]
        if not all(map(is_valid_uid, uids)) or not 0 < len(named) <= _MAX_REFERENCES:
            raise Finding("a report was accepted that is not valid")
        if len(set(named)) != len(named):
            raise Finding("an object is named twice")

    def _stow(self, pieces: list[bytes]) -> tuple[object, ...]:
        """Send a request; what became of it."""
        self._handed_on.clear()
        session = self._desk.open(boundary=BOUNDARY, study_instance_uid=None, host="127.0.0.1")
        try:
            for piece in pieces:
                session.feed(piece)
            report, ended = session.finish(), "whole"
        except (MultipartError, BodyTooLarge) as error:
            report, ended = session.break_off(), type(error).__name__
        self._check_stored(b"".join(pieces), report)
        for response_type in ResponseType:
            report.encode(response_type)
        return ended, report.stored, report.failed, report.unidentified

    def _check_stored(self, body: bytes, report: StoreReport) -> None:
        received = [one for one in self._handed_on if isinstance(one, ReceivedInstance)]
        try:
            if len(received) != len(report.stored) or len(self._handed_on) != len(received) + 1:
                raise Finding("what was handed on is not what was reported")
            for one in received:
                content = one.spooled.path.read_bytes()
                if content[end_of_meta(content) :] not in body:
                    raise Finding("an object in the spool has other bytes than were sent")
                if read_received(self._desk.spool, one.spooled.path).instance != one.instance:
                    raise Finding("a header says another thing when it is read back")
        finally:
            for one in received:
                one.spooled.path.unlink(missing_ok=True)
        if any((self._folder / "stow" / "incoming").iterdir()):
            raise Finding("an unfinished file is left in the spool")
        if self._desk._open:
            raise Finding("a request is open that is over")


by_name: dict[str, Callable[[Targets, bytes], None]] = {
    function.__name__: function
    for function in (
        Targets.conversation,
        Targets.command_set,
        Targets.data_set,
        Targets.file,
        Targets.store_request,
        Targets.http_header,
        Targets.commitment,
        Targets.commitment_report,
    )
}


@contextmanager
def _in_time() -> Iterator[None]:
    began = time.thread_time()
    yield
    if time.thread_time() - began > SECONDS_AT_MOST:
        raise Finding(f"an input took more than {SECONDS_AT_MOST} s of processor time")


def _outcome(look: Callable[[], object]) -> object:
    """What a look at a data set comes to, in a form that can be compared."""
    try:
        found = look()
    except (Refusal, StudyRejected) as refusal:
        return str(refusal)
    if isinstance(found, Examined):
        found = found.header(Path("file.dcm"))
    if isinstance(found, tuple):
        instance, study = found
        return dataclasses.replace(instance, path=Path("file.dcm")), study
    return found


def is_valid_uid_or_odd(uid: str) -> bool:
    """Files from elsewhere may have UIDs that break the rules, but never empty or endless ones."""
    return 0 < len(uid) <= 64 and all(character in "0123456789." for character in uid)


def _seed_of(content: bytes) -> SeedDataSet:
    seeds = seed_data_sets()
    return seeds[content[0] % len(seeds) if content else 0]


def _request(seed: SeedDataSet) -> StoreRequest:
    return StoreRequest(
        sop_class_uid=seed.sop_class_uid,
        sop_instance_uid=seed.sop_instance_uid,
        abstract_syntax_uid=seed.sop_class_uid,
        transfer_syntax_uid=seed.transfer_syntax_uid,
    )
