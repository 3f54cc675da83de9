"""What the receiver logs, and must not log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fuzz.data_sets import MARKERS

_LOGGERS = ("ich_node", "pynetdicom", "pydicom", "python_multipart", "py.warnings")


class LogKeeper(logging.Handler):
    """Keeps what must not be logged: values of data sets, and faults of the receiver itself.

    What pydicom calls an error is one of the sender.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.faults: list[str] = []
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        text = self._formatter.format(record)
        if any(marker in text for marker in MARKERS):
            self.faults.append(f"an identifying value is logged by {record.name}: {text!r}")
        elif record.levelno >= logging.ERROR and not record.name.startswith("pydicom"):
            self.faults.append(text)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Be the one that hears every log and warning of this process."""
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            for logger in loggers:
                logger.addHandler(self)
                logger.propagate = False
            level, make = loggers[0].level, logging.getLogRecordFactory()
            loggers[0].setLevel(logging.DEBUG)
            logging.setLogRecordFactory(lambda *parts, **more: _as_text(make(*parts, **more)))
            try:
                yield
            finally:
                logging.setLogRecordFactory(make)
                loggers[0].setLevel(level)
                for logger in loggers:
                    logger.removeHandler(self)
                    logger.propagate = True
                logging.captureWarnings(False)


def _as_text(record: logging.LogRecord) -> logging.LogRecord:
    """Without what it refers to: pytest keeps every record."""
    record.msg, record.args = record.getMessage(), None
    return record
