"""Results whose frames lie on slices: where they lie, what they name, and what keeps them from being made."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from ich_node.findings import IchSubtype, SliceFinding
from ich_node.report import ReadingReport
from ich_node.report.parametric_map import build_parametric_map
from ich_node.report.segmentation import build_segmentation
from ich_node.report.wording import DISCLAIMER
from tests.enhanced_builders import enhanced_report
from tests.report_builders import make_report

Build = Callable[[ReadingReport], Dataset | None]
NEEDED = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
GEOMETRY = (*NEEDED, "SliceThickness", "PositionReferenceIndicator", "LossyImageCompression")
IDENTITY = ("PatientName", "PatientBirthDate", "PatientSex", "StudyTime", "SpecificCharacterSet")
ODD_BYTES = st.one_of(
    st.binary(max_size=24),
    st.sampled_from(
        [b"abc", b"1.5", b"1.02.3", b"1\\2", b"-1\\-1", b"nan", b"1e400", b"\\\\", b"0\\0\\0", b" " * 70]
    ),
)


@pytest.fixture(params=[build_segmentation, build_parametric_map], ids=["segmentation", "parametric map"])
def build(request: pytest.FixtureRequest) -> Build:
    found: Build = request.param
    return found


def made(build: Build, report: ReadingReport) -> Dataset:
    """The result as a reader of its file has it."""
    return pydicom.dcmread(io.BytesIO(encoded(build, report)))


def encoded(build: Build, report: ReadingReport) -> bytes:
    result = build(report)
    assert result is not None
    file = io.BytesIO()
    result.save_as(file, enforce_file_format=True)
    return file.getvalue()


def changed(report: ReadingReport, index: int, **attributes: Any) -> ReadingReport:
    for keyword, value in attributes.items():
        setattr(report.source_images[index], keyword, value)
    return report


def slices_of(report: ReadingReport) -> list[int]:
    return [n for n, finding in enumerate(report.finding.slices) if finding.likelihood_maps]


def test_nothing_is_made_without_maps(build: Build) -> None:
    assert build(make_report(0.05)) is None


@pytest.mark.parametrize("keyword", NEEDED)
def test_nothing_is_made_where_the_place_of_a_frame_is_unknown(build: Build, keyword: str) -> None:
    assert build(make_report(header={keyword: None})) is None


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("FrameOfReferenceUID", "1.2.3"),
        ("FrameOfReferenceUID", ""),
        ("PixelSpacing", [1.5, 1.5]),
        ("PixelSpacing", [0, 0]),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.995, 0.0998]),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
    ],
)
def test_nothing_is_made_of_slices_that_do_not_belong_together(
    build: Build, keyword: str, value: object
) -> None:
    report = make_report()
    assert build(changed(report, slices_of(report)[1], **{keyword: value})) is None


def test_nothing_is_made_of_slices_in_one_place(build: Build) -> None:
    report = make_report()
    first, second, *_ = slices_of(report)
    place = report.source_images[first].ImagePositionPatient
    assert build(changed(report, second, ImagePositionPatient=place)) is None


def test_a_slice_without_a_map_may_lie_anywhere(build: Build) -> None:
    report = make_report()
    assert 0 not in slices_of(report)
    assert build(changed(report, 0, ImagePositionPatient=None, FrameOfReferenceUID="1.2.3")) is not None


def test_frames_lie_on_their_slices_and_name_them(build: Build) -> None:
    report = make_report()
    images = {str(image.SOPInstanceUID): image for image in report.source_images}
    result = made(build, report)
    shared = result.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [3, 3]
    assert shared.PixelMeasuresSequence[0].SliceThickness == 5
    assert (result.Rows, result.Columns) == report.hu.shape[1:]
    for group in result.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        image = images[source.ReferencedSOPInstanceUID]
        assert group.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
        assert source.ReferencedSOPClassUID == image.SOPClassUID
        assert "ReferencedFrameNumber" not in source
    assert result.FrameOfReferenceUID == report.source_images[0].FrameOfReferenceUID


def test_the_result_names_the_slices_that_it_was_made_from_once(build: Build) -> None:
    report = make_report()
    result = made(build, report)
    used = {str(report.source_images[n].SOPInstanceUID) for n in slices_of(report)}
    (series,) = result.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == report.series_instance_uid
    for sources in (result.SourceImageSequence, series.ReferencedInstanceSequence):
        assert len(sources) == len(used)
        assert {item.ReferencedSOPInstanceUID for item in sources} == used


@pytest.mark.parametrize("options", [{}, {"objects": 2}, {"objects": 3, "concatenated": True}])
def test_frames_of_enhanced_ct_are_named_by_number(
    build: Build, options: dict[str, Any], tmp_path: Path
) -> None:
    report = enhanced_report(tmp_path, **options)
    result = made(build, report)
    of_slice = {
        (str(image.SOPInstanceUID), report.frame_number(n)): image
        for n, image in enumerate(report.source_images)
    }
    named = set()
    for group in result.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        key = (source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber)
        image = of_slice[key]
        assert group.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
        assert source.ReferencedSOPClassUID == image.SOPClassUID
        named.add(key)
    assert named == {list(of_slice)[n] for n in slices_of(report)}
    whole = {
        (item.ReferencedSOPInstanceUID, number)
        for item in result.SourceImageSequence
        for number in np.atleast_1d(item.ReferencedFrameNumber)
    }
    assert whole == named
    objects = [
        i.ReferencedSOPInstanceUID for i in result.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    ]
    assert objects == [item.ReferencedSOPInstanceUID for item in result.SourceImageSequence]


def test_a_tilted_gantry_keeps_each_slice_where_it_is(build: Build) -> None:
    report = make_report()
    for n, image in enumerate(report.source_images):
        image.ImageOrientationPatient = [1, 0, 0, 0, 0.9510565, -0.3090170]
        image.ImagePositionPatient = [-96, -80, 5 * n]
    result = made(build, report)
    places = [
        g.PlanePositionSequence[0].ImagePositionPatient for g in result.PerFrameFunctionalGroupsSequence
    ]
    assert {float(z) for _, _, z in places} == {5.0 * n for n in slices_of(report)}
    assert {float(y) for _, y, _ in places} == {-80.0}
    assert "SpacingBetweenSlices" not in result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def test_slices_of_mixed_thickness_and_spacing_keep_their_own(build: Build) -> None:
    report = make_report()
    first, second, third = slices_of(report)
    changed(report, first, SliceThickness=2.5, ImagePositionPatient=[-96, -96, 0])
    changed(report, second, SliceThickness=5, ImagePositionPatient=[-96, -96, 2.5])
    changed(report, third, SliceThickness=5, ImagePositionPatient=[-96, -96, 9])
    result = made(build, report)
    assert "PixelMeasuresSequence" not in result.SharedFunctionalGroupsSequence[0]
    thickness = {
        float(group.PlanePositionSequence[0].ImagePositionPatient[2]): float(
            group.PixelMeasuresSequence[0].SliceThickness
        )
        for group in result.PerFrameFunctionalGroupsSequence
    }
    assert thickness == {0.0: 2.5, 2.5: 5.0, 9.0: 5.0}


@pytest.mark.parametrize("thickness", [None, "", 0])
def test_an_unknown_thickness_is_the_distance_of_slices(build: Build, thickness: object) -> None:
    report = make_report(spacing_mm=(7.0, 3.0, 3.0))
    for n in range(len(report.source_images)):
        changed(report, n, SliceThickness=thickness)
    shared = made(build, report).SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].SliceThickness == 7


def test_two_builds_are_equal_and_other_readings_are_others(build: Build) -> None:
    report = make_report()
    assert encoded(build, report) == encoded(build, make_report())
    other = made(build, make_report(run_number=2))
    result = made(build, report)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert result[keyword].value != other[keyword].value
    assert (
        result.DimensionOrganizationSequence[0].DimensionOrganizationUID
        == result.DimensionIndexSequence[0].DimensionOrganizationUID
        != other.DimensionIndexSequence[0].DimensionOrganizationUID
    )


def test_segmentation_and_map_are_objects_of_series_of_their_own() -> None:
    report = make_report()
    results = [made(build, report) for build in (build_segmentation, build_parametric_map)]
    assert [result.SeriesNumber for result in results] == [9903, 9904]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert results[0][keyword].value != results[1][keyword].value


def test_the_result_says_whose_it_is_and_what_it_is_worth(build: Build) -> None:
    request = Dataset()
    request.RequestedProcedureID = "P17"
    report = make_report(
        header={
            "PatientName": "Müller^Åsa",
            "SpecificCharacterSet": "ISO_IR 100",
            "AccessionNumber": "A17",
            "RequestAttributesSequence": [request],
        }
    )
    result = made(build, report)
    assert result.PatientName == "Müller^Åsa"
    assert result.AccessionNumber == "A17"
    assert result.RequestAttributesSequence[0].RequestedProcedureID == "P17"
    assert result.StudyInstanceUID == report.study_instance_uid
    assert result.ContentDescription == DISCLAIMER
    assert "(unverified)" in result.SeriesDescription
    assert "test-model 1.2.3, weights 0123456789ab" in result.DerivationDescription
    assert result.SoftwareVersions[1] == "test-model 1.2.3"


def test_lossy_compression_of_a_source_is_told(build: Build) -> None:
    assert made(build, make_report()).LossyImageCompression == "00"
    header = {"LossyImageCompression": "01", "LossyImageCompressionRatio": 12.5}
    result = made(build, make_report(header=header))
    assert result.LossyImageCompression == "01"
    assert result.LossyImageCompressionRatio == 12.5


def test_frames_run_from_one_end_of_the_head_to_the_other(build: Build) -> None:
    """Viewers that stack frames as they come get the volume in order, also of slices in any order."""
    report = make_report()
    turned = replace(
        report,
        finding=replace(report.finding, slices=report.finding.slices[::-1]),
        source_images=list(report.source_images)[::-1],
    )
    for one in (report, turned):
        groups = made(build, one).PerFrameFunctionalGroupsSequence[: len(slices_of(report))]
        heights = [float(g.PlanePositionSequence[0].ImagePositionPatient[2]) for g in groups]
        assert all(upper > lower for upper, lower in pairwise(heights))


def test_a_map_of_nothing_but_subtypes_is_no_map_of_hemorrhage() -> None:
    report = make_report()
    slices = tuple(
        replace(finding, likelihood_maps={s: m for s, m in finding.likelihood_maps.items() if s != "any"})
        for finding in report.finding.slices
    )
    report = replace(report, finding=replace(report.finding, slices=slices))
    assert build_parametric_map(report) is None
    assert build_segmentation(report) is not None


ONE_SLICE = make_report(0.5, shape=(2, 16, 16), with_subtypes=False)


@settings(max_examples=60, deadline=None)
@given(values=st.dictionaries(st.sampled_from([*GEOMETRY, *IDENTITY]), ODD_BYTES, max_size=4))
def test_whatever_a_header_holds_there_is_a_result_or_none(values: dict[str, bytes]) -> None:
    report = replace(ONE_SLICE, source_images=copy.deepcopy(ONE_SLICE.source_images))
    for keyword, value in values.items():
        tag = Tag(tag_for_keyword(keyword) or 0)
        for image in report.source_images:
            image[tag] = RawDataElement(tag, dictionary_VR(keyword), len(value), value, 0, False, True, True)
    with warnings.catch_warnings():
        # pydicom tells of the bytes that it cannot understand, which is what this test feeds it.
        warnings.simplefilter("ignore")
        for build in (build_segmentation, build_parametric_map):
            result = build(report)
            if not any(keyword in values for keyword in GEOMETRY):
                assert result is not None
            if result is not None:
                file = io.BytesIO()
                result.save_as(file, enforce_file_format=True)
                file.seek(0)
                assert pydicom.dcmread(file).SOPInstanceUID == result.SOPInstanceUID


def test_one_slice_alone_is_enough(build: Build) -> None:
    assert slices_of(ONE_SLICE) == [1]
    assert made(build, ONE_SLICE).NumberOfFrames == 1


def test_an_unreadable_map_value_counts_as_no_likelihood(build: Build) -> None:
    likelihood = np.full((16, 16), np.nan, dtype=np.float32)
    likelihood[0, :3] = (2.0, -1.0, 0.5)
    found = SliceFinding(probabilities={IchSubtype.ANY: 0.5}, likelihood_maps={IchSubtype.ANY: likelihood})
    slices = (ONE_SLICE.finding.slices[0], found)
    report = replace(ONE_SLICE, finding=replace(ONE_SLICE.finding, slices=slices))
    result = made(build, report)
    most = 255 if build is build_segmentation else 1
    shown = result.pixel_array / most
    assert np.count_nonzero(shown) == 2
    np.testing.assert_allclose(shown[0, :3], [1, 0, 0.5], atol=0.002)
