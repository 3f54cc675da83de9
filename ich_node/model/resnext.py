"""ResNeXt (Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks").

Tensors have the names and shapes of torchvision's models, so that weights made with those load as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from ich_node.errors import ConfigurationError

_EXPANSION = 4
"""Channels out of a block, as multiples of its planes."""
_BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks of the four layers by depth: three convolutions a block, one before and one linear layer after."""
_NAME = re.compile(r"resnext([0-9]+)_([1-9][0-9]*)x([1-9][0-9]*)d")


@dataclass(frozen=True, kw_only=True)
class ResNeXtConfig:
    """Shape of the network; the defaults are ResNeXt-101 32x8d."""

    layers: tuple[int, int, int, int] = (3, 4, 23, 3)
    """Blocks of the four layers."""
    groups: int = 32
    """Cardinality: groups of the 3x3 convolutions."""
    width_per_group: int = 8
    """Channels of a group in the first layer; each layer doubles them."""
    classes: int = 1000
    in_channels: int = 3


def named_config(name: str, classes: int) -> ResNeXtConfig | None:
    """Configuration that a name such as ``resnext101_32x8d`` stands for; None where it names no ResNeXt.

    Raises
    ------
    ConfigurationError
        It names a ResNeXt of a depth that there is not.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    depth, groups, width = (int(part) for part in match.groups())
    if depth not in _BLOCKS:
        depths = ", ".join(str(d) for d in _BLOCKS)
        raise ConfigurationError(f"{name!r}: ResNeXt has {depths} layers, not {depth}")
    return ResNeXtConfig(layers=_BLOCKS[depth], groups=groups, width_per_group=width, classes=classes)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution beside the identity: (b, in, h, w) to (b, 4 planes, h/s, w/s)."""

    def __init__(self, in_channels: int, planes: int, width: int, groups: int, stride: int) -> None:
        super().__init__()
        out_channels = planes * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, h, w) to (batch, 4 planes, h / stride, w / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        h = self.relu(self.bn1(self.conv1(x)))  # (batch, width, h, w)
        h = self.relu(self.bn2(self.conv2(h)))  # (batch, width, h / stride, w / stride)
        h = self.bn3(self.conv3(h))  # (batch, 4 planes, h / stride, w / stride)
        out: torch.Tensor = self.relu(h + identity)
        return out


class ResNeXt(nn.Module):
    """The network, with random weights (He et al. 2015)."""

    features = 512 * _EXPANSION
    """Channels of the last feature map."""

    def __init__(self, config: ResNeXtConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(config.in_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._layer(0)
        self.layer2 = self._layer(1)
        self.layer3 = self._layer(2)
        self.layer4 = self._layer(3)
        self.fc = nn.Linear(self.features, config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _layer(self, number: int) -> nn.Sequential:
        planes = 64 * 2**number
        width = self.config.width_per_group * self.config.groups * 2**number
        before = 64 if number == 0 else planes // 2 * _EXPANSION
        blocks = [Bottleneck(before, planes, width, self.config.groups, 1 if number == 0 else 2)]
        for _ in range(1, self.config.layers[number]):
            blocks.append(Bottleneck(planes * _EXPANSION, planes, width, self.config.groups, 1))
        return nn.Sequential(*blocks)

    @property
    def classifier(self) -> nn.Linear:
        """The last layer: from the mean of each feature map to the classes' logits."""
        return self.fc

    def feature_maps(self, x: torch.Tensor) -> torch.Tensor:
        """Last feature maps.

        Parameters
        ----------
        x
            (batch, in_channels, h, w).

        Returns
        -------
        torch.Tensor
            (batch, 2048, h / 32, w / 32), not negative.
        """
        h = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (batch, 64, h/4, w/4)
        h = self.layer1(h)  # (batch, 256, h/4, w/4)
        h = self.layer2(h)  # (batch, 512, h/8, w/8)
        h = self.layer3(h)  # (batch, 1024, h/16, w/16)
        maps: torch.Tensor = self.layer4(h)  # (batch, 2048, h/32, w/32)
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, h, w) to (batch, classes) logits."""
        logits: torch.Tensor = self.fc(self.feature_maps(x).mean((2, 3)))
        return logits
