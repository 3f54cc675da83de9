"""Intervals over patients."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ich_node.findings import IchSubtype
from tests.unit.test_training_evaluation_scored import predictions
from training.evaluation.bootstrap import Measurer, Resampling, measured, not_measured
from training.evaluation.metrics import auc
from training.evaluation.scored import Items, Scored


def items(patients: int, copies: int = 1, seed: int = 0) -> Items:
    label = np.arange(patients) % 2 == 0
    score = np.random.default_rng(seed).normal(size=patients) + label
    each = np.repeat(np.arange(patients), copies)
    return Items(label=label[each], score=score[each], patient=each)


def test_every_resampling_keeps_the_number_of_patients_with_and_without():
    positive = np.array([True, True, True, False, False])
    weights = Resampling.of(positive, resamples=50).weights
    assert weights.shape == (51, 5)
    assert (weights[0] == 1).all()
    assert (weights[:, positive].sum(1) == 3).all()
    assert (weights[:, ~positive].sum(1) == 2).all()
    assert len(np.unique(weights, axis=0)) > 10


def test_the_same_seed_gives_the_same_interval():
    assert measured(items(30), auc) == measured(items(30), auc)
    other = Measurer(items(30), Resampling.of(items(30).label, seed=1)).area(auc)
    assert other.value == measured(items(30), auc).value
    assert (other.low, other.high) != (measured(items(30), auc).low, measured(items(30), auc).high)


def test_the_interval_holds_the_value_and_narrows_with_patients():
    few, many = measured(items(40), auc), measured(items(400), auc)
    for found in (few, many):
        assert found.low <= found.value <= found.high
    assert many.high - many.low < few.high - few.low


def test_more_slices_of_the_same_patients_make_no_interval_narrower():
    one, ten = measured(items(40), auc), measured(items(40, copies=10), auc)
    assert (ten.value, ten.low, ten.high) == pytest.approx((one.value, one.low, one.high))
    assert (ten.count_positive, one.count_positive) == (200, 20)


def test_the_interval_of_a_mean_is_that_of_statistics():
    rng = np.random.default_rng(3)
    label = np.arange(400) % 2 == 0
    said = rng.random(400) < 0.8
    found = Measurer.of(Items(label=label, score=said.astype(float), patient=np.arange(400))).share(
        "sensitivity", 0.5
    )
    error = 1.96 * np.sqrt(found.value * (1 - found.value) / 200)
    assert found.low == pytest.approx(found.value - error, abs=0.012)
    assert found.high == pytest.approx(found.value + error, abs=0.012)


def test_memory_bounds_change_nothing(monkeypatch: pytest.MonkeyPatch):
    whole = measured(items(30), auc)
    monkeypatch.setattr("training.evaluation.bootstrap._CELLS", 100)
    assert measured(items(30), auc) == whole


def test_one_patient_with_the_class_is_no_measurement():
    one = Items(
        label=np.array([1, 1, 0, 0, 0], bool), score=np.arange(5.0), patient=np.array([0, 0, 0, 1, 2])
    )
    measurer = Measurer.of(one)
    assert measurer.area(auc).text() == "not measured (n=1 patient)"
    assert measurer.share("sensitivity", 1).missing
    # negatives of three patients, scores 2, 3, 4
    assert measurer.share("specificity", 3).value == pytest.approx(1 / 3)
    none = Measurer.of(replace(one, label=np.zeros(5, bool)))
    assert none.area(auc).text() == "not measured (n=0 patients)"


def test_one_patient_without_the_class_has_no_specificity():
    found = Items(label=np.array([1, 1, 0], bool), score=np.arange(3.0), patient=np.arange(3))
    measurer = Measurer.of(found)
    assert measurer.share("specificity", 1).text() == "not measured (n=1 patient without)"
    assert measurer.share("sensitivity", 1).value == 0.5


def test_a_class_that_is_not_given_has_no_number():
    scored = Scored(predictions=predictions(subtypes=False))
    assert measured(scored.slices(IchSubtype.SUBDURAL), auc).text() == "not given by the system"


def test_plain_values_are_json():
    for found in (measured(items(10), auc), not_measured("no", 1, 2)):
        text = json.dumps(found.plain(), allow_nan=False)
        assert json.loads(text)["count_positive"] == found.count_positive
