"""A slice on a coarse grid of about 2 mm, and morphology on it in millimetres: what the intracranial mask works on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
PitchMm = tuple[float, float]
"""(row, column) distance of neighbouring cells."""

_STREAK_HU, _STREAK_DARK_HU = 300.0, -90.0
_NOISY_SHARE = 0.01
_DISK_MM = 15.0


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
    metal_hu: float = 2700.0
    metal_mm2: float = 10.0
    """A slice with such an area above ``metal_hu`` has streaks: only dense bone counts in it then."""
    gap_deg: float = 30.0
    """From this width on a gap in the vault is a craniectomy (or lies beyond the edge of the image)."""
    flap_mm: float = 6.0
    """Thickness of skin and scar that lies over a craniectomy."""
    bulge_mm: float = 8.0
    """How far the brain may swell through a craniectomy, beyond where the inner table was."""


DEFAULT = IntracranialConfig()


@dataclass(frozen=True, kw_only=True)
class Cells:
    """One slice on the coarse grid, each (coarse rows, coarse columns)."""

    mean: FloatArray
    """HU, clipped."""
    bone: BoolArray
    """Any pixel of the cell is bone."""
    tissue: BoolArray
    """Soft by its mean."""
    metal: bool


def coarse_block(spacing_mm: tuple[float, float, float], config: IntracranialConfig) -> tuple[int, int]:
    """Source pixels per coarse cell, (rows, columns)."""
    return (
        max(1, round(config.grid_mm / spacing_mm[1])),
        max(1, round(config.grid_mm / spacing_mm[2])),
    )


def coarse_cells(
    image: FloatArray, block: tuple[int, int], pixel_mm2: float, config: IntracranialConfig
) -> Cells:
    """Bring a slice of (rows, columns) float32 HU to the grid; ``block`` is (rows, columns) of pixels per cell."""
    pad = [(0, -size % step) for size, step in zip(image.shape, block, strict=True)]
    # padding values (-3024) and metal would dominate a mean
    clipped = np.pad(np.clip(image, -1024, 1500), pad, constant_values=-1024)
    cells = clipped.reshape(clipped.shape[0] // block[0], block[0], clipped.shape[1] // block[1], block[1])
    mean = cells.mean(axis=(1, 3))
    low, high = config.tissue_hu
    metal = bool((image > config.metal_hu).sum() * pixel_mm2 > config.metal_mm2)
    if metal:
        # streaks of metal reach some hundred HU: bone is what is dense throughout
        bone = mean > _STREAK_HU
        tissue = (mean > _STREAK_DARK_HU) & ~bone
        return Cells(mean=mean, bone=bone, tissue=_without_specks(tissue, mean), metal=metal)
    # the second highest value would be safer against single noisy pixels; a light threshold on the mean does
    # as well
    # rows first: four times as fast as both axes at once
    bone = (cells.max(axis=1).max(axis=2) > config.bone_hu) & (mean > 80)
    tissue = (mean > low) & (mean < high) & ~bone
    return Cells(mean=mean, bone=bone, tissue=_without_specks(tissue, mean), metal=metal)


def _without_specks(tissue: BoolArray, mean: FloatArray) -> BoolArray:
    """A soft cell that noise made too bright or too dark is tissue where seven of its neighbours are.

    The cells of a wall of bone that is one cell thick have no more than six. Few such cells are the thin walls of
    a sinus, not noise, and stay as they are.
    """
    inner = np.pad(tissue, 1).astype(np.uint8)
    rows = inner[:-2] + inner[1:-1] + inner[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    specks = ~tissue & (around >= 7) & (mean > -150) & (mean < 250)
    return np.asarray(tissue | specks) if specks.sum() > _NOISY_SHARE * tissue.sum() else tissue


def area_mm2(mask: BoolArray, pitch_mm: tuple[float, float]) -> float:
    """Area of a mask of cells, mm2."""
    return float(mask.sum()) * pitch_mm[0] * pitch_mm[1]


def disk(radius_mm: float, pitch_mm: tuple[float, float]) -> BoolArray:
    """Make a disk of cells to dilate or open with."""
    reach = [max(1, math.ceil(radius_mm / p - 1e-6)) for p in pitch_mm]
    y, x = np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    return np.asarray(
        (y * pitch_mm[0]) ** 2 + (x * pitch_mm[1]) ** 2 <= (radius_mm + 0.25 * min(pitch_mm)) ** 2
    )


def opened(mask: BoolArray, radius_mm: float, pitch_mm: tuple[float, float]) -> BoolArray:
    """Cut off what is narrower than twice the radius."""
    return np.asarray(ndimage.binary_opening(mask, disk(radius_mm, pitch_mm)))


def dilated(mask: BoolArray, radius_mm: float, pitch_mm: tuple[float, float]) -> BoolArray:
    """Widen a mask by the radius."""
    if radius_mm > _DISK_MM:  # a large disk costs more than the distances
        return np.asarray(ndimage.distance_transform_edt(~mask, sampling=pitch_mm) <= radius_mm)
    return np.asarray(ndimage.binary_dilation(mask, disk(radius_mm, pitch_mm)))
