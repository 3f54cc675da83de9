"""Metrics by patient, calibration and operating points, all from out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.stats import rankdata

from ich_node.model.decision import DecisionConfig, slice_probabilities, suspicion

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
SENSITIVITY = 0.85
"""Wanted of scans at the sensitive operating point."""
Rule = Literal["max", "pair", "run3", "top3"]


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Predictions for slices by networks that never saw their patient."""

    logit: Floats
    """(slices,) -inf where there is no intracranial space."""
    label: Bools
    scan: npt.NDArray[np.intp]
    fold_of: npt.NDArray[np.intp]
    """(scans,)"""

    @property
    def scan_label(self) -> Bools:
        """(scans,) any hemorrhage."""
        return np.array([self.label[self.scan == i].any() for i in range(len(self.fold_of))])


@dataclass(frozen=True, kw_only=True)
class Points:
    """The two thresholds on the study's suspicion."""

    high_confidence: float
    sensitive: float


def auc(label: Bools, score: Floats) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN where only one class is there."""
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibrated(logit: Floats, label: Bools) -> tuple[float, float]:
    """Scale and offset of Platt's fit on slices with intracranial space, lightly held to scale 1."""
    use = np.isfinite(logit)
    x, y = logit[use], label[use].astype(float)

    def loss(p: Floats) -> float:
        z = p[0] * x + p[1]
        return float(np.mean(np.logaddexp(0, z) - y * z) + 1e-3 * (p[0] - 1) ** 2)

    scale, offset = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x
    return float(max(scale, 0.05)), float(offset)


def scan_scores(predictions: OutOfFold, decision: DecisionConfig) -> Floats:
    """(scans,) suspicion."""
    probability = slice_probabilities(predictions.logit, decision)
    return np.array(
        [suspicion(probability[predictions.scan == i], decision) for i in range(len(predictions.fold_of))]
    )


def best_rule(predictions: OutOfFold, scale: float, offset: float) -> tuple[Rule, dict[Rule, float]]:
    """Study rule with the highest scan AUC, ``pair`` where another is not better by more than .005."""
    rules: tuple[Rule, ...] = get_args(Rule)
    table = {
        r: auc(
            predictions.scan_label,
            scan_scores(predictions, DecisionConfig(scale=scale, offset=offset, rule=r)),
        )
        for r in rules
    }
    best = max(rules, key=lambda r: table[r])
    return (best if table[best] > table["pair"] + 0.005 else "pair"), table


def operating_points(label: Bools, score: Floats, sensitivity: float = SENSITIVITY) -> Points:
    """Thresholds from scans.

    Sensitive: the highest threshold with at least the wanted sensitivity. High confidence: the lowest with at
    least 95 % specificity, and never under the sensitive one. Each lies half way to the neighbouring score, not
    on a patient.
    """
    order = np.unique(score)
    between = np.concatenate([[order[0] / 2], (order[1:] + order[:-1]) / 2, [(order[-1] + 1) / 2]])
    reached = np.array([(score[label] >= t).mean() for t in between])
    specificity = np.array([(score[~label] < t).mean() for t in between])
    sensitive = float(between[np.flatnonzero(reached >= sensitivity).max()])
    high = float(between[np.flatnonzero(specificity >= 0.95).min()])
    return Points(sensitive=sensitive, high_confidence=max(high, sensitive))


def bootstrap(
    statistic: Callable[[npt.NDArray[np.intp]], float], scan_label: Bools, seed: int = 0
) -> list[float]:
    """2.5 and 97.5 percentile over 1000 resamplings of patients, within positives and negatives apart."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(scan_label), np.flatnonzero(~scan_label)]
    values = [statistic(np.concatenate([rng.choice(g, len(g)) for g in groups])) for _ in range(1000)]
    return [round(float(v), 3) for v in np.nanpercentile(values, [2.5, 97.5])]


def report(predictions: OutOfFold, decision: DecisionConfig, points: Points) -> dict[str, object]:
    """All metrics with intervals, ready for ``bundle.json``."""
    scan_label, scores = predictions.scan_label, scan_scores(predictions, decision)
    probability = slice_probabilities(predictions.logit, decision)
    rows = [np.flatnonzero(predictions.scan == i) for i in range(len(scan_label))]

    def slice_auc(scans: npt.NDArray[np.intp]) -> float:
        picked = np.concatenate([rows[i] for i in scans])
        return auc(predictions.label[picked], probability[picked])

    everyone = np.arange(len(scan_label))
    out: dict[str, object] = {
        "patients": len(scan_label),
        "patients_with_hemorrhage": int(scan_label.sum()),
        "slices": len(predictions.label),
        "slices_with_hemorrhage": int(predictions.label.sum()),
        "slice_auc": _with_interval(slice_auc, everyone, scan_label),
        "scan_auc": _with_interval(lambda s: auc(scan_label[s], scores[s]), everyone, scan_label),
    }
    for name, cut in (("sensitive", points.sensitive), ("high_confidence", points.high_confidence)):
        hit = scores >= cut
        out[name] = {
            "threshold": round(cut, 4),
            "scan_sensitivity": _with_interval(partial(_share, hit, scan_label), everyone, scan_label),
            "scan_specificity": _with_interval(partial(_share, ~hit, ~scan_label), everyone, scan_label),
        }
    strict = operating_points(scan_label, scores, 0.95).sensitive
    out["scan_specificity_at_95_percent_sensitivity"] = round(_mean(scores[~scan_label] < strict), 3)
    return out


def nested(predictions: OutOfFold) -> dict[str, float]:
    """Sensitivity and specificity when the thresholds of each fold come from the other folds alone."""
    label = predictions.scan_label
    hits = {"sensitive": np.zeros(len(label), bool), "high_confidence": np.zeros(len(label), bool)}
    for fold in np.unique(predictions.fold_of):
        inside = predictions.fold_of == fold
        others = ~inside[predictions.scan]
        scale, offset = calibrated(predictions.logit[others], predictions.label[others])
        scores = scan_scores(predictions, DecisionConfig(scale=scale, offset=offset))
        points = operating_points(label[~inside], scores[~inside])
        hits["sensitive"][inside] = scores[inside] >= points.sensitive
        hits["high_confidence"][inside] = scores[inside] >= points.high_confidence
    return {
        f"{name}_{what}": round(value, 3)
        for name, hit in hits.items()
        for what, value in (
            ("scan_sensitivity", _mean(hit[label])),
            ("scan_specificity", _mean(~hit[~label])),
        )
    }


def _with_interval(
    statistic: Callable[[npt.NDArray[np.intp]], float], everyone: npt.NDArray[np.intp], scan_label: Bools
) -> dict[str, object]:
    return {"value": round(statistic(everyone), 3), "interval_95": bootstrap(statistic, scan_label)}


def _share(hit: Bools, of: Bools, scans: npt.NDArray[np.intp]) -> float:
    return _mean(hit[scans][of[scans]])


def _mean(values: Bools) -> float:
    return float(values.mean()) if len(values) else float("nan")
