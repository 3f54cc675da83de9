"""The documented commands, to the end, on pictures made from phantoms; and what they say of bad input."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from ich_node.findings import IchSubtype
from ich_node.model.bundle import find_bundle, verify_bundle
from ich_node.model.predict import load_predictor
from ich_node.testing.phantom import head_phantom
from tests.ct_ich_pictures import write_pictures, write_recipe
from tests.unit.test_training_blast_ct import teachers
from training import blast_ct
from training.__main__ import main
from training.comparison import read_rows
from training.predictions import Predictions
from training.recipe import SHIPPED
from training.split import Split

RUN = "vicar-max-small"
"""What the finished run is called: a line of the comparison, though it is of a recipe of seconds."""


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Starting processes would take longer than their work, and the machine has other work."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    logging.getLogger().handlers.clear()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, ``tiny.toml`` and, as tests go on, ``cache`` and ``runs``."""
    root = tmp_path_factory.mktemp("work")
    (root / "data").mkdir()
    write_pictures(root / "data")
    write_recipe(root / "tiny.toml")
    return root


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = command(*arguments)
    assert result.exit_code == 0, result.output or repr(result.exception)
    return result.output


def data_of(work: Path) -> tuple[object, ...]:
    return ("--data", f"ct-ich={work / 'data'}", "--cache", work / "cache")


def fit_of(work: Path, out: Path) -> tuple[object, ...]:
    how = ("--folds", 2, "--phantoms", 1, "--threads", 1, "--accelerator", "cpu")
    return ("fit", work / "tiny.toml", *data_of(work), "--out", out, *how)


@pytest.fixture
def run(work: Path) -> Path:
    """A finished run, made once."""
    out = work / "runs" / RUN
    if not (out / "fold1" / "predictions.npz").is_file():
        assert f"Predictions of all folds are in {out}." in done(*fit_of(work, out))
    return out


# --- data


def test_recipes_are_listed():
    lines = done("recipes").splitlines()
    assert [line.split()[0] for line in lines] == [file.stem for file in sorted(SHIPPED.glob("*.toml"))]
    assert any(line.startswith("lite-mil ") and "ImageNet" in line for line in lines)


def test_help_names_every_command():
    said = done("--help")
    for name in main.commands:
        assert name in said
        assert done(name, "--help").startswith(f"Usage: main {name}")


def test_split_deals_the_patients_out(work: Path, tmp_path: Path):
    out = tmp_path / "split.json"
    said = done("split", *data_of(work), "--out", out, "--folds", 2)
    assert f"4 patients in 2 folds, 0 held out: {out}" in said
    split = Split.load(out)
    assert split.data == "ct-ich"
    for fold in range(2):  # one with and one without hemorrhage in each
        own = {int(patient) % 2 for patient, part in split.folds.items() if part == fold}
        assert own == {0, 1}
    assert "3 patients in 2 folds, 1 held out" in done(
        "split", *data_of(work), "--out", out, "--folds", 2, "--test", 0.25
    )


def test_check_says_whether_a_measurement_would_be_true(work: Path, tmp_path: Path):
    said = done("check", *data_of(work), "--images")
    assert "4" in said
    assert json.loads(done("check", *data_of(work), "--json"))
    copy = Path(shutil.copytree(work / "data", tmp_path / "copy"))
    (copy / "Patients_CT" / "002" / "brain" / "7.jpg").write_bytes(b"no picture")
    damaged = command("check", "--data", f"ct-ich={copy}", "--cache", tmp_path / "cache", "--images")
    assert damaged.exit_code == 1
    assert "7.jpg" in damaged.output
    assert "Traceback" not in damaged.output


