"""Predictions with a decision, and a builder of predictions for all tests of the evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ich_node.findings import IchSubtype
from ich_node.model.decision import DecisionConfig
from training.evaluation.scored import NOT_GIVEN, Scored, scans_where
from training.predictions import Predictions
from training.scan import CLASSES, scan_labels_of

SLICES = 8


def predictions(
    patients: int = 24, *, separation: float = 3.0, subtypes: bool = True, seed: int = 0, folds: int = 4
) -> Predictions:
    """Two scans for every fourth patient; every second patient bleeds in three neighbouring slices."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), np.where(np.arange(patients) % 4 == 0, 2, 1))
    scans = len(owner)
    scan = np.repeat(np.arange(scans), SLICES)
    labels = np.zeros((len(scan), len(CLASSES)), np.int8)
    for index in np.flatnonzero(owner % 2 == 0):
        rows = index * SLICES + np.arange(3, 6)
        labels[rows, 0] = labels[rows, 1 + owner[index] // 2 % 5] = 1
    logits = rng.normal(size=labels.shape) - 1 + separation * labels
    logits[::SLICES] = -np.inf
    if not subtypes:
        logits[:, 1:], labels[:, 1:] = np.nan, -1
    return Predictions(
        system="tried",
        data="CT-ICH v1.0.0",
        split="4-fold cross-validation by patient",
        scan_ids=np.array([f"scan{i}" for i in range(scans)]),
        patient_ids=np.array([f"patient{i}" for i in owner]),
        fold=(owner // 2 % folds).astype(np.int64),
        scan=scan.astype(np.int64),
        labels=labels,
        scan_labels=np.stack([scan_labels_of(labels[scan == i]) for i in range(scans)]),
        logits=logits,
        places=np.zeros((0, 7)),
        boxes=np.zeros((0, 6)),
        pixel_mm=np.full((len(scan), 2), 0.5),
    )


def test_suspicion_is_that_of_the_reading_rule_over_slices_inside():
    found = predictions(2)
    found.logits[:, 0] = -5
    found.logits[[1, 3], 0], found.logits[2, 0] = 2, -np.inf  # the lost slice breaks no pair
    one = 1 / (1 + np.exp(-2))
    scored = Scored(predictions=found, decision=DecisionConfig(rule="pair"))
    assert scored.suspicion_of()[0] == pytest.approx(one)
    assert scored.suspicion_of()[1] == pytest.approx(1 / (1 + np.exp(5)))


def test_a_scan_without_intracranial_space_has_suspicion_0():
    found = predictions(4)
    found.logits[found.scan == 1] = -np.inf
    suspicion = Scored(predictions=found).suspicion_of()
    assert suspicion[1] == 0
    assert (suspicion[[0, 2, 3]] > 0).all()


def test_calibration_by_class_meets_the_classes_that_are_given():
    found = predictions(4)
    found.logits[:, 2:] = np.nan
    scored = Scored(
        predictions=found, decision=DecisionConfig(class_scale=(1.0, 2.0), class_offset=(0.0, 1.0))
    )
    assert scored.classes == (IchSubtype.ANY, IchSubtype.EPIDURAL)
    expected = 1 / (1 + np.exp(-(2 * found.logits[1, 1] + 1)))
    assert scored.probabilities[1, 1] == pytest.approx(expected)
    assert np.isnan(scored.probabilities[:, 2:]).all()


def test_unknown_labels_are_left_out():
    found = predictions(4)
    found.labels[:SLICES, 0] = -1
    items = Scored(predictions=found).slices()
    assert len(items.label) == len(found.scan) - SLICES
    assert items.patients == 4  # the first has a second scan
    found.labels[: 2 * SLICES, 0] = -1
    assert Scored(predictions=found).slices().patients == 3


def test_a_class_that_is_not_given_says_so():
    scored = Scored(predictions=predictions(4, subtypes=False))
    assert scored.scans(IchSubtype.SUBDURAL).missing == NOT_GIVEN
    assert scored.scans().missing == ""


def test_a_logit_that_is_half_missing_is_named():
    found = predictions(4)
    found.logits[SLICES + 1, 3] = np.nan
    with pytest.raises(ValueError, match=r"intraventricular in slice 9 \(scan scan1\) is nan"):
        _ = Scored(predictions=found).classes


def test_no_intracranial_space_says_nothing_of_which_classes_are_given():
    found = predictions(4, subtypes=False)
    found.logits[0] = -np.inf  # in classes as well that the system does not know
    assert Scored(predictions=found).classes == (IchSubtype.ANY,)


def test_some_scans_keep_their_slices_places_and_boxes():
    whole = predictions(4)
    first = whole.scan.searchsorted(2)
    whole = replace(
        whole,
        places=np.array([[0, 0, 0.5, 1, 1, 1, 1], [first + 1, 0, 0.7, 2, 2, 2, 2]]),
        boxes=np.array([[first + 1, 1, 0, 0, 9, 9], [0, 1, 0, 0, 5, 5]]),
    )
    part = scans_where(whole, np.array([False, False, True, False, True]))
    assert part.scan_ids.tolist() == ["scan2", "scan4"]
    assert part.scan.tolist() == [0] * SLICES + [1] * SLICES
    assert part.places.tolist() == [[1, 0, 0.7, 2, 2, 2, 2]]
    assert part.boxes.tolist() == [[1, 1, 0, 0, 9, 9]]
    np.testing.assert_array_equal(part.logits[:SLICES], whole.logits[first : first + SLICES])
