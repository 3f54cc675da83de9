"""Storage commitment that this node asks for: Orthanc, and PACS that report early, late, twice, wrongly or never."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_role

from ich_node.deliver.commitment import (
    CommitmentOutcome,
    CommitmentState,
    request_commitment,
)
from ich_node.deliver.scu import DeliveryResult, Destination, Timeouts, send
from ich_node.receive.commitment import CommitmentDesk
from ich_node.receive.commitment_event import ReportReception
from ich_node.receive.commitment_request import SOP_CLASS_UID, SOP_INSTANCE_UID
from ich_node.receive.commitment_results import (
    CommitmentResult,
    CommitmentResults,
    ResultLimits,
    results_folder,
)
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.listener import Endpoint
from ich_node.receive.processes import ReceivingProcesses
from ich_node.receive.receiver import Receiver
from ich_node.receive.receiving_process import ScpOptions
from ich_node.receive.requestor import RequestedAssociation, RequestingEntity
from ich_node.receive.spool import Spool
from ich_node.receive.upper_layer import configure_pynetdicom
from tests.bare_peer import A_ASSOCIATE_AC, BarePeer, associate_rq, item, with_length
from tests.commitment_answers import not_committed
from tests.small_objects import saved, small_object

AE_TITLE = "ICH_TEST"
DEADLINE_S = 30.0
SHORT = Timeouts(connection_s=2.0, acse_s=2.0, dimse_s=2.0, network_s=2.0)
UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
TRANSACTION = "2.25.4711"
ASKED = [(str(ComprehensiveSRStorage), "1.2.3.1"), (str(SecondaryCaptureImageStorage), "1.2.3.2")]
P_DATA_TF = 0x04


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(holds: Callable[[], Any]) -> Any:
    pause, end = threading.Event(), time.monotonic() + DEADLINE_S
    while not (result := holds()):
        assert time.monotonic() < end
        pause.wait(0.02)
    return result


def information(
    committed: Sequence[tuple[str, str]] = (),
    failed: Sequence[tuple[str, str, int]] = (),
    transaction_uid: str = TRANSACTION,
) -> Dataset:
    content = Dataset()
    content.TransactionUID = transaction_uid
    if committed:
        content.ReferencedSOPSequence = [_item(*one) for one in committed]
    if failed:
        content.FailedSOPSequence = [_item(*one) for one in failed]
    return content


def _item(sop_class_uid: str, sop_instance_uid: str, reason: int | None = None) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID = sop_class_uid
    made.ReferencedSOPInstanceUID = sop_instance_uid
    if reason is not None:
        made.FailureReason = reason
    return made


@dataclass(frozen=True)
class Said:
    """A report as a PACS makes it."""

    content: Dataset | bytes
    event_type: int = 1
    sop_instance_uid: str = SOP_INSTANCE_UID

    def request(self, message_id: int) -> N_EVENT_REPORT:
        request = N_EVENT_REPORT()
        request.MessageID = message_id
        request.AffectedSOPClassUID = SOP_CLASS_UID
        request.AffectedSOPInstanceUID = self.sop_instance_uid
        request.EventTypeID = self.event_type
        content = self.content
        if isinstance(content, Dataset):
            content = encode(content, False, True) or b""
        if content:
            request.EventInformation = BytesIO(content)
        return request


COMMITTED = Said(information(ASKED))


@dataclass
class Pacs:
    """A provider that answers a request, and says what it is told to over the same association."""

    early: Sequence[Said] = ()
    """Before it answers the request."""
    late: Sequence[Said] = ()
    status: int = 0x0000
    comment: str = ""
    at_end: str = ""
    """What it does when all is said: abort or release."""
    asked: list[tuple[int, Dataset]] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def act(self, event: evt.Event) -> tuple[Dataset, None]:
        with self.changed:
            self.asked.append((event.action_type, event.action_information))
        self._say(event, self.early)
        answer = Dataset()
        answer.Status = self.status
        if self.comment:
            answer.ErrorComment = self.comment
        if self.at_end == "abort at once":
            event.assoc.abort()
        return answer, None

    def sent(self, event: evt.Event) -> None:
        """The first P-DATA-TF PDU after the request is its answer, where nothing was said before."""
        if self.asked and event.pdu.pdu_type == P_DATA_TF and self.late:
            late, self.late = self.late, ()
            self._say(event, late)
        if self.asked and event.pdu.pdu_type == P_DATA_TF and self.at_end == "abort":
            self.at_end = ""
            threading.Thread(target=event.assoc.abort).start()

    def heard(self, event: evt.Event) -> None:
        command = event.message.command_set
        if command.CommandField == 0x8100:
            with self.changed:
                self.answered.append(command.Status)
                self.changed.notify_all()

    def wait_for_answers(self, *statuses: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.answered) == len(statuses), DEADLINE_S)
            assert self.answered == list(statuses)

    @contextmanager
    def listening(self, sop_class_uid: str = SOP_CLASS_UID) -> Iterator[Destination]:
        entity = AE(ae_title="PACS")
        entity.add_supported_context(sop_class_uid, [ExplicitVRLittleEndian])
        handlers: list[Any] = [
            (evt.EVT_N_ACTION, self.act),
            (evt.EVT_PDU_SENT, self.sent),
            (evt.EVT_DIMSE_RECV, self.heard),
        ]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None
        try:
            yield pacs_at(int(server.server_address[1]))
        finally:
            server.shutdown()
            entity.shutdown()

    @staticmethod
    def _say(event: evt.Event, said: Sequence[Said]) -> None:
        (context,) = event.assoc.accepted_contexts
        for number, one in enumerate(said, 1):
            event.assoc.dimse.send_msg(one.request(number), context.context_id)


def pacs_at(port: int, ae_title: str = "PACS") -> Destination:
    return Destination(name="the PACS", ae_title=ae_title, host="127.0.0.1", port=port)


@pytest.fixture
def results(tmp_path: Path) -> CommitmentResults:
    return CommitmentResults(tmp_path / "commitment-results")


def ask(to: Destination, results: CommitmentResults, **changes: Any) -> CommitmentOutcome:
    values: dict[str, Any] = {"calling_ae_title": AE_TITLE, "report_wait_s": DEADLINE_S}
    return request_commitment(ASKED, TRANSACTION, to, results=results, **{**values, **changes})


# over the association of the request


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_report_over_the_same_association_is_the_outcome(results: CommitmentResults, when: str) -> None:
    pacs = Pacs(**{when: [COMMITTED]})  # type: ignore[arg-type]
    with pacs.listening() as to:
        outcome = ask(to, results)
        pacs.wait_for_answers(0x0000)
    assert (outcome.state, outcome.status) == (CommitmentState.ANSWERED, 0x0000)
    assert outcome.detail == "2 committed, 0 failed"
    assert outcome.result is not None
    assert results.read() == (outcome.result,)
    assert not_committed(ASKED, outcome.result) == {}
    assert (outcome.result.calling_ae_title, outcome.result.host) == ("PACS", "127.0.0.1")
    ((action_type, asked),) = pacs.asked
    assert action_type == 1
    assert asked == information(ASKED)


def test_failures_are_told_with_their_reasons(results: CommitmentResults) -> None:
    pacs = Pacs(late=[Said(information(ASKED[:1], [(*ASKED[1], 0x0213)]), event_type=2)])
    with pacs.listening() as to:
        outcome = ask(to, results)
        pacs.wait_for_answers(0x0000)
    assert outcome.state == CommitmentState.ANSWERED
    assert outcome.result is not None
    assert not_committed(ASKED, outcome.result) == {"1.2.3.2": "0x0213 resource limitation"}


def test_a_pacs_that_keeps_silent_has_been_asked(results: CommitmentResults) -> None:
    pacs = Pacs()
    with pacs.listening() as to:
        outcome = ask(to, results, report_wait_s=0.1)
    assert (outcome.state, outcome.status, outcome.result) == (CommitmentState.REQUESTED, 0x0000, None)
    assert outcome.detail == "0x0000 Success"
    assert results.read() == ()


def test_a_report_that_comes_twice_is_kept_once(results: CommitmentResults) -> None:
    pacs = Pacs(early=[COMMITTED, COMMITTED])
    with pacs.listening() as to:
        outcome = ask(to, results)
        assert outcome.state == CommitmentState.ANSWERED
        pacs.wait_for_answers(0x0000, 0x0000)
    assert results.read() == (outcome.result,)


def test_the_answer_to_a_report_leaves_before_the_release(
    results: CommitmentResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, released = ReportReception.handle, threading.Event()
    release = RequestedAssociation.release

    def handle_slowly(reception: ReportReception, event: evt.Event) -> tuple[Dataset, None]:
        answer = handle(reception, event)
        assert not released.wait(0.5)
        return answer

    def note_release(association: RequestedAssociation) -> None:
        released.set()
        release(association)

    monkeypatch.setattr(ReportReception, "handle", handle_slowly)
    monkeypatch.setattr(RequestedAssociation, "release", note_release)
    pacs = Pacs(late=[COMMITTED])
    with pacs.listening() as to:
        assert ask(to, results).state == CommitmentState.ANSWERED
        pacs.wait_for_answers(0x0000)
    assert released.is_set()


def test_reports_that_are_wrong_are_refused(results: CommitmentResults) -> None:
    wrong = [
        Said(b"\xff" * 100),
        Said(b"\x08\x00\x95\x11UI\xff\xff1.2"),
        Said(b""),
        Said(information(ASKED, transaction_uid="")),
        Said(information()),
        Said(information(ASKED), event_type=3),
        Said(information(ASKED), sop_instance_uid="1.2.3"),
    ]
    pacs = Pacs(early=wrong)
    with pacs.listening() as to:
        outcome = ask(to, results, report_wait_s=1.0)
        with pacs.changed:
            assert pacs.changed.wait_for(lambda: len(pacs.answered) == len(wrong), DEADLINE_S)
    assert set(pacs.answered) == {0x0110, 0x0112, 0x0113, 0x0115}
    assert (outcome.state, results.read()) == (CommitmentState.REQUESTED, ())


def test_a_report_of_an_earlier_transaction_is_kept(results: CommitmentResults) -> None:
    pacs = Pacs(late=[Said(information(ASKED, transaction_uid="2.25.1"))])
    with pacs.listening() as to:
        outcome = ask(to, results, report_wait_s=0.5)
        pacs.wait_for_answers(0x0000)
    assert (outcome.state, outcome.result) == (CommitmentState.REQUESTED, None)
    assert [one.report.transaction_uid for one in results.read()] == ["2.25.1"]


def test_a_report_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    full = CommitmentResults(tmp_path, ResultLimits(max_waiting=0))
    pacs = Pacs(late=[COMMITTED])
    with pacs.listening() as to:
        outcome = ask(to, full, report_wait_s=0.5)
        pacs.wait_for_answers(0x0213)
    assert outcome.state == CommitmentState.REQUESTED


def test_an_association_that_ends_is_not_waited_for(results: CommitmentResults) -> None:
    pacs = Pacs(at_end="abort")
    begin = time.monotonic()
    with pacs.listening() as to:
        outcome = ask(to, results)
    assert outcome.state == CommitmentState.REQUESTED
    assert time.monotonic() - begin < DEADLINE_S / 2


# what else a PACS may say


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (0x0213, CommitmentState.FAILED, "0x0213 Resource Limitation: come back later"),
        (0x0110, CommitmentState.FAILED, "0x0110 Processing Failure: come back later"),
        (0xC123, CommitmentState.FAILED, "0xC123 unknown status: come back later"),
        (0x0122, CommitmentState.NOT_SUPPORTED, "0x0122 Refused: SOP Class Not Supported: come back later"),
        (0x0211, CommitmentState.NOT_SUPPORTED, "0x0211 Unrecognised Operation: come back later"),
        (0x0107, CommitmentState.REQUESTED, "0x0107 Attribute List Error: come back later"),
    ],
)
def test_a_refusal_comes_back_in_its_words(
    results: CommitmentResults, status: int, state: CommitmentState, words: str
) -> None:
    pacs = Pacs(status=status, comment="come back\n later")
    with pacs.listening() as to:
        outcome = ask(to, results, report_wait_s=0.1)
    assert (outcome.state, outcome.status, outcome.detail) == (state, status, words)


def test_a_pacs_without_the_service(results: CommitmentResults) -> None:
    with Pacs().listening(CTImageStorage) as to:
        outcome = ask(to, results)
    assert outcome.state == CommitmentState.NOT_SUPPORTED
    assert outcome.detail == "the PACS does not support storage commitment"


def test_a_pacs_that_is_not_there_or_does_not_answer(results: CommitmentResults) -> None:
    outcome = ask(pacs_at(free_port()), results)
    assert (outcome.state, outcome.status) == (CommitmentState.NO_ANSWER, None)
    assert "cannot connect to 127.0.0.1" in outcome.detail
    with Pacs(at_end="abort at once").listening() as to:
        outcome = ask(to, results)
    assert outcome.state == CommitmentState.NO_ANSWER
    assert "did not answer" in outcome.detail
    with socket.create_server(("127.0.0.1", 0)) as mute:
        outcome = ask(pacs_at(mute.getsockname()[1]), results, timeouts=SHORT)
    assert outcome.state == CommitmentState.NO_ANSWER


def test_a_result_counts_even_if_the_request_is_not_answered(results: CommitmentResults) -> None:
    pacs = Pacs(early=[COMMITTED], at_end="abort at once")

    def take_both(event: evt.Event) -> tuple[Dataset, None]:
        pacs._say(event, pacs.early)
        pacs.wait_for_answers(0x0000)
        event.assoc.abort()
        return Dataset(), None

    pacs.act = take_both  # type: ignore[method-assign]
    with pacs.listening() as to:
        outcome = ask(to, results)
    assert (outcome.state, outcome.status) == (CommitmentState.ANSWERED, None)
    assert results.read() == (outcome.result,)


# over an association that the PACS opens


@contextmanager
def receiving(folder: Path, results: CommitmentResults, *peers: AllowedPeer) -> Iterator[Receiver]:
    spool = Spool(folder / "spool")
    receiver = Receiver(
        ae_title=AE_TITLE,
        port=0,
        spool=spool,
        on_instance=lambda _: None,
        on_association_end=lambda _: None,
        peers=peers,
        commitment=CommitmentDesk(folder / "commitment", spool),
        results=results,
    )
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


@contextmanager
def calling(port: int, *, role: bool = True, ae_title: str = "PACS", **options: Any) -> Iterator[Association]:
    configure_pynetdicom()
    entity = RequestingEntity(ae_title=ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = DEADLINE_S
    association = entity.associate(
        "127.0.0.1",
        port,
        [build_context(SOP_CLASS_UID, UNCOMPRESSED), build_context(CTImageStorage)],
        ae_title=AE_TITLE,
        ext_neg=[build_role(SOP_CLASS_UID, scp_role=True)] if role else [],
        **options,
    )
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def report(
    association: Association, said: Said, message_id: int = 1, *, over: str = SOP_CLASS_UID
) -> tuple[int, str]:
    """Send a report as it is and give the status and comment of its answer."""
    context = next(c for c in association.accepted_contexts if c.abstract_syntax == over)
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(said.request(message_id), context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert isinstance(answer, N_EVENT_REPORT)
    assert answer.MessageIDBeingRespondedTo == message_id
    return int(answer.Status or 0), str(answer.ErrorComment or "")  # type: ignore[attr-defined]


@pytest.mark.parametrize("role", [True, False])
def test_a_pacs_calls_with_a_result(tmp_path: Path, results: CommitmentResults, role: bool) -> None:
    with receiving(tmp_path, results) as receiver, calling(receiver.port, role=role) as association:
        if role:
            granted = association.acceptor.role_selection[SOP_CLASS_UID]
            assert (granted.scu_role, granted.scp_role) == (False, True)
            status, _ = association.send_n_event_report(
                information(ASKED), 1, SOP_CLASS_UID, SOP_INSTANCE_UID
            )
            assert status.Status == 0x0000
        else:
            assert report(association, COMMITTED) == (0x0000, "")
        (result,) = results.read()  # before the association ends
        assert association.send_c_store(small_object()).Status == 0x0000
    assert not_committed(ASKED, result) == {}
    assert (result.calling_ae_title, result.host) == ("PACS", "127.0.0.1")
    assert result.report.transaction_uid == TRANSACTION


@pytest.mark.parametrize(
    ("proposed", "granted"), [((1, 1), (1, 1)), ((0, 1), (0, 1)), ((1, 0), (1, 0)), (None, None)]
)
def test_the_role_of_each_side_is_agreed_upon(
    tmp_path: Path,
    results: CommitmentResults,
    proposed: tuple[int, int] | None,
    granted: tuple[int, int] | None,
) -> None:
    role = item(0x54, with_length(SOP_CLASS_UID.encode()) + bytes(proposed)) if proposed else b""
    contexts = [(SOP_CLASS_UID, [ExplicitVRLittleEndian])]
    with receiving(tmp_path, results) as receiver, BarePeer(receiver.port) as peer:
        peer.send(associate_rq(contexts, called=AE_TITLE.encode(), extra=role))
        kind, body = peer.answer()
    assert kind == A_ASSOCIATE_AC
    answered = struct.pack(">BBH", 0x54, 0, 4 + len(SOP_CLASS_UID)) + with_length(SOP_CLASS_UID.encode())
    assert (answered in body) == (granted is not None)
    if granted is not None:
        at = body.index(answered) + len(answered)
        assert tuple(body[at : at + 2]) == granted


def test_a_modality_still_asks_this_node(tmp_path: Path, results: CommitmentResults) -> None:
    """Over the same SOP class, and in the role of the user, said or not; one association may do both."""
    told = threading.Event()
    seen: list[set[str]] = []

    def take(event: evt.Event) -> tuple[int, None]:
        named = event.event_information.ReferencedSOPSequence
        seen.append({one.ReferencedSOPInstanceUID for one in named})
        told.set()
        return 0x0000, None

    handlers = [(evt.EVT_N_EVENT_REPORT, take)]
    with receiving(tmp_path, results) as receiver:
        for role in ([], [build_role(SOP_CLASS_UID, scu_role=True, scp_role=True)]):
            entity = RequestingEntity(ae_title="CT1")
            association = entity.associate(
                "127.0.0.1",
                receiver.port,
                [build_context(SOP_CLASS_UID, UNCOMPRESSED), build_context(CTImageStorage)],
                ae_title=AE_TITLE,
                ext_neg=role,
                evt_handlers=handlers,
            )
            dataset = small_object()
            assert association.send_c_store(dataset).Status == 0x0000
            content = information([(dataset.SOPClassUID, dataset.SOPInstanceUID)])
            status, _ = association.send_n_action(content, 1, SOP_CLASS_UID, SOP_INSTANCE_UID)
            assert status.Status == 0x0000
            assert told.wait(DEADLINE_S)
            told.clear()
            assert seen.pop() == {dataset.SOPInstanceUID}
            if role:
                assert report(association, COMMITTED, message_id=7) == (0x0000, "")
            association.release()
    assert len(results.read()) == 1


def test_only_peers_are_listened_to(
    tmp_path: Path, results: CommitmentResults, caplog: pytest.LogCaptureFixture
) -> None:
    known = AllowedPeer(ae_title="PACS", host="127.0.0.1")
    with receiving(tmp_path, results, known) as receiver:
        with calling(receiver.port, ae_title="STRANGER") as association:
            assert association.is_rejected
        with calling(receiver.port) as association:
            assert report(association, COMMITTED) == (0x0000, "")
    assert [one.calling_ae_title for one in results.read()] == ["PACS"]
    assert "rejected an association of 'STRANGER'" in caplog.text


def test_a_result_that_comes_twice_is_kept_once(tmp_path: Path, results: CommitmentResults) -> None:
    with receiving(tmp_path, results) as receiver:
        for _ in range(2):
            with calling(receiver.port) as association:
                assert report(association, COMMITTED, 1) == (0x0000, "")
                assert report(association, COMMITTED, 2) == (0x0000, "")
    assert len(results.read()) == 1


MANY = [(str(CTImageStorage), f"1.2.{number}") for number in range(101)]


@pytest.mark.parametrize(
    ("said", "statuses"),
    [
        (Said(b"\xff" * 100), {0x0110, 0x0115}),
        (Said(b"\x08\x00\x95\x11UI\xff\xff1.2"), {0x0110, 0x0115}),
        (Said(b"\x00"), {0x0110, 0x0115}),
        (Said(b""), {0x0115}),
        (Said(information(ASKED), event_type=9), {0x0113}),
        (Said(information(ASKED), sop_instance_uid="1.2.3"), {0x0112}),
        (Said(information()), {0x0115}),
        (Said(information(MANY)), {0x0213}),
        (Said(information(MANY * 3)), {0x0213}),
    ],
    ids=["noise", "cut off", "a byte", "nothing", "event", "instance", "empty", "many", "far too many"],
)
def test_what_is_wrong_is_answered_and_the_association_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: Said, statuses: set[int]
) -> None:
    results = CommitmentResults(tmp_path / "results", ResultLimits(max_references=100))
    with (
        caplog.at_level(logging.DEBUG),
        receiving(tmp_path, results) as receiver,
        calling(receiver.port) as association,
    ):
        status, comment = report(association, said)
        assert status in statuses
        assert results.read() == ()
        assert report(association, COMMITTED, 2) == (0x0000, "")
    assert 0 < len(comment) <= 64
    assert len(results.read()) == 1
    ours = "".join(one.getMessage() for one in caplog.records if one.name.startswith("ich_node"))
    assert ours.count("refused a storage commitment report of 'PACS'") == 1
    assert "1.2.3" not in ours
    assert TRANSACTION not in ours


def test_a_full_folder_is_a_resource_limitation(tmp_path: Path) -> None:
    full = CommitmentResults(tmp_path / "results", ResultLimits(max_waiting=1))
    other = Said(information(ASKED, transaction_uid="2.25.2"))
    with receiving(tmp_path, full) as receiver, calling(receiver.port) as association:
        assert report(association, COMMITTED, 1) == (0x0000, "")
        assert report(association, other, 2) == (0x0213, "too many reports wait")
        full.remove(full.read())
        assert report(association, other, 3) == (0x0000, "")


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 0x0213), (errno.EDQUOT, 0x0213), (errno.EIO, 0x0110)]
)
def test_a_disk_that_refuses_is_answered_so(
    tmp_path: Path, results: CommitmentResults, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with receiving(tmp_path, results) as receiver, calling(receiver.port) as association:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", refuse)
            assert report(association, COMMITTED, 1) == (status, f"cannot write: {os.strerror(number)}")
        assert results.read() == ()
        assert report(association, COMMITTED, 2) == (0x0000, "")
    assert len(results.read()) == 1


def test_a_report_over_the_context_of_another_class(tmp_path: Path, results: CommitmentResults) -> None:
    with receiving(tmp_path, results) as receiver, calling(receiver.port) as association:
        status, _ = report(association, COMMITTED, over=CTImageStorage)
        assert (status, results.read()) == (0x0118, ())


def test_the_receiving_processes_keep_results(tmp_path: Path) -> None:
    commitment = tmp_path / "commitment"
    processes = ReceivingProcesses(
        ScpOptions(
            ae_title=AE_TITLE, spool_dir=tmp_path / "spool", commitment_dir=commitment, limits=Limits()
        ),
        [Endpoint(host="127.0.0.1", port=0)],
        processes=1,
        on_handed_on=lambda _: None,
        on_loss=lambda: None,
    )
    processes.start()
    try:
        with calling(processes.ports[0]) as association:
            assert report(association, COMMITTED) == (0x0000, "")
    finally:
        processes.stop()
    (result,) = CommitmentResults(results_folder(commitment)).read()
    assert not_committed(ASKED, result) == {}


# Orthanc is asked


@pytest.fixture
def orthanc(tmp_path: Path, results: CommitmentResults) -> Iterator[Destination]:
    program = shutil.which("Orthanc")
    if program is None:
        pytest.skip("Orthanc is not installed")
    dicom, http = free_port(), free_port()
    with receiving(tmp_path, results) as receiver:
        settings = {
            "StorageDirectory": str(tmp_path / "orthanc"),
            "IndexDirectory": str(tmp_path / "orthanc"),
            "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": True,
            "DicomPort": dicom,
            "HttpPort": http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {
                "node": {
                    "AET": AE_TITLE,
                    "Host": "127.0.0.1",
                    "Port": receiver.port,
                    "AllowStorageCommitment": True,
                }
            },
            "Plugins": [],
        }
        configuration = tmp_path / "orthanc.json"
        configuration.write_text(json.dumps(settings))
        with (tmp_path / "orthanc.log").open("wb") as log:
            process = subprocess.Popen([program, str(configuration)], stdout=log, stderr=log)
            try:
                wait_until(lambda: process.poll() is not None or _answers(http))
                assert process.poll() is None, (tmp_path / "orthanc.log").read_text()
                yield pacs_at(dicom, "ORTHANC")
            finally:
                process.terminate()
                process.wait(DEADLINE_S)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=2):
            return True
    except OSError:
        return False


def test_orthanc_commits_to_what_it_has_stored(
    orthanc: Destination, results: CommitmentResults, tmp_path: Path
) -> None:
    objects = [
        small_object(sop_class_uid=ComprehensiveSRStorage, Modality="SR", PixelData=None),
        small_object(sop_class_uid=SecondaryCaptureImageStorage, Modality="OT"),
    ]
    outcomes = send([saved(dataset, tmp_path) for dataset in objects], orthanc, calling_ae_title=AE_TITLE)
    assert [one.result for one in outcomes] == [DeliveryResult.SENT] * 2
    stored = [(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)) for dataset in objects]
    missing = (str(ComprehensiveSRStorage), "1.2.3.4")

    def said_of(references: list[tuple[str, str]], transaction_uid: str) -> CommitmentResult:
        outcome = request_commitment(
            references,
            transaction_uid,
            orthanc,
            results=results,
            calling_ae_title=AE_TITLE,
            report_wait_s=0.0,
        )
        assert (outcome.state, outcome.status) == (CommitmentState.REQUESTED, 0x0000)
        (result,) = wait_until(results.read)
        results.remove([result])
        assert (result.report.transaction_uid, result.calling_ae_title) == (transaction_uid, "ORTHANC")
        return result

    assert not_committed(stored, said_of(stored, "2.25.1")) == {}
    assert not_committed([*stored, missing], said_of([*stored, missing], "2.25.2")) == {
        "1.2.3.4": "0x0112 no such object instance"
    }


def test_orthanc_does_not_know_who_asks(orthanc: Destination, results: CommitmentResults) -> None:
    """It could not report to it, and ends the association."""
    outcome = ask(orthanc, results, calling_ae_title="UNKNOWN", report_wait_s=0.2)
    assert outcome.state == CommitmentState.NO_ANSWER
    assert "it must know UNKNOWN as a storage commitment user" in outcome.detail
    assert results.read() == ()
