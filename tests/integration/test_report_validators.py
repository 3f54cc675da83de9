"""Judges that are not ours: dciodvfy (dicom3tools) on every object, DCMTK's dsrdump and dsr2html, PixelMed's
DicomSRValidator and highdicom's parser on the SR.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import pytest
from pydicom import Dataset, dcmread

from ich_node import codes
from ich_node.errors import RejectionReason
from ich_node.findings import IchSubtype
from ich_node.report import (
    Predecessor,
    ReadingReport,
    build_secondary_captures,
    build_structured_report,
)
from ich_node.report.not_read_report import NotReadReport, build_not_read_report
from ich_node.report.segmentation import build_segmentation
from ich_node.report.sr_class import SrClass
from ich_node.report.wording import DISCLAIMER, NOT_READ
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
    r"Attribute is not present in standard DICOM IOD - \(0x0020,0x(0032|0037|0052|1040)\) .*": (
        "an overlay carries the plane of its slice, so that viewers draw its reference line"
    ),
    r"Dicom dataset contains attributes not present in standard DICOM IOD - .* Standard Extended SOP Class": (
        "the same plane attributes; PS3.2 allows a Standard Extended SOP Class"
    ),
}
ACCEPTED_BY_DCMTK = {
    "W: The VR checker does not support this Specific Character Set: ISO_IR 192": (
        "DCMTK reads UTF-8 but does not check the length of its values"
    ),
}
ACCEPTED_BY_PIXELMED = {
    r".*Code \(303653007,SCT,.*\) not found in context group 100": (
        "the group is extensible, and has no code for a CT of the head"
    ),
    r".*: Content Item not in template": "TID 1501 and TID 4019 of the edition that it knows lack newer rows",
}
PIXELMED = Path("/usr/share/java/pixelmed.jar")
CASES = ("positive", "negative", "any-only", "second run")


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(
            f"{name} is not installed (Debian: dicom3tools for dciodvfy, dcmtk for dsrdump and dsr2html, "
            "a Java runtime for PixelMed)"
        )
    return path


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


@pytest.fixture(scope="module", params=["phantom", "ge", "philips", "poor", "enhanced", "enhanced in two"])
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], ReadingReport]:
    """A report on one kind of header, in the case asked for."""
    if request.param == "phantom":
        report = _phantom()
    elif request.param.startswith("enhanced"):
        objects = 2 if request.param == "enhanced in two" else 1
        report = enhanced_report(tmp_path_factory.mktemp("enhanced"), objects=objects)
    elif request.param == "poor":
        missing = ["FrameOfReferenceUID", "PatientBirthDate", "StudyID", "AccessionNumber", "PatientName"]
        missing += ["ReferringPhysicianName", "SpecificCharacterSet"]
        report = make_report(header=dict.fromkeys(missing))
    else:
        data = request.getfixturevalue("shared_data")
        report = real_report(_ge(data) if request.param == "ge" else _philips(data))
    shape = (len(report.finding.slices), *report.hu.shape[1:])

    def of_case(case: str) -> ReadingReport:
        if case == "negative":
            return replace(report, finding=series_finding(shape, 0.05))
        if case == "any-only":
            return replace(report, finding=series_finding(shape, 0.5, with_subtypes=False))
        if case == "second run":
            earlier = Predecessor(model_name="test-model", model_version="1.2.3", run_number=1)
            return replace(report, run_number=2, predecessor=earlier)
        return report

    return of_case


def _complaints(path: Path) -> list[str]:
    """What dciodvfy says of a file, apart from the name of the IOD."""
    run = subprocess.run(
        [_program("dciodvfy"), str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    lines = (run.stdout + run.stderr).splitlines()
    return [line for line in lines if line.startswith(("Error", "Warning"))]


def _unexpected(complaints: list[str]) -> list[str]:
    return [
        line
        for line in complaints
        if line.startswith("Error")
        or not any(re.fullmatch(rf"Warning - {known}\s*", line) for known in ACCEPTED_WARNINGS)
    ]


@pytest.mark.parametrize("sr_class", SrClass)
@pytest.mark.parametrize("case", CASES)
def test_structured_report_is_valid(
    make: Callable[[str], ReadingReport], case: str, sr_class: SrClass, tmp_path: Path
) -> None:
    path = tmp_path / "sr.dcm"
    build_structured_report(make(case), sr_class=sr_class).save_as(path, enforce_file_format=True)
    assert _unexpected(_complaints(path)) == []
    _assert_dcmtk_reads(path)


@pytest.mark.parametrize("sr_class", SrClass)
def test_report_with_segments_is_valid(
    make: Callable[[str], ReadingReport], sr_class: SrClass, tmp_path: Path
) -> None:
    report = make("positive")
    segmentation = build_segmentation(report)
    path = tmp_path / "sr.dcm"
    document = build_structured_report(report, sr_class=sr_class, segmentation=segmentation)
    document.save_as(path, enforce_file_format=True)
    assert _unexpected(_complaints(path)) == []
    _assert_dcmtk_reads(path)


@pytest.mark.parametrize("sr_class", SrClass)
def test_not_read_report_is_valid(
    make: Callable[[str], ReadingReport], sr_class: SrClass, tmp_path: Path
) -> None:
    path = _not_read(make("positive").source_images, sr_class, tmp_path)
    assert _unexpected(_complaints(path)) == []
    assert NOT_READ in _assert_dcmtk_reads(path)


def _not_read(images: Sequence[Dataset], sr_class: SrClass, folder: Path) -> Path:
    report = NotReadReport(
        source_images=images,
        reason=RejectionReason.MISSING_SLICES,
        detail="Slices are missing: send the series again.",
        decided_at=READ_AT,
        attempt="1",
    )
    path = folder / "not-read.dcm"
    build_not_read_report(report, sr_class=sr_class).save_as(path, enforce_file_format=True)
    return path


def _assert_dcmtk_reads(path: Path) -> str:
    """Let dsrdump check the tree against its IOD and dsr2html render it; returns the page."""
    # Warnings and errors of the template-independent checks go to stderr; +Pl prints long values in full.
    commands = ([_program("dsrdump"), "+Pl", str(path)], [_program("dsr2html"), str(path)])
    for command in commands:
        run = subprocess.run(command, capture_output=True, timeout=60, check=False)
        said = run.stderr.decode(errors="replace").splitlines()
        assert run.returncode == 0, said
        complaints = [line for line in said if line.startswith(("E:", "F:", "W:"))]
        assert [line for line in complaints if line not in ACCEPTED_BY_DCMTK] == []
    return run.stdout.decode(errors="replace")


def _pixelmed_errors(path: Path) -> list[str]:
    """What PixelMed's validator finds against PS3.16, apart from what is accepted."""
    java = _program("java")
    if not PIXELMED.exists():
        pytest.skip("PixelMed is not installed (Debian: libpixelmed-java)")
    # its style sheets are larger than the limits of newer Java runtimes allow
    limits = [f"-Djdk.xml.xpath{what}Limit=0" for what in ("TotalOp", "ExprOp", "ExprGrp")]
    command = [java, *limits, "-XX:TieredStopAtLevel=1", "-cp", str(PIXELMED)]
    command += ["com.pixelmed.validate.DicomSRValidator", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = (run.stdout + run.stderr).splitlines()
    assert "IOD validation complete" in lines, lines
    complaints = [line for line in lines if line.startswith(("Error", "Warning"))]
    return [line for line in complaints if not any(re.fullmatch(p, line) for p in ACCEPTED_BY_PIXELMED)]


@pytest.mark.parametrize(
    ("suspicion", "sr_class"),
    [(0.9, SrClass.COMPREHENSIVE_3D), (0.9, SrClass.ENHANCED), (0.1, SrClass.COMPREHENSIVE)],
)
def test_pixelmed_finds_the_template_in_the_structured_report(
    suspicion: float, sr_class: SrClass, tmp_path: Path
) -> None:
    report = make_report(suspicion, shape=(1, 64, 64))
    path = tmp_path / "sr.dcm"
    build_structured_report(report, sr_class=sr_class).save_as(path, enforce_file_format=True)
    assert _pixelmed_errors(path) == []


def test_pixelmed_finds_the_template_in_the_groups_of_segments(tmp_path: Path) -> None:
    """It holds all groups of a report to one template, so those of segments are looked at alone."""
    report = make_report(0.9, shape=(1, 64, 64))
    document = build_structured_report(report, segmentation=build_segmentation(report))
    (groups,) = (
        item
        for item in document.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == codes.IMAGING_MEASUREMENTS.value
    )
    groups.ContentSequence = groups.ContentSequence[-len(IchSubtype) :]
    path = tmp_path / "sr.dcm"
    document.save_as(path, enforce_file_format=True)
    assert _pixelmed_errors(path) == []


def test_pixelmed_finds_the_template_in_a_report_of_a_study_that_was_not_read(tmp_path: Path) -> None:
    path = _not_read(make_report(0.9).source_images, SrClass.COMPREHENSIVE_3D, tmp_path)
    assert _pixelmed_errors(path) == []


def test_pixelmed_finds_faults(tmp_path: Path) -> None:
    """A language that is none breaks TID 1204."""
    document = build_structured_report(make_report(0.1, shape=(1, 64, 64)))
    document.ContentSequence[0].ConceptCodeSequence[0].CodeValue = "head"
    path = tmp_path / "sr.dcm"
    document.save_as(path, enforce_file_format=True)
    assert any("LanguageOfContentItem" in line for line in _pixelmed_errors(path))


@pytest.mark.parametrize("case", CASES)
def test_secondary_captures_are_valid(
    make: Callable[[str], ReadingReport], case: str, tmp_path: Path
) -> None:
    captures = build_secondary_captures(make(case))
    assert (len(captures) == 1) is (case == "negative")
    for number, capture in enumerate(captures):
        path = tmp_path / f"sc{number}.dcm"
        capture.save_as(path, enforce_file_format=True)
        assert _unexpected(_complaints(path)) == []


@pytest.mark.parametrize("case", CASES)
def test_dcmtk_reads_the_structured_report(
    make: Callable[[str], ReadingReport], case: str, tmp_path: Path
) -> None:
    program = _program("dsrdump")
    report = make(case)
    path = tmp_path / "sr.dcm"
    build_structured_report(report).save_as(path, enforce_file_format=True)
    # Warnings and errors of the template-independent checks go to stderr; +Pl prints long values in full.
    run = subprocess.run([program, "+Pl", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    said = [line for line in run.stderr.splitlines() if line.startswith(("E:", "F:", "W:"))]
    assert [line for line in said if line not in ACCEPTED_BY_DCMTK] == []
    assert DISCLAIMER in run.stdout
    places = sum(len(found.localizations) for found in report.finding.slices)
    groups = 1 + len(report.finding.subtypes) + places
    assert run.stdout.count("SCOORD:") == run.stdout.count('"Measurement Group"') == groups


@pytest.mark.parametrize("case", CASES)
def test_highdicom_reads_the_structured_report(
    make: Callable[[str], ReadingReport], case: str, tmp_path: Path
) -> None:
    report = make(case)
    path = tmp_path / "sr.dcm"
    build_structured_report(report).save_as(path, enforce_file_format=True)
    document = hd.sr.srread(path)
    places = sum(len(found.localizations) for found in report.finding.slices)
    assert len(document.content.get_image_measurement_groups()) == 1 + len(report.finding.subtypes)
    assert len(document.content.get_planar_roi_measurement_groups()) == places
    assert len(document.get_evidence()) == len({str(i.SOPInstanceUID) for i in report.source_images})


def test_the_judge_finds_faults(tmp_path: Path) -> None:
    """The checks above would be worth nothing if dciodvfy took anything."""
    capture = build_secondary_captures(make_report(0.1))[0]
    del capture.ConversionType
    path = tmp_path / "sc.dcm"
    capture.save_as(path, enforce_file_format=True)
    assert any("ConversionType" in line.replace(" ", "") for line in _unexpected(_complaints(path)))
