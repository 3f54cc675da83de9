"""How many bytes of each study are here, and which studies hold more than they may."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ich_node.database.tables import InstanceRow, SeriesRow, StudyRow

_REMEMBERED = 1000
_TRUSTED_SECONDS = 60.0
"""A sum is asked for anew after this: other processes receive too, and purge."""


def study_bytes(session: Session, study_instance_uid: str) -> int:
    """Bytes of the received objects of a study, those kept as conflicts among them."""
    rows = (
        select(func.sum(InstanceRow.size_bytes))
        .join(SeriesRow, SeriesRow.series_instance_uid == InstanceRow.series_instance_uid)
        .where(SeriesRow.study_instance_uid == study_instance_uid)
    )
    return int(session.scalar(rows) or 0)


def studies_over(session: Session, limit_bytes: int, *, since: datetime) -> set[str]:
    """Studies that hold more than this, of those that have had objects since then."""
    rows = (
        select(SeriesRow.study_instance_uid)
        .join(InstanceRow, SeriesRow.series_instance_uid == InstanceRow.series_instance_uid)
        .join(StudyRow, StudyRow.study_instance_uid == SeriesRow.study_instance_uid)
        .where(StudyRow.last_received_at >= since)
        .group_by(SeriesRow.study_instance_uid)
        .having(func.sum(InstanceRow.size_bytes) > limit_bytes)
    )
    return set(session.scalars(rows))


@dataclass
class _Known:
    size_bytes: int
    asked_at_s: float


class StudySizes:
    """Counts bytes per study as they come, and asks the database only now and then. Not for several threads.

    Parameters
    ----------
    limit_bytes
        A study that holds more is full.
    clock
        Gives seconds and never goes back.
    """

    def __init__(self, limit_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self.full: frozenset[str] = frozenset()
        """Study Instance UIDs; replaced as a whole, so any thread may look."""

    def ask(self, session: Session, *, since: datetime) -> None:
        """Ask which studies are full, as at a start."""
        self.full |= studies_over(session, self._limit_bytes, since=since)

    def ask_again(self, session: Session) -> None:
        """Ask whether the full ones still are: a purge makes room."""
        self.full = frozenset(uid for uid in self.full if study_bytes(session, uid) > self._limit_bytes)

    def add(self, session: Session, study_instance_uid: str, size_bytes: int) -> bool:
        """Count what the session has just recorded; whether that has made the study full."""
        known = self._known.get(study_instance_uid)
        now_s = self._clock()
        if known is None or now_s - known.asked_at_s > _TRUSTED_SECONDS:
            known = self._ask_one(session, study_instance_uid, now_s)
        else:
            known.size_bytes += size_bytes
            if known.size_bytes > self._limit_bytes and study_instance_uid not in self.full:
                known = self._ask_one(session, study_instance_uid, now_s)
        if known.size_bytes <= self._limit_bytes or study_instance_uid in self.full:
            return False
        self.full |= {study_instance_uid}
        return True

    def _ask_one(self, session: Session, study_instance_uid: str, now_s: float) -> _Known:
        known = _Known(size_bytes=study_bytes(session, study_instance_uid), asked_at_s=now_s)
        self._known[study_instance_uid] = known
        self._known.move_to_end(study_instance_uid)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return known
