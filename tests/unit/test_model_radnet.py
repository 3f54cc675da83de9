"""System C: network, loss, geometry, and reading of a head."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ich_node.errors import StudyRejected
from ich_node.findings import IchSubtype
from ich_node.model.decision import DecisionConfig
from ich_node.model.execution import Execution
from ich_node.model.localization import DetectorConfig
from ich_node.model.preprocess import cut_out, on_source_grid
from ich_node.model.radnet import (
    AuxiliaryHead,
    LossWeights,
    RadNet,
    RadNetConfig,
    RadNetOutput,
    RadNetPreprocessing,
    RecurrentAttentionDenseNet,
    frame_of,
    radnet_loss,
    windowed,
)
from ich_node.model.system import Head, Scores, find_system
from ich_node.testing.phantom import head_phantom


@pytest.fixture(autouse=True)
def one_thread():
    """Layers this small are slower on several threads, by far where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SMALL = RadNetConfig(growth=4, layers_per_block=2, initial_channels=4, lstm_width=6, stem_stride=2)
COARSE = RadNetPreprocessing(size=62, pitch_mm=4.0)


def network(config: RadNetConfig = SMALL, seed: int = 0) -> RecurrentAttentionDenseNet:
    torch.manual_seed(seed)
    return RecurrentAttentionDenseNet(config).eval()


def system(
    config: RadNetConfig = SMALL,
    preprocessing: RadNetPreprocessing = COARSE,
    *,
    members: tuple[RecurrentAttentionDenseNet, ...] = (),
    **execution: Any,
) -> RadNet:
    run = Execution(device="cpu", **execution)
    networks = tuple(run.place(n) for n in members or (network(config),))
    return RadNet(networks, config, preprocessing, DetectorConfig(), run)


@lru_cache
def head() -> Head:
    """A head with slices below and above the intracranial space."""
    phantom = head_phantom(
        bleeds=(IchSubtype.INTRAPARENCHYMAL,), seed=1, rows=128, columns=128, slices=12, slice_spacing_mm=12
    )
    return Head(hu=phantom.hu, spacing_mm=phantom.spacing_mm)


def scans(slices: int = 3, size: int = 40) -> torch.Tensor:
    return torch.rand(slices, 1, size, size, generator=torch.Generator().manual_seed(1))


def see_through(config: RadNetConfig) -> RecurrentAttentionDenseNet:
    """A network set by hand: channel 0 is the input, averaged over cells, and each head shows it as 8 x - 4."""
    net = network(replace(config, dropout=0.0))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
        stride = config.stem_stride
        net.stem.weight[0, 0, 1 : 1 + stride, 1 : 1 + stride] = 1 / stride**2
        for transition in net.transitions:
            transition[2].weight[0, 0] = 1
        for auxiliary in net.auxiliary:
            auxiliary.score[2].weight[0, 0] = 8
            auxiliary.deconvolution.bias.fill_(-4)
    return net


def blob(rows: int, columns: int, row: float, column: float, spacing: tuple[float, float], mm: float) -> Any:
    """(rows, columns) float32, 1 at a place, falling off like a Gaussian of a width in mm."""
    r, c = np.mgrid[:rows, :columns]
    distance = np.hypot((r - row) * spacing[0], (c - column) * spacing[1])
    return np.exp(-0.5 * (distance / mm) ** 2).astype(np.float32)


