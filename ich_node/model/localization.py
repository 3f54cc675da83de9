"""From a likelihood map to points: the detector of Vicar et al. (local maxima, h-maxima, T, d)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ich_node.findings import IchSubtype, Localization

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Parameters of the detector; the paper tunes them by Bayesian optimization."""

    height: float = 0.02
    """h of the h-maxima transform: a maximum that rises less above its surroundings is dropped."""
    threshold: float = 0.3
    """T: least likelihood of a point."""
    distance_mm: float = 15.0
    """d: of two points nearer than this, the lower one is dropped."""
    most: int = 5
    """Points per slice at most, the highest ones."""


def detect(
    likelihood: FloatArray, pixel_spacing_mm: tuple[float, float], config: DetectorConfig
) -> tuple[Localization, ...]:
    """Points of a likelihood map, highest first.

    Parameters
    ----------
    likelihood
        (rows, columns) float32, 0 to 1, on the source pixel grid.
    pixel_spacing_mm
        (row, column), mm.

    Returns
    -------
    tuple of Localization
        Points in image coordinates, SCOORD convention (PS3.3 C.18.6.1.2): the centre of the top left pixel is
        (0.5, 0.5).
    """
    peaks = _peaks(likelihood, pixel_spacing_mm, config)
    kept: list[tuple[float, float, float]] = []
    for score, row, column in sorted(peaks, reverse=True):
        if len(kept) == config.most:
            break
        if all(_distance(row - r, column - c, pixel_spacing_mm) >= config.distance_mm for _, r, c in kept):
            kept.append((score, row, column))
    return tuple(
        Localization(
            kind="point",
            subtype=IchSubtype.ANY,
            coordinates=(column + 0.5, row + 0.5),
            score=min(1.0, max(0.0, score)),
        )
        for score, row, column in kept
    )


def _peaks(
    likelihood: FloatArray, pixel_spacing_mm: tuple[float, float], config: DetectorConfig
) -> list[tuple[float, float, float]]:
    """(likelihood, row, column) of each h-maximum from the threshold up; a plateau counts once."""
    if not (likelihood >= config.threshold).any():
        return []
    # grey dilation first: most of the map is no local maximum of its neighbourhood, whatever h is
    reach = [max(1, int(config.distance_mm / 4 / p)) for p in pixel_spacing_mm]
    local = ndimage.grey_dilation(likelihood, size=[2 * r + 1 for r in reach]) <= likelihood
    local &= likelihood >= config.threshold
    labels, _ = ndimage.label(local, np.ones((3, 3)))
    found = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = np.nonzero(labels[box] == index)
        middle = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
        row, column = int(rows[middle] + box[0].start), int(columns[middle] + box[1].start)
        peak = float(likelihood[row, column])
        if _rises(likelihood, (row, column), peak, config.height):
            found.append((peak, float(row), float(column)))
    return found


def _rises(likelihood: FloatArray, at: tuple[int, int], peak: float, height: float) -> bool:
    """Whether every way from a peak to a higher one goes down by ``height`` first (h-maxima)."""
    region, _ = ndimage.label(likelihood > peak - height, np.ones((3, 3)))
    return bool(likelihood[region == region[at]].max() <= peak)


def _distance(rows: float, columns: float, pixel_spacing_mm: tuple[float, float]) -> float:
    return float(np.hypot(rows * pixel_spacing_mm[0], columns * pixel_spacing_mm[1]))
