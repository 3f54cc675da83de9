"""Calibration: how logits become probabilities, and whether those are true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression, minimize, minimize_scalar

from ich_node.findings import IchSubtype
from ich_node.model.decision import DecisionConfig, slice_probabilities
from training.evaluation.metrics import divided
from training.evaluation.scored import Bools, given
from training.predictions import Floats, Ints, Predictions
from training.scan import CLASSES, PRESENT, UNKNOWN

BINS = 10
Linear = Literal["platt", "temperature"]
Method = Literal["none", "platt", "temperature", "isotonic"]
Calibrator = Callable[[Floats], Floats]
"""From logits to probabilities."""
_LEAST_SCALE = 0.05


def platt(logit: Floats, label: Bools) -> tuple[float, float]:
    """Scale and offset of the logistic fit, lightly held to scale 1.

    Platt, Probabilistic outputs for support vector machines, 1999: targets are (N+ + 1) / (N+ + 2) and
    1 / (N- + 2) instead of 1 and 0, so that a class that is nowhere seen still gets a finite offset.

    Parameters
    ----------
    logit
        (items,); -inf, a slice without intracranial space, is left out.
    label
        (items,) bool.

    Returns
    -------
    tuple
        As `DecisionConfig` has them; (1, 0) where there is nothing to fit.
    """
    x, y = _finite(logit, label)
    if not len(x):
        return 1.0, 0.0
    positives = y.sum()
    target = np.where(y, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))

    def loss(p: Floats) -> float:
        z = p[0] * x + p[1]
        return float(np.mean(np.logaddexp(0, z) - target * z) + 1e-3 * (p[0] - 1) ** 2)

    scale, offset = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x
    return float(max(scale, _LEAST_SCALE)), float(offset)


def temperature(logit: Floats, label: Bools) -> tuple[float, float]:
    """Scale 1 / T and offset 0 with the least log loss (Guo et al., On calibration of modern neural networks, 2017).

    Parameters and result as those of `platt`; T is 0.05 to 20.
    """
    x, y = _finite(logit, label)
    if not len(x):
        return 1.0, 0.0

    def loss(log_scale: float) -> float:
        z = np.exp(log_scale) * x
        return float(np.mean(np.logaddexp(0, z) - y * z))

    widest = -np.log(_LEAST_SCALE)
    return float(np.exp(minimize_scalar(loss, bounds=(-widest, widest), method="bounded").x)), 0.0


def isotonic(logit: Floats, label: Bools) -> Calibrator:
    """Never falling fit by pool adjacent violators; no `DecisionConfig` holds it, so it is reported only.

    Returns
    -------
    Calibrator
        Linear between the logits that were seen, level beyond; -inf gives 0.
    """
    x, y = _finite(logit, label)
    if not len(x):
        return lambda values: slice_probabilities(values, DecisionConfig())
    seen, where = np.unique(x, return_inverse=True)
    count = np.bincount(where).astype(float)
    fitted = isotonic_regression(np.bincount(where, y) / count, weights=count).x
    return lambda values: np.where(np.isneginf(values), 0.0, np.interp(values, seen, fitted))


_LINEAR: dict[Linear, Callable[[Floats, Bools], tuple[float, float]]] = {
    "platt": platt,
    "temperature": temperature,
}


def calibrator(method: Method, logit: Floats, label: Bools) -> Calibrator:
    """Fit a method on labelled logits, (items,) each."""
    if method == "isotonic":
        return isotonic(logit, label)
    scale, offset = (1.0, 0.0) if method == "none" else _LINEAR[method](logit, label)
    return lambda values: slice_probabilities(values, DecisionConfig(scale=scale, offset=offset))


def fit_decision(predictions: Predictions, method: Linear = "platt") -> DecisionConfig:
    """Calibration on slices, for each class that the system gives by itself.

    Parameters
    ----------
    predictions
        Of validation data only.

    Returns
    -------
    DecisionConfig
        ``scale`` and ``offset`` are those of *any*; ``class_scale`` and ``class_offset`` are there when the system
        gives more. The study rule is the default one.
    """
    found = {}
    for column in np.flatnonzero(given(predictions)):
        known = predictions.labels[:, column] != UNKNOWN
        label = predictions.labels[known, column] == PRESENT
        found[CLASSES[column]] = _LINEAR[method](predictions.logits[known, column], label)
    scale, offset = found.get(IchSubtype.ANY, (1.0, 0.0))
    if len(found) < 2:
        return DecisionConfig(scale=scale, offset=offset)
    scales, offsets = zip(*found.values(), strict=True)
    return DecisionConfig(scale=scale, offset=offset, class_scale=scales, class_offset=offsets)


def cross_fitted(method: Method, logit: Floats, label: Bools, fold: Ints) -> Floats:
    """Probabilities of items of each fold by a calibration that was fitted on the other folds.

    Parameters
    ----------
    logit, label, fold
        (items,) each.

    Raises
    ------
    ValueError
        There is one fold only.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError("calibration can be cross-fitted over two folds or more; these predictions have one")
    probability = np.zeros(len(logit))
    for each in folds:
        inside = fold == each
        probability[inside] = calibrator(method, logit[~inside], label[~inside])(logit[inside])
    return probability


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What was said against what was so, in bins of equal width."""

    edges: Floats
    """(bins + 1,)"""
    count: Floats
    """(..., bins) items, weighted."""
    said: Floats
    """(..., bins) mean probability; NaN in an empty bin."""
    observed: Floats
    """(..., bins) share of positives."""


def reliability(
    label: Bools, probability: Floats, weights: Floats | None = None, *, bins: int = BINS
) -> Reliability:
    """Reliability curve; ``weights`` is (..., items) as in `metrics`."""
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.digitize(probability, edges) - 1, 0, bins - 1)
    member = np.eye(bins)[bin_of]  # (items, bins)
    counts = np.ones(len(label)) if weights is None else weights
    count = counts @ member
    return Reliability(
        edges=edges,
        count=count,
        said=divided((counts * probability) @ member, count),
        observed=divided((counts * label) @ member, count),
    )


def calibration_error(label: Bools, probability: Floats, weights: Floats | None = None) -> Floats:
    """Expected calibration error: mean distance of said and observed over the bins, by their counts (Guo et al.)."""
    found = reliability(label, probability, weights)
    gap = np.nan_to_num(np.abs(found.said - found.observed))
    return divided((found.count * gap).sum(-1), found.count.sum(-1))


def _finite(logit: Floats, label: Bools) -> tuple[Floats, Bools]:
    use = np.isfinite(logit)
    return logit[use], label[use]
