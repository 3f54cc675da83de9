"""Two released bundles become one, and what each network says of patients that it never saw is measured anew."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype
from ich_node.model.bundle import read_description, verify_bundle
from ich_node.model.predict import load_predictor
from ich_node.model.system import Head
from ich_node.testing.phantom import head_phantom
from tests.ct_ich_pictures import write_pictures, write_recipe
from tests.unit.test_training_commands import data_of, done, failed
from training.comparison import bundle_table
from training.pair import averaged
from training.predictions import Predictions
from training.readers import read
from training.records import recall
from training.run import predictions_of

KINDS = {"vicar-mil": "widths = [4, 8, 8]\nattention_width = 8", "lite-mil": "width = 8\nneighbours = 0.25"}


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Starting processes would take longer than their work, and the machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.cpu_count", lambda: 1)
        yield
    torch.set_num_threads(before)
    logging.getLogger().handlers.clear()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``; for each kind a run, a bundle and its record; and the pair with its own."""
    root = tmp_path_factory.mktemp("pair")
    (root / "data").mkdir()
    write_pictures(root / "data")
    for kind, network in KINDS.items():
        recipe = write_recipe(root / f"{kind}.toml", kind, network)
        trained = ("--folds", 2, "--phantoms", 1, "--threads", 1, "--accelerator", "cpu")
        done("fit", recipe, *data_of(root), "--out", root / "runs" / kind, *trained)
        made = ("--phantoms", 1, "--outlined", 0, "--version", "1", "--threads", 1)
        done("release", root / "runs" / kind, *data_of(root), "--out", root / kind, *made)
        measured(root, kind, root / f"{kind}.npz", "--upright")
    said = done(*pair_of(root, "vicar-mil", "lite-mil"), "--outlined", 1, "--remark", "A trial.")
    (root / "metrics.json").write_text(said)
    return root


def measured(work: Path, kind: str, out: Path, *options: str) -> str:
    split = work / "runs" / kind / "split.json"
    return done(
        *("out-of-fold", work / kind, *data_of(work), "--split", split, "--out", out, "--threads", 1),
        *options,
    )


def pair_of(work: Path, vicar: str, lite: str, out: str = "both") -> tuple[object, ...]:
    return (
        *("pair", work / vicar, work / lite, "--vicar-said", work / f"{vicar}.npz"),
        *("--lite-said", work / f"{lite}.npz", *data_of(work), "--version", "1", "--threads", 1),
        *("--out", work / out, "--record", work / f"{out}.npz"),
    )


def recorded(work: Path, name: str) -> Predictions:
    return recall(work / f"{name}.npz", read("ct-ich", work / "data"))[0]


# --- out of fold


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_says_of_each_patient_what_its_run_said(work: Path, tmp_path: Path, kind: str):
    """Weights are stored in 16 bits, and records with 24: nearly the same."""
    told = measured(work, kind, tmp_path / "both-ways.npz")
    assert "AUC of slices, any: " in told
    again, described = recall(tmp_path / "both-ways.npz", read("ct-ich", work / "data"))
    run = predictions_of(work / "runs" / kind)
    assert run is not None
    np.testing.assert_array_equal(again.scan_ids, run.scan_ids)
    np.testing.assert_array_equal(again.fold, run.fold)
    np.testing.assert_allclose(again.logits, run.logits, atol=0.02)
    assert described["bundle"]["name"] == kind
    assert described["upright"] is False
    inside = np.isfinite(run.logits[:, 0])
    assert np.abs(recorded(work, kind).logits[inside, 0] - run.logits[inside, 0]).max() > 1e-5


def test_a_split_that_is_not_the_bundle_s_is_refused(work: Path, tmp_path: Path):
    split = tmp_path / "split.json"
    done("split", *data_of(work), "--out", split, "--folds", 3)
    arguments = ("--split", split, "--out", tmp_path / "record.npz")
    assert "2 networks, but split split has 3 folds" in failed(
        "out-of-fold", work / "vicar-mil", *data_of(work), *arguments
    )
    assert not (tmp_path / "record.npz").exists()


# --- the pair


