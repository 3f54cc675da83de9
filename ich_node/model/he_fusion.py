"""System B: attentional fusion of multiscale features, with weakly supervised localization (He et al. 2024).

A trainable layer shows the slice through three CT windows, VGG-16 describes it, the outputs of its last three
blocks are fused and weighted by channel and by place, and a linear classifier on their average names the
subtypes. The average is linear, so the classifier's weights on the features of a position say what that
position adds: the class activation map, from labels of whole slices alone. ``docs/models.md`` lists what
differs from the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import nn

from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype, Localization
from ich_node.model.bundle_section import Count, NotNegative, Positive, Share
from ich_node.model.decision import slice_probabilities
from ich_node.model.execution import finite
from ich_node.model.preprocess import SliceFrame, cut_out, field_of_view, on_source_grid, whole_image
from ich_node.model.system import ClassMaps, FloatArray, Head, Scores, Spacing, System

CLASSES = tuple(IchSubtype)
"""Order of the network's outputs."""
Doubles = npt.NDArray[np.float64]
Windows = tuple[tuple[float, float], ...]
"""(level, width) of each channel, HU."""
WINDOWS_HU: Windows = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))
"""Brain, subdural and soft tissue: what the trainable windows begin with."""
STRIDE = 16
"""Pixels of the input per position of the map, along each axis."""
_UPPER = 255.0  # U: the window layer gives 0 to U
_EDGE = 1.0  # e: what it gives at the lower end of the window; U - e at the upper end
_STEEPNESS = math.log(_UPPER / _EDGE - 1)
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(channels, convolutions) of the blocks of VGG-16."""
# mean and standard deviation of the channels, 0 to 1, that torchvision's public weights were trained with
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class HeFusionConfig:
    """Shape of the network. The defaults are the paper's."""

    width: Positive = 1.0
    """Channels of VGG-16 times this."""
    batch_norm: bool = False
    """Batch normalization after each convolution, as torchvision's ``vgg16_bn``: trains from random weights."""
    window: Literal["trainable", "fixed"] = "trainable"
    """``fixed`` keeps the initial windows: the ablation of the paper."""
    fusion: bool = True
    """Whether the classifier sees C3, C4 and C5; else C5 alone: the ablation of the paper."""
    reduction: Count = 16
    """Channels per unit of the bottleneck of the channel attention (CBAM's value)."""
    dropout: Share = 0.0
    """Of whole fused channels; used while training only."""


@dataclass(frozen=True, kw_only=True)
class HeFusionPreprocessing:
    """How a slice becomes network input. Its windows are weights of the network, so that it gets HU.

    Raises
    ------
    ConfigurationError
        The size is no positive multiple of 16: the scales would not meet on one grid.
    """

    size: int = 256
    """Rows and columns of the network's input, pixels."""
    pitch_mm: NotNegative = 0.0
    """Distance of its pixels, mm, around the centre of the image; 0: the whole image, as in the paper."""
    # the initial windows are flat beyond it; metal (3000) and padding (-3024) would spread in the averages
    hu_range: tuple[float, float] = (-1000.0, 1000.0)
    """Values outside are clipped before anything is averaged."""

    def __post_init__(self) -> None:
        if self.size < STRIDE or self.size % STRIDE:
            raise ConfigurationError(f"size is {self.size}; it has to be a positive multiple of {STRIDE}")

    def frame(self, shape: tuple[int, int], spacing_mm: Spacing) -> SliceFrame:
        """Where the network's input lies on an image of (rows, columns) with a (slice, row, column) spacing."""
        if self.pitch_mm == 0:
            return whole_image(shape, self.size)
        centre = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
        return field_of_view(centre, spacing_mm, self.size, self.pitch_mm)

    def network_input(self, image: FloatArray, spacing_mm: Spacing) -> FloatArray:
        """(size, size) float32, HU, of a (rows, columns) float32 image in HU: for training and for reading."""
        frame = self.frame((image.shape[0], image.shape[1]), spacing_mm)
        return cut_out(image, frame, self.size, self.hu_range)


