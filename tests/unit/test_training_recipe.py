"""Recipes: what is written is read back, and a mistake is told by file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ich_node.errors import ConfigurationError
from tests.ct_ich_pictures import write_recipe
from training.recipe import SHIPPED, find_recipe, read_recipe, recipe_of


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.toml")))
def test_a_recipe_is_read_back_from_what_a_run_and_a_bundle_keep(name: str):
    recipe = find_recipe(name)
    stored = json.loads(json.dumps(recipe.as_dict()))
    assert recipe_of(stored, Path("run.json"), "another") == recipe
    assert stored["name"] == name


def test_a_recipe_is_found_by_name_or_by_file(tmp_path: Path):
    file = write_recipe(tmp_path / "mine.toml")
    assert find_recipe(str(file)) == read_recipe(file)
    assert find_recipe(str(file)).name == "tiny"
    file.write_text('architecture = "vicar-mil"\n')
    assert find_recipe(str(file)).name == "mine"
    with pytest.raises(ConfigurationError, match=r"no recipe 'lite'; there is: .*lite-mil.*radnet"):
        find_recipe("lite")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[mix]", "[mixture]", "key 'mixture' is not known"),
        ("positives = 2", "positive = 2", "'mix.positive' is not known"),
        ("positives = 2", "positives = -1", "'mix.positives'.*-1.*0 or more"),
        ("positives = 2", "positives = 2\nreal_donors = 1.5", "'mix.real_donors'.*0 to 1"),
        ("epochs = 1", "epochs = 0", "'schedule.epochs'"),
        ("epochs = 1", 'epochs = "many"', "'schedule.epochs'.*whole number"),
        ("average_decay = 0.5", "average_decay = nan", "'schedule.average_decay'"),
        ("attention_width = 8", "attention = 8", "'network.attention' is not known"),
        ('"vicar-mil"', '"vicar"', "key 'architecture': 'vicar' is none of.*lite-mil"),
        ('architecture = "vicar-mil"', "", "key 'architecture'"),
        ('name = "tiny"', 'name = "../tiny"', "recipe's name is '../tiny'"),
        ('name = "tiny"', 'name = ""', "recipe's name is ''"),
        ('name = "tiny"', 'start = "warm"', "key 'start' is 'warm'; it has to be random or imagenet"),
        ('name = "tiny"', 'start = "imagenet"', "'imagenet', which there is for lite-mil and burduja alone"),
        ("[mix]", "mix = 3\n[other]", "is not known|has to be an object"),
        ("[mix]", "[mix", "cannot be read as TOML"),
    ],
)
def test_a_mistake_is_told_by_file_and_key(tmp_path: Path, before: str, after: str, said: str):
    file = write_recipe(tmp_path / "wrong.toml")
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))
    with pytest.raises(ConfigurationError, match=said) as told:
        read_recipe(file)
    assert str(told.value).startswith(f"{file}: ")
    assert "\n" not in str(told.value).strip()


def test_file_that_is_absent_or_no_text_is_named(tmp_path: Path):
    for content in (None, b"\xff\xfe\x00"):
        file = tmp_path / "gone.toml"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"gone\.toml: cannot be read as TOML"):
            find_recipe(str(file))
