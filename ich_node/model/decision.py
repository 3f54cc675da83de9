"""From the network's slice logits to probabilities and to the suspicion of the study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DecisionConfig:
    """Calibration and study rule, both chosen on out-of-fold predictions."""

    scale: float = 1.0
    offset: float = 0.0
    """Probability of a slice = 1 / (1 + exp(-(scale * logit + offset)))."""
    rule: Literal["max", "pair", "run3", "top3"] = "pair"
    """How slice probabilities become the study's suspicion, see `suspicion`."""


def slice_probabilities(logits: npt.NDArray[np.float64], config: DecisionConfig) -> Probabilities:
    """(slices,) calibrated probability; without intracranial space the logit is -inf, this 0."""
    score = config.scale * logits + config.offset
    return np.where(score >= 0, 1 / (1 + np.exp(-np.abs(score))), 1 - 1 / (1 + np.exp(-np.abs(score))))


def suspicion(probabilities: Probabilities, config: DecisionConfig) -> float:
    """Study-level score, 0 to 1, never above the most suspicious slice.

    ``max``: the most suspicious slice. ``pair``: the most suspicious pair of neighbours, each by its mean.
    ``run3``:
    the same of three. ``top3``: mean of the three highest, wherever they are. All but the first need more
    than one slice to agree, so that one streak or one calcification does not flag a study.
    """
    count = {"max": 1, "pair": 2, "run3": 3, "top3": 3}[config.rule]
    count = min(count, len(probabilities))
    if config.rule == "top3":
        return float(np.sort(probabilities)[-count:].mean())
    return float(np.convolve(probabilities, np.full(count, 1 / count), "valid").max())
