"""A run that was killed ends as one that was not; epochs are what the recipe says."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_training import cuts_of, phantoms, short, tiny, train
from training.batches import in_turn
from training.engine import WEIGHTS_FILE, Steps
from training.run import learner_of
from training.scan import Scan

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny-cuts"


@pytest.fixture(scope="module")
def scans(cache: Path) -> list[Scan]:
    return phantoms(cache)


def other_disk(folder: Path) -> Path:
    """A folder on another file system, where there is one."""
    found = [Path("/dev/shm"), Path("/tmp")]
    return next(
        (p for p in found if p.is_dir() and p.stat().st_dev != folder.parent.stat().st_dev), folder.parent
    )


def _killed_at(checkpoint: Path, architecture: str, cache: Path, out: Path) -> None:
    """Train in another process and kill it as soon as a checkpoint is there."""
    command = [sys.executable, "-m", "tests.tiny_training", architecture, str(cache), str(out)]
    # temporary files on another disk: what is moved from there is not there whole at once
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(other_disk(out))}
    log = out.with_suffix(".log")
    with log.open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + 120
            while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL, log.read_text()
    assert checkpoint.is_file(), log.read_text()


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [("radnet", ["."]), ("burduja", ["cnn", "sequence"])],
    ids=["radnet", "burduja"],
)
def test_killed_training_ends_as_the_uninterrupted(
    architecture: str, stages: list[str], scans: list[Scan], cache: Path, tmp_path: Path
):
    recipe, out = short(architecture), tmp_path / "killed"
    cuts_of(recipe, scans, cache)
    for stage in stages:
        _killed_at(out / stage / "checkpoint.ckpt", architecture, cache, out)
        assert not (out / WEIGHTS_FILE).exists()
        assert not (out / stage / WEIGHTS_FILE).exists()
    train(recipe, scans, cache, out)
    train(recipe, scans, cache, tmp_path / "whole")
    resumed, whole = (load_file(tmp_path / run / WEIGHTS_FILE) for run in ("killed", "whole"))
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_processes_share_the_batches_of_an_epoch():
    samplers = [Steps(3, rank, 2) for rank in range(2)]
    seen = []
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        seen.append(sorted(number for sampler in samplers for number in sampler))
    assert seen == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert [len(sampler) for sampler in samplers] == [3, 3]


def test_things_come_in_turn_and_in_another_order_with_each_pass():
    passes = in_turn(10, 0, 30, 7).reshape(3, 10)
    assert all(sorted(one) == list(range(10)) for one in passes.tolist())
    assert len({tuple(one) for one in passes.tolist()}) == 3
    np.testing.assert_array_equal(in_turn(10, 8, 5, 7), passes.ravel()[8:13])
    assert in_turn(10, 0, 10, 8).tolist() != passes[0].tolist()


def test_epoch_of_slices_shows_each_real_slice_once(scans: list[Scan], cache: Path):
    changes = {"mix": {"phantoms": 0, "uniform": 8}, "schedule": {"epoch": "slices", "epochs": 2}}
    recipe = tiny("vicar-mil", changes)
    real = [replace(scan, synthetic=number % 2 == 0) for number, scan in enumerate(scans)]
    cuts = cuts_of(recipe, real, cache)
    trained = np.arange(len(real)) < 6
    batches = learner_of(recipe).batches(cuts, trained, 1)
    patients = trained[cuts.scan] & ~cuts.synthetic
    assert len(batches) == 2 * math.ceil(patients.sum() / 8)
    shown = np.concatenate([batches._rows(np.random.default_rng(0), step)[0] for step in range(len(batches))])
    assert sorted(set(shown.tolist())) == np.flatnonzero(patients).tolist()
    assert set(np.bincount(shown, minlength=len(patients))[patients].tolist()) <= {2, 3}


def test_epoch_of_slices_without_real_slices_is_refused(scans: list[Scan], cache: Path):
    recipe = tiny("vicar-mil", {"schedule": {"epoch": "slices"}})
    with pytest.raises(ValueError, match="real slices"):
        learner_of(recipe).batches(cuts_of(recipe, scans, cache), np.ones(len(scans), bool), 1)


def test_says_nothing_that_nobody_can_act_on(
    scans: list[Scan], cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    # pytest has taken the stream that Lightning's own handler writes to
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    lightning = logging.getLogger("lightning.pytorch")
    lightning.addHandler(handler)
    recipe = tiny("vicar-mil", {"schedule": {"epochs": 1, "steps_per_epoch": 1}})
    train(recipe, scans, cache, tmp_path / "quiet")
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert not heard
    assert not (tmp_path / "quiet" / "tensorboard").exists()
    learner = learner_of(recipe)
    learner.train(
        cuts_of(recipe, scans, cache),
        np.ones(len(scans), bool),
        tmp_path / "loud",
        seed=1,
        accelerator="cpu",
        progress=True,
        verbose=True,
    )
    lightning.removeHandler(handler)
    said = capfd.readouterr()
    assert any("GPU available" in line for line in heard)
    assert "Epoch 0" in said.out + said.err
    assert list((tmp_path / "loud" / "tensorboard").glob("events*"))
