"""The report of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ich_node.findings import OperatingPoints
from ich_node.model.decision import DecisionConfig
from tests.unit.test_training_evaluation_scored import predictions
from training.evaluation.operating_point import choose
from training.evaluation.plots import write_plots
from training.evaluation.report import report_tables, write_report
from training.evaluation.scored import Scored, scans_where
from training.predictions import Predictions

PLOTS = {
    "roc-slices",
    "precision-recall-slices",
    "roc-scans",
    "precision-recall-scans",
    "reliability",
    "scores",
}
POINTS = OperatingPoints(high_confidence=0.9, sensitive=0.5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    found = predictions()
    choice = choose(found)
    write_report(found, choice.decision, choice.points, out)
    return out


def test_the_numbers_are_json_and_have_intervals(written: Path):
    found = json.loads((written / "metrics.json").read_text(encoding="utf-8"))
    summary = found["summary"]
    assert (summary["patients"], summary["patients_with_hemorrhage"], summary["scans"]) == (24, 12, 30)
    for name in ("slice_auc", "scan_auc"):
        low, high = summary[name]["interval_95"]
        assert low <= summary[name]["value"] <= high
    assert summary["sensitive"]["scan_sensitivity"]["value"] >= 0.85
    assert summary["high_confidence"]["scan_specificity"]["value"] >= 0.95
    assert set(summary["nested"]) == {
        f"{point}_scan_{what}"
        for point in ("sensitive", "high_confidence")
        for what in ("sensitivity", "specificity")
    }
    assert all(0 <= value <= 1 for value in summary["nested"].values())


def test_the_report_says_what_was_scored_and_shows_all_tables_and_plots(written: Path):
    text = (written / "report.md").read_text(encoding="utf-8")
    titles = [t["title"] for t in json.loads((written / "metrics.json").read_text())["tables"].values()]
    assert re.findall(r"^### (.*)$", text, re.M) == [*titles, "Plots"]
    assert "24 patients, 30 scans, 240 slices. 30 slices show no intracranial space" in text
    shown = re.findall(r"\]\((plots/.*?)\)", text)
    assert {Path(name).stem for name in shown} == PLOTS
    assert all((written / name).is_file() for name in shown)


def test_plots_are_600_pixels_wide_and_there_as_svg(written: Path):
    for name in PLOTS:
        with Image.open(written / "plots" / f"{name}.png") as picture:
            assert picture.width == 600
            assert np.asarray(picture.convert("L")).std() > 10
        svg = (written / "plots" / f"{name}.svg").read_text(encoding="utf-8")
        assert svg.count("<path") > 10
        assert "dc:date" not in svg


def test_nested_and_cross_fitted_rows_need_folds(written: Path, tmp_path: Path):
    tables = json.loads((written / "metrics.json").read_text())["tables"]
    assert len(tables["operating_points"]["rows"]) == 4
    assert len(tables["calibration"]["rows"]) == 5
    alone = write_report(predictions(8, folds=1), DecisionConfig(), POINTS, tmp_path)["tables"]
    assert isinstance(alone, dict)
    assert len(alone["operating_points"]["rows"]) == 2
    assert "two folds or more" in alone["operating_points"]["note"]
    assert len(alone["calibration"]["rows"]) == 1


def only_any() -> Predictions:
    return predictions(8, subtypes=False)


def nobody_ill() -> Predictions:
    found = predictions(8)
    found.labels[:], found.scan_labels[:] = 0, 0
    return found


def scans_known_alone() -> Predictions:
    found = predictions(8)
    found.labels[:] = -1
    return found


def nothing_inside() -> Predictions:
    found = predictions(8)
    found.logits[:] = -np.inf
    return found


def one_scan() -> Predictions:
    return scans_where(predictions(8), np.arange(10) == 0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (only_any, "not given by the system"),
        (nobody_ill, "not measured (n=0 patients)"),
        (scans_known_alone, "0 / 0"),
        (nothing_inside, "10 scans show none at all"),
        (one_scan, "not measured (n=1 patient)"),
    ],
)
def test_what_cannot_be_measured_is_said(make: Callable[[], Predictions], said: str):
    tables = report_tables(Scored(predictions=make()), POINTS)
    text = "\n".join(
        table.markdown() + json.dumps(table.plain(), allow_nan=False) for table in tables.values()
    )
    assert said in text
    assert not re.search(r"\bnan\b", text)


def test_labels_of_scans_alone_give_plots_of_scans_alone(tmp_path: Path):
    found = write_plots(Scored(predictions=scans_known_alone()), tmp_path)
    assert [path.stem for path in found] == ["roc-scans", "precision-recall-scans"]


def test_no_scan_is_no_report(tmp_path: Path):
    empty = scans_where(predictions(4), np.zeros(5, bool))
    with pytest.raises(ValueError, match="hold no scan"):
        write_report(empty, DecisionConfig(), POINTS, tmp_path)
