"""The page of one suspicious slice: its picture with header, legend, scores, scale and disclaimer."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ich_node.findings import IchSubtype, Priority, SliceFinding
from ich_node.report import drawing
from ich_node.report.attributes import whole_number
from ich_node.report.contours import CLASS_LEVELS
from ich_node.report.header import local_time
from ich_node.report.reading_report import ReadingReport
from ich_node.report.sketch import SliceSketch, sketch_slice
from ich_node.report.slice_picture import render_slice
from ich_node.report.viewport import Viewport, whole_slice
from ich_node.report.wording import (
    ABBREVIATION,
    DISCLAIMER,
    HEADLINE,
    SUBTYPE_NAME,
    percent_text,
    slice_name,
)

HEADER_HEIGHT = 96
FOOTER_HEIGHT = 40
_SCALE_BAR_MM = 50.0
_LINE = 22
"""Rows of a line of the legend, and of a bar of the scores."""
_MARGIN = 24
"""Rows below the lowest of them."""
_SCALE_HEIGHT = 60
"""Rows from the scale bar up to the legend."""


def render_overlay(
    report: ReadingReport, index: int, sketch: SliceSketch | None = None
) -> npt.NDArray[np.uint8]:
    """Draw the page of one suspicious slice; ``sketch`` is that of the slice, where it is at hand.

    Returns
    -------
    numpy.ndarray
        (rows, columns, 3) uint8, RGB; the picture of the slice, as `whole_slice` says, begins `HEADER_HEIGHT`
        rows below the top, at the left edge.
    """
    view = whole_slice(report)
    sketch = sketch or sketch_slice(report, index)
    finding, shown = report.finding.slices[index], sketch.classes
    furniture = _furniture(finding, shown, view)
    picture = render_slice(report, index, view, letter_size=24, keep_clear=furniture, sketch=sketch)
    draw = ImageDraw.Draw(picture)
    bottom = view.height - _MARGIN
    _draw_scale_bar(draw, report, view, bottom)
    _draw_slice_bars(draw, finding, shown, view.width, bottom)
    if shown:
        _draw_classes(draw, sketch, bottom - _SCALE_HEIGHT)
    else:
        _draw_levels(draw, bottom - _SCALE_HEIGHT)
    where = f"{slice_name(report, index)}, slice {index + 1} of {len(report.finding.slices)} from below"
    likely = f"Hemorrhage {percent_text(finding.probabilities[IchSubtype.ANY])}"
    return np.concatenate(
        [header_strip(report, view.width, [where, likely]), picture, footer_strip(view.width)]
    )


def _furniture(finding: SliceFinding, shown: Sequence[IchSubtype], view: Viewport) -> list[drawing.Box]:
    """Boxes of the slice's picture that legend, scale bar and score bars are drawn on."""
    lines = max(len(shown) + 1, len(drawing.LEVELS)) + 1
    legend = view.height - _MARGIN - _SCALE_HEIGHT - _LINE * lines
    bars = view.height - _MARGIN - _LINE * len(finding.probabilities)
    return [(0, legend, 204, view.height), (view.width - 308, bars, view.width, view.height)]


def header_strip(report: ReadingReport, width: int, details: Sequence[str]) -> Image.Image:
    """Draw the strip that says what was found, how sure it is, by whom and when. No identifying text.

    There is room for two lines of ``details``; the suggested priority is added to the last.

    Returns
    -------
    PIL.Image.Image
        RGB, ``width`` x `HEADER_HEIGHT`.
    """
    priority = report.finding.priority
    read_at = local_time(report)
    number = whole_number(report.source_images[0], "SeriesNumber")
    series = "" if number is None else f"Series {number}, "
    origin = (
        f"{report.finding.algorithm.name} {report.finding.algorithm.version}",
        f"{series}{len(report.finding.slices)} slices, reading {report.run_number}",
        f"{read_at:%Y-%m-%d %H:%M:%S} UTC{read_at:%z}",
    )
    headline_top, details_top, largest = (14, 58, 20) if len(details) == 1 else (10, 46, 17)
    strip = _headline(priority, headline_top, origin, width).copy()
    draw = ImageDraw.Draw(strip)
    for n, detail in enumerate([*details[:-1], f"{details[-1]}. Suggested priority {priority}"]):
        size = drawing.fitted(detail, size=largest, width=_headline_room(width))
        drawing.write(draw, (28, details_top + 22 * n), detail, size=size)
    return strip


