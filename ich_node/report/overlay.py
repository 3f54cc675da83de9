"""One slice as a picture: brain window, likelihood contours, places, orientation letters; and the page around
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from skimage.measure import find_contours

from ich_node.findings import IchSubtype, Localization
from ich_node.report import drawing
from ich_node.report.attributes import whole_number
from ich_node.report.geometry import directions, opposite, orientation_letters
from ich_node.report.header import local_time
from ich_node.report.reading_report import ReadingReport
from ich_node.report.wording import DISCLAIMER, HEADLINE, SUBTYPE_NAME, percent_text, slice_name

HEADER_HEIGHT = 96
FOOTER_HEIGHT = 40
PAGE_WIDTH = 1024
_SCALE_BAR_MM = 50.0
_MAX_ASPECT = 2.0


@dataclass(frozen=True, kw_only=True)
class Viewport:
    """A rectangle of the source image and how large it is drawn.

    Coordinates are those of `Localization`: pixels of the source image, (0, 0) at the top left corner of the
    first pixel.
    """

    left: float
    top: float
    scale_x: float
    """Picture pixels per source column."""
    scale_y: float
    """Picture pixels per source row."""
    width: int
    """Of the picture, in pixels."""
    height: int

    def to_picture(self, x: float, y: float) -> tuple[float, float]:
        """Map source image coordinates to the picture."""
        return (x - self.left) * self.scale_x, (y - self.top) * self.scale_y


def whole_slice(report: ReadingReport, width: int = PAGE_WIDTH) -> Viewport:
    """Return the viewport that shows a whole slice ``width`` pixels wide, in the proportions that the patient
    has.
    """
    rows, columns = report.hu.shape[1:]
    scale = width / columns
    height = round(rows * scale * _aspect(report))
    return Viewport(left=0, top=0, scale_x=scale, scale_y=height / rows, width=width, height=height)


def head_region(report: ReadingReport, indices: list[int], size: int) -> Viewport:
    """Return the square viewport of ``size`` pixels that fits around the head on the given slices."""
    rows, columns = report.hu.shape[1:]
    tissue = np.any([np.nan_to_num(report.hu[i], nan=-1000.0) > -200 for i in indices], axis=0)
    # A line counts as head from a fiftieth of the width on: the table's edge and noise do not.
    across = np.flatnonzero(tissue.sum(axis=0) > rows / 50)
    down = np.flatnonzero(tissue.sum(axis=1) > columns / 50)
    if across.size == 0 or down.size == 0:
        across, down = np.array([0, columns - 1]), np.array([0, rows - 1])
    aspect = _aspect(report)
    side = 1.04 * max(across[-1] - across[0] + 1, (down[-1] - down[0] + 1) * aspect)
    scale = size / side
    center_x, center_y = (across[0] + across[-1] + 1) / 2, (down[0] + down[-1] + 1) / 2
    return Viewport(
        left=float(center_x - side / 2),
        top=float(center_y - side / aspect / 2),
        scale_x=float(scale),
        scale_y=float(scale * aspect),
        width=size,
        height=size,
    )


def _aspect(report: ReadingReport) -> float:
    """Height of a source pixel over its width."""
    _, row_mm, column_mm = report.spacing_mm
    aspect = row_mm / column_mm if row_mm > 0 and column_mm > 0 else 1.0
    return float(min(max(aspect, 1 / _MAX_ASPECT), _MAX_ASPECT))


def render_slice(report: ReadingReport, index: int, view: Viewport, *, letter_size: int = 22) -> Image.Image:
    """Draw one slice with everything that the model says of it.

    Returns
    -------
    PIL.Image.Image
        RGB, ``view.width`` x ``view.height``.
    """
    finding = report.finding.slices[index]
    picture = _cut(Image.fromarray(drawing.brain_window(report.hu[index])), view).convert("RGB")
    line_width = 2 if view.width >= 600 else 1
    if finding.likelihood_map is not None:
        colors = _cut(drawing.heat(finding.likelihood_map), view)
        picture.paste(colors, (0, 0), colors)
    draw = ImageDraw.Draw(picture)
    if finding.likelihood_map is not None:
        _draw_contours(draw, finding.likelihood_map, view, line_width)
    for place in finding.localizations:
        _draw_place(draw, place, view, line_width)
    _draw_orientation(draw, report, index, view, letter_size)
    return picture


def _cut(image: Image.Image, view: Viewport) -> Image.Image:
    """Resample the viewport's part of an image; what lies outside the image is black and transparent."""
    right, bottom = view.left + view.width / view.scale_x, view.top + view.height / view.scale_y
    box = (view.left, view.top, right, bottom)
    pad = math.ceil(max(0.0, -view.left, -view.top, right - image.width, bottom - image.height))
    if pad:
        padded = Image.new(image.mode, (image.width + 2 * pad, image.height + 2 * pad))
        padded.paste(image, (pad, pad))
        image, box = padded, (box[0] + pad, box[1] + pad, box[2] + pad, box[3] + pad)
    filter_ = Image.Resampling.BICUBIC if image.mode == "L" else Image.Resampling.BILINEAR
    return image.resize((view.width, view.height), filter_, box=box)


