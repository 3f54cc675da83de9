"""The network of the checkpoints that Vicar et al. published, as their code runs it.

It differs from their paper, and from `ich_node.model.vicar_mil`, which follows the paper: the features are an eighth
of the input's size, and the first residual block of each level is dead (its output is overwritten, so it is neither
run nor loaded here). See "Published checkpoints" in ``docs/models.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from skimage.transform import resize
from torch import nn
from torch.nn import functional

from ich_node.findings import IchSubtype, Localization
from ich_node.model.execution import finite
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.preprocess import FloatArray, on_source_grid, whole_image
from ich_node.model.system import ClassMaps, Head, Scores, Spacing, System

WIDTHS = (12, 24, 36)
"""Channels of the three levels."""
LEVELS: tuple[tuple[int | None, tuple[int, int, int]], ...] = (
    (None, (3, 4, 5)),
    (6, (10, 11, 12)),
    (13, (17, 18, 19)),
)
"""Numbers in the published ``layers``: the one that widens a level's input, and its live residual block."""
DEAD_LAYERS = (0, 1, 2, 7, 8, 9, 14, 15, 16)
"""The others, whose output the published code throws away."""


@dataclass(frozen=True, kw_only=True)
class VicarPublishedConfig:
    """Shape of the network: two were published."""

    pooling: Literal["attention", "max"] = "attention"


@dataclass(frozen=True, kw_only=True)
class PublishedInput:
    """How a slice becomes network input."""

    size: int = 256
    """Rows and columns of the network's input: the whole image is brought to it."""
    smoothed: bool = True
    """Whether a Gaussian of (reduction - 1) / 2 pixels goes before, as in the code that gave the published results."""


@dataclass(frozen=True, kw_only=True)
class PublishedDetector:
    """Parameters of the detector in the units of the published maps; the defaults are those of attention.

    For max pooling the published ones are h 0.024, T 0.76 and d 10; their maps are logits, so both h and T are
    logits.
    """

    height: float = 0.0038
    """h of the h-maxima transform, in attention weight or logit."""
    threshold: float = 0.024
    """T: least attention weight, or logit, of a point."""
    distance_pixels: float = 58.0
    """d, in pixels of the network's input: the published maps and boxes were brought to that grid."""
    most: int = 50
    """Points per slice at most, the highest ones; the paper has no limit, this one only bounds the work."""


@dataclass(frozen=True)
class PublishedOutput:
    """What the network says of a batch of slices."""

    logit: torch.Tensor
    """(batch,) logit that the slice shows hemorrhage."""
    evidence: torch.Tensor
    """(batch, size/8, size/8): attention weights that sum to 1 over a slice, or each position's logit."""


class PublishedUnit(nn.Module):
    """3x3 convolution with bias, batch normalization, ReLU: (batch, in, h, w) to (batch, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the three."""
        return functional.relu(self.bn(self.conv(x)))


class PublishedAttention(nn.Module):
    """Gated attention (eq. 3 of the paper, after Ilse et al. 2018) and the classifier of the weighted sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_tanh = nn.Conv2d(width, width, 1)  # V of eq. 3
        self.conv_sigm = nn.Conv2d(width, width, 1)  # U of eq. 3
        self.conv_w = nn.Conv2d(width, 1, 1)  # w of eq. 3
        self.conv_final = nn.Conv2d(width, 1, 1)

    def forward(self, h: torch.Tensor) -> PublishedOutput:
        """(batch, 36, h, w) features to the slice's logit and the attention of each position."""
        gated = torch.tanh(self.conv_tanh(h)) * torch.sigmoid(self.conv_sigm(h))  # (batch, 36, h, w)
        energy = self.conv_w(gated)  # (batch, 1, h, w)
        attention = energy.flatten(1).softmax(1).view_as(energy)  # (batch, 1, h, w), sums to 1 over a slice
        pooled = (attention * h).sum((2, 3), keepdim=True)  # (batch, 36, 1, 1)
        return PublishedOutput(self.conv_final(pooled).flatten(), attention.squeeze(1))


class VicarPublished(nn.Module):
    """The network; its tensors have the published names, without those of the dead layers."""

    def __init__(self, config: VicarPublishedConfig) -> None:
        super().__init__()
        self.init_conv = PublishedUnit(3, WIDTHS[0])
        self.layers = nn.ModuleDict()
        for before, width, (widen, block) in zip((0, *WIDTHS), WIDTHS, LEVELS, strict=False):
            if widen is not None:
                self.layers[str(widen)] = PublishedUnit(before, width)
            self.layers.update({str(number): PublishedUnit(width, width) for number in block})
        if config.pooling == "attention":
            self.attention = PublishedAttention(WIDTHS[-1])
        else:
            self.conv_final = nn.Conv2d(WIDTHS[-1], 1, 3, padding=1)
        self.pooling = config.pooling

    def forward(self, x: torch.Tensor) -> PublishedOutput:
        """Classify slices: (batch, 3, size, size) from `published_channels`."""
        y = self.init_conv(x)  # (batch, 12, size, size)
        for widen, block in LEVELS:
            if widen is not None:
                y = self.layers[str(widen)](x)  # (batch, 24, size/2, size/2), (batch, 36, size/4, size/4)
            x = y
            for number in block:
                x = self.layers[str(number)](x)
            x = functional.max_pool2d(x + y, 2)  # (batch, 12, size/2, ..), (.., 24, size/4), (.., 36, size/8)
        if self.pooling == "attention":
            attended: PublishedOutput = self.attention(x)
            return attended
        logits = self.conv_final(x).squeeze(1)  # (batch, size/8, size/8)
        return PublishedOutput(logits.flatten(1).amax(1), logits)


