"""Who has just looked at which study, so that scrolling through a hundred slices is one look in the access log."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from ich_node.web.caller import Caller

SAME_LOOK_S = 600.0
_MOST_KEPT = 10_000


class RecentViews:
    """Remembers looks for ten minutes.

    Parameters
    ----------
    clock
        Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def is_new(self, caller: Caller, study_instance_uid: str) -> bool:
        """Whether this is another look, which it counts as from now on."""
        key, now = (caller.name, caller.source, study_instance_uid), self._clock()
        with self._lock:
            last = self._seen.get(key)
            if last is not None and now - last < SAME_LOOK_S:
                return False
            self._seen[key] = now
            self._seen.move_to_end(key)
            while len(self._seen) > _MOST_KEPT:
                self._seen.popitem(last=False)
            return True
