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


_COSTLY = {
    "test_model_costs",
    "test_model_intracranial",
    "test_model_predict",
    "test_model_systems",
    "test_reading_job",
    "test_testing_phantom",
    "test_training_commands",
    "test_training_engine",
    "test_training_learn_burduja",
    "test_training_learn_systems",
    "test_training_pair",
    "test_training_release",
    "test_training_tune_detector",
}
"""Unit tests that share heads, readings or trained networks, which take seconds to make."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep on one xdist worker what shares servers, and what else takes long to make.

    These are the acceptance tests, each module of integration tests, and a few of the unit tests.
    """
    for item in items:
        folder = item.path.parent.name
        if folder == "acceptance":
            item.add_marker(pytest.mark.xdist_group("acceptance"))
        elif folder == "integration" or item.path.stem in _COSTLY:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real head CT; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ICH_NODE_TEST_DATA", default))
    if not (folder / "ct_ich").is_dir():
        pytest.skip("real head CT is not here; set ICH_NODE_TEST_DATA to the folder that has ct_ich")
    return folder
