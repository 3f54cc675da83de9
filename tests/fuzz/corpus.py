"""Inputs that are kept beside the code: valid ones, and those that once showed a fault.

``python -m tests.fuzz.corpus`` writes the valid ones anew. A fault's input is put there by hand, named after
what it showed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.generators import seeds
from tests.fuzz.targets import by_name

FOLDER = Path(__file__).parent / "corpus"


def made_by_code() -> Iterator[tuple[Path, bytes]]:
    """Path and content of each valid input."""
    for target in by_name:
        for number, content in enumerate(seeds(target)):
            yield FOLDER / target / f"valid-{number}.bin", content


def inputs() -> list[Path]:
    """Everything that is kept; the folder of each names its target."""
    return sorted(FOLDER.glob("*/*.bin"))


if __name__ == "__main__":
    for path, content in made_by_code():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
