"""Everything that is measured of one run: a report to read, numbers for programs, and plots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ich_node.findings import IchSubtype, OperatingPoints
from ich_node.model.decision import DecisionConfig
from training.evaluation.bootstrap import Measured, Measurer, measured
from training.evaluation.calibration import Method, calibration_error, cross_fitted
from training.evaluation.metrics import auc, average_precision, log_loss
from training.evaluation.operating_point import (
    SENSITIVITY,
    SPECIFICITY,
    Nested,
    nested,
    rule_aucs,
    thresholds,
)
from training.evaluation.paper_tables import (
    UNITS,
    auc_of,
    auc_table,
    box_table,
    class_table,
    items_of,
    localization_table,
    loss_table,
    scan_decision_table,
    yardstick_table,
)
from training.evaluation.plots import write_plots
from training.evaluation.published import published_table
from training.evaluation.scored import Bools, Items, Scored
from training.evaluation.tables import LOSS_DIGITS, Cell, Plain, Table
from training.predictions import Floats, Predictions
from training.scan import CLASSES, PRESENT, UNKNOWN

_METHODS: tuple[Method, ...] = ("none", "platt", "temperature", "isotonic")
_POINTS = ("sensitive", "high_confidence")
_STRICT = 0.95


def write_report(
    predictions: Predictions,
    decision: DecisionConfig,
    points: OperatingPoints,
    out: Path,
    *,
    sensitivity: float = SENSITIVITY,
    specificity: float = SPECIFICITY,
) -> dict[str, object]:
    """Write ``report.md``, ``metrics.json`` and plots.

    Parameters
    ----------
    decision, points
        What the bundle decides by.
    out
        Folder, which is made.
    sensitivity, specificity
        What the points were asked for, and so those of the nested results.

    Returns
    -------
    dict
        What ``metrics.json`` holds: ``tables``, by name, and ``summary``, see `summary`.

    Raises
    ------
    ValueError
        The predictions hold no scan, or a logit that cannot be.
    """
    if not len(predictions.scan_ids):
        raise ValueError(
            f"predictions of {predictions.system} on {predictions.data} hold no scan: nothing to report"
        )
    scored = Scored(predictions=predictions, decision=decision)
    found_nested, why = _nested(scored, sensitivity, specificity)
    tables = report_tables(scored, points, found_nested, why)
    plots = write_plots(scored, out / "plots")
    written: dict[str, object] = {
        "system": predictions.system,
        "data": predictions.data,
        "split": predictions.split,
        "summary": summary(scored, points, found_nested),
        "tables": {name: table.plain() for name, table in tables.items()},
    }
    text = json.dumps(written, indent=1, allow_nan=False)
    (out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.md").write_text(_markdown(scored, points, tables, plots), encoding="utf-8")
    return written


def report_tables(
    scored: Scored, points: OperatingPoints, found: Nested | None = None, why: str = ""
) -> dict[str, Table]:
    """All tables of a run, by name, in the order in which they are read.

    Parameters
    ----------
    found, why
        Nested results, or why there are none.
    """
    one = [scored]
    return {
        "counts": count_table(scored),
        "classification": classification_table(scored),
        "operating_points": point_table(scored, points, found, why),
        "study_rules": rule_table(scored),
        "calibration": calibration_table(scored),
        "localization": localization_table(one),
        "boxes": box_table(one),
        **{f"auc_{unit}": auc_table(one, unit) for unit in UNITS},
        "scan_decision": scan_decision_table(one),
        **{f"loss_{unit}": loss_table(one, unit) for unit in UNITS},
        **{f"classes_{unit}": class_table(one, unit) for unit in UNITS},
        "yardsticks": yardstick_table(one),
        "published": published_table(),
    }


def count_table(scored: Scored) -> Table:
    """How many patients, scans and slices have each class, and of how many that is known."""
    p, patient = scored.predictions, scored.patient
    rows: list[tuple[Cell, ...]] = []
    for column, subtype in enumerate(CLASSES):
        scans, slices = p.scan_labels[:, column], p.labels[:, column]
        patients = len(np.unique(patient[scans == PRESENT]))
        of_known = [_of_known(each) for each in (scans, slices)]
        rows.append((str(subtype), patients, *of_known))
    outside = np.isneginf(p.logits).all(axis=1) if scored.classes else np.zeros(len(p.scan), bool)
    whole = len(p.scan_ids) - len(np.unique(p.scan[~outside]))
    note = (
        f"{patient.max() + 1} patients, {len(p.scan_ids)} scans, {len(p.scan)} slices. {outside.sum()} slices show no "
        f"intracranial space and count as without hemorrhage; {whole} scans show none at all and have suspicion 0."
    )
    columns = ("class", "patients with", "scans with / known", "slices with / known")
    return Table(title="What was scored", columns=columns, rows=tuple(rows), note=note)


def classification_table(scored: Scored) -> Table:
    """AUC and average precision of each class on slices and scans."""
    rows: list[tuple[Cell, ...]] = []
    for subtype in CLASSES:
        areas = [
            (auc_of(scored, unit, subtype), measured(items_of(scored, unit, subtype), average_precision))
            for unit in UNITS
        ]
        rows.append((str(subtype), *areas[0], *areas[1]))
    columns = ("class", "slice AUC", "slice average precision", "scan AUC", "scan average precision")
    note = "Average precision of a system that guesses is the share that has the class."
    return Table(title="Classification", columns=columns, rows=tuple(rows), note=note)


def point_table(scored: Scored, points: OperatingPoints, found: Nested | None = None, why: str = "") -> Table:
    """Scans at the operating points, as given and nested."""
    measurer = Measurer.of(scored.scans())
    rows: list[tuple[Cell, ...]] = []
    for name in _POINTS:
        cut = float(getattr(points, name))
        metrics = ("sensitivity", "specificity", "ppv", "f1", "accuracy")
        rows.append((name.replace("_", " "), cut, *(measurer.share(each, cut) for each in metrics)))
    if found:
        for name in _POINTS:
            result = getattr(found, name)
            title = f"{name.replace('_', ' ')}, nested"
            rows.append((title, "-", result.sensitivity, result.specificity, None, None, None))
    note = (
        why or "Nested: calibration, study rule and threshold of each fold come from the other folds alone."
    )
    columns = ("operating point", "threshold", "sensitivity", "specificity", "PPV", "F1", "accuracy")
    return Table(title="Scans at the operating points", columns=columns, rows=tuple(rows), note=note)


def rule_table(scored: Scored) -> Table:
    """Scan AUC under each study rule."""
    rows = tuple(
        (rule, measured(replace(scored, decision=replace(scored.decision, rule=rule)).scans(), auc))
        for rule in rule_aucs(scored)
    )
    note = f"The decision has {scored.decision.rule}."
    return Table(title="Scan AUC by study rule", columns=("rule", "scan AUC"), rows=rows, note=note)


def calibration_table(scored: Scored) -> Table:
    """Slice calibration of *any*: as decided, and what each method gives when fitted on the other folds."""
    p, column = scored.predictions, CLASSES.index(IchSubtype.ANY)
    known = p.labels[:, column] != UNKNOWN
    items, fold = scored.slices(), p.fold[p.scan][known]
    rows: list[tuple[Cell, ...]] = [("as decided", *_calibration_cells(items))]
    folds = len(np.unique(fold))
    if folds > 1 and not items.missing:
        for method in _METHODS:
            probability = cross_fitted(method, p.logits[known, column], items.label, fold)
            name = "logits as they are" if method == "none" else f"{method}, cross-fitted"
            rows.append((name, *_calibration_cells(replace(items, score=probability))))
    note = (
        "Cross-fitted: each fold by a calibration of the other folds."
        if folds > 1
        else "One fold: no method could be fitted on other data than it is measured on."
    )
    columns = ("calibration", "expected calibration error", "Brier score", "log loss")
    digits = {"log loss": LOSS_DIGITS}
    return Table(
        title="Calibration of slices, any", columns=columns, rows=tuple(rows), note=note, digits=digits
    )


def _calibration_cells(items: Items) -> tuple[Measured, Measured, Measured]:
    measurer, ones = Measurer.of(items), np.ones(len(items.label))
    return (
        measurer.area(calibration_error),
        measurer.ratio((items.score - items.label) ** 2, ones),
        measurer.ratio(log_loss(items.label, items.score), ones),
    )


def summary(scored: Scored, points: OperatingPoints, found: Nested | None = None) -> Plain:
    """The numbers of *any* that a bundle's card shows, with 95 % intervals.

    Returns
    -------
    dict
        ``patients``, ``patients_with_hemorrhage``, ``slices``, ``slices_with_hemorrhage``; ``slice_auc`` and
        ``scan_auc``, each ``value`` and ``interval_95``; for ``sensitive`` and ``high_confidence`` the
        ``threshold``, ``scan_sensitivity`` and ``scan_specificity``; ``scan_specificity_at_95_percent_sensitivity``,
        whose threshold was chosen on these scans; ``nested``, sensitivity and specificity of both points by name.
        What could not be measured has value null.
    """
    p, slices, scans = scored.predictions, scored.slices(), scored.scans()
    with_any = p.scan_labels[:, CLASSES.index(IchSubtype.ANY)] == PRESENT
    measurer = Measurer.of(scans)
    out: Plain = {
        "patients": len(np.unique(scored.patient)),
        "patients_with_hemorrhage": len(np.unique(scored.patient[with_any])),
        "scans": len(p.scan_ids),
        "slices": len(p.scan),
        "slices_with_hemorrhage": int(slices.label.sum()),
        "slice_auc": _with_interval(auc_of(scored, "slices")),
        "scan_auc": _with_interval(auc_of(scored, "scans")),
    }
    for name in _POINTS:
        cut = float(getattr(points, name))
        out[name] = {
            "threshold": round(cut, 4),
            "scan_sensitivity": _with_interval(measurer.share("sensitivity", cut)),
            "scan_specificity": _with_interval(measurer.share("specificity", cut)),
        }
    out["scan_specificity_at_95_percent_sensitivity"] = _strict_specificity(scans.label, scans.score)
    out["nested"] = _nested_values(found) if found else None
    return out


def _strict_specificity(label: Bools, score: Floats) -> float | None:
    try:
        cut = thresholds(label, score, sensitivity=_STRICT, specificity=0.0).sensitive
    except ValueError:
        return None
    return round(float((score[~label] < cut).mean()), 3)


def _nested(scored: Scored, sensitivity: float, specificity: float) -> tuple[Nested | None, str]:
    """Nested results with the decision's rule chosen anew in each fold, or why there are none."""
    try:
        return nested(scored.predictions, sensitivity=sensitivity, specificity=specificity), ""
    except ValueError as error:
        return None, f"Not nested: {error}."


