"""Storage commitment with real requestors: pynetdicom and Orthanc, and peers that are away, mute or hostile."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation

from ich_node.receive.commitment import ALL_COMMITTED, FAILURES_EXIST, CommitmentDesk
from ich_node.receive.commitment_association import CommitmentProvider
from ich_node.receive.commitment_call import CallTimeouts
from ich_node.receive.commitment_folder import waiting
from ich_node.receive.commitment_reports import CommitmentReporter, RetrySchedule
from ich_node.receive.commitment_request import SOP_CLASS_UID, SOP_INSTANCE_UID
from ich_node.receive.limits import AllowedPeer
from ich_node.receive.receiver import Receiver
from ich_node.receive.requestor import RequestingEntity
from ich_node.receive.spool import Spool
from ich_node.receive.tls import client_context, server_context
from ich_node.receive.upper_layer import configure_pynetdicom
from tests.certificates import Authority
from tests.small_objects import PATIENT_ID, ROOT, saved, small_object

AE_TITLE = "ICH_TEST"
MODALITY = "CT1"
DEADLINE_S = 30.0
SHORT = CallTimeouts(connection_s=3.0, acse_s=3.0, dimse_s=3.0, network_s=3.0)
AT_ONCE = RetrySchedule(least_s=0.0)
UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_serial = iter(range(1, 10_000))


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Node:
    """A receiver with storage commitment, and what it was told of its reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool = Spool(folder / "spool")
        self.clock = Clock()
        self.desk = CommitmentDesk(folder / "commitment", self.spool, clock=self.clock)
        self.provider = CommitmentProvider(self.desk)
        self.confirmed: list[bool] = []
        self.changed = threading.Condition()
        self.receiver = Receiver(
            ae_title=AE_TITLE,
            port=0,
            spool=self.spool,
            on_instance=lambda _: None,
            on_association_end=lambda _: self._note(),
            commitment=self.desk,
        )

    @property
    def port(self) -> int:
        return self.receiver.port

    @property
    def waiting(self) -> int:
        return waiting(self.folder / "commitment").waiting

    def is_quiet(self) -> bool:
        """Whether no association is left over which something was asked."""
        return not self.provider._lines

    def reporter(self, *peers: AllowedPeer, **options: Any) -> CommitmentReporter:
        values: dict[str, Any] = {"ae_title": AE_TITLE, "timeouts": SHORT, "schedule": AT_ONCE}
        return CommitmentReporter(self.provider, peers=peers, **{**values, **options})

    def wait_until(self, holds: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, DEADLINE_S)

    def __enter__(self) -> Node:
        provider = self.receiver._scp.commitment
        assert provider is not None
        self.provider = provider
        answered = provider.answered

        def note_answer(*arguments: Any) -> bool:
            confirmed = answered(*arguments)
            self._note(confirmed)
            return confirmed

        provider.answered = note_answer  # type: ignore[method-assign]
        self.receiver.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.receiver.stop()

    def _note(self, *confirmed: bool) -> None:
        with self.changed:
            self.confirmed += confirmed
            self.changed.notify_all()


@dataclass
class Report:
    event_type: int
    information: Dataset
    caller: str
    on_new_association: bool

    @property
    def committed(self) -> set[str]:
        return {item.ReferencedSOPInstanceUID for item in self.information.get("ReferencedSOPSequence", [])}

    @property
    def failed(self) -> dict[str, int]:
        failed = self.information.get("FailedSOPSequence", [])
        return {item.ReferencedSOPInstanceUID: item.FailureReason for item in failed}


