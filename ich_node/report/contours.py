"""Contours of likelihood maps, in image coordinates of the source slice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from contourpy import LineType, contour_generator

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
        # contourpy keeps the high side at one hand: the shoelace sum is positive around what is high.
        doubled_area = float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
        return bool(np.array_equal(self.line[0], self.line[-1])) and doubled_area > 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A rectangle of a slice's pixels, from the first row and column to before the last."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the rectangle in a (rows, columns) array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def part_from(where: npt.NDArray[np.bool_], margin: int = 0) -> Part | None:
    """Return the rectangle around the true pixels of a (rows, columns) mask; ``None`` where there are none.

    Parameters
    ----------
    where
        (rows, columns) bool.
    margin
        Pixels that are added on each side, as far as the mask reaches.
    """
    rows = np.flatnonzero(where.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(where[rows[0] : rows[-1] + 1].any(axis=0))
    return Part(
        top=max(int(rows[0]) - margin, 0),
        left=max(int(columns[0]) - margin, 0),
        bottom=min(int(rows[-1]) + 1 + margin, where.shape[0]),
        right=min(int(columns[-1]) + 1 + margin, where.shape[1]),
    )


def part_around(parts: Collection[Part]) -> Part:
    """Return the rectangle around one or more rectangles."""
    return Part(
        top=min(part.top for part in parts),
        left=min(part.left for part in parts),
        bottom=max(part.bottom for part in parts),
        right=max(part.right for part in parts),
    )


def grown(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    """Grow a (rows, columns) bool mask by so many pixels to all sides, diagonals included."""
    for _ in range(2):  # Along the rows, then along the columns, turned back.
        mask = np.ascontiguousarray(mask.T)
        reached = 0
        while reached < by:
            # What reaches n pixels leaves no gap when it is moved by n + 1, at the mask's edge neither.
            step = min(reached + 1, by - reached)
            wider = mask.copy()
            wider[step:] |= mask[:-step]
            wider[:-step] |= mask[step:]
            mask, reached = wider, reached + step
    return mask


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
    # Only the part that has contours is searched: they run between pixels that reach the level and their neighbours.
    part = part_from(likelihood >= levels[0], margin=1)
    if part is None:
        return []
    # A rim of zeros closes every contour at the edge of the slice. Of a number and NaN, fmax takes the number.
    found = np.pad(np.fmin(np.fmax(likelihood[part.slices], 0), 1), 1)
    generator = contour_generator(z=found, name="serial", line_type=LineType.Separate)
    # contourpy counts from pixel centres, image coordinates from the pixel's corner.
    origin = np.array([part.left - 0.5, part.top - 0.5])
    return [
        Contour(level=level, line=np.asarray(line) + origin)
        for level in levels
        for line in generator.lines(level)
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
    found = {
        subtype: _uncovered(maps) if subtype is IchSubtype.ANY else contours(maps[subtype], CLASS_LEVELS)
        for subtype in IchSubtype
        if subtype in maps
    }
    return {subtype: lines for subtype, lines in found.items() if lines}


def _uncovered(maps: Mapping[IchSubtype, npt.NDArray[np.float32]]) -> list[Contour]:
    """Pieces of the contours of ``ANY`` that no subtype's map reaches or comes near."""
    likelihood = maps[IchSubtype.ANY]
    likely = likelihood >= CLASS_LEVELS[0]
    covered = _covered(maps, part_from(likely, margin=1))
    if not (likely & ~covered).any():
        return []
    return [piece for contour in contours(likelihood, CLASS_LEVELS) for piece in _outside(contour, covered)]


def _covered(maps: Mapping[IchSubtype, npt.NDArray[np.float32]], part: Part | None) -> npt.NDArray[np.bool_]:
    """Where in a part of the slice a subtype reaches the lowest level, or near that: (rows, columns) bool."""
    rows, columns = maps[IchSubtype.ANY].shape
    covered = np.zeros((rows, columns), dtype=bool)
    if part is None:
        return covered
    near = int(columns * _COVER_SHARE)
    wide = Part(
        top=max(part.top - near, 0),
        left=max(part.left - near, 0),
        bottom=part.bottom + near,
        right=part.right + near,
    )
    for subtype, likelihood in maps.items():
        if subtype is not IchSubtype.ANY:
            covered[wide.slices] |= likelihood[wide.slices] >= CLASS_LEVELS[0]
    inside = covered[wide.slices]
    if inside.any():
        inside[:] = grown(inside, near)
    return covered


def _outside(contour: Contour, covered: npt.NDArray[np.bool_]) -> list[Contour]:
    """Cut a contour to its pieces outside a (rows, columns) bool mask."""
    columns, rows = np.floor(contour.line).astype(int).T
    limit = np.array(covered.shape) - 1
    hidden = covered[np.clip(rows, 0, limit[0]), np.clip(columns, 0, limit[1])]
    if not hidden.any():
        return [contour]
    starts = np.flatnonzero(np.diff(hidden)) + 1
    runs = zip(np.split(contour.line, starts), np.split(hidden, starts), strict=True)
    # What is left over between two subtypes is a speck.
    shortest = 2 * covered.shape[1] * _COVER_SHARE
    return [
        Contour(level=contour.level, line=piece)
        for piece, is_hidden in runs
        if not is_hidden[0] and np.ptp(piece, axis=0).max() >= shortest
    ]
