"""The segmentation: a segment per class, likelihoods as fractions, readable by others."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from highdicom.color import CIELabColor
from pydicom import Dataset, dcmread
from pydicom.pixels.decoders.base import RLELosslessDecoder
from pydicom.uid import RLELossless

from ich_node.codes import FINDING_OF, SITE_OF
from ich_node.findings import IchSubtype
from ich_node.report import ReadingReport, build_structured_report
from ich_node.report.drawing import CLASS_COLOR
from ich_node.report.segmentation import build_segmentation
from tests.enhanced_builders import enhanced_report
from tests.report_builders import make_report


def encoded(dataset: Dataset | None) -> io.BytesIO:
    assert dataset is not None
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return file


def stored_values(report: ReadingReport, index: int, subtype: IchSubtype) -> np.ndarray[tuple[int, int]]:
    likelihood = report.finding.slices[index].likelihood_maps[subtype]
    return np.asarray(np.round(likelihood * 255), dtype=np.uint8)


def test_a_segment_per_class_any_first() -> None:
    segmentation = hd.seg.segread(encoded(build_segmentation(make_report())))
    assert segmentation.segmentation_type.value == "FRACTIONAL"
    assert segmentation.SegmentationFractionalType == "PROBABILITY"
    assert segmentation.MaximumFractionalValue == 255
    assert segmentation.SegmentsOverlap == "UNDEFINED"
    assert segmentation.number_of_segments == len(IchSubtype)
    for number, subtype in enumerate(IchSubtype, start=1):
        segment = segmentation.get_segment_description(number)
        kind, (site,) = segment.segmented_property_type, segment.anatomic_regions
        assert (kind.value, kind.meaning) == (FINDING_OF[subtype].value, FINDING_OF[subtype].meaning)
        assert site.value == SITE_OF[subtype].value
        assert segment.segmented_property_category.value == "49755003"
        color = CIELabColor.from_rgb(*CLASS_COLOR[subtype])
        assert tuple(segment.RecommendedDisplayCIELabValue) == color.value
    labels = [segment.SegmentLabel for segment in segmentation.SegmentSequence]
    assert labels[:2] == ["Any hemorrhage", "Epidural hemorrhage"]


def test_segments_name_the_algorithm_and_its_weights() -> None:
    report = make_report()
    for segment in hd.seg.segread(encoded(build_segmentation(report))).SegmentSequence:
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "test-model"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmVersion == "1.2.3"
        assert report.finding.algorithm.weights_sha256 in algorithm.AlgorithmParameters
        assert segment.SegmentDescription.endswith("AI, unverified")


def test_segments_track_the_findings_of_the_structured_report() -> None:
    report = make_report()
    document = hd.sr.srread(encoded(build_structured_report(report)))
    tracked = {
        (group.tracking_identifier, group.tracking_uid): group.finding_type.value
        for group in document.content.get_image_measurement_groups()
    }
    segments = hd.seg.segread(encoded(build_segmentation(report))).SegmentSequence
    found = {segment.TrackingUID: segment.segmented_property_type.value for segment in segments}
    assert found == {uid: finding for (_, uid), finding in tracked.items()}


def test_a_model_without_subtypes_has_one_segment() -> None:
    report = make_report(with_subtypes=False)
    segmentation = hd.seg.segread(encoded(build_segmentation(report)))
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["Any hemorrhage"]
    maps = [n for n, finding in enumerate(report.finding.slices) if finding.likelihood_maps]
    assert segmentation.number_of_frames == len(maps)


def test_highdicom_reads_the_likelihoods_back_by_source_image() -> None:
    report = make_report(shape=(12, 32, 48))
    segmentation = hd.seg.segread(encoded(build_segmentation(report)))
    mapped = [n for n, finding in enumerate(report.finding.slices) if finding.likelihood_maps]
    uids = [str(report.source_images[n].SOPInstanceUID) for n in mapped]
    values = segmentation.get_pixels_by_source_instance(
        uids, rescale_fractional=False, assert_missing_frames_are_empty=False
    )
    assert values.shape == (len(mapped), 32, 48, len(IchSubtype))
    for row, index in enumerate(mapped):
        for column, subtype in enumerate(IchSubtype):
            np.testing.assert_array_equal(values[row, ..., column], stored_values(report, index, subtype))
    # The matter is not trivial: the maps differ by class and by slice.
    assert len({values[..., n].sum() for n in range(len(IchSubtype))}) == len(IchSubtype)


def test_highdicom_reads_the_likelihoods_of_a_frame_of_enhanced_ct(tmp_path: Path) -> None:
    report = enhanced_report(tmp_path)
    segmentation = hd.seg.segread(encoded(build_segmentation(report)))
    index = report.finding.suspicious_slices[0]
    number = report.frame_number(index)
    assert number is not None
    values = segmentation.get_pixels_by_source_frame(
        source_sop_instance_uid=str(report.source_images[index].SOPInstanceUID),
        source_frame_numbers=[number],
        rescale_fractional=False,
    )
    for column, subtype in enumerate(IchSubtype):
        np.testing.assert_array_equal(values[0, ..., column], stored_values(report, index, subtype))


def test_highdicom_reads_slices_of_mixed_thickness() -> None:
    report = make_report()
    mapped = [n for n, finding in enumerate(report.finding.slices) if finding.likelihood_maps]
    report.source_images[mapped[0]].SliceThickness = 2.5
    segmentation = hd.seg.segread(encoded(build_segmentation(report)))
    uid = str(report.source_images[mapped[0]].SOPInstanceUID)
    values = segmentation.get_pixels_by_source_instance([uid], rescale_fractional=False)
    np.testing.assert_array_equal(values[0, ..., 0], stored_values(report, mapped[0], IchSubtype.ANY))


def test_a_class_without_a_map_on_a_slice_has_no_frame_there() -> None:
    report = make_report()
    mapped = [n for n, finding in enumerate(report.finding.slices) if finding.likelihood_maps]
    slices = list(report.finding.slices)
    without = {s: m for s, m in slices[mapped[1]].likelihood_maps.items() if s is not IchSubtype.SUBDURAL}
    slices[mapped[1]] = replace(slices[mapped[1]], likelihood_maps=without)
    report = replace(report, finding=replace(report.finding, slices=tuple(slices)))
    segmentation = dcmread(encoded(build_segmentation(report)))
    frames: dict[int, list[str]] = {}
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        frames.setdefault(number, []).append(source.ReferencedSOPInstanceUID)
    gap = str(report.source_images[mapped[1]].SOPInstanceUID)
    assert [gap in frames[number] for number in range(1, 7)] == [True] * 5 + [False]
    assert segmentation.NumberOfFrames == 3 * 6 - 1 == len(segmentation.pixel_array)


@pytest.mark.parametrize("decoder", RLELosslessDecoder.available_plugins)
def test_every_decoder_reads_the_same_values(decoder: str) -> None:
    report = make_report(shape=(3, 31, 45))
    segmentation = dcmread(encoded(build_segmentation(report)))
    assert segmentation.file_meta.TransferSyntaxUID == RLELossless
    values, _ = RLELosslessDecoder.as_array(segmentation, decoding_plugin=decoder)
    # Classes outside, slices inside from above.
    expected = [stored_values(report, n, s) for s in IchSubtype for n in (2, 1, 0)]
    np.testing.assert_array_equal(values, np.stack(expected))


def test_compression_pays() -> None:
    report = make_report(shape=(5, 256, 256))
    segmentation = build_segmentation(report)
    assert segmentation is not None
    native = segmentation.NumberOfFrames * 256 * 256
    assert len(segmentation.PixelData) < native / 4
