"""The package's own system: EfficientNet-Lite0 from ImageNet, a feature pyramid and multiple-instance pooling.

Of the four published systems it takes what helps when labelled patients are few: windows as channels and
pretrained weights (D), feature maps of several scales (B), a slice as a bag of positions (A), and a look at the
neighbouring slices (C, D). Every position has a likelihood of its own, so the map that is shown is the one that
decides, and no heat map has to be made afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ich_node.findings import IchSubtype, Localization
from ich_node.model.bundle_section import Count, Positive, Share
from ich_node.model.efficientnet_lite import LitePyramid
from ich_node.model.execution import finite
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.preprocess import (
    BoolArray,
    FloatArray,
    SliceFrame,
    cavity_centre,
    cut_out,
    field_of_view,
    mask_on_grid,
    on_source_grid,
    unit_windows,
)
from ich_node.model.system import ClassMaps, Head, Mirror, Scores, Spacing, System, passes

CLASSES = tuple(IchSubtype)
Window = tuple[float, Positive]
"""(level, width), HU."""
_THIN_MM = 4.0
_SCORED_MM = 2.4
"""Slices nearer to each other than this are not all scored: what lies between two is interpolated."""
_ROUNDING = 0.01
"""Of a slice: whether one lies at the edge of a slab must not hang on how its position was rounded."""


@dataclass(frozen=True, kw_only=True)
class LiteMilConfig:
    """Shape of the network."""

    width: Count = 48
    """Channels of the pyramid."""
    in_channels: Count = 6
    dropout: Share = 0.3
    """Of what the slice as a whole is judged by; used while training only."""
    neighbours: Share = 0.0
    """How much of a slice's logits comes from the slices beside it; the recipe says how much."""
    mirror: Mirror = "each"


@dataclass(frozen=True, kw_only=True)
class LiteMilPreprocessing:
    """How a slice and its neighbours become network input."""

    size: Count = 192
    """Rows and columns of the network's input, pixels."""
    pitch_mm: Positive = 1.05
    """Distance of its pixels, mm, around the cavity."""
    hu_range: tuple[float, float] = (-150.0, 500.0)
    slab_mm: Positive = 5.0
    """Thinner slices are averaged over this height, so that noise and partial volume are those of the training."""
    neighbour_mm: Positive = 5.0
    """Distance of the slices above and below that are shown beside a slice."""
    windows_hu: tuple[Window, ...] = ((40.0, 80.0), (80.0, 200.0), (150.0, 700.0))
    """(level, width) of the windows of the slice itself; of its neighbours the first alone is shown."""


@dataclass(frozen=True)
class LiteMilOutput:
    """What the network says of a batch of slices."""

    logits: torch.Tensor
    """(batch, classes) of the slices."""
    positions: torch.Tensor
    """(batch, classes, h, w) logit of each position by itself."""


