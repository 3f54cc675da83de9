"""Results of a multi-frame series refer to frames, and each frame is told from its neighbours."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedCTImageStorage

from ich_node.report import ReadingReport, build_secondary_captures, build_structured_report
from ich_node.report.wording import slice_lines, slice_name
from ich_node.web.pictures import picture_source
from tests.enhanced_builders import enhanced_report


@pytest.fixture(
    params=[{}, {"objects": 2}, {"objects": 3, "concatenated": True}], ids=["one", "two", "parts"]
)
def report(request: pytest.FixtureRequest, tmp_path: Path) -> ReadingReport:
    return enhanced_report(tmp_path, **request.param)


def encoded(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def slices_of(report: ReadingReport) -> list[tuple[str, int | None]]:
    return [
        (str(image.SOPInstanceUID), report.frame_number(index))
        for index, image in enumerate(report.source_images)
    ]


def referenced(item: Dataset) -> tuple[str, int | None]:
    (reference,) = item.ReferencedSOPSequence
    assert reference.ReferencedSOPClassUID == EnhancedCTImageStorage
    return str(reference.ReferencedSOPInstanceUID), reference.get("ReferencedFrameNumber")


def items_of(document: Dataset, value_type: str) -> list[Dataset]:
    """Content items of a type, in document order."""
    found = []
    for item in document.get("ContentSequence", []):
        if item.get("ValueType") == value_type:
            found.append(item)
        found.extend(items_of(item, value_type))
    return found


def test_every_frame_is_an_entry_of_the_library_with_its_place(report: ReadingReport) -> None:
    document = dcmread(io.BytesIO(encoded(build_structured_report(report))))
    (library,) = [
        i for i in document.ContentSequence if i.ConceptNameCodeSequence[0].CodeMeaning == "Image Library"
    ]
    entries = items_of(library, "IMAGE")
    assert [referenced(entry) for entry in entries] == slices_of(report)
    for entry, image in zip(entries, report.source_images, strict=True):
        numbers = {
            i.ConceptNameCodeSequence[0].CodeMeaning: float(i.MeasuredValueSequence[0].NumericValue)
            for i in items_of(entry, "NUM")
        }
        assert numbers["Image Position (Patient) Z"] == pytest.approx(float(image.ImagePositionPatient[2]))


def test_evidence_names_each_object_once(report: ReadingReport) -> None:
    document = build_structured_report(report)
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    named = [str(item.ReferencedSOPInstanceUID) for item in series.ReferencedSOPSequence]
    assert named == list(dict.fromkeys(uid for uid, _ in slices_of(report)))


def test_every_place_lies_on_its_frame(report: ReadingReport) -> None:
    document = hd.sr.srread(io.BytesIO(encoded(build_structured_report(report))))
    places = [
        slices_of(report)[index]
        for index, found in enumerate(report.finding.slices)
        for _ in found.localizations
    ]
    assert places
    groups = document.content.get_planar_roi_measurement_groups()
    found = [referenced(items_of(group[0], "SCOORD")[0].ContentSequence[0]) for group in groups]
    assert found == places
    uids = [group.tracking_uid for group in groups]
    assert len(set(uids)) == len(uids)


def test_the_studys_group_names_the_suspicious_frames(report: ReadingReport) -> None:
    document = hd.sr.srread(io.BytesIO(encoded(build_structured_report(report))))
    group = document.content.get_image_measurement_groups()[0]
    named = [
        (str(i.referenced_sop_instance_uid), *(i.referenced_frame_numbers or ())) for i in group.source_images
    ]
    assert named == [slices_of(report)[index] for index in report.finding.suspicious_slices]


def test_an_overlay_names_its_frame_and_lies_where_it_lies(report: ReadingReport, tmp_path: Path) -> None:
    summary, *overlays = build_secondary_captures(report)
    assert len({c.SOPInstanceUID for c in (summary, *overlays)}) == 1 + len(overlays)
    assert len(overlays) == len(report.finding.suspicious_slices) > 1
    for overlay, index in zip(overlays, report.finding.suspicious_slices, strict=True):
        path = tmp_path / "overlay"
        overlay.save_as(path, enforce_file_format=True)
        source = picture_source(path)
        assert source is not None
        assert source.source_slices == (slices_of(report)[index],)
        image = report.source_images[index]
        assert overlay.ImagePositionPatient[2] == pytest.approx(float(image.ImagePositionPatient[2]))


def test_the_summary_names_its_frames(report: ReadingReport, tmp_path: Path) -> None:
    summary = build_secondary_captures(report)[0]
    path = tmp_path / "summary"
    summary.save_as(path, enforce_file_format=True)
    source = picture_source(path)
    assert source is not None
    assert set(source.source_slices) < set(slices_of(report))
    assert len(source.source_slices) in (4, 9)
    uids = [str(item.ReferencedSOPInstanceUID) for item in summary.SourceImageSequence]
    assert len(uids) == len(set(uids))
    (series,) = summary.ReferencedSeriesSequence
    assert [str(i.ReferencedSOPInstanceUID) for i in series.ReferencedInstanceSequence] == uids


def test_the_same_report_gives_the_same_bytes_and_another_frame_other_uids(report: ReadingReport) -> None:
    once, again = build_secondary_captures(report), build_secondary_captures(report)
    assert [encoded(c) for c in once] == [encoded(c) for c in again]
    assert encoded(build_structured_report(report)) == encoded(build_structured_report(report))
    moved = replace(report, frame_numbers=tuple((n or 0) + 100 for n in report.frame_numbers))
    others = build_secondary_captures(moved)
    assert {c.SOPInstanceUID for c in once[1:]}.isdisjoint(c.SOPInstanceUID for c in others[1:])


def test_a_frame_is_named_as_a_viewer_names_it(tmp_path: Path) -> None:
    for folder in ("one", "two", "parts"):
        (tmp_path / folder).mkdir()
    one = enhanced_report(tmp_path / "one")
    assert [slice_name(one, k) for k in (0, 27)] == ["Frame 1", "Frame 28"]
    two = enhanced_report(tmp_path / "two", objects=2)
    assert [slice_name(two, k) for k in (0, 27)] == ["Image 1, frame 1", "Image 2, frame 14"]
    parts = enhanced_report(tmp_path / "parts", objects=2, concatenated=True)
    assert [slice_name(parts, k) for k in (0, 27)] == ["Part 1, frame 1", "Part 2, frame 14"]
    assert slice_lines(one)[0].startswith("Frame 15: 90 %; point at column")
    for image in two.source_images:
        image.InstanceNumber = 7
    assert slice_name(two, 27) == "Slice 28 from below"


def test_frame_numbers_match_the_slices(report: ReadingReport) -> None:
    with pytest.raises(ValueError, match="frame numbers"):
        replace(report, frame_numbers=report.frame_numbers[1:])
