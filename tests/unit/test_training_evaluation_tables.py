"""Tables of the papers, published numbers, rendering."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ich_node.findings import IchSubtype
from ich_node.model.decision import DecisionConfig
from tests.unit.test_training_evaluation_scored import SLICES, predictions
from training.evaluation.bootstrap import Measured
from training.evaluation.metrics import auc
from training.evaluation.paper_tables import (
    auc_table,
    box_table,
    class_table,
    localization_table,
    loss_table,
    mean_auc,
    scan_decision_table,
    yardstick_table,
)
from training.evaluation.published import PUBLISHED, data_set_of, published_table
from training.evaluation.scored import Scored
from training.evaluation.tables import Cell, Table
from training.scan import CLASSES


def cells(table: Table, row: int) -> dict[str, Cell]:
    return dict(zip(table.columns, table.rows[row], strict=True))


def value(cell: Cell) -> float:
    assert isinstance(cell, Measured)
    return cell.value


def on(data: str, **kwargs: object) -> Scored:
    return Scored(predictions=replace(predictions(**kwargs), data=data))  # type: ignore[arg-type]


NUMBER = Measured(value=0.5, low=0.25, high=0.75, count_positive=3, count_negative=4)
SMALL = Table(
    title="A title",
    columns=("system", "loss", "n"),
    rows=(("a|b", NUMBER, 3), ("long name", None, float("nan"))),
    note="A note.",
    digits={"loss": 5},
)


def test_markdown_escapes_and_rounds():
    assert SMALL.markdown().splitlines() == [
        "### A title",
        "",
        "| system | loss | n |",
        "| --- | --- | --- |",
        "| a\\|b | 0.50000 (0.25000 to 0.75000) | 3 |",
        "| long name | - | - |",
        "",
        "A note.",
    ]


def test_aligned_columns_begin_below_each_other():
    lines = SMALL.aligned().splitlines()[2:6]
    assert {line.index(word) for line, word in zip(lines, ("loss", "---  -", "0.5", "-"), strict=True)} >= {
        11
    }
    assert lines[2].index("3", 40) == lines[0].index("n")
    assert SMALL.aligned().endswith("A note.\n")


def test_plain_tables_are_json_without_nan():
    text = json.dumps(SMALL.plain(), allow_nan=False)
    rows = json.loads(text)["rows"]
    assert rows[0][1] == {"value": 0.5, "low": 0.25, "high": 0.75, "count_positive": 3, "count_negative": 4}
    assert rows[1] == ["long name", None, None]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table(title="t", columns=("a", "b"), rows=(("x",),))


def test_each_system_is_a_row():
    ablation = Scored(predictions=replace(predictions(seed=1, separation=1.0), system="without fusion"))
    table = auc_table([on("CT-ICH v1.0.0"), ablation])
    assert [row[0] for row in table.rows] == ["tried", "without fusion"]
    assert value(cells(table, 0)["AUC any"]) > value(cells(table, 1)["AUC any"])


def test_the_mean_auc_is_that_of_the_classes():
    scored = on("CT-ICH")
    row = cells(auc_table([scored]), 0)
    each = [value(row[f"AUC {c}"]) for c in CLASSES]
    assert row["classes in mean"] == 6
    mean = row["mean AUC"]
    assert isinstance(mean, Measured)
    assert mean.value == pytest.approx(np.mean(each))
    assert mean.low <= mean.value <= mean.high


def test_a_class_of_one_patient_is_not_in_the_mean():
    found = predictions(24)
    owner = np.unique(found.patient_ids, return_inverse=True)[1][found.scan]
    column = CLASSES.index(IchSubtype.SUBDURAL)
    ill = np.flatnonzero(found.labels[:, column] == 1)
    found.labels[ill[owner[ill] != owner[ill[0]]], column] = 0
    row = cells(auc_table([Scored(predictions=found)]), 0)
    assert isinstance(row["AUC subdural"], Measured)
    assert row["AUC subdural"].text() == "not measured (n=1 patient)"
    assert row["classes in mean"] == 5
    others = [value(row[f"AUC {c}"]) for c in CLASSES if c is not IchSubtype.SUBDURAL]
    assert value(row["mean AUC"]) == pytest.approx(np.mean(others))


def test_a_system_without_subtypes_has_no_mean_of_them():
    scored = Scored(predictions=predictions(subtypes=False))
    assert mean_auc(scored, "slices", CLASSES[1:]).text() == "subtypes not given by the system"
    assert mean_auc(scored, "slices", CLASSES[:1]).value == value(cells(auc_table([scored]), 0)["AUC any"])


def test_the_mean_auc_leaves_unknown_labels_out():
    found = predictions()
    found.labels[:SLICES, 1] = -1
    scored = Scored(predictions=found)
    items = scored.slices(IchSubtype.EPIDURAL)
    mean = mean_auc(scored, "slices", [IchSubtype.EPIDURAL])
    assert mean.value == pytest.approx(float(auc(items.label, items.score)))


def test_radnet_s_rule_is_used_whatever_the_decision_s():
    found = predictions(8)
    found.logits[:, 0] = -5
    scans = np.flatnonzero(found.scan_labels[:, 0] == 1)
    for scan in scans[:-1]:
        found.logits[scan * SLICES + np.arange(3, 6), 0] = 1
    found.logits[scans[-1] * SLICES + np.arange(3, 5), 0] = 9  # two are too few
    scored = Scored(predictions=found, decision=DecisionConfig(rule="max"))
    row = cells(scan_decision_table([scored]), 0)
    assert value(row["recall"]) == pytest.approx(1 - 1 / len(scans))
    assert value(row["precision"]) == 1
    assert row["scans with"] == len(scans)


def test_the_loss_table_counts_any_twice():
    scored = on("phantoms")
    each = [value(row[2]) for row in class_table([scored]).rows]
    row = cells(loss_table([scored]), 0)
    assert value(row["weighted log loss"]) == pytest.approx((2 * each[0] + sum(each[1:])) / 7)
    assert value(row["AUC"]) == value(class_table([scored]).rows[0][4])
    on_scans = cells(loss_table([scored], "scans"), 0)
    assert isinstance(on_scans["sensitivity"], Measured)
    assert on_scans["sensitivity"].count_positive == (scored.predictions.scan_labels[:, 0] == 1).sum()


def test_a_system_without_subtypes_has_no_loss_of_six_classes():
    row = cells(loss_table([on("RSNA 2019", subtypes=False)]), 0)
    assert isinstance(row["weighted log loss"], Measured)
    assert row["weighted log loss"].text() == "subtypes not given by the system"
    assert value(row["AUC"]) > 0.5


def test_published_numbers_stand_beside_ours_of_the_same_data_only():
    def others(table: Table) -> list[tuple[Cell, Cell]]:
        return [(row[0], row[1]) for row in table.rows[1:]]

    assert others(loss_table([on("CT-ICH v1.0.0")])) == []
    assert others(auc_table([on("CQ500")])) == []
    assert others(auc_table([on("RSNA 2019")], "scans")) == []
    assert others(yardstick_table([on("phantoms after CT-ICH")])) == []
    assert others(scan_decision_table([on("RSNA 2019")])) == []
    assert len(others(loss_table([on("RSNA 2019")]))) == 6
    assert len(others(localization_table([on("CQ500 + BHX")]))) == 2
    assert all("published" in str(name) for name, _ in others(yardstick_table([on("CT-ICH v1.3.1")])))
    assert {where for _, where in others(yardstick_table([on("CT-ICH v1.3.1")]))} == {
        "CT-ICH, 75 scans",
        "CT-ICH",
    }


def test_published_columns_meet_ours():
    scored = [on("RSNA 2019"), on("CQ500 with BHX"), on("CT-ICH")]
    makers = (localization_table, box_table, auc_table, scan_decision_table, loss_table, yardstick_table)
    known = {column for maker in makers for column in maker(scored).columns}
    assert {number.metric for number in PUBLISHED} <= known
    row = next(row for row in auc_table(scored).rows if str(row[0]).startswith("He et al. ("))
    assert dict(zip(auc_table(scored).columns, row, strict=True))["AUC subdural"] == 0.991


def test_the_mean_of_he_s_classes_is_the_published_mean():
    row = {p.metric: p.value for p in PUBLISHED if p.method == "He et al." and p.kind == "auc"}
    mean = row.pop("mean AUC")
    assert np.mean(list(row.values())) == pytest.approx(mean, abs=5e-4)


def test_vicar_s_dice_follows_from_ppv_and_sensitivity():
    row = {
        p.metric: p.value for p in PUBLISHED if p.method.endswith("max pooling") and p.kind == "localization"
    }
    harmonic = 2 * row["PPV"] * row["sensitivity"] / (row["PPV"] + row["sensitivity"])
    assert harmonic == pytest.approx(row["Dice"], abs=1e-4)


def test_radnet_s_f1_follows_from_precision_and_recall():
    row = {p.metric: p.value for p in PUBLISHED if p.method == "RADnet"}
    f1 = 2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"])
    assert f1 == pytest.approx(row["F1"], abs=1e-4)


def test_every_published_number_is_listed_with_its_data():
    table = published_table()
    assert len(table.rows) == len(PUBLISHED)
    assert all(row[3] and row[4] for row in table.rows)
    assert any("0.04989" in str(row[2]) for row in table.rows)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RSNA 2019", "rsna"),
        ("rsna-2019", "rsna"),
        ("CQ500 + BHX", "cq500"),
        ("CT-ICH v1.0.0", "ct-ich"),
        ("ct-ich-nifti", "ct-ich"),
        ("ich_node.testing.head_phantom", None),
        ("hospital of X", None),
    ],
)
def test_data_sets_by_name(name: str, expected: str | None):
    assert data_set_of(name) == expected