class LiteMil(nn.Module):
    """Pyramid, positions, pooling."""

    def __init__(self, config: LiteMilConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = LitePyramid(config.in_channels)
        self.lateral = nn.ModuleList(nn.Conv2d(n, config.width, 1) for n in LitePyramid.widths)
        self.smooth = nn.Sequential(
            nn.Conv2d(config.width, config.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(config.width),
            nn.ReLU(inplace=True),
        )
        self.positions = nn.Conv2d(config.width, len(CLASSES), 1)
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.whole = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(LitePyramid.widths[-1] + config.width, len(CLASSES)),
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> LiteMilOutput:
        """Classify slices.

        Parameters
        ----------
        x
            (batch, in_channels, size, size) from `network_input`.
        mask
            (batch, size, size) bool: positions outside are in no bag. A slice whose mask is empty uses all.
        """
        levels = self.encoder(x)  # 24 at size/4, 40 at size/8, 112 at size/16, 192 at size/32
        h = self.lateral[-1](levels[-1])
        for lateral, level in zip(list(self.lateral)[-2::-1], levels[-2::-1], strict=True):
            h = lateral(level) + functional.interpolate(h, level.shape[-2:], mode="nearest")
        h = self.smooth(h)  # (batch, width, size/4, size/4)
        positions = _at_least_single(self.positions(h))  # (batch, classes, size/4, size/4)
        inside = functional.adaptive_max_pool2d(mask[:, None].float(), positions.shape[-2:]) > 0
        inside = inside | ~inside.flatten(1).any(1)[:, None, None, None]
        # the more suspicious a position, the more it counts; all classes look where any of them is seen
        energy = (positions[:, :1] * self.sharpness.abs()).masked_fill(~inside, -torch.inf)
        attention = energy.flatten(2).softmax(2)  # (batch, 1, positions)
        bag = (attention * positions.flatten(2)).sum(2)  # (batch, classes)
        seen = (attention * h.flatten(2)).sum(2)  # (batch, width)
        whole = self.whole(torch.cat([levels[-1].mean((2, 3)), seen], 1))  # (batch, classes)
        return LiteMilOutput(bag + _at_least_single(whole), positions)


def _at_least_single(x: torch.Tensor) -> torch.Tensor:
    """What bfloat16 gave in float32, for the sums that follow; other precisions stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def network_input(hu: torch.Tensor, config: LiteMilPreprocessing) -> torch.Tensor:
    """Show a slice in its windows and its neighbours in the first.

    Parameters
    ----------
    hu
        (batch, 3, size, size) HU: the slice below, the slice, the slice above.

    Returns
    -------
    torch.Tensor
        (batch, windows + 3, size, size), -1 to 1: windows, below, above, and by how much the slice is denser than
        the mean of the two.
    """
    own = unit_windows(hu[:, 1], config.windows_hu)
    beside = [unit_windows(hu[:, i], config.windows_hu[:1]) for i in (0, 2)]
    change = own[:, :1] - (beside[0] + beside[1]) / 2
    return torch.cat([own, *beside, (change + 1) / 2], 1) * 2 - 1


def slab_hu(head: Head, index: int, offset_mm: float, slab_mm: float) -> FloatArray:
    """One slice of a head, or the mean of thin ones.

    Parameters
    ----------
    index, offset_mm
        The middle of the slab lies so far above this slice, but never beyond the first or the last slice. There a
        slab of thin slices is what the scan has of it.

    Returns
    -------
    numpy.ndarray
        (rows, columns) float32, HU.
    """
    distance, last = head.step_mm, len(head.hu) - 1
    if distance >= _THIN_MM:
        step = max(1, round(abs(offset_mm) / distance)) if offset_mm else 0
        return np.asarray(head.hu[int(np.clip(index + np.sign(offset_mm) * step, 0, last))])
    middle = np.clip(index + offset_mm / distance, 0, last)
    half = slab_mm / 2 / distance + _ROUNDING
    first, end = max(0, int(np.ceil(middle - half))), min(last, int(np.floor(middle + half)))
    return np.asarray(head.hu[first : end + 1].mean(axis=0, dtype=np.float32))


def slice_hu(
    head: Head, index: int, config: LiteMilPreprocessing
) -> tuple[FloatArray, BoolArray, SliceFrame]:
    """Bring a slice and its neighbours to the network's grid.

    Returns
    -------
    numpy.ndarray
        (3, size, size) float32, HU: below, the slice, above.
    numpy.ndarray
        (size, size) bool, intracranial space.
    SliceFrame
        Where that grid lies.
    """
    centre = cavity_centre(head.mask, index)
    frame = field_of_view(centre, head.spacing_mm, config.size, config.pitch_mm)
    offsets = (-config.neighbour_mm, 0.0, config.neighbour_mm)
    slabs = [slab_hu(head, index, offset, config.slab_mm) for offset in offsets]
    hu = np.stack([cut_out(slab, frame, config.size, config.hu_range) for slab in slabs])
    return hu, mask_on_grid(head.mask, index, frame, config.size), frame


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """What is kept of a slice for its maps."""

    positions: FloatArray
    """(classes, h, w) float16, 0 to 1."""
    frame: SliceFrame


class LiteMilSystem(System):
    """An ensemble, on every slice and on its mirror image."""

    config_type = LiteMilConfig
    preprocessing_type = LiteMilPreprocessing
    localization_type = DetectorConfig

    @staticmethod
    def network(config: Any) -> LiteMil:
        """Make the network that a `LiteMilConfig` describes, with random weights."""
        return LiteMil(config)

    @property
    def classes(self) -> tuple[IchSubtype, ...]:
        """All of `IchSubtype`, in its order."""
        return CLASSES

    def score(self, head: Head) -> Scores:
        """Score the slices that show intracranial space; of thin ones not each by itself."""
        stride = max(1, int(_SCORED_MM / head.step_mm + 1e-6))
        inside = head.inside
        # the last one too: nothing at the vertex is left to a neighbour alone
        scored = sorted({*inside[::stride], *inside[-1:]})
        logits, kept = np.full((len(head.hu), len(CLASSES)), -np.inf), {}
        if not inside:
            return Scores(logits=logits)
        found = self.execution.in_batches(scored, lambda part: self._forward(head, part))
        seen = np.zeros((len(scored), len(CLASSES)))
        for row, (index, (logit, evidence)) in enumerate(zip(scored, found, strict=True)):
            seen[row], kept[index] = logit, evidence
        share = self.config.neighbours
        for column in range(len(CLASSES)):
            joined = joined_with_neighbours(seen[:, column], share)
            logits[list(inside), column] = np.interp(inside, scored, joined)
        return Scores(logits=logits, kept=kept)

    def maps(self, head: Head, index: int, scores: Scores) -> ClassMaps:
        """Each position's own probability of each class; of a slice between scored ones that of the nearest."""
        nearest = min(scores.kept, key=lambda scored: (abs(scored - index), scored))
        evidence: _Evidence = scores.kept[nearest]
        size, shape = self.preprocessing.size, head.mask.shape
        return {
            subtype: on_source_grid(likelihood, evidence.frame, size, shape)
            for subtype, likelihood in zip(CLASSES, evidence.positions, strict=True)
        }

    def places(self, maps: ClassMaps, spacing_mm: Spacing) -> tuple[Localization, ...]:
        """Points of *any*, each named after the subtype that is likeliest there, whose likelihood is its score."""
        kinds = [subtype for subtype in maps if subtype is not IchSubtype.ANY]
        points = detect(maps[IchSubtype.ANY], (spacing_mm[1], spacing_mm[2]), self.localization)
        named = []
        for point in points:
            column, row = (int(value) for value in point.coordinates)
            kind = max(kinds, key=lambda k: float(maps[k][row, column]))
            named.append(replace(point, subtype=kind, score=float(maps[kind][row, column])))
        return tuple(sorted(named, key=lambda point: -point.score))

    def _forward(self, head: Head, indices: Sequence[int]) -> list[tuple[np.ndarray, _Evidence]]:
        """Mean over networks, and over the slice and its mirror image."""
        cuts = [slice_hu(head, index, self.preprocessing) for index in indices]
        hu = self.execution.tensor(np.stack([cut[0] for cut in cuts]))
        mask = self.execution.tensor(np.stack([cut[1] for cut in cuts]))
        x = network_input(hu, self.preprocessing).contiguous(memory_format=torch.channels_last)
        logits, positions = [], []
        for network, mirrored in passes(self.networks, self.config.mirror):
            out = network(x.flip(-1), mask.flip(-1)) if mirrored else network(x, mask)
            logits.append(out.logits)
            positions.append(out.positions.sigmoid().flip(-1) if mirrored else out.positions.sigmoid())
        places = finite(torch.stack(positions).mean(0)).astype(np.float16)
        evidence = [_Evidence(positions=p, frame=cut[2]) for p, cut in zip(places, cuts, strict=True)]
        return list(zip(finite(torch.stack(logits).mean(0)), evidence, strict=True))


def joined_with_neighbours(logits: np.ndarray, share: float) -> np.ndarray:
    """Mix each slice's logit with the mean of those below and above it; at the ends with the one there is."""
    padded = np.pad(logits, 1, mode="edge") if len(logits) else logits
    return logits if not len(logits) else (1 - share) * logits + share * (padded[:-2] + padded[2:]) / 2


SYSTEM = LiteMilSystem
