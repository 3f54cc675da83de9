"""System A: weakly supervised localization of hemorrhage by multiple instance learning (Vicar et al.).

A slice is a bag of positions. A small residual network describes each position; gated attention (their eq.
3, after Ilse et al. 2018) or a global maximum decides from the bag, so labels of whole slices suffice for a
map. What the paper says, what the published code does, and what differs here and why, is in
``docs/models.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype, Localization
from ich_node.model.bundle_section import Count, Share
from ich_node.model.execution import finite
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.preprocess import (
    FloatArray,
    NetworkSlice,
    PreprocessConfig,
    SliceFrame,
    channels,
    network_slice,
    on_source_grid,
)
from ich_node.model.system import ClassMaps, Head, Mirror, Scores, Spacing, System, passes

ARCHITECTURE = "vicar-mil"


@dataclass(frozen=True, kw_only=True)
class VicarMilConfig:
    """Shape of the network.

    Raises
    ------
    ConfigurationError
        It has no level.
    """

    pooling: Literal["attention", "max"] = "attention"
    in_channels: Count = 3
    widths: tuple[Count, ...] = (12, 24, 36)
    """Channels of the three levels."""
    attention_width: Count = 36
    dropout: Share = 0.0
    """Of whole feature channels before the bag is pooled; used while training only."""
    mirror: Mirror = "each"

    def __post_init__(self) -> None:
        if not self.widths:
            raise ConfigurationError("widths is empty; the network needs one level at least")


@dataclass(frozen=True)
class BagOutput:
    """What the network says of a batch of slices."""

    logit: torch.Tensor
    """(batch,) logit that the slice shows hemorrhage."""
    position_logits: torch.Tensor
    """(batch, h, w) logit of each position by itself."""
    energy: torch.Tensor
    """(batch, h, w) by which positions compete within their bag, -inf outside of it."""
    attention: torch.Tensor
    """(batch, h, w) weights that sum to 1 over the positions of a slice: the softmax of the energy."""


class ConvUnit(nn.Sequential):
    """3x3 convolution, batch normalization, ReLU: (batch, in, h, w) to (batch, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Three convolutions beside the identity, shape unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvUnit(channels, channels) for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, h, w) to the same."""
        out: torch.Tensor = self.convs(x) + x
        return out


class VicarMil(nn.Module):
    """The network. 1 + 6 convolutions a level, plus one where the width changes: 21 in three levels."""

    def __init__(self, config: VicarMilConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = ConvUnit(config.in_channels, widths[0])
        levels = []
        for before, width in zip((widths[0], *widths), widths, strict=False):
            widen = [ConvUnit(before, width)] if before != width else []
            levels.append(nn.Sequential(*widen, ResidualBlock(width), ResidualBlock(width)))
        self.levels = nn.ModuleList(levels)
        self.dropout = nn.Dropout2d(config.dropout)
        self.attention_tanh = nn.Conv2d(widths[-1], config.attention_width, 1)  # V of eq. 3
        self.attention_gate = nn.Conv2d(widths[-1], config.attention_width, 1)  # U of eq. 3
        self.attention_weight = nn.Conv2d(config.attention_width, 1, 1)  # w of eq. 3
        self.classifier = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> BagOutput:
        """Classify slices.

        Parameters
        ----------
        x
            (batch, 3, size, size) from `ich_node.model.preprocess.channels`.
        mask
            (batch, size, size) bool: positions outside are in no bag. A slice whose mask is empty uses all.
        """
        h = self.stem(x)  # (batch, 12, size, size)
        for depth, level in enumerate(self.levels):
            if depth:
                h = functional.max_pool2d(h, 2)
            h = level(h)  # (batch, 12, size, size), (batch, 24, size/2, ..), (batch, 36, size/4, ..)
        inside = self._bag(mask)  # (batch, size/4, size/4)
        h = self.dropout(h)
        positions = self.classifier(h).squeeze(1).float()  # (batch, size/4, size/4)
        if self.config.pooling == "max":
            energy = positions.masked_fill(~inside, -torch.inf)
            flat = energy.flatten(1)
            best = functional.one_hot(flat.argmax(1), flat.shape[1]).float().view_as(positions)
            return BagOutput(flat.amax(1), positions, energy, best)
        gated = torch.tanh(self.attention_tanh(h)) * torch.sigmoid(self.attention_gate(h))
        energy = self.attention_weight(gated).squeeze(1).float().masked_fill(~inside, -torch.inf)
        attention = energy.flatten(1).softmax(1).view_as(energy)  # sums to 1 over a slice's positions
        # the classifier is linear: classifying the weighted sum is the weighted sum of the positions' logits
        return BagOutput((attention * positions).sum((1, 2)), positions, energy, attention)

    def _bag(self, mask: torch.Tensor) -> torch.Tensor:
        stride = 2 ** (len(self.levels) - 1)
        inside = functional.max_pool2d(mask[:, None].float(), stride).squeeze(1) > 0
        empty = ~inside.flatten(1).any(1)
        return inside | empty[:, None, None]


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """What is kept of a slice for its map."""

    places: FloatArray
    """(h, w) float32, 0 to 1: each position's own calibrated probability, on the network's output grid."""
    frame: SliceFrame


class VicarMilSystem(System):
    """System A in the node: an ensemble, on every slice and on its mirror image."""

    config_type = VicarMilConfig
    preprocessing_type = PreprocessConfig
    localization_type = DetectorConfig

    @staticmethod
    def network(config: VicarMilConfig) -> VicarMil:
        """Make a network with random weights."""
        return VicarMil(config)

    @property
    def classes(self) -> tuple[IchSubtype, ...]:
        """Labels of whole slices, hemorrhage or not: nothing is known of subtypes."""
        return (IchSubtype.ANY,)

    def score(self, head: Head) -> Scores:
        """Score every slice that shows intracranial space."""

        def run(indices: Sequence[int]) -> list[tuple[float, _Evidence]]:
            cuts = [self._cut(head, index) for index in indices]
            logits, places = self._forward(cuts)
            return [
                (float(logit), _Evidence(places=place.astype(np.float32), frame=cut.frame))
                for logit, place, cut in zip(logits, places, cuts, strict=True)
            ]

        logits, kept = np.full((len(head.hu), 1), -np.inf), {}
        for index, (logit, evidence) in zip(
            head.inside, self.execution.in_batches(head.inside, run), strict=True
        ):
            logits[index, 0], kept[index] = logit, evidence
        return Scores(logits=logits, kept=kept)

    def maps(self, head: Head, index: int, scores: Scores) -> ClassMaps:
        """Each position's own probability.

        Attention says which positions decide the slice, and on phantoms it points beside the bleed more often.
        """
        evidence: _Evidence = scores.kept[index]
        size, shape = self.preprocessing.size, (head.hu.shape[1], head.hu.shape[2])
        return {IchSubtype.ANY: on_source_grid(evidence.places, evidence.frame, size, shape)}

    def places(self, maps: ClassMaps, spacing_mm: Spacing) -> tuple[Localization, ...]:
        """Points by the paper's detector."""
        return detect(maps[IchSubtype.ANY], spacing_mm[1:], self.localization)

    def _cut(self, head: Head, index: int) -> NetworkSlice:
        return network_slice(head.hu[index], head.mask, index, head.spacing_mm, self.preprocessing)

    def _forward(self, cuts: list[NetworkSlice]) -> tuple[np.ndarray, np.ndarray]:
        """Mean over networks, and over the slice and its mirror image: (batch,) logits, (batch, h, w) evidence."""
        hu = self.execution.tensor(np.stack([c.hu for c in cuts]))
        mask = self.execution.tensor(np.stack([c.mask for c in cuts]))
        x = channels(hu, self.preprocessing).contiguous(memory_format=torch.channels_last)
        scale = (self.decision.class_scale or (self.decision.scale,))[0]
        offset = (self.decision.class_offset or (self.decision.offset,))[0]
        logits, evidence = [], []
        for network, mirrored in passes(self.networks, self.config.mirror):
            out = network(x.flip(-1), mask.flip(-1)) if mirrored else network(x, mask)
            places = torch.sigmoid(scale * out.position_logits + offset)
            logits.append(out.logit)
            evidence.append(places.flip(-1) if mirrored else places)
        return finite(torch.stack(logits).mean(0)), finite(torch.stack(evidence).mean(0))


SYSTEM = VicarMilSystem