def test_teach_asks_for_the_slices_labelled_positive_once(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With networks that call dense voxels hemorrhage: the real ones take minutes a patient."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model_1.pt").write_bytes(b"")
    asked: list[Path] = []
    monkeypatch.setattr(blast_ct, "load_teachers", lambda folder: [asked.append(folder), *teachers()][1:])
    arguments = (
        "teach",
        "--data",
        f"ct-ich={work / 'data'}",
        "--cache",
        tmp_path,
        "--weights",
        tmp_path / "weights",
    )
    done(*arguments)
    answers = sorted((tmp_path / "blast-ct-v1-1").iterdir())
    assert [answer.name.split("-")[3] for answer in answers] == ["001", "003"]  # the patients with hemorrhage
    with np.load(answers[0]) as arrays:
        assert arrays["likelihood"].shape[:2] == (len(arrays["slices"]), 3)
        assert arrays["likelihood"].max() > 250
    assert len(asked) == 2
    done(*arguments)
    assert len(asked) == 2


# --- runs


def test_fit_trains_what_is_missing_and_leaves_what_is_done(work: Path, run: Path):
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}
    assert len(before) == 4  # weights and a bundle of each fold
    assert "Predictions of all folds" in done(*fit_of(work, run))
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")} == before
    found = [Predictions.load(run / f"fold{fold}" / "predictions.npz") for fold in range(2)]
    assert sorted(np.concatenate([p.scan_ids for p in found]).tolist()) == ["001", "002", "003", "004"]
    assert (run / "fold0" / "tensorboard").is_dir()
    said = json.loads((run / "run.json").read_text())
    assert said["scans"] == {"ct-ich": 4, "phantom": 1}


def test_fit_of_some_folds_on_a_split_of_ones_own(work: Path, tmp_path: Path):
    done("split", *data_of(work), "--out", tmp_path / "split.json", "--folds", 2, "--seed", 3)
    arguments = (
        *("fit", work / "tiny.toml", *data_of(work), "--out", tmp_path / "run", "--phantoms", 0),
        *(
            "--split",
            tmp_path / "split.json",
            "--fold",
            1,
            "--epochs",
            1,
            "--steps",
            1,
            "--accelerator",
            "cpu",
        ),
    )
    assert "These folds are done; others are not yet." in done(*arguments)
    assert not (tmp_path / "run" / "fold0").exists()
    assert Split.load(tmp_path / "run" / "split.json") == Split.load(tmp_path / "split.json")
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    assert said["recipe"]["schedule"]["steps_per_epoch"] == 1
    told = failed("evaluate", tmp_path / "run")
    assert "not all folds are done" in told


def test_evaluate_prints_the_tables(run: Path):
    said = done("evaluate", run)
    assert said.strip() == (run / "report" / "report.md").read_text().strip()
    assert "4" in said
    assert json.loads((run / "report" / "metrics.json").read_text())["summary"]["patients"] == 4


def test_release_writes_a_bundle_that_reads(work: Path, run: Path, tmp_path: Path):
    out = tmp_path / "bundles" / "tiny-v1"
    said = done(
        *("release", run, *data_of(work), "--phantoms", 1, "--out", out, "--version", "0.1", "--outlined", 1),
        *("--remark", "A trial.", "--threads", 1),
    )
    metrics = json.loads(said)
    assert metrics["cross_validation"]["patients"] == 4
    assert metrics["pointing"]["slices_with_hemorrhage"] > 0
    assert metrics["remarks"] == ["A trial."]
    assert verify_bundle(find_bundle("tiny-v1", tmp_path / "bundles")).startswith("tiny-v1 0.1")
    head = head_phantom(bleeds=[IchSubtype.EPIDURAL], seed=721, rows=96, columns=96, slices=10)
    finding = load_predictor(out, "cpu").predict(head.hu, head.spacing_mm)
    assert 0 < finding.suspicion < 1
    card = (out / "MODEL_CARD.md").read_text()
    assert "CT-ICH v1.0.0" in card
    assert "- A trial." in card


