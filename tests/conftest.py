"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real head CT; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ICH_NODE_TEST_DATA", default))
    if not (folder / "ct_ich").is_dir():
        pytest.skip("real head CT is not here; set ICH_NODE_TEST_DATA to the folder that has ct_ich")
    return folder
