"""Where the inside of the skull is: a mask that keeps maps and points out of orbits, sinuses and scalp.

A pixel is intracranial when bone surrounds it: rays are cast from it in sixteen directions of the slice, and
the fraction that meets bone is its *enclosure*. Rays need no closed ring, so an open skull base, a fracture,
a burr hole or a craniectomy lowers the enclosure of the pixels behind the opening instead of draining the
whole cavity as hole filling does. Where a wide part of the vault is missing, the inner table is carried on
over the gap and the flap of skin bounds the brain. Everything works on a coarse grid of about 2 mm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ich_node.model.coarse_grid import (
    DEFAULT,
    BoolArray,
    Cells,
    FloatArray,
    IntracranialConfig,
    area_mm2,
    coarse_block,
    coarse_cells,
    dilated,
    opened,
)
from ich_node.model.vault_gap import behind_gap

_DIRECTIONS = 16
_OPEN_ENCLOSURE = (0.72, 0.5)
"""Seed and grow enclosure where nothing else is found: after a craniectomy no pixel is enclosed from all sides."""
_OPEN_PREVIOUS_MM2 = 5000.0
_METAL_MM = 60.0
"""Longest run of slices with metal that the space is followed across."""
_REACH_MM = 10.0
"""From its largest cross-section on the space widens by no more than this from slice to slice."""


@dataclass(frozen=True, kw_only=True)
class CoarseMask:
    """Intracranial mask on a coarse grid of whole blocks of source pixels."""

    mask: BoolArray
    """(slices, coarse rows, coarse columns) bool."""
    block: tuple[int, int]
    """(rows, columns) of source pixels in one coarse cell."""
    shape: tuple[int, int]
    """(rows, columns) of the source image."""

    def on_source_grid(self, index: int) -> BoolArray:
        """Mask of one slice, (rows, columns) bool on the source pixel grid."""
        fine = self.mask[index].repeat(self.block[0], axis=0).repeat(self.block[1], axis=1)
        return np.asarray(fine[: self.shape[0], : self.shape[1]])


def intracranial_mask(
    hu: FloatArray, spacing_mm: tuple[float, float, float], config: IntracranialConfig = DEFAULT
) -> CoarseMask:
    """Find the intracranial space of a head CT.

    Parameters
    ----------
    hu
        (slices, rows, columns) float32, HU, inferior to superior.
    spacing_mm
        (slice, row, column) distance of neighbouring centres, mm.

    Returns
    -------
    CoarseMask
        Empty in slices below the skull base and above the vertex, never empty in all slices of an image in
        which bone surrounds soft tissue somewhere.
    """
    block = coarse_block(spacing_mm, config)
    pitch_mm = (block[0] * spacing_mm[1], block[1] * spacing_mm[2])
    pixel_mm2 = spacing_mm[1] * spacing_mm[2]

    def opened(index: int) -> BoolArray:
        # seldom asked for, so worked out anew instead of kept for every slice
        cells = coarse_cells(hu[index], block, pixel_mm2, config)
        return _cavity(cells, enclosure(cells.bone), pitch_mm, config, *_OPEN_ENCLOSURE)

    cells = (coarse_cells(image, block, pixel_mm2, config) for image in hu)
    found = [_slice_space(one, pitch_mm, config) for one in cells]
    if not any(one.closed.any() for one in found):
        found = [replace(one, closed=opened(i)) for i, one in enumerate(found)]
    stack = _joined_through_slices(found, opened, pitch_mm, spacing_mm[0], config)
    return CoarseMask(mask=stack, block=block, shape=(hu.shape[1], hu.shape[2]))


@dataclass(frozen=True, kw_only=True)
class _SliceSpace:
    """What may be intracranial in one slice, each (coarse rows, coarse columns)."""

    closed: BoolArray
    """What bone encloses, and what lies behind a gap of the vault."""
    gap: BoolArray
    """What lies behind a gap; near the skull base it is to be believed only next to a slice with a sure one."""
    sure: bool
    metal: bool


def _slice_space(cells: Cells, pitch_mm: tuple[float, float], config: IntracranialConfig) -> _SliceSpace:
    """Intracranial space of one slice by enclosure, and behind a wide gap of the vault by its shape."""
    seed, grow = config.seed_enclosure, config.grow_enclosure
    closed = _cavity(cells, enclosure(cells.bone), pitch_mm, config, seed, grow)
    gap, sure = behind_gap(cells, pitch_mm, config)
    return _SliceSpace(closed=closed | gap if sure else closed, gap=gap, sure=sure, metal=cells.metal)


def _cavity(
    cells: Cells,
    enclosed: FloatArray,
    pitch_mm: tuple[float, float],
    config: IntracranialConfig,
    seed: float,
    grow: float,
) -> BoolArray:
    """Soft tissue enclosed by ``grow`` that holds a core enclosed by ``seed``, on the coarse grid."""
    room = opened(cells.tissue & (enclosed >= grow), config.opening_mm, pitch_mm)
    labels, count = ndimage.label(room)
    if not count:
        return room
    cell_mm2 = pitch_mm[0] * pitch_mm[1]
    seeds = np.bincount(labels[enclosed >= seed], minlength=count + 1) * cell_mm2
    areas = np.bincount(labels.ravel()) * cell_mm2
    keep = (seeds >= config.minimum_area_mm2 / 2) & (areas >= config.minimum_area_mm2)
    keep[0] = False
    # calcifications, air and metal inside the brain are part of it
    mask = np.asarray(ndimage.binary_fill_holes(keep[labels]))
    return np.asarray(dilated(mask, config.margin_mm, pitch_mm) & ~(cells.bone & ~mask))


def enclosure(bone: BoolArray) -> FloatArray:
    """Fraction of sixteen directions in which a ray from the cell meets bone, (rows, columns) float32."""
    hits = np.zeros(bone.shape, np.float32)
    rows, columns = bone.shape
    padded = np.append(bone.ravel(), False)
    for there, back in _rotation_table(rows, columns):
        turned = padded[there]
        forward = np.maximum.accumulate(turned, axis=0)
        backward = np.maximum.accumulate(turned[::-1], axis=0)[::-1]
        hits += forward.ravel()[back].reshape(rows, columns)
        hits += backward.ravel()[back].reshape(rows, columns)
    return hits / np.float32(_DIRECTIONS)


@lru_cache(maxsize=4)
def _rotation_table(rows: int, columns: int) -> tuple[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]], ...]:
    side = math.ceil(math.hypot(rows, columns)) + 2
    half = (side - 1) / 2
    centre = ((rows - 1) / 2, (columns - 1) / 2)
    table = []
    for step in range(_DIRECTIONS // 2):
        cosine, sine = math.cos(2 * math.pi * step / _DIRECTIONS), math.sin(2 * math.pi * step / _DIRECTIONS)
        v, u = np.mgrid[:side, :side] - half
        r = np.rint(centre[0] + cosine * v + sine * u).astype(np.intp)
        c = np.rint(centre[1] - sine * v + cosine * u).astype(np.intp)
        inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
        there = np.where(inside, r * columns + c, rows * columns)
        y, x = np.mgrid[:rows, :columns].astype(float)
        y, x = y - centre[0], x - centre[1]
        back_v = np.rint(half + cosine * y - sine * x).astype(np.intp)
        back_u = np.rint(half + sine * y + cosine * x).astype(np.intp)
        table.append((there, (back_v * side + back_u).ravel()))
    return tuple(table)


def _joined_through_slices(
    found: Sequence[_SliceSpace],
    opened: Callable[[int], BoolArray],
    pitch_mm: tuple[float, float],
    slice_mm: float,
    config: IntracranialConfig,
) -> BoolArray:
    """Keep what hangs together, slice by slice, with the largest cross-section.

    Walking away from the largest slice, a component stays when it overlaps what was kept in the slice
    before; where nothing is left once, the mouth and the neck follow, and nothing further on is taken up
    again. Slices with streaks of metal are stepped over, and then have what both their neighbours have.
    """
    kept = np.zeros((len(found), *found[0].closed.shape), np.bool_)
    areas = np.array([one.closed.sum() for one in found])
    if not areas.any():
        return kept
    clean = areas * np.array([not one.metal for one in found])
    start = int((clean if clean.any() else areas).argmax())
    kept[start] = found[start].closed
    for order in (range(start - 1, -1, -1), range(start + 1, len(found))):
        previous, sure, missed = kept[start], found[start].sure, 0
        streaked: list[int] = []
        for index in order:
            one = found[index]
            if one.metal and (len(streaked) + 1) * slice_mm <= _METAL_MM:
                streaked.append(index)
                continue
            candidate = one.closed
            if sure and not one.sure:
                candidate = candidate | one.gap
            if not candidate.any() and area_mm2(previous, pitch_mm) >= _OPEN_PREVIOUS_MM2:
                candidate = opened(index)
            steps = 1 + len(streaked)
            candidate = _near(candidate, previous, pitch_mm, slice_mm, steps, config)
            if area_mm2(candidate, pitch_mm) >= config.minimum_area_mm2:
                for between in streaked:
                    kept[between] = (previous & candidate) | _near(
                        found[between].closed, previous, pitch_mm, slice_mm, steps, config
                    )
                kept[index] = candidate
                previous, missed, streaked = candidate, 0, []
                sure = one.sure or (sure and bool(one.gap.any()))
                continue
            missed += 1
            if missed > 1:  # one slice may be lost to motion
                break
        for between in streaked:
            if not kept[between].any():
                rest = _near(found[between].closed, previous, pitch_mm, slice_mm, 1, config)
                kept[between] = rest & (area_mm2(rest, pitch_mm) >= config.minimum_area_mm2)
    return kept


def _near(
    candidate: BoolArray,
    previous: BoolArray,
    pitch_mm: tuple[float, float],
    slice_mm: float,
    steps: int,
    config: IntracranialConfig,
) -> BoolArray:
    """What hangs together with a slice that lies so many steps away."""
    # from the foramen magnum down the space only follows the canal and does not spread into the face
    narrow = area_mm2(previous, pitch_mm) < config.narrow_area_mm2
    reach_mm = config.narrow_reach_mm if narrow else max(_REACH_MM, 1.5 * slice_mm)
    return _touching(candidate & dilated(previous, steps * reach_mm, pitch_mm), previous)


def _touching(candidate: BoolArray, previous: BoolArray) -> BoolArray:
    labels, count = ndimage.label(candidate)
    if not count:
        return candidate
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    overlap = np.bincount(labels[previous], minlength=count + 1)
    keep = overlap >= 0.5 * areas if count > 1 else overlap >= 0.25 * np.minimum(areas, previous.sum())
    keep[0] = False
    return np.asarray(keep[labels])
