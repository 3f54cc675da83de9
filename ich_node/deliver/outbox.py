"""When to try again, and when trying again is of no use. Pure policy, no clock and no database of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

FIRST_DELAY = timedelta(seconds=5)
LONGEST_DELAY = timedelta(hours=1)
GIVE_UP_AFTER = timedelta(hours=72)
"""A PACS that is down from Friday evening to Monday morning still gets its results."""
_SHORTEST_FRACTION = 0.75

_PERMANENT = frozenset(
    {
        0x0105,  # no such attribute
        0x0106,  # invalid attribute value
        0x0117,  # invalid object instance
        0x0118,  # no such SOP class
        0x0119,  # class-instance conflict
        0x0120,  # missing attribute
        0x0121,  # missing attribute value
        0x0122,  # SOP class not supported
        0x0124,  # not authorized
        0x0211,  # unrecognized operation
        0x0212,  # mistyped argument
    }
)


def next_attempt(
    attempts: int, now: datetime, *, jitter: Callable[[], float] = random.random
) -> datetime | None:
    """When to try an object again that could not be delivered.

    The wait doubles from 5 s to 1 h. Each is shortened by up to a quarter at random, so that what failed
    together does not come back together.

    Parameters
    ----------
    attempts
        How often it was tried; at least 1.
    now
        The time of the last attempt.
    jitter
        Gives a number from 0 to 1.

    Returns
    -------
    datetime or None
        ``None`` when attempts have been made for 72 h: a person must look.
    """
    if attempts < 1:
        raise ValueError("an object that was never tried is due at once")
    waited = sum((_nominal_delay(attempt) for attempt in range(1, attempts)), timedelta())
    if waited * _SHORTEST_FRACTION >= GIVE_UP_AFTER:
        return None
    return now + _nominal_delay(attempts) * (_SHORTEST_FRACTION + (1 - _SHORTEST_FRACTION) * jitter())


def is_permanent(status: int) -> bool:
    """Whether a C-STORE status says that sending the same object again cannot help.

    Parameters
    ----------
    status
        Status (0000,0900) of a C-STORE response (PS3.4 table B.2-1, PS3.7 annex C).

    Returns
    -------
    bool
        ``True`` for 0xA9xx (data set does not match SOP class), 0xCxxx (cannot understand) and the errors
        of PS3.7 that lie in the object or the configuration. Everything else may pass: out of resources
        (0xA7xx), processing failure (0x0110), and codes that the standard does not know.
    """
    return status in _PERMANENT or status >> 8 == 0xA9 or status >> 12 == 0xC


def _nominal_delay(attempt: int) -> timedelta:
    doublings = min(attempt - 1, 30)
    return min(FIRST_DELAY * (1 << doublings), LONGEST_DELAY)