def _draw_contours(
    draw: ImageDraw.ImageDraw, likelihood: npt.NDArray[np.float32], view: Viewport, width: int
) -> None:
    value = np.clip(np.nan_to_num(likelihood), 0, 1)
    lowest = drawing.LEVELS[0][0]
    rows, columns = np.nonzero(value >= lowest)
    if rows.size == 0:
        return
    # Only the part that has contours is searched, with a rim of zeros so that every contour closes.
    top, left = int(rows.min()) - 1, int(columns.min()) - 1
    part = np.pad(value[top + 1 : rows.max() + 1, left + 1 : columns.max() + 1], 1)
    for level, color in drawing.LEVELS:
        for contour in find_contours(part, level):  # type: ignore[no-untyped-call]
            # find_contours counts from pixel centres, image coordinates from the pixel's corner.
            line = [view.to_picture(x + left + 0.5, y + top + 0.5) for y, x in contour.tolist()]
            draw.line(line, fill=color, width=width, joint="curve")


def _draw_place(draw: ImageDraw.ImageDraw, place: Localization, view: Viewport, width: int) -> None:
    corners = [
        view.to_picture(x, y) for x, y in zip(place.coordinates[::2], place.coordinates[1::2], strict=True)
    ]
    if place.kind == "point":
        drawing.point_marker(draw, *corners[0], radius=7.0 * width, color=drawing.TEXT, width=width)
        label_at = (corners[0][0] + 13 * width, corners[0][1] - 7 * width)
    else:
        (left, top), (right, bottom) = corners
        drawing.box_marker(draw, (left, top, right, bottom), drawing.TEXT, width)
        label_at = (right + 5, top)
    if view.width >= 600:
        name = "" if place.subtype is IchSubtype.ANY else f"{SUBTYPE_NAME[place.subtype]} "
        drawing.write(draw, label_at, f"{name}{percent_text(place.score)}", size=18, anchor="lm", halo=True)


def _draw_orientation(
    draw: ImageDraw.ImageDraw, report: ReadingReport, index: int, view: Viewport, size: int
) -> None:
    pair = directions(report.source_images[index])
    if pair is None:
        return
    right, bottom = (orientation_letters(direction) for direction in pair)
    width, height, edge = view.width, view.height, size / 3
    for at, letters, anchor in (
        ((width - edge, height / 2), right, "rm"),
        ((edge, height / 2), opposite(right), "lm"),
        ((width / 2, height - edge), bottom, "mb"),
        ((width / 2, edge), opposite(bottom), "mt"),
    ):
        drawing.write(draw, at, letters, size=size, anchor=anchor, color=drawing.MUTED, halo=True)


def render_overlay(report: ReadingReport, index: int) -> npt.NDArray[np.uint8]:
    """Draw the page of one suspicious slice.

    Returns
    -------
    numpy.ndarray
        (rows, columns, 3) uint8, RGB; the slice begins `HEADER_HEIGHT` rows below the top, at the left edge.
    """
    view = whole_slice(report)
    page = Image.new("RGB", (view.width, HEADER_HEIGHT + view.height + FOOTER_HEIGHT), drawing.BACKGROUND)
    page.paste(render_slice(report, index, view, letter_size=28), (0, HEADER_HEIGHT))
    draw = ImageDraw.Draw(page)
    probability = report.finding.slices[index].probabilities[IchSubtype.ANY]
    where = f"{slice_name(report, index)}, slice {index + 1} of {len(report.finding.slices)} from below"
    draw_header(draw, report, view.width, f"{where}, hemorrhage {percent_text(probability)}")
    draw_footer(draw, view.width, HEADER_HEIGHT + view.height)
    bottom = HEADER_HEIGHT + view.height - 28
    _draw_scale_bar(draw, report, view, bottom)
    _draw_slice_bars(draw, report, index, view.width, bottom)
    _draw_levels(draw, bottom - 74)
    return np.asarray(page)


