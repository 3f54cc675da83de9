"""Where the inside of the skull is: a mask that keeps maps and points out of orbits, sinuses and scalp.

A pixel is intracranial when bone surrounds it: rays are cast from it in sixteen directions of the slice, and
the fraction that meets bone is its *enclosure*. Rays need no closed ring, so an open skull base, a fracture,
a burr hole or a craniectomy lowers the enclosure of the pixels behind the opening instead of draining the
whole cavity as hole filling does. Everything works on a coarse grid of about 2 mm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class IntracranialConfig:
    """Thresholds of the mask."""

    grid_mm: float = 2.0
    """Aimed pitch of the coarse grid, mm; the real one is the nearest whole multiple of the pixel spacing."""
    bone_hu: float = 160.0
    """A cell with a pixel above this is bone: low enough for an infant's skull."""
    tissue_hu: tuple[float, float] = (-25.0, 140.0)
    """Range of a coarse cell's mean that may be brain, cerebrospinal fluid or blood."""
    seed_enclosure: float = 0.93
    grow_enclosure: float = 0.70
    opening_mm: float = 4.0
    """Radius of the opening that cuts what hangs on the cavity by a foramen or a fissure."""
    minimum_area_mm2: float = 600.0
    """Less than this in a slice is a vertebral canal, an orbit or a sinus."""
    narrow_area_mm2: float = 3000.0
    narrow_reach_mm: float = 4.0
    """Next to a cross-section under the narrow area the mask may widen by this much per slice only."""
    margin_mm: float = 2.0
    """The mask is widened by this, so that blood along the inner table stays inside."""


DEFAULT = IntracranialConfig()
_DIRECTIONS = 16
# after a craniectomy no pixel is enclosed from all sides; used only where nothing else is found
_OPEN_SEED_ENCLOSURE = 0.72
_OPEN_GROW_ENCLOSURE = 0.5
_OPEN_PREVIOUS_MM2 = 5000.0
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
    pairs = [_slice_masks(*_coarse(image, block, config), pitch_mm, config) for image in hu]
    closed, opened = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
    stack = _joined_through_slices(
        closed if closed.any() else opened, opened, pitch_mm, spacing_mm[0], config
    )
    return CoarseMask(mask=stack, block=block, shape=(hu.shape[1], hu.shape[2]))


def coarse_block(spacing_mm: tuple[float, float, float], config: IntracranialConfig) -> tuple[int, int]:
    """Source pixels per coarse cell, (rows, columns)."""
    return (
        max(1, round(config.grid_mm / spacing_mm[1])),
        max(1, round(config.grid_mm / spacing_mm[2])),
    )


