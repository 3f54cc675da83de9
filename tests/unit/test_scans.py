"""Multi-frame series in the selection: frames judged one by one, scans told apart, ranked with single frames."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.scans import split_scans, time_points
from ich_node.selection import readable_images
from ich_node.study import Concatenation, Instance, Series
from tests.unit.test_selection import CORONAL, ENHANCED_CT, chosen, excluded, head_series, select

R = RejectionReason
LEGACY_CT = "1.2.840.10008.5.1.4.1.1.2.2"
VOLUME = ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")


def frames(count: int = 30, uid: str = "1.1.0", first: int = 1, **changes: Any) -> list[Instance]:
    """The slices of `head_series` as frames of one object, 5 mm apart unless ``changes`` say otherwise."""
    lowest = changes.pop("lowest_mm", 0.0)
    spacing = changes.pop("spacing_mm", 5.0)
    common: dict[str, Any] = {
        "sop_class_uid": ENHANCED_CT,
        "image_type": VOLUME,
        "stack_id": "1",
        "temporal_position": 1,
        "anatomic_region": "Head",
        "number_of_frames": count,
    }
    return [
        replace(
            image,
            sop_instance_uid=uid,
            frame_number=first + index,
            image_position_patient_mm=(-115.0, -115.0, lowest + index * spacing),
            **{"slice_thickness_mm": spacing} | common | changes,
        )
        for index, image in enumerate(head_series(count=count).instances)
    ]


def series_of(*parts: Sequence[Instance], uid: str = "1.1") -> Series:
    images = [replace(image, series_instance_uid=uid) for part in parts for image in part]
    return Series(series_instance_uid=uid, study_instance_uid="1", instances=tuple(images))


def read_frames_of(series: Series) -> tuple[list[int], tuple[str, ...]]:
    images, caveats = readable_images(series)
    return sorted(image.frame_number or 0 for image in images), caveats


def test_an_enhanced_head_is_a_candidate() -> None:
    series = series_of(frames())
    assert chosen(series) == ["1.1"]
    assert read_frames_of(series) == (list(range(1, 31)), ())


def test_a_converted_head_is_a_candidate() -> None:
    changes = {"sop_class_uid": LEGACY_CT, "image_type": ("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI")}
    assert chosen(series_of(frames(**changes))) == ["1.1"]


@pytest.mark.parametrize(
    ("changes", "reason", "word"),
    [
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER", "NONE")}, R.LOCALIZER, "Frame Type (0008,9007)"),
        ({"image_type": ("DERIVED", "SECONDARY", "VOLUME", "NONE")}, R.DERIVED, "Frame Type (0008,9007)"),
        ({"image_type": ("DERIVED", "PRIMARY", "VOLUME", "MAXIMUM")}, R.DERIVED, "MAXIMUM"),
        ({"image_type": ("DERIVED", "PRIMARY", "VOLUME", "SUBTRACTION")}, R.DERIVED, "SUBTRACTION"),
        ({"image_type": ("DERIVED", "PRIMARY", "MAX_IP", "NONE")}, R.DERIVED, "MAX_IP"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "VOLUME", "ACME_7")}, R.DERIVED, "private or unknown"),
        ({"image_type": ("ACME", "PRIMARY", "VOLUME", "NONE")}, R.DERIVED, "unknown first value"),
        ({"image_type": ("DERIVED", "PRIMARY", "PERFUSION", "NONE")}, R.DERIVED, "PERFUSION"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "PERFUSION", "NONE")}, R.DUPLICATE_POSITIONS, "dynamic"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "POST_CONTRAST", "NONE")}, R.CONTRAST, "POST_CONTRAST"),
        ({"volume_based_calculation_technique": "MPR"}, R.DERIVED, "(0008,9207)"),
        ({"volumetric_properties": "DISTORTED"}, R.DERIVED, "(0008,9206)"),
        ({"contrast_bolus_agent": "IOPAMIDOL"}, R.CONTRAST, "agent"),
        ({"anatomic_region": "Thorax", "body_part_examined": ""}, R.NOT_HEAD, "Anatomic Region (0008,2218)"),
        ({"convolution_kernel": ("ACME7", "BONE")}, R.BONE_KERNEL, "kernel"),
        ({"image_orientation_patient": CORONAL}, R.NOT_AXIAL, "axial"),
        ({"image_position_patient_mm": None}, R.MISSING_ATTRIBUTE, "(0020,0032)"),
        ({"image_orientation_patient": None}, R.MISSING_ATTRIBUTE, "(0020,0037)"),
        ({"pixel_spacing_mm": None}, R.MISSING_ATTRIBUTE, "(0028,0030)"),
    ],
)
def test_what_is_not_read_has_a_reason(changes: dict[str, Any], reason: RejectionReason, word: str) -> None:
    position = "image_position_patient_mm" in changes
    images = frames(**{k: v for k, v in changes.items() if k != "image_position_patient_mm"})
    if position:
        images = [replace(image, image_position_patient_mm=None) for image in images]
    found, detail = excluded(series_of(images))
    assert found is reason
    assert word in detail


@pytest.mark.parametrize("flavor", ["VOLUME", "ACME_FLAVOR", "STATIC", "PRE_CONTRAST", ""])
def test_a_flavor_that_says_nothing_of_it_does_not_exclude(flavor: str) -> None:
    assert chosen(series_of(frames(image_type=("ORIGINAL", "PRIMARY", flavor, "NONE")))) == ["1.1"]


@pytest.mark.parametrize("image_type", [(), ("ORIGINAL",), ("ORIGINAL", "PRIMARY")])
def test_a_short_frame_type_does_not_exclude(image_type: tuple[str, ...]) -> None:
    assert chosen(series_of(frames(image_type=image_type))) == ["1.1"]


def test_a_localizer_among_the_frames_is_set_aside() -> None:
    images = frames(32)
    images[:2] = [replace(i, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER", "NONE")) for i in images[:2]]
    numbers, caveats = read_frames_of(series_of(images))
    assert numbers == list(range(3, 33))
    assert caveats == ("2 of 32 frames of the series are set aside (LOCALIZER).",)


def test_another_stack_of_strays_does_not_outvote_the_slices() -> None:
    coronal = frames(200, first=31, stack_id="2", image_orientation_patient=CORONAL)
    numbers, caveats = read_frames_of(series_of(frames(), coronal))
    assert numbers == list(range(1, 31))
    assert "200 of 230" in caveats[0]


def test_strays_in_the_same_stack_outvote_the_slices() -> None:
    derived = frames(200, first=31, image_type=("DERIVED", "SECONDARY", "VOLUME", "NONE"))
    assert excluded(series_of(frames(), derived))[0] is R.DERIVED


def test_the_soft_reconstruction_of_one_object_is_read() -> None:
    bone = frames(first=1, convolution_kernel=("BONEPLUS", "BONE"))
    soft = frames(first=31, convolution_kernel=("STANDARD", "BRAIN"))
    numbers, caveats = read_frames_of(series_of(bone, soft))
    assert numbers == list(range(31, 61))
    assert caveats == ("30 of 60 frames are other stacks or reconstructions and are not read.",)


def test_the_scan_before_contrast_is_read() -> None:
    after = frames(first=31, temporal_position=2, contrast_bolus_agent="IOPAMIDOL")
    assert read_frames_of(series_of(frames(), after))[0] == list(range(1, 31))


@pytest.mark.parametrize("times", [2, 20])
def test_several_times_at_one_place_are_dynamic(times: int) -> None:
    parts = [frames(first=1 + 30 * t, temporal_position=t + 1) for t in range(times)]
    reason, detail = excluded(series_of(*parts))
    assert reason is R.DUPLICATE_POSITIONS
    assert "dynamic" in detail


def test_perfusion_is_not_read_by_its_first_time() -> None:
    """The frames before the bolus name no agent, and are no head CT all the same."""
    first = frames(first=1)
    later = [
        frames(first=31 + 30 * t, temporal_position=t + 2, contrast_bolus_agent="IOPAMIDOL")
        for t in range(19)
    ]
    assert excluded(series_of(first, *later))[0] is R.CONTRAST


def test_times_that_follow_the_table_are_one_scan() -> None:
    images = [replace(image, temporal_position=n) for n, image in enumerate(frames())]
    assert time_points(images) == 1
    assert chosen(series_of(images)) == ["1.1"]


def test_stacks_that_continue_each_other_are_one_scan() -> None:
    base = frames(12, spacing_mm=2.5)
    vertex = frames(24, first=13, stack_id="2", lowest_mm=30.0)
    assert read_frames_of(series_of(base, vertex)) == (list(range(1, 37)), ())


def test_stacks_that_interleave_are_one_scan() -> None:
    odd, even = (
        frames(15, spacing_mm=10.0),
        frames(15, first=16, stack_id="2", lowest_mm=5.0, spacing_mm=10.0),
    )
    assert read_frames_of(series_of(odd, even)) == (list(range(1, 31)), ())


def test_a_thick_stack_is_read_before_the_thin_one_beside_it() -> None:
    thin = frames(240, spacing_mm=0.625)
    thick = frames(30, first=241, stack_id="2")
    numbers, caveats = read_frames_of(series_of(thin, thick))
    assert numbers == list(range(241, 271))
    assert "240 of 270" in caveats[0]


def test_half_a_head_is_not_read_for_the_whole() -> None:
    tilted = (1.0, 0.0, 0.0, 0.0, 0.94, -0.342)
    low = frames(16, image_orientation_patient=tilted)
    high = frames(16, first=17, stack_id="2", lowest_mm=80.0)
    reason, detail = excluded(series_of(low, high))
    assert reason is R.INCONSISTENT_GEOMETRY
    assert "several stacks" in detail


def part(number: int, *, total: int | None = 3, offset: int | None = None, **changes: Any) -> list[Instance]:
    concatenation = Concatenation(
        concatenation_uid="1.9",
        in_concatenation_number=number,
        in_concatenation_total_number=total,
        concatenation_frame_offset_number=10 * (number - 1) if offset is None else offset,
    )
    return frames(10, f"1.1.{number}", lowest_mm=50.0 * (number - 1), concatenation=concatenation, **changes)


def test_a_whole_concatenation_is_one_scan() -> None:
    images, caveats = readable_images(series_of(part(1), part(2), part(3)))
    assert (len(images), caveats) == (30, ())
    assert len(readable_images(series_of(*(part(n, total=None) for n in (1, 2, 3))))[0]) == 30


@pytest.mark.parametrize(("total", "missing"), [(3, 1), (3, 2), (3, 3), (None, 1), (None, 2)])
def test_a_concatenation_in_part_is_not_read(total: int | None, missing: int) -> None:
    parts = [part(n, total=total) for n in (1, 2, 3) if n != missing]
    reason, detail = excluded(series_of(*parts))
    assert reason is R.MISSING_SLICES
    assert "concatenation" in detail


def test_single_frames_and_multi_frames_are_ranked_together() -> None:
    thin = series_of(frames(240, spacing_mm=0.625), uid="1.1")
    thick = head_series("1.2")
    assert chosen(thin, thick) == ["1.2", "1.1"]
    thick_frames, thin_slices = series_of(frames(), uid="1.1"), head_series("1.2", 240, 0.625)
    assert chosen(thin_slices, thick_frames) == ["1.1", "1.2"]


def test_a_series_of_objects_with_one_frame_each_is_read() -> None:
    images = [
        replace(image, sop_instance_uid=f"1.1.{n}", frame_number=1, number_of_frames=1)
        for n, image in enumerate(frames(), start=1)
    ]
    assert chosen(series_of(images)) == ["1.1"]


def test_single_frames_are_one_scan_whatever_their_kernels() -> None:
    images = list(head_series().instances)
    images[3:9] = [replace(image, convolution_kernel=("SOFT",)) for image in images[3:9]]
    assert split_scans(images) == [images]


@settings(max_examples=60)
@given(
    shuffler=st.randoms(use_true_random=False),
    stacks=st.lists(
        st.fixed_dictionaries(
            {
                "count": st.integers(1, 40),
                "spacing_mm": st.sampled_from((0.0, 1.0, 5.0)),
                "lowest_mm": st.sampled_from((0.0, 2.5, 60.0, 200.0)),
                "temporal_position": st.sampled_from((None, 1, 2)),
                "convolution_kernel": st.sampled_from(((), ("STANDARD",), ("BONE",))),
                "contrast_bolus_agent": st.sampled_from(("", "IOPAMIDOL")),
                "stack_id": st.sampled_from(("", "1", "2")),
                "image_orientation_patient": st.sampled_from(
                    ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), CORONAL, (0.0,) * 6)
                ),
            }
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_every_series_ends_as_candidate_or_with_a_reason(
    shuffler: random.Random, stacks: list[dict[str, Any]]
) -> None:
    first = 1
    images: list[Instance] = []
    for stack in stacks:
        images += frames(first=first, **stack)
        first += stack["count"]
    series = series_of(images)
    selection = select(series)
    assert len(selection.candidates) + len(selection.exclusions) == 1
    mixed = list(images)
    shuffler.shuffle(mixed)
    again = select(series_of(mixed))
    assert again.exclusions == selection.exclusions
    if selection.candidates:
        kept, _ = readable_images(series)
        others, _ = readable_images(series_of(mixed))
        assert kept == others
        assert {id(i) for scan in split_scans(kept) for i in scan} == {id(i) for i in kept}


def test_thousands_of_odd_frames_end_soon() -> None:
    """Each frame in a plane of its own: the grids are compared with each other."""
    images = [
        replace(
            image, image_orientation_patient=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), pixel_spacing_mm=(0.1 + n, 1.0)
        )
        for n, image in enumerate(frames(1500, spacing_mm=0.1))
    ]
    assert select(series_of(images)).candidates == ()


def test_the_reason_is_that_of_the_largest_scan() -> None:
    bone = frames(30, convolution_kernel=("BONE",))
    short = frames(5, first=31, stack_id="2", lowest_mm=300.0)
    with pytest.raises(StudyRejected) as rejected:
        readable_images(series_of(short, bone))
    assert rejected.value.reason is R.BONE_KERNEL