def published_slice(image: FloatArray, config: PublishedInput) -> FloatArray:
    """Bring a whole slice to the network's grid, by the nearest pixel as the published code does.

    Parameters
    ----------
    image
        (rows, columns) float32, HU.

    Returns
    -------
    numpy.ndarray
        (size, size) float32, HU + 1024; values below -500 are padding and become 0, those above what a 12-bit image
        holds are metal and become 4095.
    """
    raw = image + np.float32(1024)
    # before the slice is smoothed, not after it as published: padding must not bleed into the skin; and the upper
    # bound is ours
    raw = np.where(raw < -500, np.float32(0), np.minimum(raw, np.float32(4095)))
    shape = (config.size, config.size)
    small = resize(raw, shape, order=0, anti_aliasing=config.smoothed)  # type: ignore[no-untyped-call]
    return np.asarray(small, np.float32)


def published_channels(raw: torch.Tensor) -> torch.Tensor:
    """Make the three channels: the slice, brain window (L 40 W 80), subdural window (L 50 W 130).

    Parameters
    ----------
    raw
        (batch, size, size) from `published_slice`, HU + 1024.

    Returns
    -------
    torch.Tensor
        (batch, 3, size, size); windows are 0 to 4096, and all channels are then (v - 400) / 1000.
    """
    brain = ((raw - 1024) / 80 * 4096).clamp(0, 4096)
    subdural = ((raw - 1009) / 130 * 4096).clamp(0, 4096)
    return (torch.stack([raw, brain, subdural], dim=1) - 400) / 1000


class VicarPublishedSystem(System):
    """The published checkpoints in the node."""

    config_type = VicarPublishedConfig
    preprocessing_type = PublishedInput
    localization_type = PublishedDetector

    @staticmethod
    def network(config: VicarPublishedConfig) -> VicarPublished:
        """Make a network with random weights."""
        return VicarPublished(config)

    @property
    def classes(self) -> tuple[IchSubtype, ...]:
        """Hemorrhage or not: the checkpoints know no subtypes."""
        return (IchSubtype.ANY,)

    def score(self, head: Head) -> Scores:
        """Score every slice that shows intracranial space."""

        def run(indices: Sequence[int]) -> list[tuple[float, FloatArray]]:
            raw = np.stack([published_slice(head.hu[index], self.preprocessing) for index in indices])
            logits, evidence = self._forward(published_channels(self.execution.tensor(raw)))
            return [
                (float(logit), each.astype(np.float32)) for logit, each in zip(logits, evidence, strict=True)
            ]

        logits, kept = np.full((len(head.hu), 1), -np.inf), {}
        results = self.execution.in_batches(head.inside, run)
        for index, (logit, evidence) in zip(head.inside, results, strict=True):
            logits[index, 0], kept[index] = logit, evidence
        return Scores(logits=logits, kept=kept)

    def maps(self, head: Head, index: int, scores: Scores) -> ClassMaps:
        """Give the published map, brought to the source pixels and then to 0 to 1.

        Max pooling's positions are logits, shown as their sigmoid. Attention weights w sum to 1 over a slice, so that
        all are tiny; they are shown as w / (w + T), which keeps their order and is 0.5 where a point begins.
        """
        shape = (head.hu.shape[1], head.hu.shape[2])
        size = self.preprocessing.size
        evidence = on_source_grid(scores.kept[index], whole_image(shape, size), size, shape)
        return {IchSubtype.ANY: self._shown(evidence)}

    def places(self, maps: ClassMaps, spacing_mm: Spacing) -> tuple[Localization, ...]:
        """Points by the paper's detector, which looks at the published values, not at those that are shown."""
        shown = maps[IchSubtype.ANY]
        source_pixels = (
            np.sqrt(shown.shape[0] * shown.shape[1]) / self.preprocessing.size
        )  # per network pixel
        pitch_mm = source_pixels * np.sqrt(spacing_mm[1] * spacing_mm[2])
        detector = DetectorConfig(
            height=self.localization.height,
            threshold=self.localization.threshold,
            distance_mm=float(self.localization.distance_pixels * pitch_mm),
            most=self.localization.most,
        )
        points = detect(self._published(shown), spacing_mm[1:], detector)
        return tuple(replace(point, score=float(shown[_pixel(point)])) for point in points)

    def _forward(self, x: torch.Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean over the networks: (batch,) logits, (batch, size/8, size/8) evidence."""
        outputs = [network(x) for network in self.networks]
        logits = torch.stack([out.logit for out in outputs]).mean(0)
        return finite(logits), finite(torch.stack([out.evidence for out in outputs]).mean(0))

    def _shown(self, evidence: FloatArray) -> FloatArray:
        if self.config.pooling == "attention":
            return np.asarray(evidence / (evidence + self._half()), np.float32)
        return np.asarray(1 / (1 + np.exp(-np.clip(evidence, -30, 30))), np.float32)

    def _half(self) -> float:
        """Attention weight that is shown as 0.5: T, unless the bundle has it at 0."""
        return max(float(self.localization.threshold), 1e-6)

    def _published(self, shown: FloatArray) -> FloatArray:
        """Undo `_shown`; who called has set to 0 what lies outside the intracranial space."""
        inner = np.clip(shown.astype(np.float64), 1e-7, 1 - 1e-7)
        odds = inner / (1 - inner)
        if self.config.pooling == "attention":
            return np.asarray(self._half() * odds, np.float32)
        return np.asarray(np.log(odds), np.float32)


def _pixel(point: Localization) -> tuple[int, int]:
    """(row, column) of the pixel that a point is in."""
    x, y = point.coordinates
    return int(y), int(x)


SYSTEM = VicarPublishedSystem
