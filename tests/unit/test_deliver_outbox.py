from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.deliver.outbox import FIRST_DELAY, GIVE_UP_AFTER, LONGEST_DELAY, is_permanent, next_attempt

NOW = datetime(2024, 5, 3, 18, 0, tzinfo=UTC)


def times(jitter: float) -> list[datetime]:
    """When a delivery that always fails at once is tried."""
    tried = [NOW]
    while (at := next_attempt(len(tried), tried[-1], jitter=lambda: jitter)) is not None:
        tried.append(at)
    return tried


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_it_is_tried_over_a_weekend_and_then_given_up(jitter: float) -> None:
    tried = times(jitter)
    assert GIVE_UP_AFTER <= tried[-1] - tried[0] <= GIVE_UP_AFTER * 1.4
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert gaps == sorted(gaps)
    assert FIRST_DELAY * 0.75 <= gaps[0] <= FIRST_DELAY
    assert LONGEST_DELAY * 0.75 <= gaps[-1] <= LONGEST_DELAY
    assert tried[3] - tried[0] <= timedelta(minutes=1)


@given(st.integers(1, 60), st.floats(0, 1))
def test_the_wait_stays_within_its_bounds(attempts: int, jitter: float) -> None:
    at = next_attempt(attempts, NOW, jitter=lambda: jitter)
    assert at is not None
    assert FIRST_DELAY * 0.75 <= at - NOW <= LONGEST_DELAY


def test_what_failed_together_does_not_come_back_together() -> None:
    assert len({next_attempt(8, NOW) for _ in range(20)}) > 10


def test_given_up_stays_given_up() -> None:
    assert next_attempt(10**5, NOW) is None


def test_something_never_tried_has_no_next_attempt() -> None:
    with pytest.raises(ValueError, match="never tried"):
        next_attempt(0, NOW)


@pytest.mark.parametrize(
    "status", [0xA900, 0xA9FF, 0xC000, 0xC123, 0xCFFF, 0x0117, 0x0122, 0x0124, 0x0211, 0x0212]
)
def test_statuses_that_never_pass(status: int) -> None:
    assert is_permanent(status)


@pytest.mark.parametrize(
    "status", [0xA700, 0xA701, 0xA7FF, 0x0110, 0x0210, 0x0213, 0xFE00, 0x0001, 0xB000, 0x1234]
)
def test_statuses_that_may_pass(status: int) -> None:
    assert not is_permanent(status)
