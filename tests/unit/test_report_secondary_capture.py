"""The pictures: which there are, what they refer to, and that they lie where their slice lies."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset, config, dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from ich_node.findings import Priority
from ich_node.report import build_secondary_captures, sc_to_png
from ich_node.report.compression import Compression
from ich_node.report.overlay import HEADER_HEIGHT
from ich_node.report.secondary_capture import MAX_OVERLAYS, overlay_slices
from ich_node.report.viewport import whole_slice
from tests.report_builders import make_report


def encoded(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def sources(capture: Dataset) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in capture.SourceImageSequence]


def test_a_positive_reading_has_a_summary_and_an_overlay_per_suspicious_slice() -> None:
    report = make_report(0.9)
    summary, *overlays = build_secondary_captures(report)
    assert summary.ImageType[-1] == "SUMMARY"
    expected = [str(report.source_images[i].SOPInstanceUID) for i in report.finding.suspicious_slices]
    assert [sources(overlay) for overlay in overlays] == [[uid] for uid in expected]
    assert set(expected) <= set(sources(summary))


def test_a_negative_reading_has_a_summary_alone() -> None:
    (summary,) = build_secondary_captures(make_report(0.1))
    assert summary.ImageType[-1] == "SUMMARY"


def test_overlays_are_bounded_and_a_flagged_study_has_one_at_least() -> None:
    report = make_report(0.9, shape=(40, 64, 64))
    many = replace(report.finding, slices=(report.finding.slices[20],) * 40)
    assert len(overlay_slices(replace(report, finding=many))) == MAX_OVERLAYS
    none = replace(report.finding, slices=(report.finding.slices[0],) * 39 + (report.finding.slices[18],))
    flagged = replace(report, finding=none)
    assert flagged.finding.priority is Priority.STAT
    assert not flagged.finding.suspicious_slices
    assert overlay_slices(flagged) == [39]


def test_one_series_with_distinct_instances() -> None:
    captures = build_secondary_captures(make_report(0.9))
    assert {c.SOPClassUID for c in captures} == {SecondaryCaptureImageStorage}
    assert len({c.SeriesInstanceUID for c in captures}) == 1
    assert len({c.SOPInstanceUID for c in captures}) == len(captures)
    assert [c.InstanceNumber for c in captures] == list(range(1, len(captures) + 1))
    assert {c.BurnedInAnnotation for c in captures} == {"NO"}


def test_derivation_names_a_code_of_its_context_group() -> None:
    """CID 7203; each capture has items of its own, so that nobody who changes one changes all."""
    captures = build_secondary_captures(make_report(0.9))
    assert {c.DerivationCodeSequence[0].CodeValue for c in captures} == {"113085"}
    captures[0].DerivationCodeSequence[0].CodeValue = "changed"
    assert {c.DerivationCodeSequence[0].CodeValue for c in captures[1:]} == {"113085"}


@pytest.mark.parametrize("suspicion", [0.9, 0.1])
def test_same_report_gives_the_same_bytes(suspicion: float) -> None:
    first, again = ([encoded(c) for c in build_secondary_captures(make_report(suspicion))] for _ in range(2))
    assert first == again


def test_the_picture_does_not_depend_on_who_the_patient_is() -> None:
    """No identity is burned in."""
    first = build_secondary_captures(make_report(0.9))
    other = build_secondary_captures(
        make_report(0.9, header={"PatientName": "Else^Somebody", "PatientID": "2", "AccessionNumber": "3"})
    )
    assert [a.PixelData for a in first] == [b.PixelData for b in other]
    assert first[0].PatientID != other[0].PatientID


def test_png_shows_the_same_pixels() -> None:
    capture = build_secondary_captures(make_report(0.9))[1]
    read_back = dcmread(io.BytesIO(encoded(capture)))
    with Image.open(io.BytesIO(sc_to_png(read_back))) as picture:
        assert np.array_equal(np.asarray(picture), capture.pixel_array)


def patient_point(image: Dataset, x: float, y: float) -> np.ndarray:
    """Image coordinates (first pixel's corner at 0, 0) to LPS mm by PS3.3 C.7.6.2.1.1."""
    position = np.asarray(image.ImagePositionPatient, dtype=float)
    row, column = np.split(np.asarray(image.ImageOrientationPatient, dtype=float), 2)
    row_mm, column_mm = (float(v) for v in image.PixelSpacing)
    return position + row * (x - 0.5) * column_mm + column * (y - 0.5) * row_mm


@settings(max_examples=8, deadline=None)
@given(
    row_mm=st.floats(0.4, 0.9),
    column_mm=st.floats(0.4, 0.9),
    tilt=st.floats(-0.5, 0.5),
    rows=st.sampled_from([48, 64, 100]),
    x=st.floats(0, 64),
    y=st.floats(0, 48),
)
def test_overlay_lies_in_the_patient_where_its_slice_lies(
    row_mm: float, column_mm: float, tilt: float, rows: int, x: float, y: float
) -> None:
    orientation = [1.0, 0.0, 0.0, 0.0, round(np.cos(tilt), 7), round(np.sin(tilt), 7)]
    header = {
        "PixelSpacing": [round(row_mm, 6), round(column_mm, 6)],
        "ImageOrientationPatient": orientation,
        "FrameOfReferenceUID": "1.2.3",
    }
    report = make_report(
        0.9, shape=(3, rows, 64), header=header, spacing_mm=(5.0, round(row_mm, 6), round(column_mm, 6))
    )
    overlay = build_secondary_captures(report)[1]
    image = report.source_images[report.finding.suspicious_slices[0]]
    across, down = whole_slice(report).to_picture(x, y)
    drawn = patient_point(overlay, across, down + HEADER_HEIGHT)
    assert drawn == pytest.approx(patient_point(image, x, y), abs=1e-3)
    assert overlay.FrameOfReferenceUID == image.FrameOfReferenceUID


def test_without_geometry_nothing_is_claimed_of_it() -> None:
    missing = ["FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]
    overlay = build_secondary_captures(make_report(0.9, header=dict.fromkeys(missing)))[1]
    assert not set(missing) & {element.keyword for element in overlay}
    assert "PatientOrientation" in overlay
    assert not overlay.PatientOrientation


@pytest.mark.parametrize(("columns", "claimed"), [(64, ["PixelSpacing"]), (4096, [])])
def test_a_place_beyond_all_numbers_is_not_claimed(columns: int, claimed: list[str]) -> None:
    report = make_report(0.9, shape=(3, 32, columns), header={"PixelSpacing": ["1e308", "1e308"]})
    overlay = build_secondary_captures(report)[1]
    geometry = {"FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"}
    assert sorted(geometry & {element.keyword for element in overlay}) == claimed


@pytest.mark.filterwarnings("error")
def test_free_text_that_breaks_its_length_is_carried_without_a_complaint() -> None:
    header = {"PatientID": "x" * 80, "AccessionNumber": "y" * 40}
    with config.disable_value_validation():
        report = make_report(0.9, header=header)
    for capture in build_secondary_captures(report):
        assert {keyword: capture[keyword].value for keyword in header} == header
    build_secondary_captures(report, Compression.JPEG_LOSSLESS)


def test_lossy_source_makes_a_lossy_result() -> None:
    header = {"LossyImageCompression": "01", "LossyImageCompressionRatio": 8.0}
    capture = build_secondary_captures(make_report(0.1, header=header))[0]
    assert capture.LossyImageCompression == "01"
    assert capture.LossyImageCompressionRatio == 8.0
