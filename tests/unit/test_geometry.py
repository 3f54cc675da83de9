from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node import geometry
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.study import Instance

Orientation = tuple[float, float, float, float, float, float]


def stack(
    positions: list[tuple[float, float, float]],
    orientation: Orientation = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float] = (0.5, 0.4),
) -> list[Instance]:
    return [
        Instance(
            path=Path("unused"),
            sop_instance_uid=f"1.2.{index + 1}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            series_instance_uid="1.1",
            study_instance_uid="1",
            rows=512,
            columns=512,
            image_position_patient_mm=position,
            image_orientation_patient=orientation,
            pixel_spacing_mm=spacing,
            instance_number=index + 1,
        )
        for index, position in enumerate(positions)
    ]


def tilted(tilt_deg: float, rows_down: int = 1, columns_left: int = 1) -> Orientation:
    tilt = math.radians(tilt_deg)
    return (columns_left, 0, 0, 0, rows_down * math.cos(tilt), -rows_down * math.sin(tilt))


tilts = st.floats(-30, 30)
signs = st.sampled_from([-1, 1])
steps = st.lists(st.floats(0.5, 10), min_size=2, max_size=30)


def along_table(step_mm: list[float], feet_first: bool = False) -> list[tuple[float, float, float]]:
    z = np.concatenate([[0.0], np.cumsum(step_mm)]) - 300.0
    return [(-120.0, -110.0, float(v)) for v in (z[::-1] if feet_first else z)]


@settings(deadline=None)
@given(tilts, signs, signs, steps, st.randoms(use_true_random=False), st.booleans())
def test_order_is_upward_whatever_the_arrival_and_the_orientation(
    tilt: float, down: int, left: int, step_mm: list[float], shuffler: random.Random, feet_first: bool
) -> None:
    images = stack(along_table(step_mm, feet_first), tilted(tilt, down, left))
    ordered, offsets = geometry.sort_upward(images)
    shuffler.shuffle(images)
    assert geometry.sort_upward(images) == (ordered, offsets)
    heights = [i.image_position_patient_mm[2] for i in ordered if i.image_position_patient_mm]
    assert heights == sorted(heights)
    assert offsets[0] == 0.0


@settings(deadline=None)
@given(tilts, signs, signs, steps)
def test_gaps_are_measured_across_the_slices_under_tilt(
    tilt: float, down: int, left: int, step_mm: list[float]
) -> None:
    _, offsets = geometry.sort_upward(stack(along_table(step_mm), tilted(tilt, down, left)))
    np.testing.assert_allclose(np.diff(offsets), np.array(step_mm) * math.cos(math.radians(tilt)), atol=1e-6)


@settings(deadline=None)
@given(tilts, signs, signs, st.floats(0.5, 10), st.integers(2, 40), st.data())
def test_affine_maps_indices_to_where_the_headers_say(
    tilt: float, down: int, left: int, step: float, count: int, data: st.DataObject
) -> None:
    orientation = tilted(tilt, down, left)
    ordered, _ = geometry.sort_upward(stack(along_table([step] * (count - 1)), orientation))
    matrix = geometry.affine(ordered)
    k = data.draw(st.integers(0, count - 1))
    column, row = data.draw(st.integers(0, 511)), data.draw(st.integers(0, 511))
    origin = np.array(ordered[k].image_position_patient_mm)
    # PS3.3 C.7.6.2.1.1: the column index runs along the row direction, by the second value of Pixel Spacing
    expected = origin + np.array(orientation[:3]) * 0.4 * column + np.array(orientation[3:]) * 0.5 * row
    np.testing.assert_allclose((matrix @ [column, row, k, 1])[:3], expected, atol=1e-6)
    np.testing.assert_allclose((matrix @ [0, 0, k, 1])[:3], origin, atol=1e-6)


@settings(deadline=None)
@given(tilts)
def test_affine_keeps_mirrored_storage_visible(tilt: float) -> None:
    positions = along_table([5.0] * 20)
    usual = geometry.affine(geometry.sort_upward(stack(positions, tilted(tilt)))[0])
    mirrored = geometry.affine(geometry.sort_upward(stack(positions, tilted(tilt, columns_left=-1)))[0])
    assert np.linalg.det(usual[:3, :3]) > 0
    assert np.linalg.det(mirrored[:3, :3]) < 0


