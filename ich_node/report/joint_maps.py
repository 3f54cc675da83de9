"""The likelihood maps of several classes in one picture: a colour, a contour and letters for each.

A published system's authors report that radiologists asked for all classes together in one picture. Colour is
never the only sign: each contour carries the class's letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from skimage.measure import points_in_poly

from ich_node.findings import IchSubtype, Localization, SliceFinding
from ich_node.report import drawing
from ich_node.report.contours import CLASS_LEVELS, Contour, class_contours
from ich_node.report.labels import Label
from ich_node.report.viewport import Viewport, cut
from ich_node.report.wording import ABBREVIATION

_MOST_LABELS, _MOST_LABELS_SMALL = 6, 2
"""Contours of one class that get letters, the largest ones: a map of many specks would drown in letters."""
_FILL_OPAQUE = 0.28
_DASH, _DASH_GAP = 7.0, 5.0
_STRIPE = 6
"""Picture pixels that each class has in turn where contours lie on each other."""
_SMALLEST_LABELLED = 8.0
"""Picture pixels."""


@dataclass(frozen=True, kw_only=True)
class JointMaps:
    """What was drawn of the maps, for those who write beside it."""

    contours: dict[IchSubtype, list[Contour]]
    busy: npt.NDArray[np.float32]
    """(height, width) float32: 1 on contours, less on filled pixels; labels keep off them."""


def has_subtypes(finding: SliceFinding) -> bool:
    """Whether a slice has maps of subtypes, so that its maps are drawn jointly."""
    return any(subtype is not IchSubtype.ANY for subtype in finding.likelihood_maps)


def shown_classes(finding: SliceFinding) -> tuple[IchSubtype, ...]:
    """Classes that have a colour of their own in a slice's picture, by a contour or a place.

    Returns
    -------
    tuple of IchSubtype
        In the order of `IchSubtype`, ``ANY`` last; empty where the slice has no maps and places of subtypes.
    """
    shown = set(class_contours(finding.likelihood_maps)) if has_subtypes(finding) else set()
    shown |= {place.subtype for place in finding.localizations if place.subtype is not IchSubtype.ANY}
    return tuple(sorted(shown, key=_ANY_LAST.index))


_ANY_LAST = [*(subtype for subtype in IchSubtype if subtype is not IchSubtype.ANY), IchSubtype.ANY]


def draw_joint_maps(picture: Image.Image, finding: SliceFinding, view: Viewport) -> JointMaps:
    """Draw the maps of all classes of a slice: faint fills below, contours on a dark rim above.

    Where contours of several classes lie on each other, their colours alternate, so that none hides another.

    Parameters
    ----------
    picture
        RGB, ``view.width`` x ``view.height``; is drawn on.
    """
    found = class_contours(finding.likelihood_maps)
    fill = _fill(finding)
    if fill is not None:
        colors = cut(fill, view)
        picture.paste(colors, (0, 0), colors)
    masks = [_line_mask(subtype, lines, view) for subtype, lines in found.items()]
    busy = np.zeros((view.height, view.width), np.float32)
    if fill is not None:
        busy = np.asarray(colors.getchannel("A"), np.float32) / (255 * _FILL_OPAQUE) * 0.3
    if masks:
        drawn = np.stack([np.asarray(mask) > 0 for mask in masks])
        _paste_lines(picture, drawn, [drawing.CLASS_COLOR[subtype] for subtype in found])
        busy = np.maximum(busy, drawn.any(axis=0))
    return JointMaps(contours=found, busy=busy)


def _fill(finding: SliceFinding) -> Image.Image | None:
    """Translucent mixture of the subtypes' colours, denser where they overlap: RGBA on the source grid."""
    reaching = {
        subtype: likelihood
        for subtype in IchSubtype
        if subtype is not IchSubtype.ANY
        and (likelihood := finding.likelihood_maps.get(subtype)) is not None
        and (likelihood >= CLASS_LEVELS[0]).any()
    }
    if not reaching:
        return None
    shape = next(iter(reaching.values())).shape
    weight, clear, mixed = np.zeros(shape), np.ones(shape), np.zeros((*shape, 3))
    for subtype, likelihood in reaching.items():
        value = np.where(likelihood >= CLASS_LEVELS[0], np.minimum(likelihood, 1), 0)
        weight += value
        clear *= 1 - _FILL_OPAQUE * value
        mixed += value[..., None] * np.asarray(drawing.CLASS_COLOR[subtype])
    rgba = np.dstack([mixed / np.maximum(weight, 1e-6)[..., None], 255 * (1 - clear)])
    return Image.fromarray(rgba.astype(np.uint8), "RGBA")


