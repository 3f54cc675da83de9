"""The published network, beside a plain rendering of what the published code does with its own tensor names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from ich_node.findings import IchSubtype
from ich_node.model.bundle_import import live_tensors
from ich_node.model.execution import Execution
from ich_node.model.system import Head, Scores, find_system
from ich_node.model.vicar_published import (
    PublishedDetector,
    PublishedInput,
    VicarPublished,
    VicarPublishedConfig,
    VicarPublishedSystem,
    published_channels,
    published_slice,
)
from tests.unit.little_head import SPACING_MM, little_head
from tests.unit.published_checkpoints import vicar_checkpoint

POOLINGS = ("attention", "max")
MAX_DETECTOR = PublishedDetector(height=0.024, threshold=0.76, distance_pixels=10)


def network(pooling: str, seed: int = 0) -> VicarPublished:
    made = VicarPublished(VicarPublishedConfig(pooling=pooling)).eval()
    made.load_state_dict(live_tensors(vicar_checkpoint(pooling, seed)))
    return made


def system(pooling: str, **options: object) -> VicarPublishedSystem:
    execution = Execution("cpu", "float64", 4)
    return VicarPublishedSystem(
        (execution.place(network(pooling)),),
        VicarPublishedConfig(pooling=pooling),
        PublishedInput(size=64),
        options.get("detector", PublishedDetector() if pooling == "attention" else MAX_DETECTOR),
        execution,
    )


def as_published(state: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(logit, map) with every layer run in the published order, the dead ones too."""

    def unit(name: str, x: torch.Tensor) -> torch.Tensor:
        x = functional.conv2d(x, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], padding=1)
        mean, variance = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        x = functional.batch_norm(x, mean, variance, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"])
        return functional.relu(x)

    def point(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    kept, number = unit("init_conv", x), -1
    for level in range(3):
        if level:
            number += 1
            kept = unit(f"layers.{number}", x)
        for _ in range(2):
            x = kept  # so the first block's output is lost
            for _ in range(3):
                number += 1
                x = unit(f"layers.{number}", x)
            x = x + kept
        x = functional.max_pool2d(x, 2)
    if "conv_final.weight" in state:
        logits = functional.conv2d(x, state["conv_final.weight"], state["conv_final.bias"], padding=1)
        return logits.amax((1, 2, 3)), logits[:, 0]
    gated = torch.tanh(point("attention.conv_tanh", x)) * torch.sigmoid(point("attention.conv_sigm", x))
    energy = point("attention.conv_w", gated)
    weights = (energy.flatten(1).exp() / energy.flatten(1).exp().sum(1, keepdim=True)).view_as(energy)
    pooled = (weights * x).sum((2, 3), keepdim=True)
    return point("attention.conv_final", pooled).flatten(), weights[:, 0]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gives_what_the_published_code_gives(pooling: str):
    x = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = network(pooling)(x)
        logit, evidence = as_published(vicar_checkpoint(pooling), x)
    assert out.evidence.shape == (2, 5, 6)
    torch.testing.assert_close(out.logit, logit)
    torch.testing.assert_close(out.evidence, evidence)
    assert logit[0] != logit[1]


@pytest.mark.parametrize(("pooling", "count"), [("attention", 68726), ("max", 66313)])
def test_size(pooling: str, count: int):
    assert sum(p.numel() for p in VicarPublished(VicarPublishedConfig(pooling=pooling)).parameters()) == count


def test_channels():
    hu = torch.tensor([[[-1024.0, 0, 40, 80, -15, 115, 3000]]])
    wide, brain, subdural = (channel * 1000 + 400 for channel in published_channels(hu + 1024)[0, :, 0])
    assert wide.tolist() == pytest.approx([0, 1024, 1064, 1104, 1009, 1139, 4024], abs=1e-2)
    assert brain.tolist() == pytest.approx([0, 0, 2048, 4096, 0, 4096, 4096], abs=1e-2)
    assert subdural.tolist() == pytest.approx(
        [0, 15 / 130 * 4096, 55 / 130 * 4096, 95 / 130 * 4096, 0, 4096, 4096], abs=1e-2
    )


def test_whole_image_by_the_nearest_pixel():
    image = np.random.default_rng(0).normal(40, 10, (96, 64)).astype(np.float32)
    plain = published_slice(image, PublishedInput(size=32, smoothed=False))
    assert plain.shape == (32, 32)
    assert plain.dtype == np.float32
    for row, column in ((0, 0), (13, 20), (31, 31)):  # each cell is 3 x 2 source pixels
        cell = image[3 * row : 3 * row + 3, 2 * column : 2 * column + 2] + 1024
        assert plain[row, column] in cell
    assert published_slice(image, PublishedInput(size=32)).std() < 0.8 * plain.std()


def test_padding_and_metal():
    image = np.array([[-3024, -1525, -1524, 0], [3071, 30000, 40, 40]], np.float32).repeat(2, 0)
    raw = published_slice(image, PublishedInput(size=4, smoothed=False))
    assert raw[0].tolist() == [0, 0, -500, 1024]
    assert raw[2].tolist() == [4095, 4095, 1064, 1064]


def test_is_found_by_its_name():
    assert find_system("vicar-published") is VicarPublishedSystem


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_slices_whatever_the_batch(pooling: str):
    head = Head(hu=little_head(), spacing_mm=SPACING_MM)
    reads = system(pooling)
    scores = reads.score(head)
    assert reads.classes == (IchSubtype.ANY,)
    assert scores.logits.shape == (len(head.hu), 1)
    inside = np.isin(np.arange(len(head.hu)), head.inside)
    assert np.isfinite(scores.logits[inside]).all()
    assert np.isneginf(scores.logits[~inside]).all()
    assert inside.any()
    assert not inside.all()
    reads.execution.batch = 1
    np.testing.assert_allclose(reads.score(head).logits[inside], scores.logits[inside], rtol=1e-9)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_points_are_where_the_published_map_has_its_maximum(pooling: str):
    """A map made by hand: one cell stands out, and is found on a source grid of oblong pixels."""
    reads = system(pooling)
    head = Head(hu=np.zeros((1, 128, 192), np.float32), spacing_mm=(5.0, 0.9, 0.6))
    evidence = np.full((8, 8), 0.001 if pooling == "attention" else -3.0, np.float32)
    evidence[2, 5] = 0.5 if pooling == "attention" else 2.0
    scores = Scores(logits=np.zeros((1, 1)), kept={0: evidence})
    maps = reads.maps(head, 0, scores)
    shown = maps[IchSubtype.ANY]
    assert shown.shape == (128, 192)
    assert shown.dtype == np.float32
    assert 0 <= shown.min() < 0.1
    assert 0.75 < shown.max() <= 1
    (point,) = reads.places(maps, head.spacing_mm)
    assert point.coordinates == pytest.approx((5.5 * 24, 2.5 * 16), abs=1.01)
    assert point.score == pytest.approx(shown.max())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_threshold_distance_and_height_are_in_published_units(pooling: str):
    low, peaks = (0.001, (0.030, 0.028, 0.02)) if pooling == "attention" else (-1.0, (1.5, 1.2, 0.7))
    evidence = np.full((8, 8), low, np.float32)
    for peak, cell in zip(peaks, ((1, 1), (1, 6), (6, 3)), strict=True):
        evidence[cell] = peak
    head = Head(hu=np.zeros((1, 64, 64), np.float32), spacing_mm=(5.0, 1.0, 1.0))
    threshold = 0.024 if pooling == "attention" else 0.76

    def found(height: float, distance: float) -> int:
        detector = PublishedDetector(height=height, threshold=threshold, distance_pixels=distance)
        reads = system(pooling, detector=detector)
        return len(
            reads.places(reads.maps(head, 0, Scores(logits=np.zeros((1, 1)), kept={0: evidence})), (5, 1, 1))
        )

    assert found(height=0.0001, distance=10) == 2  # the third is below T
    assert found(height=0.0001, distance=45) == 1  # 40 pixels lie between the two
    assert (
        found(height=0.1 if pooling == "attention" else 5.0, distance=10) == 1
    )  # the lower does not rise by h


@pytest.mark.parametrize("pooling", POOLINGS)
def test_nothing_is_placed_where_the_map_was_cut(pooling: str):
    assert system(pooling).places({IchSubtype.ANY: np.zeros((64, 64), np.float32)}, (5.0, 1.0, 1.0)) == ()
