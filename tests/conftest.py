"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is loaded anywhere: two workers whose small convolutions each take all cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# How long an example takes says nothing on a machine that is busy with servers and torch.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real head CT; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ICH_NODE_TEST_DATA", default))
    if not (folder / "ct_ich").is_dir():
        pytest.skip("real head CT is not here; set ICH_NODE_TEST_DATA to the folder that has ct_ich")
    return folder
