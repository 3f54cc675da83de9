"""Short labels inside a picture, placed so that they can be read: beside what they name, off each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ich_node.report import drawing

_DIRECTIONS = 16
_TURNS = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
_WAYS = np.stack([np.cos(_TURNS), np.sin(_TURNS)], axis=-1)
_DISTANCES = np.array([3.0, 12.0, 26.0, 46.0, 72.0])
"""Picture pixels between a thing and its label; from the third on a line joins the two."""
_LEADER_FROM = 20.0
_GRID = 4
"""Picture pixels of a step, where what a label would cover is weighed."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A short text and the thing that it names."""

    text: str
    color: drawing.Color
    around: npt.NDArray[np.float64]
    """(points, 2) float64, x and y in picture pixels: the outline of the thing."""


@dataclass(frozen=True, kw_only=True)
class _Spots:
    """Every place that a label may take."""

    boxes: npt.NDArray[np.float64]
    """(places, 4) float64: left, top, right, bottom."""
    hang_from: npt.NDArray[np.float64]
    """(places, 2) float64: the point of the thing that the label hangs from."""
    distances: npt.NDArray[np.float64]
    """(places,) float64."""


def write_labels(
    draw: ImageDraw.ImageDraw,
    labels: Sequence[Label],
    *,
    size: int,
    taken: Sequence[drawing.Box],
    busy: Image.Image,
) -> list[drawing.Box]:
    """Write labels beside what they name, the first ones first.

    Parameters
    ----------
    draw
        The picture.
    labels
        Most important first.
    size
        Of the letters, in pixels.
    taken
        Boxes that have to stay free.
    busy
        L, of the picture's size: how much is lost where a label covers a pixel, 255 for most.

    Returns
    -------
    list of tuple
        Box of each label, in picture pixels.
    """
    if not labels:
        return []
    # Sums over boxes by four look-ups, on a grid coarser than letters are.
    coarse = np.asarray(busy.reduce(_GRID))
    sums = np.zeros((coarse.shape[0] + 1, coarse.shape[1] + 1), np.int64)
    coarse.cumsum(axis=0, dtype=np.int64).cumsum(axis=1, out=sums[1:, 1:])
    boxes: list[drawing.Box] = []
    for label in labels:
        left, top, right, bottom = drawing.text_box(label.text, size=size, anchor="mm", halo=True)
        half = np.array([max(-left, right), max(-top, bottom)])
        spots = _spots(label, half, np.array(busy.size))
        best = int(np.argmin(_costs(spots, sums, np.reshape([*taken, *boxes], (-1, 4)))))
        box = spots.boxes[best].tolist()
        boxes.append((box[0], box[1], box[2], box[3]))
        hang_from = spots.hang_from[best].tolist() if spots.distances[best] >= _LEADER_FROM else None
        _write(draw, label, boxes[-1], hang_from, size)
    return boxes


def _spots(label: Label, half: npt.NDArray[np.float64], size: npt.NDArray[np.int_]) -> _Spots:
    points = label.around[np.argmax(label.around @ _WAYS.T, axis=0)]
    # The box touches the line through the point across the way with its nearest corner.
    reach = np.abs(_WAYS) @ half
    middles = points[:, None] + _WAYS[:, None] * (reach[:, None] + _DISTANCES)[..., None]
    middles = np.maximum(np.minimum(middles, size - half), half).reshape(-1, 2)
    return _Spots(
        boxes=np.hstack([middles - half, middles + half]),
        hang_from=np.repeat(points, len(_DISTANCES), axis=0),
        distances=np.tile(_DISTANCES, _DIRECTIONS),
    )


def _costs(
    spots: _Spots, sums: npt.NDArray[np.int64], taken: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """What each place costs: (places,) float64."""
    low, high = spots.boxes[:, None, :2], spots.boxes[:, None, 2:]
    shared = np.minimum(high, taken[:, 2:]) - np.maximum(low, taken[:, :2])
    overlap = np.maximum(shared, 0).prod(axis=-1).sum(axis=-1)
    x0, y0, x1, y1 = (spots.boxes / _GRID).round().astype(int).T
    (x0, x1), (y0, y1) = (
        np.clip(pair, 0, sums.shape[1 - n] - 1) for n, pair in enumerate(((x0, x1), (y0, y1)))
    )
    covered = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    # Letters over letters are unreadable: a pixel of that outweighs all else.
    costs: npt.NDArray[np.float64] = 1000 * overlap + covered * (_GRID**2 / 255) + 2 * spots.distances
    return costs


def _write(
    draw: ImageDraw.ImageDraw, label: Label, box: drawing.Box, hang_from: list[float] | None, size: int
) -> None:
    """Write a label into its box; where the thing is far, a line joins the two."""
    left, top, right, bottom = box
    if hang_from is not None:
        x, y = hang_from
        line = (x, y, min(max(x, left), right), min(max(y, top), bottom))
        draw.line(line, fill=(0, 0, 0), width=3)
        draw.line(line, fill=label.color, width=1)
    middle = ((left + right) / 2, (top + bottom) / 2)
    drawing.write(draw, middle, label.text, size=size, color=label.color, anchor="mm", halo=True)
