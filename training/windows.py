"""Batches of neighbouring slices, for a system that learns to read them together."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from training.augment import AugmentConfig, augment
from training.batches import Batch, Batches, Mix, Rows
from training.cuts import Cuts


class WindowBatches(Batches):
    """Step number to windows of neighbouring slices, around slices that are drawn as single ones are.

    Parameters
    ----------
    mix
        Counts of slices. Each kind has as many windows as hold at least so many; a window may reach beyond its kind.
    length
        Slices of a window; a shorter scan is one.

    Raises
    ------
    ValueError
        The mix has transplants: a bleed set into one slice is in none beside it.
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
        length: int,
    ) -> None:
        if mix.transplants:
            raise ValueError(
                "windows of neighbouring slices cannot hold transplants; set mix.transplants to 0"
            )
        counts = {
            kind: math.ceil(getattr(mix, kind) / length)
            for kind in ("positives", "negatives", "phantoms", "uniform")
        }
        super().__init__(cuts, trained, size, replace(mix, **counts), augmentation, seed=seed, steps=steps)
        self.length = length

    def __getitem__(self, step: int) -> Batch:
        """Draw one step's windows."""
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        middles = np.concatenate(self._rows(rng, step))
        parts = [self._changed(self._around(int(middle), rng), generator) for middle in middles]
        hu, mask, lesion, labels, located = (
            torch.cat(column) for column in zip(*(part[:5] for part in parts), strict=True)
        )
        return Batch(hu, mask, lesion, labels, located, tuple(len(part.hu) for part in parts))

    def _around(self, middle: int, rng: np.random.Generator) -> Rows:
        """Neighbours of a slice, which may be anywhere among them."""
        rows = np.flatnonzero(self.cuts.scan == self.cuts.scan[middle])
        last = max(0, len(rows) - self.length)
        first = int(np.clip(middle - rows[0] - rng.integers(self.length), 0, last))
        return rows[first : first + self.length]

    def _changed(self, rows: Rows, generator: torch.Generator) -> Batch:
        """A window, all its slices moved alike."""
        wide = self._gathered(rows)
        count, planes = len(rows), 1 + wide.lesion.shape[1]
        moving = torch.cat([wide.mask[:, None], wide.lesion], 1)
        hu, moved = augment(
            wide.hu.flatten(0, 1)[None],
            moving.flatten(0, 1)[None],
            self.size,
            self.augmentation,
            generator,
        )
        hu = hu.view(count, -1, self.size, self.size)
        moved = moved.view(count, planes, self.size, self.size)
        return Batch(hu, moved[:, 0] > 0.5, moved[:, 1:], wide.labels, wide.located)
