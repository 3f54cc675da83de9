"""The kept inputs hold, and the valid ones among them are what the code makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.corpus import FOLDER, inputs, made_by_code
from tests.fuzz.targets import Targets, by_name


def test_there_are_some_for_every_target() -> None:
    assert {path.parent.name for path in inputs()} == set(by_name)


def test_valid_ones_are_those_that_the_code_makes() -> None:
    made = dict(made_by_code())
    assert {path: path.read_bytes() for path in inputs() if path.stem.startswith("valid-")} == made


@pytest.mark.parametrize(
    "path", inputs(), ids=lambda path: path.relative_to(FOLDER).with_suffix("").as_posix()
)
def test_it_holds(targets: Targets, path: Path) -> None:
    targets.run(path.parent.name, path.read_bytes())
    targets.receiver.check_node()