@dataclass
class Modality:
    """A requestor that takes reports over its own association, and at a port of its own while it listens."""

    reports: list[Report] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    answer: Callable[[Report], int] = lambda report: 0x0000

    def take(self, event: evt.Event) -> tuple[int, None]:
        report = Report(
            event.event_type,
            event.event_information,
            str(event.assoc.remote["ae_title"]).strip(),
            event.assoc.is_acceptor,
        )
        assert event.request.AffectedSOPInstanceUID == SOP_INSTANCE_UID
        with self.changed:
            self.reports.append(report)
            self.changed.notify_all()
        return self.answer(report), None

    def wait_for(self, count: int = 1) -> Report:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.reports) >= count, DEADLINE_S)
            return self.reports[-1]

    @contextmanager
    def associated(self, port: int) -> Iterator[Association]:
        entity = RequestingEntity(ae_title=MODALITY)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = DEADLINE_S
        association = entity.associate(
            "127.0.0.1",
            port,
            [build_context(SOP_CLASS_UID, UNCOMPRESSED), build_context(CTImageStorage)],
            ae_title=AE_TITLE,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.take)],
        )
        assert association.is_established
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    @contextmanager
    def listening(self, port: int = 0, *, accept_role: bool | None = True, **options: Any) -> Iterator[int]:
        entity = AE(ae_title=MODALITY)
        roles = {} if accept_role is None else {"scu_role": not accept_role, "scp_role": accept_role}
        entity.add_supported_context(options.pop("sop_class_uid", SOP_CLASS_UID), UNCOMPRESSED, **roles)
        handlers = [(evt.EVT_N_EVENT_REPORT, self.take), *options.pop("on_accept", ())]
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers, **options)
        assert server is not None
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            entity.shutdown()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as running:
        yield running


def transaction() -> str:
    return f"{ROOT}.77.{next(_serial)}"


def request(*uids: str, transaction_uid: str = "", sop_class_uid: str = CTImageStorage) -> Dataset:
    information = Dataset()
    information.TransactionUID = transaction_uid or transaction()
    information.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = uid
        information.ReferencedSOPSequence.append(item)
    return information


def ask(association: Association, information: Dataset | None, action_type: int = 1) -> int:
    status, _ = association.send_n_action(information, action_type, SOP_CLASS_UID, SOP_INSTANCE_UID)
    return int(status.Status)


def stored(association: Association, count: int = 1) -> list[str]:
    datasets = [small_object() for _ in range(count)]
    assert {association.send_c_store(dataset).Status for dataset in datasets} == {0x0000}
    return [str(dataset.SOPInstanceUID) for dataset in datasets]


def peer(port: int, **changes: Any) -> AllowedPeer:
    return AllowedPeer(**{"ae_title": MODALITY, "host": "127.0.0.1", "port": port, **changes})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(holds: Callable[[], Any]) -> Any:
    pause, end = threading.Event(), time.monotonic() + DEADLINE_S
    while not (result := holds()):
        assert time.monotonic() < end
        pause.wait(0.05)
    return result


def refuse(report: Report) -> int:
    return 0x0110 if not report.on_new_association else 0x0000


# over the association of the request


def test_what_was_acknowledged_is_committed_over_the_same_association(node: Node) -> None:
    modality = Modality()
    with modality.associated(node.port) as association:
        uids = stored(association, 5)
        information = request(*uids)
        assert ask(association, information) == 0x0000
        report = modality.wait_for()
        node.wait_until(lambda: node.confirmed == [True])
        assert node.waiting == 0
    assert (report.event_type, report.committed, report.failed) == (ALL_COMMITTED, set(uids), {})
    assert report.information.TransactionUID == information.TransactionUID
    assert not report.on_new_association


def test_what_is_missing_is_reported_as_such(node: Node) -> None:
    modality = Modality()
    with modality.associated(node.port) as association:
        here, of_other_class = stored(association, 2)
        information = request(here, "1.2.3.4")
        information.ReferencedSOPSequence += request(of_other_class, sop_class_uid=MRImageStorage)[
            "ReferencedSOPSequence"
        ].value
        assert ask(association, information) == 0x0000
        report = modality.wait_for()
        # pynetdicom may not answer once it asks for a release
        node.wait_until(lambda: node.confirmed == [True])
    assert (report.event_type, report.committed) == (FAILURES_EXIST, {here})
    assert report.failed == {"1.2.3.4": 0x0112, of_other_class: 0x0119}


