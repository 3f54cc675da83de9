"""Storage commitment that this node asks for, without a network: what is read, kept and concluded."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage
from pynetdicom.dsutils import decode, encode

from ich_node.deliver import commitment
from ich_node.deliver.commitment import request_commitment
from ich_node.deliver.scu import Destination
from ich_node.receive.commitment_event import EventStatus, ReportRefused, read_report
from ich_node.receive.commitment_folder import FolderFull, Reference, locked
from ich_node.receive.commitment_request import SOP_CLASS_UID, SOP_INSTANCE_UID
from ich_node.receive.commitment_results import (
    CommitmentReport,
    CommitmentResult,
    CommitmentResults,
    FailedReference,
    ResultLimits,
    results_folder,
)
from ich_node.receive.limits import is_valid_uid
from tests.commitment_answers import not_committed

TRANSACTION = "2.25.77"
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SR, SC = str(ComprehensiveSRStorage), str(SecondaryCaptureImageStorage)


def reference(number: int, sop_class_uid: str = SR) -> Reference:
    return Reference(sop_class_uid=sop_class_uid, sop_instance_uid=f"1.2.3.{number}")


def failed(number: int, reason: int | None = 0x0112) -> FailedReference:
    return FailedReference(reference=reference(number), failure_reason=reason)


def report(
    *committed: int, failures: tuple[FailedReference, ...] = (), transaction: str = TRANSACTION
) -> Any:
    return CommitmentReport(
        transaction_uid=transaction, committed=tuple(map(reference, committed)), failed=failures
    )


def item(number: int, **more: Any) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID = SR
    made.ReferencedSOPInstanceUID = f"1.2.3.{number}"
    for keyword, value in more.items():
        setattr(made, keyword, value)
    return made


def information(committed: list[Dataset] | None, failures: list[Dataset] | None = None) -> Dataset:
    made = Dataset()
    made.TransactionUID = TRANSACTION
    if committed is not None:
        made.ReferencedSOPSequence = committed
    if failures is not None:
        made.FailedSOPSequence = failures
    return made


def read(content: Dataset, **changes: Any) -> CommitmentReport:
    values: dict[str, Any] = {
        "event_type": 2,
        "affected_sop_class_uid": SOP_CLASS_UID,
        "affected_sop_instance_uid": SOP_INSTANCE_UID,
        "max_references": 10,
    }
    return read_report(content, **{**values, **changes})


def add(results: CommitmentResults, content: CommitmentReport, **changes: Any) -> CommitmentResult:
    values: dict[str, Any] = {"calling_ae_title": "PACS", "host": "192.0.2.9", "received_at": NOON}
    return results.add(content, **{**values, **changes})


# what a report says


@pytest.mark.parametrize("implicit", [True, False])
def test_a_report_is_read(implicit: bool) -> None:
    content = information([item(1), item(2)], [item(3, FailureReason=0x0112), item(4)])
    content.RetrieveAETitle = "PACS"
    encoded = encode(content, implicit, is_little_endian=True)
    assert encoded is not None
    assert read(decode(BytesIO(encoded), implicit, True)) == report(
        1, 2, failures=(failed(3), failed(4, None))
    )


def test_what_is_called_committed_and_failed_has_failed() -> None:
    assert read(information([item(1), item(2)], [item(2, FailureReason=0x0110)])) == report(
        1, failures=(failed(2, 0x0110),)
    )


def test_an_empty_sequence_of_failures_says_nothing() -> None:
    assert read(information([item(1), item(1)], []), event_type=1) == report(1)


BAD: list[tuple[Dataset, dict[str, Any], EventStatus]] = [
    (information([item(1)]), {"event_type": 3}, EventStatus.NO_SUCH_EVENT_TYPE),
    (information([item(1)]), {"event_type": None}, EventStatus.NO_SUCH_EVENT_TYPE),
    (information([item(1)]), {"affected_sop_class_uid": "1.2.3"}, EventStatus.NO_SUCH_SOP_CLASS),
    (information([item(1)]), {"affected_sop_instance_uid": "1.2.3"}, EventStatus.NO_SUCH_SOP_INSTANCE),
    (Dataset(), {}, EventStatus.INVALID_ARGUMENT_VALUE),
    (information(None), {}, EventStatus.INVALID_ARGUMENT_VALUE),
    (information([], []), {}, EventStatus.INVALID_ARGUMENT_VALUE),
    (information([Dataset()]), {}, EventStatus.INVALID_ARGUMENT_VALUE),
    (information([item(number) for number in range(11)]), {}, EventStatus.RESOURCE_LIMITATION),
    (information([item(1)] * 6, [item(n) for n in range(5)]), {}, EventStatus.RESOURCE_LIMITATION),
]


@pytest.mark.parametrize(("content", "changes", "status"), BAD)
def test_what_is_wrong_has_its_status(content: Dataset, changes: dict[str, Any], status: EventStatus) -> None:
    with pytest.raises(ReportRefused) as refused:
        read(content, **changes)
    assert refused.value.status == status
    assert 0 < len(refused.value.comment) <= 64
    assert "1.2.3" not in str(refused.value)


def test_a_uid_that_breaks_the_rules_is_not_quoted() -> None:
    encoded = encode(information([item(1)]), False, True)
    assert encoded is not None
    damaged = encoded.replace(b"1.2.3.1\0", b"1.02.3.1")
    with pytest.raises(ReportRefused, match="is not a valid UID") as refused:
        read(decode(BytesIO(damaged), False, True))
    assert refused.value.status == EventStatus.INVALID_ARGUMENT_VALUE
    assert "1.02" not in str(refused.value)


@given(st.binary(max_size=200), st.booleans(), st.integers(0, 250))
def test_any_damage_is_refused_or_leaves_valid_uids(garbage: bytes, implicit: bool, at: int) -> None:
    encoded = encode(information([item(1), item(2)], [item(3, FailureReason=0x0112)]), implicit, True)
    assert encoded is not None
    damaged = encoded[:at] + garbage + encoded[at + len(garbage) :]
    try:
        found = read(decode(BytesIO(damaged), implicit, True))
    except ReportRefused:
        return
    except Exception:  # decode itself, which the reception catches
        return
    named = [*found.committed, *(one.reference for one in found.failed)]
    assert named
    assert is_valid_uid(found.transaction_uid)
    assert all(is_valid_uid(one.sop_class_uid) and is_valid_uid(one.sop_instance_uid) for one in named)


# what is kept

_WRITER = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from ich_node.receive.commitment_folder import Reference
from ich_node.receive.commitment_results import CommitmentReport, CommitmentResults

results = CommitmentResults(Path(sys.argv[1]))
{prepare}
one = Reference(sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33", sop_instance_uid="1.2.3.1")
report = CommitmentReport(transaction_uid="2.25.77", committed=(one,), failed=())
results.add(report, calling_ae_title="OTHER", host="192.0.2.9", received_at=datetime.now(UTC))
"""