def _line_mask(subtype: IchSubtype, lines: Sequence[Contour], view: Viewport) -> Image.Image:
    """Where the contours of a class run: L, 255 on the lines. The lowest level is dashed, the next solid."""
    mask = Image.new("L", (view.width, view.height))
    draw = ImageDraw.Draw(mask)
    thin = 2 if view.is_large else 1
    for contour in lines:
        line = to_picture(contour, view)
        if contour.level > CLASS_LEVELS[0]:
            # ANY stays thin: it is the background to the subtypes.
            width = thin if subtype is IchSubtype.ANY else thin + 1
            draw.line([tuple(at) for at in line.tolist()], fill=255, width=width, joint="curve")
        else:
            for dash in _dashes(line):
                draw.line([tuple(at) for at in dash.tolist()], fill=255, width=thin)
    return mask


def to_picture(contour: Contour, view: Viewport) -> npt.NDArray[np.float64]:
    """Map a contour to the picture: (points, 2) float64, x and y."""
    x, y = view.to_picture(contour.line[:, 0], contour.line[:, 1])
    return np.stack([x, y], axis=-1)


def _dashes(line: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Cut a line into dashes of equal length, each (points, 2) float64."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    starts = np.arange(0.0, along[-1], _DASH + _DASH_GAP)
    dashes = []
    for start in starts:
        # A corner inside a dash stays a corner.
        inside = along[(along > start) & (along < start + _DASH)]
        at = np.concatenate([[start], inside, [min(start + _DASH, along[-1])]])
        dashes.append(np.stack([np.interp(at, along, line[:, i]) for i in range(2)], axis=-1))
    return dashes


def _paste_lines(picture: Image.Image, drawn: npt.NDArray[np.bool_], colors: Sequence[drawing.Color]) -> None:
    """Colour (classes, height, width) bool masks of lines into the picture, on a rim that darkens it."""
    union: npt.NDArray[np.bool_] = np.asarray(drawn.any(axis=0))
    picture.paste((0, 0, 0), (0, 0), _mask(union).filter(ImageFilter.MaxFilter(3)).point(lambda v: v // 2))
    rows, columns = np.nonzero(union)
    here = drawn[:, rows, columns]  # (classes, pixels)
    turn = ((rows + columns) // _STRIPE) % here.sum(axis=0)
    rank = np.cumsum(here, axis=0) - 1
    for on_line, order, color in zip(here, rank, colors, strict=True):
        mine = np.zeros_like(union)
        mine[rows, columns] = on_line & (order == turn)
        picture.paste(color, (0, 0), _mask(mine))


def _mask(where: npt.NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(where.astype(np.uint8) * 255)


def contour_labels(joint: JointMaps, places: Sequence[Localization], view: Viewport) -> list[Label]:
    """Letters for the contours of each class, largest first; a contour whose place is labelled needs none."""
    most = _MOST_LABELS if view.is_large else _MOST_LABELS_SMALL
    labels = []
    for subtype, lines in joint.contours.items():
        own = [place for place in places if place.subtype is subtype]
        outlines = [line for line in lines if line.level == CLASS_LEVELS[0]]
        # A hole's rim needs no letters; of ANY there may be pieces alone.
        outlines = [line for line in outlines if line.encloses or subtype is IchSubtype.ANY]
        named = [line for line in outlines if any(_belongs(place, line) for place in own)]
        outlines.sort(key=lambda line: -float(np.prod(np.ptp(line.line, axis=0))))
        for rank, line in enumerate(outlines[:most]):
            around = to_picture(line, view)
            large = np.ptp(around, axis=0).max() >= _SMALLEST_LABELLED
            if not any(line is other for other in named) and (large or rank == 0):
                color = drawing.CLASS_COLOR[subtype]
                labels.append(Label(text=ABBREVIATION[subtype], color=color, around=around))
    return labels


def _belongs(place: Localization, contour: Contour) -> bool:
    """Whether a place stands for a contour: its middle lies inside it, or it is a box around most of it."""
    middle = np.reshape(place.coordinates, (-1, 2)).mean(axis=0)
    if points_in_poly([middle], contour.line)[0]:  # type: ignore[no-untyped-call]
        return True
    if place.kind == "point":
        return False
    left, top, right, bottom = place.coordinates
    x, y = contour.line.T
    return bool(np.mean((x >= left) & (x <= right) & (y >= top) & (y <= bottom)) > 0.5)