def test_objects_go_on_arriving_while_a_report_is_not_answered(node: Node) -> None:
    answer_now = threading.Event()

    def answer(_: Report) -> int:
        assert answer_now.wait(DEADLINE_S)
        return 0x0000

    modality = Modality(answer=answer)
    with modality.associated(node.port) as association:
        first = stored(association)
        assert ask(association, request(*first)) == 0x0000
        modality.wait_for()
        more = stored(association, 10)
        # a second request is answered, and reported when the first report is answered
        assert ask(association, request(*more)) == 0x0000
        assert (node.waiting, len(modality.reports)) == (2, 1)
        answer_now.set()
        assert modality.wait_for(2).committed == set(more)
        node.wait_until(lambda: node.confirmed == [True, True])
    assert node.waiting == 0


def test_a_request_per_image_is_reported_per_image(node: Node) -> None:
    modality = Modality()
    with modality.associated(node.port) as association:
        for _ in range(50):
            assert ask(association, request(*stored(association))) == 0x0000
        modality.wait_for(50)
        node.wait_until(lambda: len(node.confirmed) == 50)
    assert {report.event_type for report in modality.reports} == {ALL_COMMITTED}
    assert len({report.information.TransactionUID for report in modality.reports}) == 50
    assert node.waiting == 0


def test_requests_that_are_not_answered_keep_few_files_open(node: Node) -> None:
    answer_now = threading.Event()
    modality = Modality(answer=lambda report: 0x0000 if answer_now.wait(DEADLINE_S) else 0x0110)
    with modality.associated(node.port) as association:
        uids = stored(association, 40)
        assert ask(association, request(uids[0])) == 0x0000
        modality.wait_for()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for uid in uids[1:]:
            assert ask(association, request(uid)) == 0x0000
        assert node.waiting == 40
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
        answer_now.set()
        modality.wait_for(40)
        node.wait_until(lambda: node.confirmed == [True] * 40)
    assert [report.committed for report in modality.reports] == [{uid} for uid in uids]
    assert node.waiting == 0


