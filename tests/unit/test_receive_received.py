from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from ich_node.receive.received import ReceivedInstance, rebuild
from ich_node.receive.spool import Spool, SpooledObject
from tests.small_objects import PATIENT_NAME, encoded, small_object


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def store(spool: Spool, content: bytes | None = None) -> SpooledObject:
    dataset = small_object()
    return spool.store(
        encoded(dataset) if content is None else content,
        sop_class_uid=CTImageStorage,
        sop_instance_uid=dataset.SOPInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        source_ae_title="SCANNER",
    )


def test_everything_is_handed_on_from_the_spool_alone(spool: Spool) -> None:
    stored = [store(spool) for _ in range(3)]
    received: list[ReceivedInstance] = []
    summary = rebuild(spool, received.append)
    assert (summary.recorded, summary.known, summary.failed) == (3, 0, ())
    assert {one.spooled for one in received} == set(stored)
    for one in received:
        assert one.instance.path == one.spooled.path
        assert one.source_ae_title == "SCANNER"
        assert one.study.patient_name == PATIENT_NAME
        assert one.received_at.tzinfo is not None


def test_what_is_known_is_passed_over(spool: Spool) -> None:
    known, new = store(spool), store(spool)
    received: list[ReceivedInstance] = []
    summary = rebuild(spool, received.append, known={known.file_name})
    assert (summary.recorded, summary.known) == (1, 1)
    assert [one.spooled for one in received] == [new]


def test_what_is_purged_meanwhile_is_no_fault(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    stored = [store(spool) for _ in range(3)]
    purged = min(stored, key=lambda one: one.file_name)  # listed first, gone when it is read

    class Purging:
        def __contains__(self, file_name: object) -> bool:
            purged.path.unlink(missing_ok=True)
            return False

    received: list[ReceivedInstance] = []
    summary = rebuild(spool, received.append, known=Purging())
    assert (summary.recorded, summary.failed) == (2, ())
    assert purged not in {one.spooled for one in received}
    assert caplog.text == ""


def test_one_that_fails_does_not_stop_the_others_and_its_values_stay_out_of_the_log(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable = store(spool, b"not DICOM")
    stored = [store(spool) for _ in range(2)]
    seen: list[str] = []

    def on_instance(received: ReceivedInstance) -> None:
        seen.append(received.spooled.file_name)
        if len(seen) == 1:
            raise RuntimeError(f"row of {received.study.patient_name} not written")

    with caplog.at_level(logging.DEBUG):
        summary = rebuild(spool, on_instance)
    assert summary.recorded == 1
    assert set(summary.failed) == {unreadable.file_name, seen[0]}
    assert set(seen) == {one.file_name for one in stored}
    assert "RuntimeError" in caplog.text
    assert PATIENT_NAME not in caplog.text
