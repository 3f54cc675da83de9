"""What tests of OHIF in a browser share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

FORGETS = "localStorage.clear()"
"""A script of the page: each opening is the first one, with its tour for newcomers."""
_TIMES = 3
_PATIENCE_MS = 20_000


def open_until(open_it: Callable[[], object], sign: playwright.Locator) -> None:
    """Open something until its sign is seen.

    On a busy machine OHIF 3.13 sometimes loses the jump to a report's slice and stays on the middle one, though it was
    asked nothing else and everything was answered; opened again, it goes there.

    Raises
    ------
    playwright.TimeoutError
        It could not be opened, or the sign was not seen, often as it was opened.
    """
    for number in range(1, _TIMES + 1):
        try:
            open_it()
            sign.wait_for(timeout=_PATIENCE_MS)
        except playwright.TimeoutError:
            if number == _TIMES:
                raise
            print(f"opened {number} times, and {sign} is not seen")  # pytest shows it where the test fails
        else:
            return
