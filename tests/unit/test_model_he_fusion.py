"""System B: its window layer, network, maps and boxes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch.nn import functional

from ich_node.errors import ConfigurationError, RejectionReason, StudyRejected
from ich_node.findings import IchSubtype
from ich_node.model.decision import DecisionConfig
from ich_node.model.execution import Execution
from ich_node.model.he_fusion import (
    CLASSES,
    WINDOWS_HU,
    FusionNetwork,
    HeFusion,
    HeFusionConfig,
    HeFusionLocalization,
    HeFusionPreprocessing,
    WindowLayer,
    largest_box,
)
from ich_node.model.system import Head, find_system
from ich_node.testing.phantom import head_phantom

SMALL = HeFusionConfig(width=0.125, batch_norm=True, reduction=4)
PREPROCESSING = HeFusionPreprocessing(size=64)


def network(config: HeFusionConfig = SMALL, seed: int = 0) -> FusionNetwork:
    torch.manual_seed(seed)
    return FusionNetwork(config).eval()


def slices(count: int = 2, size: int = 64) -> torch.Tensor:
    """Noise of brain, blood, bone and air, (count, 1, size, size) HU."""
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1)) * 120 + 40


# --- the window layer


def test_window_layer_is_its_closed_form():
    windows = ((35.0, 77.0), (-12.5, 300.0), (600.0, 2800.0))
    layer = WindowLayer(windows).double()
    layer.set_windows(windows)
    hu = torch.linspace(-1000, 3000, 4001, dtype=torch.float64)
    shown = layer(hu.view(1, 1, 1, -1))[0, :, 0]
    for channel, (level, width) in enumerate(windows):
        weight = 2 / width * np.log(255 / 1 - 1)
        bias = -2 * level / width * np.log(255 / 1 - 1)
        with np.errstate(over="ignore"):
            expected = 255 / (1 + np.exp(-(weight * hu.numpy() + bias)))
        np.testing.assert_allclose(shown[channel].detach().numpy(), expected, rtol=1e-12)


def test_windows_are_read_back_from_the_weights():
    windows = ((35.0, 77.0), (-12.5, 300.0), (600.0, 2800.0))
    layer = WindowLayer(windows)
    np.testing.assert_allclose(layer.windows_hu(), windows, rtol=1e-6)
    layer.double().set_windows(windows)
    np.testing.assert_allclose(layer.windows_hu(), windows, rtol=1e-14)
    with torch.no_grad():  # as training does: a window of half the width, moved by 10 HU
        layer.weight[0] *= 2
        layer.bias[0] = -layer.weight[0] * 45
    np.testing.assert_allclose(layer.windows_hu()[0], (45, 38.5), rtol=1e-14)


def test_network_begins_with_brain_subdural_and_soft_tissue_window():
    assert WINDOWS_HU == ((40, 80), (80, 200), (40, 380))
    np.testing.assert_allclose(network().window.windows_hu(), WINDOWS_HU, rtol=1e-6)


def test_window_s_ends_show_e_and_u_minus_e():
    layer = WindowLayer().double()
    layer.set_windows(WINDOWS_HU)
    for channel, (level, width) in enumerate(WINDOWS_HU):
        hu = torch.tensor([level - width / 2, level, level + width / 2], dtype=torch.float64)
        shown = layer(hu.view(1, 1, 1, 3))[0, channel, 0].tolist()
        assert shown == pytest.approx([1, 127.5, 254], abs=1e-9)


def test_window_layer_is_safe_far_outside_of_its_windows():
    hu = torch.tensor([-32768.0, -3024, -1000, 40, 3000, 32767]).view(1, 1, 1, -1).requires_grad_()
    layer = WindowLayer()
    shown = layer(hu)
    shown.sum().backward()
    for gradient in (hu.grad, layer.weight.grad, layer.bias.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
    assert (shown.diff(dim=-1) >= 0).all()
    assert shown[..., 0].max() == 0
    assert shown[..., -1].min() == 255


def test_bfloat16_does_not_round_hounsfield_units():
    layer, hu = WindowLayer(), torch.arange(0, 80, 0.25).view(1, 1, 1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        shown = layer(hu)
    assert shown.dtype == torch.float32
    assert torch.equal(shown, layer(hu))


def test_windows_learn_unless_they_are_fixed():
    learning = network()
    learning(slices()).logits.pow(2).sum().backward()
    for name in ("window.weight", "window.bias"):
        gradient = learning.get_parameter(name).grad
        assert gradient is not None
        assert (gradient != 0).all()
    fixed = network(replace(SMALL, window="fixed"))
    fixed.requires_grad_(True)
    assert not [name for name, _ in fixed.named_parameters() if name.startswith("window")]
    fixed(slices()).logits.pow(2).sum().backward()
    assert fixed.window.weight.grad is None
    # one bundle's weights fit either way
    assert fixed.state_dict().keys() == learning.state_dict().keys()


# --- the network


@torch.inference_mode()
def test_shapes_of_every_stage():
    model, x = network(), slices()
    shown = model.window(x)
    assert shown.shape == (2, 3, 64, 64)
    blocks = model.backbone(shown)
    assert [tuple(b.shape) for b in blocks] == [
        (2, 8, 64, 64),
        (2, 16, 32, 32),
        (2, 32, 16, 16),
        (2, 64, 8, 8),
        (2, 64, 4, 4),
    ]
    assert model.shrink3(blocks[2]).shape == (2, 32, 4, 4)
    assert model.shrink4(blocks[3]).shape == (2, 64, 4, 4)
    h = model.fuse(x)
    assert h.shape == (2, 160, 4, 4)
    assert model.channel_attention(h).shape == (2, 160, 1, 1)
    assert model.spatial_attention(h).shape == (2, 1, 4, 4)
    out = model(x)
    assert out.logits.shape == (2, 6)
    assert out.cam.shape == out.position_logits.shape == (2, 6, 4, 4)


def test_full_configuration_is_vgg_16_with_its_heads():
    with torch.device("meta"):
        full = FusionNetwork(HeFusionConfig())
    assert full.backbone.channels == (64, 128, 256, 512, 512)
    assert sum(p.numel() for p in full.backbone.parameters()) == 14_714_688  # VGG-16 without its dense layers
    assert full.classifier.weight.shape == (6, 1280)
    assert sum(p.numel() for p in full.parameters()) == 18_468_606


@pytest.mark.parametrize("fusion", [True, False])
@torch.inference_mode()
def test_mean_of_the_activation_map_and_the_bias_are_the_logit(fusion: bool):
    model, x = network(replace(SMALL, fusion=fusion)), slices(3)
    model.classifier.bias.copy_(torch.linspace(-2, 2, 6))
    out = model(x)
    assert out.logits.std() > 0.01
    torch.testing.assert_close(out.cam.mean((2, 3)) + model.classifier.bias, out.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.position_logits.mean((2, 3)), out.logits, atol=1e-5, rtol=0)
    # as the paper has it: global average pooling first, then the classifier
    pooled_first = model.classifier(model.fuse(x).mean((2, 3)))
    torch.testing.assert_close(pooled_first, out.logits, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_attention_follows_cbam():
    model = network()
    h = torch.rand(2, 160, 4, 4, generator=torch.Generator().manual_seed(2))
    first, _, second = model.channel_attention.bottleneck

    def bottleneck(v: torch.Tensor) -> torch.Tensor:
        return (v @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias

    expected = 1 / (1 + torch.exp(-bottleneck(h.mean((2, 3))) - bottleneck(h.flatten(2).max(2).values)))
    torch.testing.assert_close(model.channel_attention(h)[:, :, 0, 0], expected)
    assert first.weight.shape == (40, 160)
    both = torch.stack([h.mean(1), h.max(1).values], dim=1)
    drive = functional.conv2d(both, model.spatial_attention.conv.weight, padding=3)
    torch.testing.assert_close(model.spatial_attention(h), 1 / (1 + torch.exp(-drive)))


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, fusion=False), replace(SMALL, batch_norm=False), replace(SMALL, window="fixed")],
)
def test_every_parameter_learns(config: HeFusionConfig):
    model = network(config).train()
    weights = torch.linspace(-1, 2, 12).view(2, 6)
    (model(slices()).logits * weights).sum().backward()
    modules = dict(model.named_modules())
    assert config.batch_norm == any(isinstance(m, torch.nn.BatchNorm2d) for m in modules.values())
    dead = {n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6}
    convolutions = {f"{n}.bias" for n, m in modules.items() if isinstance(m, torch.nn.Conv2d)}
    # batch normalization takes away what a bias before it adds
    assert dead <= (convolutions if config.batch_norm else set())


@torch.inference_mode()
def test_without_fusion_the_classifier_sees_c5_alone():
    alone = network(replace(SMALL, fusion=False))
    assert alone.fuse(slices()).shape == (2, 64, 4, 4)
    assert not [name for name in alone.state_dict() if name.startswith("shrink")]
    fused = network()
    before = fused(slices()).logits
    fused.shrink3[0].weight.zero_()
    assert (fused(slices()).logits - before).abs().max() > 1e-4


@torch.inference_mode()
def test_batch_size_does_not_change_results():
    x, model = slices(5), network()
    together = model(x).logits
    alone = torch.cat([model(x[i : i + 1]).logits for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_float32_is_close_to_float64():
    single, double = network(), network().double()
    torch.testing.assert_close(
        single(slices()).position_logits.double(),
        double(slices().double()).position_logits,
        atol=1e-4,
        rtol=0,
    )
    with torch.autocast("cpu", torch.bfloat16):
        half = single(slices())
    assert half.logits.dtype == torch.float32
    torch.testing.assert_close(half.logits, single(slices()).logits, atol=0.05, rtol=0)


@torch.inference_mode()
def test_seed_decides_everything():
    assert torch.equal(network(seed=3)(slices()).cam, network(seed=3)(slices()).cam)
    assert not torch.equal(network(seed=3)(slices()).cam, network(seed=4)(slices()).cam)


def test_dropout_works_on_whole_channels_while_training_only():
    model, x = network(replace(SMALL, dropout=0.5, batch_norm=False)), slices()
    with torch.inference_mode():
        assert torch.equal(model(x).logits, model(x).logits)
        model.train()
        first = model(x)
        assert not torch.equal(first.logits, model(x).logits)
        mean = first.cam.mean((2, 3)) + model.classifier.bias
        torch.testing.assert_close(mean, first.logits, atol=1e-5, rtol=0)


# --- torchvision's weights

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def torchvision_vgg16(batch_norm: bool) -> dict[str, torch.Tensor]:
    """Random weights under the names and in the shapes of torchvision's ``vgg16`` and ``vgg16_bn``."""
    generator = torch.Generator().manual_seed(5)
    state, index, before = {}, 0, 3
    for entry in VGG16:
        if isinstance(entry, str):
            index += 1
            continue
        scale = (2 / (9 * before)) ** 0.5
        state[f"features.{index}.weight"] = torch.randn(entry, before, 3, 3, generator=generator) * scale
        state[f"features.{index}.bias"] = torch.randn(entry, generator=generator) * 0.1
        if batch_norm:
            for name in ("weight", "bias", "running_mean", "running_var"):
                state[f"features.{index + 1}.{name}"] = torch.rand(entry, generator=generator) + 0.5
            state[f"features.{index + 1}.num_batches_tracked"] = torch.tensor(7)
        index, before = index + (3 if batch_norm else 2), entry
    return state | {"classifier.0.weight": torch.zeros(1), "classifier.6.bias": torch.zeros(1000)}