@dataclass(frozen=True, kw_only=True)
class HeFusionLocalization:
    """How maps become boxes."""

    fraction: float = 0.2
    """A box holds what reaches this part of the class activation map's maximum."""
    threshold: float = 0.5
    """A class whose map stays below this everywhere has no box."""


class WindowLayer(nn.Module):
    """CT windows as weights: ``U / (1 + exp(-(W x + b)))`` with U = 255.

    A window of level L and width D is ``W = 2/D ln(U/e - 1)``, ``b = -2 L/D ln(U/e - 1)`` with e = 1 (Lee et al.,
    arXiv 1812.00572): e at the window's lower end, U - e at its upper end. The paper of He et al. prints b of the
    brain window with the wrong sign.

    Parameters
    ----------
    trainable
        Whether weight and bias are parameters; else buffers, under the same names, that no optimizer sees.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, windows_hu: Windows = WINDOWS_HU, *, trainable: bool = True) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            values = torch.zeros(len(windows_hu))
            if trainable:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)
        self.set_windows(windows_hu)

    @torch.no_grad()
    def set_windows(self, windows_hu: Windows) -> None:
        """Overwrite the weights with those of windows, (level, width) each."""
        for channel, (level, width) in enumerate(windows_hu):
            self.weight[channel] = 2 / width * _STEEPNESS
            self.bias[channel] = -2 * level / width * _STEEPNESS

    def windows_hu(self) -> Windows:
        """(level, width) of each channel, from the weights; a negative width shows the inverted image."""
        weights, biases = self.weight.detach().double().tolist(), self.bias.detach().double().tolist()
        return tuple((-b / w, 2 * _STEEPNESS / w) for w, b in zip(weights, biases, strict=True))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        """(batch, 1, h, w) in HU to (batch, channels, h, w), 0 to 255, in the precision of the weights."""
        # the paper's 1x1 convolution, written as a product: neither autocast nor TF32 rounds HU to 8 or 11 bits
        drive = self.weight[:, None, None] * hu.to(self.weight.dtype) + self.bias[:, None, None]
        return _UPPER * torch.sigmoid(drive)  # unlike the written-out exponential it cannot overflow


class Backbone(nn.Module):
    """The convolutions of VGG-16, under torchvision's names: ``features.0.weight`` and so on."""

    def __init__(self, width: float, batch_norm: bool) -> None:
        super().__init__()
        self.channels = tuple(max(1, round(channels * width)) for channels, _ in _BLOCKS)
        layers: list[nn.Module] = []
        before = len(WINDOWS_HU)
        for channels, (_, convolutions) in zip(self.channels, _BLOCKS, strict=True):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(convolutions):
                layers += _unit(before, channels, batch_norm)
                before = channels
        # VGG's last pooling is left out: the map would have half the resolution
        self.features = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, 3, size, size) to C1 ... C5, (batch, 64, size, size) ... (batch, 512, size/16, size/16)."""
        blocks = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                blocks.append(x)
            x = layer(x)
        return (*blocks, x)


class ChannelAttention(nn.Module):
    """Weight of each channel from its average and its maximum through one bottleneck (CBAM, eq. 2)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.bottleneck = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, h, w) to (batch, channels, 1, 1), 0 to 1."""
        average, maximum = x.mean((2, 3)), x.amax((2, 3))  # (batch, channels)
        return torch.sigmoid(self.bottleneck(average) + self.bottleneck(maximum))[:, :, None, None]


class SpatialAttention(nn.Module):
    """Weight of each place from the average and the maximum over channels (CBAM, eq. 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, h, w) to (batch, 1, h, w), 0 to 1."""
        over_channels = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return torch.sigmoid(self.conv(over_channels))


@dataclass(frozen=True)
class FusionOutput:
    """What the network says of a batch of slices; the mean of ``position_logits`` over h and w is ``logits``."""

    logits: torch.Tensor
    """(batch, classes)."""
    cam: torch.Tensor
    """(batch, classes, h, w) class activation maps: the classifier's weights times the fused features."""
    position_logits: torch.Tensor
    """(batch, classes, h, w): the map with the classifier's bias."""


