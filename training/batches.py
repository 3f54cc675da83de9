"""What a training step sees: a pure function of seed and step, so that a run taken up again goes on the same.

Real slices with and without hemorrhage, phantoms, and real slices without into which a bleed is set that another
head has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ich_node.model.bundle_section import Limits, Share
from training.augment import AugmentConfig, augment
from training.cuts import Cuts
from training.scan import PRESENT, UNKNOWN

Rows = npt.NDArray[np.int64]
Number = Annotated[int, Limits(least=0)]
_ROOM_HU = (-20.0, 110.0)
"""Bone and air at the border of a transplant stay what they are."""
_SEEN_PIXELS = 25.0
"""A transplant that shows less than this is no hemorrhage."""
_DONORS = 24
"""Of so many the one is taken whose cavity is nearest in size."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Slices of each kind in one training step."""

    positives: Number = 9
    """Real, with hemorrhage: half drawn by patient, half by slice."""
    negatives: Number = 11
    """Real, without."""
    transplants: Number = 6
    """Real slices without hemorrhage into which a bleed of another head is set: a real one or a phantom's."""
    phantoms: Number = 6
    """Half of them with hemorrhage."""
    real_donors: Share = 0.7
    """Share of transplants whose bleed is a real one, where real ones are known."""
    uniform: Number = 0
    """Real, whatever they show: all in turn, in an order that is new with each pass."""


class Batch(NamedTuple):
    """Slices of one step, changed at random and cut to the network's size."""

    hu: torch.Tensor
    """(batch, planes, size, size) float32, HU."""
    mask: torch.Tensor
    """(batch, size, size) bool: intracranial space."""
    lesion: torch.Tensor
    """(batch, kinds, size, size) float32, 0 to 1, in the order of `training.cuts.KINDS`."""
    labels: torch.Tensor
    """(batch, classes) float32: 1, 0 or -1 for not known."""
    located: torch.Tensor
    """(batch,) bool: the lesion is known, be it nowhere."""
    lengths: tuple[int, ...] = ()
    """Of the windows of neighbouring slices, one after the other; empty where each slice stands by itself."""


@dataclass
class _Wide:
    """Slices with the margin that augmentation needs."""

    hu: torch.Tensor
    mask: torch.Tensor
    lesion: torch.Tensor
    labels: torch.Tensor
    located: torch.Tensor


