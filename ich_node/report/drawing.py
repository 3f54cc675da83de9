"""Colours, letters and small shapes of the pictures, on a dark ground as reading rooms have it.

The colours are Okabe and Ito's, which people with any common colour blindness tell apart; likelihood rises
from blue by orange to yellow, so that it also rises in lightness and survives a grayscale print.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ich_node.findings import IchSubtype, Priority

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

BACKGROUND: Color = (10, 12, 16)
PANEL: Color = (22, 26, 33)
RULE: Color = (58, 65, 77)
TEXT: Color = (238, 241, 245)
MUTED: Color = (158, 167, 180)
SKY: Color = (86, 180, 233)
ORANGE: Color = (230, 159, 0)
YELLOW: Color = (240, 228, 66)
VERMILLION: Color = (235, 106, 20)
GREEN: Color = (0, 158, 115)
PURPLE: Color = (204, 121, 167)

PRIORITY_COLOR: dict[Priority, Color] = {
    Priority.STAT: VERMILLION,
    Priority.HIGH: ORANGE,
    Priority.ROUTINE: SKY,
}
CLASS_COLOR: dict[IchSubtype, Color] = {
    IchSubtype.ANY: TEXT,
    IchSubtype.EPIDURAL: GREEN,
    IchSubtype.INTRAPARENCHYMAL: VERMILLION,
    IchSubtype.INTRAVENTRICULAR: PURPLE,
    IchSubtype.SUBARACHNOID: SKY,
    IchSubtype.SUBDURAL: YELLOW,
}
"""Where classes stand side by side. Blue and orange are left out: blue is as dark as brain in its window, orange
too near to yellow."""
LEVELS: tuple[tuple[float, Color], ...] = ((0.25, SKY), (0.5, ORANGE), (0.75, YELLOW))
"""Likelihoods at which contours are drawn."""
BRAIN_WINDOW_CENTER_HU = 40.0
BRAIN_WINDOW_WIDTH_HU = 80.0
HEAT_FROM = LEVELS[0][0] / 2
"""Likelihood below which a map of heat is clear."""
_MOST_OPAQUE = 0.30
_RIM = 2
"""Pixels of the dark rim around letters on an image."""


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font, so that no machine's fonts change the picture."""
    return ImageFont.load_default(size=size)


def brain_window(hu: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Show HU through the brain window (L 40 W 80, linear exact: PS3.3 C.11.2.1.3.2).

    Parameters
    ----------
    hu
        (rows, columns) float32, HU; NaN is shown black.

    Returns
    -------
    numpy.ndarray
        (rows, columns) uint8.
    """
    low = BRAIN_WINDOW_CENTER_HU - BRAIN_WINDOW_WIDTH_HU / 2
    gray = hu - np.float32(low)
    gray *= np.float32(255.0 / BRAIN_WINDOW_WIDTH_HU)
    np.clip(gray, 0, 255, out=gray)
    # NaN is in few images, and to look for it takes less than fmin and fmax do.
    missing = np.isnan(gray)
    if missing.any():
        gray[missing] = 0
    shown: npt.NDArray[np.uint8] = gray.astype(np.uint8)
    return shown


def class_color(subtype: IchSubtype, shown: Collection[IchSubtype]) -> Color:
    """Colour of a class beside a picture: its own where the picture shows it, else one that no class has."""
    return CLASS_COLOR[subtype] if subtype in shown else MUTED


def likelihood_color(likelihood: float) -> Color:
    """Colour of a likelihood of 0 to 1: that of the highest level reached, the lowest level's below all."""
    reached = [color for level, color in LEVELS if likelihood >= level]
    return reached[-1] if reached else LEVELS[0][1]


def heat(likelihood: npt.NDArray[np.float32]) -> Image.Image:
    """Translucent colours of a likelihood map, faint enough to see the tissue through them.

    Parameters
    ----------
    likelihood
        (rows, columns) float32, 0 to 1; NaN counts as 0.

    Returns
    -------
    PIL.Image.Image
        RGBA of the same size, fully transparent below `HEAT_FROM`.
    """
    value = np.fmin(np.fmax(likelihood, 0), 1)
    return Image.fromarray(
        _heat_table()[(value * 255).astype(np.uint8)].view(np.uint8).reshape(*value.shape, 4)
    )


@functools.cache
def _heat_table() -> npt.NDArray[np.uint32]:
    """RGBA per likelihood in steps of 1/255: (256,) uint32, the four bytes of a pixel in one number."""
    value = np.linspace(0, 1, 256)
    stops = [0.0, *(level for level, _ in LEVELS), 1.0]
    colors = [LEVELS[0][1], *(color for _, color in LEVELS), LEVELS[-1][1]]
    channels = [np.interp(value, stops, [color[i] for color in colors]) for i in range(3)]
    alpha = np.where(value < HEAT_FROM, 0, _MOST_OPAQUE * 255 * value)
    return np.stack([*channels, alpha], axis=-1).astype(np.uint8).view(np.uint32)[:, 0]


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    *,
    size: int,
    color: Color = TEXT,
    anchor: str = "la",
    halo: bool = False,
) -> Box:
    """Write one line; ``halo`` puts a dark rim around the letters where they stand on an image.

    Returns
    -------
    tuple of float
        The box that letters and rim take.
    """
    letters = _letters(text, size, anchor, halo)
    left, top = round(at[0]) + letters.left, round(at[1]) + letters.top
    if letters.rim is not None:
        draw.bitmap((left, top), letters.rim, fill=(0, 0, 0))
    draw.bitmap((left, top), letters.mask, fill=color)
    return (left, top, left + letters.mask.width, top + letters.mask.height)