@functools.lru_cache(maxsize=8)
def _headline(priority: Priority, top: int, origin: tuple[str, ...], width: int) -> Image.Image:
    """Draw what the headers of all overlays of a reading have in common."""
    strip = Image.new("RGB", (width, HEADER_HEIGHT), drawing.BACKGROUND)
    draw = ImageDraw.Draw(strip)
    color = drawing.PRIORITY_COLOR[priority]
    draw.rectangle((0, 0, width, HEADER_HEIGHT - 4), fill=drawing.PANEL)
    draw.rectangle((0, 0, 10, HEADER_HEIGHT - 4), fill=color)
    room = 0.30 * width
    for n, line in enumerate(origin):
        size = drawing.fitted(line, size=17, width=room, smallest=13)
        line = drawing.shortened(line, size=size, width=room)
        drawing.write(draw, (width - 16, 12 + 25 * n), line, size=size, color=drawing.MUTED, anchor="ra")
    headline = HEADLINE[priority]
    size = drawing.fitted(headline, size=32, width=_headline_room(width))
    drawing.write(draw, (28, top), headline, size=size, color=color)
    return strip


def _headline_room(width: int) -> float:
    return 0.70 * width - 60


@functools.lru_cache(maxsize=8)
def footer_strip(width: int) -> Image.Image:
    """Draw the strip with the disclaimer: RGB, ``width`` x `FOOTER_HEIGHT`, not to be drawn on."""
    strip = Image.new("RGB", (width, FOOTER_HEIGHT), drawing.PANEL)
    middle = (width / 2, FOOTER_HEIGHT / 2)
    drawing.write(
        ImageDraw.Draw(strip), middle, DISCLAIMER.upper(), size=19, color=drawing.YELLOW, anchor="mm"
    )
    return strip


def _draw_scale_bar(draw: ImageDraw.ImageDraw, report: ReadingReport, view: Viewport, bottom: int) -> None:
    column_mm = report.spacing_mm[2]
    if column_mm <= 0:
        return
    length = _SCALE_BAR_MM / column_mm * view.scale_x
    draw.line((20, bottom, 20 + length, bottom), fill=drawing.TEXT, width=3)
    for x in (20, 20 + length):
        draw.line((x, bottom - 6, x, bottom + 6), fill=drawing.TEXT, width=3)
    drawing.write(
        draw, (20 + length / 2, bottom - 8), f"{_SCALE_BAR_MM / 10:.0f} cm", size=15, anchor="mb", halo=True
    )


def _draw_levels(draw: ImageDraw.ImageDraw, bottom: int) -> None:
    top = bottom - _LINE * len(drawing.LEVELS)
    drawing.write(draw, (20, top - 20), "Likelihood", size=15, color=drawing.MUTED, halo=True)
    for n, (level, color) in enumerate(reversed(drawing.LEVELS)):
        y = top + _LINE * n + 10
        draw.line((20, y, 44, y), fill=color, width=4)
        drawing.write(draw, (52, y), f"from {percent_text(level)}", size=15, anchor="lm", halo=True)


def _draw_classes(draw: ImageDraw.ImageDraw, sketch: SliceSketch, bottom: int) -> None:
    """Draw the legend of a slice that shows subtypes: the colour of each class that is to be seen, no other."""
    top = bottom - _LINE * (len(sketch.classes) + 1)
    drawing.write(draw, (20, top - 20), "Likelihood", size=15, color=drawing.MUTED, halo=True)
    for n, subtype in enumerate(sketch.classes):
        y = top + _LINE * n + 10
        draw.line((20, y, 44, y), fill=drawing.CLASS_COLOR[subtype], width=4)
        drawing.write(draw, (52, y), class_text(subtype), size=15, anchor="lm", halo=True)
    if sketch.is_joint:
        at = (20, top + _LINE * len(sketch.classes) + 10)
        drawing.write(draw, at, levels_text(), size=14, anchor="lm", color=drawing.MUTED, halo=True)


def class_text(subtype: IchSubtype) -> str:
    """Name a class in a legend, with the letters that its contours carry."""
    return f"{ABBREVIATION[subtype]} {SUBTYPE_NAME[subtype]}"


def levels_text() -> str:
    """Say what dashed and solid contours of a class mean."""
    dashed, solid = (percent_text(level) for level in CLASS_LEVELS)
    return f"dashed from {dashed}, solid {solid}"


def _draw_slice_bars(
    draw: ImageDraw.ImageDraw, finding: SliceFinding, shown: Sequence[IchSubtype], width: int, bottom: int
) -> None:
    """Probabilities of the slice per class, at the lower right; where classes have colours, in those."""
    top = bottom - _LINE * len(finding.probabilities)
    for n, (subtype, score) in enumerate(finding.probabilities.items()):
        y = top + _LINE * n + 11
        color = drawing.class_color(subtype, shown) if shown else drawing.likelihood_color(score)
        drawing.write(draw, (width - 166, y), SUBTYPE_NAME[subtype], size=15, anchor="rm", halo=True)
        drawing.bar(draw, (width - 158, y - 5, width - 68, y + 5), score, color, track=(40, 45, 54))
        drawing.write(draw, (width - 16, y), percent_text(score), size=15, anchor="rm", halo=True)
