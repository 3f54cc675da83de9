"""A head CT goes in by DCMTK's storescu; SR and SC arrive in Orthanc and the flag is in SQL."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pydicom
import pytest

from ich_node.findings import IchSubtype
from ich_node.testing.phantom import head_phantom
from ich_node.testing.series import localizer_series, phantom_series

from .conftest import COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE, Orthanc, RunningNode, wait_until

Store = Callable[..., int]


def kinds(objects: Sequence[pydicom.Dataset]) -> dict[str, int]:
    classes = [str(d.SOPClassUID) for d in objects]
    return {"sr": classes.count(COMPREHENSIVE_3D_SR), "sc": classes.count(SECONDARY_CAPTURE)}


def delivered(node: RunningNode, uid: str) -> dict[str, Any]:
    """The study's row once every result has been sent."""
    node.row_when(uid, "READ")
    return dict(
        wait_until(
            lambda: (row := node.worklist()[uid])["delivered_at"] and row, "results sent to the PACS", 60
        )
    )


@pytest.mark.parametrize(
    ("name", "bleeds", "priorities"),
    [
        ("bleed", (IchSubtype.INTRAPARENCHYMAL, IchSubtype.INTRAVENTRICULAR), {"STAT", "HIGH"}),
        ("normal", (), {"ROUTINE"}),
    ],
)
def test_study_is_read_flagged_and_reported(
    node: RunningNode,
    orthanc: Orthanc,
    store: Store,
    name: str,
    bleeds: Sequence[IchSubtype],
    priorities: set[str],
) -> None:
    images = phantom_series(
        head_phantom(bleeds=bleeds, seed=21),
        name=f"acceptance-{name}",
        accession_number="A-1",
        patient_id="P-1",
    )
    uid = str(images[0].StudyInstanceUID)
    assert store(images) == 0
    row = delivered(node, uid)
    assert row["priority"] in priorities
    assert (row["flagged_at"] is not None) == (row["priority"] in {"STAT", "HIGH"})
    assert row["accession_number"] == "A-1"
    assert row["modality_ae_title"] == "CT01"
    assert 0 <= row["suspicion"] <= 1
    objects = orthanc.objects(uid)
    found = kinds(objects)
    assert found["sr"] == 1
    assert found["sc"] >= 1
    report = next(d for d in objects if d.SOPClassUID == COMPREHENSIVE_3D_SR)
    assert report.SOPInstanceUID == row["sr_sop_instance_uid"]
    assert report.PatientID == "P-1"
    assert report.AccessionNumber == "A-1"
    sources = {str(image.SOPInstanceUID) for image in images}
    assert sources <= {str(e.value) for e in report.iterall() if e.keyword == "ReferencedSOPInstanceUID"}


def test_localizer_alone_is_not_read_and_not_negative(
    node: RunningNode, orthanc: Orthanc, store: Store
) -> None:
    images = localizer_series(head_phantom(seed=22, rows=256, columns=256), name="acceptance-localizer")
    uid = str(images[0].StudyInstanceUID)
    assert store(images) == 0
    row = node.row_when(uid, "NOT_READ")
    assert (row["priority"], row["reason"], row["suspicion"]) == ("MEDIUM", "LOCALIZER", None)
    assert orthanc.objects(uid) == []


def test_killed_worker_costs_nothing(node: RunningNode, orthanc: Orthanc, store: Store) -> None:
    """``kill -9`` of the reading worker with all its children while it reads: read once, one SR, one SC set."""
    images = phantom_series(head_phantom(bleeds=(IchSubtype.SUBDURAL,), seed=23), name="acceptance-killed")
    uid = str(images[0].StudyInstanceUID)
    assert store(images) == 0
    node.row_when(uid, "READING")
    os.killpg(node.part_pid("worker-read"), signal.SIGKILL)
    assert node.worklist()[uid]["state"] == "READING", "the study was read before the worker could be killed"
    row = delivered(node, uid)
    shown = node.cli("study", "show", uid, "--json")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count('"run_number"') == 1
    objects = orthanc.objects(uid)
    assert kinds(objects)["sr"] == 1
    series = {str(d.SeriesInstanceUID) for d in objects if d.SOPClassUID == SECONDARY_CAPTURE}
    assert len(series) == 1
    assert row["sr_sop_instance_uid"] in {str(d.SOPInstanceUID) for d in objects}


def test_late_slices_make_a_new_reading_that_supersedes(
    node: RunningNode, orthanc: Orthanc, store: Store
) -> None:
    images = phantom_series(head_phantom(seed=24), name="acceptance-late")
    uid = str(images[0].StudyInstanceUID)
    assert store(images[:-4]) == 0
    first = delivered(node, uid)
    assert store(images[-4:]) == 0
    wait_until(
        lambda: node.worklist()[uid]["sr_sop_instance_uid"] != first["sr_sop_instance_uid"],
        "a second reading",
    )
    second = delivered(node, uid)
    report = next(d for d in orthanc.objects(uid) if d.SOPInstanceUID == second["sr_sop_instance_uid"])
    predecessors = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert [str(p.ReferencedSOPInstanceUID) for p in predecessors] == [first["sr_sop_instance_uid"]]


def test_reprocess_from_the_command_line(node: RunningNode, orthanc: Orthanc, store: Store) -> None:
    images = phantom_series(head_phantom(seed=25, rows=256, columns=256), name="acceptance-reprocess")
    uid = str(images[0].StudyInstanceUID)
    assert store(images) == 0
    first = delivered(node, uid)
    assert node.cli("reprocess", uid, "--dry-run").stdout == f"would read {uid}\n"
    asked = node.cli("reprocess", uid)
    assert asked.returncode == 0, asked.stderr
    wait_until(lambda: node.worklist()[uid]["sr_sop_instance_uid"] != first["sr_sop_instance_uid"], "run 2")
    delivered(node, uid)
    assert kinds(orthanc.objects(uid))["sr"] == 2
    assert node.cli("reprocess", "1.2.3.4").returncode == 1
    assert node.cli("reprocess").returncode == 2


def test_duplicate_objects_are_one_study_read_once(node: RunningNode, orthanc: Orthanc, store: Store) -> None:
    images = phantom_series(head_phantom(seed=26, rows=256, columns=256), name="acceptance-duplicates")
    uid = str(images[0].StudyInstanceUID)
    assert store(images) == 0
    first = delivered(node, uid)
    assert store(images) == 0
    # A study sent afterwards has been read: whatever the duplicates set off would have come before it.
    later = phantom_series(head_phantom(seed=27, rows=256, columns=256), name="acceptance-after-duplicates")
    assert store(later) == 0
    delivered(node, str(later[0].StudyInstanceUID))
    assert node.worklist()[uid]["read_at"] == first["read_at"]
    assert kinds(orthanc.objects(uid))["sr"] == 1


def test_doctor_finds_a_healthy_node(node: RunningNode) -> None:
    result = node.cli("doctor", "--json")
    assert '"FAULT"' not in result.stdout
    import json

    checks = {check["name"]: check for check in json.loads(result.stdout)}
    healthy = {name: check["found"] for name, check in checks.items() if not check["ok"]}
    assert not healthy.keys() & {"disk", "database", "workers", "model", "receiver", "PACS orthanc"}, healthy
