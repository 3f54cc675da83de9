"""Curves and histograms of one run, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ich_node.findings import IchSubtype
from training.evaluation.bootstrap import Measurer, measured
from training.evaluation.calibration import reliability
from training.evaluation.metrics import average_precision, precision_recall, roc
from training.evaluation.paper_tables import UNITS, Unit, auc_of, items_of
from training.evaluation.scored import Bools, Items, Scored
from training.predictions import Floats
from training.scan import CLASSES

_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00")
"""Of Okabe and Ito, told apart with any colour vision; classes differ in their lines as well."""
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_BLUE, _ORANGE = "#0072B2", "#E69F00"
_INCHES, _DPI = (6.0, 6.4), 100
"""600 pixels wide."""
_GRID = np.linspace(0, 1, 201)
_BINS = 20
Curve = Callable[[Bools, Floats, Floats], tuple[Floats, Floats]]


def write_plots(scored: Scored, out: Path) -> tuple[Path, ...]:
    """Write all plots that the data allow; their PNG files, each with an SVG beside it.

    Parameters
    ----------
    out
        Folder, which is made.

    Returns
    -------
    tuple of Path
        ROC and precision-recall of slices and scans with a 95 % band, reliability, and scores by class.
    """
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(
        {
            "font.size": 11,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.axisbelow": True,
            "svg.hashsalt": "ich_node",
        }
    ):
        return tuple(_saved(figure, out / name) for name, figure in _figures(scored))


def _figures(scored: Scored) -> Iterator[tuple[str, Figure]]:
    for unit in UNITS:
        drawn = [c for c in CLASSES if not auc_of(scored, unit, c).missing]
        if drawn:
            yield f"roc-{unit}", _roc_figure(scored, unit, drawn)
            yield f"precision-recall-{unit}", _precision_figure(scored, unit, drawn)
    items = scored.slices()
    if len(items.label) and not items.missing:
        yield "reliability", _reliability_figure(scored)
        yield "scores", _score_figure(scored)


def _roc_figure(scored: Scored, unit: Unit, drawn: list[IchSubtype]) -> Figure:
    figure, axes = _empty(scored, unit, "ROC")
    axes.plot([0, 1], [0, 1], color="grey", lw=0.8)
    for index, subtype in enumerate(drawn):
        items = items_of(scored, unit, subtype)
        label = f"{subtype} {auc_of(scored, unit, subtype).text(2)}"
        axes.plot(*roc(items.label, items.score), label=label, **_line(index))
    _fill(axes, band(Measurer.of(items_of(scored, unit, drawn[0])), roc))
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    _legend(figure, f"AUC (95 % interval), band: {drawn[0]}")
    return figure


def _precision_figure(scored: Scored, unit: Unit, drawn: list[IchSubtype]) -> Figure:
    figure, axes = _empty(scored, unit, "Precision and recall")
    for index, subtype in enumerate(drawn):
        items = items_of(scored, unit, subtype)
        label = f"{subtype} {measured(items, average_precision).text(2)}"
        recall, precision = precision_recall(items.label, items.score)
        # a step reaches back to the recall before: as the average precision counts it
        x, y = np.append(0, recall), np.append(precision[0], precision)
        axes.plot(x, y, drawstyle="steps-pre", label=label, **_line(index))
    _fill(axes, band(Measurer.of(items_of(scored, unit, drawn[0])), precision_recall))
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
    _legend(figure, f"average precision (95 % interval), band: {drawn[0]}")
    return figure


def band(measurer: Measurer, curve: Curve) -> tuple[Floats, Floats]:
    """2.5 and 97.5 percentile of a curve over resamplings of patients, (201,) each on a grid from 0 to 1."""
    items = measurer.items

    def on_grid(weights: Floats) -> Floats:
        x, y = curve(items.label, items.score, weights[:, items.patient])
        return np.stack([np.interp(_GRID, a, b) for a, b in zip(x, y, strict=True)])

    values = measurer.resampling.values(on_grid, len(items.label))[1:]
    low, high = np.nanpercentile(values, [2.5, 97.5], axis=0)
    return low, high


def _reliability_figure(scored: Scored) -> Figure:
    """Said against observed for slices, with 95 % intervals, over how many slices each point stands for."""
    items = scored.slices()
    figure = _figure(scored, "Reliability of slices, any")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    found = reliability(items.label, items.score)
    low, high = _observed_interval(items)
    there = found.count > 0
    above = np.stack([found.observed - low, high - found.observed])[:, there]
    said, observed = found.said[there], found.observed[there]
    upper.plot([0, 1], [0, 1], color="grey", lw=0.8)
    upper.errorbar(said, observed, np.clip(above, 0, None), fmt="o-", color=_BLUE, capsize=3)
    upper.set(ylabel="share with hemorrhage", xlim=(0, 1), ylim=(0, 1))
    lower.bar(
        found.edges[:-1], found.count, width=np.diff(found.edges), align="edge", color=_BLUE, ec="white"
    )
    for edge, count in zip(found.edges, found.count, strict=False):
        lower.annotate(f"{count:.0f}", (edge + 0.05, max(count, 1)), ha="center", va="bottom", fontsize=9)
    lower.set(xlabel="probability said", ylabel="slices", yscale="log", ylim=(0.7, 8 * found.count.max()))
    lower.yaxis.set_major_formatter("{x:g}")
    return figure


def _observed_interval(items: Items) -> tuple[Floats, Floats]:
    def observed(weights: Floats) -> Floats:
        return reliability(items.label, items.score, weights[:, items.patient]).observed

    values = Measurer.of(items).resampling.values(observed, 2 * len(items.label))[1:]
    gone = np.isnan(values).all(axis=0)
    values[:, gone] = 0
    low, high = np.nanpercentile(values, [2.5, 97.5], axis=0)
    return low, high


def _score_figure(scored: Scored) -> Figure:
    """Histogram of slice scores for each class that the system gives, with the class and without."""
    figure = _figure(scored, "Slice probabilities")
    cells = figure.subplots(3, 2, sharex=True).ravel()
    for axes, subtype in zip(cells, CLASSES, strict=True):
        items = scored.slices(subtype)
        axes.set_title(f"{subtype}\n{items.label.sum()} with, {(~items.label).sum()} without", fontsize=9)
        if items.missing or not len(items.label):
            axes.text(0.5, 0.5, items.missing or "no label is known", ha="center", transform=axes.transAxes)
            continue
        for label, colour, name in ((False, _BLUE, "without"), (True, _ORANGE, "with")):
            style = {"histtype": "stepfilled", "alpha": 0.6, "hatch": "//" if label else ""}
            chosen = items.score[items.label == label]
            axes.hist(chosen, _BINS, range=(0, 1), color=colour, edgecolor=colour, label=name, **style)
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
    cells[0].legend(fontsize=9)
    for axes in cells[-2:]:
        axes.set_xlabel("probability")
    for axes in cells[::2]:
        axes.set_ylabel("slices")
    return figure


def _line(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index], "linestyle": _DASHES[index], "lw": 1.8}


def _fill(axes: Axes, edges: tuple[Floats, Floats]) -> None:
    axes.fill_between(_GRID, *edges, color=_COLOURS[0], alpha=0.15, lw=0)


def _legend(figure: Figure, title: str) -> None:
    """Below the axes, where it hides no curve."""
    figure.legend(title=title, loc="outside lower center", ncols=2, fontsize=9, title_fontsize=9)


def _empty(scored: Scored, unit: Unit, what: str) -> tuple[Figure, Axes]:
    figure = _figure(scored, f"{what}, {unit}")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    return figure, axes


def _figure(scored: Scored, what: str) -> Figure:
    """A figure whose title says of whom and on what."""
    p = scored.predictions
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    n = f"{len(np.unique(p.patient_ids))} patients, {len(p.scan_ids)} scans, {len(p.scan)} slices"
    figure.suptitle(f"{what}: {p.system}\n{p.data}, {p.split}\n{n}", fontsize=11)
    return figure


def _saved(figure: Figure, stem: Path) -> Path:
    png = stem.with_name(f"{stem.name}.png")
    figure.savefig(png)
    figure.set_layout_engine("none")  # it is laid out: the SVG looks the same
    figure.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None})
    return png
