"""How system B learns: each slice by itself, all classes at once, and its windows with it unless they are fixed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ich_node.model.he_fusion import WINDOWS_HU, FusionNetwork, FusionOutput
from training.batches import Batch
from training.learner import StageLearner, weighted_log_loss


class HeFusionLearner(StageLearner):
    """Weighted log loss of the slices."""

    network: FusionNetwork

    def begin(self) -> None:
        """Set the windows that the recipe begins with.

        Raises
        ------
        ValueError
            Their number is not that of the network's channels, or weights of ImageNet are wanted, which no package
            brings for VGG-16.
        """
        if self.recipe.start != "random":
            raise ValueError(
                f"recipe {self.recipe.name}: system B starts from random weights; no package has others"
            )
        windows = self.recipe.windows.hu
        if windows and len(windows) != len(WINDOWS_HU):
            raise ValueError(
                f"recipe {self.recipe.name}: {len(windows)} windows; the network has {len(WINDOWS_HU)} channels"
            )
        self.network.window.set_windows(windows or WINDOWS_HU)

    def losses(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Of the slices."""
        x = batch.hu.contiguous(memory_format=torch.channels_last)  # (batch, 1, size, size), HU
        out: FusionOutput = self.network(x)
        return {"slices": weighted_log_loss(out.logits, batch.labels)}


LEARNER = HeFusionLearner
