"""What readers and the check find wrong with labelled data: one line a finding, and nothing stops because of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class FaultKind(StrEnum):
    """What is wrong. The value is the heading in a report."""

    LEAKING = "leaking"
    """One patient, or one image, on both sides of a split."""
    DAMAGED = "damaged"
    """A file or a scan that cannot be read."""
    CONFLICTING = "conflicting"
    """Labels that contradict each other, or the image."""
    DOUBLED = "doubled"
    """The same scan, slice or image more than once."""
    LABEL_WITHOUT_IMAGE = "label without image"
    IMAGE_WITHOUT_LABEL = "image without label"
    LEFT_OUT = "left out"
    """Images that were set aside on purpose, and why."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One finding."""

    kind: FaultKind
    where: str
    """File, line, column, patient or UID."""
    what: str
    """A sentence: what is wrong and what became of it."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What every reader takes."""

    cache: Path | None = None
    """Folder in which an index of headers is kept; ``None``: nothing is kept."""
    processes: int = 1
    """How many read headers, or build phantoms, at a time."""
    faults: list[Fault] = field(default_factory=list)
    """Readers append what they find."""

    def report(self, kind: FaultKind, where: object, what: str) -> None:
        """Append a fault."""
        self.faults.append(Fault(kind=kind, where=str(where), what=what))
