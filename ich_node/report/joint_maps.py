"""The likelihood maps of a slice in its picture; those of several classes in a colour, a contour and letters for each.

A published system's authors report that radiologists asked for all classes together in one picture. Colour is
never the only sign: each contour carries the class's letters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from skimage.measure import points_in_poly

from ich_node.findings import IchSubtype, Localization
from ich_node.report import drawing
from ich_node.report.contours import CLASS_LEVELS, Contour, grown
from ich_node.report.labels import Label
from ich_node.report.sketch import FILL_OPAQUE, Fill, SliceSketch
from ich_node.report.sketch import has_subtypes as has_subtypes
from ich_node.report.viewport import Viewport
from ich_node.report.wording import ABBREVIATION

_MOST_LABELS, _MOST_LABELS_SMALL = 6, 2
"""Contours of one class that get letters, the largest ones: a map of many specks would drown in letters."""
_DASH, _DASH_GAP = 7, 5
"""Picture pixels."""
_DASH_POINTS = 4
_STRIPE = 6
"""Picture pixels that each class has in turn where contours lie on each other."""
_SMALLEST_LABELLED = 8.0
"""Picture pixels."""
_LINE_MARGIN = 4
"""Picture pixels that a line with its rim reaches beyond its points."""
_FILL_BUSY = 0.3
_BUSY_OF_ALPHA = [round(alpha * _FILL_BUSY / FILL_OPAQUE) for alpha in range(256)]

PictureLines = list[tuple[float, npt.NDArray[np.float64]]]
"""Level and points of each contour of a class: (points, 2) float64, x and y in picture pixels."""


def draw_levels(picture: Image.Image, sketch: SliceSketch, view: Viewport) -> None:
    """Draw the likelihood of ``ANY`` alone: heat, and a contour per level."""
    if sketch.fill is not None:
        _paste_fill(picture, sketch.fill, view)
    draw = ImageDraw.Draw(picture)
    color_of = dict(drawing.LEVELS)
    for contour in sketch.contours.get(IchSubtype.ANY, []):
        line = to_picture(contour, view).ravel().tolist()
        draw.line(line, fill=color_of[contour.level], width=2 if view.is_large else 1)


def draw_joint_maps(picture: Image.Image, sketch: SliceSketch, view: Viewport) -> Image.Image:
    """Draw the maps of all classes of a slice: faint fills below, contours on a dark rim above.

    Where contours of several classes lie on each other, their colours alternate, so that none hides another.

    Parameters
    ----------
    picture
        RGB, ``view.width`` x ``view.height``; is drawn on.

    Returns
    -------
    PIL.Image.Image
        L, of the same size: 255 on contours, less on filled pixels; labels keep off them.
    """
    busy = Image.new("L", picture.size)
    if sketch.fill is not None:
        _paste_fill(picture, sketch.fill, view, busy)
    lines = {
        subtype: [(contour.level, to_picture(contour, view)) for contour in found]
        for subtype, found in sketch.contours.items()
    }
    if lines:
        _draw_lines(picture, lines, view, busy)
    return busy


def _paste_fill(picture: Image.Image, fill: Fill, view: Viewport, busy: Image.Image | None = None) -> None:
    """Lay a fill over the picture; what it covers counts as busy by its density."""
    part = fill.part
    x0, y0 = view.to_picture(float(part.left), float(part.top))
    x1, y1 = view.to_picture(float(part.right), float(part.bottom))
    left, top = max(math.ceil(x0), 0), max(math.ceil(y0), 0)
    right, bottom = min(math.floor(x1), view.width), min(math.floor(y1), view.height)
    if left >= right or top >= bottom:
        return
    box = (
        (left - x0) / view.scale_x,
        (top - y0) / view.scale_y,
        (right - x0) / view.scale_x,
        (bottom - y0) / view.scale_y,
    )
    # Neighbours differ too little in so faint a colour for the steps between them to be seen.
    colors = fill.picture.resize((right - left, bottom - top), Image.Resampling.NEAREST, box=box)
    picture.paste(colors, (left, top), colors)
    if busy is not None:
        density = colors.getchannel("A").point(_BUSY_OF_ALPHA)
        busy.paste(density, (left, top))


def _draw_lines(
    picture: Image.Image, lines: Mapping[IchSubtype, PictureLines], view: Viewport, busy: Image.Image
) -> None:
    points = np.concatenate([line for found in lines.values() for _, line in found])
    size = np.array(picture.size)
    low = np.clip(np.floor(points.min(axis=0)) - _LINE_MARGIN, 0, size).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + _LINE_MARGIN, 0, size).astype(int)
    if (low >= high).any():
        return
    left, top = low.tolist()
    drawn = np.zeros((high - low)[::-1], np.uint8)
    for number, (subtype, found) in enumerate(lines.items()):
        drawn |= _line_mask(subtype, found, view, (low, high), 1 << number)
    on_line: npt.NDArray[np.bool_] = drawn > 0
    part = np.array(picture.crop((left, top, *high.tolist())))
    _color_lines(part, drawn, on_line, [drawing.CLASS_COLOR[subtype] for subtype in lines], left + top)
    picture.paste(Image.fromarray(part), (left, top))
    busy.paste(255, (left, top), Image.fromarray(on_line))


def _line_mask(
    subtype: IchSubtype,
    lines: PictureLines,
    view: Viewport,
    corners: tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]],
    value: int,
) -> npt.NDArray[np.uint8]:
    """Put ``value`` where the contours of a class run, between two corners of the picture: (rows, columns) uint8.

    The lowest level is dashed, the next solid.
    """
    low, high = corners
    width, height = (high - low).tolist()
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    thin = 2 if view.is_large else 1
    for level, line in lines:
        if level > CLASS_LEVELS[0]:
            # ANY stays thin: it is the background to the subtypes.
            draw.line(
                (line - low).ravel().tolist(),
                fill=value,
                width=thin if subtype is IchSubtype.ANY else thin + 1,
            )
        else:
            for dash in _dashes(line - low):
                draw.line(dash, fill=value, width=thin)
    return np.asarray(mask)


def to_picture(contour: Contour, view: Viewport) -> npt.NDArray[np.float64]:
    """Map a contour to the picture: (points, 2) float64, x and y."""
    return (contour.line - (view.left, view.top)) * (view.scale_x, view.scale_y)


def _dashes(line: npt.NDArray[np.float64]) -> list[list[float]]:
    """Cut a line into dashes of equal length, each x, y, x, y ..., of a few points so that it bends with the line."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    starts = np.arange(0.0, along[-1], _DASH + _DASH_GAP)
    at = np.minimum(starts[:, None] + np.linspace(0.0, _DASH, _DASH_POINTS), along[-1])
    dashes: list[list[float]] = (
        np.stack([np.interp(at, along, axis) for axis in line.T], axis=-1).reshape(len(starts), -1).tolist()
    )
    return dashes


