"""All systems and their ablations on the same patients: trains what is missing, and writes one page of results."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluation.bootstrap import Measured, Measurer, measure, not_measured
from training.evaluation.metrics import auc
from training.evaluation.operating_point import choose, nested
from training.evaluation.paper_tables import (
    auc_of,
    auc_table,
    localization_table,
    loss_table,
    mean_auc,
    scan_decision_table,
    weighted_loss,
    yardstick_table,
)
from training.evaluation.published import published_table
from training.evaluation.scored import Scored
from training.evaluation.tables import LOSS_DIGITS, Cell, Table
from training.predictions import Predictions
from training.recipe import find_recipe
from training.records import Said, file_of, keep, of_run
from training.scan import CLASSES, PRESENT, Scan

logger = logging.getLogger(__name__)

_SHOWN = {True: "slice alone", False: "slice and mirror image", None: "-"}
ROWS_FILE = Path(__file__).parent / "comparison.toml"
_TITLE = "Four published systems and their ablations on the same patients"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the comparison."""

    recipe: str
    system: str
    """Letter of the published system; ``-`` for the package's own."""
    label: str
    paper: str = ""
    """Which of the paper's comparisons it repeats."""
    published: str = ""
    """The paper's number for it, on the paper's own data."""
    whole: str = ""
    """Recipe of the same system without the ablation."""


