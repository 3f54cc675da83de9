"""A run's folds never meet the patients they score, a run goes on where it stopped, and its bundle says the truth."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ich_node.errors import ConfigurationError
from ich_node.model.bundle import read_description, verify_bundle
from ich_node.model.efficientnet_lite import IMAGENET_PACKAGE
from ich_node.model.predict import load_predictor
from tests.ct_ich_pictures import write_recipe
from training.card import model_card
from training.cuts import KINDS, Taught
from training.draft_bundle import write_bundle
from training.engine import WEIGHTS_FILE
from training.pointing import pointing
from training.predictions import Predictions
from training.readers.phantom import read_phantom
from training.reading import read_scans
from training.recipe import Recipe, read_recipe
from training.release import Wanted, read_detector, real_features, recipe_of_run, release
from training.run import PREDICTIONS_FILE, RUN_FILE, learner_of, members_of, predictions_of, train_folds
from training.scan import PRESENT, Scan, Volume
from training.sources import IMAGENET, TEACHER, training_data
from training.split import Split, make_split

CPU = {"accelerator": "cpu", "tensorboard": False}
has_imagenet = importlib.util.find_spec(IMAGENET_PACKAGE) is not None


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    logging.getLogger().handlers.clear()


def _of(known: Any) -> Any:
    return known


def _brighter(scan: Scan) -> Volume:
    volume = scan.read()
    return replace(volume, hu=volume.hu + np.float32(15))


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    """Six patients without outlines, four of them with hemorrhage, and two phantoms."""
    heads = read_phantom(count=8, first_seed=4301, pixels=112, slices=12)
    patients = [
        replace(
            head,
            source="ct-ich",
            scan_id=f"{number:03d}",
            patient_id=f"{number:03d}",
            read=partial(_of, replace(head.read(), lesion=None)),
            outlined=False,
            synthetic=False,
        )
        for number, head in enumerate(heads[:6])
    ]
    return [*patients, *(replace(head, read=partial(_of, head.read())) for head in heads[6:])]


@pytest.fixture(scope="module")
def split(scans: list[Scan]) -> Split:
    return make_split(scans, name="tests", seed=1, folds=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return read_recipe(write_recipe(tmp_path_factory.mktemp("recipes") / "tiny.toml"))


@dataclass
class Somewhere:
    """A teacher that sees hemorrhage in the middle of every slice labelled positive."""

    name: str = "tests' teacher"

    def __call__(self, scan: Scan) -> Taught | None:
        slices = np.flatnonzero(scan.labels[:, 0] == PRESENT)
        likelihood = np.zeros((len(slices), len(KINDS), 240, 240), np.uint8)
        likelihood[:, 0, 100:130, 100:130] = 255
        return Taught(slices=slices, likelihood=likelihood, pitch_mm=1.0)


@pytest.fixture(scope="module")
def run(
    scans: list[Scan], split: Split, cache: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished one."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert train_folds(recipe, scans, split, cache, out, engine=CPU) is not None
    return out


def fold_weights(run: Path, fold: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"fold{fold}" / WEIGHTS_FILE)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


# --- runs


def test_the_network_of_a_fold_never_saw_the_patients_it_scores(
    scans: list[Scan], split: Split, cache: Path, recipe: Recipe, run: Path, tmp_path: Path
):
    """Other images and other labels of a held-out patient change not one bit of its weights, those of others do."""
    held = {scan.scan_id for scan in split.measuring(scans, 0)}
    shown = next(scan.scan_id for scan in split.training(scans, 0) if not scan.synthetic)
    for name, changed, unchanged in (("held", held, True), ("shown", {shown}, False)):
        others = [
            replace(
                scan,
                read=partial(_brighter, scan),
                labels=np.ascontiguousarray(scan.labels[::-1]),
            )
            if scan.scan_id in changed
            else scan
            for scan in scans
        ]
        train_folds(recipe, others, split, tmp_path / f"{name}-cache", tmp_path / name, only=[0], engine=CPU)
        assert equal(fold_weights(tmp_path / name, 0), fold_weights(run, 0)) is unchanged


def test_every_patient_is_scored_by_the_network_of_its_own_fold(scans: list[Scan], split: Split, run: Path):
    whole = predictions_of(run)
    assert whole is not None
    assert sorted(whole.scan_ids.tolist()) == [f"{number:03d}" for number in range(6)]  # and no phantom
    for fold in range(2):
        found = Predictions.load(run / f"fold{fold}" / PREDICTIONS_FILE)
        held = split.measuring(scans, fold)
        assert found.scan_ids.tolist() == [scan.scan_id for scan in held]
        assert (found.fold == fold).all()
        own, other = (
            read_scans(run / f"fold{f}" / f"tiny-fold{f}", held, system="tiny", split="", places=False)
            for f in (fold, 1 - fold)
        )
        assert np.array_equal(found.logits, own.logits, equal_nan=True)
        assert not np.array_equal(found.logits, other.logits, equal_nan=True)
    assert not equal(*members_of(run))


def test_an_interrupted_run_goes_on_to_the_same(
    scans: list[Scan], split: Split, cache: Path, recipe: Recipe, run: Path, tmp_path: Path
):
    out = tmp_path / "tiny"
    assert train_folds(recipe, scans, split, cache, out, only=[1], engine=CPU) is None
    assert predictions_of(out) is None
    weights = out / "fold1" / WEIGHTS_FILE
    trained = weights.stat().st_mtime_ns
    (out / "fold1" / PREDICTIONS_FILE).unlink()  # stopped between training and scoring
    (out / f".{RUN_FILE}.1.tmp").write_text("{")  # and another process while it wrote what the run is
    found = train_folds(recipe, scans, split, cache, out, engine=CPU)
    assert weights.stat().st_mtime_ns == trained
    before = predictions_of(run)
    assert found is not None
    assert before is not None
    assert np.array_equal(found.logits, before.logits, equal_nan=True)
    assert np.array_equal(found.places, before.places)
    assert all(equal(a, b) for a, b in zip(members_of(out), members_of(run), strict=True))


def test_another_run_is_not_gone_on_with(
    scans: list[Scan], split: Split, cache: Path, recipe: Recipe, run: Path
):
    before = (run / RUN_FILE).read_text()
    mix = replace(recipe, mix=replace(recipe.mix, positives=3))
    other = make_split(scans, name="tests", seed=1, folds=3)
    for changed in (
        partial(train_folds, mix, scans, split),
        partial(train_folds, recipe, scans, other),
        partial(train_folds, recipe, scans[:-1], split),
        partial(train_folds, recipe, scans, split, teacher=Somewhere()),
    ):
        with pytest.raises(ValueError, match=r"run\.json describes another run"):
            changed(cache=cache, out=run, engine=CPU)
    assert (run / RUN_FILE).read_text() == before
    assert predictions_of(run) is not None


def test_a_fold_that_nobody_would_be_scored_in_is_told_before_training(
    scans: list[Scan], split: Split, cache: Path, recipe: Recipe, tmp_path: Path
):
    some = [scan for scan in scans if scan.synthetic or split.part_of(scan) == 0]
    with pytest.raises(ValueError, match="fold 1 has no patient here"):
        train_folds(recipe, some, split, cache, tmp_path / "run", engine=CPU)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="no fold 7"):
        train_folds(recipe, scans, split, cache, tmp_path / "run", only=[7], engine=CPU)


def test_architecture_without_a_learner_is_told(recipe: Recipe):
    with pytest.raises(LookupError, match="'vicar-published' cannot be trained here"):
        learner_of(replace(recipe, architecture="vicar-published"))


def test_a_run_says_what_it_was(scans: list[Scan], recipe: Recipe, run: Path):
    said = json.loads((run / RUN_FILE).read_text())
    assert said["scans"] == {"ct-ich": 6, "phantom": 2}
    assert said["teacher"] is None
    assert said["versions"]["torch"]
    assert len(said["sources"]) == 1
    assert recipe_of_run(run) == recipe


# --- bundles


def wanted(**changes: Any) -> Wanted:
    return Wanted(**{"version": "1.2.3", "remarks": ("Another one was tried and was worse.",), **changes})


def probabilities(bundle: Path, scans: Sequence[Scan]) -> np.ndarray:
    reader = load_predictor(bundle, "cpu")
    volumes = [scan.read() for scan in scans]
    found = [reader.predict(volume.hu, volume.spacing_mm) for volume in volumes]
    return np.array([[*one.probabilities.values()] for finding in found for one in finding.slices])


@pytest.fixture(scope="module")
def outlined() -> list[Scan]:
    return read_phantom(count=2, first_seed=4402, pixels=112, slices=12)


@pytest.fixture(scope="module")
def bundle(scans: list[Scan], run: Path, outlined: list[Scan]) -> Path:
    """What comes of the run."""
    out = run.parent / "tiny-v1"
    metrics = release(run, scans, out, wanted(), partial(_of, outlined))
    assert read_description(out)["metrics"] == json.loads(json.dumps(metrics))
    return out


def in_full(bundle: Path, run: Path, out: Path) -> Path:
    """The same bundle with the weights as they were trained."""
    said = read_description(bundle)
    kept = {key: said[key] for key in ("decision", "operating_points")}
    write_bundle(out, recipe_of_run(run), members_of(run), kept, "# in full\n")
    return out


def test_a_bundle_reads_as_the_run_s_networks(scans: list[Scan], run: Path, bundle: Path, tmp_path: Path):
    assert "tiny-v1 1.2.3: weights match" in verify_bundle(bundle)
    full = in_full(bundle, run, tmp_path / "full")
    assert 0 < np.abs(probabilities(bundle, scans[:2]) - probabilities(full, scans[:2])).max() < 0.01
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (bundle, full)]
    assert sizes[0] < 0.7 * sizes[1]  # the names take the rest


def test_what_the_data_do_not_show_is_not_compared(scans: list[Scan]):
    picture = replace(scans[0], read=partial(_of, replace(scans[0].read(), is_of_pictures=True)))
    estimated = replace(scans[1], read=partial(_of, replace(scans[1].read(), spacing_is_estimated=True)))
    assert real_features(scans)[1] == ()
    features, lost = real_features([picture, scans[2]])
    assert lost == ("brain_hu_spread", "bright_share", "dense_share", "noise_hu")
    assert len(features) == 2
    assert real_features([estimated])[1] == ("cavity_volume_ml", "field_of_view_mm", "pixel_spacing_mm")


def test_a_bundle_says_what_it_is(scans: list[Scan], bundle: Path, outlined: list[Scan]):
    described = read_description(bundle)
    assert described["members"] == 2
    assert described["training_recipe"]["name"] == "tiny"
    assert described["metrics"]["remarks"] == ["Another one was tried and was worse."]
    counted = pointing(bundle, outlined)
    assert described["metrics"]["pointing"]["slices_with_hemorrhage"] == counted.slices
    assert described["metrics"]["pointing"]["strongest_point_in_bleed"] == round(counted.share, 3)
    assert (
        0
        < described["operating_points"]["sensitive"]
        <= described["operating_points"]["high_confidence"]
        <= 1
    )
    low, high = described["training_inputs"]["slice_spacing_mm"]
    assert low < 160 / 12 < high
    volume = scans[0].read()
    reader = load_predictor(bundle, "cpu")
    # a head like those of the training is not flagged, nor one in thinner slices, which are read as slabs of those
    assert described["slab_mm"] == round(volume.spacing_mm[0], 2)
    whole = reader.predict(volume.hu, volume.spacing_mm)
    assert not whole.unlike_training
    squeezed = (volume.spacing_mm[0] / 2, *volume.spacing_mm[1:])
    thin = reader.predict(volume.hu.repeat(2, axis=0), squeezed)
    assert not thin.unlike_training
    assert thin.suspicion == whole.suspicion
    # one in slices of twice the distance is
    stretched = (volume.spacing_mm[0] * 2, *volume.spacing_mm[1:])
    assert reader.predict(volume.hu[::2], stretched).unlike_training

    card = (bundle / "MODEL_CARD.md").read_text()
    for said in ("CT-ICH v1.0.0", "CC BY 4.0", "10.13026/w8q8-ky94", "(6 patients, 72 slices)", "2 phantoms"):
        assert said in card
    for said in (
        "2 networks of one shape",
        "Another one was tried",
        "On 2 phantoms",
        "6 patients (4 with\nhemorrhage)",
    ):
        assert said in card
    for absent in ("BLAST-CT", "ImageNet", "teacher"):
        assert absent not in card


def test_teacher_and_imagenet_are_named(scans: list[Scan], split: Split, cache: Path, tmp_path: Path):
    """Where a run learnt with them its bundle says so, and whose they are."""
    recipe = read_recipe(write_recipe(tmp_path / "lite.toml", "lite-mil", "width = 8"))
    recipe = replace(recipe, start="imagenet" if has_imagenet else "random")
    train_folds(recipe, scans, split, cache, tmp_path / "lite", teacher=Somewhere(), engine=CPU)
    release(tmp_path / "lite", scans, tmp_path / "lite-v1", wanted())
    names = [source["name"] for source in read_description(tmp_path / "lite-v1")["training_data"]]
    assert names[:3] == ["CT-ICH v1.0.0", "ich_node.testing.head_phantom", "BLAST-CT (tests' teacher)"]
    assert (names[3:] == [IMAGENET["name"]]) is has_imagenet
    card = (tmp_path / "lite-v1" / "MODEL_CARD.md").read_text()
    assert TEACHER["citation"] in card
    assert "The teacher says where on a slice" in card
    assert (IMAGENET["citation"] in card) is has_imagenet
    full = in_full(tmp_path / "lite-v1", tmp_path / "lite", tmp_path / "full")
    half = probabilities(tmp_path / "lite-v1", scans[:1])
    assert half.shape[1] == 6
    assert 0 < np.abs(half - probabilities(full, scans[:1])).max() < 0.01


def test_weights_that_16_bits_cannot_hold_are_kept_in_full(recipe: Recipe, tmp_path: Path):
    torch.manual_seed(0)
    state = recipe.system.network(recipe.network).state_dict()
    name = next(name for name in state if name.endswith("running_var"))
    state[name] = torch.full_like(state[name], 1e6)
    write_bundle(tmp_path / "wide", recipe, [state], {}, "# wide\n", torch.float16)
    load_predictor(tmp_path / "wide", "cpu")
    kept = load_file(tmp_path / "wide" / "model.safetensors")
    (wide,) = (tensor for each, tensor in kept.items() if each.endswith(name))
    assert torch.equal(wide, state[name])
    kinds = {tensor.dtype for tensor in kept.values()}
    assert kinds == {torch.float16, torch.float32, torch.int64}


def test_a_bundle_names_only_what_trained_it(scans: list[Scan], run: Path, tmp_path: Path):
    for others in (scans[:-1], [replace(scans[0], source="mine"), *scans[1:]], scans[:6]):
        with pytest.raises(
            ValueError, match="was trained on 6 scans of ct-ich, 2 scans of phantom; given is"
        ):
            release(run, others, tmp_path / "other", wanted())
    with pytest.raises(ConfigurationError, match="the bundle's folder is 'my bundle'"):
        release(run, scans, tmp_path / "my bundle", wanted())
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_is_not_released(
    scans: list[Scan], split: Split, cache: Path, recipe: Recipe, tmp_path: Path
):
    train_folds(recipe, scans, split, cache, tmp_path / "run", only=[0], engine=CPU)
    with pytest.raises(ValueError, match="not all folds are done"):
        release(tmp_path / "run", scans, tmp_path / "bundle", wanted())


def described(scans: Sequence[Scan], run: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "mine",
        "version": "1",
        "members": 1,
        "architecture": "he-fusion",
        "training_recipe": recipe_of_run(run).as_dict(),
        "training_data": training_data(scans),
        "training_inputs": {},
        "metrics": metrics,
    }


def test_a_card_speaks_of_the_data_that_it_is_of(scans: list[Scan], run: Path, bundle: Path):
    metrics = {**read_description(bundle)["metrics"], "pointing": None}
    mine = [replace(scan, source="dicom", outlined=True) for scan in scans[:6]]
    card = model_card(described(mine, run, metrics))
    counted = {
        subtype: sum(int(scan.scan_labels[column] == PRESENT) for scan in mine)
        for column, subtype in ((1, "epidural"), (5, "subdural"))
    }
    assert "the user's own data" in card
    assert "6 patients of one data set, 4 scans with hemorrhage" in card
    for subtype, count in counted.items():
        assert f"{subtype} {count} (" in card
    assert "It is one network." in card
    for absent in ("CT-ICH", "8-bit", "phantom", "no outlines", "mirror"):
        assert absent not in card.replace("Bleeds of training patients and of phantoms were", "")


def test_a_tuned_detector_is_read_and_a_wrong_one_named(tmp_path: Path) -> None:
    file = tmp_path / "detector.json"
    tuned = {"height": 0.01, "threshold": 0.4, "distance_mm": 12.0, "most": 5}
    file.write_text(json.dumps({"localization": tuned}))
    assert asdict(read_detector(file)) == tuned
    file.write_text(json.dumps({"localization": {"hight": 0.01}}))
    with pytest.raises(ConfigurationError, match=r"detector\.json: key 'localization\.hight'"):
        read_detector(file)
