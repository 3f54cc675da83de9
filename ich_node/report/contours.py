"""Contours of likelihood maps, in image coordinates of the source slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import find_contours

from ich_node.findings import IchSubtype
from ich_node.report import drawing

CLASS_LEVELS: tuple[float, float] = (drawing.LEVELS[0][0], drawing.LEVELS[1][0])
"""Likelihoods at which each class gets a contour where several stand in one picture: a dashed one, a solid one."""
_COVER_SHARE = 1 / 48
"""Of the slice's width, 5 mm in most: a contour of ``ANY`` nearer than this to a subtype says nothing that the
subtype's does not."""


@dataclass(frozen=True, kw_only=True)
class Contour:
    """One line of equal likelihood."""

    level: float
    line: npt.NDArray[np.float64]
    """(points, 2) float64, x and y in image coordinates as in `Localization`; a closed line ends where it begins."""

    @property
    def encloses(self) -> bool:
        """Whether the likely side is inside: false for the rim of a hole and for a piece of a line."""
        x, y = (self.line - self.line[0]).T
        # find_contours keeps the low side at one hand: on the image, whose y points down, the shoelace sum is
        # negative around what is high.
        doubled_area = float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
        return bool(np.array_equal(self.line[0], self.line[-1])) and doubled_area > 0


def contours(likelihood: npt.NDArray[np.float32], levels: Sequence[float]) -> list[Contour]:
    """Find the closed contours of a likelihood map, level by level.

    Parameters
    ----------
    likelihood
        (rows, columns) float32, 0 to 1; NaN counts as 0.
    levels
        Likelihoods, ascending.

    Returns
    -------
    list of Contour
        Empty where the map stays below the lowest level.
    """
    likely = likelihood >= levels[0]
    rows, columns = np.flatnonzero(likely.any(axis=1)), np.flatnonzero(likely.any(axis=0))
    if rows.size == 0:
        return []
    # Only the part that has contours is searched, with a rim of zeros so that every contour closes.
    top, left = int(rows[0]) - 1, int(columns[0]) - 1
    part = likelihood[top + 1 : rows[-1] + 1, left + 1 : columns[-1] + 1]
    part = np.pad(np.clip(np.nan_to_num(part), 0, 1), 1)
    # find_contours counts from pixel centres, image coordinates from the pixel's corner.
    origin = np.array([left + 0.5, top + 0.5])
    return [
        Contour(level=level, line=found[:, ::-1] + origin)
        for level in levels
        for found in find_contours(part, level)  # type: ignore[no-untyped-call]
    ]


def class_contours(
    maps: Mapping[IchSubtype, npt.NDArray[np.float32]],
) -> dict[IchSubtype, list[Contour]]:
    """Find what is drawn of each class where several stand in one picture.

    Subtypes are drawn whole; of ``ANY`` only the part where no subtype reaches the lowest level.

    Parameters
    ----------
    maps
        Likelihood per class, each (rows, columns) float32 on the same grid; NaN counts as 0.

    Returns
    -------
    dict of IchSubtype to list of Contour
        In the order of `IchSubtype`; classes of which nothing is drawn are absent.
    """
    found = {subtype: contours(maps[subtype], CLASS_LEVELS) for subtype in IchSubtype if subtype in maps}
    if found.get(IchSubtype.ANY):
        covered = _covered(maps)
        pieces = [piece for contour in found[IchSubtype.ANY] for piece in _outside(contour, covered)]
        found[IchSubtype.ANY] = pieces
    return {subtype: lines for subtype, lines in found.items() if lines}


def _covered(maps: Mapping[IchSubtype, npt.NDArray[np.float32]]) -> npt.NDArray[np.bool_]:
    """Where a subtype reaches the lowest level, or near that: (rows, columns) bool."""
    rows, columns = maps[IchSubtype.ANY].shape
    union = np.zeros((rows, columns), dtype=bool)
    for subtype, likelihood in maps.items():
        if subtype is not IchSubtype.ANY:
            union |= likelihood >= CLASS_LEVELS[0]
    if not union.any():
        return union
    return np.asarray(ndimage.distance_transform_cdt(~union) <= columns * _COVER_SHARE)


def _outside(contour: Contour, covered: npt.NDArray[np.bool_]) -> list[Contour]:
    """Cut a contour to its pieces outside a (rows, columns) bool mask."""
    columns, rows = np.floor(contour.line).astype(int).T
    limit = np.array(covered.shape) - 1
    hidden = covered[np.clip(rows, 0, limit[0]), np.clip(columns, 0, limit[1])]
    if not hidden.any():
        return [contour]
    runs, count = ndimage.label(~hidden)
    pieces = [contour.line[runs == n] for n in range(1, count + 1)]
    # What is left over between two subtypes is a speck.
    shortest = 2 * covered.shape[1] * _COVER_SHARE
    return [
        Contour(level=contour.level, line=piece)
        for piece in pieces
        if np.ptp(piece, axis=0).max() >= shortest
    ]
