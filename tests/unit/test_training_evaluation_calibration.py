"""Calibration fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_training_evaluation_scored import predictions
from training.evaluation.calibration import (
    calibration_error,
    calibrator,
    cross_fitted,
    fit_decision,
    isotonic,
    platt,
    temperature,
)
from training.evaluation.scored import Scored


def drawn(scale: float, offset: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logit = rng.normal(scale=2, size=count)
    return logit, rng.random(count) < 1 / (1 + np.exp(-(scale * logit + offset)))


@settings(deadline=None, max_examples=20)
@given(st.floats(0.4, 1.6), st.floats(-2, 2))
def test_platt_finds_the_scale_and_offset_that_made_the_labels(scale: float, offset: float):
    logit, label = drawn(scale, offset)
    found = platt(np.append(logit, -np.inf), np.append(label, False))
    assert found == pytest.approx((scale, offset), abs=0.15)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_temperature_finds_the_scale_that_made_the_labels(scale: float):
    assert temperature(*drawn(scale, 0.0)) == (pytest.approx(scale, rel=0.1), 0.0)


def test_isotonic_never_falls_and_fits_what_no_line_fits():
    rng = np.random.default_rng(1)
    logit = rng.uniform(-3, 3, 20_000)
    truth = np.where(logit < 0, 0.1, 0.6)  # one step
    fitted = isotonic(logit, rng.random(len(logit)) < truth)
    said = fitted(np.array([-np.inf, -9.0, -2.0, -0.5, 0.5, 2.0, 9.0]))
    assert said[0] == 0
    assert (np.diff(said) >= 0).all()
    assert said[2:6] == pytest.approx([0.1, 0.1, 0.6, 0.6], abs=0.06)


def test_isotonic_gives_tied_logits_one_probability():
    fitted = isotonic(np.array([0.0, 0.0, 1.0, 1.0]), np.array([True, False, True, True]))
    assert fitted(np.array([0.0, 1.0])).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("fit", [platt, temperature])
def test_nothing_to_fit_changes_nothing(fit):
    assert fit(np.full(3, -np.inf), np.zeros(3, bool)) == (1.0, 0.0)


def test_a_class_that_is_nowhere_gets_small_finite_probabilities():
    logit = np.random.default_rng(0).normal(size=500)
    said = calibrator("platt", logit, np.zeros(500, bool))(logit)
    assert np.isfinite(said).all()
    assert 0 < said.max() < 0.05


def test_cross_fitted_probabilities_come_from_other_folds():
    logit, label = drawn(1.0, -1.0, 400)
    fold = np.arange(400) % 2
    said = cross_fitted("platt", logit, label, fold)
    flipped = np.where(fold == 0, ~label, label)
    again = cross_fitted("platt", logit, flipped, fold)
    np.testing.assert_array_equal(said[fold == 0], again[fold == 0])
    assert not np.allclose(said[fold == 1], again[fold == 1])
    with pytest.raises(ValueError, match="have one"):
        cross_fitted("platt", logit, label, np.zeros(400, int))


def test_a_decision_calibrates_each_class():
    found = predictions(80)
    decision = fit_decision(found)
    assert len(decision.class_scale) == len(decision.class_offset) == 6
    assert (decision.scale, decision.offset) == (decision.class_scale[0], decision.class_offset[0])
    before, after = Scored(predictions=found).slices(), Scored(predictions=found, decision=decision).slices()
    assert calibration_error(after.label, after.score) < calibration_error(before.label, before.score)


def test_a_decision_of_one_class_has_one_scale():
    decision = fit_decision(predictions(subtypes=False), "temperature")
    assert decision.class_scale == ()
    assert decision.scale > 1
    assert decision.offset == 0


def test_unknown_labels_teach_nothing():
    found = predictions()
    known = fit_decision(found)
    found.labels[found.labels[:, 3] == 0, 3] = -1
    assert fit_decision(found).class_offset[3] > known.class_offset[3] + 1
    assert fit_decision(found).class_offset[2] == known.class_offset[2]
