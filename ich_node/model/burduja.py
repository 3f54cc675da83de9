"""System D: a CNN on every slice, then an LSTM over the slices of a scan (Burduja et al. 2020, Sensors 20, 5611).

The CNN is taught single slices. Of its pooled features a few are kept (their section on feature selection), and
a bidirectional LSTM reads them slice by slice; the CNN's probabilities are joined to what it says before the
last linear layer. Grad-CAM shows where the CNN sees each class.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype, Localization
from ich_node.model.bundle_section import Count, NotNegative, Positive, Share
from ich_node.model.decision import slice_probabilities
from ich_node.model.efficientnet_lite import EfficientNetLite0
from ich_node.model.execution import finite
from ich_node.model.feature_selection import Selection, SelectionKind
from ich_node.model.grad_cam import grad_cam
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.preprocess import (
    SliceFrame,
    cavity_centre,
    cut_out,
    field_of_view,
    on_source_grid,
    unit_windows,
    whole_image,
)
from ich_node.model.resnext import ResNeXt, named_config
from ich_node.model.system import ClassMaps, FloatArray, Head, Scores, Spacing, System

CLASSES = tuple(IchSubtype)
PUBLISHED_CLASSES = (*CLASSES[1:], IchSubtype.ANY)
"""The outputs of the authors' CNN in their order: in their code *any* is the last."""
Window = tuple[float, Positive]
"""(level, width), HU."""


@dataclass(frozen=True, kw_only=True)
class BurdujaConfig:
    """Shape of the network; the defaults are the paper's best."""

    backbone: str = "resnext101_32x8d"
    """``resnext<depth>_<groups>x<width>d``, ``efficientnet_lite0``, or a name that ``timm`` knows."""
    selection: SelectionKind = "pca"
    """Which features the LSTM gets: principal components; the ones with the ``largest`` or ``smallest`` weights
    in the CNN's classifier; those of largest standard ``deviation``; or all of them."""
    selected: int = 120
    """Features that are kept, unless ``selection`` is ``none``."""
    sequence: bool = True
    """Whether there is an LSTM; without one the CNN's logits are the scores."""
    hidden: Count = 256
    """Width of each of the LSTM's two directions."""
    layers: Count = 3
    dropout: Share = 0.3
    """Between the LSTM's layers, while training."""
    probabilities: bool = True
    """Whether the CNN's probabilities are joined to the LSTM's output."""


@dataclass(frozen=True, kw_only=True)
class BurdujaPreprocessing:
    """How a slice becomes network input."""

    size: Count = 256
    """Rows and columns of the network's input, pixels."""
    pitch_mm: NotNegative = 0.0
    """Distance of its pixels, mm, around the cavity; 0 for the whole image whatever its field of view, the paper."""
    windows_hu: tuple[Window, Window, Window] = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))
    """(level, width) of the brain, subdural and soft tissue window: the three channels."""
    mean: tuple[float, float, float] = (0.1738, 0.1433, 0.1970)
    std: tuple[Positive, Positive, Positive] = (0.3161, 0.2850, 0.3111)
    """Of the channels in the authors' training data."""
    hu_range: tuple[float, float] = (-150.0, 230.0)
    """What the widest window shows. The authors make the windows first and then the size; clipping before
    averaging keeps, as theirs does, bone and air from shining into the brain beside them."""


def slice_hu(head: Head, index: int, config: BurdujaPreprocessing) -> tuple[FloatArray, SliceFrame]:
    """Bring one slice to the network's grid.

    Returns
    -------
    numpy.ndarray
        (size, size) float32, HU.
    SliceFrame
        Where that grid lies.
    """
    if config.pitch_mm > 0:
        centre = cavity_centre(head.mask, index)
        frame = field_of_view(centre, head.spacing_mm, config.size, config.pitch_mm)
    else:
        frame = whole_image(head.mask.shape, config.size)
    return cut_out(head.hu[index], frame, config.size, config.hu_range), frame


