"""The documented commands, to the end, on pictures made from phantoms."""

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
from safetensors.torch import load_file

from ich_node.findings import IchSubtype
from ich_node.model.bundle import verify_bundle
from ich_node.model.predict import load_predictor
from ich_node.model.preprocess import PreprocessConfig
from ich_node.model.vicar_mil import VicarMilConfig
from ich_node.testing.phantom import head_phantom
from tests.ct_ich_pictures import write_pictures
from training.__main__ import main
from training.cross_validate import cross_validate
from training.ct_ich import read_scans
from training.dataset import estimated_spacing_mm, load_ct_ich
from training.evaluate import auc
from training.train_vicar import TrainingConfig, train

SIZE = {"rows": 144, "columns": 144, "slices": 14, "slice_spacing_mm": 10}
SMALL = TrainingConfig(
    network=VicarMilConfig(widths=(4, 8, 8), attention_width=8),
    preprocess=PreprocessConfig(size=64, pitch_mm=3.0),
    epochs=2,
    steps_per_epoch=2,
    bfloat16=False,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and the machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    logging.getLogger().handlers.clear()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, two with a bleed."""
    root = tmp_path_factory.mktemp("ct_ich")
    write_pictures(root)
    return root


def test_pictures_give_the_hounsfield_units_back(pictures: Path):
    scan = read_scans(pictures)[0]
    want = head_phantom(bleeds=[IchSubtype.EPIDURAL], seed=701, **SIZE).hu
    hu = scan.hu()
    tissue = (want > 5) & (want < 80)
    assert np.median(np.abs(hu - want)[tissue]) < 3
    assert (hu[want > 400] > 160).mean() > 0.95
    assert (hu[want < -500] < -100).mean() > 0.95
    assert scan.labels.any()
    assert not read_scans(pictures)[1].labels.any()


def test_listed_picture_that_is_absent_is_named(pictures: Path, tmp_path: Path):
    table = (pictures / "hemorrhage_diagnosis.csv").read_text() + "4,99,0,0,0,0,0,1,0\n"
    (tmp_path / "hemorrhage_diagnosis.csv").write_text(table)
    (tmp_path / "Patients_CT").symlink_to(pictures / "Patients_CT")
    with pytest.raises(FileNotFoundError, match=r"99\.jpg"):
        read_scans(tmp_path)


def test_estimated_spacing_brings_heads_to_one_size():
    """One head in two fields of view gets two spacings, in their proportion."""
    wide, narrow = (
        head_phantom(seed=710, rows=160, columns=160, slices=12, slice_spacing_mm=10, field_of_view_mm=f).hu
        for f in (260.0, 215.0)
    )
    enlarged = [np.repeat(np.repeat(v, 4, axis=1), 4, axis=2) for v in (wide, narrow)]
    a, b = (estimated_spacing_mm(v)[1] for v in enlarged)
    assert a / b == pytest.approx(260 / 215, rel=0.06)


def test_interrupted_training_ends_as_the_uninterrupted(pictures: Path, tmp_path: Path):
    slices = load_ct_ich(pictures, tmp_path, SMALL.preprocess)
    scans = np.arange(4)
    whole = train(slices, scans, SMALL, seed=1).state_dict()

    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "one.checkpoint"
    logger = logging.getLogger("training.train_vicar")
    handler = Interrupt()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # the first epoch's line comes before its checkpoint, so the second run of the loop is cut off at the second
    first = True

    def after_first(record: logging.LogRecord) -> bool:
        nonlocal first
        passed, first = not first, False
        return passed

    handler.addFilter(after_first)
    with pytest.raises(KeyboardInterrupt):
        train(slices, scans, SMALL, seed=1, checkpoint=checkpoint)
    logger.removeHandler(handler)
    assert checkpoint.is_file()
    resumed = train(slices, scans, SMALL, seed=1, checkpoint=checkpoint).state_dict()
    for key, tensor in whole.items():
        assert torch.equal(tensor, resumed[key]), key


def test_another_configuration_does_not_take_up_a_run(pictures: Path, tmp_path: Path):
    slices = load_ct_ich(pictures, tmp_path / "cache", SMALL.preprocess)
    cross_validate(slices, tmp_path / "run", SMALL, folds=2, only=[0])
    with pytest.raises(ValueError, match="describes another run"):
        cross_validate(slices, tmp_path / "run", TrainingConfig(preprocess=SMALL.preprocess), folds=2)


def test_going_on_begins_with_the_earlier_networks_of_the_same_split(pictures: Path, tmp_path: Path):
    slices = load_ct_ich(pictures, tmp_path / "cache", SMALL.preprocess)
    first, second = tmp_path / "first", tmp_path / "second"
    assert cross_validate(slices, first, SMALL, folds=2)
    still = replace(SMALL, learning_rate=0.0, average_decay=0.0)
    assert cross_validate(slices, second, still, folds=2, begin=first)
    before, after = (load_file(run / "fold1.safetensors") for run in (first, second))
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])
    with pytest.raises(ValueError, match="another split"):
        cross_validate(slices, tmp_path / "third", replace(SMALL, seed=21), folds=4, begin=first)


def test_phantoms_are_learnt_better_than_chance(pictures: Path, tmp_path: Path):
    from training.phantoms import load_phantoms
    from training.train_vicar import slice_logits

    config = PreprocessConfig(size=64, pitch_mm=3.0)
    phantoms = load_phantoms(tmp_path, config, 6)
    recipe = TrainingConfig(
        network=SMALL.network,
        preprocess=config,
        epochs=5,
        steps_per_epoch=12,
        average_decay=0.9,
        bfloat16=False,
    )
    network = train(None, np.array([], np.intp), recipe, seed=0, phantoms=phantoms)
    unseen = load_ct_ich(pictures, tmp_path, config)
    rows = np.flatnonzero(unseen.mask.any(axis=(1, 2)))
    assert auc(unseen.label[rows], slice_logits(network, unseen, rows, config)) > 0.7


def test_documented_commands_from_pictures_to_a_bundle_that_reads(pictures: Path, tmp_path: Path):
    run, cache, out = tmp_path / "run", tmp_path / "cache", tmp_path / "vicar-trial"
    common = [
        "--data",
        str(pictures),
        "--cache",
        str(cache),
        "--out",
        str(run),
        "--folds",
        "2",
        "--phantoms",
        "3",
    ]
    short = ["--epochs", "1", "--steps", "1", "--pretraining-epochs", "1", "--threads", "1"]
    first = CliRunner().invoke(
        main, ["cross-validate", *common, *short, "--fold", "0"], catch_exceptions=False
    )
    assert "others are not yet" in first.output
    second = CliRunner().invoke(main, ["cross-validate", *common, *short], catch_exceptions=False)
    assert second.exit_code == 0
    assert set(json.loads((run / "run.json").read_text())["fold_of"].values()) == {0, 1}
    done = CliRunner().invoke(
        main,
        ["release", "--run", str(run), "--out", str(out), "--version", "0.0.1", "--phantoms", "3"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    assert json.loads(done.output)["cross_validation"]["patients"] == 4
    assert "vicar-trial 0.0.1" in verify_bundle(out)
    head = head_phantom(seed=720, rows=128, columns=128, slices=8, slice_spacing_mm=15)
    assert len(load_predictor(out, "cpu").predict(head.hu, head.spacing_mm).slices) == 8


def test_fold_that_is_not_there(pictures: Path, tmp_path: Path):
    arguments = [
        "--data",
        str(pictures),
        "--out",
        str(tmp_path / "run"),
        "--cache",
        str(tmp_path),
        "--phantoms",
        "0",
    ]
    result = CliRunner().invoke(main, ["cross-validate", *arguments, "--folds", "2", "--fold", "2"])
    assert result.exit_code == 2
    assert "0 to 1" in result.output


def test_real_pictures_are_all_there(shared_data: Path):
    scans = read_scans(shared_data / "ct_ich")
    assert len(scans) == 60
    assert sum(len(s.labels) for s in scans) == 1808
    assert sum(s.labels.any() for s in scans) == 26
