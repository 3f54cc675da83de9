"""System C: RADnet, a recurrent attention DenseNet (Grewal et al., ISBI 2018, arXiv 1710.04934).

A DenseNet-40 describes each slice. Its attention comes from auxiliary tasks: after each dense block a head
segments the hemorrhage, so that the features learn where to look. A bidirectional LSTM over the pooled features
of all slices gives each its context. How slices make a scan positive is in `ich_node.model.consecutive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from ich_node.findings import IchSubtype, Localization
from ich_node.model import preprocess
from ich_node.model.bundle_section import Count, Positive, Share
from ich_node.model.decision import slice_probabilities
from ich_node.model.execution import finite, halves_gradients
from ich_node.model.intracranial import CoarseMask
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.preprocess import SliceFrame
from ich_node.model.system import ClassMaps, Head, Scores, Spacing, System

FloatArray = npt.NDArray[np.float64]
Described = tuple[torch.Tensor, list[torch.Tensor]]
"""Features of slices, and their auxiliary logits as in `RadNetOutput`."""


@dataclass(frozen=True, kw_only=True)
class RadNetConfig:
    """Shape of the network. By default DenseNet-40 (Huang et al. 2017, sec. 4), attention and LSTM on."""

    growth: Count = 12
    """Channels that each dense layer adds."""
    layers_per_block: Count = 12
    initial_channels: Count = 16
    stem_stride: Literal[1, 2, 4] = 1
    """Of the first convolution. 1 is DenseNet-40 as it was made, for 32 x 32 pixels; the paper names no other
    stem for its 250 x 250. 2 and 4 cost about a quarter and a sixteenth, for coarser maps."""
    attention: bool = True
    """Auxiliary heads. Off: the paper's ablation "DenseNet alone"."""
    lstm: bool = True
    """Off: each slice is classified by itself (the paper's ablation "with attention")."""
    lstm_width: Count = 128
    """Of each direction. Chosen here: a little over a quarter of the 448 features."""
    lstm_layers: Count = 1
    dropout: Share = 0.0
    """After each convolution but the first. Huang et al. use 0.2 without augmentation and none with it."""


@dataclass(frozen=True, kw_only=True)
class RadNetPreprocessing:
    """How a slice becomes network input: brain window, 1 mm pixels, 250 mm field of view."""

    size: Count = 250
    """Rows and columns of the network's input, pixels."""
    pitch_mm: Positive = 1.0
    window_hu: tuple[float, Positive] = (40.0, 80.0)
    """(level, width) of the brain window."""
    hu_range: tuple[float, float] = (-900.0, 1500.0)
    """Values outside are padding, air or metal, and are clipped before anything is averaged."""
    centre: Literal["cavity", "image"] = "cavity"
    """Of the field of view. Chosen here: around the cavity no head that lies off the centre is cut."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the terms of `radnet_loss`. Chosen here: the heads together count as much as the label."""

    label: float = 1.0
    auxiliary: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    """One per auxiliary head, finest first."""
    positive_pixel: float = 1.0
    """How many pixels without hemorrhage one pixel of hemorrhage counts for."""


@dataclass(frozen=True)
class RadNetOutput:
    """What the network says of the slices of one scan."""

    logits: torch.Tensor
    """(slices,) logit that the slice shows hemorrhage."""
    auxiliary: list[torch.Tensor]
    """(slices, 1, size, size) logit of each pixel, one per dense block, finest first; empty without attention."""


class DenseLayer(nn.Sequential):
    """Normalization, ReLU, 3x3 convolution: (n, in, h, w) to (n, growth, h, w)."""

    def __init__(self, in_channels: int, growth: int, dropout: float) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, growth, 3, padding=1, bias=False),
            nn.Dropout(dropout),
        )


