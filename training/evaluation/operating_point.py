"""Operating points and study rule, chosen on validation data, and what they are worth on data that chose nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from ich_node.findings import IchSubtype, OperatingPoints
from ich_node.model.decision import DecisionConfig
from training.evaluation.bootstrap import Measured, Measurer
from training.evaluation.calibration import Linear, fit_decision
from training.evaluation.metrics import auc
from training.evaluation.scored import Bools, Scored, scans_where
from training.predictions import Floats, Predictions
from training.scan import CLASSES, UNKNOWN

SENSITIVITY = 0.85
"""Wanted of scans at the sensitive operating point."""
SPECIFICITY = 0.95
"""Wanted of scans at the high-confidence one."""
Rule = Literal["max", "pair", "run3", "top3", "consecutive3"]
RULES: tuple[Rule, ...] = get_args(Rule)
_ANY = CLASSES.index(IchSubtype.ANY)
_WORTH = 0.005
"""Scan AUC by which another rule has to be better than ``pair``: less is chance."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a bundle decides by."""

    decision: DecisionConfig
    points: OperatingPoints


def operating_points(
    validation: Scored, *, sensitivity: float = SENSITIVITY, specificity: float = SPECIFICITY
) -> OperatingPoints:
    """Thresholds on the suspicion of *any* of validation scans.

    Sensitive: the highest threshold with at least the wanted sensitivity. High confidence: the lowest with at
    least the wanted specificity, and never under the sensitive one. Each lies half way to the neighbouring score,
    not on a patient.

    Raises
    ------
    ValueError
        There is no scan with or none without hemorrhage, or no threshold does it. The message says which.
    """
    items = validation.scans()
    return thresholds(items.label, items.score, sensitivity=sensitivity, specificity=specificity)


def thresholds(
    label: Bools, score: Floats, *, sensitivity: float = SENSITIVITY, specificity: float = SPECIFICITY
) -> OperatingPoints:
    """Operating points of labelled scores, (scans,) each; see `operating_points`."""
    if label.all() or not label.any():
        raise ValueError(
            f"operating points need scans with and without hemorrhage; here {label.sum()} of {len(label)} have it"
        )
    candidates = _candidates(score)
    positive, negative = np.sort(score[label]), np.sort(score[~label])
    reached = 1 - np.searchsorted(positive, candidates) / len(positive)
    spared = np.searchsorted(negative, candidates) / len(negative)
    # a share that is the wanted one but for rounding is the wanted one
    sensitive, high = (
        candidates[reached >= sensitivity - 1e-12],
        candidates[spared >= specificity - 1e-12],
    )
    if not len(sensitive):
        raise ValueError(
            f"no threshold above 0 has a sensitivity of {sensitivity}: {(positive == 0).sum()} of {len(positive)} "
            "scans with hemorrhage have suspicion 0"
        )
    if not len(high):
        raise ValueError(
            f"no threshold up to 1 has a specificity of {specificity}: {(negative == 1).sum()} of {len(negative)} "
            "scans without hemorrhage have suspicion 1"
        )
    low = float(sensitive.max())
    return OperatingPoints(sensitive=low, high_confidence=max(float(high.min()), low))


def _candidates(score: Floats) -> Floats:
    """Thresholds between neighbouring scores and on either side of all, above 0 and up to 1."""
    seen = np.unique(score)
    between = np.concatenate([[seen[0] / 2], (seen[1:] + seen[:-1]) / 2, [(seen[-1] + 1) / 2]])
    return between[between > 0]


def rule_aucs(validation: Scored) -> dict[Rule, float]:
    """Scan AUC of *any* under each study rule; NaN where scans of one kind are missing."""
    found: dict[Rule, float] = {}
    for rule in RULES:
        items = replace(validation, decision=replace(validation.decision, rule=rule)).scans()
        found[rule] = float(auc(items.label, items.score))
    return found


def best_rule(validation: Scored) -> Rule:
    """Study rule with the highest scan AUC, ``pair`` where another is not better by more than .005."""
    found = rule_aucs(validation)
    best = max(RULES, key=lambda rule: (np.nan_to_num(found[rule]), rule == "pair"))
    return best if found[best] > found["pair"] + _WORTH else "pair"


def choose(
    validation: Predictions,
    *,
    method: Linear = "platt",
    rule: Rule | None = None,
    sensitivity: float = SENSITIVITY,
    specificity: float = SPECIFICITY,
) -> Choice:
    """Calibration, study rule and operating points from validation predictions.

    Parameters
    ----------
    rule
        Keep to this one: a paper's own. Without, the best.

    Raises
    ------
    ValueError
        See `operating_points`.
    """
    fitted = fit_decision(validation, method)
    chosen = rule or best_rule(Scored(predictions=validation, decision=fitted))
    decision = replace(fitted, rule=chosen)
    points = operating_points(
        Scored(predictions=validation, decision=decision), sensitivity=sensitivity, specificity=specificity
    )
    return Choice(decision=decision, points=points)


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """Scans at one operating point."""

    sensitivity: Measured
    specificity: Measured


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Both operating points, each fold read with what the other folds chose."""

    sensitive: PointResult
    high_confidence: PointResult
    choices: tuple[Choice, ...]
    """What was chosen for each fold."""


def nested(
    predictions: Predictions,
    *,
    method: Linear = "platt",
    rule: Rule | None = None,
    sensitivity: float = SENSITIVITY,
    specificity: float = SPECIFICITY,
) -> Nested:
    """Honest sensitivity and specificity of scans from a cross-validation.

    Calibration, study rule and thresholds of each fold come from the other folds alone.

    Raises
    ------
    ValueError
        There is one fold only, a patient is in two, or the other folds of one cannot choose.
    """
    folds = np.unique(predictions.fold)
    _check_folds(predictions)
    scans = Scored(predictions=predictions).scans()
    known = predictions.scan_labels[:, _ANY] != UNKNOWN
    hits = {"sensitive": np.zeros(len(known), bool), "high_confidence": np.zeros(len(known), bool)}
    choices = []
    for fold in folds:
        inside = predictions.fold == fold
        try:
            choice = choose(
                scans_where(predictions, ~inside),
                method=method,
                rule=rule,
                sensitivity=sensitivity,
                specificity=specificity,
            )
        except ValueError as error:
            raise ValueError(f"the folds other than {fold}: {error}") from error
        choices.append(choice)
        held = Scored(predictions=scans_where(predictions, inside), decision=choice.decision)
        for name, hit in hits.items():
            hit[inside] = held.suspicion_of() >= getattr(choice.points, name)
    measurer = Measurer.of(scans)
    results = {
        name: PointResult(
            sensitivity=measurer.share_of_hits("sensitivity", hit[known]),
            specificity=measurer.share_of_hits("specificity", hit[known]),
        )
        for name, hit in hits.items()
    }
    return Nested(**results, choices=tuple(choices))


def _check_folds(predictions: Predictions) -> None:
    if len(np.unique(predictions.fold)) < 2:
        raise ValueError("nested results need predictions of two folds or more; these have one")
    pairs = np.unique(
        np.stack([predictions.patient_ids, predictions.fold.astype(str)], axis=1).astype(str), axis=0
    )
    names, count = np.unique(pairs[:, 0], return_counts=True)
    if (count > 1).any():
        raise ValueError(f"patient {names[count > 1][0]} is in {count.max()} folds: split by patient")
