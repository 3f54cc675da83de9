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
_OVERLAP_COST = 1000.0
"""Letters over letters are unreadable: a pixel of that outweighs all else."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A short text and the thing that it names."""

    text: str
    color: drawing.Color
    around: npt.NDArray[np.float64]
    """(points, 2) float64, x and y in picture pixels: the outline of the thing."""


@dataclass(frozen=True, kw_only=True)
class _Spots:
    """Every place that each of some labels may take."""

    boxes: npt.NDArray[np.float64]
    """(labels, places, 4) float64: left, top, right, bottom."""
    hang_from: npt.NDArray[np.float64]
    """(labels, directions, 2) float64: the points of the things that the labels hang from."""


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
    spots = _spots(labels, size, np.array(busy.size))
    costs = _covered(spots.boxes, busy) + 2 * np.tile(_DISTANCES, _DIRECTIONS)
    costs += _OVERLAP_COST * _overlap(spots.boxes, np.reshape(taken, (-1, 4)))
    boxes: list[drawing.Box] = []
    for number, label in enumerate(labels):
        way, distance = divmod(int(np.argmin(costs[number])), len(_DISTANCES))
        box = spots.boxes[number, way * len(_DISTANCES) + distance]
        costs[number + 1 :] += _OVERLAP_COST * _overlap(spots.boxes[number + 1 :], box[None])
        left, top, right, bottom = box.tolist()
        boxes.append((left, top, right, bottom))
        hang_from = spots.hang_from[number, way].tolist() if _DISTANCES[distance] >= _LEADER_FROM else None
        _write(draw, label, boxes[-1], hang_from, size)
    return boxes


def _spots(labels: Sequence[Label], letter_size: int, size: npt.NDArray[np.int_]) -> _Spots:
    halves = []
    for label in labels:
        left, top, right, bottom = drawing.text_box(label.text, size=letter_size, anchor="mm", halo=True)
        halves.append((max(-left, right), max(-top, bottom)))
    half = np.asarray(halves, np.float64)
    points = np.stack([label.around[np.argmax(label.around @ _WAYS.T, axis=0)] for label in labels])
    # The box touches the line through the point across the way with its nearest corner.
    away = (half @ np.abs(_WAYS).T)[..., None] + _DISTANCES
    middles = points[:, :, None] + _WAYS[:, None] * away[..., None]
    half = half[:, None]
    middles = middles.reshape(len(labels), -1, 2)
    middles = np.maximum(np.minimum(middles, size - half), half)
    return _Spots(boxes=np.concatenate([middles - half, middles + half], axis=-1), hang_from=points)


def _covered(boxes: npt.NDArray[np.float64], busy: Image.Image) -> npt.NDArray[np.float64]:
    """How much of what is busy each of some boxes, (labels, places, 4), covers: (labels, places) float64."""
    bounds = busy.getbbox()
    if bounds is None:
        return np.zeros(boxes.shape[:2])
    left, top = (bounds[0] // _GRID, bounds[1] // _GRID)
    # Sums over boxes by four look-ups, on a grid coarser than letters are, around all that is busy.
    coarse = np.asarray(busy.reduce(_GRID, (left * _GRID, top * _GRID, bounds[2], bounds[3])))
    sums = np.zeros((coarse.shape[0] + 1, coarse.shape[1] + 1), np.int64)
    coarse.cumsum(axis=0, dtype=np.int64).cumsum(axis=1, out=sums[1:, 1:])
    x0, y0, x1, y1 = np.moveaxis((boxes / _GRID).round().astype(int), -1, 0)
    (x0, x1), (y0, y1) = (
        np.clip((low - origin, high - origin), 0, last - 1)
        for low, high, origin, last in ((x0, x1, left, sums.shape[1]), (y0, y1, top, sums.shape[0]))
    )
    covered = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    share: npt.NDArray[np.float64] = covered * (_GRID**2 / 255)
    return share


def _overlap(boxes: npt.NDArray[np.float64], taken: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pixels that boxes, (labels, places, 4), share with those of (taken, 4): (labels, places) float64."""
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    shared = np.maximum(np.minimum(high, taken[:, 2:]) - np.maximum(low, taken[:, :2]), 0)
    overlap: npt.NDArray[np.float64] = (shared[..., 0] * shared[..., 1]).sum(axis=-1)
    return overlap


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
