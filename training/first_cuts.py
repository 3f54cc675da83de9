"""Slices on one system's own grid, and batches of them that are changed at random, for `training.first_weights`."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ich_node.findings import IchSubtype
from ich_node.model import burduja, he_fusion, radnet
from ich_node.model.preprocess import cut_out
from ich_node.model.system import Head
from ich_node.testing.phantom import head_phantom
from training.augment import AugmentConfig, augment
from training.ct_ich import read_scans
from training.dataset import MARGIN, estimated_spacing_mm
from training.phantoms import FIRST_SEED

CLASSES = tuple(IchSubtype)
_WINDOW = 8
"""Neighbouring slices that RADnet's LSTM sees at once while it is trained."""
_HELD_OUT = 5
"""Every fifth patient is not trained on."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Slices on one system's grid, those of one scan together and inferior to superior."""

    hu: Array
    """(slices, size + MARGIN, size + MARGIN) int16."""
    lesion: Array
    """The same shape, bool: where the hemorrhage is; empty where that is not known."""
    labels: Array
    """(slices, 6) bool, in the order of `IchSubtype`."""
    scan: Array
    """(slices,) index of the scan."""
    is_phantom: Array
    """(slices,) bool: its lesion is known."""
    held_out: Array
    """(slices,) bool."""


def load_cuts(preprocessing: Any, data: Path, cache: Path, phantoms: int) -> Cuts:
    """CT-ICH and phantoms on a system's grid, from the cache where they are there."""
    kind = type(preprocessing).__name__
    text = f"{kind}{asdict(preprocessing)}{phantoms}{data.name}"
    file = cache / f"first-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.npz"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        parts = [*_patients(preprocessing, data), *_phantoms(preprocessing, phantoms)]
        columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        columns["scan"] = np.concatenate([np.full(len(part["hu"]), i) for i, part in enumerate(parts)])
        np.savez(file.with_suffix(".tmp.npz"), **columns)  # type: ignore[arg-type]
        file.with_suffix(".tmp.npz").replace(file)
    with np.load(file, allow_pickle=False) as arrays:
        return Cuts(**{key: arrays[key] for key in arrays.files})


def _patients(preprocessing: Any, data: Path) -> list[dict[str, Array]]:
    parts = []
    for number, scan in enumerate(read_scans(data)):
        hu = scan.hu()
        head = Head(hu=hu, spacing_mm=estimated_spacing_mm(hu))
        labels = np.array(
            [[bool(found) if c is IchSubtype.ANY else c in found for c in CLASSES] for found in scan.subtypes]
        )
        parts.append(_part(preprocessing, head, labels, None, held_out=number % _HELD_OUT == 0))
    return parts


def _phantoms(preprocessing: Any, count: int) -> list[dict[str, Array]]:
    kinds = [c for c in CLASSES if c is not IchSubtype.ANY]
    parts = []
    for index in range(count):
        rng = np.random.default_rng(FIRST_SEED + index)
        bleeds = [] if index % 3 == 0 else list(rng.choice(np.array(kinds, object), 2, replace=False))
        phantom = head_phantom(bleeds=bleeds, seed=FIRST_SEED + index, rows=256, columns=256, slices=28)
        none = np.zeros(phantom.hu.shape, bool)
        labels = np.stack([phantom.masks.get(c, none).any(axis=(1, 2)) for c in CLASSES], axis=1)
        head = Head(hu=phantom.hu, spacing_mm=phantom.spacing_mm)
        parts.append(_part(preprocessing, head, labels, phantom.masks[IchSubtype.ANY], held_out=False))
    return parts


def _part(
    preprocessing: Any, head: Head, labels: Array, lesion: Array | None, *, held_out: bool
) -> dict[str, Array]:
    inside = list(head.inside)
    hu = np.stack([_cut(preprocessing, head, i) for i in inside])
    where = np.zeros(hu.shape, bool)
    if lesion is not None:
        # the same geometry as the image, so the same function cuts it
        blood = Head(hu=lesion.astype(np.float32) * 100, spacing_mm=head.spacing_mm)
        blood.__dict__["mask"] = head.mask
        where = np.stack([_cut(preprocessing, blood, i) for i in inside]) > 50
    return {
        "hu": np.rint(hu).astype(np.int16),
        "lesion": where,
        "labels": labels[inside],
        "is_phantom": np.full(len(inside), lesion is not None),
        "held_out": np.full(len(inside), held_out),
    }


def _cut(preprocessing: Any, head: Head, index: int) -> Array:
    """One slice with the margin, by the system's own preprocessing."""
    wide = replace(preprocessing, size=preprocessing.size + MARGIN)
    if isinstance(wide, he_fusion.HeFusionPreprocessing):
        return wide.network_input(head.hu[index], head.spacing_mm)
    if isinstance(wide, radnet.RadNetPreprocessing):
        return cut_out(head.hu[index], radnet.frame_of(head, wide), wide.size, wide.hu_range)
    return burduja.slice_hu(head, index, wide)[0]


@dataclass
class Batches:
    """Draws slices, half of them with hemorrhage, a quarter of phantoms, and changes them at random."""

    cuts: Cuts
    preprocessing: Any
    batch: int
    rng: np.random.Generator
    generator: torch.Generator

    def slices(self) -> Array:
        """Rows of a batch of single slices."""
        rows = []
        for is_phantom, count in (
            (True, self.batch // 4),
            (False, self.batch - self.batch // 4),
        ):
            pool = (self.cuts.is_phantom == is_phantom) & ~self.cuts.held_out
            for positive in (True, False):
                rows.append(
                    self.rng.choice(np.flatnonzero(pool & (self.cuts.labels[:, 0] == positive)), count // 2)
                )
        return np.concatenate(rows)

    def window(self, *, is_phantom: bool) -> Array:
        """Rows of neighbouring slices of one scan, around a slice with hemorrhage as often as not."""
        pool = (self.cuts.is_phantom == is_phantom) & ~self.cuts.held_out
        positive = bool(self.rng.integers(2))
        middle = int(self.rng.choice(np.flatnonzero(pool & (self.cuts.labels[:, 0] == positive))))
        rows = np.flatnonzero(self.cuts.scan == self.cuts.scan[middle])
        first = int(np.clip(middle - rows[0] - self.rng.integers(_WINDOW), 0, max(0, len(rows) - _WINDOW)))
        return rows[first : first + _WINDOW]

    def changed(self, rows: Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(n, size, size) HU, (n, size, size) lesion and (n, 6) labels."""
        hu = torch.from_numpy(self.cuts.hu[rows].astype(np.float32))
        lesion = torch.from_numpy(self.cuts.lesion[rows].astype(np.float32))[:, None]
        hu, lesion = augment(hu, lesion, self.preprocessing.size, AugmentConfig(), self.generator)
        return hu, lesion[:, 0], torch.from_numpy(self.cuts.labels[rows].astype(np.float32))
