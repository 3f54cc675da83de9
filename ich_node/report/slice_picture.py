"""One slice as a picture: brain window, likelihood contours, places, orientation letters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ich_node.findings import IchSubtype, Localization
from ich_node.report import drawing
from ich_node.report.geometry import directions, opposite, orientation_letters
from ich_node.report.joint_maps import contour_labels, draw_joint_maps, draw_levels
from ich_node.report.labels import Label, write_labels
from ich_node.report.reading_report import ReadingReport
from ich_node.report.sketch import SliceSketch, sketch_slice
from ich_node.report.viewport import Viewport, cut
from ich_node.report.wording import ABBREVIATION, percent_text

_SMALL_PANE = 300
"""Picture pixels: in narrower ones letters are smaller."""


def render_slice(
    report: ReadingReport,
    index: int,
    view: Viewport,
    *,
    letter_size: int = 22,
    keep_clear: Sequence[drawing.Box] = (),
    sketch: SliceSketch | None = None,
) -> Image.Image:
    """Draw one slice with everything that the model says of it.

    Likelihood of ``ANY`` alone is drawn as heat with a contour per level; maps of subtypes are drawn jointly, a
    colour for each class.

    Parameters
    ----------
    letter_size
        Of the orientation letters, in pixels.
    keep_clear
        Boxes of the picture that are written on afterwards; the labels of classes keep off them.
    sketch
        That of the slice, where it is at hand.

    Returns
    -------
    PIL.Image.Image
        RGB, ``view.width`` x ``view.height``.
    """
    finding = report.finding.slices[index]
    sketch = sketch or sketch_slice(report, index)
    tissue = cut(sketch.tissue, view)
    picture = Image.merge("RGB", (tissue, tissue, tissue))
    if sketch.is_joint:
        busy = draw_joint_maps(picture, sketch, view)
    else:
        busy = Image.new("L", picture.size)
        draw_levels(picture, sketch, view)
    draw = ImageDraw.Draw(picture)
    taken = [*keep_clear, *_draw_places(draw, finding.localizations, view)]
    taken += _draw_orientation(draw, report, index, view, letter_size)
    labels = [
        *_place_labels(finding.localizations, view),
        *(contour_labels(sketch, finding.localizations, view) if sketch.is_joint else []),
    ]
    size = 16 if view.is_large else 12 if view.width < _SMALL_PANE else 14
    write_labels(draw, labels, size=size, taken=taken, busy=busy)
    return picture


def _line_width(view: Viewport) -> int:
    return 2 if view.is_large else 1


def _corners(place: Localization, view: Viewport) -> list[tuple[float, float]]:
    return [
        view.to_picture(x, y) for x, y in zip(place.coordinates[::2], place.coordinates[1::2], strict=True)
    ]


def _draw_places(
    draw: ImageDraw.ImageDraw, places: Sequence[Localization], view: Viewport
) -> list[drawing.Box]:
    """Draw the marks in the colours of their classes, and the scores of ``ANY``; return the boxes they take."""
    width = _line_width(view)
    taken = []
    # Those of subtypes come last: where both lie on one place, the more telling mark is on top.
    for place in sorted(places, key=lambda place: place.subtype is not IchSubtype.ANY):
        corners, color = _corners(place, view), drawing.CLASS_COLOR[place.subtype]
        if place.kind == "point":
            x, y = corners[0]
            # ANY stays thin, as its contours do.
            line_width = width if place.subtype is IchSubtype.ANY else width + 1
            drawing.point_marker(draw, x, y, radius=7.0 * width, color=color, width=line_width)
            taken.append((x - 7 * width, y - 7 * width, x + 7 * width, y + 7 * width))
            label_at = (x + 13 * width, y - 7 * width)
        else:
            (left, top), (right, bottom) = corners
            drawing.box_marker(draw, (left, top, right, bottom), color, width)
            taken.extend(((left, top, right, top + 3), (left, bottom - 3, right, bottom)))
            label_at = (right + 5, top)
        if place.subtype is IchSubtype.ANY and view.is_large:
            text = percent_text(place.score)
            taken.append(drawing.write(draw, label_at, text, size=16, anchor="lm", halo=True))
    return taken


def _place_labels(places: Sequence[Localization], view: Viewport) -> list[Label]:
    """Letters and score of each place of a subtype, most likely first."""
    labels = []
    for place in sorted(places, key=lambda place: -place.score):
        if place.subtype is IchSubtype.ANY:
            continue
        corners = np.asarray(_corners(place, view))
        reach = 12.0 * _line_width(view) if place.kind == "point" else 0.0
        labels.append(
            Label(
                text=f"{ABBREVIATION[place.subtype]} {percent_text(place.score)}",
                color=drawing.CLASS_COLOR[place.subtype],
                around=_rectangle(corners.min(axis=0) - reach, corners.max(axis=0) + reach),
            )
        )
    return labels


def _rectangle(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Corners of a rectangle and the middles of its sides: (8, 2) float64, x and y."""
    middle = (low + high) / 2
    steps = [(x, y) for x in (low[0], middle[0], high[0]) for y in (low[1], middle[1], high[1])]
    return np.asarray([step for n, step in enumerate(steps) if n != 4])


def _draw_orientation(
    draw: ImageDraw.ImageDraw, report: ReadingReport, index: int, view: Viewport, size: int
) -> list[drawing.Box]:
    """Write the orientation letters; return the boxes they take."""
    pair = directions(report.source_images[index])
    if pair is None:
        return []
    right, bottom = (orientation_letters(direction) for direction in pair)
    width, height, edge = view.width, view.height, size / 3
    boxes = []
    for at, letters, anchor in (
        ((width - edge, height / 2), right, "rm"),
        ((edge, height / 2), opposite(right), "lm"),
        ((width / 2, height - edge), bottom, "mb"),
        ((width / 2, edge), opposite(bottom), "mt"),
    ):
        boxes.append(
            drawing.write(draw, at, letters, size=size, anchor=anchor, color=drawing.MUTED, halo=True)
        )
    return boxes