def _coarse(
    image: FloatArray, block: tuple[int, int], config: IntracranialConfig
) -> tuple[BoolArray, BoolArray]:
    """Bone (a cell with any bone) and soft tissue (by its mean), both (coarse rows, coarse columns)."""
    pad = [(0, -size % step) for size, step in zip(image.shape, block, strict=True)]
    # padding values (-3024) and metal would dominate a mean
    clipped = np.pad(np.clip(image, -1024, 1500), pad, constant_values=-1024)
    cells = clipped.reshape(clipped.shape[0] // block[0], block[0], clipped.shape[1] // block[1], block[1])
    mean = cells.mean(axis=(1, 3))
    # the second highest value would be safer against single noisy pixels; a light threshold on the mean does
    # as well
    bone = (cells.max(axis=(1, 3)) > config.bone_hu) & (mean > 80)
    low, high = config.tissue_hu
    return bone, (mean > low) & (mean < high) & ~bone


def _slice_masks(
    bone: BoolArray, tissue: BoolArray, pitch_mm: tuple[float, float], config: IntracranialConfig
) -> tuple[BoolArray, BoolArray]:
    """Intracranial space of one slice by enclosure: of a skull, and of one that lacks a large part."""
    enclosed = enclosure(bone)
    space = (bone, tissue, enclosed, pitch_mm, config)
    return (
        _cavity(*space, config.seed_enclosure, config.grow_enclosure),
        _cavity(*space, _OPEN_SEED_ENCLOSURE, _OPEN_GROW_ENCLOSURE),
    )


def _cavity(
    bone: BoolArray,
    tissue: BoolArray,
    enclosed: FloatArray,
    pitch_mm: tuple[float, float],
    config: IntracranialConfig,
    seed: float,
    grow: float,
) -> BoolArray:
    """Soft tissue enclosed by ``grow`` that holds a core enclosed by ``seed``, on the coarse grid."""
    room = _open(tissue & (enclosed >= grow), config.opening_mm, pitch_mm)
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
    return np.asarray(_dilate(mask, config.margin_mm, pitch_mm) & ~(bone & ~mask))


def enclosure(bone: BoolArray) -> FloatArray:
    """Fraction of sixteen directions in which a ray from the cell meets bone, (rows, columns) float32."""
    hits = np.zeros(bone.shape, np.float32)
    rows, columns = bone.shape
    padded = np.append(bone.ravel(), False)
    for there, back in _rotations(rows, columns):
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


def _rotations(rows: int, columns: int) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    yield from _rotation_table(rows, columns)


def _joined_through_slices(
    stack: BoolArray,
    opened: BoolArray,
    pitch_mm: tuple[float, float],
    slice_mm: float,
    config: IntracranialConfig,
) -> BoolArray:
    """Keep what hangs together, slice by slice, with the largest cross-section.

    Walking away from the largest slice, a component stays when it overlaps what was kept in the slice
    before; where nothing is left once, the mouth and the neck follow, and nothing further on is taken up
    again.
    """
    areas = stack.sum(axis=(1, 2))
    if not areas.any():
        return stack
    start = int(areas.argmax())
    kept = np.zeros_like(stack)
    kept[start] = stack[start]
    cell_mm2 = pitch_mm[0] * pitch_mm[1]
    for order in (range(start - 1, -1, -1), range(start + 1, len(stack))):
        previous, missed = kept[start], 0
        for index in order:
            candidate = stack[index]
            if not candidate.any() and previous.sum() * cell_mm2 >= _OPEN_PREVIOUS_MM2:
                candidate = opened[index]
            # from the foramen magnum down the space only follows the canal and does not spread into the face
            narrow = previous.sum() * cell_mm2 < config.narrow_area_mm2
            reach_mm = config.narrow_reach_mm if narrow else max(_REACH_MM, 1.5 * slice_mm)
            candidate = candidate & _dilate(previous, reach_mm, pitch_mm)
            kept[index] = _touching(candidate, previous)
            if kept[index].sum() * cell_mm2 >= config.minimum_area_mm2:
                previous, missed = kept[index], 0
                continue
            kept[index] = False
            missed += 1
            if missed > 1:  # one slice may be lost to metal or motion
                break
    return kept


def _touching(candidate: BoolArray, previous: BoolArray) -> BoolArray:
    labels, count = ndimage.label(candidate)
    if not count:
        return candidate
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    overlap = np.bincount(labels[previous], minlength=count + 1)
    keep = overlap >= 0.5 * areas if count > 1 else overlap >= 0.25 * np.minimum(areas, previous.sum())
    keep[0] = False
    return np.asarray(keep[labels])


def _disk(radius_mm: float, pitch_mm: tuple[float, float]) -> BoolArray:
    reach = [max(1, math.ceil(radius_mm / p - 1e-6)) for p in pitch_mm]
    y, x = np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    return np.asarray(
        (y * pitch_mm[0]) ** 2 + (x * pitch_mm[1]) ** 2 <= (radius_mm + 0.25 * min(pitch_mm)) ** 2
    )


def _open(mask: BoolArray, radius_mm: float, pitch_mm: tuple[float, float]) -> BoolArray:
    return np.asarray(ndimage.binary_opening(mask, _disk(radius_mm, pitch_mm)))


def _dilate(mask: BoolArray, radius_mm: float, pitch_mm: tuple[float, float]) -> BoolArray:
    return np.asarray(ndimage.binary_dilation(mask, _disk(radius_mm, pitch_mm)))
