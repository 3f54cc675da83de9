"""What a system adds to the engine: its network, its loss on a batch, and what has to be done before and after."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from ich_node.model.execution import channels_last
from training.batches import Batches
from training.cuts import Cuts
from training.engine import fit
from training.recipe import Recipe
from training.scan import CLASSES, UNKNOWN


class Learner(ABC):
    """How one system learns.

    Parameters
    ----------
    recipe
        Of the same system.
    """

    base: Path | None = None
    """Folder of the same fold of the run that ``recipe.base`` names."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.network: nn.Module = self.make_network()

    def make_network(self) -> nn.Module:
        """The network with random weights."""
        network: nn.Module = self.recipe.system.network(self.recipe.network)
        return network

    def renew(self, seed: int) -> None:
        """Make the network anew: its random weights follow from the seed alone."""
        torch.manual_seed(seed)
        self.network = self.make_network()
        channels_last(self.network)

    @abstractmethod
    def train(
        self, cuts: Cuts, trained: npt.NDArray[np.bool_], out: Path, *, seed: int, **engine: Any
    ) -> nn.Module:
        """Train the network of one fold, or go on with it, and give it back in evaluation mode.

        Parameters
        ----------
        trained, out, seed, engine
            As `training.engine.fit` has them.
        """


class StageLearner(Learner):
    """What learns by one loss from first to last: a whole system, or one stage of a system that has several."""

    def train(
        self, cuts: Cuts, trained: npt.NDArray[np.bool_], out: Path, *, seed: int, **engine: Any
    ) -> nn.Module:
        """Train the network of one fold under the engine."""
        self.renew(seed)
        return fit(self, cuts, trained, out, seed=seed, **engine)

    def begin(self) -> None:
        """Bring the network to where training starts, ImageNet say; not called when a run is taken up again."""

    def batches(self, cuts: Cuts, trained: npt.NDArray[np.bool_], seed: int) -> torch.utils.data.Dataset[Any]:
        """What the steps see, as many as there are; a system that reads slices together draws others."""
        return Batches(
            cuts,
            trained,
            self.recipe.preprocessing.size,
            self.recipe.mix,
            self.recipe.augment,
            seed=seed,
            steps=self.steps(cuts, trained),
        )

    def steps(self, cuts: Cuts, trained: npt.NDArray[np.bool_]) -> int:
        """How many batches the epochs have.

        Raises
        ------
        ValueError
            An epoch is to show every real slice, and the batches have none.
        """
        schedule, mix = self.recipe.schedule, self.recipe.mix
        if schedule.epoch == "steps":
            return schedule.epochs * schedule.steps_per_epoch
        shown = mix.uniform + mix.positives + mix.negatives
        if not shown:
            raise ValueError(f"recipe {self.recipe.name}: an epoch of slices needs real slices in its mix")
        known = (cuts.labels != UNKNOWN).any(axis=1)
        real = int((trained[cuts.scan] & ~cuts.synthetic & known).sum())
        return schedule.epochs * max(1, math.ceil(real / shown))

    @abstractmethod
    def losses(self, batch: Any) -> Mapping[str, torch.Tensor]:
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
