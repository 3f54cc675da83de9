"""The five kinds of intracranial hemorrhage of the phantom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ich_node.findings import IchSubtype
from ich_node.testing.anatomy import FloatArray, HeadShape, Points, SmoothNoise, inside, paint
from ich_node.testing.brain import Compartments, tentorium_height

EDEMA_HU = 20.0


@dataclass(frozen=True, kw_only=True)
class MassEffect:
    """Displacement of the brain away from a bleed, in the head frame."""

    shift_mm: float
    """Along x, signed, at the centre of the effect."""
    y: float
    z: float

    def undo(self, points: Points) -> Points:
        """Where the tissue now at ``points`` was before."""
        fall = np.exp(-(((points.y - self.y) / 50) ** 2) - ((points.z - self.z) / 38) ** 2)
        inner = np.clip(1.25 - np.abs(points.x) / 62, 0, 1)
        return Points(x=(points.x - self.shift_mm * fall * inner).astype(np.float32), y=points.y, z=points.z)


@dataclass(frozen=True, kw_only=True)
class Bleed:
    """One bleed: where it is and how dense. Lengths in mm."""

    subtype: IchSubtype
    side: int
    """-1 right, 1 left."""
    centre: tuple[float, float, float]
    extent: tuple[float, float, float]
    """Meaning by subtype: see the fraction functions of this module."""
    hu: float
    mass: MassEffect | None = None


def draw_bleed(subtype: IchSubtype, shape: HeadShape, rng: np.random.Generator) -> Bleed:
    """Draw place, size and density of a bleed that a radiologist could not miss."""
    side = int(rng.choice((-1, 1)))
    if subtype is IchSubtype.EPIDURAL:
        angle, z = rng.uniform(-0.9, 0.8), rng.uniform(62, 92)
        centre = _on_vault(side, angle, z, shape)
        thickness = rng.uniform(13, 25)
        mass = MassEffect(shift_mm=-side * 0.3 * thickness, y=centre[1], z=z)
        return Bleed(
            subtype=subtype,
            side=side,
            centre=centre,
            extent=(thickness, rng.uniform(30, 44), rng.uniform(22, 34)),
            hu=rng.uniform(62, 73),
            mass=mass,
        )
    if subtype is IchSubtype.SUBDURAL:
        z = rng.uniform(72, 88)
        centre = _on_vault(side, rng.uniform(-0.4, 0.5), z, shape)
        thickness = rng.uniform(7, 14)
        mass = MassEffect(shift_mm=-side * 0.55 * thickness, y=centre[1], z=z)
        return Bleed(
            subtype=subtype,
            side=side,
            centre=centre,
            extent=(thickness, rng.uniform(62, 85), rng.uniform(34, 50)),
            hu=rng.uniform(54, 68),
            mass=mass,
        )
    if subtype is IchSubtype.INTRAPARENCHYMAL:
        return _draw_intraparenchymal(side, rng)
    if subtype is IchSubtype.INTRAVENTRICULAR:
        return Bleed(
            subtype=subtype,
            side=side,
            centre=(0, rng.uniform(-8, 26), 66),
            extent=(rng.uniform(0.4, 1), 0, 0),
            hu=rng.uniform(56, 68),
        )
    return Bleed(
        subtype=subtype,
        side=side,
        centre=(side * rng.uniform(12, 30), rng.uniform(-26, 0), rng.uniform(50, 68)),
        extent=(rng.uniform(42, 62), rng.uniform(46, 66), rng.uniform(26, 38)),
        hu=rng.uniform(57, 66),
    )


def _draw_intraparenchymal(side: int, rng: np.random.Generator) -> Bleed:
    places = ((27, -5, 64), (14, 10, 64), (36, -36, 76), (38, 28, 80), (32, 48, 66), (22, 48, 24))
    x, y, z = places[int(rng.integers(len(places)))]
    radius = rng.uniform(10, 14 if z < 30 else 21)
    extent = (radius * rng.uniform(0.7, 1.0), radius * rng.uniform(0.9, 1.2), radius * rng.uniform(0.7, 1.0))
    return Bleed(
        subtype=IchSubtype.INTRAPARENCHYMAL,
        side=side,
        extent=extent,
        hu=rng.uniform(62, 73),
        centre=(side * (x + rng.uniform(-3, 3)), y + rng.uniform(-5, 5), z + rng.uniform(-4, 4)),
        mass=None if z < 30 else MassEffect(shift_mm=-side * 0.18 * radius, y=float(y), z=float(z)),
    )


def _on_vault(side: int, angle: float, z: float, shape: HeadShape) -> tuple[float, float, float]:
    """A place near the inner table; the angle is 0 lateral, positive to posterior."""
    ring = np.sqrt(max(1 - ((z - 57) / shape.height) ** 2, 0.1))
    x = side * shape.half_width * ring * np.cos(angle)
    return float(x), float(shape.half_length * ring * np.sin(angle)), z


def paint_bleed(
    hu: FloatArray,
    bleed: Bleed,
    points: Points,
    depth_mm: FloatArray,
    vault_depth_mm: FloatArray,
    compartments: Compartments,
    rng: np.random.Generator,
) -> FloatArray:
    """Paint one bleed into ``hu`` in place and return its fraction of each point, (points,) float32.

    ``points`` are where the tissue is now; ``compartments`` already follow the mass effect.
    """
    lumps = SmoothNoise(rng, 24.0).at(points)
    if bleed.subtype is IchSubtype.EPIDURAL:
        fraction = _lens(bleed, points, vault_depth_mm, lumps)
    elif bleed.subtype is IchSubtype.SUBDURAL:
        fraction = _crescent(bleed, points, vault_depth_mm, lumps)
    elif bleed.subtype is IchSubtype.SUBARACHNOID:
        fraction = _in_sulci(bleed, points, compartments, lumps)
    elif bleed.subtype is IchSubtype.INTRAVENTRICULAR:
        fraction = _layered(bleed, points, compartments, lumps)
    else:
        fraction = _blob(bleed, points, depth_mm, hu, lumps)
    fraction = np.clip(fraction, 0, 1).astype(np.float32)
    paint(hu, (bleed.hu + 2.0 * lumps).astype(np.float32), fraction)
    return fraction


def _tangential(bleed: Bleed, points: Points) -> FloatArray:
    """Relative distance from the centre along the inner table: 1 at the rim."""
    dx, dy, dz = (getattr(points, k) - c for k, c in zip("xyz", bleed.centre, strict=True))
    _, along, up = bleed.extent
    return np.asarray(np.sqrt((dx**2 + dy**2) / along**2 + (dz / up) ** 2), np.float32)


def _lens(bleed: Bleed, points: Points, vault_depth: FloatArray, lumps: FloatArray) -> FloatArray:
    """Biconvex under the inner table: ``extent`` = (thickness, reach along the slice, reach upwards)."""
    thickness = bleed.extent[0] * (1 - _tangential(bleed, points) ** 2) * (1 + 0.08 * lumps)
    return inside(vault_depth - thickness) * (points.x * bleed.side > 0)


def _crescent(bleed: Bleed, points: Points, vault_depth: FloatArray, lumps: FloatArray) -> FloatArray:
    """Along the convexity, of even thickness, tapering at its ends; never across falx or tentorium."""
    taper = np.clip(1.6 * (1 - _tangential(bleed, points) ** 2), 0, 1)
    thickness = bleed.extent[0] * taper * (1 + 0.12 * lumps)
    above = points.z > tentorium_height(points.x, points.y) + 2
    return inside(vault_depth - thickness) * (points.x * bleed.side > 2.5) * above


def _in_sulci(bleed: Bleed, points: Points, compartments: Compartments, lumps: FloatArray) -> FloatArray:
    """Sulci and cisterns around a centre: ``extent`` = reach along x, y, z."""
    terms = [
        ((getattr(points, k) - c) / e) ** 2 for k, c, e in zip("xyz", bleed.centre, bleed.extent, strict=True)
    ]
    near = np.clip(2.2 * (1.05 - np.sqrt(sum(terms)) + 0.08 * lumps), 0, 1)
    return np.asarray(np.clip(1.4 * compartments.sulci_and_cisterns * near, 0, 1), np.float32)


def _layered(bleed: Bleed, points: Points, compartments: Compartments, lumps: FloatArray) -> FloatArray:
    """Dependent part of the lateral ventricles: behind a level, deeper where ``extent[0]`` is less than 1."""
    level = bleed.centre[1] + np.where(points.x * bleed.side > 0, 0, 20 * (1 - bleed.extent[0]))
    return compartments.ventricles * inside(level + 2 * lumps - points.y, 2.5) * (points.z > 40)


def _blob(bleed: Bleed, points: Points, depth: FloatArray, hu: FloatArray, lumps: FloatArray) -> FloatArray:
    """Irregular ellipsoid with a rim of edema; ``extent`` = radii."""
    terms = [
        ((getattr(points, k) - c) / e) ** 2 for k, c, e in zip("xyz", bleed.centre, bleed.extent, strict=True)
    ]
    mean = float(np.mean(bleed.extent))
    distance = (np.sqrt(sum(terms)) - 1 + 0.14 * lumps) * mean
    within = inside(1.5 - depth) * (np.abs(points.x) > 1)
    rim = np.clip(1 - (distance - 1.0) / (0.35 * mean), 0, 1) * within
    paint(hu, EDEMA_HU, (0.85 * rim).astype(np.float32))
    return (inside(distance.astype(np.float32)) * within).astype(np.float32)
