"""Judges that are not ours on presentation state and key object selection: dciodvfy (dicom3tools), DCMTK's dcmpschk,
dcmp2pgm and dsrdump.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.charset import convert_encodings
from pydicom.valuerep import PersonName

from ich_node.findings import IchSubtype
from ich_node.report import ReadingReport
from ich_node.report.drawing import brain_window
from ich_node.report.key_object_selection import build_key_object_selection, flagged_slices
from ich_node.report.presentation_state import build_presentation_state
from ich_node.report.wording import DISCLAIMER
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
}
ACCEPTED_BY_DCMTK = re.compile(
    r"W: The VR checker does not support this Specific Character Set: .*"
    r"|W: (Testing: .*|Test passed\.|)"
    r"|W: Reading unknown/unsupported SpecificCharacterSet .*"
    r"|W: Check for template constraints not yet supported"
)
JAPANESE_NAME = {
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    "PatientName": PersonName("Yamada^Tarou=山田^太郎", convert_encodings(["", "ISO 2022 IR 87"])),
}
POOR = [
    *("FrameOfReferenceUID", "PatientBirthDate", "StudyID", "AccessionNumber", "PatientSex", "PixelSpacing"),
    *("ReferringPhysicianName", "SpecificCharacterSet", "RescaleSlope", "RescaleIntercept"),
]
"""DCMTK alone takes no presentation state without a patient name, which is of type 2."""


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: dicom3tools for dciodvfy, dcmtk for the others)")
    return path


def _phantom() -> tuple[ReadingReport, list[Dataset]]:
    """A report on phantom images, and the images with their pixels."""
    phantom = head_phantom(bleeds=[IchSubtype.INTRAPARENCHYMAL], slices=12, rows=128, columns=128)
    images: list[Dataset] = list(phantom_series(phantom))
    report = ReadingReport(
        finding=series_finding(phantom.hu.shape),
        source_images=images,
        hu=phantom.hu,
        spacing_mm=phantom.spacing_mm,
        run_number=1,
        read_at=READ_AT,
    )
    return report, images


def _ge(data: Path) -> list[Path]:
    return sorted((data / "ge_head_tilted").glob("*.dcm"))


def _philips(data: Path) -> list[Path]:
    """The stereotactic series: thin and thick slices in one, uneven gaps."""
    found = []
    for path in sorted((data / "philips_head_phantom").rglob("*")):
        if not path.is_file() or path.name in ("LICENSE", "DIRFILE"):
            continue
        header = dcmread(path, stop_before_pixels=True)
        if header.get("SeriesDescription") == "STEREOTAXIS" and "AXIAL" in header.get("ImageType", []):
            found.append(path)
    return found


KINDS = ["phantom", "ge", "philips", "poor", "iso 2022", "enhanced", "enhanced in two"]


@pytest.fixture(scope="module", params=KINDS)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReadingReport:
    """A report on one kind of header."""
    match request.param:
        case "phantom":
            return _phantom()[0]
        case "poor":
            return make_report(header=dict.fromkeys(POOR))
        case "iso 2022":
            return make_report(header=JAPANESE_NAME)
        case "enhanced" | "enhanced in two" as kind:
            objects = 2 if kind == "enhanced in two" else 1
            return enhanced_report(tmp_path_factory.mktemp("enhanced"), objects=objects)
    data = request.getfixturevalue("shared_data")
    return real_report(_ge(data) if request.param == "ge" else _philips(data))


def _any_only(report: ReadingReport) -> ReadingReport:
    shape = (len(report.finding.slices), *report.hu.shape[1:])
    return replace(report, finding=series_finding(shape, 0.5, with_subtypes=False))


def _saved(dataset: Dataset | None, path: Path) -> Path:
    assert dataset is not None
    dataset.save_as(path, enforce_file_format=True)
    return path


def _complaints(path: Path) -> list[str]:
    """What dciodvfy says of a file beyond the name of the IOD and what is accepted."""
    run = subprocess.run(
        [_program("dciodvfy"), str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    lines = (run.stdout + run.stderr).splitlines()
    return [
        line
        for line in lines
        if line.startswith(("Error", "Warning"))
        and not any(re.fullmatch(rf"Warning - {known}\s*", line) for known in ACCEPTED_WARNINGS)
    ]


def _said_by_dcmtk(program: str, *arguments: str) -> tuple[str, list[str]]:
    """What a tool prints, and what it says beyond what is accepted."""
    run = subprocess.run(
        [_program(program), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in run.stderr.splitlines() if not ACCEPTED_BY_DCMTK.fullmatch(line)]
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr, said


@pytest.mark.parametrize("variant", [lambda r: r, _any_only], ids=["subtypes", "any only"])
def test_the_presentation_state_is_valid(
    report: ReadingReport, variant: Callable[[ReadingReport], ReadingReport], tmp_path: Path
) -> None:
    path = _saved(build_presentation_state(variant(report)), tmp_path / "gsps.dcm")
    assert _complaints(path) == []
    text, said = _said_by_dcmtk("dcmpschk", str(path))
    assert "Test passed" in text
    assert said == []


def test_the_key_object_selection_is_valid(report: ReadingReport, tmp_path: Path) -> None:
    path = _saved(build_key_object_selection(report), tmp_path / "kos.dcm")
    assert _complaints(path) == []
    # +Pl prints long values in full, +Pu the UIDs.
    text, said = _said_by_dcmtk("dsrdump", "+Pl", "+Pu", str(path))
    assert said == []
    assert DISCLAIMER in text
    assert text.count("<contains IMAGE:") == len(flagged_slices(report))
    for index in flagged_slices(report):
        assert str(report.source_images[index].SOPInstanceUID) in text


def test_dcmtk_shows_the_slice_in_the_brain_window(tmp_path: Path) -> None:
    """DCMTK applies the presentation state to the stored pixels; the pictures start from the Hounsfield units."""
    report, images = _phantom()
    state = _saved(build_presentation_state(report), tmp_path / "gsps.dcm")
    index = flagged_slices(report)[0]
    image, picture = tmp_path / "image.dcm", tmp_path / "picture.pgm"
    images[index].save_as(image)
    _said_by_dcmtk("dcmp2pgm", "-p", str(state), str(image), str(picture))
    shown = np.asarray(Image.open(picture), dtype=int)
    expected = brain_window(report.hu[index]).astype(int)
    assert 0 < expected.mean() < 200
    # DCMTK 3.6 windows by LINEAR, not LINEAR_EXACT: one of 79 steps beside one of 80; stored values are whole.
    assert np.abs(shown - expected).max() <= 6


def test_the_judges_find_faults(tmp_path: Path) -> None:
    """The checks above would be worth nothing if the judges took anything."""
    state, selection = build_presentation_state(make_report()), build_key_object_selection(make_report())
    assert state is not None
    assert selection is not None
    del state.ContentLabel
    del selection.ContentTemplateSequence[0].TemplateIdentifier
    assert any("ContentLabel" in line for line in _complaints(_saved(state, tmp_path / "gsps.dcm")))
    assert any("TemplateIdentifier" in line for line in _complaints(_saved(selection, tmp_path / "kos.dcm")))
