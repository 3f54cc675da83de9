"""The header of a multi-frame CT becomes one header for each frame, whoever wrote it and however odd it is."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.receive.frames import read_frames_header
from ich_node.receive.header import read_header
from ich_node.study import Concatenation, Instance
from ich_node.testing.enhanced import enhanced_ct
from tests.enhanced_builders import (
    changed,
    groups_of,
    item,
    items,
    little_frames,
    shared_of,
    told_apart,
)
from tests.unit.little_head import little_series

R = RejectionReason
COUNT = 28


def save(dataset: Dataset, folder: Path) -> Path:
    path = folder / "object.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def frames_of(dataset: Dataset, folder: Path) -> tuple[Instance, ...]:
    return read_frames_header(save(dataset, folder))


def one_object(**options: Any) -> FileDataset:
    (dataset,) = enhanced_ct(little_frames(**options))
    return dataset


def rejection(dataset: Dataset, folder: Path) -> StudyRejected:
    with pytest.raises(StudyRejected) as rejected:
        frames_of(dataset, folder)
    return rejected.value


def with_undefined_lengths(dataset: Dataset) -> None:
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for part in element.value:
                part.is_undefined_length_sequence_item = True
                with_undefined_lengths(part)


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless],
    ids=lambda uid: uid.name,
)
@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
def test_a_frame_says_what_its_slice_says(tmp_path: Path, syntax: str, undefined: bool) -> None:
    options = {"convolution_kernel": "H31s", "gantry_tilt_deg": 12.0, "kvp": 130.0, "slice_thickness_mm": 4.5}
    slices = little_series(**options)
    (dataset,) = enhanced_ct(little_frames(**options), transfer_syntax_uid=syntax)
    if undefined:
        with_undefined_lengths(dataset)
    frames = frames_of(dataset, tmp_path)
    assert [frame.frame_number for frame in frames] == list(range(1, COUNT + 1))
    for frame, one in zip(frames, slices, strict=True):
        assert frame.image_position_patient_mm == tuple(one.ImagePositionPatient)
        assert frame.image_orientation_patient == tuple(one.ImageOrientationPatient)
        assert frame.pixel_spacing_mm == tuple(one.PixelSpacing)
        assert frame.slice_thickness_mm == 4.5
        assert frame.gantry_detector_tilt_deg == 12.0
        assert frame.kvp == 130.0
        assert frame.convolution_kernel == ("H31s", "BRAIN")
        assert frame.acquisition_number == 1
        assert frame.image_type == ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
        assert frame.anatomic_region == "Head"
        assert (frame.stack_id, frame.temporal_position) == ("1", 1)
        assert frame.contrast_bolus_agent == ""
        assert frame.concatenation is None
        assert (frame.rows, frame.columns, frame.number_of_frames) == (80, 72, COUNT)
        assert frame.series_description == "HEAD AXIAL"
        assert frame.transfer_syntax_uid == syntax


def test_values_may_differ_from_frame_to_frame(tmp_path: Path) -> None:
    frames = little_frames()
    changed(frames[:10], ConvolutionKernel="BONE", KVP="100", SliceThickness="1", AcquisitionNumber=7)
    frames[3:5] = told_apart(
        frames[3:5],
        stack_id="neck",
        temporal_position=2,
        frame_type=("ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"),
        region=("45048000", "SCT", "Neck"),
    )
    (dataset,) = enhanced_ct(frames)
    found = frames_of(dataset, tmp_path)
    assert [f.convolution_kernel[0] for f in found] == ["BONE"] * 10 + ["STANDARD"] * 18
    assert [f.kvp for f in found] == [100.0] * 10 + [120.0] * 18
    assert [f.slice_thickness_mm for f in found] == [1.0] * 10 + [5.0] * 18
    assert [f.acquisition_number for f in found] == [7] * 10 + [1] * 18
    odd = [f for f in found if f.stack_id == "neck"]
    assert [f.frame_number for f in odd] == [4, 5]
    assert {(f.temporal_position, f.image_type[2], f.anatomic_region) for f in odd} == {
        (2, "LOCALIZER", "Neck")
    }


@pytest.mark.parametrize(("code", "meaning"), [("69536005", "Kopf"), ("T-D1100", "tête"), ("12738006", "")])
def test_the_head_is_known_by_its_code(tmp_path: Path, code: str, meaning: str) -> None:
    frames = told_apart(little_frames(), region=(code, "SCT", meaning))
    (dataset,) = enhanced_ct(frames)
    assert {f.anatomic_region for f in frames_of(dataset, tmp_path)} == {"Head"}


def test_contrast_is_that_of_the_frame(tmp_path: Path) -> None:
    frames = little_frames(contrast_bolus_agent="IOPAMIDOL 370")
    frames[:14] = told_apart(frames[:14], contrast_administered=False)
    (dataset,) = enhanced_ct(frames)
    found = frames_of(dataset, tmp_path)
    assert [f.contrast_bolus_agent for f in found] == [""] * 14 + ["IOPAMIDOL 370"] * 14
    for group in groups_of(dataset):
        del group.ContrastBolusUsageSequence
    found = frames_of(dataset, tmp_path)
    assert {f.contrast_bolus_agent for f in found} == {"IOPAMIDOL 370"}, "an agent of which no use is denied"


def test_stacks_and_times_may_be_told_by_dimensions_alone(tmp_path: Path) -> None:
    frames = little_frames()
    frames[14:] = told_apart(frames[14:], stack_id="2", temporal_position=5)
    (dataset,) = enhanced_ct(frames)
    for group in groups_of(dataset):
        content = group.FrameContentSequence[0]
        del content.StackID, content.TemporalPositionIndex
    found = frames_of(dataset, tmp_path)
    assert [(f.stack_id, f.temporal_position) for f in found] == [("1", 1)] * 14 + [("2", 5)] * 14


def test_a_concatenation_is_named(tmp_path: Path) -> None:
    first, second = enhanced_ct(little_frames(), objects=2, concatenated=True)
    assert {f.concatenation for f in frames_of(first, tmp_path)} == {
        Concatenation(
            concatenation_uid=first.ConcatenationUID,
            in_concatenation_number=1,
            in_concatenation_total_number=2,
            concatenation_frame_offset_number=0,
        )
    }
    (concatenation,) = {f.concatenation for f in frames_of(second, tmp_path)}
    assert concatenation is not None
    assert concatenation.concatenation_frame_offset_number == 14
    assert [f.frame_number for f in frames_of(second, tmp_path)] == list(range(1, 15))


def test_what_a_converter_of_single_frames_leaves_is_found(tmp_path: Path) -> None:
    """Written by highdicom: kernel, tube voltage and contrast stand among the unassigned attributes."""
    slices = little_series(convolution_kernel="H31s", kvp=110.0, contrast_bolus_agent="IOPAMIDOL")
    slices[4].ConvolutionKernel = "H70s"
    converted = LegacyConvertedEnhancedCTImage(
        legacy_datasets=slices,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
    )
    found = sorted(
        frames_of(converted, tmp_path), key=lambda f: (f.image_position_patient_mm or (0.0, 0.0, 0.0))[2]
    )
    assert len(found) == COUNT
    for frame, one in zip(found, slices, strict=True):
        assert frame.image_position_patient_mm == pytest.approx(tuple(one.ImagePositionPatient))
        assert frame.image_orientation_patient == tuple(one.ImageOrientationPatient)
        assert frame.pixel_spacing_mm == tuple(one.PixelSpacing)
        assert frame.slice_thickness_mm == 5.0
        assert frame.convolution_kernel == (str(one.ConvolutionKernel),)
        assert frame.kvp == 110.0
        assert frame.contrast_bolus_agent == "IOPAMIDOL"
        assert frame.image_type[:3] == ("ORIGINAL", "PRIMARY", "AXIAL")


def test_the_header_at_receipt_does_not_look_at_the_frames(tmp_path: Path) -> None:
    """What stands in the functional groups costs a receiver nothing, not even where it is damaged."""
    dataset = one_object()
    path = save(dataset, tmp_path)
    expected, _ = read_header(path)
    assert expected.has_pixel_data
    assert (expected.number_of_frames, expected.frame_number) == (COUNT, None)
    assert expected.image_position_patient_mm is None
    content = bytearray(path.read_bytes())
    start = content.index(b"\x00\x52\x29\x92SQ") + 12
    content[start:] = b"\xff" * (len(content) - start)
    path.write_bytes(content)
    assert read_header(path)[0] == expected
    with pytest.raises(StudyRejected) as rejected:
        read_frames_header(path)
    assert rejected.value.reason in (R.NOT_AN_IMAGE, R.MISSING_ATTRIBUTE)


def _without_per_frame(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence


def _empty_per_frame(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = items()


def _too_few(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = items(*groups_of(dataset)[:20])


def _too_many(dataset: Dataset) -> None:
    dataset.NumberOfFrames = 27


def _countless(dataset: Dataset) -> None:
    dataset.NumberOfFrames = 70_000


def _no_number(dataset: Dataset) -> None:
    del dataset.NumberOfFrames


def _no_pixels(dataset: Dataset) -> None:
    del dataset.PixelData


def _contradicting_orientation(dataset: Dataset) -> None:
    groups_of(dataset)[5].PlaneOrientationSequence = items(item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]))


def _contradicting_spacing(dataset: Dataset) -> None:
    groups_of(dataset)[5].PixelMeasuresSequence = items(item(PixelSpacing=[1, 1], SliceThickness="5"))


@pytest.mark.parametrize(
    ("damage", "reason", "word"),
    [
        (_without_per_frame, R.MISSING_ATTRIBUTE, "(5200,9230) is absent"),
        (_empty_per_frame, R.MISSING_ATTRIBUTE, "(5200,9230) is absent"),
        (_too_few, R.MISSING_ATTRIBUTE, "20 items where Number of Frames (0028,0008) says 28"),
        (_too_many, R.MISSING_ATTRIBUTE, "more items where Number of Frames (0028,0008) says 27"),
        (_countless, R.TOO_LARGE, "70000 frames"),
        (_no_number, R.MISSING_ATTRIBUTE, "says 1"),
        (_no_pixels, R.NO_IMAGES, "Pixel Data"),
        (_contradicting_orientation, R.INCONSISTENT_GEOMETRY, "Plane Orientation Sequence (0020,9116)"),
        (_contradicting_spacing, R.INCONSISTENT_GEOMETRY, "Pixel Measures Sequence (0028,9110)"),
    ],
)
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=["native", "deflated"]
)
def test_a_contradiction_has_a_reason(
    tmp_path: Path, damage: Callable[[Dataset], None], reason: RejectionReason, word: str, syntax: str
) -> None:
    (dataset,) = enhanced_ct(little_frames(), transfer_syntax_uid=syntax)
    damage(dataset)
    found = rejection(dataset, tmp_path)
    assert found.reason is reason
    assert word in found.detail


def test_the_same_said_twice_is_no_contradiction(tmp_path: Path) -> None:
    dataset = one_object()
    for group in groups_of(dataset):
        group.PlaneOrientationSequence = shared_of(dataset).PlaneOrientationSequence
    assert len(frames_of(dataset, tmp_path)) == COUNT


def test_a_missing_group_is_absent_and_not_guessed(tmp_path: Path) -> None:
    dataset = one_object()
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence", "CTReconstructionSequence"):
        delattr(shared_of(dataset), keyword)
    del groups_of(dataset)[2].PlanePositionSequence
    del groups_of(dataset)[3].FrameContentSequence
    dataset.PixelSpacing = [3, 3]
    found = frames_of(dataset, tmp_path)
    assert {(f.image_orientation_patient, f.pixel_spacing_mm, f.convolution_kernel) for f in found} == {
        (None, None, ())
    }
    assert [f.frame_number for f in found if f.image_position_patient_mm is None] == [3]
    assert [f.frame_number for f in found if f.stack_id == ""] == [4]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), length=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_damage_ends_in_frames_or_a_reason(tmp_path: Path, where: float, length: int, seed: int) -> None:
    path = tmp_path / "whole.dcm"
    if not path.exists():
        one_object().save_as(path, enforce_file_format=True)
    content = bytearray(path.read_bytes())
    start, end = content.index(b"\x00\x52\x29\x92SQ"), content.index(b"\xe0\x7f\x10\x00OW")
    at = start + int(where * (end - start))
    content[at : at + length] = random.Random(seed).randbytes(length)
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(content)
    try:
        found = read_frames_header(damaged)
    except StudyRejected:
        return
    assert [frame.frame_number for frame in found] == list(range(1, COUNT + 1))


def test_a_file_cut_short_has_a_reason(tmp_path: Path) -> None:
    path = save(one_object(), tmp_path)
    content = path.read_bytes()
    start, end = content.index(b"\x00\x52\x29\x92SQ"), content.index(b"\xe0\x7f\x10\x00OW")
    for length in range(start, end, 997):
        path.write_bytes(content[:length])
        with pytest.raises(StudyRejected) as rejected:
            read_frames_header(path)
        assert rejected.value.reason in (R.NOT_AN_IMAGE, R.MISSING_ATTRIBUTE, R.NO_IMAGES)


def test_warnings_are_not_shown_and_values_not_logged(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = one_object()
    first, second = (
        "\\".join(str(v.original_string) for v in g.PlanePositionSequence[0].ImagePositionPatient)
        for g in groups_of(dataset)[:2]
    )
    path = save(dataset, tmp_path)
    content = path.read_bytes().replace(first.encode(), b"x" * len(first))
    path.write_bytes(content.replace(second.encode(), b"1.2.3".ljust(len(second), b"\\")))
    positions = [frame.image_position_patient_mm for frame in read_frames_header(path)]
    assert positions[:2] == [None, None]
    assert None not in positions[2:]
    assert not recwarn.list
    assert not caplog.records
