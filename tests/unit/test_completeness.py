from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ich_node.receive.completeness import OpenSeries, is_geometrically_complete
from ich_node.receive.header import read_header
from ich_node.study import Instance


def stack(gaps_mm: list[float], *, tilt_deg: float = 0.0, numbered: bool = False) -> list[Instance]:
    """Slices at these gaps along z, with the gantry tilted about x."""
    tilt = np.deg2rad(tilt_deg)
    column = (0.0, float(np.cos(tilt)), float(np.sin(tilt)))
    normal = np.cross((1.0, 0.0, 0.0), column)
    slices = []
    for number, along in enumerate(np.concatenate([[0.0], np.cumsum(gaps_mm)])):
        # A tilted gantry moves the table along z, so the slices shear: only the part along the normal counts.
        position = np.array([-120.0, -100.0, 40.0]) + np.array([0.0, 0.0, 1.0]) * along / normal[2]
        slices.append(
            Instance(
                path=Path(),
                sop_instance_uid=f"1.2.{number}",
                sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                series_instance_uid="1.2",
                study_instance_uid="1.3",
                instance_number=number + 1 if numbered else None,
                image_position_patient_mm=(float(position[0]), float(position[1]), float(position[2])),
                image_orientation_patient=(1.0, 0.0, 0.0, *column),
            )
        )
    return slices


spacings = st.floats(0.5, 10.0)
tilts = st.floats(-25.0, 25.0)
counts = st.integers(9, 60)
seeds = st.integers(0, 2**32)


@given(spacings, counts, tilts, st.booleans(), seeds)
def test_a_regular_stack_in_any_order_is_complete(
    spacing: float, gaps: int, tilt: float, numbered: bool, seed: int
) -> None:
    slices = stack([spacing] * gaps, tilt_deg=tilt, numbered=numbered)
    random.Random(seed).shuffle(slices)
    assert is_geometrically_complete(slices)


@given(spacings, st.integers(10, 60), tilts, st.data())
def test_a_missing_slice_within_a_regular_stack_shows(
    spacing: float, gaps: int, tilt: float, data: st.DataObject
) -> None:
    slices = stack([spacing] * gaps, tilt_deg=tilt)
    del slices[data.draw(st.integers(1, gaps - 1))]
    assert not is_geometrically_complete(slices)


@given(
    st.integers(6, 30),
    st.integers(6, 30),
    st.sampled_from([(4.0, 7.0), (2.5, 5.0), (5.0, 10.0), (3.0, 8.0), (7.0, 4.0)]),
    st.sampled_from(["none", "overlap", "mean"]),
    tilts,
)
def test_one_change_of_spacing_is_complete(
    before: int, after: int, spacing: tuple[float, float], meeting: str, tilt: float
) -> None:
    between = {"none": [], "overlap": [1.08], "mean": [sum(spacing) / 2]}[meeting]
    gaps = [spacing[0]] * before + between + [spacing[1]] * after
    assert is_geometrically_complete(stack(gaps, tilt_deg=tilt))


@given(st.integers(8, 20), st.integers(8, 20), st.data())
def test_a_missing_slice_in_a_stack_with_a_change_of_spacing_shows(
    before: int, after: int, data: st.DataObject
) -> None:
    slices = stack([4.0] * before + [7.0] * after)
    del slices[data.draw(st.integers(1, len(slices) - 2))]
    assert not is_geometrically_complete(slices)


@given(spacings, spacings, st.integers(5, 20), st.integers(5, 20), st.data())
def test_a_hole_in_the_instance_numbers_shows_whatever_the_spacing(
    thin: float, thick: float, before: int, after: int, data: st.DataObject
) -> None:
    slices = stack([thin] * before + [thick] * after, numbered=True)
    del slices[data.draw(st.integers(1, len(slices) - 2))]
    assert not is_geometrically_complete(slices)


@given(st.integers(0, 8))
def test_fewer_than_ten_positions_are_not_complete(gaps: int) -> None:
    assert not is_geometrically_complete(stack([5.0] * gaps))


def test_nothing_is_not_complete() -> None:
    assert not is_geometrically_complete([])


def test_the_same_position_twice_counts_once() -> None:
    slices = stack([5.0] * 8)
    assert not is_geometrically_complete(slices + slices)
    assert is_geometrically_complete(stack([5.0] * 9) * 2)


