"""First weights of the other systems: each is trained for a few steps, bundled and read with."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ich_node.findings import IchSubtype
from ich_node.model import burduja, he_fusion, radnet
from ich_node.model.predict import load_predictor
from ich_node.testing.phantom import head_phantom
from tests.ct_ich_pictures import write_pictures
from training import first_weights
from training.__main__ import main
from training.first_cuts import load_cuts
from training.first_weights import RECIPES, Recipe, make, weighted_log_loss

SMALL: dict[str, Recipe] = {
    "he-fusion": replace(
        RECIPES["he-fusion"],
        config=he_fusion.HeFusionConfig(width=0.0625, batch_norm=True, reduction=4),
        preprocessing=he_fusion.HeFusionPreprocessing(size=64, pitch_mm=3.6),
    ),
    "radnet": replace(
        RECIPES["radnet"],
        config=radnet.RadNetConfig(stem_stride=4, growth=4, layers_per_block=2, lstm_width=8),
        preprocessing=radnet.RadNetPreprocessing(size=64, pitch_mm=3.75),
    ),
    "burduja": replace(
        RECIPES["burduja"],
        config=burduja.BurdujaConfig(backbone="efficientnet_lite0", selected=8, hidden=8, layers=1),
        preprocessing=burduja.BurdujaPreprocessing(size=64, pitch_mm=3.6),
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    logging.getLogger().handlers.clear()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ct_ich")
    write_pictures(root)
    return root


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_system_is_trained_bundled_and_reads(pictures: Path, tmp_path: Path, name: str) -> None:
    recipe = replace(SMALL[name], steps=10, batch=8)
    metrics = make(recipe, pictures, tmp_path / "cache", tmp_path / f"{name}-first", phantoms=3)
    assert 0 <= metrics["slice_auc"] <= 1
    about = json.loads((tmp_path / f"{name}-first" / "bundle.json").read_text())
    assert "not chosen on data" in about["metrics"]["remarks"][0]
    assert about["metrics"]["held_out"]["patients"] == 1
    head = head_phantom(bleeds=[IchSubtype.EPIDURAL], seed=721, rows=96, columns=96, slices=10)
    finding = load_predictor(tmp_path / f"{name}-first", "cpu").predict(head.hu, head.spacing_mm)
    assert len(finding.slices) == 10


def test_cuts_show_what_the_system_will_see(pictures: Path, tmp_path: Path) -> None:
    """The cached slice without its margin is the system's own input, and the lesion lies where the blood is."""
    recipe = SMALL["radnet"]
    cuts = load_cuts(recipe.preprocessing, pictures, tmp_path, phantoms=3)
    again = load_cuts(recipe.preprocessing, pictures, tmp_path, phantoms=3)
    assert np.array_equal(cuts.hu, again.hu)
    assert cuts.hu.shape[1:] == (96, 96)
    assert set(np.unique(cuts.scan[cuts.held_out])) == {0}
    assert not cuts.lesion[~cuts.is_phantom].any()
    bleeding = cuts.is_phantom & cuts.labels[:, 0]
    assert bleeding.any()
    inside, outside = cuts.hu[bleeding][cuts.lesion[bleeding]], cuts.hu[bleeding][~cuts.lesion[bleeding]]
    assert np.median(inside) > 45
    assert ((outside > 45) & (outside < 90)).mean() < 0.2


def test_any_counts_twice() -> None:
    logits, labels = torch.zeros(1, 6), torch.zeros(1, 6)
    even = weighted_log_loss(logits, labels)
    assert float(even) == pytest.approx(np.log(2))
    wrong_any, wrong_other = logits.clone(), logits.clone()
    wrong_any[0, 0] = wrong_other[0, 1] = 10
    added = [float(weighted_log_loss(wrong, labels) - even) for wrong in (wrong_any, wrong_other)]
    assert added[0] == pytest.approx(2 * added[1], rel=1e-4)


def test_the_command(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(first_weights.RECIPES, "he-fusion", replace(SMALL["he-fusion"], batch=8))
    run = CliRunner().invoke(
        main,
        [
            "first-weights",
            *("--data", str(pictures), "--cache", str(tmp_path / "cache"), "--system", "he-fusion"),
            *("--out", str(tmp_path / "he-first"), "--steps", "10", "--phantoms", "3", "--threads", "1"),
        ],
        catch_exceptions=False,
    )
    assert run.exit_code == 0
    assert "slice_auc" in run.output