def draw_header(draw: ImageDraw.ImageDraw, report: ReadingReport, width: int, detail: str) -> None:
    """Draw the strip that says what was found, how sure it is, by whom and when. No identifying text."""
    priority = report.finding.priority
    color = drawing.PRIORITY_COLOR[priority]
    draw.rectangle((0, 0, width, HEADER_HEIGHT - 4), fill=drawing.PANEL)
    draw.rectangle((0, 0, 10, HEADER_HEIGHT - 4), fill=color)
    right = width - 16
    read_at = local_time(report)
    number = whole_number(report.source_images[0], "SeriesNumber")
    series = "" if number is None else f"Series {number}, "
    lines = (
        f"{report.finding.algorithm.name} {report.finding.algorithm.version}",
        f"{series}{len(report.finding.slices)} slices, reading {report.run_number}",
        f"{read_at:%Y-%m-%d %H:%M:%S} UTC{read_at:%z}",
    )
    room = 0.30 * width
    for n, line in enumerate(lines):
        size = drawing.fitted(line, size=17, width=room)
        drawing.write(draw, (right, 12 + 25 * n), line, size=size, color=drawing.MUTED, anchor="ra")
    headline = HEADLINE[priority]
    room = 0.70 * width - 60
    size = drawing.fitted(headline, size=32, width=room)
    drawing.write(draw, (28, 14), headline, size=size, color=color)
    detail = f"{detail}. Suggested priority {priority}"
    drawing.write(draw, (28, 58), detail, size=drawing.fitted(detail, size=20, width=room))


def draw_footer(draw: ImageDraw.ImageDraw, width: int, top: int) -> None:
    """Draw the strip with the disclaimer."""
    draw.rectangle((0, top, width, top + FOOTER_HEIGHT), fill=drawing.PANEL)
    middle = (width / 2, top + FOOTER_HEIGHT / 2)
    drawing.write(draw, middle, DISCLAIMER.upper(), size=19, color=drawing.YELLOW, anchor="mm")


def _draw_scale_bar(draw: ImageDraw.ImageDraw, report: ReadingReport, view: Viewport, bottom: int) -> None:
    column_mm = report.spacing_mm[2]
    if column_mm <= 0:
        return
    length = _SCALE_BAR_MM / column_mm * view.scale_x
    draw.line((20, bottom, 20 + length, bottom), fill=drawing.TEXT, width=3)
    for x in (20, 20 + length):
        draw.line((x, bottom - 7, x, bottom + 7), fill=drawing.TEXT, width=3)
    drawing.write(
        draw, (20 + length / 2, bottom - 10), f"{_SCALE_BAR_MM / 10:.0f} cm", size=18, anchor="mb", halo=True
    )


def _draw_levels(draw: ImageDraw.ImageDraw, bottom: int) -> None:
    top = bottom - 26 * len(drawing.LEVELS)
    drawing.write(draw, (20, top - 24), "Likelihood", size=17, color=drawing.MUTED, halo=True)
    for n, (level, color) in enumerate(reversed(drawing.LEVELS)):
        y = top + 26 * n + 12
        draw.line((20, y, 52, y), fill=color, width=4)
        drawing.write(draw, (62, y), f"from {percent_text(level)}", size=17, anchor="lm", halo=True)


def _draw_slice_bars(
    draw: ImageDraw.ImageDraw, report: ReadingReport, index: int, width: int, bottom: int
) -> None:
    """Probabilities of the slice per class, at the lower right."""
    probabilities = report.finding.slices[index].probabilities
    top = bottom - 27 * len(probabilities)
    for n, (subtype, score) in enumerate(probabilities.items()):
        y = top + 27 * n + 13
        drawing.write(draw, (width - 200, y), SUBTYPE_NAME[subtype], size=16, anchor="rm", halo=True)
        drawing.bar(
            draw,
            (width - 190, y - 6, width - 80, y + 6),
            score,
            drawing.likelihood_color(score),
            track=(40, 45, 54),
        )
        drawing.write(draw, (width - 16, y), percent_text(score), size=16, anchor="rm", halo=True)
