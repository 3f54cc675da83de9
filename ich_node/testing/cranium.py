"""Skull, scalp and face of the phantom, in HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ich_node.testing.anatomy import (
    AIR,
    FAT,
    MUSCLE,
    SKIN,
    FloatArray,
    HeadShape,
    Points,
    SmoothNoise,
    canal_distance,
    ellipsoid,
    floor_distance,
    inside,
    paint,
    petrous_line,
    tube,
    vault_distance,
)

BONE_CORTEX, BONE_DIPLOE, GLOBE, LENS = 1150.0, 560.0, 10.0, 75.0


@dataclass(frozen=True, kw_only=True)
class CraniumDistances:
    """Signed distances of the points, each (points,) float32, mm."""

    vault: FloatArray
    """To the inner table of the vault, negative inside."""
    cavity: FloatArray
    """To the boundary of the intracranial space, negative inside."""
    floor: FloatArray
    canal: FloatArray
    skin: FloatArray
    """To the outer surface of head and neck, negative inside."""


def distances(points: Points, shape: HeadShape) -> CraniumDistances:
    """Measure the points against the big surfaces."""
    vault = vault_distance(points, shape)
    floor = np.full(len(points), -200.0, np.float32)
    low = np.flatnonzero(points.z < 70)
    floor[low] = floor_distance(points[low])
    canal = canal_distance(points)
    cavity = np.minimum(np.maximum(vault, floor), canal)
    scalp = vault - shape.bone_thickness - shape.scalp_thickness
    return CraniumDistances(
        vault=vault, cavity=cavity, floor=floor, canal=canal, skin=np.minimum(scalp, _face_distance(points))
    )


def _face_distance(points: Points) -> FloatArray:
    x, y, z = points.x, points.y, points.z
    face = (np.sqrt((x / 64) ** 2 + ((y + 32) / 64) ** 2 + (np.maximum(z, 0) / 58) ** 2) - 1) * 60
    neck = (np.sqrt((x / 62) ** 2 + ((y - 18) / 72) ** 2 + (np.maximum(z - 4, 0) / 24) ** 2) - 1) * 60
    nose = (np.sqrt((x / 14) ** 2 + ((y + 92) / 22) ** 2 + ((z - 6) / 26) ** 2) - 1) * 14
    return np.asarray(np.minimum(np.minimum(face, neck), nose), np.float32)


def paint_cranium(
    points: Points, measured: CraniumDistances, shape: HeadShape, rng: np.random.Generator
) -> FloatArray:
    """HU of everything outside the intracranial space, (points,) float32; the space itself is left as CSF."""
    hu = np.full(len(points), AIR, np.float32)
    texture = SmoothNoise(rng, 22.0).at(points)
    fine = SmoothNoise(rng, 9.0, band_pass=True).at(points)
    _paint_soft_tissue(hu, points, measured, shape, texture)
    _paint_face(hu, points, fine)
    _paint_bone(hu, points, measured, shape, texture, fine)
    _paint_sinuses(hu, points, fine)
    paint(hu, 7.0, inside(measured.cavity))
    return hu


def _paint_soft_tissue(
    hu: FloatArray, points: Points, measured: CraniumDistances, shape: HeadShape, texture: FloatArray
) -> None:
    paint(hu, FAT, inside(measured.skin))
    below = np.flatnonzero((points.z < 48) & (measured.vault > shape.bone_thickness - 2))
    depth = -measured.skin[below]
    bundle = np.clip(texture[below] * 2.5 + 2.2, 0, 1) * np.clip((depth - 5) / 4, 0, 1)
    paint(hu, MUSCLE + 4 * texture[below], bundle, below)
    # the temporal muscle lies on the outer table
    lateral = (
        np.exp(-(((points.y + 12) / 30) ** 4)) * (np.abs(points.x) > 40) * np.clip((78 - points.z) / 25, 0, 1)
    )
    outer = measured.vault - shape.bone_thickness
    paint(hu, MUSCLE, (inside(outer - 7 * lateral) * (lateral > 0.05)).astype(np.float32))
    skin = inside(measured.skin) * (1 - inside(measured.skin + 1.6))
    paint(hu, SKIN, skin)


def _paint_face(hu: FloatArray, points: Points, fine: FloatArray) -> None:
    right_left = Points(x=np.abs(points.x), y=points.y, z=points.z)
    where, orbit = ellipsoid(points, (31, -68, 34), (15.5, 27, 14.5), mirrored=True)
    paint(hu, BONE_CORTEX, inside(orbit - 1.8) * (points.y[where] > -82) * (points.z[where] > 24), where)
    paint(hu, FAT, inside(orbit), where)
    for side in (24, 42):
        where, muscle = tube(right_left, [(side, -76, 33, 2.0), (22, -44, 34, 1.5)])
        paint(hu, 48.0, inside(muscle), where)
    where, nerve = tube(right_left, [(32, -66, 33, 2.2), (10, -30, 37, 2.0)])
    paint(hu, 38.0, inside(nerve), where)
    where, globe = ellipsoid(points, (32, -80, 33), (12, 12, 12), mirrored=True)
    paint(hu, 52.0, inside(globe), where)
    paint(hu, GLOBE, inside(globe + 1.3), where)
    where, lens = ellipsoid(points, (32, -89, 33), (4.5, 2.2, 4.5), mirrored=True)
    paint(hu, LENS, inside(lens), where)
    for path in (
        [(50.0, -22.0, -30.0, 5.0), (51, -20, 4, 4.0), (50, -12, 14, 3.5)],  # mandibular ramus
        [(40.0, -74.0, 6.0, 4.0), (60, -55, 12, 3.5), (64, -25, 14, 2.5)],  # zygomatic arch
        [(10.0, -88.0, -24.0, 6.0), (34, -62, -24, 6.0), (42, -40, -22, 5.0)],  # alveolar process
    ):
        where, bone = tube(right_left, path)
        paint(hu, 900.0 + 150 * fine[where], inside(bone), where)


def _paint_bone(
    hu: FloatArray,
    points: Points,
    measured: CraniumDistances,
    shape: HeadShape,
    texture: FloatArray,
    fine: FloatArray,
) -> None:
    front_back = np.abs(points.y) / shape.half_length
    thickness = shape.bone_thickness * (0.75 + 0.4 * front_back**2 + 0.06 * texture)
    ax = np.abs(points.x)
    petrous = np.exp(-(((points.y - petrous_line(points.x)) / 9) ** 2)) * (ax < 66) * (points.z > -2)
    central = np.exp(-((ax / 15) ** 4)) * (points.y > -34) * (points.y < 20) * (points.z > 2)
    base = 2.2 + 16 * petrous + 14 * central
    vault = np.where(measured.vault > measured.floor, thickness, np.maximum(thickness * 0.7, base))
    shell = np.maximum(measured.vault, measured.floor)
    vertebra = (measured.canal < 5.5) & (points.z < 0)
    layer = np.where(vertebra, measured.canal, shell)
    depth = np.where(vertebra, 5.5, vault).astype(np.float32)
    middle = np.clip(1 - np.abs(layer / depth - 0.5) / 0.33, 0, 1)
    value = BONE_CORTEX - (BONE_CORTEX - BONE_DIPLOE) * middle * np.clip((depth - 2) / 4, 0, 1) + 60 * fine
    in_head = inside(measured.skin + 2)
    paint(hu, value.astype(np.float32), inside(layer - depth) * in_head)


def _paint_sinuses(hu: FloatArray, points: Points, fine: FloatArray) -> None:
    """Air: paranasal sinuses, nasal cavity, pharynx, mastoid cells and ear canals."""
    for centre, radii, wall in (
        ((26.0, -58.0, 7.0), (14.0, 18.0, 16.0), 1.8),
        ((7.0, -24.0, 24.0), (8.0, 12.0, 8.0), 1.5),
        ((9.0, -90.0, 50.0), (9.0, 4.0, 8.0), 2.0),
    ):
        where, distance = ellipsoid(points, centre, radii, mirrored=True)
        paint(hu, 850.0, inside(distance - wall), where)
        paint(hu, AIR, inside(distance), where)
    for centre, radii, openness, mirrored in (
        ((6.0, -60.0, 30.0), (8.0, 28.0, 14.0), 0.7, True),  # ethmoid cells
        ((57.0, 27.0, 14.0), (9.0, 13.0, 16.0), 0.15, True),  # mastoid cells
        ((6.0, -66.0, 2.0), (9.0, 26.0, 18.0), 0.3, True),  # nasal cavity and conchae
    ):
        where, distance = ellipsoid(points, centre, radii, mirrored=mirrored)
        cells = np.clip(fine[where] * 2.5 + openness * 2.5 + 0.5, 0, 1)
        solid = 700.0 if centre[2] > 5 else 45.0
        paint(hu, solid, inside(distance), where)
        paint(hu, AIR, inside(distance + 1.0) * cells, where)
    where, pharynx = tube(points, [(0, -18, -60, 9.0), (0, -20, 4, 8.0)])
    paint(hu, AIR, inside(pharynx), where)
    right_left = Points(x=np.abs(points.x), y=points.y, z=points.z)
    where, canal = tube(right_left, [(90, 10, 14, 3.5), (46, 10, 16, 3.0)])
    paint(hu, AIR, inside(canal), where)
