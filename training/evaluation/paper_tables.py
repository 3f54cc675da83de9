"""The tables of the four papers and a table of yardsticks, one row for each `Scored`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np

from ich_node.findings import IchSubtype
from training.evaluation.bootstrap import Measured, Measurer, measured, not_measured
from training.evaluation.detection import (
    box_average_precision,
    mean_average_precision,
    point_in_box,
    strongest_in_box,
)
from training.evaluation.metrics import auc, log_loss, weighted_log_loss
from training.evaluation.published import Kind, published_rows
from training.evaluation.scored import NOT_GIVEN, Items, Scored
from training.evaluation.tables import LOSS_DIGITS, Cell, Table
from training.predictions import Floats
from training.scan import CLASSES, PRESENT, UNKNOWN

Unit = Literal["slices", "scans"]
UNITS: tuple[Unit, ...] = ("slices", "scans")
CUT = 0.5
"""Probability from which the papers call a slice or scan positive."""
_LOSS = "weighted log loss"


def localization_table(scored: Sequence[Scored]) -> Table:
    """Table I of Vicar et al.: points of *any* against all boxes, pooled over slices."""
    columns = ("system", "data", "PPV", "sensitivity", "Dice", "strongest in box", "slices", "left out")

    def row(each: Scored) -> tuple[Cell, ...]:
        found = point_in_box(each.predictions)
        strongest = strongest_in_box(each.predictions)
        numbers = (found.ppv, found.sensitivity, found.dice, strongest, found.slices, found.slices_left_out)
        return (each.name, where(each), *numbers)

    return _table(
        "Localization by the point-in-box rule (Vicar et al., table I)",
        columns,
        scored,
        row,
        "localization",
        "A box with a point in it is one TP, a box without one FN, a point in no box one FP; further points in a "
        "box that is found count neither way. Slices with hemorrhage and without a box are left out. Strongest in "
        "box: of slices with a box, how many have the strongest point in one.",
    )


def box_table(scored: Sequence[Scored]) -> Table:
    """Boxes as He et al. measure them: average precision at IoU .5, of *any*, of each subtype, and their mean."""
    columns = ("system", "data", "mAP at IoU .5", *(f"AP {c}" for c in CLASSES))

    def row(each: Scored) -> tuple[Cell, ...]:
        found = [box_average_precision(each.predictions, c) for c in CLASSES]
        return (each.name, where(each), mean_average_precision(each.predictions), *found)

    return _table(
        "Average precision of boxes at IoU .5 (He et al.)",
        columns,
        scored,
        row,
        "localization",
        "A box of any is held against all boxes. The mean is over the subtypes that could be measured.",
    )


def auc_table(scored: Sequence[Scored], unit: Unit = "slices") -> Table:
    """Tables 3 and 4 of He et al.: AUC of each class and their mean; ablations are rows."""
    columns = ("system", "data", *(f"AUC {c}" for c in CLASSES), "mean AUC", "classes in mean")

    def row(each: Scored) -> tuple[Cell, ...]:
        found = [auc_of(each, unit, c) for c in CLASSES]
        classes = [c for c, value in zip(CLASSES, found, strict=True) if not value.missing]
        return (each.name, where(each), *found, mean_auc(each, unit, classes), len(classes))

    return _table(
        f"AUC of {unit} by class (He et al., tables 3 and 4)",
        columns,
        scored,
        row,
        "auc" if unit == "slices" else None,
        "A class of fewer than two patients is not measured and not in the mean.",
    )


def mean_auc(scored: Scored, unit: Unit, classes: Sequence[IchSubtype]) -> Measured:
    """Mean of the AUC of some classes, on the same resamplings of patients."""
    if not classes:
        return not_measured("no class could be measured")
    if not set(classes) <= set(scored.classes):
        return not_measured(f"subtypes {NOT_GIVEN}")
    anything = items_of(scored, unit, IchSubtype.ANY)
    columns = [CLASSES.index(c) for c in classes]
    predictions, patient = scored.predictions, _patients(scored, unit)
    labels = (predictions.labels if unit == "slices" else predictions.scan_labels)[:, columns]
    scores = [
        scored.probabilities[:, i] if unit == "slices" else scored.suspicion_of(c)
        for i, c in zip(columns, classes, strict=True)
    ]
    # one stratification for all classes: patients with any of them
    joint = Items(label=(labels == PRESENT).any(axis=1), score=scores[0], patient=patient)

    def mean(weights: Floats) -> Floats:
        of_items = weights[:, patient]
        known = [labels[:, i] != UNKNOWN for i in range(len(columns))]
        each = [auc(labels[k, i] == PRESENT, scores[i][k], of_items[:, k]) for i, k in enumerate(known)]
        return np.asarray(np.stack(each).mean(axis=0))

    found = Measurer.of(joint).of_patients(mean, "both", width=len(patient))
    counts = (int(anything.label.sum()), int((~anything.label).sum()))
    return replace(found, count_positive=counts[0], count_negative=counts[1])


def scan_decision_table(scored: Sequence[Scored], cut: float = CUT) -> Table:
    """Table 1 of RADnet: scans by the rule of three consecutive positive slices, whatever the decision's own rule."""
    columns = ("system", "data", "accuracy", "recall", "precision", "F1", "scans with", "scans without")

    def row(each: Scored) -> tuple[Cell, ...]:
        items = replace(each, decision=replace(each.decision, rule="consecutive3")).scans()
        measurer = Measurer.of(items)
        found = [measurer.share(name, cut) for name in ("accuracy", "sensitivity", "ppv", "f1")]
        return (each.name, where(each), *found, int(items.label.sum()), int((~items.label).sum()))

    return _table(
        "Scans by three consecutive slices (RADnet, table 1)",
        columns,
        scored,
        row,
        "scan decision",
        f"A slice is positive from probability {cut:g} up.",
    )


