"""Whether what a model is shown, and what it says, is still what it was some weeks ago."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from ich_node.database.tables import ReadingRow
from ich_node.findings import Priority

RECENT = timedelta(days=7)
REFERENCE = timedelta(days=28)
"""Before the recent days; of a model that began later, the weeks since."""
MIN_READINGS = 50
"""Fewer in a period say nothing."""
LARGE_PSI = 0.25
"""From here on a distribution counts as another: Siddiqi, Credit Risk Scorecards, Wiley 2006."""
LARGE_UNLIKE_SHARE = 0.2
SUSPICION = "suspicion"
_BINS = 5
_CHI_SQUARE = (
    *(10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322, 26.124),
    *(27.877, 29.588, 31.264, 32.909, 34.528, 36.123, 37.697, 39.252),
)
"""99.9th percentiles of chi-square with 1, 2, ... degrees of freedom: the web process does without SciPy."""
_FLAGGED = (Priority.STAT, Priority.HIGH)


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How far a quantity has moved from one period to another."""

    psi: float
    """Population stability index, 0 where both periods are alike."""
    chance: float
    """What so many readings exceed about once in a thousand comparisons where nothing has changed."""

    @property
    def has_drifted(self) -> bool:
        """Whether the move is large, and larger than chance."""
        return self.psi > max(LARGE_PSI, self.chance)


@dataclass(frozen=True, kw_only=True)
class Period:
    """The first readings of series that a model made in some days."""

    readings: int
    flagged: int
    compared: int
    """Of models whose bundle says what they were trained on."""
    unlike: Mapping[str, int]
    """How many lay outside of that, by the feature that did."""
    unlike_readings: int
    """How many lay outside of it in one feature or several."""

    @property
    def flagged_share(self) -> float | None:
        """Share that was flagged; ``None`` where there are too few readings."""
        return self.flagged / self.readings if self.readings >= MIN_READINGS else None

    @property
    def unlike_share(self) -> float | None:
        """Share that is unlike the training data; ``None`` where there are too few readings."""
        return self.unlike_readings / self.compared if self.compared >= MIN_READINGS else None


@dataclass(frozen=True, kw_only=True)
class ModelDrift:
    """One model with one set of weights, now and before."""

    model_name: str
    weights_sha256: str
    recent: Period
    reference: Period
    stability: Mapping[str, Stability]
    """Of the suspicion and of each feature of the input that enough readings of both periods have."""

    @property
    def drifted(self) -> tuple[str, ...]:
        """What has drifted, the furthest first."""
        found = [name for name, one in self.stability.items() if one.has_drifted]
        return tuple(sorted(found, key=lambda name: -self.stability[name].psi))

    @property
    def often_unlike(self) -> bool:
        """Whether too many recent readings are of inputs unlike the training data."""
        share = self.recent.unlike_share
        return share is not None and share > LARGE_UNLIKE_SHARE


def model_drifts(session: Session, *, now: datetime) -> list[ModelDrift]:
    """Compare the last 7 days with the 28 days before, for each model and weights that read in the last 7 days.

    A series counts once, when a model first reads it: studies that are read again say nothing of what arrives. Only
    readings of the version that read last count: another version may measure and read the same images in another way.
    """
    rows = session.execute(
        select(
            ReadingRow.model_name,
            ReadingRow.weights_sha256,
            ReadingRow.model_version,
            ReadingRow.read_at,
            ReadingRow.priority,
            ReadingRow.suspicion,
            ReadingRow.input_features,
            ReadingRow.unlike_training,
        ).where(
            ReadingRow.read_at > now - RECENT - REFERENCE,
            ReadingRow.read_at <= now,
            ReadingRow.run_number == 1,
        )
    ).all()
    in_turn = sorted(rows, key=lambda row: row.read_at)
    version = {(row.model_name, row.weights_sha256): row.model_version for row in in_turn}
    by_model: dict[tuple[str, str], tuple[list[_Reading], list[_Reading]]] = defaultdict(lambda: ([], []))
    for row in rows:
        if row.model_version != version[row.model_name, row.weights_sha256]:
            continue
        recent = row.read_at > now - RECENT
        by_model[row.model_name, row.weights_sha256][0 if recent else 1].append(row)
    return [
        _model_drift(name, weights, recent, reference)
        for (name, weights), (recent, reference) in sorted(by_model.items())
        if recent
    ]


def stability(reference: Sequence[float], recent: Sequence[float]) -> Stability:
    """Population stability index of a quantity.

    ``PSI = sum over bins of (p - q) ln(p / q)``, with p and q the shares of the recent and the reference values in a
    bin. Bins are bounded by the fifths of the reference values; a value that a fifth of them share is a bin of its
    own, so that spacings of 5 mm throughout show any other. So that no share is 0, half a value is added to each
    bin; bins empty in both periods are left out.

    Of n recent and m reference values of one distribution in B bins, PSI / (1/n + 1/m) is near chi-square with B - 1
    degrees of freedom: Yurdakul, Naranjo, Statistical properties of the population stability index, Journal of Risk
    Model Validation 14(4), 2020. `Stability.chance` is its 99.9th percentile. Hence five bins and not the usual ten:
    with 50 values, ten take 0.2 by chance on average.
    """
    old, new = np.asarray(reference, float), np.asarray(recent, float)
    edges = _edges(old)
    counts = [np.bincount(np.searchsorted(edges, x, "right"), minlength=len(edges) + 1) for x in (old, new)]
    filled = (counts[0] + counts[1]) > 0
    q, p = ((each[filled] + 0.5) / (each[filled] + 0.5).sum() for each in counts)
    freedom = max(1, int(filled.sum()) - 1)
    return Stability(
        psi=float(((p - q) * np.log(p / q)).sum()),
        chance=_CHI_SQUARE[min(freedom, len(_CHI_SQUARE)) - 1] * (1 / len(old) + 1 / len(new)),
    )


def _edges(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Lower bounds of all bins but the first, ascending."""
    cuts = np.quantile(values, np.arange(1, _BINS) / _BINS)
    distinct, counts = np.unique(values, return_counts=True)
    shared = distinct[counts >= len(values) / _BINS]
    return np.unique(np.concatenate([cuts, shared, np.nextafter(shared, np.inf)]))


_Reading = Row[tuple[str, str, str, datetime, str, float, dict[str, float] | None, list[str] | None]]


def _model_drift(
    name: str, weights_sha256: str, recent: Sequence[_Reading], reference: Sequence[_Reading]
) -> ModelDrift:
    new, old = _values(recent), _values(reference)
    enough = [key for key in new if min(len(new[key]), len(old.get(key, ()))) >= MIN_READINGS]
    return ModelDrift(
        model_name=name,
        weights_sha256=weights_sha256,
        recent=_period(recent),
        reference=_period(reference),
        stability={key: stability(old[key], new[key]) for key in enough},
    )


def _values(readings: Sequence[_Reading]) -> dict[str, list[float]]:
    """Values by the name of the quantity."""
    found: dict[str, list[float]] = defaultdict(list)
    for reading in readings:
        found[SUSPICION].append(reading.suspicion)
        for name, value in (reading.input_features or {}).items():
            found[name].append(value)
    return found


def _period(readings: Sequence[_Reading]) -> Period:
    compared = [reading.unlike_training for reading in readings if reading.unlike_training is not None]
    return Period(
        readings=len(readings),
        flagged=sum(reading.priority in _FLAGGED for reading in readings),
        compared=len(compared),
        unlike=Counter(name for names in compared for name in names),
        unlike_readings=sum(bool(names) for names in compared),
    )