def bad_requests() -> list[tuple[Dataset | None, int, int]]:
    empty = request()
    return [
        (None, 1, 0x0120),
        (request("1.2.3"), 2, 0x0123),
        (empty, 1, 0x0121),
        (request("1.2.3", transaction_uid="1.02"), 1, 0x0106),
        (request(*(f"1.2.{number}" for number in range(10_001))), 1, 0x0213),
        (request(*(f"1.2.{number}" for number in range(25_000))), 1, 0x0213),
    ]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_bad_requests_are_answered_and_nothing_of_them_is_kept(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    modality = Modality()
    with modality.associated(node.port) as association:
        for information, action_type, status in bad_requests():
            assert ask(association, information, action_type) == status
        wrong = association.send_n_action(request("1.2.3"), 1, SOP_CLASS_UID, "1.2.3")[0]
        assert wrong.Status == 0x0112
        assert 0 < len(wrong.ErrorComment) <= 64
        assert node.waiting == 0
        # and the association goes on
        assert ask(association, request(*stored(association))) == 0x0000
        assert modality.wait_for().event_type == ALL_COMMITTED
    logged = "".join(record.getMessage() for record in caplog.records if record.name.startswith("ich_node"))
    assert logged.count("refused a storage commitment request from 'CT1'") == 7
    assert "1.02" not in logged


def test_information_that_cannot_be_parsed_is_a_processing_failure(node: Node) -> None:
    modality = Modality()
    with modality.associated(node.port) as association:
        for garbage in (b"\xff" * 100, b"\x08\x00\x95\x11UI\xff\xff1.2", b"\x00"):
            message = N_ACTION()
            message.MessageID = 1
            message.RequestedSOPClassUID = SOP_CLASS_UID
            message.RequestedSOPInstanceUID = SOP_INSTANCE_UID
            message.ActionTypeID = 1
            message.ActionInformation = BytesIO(garbage)
            association._reactor_checkpoint.clear()
            context = next(c for c in association.accepted_contexts if c.abstract_syntax == SOP_CLASS_UID)
            association.dimse.send_msg(message, context.context_id)
            _, answer = association.dimse.get_msg(block=True)
            association._reactor_checkpoint.set()
            assert answer.Status in (0x0110, 0x0120)
        assert node.waiting == 0
        assert ask(association, request(*stored(association))) == 0x0000
        modality.wait_for()


# what could not be reported over it


def test_a_release_without_an_answer_leads_to_a_call(node: Node) -> None:
    answer_now = threading.Event()

    def answer(report: Report) -> int:
        assert report.on_new_association or answer_now.wait(DEADLINE_S)
        return 0x0000

    modality = Modality(answer=answer)
    with modality.associated(node.port) as association:
        uids = stored(association, 3)
        assert ask(association, request(*uids)) == 0x0000
        modality.wait_for()
    answer_now.set()
    assert node.waiting == 1
    with modality.listening() as port:
        node.wait_until(node.is_quiet)
        node.reporter(peer(port)).report_due()
    report = modality.reports[-1]
    assert (report.on_new_association, report.caller) == (True, AE_TITLE)
    assert (report.event_type, report.committed) == (ALL_COMMITTED, set(uids))
    assert node.waiting == 0


def test_an_abort_and_a_refusal_lead_to_calls(node: Node) -> None:
    modality = Modality(answer=refuse)
    with modality.associated(node.port) as association:
        assert ask(association, request(*stored(association))) == 0x0000
        node.wait_until(lambda: node.confirmed == [False])
        assert node.waiting == 1
        association.abort()
    held = threading.Event()
    aborting = Modality(answer=lambda report: 0x0000 if held.wait(DEADLINE_S) else 0x0110)
    with aborting.associated(node.port) as association:
        assert ask(association, request(*stored(association))) == 0x0000
        aborting.wait_for()
        association.abort()
    held.set()
    node.wait_until(node.is_quiet)
    assert node.waiting == 2
    with modality.listening() as port:
        node.reporter(peer(port)).report_due()
    assert [report.on_new_association for report in modality.reports] == [False, True, True]
    assert node.waiting == 0


def test_a_peer_that_keeps_silent_is_called_and_may_still_answer(node: Node) -> None:
    answer_now = threading.Event()

    def answer(report: Report) -> int:
        assert report.on_new_association or answer_now.wait(DEADLINE_S)
        return 0x0000

    modality = Modality(answer=answer)
    with modality.associated(node.port) as association, modality.listening() as port:
        reporter = node.reporter(peer(port))
        assert ask(association, request(*stored(association))) == 0x0000
        modality.wait_for()
        reporter.report_due()
        assert len(modality.reports) == 1  # it may still answer
        node.clock.ahead_s += DEADLINE_S
        assert ask(association, request(*stored(association))) == 0x0000
        reporter.report_due()
        assert [report.on_new_association for report in modality.reports] == [False, True, True]
        assert node.waiting == 0
        # nothing more is tried over this association
        assert ask(association, request(*stored(association))) == 0x0000
        assert node.waiting == 1
        answer_now.set()
        node.wait_until(lambda: node.confirmed == [True])
        assert node.waiting == 1
        reporter.report_due()
        assert node.waiting == 0
        assert len(modality.reports) == 4


def leave_waiting(node: Node, modality: Modality, count: int = 1) -> None:
    """Bring the node to accept requests that it cannot report over their associations."""
    before = node.waiting
    answer, modality.answer = modality.answer, lambda report: 0x0110
    with modality.associated(node.port) as association:
        for number in range(count):
            assert ask(association, request(*stored(association))) == 0x0000
            node.wait_until(lambda done=number: len(node.confirmed) > done)  # type: ignore[misc]
    node.wait_until(node.is_quiet)
    modality.answer, node.confirmed = answer, []
    modality.reports.clear()
    assert node.waiting == before + count


def test_a_peer_that_is_away_is_called_again_later(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    modality = Modality()
    leave_waiting(node, modality, 3)
    port = free_port()
    reporter = node.reporter(peer(port))
    reporter.report_due()
    assert "'CT1' at 127.0.0.1 port" in caplog.text
    assert node.waiting == 3
    with modality.listening(port):
        reporter.report_due()
        assert modality.reports == []  # not before 5 s have passed
        node.clock.ahead_s += 6
        reporter.report_due()
        assert len(modality.reports) == 3
    assert node.waiting == 0


def test_the_reporter_runs_in_the_background_and_is_woken(node: Node) -> None:
    modality = Modality(answer=refuse)
    with modality.listening() as port:
        reporter = node.reporter(peer(port), idle_seconds=3600.0)
        reporter.start()
        try:
            with modality.associated(node.port) as association:
                assert ask(association, request(*stored(association))) == 0x0000
                assert modality.wait_for(2).on_new_association
            with modality.associated(node.port) as association:
                assert ask(association, request(*stored(association))) == 0x0000
                assert modality.wait_for(4).on_new_association
            wait_until(lambda: node.waiting == 0)
        finally:
            reporter.stop()


def test_one_peer_that_does_not_answer_holds_up_no_other(node: Node) -> None:
    modality = Modality()
    leave_waiting(node, modality)
    pending = node.desk.accept(
        request("1.2.3"),
        action_type=1,
        requested_sop_instance_uid=SOP_INSTANCE_UID,
        calling_ae_title="MUTE",
        host="127.0.0.1",
    )
    node.desk.postpone(pending)
    with socket.create_server(("127.0.0.1", 0)) as mute, modality.listening() as port:
        peers = [peer(mute.getsockname()[1], ae_title="MUTE"), peer(port)]
        reporter = node.reporter(*peers, timeouts=CallTimeouts(acse_s=DEADLINE_S))
        reporter.start()
        try:
            connection, _ = mute.accept()
            with connection:
                modality.wait_for()
                wait_until(lambda: node.waiting == 1)
        finally:
            reporter.stop()


def test_a_restart_after_kill_9_reports_what_was_accepted(tmp_path: Path) -> None:
    configure_pynetdicom()
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.integration.test_storage_commitment import Node\n"
        "node = Node(Path(sys.argv[1])).__enter__()\n"
        "print(node.port, flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    killed = threading.Event()

    def answer(report: Report) -> int:
        assert report.on_new_association or killed.wait(DEADLINE_S)
        return 0x0000

    modality = Modality(answer=answer)
    try:
        port = int(process.stdout.readline())
        with modality.associated(port) as association:
            uids = stored(association, 4)
            information = request(*uids)
            assert ask(association, information) == 0x0000
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE_S)
            killed.set()
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        process.stdin.close()
        process.stdout.close()
    node = Node(tmp_path)
    assert node.waiting == 1
    modality.reports.clear()
    with modality.listening() as port:
        node.reporter(peer(port)).report_due()
        report = modality.wait_for()
    assert (report.information.TransactionUID, report.committed) == (information.TransactionUID, set(uids))
    assert node.waiting == 0


def test_two_processes_that_share_a_folder_report_each_once(node: Node) -> None:
    modality = Modality()
    leave_waiting(node, modality, 12)
    other = Node(node.folder)
    with modality.listening() as port:
        reporters = [node.reporter(peer(port)), other.reporter(peer(port))]
        threads = [threading.Thread(target=reporter.report_due) for reporter in reporters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert len({report.information.TransactionUID for report in modality.reports}) == 12
    assert len(modality.reports) == 12
    assert node.waiting == 0


def test_a_peer_without_a_port_keeps_its_reports_until_one_is_set(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    modality = Modality()
    leave_waiting(node, modality, 2)
    reporter = node.reporter(peer(0))
    reporter.report_due()
    reporter.report_due()
    assert caplog.text.count("'CT1' at 127.0.0.1 waits for a report and cannot be called: set port") == 1
    assert node.waiting == 2
    with modality.listening() as port:
        node.reporter(peer(port, host="192.0.2.7"), peer(port, ae_title="CT2")).report_due()
        assert modality.reports == []
        node.reporter(peer(port)).report_due()
    assert len(modality.reports) == 2
    assert node.waiting == 0


def test_after_a_week_it_is_set_aside_and_said(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    modality = Modality()
    leave_waiting(node, modality)
    reporter = node.reporter(peer(free_port()))
    for hours in (0, 1, 71, 90):
        node.clock.ahead_s += hours * 3600
        reporter.report_due()
        assert node.waiting == 1
    node.clock.ahead_s += 7 * 86400
    reporter.report_due()  # the last call
    assert node.waiting == 1
    reporter.report_due()
    counts = waiting(node.folder / "commitment")
    assert (counts.waiting, counts.dead) == (0, 1)
    assert "'CT1' at 127.0.0.1 could not be told in 168 h" in caplog.text


# how the peer is called


@pytest.mark.parametrize("accept_role", [True, None])
def test_this_node_proposes_itself_as_scp(node: Node, accept_role: bool | None) -> None:
    modality, proposed = Modality(), []
    leave_waiting(node, modality)

    def look(event: evt.Event) -> None:
        roles = event.assoc.requestor.role_selection
        proposed.extend((str(uid), role.scu_role, role.scp_role) for uid, role in roles.items())

    entity = AE(ae_title=MODALITY)
    roles = {} if accept_role is None else {"scu_role": False, "scp_role": True}
    entity.add_supported_context(SOP_CLASS_UID, UNCOMPRESSED, **roles)
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, modality.take), (evt.EVT_REQUESTED, look)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    node.reporter(peer(server.server_address[1])).report_due()
    server.shutdown()
    assert proposed == [(SOP_CLASS_UID, False, True)]
    assert len(modality.reports) == 1
    assert node.waiting == 0


def refuse_role(event: evt.Event) -> None:
    """Let a peer accept the SOP class and, as pynetdicom never does, refuse the role in the same answer."""
    if isinstance(event.primitive, A_ASSOCIATE):
        for item in event.primitive.user_information:
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation):
                item.scu_role, item.scp_role = True, False


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"accept_role": False}, "does not accept the storage commitment SOP class"),
        ({"on_accept": [(evt.EVT_ACSE_SENT, refuse_role)]}, "does not accept this node as the SCP"),
        ({"sop_class_uid": CTImageStorage}, "does not accept the storage commitment SOP class"),
    ],
)
def test_a_peer_that_does_not_agree_is_named_in_the_log(
    node: Node, caplog: pytest.LogCaptureFixture, options: dict[str, Any], why: str
) -> None:
    modality = Modality()
    leave_waiting(node, modality)
    with modality.listening(**options) as port:
        node.reporter(peer(port)).report_due()
    assert why in caplog.text
    assert (modality.reports, node.waiting) == ([], 1)