def test_the_pair_is_the_mean_of_its_calibrated_parts(work: Path):
    head = head_phantom(bleeds=[IchSubtype.EPIDURAL], seed=721, rows=96, columns=96, slices=10)
    seen = Head(hu=head.hu, spacing_mm=head.spacing_mm)
    both = load_predictor(work / "both", "cpu").system
    config = both.config
    wanted = np.zeros(len(head.hu))
    for kind, part in (("vicar-mil", "vicar"), ("lite-mil", "lite")):
        alone = load_predictor(work / kind, "cpu").system
        # as in the pair every second network sees the mirror image
        shared = type(alone)(
            alone.networks,
            replace(alone.config, mirror="alternate"),
            alone.preprocessing,
            alone.localization,
            alone.execution,
        )
        calibration = getattr(config, f"{part}_calibration")
        wanted += (calibration.scale * shared.score(seen).logits[:, 0] + calibration.offset) / 2
    scores = both.score(seen)
    np.testing.assert_allclose(scores.logits[:, 0], wanted, atol=1e-5)
    assert set(scores.kept) == set(seen.inside)
    (index, *_) = seen.inside
    shown = both.maps(seen, index, scores)
    assert set(shown) == {IchSubtype.ANY}
    assert shown[IchSubtype.ANY].shape == head.hu.shape[1:]
    assert shown[IchSubtype.ANY].dtype == np.float32


def test_what_is_recorded_is_the_mean_of_what_the_parts_said(work: Path):
    found, (vicar, lite) = recorded(work, "both"), (recorded(work, kind) for kind in KINDS)
    again, of_vicar, of_lite = averaged(vicar, lite, "both")
    np.testing.assert_allclose(found.logits[:, 0], again.logits[:, 0], rtol=1e-6)
    assert np.isnan(found.logits[:, 1:]).all()
    row = int(np.flatnonzero(np.isfinite(lite.logits[:, 0]))[0])
    scan = str(lite.scan_ids[lite.scan[row]])
    other = np.flatnonzero(vicar.scan == list(vicar.scan_ids).index(scan))
    same = other[row - np.flatnonzero(lite.scan == lite.scan[row])[0]]
    parts = (
        of_vicar.scale * vicar.logits[same, 0] + of_vicar.offset,
        of_lite.scale * lite.logits[row, 0] + of_lite.offset,
    )
    assert found.logits[row, 0] == pytest.approx(sum(parts) / 2, rel=1e-6)
    (shown,) = bundle_table([(found, {"bundle": {"name": "both", "version": "1"}, "upright": True})]).rows
    assert shown[:2] == ("both 1", "slice alone")


def test_the_pair_says_what_it_is(work: Path):
    assert verify_bundle(work / "both").startswith("both 1: ")
    about = read_description(work / "both")
    assert about["architecture"] == "mil-pair"
    assert about["members"] == 2
    assert [part["name"] for part in about["parts"]] == ["vicar-mil", "lite-mil"]
    assert about["config"]["vicar"]["mirror"] == about["config"]["lite"]["mirror"] == "alternate"
    assert set(about["training_recipe"]) == {"vicar", "lite"}
    assert about["training_inputs"].keys() == read_description(work / "lite-mil")["training_inputs"].keys()
    metrics = json.loads((work / "metrics.json").read_text())
    assert metrics == about["metrics"]
    assert metrics["pointing"]["slices_with_hemorrhage"] > 0
    card = (work / "both" / "MODEL_CARD.md").read_text()
    assert "2 pairs of networks are averaged" in card
    assert card.count("**CT-ICH v1.0.0**") == 1
    assert "- A trial." in card


def test_parts_that_make_no_pair_are_told(work: Path, tmp_path: Path):
    assert "is of architecture lite-mil, not vicar-mil" in failed(
        *pair_of(work, "lite-mil", "vicar-mil", "no")
    )
    assert not (work / "no").exists()
    alone = shutil.copytree(work / "vicar-mil", tmp_path / "vicar-mil")
    description = read_description(alone)
    (alone / "bundle.json").write_text(json.dumps(description | {"members": 1}))
    arguments = pair_of(work, "vicar-mil", "lite-mil", "no")
    told = failed(*(alone if argument == work / "vicar-mil" else argument for argument in arguments))
    assert "has 1 networks" in told


def test_predictions_of_other_slices_are_refused(work: Path):
    vicar, lite = (recorded(work, kind) for kind in KINDS)
    other = replace(lite, patient_ids=np.array([f"x{name}" for name in lite.patient_ids]))
    with pytest.raises(ValueError, match="different scans"):
        averaged(vicar, other, "both")
    labels = lite.labels.copy()
    labels[0, 0] = 1 - labels[0, 0]
    with pytest.raises(ValueError, match="different slices or labels"):
        averaged(vicar, replace(lite, labels=labels), "both")