def text_box(text: str, *, size: int, anchor: str = "la", halo: bool = False) -> Box:
    """Return the box that `write` would take at (0, 0)."""
    letters = _letters(text, size, anchor, halo)
    left, top = letters.left, letters.top
    return (left, top, left + letters.mask.width, top + letters.mask.height)


@dataclass(frozen=True, kw_only=True)
class _Letters:
    """A line of text as masks."""

    left: int
    top: int
    mask: Image.Image
    rim: Image.Image | None


@functools.lru_cache(maxsize=2048)
def _letters(text: str, size: int, anchor: str, halo: bool) -> _Letters:
    """Shape a line once: pages of one reading share most of their words, and so do readings."""
    rim = _RIM if halo else 0
    left, top, right, bottom = font(size).getbbox(text, anchor=anchor, stroke_width=rim)
    left, top = math.floor(left), math.floor(top)
    shape = (max(1, math.ceil(right) - left), max(1, math.ceil(bottom) - top))

    def mask(stroke_width: int) -> Image.Image:
        picture = Image.new("L", shape)
        ImageDraw.Draw(picture).text(
            (-left, -top), text, fill=255, font=font(size), anchor=anchor, stroke_width=stroke_width
        )
        return picture

    return _Letters(left=left, top=top, mask=mask(0), rim=mask(rim) if halo else None)


@functools.lru_cache(maxsize=4096)
def _length(size: int, text: str) -> float:
    return font(size).getlength(text)


def wrap(text: str, *, size: int, width: float) -> list[str]:
    """Break a text into lines of at most ``width`` pixels; a longer word is cut where it has to be."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        candidate = f"{line} {word}".strip()
        if _length(size, candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        while _length(size, word) > width and len(word) > 1:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _length(size, word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line] if line else lines


def fitted(text: str, *, size: int, width: float, smallest: int = 11) -> int:
    """Return the largest letter size from ``size`` down at which a line fits into ``width`` pixels."""
    while size > smallest and _length(size, text) > width:
        size -= 1
    return size


def shortened(text: str, *, size: int, width: float) -> str:
    """Return a line that fits into ``width`` pixels; what is too much is taken from its middle."""
    kept = len(text)
    while kept > 2 and _length(size, text) > width:
        kept -= 1
        text = f"{text[: kept // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - kept // 2 :]}"
    return text


def bar(
    draw: ImageDraw.ImageDraw,
    box: Box,
    share: float,
    color: Color,
    *,
    ticks: Sequence[float] = (),
    track: Color = RULE,
) -> None:
    """Draw a horizontal bar filled to ``share`` of 0 to 1, with ticks at given shares."""
    left, top, right, bottom = box
    draw.rectangle(box, fill=track)
    if share > 0:
        draw.rectangle((left, top, left + max(1.0, share * (right - left)), bottom), fill=color)
    for tick in ticks:
        x = left + tick * (right - left)
        draw.line((x, top - 3, x, bottom + 3), fill=TEXT, width=2)


def point_marker(
    draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color, width: int
) -> None:
    """Draw a ring between two thin dark rims, with four ticks outside it, so that nothing covers what it points at."""
    for extra, line_color in ((1, (0, 0, 0)), (0, color)):
        outer, line_width = radius + extra, width + 2 * extra
        draw.ellipse((x - outer, y - outer, x + outer, y + outer), outline=line_color, width=line_width)
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            end = 1.7 * radius + extra
            line = (x + dx * radius, y + dy * radius, x + dx * end, y + dy * end)
            draw.line(line, fill=line_color, width=line_width)


def box_marker(draw: ImageDraw.ImageDraw, box: Box, color: Color, width: int) -> None:
    """Draw the outline of a box, set off from the image by a dark rim."""
    draw.rectangle(box, outline=(0, 0, 0), width=width + 2)
    left, top, right, bottom = box
    # A box of less than two pixels has no inside to draw the outline in.
    inset = max(0.0, min(1.0, (right - left) / 2, (bottom - top) / 2))
    draw.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=color, width=width)