def test_a_peer_that_rejects_or_refuses_keeps_its_reports(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    modality = Modality(answer=lambda report: 0x0112)
    leave_waiting(node, modality, 2)
    with modality.listening() as port:
        node.reporter(peer(port)).report_due()
    assert len(modality.reports) == 2  # one refusal does not keep the other from being told
    assert "refused the report with status 0x0112" in caplog.text
    entity = AE(ae_title="SOMEBODY")
    entity.require_called_aet = True
    entity.add_supported_context(SOP_CLASS_UID)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    node.reporter(peer(server.server_address[1])).report_due()
    server.shutdown()
    assert "rejected the association" in caplog.text
    assert node.waiting == 2


@pytest.mark.parametrize("bound_to", ["ct1.hospital.example", "ct2.hospital.example"])
def test_a_peer_with_tls_is_told_only_with_its_own_certificate(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture, bound_to: str
) -> None:
    authority = Authority(tmp_path / "authority")
    modality = Modality()
    leave_waiting(node, modality)
    ct = server_context(authority.issue("ct1.hospital.example"))
    ours = client_context(authority.issue("node.hospital.example"))
    with modality.listening(ssl_context=ct) as port:
        called = peer(port, tls=True, certificate=bound_to)
        node.reporter(called).report_due()
        assert "receiver.tls.certificate is not set" in caplog.text
        assert modality.reports == []
        node.reporter(called, tls_context=ours).report_due()
    if bound_to == "ct1.hospital.example":
        assert (len(modality.reports), node.waiting) == (1, 0)
    else:
        assert "its certificate is not the one that it is bound to" in caplog.text
        assert (modality.reports, node.waiting) == ([], 1)


def test_nothing_identifying_is_logged(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    modality = Modality()
    with caplog.at_level(logging.DEBUG):
        leave_waiting(node, modality)
        with modality.listening() as port:
            node.reporter(peer(port)).report_due()
    (report,) = modality.reports
    assert report.information.TransactionUID not in caplog.text
    assert not any(uid in caplog.text for uid in report.committed)
    assert PATIENT_ID not in caplog.text


# Orthanc asks


@dataclass(frozen=True)
class Orthanc:
    dicom_port: int
    url: str

    def call(self, path: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", body, timeout=DEADLINE_S) as answer:
            return json.load(answer)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/system", timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture
def orthanc(tmp_path: Path, node: Node) -> Iterator[Orthanc]:
    program = shutil.which("Orthanc")
    if program is None:
        pytest.skip("Orthanc is not installed")
    dicom, http = free_port(), free_port()
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
            "node": {"AET": AE_TITLE, "Host": "127.0.0.1", "Port": node.port, "AllowStorageCommitment": True}
        },
        "Plugins": [],
    }
    configuration = tmp_path / "orthanc.json"
    configuration.write_text(json.dumps(settings))
    pacs = Orthanc(dicom, f"http://127.0.0.1:{http}")
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(configuration)], stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or answers(pacs.url))
            assert process.poll() is None, (tmp_path / "orthanc.log").read_text()
            yield pacs
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def test_orthanc_asks_and_is_told(node: Node, orthanc: Orthanc, tmp_path: Path) -> None:
    uploaded = [
        orthanc.call("/instances", saved(small_object(), tmp_path).read_bytes())["ID"] for _ in range(3)
    ]
    sent = orthanc.call("/modalities/node/store", json.dumps(uploaded).encode())
    assert sent["FailedInstancesCount"] == 0
    reporter = node.reporter(peer(orthanc.dicom_port, ae_title="ORTHANC"))
    reporter.start()
    try:
        for resources, missing in ((uploaded, []), ([], [[CTImageStorage, "1.2.3.4"]])):
            body = {"Resources": resources, "DicomInstances": missing}
            asked = orthanc.call("/modalities/node/storage-commitment", json.dumps(body).encode())
            result = wait_until(
                lambda path=asked["Path"]: (r := orthanc.call(path))["Status"] != "Pending" and r
            )
            assert result["RemoteAET"] == AE_TITLE
            if missing:
                assert result["Status"] == "Failure"
                (failure,) = result["Failures"]
                assert (failure["SOPInstanceUID"], failure["FailureReason"]) == ("1.2.3.4", 0x0112)
            else:
                assert result["Status"] == "Success"
                assert len(result["Success"]) == 3
        wait_until(lambda: node.waiting == 0)
    finally:
        reporter.stop()
