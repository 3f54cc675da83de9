"""Calibration and the study rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.model.decision import DecisionConfig, slice_probabilities, suspicion


def test_probability_is_the_logistic_of_the_calibrated_logit():
    p = slice_probabilities(np.array([-np.inf, -2.0, 0.0, 2.0, 800.0]), DecisionConfig(scale=0.5, offset=-1))
    assert p.tolist() == pytest.approx([0, 1 / (1 + np.e**2), 1 / (1 + np.e), 0.5, 1])


@pytest.mark.parametrize(
    ("rule", "expected"), [("max", 0.9), ("pair", 0.6), ("run3", 0.5), ("top3", 2.1 / 3)]
)
def test_rules(rule: str, expected: float):
    p = np.array([0.0, 0.9, 0.0, 0.3, 0.6, 0.6, 0.0])
    assert suspicion(p, DecisionConfig(rule=rule)) == pytest.approx(expected)


def test_a_single_slice_has_its_own_suspicion():
    assert suspicion(np.array([0.7]), DecisionConfig(rule="pair")) == pytest.approx(0.7)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.sampled_from(["max", "pair", "run3", "top3"]))
def test_never_above_the_most_suspicious_slice(values: list[float], rule: str):
    p = np.array(values)
    assert -1e-9 <= suspicion(p, DecisionConfig(rule=rule)) <= p.max() + 1e-9
