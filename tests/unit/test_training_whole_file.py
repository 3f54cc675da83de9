"""A file is there whole or not at all, whoever else writes it."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from training.split import Split
from training.whole_file import written_whole

PATIENTS = {f"{number:04d}": number % 5 for number in range(2000)}


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text("before")

    def fail() -> None:
        with written_whole(file) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_the_path_keeps_the_suffix_that_writers_go_by(tmp_path: Path):
    with written_whole(tmp_path / "a.npz") as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"x")
    assert (tmp_path / "a.npz").read_bytes() == b"x"


def save_often(file: Path) -> int:
    for _ in range(200):
        Split(name="five", seed=1, data="d", folds=PATIENTS).save(file)
        assert Split.load(file).folds == PATIENTS
    return 200


def test_processes_that_share_a_run_write_its_split_at_once(tmp_path: Path):
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(save_often, [tmp_path / "split.json"] * 3)) == [200] * 3
