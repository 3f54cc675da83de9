"""Which slices a training step sees: real ones, phantoms, and real normals with a phantom's bleed set in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from training.dataset import SliceSet

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Slices of each kind in one training step."""

    positives: int = 9
    """Real, with hemorrhage: half drawn by patient, half by slice."""
    negatives: int = 11
    """Real, without."""
    transplants: int = 6
    """Real slices without hemorrhage into which a phantom's bleed is set."""
    phantoms: int = 6
    """Half of them with hemorrhage."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Slices of one step with the margin that augmentation needs."""

    hu: torch.Tensor
    """(batch, wide, wide) float32, HU."""
    masks: torch.Tensor
    """(batch, 2, wide, wide) float32, 0 to 1: intracranial space and known lesion."""
    label: torch.Tensor
    """(batch,) float32."""
    located: torch.Tensor
    """(batch,) bool: the lesion mask is the truth, be it empty."""


class Sampler:
    """Draws batches from the training scans and from phantoms."""

    def __init__(
        self, slices: SliceSet | None, train_scans: Rows, mix: Mix, phantoms: SliceSet | None
    ) -> None:
        self.slices, self.phantoms, self.mix = slices, phantoms, mix
        if slices is not None:
            # a slice without intracranial space is never shown to the network when reading either
            rows = slices.of_scans(train_scans)
            rows = rows[slices.mask[rows].any(axis=(1, 2))]
            self.positive, self.negative = rows[slices.label[rows]], rows[~slices.label[rows]]
            if not len(self.positive) or not len(self.negative):
                raise ValueError("training needs slices with and without hemorrhage")
            share = np.bincount(slices.scan[self.positive], minlength=len(slices.scans))
            by_patient = 1 / share[slices.scan[self.positive]]
            self.weight = 0.5 * by_patient / by_patient.sum() + 0.5 / len(self.positive)
        if phantoms is not None:
            self.bleeding = np.flatnonzero(phantoms.label)
            touched = phantoms.label if phantoms.lesion is None else phantoms.lesion.any(axis=(1, 2))
            self.sound = np.flatnonzero(~touched)
            self.area = phantoms.mask.sum(axis=(1, 2))

    def batch(self, rng: np.random.Generator) -> Batch:
        """Draw one step's slices."""
        parts = []
        if self.slices is not None:
            parts.append(_gather(self.slices, rng.choice(self.positive, self.mix.positives, p=self.weight)))
            parts.append(_gather(self.slices, rng.choice(self.negative, self.mix.negatives)))
        if self.phantoms is not None:
            half = self.mix.phantoms // 2
            parts.append(_gather(self.phantoms, rng.choice(self.bleeding, self.mix.phantoms - half)))
            parts.append(_gather(self.phantoms, rng.choice(self.sound, half)))
            if self.slices is not None and self.mix.transplants:
                parts.append(self._transplants(rng))
        return Batch(
            hu=torch.cat([p.hu for p in parts]),
            masks=torch.cat([p.masks for p in parts]),
            label=torch.cat([p.label for p in parts]),
            located=torch.cat([p.located for p in parts]),
        )

    def _transplants(self, rng: np.random.Generator) -> Batch:
        assert self.slices is not None
        assert self.phantoms is not None
        hosts = rng.choice(self.negative, self.mix.transplants)
        host = _gather(self.slices, hosts)
        # a phantom slice of about the same level of the head: nearest in cross-section among some
        areas = self.slices.mask[hosts].sum(axis=(1, 2))
        pools = [rng.choice(self.bleeding, 40) for _ in hosts]
        donors = [pool[np.abs(self.area[pool] - a).argmin()] for pool, a in zip(pools, areas, strict=True)]
        donor = _gather(self.phantoms, np.array(donors))
        blood = _fitted(donor.masks, host.masks[:, 0]) * host.masks[:, 0]
        blood = functional.avg_pool2d(blood[:, None], 3, 1, 1)[:, 0]
        grain = host.hu - functional.avg_pool2d(host.hu[:, None], 9, 1, 4)[:, 0]
        level = torch.tensor(rng.uniform(52, 78, len(hosts)), dtype=torch.float32).view(-1, 1, 1)
        soft = grain.clamp(-15, 15) * 0.7
        # bone and air at the border stay what they are
        room = ((host.hu > -20) & (host.hu < 90)).float()
        alpha = blood * room
        seen = (alpha > 0.5).float()
        label = (seen.sum((1, 2)) > 30).float()
        return Batch(
            hu=host.hu * (1 - alpha) + alpha * (level + soft),
            masks=torch.stack([host.masks[:, 0], seen], 1),
            label=label,
            located=torch.ones(len(hosts), dtype=torch.bool),
        )


def _gather(slices: SliceSet, rows: Rows) -> Batch:
    mask = slices.mask[rows]
    lesion = slices.lesion[rows] if slices.lesion is not None else np.zeros_like(mask)
    label = torch.from_numpy(slices.label[rows])
    known = torch.ones_like(label) if slices.lesion is not None else ~label
    return Batch(
        hu=torch.from_numpy(slices.hu[rows].astype(np.float32)),
        masks=torch.from_numpy(np.stack([mask, lesion], 1).astype(np.float32)),
        label=label.float(),
        located=known,
    )


def _fitted(donor: torch.Tensor, host_mask: torch.Tensor) -> torch.Tensor:
    """The donor's lesion moved and stretched so that the donor's intracranial box falls on the host's."""
    theta = []
    for mask, target in zip(donor[:, 0], host_mask, strict=True):
        (from_y, from_x), (to_y, to_x) = _box(mask), _box(target)
        rows = []
        for (a_mid, a_half), (b_mid, b_half), axis in ((from_x, to_x, 0), (from_y, to_y, 1)):
            factor = a_half / b_half
            row = [0.0, 0.0, a_mid - factor * b_mid]
            row[axis] = factor
            rows.append(row)
        theta.append(rows)
    grid = functional.affine_grid(torch.tensor(theta), [len(donor), 1, *donor.shape[2:]], align_corners=False)
    return functional.grid_sample(donor[:, 1:2], grid, align_corners=False)[:, 0]


def _box(mask: torch.Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """(middle, half size) of a mask's bounding box, vertically and horizontally, in grid_sample's -1 to 1."""
    out = []
    for axis in (1, 0):
        hit = torch.nonzero((mask > 0.5).any(axis)).flatten()
        low, high = float(hit[0]) / len(mask) * 2 - 1, float(hit[-1] + 1) / len(mask) * 2 - 1
        out.append(((low + high) / 2, (high - low) / 2))
    return out[0], out[1]
