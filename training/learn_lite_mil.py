"""How the package's own system learns: slices by their labels, positions by where the hemorrhage is known to be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from ich_node.findings import IchSubtype
from ich_node.model.efficientnet_lite import load_imagenet_pyramid
from ich_node.model.lite_mil import LiteMil, LiteMilOutput, network_input
from training.batches import Batch
from training.learner import StageLearner, weighted_log_loss
from training.scan import CLASSES

_KIND = {
    IchSubtype.INTRAPARENCHYMAL: 0,
    IchSubtype.EPIDURAL: 1,
    IchSubtype.SUBARACHNOID: 1,
    IchSubtype.SUBDURAL: 1,
    IchSubtype.INTRAVENTRICULAR: 2,
}
_SUBTYPE_WEIGHT = 0.2
"""Of each subtype's positions beside those of *any*: a teacher's kinds are less sure than its blood."""


class LiteMilLearner(StageLearner):
    """Loss over slices and over positions."""

    network: LiteMil

    def begin(self) -> None:
        """Start from ImageNet where the recipe says so."""
        if self.recipe.start == "imagenet":
            load_imagenet_pyramid(self.network.encoder)

    def losses(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Weighted log loss of the slices, and cross entropy of the positions."""
        x = network_input(batch.hu, self.recipe.preprocessing).contiguous(memory_format=torch.channels_last)
        out: LiteMilOutput = self.network(x, batch.mask)
        loss = self.recipe.loss
        return {
            "slices": weighted_log_loss(out.logits, batch.labels),
            "positions": loss.positions * position_loss(out.positions, batch, loss.positive_position),
        }


def position_loss(positions: torch.Tensor, batch: Batch, positive: float) -> torch.Tensor:
    """Cross entropy of positions whose truth is known.

    Parameters
    ----------
    positions
        (batch, classes, h, w) logits.
    positive
        Weight of a position with hemorrhage.
    """
    size = (positions.shape[-2], positions.shape[-1])
    blood = functional.adaptive_avg_pool2d(batch.lesion, size)
    # a position that blood fills by half is full: thin blood is a third of a position wide
    kinds = (blood * 2).clamp(0, 1)  # (batch, kinds, h, w)
    every = kinds.amax(1)
    inside = functional.adaptive_max_pool2d(batch.mask[:, None].float(), size)[:, 0]
    truth, known = [every], [torch.ones_like(batch.located)]
    single = (batch.labels[:, 1:] > 0).sum(1) == 1
    for number, subtype in enumerate(CLASSES[1:], start=1):
        present, absent = batch.labels[:, number] > 0, batch.labels[:, number] == 0
        others = [c for c in CLASSES[1:] if c is not subtype and _KIND[c] == _KIND[subtype]]
        alone = ~torch.stack(
            [batch.labels[:, CLASSES.index(c)] > 0 for c in others] or [torch.zeros_like(present)]
        ).any(0)
        seen = torch.where(single[:, None, None], every, kinds[:, _KIND[subtype]])
        truth.append(seen * present[:, None, None])
        known.append(absent | (present & (alone | single)))
    target = torch.stack(truth, 1)
    use = torch.stack(known, 1) & batch.located[:, None]
    share = positions.new_tensor([1.0, *[_SUBTYPE_WEIGHT] * (len(CLASSES) - 1)])
    weight = (use * share).view(*use.shape, 1, 1) * inside[:, None]
    weight = weight * (1 + (positive - 1) * target)
    each = functional.binary_cross_entropy_with_logits(positions, target, reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1)


LEARNER = LiteMilLearner
