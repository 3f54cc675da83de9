"""Metrics of weighted items, all resamplings of a bootstrap at once.

``weights`` is (..., items): how often each item counts. The result has the leading axes of ``weights`` and is NaN
where the metric is not defined. Without weights every item counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ich_node.findings import IchSubtype
from training.evaluation.scored import Bools
from training.predictions import Floats
from training.scan import CLASSES, PRESENT, UNKNOWN

CLASS_WEIGHTS = np.array([2.0 if c is IchSubtype.ANY else 1.0 for c in CLASSES])
"""(classes,) of the log loss of the RSNA 2019 challenge: *any* counts twice."""
LEAST_PROBABILITY = 1e-15
"""Probabilities are held this far from 0 and 1 in a log loss, as scikit-learn did when the challenge was run."""


def auc(label: Bools, score: Floats, weights: Floats | None = None) -> Floats:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half (Mann-Whitney)."""
    positive, negative = _by_score(label, score, weights)
    below = np.cumsum(negative, axis=-1) - negative / 2
    return divided((positive * below).sum(-1), positive.sum(-1) * negative.sum(-1))


def average_precision(
    label: Bools,
    score: Floats,
    weights: Floats | None = None,
    *,
    positives: Floats | None = None,
    envelope: bool = False,
) -> Floats:
    """Area under the precision-recall curve, as steps.

    Parameters
    ----------
    positives
        How many there are to find, (...) like ``weights``, where not all are among the items: boxes to detect.
    envelope
        Take the highest precision at this recall or above, as detection benchmarks do (Everingham et al., The
        Pascal Visual Object Classes Challenge, 2010).
    """
    positive, negative = (part[..., ::-1] for part in _by_score(label, score, weights))
    found = np.cumsum(positive, axis=-1)
    precision = np.nan_to_num(divided(found, found + np.cumsum(negative, axis=-1)))
    if envelope:
        precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    wanted = positive.sum(-1) if positives is None else positives
    return divided((positive * precision).sum(-1), wanted)


def roc(label: Bools, score: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """False positive rate and sensitivity, (..., thresholds + 1) each, rising from 0 to 1."""
    curves = []
    for part in _by_score(label, score, weights)[::-1]:
        rising = np.cumsum(part[..., ::-1], axis=-1)
        start = np.zeros((*rising.shape[:-1], 1))
        curves.append(divided(np.concatenate([start, rising], axis=-1), rising[..., -1:]))
    return curves[0], curves[1]


def precision_recall(label: Bools, score: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Recall and precision, (..., thresholds) each, recall rising; precision is 1 where nothing is found yet."""
    positive, negative = (np.cumsum(p[..., ::-1], axis=-1) for p in _by_score(label, score, weights))
    precision = np.nan_to_num(divided(positive, positive + negative), nan=1.0)
    return divided(positive, positive[..., -1:]), precision


def shares(label: Bools, hit: Bools) -> Mapping[str, tuple[Floats, Floats]]:
    """What is counted over what for each metric of a threshold, (items,) each, to be summed.

    Parameters
    ----------
    label
        (items,) whether the class is there.
    hit
        (items,) whether the system says so.

    Returns
    -------
    Mapping
        ``sensitivity``, ``specificity``, ``ppv``, ``accuracy`` and ``f1``, which is also the Dice coefficient
        2 TP / (2 TP + FP + FN).
    """
    there, said = label.astype(float), hit.astype(float)
    return MappingProxyType(
        {
            "sensitivity": (there * said, there),
            "specificity": ((1 - there) * (1 - said), 1 - there),
            "ppv": (there * said, said),
            "accuracy": ((there == said).astype(float), np.ones(len(there))),
            "f1": (2 * there * said, there + said),
        }
    )


def share(name: str, label: Bools, hit: Bools, weights: Floats | None = None) -> Floats:
    """One of `shares` as a number."""
    counted, over = shares(label, hit)[name]
    if weights is None:
        return divided(counted.sum(), over.sum())
    return divided(weights @ counted, weights @ over)


def dice(found: Floats, false: Floats, missed: Floats) -> Floats:
    """Dice coefficient 2 TP / (2 TP + FP + FN)."""
    return divided(2 * found, 2 * found + false + missed)


def log_loss(label: Bools, probability: Floats) -> Floats:
    """(items,) negative log likelihood of each label."""
    held = np.clip(probability, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return -np.log(np.where(label, held, 1 - held))


def weighted_log_loss(labels: Floats, probabilities: Floats) -> tuple[Floats, Floats]:
    """Weighted multi-label log loss of the RSNA 2019 challenge, item by item: *any* counts twice.

    Parameters
    ----------
    labels
        (items, classes) 1, 0, or -1 for not known: that class of that item does not count.
    probabilities
        (items, classes), 0 to 1.

    Returns
    -------
    tuple
        Summed loss and summed weight of each item, (items,) each; the loss is one sum over the other.
    """
    known = (labels != UNKNOWN) * CLASS_WEIGHTS
    each = log_loss(labels == PRESENT, probabilities)
    return (known * each).sum(1), known.sum(1)


def divided(counted: Floats, over: Floats) -> Floats:
    """Quotient, NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(np.asarray(over) > 0, np.divide(counted, over), np.nan))


def _by_score(label: Bools, score: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, (..., scores), scores rising."""
    counts = np.ones(len(label)) if weights is None else weights
    if not len(label):
        empty = np.zeros((*counts.shape[:-1], 1))
        return empty, empty
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(score[order]) > 0]))
    sorted_counts, there = counts[..., order], label[order]
    if len(starts) == len(order):
        return sorted_counts * there, sorted_counts * ~there
    positive = np.add.reduceat(sorted_counts * there, starts, axis=-1)
    return positive, np.add.reduceat(sorted_counts, starts, axis=-1) - positive