def test_a_result_comes_back_until_it_is_removed(tmp_path: Path) -> None:
    results = CommitmentResults(tmp_path / "results")
    kept = add(results, report(1, failures=(failed(2), failed(3, None))))
    again = CommitmentResults(tmp_path / "results")
    assert again.read() == again.read() == (kept,)
    assert (kept.calling_ae_title, kept.host, kept.received_at) == ("PACS", "192.0.2.9", NOON)
    results.remove(again.read())
    results.remove([kept])
    assert again.read() == ()


def test_the_same_again_is_kept_once(tmp_path: Path) -> None:
    results = CommitmentResults(tmp_path)
    first = add(results, report(1))
    assert add(results, report(1), received_at=NOON + timedelta(hours=1)) == first
    assert results.read() == (first,)


def test_what_was_said_last_comes_last_even_if_the_clock_is_set_back(tmp_path: Path) -> None:
    results = CommitmentResults(tmp_path)
    said = [report(failures=(failed(1),)), report(1), report(failures=(failed(1),))]
    for minutes, content in enumerate(said):
        add(results, content, received_at=NOON - timedelta(minutes=minutes))
    assert [one.report for one in results.read()] == said


def test_a_result_that_cannot_be_read_keeps_no_other_back(tmp_path: Path) -> None:
    results = CommitmentResults(tmp_path)
    first, second = add(results, report(1)), add(results, report(2, transaction="2.25.78"))
    (tmp_path / first.file_name).unlink()
    (tmp_path / first.file_name).mkdir()
    assert results.read() == (second,)
    assert (tmp_path / first.file_name).is_dir()


def test_peers_and_transactions_are_kept_apart(tmp_path: Path) -> None:
    results = CommitmentResults(tmp_path)
    kept = [
        add(results, report(1)),
        add(results, report(1), calling_ae_title="OTHER"),
        add(results, report(1), host="192.0.2.10"),
        add(results, report(1, transaction="2.25.78")),
    ]
    assert results.read() == tuple(kept)
    assert results.read(most=3) == tuple(kept[:3])


