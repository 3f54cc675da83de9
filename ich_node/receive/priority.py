"""Receiving comes first: a sender waits for it, and what it has stored is safe whatever happens next."""

from __future__ import annotations

import contextlib
import os
import threading

_NICENESS = 10


def yield_to_receiving() -> None:
    """Let the calling thread run behind those that receive, where cores are scarce (Linux: nice goes by thread)."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
