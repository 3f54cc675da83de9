"""Every published system learns from phantoms what it then sees in others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ich_node.model.he_fusion import FusionNetwork
from ich_node.model.vicar_mil import BagOutput
from tests.tiny_training import cuts_of, phantoms, tiny, train, trained_ones, unseen_auc
from training.batches import Batch
from training.learn_vicar_mil import TILE, tile_loss
from training.run import learner_of
from training.scan import Scan


@pytest.fixture(scope="module")
def scans(cache: Path) -> list[Scan]:
    """Some to train on and some to measure on."""
    return phantoms(cache)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices are cut once."""
    return tmp_path_factory.getbasetemp() / "tiny-cuts"


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("vicar-mil", {}),
        ("he-fusion", {}),
        ("radnet", {}),
        ("radnet", {"network": {"lstm": False, "attention": False}}),
    ],
    ids=["attention", "fusion", "radnet", "densenet"],
)
def test_learns_what_it_sees_in_other_heads(
    architecture: str, changes: dict[str, dict[str, object]], scans: list[Scan], cache: Path, tmp_path: Path
):
    recipe = tiny(architecture, changes)
    train(recipe, scans, cache, tmp_path)
    assert unseen_auc(recipe, tmp_path, scans) > 0.7


def test_radnet_without_windows_of_neighbours_is_refused_transplants(scans: list[Scan], cache: Path):
    recipe = tiny("radnet", {"mix": {"transplants": 4}})
    cuts = cuts_of(recipe, scans, cache)
    with pytest.raises(ValueError, match="transplants"):
        learner_of(recipe).batches(cuts, trained_ones(scans), 1)


def test_window_holds_neighbours_that_moved_alike(scans: list[Scan], cache: Path):
    recipe = tiny("radnet", {"augment": {"rotation_deg": 30, "noise_hu": 0}})
    cuts = cuts_of(recipe, scans, cache)
    batch = learner_of(recipe).batches(cuts, trained_ones(scans), 1)[0]
    assert batch.lengths == (4, 4, 4, 4)
    assert len(batch.hu) == 16
    again = learner_of(recipe).batches(cuts, trained_ones(scans), 1)
    assert torch.equal(batch.hu, again[0].hu)
    # one slice three times over stays one slice, while another draw turns it otherwise
    generator = torch.Generator().manual_seed(1)
    first, second = (again._changed(np.full(3, 5), generator) for _ in range(2))
    assert torch.equal(first.hu[0], first.hu[1])
    assert torch.equal(first.lesion[1], first.lesion[2])
    assert not torch.equal(first.hu[0], second.hu[0])


def test_windows_of_he_begin_as_the_recipe_says_and_stay_when_fixed(
    scans: list[Scan], cache: Path, tmp_path: Path
):
    brain = [[40, 80]] * 3
    changes = {"network": {"window": "fixed"}, "windows": {"hu": brain}, "schedule": {"epochs": 1}}
    network = train(tiny("he-fusion", changes), scans, cache, tmp_path / "fixed")
    assert isinstance(network, FusionNetwork)
    np.testing.assert_allclose(network.window.windows_hu(), brain, rtol=1e-5)
    free = train(tiny("he-fusion", {"schedule": {"epochs": 1}}), scans, cache, tmp_path / "free")
    assert abs(free.window.windows_hu()[0][1] - 80) > 0.01


def test_he_is_refused_two_windows():
    learner = learner_of(tiny("he-fusion", {"windows": {"hu": [[40, 80], [80, 200]]}}))
    with pytest.raises(ValueError, match="3 channels"):
        learner.begin()


def test_tiles_count_where_the_lesion_is_known_and_nowhere_else():
    """A slice of one bleeding tile: the loss falls as that tile's positions rise, and not where nothing is known."""
    size, stride = 8 * TILE, 4

    def loss(raised: float, *, located: bool) -> float:
        lesion = torch.zeros(1, 3, size, size)
        lesion[0, 1, : TILE * stride, : TILE * stride] = 1
        positions = torch.full((1, size // stride, size // stride), -3.0)
        positions[0, :TILE, :TILE] = raised
        out = BagOutput(torch.zeros(1), positions, torch.zeros_like(positions), torch.zeros_like(positions))
        mask = torch.ones(1, size, size, dtype=torch.bool)
        batch = Batch(mask.float()[:, None], mask, lesion, torch.ones(1, 6), torch.tensor([located]))
        return float(tile_loss(out, batch, 0, 1.2))

    assert loss(3.0, located=True) < loss(0.0, located=True) < loss(-3.0, located=True)
    assert loss(3.0, located=False) == loss(-3.0, located=False) == 0


def test_radnet_heads_learn_nothing_from_slices_whose_lesion_is_unknown(scans: list[Scan], cache: Path):
    recipe = tiny("radnet")
    learner = learner_of(recipe)
    batch = learner.batches(cuts_of(recipe, scans, cache), trained_ones(scans), 1)[0]
    blind = batch._replace(located=torch.zeros_like(batch.located))
    assert float(learner.losses(batch)["auxiliary"].detach()) > 0.1
    assert float(learner.losses(blind)["auxiliary"].detach()) == 0


def test_unused_attention_is_not_trained(scans: list[Scan], cache: Path):
    recipe = tiny("vicar-mil", {"network": {"pooling": "max"}})
    learner = learner_of(recipe)
    batch = learner.batches(cuts_of(recipe, scans, cache), trained_ones(scans), 1)[0]
    sum(learner.losses(batch).values()).backward()
    for name, parameter in learner.network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == ("attention" not in name), name


def test_weights_follow_from_the_seed_alone(scans: list[Scan], cache: Path, tmp_path: Path):
    recipe = tiny("vicar-mil", {"schedule": {"epochs": 1, "steps_per_epoch": 1}})
    torch.manual_seed(1)
    train(recipe, scans, cache, tmp_path / "one")
    torch.manual_seed(2)
    train(recipe, scans, cache, tmp_path / "two")
    one, two = (load_file(tmp_path / run / "weights.safetensors") for run in ("one", "two"))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
