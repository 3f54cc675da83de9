"""Operating points, study rule, and what they are worth on folds that chose nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ich_node.model.decision import DecisionConfig
from tests.unit.test_training_evaluation_scored import SLICES, predictions
from training.evaluation.operating_point import (
    best_rule,
    choose,
    nested,
    operating_points,
    rule_aucs,
    thresholds,
)
from training.evaluation.scored import Scored

SCORES = st.lists(st.tuples(st.booleans(), st.integers(1, 19)), min_size=2, max_size=40)


@settings(deadline=None)
@given(SCORES, st.sampled_from([0.5, 0.85, 0.95, 1.0]), st.sampled_from([0.5, 0.9, 1.0]))
def test_points_keep_what_they_promise_and_no_better_one_does(
    pairs: list[tuple[bool, int]], sensitivity: float, specificity: float
):
    label, score = np.array([p[0] for p in pairs]), np.array([p[1] / 20 for p in pairs])
    assume(label.any() and not label.all())
    points = thresholds(label, score, sensitivity=sensitivity, specificity=specificity)
    assert 0 < points.sensitive <= points.high_confidence <= 1
    assert (score[label] >= points.sensitive).mean() >= sensitivity - 1e-9
    assert (score[~label] < points.high_confidence).mean() >= specificity - 1e-9
    higher = score[score > points.sensitive].min(initial=2) + 0.01
    assert (score[label] >= higher).mean() < sensitivity - 1e-9
    if points.high_confidence > points.sensitive:
        lower = score[score < points.high_confidence].max()
        assert (score[~label] < lower).mean() < specificity - 1e-9


def test_points_need_both_kinds_of_scans():
    with pytest.raises(ValueError, match="3 of 3 have it"):
        thresholds(np.ones(3, bool), np.arange(3) / 4)


def test_points_that_no_threshold_reaches_are_refused():
    label = np.array([True, True, False, False])
    with pytest.raises(ValueError, match="1 of 2 scans with hemorrhage have suspicion 0"):
        thresholds(label, np.array([0.0, 0.9, 0.1, 0.2]))
    with pytest.raises(ValueError, match="2 of 2 scans without hemorrhage have suspicion 1"):
        thresholds(label, np.array([0.8, 0.9, 1.0, 1.0]))


def test_a_scan_of_unknown_label_moves_no_point():
    found = predictions()
    assert found.scan_labels[4, 0] == 0
    found.logits[found.scan == 4, 0] = 9
    wanted = {"specificity": 1.0, "sensitivity": 0.5}
    assert operating_points(Scored(predictions=found), **wanted).high_confidence > 0.999
    found.scan_labels[4, 0] = -1
    assert operating_points(Scored(predictions=found), **wanted).high_confidence < 0.999


def test_the_rule_that_single_slices_fool_is_not_taken():
    found = predictions()
    found.logits[:, 0] = np.where(found.labels[:, 0] == 1, 0.0, -3.0)
    for scan in np.flatnonzero(found.scan_labels[:, 0] == 0):
        found.logits[scan * SLICES + 4, 0] = 6.0  # a streak
    scored = Scored(predictions=found)
    table = rule_aucs(scored)
    assert table["max"] == table["pair"] == 0
    assert table["consecutive3"] == 1
    assert table[best_rule(scored)] == 1


def test_pair_stays_where_no_rule_is_better():
    found = predictions(separation=50.0)
    assert best_rule(Scored(predictions=found)) == "pair"


def test_a_choice_keeps_to_a_paper_s_rule():
    assert choose(predictions(), rule="consecutive3").decision.rule == "consecutive3"


def test_nested_chooses_without_the_fold_it_reads():
    found = predictions()
    before = nested(found)
    inside = found.fold == 0
    slices = inside[found.scan]
    found.labels[slices, 0] = 1 - found.labels[slices, 0]
    found.scan_labels[inside, 0] = 1 - found.scan_labels[inside, 0]
    after = nested(found)
    assert before.choices[0] == after.choices[0]
    assert all(a != b for a, b in zip(before.choices[1:], after.choices[1:], strict=True))


def test_nested_is_not_better_than_chance_where_there_is_nothing():
    found = nested(predictions(200, separation=0.0))
    point = found.sensitive
    assert point.sensitivity.value + point.specificity.value == pytest.approx(1, abs=0.2)


def test_nested_counts_each_known_scan_once():
    found = predictions()
    found.scan_labels[0, 0] = -1
    point = nested(found).sensitive
    known = found.scan_labels[:, 0]
    assert (point.sensitivity.count_positive, point.specificity.count_negative) == (
        (known == 1).sum(),
        (known == 0).sum(),
    )


def test_nested_refuses_what_is_not_honest():
    found = predictions()
    with pytest.raises(ValueError, match="two folds or more"):
        nested(replace(found, fold=np.zeros_like(found.fold)))
    twice = found.fold.copy()
    twice[0] += 1  # the first patient has two scans
    with pytest.raises(ValueError, match="patient patient0 is in 2 folds"):
        nested(replace(found, fold=twice))


def test_nested_names_the_fold_that_leaves_nothing_to_choose_from():
    found = predictions()
    fold = (found.scan_labels[:, 0] == 0).astype(np.int64)
    with pytest.raises(ValueError, match=r"other than 0: .* 0 of 12 have it"):
        nested(replace(found, fold=fold))


def test_a_choice_reads_as_it_was_chosen():
    found = predictions(60)
    choice = choose(found, sensitivity=0.9, specificity=0.9)
    items = Scored(predictions=found, decision=choice.decision).scans()
    assert (items.score[items.label] >= choice.points.sensitive).mean() >= 0.9
    assert (items.score[~items.label] < choice.points.high_confidence).mean() >= 0.9
    assert isinstance(choice.decision, DecisionConfig)