def network_input(hu: torch.Tensor, config: BurdujaPreprocessing) -> torch.Tensor:
    """Windows, each 0 to 1, standardized: (batch, size, size) HU to (batch, windows, size, size)."""
    shown = unit_windows(hu, config.windows_hu)
    mean, std = (shown.new_tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (shown - mean) / std


class TimmNetwork(nn.Module):
    """Any convolutional network of ``timm``, random weights, with one linear layer on its pooled feature maps."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        try:
            timm = importlib.import_module("timm")
        except ImportError as error:
            raise ConfigurationError(
                f"backbone {name!r} needs timm: install ich-node with the extra 'backbones'"
            ) from error
        if not timm.is_model(name):
            raise ConfigurationError(f"backbone {name!r}: timm {timm.__version__} does not know it")
        self.body = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
        self.features = int(self.body.num_features)
        self.fc = nn.Linear(self.features, classes)

    @property
    def classifier(self) -> nn.Linear:
        """The last layer: from the mean of each feature map to the classes' logits."""
        return self.fc

    def feature_maps(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, h, w) to (batch, features, h', w').

        Raises
        ------
        ConfigurationError
            The network has no feature maps of this layout, as transformers have none.
        """
        maps: torch.Tensor = self.body(x)
        if maps.ndim != 4 or maps.shape[1] != self.features:
            raise ConfigurationError(f"a backbone that gives {tuple(maps.shape)} has no feature maps")
        return maps


def make_cnn(backbone: str, classes: int) -> ResNeXt | EfficientNetLite0 | TimmNetwork:
    """Make the CNN that a name stands for, with random weights.

    Raises
    ------
    ConfigurationError
        There is none of this name, or ``timm`` would be needed and is not installed.
    """
    if backbone == "efficientnet_lite0":
        return EfficientNetLite0(classes)
    resnext = named_config(backbone, classes)
    return ResNeXt(resnext) if resnext is not None else TimmNetwork(backbone, classes)


@dataclass(frozen=True)
class BurdujaOutput:
    """What the network says of the slices of a scan."""

    cnn_logits: torch.Tensor
    """(slices, 6), of each slice by itself: what the CNN is taught."""
    logits: torch.Tensor
    """(slices, 6), of each slice among the others; the same as those of the CNN where there is no LSTM."""


class Burduja(nn.Module):
    """CNN, selection, LSTM and last layer."""

    def __init__(self, config: BurdujaConfig) -> None:
        super().__init__()
        self.config = config
        self.cnn = make_cnn(config.backbone, len(CLASSES))
        if not config.sequence:
            return
        self.selection = Selection(config.selection, self.cnn.features, config.selected)
        self.lstm = nn.LSTM(
            self.selection.selected,
            config.hidden,
            config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,  # there is no between
            batch_first=True,
            bidirectional=True,
        )
        self.last = nn.Linear(2 * config.hidden + len(CLASSES) * config.probabilities, len(CLASSES))

    def cnn_logits(self, maps: torch.Tensor) -> torch.Tensor:
        """(batch, features, h, w) feature maps to (batch, 6) logits: the head that Grad-CAM looks through."""
        logits: torch.Tensor = self.cnn.classifier(maps.mean((2, 3)))
        return logits

    def describe(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the CNN: (batch, 3, size, size) to (batch, features) pooled features and (batch, 6) logits."""
        features = self.cnn.feature_maps(x).mean((2, 3))
        return features, self.cnn.classifier(features)

    def read(self, features: torch.Tensor, cnn_logits: torch.Tensor) -> torch.Tensor:
        """Run the selection and the LSTM over the slices of a scan.

        Parameters
        ----------
        features, cnn_logits
            (..., slices, features) and (..., slices, 6) from `describe`, slices from inferior to superior.

        Returns
        -------
        torch.Tensor
            (..., slices, 6) logits; those of the CNN where there is no LSTM.
        """
        if not self.config.sequence:
            return cnn_logits
        # the published code also gives the probabilities to the LSTM's input; the paper joins them here only
        told, _ = self.lstm(self.selection(features))  # (..., slices, 2 hidden)
        if self.config.probabilities:
            told = torch.cat([told, cnn_logits.sigmoid()], dim=-1)  # (..., slices, 2 hidden + 6)
        logits: torch.Tensor = self.last(told)
        return logits

    def forward(self, x: torch.Tensor) -> BurdujaOutput:
        """(slices, 3, size, size), all slices of one scan in order, to the logits of each."""
        features, cnn_logits = self.describe(x)
        return BurdujaOutput(cnn_logits, self.read(features, cnn_logits))


def from_published(
    network: Burduja,
    state: Mapping[str, torch.Tensor],
    classes: Sequence[IchSubtype] = PUBLISHED_CLASSES,
) -> None:
    """Load a published ResNeXt of six outputs into the CNN.

    Parameters
    ----------
    network
        Its backbone has to be the ResNeXt that the weights are of.
    state
        Tensors named as torchvision does (``conv1.weight``), or as the authors' code (``base.0.weight``); all
        may begin with ``module.``.
    classes
        What the outputs of ``state`` stand for; they are brought to the order of `IchSubtype`.

    Raises
    ------
    ConfigurationError
        The backbone is another, or a tensor is unknown, missing, there twice or of another shape; the message
        names it.
    """
    if not isinstance(network.cnn, ResNeXt):
        raise ConfigurationError(f"published weights are of a ResNeXt, not of {network.config.backbone!r}")
    named: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if _torchvision_name(key) in named:
            raise ConfigurationError(f"published weights: tensor {key!r} is there under another name too")
        named[_torchvision_name(key)] = tensor
    wanted = network.cnn.state_dict()
    for key in sorted(wanted.keys() ^ named.keys()):
        problem = "is missing" if key in wanted else "is not part of the network"
        raise ConfigurationError(f"published weights: tensor {key!r} {problem}")
    for key, tensor in wanted.items():
        if named[key].shape != tensor.shape:
            raise ConfigurationError(
                f"published weights: tensor {key!r} is {tuple(named[key].shape)}, expected {tuple(tensor.shape)}"
            )
    order = [list(classes).index(subtype) for subtype in CLASSES]
    named |= {key: named[key][order] for key in ("fc.weight", "fc.bias")}
    network.cnn.load_state_dict(named)


def _torchvision_name(key: str) -> str:
    """The authors' ``base`` is torchvision's network as a list: conv1, bn1, relu, maxpool, layer1 to layer4."""
    children = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    name = key.removeprefix("module.")
    head, _, rest = name.partition(".")
    number, _, tail = rest.partition(".")
    if head == "fc" and number == "0":
        return f"fc.{tail}"
    if head == "base" and number.isdecimal() and int(number) < len(children):
        return f"{children[int(number)]}.{tail}"
    return name


class BurdujaSystem(System):
    """The CNN and LSTM, ready to read."""

    config_type = BurdujaConfig
    preprocessing_type = BurdujaPreprocessing
    localization_type = DetectorConfig

    networks: tuple[Burduja, ...]
    preprocessing: BurdujaPreprocessing
    localization: DetectorConfig

    @staticmethod
    def network(config: Any) -> Burduja:
        """Make the network that a `BurdujaConfig` describes, with random weights."""
        return Burduja(config)

    @property
    def classes(self) -> tuple[IchSubtype, ...]:
        """All of `IchSubtype`, in its order."""
        return CLASSES

    def score(self, head: Head) -> Scores:
        """Score the slices that show intracranial space; the LSTM reads those alone, in their order.

        The authors' LSTM reads every slice of a scan; those without brain would tell it of the scan's extent only.
        """
        logits = np.full((len(head.hu), len(CLASSES)), -np.inf)
        if head.inside:
            described = self.execution.in_batches(head.inside, lambda part: self._describe(head, part))
            members = zip(self.networks, zip(*described, strict=True), strict=True)
            with torch.no_grad():
                read = [_read(network, _checked(torch.stack(slices))) for network, slices in members]
            logits[list(head.inside)] = finite(torch.stack(read).mean(0))
        return Scores(logits=logits)

    def _describe(self, head: Head, indices: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
        """Of each slice, for each network: (features + 6,) pooled features and logits of the CNN, no maps."""
        x = self._input(head, indices)
        described = [
            torch.cat(network.describe(x), dim=1).to(self.execution.dtype) for network in self.networks
        ]
        return list(zip(*described, strict=True))

    def _input(self, head: Head, indices: Sequence[int]) -> torch.Tensor:
        hu = np.stack([slice_hu(head, index, self.preprocessing)[0] for index in indices])
        return network_input(self.execution.tensor(hu), self.preprocessing)

    def maps(self, head: Head, index: int, scores: Scores) -> ClassMaps:
        """Grad-CAM of the CNN for every class, on its last feature maps.

        Grad-CAM has no scale of its own: that of a class the slice does not show is as bright as any other. So
        each map is scaled to have the slice's probability of the class as its maximum, which makes maps of
        classes and slices comparable with each other and with the detector's threshold.
        """
        frame = slice_hu(head, index, self.preprocessing)[1]
        size, shape = self.preprocessing.size, head.mask.shape
        probabilities = slice_probabilities(scores.logits[[index]], self.decision)[0]
        (seen,) = self.execution.in_batches([index], lambda part: [self._seen(head, part)])
        found = {}
        for subtype, evidence, probability in zip(CLASSES, finite(seen), probabilities, strict=True):
            fine = on_source_grid(evidence, frame, size, shape)
            found[subtype] = _with_maximum(fine, float(probability))
        return found

    def _seen(self, head: Head, indices: Sequence[int]) -> torch.Tensor:
        """(classes, h, w) of one slice, maximum 1 for each network before they are averaged."""
        x = self._input(head, indices)
        seen = [grad_cam(network.cnn.feature_maps, network.cnn_logits, x)[0] for network in self.networks]
        return torch.stack([one / one.amax((1, 2), keepdim=True).clamp(min=1e-30) for one in seen]).mean(0)

    def places(self, maps: ClassMaps, spacing_mm: Spacing) -> tuple[Localization, ...]:
        """Points of each class, of all classes the highest first."""
        points = [
            replace(point, subtype=subtype)
            for subtype, likelihood in maps.items()
            for point in detect(likelihood, (spacing_mm[1], spacing_mm[2]), self.localization)
        ]
        return tuple(sorted(points, key=lambda point: -point.score))


def _read(network: Burduja, described: torch.Tensor) -> torch.Tensor:
    """(slices, features + 6) to (slices, 6); in full precision: an LSTM is little work, and its steps add up."""
    return network.read(described[:, : -len(CLASSES)], described[:, -len(CLASSES) :])


def _checked(described: torch.Tensor) -> torch.Tensor:
    """The same, if it holds numbers only: sigmoid and tanh make an infinity a score that looks sound."""
    finite(described)
    return described


def _with_maximum(evidence: FloatArray, maximum: float) -> FloatArray:
    """A map scaled to a maximum; one that is zero everywhere stays so: nothing speaks for the class."""
    highest = float(evidence.max())
    return np.asarray(evidence * (maximum / highest), np.float32) if highest > 0 else evidence


SYSTEM = BurdujaSystem
