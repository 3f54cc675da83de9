"""What a system adds to the engine: its network, its loss on a batch, and what has to be done before and after."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from training.batches import Batch, Batches
from training.cuts import Cuts
from training.recipe import Recipe
from training.scan import CLASSES


class Learner(ABC):
    """How one system learns.

    Parameters
    ----------
    recipe
        Of the same system.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.network: nn.Module = recipe.system.network(recipe.network)

    def begin(self) -> None:  # noqa: B027 - most systems start from random weights
        """Bring the network to where training starts, ImageNet say; not called when a run is taken up again."""

    def batches(self, cuts: Cuts, trained: npt.NDArray[np.bool_], seed: int) -> Batches:
        """What the steps see; a system that reads neighbouring slices together draws others."""
        schedule = self.recipe.schedule
        return Batches(
            cuts,
            trained,
            self.recipe.preprocessing.size,
            self.recipe.mix,
            self.recipe.augment,
            seed=seed,
            steps=schedule.epochs * schedule.steps_per_epoch,
        )

    @abstractmethod
    def losses(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Parts of the loss of one batch, weighted; their sum is what is made smaller."""


def weighted_log_loss(
    logits: torch.Tensor, labels: torch.Tensor, positive: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """Weighted multi-label log loss of the RSNA challenge: ``any`` counts twice.

    Parameters
    ----------
    logits, labels
        (n, 6); a label of -1 counts for nothing.
    positive
        Weight of a class's positives, one for all or (6,).
    """
    known = (labels >= 0).float()
    weight = logits.new_tensor([2.0, *[1.0] * (len(CLASSES) - 1)])[: logits.shape[1]]
    each = functional.binary_cross_entropy_with_logits(
        logits,
        labels.clamp(min=0),
        reduction="none",
        pos_weight=torch.as_tensor(positive, dtype=logits.dtype, device=logits.device),
    )
    return (each * weight * known).sum() / (weight * known).sum().clamp(min=1)