@pytest.mark.parametrize(
    ("section", "part", "key", "value", "named"),
    [
        ("config", "vicar", "breadth", 1, "config.vicar.breadth"),
        ("config", "lite", "width", 0, "config.lite.width"),
        ("config", "vicar_calibration", "scale", -1, "config.vicar_calibration.scale"),
        ("preprocessing", "vicar", "pitch_mm", 0, "preprocessing.vicar.pitch_mm"),
        ("preprocessing", "vicar", "size", 0, "preprocessing.vicar.size"),
        ("preprocessing", "vicar", "windows_hu", [[40, 80]], "preprocessing.vicar.windows_hu"),
    ],
)
def test_a_value_of_a_part_that_does_not_fit_is_named(
    work: Path, tmp_path: Path, section: str, part: str, key: str, value: object, named: str
):
    broken = shutil.copytree(work / "both", tmp_path / "both")
    description = read_description(broken)
    description[section][part][key] = value
    (broken / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(ConfigurationError, match=named.replace(".", r"\.")):
        load_predictor(broken, "cpu")


def test_a_section_that_is_no_object_is_named(work: Path, tmp_path: Path):
    broken = shutil.copytree(work / "both", tmp_path / "both")
    description = read_description(broken)
    description["config"]["lite"] = 3
    (broken / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(ConfigurationError, match=r"'config\.lite' has to be an object"):
        load_predictor(broken, "cpu")


@pytest.mark.parametrize(
    ("section", "key"),
    [("config", "lite"), ("config", "vicar_calibration"), ("preprocessing", "vicar")],
)
def test_nothing_of_a_pair_is_left_to_defaults(work: Path, tmp_path: Path, section: str, key: str):
    broken = shutil.copytree(work / "both", tmp_path / "both")
    description = read_description(broken)
    del description[section][key]
    (broken / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(ConfigurationError, match=rf"'{section}\.{key}' is missing"):
        load_predictor(broken, "cpu")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("windows_hu", [[40, 80], [80, 200]], "preprocessing.lite.windows_hu"),
        ("hu_range", [500, -150], "preprocessing.lite.hu_range"),
    ],
)
def test_input_that_the_network_cannot_take_is_refused_before_a_study_comes(
    work: Path, tmp_path: Path, key: str, value: object, named: str
):
    broken = shutil.copytree(work / "both", tmp_path / "both")
    description = read_description(broken)
    description["preprocessing"]["lite"][key] = value
    (broken / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(ConfigurationError, match=named.replace(".", r"\.")):
        load_predictor(broken, "cpu")


def test_records_of_other_weights_or_with_mirror_images_are_refused(work: Path, tmp_path: Path):
    swapped = ("--vicar-said", work / "lite-mil.npz", "--lite-said", work / "vicar-mil.npz")
    assert "of other weights" in failed(*pair_of(work, "vicar-mil", "lite-mil", "no"), *swapped)
    measured(work, "lite-mil", tmp_path / "mirrored.npz")
    arguments = (*pair_of(work, "vicar-mil", "lite-mil", "no"), "--lite-said", tmp_path / "mirrored.npz")
    assert "with mirror images" in failed(*arguments)
    assert not (work / "no").exists()


def test_a_pair_is_not_measured_on_one_split(work: Path, tmp_path: Path):
    """Its parts may have been trained on different ones: a network would read patients that the other one saw."""
    arguments = ("--split", work / "runs" / "lite-mil" / "split.json", "--out", tmp_path / "no.npz")
    assert "put together from vicar-mil and lite-mil" in failed(
        "out-of-fold", work / "both", *data_of(work), *arguments
    )


def test_thick_slices_of_a_mixed_head_score_as_among_thick_ones(work: Path):
    """What lies around a thick slice are thick slices: none is averaged with slices 25 mm away."""
    head = head_phantom(bleeds=[IchSubtype.EPIDURAL], seed=721, rows=96, columns=96, slices=24)
    reader = load_predictor(work / "both", "cpu")
    whole = reader.predict(head.hu, (5.0, *head.spacing_mm[1:]))
    lower = 6
    mixed = np.concatenate([np.repeat(head.hu[:lower], 5, axis=0), head.hu[lower:]])
    found = reader.predict(mixed, (1.0, *head.spacing_mm[1:]), widest_gap_mm=5.0)
    of_thick = [one.probabilities[IchSubtype.ANY] for one in found.slices[5 * lower :]]
    wanted = [one.probabilities[IchSubtype.ANY] for one in whole.slices[lower:]]
    # the lowest one has a thin neighbour, which is a copy of the thick one below
    assert of_thick == pytest.approx(wanted, abs=0.02)
