"""Phantom heads as training material: their bleeds are known, so small bags can be labelled too."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ich_node.findings import IchSubtype
from ich_node.model.intracranial import intracranial_mask
from ich_node.model.preprocess import PreprocessConfig, network_slice
from ich_node.testing.phantom import head_phantom
from training.dataset import MARGIN, SliceSet

FIRST_SEED = 1_000_000
"""Seeds of training phantoms start here, so that no test or demonstration meets one of them by accident."""
_KINDS = [s for s in IchSubtype if s is not IchSubtype.ANY]
_SLICES_KEPT = 14
_Part = tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


def load_phantoms(cache: Path, config: PreprocessConfig, count: int) -> SliceSet:
    """Slices of ``count`` phantoms, a third of them normal, the others with one or two kinds of bleed."""
    file = cache / f"phantoms-{count}-{config.size}-{config.pitch_mm}.npz"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        parts = _built(count, partial(_one, config=config))
        scan = np.concatenate([np.full(len(p[0]), i) for i, p in enumerate(parts)])
        temporary = file.with_suffix(".tmp.npz")
        hu, mask, lesion = (np.concatenate([p[k] for p in parts]) for k in range(3))
        np.savez(temporary, hu=hu, mask=mask, lesion=lesion, scan=scan)
        temporary.replace(file)
    with np.load(file, allow_pickle=False) as a:
        hu, mask, lesion, scan = a["hu"], a["mask"], a["lesion"], a["scan"]
    names = tuple(f"phantom {FIRST_SEED + i}" for i in range(count))
    area_mm2 = lesion.sum(axis=(1, 2)) * config.pitch_mm**2
    return SliceSet(hu=hu, mask=mask, label=area_mm2 > 40, scan=scan, scans=names, lesion=lesion)


def _built(count: int, build: Callable[[int], _Part]) -> list[_Part]:
    processes = min(os.cpu_count() or 1, count // 16)
    if processes < 2:
        return [build(i) for i in range(count)]
    # spawned, since torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(build, range(count)))


def _one(index: int, config: PreprocessConfig) -> _Part:
    rng = np.random.default_rng(FIRST_SEED + index)
    bleeds = (
        []
        if index % 3 == 0
        else list(rng.choice(np.array(_KINDS, object), rng.integers(1, 3), replace=False))
    )
    pixels = int(rng.choice([256, 320]))
    phantom = head_phantom(
        bleeds=bleeds,
        seed=FIRST_SEED + index,
        rows=pixels,
        columns=pixels,
        field_of_view_mm=float(rng.uniform(215, 250)),
        noise_hu=float(rng.uniform(2, 8)),
    )
    wide = replace(config, size=config.size + MARGIN)
    space = intracranial_mask(phantom.hu, phantom.spacing_mm)
    inside = np.flatnonzero(space.mask.any(axis=(1, 2)))
    kept = np.sort(rng.choice(inside, min(_SLICES_KEPT, len(inside)), replace=False))
    hu, mask, lesion = [], [], []
    for i in kept:
        cut = network_slice(phantom.hu[i], space, int(i), phantom.spacing_mm, wide)
        blood = phantom.masks[IchSubtype.ANY][i].astype(np.float32)
        hu.append(np.rint(cut.hu).astype(np.int16))
        mask.append(cut.mask)
        # same geometry as the image, so the same function cuts it
        lesion.append(network_slice(blood * 100, space, int(i), phantom.spacing_mm, wide).hu > 50)
    return np.stack(hu), np.stack(mask), np.stack(lesion)