def read_rows(file: Path = ROWS_FILE) -> list[Row]:
    """Lines of the comparison, in order.

    Raises
    ------
    ValueError
        A line has an unknown key, or names as ``whole`` a recipe that has no line.
    """
    with file.open("rb") as opened:
        values = tomllib.load(opened)["rows"]
    try:
        rows = [Row(**value) for value in values]
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from error
    known = {row.recipe for row in rows}
    for row in rows:
        if row.whole and row.whole not in known:
            raise ValueError(f"{file}: {row.recipe}: whole = {row.whole!r} has no line of its own")
    return rows


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A line whose run is done."""

    row: Row
    scored: Scored
    run: Mapping[str, Any]
    """What ``run.json`` says."""


def finished(said: Callable[[str], Said | None], rows: Sequence[Row]) -> list[Finished]:
    """Lines whose runs are done, each calibrated on its own out-of-fold predictions.

    Parameters
    ----------
    said
        From a recipe's name to what its run says; None where it is not done.
    """
    out = []
    for row in rows:
        told = said(row.recipe)
        if told is None:
            continue
        predictions, run = told
        named = replace(predictions, system=row.label)
        rule = run["recipe"]["decision"]["rule"]
        decision = choose(named, rule=rule).decision
        out.append(Finished(row=row, scored=Scored(predictions=named, decision=decision), run=run))
    return out


def record_runs(
    runs: Path, scans: Sequence[Scan], records: Path, rows: Sequence[Row] | None = None
) -> dict[str, bool]:
    """Keep a record of each line whose run is done: recipes, and whether they are.

    Raises
    ------
    ValueError
        As `training.records.keep`.
    """
    kept = {}
    for row in read_rows() if rows is None else rows:
        said = of_run(runs / row.recipe)
        if said is not None:
            keep(said, scans, file_of(records, row.recipe))
        kept[row.recipe] = said is not None
    return kept


def main_table(lines: Sequence[Finished]) -> Table:
    """What the page is for: one line each, *any* and the mean of the subtypes, with what an ablation changes."""
    whole = {line.row.recipe: line.scored for line in lines}
    rows = []
    for line in lines:
        other = whole.get(line.row.whole)
        points = nested(line.scored.predictions, rule=line.run["recipe"]["decision"]["rule"])
        rows.append(
            (
                line.row.system,
                line.row.label,
                auc_of(line.scored, "slices"),
                _change(line.scored, other) if other else None,
                auc_of(line.scored, "scans"),
                mean_auc(line.scored, "slices", CLASSES[1:]),
                weighted_loss(line.scored, "slices"),
                points.sensitive.sensitivity,
                points.sensitive.specificity,
            )
        )
    return Table(
        title="Out-of-fold results",
        columns=(
            "",
            "recipe",
            "slice AUC, any",
            "change by the ablation",
            "scan AUC, any",
            "slice AUC, mean of subtypes",
            "weighted log loss",
            "scan sensitivity, nested",
            "scan specificity, nested",
        ),
        rows=tuple(rows),
        digits={"weighted log loss": LOSS_DIGITS},
        note="The change is the slice AUC less that of the whole system, on the same resamplings of patients. Nested: "
        "the sensitive operating point (85 % wanted) of each fold was chosen on the other folds.",
    )


def _change(scored: Scored, whole: Scored) -> Measured:
    """Slice AUC of *any* less that of the whole system, by paired bootstrap over patients.

    Both were scored on the same slices; where they were not there is no number.
    """
    own, other = scored.slices(), whole.slices()
    same = np.array_equal(scored.predictions.scan_ids, whole.predictions.scan_ids)
    if not same or not np.array_equal(own.label, other.label):
        return not_measured("not measured (other slices)")
    measurer = Measurer.of(own)

    def difference(weights: np.ndarray) -> np.ndarray:
        each = weights[:, own.patient]
        return np.asarray(auc(own.label, own.score, each) - auc(other.label, other.score, each))

    counts = (int(own.label.sum()), int((~own.label).sum()))
    return measure(measurer.resampling, difference, counts, width=len(own.label))


def bundle_table(bundles: Sequence[Said]) -> Table:
    """What shipped bundles are worth: each patient read by the network of the ensemble that never saw that patient."""
    rows: list[tuple[Cell, ...]] = []
    for predictions, described in bundles:
        scored = Scored(predictions=predictions, decision=choose(predictions).decision)
        points = nested(predictions)
        rows.append(
            (
                f"{described['bundle']['name']} {described['bundle']['version']}",
                _SHOWN[described["upright"]],
                auc_of(scored, "slices"),
                auc_of(scored, "scans"),
                points.sensitive.sensitivity,
                points.sensitive.specificity,
            )
        )
    return Table(
        title="Bundles",
        columns=(
            "bundle",
            "each network saw",
            "slice AUC, any",
            "scan AUC, any",
            "scan sensitivity, nested",
            "scan specificity, nested",
        ),
        rows=tuple(rows),
        note="From the weights that are shipped, or that a shipped pair is made of (`python -m training out-of-fold`): "
        "each patient read by the network that never saw that patient, on the split of that bundle, which need not be "
        "the one above. A bundle reads with the mean of its networks. The default's parts were chosen on these "
        "patients, as its card says, so its numbers are somewhat optimistic.",
    )


def stand_in_table(lines: Sequence[Finished]) -> Table:
    """What each run really was: network, input and training, beside what the paper says."""
    rows: list[tuple[Cell, ...]] = []
    for line in lines:
        recipe = line.run["recipe"]
        pre, schedule = recipe["preprocessing"], recipe["schedule"]
        rows.append(
            (
                line.row.label,
                f"{pre['size']} x {pre['size']} of {pre['pitch_mm']:g} mm",
                f"{schedule['epochs']} x {schedule['steps_per_epoch']}",
                line.run["folds"],
                line.run["teacher"] or "none",
                recipe["source"],
                "; ".join(part for part in (line.row.paper, line.row.published) if part) or "-",
            )
        )
    return Table(
        title="What was trained",
        columns=("recipe", "input", "epochs x steps", "folds", "teacher", "stands in for", "in the paper"),
        rows=tuple(rows),
    )


def page(
    lines: Sequence[Finished], missing: Sequence[Row], command: str, bundles: Sequence[Said] = ()
) -> str:
    """The page of results, Markdown.

    Raises
    ------
    ValueError
        No run is done, or runs are of different patients or folds.
    """
    if not lines:
        raise ValueError("no run is done: there is nothing to show")
    for line in lines[1:]:
        if _folds(line) != _folds(lines[0]):
            first, other = lines[0].row.recipe, line.row.recipe
            raise ValueError(
                f"{other} was trained on other patients or folds than {first}: they do not compare"
            )
    p = lines[0].scored.predictions
    patients, positive = len(np.unique(p.patient_ids)), int((p.scan_labels[:, 0] == PRESENT).sum())
    bleeding = int((p.labels[:, 0] == PRESENT).sum())
    head = (
        f"# Results\n\n{_TITLE}: {p.data}, {p.split}; {patients} patients, {positive} scans with hemorrhage, "
        f"{len(p.scan)} slices, {bleeding} of them with it. Made by\n\n```\n{command}\n```\n\n"
        "from what is recorded of each run (a file a recipe, without images and labels; `--runs` records runs anew) "
        "and the labels of the data; none of our numbers is typed by hand. They are of patients whom the network that "
        "scored them never saw, with 95 % intervals by bootstrap over patients. Calibration (Platt, for each class) is "
        "fitted on these same predictions: it changes no slice AUC, and makes log losses somewhat optimistic.\n"
    )
    scored = [line.scored for line in lines]
    tables = [
        main_table(lines),
        *([bundle_table(bundles)] if bundles else []),
        auc_table(scored),
        scan_decision_table(scored),
        loss_table(scored),
        loss_table(scored, "scans"),
        localization_table(scored),
        yardstick_table(scored),
        stand_in_table(lines),
        published_table(),
    ]
    absent = ", ".join(row.label for row in missing)
    rest = f"\nNot run yet: {absent}.\n" if absent else ""
    return "\n".join([head + rest, _cannot(lines), *(table.markdown() for table in tables)])


def _folds(line: Finished) -> dict[str, int]:
    p = line.scored.predictions
    return dict(zip(p.scan_ids.tolist(), p.fold.tolist(), strict=True))


def _cannot(lines: Sequence[Finished]) -> str:
    """What has to be kept in mind, by the data that were read."""
    p = lines[0].scored.predictions
    said = [
        f"{len(np.unique(p.patient_ids))} patients cannot rank systems whose intervals overlap, and an interval covers "
        "other patients from the same places, not other hospitals and not another training run.",
        "The small recipes are stand-ins for the papers' networks, of the size of two CPU cores, with input sizes and "
        "training times as the last table but one says. What helps or harms a small network need not do so to a large "
        "one.",
        f"Patients with each subtype: {_by_subtype(p)}. Means over subtypes rest on them.",
    ]
    if not len(p.boxes):
        said.append("These data have no boxes, so boxes and points are not measured here.")
    if any(line.run["teacher"] for line in lines):
        said.append(
            "Where a teacher is named, BLAST-CT said where on the slices labelled positive the bleed probably is. It "
            "was trained on other hospitals' data; systems that use no positions did not profit from it."
        )
    return "## What this cannot show\n\n" + "".join(f"- {one}\n" for one in said)


def _by_subtype(predictions: Predictions) -> str:
    found = {
        subtype: len(np.unique(predictions.patient_ids[predictions.scan_labels[:, column] == PRESENT]))
        for column, subtype in enumerate(CLASSES)
    }
    return ", ".join(f"{subtype} {count}" for subtype, count in found.items() if subtype is not CLASSES[0])


def write_page(
    said: Callable[[str], Said | None],
    out: Path,
    command: str,
    rows: Sequence[Row] | None = None,
    bundles: Sequence[Said] = (),
) -> list[Finished]:
    """Write the page from the runs that are done, and from what is recorded of bundles.

    Raises
    ------
    ValueError
        None is.
    """
    all_rows = read_rows() if rows is None else rows
    lines = finished(said, all_rows)
    done = {line.row.recipe for line in lines}
    text = page(lines, [row for row in all_rows if row.recipe not in done], command, bundles)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return lines


def run_missing(runs: Path, train: Callable[[str, Path], bool], rows: Sequence[Row] | None = None) -> None:
    """Train the runs that are not done, those first that others take their CNN from.

    Parameters
    ----------
    train
        From a recipe's name and the run's folder to whether all folds are done.
    """
    wanted = read_rows() if rows is None else rows
    for row in sorted(wanted, key=lambda row: bool(find_recipe(row.recipe).base)):
        logger.info("comparison: %s", row.recipe)
        train(row.recipe, runs / row.recipe)