def test_point_counts_where_the_strongest_points_lie(work: Path, run: Path):
    bundle = next((run / "fold0").glob("*-fold0"))
    cache = ("--cache", work / "cache", "--threads", 1)
    found = json.loads(done("point", bundle, "--phantoms", 2, *cache))
    assert found["slices_with_hemorrhage"] > found["without_a_point"] >= 0
    assert 0 <= found["strongest_point_in_bleed"] <= found["within_5_mm"] <= 1
    assert "has an outline" in failed("point", bundle, *data_of(work))


def test_compare_trains_what_is_missing_and_results_shows_it(work: Path, run: Path, tmp_path: Path):
    others = [row.recipe for row in read_rows() if row.recipe != RUN]
    few = ("--folds", 2, "--phantoms", 0, "--limit", 4, "--epochs", 1, "--steps", 1, "--threads", 1)
    name = "vicar-attention-small"
    done("compare", *data_of(work), "--runs", tmp_path / "runs", "--recipe", name, "--fold", 0, *few)
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == [name]
    assert (tmp_path / "runs" / name / "fold0" / "predictions.npz").is_file()
    assert not (tmp_path / "runs" / name / "fold1").exists()

    page, records = tmp_path / "results.md", tmp_path / "records"
    to = ("--records", records, "--out", page)
    said = done("results", *data_of(work), "--runs", run.parent, *to)
    assert f"{RUN}: recorded" in said
    assert f"1 runs, 0 bundles: {page}" in said
    text = page.read_text()
    assert "4 patients, 2 scans with hemorrhage, 56 slices" in text
    assert f"python -m training results --data ct-ich=FOLDER --records {records} --out {page}" in text
    done("results", *data_of(work), *to)
    assert page.read_text() == text
    labels = {row.recipe: row.label for row in read_rows()}
    (missing,) = [line for line in text.splitlines() if line.startswith("Not run yet: ")]
    assert all(labels[recipe] in missing for recipe in others)


# --- bad input


def failed(*arguments: object) -> str:
    """What a command says that fails: one line, after how it is used at most."""
    result = command(*arguments)
    assert result.exit_code not in (0, None)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    lines = result.output.strip().splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    assert errors == [len(lines) - 1], result.output
    assert all(line.startswith(("Usage: ", "Try ")) for line in lines[:-1] if line), result.output
    return lines[-1].removeprefix("Error: ")


def test_data_that_is_not_there_is_told(work: Path, tmp_path: Path):
    out = ("--cache", tmp_path / "cache", "--out", tmp_path / "split.json")
    for wrong in ("no-reader=/tmp", "ct-ich", "ct-ich=", "=/tmp"):
        assert "is not NAME=FOLDER with a known NAME" in failed("split", "--data", wrong, *out)
    assert "hemorrhage_diagnosis.csv" in failed("split", "--data", f"ct-ich={tmp_path / 'absent'}", *out)
    assert "'--data'" in failed("split", *out)
    assert "cannot be dealt to 40 folds" in failed(
        "split", "--data", f"ct-ich={work / 'data'}", *out, "--folds", 40
    )
    assert not (tmp_path / "split.json").exists()


def recipe_with(work: Path, folder: Path, before: str, after: str) -> Path:
    text = (work / "tiny.toml").read_text()
    assert before in text
    file = folder / "wrong.toml"
    file.write_text(text.replace(before, after))
    return file


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[mix]", "[mixture]", "wrong.toml: key 'mixture' is not known"),
        ("epochs = 1", "epoch_count = 1", "wrong.toml: key 'schedule.epoch_count' is not known"),
        ("vicar-mil", "vicar-published", "'vicar-published' cannot be trained here"),
        ("positives = 2", "positives = -2", "wrong.toml: key 'mix.positives'"),
        ("[mix]", "[mix", "wrong.toml: cannot be read as TOML"),
    ],
)
def test_a_recipe_with_a_mistake_is_told(work: Path, tmp_path: Path, before: str, after: str, said: str):
    file = recipe_with(work, tmp_path, before, after)
    rest = (*data_of(work), "--out", tmp_path / "run", "--phantoms", 0, "--folds", 2)
    if "published" in after:
        text = file.read_text()
        file.write_text(text.split("[network]")[0] + "[mix]" + text.split("[mix]")[1])
    assert said in failed("fit", file, *rest)