def test_there_are_bounds(tmp_path: Path) -> None:
    results = CommitmentResults(tmp_path / "number", ResultLimits(max_waiting_per_peer=2, max_waiting=3))
    kept = [add(results, report(1, transaction=f"2.25.{number}")) for number in range(2)]
    with pytest.raises(FolderFull, match="of this peer"):
        add(results, report(2))
    kept.append(add(results, report(1), calling_ae_title="OTHER"))
    with pytest.raises(FolderFull):
        add(results, report(1), calling_ae_title="THIRD")
    assert add(results, report(1, transaction="2.25.1")) == kept[1]  # the same again needs no room
    results.remove(kept[:1])
    add(results, report(2))
    heavy = CommitmentResults(tmp_path / "size", ResultLimits(max_bytes=100))
    add(heavy, report(1, 2, 3))
    with pytest.raises(FolderFull):
        add(heavy, report(4))


def test_what_is_damaged_is_set_aside_and_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = CommitmentResults(tmp_path, ResultLimits(max_dead=2))
    whole = add(results, report(9, transaction="2.25.9"))
    for number, content in enumerate([b"", b"[]", b'{"host": 1}']):
        damaged = add(results, report(number))
        (tmp_path / damaged.file_name).write_bytes(content)
    assert results.read() == results.read() == (whole,)
    assert len(list(tmp_path.glob("*.dead"))) == 2
    assert caplog.text.count("is damaged and set aside") == 3


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_disk_that_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    results = CommitmentResults(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync") if failing == "fsync" else (Path, "rename")), refuse)
        with pytest.raises(OSError, match="No space"):
            add(results, report(1))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert add(results, report(1)) in results.read()


def test_what_a_crash_leaves_half_written_goes(tmp_path: Path) -> None:
    kept = add(CommitmentResults(tmp_path), report(1))
    dying = _WRITER.format(prepare="Path.rename = lambda *_: os._exit(9)")
    assert subprocess.run([sys.executable, "-c", dying, str(tmp_path)], check=False).returncode == 9
    assert len(list(tmp_path.glob("*.part"))) == 1
    again = CommitmentResults(tmp_path)
    assert again.read() == (kept,)
    assert list(tmp_path.glob("*.part")) == []


def test_a_report_is_durable_before_it_has_its_name_and_its_name_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = CommitmentResults(tmp_path)
    order: list[str] = []
    synchronize, rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        is_folder = Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path.resolve()
        order.append("folder" if is_folder else "file")
        synchronize(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        order.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    add(results, report(1))
    assert order == ["file", "rename", "folder"]


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    results = CommitmentResults(tmp_path)
    waiting = _WRITER.format(prepare="print('ready', flush=True); sys.stdin.readline()")
    process = subprocess.Popen(
        [sys.executable, "-c", waiting, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with locked(tmp_path):
        process.stdin.write(b"go on\n")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        assert results.read() == ()
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert [one.report for one in results.read()] == [report(1)]


def test_results_lie_beside_the_requests_of_others(tmp_path: Path) -> None:
    assert results_folder(tmp_path / "commitment") == tmp_path / "commitment-results"


# what follows


def test_only_what_a_result_commits_to_is_committed(tmp_path: Path) -> None:
    result = add(CommitmentResults(tmp_path), report(1, 2, failures=(failed(3), failed(4, 0x9999))))
    asked = [(SR, "1.2.3.1"), (SC, "1.2.3.2"), (SR, "1.2.3.3"), (SR, "1.2.3.4"), (SR, "1.2.3.5")]
    assert not_committed(asked[:1], result) == {}
    assert not_committed(asked, result) == {
        "1.2.3.2": "not in the report",  # it is, with another SOP class
        "1.2.3.3": "0x0112 no such object instance",
        "1.2.3.4": "0x9999 unknown reason",
        "1.2.3.5": "not in the report",
    }
    assert failed(1, None).words == "no reason given"


def test_nothing_is_no_request(tmp_path: Path) -> None:
    nowhere = Destination(name="the PACS", ae_title="PACS", host="127.0.0.1", port=1)
    with pytest.raises(ValueError, match="one object at least"):
        request_commitment([], TRANSACTION, nowhere, results=CommitmentResults(tmp_path))


def test_an_answer_of_another_service_is_none(tmp_path: Path) -> None:
    class Odd:
        def bind(self, *_: Any) -> None: ...

        def send_n_action(self, *_: Any) -> Any:
            raise AttributeError("'C_STORE' object has no attribute 'ActionReply'")  # pynetdicom's own

    asked = commitment._Request(Dataset(), TRANSACTION, CommitmentResults(tmp_path), 0.0)
    assert asked.run(Odd(), 1) == Dataset()  # type: ignore[arg-type]