@settings(deadline=None)
@given(st.floats(-60, 60), signs, signs)
def test_tilt_is_the_angle_to_the_body_axis(tilt: float, down: int, left: int) -> None:
    (image,) = stack([(0, 0, 0)], tilted(tilt, down, left))
    assert geometry.tilt_deg(image) == pytest.approx(abs(tilt), abs=1e-4)


def test_coronal_and_sagittal_are_a_right_angle_away() -> None:
    coronal, sagittal = (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
    for orientation in (coronal, sagittal):
        assert geometry.tilt_deg(stack([(0, 0, 0)], orientation)[0]) == pytest.approx(90)


@settings(deadline=None)
@given(st.floats(0.5, 8), st.integers(10, 60), st.data())
def test_one_missing_slice_is_found_where_it_is(spacing: float, count: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(1, count - 2))
    offsets = [k * spacing for k in range(count) if k != lost]
    (hole,) = geometry.holes(offsets, [spacing] * (count - 1))
    assert (hole.index, hole.missing_slices) == (lost - 1, 1)
    assert hole.width_mm == pytest.approx(2 * spacing)
    assert hole.expected_mm == pytest.approx(spacing)


@settings(deadline=None)
@given(st.floats(0.5, 8), st.integers(12, 60), st.integers(2, 5), st.data())
def test_a_run_of_missing_slices_is_counted(
    spacing: float, count: int, run: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, count - run - 1))
    offsets = [k * spacing for k in range(count) if not first <= k < first + run]
    (hole,) = geometry.holes(offsets, [None] * len(offsets))
    assert hole.missing_slices == run


@settings(deadline=None)
@given(st.floats(0.5, 10), st.integers(2, 60))
def test_even_spacing_has_no_holes(spacing: float, count: int) -> None:
    assert geometry.holes([k * spacing for k in range(count)], [spacing] * count) == []


@pytest.mark.parametrize("low_first", [True, False])
def test_a_change_of_thickness_is_no_hole(low_first: bool) -> None:
    gaps = [4.0] * 13 + [1.08] + [7.0] * 13
    thickness = [4.0] * 14 + [7.0] * 14
    if not low_first:
        gaps, thickness = gaps[::-1], thickness[::-1]
    assert geometry.holes([0.0, *np.cumsum(gaps).tolist()], thickness) == []


def test_a_single_thicker_slice_at_the_top_is_no_hole() -> None:
    offsets = [0.0, *np.cumsum([2.5] * 12 + [5.0]).tolist()]
    assert geometry.holes(offsets, [2.5] * 12 + [5.0, 5.0]) == []
    assert len(geometry.holes(offsets, [2.5] * 14)) == 1


def test_a_slice_missing_among_thick_slices_is_found() -> None:
    offsets = [0.0, *np.cumsum([4.0] * 13 + [7.0] * 5 + [14.0] + [7.0] * 6).tolist()]
    (hole,) = geometry.holes(offsets, [4.0] * 13 + [7.0] * 13)
    assert (hole.index, hole.missing_slices) == (18, 1)


def test_positions_within_tolerance_are_one() -> None:
    assert geometry.positions([0.0, 0.05, 5.0, 5.0, 10.0]) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("orientation", [(0, 0, 0, 0, 0, 0), (1, 0, 0, 1, 0, 0), (2, 0, 0, 0, 2, 0), None])
def test_an_orientation_that_is_none_is_a_missing_attribute(orientation: Orientation | None) -> None:
    images = stack([(0, 0, 5.0 * k) for k in range(3)], orientation)  # type: ignore[arg-type]
    with pytest.raises(StudyRejected) as rejected:
        geometry.require_attributes(images)
    assert rejected.value.reason is RejectionReason.MISSING_ATTRIBUTE
    assert "ImageOrientationPatient (0020,0037)" in rejected.value.detail
    assert "3 of 3" in rejected.value.detail


def test_majority_grid_is_the_largest() -> None:
    many = stack([(0, 0, 5.0 * k) for k in range(12)])
    few = stack([(0, 0, 5.0 * k) for k in range(3)], spacing=(0.9, 0.9))
    assert geometry.majority_grid([*few, *many]) == (many, few)


def test_header_rounding_does_not_split_a_grid() -> None:
    rounded = stack([(0, 0, 5)], (0.99999, 0.0001, 0, 0, 1, 0), (0.50001, 0.4))
    assert geometry.majority_grid(stack([(0, 0, 0)]) + rounded)[1] == []