def test_settings_that_do_not_fit_are_told(work: Path, run: Path, tmp_path: Path):
    rest = (*data_of(work), "--out", tmp_path / "run", "--phantoms", 0, "--folds", 2)
    assert "there is no recipe 'vicar'; there is: " in failed("fit", "vicar", *rest)
    assert "folds are numbered 0 to 1" in failed("fit", work / "tiny.toml", *rest, "--fold", 2)
    assert "4 patients cannot be dealt to 5 folds" in failed("fit", work / "tiny.toml", *rest[:-1], 5)
    (tmp_path / "split.json").write_text('{"parts": 3}')
    split = ("--split", tmp_path / "split.json")
    assert "split.json is no split" in failed("fit", work / "tiny.toml", *rest, *split)
    Split(name="others", seed=1, data="ct-ich", folds={"901": 0, "902": 1}).save(tmp_path / "split.json")
    assert "has no fold for patients 001, 002" in failed("fit", work / "tiny.toml", *rest, *split)
    (tmp_path / "empty").mkdir()
    assert "holds no model_*.pt" in failed("fit", work / "tiny.toml", *rest, "--teacher", tmp_path / "empty")
    other = ("--steps", 1, *data_of(work), "--out", run, "--phantoms", 1, "--folds", 2)
    assert "run.json describes another run" in failed("fit", work / "tiny.toml", *other)
    only_phantoms = recipe_with(
        work,
        tmp_path,
        "positives = 2\nnegatives = 2\ntransplants = 2",
        "positives = 0\nnegatives = 0\ntransplants = 0",
    )
    assert "none of those that the recipe's mix is made of" in failed("fit", only_phantoms, *rest)


def test_images_that_are_damaged_are_told(work: Path, tmp_path: Path):
    copy = Path(shutil.copytree(work / "data", tmp_path / "copy"))
    (copy / "Patients_CT" / "003" / "bone" / "5.jpg").write_bytes(b"no picture")
    rest = ("--cache", tmp_path / "cache", "--out", tmp_path / "run", "--phantoms", 0, "--folds", 2)
    told = failed_last("fit", work / "tiny.toml", "--data", f"ct-ich={copy}", *rest)
    assert told.startswith("Error: scan 003: ")
    assert "5.jpg" in told


def failed_last(*arguments: object) -> str:
    """The last line of what a command says that fails in the midst of its work."""
    result = command(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    lines: Sequence[str] = result.output.strip().splitlines()
    return lines[-1]


def test_runs_that_are_none_are_told(work: Path, run: Path, tmp_path: Path):
    (tmp_path / "nothing").mkdir()
    assert "split.json" in failed("evaluate", tmp_path / "nothing")
    assert "does not exist" in failed("evaluate", tmp_path / "absent")
    bundle = ("--out", tmp_path / "v1", "--version", "1")
    assert "run.json" in failed("release", tmp_path / "nothing", *data_of(work), "--phantoms", 0, *bundle)
    assert "was trained on" in failed("release", run, *data_of(work), "--phantoms", 0, *bundle)
    assert not (tmp_path / "v1").exists()
    assert "no run is done" in failed(
        "results", *data_of(work), "--records", tmp_path, "--out", tmp_path / "r.md"
    )
    told = failed("compare", *data_of(work), "--runs", tmp_path, "--recipe", "vicar")
    assert "'vicar' is not compared; there is " in told
    assert "vicar-max-small" in told
    assert "no model_*.pt" in failed("teach", *data_of(work), "--weights", tmp_path)
