"""Which part of a slice a picture shows, and how large."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ich_node.report.reading_report import ReadingReport

PAGE_WIDTH = 768
"""Picture pixels: letters are legible, and viewers enlarge a page as they do a slice."""
_MAX_ASPECT = 2.0
_HIGHEST = 2.0
"""Height over width of a picture: it bounds the size of the page of a narrow slice."""
_LARGE = 600
"""Picture pixels."""
TISSUE_FROM_HU = -200.0
"""From fat on: less is air, foam and cloth."""
_Number = TypeVar("_Number", float, npt.NDArray[np.float64])


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

    @property
    def is_large(self) -> bool:
        """Whether there is room for thicker lines and for the score beside every place."""
        return self.width >= _LARGE

    def to_picture(self, x: _Number, y: _Number) -> tuple[_Number, _Number]:
        """Map source image coordinates to the picture."""
        return (x - self.left) * self.scale_x, (y - self.top) * self.scale_y


def whole_slice(report: ReadingReport, width: int = PAGE_WIDTH) -> Viewport:
    """Return the viewport that shows a whole slice ``width`` pixels wide, in the proportions that the patient
    has.

    A slice that would become more than twice as high as wide is drawn smaller, in the middle.
    """
    rows, columns = report.hu.shape[1:]
    aspect = _aspect(report)
    scale = min(width / columns, _HIGHEST * width / (rows * aspect))
    height = max(round(rows * scale * aspect), 1)
    return Viewport(
        left=(columns - width / scale) / 2,
        top=0,
        scale_x=scale,
        scale_y=height / rows,
        width=width,
        height=height,
    )


def head_bounds(report: ReadingReport, indices: list[int]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the head on the given slices, in image coordinates."""
    rows, columns = report.hu.shape[1:]
    tissue = np.logical_or.reduce([report.hu[i] > TISSUE_FROM_HU for i in indices])
    # A line counts as head from a fiftieth of the width on: the table's edge and noise do not.
    across = np.flatnonzero(tissue.sum(axis=0) > rows / 50)
    down = np.flatnonzero(tissue.sum(axis=1) > columns / 50)
    if across.size == 0 or down.size == 0:
        return 0, 0, columns, rows
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def head_region(report: ReadingReport, indices: list[int], size: int) -> Viewport:
    """Return the square viewport of ``size`` pixels that fits around the head on the given slices."""
    left, top, right, bottom = head_bounds(report, indices)
    aspect = _aspect(report)
    side = 1.04 * max(right - left, (bottom - top) * aspect)
    scale = size / side
    center_x, center_y = (left + right) / 2, (top + bottom) / 2
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


def cut(image: Image.Image, view: Viewport) -> Image.Image:
    """Resample the viewport's part of an image; what lies outside the image is black and transparent."""
    right, bottom = view.left + view.width / view.scale_x, view.top + view.height / view.scale_y
    box = (view.left, view.top, right, bottom)
    pad = math.ceil(max(0.0, -view.left, -view.top, right - image.width, bottom - image.height))
    if pad:
        padded = Image.new(image.mode, (image.width + 2 * pad, image.height + 2 * pad))
        padded.paste(image, (pad, pad))
        image, box = padded, (box[0] + pad, box[1] + pad, box[2] + pad, box[3] + pad)
    return image.resize((view.width, view.height), Image.Resampling.BILINEAR, box=box)
