"""The inside of a skull whose vault lacks a wide part: after a craniectomy, or where the image cuts the head."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ich_node.model.coarse_grid import BoolArray, Cells, FloatArray, IntracranialConfig, area_mm2, opened

_LEAST_HEAD_MM2 = 5000.0
"""A smaller cross-section is no vault."""
_ANGLES = 72
_LEAST_VAULT = 0.35
"""Less bone than this over the angles is no vault with a gap."""
_RIM_MM = 8.0
_MOST_BONE_WITHIN, _LEAST_TISSUE_WITHIN = 0.04, 0.85


def behind_gap(
    cells: Cells, pitch_mm: tuple[float, float], config: IntracranialConfig
) -> tuple[BoolArray, bool]:
    """Intracranial space of a slice with a wide gap in the vault, and whether it is one for sure.

    Seen from the middle of the head, the inner table is a distance over the angle. Over a gap the distance is
    carried on from edge to edge; the brain may swell beyond it, up to the flap of skin. The skull base and the
    face have gaps of their own, but bone, fat and air within: a slice is sure when there is little of these
    anywhere, and possible when there is little behind the gap.
    """
    nothing = np.zeros_like(cells.bone), False
    head = _head(cells.mean, pitch_mm)
    if area_mm2(head, pitch_mm) < _LEAST_HEAD_MM2:
        return nothing
    centre = [float(c) for c in ndimage.center_of_mass(head)]
    table, skin, cut = _outline(cells.bone & head, head, centre, pitch_mm)
    found = np.isfinite(table)
    gap = _wide_runs(~found, round(config.gap_deg / 360 * _ANGLES))
    if not gap.any() or found.mean() < _LEAST_VAULT:
        return nothing
    # where the image ends inside the head, there is no flap
    reach = skin - np.where(cut, 0.0, config.flap_mm)
    degrees = np.arange(_ANGLES)
    table = np.interp(degrees, degrees[found], table[found], period=_ANGLES)
    limit = np.where(gap, np.minimum(reach, table + config.bulge_mm), table)
    beyond, angle = _beyond(limit, centre, cells.bone.shape, pitch_mm)
    space, deep = beyond < 0, beyond < -_RIM_MM
    if _is_brain(cells, deep):
        return space & (~cells.bone | deep), True
    behind = gap[angle]
    if _is_brain(cells, deep & behind):
        return space & behind & ~cells.bone, False
    return nothing


def _beyond(
    limit: npt.NDArray[np.float64],
    centre: list[float],
    shape: tuple[int, ...],
    pitch_mm: tuple[float, float],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """How far each cell lies beyond the limit over the angles, mm, and the index of its angle."""
    y, x = ((np.arange(n) - c) * p for n, c, p in zip(shape, centre, pitch_mm, strict=True))
    turn = np.arctan2(y[:, None], x[None, :]) / (2 * math.pi) * _ANGLES
    there = np.interp(turn.ravel(), np.arange(_ANGLES), limit, period=_ANGLES).reshape(turn.shape)
    return np.hypot(y[:, None], x[None, :]) - there, np.rint(turn).astype(np.intp) % _ANGLES


def _is_brain(cells: Cells, where: BoolArray) -> bool:
    """Whether a region holds hardly any bone, fat and air."""
    if not where.any():
        return False
    return bool(
        cells.bone[where].mean() < _MOST_BONE_WITHIN and cells.tissue[where].mean() > _LEAST_TISSUE_WITHIN
    )


def _head(mean: FloatArray, pitch_mm: tuple[float, float]) -> BoolArray:
    """The largest thing that is not air, without holder and holes."""
    labels, count = ndimage.label(opened(mean > -300, 6.0, pitch_mm))
    if not count:
        return np.zeros(mean.shape, np.bool_)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(ndimage.binary_fill_holes(labels == sizes.argmax()))


def _outline(
    bone: BoolArray, head: BoolArray, centre: list[float], pitch_mm: tuple[float, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], BoolArray]:
    """Over the angles: distance of inner table (NaN without bone) and skin, mm; whether the image ends there."""
    turn = 2 * math.pi * np.arange(_ANGLES)[:, None] / _ANGLES
    step_mm = min(pitch_mm)
    far = math.hypot(bone.shape[0] * pitch_mm[0], bone.shape[1] * pitch_mm[1])
    radius = np.arange(0, far, step_mm)
    r = np.rint(centre[0] + np.sin(turn) * radius / pitch_mm[0]).astype(np.intp)
    c = np.rint(centre[1] + np.cos(turn) * radius / pitch_mm[1]).astype(np.intp)
    there = (r >= 0) & (r < bone.shape[0]) & (c >= 0) & (c < bone.shape[1])
    r, c = np.where(there, r, 0), np.where(there, c, 0)
    on_head, on_bone = head[r, c] & there, bone[r, c] & there
    steps = np.arange(len(radius))
    last = np.where(on_head, steps, 0).max(axis=1)
    cut = ~there[np.arange(_ANGLES), np.minimum(last + 1, len(radius) - 1)]
    # what calcifies or is clipped in the middle is no vault
    on_bone &= steps >= 0.5 * last[:, None]
    outer = np.where(on_bone, steps, 0).max(axis=1)
    inner = np.where(~on_bone & (steps < outer[:, None]), steps, 0).max(axis=1) + 0.5
    some = on_bone.any(axis=1)
    # one ray alone may meet a clip, a drain or a calcified falx
    some &= np.roll(some, 1) | np.roll(some, -1)
    return np.where(some, inner * step_mm, np.nan), last * step_mm, cut


def _wide_runs(flags: BoolArray, least: int) -> BoolArray:
    """Keep runs of at least ``least`` neighbours around the circle."""
    if flags.all():
        return flags
    start = int(np.flatnonzero(~flags)[0])
    labels, _ = ndimage.label(np.roll(flags, -start))
    sizes = np.bincount(labels)
    sizes[0] = 0
    return np.asarray(np.roll(sizes[labels] >= least, start))