class FusionNetwork(nn.Module):
    """The network."""

    imagenet: torch.Tensor

    def __init__(self, config: HeFusionConfig) -> None:
        super().__init__()
        self.config = config
        self.window = WindowLayer(trainable=config.window == "trainable")
        imagenet = torch.tensor(_IMAGENET).view(2, 1, -1, 1, 1)
        self.register_buffer("imagenet", imagenet, persistent=False)  # constants are no part of a bundle
        self.backbone = Backbone(config.width, config.batch_norm)
        fused = c5 = self.backbone.channels[4]
        if config.fusion:
            c3, c4 = self.backbone.channels[2:4]
            halves = [_unit(c, c, config.batch_norm, stride=2) for c in (c3, c3, c4)]
            self.shrink3, self.shrink4 = nn.Sequential(*halves[0], *halves[1]), nn.Sequential(*halves[2])
            fused = c3 + c4 + c5
        self.channel_attention = ChannelAttention(fused, config.reduction)
        self.spatial_attention = SpatialAttention()
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Linear(fused, len(CLASSES))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                # as torchvision: without batch normalization the signal would die out on its way
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def load_imagenet(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Start the backbone from torchvision's weights of ``vgg16``, or ``vgg16_bn`` with batch normalization.

        Parameters
        ----------
        state_dict
            Of the whole torchvision model; what is not under ``features.`` is left aside.

        Raises
        ------
        RuntimeError
            A tensor is missing, left over or of another shape: another model, or a ``width`` that is not 1.
        """
        prefix = "features."
        features = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        self.backbone.features.load_state_dict(features, strict=True)

    def fuse(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 1, size, size) in HU, size a multiple of 16, to what the classifier sees."""
        shown = self.window(x)  # (batch, 3, size, size), 0 to 255
        mean, std = self.imagenet  # (1, 3, 1, 1) each
        _, _, c3, c4, h = self.backbone((shown / _UPPER - mean) / std)
        # c3 (batch, 256, size/4, ..), c4 (batch, 512, size/8, ..), h = C5 (batch, 512, size/16, ..)
        if self.config.fusion:
            # side by side, not summed: both attentions and the classifier can then weigh scale against scale
            h = torch.cat([self.shrink3(c3), self.shrink4(c4), h], dim=1)  # (batch, 1280, size/16, ..)
        h = self.channel_attention(h) * h
        weighted: torch.Tensor = self.spatial_attention(h) * h  # as before; 512 channels without fusion
        return weighted

    def forward(self, x: torch.Tensor) -> FusionOutput:
        """Classify slices, (batch, 1, size, size) in HU."""
        h = self.dropout(self.fuse(x))  # (batch, 1280, size/16, size/16)
        # the classifier before the average instead of after it: both are linear, and this way the map is at hand
        cam = torch.einsum("bchw,kc->bkhw", h, self.classifier.weight).to(self.classifier.bias.dtype)
        places = cam + self.classifier.bias[:, None, None]  # (batch, 6, size/16, size/16)
        return FusionOutput(places.mean((2, 3)), cam, places)


def _unit(before: int, channels: int, batch_norm: bool, stride: int = 1) -> list[nn.Module]:
    """3x3 convolution, batch normalization where wanted, ReLU, as VGG has them."""
    norm = [nn.BatchNorm2d(channels)] if batch_norm else []
    return [nn.Conv2d(before, channels, 3, stride=stride, padding=1), *norm, nn.ReLU(inplace=True)]


class HeFusion(System):
    """System B in the node: one network or an ensemble, whose logits are averaged, slice's and positions' alike."""

    config_type = HeFusionConfig
    preprocessing_type = HeFusionPreprocessing
    localization_type = HeFusionLocalization

    @staticmethod
    def network(config: HeFusionConfig) -> FusionNetwork:
        """Make a network with random weights."""
        return FusionNetwork(config)

    @property
    def classes(self) -> tuple[IchSubtype, ...]:
        """All six."""
        return CLASSES

    def score(self, head: Head) -> Scores:
        """Score every slice that shows intracranial space."""

        def run(indices: Sequence[int]) -> list[tuple[Doubles, FloatArray]]:
            cuts = [self.preprocessing.network_input(head.hu[i], head.spacing_mm) for i in indices]
            logits, places = self._forward(np.stack(cuts))
            return list(zip(logits, places.astype(np.float32), strict=True))

        logits, kept = np.full((len(head.hu), len(CLASSES)), -np.inf), {}
        results = self.execution.in_batches(head.inside, run)
        for index, (logit, places) in zip(head.inside, results, strict=True):
            logits[index], kept[index] = logit, places  # (classes, h, w): 6 KiB at 256 x 256
        return Scores(logits=logits, kept=kept)

    def maps(self, head: Head, index: int, scores: Scores) -> ClassMaps:
        """Class activation maps as likelihoods.

        A position's logit is the map with the classifier's bias; the slice's is their mean. So each is calibrated
        as the slice is, and says how likely a slice would be in which all is as here.
        """
        size, shape = self.preprocessing.size, (head.hu.shape[1], head.hu.shape[2])
        frame = self.preprocessing.frame(shape, head.spacing_mm)
        # enlarged before it is a likelihood, as the paper does: `places` can then find the enlarged map again
        fine = [on_source_grid(logits, frame, size, shape) for logits in scores.kept[index]]
        flat = (
            np.stack(fine, axis=-1).astype(np.float64).reshape(-1, len(CLASSES))
        )  # (rows * columns, classes)
        likelihood = slice_probabilities(flat, self.decision).astype(np.float32)
        return {subtype: likelihood[:, k].reshape(shape) for k, subtype in enumerate(CLASSES)}

    def places(self, maps: ClassMaps, spacing_mm: Spacing) -> tuple[Localization, ...]:
        """One box at most for each class, by `largest_box`."""
        biases = torch.stack([network.get_parameter("classifier.bias") for network in self.networks])
        neutral = slice_probabilities(finite(biases.mean(0))[None], self.decision)[0]
        boxes = [largest_box(maps[c], float(neutral[k]), c, self.localization) for k, c in enumerate(CLASSES)]
        return tuple(sorted((box for box in boxes if box is not None), key=lambda box: -box.score))

    def _forward(self, hu: FloatArray) -> tuple[Doubles, Doubles]:
        """Mean over networks: (batch, classes) logits, (batch, classes, h, w) position logits."""
        x = self.execution.tensor(hu)[:, None].contiguous(memory_format=torch.channels_last)
        outputs = [network(x) for network in self.networks]
        logits = torch.stack([out.logits for out in outputs]).mean(0)
        places = torch.stack([out.position_logits for out in outputs]).mean(0)
        return finite(logits), finite(places)


def largest_box(
    likelihood: FloatArray, neutral: float, subtype: IchSubtype, config: HeFusionLocalization
) -> Localization | None:
    """Box what speaks most for a class: from a fifth of the maximum up, the largest connected component.

    Parameters
    ----------
    likelihood
        (rows, columns) float32, 0 to 1, on the source pixel grid, cut to the intracranial space.
    neutral
        Likelihood where the class activation map is 0.

    Returns
    -------
    Localization or None
        A box in image coordinates, SCOORD convention: it ends at the outer edges of the component's pixels. Its
        score is the highest likelihood in it. ``None`` where no likelihood reaches the threshold.
    """
    # a fifth of the likelihood would take in all that says nothing at all, as where the map is 0
    activation = np.maximum(_logit(likelihood) - _logit(np.float32(neutral)), 0)
    if likelihood.max() < config.threshold or not activation.any():
        return None
    labels, _ = ndimage.label(activation >= config.fraction * activation.max(), np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    rows, columns = ndimage.find_objects(labels)[int(areas.argmax())]
    return Localization(
        kind="box",
        subtype=subtype,
        coordinates=(float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)),
        score=min(1.0, float(likelihood[rows, columns].max())),
    )


def _logit(likelihood: npt.ArrayLike) -> Doubles:
    # float32 ends at 1 - 6e-8, a logit of 17: whatever is above counts as this
    p = np.clip(np.asarray(likelihood, np.float64), 1e-30, 1 - 2**-25)
    return np.asarray(np.log(p / (1 - p)))


SYSTEM = HeFusion
