"""Whether the disk has room for another object: a low-water mark that does not flap."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

_LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_MOST_ABOVE_BYTES = 256 * 2**20


class FreeSpace:
    """Looks at the file system that holds a folder; may be asked before every object, by several threads.

    Below ``min_free_bytes`` it is low, and stays so until a tenth more than that is free, 256 MiB more at
    most: about one study's images, so that refusing and accepting do not alternate within a study, and a mark
    of hundreds of GiB does not hold back tens of them.

    Bytes of objects that are under way need no counting. What has been written of them is missing from the free
    space already, a sender does not say how much is still to come, and what comes within the half second between
    two looks is far less than any sensible mark. Should the disk fill up all the same, the spool's own error
    refuses the object.

    Parameters
    ----------
    folder
        Where objects go. While it does not exist, the nearest folder above it that does is looked at.
    min_free_bytes
        The low-water mark; 0: never low.
    """

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self.folder = folder
        self.min_free_bytes = min_free_bytes
        self.enough_bytes = min_free_bytes + min(min_free_bytes // 10, _MOST_ABOVE_BYTES)
        """When so much is free, it is no longer low."""
        self._lock = threading.Lock()
        self._low = False
        self._look_again_at = 0.0

    def is_low(self) -> bool:
        """Whether new objects are to be refused (0xA700, PS3.4 table B.2-1); looks twice a second at most.

        A file system that does not answer counts as low: what cannot be looked at cannot be trusted with images.
        """
        if time.monotonic() < self._look_again_at:
            return self._low
        # Others go by the last look meanwhile: a slow file system holds up one thread.
        if self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._low

    def free_bytes(self) -> int:
        """Return what an unprivileged process may still write.

        Raises
        ------
        OSError
            The file system does not answer.
        """
        status = os.statvfs(_existing(self.folder))
        return status.f_bavail * status.f_frsize

    def _look(self) -> None:
        free: int | None
        try:
            free = self.free_bytes()
        except OSError:
            free = None
        low = self.min_free_bytes > 0 and (
            free is None or free < (self.enough_bytes if self._low else self.min_free_bytes)
        )
        if low != self._low:
            self._log(low, free)
        self._low = low
        self._look_again_at = time.monotonic() + _LOOK_SECONDS

    def _log(self, low: bool, free: int | None) -> None:
        found = "the file system does not answer" if free is None else f"{in_gib(free)} free"
        if low:
            _LOG.error(
                "%s: %s, less than %s: new objects are refused until %s are free",
                self.folder,
                found,
                in_gib(self.min_free_bytes),
                in_gib(self.enough_bytes),
            )
        else:
            _LOG.warning("%s: %s: new objects are accepted again", self.folder, found)


def in_gib(size_bytes: float) -> str:
    """A size for people, in GiB, or in MiB where it is small."""
    if size_bytes < 2**30:
        return f"{size_bytes / 2**20:.1f} MiB"
    return f"{size_bytes / 2**30:.1f} GiB"


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
