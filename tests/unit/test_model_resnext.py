"""ResNeXt: the published layout, and what its parts do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ich_node.errors import ConfigurationError
from ich_node.model.resnext import Bottleneck, ResNeXt, ResNeXtConfig, named_config

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Convolutions this small wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch_norm(name: str, channels: int) -> Shapes:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (channels,) for kind in kinds} | {f"{name}.num_batches_tracked": ()}


def published_layout() -> Shapes:
    """Names and shapes of ResNeXt-101 32x8d by table 1 of the paper and torchvision's naming, by hand."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7)} | batch_norm("bn1", 64)
    before = 64
    # (blocks, channels inside a block, channels out of it)
    for layer, (blocks, inside, out) in enumerate(
        [(3, 256, 256), (4, 512, 512), (23, 1024, 1024), (3, 2048, 2048)], start=1
    ):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            shapes |= {f"{name}.conv1.weight": (inside, before, 1, 1)} | batch_norm(f"{name}.bn1", inside)
            # each of 32 groups sees its own 32nd of the channels
            shapes |= {f"{name}.conv2.weight": (inside, inside // 32, 3, 3)}
            shapes |= batch_norm(f"{name}.bn2", inside)
            shapes |= {f"{name}.conv3.weight": (out, inside, 1, 1)} | batch_norm(f"{name}.bn3", out)
            if block == 0:
                shapes |= {f"{name}.downsample.0.weight": (out, before, 1, 1)}
                shapes |= batch_norm(f"{name}.downsample.1", out)
            before = out
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def test_the_defaults_are_resnext_101_32x8d_as_published():
    with torch.device("meta"):
        network = ResNeXt(ResNeXtConfig())
    assert {key: tuple(t.shape) for key, t in network.state_dict().items()} == published_layout()
    assert sum(p.numel() for p in network.parameters()) == 88_791_336


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnext50_32x4d", 25_028_904), ("resnext101_64x4d", 83_455_272)]
)
def test_other_published_sizes(name: str, parameters: int):
    config = named_config(name, 1000)
    assert config is not None
    with torch.device("meta"):
        network = ResNeXt(config)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_names():
    assert named_config("resnext101_32x8d", 1000) == ResNeXtConfig()
    assert named_config("efficientnet_lite0", 6) is None
    assert named_config("resnext50_0x4d", 6) is None
    with pytest.raises(ConfigurationError, match="not 51"):
        named_config("resnext51_32x4d", 6)


@torch.no_grad()
def test_a_block_adds_its_input():
    torch.manual_seed(0)
    block = Bottleneck(16, 4, 8, 2, 1).eval()
    block.conv3.weight.zero_()
    x = torch.randn(1, 16, 5, 5)
    assert block.downsample is None
    assert torch.equal(block(x), x.relu())


@torch.no_grad()
def test_the_stride_is_in_the_middle_convolution_and_in_the_shortcut():
    """The order of torchvision; He et al. have it in the first convolution, with the same shapes."""
    block = Bottleneck(16, 8, 8, 2, 2)
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))
    assert block(torch.zeros(1, 16, 6, 6)).shape == (1, 32, 3, 3)


@torch.no_grad()
def test_maps_are_at_a_thirty_second_and_the_logits_come_from_their_mean():
    torch.manual_seed(0)
    config = named_config("resnext14_2x4d", 6)
    assert config is not None
    network = ResNeXt(config).eval()
    x = torch.randn(2, 3, 96, 64)
    maps = network.feature_maps(x)
    assert maps.shape == (2, 2048, 3, 2)
    by_hand = maps.flatten(2).mean(2) @ network.fc.weight.T + network.fc.bias
    assert torch.allclose(network(x), by_hand, atol=1e-5)
    assert network(x).std() > 1e-4
