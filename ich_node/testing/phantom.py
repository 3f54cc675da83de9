"""A head CT made of mathematics: normal anatomy and, on request, five kinds of hemorrhage with their masks.

It is for tests and demonstrations. It looks enough like a head for a network that was trained on real heads;
it is no substitute for real images wherever a performance is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ich_node.findings import IchSubtype
from ich_node.testing.anatomy import AIR, BoolArray, FloatArray, HeadShape, IndexArray, Points, paint
from ich_node.testing.bleeds import Bleed, draw_bleed, paint_bleed
from ich_node.testing.brain import paint_brain
from ich_node.testing.cranium import distances, paint_cranium

MIDDLE_MM = 60.0
"""Height in the head frame on which the stack of slices is centred: half way from skull base to vertex."""
_COARSE_PIXEL_MM = 0.95


@dataclass(frozen=True, kw_only=True)
class HeadPhantom:
    """A head CT and what is known of it."""

    hu: FloatArray
    """(slices, rows, columns) float32, HU, inferior to superior; rows to posterior, columns to the left."""
    masks: dict[IchSubtype, BoolArray]
    """Per subtype asked for, and ``ANY`` always: (slices, rows, columns) bool."""
    spacing_mm: tuple[float, float, float]
    """(slice, row, column) distance of neighbouring centres, mm."""
    seed: int

    def subtypes_by_slice(self, minimum_area_mm2: float = 25.0) -> tuple[frozenset[IchSubtype], ...]:
        """Subtypes (``ANY`` left out) that cover at least an area in each slice."""
        pixel_mm2 = self.spacing_mm[1] * self.spacing_mm[2]
        area = {s: m.sum(axis=(1, 2)) * pixel_mm2 for s, m in self.masks.items() if s is not IchSubtype.ANY}
        return tuple(
            frozenset(s for s, a in area.items() if a[i] >= minimum_area_mm2) for i in range(self.hu.shape[0])
        )


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The coarse grid that the anatomy is sampled on."""

    shape: tuple[int, int, int]
    """(sub-slices, rows, columns)."""
    z: FloatArray
    y: FloatArray
    x: FloatArray
    """Coordinates of the planes of the grid in the image frame, mm."""
    sub_slices: int


def head_phantom(
    *,
    bleeds: Collection[IchSubtype] = (),
    seed: int = 0,
    slices: int = 32,
    rows: int = 512,
    columns: int = 512,
    field_of_view_mm: float = 230.0,
    slice_spacing_mm: float = 5.0,
    noise_hu: float = 4.0,
    head_holder: bool = True,
) -> HeadPhantom:
    """Build a head.

    Parameters
    ----------
    bleeds
        Which hemorrhages it has, one of each.
    seed
        Everything random comes from it: size, form, pose and noise of the head; place and size of the bleeds.
    slices, rows, columns
        Size of the stack; it is centred half way between skull base and vertex.
    field_of_view_mm
        Width of the image, mm; pixels are square.
    slice_spacing_mm
        Distance of the slices, and their thickness, mm.
    noise_hu
        Standard deviation of the noise, HU.
    head_holder
        Whether the head lies in a head rest.

    Raises
    ------
    ValueError
        A size is not positive, or ``bleeds`` holds ``ANY``, which is no kind of bleed.
    """
    if min(slices, rows, columns) < 1 or min(field_of_view_mm, slice_spacing_mm) <= 0 or noise_hu < 0:
        raise ValueError("slices, rows, columns and distances must be positive, and noise not negative")
    if IchSubtype.ANY in bleeds:
        raise ValueError("ANY is the union of the subtypes; name the subtypes")
    rng = np.random.default_rng(seed)
    pixel_mm = field_of_view_mm / columns
    grid = _grid(slices, rows, columns, pixel_mm, slice_spacing_mm)
    coarse, fractions = _sample(
        grid, tuple(s for s in IchSubtype if s in set(bleeds)), rng, head_holder=head_holder
    )
    hu = _to_pixels(coarse, rows, columns)
    hu += _noise(hu.shape, noise_hu, rng)
    np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu)
    masks = {s: _to_pixels(f, rows, columns) > 0.5 for s, f in fractions.items()}
    masks[IchSubtype.ANY] = np.zeros(hu.shape, np.bool_)
    for mask in list(masks.values())[:-1]:
        masks[IchSubtype.ANY] |= mask
    return HeadPhantom(hu=hu, masks=masks, spacing_mm=(slice_spacing_mm, pixel_mm, pixel_mm), seed=seed)