class DenseBlock(nn.Module):
    """Layers that each see the outputs of all before: (n, in, h, w) to (n, in + layers * growth, h, w)."""

    def __init__(self, in_channels: int, config: RadNetConfig) -> None:
        super().__init__()
        widths = [in_channels + config.growth * i for i in range(config.layers_per_block)]
        self.layers = nn.ModuleList(DenseLayer(w, config.growth, config.dropout) for w in widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input and what the layers add."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Transition(nn.Sequential):
    """1x1 convolution and average over 2x2 pixels: (n, c, h, w) to (n, c, h // 2, w // 2)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1, bias=False),  # no compression: theta = 1 in DenseNet-40
            nn.Dropout(dropout),
            nn.AvgPool2d(2),
        )


class AuxiliaryHead(nn.Module):
    """The attention's task: 1x1 convolution and deconvolution, (n, c, h, w) to (n, 1, *size)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        # normalized first, as before every convolution of a DenseNet: a block ends with bare convolutions
        self.score = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, 1, 1, bias=False)
        )
        kernel, padding = (2 * stride, stride // 2) if stride > 1 else (3, 1)
        self.deconvolution = nn.ConvTranspose2d(1, 1, kernel, stride=stride, padding=padding)
        self._start()

    def forward(self, h: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Logits of the input's pixels. Those left over at the far edge are output padding: nothing shifts."""
        score = self.score(h)
        if halves_gradients(score):
            with torch.autocast("cpu", enabled=False):
                exact: torch.Tensor = self.deconvolution(score.float(), output_size=size)
                return exact
        logits: torch.Tensor = self.deconvolution(score, output_size=size)
        return logits

    @torch.no_grad()
    def _start(self) -> None:
        # the deconvolution interpolates linearly before it learns (Long et al. 2015, sec. 4.1)
        kernel, stride = self.deconvolution.kernel_size[0], self.deconvolution.stride[0]
        hat = 1 - (torch.arange(kernel) - (kernel - 1) / 2).abs() / ((kernel + 1) // 2)
        hat *= stride / hat.sum()  # an output pixel meets one in stride of the weights; theirs sum to 1
        self.deconvolution.weight[0, 0] = torch.outer(hat, hat)
        nn.init.zeros_(cast(torch.Tensor, self.deconvolution.bias))


class RecurrentAttentionDenseNet(nn.Module):
    """The network: 1 + 36 + 2 convolutions and the classifier are the 40 layers that Huang et al. count.

    But for ``lstm`` and ``classifier`` the weights are the same with an LSTM and without, so a network that was
    trained slice by slice can start one that reads scans.
    """

    def __init__(self, config: RadNetConfig) -> None:
        super().__init__()
        self.config = config
        stride, width = config.stem_stride, config.initial_channels
        # kernel stride + 2, padding 1: 3x3 at stride 1, and at any stride cell i lies over pixels i * stride on
        self.stem = nn.Conv2d(1, width, stride + 2, stride=stride, padding=1, bias=False)
        self.blocks, self.transitions, self.auxiliary = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for depth in range(3):  # dense blocks, as DenseNet-40 has
            if depth:
                self.transitions.append(Transition(width, config.dropout))
            self.blocks.append(DenseBlock(width, config))
            width += config.layers_per_block * config.growth
            if config.attention:
                self.auxiliary.append(AuxiliaryHead(width, stride * 2**depth))
        self.norm = nn.BatchNorm2d(width)
        if config.lstm:
            self.lstm = nn.LSTM(width, config.lstm_width, config.lstm_layers, bidirectional=True)
            width = 2 * config.lstm_width
        self.classifier = nn.Linear(width, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # He et al. 2015, as Huang et al. (sec. 4.2)

    def activations(self, x: torch.Tensor, *, auxiliary: bool = True) -> Described:
        """Describe slices, (n, 1, size, size) from `windowed`, before pooling.

        Features are (n, f, h, w), h and w the size over 4 * ``stem_stride``, rounded down. Both are in the
        weights' precision.
        """
        exact = self.classifier.weight.dtype  # under autocast the convolutions give bfloat16
        size = (x.shape[2], x.shape[3])
        logits = []
        h = self.stem(x)  # (n, 16, size, size)
        for depth, block in enumerate(self.blocks):
            if depth:
                h = self.transitions[depth - 1](h)  # (n, 160, size/2, ..), (n, 304, size/4, ..)
            h = block(h)  # (n, 160, size, ..), (n, 304, size/2, ..), (n, 448, size/4, ..)
            if auxiliary and self.config.attention:
                logits.append(self.auxiliary[depth](h, size).to(exact))  # (n, 1, size, size)
        return functional.relu(self.norm(h)).to(exact), logits  # (n, 448, size/4, size/4)

    def features(self, x: torch.Tensor, *, auxiliary: bool = True) -> Described:
        """Describe slices: (n, f) pooled features, and the auxiliary logits; see `activations`."""
        h, logits = self.activations(x, auxiliary=auxiliary)
        return h.mean((2, 3)), logits  # (n, 448): global average pooling

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """Classify all slices of one scan, (slices, f) features inferior to superior, to (slices,) logits."""
        if self.config.lstm:
            features, _ = self.lstm(features)  # (slices, 2 * lstm_width), without a batch axis
        logits: torch.Tensor = self.classifier(features).squeeze(1)  # (slices,)
        return logits

    def forward(self, x: torch.Tensor) -> RadNetOutput:
        """Read one scan, (slices, 1, size, size) from `windowed`, inferior to superior, in one batch."""
        features, auxiliary = self.features(x)
        return RadNetOutput(self.sequence(features), auxiliary)


def radnet_loss(
    output: RadNetOutput,
    label: torch.Tensor,
    masks: torch.Tensor | None,
    weights: LossWeights,
    *,
    pixel_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum, (), of the binary cross-entropies of the label and of each auxiliary head.

    An auxiliary term is the weighted mean over all pixels that count, 0 if none does.

    Parameters
    ----------
    output
        Of the network for n slices.
    label
        (n,) 0 or 1.
    masks
        (n, size, size) 0 to 1: the part of each pixel that is hemorrhage. None where no slice has contours.
    pixel_weights
        Broadcasts to (n, size, size), 0 or more. A slice without contours has 0 everywhere, and its mask is not
        looked at. None counts every pixel of every slice.
    """
    exact = output.logits.dtype
    label_term = functional.binary_cross_entropy_with_logits(output.logits, label.to(exact))
    total = weights.label * label_term
    if masks is None or not output.auxiliary:
        return total
    target = masks.to(exact)
    each = 1 + (weights.positive_pixel - 1) * target  # (n, size, size)
    if pixel_weights is not None:
        each = each * pixel_weights.to(exact)
        target = target.where(each > 0, 0)  # what does not count may be anything, also NaN
        each = each.where(each > 0, 0)
    count = each.sum().clamp(min=torch.finfo(exact).tiny)
    for weight, logits in zip(weights.auxiliary, output.auxiliary, strict=True):
        pixels = functional.binary_cross_entropy_with_logits(logits.squeeze(1), target, reduction="none")
        total = total + weight * (each * pixels).sum() / count
    return total


def frame_of(head: Head, config: RadNetPreprocessing) -> SliceFrame:
    """Where the network's grid lies, the same in all slices of a head.

    Its centre is that of the whole cavity's bounding box: a centre per slice would move the anatomy from one
    slice to the next, most where a slice shows a part of the cavity only, and the LSTM compares neighbours.
    """
    centre = ((head.hu.shape[1] - 1) / 2, (head.hu.shape[2] - 1) / 2)
    if config.centre == "cavity":
        mask = head.mask
        shadow = np.asarray(mask.mask.any(axis=0))[None]
        centre = preprocess.cavity_centre(CoarseMask(mask=shadow, block=mask.block, shape=mask.shape), 0)
    return preprocess.field_of_view(centre, head.spacing_mm, config.size, config.pitch_mm)


def windowed(hu: torch.Tensor, config: RadNetPreprocessing) -> torch.Tensor:
    """Show slices on the network's grid, (n, size, size) HU, as its input, (n, 1, size, size), 0 to 1."""
    return preprocess.unit_windows(hu, (config.window_hu,))


class RadNet(System):
    """RADnet, ready to read. `Scores.kept` holds each slice's pooled features, (members, f) float64."""

    config_type = RadNetConfig
    preprocessing_type = RadNetPreprocessing
    localization_type = DetectorConfig
    networks: tuple[RecurrentAttentionDenseNet, ...]

    @staticmethod
    def network(config: Any) -> RecurrentAttentionDenseNet:
        """Make the network that a `RadNetConfig` describes, with random weights."""
        return RecurrentAttentionDenseNet(config)

    @property
    def classes(self) -> tuple[IchSubtype, ...]:
        """Hemorrhage or none: the paper tells no kinds apart."""
        return (IchSubtype.ANY,)

    def score(self, head: Head) -> Scores:
        """Score the slices in `Head.inside` as one sequence; only pooled features are in memory for all."""
        logits = np.full((len(head.hu), 1), -np.inf)
        if not head.inside:
            return Scores(logits=logits)
        frame = frame_of(head, self.preprocessing)

        def pooled(indices: Sequence[int]) -> list[torch.Tensor]:
            x = self._input(head, indices, frame)
            return list(torch.stack([n.features(x, auxiliary=False)[0] for n in self.networks], dim=1))

        rows = [finite(row) for row in self.execution.in_batches(head.inside, pooled)]
        features = self.execution.tensor(np.stack(rows))  # (inside, members, f)
        with torch.no_grad():
            each = [n.sequence(features[:, m]) for m, n in enumerate(self.networks)]  # (inside,) each
        logits[list(head.inside), 0] = finite(torch.stack(each).mean(0))
        return Scores(logits=logits, kept=dict(zip(head.inside, rows, strict=True)))

    def maps(self, head: Head, index: int, scores: Scores) -> ClassMaps:
        """Likelihood of hemorrhage on the source grid, from the attention; without it, from gradients.

        With attention the logits of the three heads are averaged, over the members too. The first draws sharp
        edges but sees little around them, the last knows the context but draws cells of four pixels and more. All
        learned one target, and what one takes for blood (bone's edge, calcification) has to convince the others.
        """
        frame = frame_of(head, self.preprocessing)
        if self.config.attention:
            evidence = self._attention(head, index, frame)
        else:
            evidence = self._gradient(head, index, frame, scores)
        shape = (head.hu.shape[1], head.hu.shape[2])
        return {IchSubtype.ANY: preprocess.on_source_grid(evidence, frame, self.preprocessing.size, shape)}

    def places(self, maps: ClassMaps, spacing_mm: Spacing) -> tuple[Localization, ...]:
        """Points at the maxima of the map."""
        return detect(maps[IchSubtype.ANY], spacing_mm[1:], self.localization)

    def _input(self, head: Head, indices: Sequence[int], frame: SliceFrame) -> torch.Tensor:
        config = self.preprocessing
        cuts = [preprocess.cut_out(head.hu[i], frame, config.size, config.hu_range) for i in indices]
        return windowed(self.execution.tensor(np.stack(cuts)), config)  # (n, 1, size, size)

    def _attention(self, head: Head, index: int, frame: SliceFrame) -> FloatArray:
        """Mean of the heads, (size, size), 0 to 1."""

        def mean_logits(indices: Sequence[int]) -> list[torch.Tensor]:
            x = self._input(head, indices, frame)
            heads = [logits for n in self.networks for logits in n.activations(x)[1]]
            return list(torch.stack(heads).mean(0).squeeze(1))  # (n, size, size)

        (logits,) = self.execution.in_batches((index,), mean_logits)
        return finite(torch.sigmoid(logits))

    def _gradient(self, head: Head, index: int, frame: SliceFrame, scores: Scores) -> FloatArray:
        """Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2), (size, size), its maximum the slice's probability."""
        row = list(scores.kept).index(index)
        features = self.execution.tensor(np.stack(list(scores.kept.values())))  # (inside, members, f)
        weights = [_slice_gradient(n, features[:, m], row) for m, n in enumerate(self.networks)]

        def rectified(indices: Sequence[int]) -> list[torch.Tensor]:
            x = self._input(head, indices, frame)
            cams = []
            for network, weight in zip(self.networks, weights, strict=True):
                h, _ = network.activations(x, auxiliary=False)  # (n, f, h, w)
                cam = functional.relu(torch.einsum("nfhw,f->nhw", h, weight))  # (n, h, w)
                cams.append(_scaled(_enlarged(cam, 4 * self.config.stem_stride, x.shape[-1])))
            return list(torch.stack(cams).mean(0))  # (n, size, size)

        (cam,) = self.execution.in_batches((index,), rectified)
        (probability,) = slice_probabilities(scores.logits[index], self.decision)
        return finite(_scaled(cam[None])[0]) * float(probability)


def _slice_gradient(network: RecurrentAttentionDenseNet, features: torch.Tensor, row: int) -> torch.Tensor:
    """(f,) gradient of a slice's logit by its pooled features: Grad-CAM's weights, as pooling is a mean."""
    # cuDNN has no backward pass for an LSTM in evaluation mode
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        inputs = features.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network.sequence(inputs)[row], inputs)
    return gradient[row]


def _enlarged(cam: torch.Tensor, stride: int, size: int) -> torch.Tensor:
    """(n, h, w) cells of ``stride`` pixels to (n, size, size); pixels left over are as the last."""
    fine = functional.interpolate(cam[:, None], scale_factor=float(stride), mode="bilinear")
    return functional.pad(fine, 2 * (0, size - fine.shape[-1]), mode="replicate").squeeze(1)


def _scaled(cam: torch.Tensor) -> torch.Tensor:
    """(n, size, size) with maximum 1; a map that is 0 everywhere stays so."""
    return cam / cam.amax((1, 2), keepdim=True).clamp(min=torch.finfo(cam.dtype).tiny)


SYSTEM = RadNet
