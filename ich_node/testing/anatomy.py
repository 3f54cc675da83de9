"""The normal head of the phantom: where bone, brain, cerebrospinal fluid and air are, in a frame of its own.

Everything is evaluated point by point on flat float32 arrays, so that only voxels that matter are computed.

Head frame, mm: ``x`` to the patient's left, ``y`` to posterior, ``z`` to superior (the axes of DICOM LPS);
the origin lies in the midplane, halfway between forehead and occiput, at the height of the foramen magnum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.floating]
"""float32 throughout; written wider because numpy's stubs lose the precision in arithmetic."""
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]

CENTRE_MM = (0.0, 0.0, 57.0)
"""Centre of the cranial vault in the head frame."""
EDGE_MM = 1.1
"""Width of the ramp between two tissues: the partial volume of a 1 mm pixel."""

AIR, FAT, SKIN, MUSCLE = -1000.0, -95.0, 35.0, 58.0
CSF, GRAY, WHITE, DURA, SINUS = 7.0, 41.0, 30.5, 47.0, 54.0

_NOISE_PITCH_MM = 3.2
_NOISE_CELLS = 54


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points of the head frame, each (points,) float32, mm."""

    x: FloatArray
    y: FloatArray
    z: FloatArray

    def __getitem__(self, chosen: IndexArray) -> Points:
        return Points(x=self.x[chosen], y=self.y[chosen], z=self.z[chosen])

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """What differs between heads. Lengths in mm."""

    half_width: float
    half_length: float
    height: float
    skew: float
    """Plagiocephaly: relative difference of the diagonals."""
    bone_thickness: float
    scalp_thickness: float
    sulcus_width: float
    """Half the width of a sulcus at the surface; grows with age."""
    ventricle_scale: tuple[float, float]
    """Scale of the lateral ventricles' radii: right, left."""
    calcified: tuple[bool, bool, bool]
    """Pineal gland, choroid plexus, pallidum."""
    gray_white_contrast: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> HeadShape:
        """Draw an adult head."""
        scale = rng.uniform(0.96, 1.04)
        age = rng.uniform()
        ventricle = 0.75 + 0.6 * age
        return cls(
            half_width=scale * rng.uniform(63.5, 69.5),
            half_length=scale * rng.uniform(79.0, 86.0),
            height=scale * rng.uniform(66.0, 73.0),
            skew=rng.uniform(-0.02, 0.02),
            bone_thickness=rng.uniform(4.4, 7.4),
            scalp_thickness=rng.uniform(4.0, 7.0),
            sulcus_width=0.35 + 0.9 * age,
            ventricle_scale=(ventricle * rng.uniform(0.9, 1.1), ventricle * rng.uniform(0.9, 1.1)),
            calcified=(rng.uniform() < 0.6, rng.uniform() < 0.6, rng.uniform() < 0.12),
            gray_white_contrast=rng.uniform(0.75, 1.1),
        )


class SmoothNoise:
    """Band-limited random field with unit variance and a given wavelength, defined everywhere (it repeats).

    Parameters
    ----------
    rng
        Source of the field.
    wavelength_mm
        Distance over which the field goes once up and down, mm.
    band_pass
        True: no component is much longer than the wavelength, so that the zero lines lie at even distances.
    """

    def __init__(self, rng: np.random.Generator, wavelength_mm: float, *, band_pass: bool = False) -> None:
        white = rng.standard_normal((_NOISE_CELLS,) * 3, dtype=np.float32)
        sigma = 0.2 * wavelength_mm / _NOISE_PITCH_MM
        field = ndimage.gaussian_filter(white, sigma, mode="wrap")
        if band_pass:
            field -= ndimage.gaussian_filter(white, 1.7 * sigma, mode="wrap")
        self._field: FloatArray = (field / field.std()).astype(np.float32)

    def at(self, points: Points) -> FloatArray:
        """Value at each point, (points,) float32."""
        index = (
            np.stack([points.z, points.y, points.x]) / np.float32(_NOISE_PITCH_MM) % np.float32(_NOISE_CELLS)
        )
        low = index.astype(np.intp)
        part = (index - low).astype(np.float32)
        low %= _NOISE_CELLS
        high = (low + 1) % _NOISE_CELLS
        flat = self._field.ravel()
        total = np.zeros(len(points), np.float32)
        for k, wk in ((low[0], 1 - part[0]), (high[0], part[0])):
            for j, wj in ((low[1], 1 - part[1]), (high[1], part[1])):
                row, weight = (k * _NOISE_CELLS + j) * _NOISE_CELLS, wk * wj
                total += weight * ((1 - part[2]) * flat[row + low[2]] + part[2] * flat[row + high[2]])
        return total


def inside(distance_mm: FloatArray, edge_mm: float = EDGE_MM) -> FloatArray:
    """Fraction 0 to 1 of a voxel that lies inside a surface, from the signed distance (negative inside)."""
    return np.asarray(np.clip(0.5 - distance_mm / np.float32(edge_mm), 0, 1))


def paint(
    hu: FloatArray, value: float | FloatArray, fraction: FloatArray, where: IndexArray | None = None
) -> None:
    """Mix ``value`` (HU) into ``hu`` in place."""
    if where is None:
        hu += fraction * (value - hu)
    else:
        hu[where] += fraction * (value - hu[where])


