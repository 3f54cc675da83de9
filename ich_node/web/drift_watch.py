"""Drift of the models, looked at beside the requests: five weeks of readings are no matter of milliseconds."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime

from ich_node.database.drift import ModelDrift, model_drifts
from ich_node.database.engine import Database
from ich_node.errors import IchNodeError

logger = logging.getLogger(__name__)

_KEPT_S = 600.0
"""What moves over weeks is looked at no more often."""


class DriftWatch:
    """The last look at the drift, and a thread that looks again when that is old and somebody asks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found: tuple[ModelDrift, ...] | None = None
        self._look_at = 0.0
        self._looking: threading.Thread | None = None
        self._lock = threading.Lock()

    def latest(self) -> tuple[ModelDrift, ...] | None:
        """What was found last; ``None`` before the first look has come to its end. Never waits."""
        with self._lock:
            idle = self._looking is None or not self._looking.is_alive()
            if idle and time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _KEPT_S
                self._looking = threading.Thread(target=self._look, name="drift", daemon=True)
                self._looking.start()
        return self._found

    def join(self) -> None:
        """Wait for a look that is going on."""
        if self._looking is not None:
            self._looking.join()

    def _look(self) -> None:
        try:
            with self._database.reading() as session:
                self._found = tuple(model_drifts(session, now=datetime.now(UTC)))
        except IchNodeError as error:
            logger.warning("the drift of the models was not looked at: %s", type(error).__name__)
            self._look_at = 0.0
