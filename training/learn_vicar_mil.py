"""How system A learns: slices by their labels, and small bags within a slice where it is known what they show.

Every part of a slice without hemorrhage is a bag without hemorrhage. Where a lesion is known, in phantoms say, the
parts of its slice are known too. Of a real slice with hemorrhage of which no more than that is known, nothing but
the label of the whole slice is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from ich_node.model.preprocess import channels
from ich_node.model.vicar_mil import BagOutput, VicarMil
from training.batches import Batch
from training.learner import StageLearner, weighted_log_loss

TILE = 8
"""Side of a small bag, positions (38 mm at 1.2 mm pixels)."""
_SEEN_MM2 = 17.0
"""Hemorrhage that makes a tile positive; a tile with less, but some, has no label."""


class VicarMilLearner(StageLearner):
    """Binary cross entropy of slices and of tiles."""

    network: VicarMil

    def make_network(self) -> VicarMil:
        """The network; of one that pools by the maximum the attention is never used, and so not trained."""
        network = VicarMil(self.recipe.network)
        if self.recipe.network.pooling == "max":
            for part in (network.attention_tanh, network.attention_gate, network.attention_weight):
                part.requires_grad_(False)
        return network

    def losses(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Of the slices, and of tiles where the recipe weighs them."""
        preprocessing = self.recipe.preprocessing
        x = channels(batch.hu[:, 0], preprocessing).contiguous(memory_format=torch.channels_last)
        out: BagOutput = self.network(x, batch.mask)
        found = {"slices": weighted_log_loss(out.logit[:, None], batch.labels[:, :1])}
        weight = self.recipe.loss.tiles
        if weight > 0:
            offset = int(torch.randint(TILE, ()))
            found["tiles"] = weight * tile_loss(out, batch, offset, preprocessing.pitch_mm)
        return found


def tile_loss(out: BagOutput, batch: Batch, offset: int, pitch_mm: float) -> torch.Tensor:
    """Binary cross entropy over tiles of the slices whose lesions are known.

    Parameters
    ----------
    offset
        Of the tiling, positions.
    pitch_mm
        Of the input's pixels.
    """
    lesion = batch.lesion.sum(1).clamp(0, 1)  # (batch, size, size)
    stride = lesion.shape[-1] // out.energy.shape[-1]
    cells = functional.avg_pool2d(lesion[:, None], stride)[:, 0] * (stride * pitch_mm) ** 2
    energy, positions, blood = (_tiles(t, offset) for t in (out.energy, out.position_logits, cells))
    some = torch.isfinite(energy).any(-1) & batch.located[:, None]  # (batch, tiles)
    area = blood.sum(-1)
    use = some & ((area >= _SEEN_MM2) | (area < 1))
    if not use.any():
        return out.logit.sum() * 0
    energy, positions, truth = energy[use], positions[use], (area[use] >= _SEEN_MM2).float()
    logit = (energy.softmax(-1) * positions).sum(-1)
    # positive tiles are a few per cent of all
    return functional.binary_cross_entropy_with_logits(logit, truth, weight=1 + 3 * truth)


def _tiles(x: torch.Tensor, offset: int) -> torch.Tensor:
    """(batch, h, w) to (batch, tiles, TILE * TILE), without what the tiling cuts off at the border."""
    count = (min(x.shape[1:]) - offset) // TILE
    cut = x[:, offset : offset + count * TILE, offset : offset + count * TILE]
    parts = cut.unfold(1, TILE, TILE).unfold(2, TILE, TILE)
    return parts.reshape(len(x), count * count, TILE * TILE)


LEARNER = VicarMilLearner
