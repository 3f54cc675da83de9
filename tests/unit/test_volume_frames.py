"""A multi-frame object gives the volume that its slices give as single frames, or a reason."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ich_node import slice_pixels
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.pixels import DecodeLimits, SlicePixels, read_frames
from ich_node.selection import select_series
from ich_node.study import Series, Study
from ich_node.testing.enhanced import enhanced_ct
from ich_node.testing.functional_groups import EnhancedFrame
from ich_node.volume import load_volume, source_headers
from tests.enhanced_builders import (
    changed,
    groups_of,
    item,
    items,
    little_enhanced,
    little_frames,
    opened,
    shared_of,
    told_apart,
)
from tests.unit.little_head import SPACING_MM, little_head, little_series, received

R = RejectionReason
COUNT = 28
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEG2000Lossless,
    JPEGLSLossless,
)


def rejection(series: Series) -> StudyRejected:
    """Why a series is not read: by the selection, or by the volume."""
    selection = select_series(Study(study_instance_uid=series.study_instance_uid, series=(series,)))
    if selection.exclusions:
        return StudyRejected(selection.exclusions[0].reason, selection.exclusions[0].detail)
    with pytest.raises(StudyRejected) as rejected:
        load_volume(series)
    return rejected.value


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    "options",
    [{}, {"objects": 2}, {"objects": 3, "concatenated": True}, {"objects": COUNT}],
    ids=["one", "two", "concatenated", "one each"],
)
def test_the_volume_is_that_of_the_single_frames(
    tmp_path: Path, syntax: str, options: dict[str, Any]
) -> None:
    single_folder, multi_folder = tmp_path / "single", tmp_path / "multi"
    single_folder.mkdir()
    multi_folder.mkdir()
    single = load_volume(received(little_series(), single_folder))
    multi = load_volume(little_enhanced(multi_folder, transfer_syntax_uid=syntax, **options))
    np.testing.assert_array_equal(multi.hu, single.hu)
    np.testing.assert_array_equal(multi.affine, single.affine)
    assert multi.spacing_mm == single.spacing_mm == pytest.approx(SPACING_MM)
    assert multi.caveats == ()
    numbers = [i.frame_number for i in multi.instances]
    if "objects" not in options:
        assert numbers == list(range(1, COUNT + 1))
    per_object = COUNT // options.get("objects", 1)
    assert max(n for n in numbers if n is not None) <= per_object + 1
    assert len({(i.sop_instance_uid, i.frame_number) for i in multi.instances}) == COUNT


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shuffler=st.randoms(use_true_random=False), tilt=st.sampled_from((0.0, -18.5)))
def test_frames_are_sorted_by_where_they_lie(tmp_path: Path, shuffler: random.Random, tilt: float) -> None:
    frames = little_frames(gantry_tilt_deg=tilt)
    order = list(range(COUNT))
    shuffler.shuffle(order)
    volume = load_volume(opened(enhanced_ct([frames[k] for k in order]), tmp_path))
    np.testing.assert_array_equal(volume.hu, little_head())
    assert [i.frame_number for i in volume.instances] == [order.index(k) + 1 for k in range(COUNT)]


def test_each_frame_has_its_own_rescale(tmp_path: Path) -> None:
    frames = little_frames()
    for k, frame in enumerate(frames):
        hu = little_head()[k]
        frame.image.RescaleIntercept, frame.image.RescaleSlope = str(-1024 - k), "1"
        frame.image.PixelData = np.rint(hu + 1024 + k).astype("<u2").tobytes()
    volume = load_volume(opened(enhanced_ct(frames), tmp_path))
    np.testing.assert_array_equal(volume.hu, little_head())


def test_the_12_bit_fault_is_undone_in_frames(tmp_path: Path) -> None:
    frames = changed(little_frames(), RescaleIntercept="0", BitsStored=12, HighBit=11)
    for k, frame in enumerate(frames):
        frame.image.PixelData = (
            np.rint(little_head()[k]).astype(np.int64).__mod__(4096).astype("<u2").tobytes()
        )
    volume = load_volume(opened(enhanced_ct(frames), tmp_path))
    np.testing.assert_array_equal(volume.hu, little_head())
    assert volume.caveats == ("28 of 28 slices have 12-bit values that had wrapped around, unwrapped.",)


def test_headers_are_those_of_the_frames(tmp_path: Path) -> None:
    series = little_enhanced(tmp_path, objects=2)
    volume = load_volume(series)
    headers = source_headers(volume)
    for header, image, one in zip(headers, volume.instances, little_series(), strict=True):
        assert header.SOPInstanceUID == image.sop_instance_uid
        assert header.ImagePositionPatient == one.ImagePositionPatient
        assert header.ImageOrientationPatient == one.ImageOrientationPatient
        assert header.PixelSpacing == one.PixelSpacing
        assert header.SliceThickness == one.SliceThickness
        assert "PerFrameFunctionalGroupsSequence" not in header
        assert "PixelData" not in header
    volume.instances[0].path.unlink()
    with pytest.raises(StudyRejected):
        source_headers(volume)


def test_frames_behind_the_last_one_wanted_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = little_frames()
    bone = [
        EnhancedFrame(image=f.image, stack_id="2") for f in changed(little_frames(), ConvolutionKernel="BONE")
    ]
    decoded = 0

    def counted(path: Path, limits: DecodeLimits) -> Iterator[SlicePixels]:
        nonlocal decoded
        for pixels in read_frames(path, limits):
            decoded += 1
            yield pixels

    monkeypatch.setattr(slice_pixels, "read_frames", counted)
    volume = load_volume(opened(enhanced_ct([*frames, *bone]), tmp_path))
    assert decoded == COUNT
    assert volume.caveats == ("28 of 56 frames are other stacks or reconstructions and are not read.",)


def test_exact_copies_among_the_frames_are_dropped(tmp_path: Path) -> None:
    frames = little_frames()
    volume = load_volume(opened(enhanced_ct([*frames, *frames[5:9]]), tmp_path))
    np.testing.assert_array_equal(volume.hu, little_head())
    assert volume.caveats == ("4 images are exact copies of others at the same position and are dropped.",)


def test_the_same_slices_single_and_multi_frame_in_one_series_are_read_once(tmp_path: Path) -> None:
    single = little_series()
    multi = enhanced_ct(little_frames())
    volume = load_volume(opened([*single, *multi], tmp_path))
    np.testing.assert_array_equal(volume.hu, little_head())


def _without(sequence: str) -> Callable[[FileDataset], None]:
    def remove(dataset: Dataset) -> None:
        for group in (shared_of(dataset), *groups_of(dataset)):
            group.pop(sequence, None)

    return remove


def _without_third_place(dataset: FileDataset) -> None:
    del groups_of(dataset)[2].PlanePositionSequence


def _some_oblique(dataset: FileDataset) -> None:
    oblique = item(ImageOrientationPatient=[1, 0, 0, 0, 0.9, -0.4358899])
    axial = shared_of(dataset).PlaneOrientationSequence
    del shared_of(dataset).PlaneOrientationSequence
    for k, group in enumerate(groups_of(dataset)):
        group.PlaneOrientationSequence = items(oblique) if 10 <= k < 18 else axial


def _no_hounsfield_units(dataset: FileDataset) -> None:
    shared_of(dataset).PixelValueTransformationSequence[0].RescaleType = "MGML"


def _short(dataset: FileDataset) -> None:
    dataset.PixelData = dataset.PixelData[: -3 * 80 * 72 * 2]


@pytest.mark.parametrize(
    ("damage", "reason", "word"),
    [
        (_without("PlanePositionSequence"), R.MISSING_ATTRIBUTE, "(0020,0032)"),
        (_without_third_place, R.MISSING_ATTRIBUTE, "1 of 28"),
        (_without("PlaneOrientationSequence"), R.MISSING_ATTRIBUTE, "(0020,0037)"),
        (_without("PixelMeasuresSequence"), R.MISSING_ATTRIBUTE, "(0028,0030)"),
        (_without("PixelValueTransformationSequence"), R.MISSING_ATTRIBUTE, "in 28 of 28 slices"),
        (_some_oblique, R.INCONSISTENT_GEOMETRY, "8 of 28"),
        (_no_hounsfield_units, R.IMPLAUSIBLE_VALUES, "MGML"),
        (_short, R.CORRUPT_PIXEL_DATA, "Pixel Data"),
    ],
)
def test_bad_objects_have_a_reason(
    tmp_path: Path, damage: Callable[[FileDataset], None], reason: RejectionReason, word: str
) -> None:
    (dataset,) = enhanced_ct(little_frames())
    damage(dataset)
    found = rejection(opened([dataset], tmp_path))
    assert found.reason is reason
    assert word in found.detail


def test_a_hole_between_frames_has_a_reason(tmp_path: Path) -> None:
    frames = little_frames()
    found = rejection(opened(enhanced_ct(frames[:12] + frames[15:]), tmp_path))
    assert found.reason is R.MISSING_SLICES
    assert "3 slices are missing" in found.detail


def test_a_compressed_object_with_fewer_frames_has_a_reason(tmp_path: Path) -> None:
    (dataset,) = enhanced_ct(little_frames(), transfer_syntax_uid=RLELossless)
    kept = list(generate_frames(dataset.PixelData, number_of_frames=COUNT))[:25]
    dataset.PixelData = encapsulate(kept)
    assert rejection(opened([dataset], tmp_path)).reason is R.CORRUPT_PIXEL_DATA


def test_the_place_of_a_damaged_frame_is_named(tmp_path: Path) -> None:
    (dataset,) = enhanced_ct(little_frames(), transfer_syntax_uid=JPEG2000Lossless)
    streams = list(generate_frames(dataset.PixelData, number_of_frames=COUNT))
    streams[9] = streams[9][:40] + bytes(len(streams[9]) - 40)
    dataset.PixelData = encapsulate(streams)
    found = rejection(opened([dataset], tmp_path))
    assert found.reason is R.CORRUPT_PIXEL_DATA
    place = re.match(r"At frame (\d+) of 28, or shortly after: ", found.detail)
    assert place
    assert 2 < int(place[1]) <= 10


def test_limits_hold_for_the_whole_object(tmp_path: Path) -> None:
    series = little_enhanced(tmp_path)
    size = COUNT * 80 * 72 * 2
    assert load_volume(series, DecodeLimits(max_image_bytes=size)).hu.shape[0] == COUNT
    with pytest.raises(StudyRejected) as rejected:
        load_volume(series, DecodeLimits(max_image_bytes=size - 1))
    assert rejected.value.reason is R.TOO_LARGE


def test_a_part_of_a_concatenation_is_not_read(tmp_path: Path) -> None:
    parts = enhanced_ct(little_frames(), objects=2, concatenated=True)
    assert rejection(opened(parts[:1], tmp_path)).reason is R.MISSING_SLICES


def test_a_dynamic_object_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [f for t in range(5) for f in told_apart(little_frames(), temporal_position=t + 1)]
    series = opened(enhanced_ct(frames), tmp_path)
    monkeypatch.setattr(slice_pixels, "read_frames", None)
    assert rejection(series).reason is R.DUPLICATE_POSITIONS


def test_a_head_is_known_by_its_skull_where_no_text_names_it(tmp_path: Path) -> None:
    silent = {
        "body_part_examined": "",
        "study_description": "",
        "protocol_name": "",
        "series_description": "",
    }
    frames = told_apart(little_frames(**silent), region=("1", "99TEST", "?"))
    assert load_volume(opened(enhanced_ct(frames), tmp_path)).hu.shape[0] == COUNT
    flat = [replace(f) for f in told_apart(little_frames(**silent), region=("1", "99TEST", "?"))]
    values = np.rint(np.where(little_head() > 900, 40, little_head()) + 1024).astype("<u2")
    values[:, 20:26, 20:26] = 2000
    for k, frame in enumerate(flat):
        frame.image.PixelData = values[k].tobytes()
    assert rejection(opened(enhanced_ct(flat), tmp_path)).reason is R.NOT_HEAD