def _color_lines(
    part: npt.NDArray[np.uint8],
    drawn: npt.NDArray[np.uint8],
    on_line: npt.NDArray[np.bool_],
    colors: Sequence[drawing.Color],
    phase: int,
) -> None:
    """Colour the lines in a part of the picture, on a rim that darkens it.

    Parameters
    ----------
    part
        (rows, columns, 3) uint8, RGB; is drawn on.
    drawn
        (rows, columns) uint8, a bit for each class whose line is there.
    on_line
        (rows, columns) bool, where ``drawn`` is not 0.
    colors
        Of the classes, from the lowest bit up.
    phase
        Added to row and column, by which the colours take turns.
    """
    # Flat indices: masks of pixels of three samples take several times as long.
    pixels = part.reshape(-1, 3)
    pixels[np.flatnonzero(grown(on_line, 1))] >>= 1
    drawn_on = np.flatnonzero(on_line)
    rows, columns = np.divmod(drawn_on, drawn.shape[1])
    table = _turns(tuple(colors))
    turn = (rows + columns + phase) // _STRIPE % table.shape[1]
    pixels[drawn_on] = table[drawn.ravel()[drawn_on], turn]


@functools.cache
def _turns(colors: tuple[drawing.Color, ...]) -> npt.NDArray[np.uint8]:
    """Colours that take turns where the lines of a set of classes lie on each other: (sets, turns, 3) uint8."""
    # As many turns as can be shared evenly by any number of classes.
    turns = math.lcm(*range(1, len(colors) + 1))
    table = []
    for classes in range(1 << len(colors)):
        own = [color for number, color in enumerate(colors) if classes >> number & 1] or [(0, 0, 0)]
        table.append([own[turn % len(own)] for turn in range(turns)])
    return np.asarray(table, np.uint8)


def contour_labels(sketch: SliceSketch, places: Sequence[Localization], view: Viewport) -> list[Label]:
    """Letters for the contours of each class, largest first; a contour whose place is labelled needs none."""
    most = _MOST_LABELS if view.is_large else _MOST_LABELS_SMALL
    labels = []
    for subtype, lines in sketch.contours.items():
        own = [place for place in places if place.subtype is subtype]
        outlines = [line for line in lines if line.level == CLASS_LEVELS[0]]
        # A hole's rim needs no letters; of ANY there may be pieces alone.
        outlines = [line for line in outlines if line.encloses or subtype is IchSubtype.ANY]
        outlines.sort(key=lambda line: -float(np.prod(np.ptp(line.line, axis=0))))
        for rank, line in enumerate(outlines[:most]):
            if any(_belongs(place, line) for place in own):
                continue
            around = to_picture(line, view)
            if rank == 0 or np.ptp(around, axis=0).max() >= _SMALLEST_LABELLED:
                color = drawing.CLASS_COLOR[subtype]
                labels.append(Label(text=ABBREVIATION[subtype], color=color, around=around))
    return labels


def _belongs(place: Localization, contour: Contour) -> bool:
    """Whether a place stands for a contour: its middle lies inside it, or it is a box around most of it."""
    middle = np.reshape(place.coordinates, (-1, 2)).mean(axis=0)
    low, high = contour.line.min(axis=0), contour.line.max(axis=0)
    if ((low <= middle) & (middle <= high)).all() and points_in_poly(  # type: ignore[no-untyped-call]
        [middle], contour.line
    )[0]:
        return True
    if place.kind == "point":
        return False
    left, top, right, bottom = place.coordinates
    x, y = contour.line.T
    return bool(np.mean((x >= left) & (x <= right) & (y >= top) & (y <= bottom)) > 0.5)
