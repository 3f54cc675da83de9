"""Every recipe that is shipped can be read and its network made."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
import torch

from training.recipe import SHIPPED, Recipe, find_recipe
from training.run import learner_of

NAMES = sorted(file.stem for file in SHIPPED.glob("*.toml"))
COMPARISON = SHIPPED.parent / "comparison.toml"


@pytest.mark.parametrize("name", NAMES)
def test_network_of_a_recipe_can_be_made_and_taught(name: str):
    recipe = find_recipe(name)
    assert recipe.name == name
    assert recipe.source
    with torch.device("meta"):
        learner = learner_of(recipe)
    assert sum(p.numel() for p in learner.network.parameters() if p.requires_grad) > 50_000
    if not name.endswith("-small") and name != "lite-mil":
        assert recipe.schedule.epoch == "slices"
        assert recipe.mix.uniform > 0
    if recipe.base:
        assert _without(recipe) == _without(find_recipe(recipe.base))


def _without(recipe: Recipe) -> Recipe:
    """All but what tells a variant from the recipe whose CNN it takes over."""
    return replace(recipe, name="", base="", source="", network=recipe.network.backbone)


def test_comparison_lists_recipes_of_one_schedule_a_system():
    rows = tomllib.loads(COMPARISON.read_text(encoding="utf-8"))["rows"]
    names = [row["recipe"] for row in rows]
    assert len(set(names)) == len(names)
    assert {name for name in NAMES if name.endswith("-small")} < set(names)
    assert all(row["label"] and len(row["label"]) < 50 for row in rows)
    for row in rows:
        if "whole" not in row:
            continue
        one, whole = find_recipe(row["recipe"]), find_recipe(row["whole"])
        same = ("architecture", "preprocessing", "augment", "mix", "schedule", "loss", "sequence", "start")
        assert [getattr(one, part) for part in same] == [getattr(whole, part) for part in same]
