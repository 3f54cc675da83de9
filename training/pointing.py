"""Does the strongest point lie in the bleed? Counted on outlined scans: phantoms, or a data set with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.predictions import Predictions
from training.reading import read_scans
from training.scan import PRESENT, Scan

_ANY = 0
_NEAR_MM = 5.0


@dataclass(frozen=True, kw_only=True)
class Pointing:
    """Slices with hemorrhage by where their strongest point lies."""

    slices: int
    hits: int
    """The strongest point lies in the outline."""
    near: int
    """Within 5 mm of it, hits included."""
    without: int
    """Slices without any point."""
    by_scan: tuple[tuple[int, int], ...]
    """(slices, hits) of each scan with hemorrhage, for the interval."""

    @property
    def share(self) -> float:
        """Hits per slice with hemorrhage."""
        return self.hits / self.slices if self.slices else float("nan")

    def interval(self, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 % by bootstrap over scans."""
        counts = np.array(self.by_scan)
        if not len(counts):
            return float("nan"), float("nan")
        rng = np.random.default_rng(seed)
        drawn = counts[rng.integers(len(counts), size=(resamples, len(counts)))].sum(axis=1)
        low, high = np.percentile(drawn[:, 1] / drawn[:, 0], [2.5, 97.5])
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any] | None:
        """What a bundle's metrics have of it; None where there was nothing to point at."""
        if not self.slices:
            return None
        low, high = self.interval()
        return {
            "slices_with_hemorrhage": self.slices,
            "strongest_point_in_bleed": round(self.share, 3),
            "interval_95": [round(low, 3), round(high, 3)],
            "within_5_mm": round(self.near / self.slices, 3),
            "without_a_point": self.without,
            "scans": len(self.by_scan),
        }


def pointing(bundle: Path, scans: Sequence[Scan]) -> Pointing:
    """Read outlined scans with a bundle and count.

    Parameters
    ----------
    scans
        With outlines; none of them trained the bundle.

    Raises
    ------
    ValueError
        A scan has no outlines.
    """
    found = read_scans(bundle, scans, system=bundle.name, split="outlined scans")
    return counted(found, scans)


def counted(predictions: Predictions, scans: Sequence[Scan]) -> Pointing:
    """Count what `pointing` does on predictions that are there.

    Raises
    ------
    ValueError
        A scan has no outlines.
    """
    slices = hits = near = without = 0
    by_scan = []
    for number, scan in enumerate(scans):
        rows = np.flatnonzero(predictions.scan == number)
        positive = np.flatnonzero(scan.labels[:, _ANY] == PRESENT)
        if not len(positive):
            continue
        lesion = scan.read().lesion
        if lesion is None:
            raise ValueError(f"scan {scan.scan_id} has no outlines: where its bleeds lie is not known")
        inside = 0
        for index in positive:
            places = predictions.places[predictions.places[:, 0] == rows[index]]
            if not len(places):
                without += 1
                continue
            best = places[places[:, 2].argmax()]
            column, row = (best[3] + best[5]) / 2, (best[4] + best[6]) / 2
            distance = _distance_mm(lesion[index, _ANY], row, column, predictions.pixel_mm[rows[index]])
            inside += distance == 0
            near += distance <= _NEAR_MM
        slices, hits = slices + len(positive), hits + inside
        by_scan.append((len(positive), inside))
    return Pointing(slices=slices, hits=hits, near=near, without=without, by_scan=tuple(by_scan))


def _distance_mm(
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], row: float, column: float, pixel_mm: np.ndarray
) -> float:
    """From a place in image coordinates to the nearest pixel of a mask, 0 inside."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return float("inf")
    away = np.maximum(np.abs([rows + 0.5 - row, columns + 0.5 - column]) - 0.5, 0)
    return float(np.hypot(away[0] * pixel_mm[0], away[1] * pixel_mm[1]).min())
