"""Metrics: by hand, by brute force, and a weight of k like k copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training.evaluation.calibration import calibration_error, reliability
from training.evaluation.metrics import (
    auc,
    average_precision,
    dice,
    log_loss,
    precision_recall,
    roc,
    share,
    weighted_log_loss,
)

METRICS = {
    "auc": auc,
    "average precision": average_precision,
    "envelope": lambda label, score, weights=None: average_precision(label, score, weights, envelope=True),
    "calibration error": calibration_error,
    **{
        name: lambda label, score, weights=None, name=name: share(name, label, score >= 0.5, weights)
        for name in ("sensitivity", "specificity", "ppv", "accuracy", "f1")
    },
}
# few values: ties are frequent
ITEMS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])), min_size=2, max_size=12
)


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


@settings(deadline=None)
@given(ITEMS)
def test_auc_is_how_often_a_positive_is_above_a_negative(items: list[tuple[bool, float]]):
    positive, negative = ([s for there, s in items if there is which] for which in (True, False))
    assume(positive and negative)
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    label, score = (np.array(column) for column in zip(*items, strict=True))
    assert auc(label, score) == pytest.approx(np.mean(wins))
    x, y = roc(label, score)
    assert np.trapezoid(y, x) == pytest.approx(np.mean(wins))


@settings(deadline=None)
@given(ITEMS, st.data())
def test_a_weight_counts_like_copies(items: list[tuple[bool, float]], data: st.DataObject):
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(items), max_size=len(items))))
    assume(counts.sum())
    label, score = (np.array(column) for column in zip(*items, strict=True))
    rows = np.stack([counts, np.ones(len(counts))]).astype(float)
    copies = np.repeat(np.arange(len(counts)), counts)
    for name, metric in METRICS.items():
        got = metric(label, score, rows)
        expected = [metric(label[copies], score[copies]), metric(label, score)]
        np.testing.assert_allclose(got, expected, atol=1e-12, err_msg=name)


def test_average_precision_by_hand():
    label, score = np.array([1, 0, 1, 0], bool), np.array([0.9, 0.8, 0.7, 0.6])
    assert average_precision(label, score) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # a third one was never found
    assert average_precision(label, score, positives=np.array(3.0)) == pytest.approx((1 + 2 / 3) / 3)
    late = np.array([0, 1, 1], bool)
    assert average_precision(late, score[:3]) == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 3)
    assert average_precision(late, score[:3], envelope=True) == pytest.approx(2 / 3)


def test_precision_and_recall_by_hand():
    recall, precision = precision_recall(np.array([1, 0, 1], bool), np.array([0.9, 0.8, 0.7]))
    np.testing.assert_allclose(recall, [0.5, 0.5, 1])
    np.testing.assert_allclose(precision, [1, 0.5, 2 / 3])


def test_shares_by_hand():
    label, hit = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool), np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    found = {
        name: float(share(name, label, hit))
        for name in ("sensitivity", "specificity", "ppv", "accuracy", "f1")
    }
    expected = {"sensitivity": 2 / 3, "specificity": 4 / 5, "ppv": 2 / 3, "accuracy": 6 / 8, "f1": 2 / 3}
    assert found == pytest.approx(expected)
    assert dice(np.array(2.0), np.array(1.0), np.array(1.0)) == pytest.approx(found["f1"])


def test_what_is_not_defined_is_not_a_number():
    nothing, some = np.zeros(3, bool), np.array([0.1, 0.2, 0.3])
    assert np.isnan(auc(nothing, some))
    assert np.isnan(average_precision(nothing, some))
    assert np.isnan(auc(np.zeros(0, bool), np.zeros(0)))
    assert np.isnan(share("sensitivity", nothing, some > 0))


def test_the_log_loss_of_the_challenge_counts_any_twice():
    labels = np.array([[1.0, 0, 0, 0, 0, 1]])
    probabilities = np.array([[0.8, 0.1, 0.2, 0.3, 0.4, 0.5]])
    said = [0.8, 0.9, 0.8, 0.7, 0.6, 0.5]  # of what is so
    expected = -(2 * np.log(said[0]) + sum(np.log(said[1:]))) / 7
    loss, weight = weighted_log_loss(labels, probabilities)
    assert loss.sum() / weight.sum() == pytest.approx(expected)


def test_an_unknown_label_does_not_count_in_the_log_loss():
    probabilities = np.full((1, 6), 0.3)
    loss, weight = weighted_log_loss(np.array([[1.0, 0, -1, -1, -1, -1]]), probabilities)
    assert weight.tolist() == [3]
    assert loss[0] == pytest.approx(-2 * np.log(0.3) - np.log(0.7))
    assert weighted_log_loss(np.full((1, 6), -1.0), probabilities)[1].tolist() == [0]


def test_a_certain_mistake_costs_much_and_not_everything():
    assert log_loss(np.array([True]), np.array([0.0]))[0] == pytest.approx(-np.log(1e-15))
    assert log_loss(np.array([False]), np.array([1.0]))[0] == pytest.approx(-np.log(1e-15), rel=0.01)


def test_reliability_by_hand():
    label, probability = np.array([0, 1, 1, 1], bool), np.array([0.02, 0.06, 0.95, 1.0])
    found = reliability(label, probability)
    assert found.count.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (found.said[0], found.observed[0]) == pytest.approx((0.04, 0.5))
    assert calibration_error(label, probability) == pytest.approx(0.5 * 0.46 + 0.5 * 0.025)
