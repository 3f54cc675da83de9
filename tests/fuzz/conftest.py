"""What the fuzz tests share."""

from __future__ import annotations

import contextlib
import gc
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
    gc.freeze()  # what other tests hold is looked at for nothing each time that something is sought here
    with _thawing(), tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as folder:
        everything = Targets(Path(folder))
        with everything.receiver.watched():
            yield everything
        everything.close()


@contextlib.contextmanager
def _thawing() -> Iterator[None]:
    try:
        yield
    finally:
        gc.unfreeze()