def empty_full(batch_norm: bool = False) -> FusionNetwork:
    """The full network, its weights not drawn."""
    with torch.device("meta"):
        model = FusionNetwork(HeFusionConfig(batch_norm=batch_norm))
    return model.to_empty(device="cpu").eval()


def test_names_of_the_convolutions_of_vgg_16():
    indices = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    state = torchvision_vgg16(batch_norm=False)
    assert [name for name in state if name.endswith("weight")][:-1] == [
        f"features.{i}.weight" for i in indices
    ]
    assert set(state) - {"classifier.0.weight", "classifier.6.bias"} == {
        name.removeprefix("backbone.") for name in empty_full().state_dict() if name.startswith("backbone.")
    }


@torch.inference_mode()
def test_backbone_with_torchvision_s_weights_is_vgg_16():
    state, model = torchvision_vgg16(batch_norm=False), empty_full()
    model.load_imagenet(state)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    found = model.backbone(x)
    index, blocks = 0, []
    for entry in VGG16:
        if isinstance(entry, str):
            blocks.append(x)
            x = functional.max_pool2d(x, 2)
            index += 1
        else:
            weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
            x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
            index += 2
    for one, expected in zip(found, blocks, strict=True):
        torch.testing.assert_close(one, expected)


def test_torchvision_s_weights_with_batch_normalization():
    state, model = torchvision_vgg16(batch_norm=True), empty_full(batch_norm=True)
    model.load_imagenet(state)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_weights_of_another_model_are_refused():
    state = torchvision_vgg16(batch_norm=False)
    with pytest.raises(RuntimeError, match=r"Missing key.*28\.bias"):
        empty_full().load_imagenet({k: v for k, v in state.items() if k != "features.28.bias"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*30\.weight"):
        empty_full().load_imagenet(state | {"features.30.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        empty_full(batch_norm=True).load_imagenet(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        network(replace(SMALL, batch_norm=False)).load_imagenet(state)


# --- boxes


def box_of(cam: np.ndarray, *, bias: float = -1.0, outside: np.ndarray | None = None, **options: float):
    """The box of a class activation map, given as its likelihoods."""
    likelihood = 1 / (1 + np.exp(-(cam + bias)))
    if outside is not None:
        likelihood[outside] = 0
    neutral = 1 / (1 + np.exp(-bias))
    config = HeFusionLocalization(**options)
    return largest_box(likelihood.astype(np.float32), neutral, IchSubtype.SUBDURAL, config)


def test_box_ends_at_the_outer_edges_of_its_pixels():
    cam = np.zeros((40, 60))
    cam[10:13, 20:29] = 3
    box = box_of(cam)
    assert (box.kind, box.subtype) == ("box", IchSubtype.SUBDURAL)
    assert box.coordinates == (20, 10, 29, 13)
    assert box.score == pytest.approx(1 / (1 + np.exp(-2)))


@pytest.mark.parametrize("bias", [-6.0, -1.0, 0.0, 2.0])
def test_box_holds_what_reaches_a_fifth_of_the_activation_s_maximum(bias: float):
    """Whatever the bias; what speaks against the class is no part of it."""
    cam = np.full((40, 60), -5.0)
    cam[20, 10:50] = [*range(-5, 20), *range(19, 4, -1)]  # rises by 1 a column to 19, and 19 down to 5
    assert box_of(cam[:, ::-1] / 2, bias=bias).coordinates == (10, 20, 41, 21)
    # from column 19 on, whose 4 is the first above 3.8
    assert box_of(cam / 2, bias=bias).coordinates == (19, 20, 50, 21)
    assert box_of(cam / 2, bias=bias, fraction=0.5).coordinates == (25, 20, 45, 21)


def test_of_two_components_the_larger_one_is_boxed_even_if_the_other_is_brighter():
    cam = np.zeros((40, 60))
    cam[2:5, 2:5] = 8
    cam[20:30, 30:50] = 3
    box = box_of(cam)
    assert box.coordinates == (30, 20, 50, 30)
    assert box.score == pytest.approx(1 / (1 + np.exp(-2)))
    cam[20:30, 30:50] = 1.5  # less than a fifth of 8
    assert box_of(cam).coordinates == (2, 2, 5, 5)


def test_diagonal_neighbours_hang_together():
    cam = np.zeros((40, 60))
    cam[range(5, 15), range(5, 15)] = 4
    cam[30, 30:35] = 4
    assert box_of(cam).coordinates == (5, 5, 15, 15)


def test_box_at_the_border_and_over_the_whole_image():
    cam = np.zeros((40, 60))
    cam[:4, 55:] = 4
    assert box_of(cam).coordinates == (55, 0, 60, 4)
    assert box_of(np.full((40, 60), 4.0)).coordinates == (0, 0, 60, 40)
    assert box_of(np.full((40, 60), 100.0)).coordinates == (0, 0, 60, 40)  # a likelihood of exactly 1


def test_maximum_is_that_of_the_intracranial_space():
    cam = np.zeros((40, 60))
    cam[10:14, 10:14] = 3
    cam[30:38, 30:50] = 16  # an orbit, say
    outside = np.zeros((40, 60), bool)
    outside[25:] = True
    assert box_of(cam, outside=outside).coordinates == (10, 10, 14, 14)
    assert box_of(cam).coordinates == (30, 30, 50, 38)


def test_empty_or_weak_map_has_no_box():
    zero = np.zeros((40, 60))
    assert box_of(zero) is None
    assert box_of(zero, bias=3.0) is None  # likely everywhere, but no place speaks for it
    assert box_of(zero, outside=zero == 0, threshold=0.0) is None
    weak = zero.copy()
    weak[5:9, 5:9] = 0.9
    assert box_of(weak) is None
    assert box_of(weak, threshold=0.4).coordinates == (5, 5, 9, 9)


def test_places_are_boxes_of_each_class_highest_first_in_pixels_whatever_the_spacing():
    maps = {subtype: np.zeros((40, 60), np.float32) for subtype in CLASSES}
    maps[IchSubtype.ANY][5:9, 10:30] = 0.7
    maps[IchSubtype.EPIDURAL][5:9, 10:30] = 0.95
    maps[IchSubtype.SUBDURAL][5:9, 10:30] = 0.3
    found = system().places(maps, (5.0, 0.4, 1.1))
    assert [(p.subtype, p.coordinates) for p in found] == [
        (IchSubtype.EPIDURAL, (10, 5, 30, 9)),
        (IchSubtype.ANY, (10, 5, 30, 9)),
    ]
    assert [p.score for p in found] == pytest.approx([0.95, 0.7])


# --- preprocessing


def test_whole_image_is_brought_to_the_size_whatever_its_shape():
    image = np.full((96, 128), -1000, np.float32)
    image[24:72, 64:96] = 60
    cut = HeFusionPreprocessing(size=64).network_input(image, (5.0, 1.0, 0.5))
    assert (cut.shape, cut.dtype) == ((64, 64), np.float32)
    rows, columns = np.nonzero(cut > -470)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 47, 32, 47)


def test_pitch_shows_every_spacing_at_one_scale_around_the_image_s_centre():
    preprocessing = HeFusionPreprocessing(size=64, pitch_mm=2.0)
    for spacing in ((5.0, 1.0, 0.5), (5.0, 0.5, 1.0)):
        shape = (round(120 / spacing[1]), round(120 / spacing[2]))
        y = (np.arange(shape[0]) - (shape[0] - 1) / 2) * spacing[1]
        x = (np.arange(shape[1]) - (shape[1] - 1) / 2) * spacing[2]
        image = np.where(np.hypot(y[:, None], x) < 40, 60, -1000).astype(np.float32)
        cut = preprocessing.network_input(image, spacing)
        assert (cut > -470).sum() * 4 == pytest.approx(np.pi * 40**2, rel=0.05)
        np.testing.assert_allclose(cut, cut[::-1, ::-1], atol=1)
        assert cut[0, 0] == -1000


def test_metal_and_padding_are_clipped_before_they_are_averaged():
    image = np.full((128, 128), 40, np.float32)
    image[64, 64], image[10, 10] = 30000, -3024
    plain = image.copy()
    plain[64, 64], plain[10, 10] = 1000, -1000
    one, other = (HeFusionPreprocessing(size=64).network_input(i, (5.0, 1.0, 1.0)) for i in (image, plain))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("size", [0, -16, 250])
def test_size_that_the_scales_do_not_share_is_refused(size: int):
    with pytest.raises(ConfigurationError, match="multiple of 16"):
        HeFusionPreprocessing(size=size)


# --- in the node


@lru_cache
def head() -> Head:
    phantom = head_phantom(bleeds=(IchSubtype.SUBDURAL,), seed=1, rows=128, columns=128, slices=12)
    air = np.full((2, 128, 128), -1000, np.float32)  # above the vertex nothing is to be scored
    return Head(hu=np.concatenate([phantom.hu, air]), spacing_mm=phantom.spacing_mm)


def system(*seeds: int, batch: int = 16, decision: DecisionConfig | None = None) -> HeFusion:
    execution = Execution("cpu", batch=batch)
    networks = tuple(execution.place(network(seed=seed)) for seed in seeds or (0,))
    localization = HeFusionLocalization()
    return HeFusion(networks, SMALL, PREPROCESSING, localization, execution, decision or DecisionConfig())


def test_it_is_found_by_its_name():
    assert find_system("he-fusion") is HeFusion
    assert system().classes == tuple(IchSubtype)
    assert isinstance(HeFusion.network(SMALL), FusionNetwork)


def test_slices_without_intracranial_space_are_not_scored():
    scores = system().score(head())
    assert scores.logits.shape == (14, 6)
    assert scores.logits.dtype == np.float64
    inside = np.isin(np.arange(14), head().inside)
    assert inside.any()
    assert not inside[-2:].any()
    assert np.isfinite(scores.logits[inside]).all()
    assert np.isneginf(scores.logits[~inside]).all()
    assert sorted(scores.kept) == list(head().inside)


def test_score_is_the_network_s_and_an_ensemble_s_the_mean():
    index = head().inside[0]
    cut = PREPROCESSING.network_input(head().hu[index], head().spacing_mm)
    with torch.inference_mode():
        outputs = [network(seed=s)(torch.from_numpy(cut)[None, None]) for s in (0, 1)]
    one, other, both = (system(*seeds).score(head()) for seeds in ((0,), (1,), (0, 1)))
    for scores, output in zip((one, other), outputs, strict=True):
        np.testing.assert_allclose(scores.logits[index], output.logits[0], atol=1e-5)
    inside = list(head().inside)
    assert np.abs(one.logits[inside] - other.logits[inside]).max() > 0.01
    mean = (one.logits[inside] + other.logits[inside]) / 2
    np.testing.assert_allclose(both.logits[inside], mean, atol=1e-5)


def test_scores_and_maps_do_not_depend_on_the_batch():
    many, few = system(batch=16), system(batch=5)
    scores, fewer = many.score(head()), few.score(head())
    np.testing.assert_allclose(scores.logits, fewer.logits, atol=1e-5)
    index = head().inside[-1]
    for subtype, likelihood in many.maps(head(), index, scores).items():
        np.testing.assert_allclose(likelihood, few.maps(head(), index, fewer)[subtype], atol=1e-5)


def test_maps_are_calibrated_likelihoods_on_the_source_grid():
    decision = DecisionConfig(scale=2.0, offset=-0.7)
    reader = system(decision=decision)
    scores = reader.score(head())
    index = head().inside[2]
    maps = reader.maps(head(), index, scores)
    assert tuple(maps) == CLASSES
    grid = scores.kept[index]
    np.testing.assert_allclose(grid.mean((1, 2)), scores.logits[index], atol=1e-5)
    for one, likelihood in zip(grid, maps.values(), strict=True):
        assert (likelihood.shape, likelihood.dtype) == ((128, 128), np.float32)
        assert 0 <= likelihood.min() <= likelihood.max() <= 1
        # 4 x 4 positions on 128 x 128 pixels: the corner's own centre is half way between pixels 15 and 16
        corner = 1 / (1 + np.exp(-(2.0 * float(one[0, 0]) - 0.7)))
        assert likelihood[0, 0] == pytest.approx(corner, abs=1e-6)


def test_map_shows_a_position_where_it_lies_in_the_image():
    reader = system()
    wide = Head(hu=head().hu[:, 16:112], spacing_mm=head().spacing_mm)  # 96 rows, 128 columns
    scores = reader.score(wide)
    index = wide.inside[0]
    logits = np.full((6, 4, 4), -20, np.float32)
    logits[CLASSES.index(IchSubtype.EPIDURAL), 1, 3] = 20
    maps = reader.maps(wide, index, replace(scores, kept={index: logits}))
    assert maps[IchSubtype.SUBDURAL].max() < 1e-6
    rows, columns = np.nonzero(maps[IchSubtype.EPIDURAL] > 0.5)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (24, 47, 96, 127)
    (box,) = reader.places(maps, wide.spacing_mm)
    assert box.subtype is IchSubtype.EPIDURAL
    left, top, right, bottom = box.coordinates
    # a fifth of the maximum lies a few pixels inside the line where the likelihood is one half
    assert 96 < left < 102
    assert 24 < top < 30
    assert right == 128
    assert 42 < bottom < 48


def test_boxes_are_those_of_the_activation_map_whatever_bias_and_calibration():
    found = []
    for bias, decision in ((0.0, DecisionConfig()), (-3.0, DecisionConfig(scale=0.8, offset=1.5))):
        reader = system(0, 1, decision=decision)
        for member in reader.networks:
            member.get_parameter("classifier.bias").fill_(bias)
        scores = reader.score(head())
        index = head().inside[3]
        cam = np.full((6, 4, 4), -2, np.float32)
        cam[2, 1:3, 1] = (10, 6)
        kept = {index: cam + np.float32(bias)}
        maps = reader.maps(head(), index, replace(scores, kept=kept))
        found.append(reader.places(maps, head().spacing_mm))
    assert [p.subtype for places in found for p in places] == [CLASSES[2]] * 2
    assert found[0][0].coordinates == found[1][0].coordinates


def test_output_that_is_no_number_is_refused():
    broken = system()
    broken.networks[0].get_parameter("classifier.bias").fill_(float("nan"))
    with pytest.raises(StudyRejected) as rejected:
        broken.score(head())
    assert rejected.value.reason is RejectionReason.INVALID_MODEL_OUTPUT


def test_it_learns_what_blood_is():
    """A few steps on disks of brain with and without a spot 30 HU brighter."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    brain = torch.where(torch.hypot(y - 31.5, x - 31.5) < 28, 35.0, -1000.0)
    centres = torch.tensor([(20 + 24 * (i % 2), 18 + 26 * (i // 2)) for i in range(4)])
    spots = torch.stack([torch.hypot(y - r, x - c) < 7 for r, c in centres])
    x = torch.cat([brain + 30 * spots, brain.expand(4, 64, 64)])[:, None]
    labels = torch.cat([torch.ones(4, 6), torch.zeros(4, 6)])
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        noisy = x + torch.randn_like(x) * 3
        functional.binary_cross_entropy_with_logits(model(noisy).logits, labels).backward()
        optimizer.step()
    with torch.inference_mode():
        out = model.eval()(x)
    assert (out.logits[:4] > 0).all()
    assert (out.logits[4:] < 0).all()
