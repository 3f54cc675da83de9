"""Points and boxes against boxes, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ich_node.findings import IchSubtype
from tests.unit.test_training_evaluation_scored import SLICES, predictions
from training.evaluation.detection import (
    box_average_precision,
    mean_average_precision,
    overlaps,
    point_in_box,
    strongest_in_box,
)
from training.predictions import Predictions
from training.scan import CLASSES

EPIDURAL, SUBDURAL = CLASSES.index(IchSubtype.EPIDURAL), CLASSES.index(IchSubtype.SUBDURAL)
Row = tuple[float, ...]
# slices of the builder: scan 0 (patient 0) bleeds in 3 to 5, scan 3 (patient 2) in 27 to 29, scan 2 nowhere
A, B, C, CLEAN = 3, 4, 3 * SLICES + 3, 2 * SLICES + 3


def point(slice_index: int, x: float, y: float, score: float = 0.5, column: int = 0) -> Row:
    return (slice_index, column, score, x, y, x, y)


def box(slice_index: int, left: float, top: float, size: float = 10, column: int = EPIDURAL) -> Row:
    return (slice_index, column, left, top, left + size, top + size)


def shown(slice_index: int, left: float, top: float, score: float, size: float = 10, column: int = 0) -> Row:
    return (slice_index, column, score, left, top, left + size, top + size)


def made(places: Sequence[Row], boxes: Sequence[Row]) -> Predictions:
    return replace(
        predictions(4),
        places=np.array(places, float).reshape(-1, 7),
        boxes=np.array(boxes, float).reshape(-1, 6),
    )


def counts(found: Predictions) -> tuple[float, float, float]:
    measured = point_in_box(found)
    return measured.ppv.value, measured.sensitivity.value, measured.dice.value


def test_point_in_box_is_found_without_is_missed_outside_is_false():
    found = made(
        [point(A, 5, 5), point(A, 50, 50), point(CLEAN, 5, 5)], [box(A, 0, 0), box(B, 0, 0), box(C, 0, 0)]
    )
    assert counts(found) == pytest.approx((1 / 3, 1 / 3, 2 / (2 + 2 + 2)))


def test_more_points_in_one_box_are_neither_found_nor_false():
    one = made([point(A, 5, 5)], [box(A, 0, 0), box(C, 0, 0)])
    more = made([point(A, 5, 5), point(A, 6, 6), point(A, 7, 7)], [box(A, 0, 0), box(C, 0, 0)])
    assert counts(one) == counts(more) == pytest.approx((1, 0.5, 2 / 3))


def test_one_point_finds_all_boxes_that_it_lies_in():
    found = made([point(A, 9, 9)], [box(A, 0, 0), box(A, 8, 8, column=SUBDURAL), box(C, 0, 0)])
    assert counts(found) == pytest.approx((1, 2 / 3, 0.8))


def test_a_box_stands_for_its_centre_and_edges_belong_to_the_box():
    boxes = [box(A, 0, 0), box(C, 0, 0)]
    assert counts(made([shown(A, 5, 5, 0.5)], boxes))[1] == 0.5  # centre at the corner
    assert counts(made([shown(A, 5.1, 5, 0.5)], boxes))[1] == 0


def test_slices_with_hemorrhage_and_without_box_or_of_unknown_label_are_left_out():
    boxes = [box(A, 0, 0), box(C, 0, 0)]
    inside = [point(A, 5, 5), point(C, 5, 5)]
    plain = point_in_box(made(inside, boxes))
    outside = made([*inside, point(B, 50, 50), point(CLEAN, 5, 5)], boxes)
    outside.labels[CLEAN, 0] = -1
    measured = point_in_box(outside)
    assert measured.ppv.value == plain.ppv.value == 1
    assert plain.slices_left_out == (outside.labels[:, 0] == 1).sum() - 2
    assert measured.slices_left_out == plain.slices_left_out + 1
    assert measured.slices + measured.slices_left_out == len(outside.scan)


def test_places_of_any_count_or_all_where_there_are_none():
    boxes = [box(A, 0, 0), box(C, 0, 0)]
    both = made([point(A, 5, 5), point(C, 5, 5, column=EPIDURAL), point(C, 50, 50, column=SUBDURAL)], boxes)
    assert counts(both)[:2] == (1, 0.5)
    subtypes = replace(both, places=both.places[1:])
    assert counts(subtypes)[:2] == (0.5, 0.5)


def test_a_subtype_is_held_against_its_own_boxes():
    found = made(
        [point(A, 5, 5, column=SUBDURAL), point(C, 5, 5, column=SUBDURAL)],
        [box(A, 0, 0), box(A, 0, 0, column=SUBDURAL), box(C, 20, 20, column=SUBDURAL)],
    )
    measured = point_in_box(found, IchSubtype.SUBDURAL)
    assert (measured.ppv.value, measured.sensitivity.value) == (0.5, 0.5)


def test_boxes_of_one_patient_are_no_measurement():
    measured = point_in_box(made([point(A, 5, 5)], [box(A, 0, 0), box(B, 0, 0)]))
    assert measured.dice.text() == "not measured (n=1 patient with boxes)"
    assert strongest_in_box(made([], [])).text() == "not measured (n=0 patients with boxes)"


def test_no_point_at_all_misses_everything():
    measured = point_in_box(made([], [box(A, 0, 0), box(C, 0, 0)]))
    assert (measured.sensitivity.value, measured.dice.value) == (0, 0)
    assert measured.ppv.text() == "not defined"


def test_only_the_strongest_point_of_a_slice_counts_and_an_empty_slice_is_missed():
    boxes = [box(A, 0, 0), box(B, 0, 0), box(C, 0, 0), box(C, 30, 30)]
    places = [point(A, 5, 5, 0.3), point(A, 50, 50, 0.9), point(C, 35, 35, 0.8), point(C, 50, 50, 0.1)]
    assert strongest_in_box(made(places, boxes)).value == pytest.approx(1 / 3)


def test_overlap_by_hand():
    places = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 5, 5]])
    boxes = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10]])
    np.testing.assert_allclose(overlaps(places, boxes), [[1, 1 / 3], [0, 0], [0, 0]])


def test_average_precision_of_boxes_by_hand():
    boxes = [box(A, 0, 0), box(B, 0, 0), box(C, 0, 0)]
    places = [
        shown(A, 0, 0, 0.9),
        shown(CLEAN, 0, 0, 0.8),  # false
        shown(C, 1, 0, 0.7),  # IoU 9 / 11
        shown(B, 8, 8, 0.6),  # too little
    ]
    found = box_average_precision(made(places, boxes))
    assert found.value == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert found.count_positive == 3
    assert box_average_precision(made(places, boxes), iou=0.9).value == pytest.approx(1 / 3)


def test_a_box_is_found_once_and_by_the_strongest():
    boxes = [box(A, 0, 0), box(C, 0, 0)]
    twice = [shown(A, 0, 0, 0.5), shown(A, 1, 0, 0.9), shown(C, 0, 0, 0.4)]
    # right, doubled, right
    assert box_average_precision(made(twice, boxes)).value == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_the_mean_is_over_subtypes_that_can_be_measured():
    boxes = [box(A, 0, 0), box(C, 0, 0), box(A, 40, 40, column=SUBDURAL), box(C, 40, 40, column=SUBDURAL)]
    single = box(B, 80, 80, column=3)
    places = [shown(A, 0, 0, 0.9, column=EPIDURAL), shown(C, 0, 0, 0.9, column=EPIDURAL)]
    found = made(places, [*boxes, single])
    assert box_average_precision(found, IchSubtype.EPIDURAL).value == 1
    assert box_average_precision(found, IchSubtype.SUBDURAL).value == 0
    assert mean_average_precision(found).value == 0.5


def test_points_have_no_average_precision_of_boxes():
    found = made([point(A, 5, 5)], [box(A, 0, 0), box(C, 0, 0)])
    assert box_average_precision(found).text() == "the system gives no boxes"
    assert mean_average_precision(found).text() == "the system gives no boxes"


def test_intervals_hold_the_value():
    rng = np.random.default_rng(0)
    whole = predictions(40)
    bleeding = np.flatnonzero(whole.labels[:, 0] == 1)
    boxes = [box(int(i), 0, 0, column=int(np.flatnonzero(whole.labels[i])[1])) for i in bleeding]
    places = [
        shown(int(i), *rng.normal(0, 3, 2), float(rng.random()), column=c) for i in bleeding for c in (0, 1)
    ]
    found = replace(whole, boxes=np.array(boxes), places=np.array(places))
    located = point_in_box(found)
    several = [located.dice, located.ppv, strongest_in_box(found), box_average_precision(found)]
    for measured in [*several, mean_average_precision(found)]:
        assert measured.low <= measured.value <= measured.high
        assert measured.low < measured.high
