"""What the fuzz tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.targets import Targets

_SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def targets() -> Iterator[Targets]:
    """Everything that is fuzzed; what it writes stays in memory."""
    place = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as folder:
        everything = Targets(Path(folder))
        with everything.receiver.watched():
            yield everything
        everything.close()