def _nested_values(found: Nested) -> Plain:
    return {
        f"{point}_scan_{what}": _rounded(getattr(getattr(found, point), what).value)
        for point in _POINTS
        for what in ("sensitivity", "specificity")
    }


def _with_interval(found: Measured) -> Plain:
    if found.missing:
        return {"value": None, "missing": found.missing}
    return {"value": _rounded(found.value), "interval_95": [_rounded(found.low), _rounded(found.high)]}


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 3)


def _of_known(labels: np.ndarray[tuple[int], np.dtype[np.int8]]) -> str:
    return f"{(labels == PRESENT).sum()} / {(labels != UNKNOWN).sum()}"


def _markdown(
    scored: Scored, points: OperatingPoints, tables: dict[str, Table], plots: tuple[Path, ...]
) -> str:
    p, d = scored.predictions, scored.decision
    head = (
        f"# {p.system} on {p.data}\n\n{p.split}. Study rule {d.rule}; operating points: sensitive "
        f"{points.sensitive:.4f}, high confidence {points.high_confidence:.4f}.\n\nIntervals are 95 %, by bootstrap "
        "over patients, those with and without the class apart. They do not cover another hospital or scanner, nor "
        "another training run, and where all resamplings agree an interval has no width: that is no certainty.\n"
    )
    pictures = "\n".join(f"![{png.stem}](plots/{png.name})" for png in plots)
    return "\n".join([head, *(table.markdown() for table in tables.values()), "### Plots\n", pictures, ""])
