"""The bounded line in which received objects wait for their rows, and pauses before another try."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import TypeAlias

from ich_node.receive.received import AssociationSummary, ReceivedInstance

HandedOn: TypeAlias = ReceivedInstance | AssociationSummary

LINE_LENGTH = 5000
"""So many may wait; whoever brings one more waits too, so that memory stays bounded."""
BATCH_SIZE = 1000
LINGER_SECONDS = 1.0
"""Wait for company: one transaction for many objects costs little more than for one."""
_END_LINGER_SECONDS = 0.1
"""When an association has ended: those that a scanner has opened together end together."""


class WaitingLine:
    """First in, first out, taken in batches. Any number of threads may join, one takes.

    Parameters
    ----------
    length
        So many may wait.
    batch_size
        So many are taken at once.
    linger_s
        How long the first of a batch waits for others; a tenth of a second at most when an association has ended.
    """

    def __init__(
        self, *, length: int = LINE_LENGTH, batch_size: int = BATCH_SIZE, linger_s: float = LINGER_SECONDS
    ) -> None:
        self._length = length
        self._batch_size = batch_size
        self._linger_s = linger_s
        self._waiting: deque[HandedOn] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._until_s = math.inf
        """Nobody lingers longer."""
        self._taken = 0  # handed out and not yet `done`

    def join(self, arrived: HandedOn) -> None:
        """Wait at the end of the line; blocks while it is full.

        Raises
        ------
        RuntimeError
            The line is closed.
        """
        ended = isinstance(arrived, AssociationSummary)
        with self._changed:
            while len(self._waiting) >= self._length and not self._closed:
                self._changed.wait()
            if self._closed:
                raise RuntimeError("no objects are taken any more")
            self._waiting.append(arrived)
            if ended:
                self._until_s = min(self._until_s, time.monotonic() + _END_LINGER_SECONDS)
            if ended or len(self._waiting) in (1, self._batch_size):
                self._changed.notify_all()

    def take(self) -> list[HandedOn]:
        """The next batch, in order; waits for one, and is empty only when the line is closed and empty.

        The taker says `done` when it has dealt with it.
        """
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            linger_until_s = time.monotonic() + self._linger_s
            while not self._is_worth_taking():
                left = min(linger_until_s, self._until_s) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
            self._taken = len(batch)
            if not self._waiting:
                self._until_s = math.inf
            self._changed.notify_all()
            return batch

    def done(self) -> None:
        """The batch that was taken is dealt with."""
        with self._changed:
            self._taken = 0
            self._changed.notify_all()

    def flush(self) -> None:
        """Return when everything that has joined is dealt with."""
        with self._changed:
            self._until_s = 0.0
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._taken)

    def close(self) -> None:
        """Let nobody join any more; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_worth_taking(self) -> bool:
        return self._closed or len(self._waiting) >= self._batch_size


class Patience:
    """When to try again what has failed: after longer and longer pauses.

    Parameters
    ----------
    shortest_s, longest_s
        The first pause, which doubles each time, and the last.
    """

    def __init__(self, *, shortest_s: float = 2.0, longest_s: float = 300.0) -> None:
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._pause_s, self._until_s = 0.0, 0.0

    def begin(self) -> None:
        """Something has failed; a pause that is under way goes on."""
        if not self.has_failed:
            self.lengthen()

    def lengthen(self) -> None:
        """It has failed again."""
        self._pause_s = min(max(2 * self._pause_s, self._shortest_s), self._longest_s)
        self._until_s = time.monotonic() + self._pause_s

    def end(self) -> None:
        """Nothing is left to try."""
        self._pause_s, self._until_s = 0.0, 0.0

    @property
    def has_failed(self) -> bool:
        """Whether there is something to try again."""
        return self._pause_s > 0

    @property
    def is_pausing(self) -> bool:
        """Whether it is too early to try."""
        return time.monotonic() < self._until_s
