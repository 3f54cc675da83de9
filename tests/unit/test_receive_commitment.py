"""Storage commitment without a network: what is refused, what is kept, and what is reported."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from pynetdicom.dsutils import decode, encode

from ich_node.receive.commitment import ALL_COMMITTED, FAILURES_EXIST, CommitmentDesk, is_confirmed
from ich_node.receive.commitment_folder import (
    CommitmentFolder,
    CommitmentLimits,
    FolderFull,
    PendingCommitment,
    Reference,
    WaitingReport,
    peer_key,
    waiting,
)
from ich_node.receive.commitment_reports import RetrySchedule
from ich_node.receive.commitment_request import (
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    CommitmentRefused,
    read_request,
)
from ich_node.receive.limits import is_valid_uid
from ich_node.receive.spool import Spool
from tests.small_objects import encoded, small_object

TRANSACTION = "1.2.826.0.1.3680043.8.498.9.1"
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now_s = NOON.timestamp()

    def __call__(self) -> float:
        return self.now_s


def reference(number: int = 1, sop_class_uid: str = CTImageStorage) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = f"1.2.3.{number}"
    return item


def request(*items: Dataset, transaction_uid: str = TRANSACTION) -> Dataset:
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = list(items) or [reference()]
    return information


def accept(desk: CommitmentDesk, information: Dataset | None, **changes: Any) -> PendingCommitment:
    values: dict[str, Any] = {
        "action_type": 1,
        "requested_sop_instance_uid": SOP_INSTANCE_UID,
        "calling_ae_title": "CT1",
        "host": "192.0.2.1",
    }
    return desk.accept(information, **{**values, **changes})


def store(spool: Spool, **changes: Any) -> Dataset:
    """Spool an object and return the reference to it."""
    dataset = small_object(**changes)
    spool.store(
        encoded(dataset),
        sop_class_uid=dataset.SOPClassUID,
        sop_instance_uid=dataset.SOPInstanceUID,
        transfer_syntax_uid=dataset.file_meta.TransferSyntaxUID,
        source_ae_title="CT1",
    )
    item = Dataset()
    item.ReferencedSOPClassUID = dataset.SOPClassUID
    item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    return item


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def desk(tmp_path: Path, spool: Spool) -> CommitmentDesk:
    return CommitmentDesk(tmp_path / "commitment", spool, clock=Clock())


def files(desk: CommitmentDesk) -> list[str]:
    return sorted(path.name for path in desk.folder.root.iterdir() if not path.name.startswith("."))


# what is refused


def without(keyword: str) -> Callable[[Dataset], None]:
    return lambda information: delattr(information, keyword)


def changed(keyword: str, value: Any) -> Callable[[Dataset], None]:
    return lambda information: setattr(information, keyword, value)


def in_item(change: Callable[[Dataset], None]) -> Callable[[Dataset], None]:
    return lambda information: change(information.ReferencedSOPSequence[-1])


BAD: list[tuple[Callable[[Dataset], None], int]] = [
    (without("TransactionUID"), 0x0120),
    (changed("TransactionUID", None), 0x0121),
    (changed("TransactionUID", "1.02.3"), 0x0106),
    (changed("TransactionUID", "1." + "2" * 63), 0x0106),
    (changed("TransactionUID", "../../../tmp/evil"), 0x0106),
    (changed("TransactionUID", ["1.2.3", "1.2.4"]), 0x0106),
    (without("ReferencedSOPSequence"), 0x0120),
    (changed("ReferencedSOPSequence", []), 0x0121),
    (changed("ReferencedSOPSequence", [reference(n) for n in range(12)]), 0x0213),
    (in_item(without("ReferencedSOPClassUID")), 0x0120),
    (in_item(without("ReferencedSOPInstanceUID")), 0x0120),
    (in_item(changed("ReferencedSOPInstanceUID", "")), 0x0121),
    (in_item(changed("ReferencedSOPInstanceUID", "1.2.a")), 0x0106),
    (in_item(changed("ReferencedSOPClassUID", "1")), 0x0106),
]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value length")
@pytest.mark.parametrize("number", range(len(BAD)))
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, None])
def test_what_is_wrong_with_a_request_gets_the_status_of_the_standard(
    tmp_path: Path, spool: Spool, number: int, syntax: Any
) -> None:
    desk = CommitmentDesk(tmp_path / "few", spool, limits=CommitmentLimits(max_references=11))
    change, status = BAD[number]
    information = request(reference(1), reference(2))
    change(information)
    if syntax is not None:
        as_sent = encode(information, syntax.is_implicit_VR, True)
        assert as_sent is not None
        information = parsed(as_sent, syntax)
    with pytest.raises(CommitmentRefused) as refused:
        accept(desk, information)
    assert refused.value.status == status
    assert 0 < len(refused.value.comment) <= 64
    assert "evil" not in str(refused.value)
    assert files(desk) == []


def parsed(as_sent: bytes, syntax: Any) -> Dataset:
    return decode(BytesIO(as_sent), syntax.is_implicit_VR, True)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"action_type": 2}, 0x0123),
        ({"action_type": None}, 0x0123),
        ({"requested_sop_instance_uid": "1.2.3"}, 0x0112),
        ({"requested_sop_class_uid": CTImageStorage}, 0x0118),
    ],
)
def test_the_operation_itself_is_checked(desk: CommitmentDesk, changes: dict[str, Any], status: int) -> None:
    with pytest.raises(CommitmentRefused) as refused:
        accept(desk, request(), **changes)
    assert refused.value.status == status
    assert files(desk) == []


def test_no_action_information_and_a_sequence_that_is_none(desk: CommitmentDesk) -> None:
    with pytest.raises(CommitmentRefused) as refused:
        accept(desk, None)
    assert refused.value.status == 0x0120
    odd = Dataset()
    odd.TransactionUID = TRANSACTION
    odd.add_new(0x00081199, "LO", "text")
    with pytest.raises(CommitmentRefused) as refused:
        accept(desk, odd)
    assert refused.value.status == 0x0106


@given(
    damage=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=6),
    syntax=st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian]),
)
def test_damaged_information_is_refused_or_still_makes_sense(
    damage: list[tuple[int, int]], syntax: Any
) -> None:
    as_sent = bytearray(encode(request(reference(1), reference(2)), syntax.is_implicit_VR, True) or b"")
    for at, value in damage:
        as_sent[at % len(as_sent)] = value
    try:
        information = parsed(bytes(as_sent), syntax)
    except Exception:  # answered before it comes here; see the integration test
        return
    try:
        transaction_uid, references = read_request(
            information,
            action_type=1,
            requested_sop_class_uid=SOP_CLASS_UID,
            requested_sop_instance_uid=SOP_INSTANCE_UID,
            max_references=10,
        )
    except CommitmentRefused:
        return
    uids = [
        transaction_uid,
        *(uid for one in references for uid in (one.sop_class_uid, one.sop_instance_uid)),
    ]
    assert len(uids) >= 3
    assert all(is_valid_uid(uid) for uid in uids)


def test_ten_thousand_references_are_taken(desk: CommitmentDesk) -> None:
    pending = accept(desk, request(*(reference(number) for number in range(10_000))))
    assert len(pending.references) == 10_000
    event_type, information = desk.report(pending)
    assert (event_type, len(information.FailedSOPSequence)) == (FAILURES_EXIST, 10_000)


# what is kept


def test_an_accepted_request_is_on_disk_before_it_is_acknowledged(
    desk: CommitmentDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        order.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        real_sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        order.append("rename")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    pending = accept(desk, request())
    assert order == ["file", "rename", "folder"]
    assert files(desk) == [pending.file_name]
    assert (desk.folder.root / pending.file_name).stat().st_mode & 0o077 == 0
    assert desk.folder.root.stat().st_mode & 0o077 == 0
    assert TRANSACTION not in pending.file_name


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 0x0213), (errno.EDQUOT, 0x0213), (errno.EIO, 0x0110)]
)
def test_a_disk_that_refuses_is_answered_with_failure_and_leaves_nothing(
    desk: CommitmentDesk, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(CommitmentRefused) as refused:
            accept(desk, request())
    assert refused.value.status == status
    assert files(desk) == []
    assert accept(desk, request()).claimed


def test_what_is_read_back_is_what_was_asked(desk: CommitmentDesk, tmp_path: Path, spool: Spool) -> None:
    first = accept(desk, request(reference(2), reference(1), reference(2)), calling_ae_title=" CT1 ")
    assert [one.sop_instance_uid for one in first.references] == ["1.2.3.2", "1.2.3.1"]
    desk.postpone(first)
    again = CommitmentDesk(tmp_path / "commitment", spool)
    (report,) = again.folder.reports()
    assert again.folder.claim(report.file_name) == first
    assert first.accepted_at == NOON
    assert (report.peer, report.accepted_s, report.attempted_s) == (
        peer_key("CT1", "::ffff:192.0.2.1"),
        NOON.timestamp(),
        None,
    )


def test_a_request_is_claimed_by_one_at_a_time(desk: CommitmentDesk, tmp_path: Path) -> None:
    pending = accept(desk, request())
    other = CommitmentFolder(tmp_path / "commitment")
    assert other.claim(pending.file_name) is None
    desk.postpone(pending)
    assert other.claim(pending.file_name) == pending
    assert desk.folder.claim(pending.file_name) is None
    other.remove(pending.file_name)
    assert desk.folder.claim(pending.file_name) is None
    assert files(desk) == []


_DIES_WITH_A_CLAIM = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from ich_node.receive.commitment_folder import CommitmentFolder, Reference
folder = CommitmentFolder(Path(sys.argv[1]))
folder.add(transaction_uid="1.2.9", calling_ae_title="CT1", host="192.0.2.1", accepted_at=datetime.now(UTC),
           references=[Reference(sop_class_uid="1.2.840.10008.5.1.4.1.1.2", sop_instance_uid="1.2.3.1")])
(folder.root / "1-ab.part").write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_gives_the_claim_back_and_leaves_nothing_half(tmp_path: Path) -> None:
    folder = tmp_path / "commitment"
    died = subprocess.run([sys.executable, "-c", _DIES_WITH_A_CLAIM, str(folder)], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    assert (folder / "1-ab.part").exists()
    after = CommitmentFolder(folder)
    assert not (folder / "1-ab.part").exists()
    (report,) = after.reports()
    pending = after.claim(report.file_name)
    assert pending is not None
    assert pending.transaction_uid == "1.2.9"


def test_the_same_request_again_is_one(desk: CommitmentDesk, tmp_path: Path, spool: Spool) -> None:
    first = accept(desk, request(reference(1), reference(2)))
    while_reported = accept(desk, request(reference(2), reference(1)))
    assert (while_reported.file_name, while_reported.claimed) == (first.file_name, False)
    assert while_reported.references == first.references
    desk.postpone(first)
    assert accept(desk, request(reference(1), reference(2))) == first
    assert files(desk) == [first.file_name]
    desk.reported(first)
    assert not accept(desk, request(reference(1), reference(2))).duplicate_transaction


def test_a_transaction_uid_in_use_for_other_objects_fails_them_all(
    desk: CommitmentDesk, spool: Spool
) -> None:
    here = store(spool)
    first = accept(desk, request(here))
    second = accept(desk, request(here, reference(2)))
    other_peer = accept(desk, request(here, reference(2)), calling_ae_title="CT2")
    assert [p.duplicate_transaction for p in (first, second, other_peer)] == [False, True, False]
    assert desk.report(first)[0] == ALL_COMMITTED
    event_type, information = desk.report(second)
    assert event_type == FAILURES_EXIST
    assert [item.FailureReason for item in information.FailedSOPSequence] == [0x0131, 0x0131]
    assert "ReferencedSOPSequence" not in information
    assert [i.FailureReason for i in desk.report(other_peer)[1].FailedSOPSequence] == [0x0112]
    desk.postpone(second)
    claimed_again = desk.folder.claim(second.file_name)
    assert claimed_again == second


def test_pending_requests_are_bounded(tmp_path: Path, spool: Spool) -> None:
    limits = CommitmentLimits(max_waiting_per_peer=2, max_waiting=3)
    desk = CommitmentDesk(tmp_path / "commitment", spool, limits=limits)

    def ask(number: int, ae_title: str) -> PendingCommitment:
        return accept(desk, request(transaction_uid=f"1.2.3.{number}"), calling_ae_title=ae_title)

    ask(1, "CT1")
    second = ask(2, "CT1")
    with pytest.raises(CommitmentRefused, match="of this peer") as refused:
        ask(3, "CT1")
    assert refused.value.status == 0x0213
    ask(3, "CT2")
    with pytest.raises(CommitmentRefused) as refused:
        ask(4, "CT3")
    assert refused.value.status == 0x0213
    assert not ask(2, "CT1").claimed  # what is pending already is no new one
    desk.reported(second)
    ask(4, "CT3")


def test_their_bytes_are_bounded(tmp_path: Path) -> None:
    folder = CommitmentFolder(tmp_path / "commitment", CommitmentLimits(max_bytes=100))
    values: dict[str, Any] = {
        "calling_ae_title": "CT1",
        "host": "192.0.2.1",
        "accepted_at": NOON,
        "references": [Reference(sop_class_uid=CTImageStorage, sop_instance_uid="1.2.3.1")],
    }
    folder.add(transaction_uid="1.2.1", **values)
    with pytest.raises(FolderFull):
        folder.add(transaction_uid="1.2.2", **values)


def test_a_damaged_file_is_set_aside_and_the_others_go_on(
    desk: CommitmentDesk, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = accept(desk, request()), accept(desk, request(transaction_uid="1.2.4"))
    for pending in (good, bad):
        desk.postpone(pending)
    (desk.folder.root / bad.file_name).write_text('{"transaction_uid": 1}')
    assert desk.folder.claim(bad.file_name) is None
    assert [report.file_name for report in desk.folder.reports()] == [good.file_name]
    assert f"{bad.file_name}.dead" in files(desk)
    assert "damaged" in caplog.text
    assert not desk.folder.holds(bad.file_name)


def test_what_was_given_up_stays_visible_and_bounded(tmp_path: Path, spool: Spool) -> None:
    clock = Clock()
    desk = CommitmentDesk(tmp_path / "commitment", spool, limits=CommitmentLimits(max_dead=2), clock=clock)
    for number in range(4):
        clock.now_s += 60
        pending = accept(desk, request(transaction_uid=f"1.2.3.{number}"))
        if number < 3:
            desk.folder.give_up(pending.file_name)
    counts = waiting(desk.folder.root)
    assert (counts.waiting, counts.dead) == (1, 2)
    assert counts.oldest_accepted_at == NOON + timedelta(minutes=4)
    assert waiting(tmp_path / "absent").waiting == 0


# what is reported


def test_what_the_spool_holds_is_committed(desk: CommitmentDesk, spool: Spool) -> None:
    items = [store(spool) for _ in range(3)]
    event_type, information = desk.report(accept(desk, request(*items)))
    assert event_type == ALL_COMMITTED
    assert information.TransactionUID == TRANSACTION
    assert [i.ReferencedSOPInstanceUID for i in information.ReferencedSOPSequence] == [
        i.ReferencedSOPInstanceUID for i in items
    ]
    assert {i.ReferencedSOPClassUID for i in information.ReferencedSOPSequence} == {CTImageStorage}
    assert "FailedSOPSequence" not in information
    assert "RetrieveAETitle" not in information


def test_what_is_not_here_fails_with_its_reason(desk: CommitmentDesk, spool: Spool) -> None:
    here, other_class = store(spool), store(spool)
    other_class.ReferencedSOPClassUID = MRImageStorage
    event_type, information = desk.report(accept(desk, request(here, other_class, reference(77))))
    assert event_type == FAILURES_EXIST
    assert [i.ReferencedSOPInstanceUID for i in information.ReferencedSOPSequence] == [
        here.ReferencedSOPInstanceUID
    ]
    assert [
        (i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID, i.FailureReason)
        for i in information.FailedSOPSequence
    ] == [
        (MRImageStorage, other_class.ReferencedSOPInstanceUID, 0x0119),
        (CTImageStorage, "1.2.3.77", 0x0112),
    ]


def test_an_object_that_comes_after_the_request_is_committed(desk: CommitmentDesk, spool: Spool) -> None:
    pending = accept(desk, request(reference(5)))
    assert desk.report(pending)[0] == FAILURES_EXIST
    store(spool, SOPInstanceUID="1.2.3.5")
    assert desk.report(pending)[0] == ALL_COMMITTED


def test_conflicting_objects_are_committed_where_one_has_the_class(
    desk: CommitmentDesk, spool: Spool
) -> None:
    store(spool, SOPInstanceUID="1.2.3.5", InstanceNumber=1)
    store(spool, SOPInstanceUID="1.2.3.5", InstanceNumber=2)
    store(spool, SOPInstanceUID="1.2.3.5", sop_class_uid=MRImageStorage)
    items = [reference(5), reference(5, MRImageStorage), reference(5, "1.2.840.10008.5.1.4.1.1.7")]
    _, information = desk.report(accept(desk, request(*items)))
    assert [i.ReferencedSOPClassUID for i in information.ReferencedSOPSequence] == [
        CTImageStorage,
        MRImageStorage,
    ]
    assert [i.FailureReason for i in information.FailedSOPSequence] == [0x0119]


def test_an_unreadable_spool_is_a_processing_failure(
    desk: CommitmentDesk, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    here, damaged = store(spool), store(spool)
    (path,) = spool.files_of(damaged.ReferencedSOPInstanceUID)
    path.write_bytes(b"not DICOM at all")
    _, information = desk.report(accept(desk, request(here, damaged)))
    assert [i.FailureReason for i in information.FailedSOPSequence] == [0x0110]
    assert len(information.ReferencedSOPSequence) == 1
    assert damaged.ReferencedSOPInstanceUID not in caplog.text


def test_what_cannot_be_made_durable_is_not_committed(
    desk: CommitmentDesk, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = accept(desk, request(store(spool)))

    def broken(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    _, information = desk.report(pending)
    assert [i.FailureReason for i in information.FailedSOPSequence] == [0x0110]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_the_report_as_a_message(desk: CommitmentDesk, spool: Spool, syntax: Any) -> None:
    message = desk.event_report(accept(desk, request(store(spool))), 7, syntax)
    assert message.is_valid_request
    assert (message.MessageID, message.EventTypeID) == (7, ALL_COMMITTED)
    assert message.AffectedSOPClassUID == SOP_CLASS_UID
    assert message.AffectedSOPInstanceUID == SOP_INSTANCE_UID
    assert message.EventInformation is not None
    information = parsed(message.EventInformation.getvalue(), syntax)
    assert information.TransactionUID == TRANSACTION


def test_which_answers_confirm() -> None:
    assert [
        status for status in (0x0000, 0x0107, 0xB123, 0x0110, 0x0112, 0xC000) if is_confirmed(status)
    ] == [
        0x0000,
        0x0107,
        0xB123,
    ]
    assert not is_confirmed(None)


def test_nothing_identifying_is_logged(
    desk: CommitmentDesk, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        item = store(spool)
        pending = accept(desk, request(item))
        desk.report(pending)
        desk.reported(pending)
    assert pending.file_name in caplog.text
    assert TRANSACTION not in caplog.text
    assert item.ReferencedSOPInstanceUID not in caplog.text


# when a peer is called again


def waiting_report(attempted_s: float | None) -> WaitingReport:
    return WaitingReport(file_name="", peer="", accepted_s=1000.0, attempted_s=attempted_s)


@pytest.mark.parametrize(
    ("attempted_s", "now_s", "due_s"),
    [
        (None, 1200.0, 1200.0),
        (1000.1, 1001.0, 1005.1),
        (1005.1, 1010.0, 1010.2),
        (1010.2, 1200.0, 1020.4),
        (1100.0, 1101.0, 1200.0),
        (8200.0, 8300.0, 11800.0),
        (8200.0, 1200.0, 1200.0),  # the clock was wrong when that was noted, or is now
    ],
)
def test_the_wait_doubles_up_to_an_hour(attempted_s: float | None, now_s: float, due_s: float) -> None:
    assert RetrySchedule().due_s(waiting_report(attempted_s), now_s) == pytest.approx(due_s)


def test_a_peer_is_given_up_after_days_and_a_last_call() -> None:
    schedule = RetrySchedule()
    assert schedule.give_up_s >= 72 * 3600
    end_s = 1000.0 + schedule.give_up_s
    before, after = waiting_report(end_s - 60), waiting_report(end_s + 60)
    assert not schedule.is_over(before, end_s - 1, can_be_called=False)
    assert schedule.is_over(before, end_s + 1, can_be_called=False)
    assert not schedule.is_over(before, end_s + 1, can_be_called=True)
    assert schedule.is_over(after, end_s + 61, can_be_called=True)