class Batches(torch.utils.data.Dataset[Batch]):
    """Step number to batch.

    Parameters
    ----------
    cuts
        Of all scans.
    trained
        (scans,) bool: which scans may be seen.
    size
        Of the network's input.
    steps
        How many there are.
    """

    def __init__(
        self,
        cuts: Cuts,
        trained: npt.NDArray[np.bool_],
        size: int,
        mix: Mix,
        augmentation: AugmentConfig,
        *,
        seed: int,
        steps: int,
    ) -> None:
        self.cuts, self.size, self.mix, self.augmentation = cuts, size, mix, augmentation
        self.seed, self.steps = seed, steps
        seen, synthetic = trained[cuts.scan], cuts.synthetic
        bleeding = cuts.labels[:, 0] == PRESENT
        sound = cuts.labels[:, 0] == 0
        self.positive = np.flatnonzero(seen & ~synthetic & bleeding)
        self.negative = np.flatnonzero(seen & ~synthetic & sound)
        # a phantom's slice with a trace of blood that was not counted is neither
        self.phantom_positive = np.flatnonzero(seen & synthetic & bleeding)
        self.phantom_negative = np.flatnonzero(seen & synthetic & sound & (cuts.blood == 0))
        self.any_real = np.flatnonzero(seen & ~synthetic & (cuts.labels != UNKNOWN).any(axis=1))
        donors = seen & bleeding & cuts.located & (cuts.blood > _SEEN_PIXELS)
        self.real_donors = np.flatnonzero(donors & ~synthetic)
        self.phantom_donors = np.flatnonzero(donors & synthetic)
        if (mix.positives and not len(self.positive)) or (mix.negatives and not len(self.negative)):
            raise ValueError("training needs slices with and without hemorrhage")
        if mix.uniform and not len(self.any_real):
            raise ValueError("training needs slices of patients with labels")
        if len(self.positive):
            share = np.bincount(cuts.scan[self.positive], minlength=len(cuts.scans))
            by_scan = 1 / share[cuts.scan[self.positive]]
            self.weight = 0.5 * by_scan / by_scan.sum() + 0.5 / len(self.positive)
        any_donor = len(self.real_donors) or len(self.phantom_donors)
        self.transplanting = bool(mix.transplants and len(self.negative) and any_donor)
        if not self.transplanting and not any(map(len, self._rows(np.random.default_rng(seed), 0))):
            raise ValueError(
                "training needs slices: there are none of those that the recipe's mix is made of"
            )

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Draw one step's slices."""
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        parts = [self._gathered(rows) for rows in self._rows(rng, step) if len(rows)]
        if self.transplanting:
            parts.append(self._transplants(rng))
        whole = _Wide(*(torch.cat([getattr(p, name) for p in parts]) for name in _Wide.__annotations__))
        moving = torch.cat([whole.mask[:, None], whole.lesion], 1)
        hu, moved = augment(whole.hu, moving, self.size, self.augmentation, generator)
        return Batch(hu, moved[:, 0] > 0.5, moved[:, 1:], whole.labels, whole.located)

    def _rows(self, rng: np.random.Generator, step: int) -> list[Rows]:
        rows = []
        if self.mix.uniform:
            turn = in_turn(len(self.any_real), step * self.mix.uniform, self.mix.uniform, self.seed)
            rows.append(self.any_real[turn])
        if len(self.positive):
            rows.append(rng.choice(self.positive, self.mix.positives, p=self.weight))
        if len(self.negative):
            rows.append(rng.choice(self.negative, self.mix.negatives))
        half = self.mix.phantoms // 2
        if len(self.phantom_positive):
            rows.append(rng.choice(self.phantom_positive, self.mix.phantoms - half))
        if len(self.phantom_negative):
            rows.append(rng.choice(self.phantom_negative, half))
        return rows

    def _gathered(self, rows: Rows) -> _Wide:
        hu, mask, lesion = self.cuts.read(rows)
        return _Wide(
            hu=torch.from_numpy(hu).float(),
            mask=torch.from_numpy(mask).float(),
            lesion=torch.from_numpy(lesion).float() / 255,
            labels=torch.from_numpy(self.cuts.labels[rows].astype(np.float32)),
            located=torch.from_numpy(self.cuts.located[rows]),
        )

    def _transplants(self, rng: np.random.Generator) -> _Wide:
        """Real slices without hemorrhage that get the bleed of a slice at about the same level of another head."""
        hosts = rng.choice(self.negative, self.mix.transplants)
        host, donors = self._gathered(hosts), self._donors(rng, hosts)
        donor = self._gathered(donors)
        fit = _fitting(donor.mask, host.mask)
        lesion = _warped(donor.lesion, fit) * host.mask[:, None]
        blood = lesion.sum(1, keepdim=True).clamp(0, 1)
        soft = functional.avg_pool2d((blood * 2).clamp(0, 1), 3, 1, 1)
        room = ((host.hu > _ROOM_HU[0]) & (host.hu < _ROOM_HU[1])).float()
        alpha = soft * room
        density = torch.from_numpy(rng.uniform(0.75, 1.25, len(hosts)).astype(np.float32)).view(-1, 1, 1, 1)
        pasted = 35 + (_warped(donor.hu, fit) - 35) * density
        hu = host.hu * (1 - alpha) + alpha * pasted
        seen = (blood[:, 0] > 0.4).sum((1, 2)) > _SEEN_PIXELS
        labels = torch.where(seen[:, None], donor.labels, host.labels)
        return _Wide(
            hu=torch.where(seen.view(-1, 1, 1, 1), hu, host.hu),
            mask=host.mask,
            lesion=lesion * seen.view(-1, 1, 1, 1),
            labels=labels,
            located=torch.ones(len(hosts), dtype=torch.bool),
        )

    def _donors(self, rng: np.random.Generator, hosts: Rows) -> Rows:
        out = []
        for host in hosts:
            real = len(self.real_donors) and (
                not len(self.phantom_donors) or rng.random() < self.mix.real_donors
            )
            pool = rng.choice(self.real_donors if real else self.phantom_donors, _DONORS)
            out.append(pool[np.abs(self.cuts.area[pool] - self.cuts.area[host]).argmin()])
        return np.array(out, np.int64)


def in_turn(size: int, first: int, count: int, seed: int) -> Rows:
    """Some places of an endless row of passes over ``size`` things, each pass in an order of its own.

    Parameters
    ----------
    first, count
        Where in the row, and how many.

    Returns
    -------
    numpy.ndarray
        (count,) indices below ``size``.
    """
    numbers = np.arange(first, first + count)
    orders = {p: _order(size, seed, int(p)) for p in np.unique(numbers // size)}
    return np.array([orders[n // size][n % size] for n in numbers], np.int64)


@lru_cache(maxsize=4)
def _order(size: int, seed: int, number: int) -> Rows:
    return np.random.default_rng([seed, number, size]).permutation(size)


def _fitting(donor: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
    """Affine maps, (n, 2, 3), that bring the donor's intracranial box onto the host's."""
    theta = []
    for mask, target in zip(donor, host, strict=True):
        (from_y, from_x), (to_y, to_x) = _box(mask), _box(target)
        rows = []
        for (a_mid, a_half), (b_mid, b_half), axis in ((from_x, to_x, 0), (from_y, to_y, 1)):
            factor = a_half / b_half
            row = [0.0, 0.0, a_mid - factor * b_mid]
            row[axis] = factor
            rows.append(row)
        theta.append(rows)
    return torch.tensor(theta)


def _warped(planes: torch.Tensor, fit: torch.Tensor) -> torch.Tensor:
    grid = functional.affine_grid(fit, [len(planes), 1, *planes.shape[2:]], align_corners=False)
    return functional.grid_sample(planes, grid, align_corners=False)


def _box(mask: torch.Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """(middle, half size) of a mask's bounding box, vertically and horizontally, in grid_sample's -1 to 1."""
    out = []
    for axis in (1, 0):
        hit = torch.nonzero((mask > 0.5).any(axis)).flatten()
        if not len(hit):
            out.append((0.0, 1.0))
            continue
        low, high = float(hit[0]) / len(mask) * 2 - 1, float(hit[-1] + 1) / len(mask) * 2 - 1
        out.append(((low + high) / 2, (high - low) / 2))
    return out[0], out[1]


def collated(batch: Any) -> Any:
    """One item of the dataset is a batch already."""
    return batch[0]