def middle(image: Any) -> tuple[float, float]:
    """Centre of gravity, (row, column)."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((rows * image).sum() / image.sum()), float((columns * image).sum() / image.sum())


# the network


def test_has_the_forty_layers_of_densenet_40():
    net = network(RadNetConfig())
    weighted = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith("auxiliary")
    ]
    assert len(weighted) == 40
    assert [sum(name.startswith(f"blocks.{b}.") for name in weighted) for b in range(3)] == [12, 12, 12]
    assert sum(name.startswith("transitions.") for name in weighted) == 2
    assert isinstance(net.lstm, nn.LSTM)
    assert net.lstm.bidirectional
    assert net.lstm.num_layers == 1


def test_widths_and_parameters_of_densenet_40():
    net = network(RadNetConfig(lstm=False, attention=False))
    assert [block.layers[0][0].num_features for block in net.blocks] == [16, 160, 304]
    assert net.classifier.in_features == 448
    # Huang et al. (table 2) have 1.0 M; by hand: 3x3 and 1x1 convolutions, normalizations, classifier
    layers = (
        [16 + 12 * i for i in range(12)]
        + [160 + 12 * i for i in range(12)]
        + [304 + 12 * i for i in range(12)]
    )
    by_hand = 9 * 16 + sum(9 * 12 * w + 2 * w for w in layers) + 160**2 + 304**2 + 2 * (160 + 304 + 448) + 449
    assert sum(p.numel() for p in net.parameters()) == by_hand == 1_015_393
    assert sum(p.numel() for p in network(RadNetConfig()).parameters()) == 1_609_901


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
@torch.inference_mode()
def test_auxiliary_outputs_have_the_size_of_the_input(stem_stride: int):
    net = network(replace(SMALL, growth=1, layers_per_block=1, initial_channels=1, stem_stride=stem_stride))
    h, auxiliary = net.activations(scans(1, 250))
    assert [tuple(a.shape) for a in auxiliary] == [(1, 1, 250, 250)] * 3
    assert h.shape == (1, 4, 250 // stem_stride // 4, 250 // stem_stride // 4)
    assert h.min() == 0  # DenseNet pools what the last ReLU leaves


@torch.inference_mode()
def test_shapes_of_a_scan():
    net = network()
    pooled, auxiliary = net.features(scans(5, 32))
    assert pooled.shape == (5, 4 + 3 * 2 * 4)
    assert len(auxiliary) == 3
    assert net.sequence(pooled).shape == (5,)
    assert net(scans(1, 32)).logits.shape == (1,)
    without, none = net.features(scans(5, 32), auxiliary=False)
    assert none == []
    assert torch.equal(without, pooled)


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
@torch.inference_mode()
def test_heads_shift_nothing(stem_stride: int):
    """Stem, transitions and deconvolutions agree where a cell lies, though 250 is no multiple of 4, 8 or 16."""
    net = see_through(replace(SMALL, stem_stride=stem_stride))
    image = blob(250, 250, 97.0, 161.5, (1.0, 1.0), 12.0)
    for logits in net(torch.from_numpy(image)[None, None]).auxiliary:
        seen = (logits[0, 0].numpy() + 4) / 8
        assert seen.sum() == pytest.approx(image.sum(), rel=1e-3)
        assert middle(seen) == pytest.approx((97.0, 161.5), abs=0.05)


@torch.inference_mode()
def test_context_reaches_every_slice_from_both_ends():
    net = network()
    pooled, _ = net.features(scans(6))
    logits = net.sequence(pooled)
    for changed in (0, 5):
        other = pooled.clone()
        other[changed] += 1
        assert ((net.sequence(other) - logits).abs() > 1e-7).all()
    assert not torch.allclose(net.sequence(pooled.flip(0)).flip(0), logits, atol=1e-4)


@torch.inference_mode()
def test_without_the_lstm_slices_are_read_alone():
    net = network(replace(SMALL, lstm=False))
    pooled, _ = net.features(scans(4))
    assert torch.allclose(net.sequence(pooled)[2], net.sequence(pooled[2:3])[0], atol=1e-6)
    assert not hasattr(net, "lstm")


def test_attention_is_a_training_task_only():
    """Its heads are an ablation: without them the same weights say the same of a scan."""
    net, bare = network(), network(replace(SMALL, attention=False))
    rest = {k: v for k, v in net.state_dict().items() if not k.startswith("auxiliary.")}
    bare.load_state_dict(rest)
    assert torch.equal(net(scans()).logits, bare(scans()).logits)
    assert bare(scans()).auxiliary == []


def test_weights_of_a_network_without_lstm_start_one_with():
    alone = network(replace(SMALL, lstm=False), seed=3).state_dict()
    alone = {k: v for k, v in alone.items() if not k.startswith("classifier.")}
    missing, unexpected = network().load_state_dict(alone, strict=False)
    assert unexpected == []
    assert {name.split(".")[0] for name in missing} == {"lstm", "classifier"}


def test_every_parameter_learns():
    net = network().train()
    out = net(scans(4))
    label = torch.tensor([0.0, 1, 1, 0])
    radnet_loss(out, label, (scans(4)[:, 0] > 0.5).float(), LossWeights()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_few_steps_of_training_find_a_bright_square():
    x = 0.2 * scans(6, 24)
    masks = torch.zeros(6, 24, 24)
    masks[2:4, 4:14, 10:20] = 1
    x[:, 0] += 0.6 * masks
    label = masks.amax((1, 2))
    net = network(replace(SMALL, stem_stride=1)).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(radnet_loss(net(x), label, masks, LossWeights()))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    finest = net(x).auxiliary[0][2, 0] > 0
    assert (finest & (masks[2] > 0)).sum() / (finest | (masks[2] > 0)).sum() > 0.8


def test_dropout_is_for_training_only():
    net = network(replace(SMALL, dropout=0.5))
    assert torch.equal(net(scans()).logits, net(scans()).logits)
    net.train()
    assert not torch.equal(net(scans()).logits, net(scans()).logits)


# the loss


def output(logits: list[float], *auxiliary: float) -> RadNetOutput:
    """Of two slices of 2 x 2 pixels, each head the same logit everywhere."""
    return RadNetOutput(torch.tensor(logits), [torch.full((2, 1, 2, 2), a) for a in auxiliary])


def cross_entropy(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


MASKS = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
LABEL = torch.tensor([1.0, 0.0])


def test_loss_by_hand():
    loss = radnet_loss(
        output([2.0, -1.0], 0.5, 0.0, -3.0), LABEL, MASKS, LossWeights(label=2.0, auxiliary=(1.0, 0.5, 0.25))
    )
    label = (cross_entropy(2, 1) + cross_entropy(-1, 0)) / 2
    heads = [(cross_entropy(a, 1) + 7 * cross_entropy(a, 0)) / 8 for a in (0.5, 0.0, -3.0)]
    assert float(loss) == pytest.approx(2 * label + heads[0] + 0.5 * heads[1] + 0.25 * heads[2], rel=1e-6)


def test_pixels_of_hemorrhage_can_count_more():
    weights = LossWeights(label=0.0, auxiliary=(1.0,), positive_pixel=5.0)
    loss = radnet_loss(output([0.0, 0.0], 1.5), LABEL, MASKS, weights)
    assert float(loss) == pytest.approx(
        (5 * cross_entropy(1.5, 1) + 7 * cross_entropy(1.5, 0)) / 12, rel=1e-6
    )


@pytest.mark.parametrize("absent", [0.0, 1.0, math.nan])
def test_slices_without_contours_have_no_part_in_segmentation(absent: float):
    masks = MASKS.clone()
    masks[1] = absent
    out = output([0.0, 0.0], 1.5)
    out.auxiliary[0].requires_grad_()
    present = torch.tensor([1.0, 0.0])[:, None, None]
    loss = radnet_loss(out, LABEL, masks, LossWeights(label=0, auxiliary=(1.0,)), pixel_weights=present)
    loss.backward()
    gradient = out.auxiliary[0].grad
    assert float(loss.detach()) == pytest.approx(
        (cross_entropy(1.5, 1) + 3 * cross_entropy(1.5, 0)) / 4, rel=1e-6
    )
    assert gradient is not None
    assert gradient[0].all()
    assert (gradient[1] == 0).all()


def test_single_pixels_can_be_weighed():
    weights = torch.zeros(2, 2, 2)
    weights[0, 0, 0], weights[1, 1, 1] = 3.0, 1.0
    loss = radnet_loss(
        output([0.0, 0.0], 1.5), LABEL, MASKS, LossWeights(label=0, auxiliary=(1.0,)), pixel_weights=weights
    )
    assert float(loss) == pytest.approx((3 * cross_entropy(1.5, 1) + cross_entropy(1.5, 0)) / 4, rel=1e-6)


@pytest.mark.parametrize("masks", [None, MASKS])
def test_where_nothing_has_contours_the_label_is_left(masks: torch.Tensor | None):
    nothing = torch.zeros(2, 1, 1)
    loss = radnet_loss(output([0.0, 0.0], 9.0, 9.0, 9.0), LABEL, masks, LossWeights(), pixel_weights=nothing)
    assert float(loss) == pytest.approx(math.log(2))


def test_loss_of_a_network_without_attention_is_the_label_s():
    assert float(radnet_loss(output([0.0, 0.0]), LABEL, MASKS, LossWeights())) == pytest.approx(math.log(2))


def test_each_head_needs_its_weight():
    with pytest.raises(ValueError, match="zip"):
        radnet_loss(output([0.0, 0.0], 1.0), LABEL, MASKS, LossWeights())


# from head to network


def test_a_disc_of_50_mm_is_50_pixels_across():
    r, c = np.mgrid[:400, :300]
    spacing = (5.0, 0.5, 0.8)
    disc = np.hypot((r - 150) * 0.5, (c - 160) * 0.8) < 25
    air = Head(hu=np.where(disc, 80, 0).astype(np.float32)[None], spacing_mm=spacing)
    config = RadNetPreprocessing(centre="image")
    frame = frame_of(air, config)
    cut = cut_out(air.hu[0], frame, config.size, config.hu_range)
    seen = windowed(torch.from_numpy(cut)[None], config)[0, 0].numpy()
    assert seen.shape == (250, 250)
    assert seen.min() == 0
    assert seen.max() == 1
    row, column = (round(v) for v in middle(seen))
    assert (seen[:, column] > 0.5).sum() == pytest.approx(50, abs=1)
    assert (seen[row] > 0.5).sum() == pytest.approx(50, abs=1)
    assert seen.sum() == pytest.approx(math.pi * 25**2, rel=0.02)
    # image centre (199.5, 149.5) is at pixel 124.5; the disc lies 24.75 mm above it and 8.4 mm right of it
    assert middle(seen) == pytest.approx((124.5 - 24.75, 124.5 + 8.4), abs=0.1)


def test_brain_window_is_0_to_80_hu():
    hu = torch.tensor([[[-900.0, 0.0], [20.0, 500.0]]])
    assert windowed(hu, RadNetPreprocessing()).flatten().tolist() == [0, 0, 0.25, 1]


def test_the_field_of_view_is_one_for_all_slices_and_around_the_cavity():
    config = RadNetPreprocessing()
    frame = frame_of(head(), config)
    rows, columns = (np.flatnonzero(head().mask.mask.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    block = head().mask.block
    centre = [(v[0] + v[-1] + 1) / 2 * b - 0.5 for v, b in zip((rows, columns), block, strict=True)]
    assert frame.to_source(124.5, 124.5) == pytest.approx(centre)
    assert frame.to_source(125.5, 124.5)[0] - centre[0] == pytest.approx(1 / head().spacing_mm[1])
    # a head that lies 6 rows lower is seen alike
    lower = Head(hu=np.roll(head().hu, 6, axis=1), spacing_mm=head().spacing_mm)
    assert frame_of(lower, config).origin == pytest.approx((frame.origin[0] + 6, frame.origin[1]))
    image = replace(config, centre="image")
    assert frame_of(lower, image) == frame_of(head(), image)


# reading


@torch.inference_mode()
def test_scores_are_those_of_the_network_on_the_whole_sequence():
    reader = system()
    scores = reader.score(head())
    assert scores.logits.shape == (12, 1)
    assert reader.classes == (IchSubtype.ANY,)
    inside = list(head().inside)
    outside = sorted(set(range(12)) - set(inside))
    assert outside
    assert (scores.logits[outside] == -np.inf).all()
    frame = frame_of(head(), COARSE)
    cuts = np.stack([cut_out(head().hu[i], frame, COARSE.size, COARSE.hu_range) for i in inside])
    logits = network()(windowed(torch.from_numpy(cuts), COARSE)).logits
    assert scores.logits[inside, 0] == pytest.approx(logits.numpy(), abs=1e-5)
    assert np.ptp(scores.logits[inside, 0]) > 1e-4


def test_batch_size_does_not_change_results():
    whole = system(batch=16).score(head()).logits
    for batch in (1, 3):
        parts = system(batch=batch).score(head()).logits
        assert np.allclose(parts, whole, atol=1e-5)


def test_reading_is_deterministic():
    first, second = (system().score(head()) for _ in range(2))
    assert np.array_equal(first.logits, second.logits)
    index = head().inside[3]
    maps = [system().maps(head(), index, scores)[IchSubtype.ANY] for scores in (first, second)]
    assert np.array_equal(*maps)


@pytest.mark.parametrize(("precision", "within"), [("float64", 1e-4), ("bfloat16", 0.1)])
@pytest.mark.parametrize("attention", [True, False])
def test_precisions_agree(precision: Any, within: float, attention: bool):
    config = replace(SMALL, attention=attention)
    index = head().inside[3]
    read = []
    for one in ("float32", precision):
        reader = system(config, precision=one)
        scores = reader.score(head())
        read.append((scores.logits, reader.maps(head(), index, scores)[IchSubtype.ANY]))
    (logits, likelihood), (other_logits, other_likelihood) = read
    assert np.allclose(logits, other_logits, atol=within)
    assert np.allclose(likelihood, other_likelihood, atol=within)
    assert not np.array_equal(logits, other_logits)


def test_members_are_averaged():
    members = (network(seed=1), network(seed=2))
    together = system(members=members)
    alone = [system(members=(m,)) for m in members]
    scores = together.score(head())
    each = [reader.score(head()) for reader in alone]
    inside = list(head().inside)
    assert np.allclose(scores.logits[inside], sum(s.logits[inside] for s in each) / 2, atol=1e-5)
    assert scores.kept[inside[0]].shape == (2, 28)
    assert not np.allclose(each[0].logits[inside], each[1].logits[inside], atol=1e-3)


def test_map_is_the_mean_of_all_heads_of_all_members():
    members = (network(seed=1), network(seed=2))
    index, shape = head().inside[3], head().hu.shape[1:]
    likelihood = system(members=members).maps(head(), index, Scores(logits=np.zeros((12, 1))))
    frame = frame_of(head(), COARSE)
    x = windowed(
        torch.from_numpy(cut_out(head().hu[index], frame, COARSE.size, COARSE.hu_range))[None], COARSE
    )
    logits = torch.cat([logits for m in members for logits in m.activations(x)[1]]).mean((0, 1)).detach()
    expected = on_source_grid(torch.sigmoid(logits).numpy(), frame, COARSE.size, (shape[0], shape[1]))
    assert likelihood.keys() == {IchSubtype.ANY}
    assert likelihood[IchSubtype.ANY].dtype == np.float32
    assert np.allclose(likelihood[IchSubtype.ANY], expected, atol=1e-5)


@pytest.mark.parametrize("stem_stride", [1, 4])
def test_map_and_point_lie_on_the_source_pixel(stem_stride: int):
    """Source grid to network, through the heads and back, at pixels that are not square."""
    spacing = (5.0, 0.9, 1.3)
    seen = blob(260, 180, 171.0, 52.0, spacing[1:], 9.0)
    air = Head(hu=(80 * seen)[None], spacing_mm=spacing)
    config = replace(SMALL, stem_stride=stem_stride)
    reader = system(config, RadNetPreprocessing(), members=(see_through(config),))
    maps = reader.maps(air, 0, Scores(logits=np.zeros((1, 1))))
    likelihood = maps[IchSubtype.ANY]
    assert likelihood.shape == (260, 180)
    assert likelihood.min() == pytest.approx(1 / (1 + math.exp(4)), abs=1e-3)
    assert middle(likelihood - likelihood.min()) == pytest.approx((171.0, 52.0), abs=0.2)
    (point,) = reader.places(maps, spacing)
    assert point.subtype is IchSubtype.ANY
    assert point.coordinates == pytest.approx((52.5, 171.5), abs=2)
    assert point.score == pytest.approx(likelihood.max())


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("lstm", [True, False])
def test_without_attention_the_map_is_grad_cam(lstm: bool, stem_stride: int):
    """Against gradients that torch takes through the whole network, from the feature map on."""
    config = replace(SMALL, attention=False, lstm=lstm, stem_stride=stem_stride)
    reader, net = system(config), network(config)
    scores = reader.score(head())
    inside, index = list(head().inside), head().inside[3]
    likelihood = reader.maps(head(), index, scores)[IchSubtype.ANY]

    frame = frame_of(head(), COARSE)
    cuts = np.stack([cut_out(head().hu[i], frame, COARSE.size, COARSE.hu_range) for i in inside])
    h = net.activations(windowed(torch.from_numpy(cuts), COARSE))[0].detach().requires_grad_()
    net.sequence(h.mean((2, 3)))[3].backward()
    assert h.grad is not None
    cam = functional.relu((h.grad[3].mean((1, 2))[:, None, None] * h[3]).sum(0)).detach()
    assert 0 < (cam > 0).float().mean() <= 1
    stride = 4 * stem_stride
    fine = functional.interpolate(cam[None, None], scale_factor=stride, mode="bilinear")[0, 0].numpy()
    fine = np.pad(fine, (0, 62 - len(fine)), mode="edge")
    probability = 1 / (1 + math.exp(-scores.logits[index, 0]))
    expected = on_source_grid(fine / fine.max() * probability, frame, 62, (128, 128))
    assert np.allclose(likelihood, expected, atol=1e-4)
    assert likelihood.max() == pytest.approx(probability, rel=0.05)


def test_grad_cam_of_members_has_the_slice_s_calibrated_probability_as_maximum():
    config = replace(SMALL, attention=False)
    run = Execution(device="cpu")
    members = tuple(run.place(network(config, seed=seed)) for seed in (1, 2))
    reader = RadNet(members, config, COARSE, DetectorConfig(), run, DecisionConfig(scale=2.0, offset=-1.0))
    scores = reader.score(head())
    index = head().inside[4]
    likelihood = reader.maps(head(), index, scores)[IchSubtype.ANY]
    assert likelihood.min() >= 0
    probability = 1 / (1 + math.exp(1 - 2 * scores.logits[index, 0]))
    assert likelihood.max() == pytest.approx(probability, rel=0.05)


def test_a_head_without_intracranial_space_scores_nothing():
    air = Head(hu=np.full((4, 64, 64), -1000, np.float32), spacing_mm=(5.0, 2.0, 2.0))
    scores = system().score(air)
    assert scores.logits.tolist() == [[-math.inf]] * 4
    assert not scores.kept


def test_weights_that_are_no_numbers_are_refused():
    net = network()
    with torch.no_grad():
        net.stem.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(StudyRejected, match="INVALID_MODEL_OUTPUT"):
        system(members=(net,)).score(head())


def test_a_bundle_finds_it_by_name():
    assert find_system("radnet") is RadNet
    assert isinstance(RadNet.network(SMALL), RecurrentAttentionDenseNet)


def test_gradients_of_deconvolutions_are_found_in_single_precision():
    head, h = AuxiliaryHead(4, 4), torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        exact = head(h, (24, 24))
        with torch.no_grad():
            rounded = head(h, (24, 24))
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.02)
