"""Intervals by resampling patients: slices and scans of one patient are no independent observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.evaluation.metrics import divided, shares
from training.evaluation.scored import Bools, Items
from training.predictions import Floats, Ints

RESAMPLES = 1000
SEED = 0
LEAST_PATIENTS = 2
"""Of each kind that a metric needs; with fewer there is no number."""
_CELLS = 4_000_000
"""Weights of items held at a time: bounds the memory, not the result."""
Needs = Literal["positive", "negative", "both"]
Statistic = Callable[[Floats], Floats]
"""From weights of patients, (resamplings, patients), to the metric, (resamplings,)."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number with its 95 % interval, or why there is none."""

    value: float
    low: float
    high: float
    count_positive: int
    """Items with the class: slices, scans or boxes."""
    count_negative: int
    missing: str = ""
    """Shown instead of the number."""

    def text(self, digits: int = 3) -> str:
        """As a table shows it."""
        if self.missing:
            return self.missing
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def plain(self) -> dict[str, float | int | str | None]:
        """For JSON."""
        counts = {"count_positive": self.count_positive, "count_negative": self.count_negative}
        if self.missing:
            return {"value": None, "missing": self.missing, **counts}
        return {"value": self.value, "low": self.low, "high": self.high, **counts}


def not_measured(why: str, positive: int = 0, negative: int = 0) -> Measured:
    """No number, and why."""
    nan = float("nan")
    return Measured(
        value=nan, low=nan, high=nan, count_positive=positive, count_negative=negative, missing=why
    )


def too_few(patients: int, kind: str = "") -> str:
    """What is said where a number would rest on too few patients."""
    return f"not measured (n={patients} patient{'' if patients == 1 else 's'}{kind})"


@dataclass(frozen=True)
class Resampling:
    """How often each patient counts in each resampling."""

    weights: Floats
    """(1 + resamplings, patients); in the first row each patient counts once, which gives the value itself."""

    @classmethod
    def of(cls, positive: Bools, *, resamples: int = RESAMPLES, seed: int = SEED) -> Resampling:
        """Draw patients with replacement, within those with the class and those without apart.

        Parameters
        ----------
        positive
            (patients,) bool.
        """
        rng = np.random.default_rng(seed)
        weights = np.ones((resamples + 1, len(positive)))
        for stratum in (np.flatnonzero(positive), np.flatnonzero(~positive)):
            if len(stratum):
                share = np.full(len(stratum), 1 / len(stratum))
                weights[1:, stratum] = rng.multinomial(len(stratum), share, size=resamples)
        return cls(weights)

    def interval(self, statistic: Statistic, width: int) -> tuple[float, float, float]:
        """Value, 2.5 and 97.5 percentile of a statistic; NaN where it is not defined.

        Parameters
        ----------
        width
            Items that the statistic looks at: decides how many resamplings are held at a time.
        """
        values = self.values(statistic, width)
        drawn = values[1:][np.isfinite(values[1:])]
        if not len(drawn) or not np.isfinite(values[0]):
            return float("nan"), float("nan"), float("nan")
        low, high = np.percentile(drawn, [2.5, 97.5])
        return float(values[0]), float(low), float(high)

    def values(self, statistic: Statistic, width: int) -> Floats:
        """(1 + resamplings, ...) statistic of each resampling."""
        step = max(1, _CELLS // max(width, 1))
        return np.concatenate(
            [statistic(self.weights[i : i + step]) for i in range(0, len(self.weights), step)]
        )


@dataclass(frozen=True)
class Measurer:
    """Metrics of the same items, on the same resamplings."""

    items: Items
    resampling: Resampling

    @classmethod
    def of(cls, items: Items) -> Measurer:
        """Draw resamplings, stratified by whether the patient has any positive item."""
        return cls(items, Resampling.of(_patients_with(items.label, items)))

    def area(self, metric: Callable[[Bools, Floats, Floats], Floats], needs: Needs = "both") -> Measured:
        """Measure `auc`, `average_precision` or another metric of labels, scores and weights of items."""
        items = self.items
        return self.of_patients(
            lambda w: metric(items.label, items.score, w[:, items.patient]), needs, width=len(items.label)
        )

    def share(self, name: str, cut: float) -> Measured:
        """Measure one of `metrics.shares`, where a score from ``cut`` up is positive."""
        return self.share_of_hits(name, self.items.score >= cut)

    def share_of_hits(self, name: str, hit: Bools) -> Measured:
        """Measure one of `metrics.shares` of what a system says, (items,) bool."""
        wanted: dict[str, Needs] = {"sensitivity": "positive", "specificity": "negative"}
        return self.ratio(*shares(self.items.label, hit)[name], wanted.get(name, "both"))

    def ratio(self, counted: Floats, over: Floats, needs: Needs = "both") -> Measured:
        """Measure one sum over another, (items,) each."""
        patient, patients = self.items.patient, self.items.patients
        a, b = (np.bincount(patient, each, patients) for each in (counted, over))
        return self.of_patients(lambda w: divided(w @ a, w @ b), needs, width=patients)

    def of_patients(self, statistic: Statistic, needs: Needs, *, width: int) -> Measured:
        """Measure a statistic of weights of patients."""
        label = self.items.label
        counts = (int(label.sum()), int((~label).sum()))
        why = self.items.missing or _lacks(self.items, needs)
        return measure(self.resampling, statistic, counts, why, width=width)


def measure(
    resampling: Resampling, statistic: Statistic, counts: tuple[int, int], why: str = "", *, width: int = 1
) -> Measured:
    """A statistic with its interval.

    Parameters
    ----------
    counts
        Items with the class, and without.
    why
        Reason not to measure, if there is one.
    width
        Items that the statistic looks at.
    """
    if why:
        return not_measured(why, *counts)
    value, low, high = resampling.interval(statistic, max(width, resampling.weights.shape[1]))
    if np.isnan(value):
        return not_measured("not defined", *counts)
    return Measured(value=value, low=low, high=high, count_positive=counts[0], count_negative=counts[1])


def measured(items: Items, metric: Callable[[Bools, Floats, Floats], Floats]) -> Measured:
    """One metric of labels, scores and weights of items, with its interval."""
    return Measurer.of(items).area(metric)


def _lacks(items: Items, needs: Needs) -> str:
    positive = int(_patients_with(items.label, items).sum())
    negative = int(_patients_with(~items.label, items).sum())
    if needs != "negative" and positive < LEAST_PATIENTS:
        return too_few(positive)
    if needs != "positive" and negative < LEAST_PATIENTS:
        return too_few(negative, " without")
    return ""


def _patients_with(which: Bools, items: Items) -> Bools:
    counts: Ints = np.bincount(items.patient[which], minlength=items.patients)
    return counts > 0
