"""Published numbers, each with where it is printed and on what data it was measured.

A number stands beside ours only where both are of the same data set. All of them, whatever their data, are in
`published_table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from training.evaluation.tables import LOSS_DIGITS, Cell, Table

DataSet = Literal["rsna", "cq500", "ct-ich", "own"]
"""``own``: scans that nobody else has, or not known which; shown beside no others."""
Kind = Literal["localization", "auc", "scan decision", "loss", "yardstick"]
"""Which of our tables has the number's column."""

_VICAR = "Nemcek, Vicar, Jakubicek 2022, arXiv:2105.00781"
_HE = "He et al. 2024, Deep multiscale convolutional feature learning"
_RADNET = "Grewal et al. 2018, arXiv:1710.04934"
_BURDUJA = "Burduja, Ionescu, Verga 2020, doi 10.3390/s20195611"
_WANG = "Wang et al. 2021, NeuroImage: Clinical, PMC8377493"
_TENEGGI = "Teneggi, Yi, Sulam 2024, Radiology: AI, PMC10831525"
_QURE = "Chilamkurthy et al. 2018, Lancet 392:2388"
_CHALLENGE = "RSNA 2019 challenge, private leaderboard"
_RERUN = "the authors' checkpoints, run and scored by this project"
_BHX = "CQ500 with BHX boxes"
_RSNA, _RSNA_TEST = "RSNA 2019", "RSNA 2019, test of the challenge"
_PRIVATE = "77 scans of the authors"
_CQ500, _CT_ICH = "CQ500", "CT-ICH"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One printed number."""

    kind: Kind
    method: str
    metric: str
    """As our table calls its column."""
    value: float
    source: str
    where: str
    """Table or section in the source."""
    data: str
    data_set: DataSet


def _numbers(
    kind: Kind,
    source: str,
    data: str,
    data_set: DataSet,
    rows: Iterable[tuple[str, str, str, float]],
) -> tuple[Published, ...]:
    """Numbers of one source on one data set: (method, where, metric, value) each."""
    return tuple(
        Published(
            kind=kind,
            method=method,
            metric=metric,
            value=value,
            source=source,
            where=where,
            data=data,
            data_set=data_set,
        )
        for method, where, metric, value in rows
    )


PUBLISHED: tuple[Published, ...] = (
    *_numbers(
        "localization",
        _VICAR,
        _BHX,
        "cq500",
        [
            ("Vicar et al., max pooling", "abstract", "PPV", 0.6188),
            ("Vicar et al., max pooling", "abstract", "sensitivity", 0.5472),
            ("Vicar et al., max pooling", "table I", "Dice", 0.5808),
            ("Vicar et al., attention", "table I", "Dice", 0.4730),
        ],
    ),
    *_numbers(
        "yardstick",
        _VICAR,
        f"{_RSNA}, validation slices",
        "rsna",
        [
            ("Vicar et al., max pooling", "results", "slice accuracy", 0.8954),
            ("Vicar et al., attention", "results", "slice accuracy", 0.9133),
        ],
    ),
    *_numbers(
        "auc",
        _HE,
        _RSNA,
        "rsna",
        [
            ("He et al.", "tables 3 and 4", "AUC any", 0.988),
            ("He et al.", "abstract", "AUC epidural", 0.891),
            ("He et al.", "abstract", "AUC intraparenchymal", 0.990),
            ("He et al.", "abstract", "AUC intraventricular", 0.995),
            ("He et al.", "abstract", "AUC subarachnoid", 0.983),
            ("He et al.", "abstract", "AUC subdural", 0.991),
            ("He et al.", "tables 3 and 4", "mean AUC", 0.973),
            ("He et al., without window layer", "tables 3 and 4", "mean AUC", 0.923),
            ("He et al., without fusion", "tables 3 and 4", "mean AUC", 0.873),
            ("He et al., weakest of the window inputs", "tables 3 and 4", "mean AUC", 0.891),
        ],
    ),
    *_numbers(
        "localization",
        _HE,
        "data set not known here",
        "own",
        [("He et al.", "results", "mAP at IoU .5", 0.2)],
    ),
    *_numbers(
        "scan decision",
        _RADNET,
        _PRIVATE,
        "own",
        [
            ("RADnet", "table 1", "accuracy", 0.8182),
            ("RADnet", "table 1", "recall", 0.8864),
            ("RADnet", "table 1", "precision", 0.8125),
            ("RADnet", "table 1", "F1", 0.8478),
            ("DenseNet with attention", "table 1", "accuracy", 0.8052),
            ("DenseNet alone", "table 1", "accuracy", 0.7272),
        ],
    ),
    *_numbers(
        "loss",
        _BURDUJA,
        _RSNA_TEST,
        "rsna",
        [
            ("Burduja et al., CNN", "tables 2, 3 and 5", "weighted log loss", 0.06259),
            ("Burduja et al., LSTM on probabilities", "tables 2, 3 and 5", "weighted log loss", 0.05540),
            ("Burduja et al., LSTM on 192 components", "tables 2, 3 and 5", "weighted log loss", 0.05096),
            ("Burduja et al., LSTM on 120 components", "tables 2, 3 and 5", "weighted log loss", 0.05022),
            (
                "Burduja et al., 120 components and probabilities",
                "tables 2, 3 and 5",
                "weighted log loss",
                0.04989,
            ),
        ],
    ),
    *_numbers(
        "loss",
        _CHALLENGE,
        _RSNA_TEST,
        "rsna",
        [("best of the challenge", "final standings", "weighted log loss", 0.04383)],
    ),
    *_numbers(
        "yardstick",
        _WANG,
        _CQ500,
        "cq500",
        [("Wang et al., ensemble, first of the RSNA challenge", "abstract", "scan AUC", 0.949)],
    ),
    *_numbers("yardstick", _QURE, _CQ500, "cq500", [("qure.ai", "results", "scan AUC", 0.94)]),
    *_numbers(
        "yardstick",
        _WANG,
        f"{_CT_ICH}, 75 scans",
        "ct-ich",
        [("Wang et al., ensemble, first of the RSNA challenge", "abstract", "scan AUC", 0.964)],
    ),
    *_numbers(
        "yardstick",
        _TENEGGI,
        f"{_CT_ICH}, 75 scans",
        "ct-ich",
        [("Teneggi et al., labels of scans only", "abstract", "scan AUC", 0.95)],
    ),
    *_numbers(
        "yardstick",
        _RERUN,
        _CT_ICH,
        "ct-ich",
        [
            ("Vicar et al., attention", "-", "slice AUC", 0.955),
            ("Vicar et al., attention", "-", "scan AUC", 0.937),
            ("Vicar et al., max pooling", "-", "slice AUC", 0.946),
            ("Vicar et al., max pooling", "-", "scan AUC", 0.957),
        ],
    ),
)


def data_set_of(name: str) -> DataSet | None:
    """Which of the published data sets a name stands for; None for phantoms and for any other."""
    lower = name.lower()
    if "phantom" in lower:
        return None
    for data_set, words in _WORDS.items():
        if any(word in lower for word in words):
            return data_set
    return None


_WORDS: dict[DataSet, tuple[str, ...]] = {
    "rsna": ("rsna",),
    "cq500": ("cq500", "bhx"),
    "ct-ich": ("ct-ich", "ct_ich"),
}


def published_rows(kind: Kind, columns: Sequence[str], data: Iterable[str]) -> tuple[tuple[Cell, ...], ...]:
    """Rows to stand under ours: published numbers on a data set that ours are on, too.

    Parameters
    ----------
    columns
        Of the table: the first is the method, one is ``data``, the others are metrics.
    data
        Names of our data sets.
    """
    ours = {data_set_of(name) for name in data} - {None}
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for number in PUBLISHED:
        if number.kind == kind and number.data_set in ours and number.metric in columns:
            key = (f"{number.method} (published: {number.source})", number.data)
            rows.setdefault(key, {})[number.metric] = number.value
    return tuple(
        (method, *(where if name == "data" else found.get(name) for name in columns[1:]))
        for (method, where), found in rows.items()
    )


def published_table() -> Table:
    """All published numbers, whatever their data."""
    return Table(
        title="Published numbers",
        columns=("method", "metric", "value", "data", "source", "where"),
        rows=tuple(
            (
                p.method,
                p.metric,
                f"{p.value:.{LOSS_DIGITS if p.kind == 'loss' else 4}f}",
                p.data,
                p.source,
                p.where,
            )
            for p in PUBLISHED
        ),
        note="Numbers on other data are no comparison: prevalence, slices and labels differ.",
    )