@given(st.floats(0.5, 1.5), counts)
def test_positions_rounded_to_a_tenth_are_complete(spacing: float, gaps: int) -> None:
    slices = [
        replace(one, image_position_patient_mm=(0.0, 0.0, round(number * spacing, 1)))
        for number, one in enumerate(stack([spacing] * gaps))
    ]
    assert is_geometrically_complete(slices)


@pytest.mark.parametrize(
    "broken",
    [
        {"image_position_patient_mm": None},
        {"image_orientation_patient": None},
        {"image_position_patient_mm": (0.0, 0.0, float("nan"))},
        {"image_orientation_patient": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)},
        {"image_orientation_patient": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)},
    ],
)
def test_a_slice_without_its_place_in_the_stack_is_not_complete(broken: dict[str, object]) -> None:
    slices = stack([5.0] * 20)
    assert is_geometrically_complete(slices)
    assert not is_geometrically_complete([*slices[:-1], replace(slices[-1], **broken)])
    assert not is_geometrically_complete(
        [replace(one, **{k: v}) for one in slices for k, v in broken.items() if v is None]
    )


def test_multi_frame_instances_are_complete_by_themselves() -> None:
    one = replace(stack([])[0], image_position_patient_mm=None, image_orientation_patient=None)
    assert is_geometrically_complete([replace(one, number_of_frames=30)])
    assert not is_geometrically_complete([replace(one, number_of_frames=3)])


@pytest.mark.parametrize("spacing", [(0.625, 0.625), (0.625, 1.25), (4.0, 5.0), (5.0, 4.0)])
def test_thousands_of_slices_are_judged_as_few_are(spacing: tuple[float, float]) -> None:
    slices = stack([spacing[0]] * 1000 + [spacing[1]] * 1500)
    assert is_geometrically_complete(slices)
    del slices[700]
    assert not is_geometrically_complete(slices)


def test_a_series_is_open_until_the_last_that_brings_it_ends() -> None:
    series = OpenSeries(silence_s=60.0)
    assert series.bring("a", "1", now_s=0.0)
    assert series.bring("b", "1", now_s=1.0)
    assert series.bring("a", "2", now_s=2.0)
    assert not series.bring("a", "1", now_s=3.0)
    assert series.end("a", now_s=4.0) == ["2"]
    assert series.is_open("1", now_s=4.0)
    assert series.end("b", ["3"], now_s=5.0) == ["3", "1"]
    assert not series.is_open("1", now_s=5.0)
    assert len(series) == 0


def test_an_association_whose_end_is_never_heard_of_counts_no_longer() -> None:
    series = OpenSeries(silence_s=60.0)
    for uid in ("1", "2"):
        series.bring("dead", uid, now_s=0.0)
    series.bring("a", "1", now_s=50.0)
    assert series.end("a", now_s=60.0) == []
    series.bring("b", "1", now_s=60.0)
    assert series.end("b", now_s=60.1) == ["1"]
    series.forget_silent(now_s=60.1)
    assert len(series) == 0
    assert series.end("dead", ["1"], now_s=70.0) == ["1"]  # it comes after all


def test_what_is_forgotten_is_what_is_silent() -> None:
    series = OpenSeries(silence_s=60.0)
    series.bring("a", "1", now_s=0.0)
    series.bring("b", "1", now_s=10.0)
    series.forget_silent(now_s=65.0)
    assert series.is_open("1", now_s=65.0)
    assert series.end("b", now_s=66.0) == ["1"]


@given(st.lists(st.floats(0.1, 20.0), min_size=9, max_size=30), st.data())
def test_the_order_of_arrival_never_matters(gaps: list[float], data: st.DataObject) -> None:
    slices = stack(gaps)
    assume(len(slices) > 1)
    shuffled = data.draw(st.permutations(slices))
    assert is_geometrically_complete(shuffled) == is_geometrically_complete(slices)


def test_a_real_tilted_series_with_two_spacings(shared_data: Path) -> None:
    slices = [read_header(path)[0] for path in sorted((shared_data / "ge_head_tilted").glob("*.dcm"))]
    assert len(slices) == 28
    assert is_geometrically_complete(slices)
    for missing in range(1, 27):
        rest = [one for number, one in enumerate(slices) if number != missing]
        assert not is_geometrically_complete(rest)
