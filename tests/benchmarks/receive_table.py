"""What the receiving benchmark has measured, as a table for people and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.process_tree import Memory
from tests.benchmarks.receive_memory import MemoryResult


@dataclass(frozen=True, kw_only=True)
class Case:
    """How many images come over how many associations at once."""

    nagle: bool
    """Whether senders and DCMTK's receivers leave Nagle's algorithm on."""
    senders: int
    images: int

    def __str__(self) -> str:
        return f"{self.senders}, Nagle on" if self.nagle else str(self.senders)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One transfer to one receiver."""

    images: int
    seconds: float
    """From the first sender's start to the last one's end."""
    cpu_seconds: float
    """Of the receiver's processes, until everything was in its database."""
    peak: Memory | None
    """None where nothing but files was measured."""
    rows_after_seconds: float | None
    """From the last sender's end to the last row in the database; None where the receiver promises no rows."""

    @property
    def images_per_second(self) -> float:
        """Speed."""
        return self.images / self.seconds


Rounds = Sequence[Measurement]
Results = Mapping[Case, Mapping[str, Rounds]]
"""Rounds in order, by case and by the receiver's label."""

SPEED_HEADINGS = (
    "senders",
    "receiver",
    "images/s",
    "min to max",
    "ich_node / it",
    "CPU ms per image",
    "peak MiB, all",
    "peak MiB, largest",
    "rows after s",
)
MEMORY_HEADINGS = ("resident memory of ich_node receiver", "processes", "MiB, all", "MiB, largest")


def speed_rows(results: Results, ours: str) -> list[tuple[str, ...]]:
    """One row of text for each case and receiver; ``ours`` is the label that ratios are formed with."""
    return [
        _speed_row(case, label, rounds, receivers.get(ours))
        for case, receivers in results.items()
        for label, rounds in receivers.items()
    ]


def memory_rows(result: MemoryResult) -> list[tuple[str, ...]]:
    """One row of text for each moment that was looked at."""
    total = max(result.after_objects)
    rows = [
        _memory_row(f"after {count} small objects ({count / total:.0%})", memory)
        for count, memory in result.after_objects.items()
    ]
    rows.append(_memory_row("before an object of 1 GiB", result.before_large))
    rows.append(_memory_row("peak while it arrives", result.peak_large))
    return rows


def plain(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *rows)
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the documentation."""
    return "\n".join(f"| {' | '.join(row)} |" for row in _with_rule(headings, rows))


def _with_rule(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    yield headings
    yield ["---"] * len(headings)
    yield from rows


def _speed_row(case: Case, label: str, rounds: Rounds, ours: Rounds | None) -> tuple[str, ...]:
    speeds = [measured.images_per_second for measured in rounds]
    return (
        str(case),
        label,
        f"{statistics.median(speeds):.0f}",
        f"{min(speeds):.0f} to {max(speeds):.0f}",
        "" if ours is None or ours is rounds else f"{median_ratio(ours, rounds):.2f}",
        f"{statistics.median(m.cpu_seconds / m.images for m in rounds) * 1e3:.2f}",
        _highest_text([m.peak.sum_mib for m in rounds if m.peak]),
        _highest_text([m.peak.largest_mib for m in rounds if m.peak]),
        _median_text([m.rows_after_seconds for m in rounds if m.rows_after_seconds is not None]),
    )


def median_ratio(ours: Rounds, theirs: Rounds) -> float:
    """Median over the rounds of how many times faster ours was in the same round."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(our.images_per_second / their.images_per_second for our, their in pairs)


def _median_text(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f}" if seconds else ""


def _highest_text(mib: Sequence[float]) -> str:
    return f"{max(mib):.0f}" if mib else ""


def _memory_row(moment: str, memory: Memory) -> tuple[str, ...]:
    return moment, str(memory.processes), f"{memory.sum_mib:.0f}", f"{memory.largest_mib:.0f}"
