"""From a system's slice logits to probabilities and to the suspicion of the study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ich_node.model.consecutive import consecutive_score

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DecisionConfig:
    """Calibration and study rule, both chosen on out-of-fold predictions."""

    scale: float = 1.0
    offset: float = 0.0
    """Probability of a slice = 1 / (1 + exp(-(scale * logit + offset)))."""
    class_scale: tuple[float, ...] = ()
    class_offset: tuple[float, ...] = ()
    """The same for each of the system's classes by itself, in their order; empty: ``scale`` and ``offset`` for all."""
    rule: Literal["max", "pair", "run3", "top3", "consecutive3"] = "pair"
    """How slice probabilities become the study's suspicion, see `suspicion`."""


def slice_probabilities(logits: npt.NDArray[np.float64], config: DecisionConfig) -> Probabilities:
    """Calibrate logits.

    Parameters
    ----------
    logits
        (slices,) or (slices, classes); -inf where there is no intracranial space, which gives probability 0.

    Returns
    -------
    numpy.ndarray
        float64 of the same shape, 0 to 1.
    """
    scale: float | Probabilities = np.array(config.class_scale) if config.class_scale else config.scale
    offset: float | Probabilities = np.array(config.class_offset) if config.class_offset else config.offset
    score = scale * logits + offset
    return np.where(score >= 0, 1 / (1 + np.exp(-np.abs(score))), 1 - 1 / (1 + np.exp(-np.abs(score))))


def suspicion(probabilities: Probabilities, config: DecisionConfig) -> float:
    """Study-level score of one class, 0 to 1, never above the most suspicious slice.

    ``max``: the most suspicious slice (Burduja et al. call a scan positive with any positive slice; He et al.
    decide on slices alone). ``pair``: the most suspicious pair of neighbours, each by its mean. ``run3``: the
    same of three. ``top3``: mean of the three highest, wherever they are. ``consecutive3``: the published rule
    of RADnet, three or more consecutive positive slices. All but the first need more than one slice to agree,
    so that one streak or one calcification does not flag a study.

    Parameters
    ----------
    probabilities
        (slices,) of the class.
    """
    if config.rule == "consecutive3":
        return consecutive_score(probabilities, run=3)
    count = {"max": 1, "pair": 2, "run3": 3, "top3": 3}[config.rule]
    count = min(count, len(probabilities))
    if config.rule == "top3":
        return float(np.sort(probabilities)[-count:].mean())
    return float(np.convolve(probabilities, np.full(count, 1 / count), "valid").max())
