"""The scan rule of RADnet: a scan is positive when three or more consecutive slices are (Grewal et al.)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PUBLISHED_RUN = 3
"""Consecutive slices that the paper asks for."""


def consecutive_score(probabilities: npt.NDArray[np.floating], run: int = PUBLISHED_RUN) -> float:
    """Largest threshold at which a scan is positive: the best run's least suspicious slice.

    At every threshold t, ``consecutive_score(p) >= t`` says what the published rule says of slices that are
    positive from t up. So the rule, which is made for one threshold, has an ROC curve.

    Parameters
    ----------
    probabilities
        (slices,) probability of each slice, 0 to 1, in the order in which the slices lie.
    run
        Consecutive slices that have to be positive. A scan with fewer slices needs all of them: otherwise no
        short scan could ever be positive.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        There is no slice, or ``run`` is less than 1.
    """
    if probabilities.ndim != 1 or not len(probabilities) or run < 1:
        raise ValueError(f"{probabilities.shape} probabilities and a run of {run} make no score")
    windows = np.lib.stride_tricks.sliding_window_view(probabilities, min(run, len(probabilities)))
    return float(windows.min(axis=1).max())
