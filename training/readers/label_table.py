"""Tables of labels as CSV: columns found by name in any order, and cells that say present, absent or nothing."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ich_node.findings import IchSubtype
from training.readers.faults import FaultKind, ReadOptions
from training.scan import ABSENT, CLASSES, PRESENT, UNKNOWN, Labels

Row: TypeAlias = Mapping[str, str]

SUBTYPES = tuple(c for c in CLASSES if c is not IchSubtype.ANY)
_ANY = CLASSES.index(IchSubtype.ANY)
_WORDS = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "present", "positive"), PRESENT),
    **dict.fromkeys(("0", "0.0", "false", "no", "absent", "negative"), ABSENT),
    **dict.fromkeys(("", "-1", "-1.0", "nan", "na", "n/a", "unknown", "none"), UNKNOWN),
}


def rows(
    file: Path, required: Collection[str] = (), one_of: Collection[str] = ()
) -> Iterator[tuple[int, Row]]:
    """Rows of a CSV with a header, columns in any order and more than asked for.

    Parameters
    ----------
    file
        UTF-8, with or without a byte order mark.
    required
        Columns that have to be there; case and blanks around a name do not count.
    one_of
        Of these at least one has to be there.

    Yields
    ------
    tuple of int and mapping
        Line in the file, from 1, and cells by lower-case column, stripped; a cell that is not there is empty.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A column is missing, named with those that are there.
    """
    with file.open(encoding="utf-8-sig", newline="") as text:
        table = csv.reader(text)
        columns = [name.strip().lower() for name in next(table, [])]
        missing = [name for name in required if name.lower() not in columns]
        if one_of and not any(name.lower() in columns for name in one_of):
            missing.append(f"any of {', '.join(one_of)}")
        if missing:
            raise ValueError(
                f"{file}: column {', '.join(missing)} is missing; the header has {', '.join(columns) or 'nothing'}"
            )
        for cells in table:
            if any(cell.strip() for cell in cells):
                padded = [*cells, *[""] * (len(columns) - len(cells))]
                yield table.line_num, {c: v.strip() for c, v in zip(columns, padded, strict=False)}


def flag(row: Row, column: str, where: str, options: ReadOptions) -> int:
    """One cell: `PRESENT`, `ABSENT` or `UNKNOWN`; what is none of them is reported and unknown."""
    text = row.get(column.lower(), "")
    value = _WORDS.get(text.casefold())
    if value is None:
        options.report(
            FaultKind.CONFLICTING,
            where,
            f"column {column} says {text[:40]!r}, not 0, 1 or nothing; taken as unknown",
        )
        return UNKNOWN
    return value


def labels_of_row(
    row: Row, where: str, options: ReadOptions, columns: Mapping[IchSubtype, str] | None = None
) -> Labels:
    """(classes,) int8 of a row with columns named as the classes; a column that is not there is unknown."""
    names = columns or {c: c.value for c in CLASSES}
    found = np.array(
        [flag(row, names[c], where, options) if c in names else UNKNOWN for c in CLASSES], np.int8
    )
    return completed(found, where, options)


def completed(labels: Labels, where: str, options: ReadOptions) -> Labels:
    """Fill in what follows from the rest: *any* from the subtypes, absent subtypes from an absent *any*.

    Where *any* is absent and a subtype present, both are taken as unknown, and it is reported.
    """
    filled = labels.copy()
    subtypes = np.delete(labels, _ANY)
    if labels[_ANY] == ABSENT and (subtypes == PRESENT).any():
        options.report(
            FaultKind.CONFLICTING, where, "any is absent and a subtype is present; both are taken as unknown"
        )
        filled[labels == PRESENT] = UNKNOWN
        filled[_ANY] = UNKNOWN
    elif labels[_ANY] == ABSENT:
        filled[:] = ABSENT
    elif labels[_ANY] == UNKNOWN and (subtypes == PRESENT).any():
        filled[_ANY] = PRESENT
    elif labels[_ANY] == UNKNOWN and (subtypes == ABSENT).all():
        filled[_ANY] = ABSENT
    return filled


def merged(labels: Sequence[Labels], where: str, options: ReadOptions) -> Labels:
    """One answer from several of the same thing: what contradicts is unknown, and reported."""
    stack = np.stack(labels)
    present, absent = (stack == PRESENT).any(axis=0), (stack == ABSENT).any(axis=0)
    odd = [c.value for c, wrong in zip(CLASSES, present & absent, strict=True) if wrong]
    if odd:
        options.report(
            FaultKind.CONFLICTING,
            where,
            f"labelled differently more than once: {', '.join(odd)}; taken as unknown",
        )
    return np.where(present == absent, UNKNOWN, np.where(present, PRESENT, ABSENT)).astype(np.int8)


def slices_of_scan_label(label: Labels, count: int) -> Labels:
    """(count, classes): slices of which only the scan's label is known: absent where the scan is, else unknown."""
    return np.tile(np.where(label == ABSENT, ABSENT, UNKNOWN).astype(np.int8), (count, 1))
