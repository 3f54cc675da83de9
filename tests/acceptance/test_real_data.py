"""Real head CT through the whole node. What the shipped model says of it proves nothing: it was trained on some."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage.transform import resize

from ich_node.testing.series import ct_series
from training.ct_ich import read_scans, read_slice

from .conftest import COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE, Orthanc, RunningNode, wait_until

Store = Callable[..., int]
ASSUMED = (
    "Made from windowed pictures. Pixel spacing 0.45 mm and slice spacing 5 mm are assumed, not measured."
)


def result_classes(node: RunningNode, orthanc: Orthanc, uid: str) -> set[str]:
    """SOP classes that the PACS holds of a study once everything has been sent."""
    wait_until(lambda: node.worklist()[uid]["delivered_at"], "results sent to the PACS", 60)
    return {str(d.SOPClassUID) for d in orthanc.objects(uid)}


@pytest.mark.parametrize("patient", ["049", "085"])
def test_patient_of_ct_ich(
    shared_data: Path, node: RunningNode, orthanc: Orthanc, store: Store, patient: str
) -> None:
    scan = next(s for s in read_scans(shared_data / "ct_ich") if s.patient.zfill(3) == patient)
    slices = [read_slice(scan.folder, number) for number in scan.slice_numbers]
    hu = np.stack([resize(s, (512, 512), order=1, preserve_range=True) for s in slices]).astype(np.float32)
    pixel_mm = 0.45 * slices[0].shape[0] / 512
    images = ct_series(hu, (5.0, pixel_mm, pixel_mm), name=f"ct_ich {patient}", image_comments=ASSUMED)
    assert images[0].ImageComments == ASSUMED
    uid = str(images[0].StudyInstanceUID)
    assert store(images) == 0
    row = node.row_when(uid, "READ", "NOT_READ", "FAILED")
    assert row["state"] == "READ", row
    assert row["priority"] in {"STAT", "HIGH", "ROUTINE"}
    assert result_classes(node, orthanc, uid) == {COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE}
    reading = json.loads(node.cli("study", "show", uid, "--json").stdout)["readings"][0]
    assert [s["sop_instance_uid"] for s in reading["slices"]] == [str(i.SOPInstanceUID) for i in images]


def test_tilted_scan_with_mixed_thickness(
    shared_data: Path, node: RunningNode, orthanc: Orthanc, store: Store
) -> None:
    files = sorted((shared_data / "ge_head_tilted").glob("*.dcm"))
    assert store(files) == 0
    uid = _study_with(node, 28, modality_ae_title="CT01")
    assert node.row_when(uid, "READ", "NOT_READ", "FAILED")["state"] == "READ"
    reading = json.loads(node.cli("study", "show", uid, "--json").stdout)["readings"][0]
    caveats = " ".join(reading["caveats"])
    assert "tilted by 18.5" in caveats
    assert "thickness" in caveats
    assert result_classes(node, orthanc, uid) == {COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE}


def test_study_with_localizer_summaries_and_a_vendor_directory(
    shared_data: Path, node: RunningNode, orthanc: Orthanc, store: Store
) -> None:
    files = sorted(p for p in (shared_data / "philips_head_phantom").glob("S*/*") if p.is_file())
    assert any(p.name == "DIRFILE" for p in files)
    assert store(files, "--no-halt") == 0
    uid = _study_with(node, 54)
    assert node.row_when(uid, "READ", "NOT_READ", "FAILED")["state"] == "READ"
    report = json.loads(node.cli("study", "show", uid, "--json").stdout)
    reasons = sorted(s["exclusion_reason"] or "read" for s in report["series"])
    assert reasons == ["LOCALIZER", "SECONDARY_CAPTURE", "read"]
    assert all(s["exclusion_detail"] for s in report["series"] if s["exclusion_reason"])


def _study_with(node: RunningNode, images: int, **row: str) -> str:
    """The study with a series of so many images; its rows come a moment after the last answer."""

    def found() -> str:
        rows = node.worklist().items()
        return next((u for u, r in rows if row.items() <= r.items() and _has(node, u, images)), "")

    return str(wait_until(found, f"a series of {images} images", 120))


def _has(node: RunningNode, uid: str, images: int) -> bool:
    shown = json.loads(node.cli("study", "show", uid, "--json").stdout)
    return any(s["instances"] == images for s in shown["series"])
