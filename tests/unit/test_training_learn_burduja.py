"""Three stages, and variants that share the first."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_training import SEEN, phantoms, tiny, train, unseen_auc
from training.engine import WEIGHTS_FILE
from training.learn_burduja import CNN_FOLDER, TAUGHT_FILE
from training.run import train_folds
from training.scan import Scan
from training.split import make_split


@pytest.fixture(scope="module")
def scans(cache: Path) -> list[Scan]:
    return phantoms(cache)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny-cuts"


@pytest.fixture(scope="module")
def whole(scans: list[Scan], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fold of all three stages."""
    out = tmp_path_factory.mktemp("burduja") / "fold0"
    train(tiny("burduja"), scans, cache, out)
    return out


def test_learns_what_it_sees_in_other_heads(whole: Path, scans: list[Scan]):
    assert unseen_auc(tiny("burduja"), whole, scans) > 0.7


def test_stages_are_kept_and_the_whole_is_made_of_them(whole: Path):
    state = load_file(whole / WEIGHTS_FILE)
    cnn, sequence = (load_file(whole / stage / WEIGHTS_FILE) for stage in ("cnn", "sequence"))
    assert all(torch.equal(state[f"cnn.{name}"], tensor) for name, tensor in cnn.items())
    kept = {name: tensor for name, tensor in sequence.items() if not name.startswith("selection.")}
    assert kept
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())
    components = state["selection.components"]
    torch.testing.assert_close(components @ components.T, torch.eye(12), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "network",
    [
        {"sequence": False},
        {"probabilities": False},
        {"selection": "largest"},
        {"selection": "deviation"},
        {"selection": "none"},
    ],
    ids=["cnn", "no-probabilities", "largest", "deviation", "all"],
)
def test_variant_takes_over_the_cnn(
    network: dict[str, object], whole: Path, scans: list[Scan], cache: Path, tmp_path: Path
):
    before = {file: file.stat().st_mtime_ns for file in (whole / CNN_FOLDER).iterdir()}
    recipe = tiny("burduja", {"network": network})
    train(recipe, scans, cache, tmp_path, base=whole)
    state, cnn = load_file(tmp_path / WEIGHTS_FILE), load_file(whole / CNN_FOLDER / WEIGHTS_FILE)
    assert all(torch.equal(state[f"cnn.{name}"], tensor) for name, tensor in cnn.items())
    # neither trained again nor described again
    assert not (tmp_path / CNN_FOLDER).exists()
    assert {file: file.stat().st_mtime_ns for file in (whole / CNN_FOLDER).iterdir()} == before
    if "selection" in network and network["selection"] != "none":
        indices = state["selection.indices"].tolist()
        assert indices == sorted(set(indices))
        assert len(indices) == 12
    assert unseen_auc(recipe, tmp_path, scans) > 0.6


def test_cnn_that_was_taught_otherwise_is_refused(
    whole: Path, scans: list[Scan], cache: Path, tmp_path: Path
):
    """Its features would know patients that the variant is to be measured on."""
    other = tmp_path / "base"
    (other / CNN_FOLDER).mkdir(parents=True)
    for file in (whole / CNN_FOLDER).glob("*.safetensors"):
        os.link(file, other / CNN_FOLDER / file.name)
    taught = json.loads((whole / CNN_FOLDER / TAUGHT_FILE).read_text())
    taught["scans"][0] = "phantom/another"
    (other / CNN_FOLDER / TAUGHT_FILE).write_text(json.dumps(taught))
    with pytest.raises(ValueError, match="other scans"):
        train(tiny("burduja"), scans, cache, tmp_path / "variant", base=other)
    faster = tiny("burduja", {"schedule": {"learning_rate": 1.0}})
    with pytest.raises(ValueError, match="another recipe"):
        train(faster, scans, cache, tmp_path / "variant", base=whole)


def test_base_that_is_not_trained_is_named(scans: list[Scan], cache: Path, tmp_path: Path):
    recipe = tiny("burduja", base="burduja-small")
    with pytest.raises(FileNotFoundError, match="train the recipe 'burduja-small'"):
        train(recipe, scans, cache, tmp_path / "variant", base=tmp_path / "none")


def test_run_finds_the_cnn_of_the_same_fold_beside_it(scans: list[Scan], cache: Path, tmp_path: Path):
    patients = [replace(scan, synthetic=number < SEEN) for number, scan in enumerate(scans)]
    split = make_split(patients, name="two", seed=1, folds=2)
    short = {"schedule": {"epochs": 1, "steps_per_epoch": 1}, "sequence": {"epochs": 1}}
    engine = {"accelerator": "cpu", "tensorboard": False}
    runs = {"first": tiny("burduja", short), "second": tiny("burduja", short, base="first")}
    for name, recipe in runs.items():
        train_folds(recipe, patients, split, cache, tmp_path / name, only=[1], engine=engine)
    assert not (tmp_path / "second" / "fold1" / CNN_FOLDER).exists()
    one, two = (load_file(tmp_path / name / "fold1" / WEIGHTS_FILE) for name in runs)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_finished_fold_is_read(whole: Path, scans: list[Scan], cache: Path):
    before = (whole / WEIGHTS_FILE).stat().st_mtime_ns
    network = train(tiny("burduja"), scans, cache, whole)
    assert (whole / WEIGHTS_FILE).stat().st_mtime_ns == before
    state = load_file(whole / WEIGHTS_FILE)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not network.training


def test_imagenet_is_refused_to_backbones_that_have_none(scans: list[Scan], cache: Path, tmp_path: Path):
    recipe = tiny("burduja", {"network": {"backbone": "resnext50_32x4d"}}, start="imagenet")
    with pytest.raises(ValueError, match="resnext50_32x4d"):
        train(recipe, scans, cache, tmp_path)