def ellipsoid(
    points: Points,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    *,
    mirrored: bool = False,
) -> tuple[IndexArray, FloatArray]:
    """Indices of the points near an ellipsoid and their signed distance to it, mm.

    ``mirrored`` gives the pair: the ellipsoid at ``x`` and at ``-x``.
    """
    reach = [r * 1.3 + 3 for r in radii]
    x = np.abs(points.x) if mirrored else points.x
    near = np.flatnonzero(
        (np.abs(points.z - centre[2]) < reach[2])
        & (np.abs(points.y - centre[1]) < reach[1])
        & (np.abs(x - centre[0]) < reach[0])
    )
    u, v, w = x[near] - centre[0], points.y[near] - centre[1], points.z[near] - centre[2]
    r2 = (u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2
    slope2 = (u / radii[0] ** 2) ** 2 + (v / radii[1] ** 2) ** 2 + (w / radii[2] ** 2) ** 2
    r = np.sqrt(r2)
    distance = (r - 1) * r / np.sqrt(np.maximum(slope2, 1e-9))
    return near, np.where(r < 0.05, -min(radii), distance).astype(np.float32)


def tube(points: Points, path: Sequence[tuple[float, float, float, float]]) -> tuple[IndexArray, FloatArray]:
    """Indices and signed distance, mm, to a tube along ``(x, y, z, radius)``; ``points.x`` as given."""
    nodes = np.array(path, np.float32)
    reach = nodes[:, 3].max() + 3
    low, high = nodes[:, :3].min(axis=0) - reach, nodes[:, :3].max(axis=0) + reach
    near = np.flatnonzero(
        (points.z > low[2])
        & (points.z < high[2])
        & (points.y > low[1])
        & (points.y < high[1])
        & (points.x > low[0])
        & (points.x < high[0])
    )
    p = points[near]
    best = np.full(len(near), 1e3, np.float32)
    for start, end in pairwise(nodes):
        step = end[:3] - start[:3]
        t = (p.x - start[0]) * step[0] + (p.y - start[1]) * step[1] + (p.z - start[2]) * step[2]
        t = np.clip(t / float(step @ step), 0, 1)
        dx, dy, dz = p.x - start[0] - t * step[0], p.y - start[1] - t * step[1], p.z - start[2] - t * step[2]
        best = np.minimum(best, np.sqrt(dx**2 + dy**2 + dz**2) - start[3] - t * (end[3] - start[3]))
    return near, best


def vault_distance(points: Points, shape: HeadShape) -> FloatArray:
    """Signed distance to the inner table of the vault, mm, negative inside."""
    y = points.y - CENTRE_MM[1]
    z = points.z - CENTRE_MM[2]
    # the skull is widest behind the middle and narrows to the forehead
    a = shape.half_width * (1 + 0.10 * np.tanh((y - 12) / 45))
    b = shape.half_length
    c = np.where(z > 0, shape.height, 62.0).astype(np.float32)
    xn, yn, zn = points.x / a, y / b, z / c
    r2 = np.maximum(xn**2 + yn**2 + zn**2, 1e-6)
    r = np.sqrt(r2)
    slope = np.sqrt((xn / a) ** 2 + (yn / b) ** 2 + (zn / c) ** 2) / r
    square = 0.16 * (xn * yn / r2) ** 2 + 0.22 * (xn * zn / r2) ** 2 + 0.16 * (yn * zn / r2) ** 2
    return np.asarray((r * (1 - square + shape.skew * xn * yn / r2) - 1) / slope, np.float32)


def _soft_step(value: FloatArray, width: float) -> FloatArray:
    return np.asarray(np.clip(0.5 + value / (2 * width), 0, 1))


def petrous_line(x: FloatArray) -> FloatArray:
    """The y of the petrous ridge over ``x``, mm."""
    return -5 + 0.56 * np.abs(x)


def floor_height(x: FloatArray, y: FloatArray) -> FloatArray:
    """Height z of the skull base, mm: three fossae, petrous ridges, sella and clivus."""
    ax = np.abs(x)
    wing = -14 - 0.62 * ax
    ridge = petrous_line(x)
    dome = np.exp(-(((ax - 32) / 20) ** 2) - ((np.maximum(y + 72, 0) / 30) ** 2))
    anterior = 41 + 7 * dome - 3 * np.exp(-((ax / 7) ** 2))
    middle = 17 + 0.004 * (ax - 38) ** 2
    front = _soft_step(wing - y, 5)
    back = _soft_step(y - ridge, 5)
    height = front * anterior + (1 - front) * (1 - back) * middle + (1 - front) * back * -8
    height = np.maximum(height, 37 - 0.09 * ax - 0.22 * (y - ridge) ** 2)
    clivus = np.clip(37 - 1.7 * (y + 8), -8, 37) - 7 * np.exp(-(((y + 12) / 4.5) ** 2))
    centre = _soft_step(15 - ax, 3) * (1 - front)
    return np.asarray(height + centre * (np.maximum(clivus, 0) - height) * (y < 25), np.float32)


def floor_distance(points: Points) -> FloatArray:
    """Signed distance to the skull base, mm, negative above it."""
    height = floor_height(points.x, points.y)
    slope_x = floor_height(points.x + 1, points.y) - height
    slope_y = floor_height(points.x, points.y + 1) - height
    return ((height - points.z) / np.sqrt(1 + slope_x**2 + slope_y**2)).astype(np.float32)


def canal_distance(points: Points) -> FloatArray:
    """Signed distance to foramen magnum and spinal canal, mm, negative inside."""
    ring = (np.sqrt((points.x / 13) ** 2 + ((points.y - 26) / 14.5) ** 2) - 1) * 13.5
    return np.maximum(ring, points.z - 16).astype(np.float32)
