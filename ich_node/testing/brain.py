"""Brain, ventricles and meninges of the phantom, in HU, and the places where blood can collect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ich_node.testing.anatomy import (
    CENTRE_MM,
    CSF,
    DURA,
    GRAY,
    SINUS,
    WHITE,
    BoolArray,
    FloatArray,
    HeadShape,
    Points,
    SmoothNoise,
    ellipsoid,
    inside,
    paint,
    petrous_line,
    tube,
)

VENTRICLE_PATHS: tuple[list[tuple[float, float, float, float]], ...] = (
    [
        (15, -35, 67, 2.5),
        (8, -20, 71, 4.2),
        (9, 4, 77, 4.2),
        (16, 24, 73, 5.0),
        (24, 33, 65, 6.5),
        (25, 52, 60, 2.5),
    ],
    [(24, 33, 65, 6.0), (33, 16, 50, 2.6), (31, -4, 44, 2.0)],
)
"""Lateral ventricle, ``(|x|, y, z, radius)`` mm: frontal horn to occipital horn; temporal horn."""


@dataclass(frozen=True, kw_only=True)
class Compartments:
    """Where blood can collect: fractions 0 to 1 of each intracranial point, each (points,) float32."""

    sulci_and_cisterns: FloatArray
    ventricles: FloatArray
    brain: FloatArray
    """Cerebrum, cerebellum and brainstem."""


def tentorium_height(x: FloatArray, y: FloatArray) -> FloatArray:
    """Height z of the tentorium, mm."""
    return (30 + 24 * np.exp(-np.abs(x) / 26) * np.clip(1 - (y - 28) / 75, 0, 1)).astype(np.float32)


def paint_brain(
    points: Points,
    depth_mm: FloatArray,
    shape: HeadShape,
    rng: np.random.Generator,
    *,
    open_cisterns: float = 0.0,
) -> tuple[FloatArray, Compartments]:
    """HU of the intracranial points, (points,) float32, and their compartments.

    Parameters
    ----------
    points
        Points of the head frame inside the skull.
    depth_mm
        Distance from the inner table, positive.
    open_cisterns
        Extra half width of sulci and cisterns, mm: blood distends them.
    """
    ax = np.abs(points.x)
    ridge = petrous_line(points.x)
    tent = tentorium_height(points.x, points.y)
    behind = points.y > ridge
    fossa = behind & (points.z < tent)
    csf = np.zeros(len(points), np.float32)
    hu = np.full(len(points), WHITE, np.float32)
    gray, slow = _cerebrum(hu, csf, points, depth_mm, shape, rng, open_cisterns)
    _deep_nuclei(hu, points, gray, 1.2 * slow)
    _cisterns(csf, points, open_cisterns)
    _posterior_fossa(hu, csf, points, depth_mm, fossa, rng)
    csf = np.maximum(csf, inside(depth_mm - 0.5 - 0.6 * shape.sulcus_width))
    paint(hu, CSF, csf)
    ventricles = ventricle_fraction(points, shape)
    paint(hu, CSF, ventricles)
    _calcifications(hu, points, shape)
    _dura(hu, points, depth_mm, tent, ax)
    csf *= 1 - ventricles
    return hu, Compartments(
        sulci_and_cisterns=csf, ventricles=ventricles, brain=np.clip(1 - csf - ventricles, 0, 1)
    )


def _fold_coordinates(points: Points) -> Points:
    """Points drawn to a sphere, so that a sulcus runs inwards from the surface."""
    x, y, z = points.x / 66, (points.y - CENTRE_MM[1]) / 82, (points.z - CENTRE_MM[2]) / 70
    pull = 52 / np.sqrt(np.maximum(x**2 + y**2 + z**2, 0.05))
    return Points(
        x=pull * x + 0.28 * points.x, y=pull * y * 1.15 + 0.28 * points.y, z=pull * z + 0.28 * points.z
    )


def _cerebrum(
    hu: FloatArray,
    csf: FloatArray,
    points: Points,
    depth: FloatArray,
    shape: HeadShape,
    rng: np.random.Generator,
    open_cisterns: float,
) -> tuple[float, FloatArray]:
    """Cortical ribbon with sulci over white matter; returns the HU of gray matter and a slow noise."""
    gray = WHITE + (GRAY - WHITE) * shape.gray_white_contrast
    folds = SmoothNoise(rng, 17.0, band_pass=True).at(_fold_coordinates(points))
    slow = SmoothNoise(rng, 34.0).at(points)
    to_sulcus = np.abs(folds) * np.float32(3.6)
    reach = np.clip(17 + 5 * slow, 7, 28)
    midline = np.where(_has_falx(points), np.abs(points.x), 50)
    width = (shape.sulcus_width + open_cisterns) * np.clip(1.35 - depth / reach, 0, 1)
    csf += inside(to_sulcus - width, 1.4) * (depth < reach * 1.35)
    np.maximum(csf, inside(midline - 0.9 - 0.4 * shape.sulcus_width), out=csf)
    ribbon = np.minimum(np.minimum(to_sulcus + np.maximum(depth - reach, 0), depth - 1.0), midline - 1.0)
    paint(hu, gray, inside(ribbon - 3.5 - 0.5 * slow, 2.4))
    hu += 0.8 * slow
    return gray, slow


def _has_falx(points: Points) -> BoolArray:
    """True in the (y, z) plane outside corpus callosum and basal structures, where the fissure is open."""
    callosum = ((points.y - 2) / 44) ** 2 + ((points.z - 66) / 24) ** 2
    return (callosum > 1) & (points.z > 46)


def _deep_nuclei(hu: FloatArray, points: Points, gray: float, wobble: FloatArray) -> None:
    where, capsule = ellipsoid(points, (20, -2, 64), (17, 30, 15), mirrored=True)
    paint(hu, WHITE + 1, inside(capsule, 6), where)
    for centre, radii in (
        ((14.0, -20.0, 69.0), (5.5, 11.0, 10.0)),  # head of caudate
        ((26.0, -6.0, 61.0), (7.5, 18.0, 10.0)),  # putamen and pallidum
        ((10.5, 9.0, 63.0), (8.5, 14.0, 10.0)),  # thalamus
        ((40.0, -6.0, 62.0), (2.6, 20.0, 12.0)),  # insular cortex
    ):
        where, nucleus = ellipsoid(points, centre, radii, mirrored=True)
        paint(hu, gray - 1, inside(nucleus + wobble[where], 3.5), where)


def _cisterns(csf: FloatArray, points: Points, extra: float) -> None:
    """Sylvian fissures and the basal cisterns."""
    mirrored = Points(x=np.abs(points.x), y=points.y, z=points.z)
    for path in (
        [(44, -26, 58, 1.0), (44, 8, 66, 0.8), (46, 16, 72, 0.6)],
        [(44, -24, 52, 1.2), (45, 4, 58, 0.8)],
        [(26, -20, 47, 1.2), (44, -26, 57, 1.3), (66, -34, 60, 1.2)],
        [(12, -16, 45, 1.6), (30, -22, 48, 1.2)],
    ):
        where, fissure = tube(mirrored, [(a, b, c, r + extra) for a, b, c, r in path])
        np.maximum.at(csf, where, inside(fissure))
    for centre, radii in (
        ((0.0, -12.0, 45.0), (10.0 + extra, 9.0 + extra, 5.5)),  # suprasellar
        ((0.0, 26.0, 54.0), (9.0 + extra, 3.0 + extra, 5.0)),  # quadrigeminal
        ((0.0, 50.0, 0.0), (10.0, 10.0, 7.0)),  # cisterna magna
    ):
        where, cistern = ellipsoid(points, centre, radii)
        np.maximum.at(csf, where, inside(cistern))
    where, outer = ellipsoid(points, (0, 8, 47), (18.5 + extra, 17 + extra, 9))
    ring = inside(outer) * (np.abs(points.x[where]) > 8)
    where_in, inner = ellipsoid(points[where], (0, 8, 47), (16.5, 15, 20))
    ring[where_in] *= 1 - inside(inner)
    np.maximum.at(csf, where, ring)


def _posterior_fossa(
    hu: FloatArray,
    csf: FloatArray,
    points: Points,
    depth: FloatArray,
    fossa: BoolArray,
    rng: np.random.Generator,
) -> None:
    """Cerebellum with folia, brainstem and the cisterns before it."""
    chosen = np.flatnonzero(fossa)
    if len(chosen) == 0:
        return
    p = points[chosen]
    wobble = SmoothNoise(rng, 30.0).at(p)
    folia = np.sin((depth[chosen] + 2.0 * wobble) * np.float32(2 * np.pi / 5.5))
    value = 37.5 + 1.8 * folia - 5.0 * inside(np.float32(13) - depth[chosen], 8)
    # beam hardening: dark bands between the petrous bones, streaks along x
    level = np.exp(-(((p.z - 20) / 14) ** 2)) * np.clip((48 - p.y) / 30, 0, 1)
    streaks = SmoothNoise(rng, 16.0).at(Points(x=0.2 * p.x, y=p.y, z=p.z))
    value += level * (2.5 * streaks - 2.0)
    hu[chosen] = value
    csf[chosen] = inside(depth[chosen] - 1.3)
    before = (p.y < 24 + 0.15 * np.abs(p.x)) & (np.abs(p.x) < 30)
    csf[chosen[before]] = 1.0
    where, stem = tube(
        points, [(0, 26, -60, 6.5), (0, 25, 4, 7.5), (0, 14, 18, 13.0), (0, 12, 30, 15.5), (0, 9, 50, 14.0)]
    )
    fraction = inside(stem, 1.5)
    paint(hu, 32.0, fraction, where)
    csf[where] *= 1 - fraction
    peduncle, distance = ellipsoid(points, (15, 24, 24), (9, 9, 7), mirrored=True)
    paint(hu, 33.0, inside(distance), peduncle)
    csf[peduncle] *= 1 - inside(distance)


def ventricle_fraction(points: Points, shape: HeadShape) -> FloatArray:
    """Fraction of each point inside a ventricle, (points,) float32."""
    fraction = np.zeros(len(points), np.float32)
    for sign, scale in ((-1.0, shape.ventricle_scale[0]), (1.0, shape.ventricle_scale[1])):
        side = Points(x=points.x * np.float32(sign), y=points.y, z=points.z)
        for path in VENTRICLE_PATHS:
            where, distance = tube(side, [(x, y, z, r * scale) for x, y, z, r in path])
            fraction[where] = np.maximum(fraction[where], inside(distance))
    mean = sum(shape.ventricle_scale) / 2
    for centre, radii in (
        ((0.0, 1.0, 59.0), (1.9 * mean, 14.0, 9.0)),  # third
        ((0.0, 31.0, 24.0), (7.0 * mean, 4.5, 8.0)),  # fourth
    ):
        where, distance = ellipsoid(points, centre, radii)
        fraction[where] = np.maximum(fraction[where], inside(distance))
    return fraction


def _calcifications(hu: FloatArray, points: Points, shape: HeadShape) -> None:
    pineal, choroid, pallidum = shape.calcified
    for present, centre, radius, value in (
        (pineal, (0.0, 21.0, 59.0), 2.4, 170.0),
        (choroid, (24.0, 34.0, 65.0), 2.6, 150.0),
        (pallidum, (20.0, -4.0, 61.0), 2.2, 90.0),
    ):
        if present:
            where, distance = ellipsoid(
                points, centre, (radius, radius * 1.3, radius), mirrored=centre[0] > 0
            )
            paint(hu, value, inside(distance), where)


def _dura(hu: FloatArray, points: Points, depth: FloatArray, tent: FloatArray, ax: FloatArray) -> None:
    """Falx, tentorium and the venous sinuses."""
    behind = np.clip((points.y + 40) / 80, 0, 1)
    falx = inside(ax - 0.35 - 0.75 * behind, 1.2) * _has_falx(points) * (points.z > tent - 1)
    falx *= np.clip((60 - points.y - 1.0 * (points.z - 58)) / -20 + 1, 0, 1) * (points.y > 0) + (
        points.y <= 0
    )
    paint(hu, DURA, np.clip(falx, 0, 1).astype(np.float32))
    notch = ((ax / 20) ** 2 + ((points.y - 8) / 24) ** 2) < 1
    sheet = np.exp(-(((points.z - tent) / 1.6) ** 2)) * (points.y > petrous_line(points.x) + 3) * ~notch
    paint(hu, DURA, 0.8 * sheet.astype(np.float32))
    sagittal = inside(depth + 0.9 * ax - 6.5) * (np.abs(points.x) < 9) * (points.z > 36)
    sagittal *= np.clip((points.y + 60) / 60, 0, 1)
    paint(hu, SINUS, sagittal.astype(np.float32))
    transverse = inside(np.maximum(depth - 5.5, np.abs(points.z - 31) - 3.5)) * (points.y > 32)
    paint(hu, SINUS, transverse.astype(np.float32))
