"""How system C learns: windows of neighbouring slices go through the CNN together, and each through the LSTM alone.

The auxiliary heads learn where the lesion is known: in phantoms, from outlines, or from a teacher. Elsewhere they
have no loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from ich_node.model.radnet import LossWeights, RadNetOutput, RecurrentAttentionDenseNet, radnet_loss, windowed
from training.batches import Batch
from training.cuts import Cuts
from training.learner import StageLearner, weighted_log_loss
from training.windows import WindowBatches

_HEADS = 3


class RadNetLearner(StageLearner):
    """Binary cross entropy of slices and of the heads' pixels."""

    network: RecurrentAttentionDenseNet

    def batches(self, cuts: Cuts, trained: npt.NDArray[np.bool_], seed: int) -> WindowBatches:
        """Windows of neighbouring slices, with an LSTM and without, so that both see the same."""
        return WindowBatches(
            cuts,
            trained,
            self.recipe.preprocessing.size,
            self.recipe.mix,
            self.recipe.augment,
            seed=seed,
            steps=self.steps(cuts, trained),
            length=self.recipe.sequence.window,
        )

    def losses(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Of the slices, and of the heads where there are some."""
        x = windowed(batch.hu[:, 0], self.recipe.preprocessing)  # (slices, 1, size, size)
        features, heads = self.network.features(x)
        logits = torch.cat(
            [self.network.sequence(window) for window in torch.split(features, list(batch.lengths))]
        )
        found = {"slices": weighted_log_loss(logits[:, None], batch.labels[:, :1])}
        if heads:
            found["auxiliary"] = self._auxiliary(RadNetOutput(logits, heads), batch)
        return found

    def _auxiliary(self, out: RadNetOutput, batch: Batch) -> torch.Tensor:
        loss = self.recipe.loss
        weights = LossWeights(
            label=0.0,
            auxiliary=(loss.auxiliary / _HEADS,) * _HEADS,
            positive_pixel=loss.positive_position,
        )
        return radnet_loss(
            out,
            batch.labels[:, 0].clamp(min=0),
            batch.lesion.sum(1).clamp(0, 1),
            weights,
            pixel_weights=batch.located.float()[:, None, None],
        )


LEARNER = RadNetLearner