def _grid(slices: int, rows: int, columns: int, pixel_mm: float, slice_mm: float) -> _Grid:
    factor = max(1, round(_COARSE_PIXEL_MM / pixel_mm))
    sub_slices = 2 if slice_mm >= 3 else 1
    coarse_rows, coarse_columns = math.ceil(rows / factor), math.ceil(columns / factor)
    z = (np.arange(slices * sub_slices) + 0.5 - slices * sub_slices / 2) * slice_mm / sub_slices
    y = ((np.arange(coarse_rows) + 0.5) * factor - rows / 2) * pixel_mm
    x = ((np.arange(coarse_columns) + 0.5) * factor - columns / 2) * pixel_mm
    return _Grid(
        shape=(len(z), coarse_rows, coarse_columns),
        z=z.astype(np.float32),
        y=y.astype(np.float32),
        x=x.astype(np.float32),
        sub_slices=sub_slices,
    )


def _sample(
    grid: _Grid, bleeds: tuple[IchSubtype, ...], rng: np.random.Generator, *, head_holder: bool
) -> tuple[FloatArray, dict[IchSubtype, FloatArray]]:
    """HU and the fraction of each bleed on the coarse grid, averaged over the thickness of a slice."""
    shape = HeadShape.draw(rng)
    everywhere = _to_head_frame(grid, rng)
    drawn = [draw_bleed(s, shape, rng) for s in bleeds]
    hu = np.full(grid.shape, AIR, np.float32).ravel()
    if head_holder:
        _paint_head_holder(hu, grid, rng)
    head = _around_head(everywhere)
    points = everywhere[head]
    measured = distances(points, shape)
    local = paint_cranium(points, measured, shape, rng)
    within = np.flatnonzero(measured.cavity < 1)
    brain, found = _paint_inside(
        points[within], -measured.cavity[within], -measured.vault[within], shape, drawn, rng
    )
    share = np.clip(0.5 - measured.cavity[within], 0, 1)
    paint(local, brain, share, within)
    paint(hu, local, np.clip(0.5 - measured.skin, 0, 1), head)
    fractions = {}
    for subtype, fraction in found.items():
        whole = np.zeros(hu.size, np.float32)
        # a voxel that the skull touches looks like bone, whatever else is in it
        whole[head[within]] = fraction * np.clip((-measured.cavity[within] - 0.4) / 0.8, 0, 1)
        fractions[subtype] = _over_thickness(whole, grid)
    return _over_thickness(hu, grid), fractions


def _paint_inside(
    points: Points,
    depth: FloatArray,
    vault_depth: FloatArray,
    shape: HeadShape,
    bleeds: list[Bleed],
    rng: np.random.Generator,
) -> tuple[FloatArray, dict[IchSubtype, FloatArray]]:
    before = points
    for bleed in bleeds:
        if bleed.mass is not None:
            before = bleed.mass.undo(before)
    subarachnoid = any(b.subtype is IchSubtype.SUBARACHNOID for b in bleeds)
    if any(b.subtype is IchSubtype.INTRAVENTRICULAR for b in bleeds):
        right, left = shape.ventricle_scale
        shape = HeadShape(**{**vars(shape), "ventricle_scale": (max(1.1, right), max(1.1, left))})
    hu, compartments = paint_brain(before, depth, shape, rng, open_cisterns=1.1 if subarachnoid else 0.0)
    # residual cupping and a slow drift, as beam hardening leaves them
    hu += 2.5 * np.exp(-depth / 9) + (points.x * rng.normal(0, 0.008) + points.y * rng.normal(0, 0.008))
    found: dict[IchSubtype, FloatArray] = {}
    for bleed in bleeds:
        found[bleed.subtype] = paint_bleed(hu, bleed, points, depth, vault_depth, compartments, rng)
    return hu.astype(np.float32), found


