"""Judges that are not ours on segmentation and parametric map: dciodvfy (dicom3tools) and highdicom's readers."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from ich_node.findings import IchSubtype
from ich_node.report import ReadingReport
from ich_node.report.parametric_map import build_parametric_map
from ich_node.report.segmentation import build_segmentation
from ich_node.testing.phantom import head_phantom
from ich_node.testing.series import phantom_series
from tests.enhanced_builders import enhanced_report
from tests.report_builders import READ_AT, make_report, real_report, series_finding

ACCEPTED_WARNINGS = {
    r"Missing attribute or value that would be needed to build DICOMDIR - .*": (
        "the source images lack it, and nothing is invented"
    ),
    r"Value dubious for this VR - \(0x0010,0x0010\) PN Patient's Name .* - Retired Person Name form": (
        "the name is the source's, without component separators"
    ),
    r"Unrecognized defined term <QUANTITY> for value 4 of attribute <(Image|Frame) Type>": (
        "the term that PS3.3 C.8.32.2 defines for parametric maps"
    ),
}
KINDS = ("phantom", "tilted", "thin and thick", "poor", "enhanced", "enhanced in two")
CASES = ("several classes", "any alone", "second run")


def _phantom() -> ReadingReport:
    phantom = head_phantom(bleeds=[IchSubtype.INTRAPARENCHYMAL], slices=12, rows=128, columns=128)
    images: list[Dataset] = list(phantom_series(phantom))
    for image in images:
        del image.PixelData
    return ReadingReport(
        finding=series_finding(phantom.hu.shape),
        source_images=images,
        hu=phantom.hu,
        spacing_mm=phantom.spacing_mm,
        run_number=1,
        read_at=READ_AT,
    )


def _poor() -> ReadingReport:
    missing = ["PatientBirthDate", "StudyID", "AccessionNumber", "PatientName", "ReferringPhysicianName"]
    missing += ["SpecificCharacterSet", "SliceThickness", "PositionReferenceIndicator"]
    return make_report(header=dict.fromkeys(missing))


def _stereotactic(data: Path) -> list[Path]:
    """A series with thin and thick slices and uneven gaps."""
    paths = [path for path in sorted((data / "philips_head_phantom").rglob("*")) if path.is_file()]
    headers = {path: dcmread(path, stop_before_pixels=True, force=True) for path in paths}
    return [
        path
        for path, header in headers.items()
        if header.get("SeriesDescription") == "STEREOTAXIS" and "AXIAL" in header.get("ImageType", [])
    ]


@pytest.fixture(scope="module", params=KINDS)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReadingReport:
    """A positive reading on one kind of header."""
    if request.param == "phantom":
        return _phantom()
    if request.param == "poor":
        return _poor()
    if request.param.startswith("enhanced"):
        objects = 2 if request.param == "enhanced in two" else 1
        return enhanced_report(tmp_path_factory.mktemp("enhanced"), objects=objects)
    data: Path = request.getfixturevalue("shared_data")
    tilted = sorted((data / "ge_head_tilted").glob("*.dcm"))
    return real_report(tilted if request.param == "tilted" else _stereotactic(data))


@pytest.fixture(params=[build_segmentation, build_parametric_map], ids=["segmentation", "parametric map"])
def build(request: pytest.FixtureRequest) -> Callable[[ReadingReport], Dataset | None]:
    found: Callable[[ReadingReport], Dataset | None] = request.param
    return found


def _in_case(report: ReadingReport, case: str) -> ReadingReport:
    if case == "any alone":
        return replace(report, finding=series_finding(report.hu.shape, 0.5, with_subtypes=False))
    return replace(report, run_number=2 if case == "second run" else 1)


def _saved(result: Dataset | None, folder: Path) -> Path:
    assert result is not None
    path = folder / "result.dcm"
    result.save_as(path, enforce_file_format=True)
    return path


def _complaints(path: Path) -> list[str]:
    """What dciodvfy says against a file, apart from what is accounted for."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    run = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60, check=False)
    return [
        line
        for line in (run.stdout + run.stderr).splitlines()
        if line.startswith("Error")
        or (
            line.startswith("Warning")
            and not any(re.fullmatch(rf"Warning - {known}\s*", line) for known in ACCEPTED_WARNINGS)
        )
    ]


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_valid(
    report: ReadingReport, build: Callable[[ReadingReport], Dataset | None], case: str, tmp_path: Path
) -> None:
    assert _complaints(_saved(build(_in_case(report, case)), tmp_path)) == []


def test_the_segmentation_is_valid_without_compression(report: ReadingReport, tmp_path: Path) -> None:
    """As it goes to a PACS that does not take RLE Lossless."""
    path = _saved(build_segmentation(report), tmp_path)
    segmentation = dcmread(path)
    compressed = segmentation.pixel_array
    segmentation.decompress(generate_instance_uid=False)
    assert segmentation.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    segmentation.save_as(path, enforce_file_format=True)
    assert _complaints(path) == []
    np.testing.assert_array_equal(dcmread(path).pixel_array, compressed)


def test_highdicom_reads_every_frame_where_it_belongs(
    report: ReadingReport, build: Callable[[ReadingReport], Dataset | None], tmp_path: Path
) -> None:
    path = _saved(build(report), tmp_path)
    is_segmentation = build is build_segmentation
    image = hd.seg.segread(path) if is_segmentation else hd.pm.ParametricMap.from_file(path)
    slices = {
        (str(header.SOPInstanceUID), report.frame_number(n)): n
        for n, header in enumerate(report.source_images)
    }
    pixels, seen = image.pixel_array, set()
    for number, group in enumerate(image.PerFrameFunctionalGroupsSequence, start=1):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        index = slices[(source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber"))]
        place = report.source_images[index].ImagePositionPatient
        np.testing.assert_allclose(
            np.asarray(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float),
            np.asarray(place, dtype=float),
            atol=1e-6,
        )
        subtype = IchSubtype.ANY
        if is_segmentation:
            subtype = list(IchSubtype)[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
        likelihood = report.finding.slices[index].likelihood_maps[subtype]
        frame = pixels[number - 1]
        stored = np.round(likelihood * 255) if is_segmentation else likelihood
        np.testing.assert_array_equal(frame, stored)
        seen.add((index, subtype))
    expected = {
        (n, subtype)
        for n, finding in enumerate(report.finding.slices)
        for subtype in finding.likelihood_maps
        if is_segmentation or subtype is IchSubtype.ANY
    }
    assert seen == expected


def test_the_judge_finds_faults(build: Callable[[ReadingReport], Dataset | None], tmp_path: Path) -> None:
    """The checks above would be worth nothing if dciodvfy took anything."""
    result = build(make_report())
    assert result is not None
    del result.ContentLabel
    assert any("ContentLabel" in line.replace(" ", "") for line in _complaints(_saved(result, tmp_path)))
