"""The rule of three consecutive slices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.model.consecutive import consecutive_score

# few distinct values, so that ties and thresholds that equal a probability are common
PROBABILITY = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))


def published_rule(probabilities: list[float], threshold: float, run: int) -> bool:
    """Whether the longest stretch of positive slices is long enough, counted one by one."""
    stretches = itertools.groupby(p >= threshold for p in probabilities)
    longest = max((len(list(group)) for positive, group in stretches if positive), default=0)
    return longest >= min(run, len(probabilities))


@given(
    probabilities=st.lists(PROBABILITY, min_size=1, max_size=12), threshold=PROBABILITY, run=st.integers(1, 5)
)
def test_decides_as_the_published_rule_at_every_threshold(
    probabilities: list[float], threshold: float, run: int
):
    score = consecutive_score(np.array(probabilities), run)
    assert (score >= threshold) is published_rule(probabilities, threshold, run)


@given(probabilities=st.lists(PROBABILITY, min_size=1, max_size=12), run=st.integers(1, 5))
def test_is_one_of_the_probabilities_and_the_same_from_either_end(probabilities: list[float], run: int):
    score = consecutive_score(np.array(probabilities), run)
    assert score in probabilities
    assert score == consecutive_score(np.array(probabilities[::-1]), run)


@pytest.mark.parametrize(
    ("probabilities", "score"),
    [
        ([0.1, 0.9, 0.8, 0.7, 0.2], 0.7),
        ([0.9, 0.9, 0.1, 0.9, 0.9], 0.1),  # four positive slices, never three together
        ([0.0, 1.0, 0.0, 0.6, 0.6, 0.6], 0.6),
        ([0.9, 0.4], 0.4),
        ([0.3], 0.3),
    ],
)
def test_by_hand(probabilities: list[float], score: float):
    assert consecutive_score(np.array(probabilities)) == score


def test_one_bright_slice_flags_no_scan():
    probabilities = np.zeros(30)
    probabilities[[4, 5, 20]] = 1
    assert consecutive_score(probabilities) == 0
    assert consecutive_score(probabilities, run=2) == 1


@pytest.mark.parametrize(("shape", "run"), [((0,), 3), ((2, 2), 3), ((4,), 0)])
def test_refuses_what_has_no_score(shape: tuple[int, ...], run: int):
    with pytest.raises(ValueError, match="make no score"):
        consecutive_score(np.zeros(shape), run)
