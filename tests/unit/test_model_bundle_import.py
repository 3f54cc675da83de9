"""Published checkpoints become bundles that verify and read; what is no checkpoint is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ich_node.errors import ConfigurationError
from ich_node.findings import OperatingPoints
from ich_node.model.bundle import find_bundle, read_description, typed_section, verify_bundle
from ich_node.model.bundle_import import ImportTerms, import_burduja, import_vicar, read_checkpoint
from ich_node.model.predict import load_predictor
from ich_node.model.vicar_published import PublishedDetector, VicarPublished, VicarPublishedConfig
from ich_node.model.weights import load_networks
from tests.unit.little_head import SPACING_MM, little_head
from tests.unit.published_checkpoints import vicar_checkpoint

State = dict[str, Any]


def saved(state: Any, folder: Path, **options: Any) -> Path:
    file = folder / "model.pt"
    torch.save(state, file, **options)
    return file


@pytest.mark.parametrize(
    ("pooling", "detector"),
    [
        ("attention", PublishedDetector(height=0.0038, threshold=0.024, distance_pixels=58)),
        ("max", PublishedDetector(height=0.024, threshold=0.76, distance_pixels=10)),
    ],
)
def test_checkpoint_becomes_a_bundle_with_its_tensors(
    tmp_path: Path, pooling: str, detector: PublishedDetector
):
    state = vicar_checkpoint(pooling)
    file = saved(state, tmp_path)
    made = import_vicar(file, tmp_path / "models")
    assert made.name == f"vicar-published-{pooling}"
    folder = find_bundle(made.name, tmp_path / "models")
    assert folder == made.folder
    verify_bundle(folder)
    about = read_description(folder)
    assert about["source_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (
        typed_section(PublishedDetector, about["localization"], folder / "bundle.json", "localization")
        == detector
    )
    (loaded,) = load_networks(folder, about, lambda: VicarPublished(VicarPublishedConfig(pooling=pooling)))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    dead = {n for n in state if n not in loaded.state_dict()}
    assert {int(n.split(".")[1]) for n in dead} == {0, 1, 2, 7, 8, 9, 14, 15, 16}
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == [made.name]


def test_imported_bundle_reads_a_head(tmp_path: Path):
    made = import_vicar(saved(vicar_checkpoint("attention"), tmp_path), tmp_path / "models")
    finding = load_predictor(made.folder, "cpu").predict(little_head(), SPACING_MM)
    assert finding.algorithm.name == "vicar-published-attention"
    assert 0 < finding.suspicion < 1


def test_what_is_said_and_what_was_not_chosen(tmp_path: Path):
    file = saved(vicar_checkpoint("max"), tmp_path)
    unsaid = read_description(import_vicar(file, tmp_path / "a").folder)
    assert unsaid["licence"] == "unknown"
    assert unsaid["chosen"] == {"decision": "not chosen on data", "operating_points": "not chosen on data"}
    points = OperatingPoints(high_confidence=0.7, sensitive=0.2)
    terms = ImportTerms(name="mine", version="3", licence="MIT", points=points)
    made = import_vicar(file, tmp_path / "b", terms)
    said = read_description(made.folder)
    assert (said["name"], said["version"], said["licence"]) == ("mine", "3", "MIT")
    assert said["operating_points"] == {"high_confidence": 0.7, "sensitive": 0.2}
    assert said["chosen"]["operating_points"] != "not chosen on data"
    card = (made.folder / "MODEL_CARD.md").read_text()
    for text in ("# mine 3", "MIT", said["source_sha256"], "not chosen on data", "not for clinical use"):
        assert text.lower() in card.lower()


def without_counts(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


def without_dead(state: State) -> State:
    return {n: t for n, t in state.items() if not n.startswith(("layers.0.", "layers.1.", "layers.2."))}


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda s: {f"module.{n}": t for n, t in s.items()}, {}),
        (lambda s: {"state_dict": s, "epoch": 29}, {}),
        (lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}, "epoch": 3}, {}),
        (lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}}, {}),
        (lambda s: {n: t.double() if t.is_floating_point() else t for n, t in s.items()}, {}),
        (without_counts, {}),
        (without_dead, {}),
        (lambda s: s, {"_use_new_zipfile_serialization": False}),
    ],
)
def test_checkpoints_in_other_wrappings_give_the_same_weights(
    tmp_path: Path, change: Callable[[State], Any], options: State
):
    def weights(state: Any, into: str, **options: Any) -> State:
        made = import_vicar(saved(state, tmp_path, **options), tmp_path / into)
        about = read_description(made.folder)
        (network,) = load_networks(made.folder, about, lambda: VicarPublished(VicarPublishedConfig()))
        return {n: t for n, t in network.state_dict().items() if "num_batches" not in n}

    plain = weights(vicar_checkpoint("attention"), "plain")
    wrapped = weights(change(vicar_checkpoint("attention")), "wrapped", **options)
    for name, tensor in plain.items():
        assert torch.equal(tensor, wrapped[name])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("layers.12.conv.bias"), r"'layers\.12\.conv\.bias' is missing"),
        (lambda s: s.update({"layers.20.bn.bias": torch.zeros(36)}), r"'layers\.20\.bn\.bias' is not part"),
        (
            lambda s: s.update({"layers.6.conv.weight": torch.zeros(24, 12, 1, 1)}),
            r"expected \(24, 12, 3, 3\)",
        ),
        (lambda s: s["layers.6.conv.bias"].fill_(float("nan")), r"'layers\.6\.conv\.bias' holds NaN"),
        (lambda s: s.update({"conv_final.bias": torch.zeros(1)}), r"'conv_final\.bias' is not part"),
        (lambda s: s.update({"layers.6.conv.bias": [0.0] * 24}), r"'layers\.6\.conv\.bias' is no tensor"),
        (lambda s: s.update({5: torch.zeros(1)}), r"5 is no tensor"),
        (
            lambda s: s.update({"layers.6.conv.bias": torch.zeros(24).to_sparse()}),
            r"'layers\.6\.conv\.bias' is no plain tensor \(torch\.sparse_coo",
        ),
        (
            lambda s: s.update({"layers.6.conv.bias": torch.zeros(24, device="meta")}),
            r"'layers\.6\.conv\.bias' is no plain tensor \(torch\.strided on meta",
        ),
        (
            lambda s: s.update({"module.layers.6.conv.bias": torch.zeros(24)}),
            r"'layers\.6\.conv\.bias' is there with and without",
        ),
        (lambda s: s.clear(), r"holds no tensors"),
    ],
)
def test_what_is_not_the_published_network_is_named(
    tmp_path: Path, change: Callable[[State], object], named: str
):
    state = vicar_checkpoint("attention")
    change(state)
    file = saved(state, tmp_path)
    with pytest.raises(ConfigurationError, match=named) as refused:
        import_vicar(file, tmp_path / "models")
    assert str(file) in str(refused.value)
    assert not any((tmp_path / "models").glob("*"))


def test_two_names_of_one_tensor_are_two_tensors(tmp_path: Path):
    state = vicar_checkpoint("attention")
    state["layers.5.conv.bias"] = state["layers.4.conv.bias"]
    made = import_vicar(saved(state, tmp_path), tmp_path / "models")
    about = read_description(made.folder)
    (network,) = load_networks(made.folder, about, lambda: VicarPublished(VicarPublishedConfig()))
    for name in ("layers.4.conv.bias", "layers.5.conv.bias"):
        assert torch.equal(network.state_dict()[name], state["layers.4.conv.bias"])


class Bomb:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("way", ["torch", "legacy", "pickle"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, way: str):
    bomb = {"init_conv.conv.weight": Bomb(tmp_path / "exploded")}
    file = tmp_path / "model.pt"
    if way == "pickle":
        file.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, file, _use_new_zipfile_serialization=way == "torch")
    with pytest.raises(ConfigurationError, match=r"model\.pt: is no checkpoint of plain tensors"):
        import_vicar(file, tmp_path / "models")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_other_files_are_no_checkpoints(tmp_path: Path, content: bytes):
    file = tmp_path / "model.pt"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"model\.pt: "):
        import_vicar(file, tmp_path / "models")


def test_damaged_checkpoints_of_the_old_format(tmp_path: Path):
    """Whatever byte is wrong: a message or an import, never another error."""
    state = {"a": torch.arange(6.0), "b": torch.arange(4)}
    whole = saved(state, tmp_path, _use_new_zipfile_serialization=False).read_bytes()
    file, refused = tmp_path / "damaged.pt", []
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            read_checkpoint(file)
        except ConfigurationError as error:
            refused.append(error)
    assert len(refused) > len(whole) / 2
    assert all(str(file) in str(error) for error in refused)
    assert any(isinstance(error.__cause__, AssertionError) for error in refused)


def test_truncated_checkpoint(tmp_path: Path):
    file = saved(vicar_checkpoint("max"), tmp_path)
    for part in (0.3, 0.9, 0.999):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
        with pytest.raises(ConfigurationError, match=r"cut\.pt: "):
            import_vicar(cut, tmp_path / "models")


@pytest.mark.parametrize("name", ["absent.pt", "."])
def test_file_that_is_not_there_or_a_folder(tmp_path: Path, name: str):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        import_vicar(tmp_path / name, tmp_path / "models")


@pytest.mark.parametrize(
    "terms",
    [
        ImportTerms(name="../evil"),
        ImportTerms(version=""),
        ImportTerms(points=OperatingPoints(high_confidence=0.2, sensitive=0.7)),
    ],
)
def test_terms_that_no_bundle_has(tmp_path: Path, terms: ImportTerms):
    with pytest.raises(ConfigurationError):
        import_vicar(saved(vicar_checkpoint("max"), tmp_path), tmp_path / "models", terms)
    assert not any((tmp_path / "models").glob("*"))


def test_other_weights_of_the_same_name_need_replace(tmp_path: Path):
    into = tmp_path / "models"
    first = import_vicar(saved(vicar_checkpoint("max"), tmp_path), into)
    assert import_vicar(saved(vicar_checkpoint("max"), tmp_path), into).unchanged
    before = (first.folder / "model.safetensors").read_bytes()
    other = saved(vicar_checkpoint("max", seed=1), tmp_path)
    with pytest.raises(ConfigurationError, match="--replace"):
        import_vicar(other, into)
    assert (first.folder / "model.safetensors").read_bytes() == before
    assert import_vicar(other, into, replace=True).replaced == "1.0.0"
    assert (first.folder / "model.safetensors").read_bytes() != before


def burduja_checkpoint(backbone: str) -> State:
    from ich_node.model.burduja import make_cnn

    torch.manual_seed(0)
    return {f"module.{name}": tensor for name, tensor in make_cnn(backbone, 6).state_dict().items()}


def test_burduja_cnn_becomes_a_bundle_that_reads(tmp_path: Path):
    backbone = "resnext14_2x4d"
    made = import_burduja(
        saved(burduja_checkpoint(backbone), tmp_path), tmp_path / "models", backbone=backbone
    )
    assert made.name == "burduja-resnext14-2x4d"
    about = json.loads((made.folder / "bundle.json").read_text())
    assert about["config"]["sequence"] is False
    assert about["config"]["backbone"] == backbone
    finding = load_predictor(made.folder, "cpu").predict(little_head(8), (18.0, 3.0, 3.0))
    assert len(finding.subtypes) == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("module.fc.bias"), r"'fc\.bias' is missing"),
        (lambda s: s.update({"module.fc.bias": torch.zeros(5)}), r"'fc\.bias'"),
        (lambda s: s["module.fc.bias"].fill_(float("inf")), r"fc\.bias' holds NaN or infinity"),
    ],
)
def test_burduja_checkpoint_that_does_not_fit(tmp_path: Path, change: Callable[[State], object], named: str):
    state = burduja_checkpoint("resnext14_2x4d")
    change(state)
    file = saved(state, tmp_path)
    with pytest.raises(ConfigurationError, match=named) as refused:
        import_burduja(file, tmp_path / "models", backbone="resnext14_2x4d")
    assert str(file) in str(refused.value)
