"""Twenty thousand changed inputs, the same ones each time; ``python -m tests.fuzz`` runs as many as one likes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import NoReturn

import pytest

from tests.fuzz.campaign import Case, run
from tests.fuzz.targets import Targets, by_name

SEED = 2026
SHARES = [
    ("conversation", range(3000)),
    ("conversation", range(3000, 6000)),
    ("data_set", range(5000)),
    ("command_set", range(3000)),
    ("file", range(2500)),
    ("commitment", range(1000)),
    ("commitment_report", range(1000)),
    ("store_request", range(1500)),
    ("http_header", range(500)),
]


def test_there_are_enough_of_every_kind() -> None:
    assert sum(len(numbers) for _, numbers in SHARES) >= 20_000
    assert {target for target, _ in SHARES} == set(by_name)


@pytest.mark.parametrize(
    ("target", "numbers"), SHARES, ids=[f"{target} from {numbers.start}" for target, numbers in SHARES]
)
def test_no_crash_hang_or_growth(targets: Targets, tmp_path: Path, target: str, numbers: range) -> None:
    def fail(case: Case, words: str) -> NoReturn:
        content = base64.b64encode(case.content[:3000]).decode()
        pytest.fail(
            f"{words}\n"
            f"Case.make({SEED}, {case.number}, {target!r}), written to {case.save(tmp_path, words)}, "
            f"{len(case.content)} bytes that begin with (base64) {content}"
        )

    count = run(targets, (Case.make(SEED, number, target) for number in numbers), on_finding=fail)
    targets.receiver.check_node()
    assert count.total == len(numbers)
    if target == "conversation":
        # Most of them get far: what is refused at the door shows nothing.
        assert count.accepted > len(numbers) / 2
        assert count.stored > len(numbers) / 2
