"""The comparison: its lines, the order of its runs, and a page that says no more than its runs do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.comparison import (
    ROWS_FILE,
    Row,
    finished,
    main_table,
    page,
    read_rows,
    run_missing,
    write_page,
)
from training.predictions import Predictions
from training.recipe import find_recipe
from training.records import Said, of_run
from training.run import PREDICTIONS_FILE, RUN_FILE, SPLIT_FILE
from training.scan import CLASSES
from training.split import Split

ROWS = [
    Row(recipe="vicar-attention-small", system="A", label="Vicar: attention", published="Dice 47 %"),
    Row(recipe="vicar-max-small", system="A", label="Vicar: max", whole="vicar-attention-small"),
    Row(recipe="he-fusion-small", system="B", label="He"),
]
PATIENTS, SLICES = 24, 4


def write_run(
    folder: Path,
    recipe: str,
    strength: float,
    *,
    seed: int = 0,
    patients: int = PATIENTS,
    teacher: str | None = None,
) -> None:
    """A run of two folds whose logits tell hemorrhage by so much; every other patient has one, subdural."""
    rng = np.random.default_rng(seed)
    names = [f"p{number:02d}" for number in range(patients)]
    split = Split(
        name="tests", seed=1, data="tests", folds={name: n // 2 % 2 for n, name in enumerate(names)}
    )
    folder.mkdir(parents=True)
    split.save(folder / SPLIT_FILE)
    described = {"recipe": find_recipe(recipe).as_dict(), "folds": 2, "teacher": teacher}
    (folder / RUN_FILE).write_text(json.dumps(described))
    for fold in range(2):
        own = [name for name in names if split.folds[name] == fold]
        bleeding = np.array([int(name[1:]) % 2 for name in own])
        labels = np.zeros((len(own), SLICES, len(CLASSES)), np.int8)
        labels[:, 1:3, 0] = labels[:, 1:3, 5] = bleeding[:, None]
        labels = labels.reshape(-1, len(CLASSES))
        values: dict[str, Any] = {
            "system": recipe,
            "data": "tests",
            "split": "2-fold cross-validation by patient",
            "scan_ids": np.array(own),
            "patient_ids": np.array(own),
            "fold": np.full(len(own), fold),
            "scan": np.repeat(np.arange(len(own)), SLICES),
            "labels": labels,
            "scan_labels": labels.reshape(len(own), SLICES, -1).max(axis=1),
            "logits": rng.normal(size=labels.shape) + strength * labels,
            "places": np.zeros((0, 7)),
            "boxes": np.zeros((0, 6)),
            "pixel_mm": np.ones((len(labels), 2)),
        }
        (folder / f"fold{fold}").mkdir()
        Predictions(**values).save(folder / f"fold{fold}" / PREDICTIONS_FILE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two lines done, the third begun."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "vicar-attention-small", "vicar-attention-small", 3.0)
    write_run(root / "vicar-max-small", "vicar-max-small", 1.0, teacher="blast-ct-v1-3")
    write_run(root / "he-fusion-small", "he-fusion-small", 2.0)
    (root / "he-fusion-small" / "fold1" / PREDICTIONS_FILE).unlink()
    return root


def done_in(runs: Path) -> Callable[[str], Said | None]:
    return lambda recipe: of_run(runs / recipe)


def test_every_line_that_is_shipped_has_a_recipe():
    rows = read_rows()
    assert len(rows) > 10
    for row in rows:
        assert find_recipe(row.recipe).name == row.recipe
        assert row.system in "ABCD-"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('system = "A"', 'sytem = "A"', "sytem"),
        ('whole = "vicar-attention-small"', 'whole = "vicar-small"', "whole = 'vicar-small' has no line"),
    ],
)
def test_a_mistake_in_a_line_is_told(tmp_path: Path, before: str, after: str, said: str):
    file = tmp_path / "rows.toml"
    file.write_text(ROWS_FILE.read_text().replace(before, after, 1))
    with pytest.raises(ValueError, match=said) as told:
        read_rows(file)
    assert str(told.value).startswith(str(file))


def test_runs_that_others_take_their_cnn_from_come_first(tmp_path: Path):
    rows = [row for row in reversed(read_rows()) if row.recipe.startswith(("burduja", "radnet"))]
    done: list[str] = []

    def train(name: str, out: Path) -> bool:
        base = find_recipe(name).base
        assert not base or base in done
        assert out == tmp_path / name
        done.append(name)
        return True

    run_missing(tmp_path, train, rows)
    assert sorted(done) == sorted(row.recipe for row in rows)
    assert sum(bool(find_recipe(name).base) for name in done) >= 3


def test_only_finished_runs_are_shown(runs: Path):
    lines = finished(done_in(runs), ROWS)
    assert [line.row.recipe for line in lines] == ["vicar-attention-small", "vicar-max-small"]
    assert [line.scored.name for line in lines] == ["Vicar: attention", "Vicar: max"]
    assert all(line.scored.decision.scale > 0 for line in lines)


def test_what_an_ablation_changes_is_paired_by_patient(runs: Path, tmp_path: Path):
    table = main_table(finished(done_in(runs), ROWS))
    column = table.columns.index("change by the ablation")
    assert table.rows[0][column] is None
    change = table.rows[1][column]
    aucs = [row[table.columns.index("slice AUC, any")] for row in table.rows]
    assert change.value == pytest.approx(aucs[1].value - aucs[0].value)  # type: ignore[union-attr]
    assert change.low < change.value < change.high < 0  # type: ignore[union-attr]
    # the same predictions: no change, and no doubt of it, for patients are drawn for both at once
    for name in ("vicar-attention-small", "vicar-max-small"):
        write_run(tmp_path / name, name, 1.0, seed=4)
    same = main_table(finished(done_in(tmp_path), ROWS)).rows[1][column]
    assert (same.value, same.low, same.high) == (0, 0, 0)  # type: ignore[union-attr]


def test_runs_on_other_patients_are_not_compared(runs: Path, tmp_path: Path):
    write_run(tmp_path / "vicar-attention-small", "vicar-attention-small", 3.0, patients=20)
    write_run(tmp_path / "vicar-max-small", "vicar-max-small", 1.0)
    table = main_table(finished(done_in(tmp_path), ROWS))
    change = table.rows[1][table.columns.index("change by the ablation")]
    assert "other slices" in change.text()  # type: ignore[union-attr]


def test_the_page_says_what_its_runs_do(runs: Path, tmp_path: Path):
    lines = write_page(done_in(runs), tmp_path / "docs" / "results.md", "python -m training results", ROWS)
    text = (tmp_path / "docs" / "results.md").read_text()
    assert len(lines) == 2
    assert "24 patients, 12 scans with hemorrhage, 96 slices, 24 of them with it" in text
    assert "python -m training results" in text
    assert "Not run yet: He." in text
    assert "24 patients cannot rank systems" in text
    assert "subarachnoid 0, subdural 12." in text
    assert "have no boxes" in text
    assert "BLAST-CT said where" in text
    for said in ("Dice 47 %", "blast-ct-v1-3", find_recipe("vicar-max-small").source):
        assert said in text
    alone = page(lines[:1], [], "command")
    assert "Not run yet" not in alone
    assert "BLAST-CT said where" not in alone


def test_a_page_of_nothing_is_not_written(tmp_path: Path):
    with pytest.raises(ValueError, match="no run is done"):
        write_page(done_in(tmp_path), tmp_path / "results.md", "command", ROWS)
    assert not (tmp_path / "results.md").exists()


def test_a_page_of_other_patients_or_folds_is_not_written(tmp_path: Path):
    write_run(tmp_path / "vicar-attention-small", "vicar-attention-small", 3.0)
    write_run(tmp_path / "he-fusion-small", "he-fusion-small", 1.0, patients=20)
    with pytest.raises(
        ValueError, match="he-fusion-small was trained on other patients or folds than vicar-att"
    ):
        write_page(done_in(tmp_path), tmp_path / "results.md", "command", ROWS)
    assert not (tmp_path / "results.md").exists()