def _to_head_frame(grid: _Grid, rng: np.random.Generator) -> Points:
    """Every point of the grid in the head frame: the head lies a little turned and off the centre."""
    roll, nod, yaw = np.deg2rad([rng.normal(0, 3.5), rng.normal(0, 5), rng.normal(0, 2)])
    shift = (rng.normal(0, 3), rng.normal(0, 4), MIDDLE_MM + rng.normal(0, 2))
    turn = np.array([[np.cos(roll), np.sin(roll), 0], [-np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    turn = np.array([[1, 0, 0], [0, np.cos(nod), np.sin(nod)], [0, -np.sin(nod), np.cos(nod)]]) @ turn
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]) @ turn
    turn = turn.astype(np.float32)
    z, y, x = grid.z[:, None, None], grid.y[None, :, None], grid.x[None, None, :]
    axes = [
        (turn[i, 0] * x + turn[i, 1] * y + turn[i, 2] * z + np.float32(shift[i])).ravel() for i in range(3)
    ]
    return Points(x=axes[0], y=axes[1], z=axes[2])


def _around_head(points: Points) -> IndexArray:
    """Indices of the points that may be inside the head: an ellipsoid for the vault, a cylinder below it."""
    up = np.maximum(points.z - 40, 0) / 110
    return np.flatnonzero((points.x / 90) ** 2 + ((points.y + 4) / 118) ** 2 + up**2 < 1)


def _paint_head_holder(hu: FloatArray, grid: _Grid, rng: np.random.Generator) -> None:
    """A curved rest of carbon fibre behind the head, the same in every slice."""
    radius, drop = rng.uniform(105, 135), rng.uniform(112, 120)
    r = np.hypot(grid.x[None, :], grid.y[:, None] - (drop - radius))
    shell = np.clip(2.0 - np.abs(r - radius), 0, 1) * (grid.y[:, None] > drop - radius)
    image = (AIR + (float(rng.uniform(950, 1250))) * shell).astype(np.float32)
    hu.reshape(grid.shape)[:] = image


def _over_thickness(flat: FloatArray, grid: _Grid) -> FloatArray:
    volume = flat.reshape(grid.shape)
    if grid.sub_slices == 1:
        return volume
    return np.asarray(volume.reshape(-1, grid.sub_slices, *grid.shape[1:]).mean(axis=1, dtype=np.float32))


def _to_pixels(coarse: FloatArray, rows: int, columns: int) -> FloatArray:
    """Blur by the scanner's point spread and interpolate to the pixels of the image."""
    blurred = ndimage.gaussian_filter(coarse, (0, 0.55, 0.55), mode="nearest", truncate=3)
    return _stretch(_stretch(blurred, rows, 1), columns, 2)


def _stretch(volume: FloatArray, size: int, axis: int) -> FloatArray:
    """Interpolate one axis linearly between the centres of its cells."""
    factor = math.ceil(size / volume.shape[axis])
    if factor == 1:
        return volume
    place = np.clip((np.arange(size) + 0.5) / factor - 0.5, 0, volume.shape[axis] - 1)
    low = np.minimum(place.astype(np.intp), volume.shape[axis] - 2)
    part = (place - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    lower, upper = np.take(volume, low, axis), np.take(volume, low + 1, axis)
    upper -= lower
    upper *= part
    lower += upper
    return np.asarray(lower)


def _noise(shape: tuple[int, ...], sd_hu: float, rng: np.random.Generator) -> FloatArray:
    """Noise whose neighbours correlate in the plane, as reconstruction makes them, but not across slices."""
    if sd_hu == 0:
        return np.zeros(shape, np.float32)
    white = rng.standard_normal(shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(white, (0, 0.8, 0.8), truncate=3)
    return np.asarray(grain * np.float32(sd_hu / grain.std()))
