"""What every picture of one slice shows, on the slice's own pixels: found once, drawn in several sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ich_node.findings import IchSubtype, SliceFinding
from ich_node.report import drawing
from ich_node.report.contours import (
    CLASS_LEVELS,
    Contour,
    Part,
    class_contours,
    contours,
    part_around,
    part_from,
)
from ich_node.report.reading_report import ReadingReport

FILL_OPAQUE = 0.28
"""Of a class whose likelihood is 1."""
_FILL_MARGIN = 3
"""Clear source pixels around a fill, so that it fades out where it is resampled."""
_ANY_LAST = [*(subtype for subtype in IchSubtype if subtype is not IchSubtype.ANY), IchSubtype.ANY]


@dataclass(frozen=True, kw_only=True)
class Fill:
    """Translucent colour over a part of a slice."""

    picture: Image.Image
    """RGBA, a pixel for each pixel of the part."""
    part: Part


@dataclass(frozen=True, kw_only=True)
class SliceSketch:
    """Tissue, contours and fill of one slice."""

    tissue: Image.Image
    """L, columns x rows, in the brain window."""
    contours: Mapping[IchSubtype, list[Contour]]
    """In the order of `IchSubtype`; classes of which nothing is drawn are absent."""
    fill: Fill | None
    is_joint: bool
    """Whether the slice has maps of subtypes, so that its maps are drawn jointly, a colour for each class."""
    classes: tuple[IchSubtype, ...]
    """Those that have a colour of their own in the slice's picture, by a contour or a place; ``ANY`` last."""


Sketches = Callable[[int], SliceSketch]
"""The sketch of a slice by its index in the reading."""


def sketches_of(report: ReadingReport) -> Sketches:
    """Sketch the slices of a reading, each when it is first asked for."""
    return functools.cache(functools.partial(sketch_slice, report))


def sketch_slice(report: ReadingReport, index: int) -> SliceSketch:
    """Find what the pictures of a slice show of its pixels and maps."""
    finding = report.finding.slices[index]
    is_joint = has_subtypes(finding)
    found = class_contours(finding.likelihood_maps) if is_joint else _level_contours(finding)
    shown = set(found) if is_joint else set()
    shown |= {place.subtype for place in finding.localizations if place.subtype is not IchSubtype.ANY}
    return SliceSketch(
        tissue=Image.fromarray(drawing.brain_window(report.hu[index])),
        contours=found,
        fill=_mixture(finding) if is_joint else _heat(finding),
        is_joint=is_joint,
        classes=tuple(sorted(shown, key=_ANY_LAST.index)),
    )


def has_subtypes(finding: SliceFinding) -> bool:
    """Whether a slice has maps of subtypes, so that its maps are drawn jointly."""
    return any(subtype is not IchSubtype.ANY for subtype in finding.likelihood_maps)


def _level_contours(finding: SliceFinding) -> dict[IchSubtype, list[Contour]]:
    likelihood = finding.likelihood_maps.get(IchSubtype.ANY)
    if likelihood is None:
        return {}
    return {IchSubtype.ANY: contours(likelihood, [level for level, _ in drawing.LEVELS])}


def _heat(finding: SliceFinding) -> Fill | None:
    likelihood = finding.likelihood_maps.get(IchSubtype.ANY)
    if likelihood is None:
        return None
    part = part_from(likelihood >= drawing.HEAT_FROM, _FILL_MARGIN)
    if part is None:
        return None
    return Fill(picture=drawing.heat(likelihood[part.slices]), part=part)


def _mixture(finding: SliceFinding) -> Fill | None:
    """Mix the subtypes' colours by likelihood, denser where they overlap."""
    maps = finding.likelihood_maps
    # In the order of the classes, whatever that of the maps: sums of floats depend on it.
    parts = {
        subtype: part
        for subtype in IchSubtype
        if subtype is not IchSubtype.ANY
        and subtype in maps
        and (part := part_from(maps[subtype] >= CLASS_LEVELS[0], _FILL_MARGIN)) is not None
    }
    if not parts:
        return None
    part = part_around(parts.values())
    shape = (part.bottom - part.top, part.right - part.left)
    weight, clear = np.full(shape, 1e-6, np.float32), np.ones(shape, np.float32)
    mixed = np.zeros((3, *shape), np.float32)
    for subtype in parts:
        likelihood = maps[subtype][part.slices]
        value = np.where(likelihood >= CLASS_LEVELS[0], np.minimum(likelihood, 1), 0)
        weight += value
        clear *= 1 - np.float32(FILL_OPAQUE) * value
        for channel, intensity in zip(mixed, drawing.CLASS_COLOR[subtype], strict=True):
            channel += np.float32(intensity) * value
    mixed /= weight
    rgba = np.empty((*shape, 4), np.uint8)
    rgba[..., :3] = mixed.transpose(1, 2, 0)
    rgba[..., 3] = 255 * (1 - clear)
    return Fill(picture=Image.fromarray(rgba, "RGBA"), part=part)
