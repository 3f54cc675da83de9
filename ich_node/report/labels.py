"""Short labels inside a picture, placed so that they can be read: beside what they name, off each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ImageDraw

from ich_node.report import drawing

_DIRECTIONS = 16
_DISTANCES = (3.0, 12.0, 26.0, 46.0, 72.0)
"""Picture pixels between a thing and its label; from the third on a line joins the two."""
_LEADER_FROM = 20.0
_RIM = 2


@dataclass(frozen=True, kw_only=True)
class Label:
    """A short text and the thing that it names."""

    text: str
    color: drawing.Color
    around: npt.NDArray[np.float64]
    """(points, 2) float64, x and y in picture pixels: the outline of the thing."""


@dataclass(frozen=True, kw_only=True)
class _Spot:
    cost: float
    box: drawing.Box
    at: tuple[float, float]
    """The point of the thing that the label hangs from."""
    distance: float


def write_labels(
    draw: ImageDraw.ImageDraw,
    labels: Sequence[Label],
    *,
    size: int,
    taken: Sequence[drawing.Box],
    busy: npt.NDArray[np.float32],
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
        (height, width) float32: how much is lost where a label covers a pixel of the picture.

    Returns
    -------
    list of tuple
        Box of each label, in picture pixels.
    """
    # Sums over boxes by four look-ups: (height + 1, width + 1).
    sums = np.pad(np.cumsum(np.cumsum(busy, axis=0, dtype=np.float64), axis=1), ((1, 0), (1, 0)))
    boxes: list[drawing.Box] = []
    for label in labels:
        left, top, right, bottom = draw.textbbox(
            (0, 0), label.text, font=drawing.font(size), anchor="mm", stroke_width=_RIM
        )
        half = (max(-left, right), max(-top, bottom))
        best = min(_spots(label, half, sums, [*taken, *boxes]), key=lambda spot: spot.cost)
        boxes.append(best.box)
        _write(draw, label, best, size)
    return boxes


def _spots(
    label: Label, half: tuple[float, float], sums: npt.NDArray[np.float64], taken: Sequence[drawing.Box]
) -> list[_Spot]:
    """Every place that a label may take, with what it costs."""
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    spots = []
    for angle in np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS:
        way = np.array([np.cos(angle), np.sin(angle)])
        x, y = label.around[np.argmax(label.around @ way)].tolist()
        # The box touches the line through the point across the way with its nearest corner.
        reach = abs(way[0]) * half[0] + abs(way[1]) * half[1]
        for distance in _DISTANCES:
            middle = (
                min(max(x + way[0] * (reach + distance), half[0]), width - half[0]),
                min(max(y + way[1] * (reach + distance), half[1]), height - half[1]),
            )
            box = (middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1])
            spots.append(_Spot(cost=_cost(box, distance, sums, taken), box=box, at=(x, y), distance=distance))
    return spots


def _cost(
    box: drawing.Box, distance: float, sums: npt.NDArray[np.float64], taken: Sequence[drawing.Box]
) -> float:
    left, top, right, bottom = box
    overlap = sum(
        max(0.0, min(right, r) - max(left, a)) * max(0.0, min(bottom, b) - max(top, t))
        for a, t, r, b in taken
    )
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    x0, x1 = (min(max(round(v), 0), width) for v in (left, right))
    y0, y1 = (min(max(round(v), 0), height) for v in (top, bottom))
    covered = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    # Letters over letters are unreadable: a pixel of that outweighs all else.
    return float(1000 * overlap + covered + 2 * distance)


def _write(draw: ImageDraw.ImageDraw, label: Label, spot: _Spot, size: int) -> None:
    left, top, right, bottom = spot.box
    if spot.distance >= _LEADER_FROM:
        end = (min(max(spot.at[0], left), right), min(max(spot.at[1], top), bottom))
        draw.line((*spot.at, *end), fill=(0, 0, 0), width=3)
        draw.line((*spot.at, *end), fill=label.color, width=1)
    middle = ((left + right) / 2, (top + bottom) / 2)
    drawing.write(draw, middle, label.text, size=size, color=label.color, anchor="mm", halo=True)
