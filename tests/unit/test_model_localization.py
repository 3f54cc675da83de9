"""The detector on hand-made maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.model.localization import DetectorConfig, detect

CONFIG = DetectorConfig(height=0.05, threshold=0.3, distance_mm=10, most=5)


def hill(row: float, column: float, top: float, width: float = 4.0) -> np.ndarray:
    y, x = np.mgrid[:64, :80]
    return (top * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2))).astype(np.float32)


def test_point_is_at_the_pixel_centre_with_columns_first():
    (point,) = detect(hill(20, 50, 0.9), (1.0, 1.0), CONFIG)
    assert point.kind == "point"
    assert point.coordinates == (50.5, 20.5)
    assert point.score == pytest.approx(0.9)


def test_top_left_pixel_is_at_one_half():
    image = np.zeros((64, 80), np.float32)
    image[0, 0] = 1
    assert detect(image, (1.0, 1.0), CONFIG)[0].coordinates == (0.5, 0.5)


def test_points_are_ordered_by_likelihood():
    image = np.maximum(hill(15, 15, 0.5), hill(45, 60, 0.8))
    assert [round(p.score, 2) for p in detect(image, (1.0, 1.0), CONFIG)] == [0.8, 0.5]


def test_maximum_below_threshold_is_no_point():
    assert detect(hill(20, 20, 0.29), (1.0, 1.0), CONFIG) == ()


def test_of_two_near_maxima_the_lower_goes_and_the_distance_is_in_millimetres():
    image = np.maximum(hill(30, 30, 0.9, 1.5), hill(30, 38, 0.7, 1.5))
    assert len(detect(image, (1.0, 1.0), CONFIG)) == 1
    assert len(detect(image, (1.0, 2.0), CONFIG)) == 2


def test_ripple_lower_than_h_is_no_maximum_of_its_own():
    ridge = np.zeros((64, 80), np.float32)
    ridge[30, 10:60] = 0.8
    ridge[30, 10] = 0.83
    ridge[30, 50] = 0.82
    ridge[30, 30] = 0.80
    assert [p.coordinates for p in detect(ridge, (1.0, 1.0), CONFIG)] == [(10.5, 30.5)]
    deep = ridge.copy()
    deep[30, 30] = 0.5
    assert len(detect(deep, (1.0, 1.0), CONFIG)) == 2


def test_plateau_counts_once_at_its_middle():
    image = np.zeros((64, 80), np.float32)
    image[10:15, 20:25] = 0.9
    assert [p.coordinates for p in detect(image, (1.0, 1.0), CONFIG)] == [(22.5, 12.5)]


@settings(deadline=None)  # the machine may be busy
@given(st.integers(5, 58), st.integers(5, 74), st.floats(0.35, 1.0))
def test_a_single_hill_is_found_where_it_stands(row: int, column: int, top: float):
    (point,) = detect(hill(row, column, top), (0.5, 0.5), CONFIG)
    assert point.coordinates == (column + 0.5, row + 0.5)
    assert 0 <= point.score <= 1


def test_no_more_points_than_asked_for():
    image = np.zeros((64, 80), np.float32)
    image[8::16, 8::16] = 0.9
    assert len(detect(image, (1.0, 1.0), CONFIG)) == 5
