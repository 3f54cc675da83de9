"""Showing life: who holds a lease, and how it is kept while the work goes on."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from ich_node.errors import TransientError

logger = logging.getLogger(__name__)


def work_owner() -> str:
    """A name for the holder of a lease: host, process, and a part of its own for each job."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"


@contextmanager
def showing_life(renew: Callable[[], bool], lease: timedelta) -> Iterator[None]:
    """Renew a lease three times in its length, from a thread of its own, until the block ends.

    Parameters
    ----------
    renew
        Renews; false where another holder has taken over, which ends the renewing: the commit will find out. One
        that raises `TransientError` is tried again.
    lease
        Length of the lease.
    """
    done = threading.Event()

    def keep() -> None:
        while not done.wait(lease.total_seconds() / 3):
            try:
                if not renew():
                    return
            except TransientError as error:
                logger.warning("a lease was not renewed: %s", error)

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