def loss_table(scored: Sequence[Scored], unit: Unit = "slices", cut: float = CUT) -> Table:
    """Tables 2, 3 and 5 of Burduja et al.: the weighted log loss, and *any* at one threshold."""
    columns = ("system", "data", _LOSS, "accuracy", "AUC", "sensitivity", "specificity")

    def row(each: Scored) -> tuple[Cell, ...]:
        return (
            each.name,
            where(each),
            weighted_loss(each, unit),
            *_of_class(each, unit, IchSubtype.ANY, cut),
        )

    return _table(
        f"Weighted log loss and decisions on {unit} (Burduja et al., tables 2, 3 and 5)",
        columns,
        scored,
        row,
        "loss" if unit == "slices" else None,
        "The loss is over the six classes, any twice, where their labels are known. Accuracy, AUC, sensitivity and "
        f"specificity are of any; positive from {cut:g} up.",
        digits={_LOSS: LOSS_DIGITS},
    )


def class_table(scored: Sequence[Scored], unit: Unit = "slices", cut: float = CUT) -> Table:
    """What `loss_table` has, for each class: one row for each system and class."""
    columns = (
        "system",
        "class",
        "log loss",
        "accuracy",
        "AUC",
        "sensitivity",
        "specificity",
        "with",
        "without",
    )
    rows: list[tuple[Cell, ...]] = []
    for each in scored:
        for subtype in CLASSES:
            items = items_of(each, unit, subtype)
            ones = np.ones(len(items.label))
            loss = Measurer.of(items).ratio(log_loss(items.label, items.score), ones)
            counts = (int(items.label.sum()), int((~items.label).sum()))
            rows.append((each.name, str(subtype), loss, *_of_class(each, unit, subtype, cut), *counts))
    return Table(
        title=f"Each class on {unit}",
        columns=columns,
        rows=tuple(rows),
        note=f"Positive from {cut:g} up. With and without: {unit}.",
        digits={"log loss": LOSS_DIGITS},
    )


def weighted_loss(scored: Scored, unit: Unit) -> Measured:
    """Weighted multi-label log loss; only of a system that gives all classes."""
    predictions, patient = scored.predictions, _patients(scored, unit)
    labels = predictions.labels if unit == "slices" else predictions.scan_labels
    if len(scored.classes) < len(CLASSES):
        return not_measured(f"subtypes {NOT_GIVEN}")
    slices = unit == "slices"
    scores = scored.probabilities if slices else np.stack([scored.suspicion_of(c) for c in CLASSES], axis=1)
    anything = Items(label=(labels == PRESENT).any(axis=1), score=scores[:, 0], patient=patient)
    return Measurer.of(anything).ratio(*weighted_log_loss(labels.astype(float), scores))


def yardstick_table(scored: Sequence[Scored]) -> Table:
    """AUC of *any* on slices and scans beside what others reached on the same data set."""
    columns = ("system", "data", "slice AUC", "scan AUC", "slice accuracy")

    def row(each: Scored) -> tuple[Cell, ...]:
        slices = Measurer.of(each.slices())
        accuracy = slices.share("accuracy", CUT)
        return (each.name, where(each), *(auc_of(each, unit) for unit in UNITS), accuracy)

    return _table("Yardsticks", columns, scored, row, "yardstick", "")


def items_of(scored: Scored, unit: Unit, subtype: IchSubtype) -> Items:
    """Slices or scans of a class."""
    return scored.slices(subtype) if unit == "slices" else scored.scans(subtype)


@lru_cache(maxsize=2 * len(CLASSES))  # the same ones stand in many tables
def auc_of(scored: Scored, unit: Unit, subtype: IchSubtype = IchSubtype.ANY) -> Measured:
    """AUC of a class on slices or scans, with its interval."""
    return measured(items_of(scored, unit, subtype), auc)


def where(scored: Scored) -> str:
    """On what data, and how split, a row was measured."""
    return f"{scored.predictions.data}, {scored.predictions.split}"


def _of_class(scored: Scored, unit: Unit, subtype: IchSubtype, cut: float) -> tuple[Measured, ...]:
    """Accuracy, AUC, sensitivity and specificity of one class."""
    measurer = Measurer.of(items_of(scored, unit, subtype))
    accuracy, sensitivity, specificity = (
        measurer.share(name, cut) for name in ("accuracy", "sensitivity", "specificity")
    )
    return accuracy, auc_of(scored, unit, subtype), sensitivity, specificity


def _patients(scored: Scored, unit: Unit) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return scored.patient[scored.predictions.scan] if unit == "slices" else scored.patient


def _table(
    title: str,
    columns: tuple[str, ...],
    scored: Sequence[Scored],
    row: Callable[[Scored], tuple[Cell, ...]],
    published: Kind | None,
    note: str,
    digits: dict[str, int] | None = None,
) -> Table:
    rows = tuple(row(each) for each in scored)
    if published:
        rows += published_rows(published, columns, [each.predictions.data for each in scored])
    return Table(title=title, columns=columns, rows=rows, note=note, digits=digits or {})
