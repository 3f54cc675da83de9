"""Metrics, calibration, operating points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.model.decision import DecisionConfig
from training.evaluate import (
    OutOfFold,
    auc,
    best_rule,
    bootstrap,
    calibrated,
    nested,
    operating_points,
    report,
    scan_scores,
)


def predictions(seed: int = 0, patients: int = 40, separation: float = 3.0) -> OutOfFold:
    rng = np.random.default_rng(seed)
    scan = np.repeat(np.arange(patients), 10)
    label = (scan % 2 == 0) & (np.tile(np.arange(10), patients) > 5)
    logit = rng.normal(size=len(scan)) + separation * label
    logit[::10] = -np.inf
    return OutOfFold(logit=logit, label=label, scan=scan, fold_of=np.arange(patients) % 5)


@pytest.mark.parametrize(
    ("label", "score", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.75),
        ([0, 1], [0.5, 0.5], 0.5),
        ([0, 1], [0.1, 0.9], 1.0),
        ([0, 1], [0.9, 0.1], 0.0),
    ],
)
def test_auc(label: list[int], score: list[float], expected: float):
    assert auc(np.array(label, bool), np.array(score)) == expected


def test_auc_of_one_class_is_not_a_number():
    assert np.isnan(auc(np.array([True, True]), np.array([0.1, 0.2])))


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0.4, 1.6), st.floats(-2, 2))
def test_calibration_finds_the_scale_and_offset_that_made_the_labels(scale: float, offset: float):
    rng = np.random.default_rng(0)
    logit = rng.normal(scale=2, size=20_000)
    label = rng.random(len(logit)) < 1 / (1 + np.exp(-(scale * logit + offset)))
    found = calibrated(np.append(logit, -np.inf), np.append(label, False))
    assert found == pytest.approx((scale, offset), abs=0.15)


def test_operating_points_keep_what_they_promise():
    rng = np.random.default_rng(1)
    label = np.arange(200) % 2 == 0
    score = np.clip(rng.normal(0.4, 0.15, 200) + 0.2 * label, 0.01, 0.99)
    points = operating_points(label, score)
    assert (score[label] >= points.sensitive).mean() >= 0.85
    assert (score[label] >= operating_points(label, score, 0.95).sensitive).mean() >= 0.95
    assert (score[~label] < points.high_confidence).mean() >= 0.95
    assert points.high_confidence > points.sensitive


def test_operating_points_stay_in_order_when_classes_are_apart():
    points = operating_points(np.array([True, True, False, False]), np.array([0.9, 0.8, 0.2, 0.1]))
    assert 0 < points.sensitive <= points.high_confidence <= 1


def test_interval_holds_the_value_and_narrows_with_patients():
    label = np.arange(400) % 2 == 0
    score = np.random.default_rng(0).normal(size=400) + label

    def width(n: int) -> float:
        low, high = bootstrap(lambda s: auc(label[:n][s], score[:n][s]), label[:n])
        assert low <= auc(label[:n], score[:n]) <= high
        return high - low

    assert width(400) < width(40)


def test_report_and_nested():
    found = predictions()
    scale, offset = calibrated(found.logit, found.label)
    rule, table = best_rule(found, scale, offset)
    decision = DecisionConfig(scale=scale, offset=offset, rule=rule)
    assert table[rule] >= max(table.values()) - 0.005
    points = operating_points(found.scan_label, scan_scores(found, decision))
    metrics = report(found, decision, points)
    assert metrics["patients"] == 40
    assert metrics["patients_with_hemorrhage"] == 20
    for name in ("slice_auc", "scan_auc"):
        value = metrics[name]
        assert isinstance(value, dict)
        low, high = value["interval_95"]
        assert low <= value["value"] <= high
    assert set(nested(found)) == {
        f"{point}_{what}"
        for point in ("sensitive", "high_confidence")
        for what in ("scan_sensitivity", "scan_specificity")
    }


def test_chance_looks_like_chance():
    found = predictions(separation=0.0)
    scores = scan_scores(found, DecisionConfig())
    assert 0.3 < auc(found.scan_label, scores) < 0.7
