"""Tables as plain data, and as Markdown, aligned text and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from training.evaluation.bootstrap import Measured

Cell = str | int | float | Measured | None
Plain = dict[str, object]
LOSS_DIGITS = 5
"""Of a log loss: papers differ in the fourth."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose cells are numbers still."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    digits: Mapping[str, int] = field(default_factory=dict)
    """Decimals of a column, 3 where it is not named."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: {len(row)} cells for {len(self.columns)} columns: {row}"
                )

    def texts(self) -> list[list[str]]:
        """Cells as they are shown; nothing is a dash."""
        return [
            [shown(cell, self.digits.get(name, 3)) for name, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """Heading, table and note."""
        lines = [_line(self.columns), _line(["---"] * len(self.columns)), *map(_line, self.texts())]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else []), ""])

    def aligned(self) -> str:
        """For a terminal: the first column to the left, the others to the left under their heads."""
        rows = [list(self.columns), *self.texts()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]
        rows.insert(1, ["-" * width for width in widths])
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.title, "", *lines, *([self.note] if self.note else []), ""])

    def plain(self) -> Plain:
        """For JSON: no NaN in it."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [[_plain(cell) for cell in row] for row in self.rows],
            "note": self.note,
        }


def shown(cell: Cell, digits: int = 3) -> str:
    """One cell as text."""
    if isinstance(cell, Measured):
        return cell.text(digits)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)


def _plain(cell: Cell) -> object:
    if isinstance(cell, Measured):
        return cell.plain()
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
