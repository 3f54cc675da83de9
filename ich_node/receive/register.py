"""Which associations are open, over all receiving processes of a node."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ich_node.receive.limits import Limits

_PLACE = struct.Struct("=qq")
_FREE = (0, 0)


class AssociationRegister:
    """A table in shared memory with one place for each association that may be open.

    A process that dies leaves its places taken; `release_all` frees them.

    Parameters
    ----------
    limits
        ``max_associations`` and ``max_associations_per_peer`` are used.
    descriptor
        Of another process's register, to share it; without it a new one is made.
    """

    def __init__(self, limits: Limits, descriptor: int | None = None) -> None:
        self._limits = limits
        size = limits.max_associations * _PLACE.size
        if descriptor is None:
            descriptor = os.memfd_create("associations")
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        """To be passed to another process."""
        self._table = mmap.mmap(descriptor, size)
        self._lock = threading.Lock()

    def enter(self, ae_title: str, host: str) -> int | None:
        """Take a place for an association; None where all, or all of this peer, are taken."""
        peer = _fingerprint(ae_title, host)
        with self._locked():
            places = list(_PLACE.iter_unpack(self._table[:]))
            if _FREE not in places:
                return None
            if sum(taken_by == peer for _, taken_by in places) >= self._limits.max_associations_per_peer:
                return None
            place = places.index(_FREE)
            _PLACE.pack_into(self._table, place * _PLACE.size, os.getpid(), peer)
            return place

    def leave(self, place: int) -> None:
        """Give a place back."""
        with self._locked():
            _PLACE.pack_into(self._table, place * _PLACE.size, *_FREE)

    def release_all(self, process_id: int) -> None:
        """Free the places of a process that has died."""
        with self._locked():
            for place, (owner, _) in enumerate(_PLACE.iter_unpack(self._table[:])):
                if owner == process_id:
                    _PLACE.pack_into(self._table, place * _PLACE.size, *_FREE)

    def count_by_process(self) -> dict[int, int]:
        """How many associations are open in each process that has any."""
        with self._locked():
            owners = [owner for owner, peer in _PLACE.iter_unpack(self._table[:]) if (owner, peer) != _FREE]
        return dict(Counter(owners))

    def count(self) -> int:
        """How many associations are open."""
        with self._locked():
            return sum(place != _FREE for place in _PLACE.iter_unpack(self._table[:]))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:  # threads of this process; the record lock is among processes
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN)


def _fingerprint(ae_title: str, host: str) -> int:
    digest = hashlib.sha256(f"{ae_title}\0{host}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True) or 1
