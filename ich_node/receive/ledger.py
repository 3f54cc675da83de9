"""How much each peer has brought in the last 24 hours."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable

_HOUR_SECONDS = 3600.0
_HOURS = 24


class PeerLedger:
    """Counts bytes by peer and hour, since this process started. Used by several threads.

    Parameters
    ----------
    max_bytes_per_day
        Who has brought more has had its share.
    clock
        Seconds that never go back.
    """

    def __init__(self, max_bytes_per_day: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = max_bytes_per_day
        self._clock = clock
        self._hours: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._lock = threading.Lock()

    def add(self, ae_title: str, size_bytes: int) -> None:
        """Note what a peer has brought."""
        with self._lock:
            self._hours[ae_title][self._hour()] += size_bytes

    def spent(self) -> frozenset[str]:
        """AE titles of the peers that have brought more than their share in 24 hours."""
        oldest = self._hour() - _HOURS + 1
        with self._lock:
            for ae_title, hours in list(self._hours.items()):
                for hour in [hour for hour in hours if hour < oldest]:
                    del hours[hour]
                if not hours:
                    del self._hours[ae_title]
            return frozenset(a for a, hours in self._hours.items() if sum(hours.values()) > self._most)

    def _hour(self) -> int:
        return int(self._clock() // _HOUR_SECONDS)
