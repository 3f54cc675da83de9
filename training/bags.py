"""Small bags: what is known of the parts of a slice also trains the network, and still by bag labels alone.

Every part of a slice without hemorrhage is a bag without hemorrhage. In phantoms the parts of a slice with
one are known too. Of a real slice with hemorrhage nothing but the label of the whole slice is known, and
nothing else used.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from ich_node.model.vicar_mil import BagOutput

TILE = 8
"""Side of a small bag, positions (8 x 4.8 mm)."""
_SEEN_PIXELS = 12.0
"""Lesion pixels (1.44 mm2 each) that make a tile positive; a tile with fewer, but some, has no label."""


def tile_loss(out: BagOutput, lesion: torch.Tensor, located: torch.Tensor, offset: int) -> torch.Tensor:
    """Binary cross entropy over tiles of the slices whose lesions are known.

    Parameters
    ----------
    lesion
        (batch, size, size) float32, 0 to 1; all zero in slices without hemorrhage.
    located
        (batch,) bool: the lesion mask is the truth.
    offset
        Of the tiling, positions.
    """
    stride = lesion.shape[-1] // out.energy.shape[-1]
    cells = functional.avg_pool2d(lesion[:, None], stride)[:, 0] * stride**2
    energy, positions, pixels = (_tiles(t, offset) for t in (out.energy, out.position_logits, cells))
    some = torch.isfinite(energy).any(-1) & located[:, None]  # (batch, tiles)
    area = pixels.sum(-1)
    use = some & ((area >= _SEEN_PIXELS) | (area < 1))
    if not use.any():
        return out.logit.sum() * 0
    energy, positions, truth = energy[use], positions[use], (area[use] >= _SEEN_PIXELS).float()
    logit = (energy.softmax(-1) * positions).sum(-1)
    # positive tiles are a few per cent of all
    return functional.binary_cross_entropy_with_logits(logit, truth, weight=1 + 3 * truth)


def _tiles(x: torch.Tensor, offset: int) -> torch.Tensor:
    """(batch, h, w) to (batch, tiles, TILE * TILE), without what the tiling cuts off at the border."""
    count = (min(x.shape[1:]) - offset) // TILE
    cut = x[:, offset : offset + count * TILE, offset : offset + count * TILE]
    parts = cut.unfold(1, TILE, TILE).unfold(2, TILE, TILE)
    return parts.reshape(len(x), count * count, TILE * TILE)
