"""System D: input, network, published weights, and reading a head."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from ich_node.errors import ConfigurationError, RejectionReason, StudyRejected
from ich_node.findings import IchSubtype
from ich_node.model.burduja import (
    CLASSES,
    PUBLISHED_CLASSES,
    Burduja,
    BurdujaConfig,
    BurdujaPreprocessing,
    BurdujaSystem,
    from_published,
    network_input,
    slice_hu,
)
from ich_node.model.decision import DecisionConfig, slice_probabilities
from ich_node.model.execution import Execution, Precision
from ich_node.model.localization import DetectorConfig
from ich_node.model.system import Head, find_system
from ich_node.testing.phantom import head_phantom

TINY = BurdujaConfig(backbone="resnext14_2x4d", selected=10, hidden=8, layers=2)
SMALL = BurdujaPreprocessing(size=64)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Convolutions this small wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def head() -> Head:
    phantom = head_phantom(
        bleeds=[IchSubtype.SUBDURAL], slices=12, rows=128, columns=128, seed=3, slice_spacing_mm=14
    )
    return Head(hu=phantom.hu, spacing_mm=phantom.spacing_mm)


def network(config: BurdujaConfig = TINY, seed: int = 0) -> Burduja:
    torch.manual_seed(seed)
    made = Burduja(config)
    # an untrained last layer hardly tells slices apart
    made.cnn.classifier.weight.data.mul_(5)
    return made


def system(
    *networks: Burduja,
    batch: int = 4,
    precision: Precision = "float32",
    localization: DetectorConfig = DetectorConfig(),  # noqa: B008
    decision: DecisionConfig = DecisionConfig(),  # noqa: B008
) -> BurdujaSystem:
    execution = Execution("cpu", precision, batch)
    for one in networks:
        execution.place(one)
    return BurdujaSystem(networks, networks[0].config, SMALL, localization, execution, decision)


def test_a_bundle_finds_the_system():
    assert find_system("burduja") is BurdujaSystem
    assert system(network()).classes == tuple(IchSubtype)


def test_hounsfield_units_become_windows_and_are_standardized():
    hu = torch.tensor([[[-150.0, -20.0, 0.0, 40.0, 60.0, 80.0, 180.0, 230.0]]])
    x = network_input(hu, BurdujaPreprocessing())
    assert x.shape == (1, 3, 1, 8)
    brain = [0, 0, 0, 0.5, 0.75, 1, 1, 1]
    subdural = [0, 0, 0.1, 0.3, 0.4, 0.5, 1, 1]
    soft = [0, 130 / 380, 150 / 380, 0.5, 210 / 380, 230 / 380, 330 / 380, 1]
    by_hand = [
        [(v - mean) / std for v in window]
        for window, mean, std in (
            (brain, 0.1738, 0.3161),
            (subdural, 0.1433, 0.2850),
            (soft, 0.1970, 0.3111),
        )
    ]
    assert x[0, :, 0] == pytest.approx(np.array(by_hand), abs=1e-5)


def test_the_whole_image_is_taken_unless_a_pitch_is_set():
    hu, frame = slice_hu(head(), 6, SMALL)
    assert hu.shape == (64, 64)
    assert frame.step == (2.0, 2.0)
    assert frame.to_source(-0.5, -0.5) == (-0.5, -0.5)
    assert (hu.min(), hu.max()) == (-150, 230)
    _, cut = slice_hu(head(), 6, replace(SMALL, pitch_mm=3.0))
    assert cut != frame
    assert cut.step == pytest.approx((3.0 / head().spacing_mm[1],) * 2)


@pytest.mark.parametrize(
    ("changes", "into_lstm", "into_last"),
    [
        ({}, 10, 16 + 6),
        ({"probabilities": False}, 10, 16),
        ({"selection": "largest"}, 10, 22),
        ({"selection": "none"}, 2048, 22),
    ],
)
def test_widths(changes: dict[str, object], into_lstm: int, into_last: int):
    made = Burduja(replace(TINY, **changes))  # type: ignore[arg-type]
    assert made.lstm.input_size == into_lstm
    assert (made.last.in_features, made.last.out_features) == (into_last, 6)
    assert made.lstm.bidirectional


def test_the_defaults_are_the_paper_s():
    with torch.device("meta"):
        made = Burduja(BurdujaConfig())
    assert (made.lstm.input_size, made.lstm.hidden_size, made.lstm.num_layers) == (120, 256, 3)
    assert made.lstm.dropout == 0.3
    assert made.last.in_features == 518
    # 1000 outputs are six
    assert sum(p.numel() for p in made.cnn.parameters()) == 88_791_336 - 994 * 2049


@torch.no_grad()
def test_probabilities_are_joined_behind_the_lstm_s_output():
    made = network().eval()
    made.last.weight.zero_()
    made.last.bias.zero_()
    made.last.weight[:, 16:] = torch.eye(6)
    features, cnn_logits = torch.randn(5, 2048), torch.randn(5, 6)
    assert torch.allclose(made.read(features, cnn_logits), cnn_logits.sigmoid())


@torch.no_grad()
def test_each_slice_is_read_among_its_neighbours_on_both_sides():
    made = network().eval()
    features, cnn_logits = torch.randn(5, 2048), torch.randn(5, 6)
    before = made.read(features, cnn_logits)
    changed = features.clone()
    changed[2] += 1
    moved = (made.read(changed, cnn_logits) - before).abs().amax(1)
    assert (moved > 1e-7).all()
    # one scan of a batch is read as it is alone
    both = made.read(torch.stack([features, changed]), torch.stack([cnn_logits, cnn_logits]))
    assert torch.allclose(both[0], before, atol=1e-6)


@torch.no_grad()
def test_without_a_sequence_the_cnn_s_logits_are_the_scores():
    made = network(replace(TINY, sequence=False)).eval()
    out = made(torch.randn(2, 3, 64, 64))
    assert torch.equal(out.logits, out.cnn_logits)
    assert {key.partition(".")[0] for key in made.state_dict()} == {"cnn"}


def test_the_selection_is_kept_with_the_weights_and_never_learnt():
    made = network()
    assert {key for key in made.state_dict() if key.startswith("selection")} == {
        "selection.mean",
        "selection.components",
    }
    assert "selection.mean" not in dict(made.named_parameters())
    out = made(torch.randn(3, 3, 64, 64))
    (out.logits.square().sum() + out.cnn_logits.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_timm_is_asked_for_by_name():
    if importlib.util.find_spec("timm"):
        pytest.skip("timm is installed")
    with pytest.raises(ConfigurationError, match="extra 'backbones'"):
        Burduja(replace(TINY, backbone="efficientnet_b4"))


@torch.no_grad()
def test_a_backbone_of_timm():
    pytest.importorskip("timm")
    made = Burduja(replace(TINY, backbone="resnet10t", sequence=False)).eval()
    assert made(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 6)
    with pytest.raises(ConfigurationError, match="does not know it"):
        Burduja(replace(TINY, backbone="resnet9999"))


def published(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in network(seed=9).cnn.state_dict().items()}


def as_the_authors_name_it(key: str) -> str:
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    child, _, rest = key.partition(".")
    return f"fc.0.{rest}" if child == "fc" else f"base.{numbers[child]}.{rest}"


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("theirs", [False, True])
@torch.no_grad()
def test_published_weights_are_brought_to_our_order_of_classes(prefix: str, theirs: bool):
    state = published()
    named = {prefix + (as_the_authors_name_it(k) if theirs else k): t for k, t in state.items()}
    made, reference = network(seed=1).eval(), network(seed=9).eval()
    from_published(made, named)
    x = torch.randn(1, 3, 64, 64)
    assert PUBLISHED_CLASSES[-1] is IchSubtype.ANY
    # any is their last output and our first
    assert torch.allclose(made(x).cnn_logits, reference(x).cnn_logits[:, [5, 0, 1, 2, 3, 4]], atol=1e-5)
    from_published(made, named, classes=CLASSES)
    assert torch.equal(made(x).cnn_logits, reference(x).cnn_logits)


def test_published_weights_that_do_not_fit_are_refused_by_name():
    made = network()
    before = made.cnn.fc.weight.clone()
    state = published()
    absent = {key: t for key, t in state.items() if key != "layer3.0.bn2.weight"}
    with pytest.raises(ConfigurationError, match=r"'layer3\.0\.bn2\.weight' is missing"):
        from_published(made, absent)
    with pytest.raises(ConfigurationError, match=r"'base\.9\.weight' is not part"):
        from_published(made, state | {"base.9.weight": torch.zeros(1)})
    with pytest.raises(ConfigurationError, match=r"'fc\.bias' is \(1000,\), expected \(6,\)"):
        from_published(made, state | {"fc.bias": torch.zeros(1000)})
    with pytest.raises(ConfigurationError, match=r"'module\.fc\.bias' is there under another name"):
        from_published(made, state | {"module.fc.bias": torch.zeros(6)})
    assert torch.equal(made.cnn.fc.weight, before)
    other = Burduja(replace(TINY, backbone="efficientnet_lite0"))
    with pytest.raises(ConfigurationError, match="'efficientnet_lite0'"):
        from_published(other, state)


def test_slices_without_brain_are_not_scored():
    scores = system(network()).score(head())
    inside = list(head().inside)
    assert 0 < len(inside) < 12
    assert scores.logits.shape == (12, 6)
    assert scores.logits.dtype == np.float64
    assert np.isfinite(scores.logits[inside]).all()
    outside = [i for i in range(12) if i not in inside]
    assert (scores.logits[outside] == -np.inf).all()
    assert scores.logits[inside].std(axis=0).min() > 1e-6


def test_a_volume_without_a_head_has_no_scores():
    nothing = Head(hu=np.full((3, 64, 64), -1000, np.float32), spacing_mm=(5.0, 2.0, 2.0))
    assert (system(network()).score(nothing).logits == -np.inf).all()


def test_scores_are_those_of_the_network_on_all_slices_in_order():
    made = network()
    scores = system(made, batch=3).score(head())
    hu = np.stack([slice_hu(head(), index, SMALL)[0] for index in head().inside])
    with torch.no_grad():
        direct = made(network_input(torch.from_numpy(hu), SMALL)).logits
    assert scores.logits[list(head().inside)] == pytest.approx(direct.numpy(), abs=1e-5)


def test_batches_and_repetition_do_not_change_scores():
    made = network()
    inside = list(head().inside)
    one, five = (system(made, batch=batch).score(head()).logits[inside] for batch in (1, 5))
    assert one == pytest.approx(five, abs=1e-5)
    assert np.array_equal(five, system(made, batch=5).score(head()).logits[inside])


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-4), ("bfloat16", 0.1)])
def test_precisions_agree(precision: Precision, tolerance: float):
    inside = list(head().inside)
    single = system(network()).score(head()).logits[inside]
    other = system(network(), precision=precision)
    scores = other.score(head())
    assert not np.array_equal(scores.logits[inside], single)
    assert scores.logits[inside] == pytest.approx(single, abs=tolerance)
    maps = other.maps(head(), inside[3], scores)
    assert all(np.isfinite(m).all() for m in maps.values())


def test_an_ensemble_is_the_mean_of_its_members():
    inside = list(head().inside)
    one, two = network(seed=1), network(seed=2)
    alone = [system(n).score(head()).logits[inside] for n in (one, two)]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    both = system(one, two)
    scores = both.score(head())
    assert scores.logits[inside] == pytest.approx(np.mean(alone, axis=0), abs=1e-6)
    assert set(both.maps(head(), inside[2], scores)) == set(IchSubtype)


def test_weights_that_give_no_number_are_refused():
    made = network()
    made.cnn.classifier.bias.data[2] = torch.nan
    with pytest.raises(StudyRejected) as refused:
        system(made).score(head())
    assert refused.value.reason is RejectionReason.INVALID_MODEL_OUTPUT


def test_each_class_has_a_map_that_is_as_bright_as_its_probability():
    decision = DecisionConfig(scale=2.0, offset=0.5)
    read = system(network(), decision=decision)
    scores, index = read.score(head()), head().inside[4]
    maps = read.maps(head(), index, scores)
    assert list(maps) == list(IchSubtype)
    probabilities = slice_probabilities(scores.logits, decision)[index]
    seen = [(m, p) for m, p in zip(maps.values(), probabilities, strict=True) if m.any()]
    assert seen
    for likelihood, probability in seen:
        assert likelihood.shape == (128, 128)
        assert likelihood.dtype == np.float32
        assert likelihood.min() >= 0
        assert likelihood.max() == pytest.approx(probability, rel=1e-5)


def test_the_map_is_where_the_evidence_is():
    """A network that looks at one thing alone: bright pixels in the brain window."""

    class Bright(torch.nn.Module):
        classifier = torch.nn.Linear(1, 6)

        def feature_maps(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(x[:, :1], 4).relu()

    made = network(replace(TINY, sequence=False))
    bright = Bright()
    bright.classifier.weight.data = torch.tensor([[1.0], [1.0], [1.0], [1.0], [1.0], [-1.0]])
    made.cnn = bright  # type: ignore[assignment]
    hu = head().hu.copy()
    index = head().inside[4]
    hu[index] = 0
    hu[index, 40:48, 88:96] = 75
    marked = Head(hu=hu, spacing_mm=head().spacing_mm)
    marked.__dict__["mask"] = head().mask
    read = system(made)
    maps = read.maps(marked, index, read.score(marked))
    row, column = np.unravel_index(maps[IchSubtype.ANY].argmax(), (128, 128))
    assert 40 <= row < 48
    assert 88 <= column < 96
    # what speaks against a class is no place of it
    assert not maps[IchSubtype.SUBDURAL].any()


def test_points_name_their_class_and_the_highest_is_first():
    maps = {subtype: np.zeros((128, 128), np.float32) for subtype in IchSubtype}
    maps[IchSubtype.EPIDURAL][30, 40] = 0.6
    maps[IchSubtype.SUBDURAL][90, 20] = 0.9
    maps[IchSubtype.SUBDURAL][30, 100] = 0.5
    points = system(network()).places(maps, (5.0, 1.8, 1.8))
    assert [(p.subtype, p.coordinates, round(p.score, 3)) for p in points] == [
        (IchSubtype.SUBDURAL, (20.5, 90.5), 0.9),
        (IchSubtype.EPIDURAL, (40.5, 30.5), 0.6),
        (IchSubtype.SUBDURAL, (100.5, 30.5), 0.5),
    ]


def test_efficientnet_lite0_reads_a_head():
    config = BurdujaConfig(backbone="efficientnet_lite0", hidden=16, layers=1)
    read = system(network(config), localization=DetectorConfig(threshold=0.05))
    scores = read.score(head())
    assert np.isfinite(scores.logits[list(head().inside)]).all()
    index = head().inside[4]
    maps = read.maps(head(), index, scores)
    points = read.places(maps, head().spacing_mm)
    assert points
    assert {p.subtype for p in points} <= set(IchSubtype)
    assert points[0].score == max(p.score for p in points)
