"""When the series that arrive are due: known from who brings them, and from whether they look whole."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from ich_node.database import receipt
from ich_node.database.engine import Database, Session
from ich_node.database.receipt import Receipt
from ich_node.database.standing import lock_study
from ich_node.errors import IchNodeError
from ich_node.receive.completeness import OpenSeries, is_geometrically_complete
from ich_node.receive.received import AssociationSummary, ReceivedInstance, log_without_values
from ich_node.settings import ReceiverSettings

logger = logging.getLogger(__name__)


class DueSeries:
    """Says when a worker may look at which series. Several threads may use one.

    A series is due ``stalled_seconds`` after its last new object. When the last of the associations that
    bring it has ended, it is due sooner: after ``settle_seconds`` if that was released and the series is
    gapless, else after ``quiet_seconds``.

    Parameters
    ----------
    waits
        The settings that are named above.
    database
        Where the series' rows are.
    rows_missing
        Whether objects have arrived that have no row yet, so that no series can be called whole.
    """

    def __init__(
        self, waits: ReceiverSettings, database: Database, *, rows_missing: Callable[[], bool]
    ) -> None:
        self._settle = timedelta(seconds=waits.settle_seconds)
        self._quiet = timedelta(seconds=waits.quiet_seconds)
        self._stalled = timedelta(seconds=waits.stalled_seconds)
        self._database = database
        self._rows_missing = rows_missing
        self._noting = threading.Lock()  # guards the next two
        self._open = OpenSeries(silence_s=waits.stalled_seconds)
        self._ended: dict[str, bool] = {}  # series that nobody brings any more; whether the last one released

    def begin(self, received: Sequence[ReceivedInstance]) -> set[str]:
        """Note who brings what; gives the series that an association has begun to bring with these objects."""
        now_s = time.monotonic()
        pairs = {(one.association_id, one.instance.series_instance_uid) for one in received}
        with self._noting:
            return {
                series_instance_uid
                for association_id, series_instance_uid in pairs
                if association_id and self._open.bring(association_id, series_instance_uid, now_s=now_s)
            }

    def wait_for_next(self, received: Sequence[ReceivedInstance], *, from_spool: bool = False) -> timedelta:
        """How long their series wait for the next object."""
        if not from_spool:
            return self._stalled
        series = {one.instance.series_instance_uid for one in received}
        with self._noting:
            now_s = time.monotonic()
            still_open = any(self._open.is_open(uid, now_s=now_s) for uid in series)
        return self._stalled if still_open else self._quiet

    def hold(
        self,
        session: Session,
        begun: set[str],
        received: Sequence[ReceivedInstance],
        receipts: Sequence[Receipt],
    ) -> None:
        """Do not read a series in the middle that is being sent again, even if nothing of it is new so far.

        Counted from its last new object, so that a sender that starts over for ever does not hold it for ever.
        In the transaction that has recorded the objects.
        """
        series = [one.instance.series_instance_uid for one in received]
        with_news = {uid for uid, what in zip(series, receipts, strict=True) if what is Receipt.NEW}
        for series_instance_uid in sorted(begun.intersection(series) - with_news):
            arrived = receipt.last_arrival(session, series_instance_uid)
            if arrived is not None:
                receipt.put_off(session, series_instance_uid, arrived + self._stalled)

    def end(self, summary: AssociationSummary) -> None:
        """Note the end of an association; `decide` is due."""
        with self._noting:
            ended = self._open.end(
                summary.association_id, summary.series_instance_uids, now_s=time.monotonic()
            )
            self._ended.update(dict.fromkeys(ended, summary.released))

    def decide(self) -> None:
        """Say when the series that nobody brings any more are due; raises nothing.

        Without an answer of the database they stay due ``stalled_seconds`` after their last object, and the
        next call decides.
        """
        with self._noting:
            ended, self._ended = self._ended, {}
        if not ended:
            return
        try:
            with self._database.reading() as session:
                waiting = receipt.waiting_series(session, ended)
        except IchNodeError as error:
            self._decide_later(ended, error)
            return
        for study_instance_uid in dict.fromkeys(waiting.values()):
            released = {uid: ended[uid] for uid in waiting if waiting[uid] == study_instance_uid}
            try:
                self._decide(study_instance_uid, released)
            except IchNodeError as error:
                self._decide_later(released, error)
            except Exception as error:  # one odd series must not keep the others back; it stays due as it is
                log_without_values(logger, "the end of an association has no effect", error)

    def forget_silent(self) -> None:
        """Forget associations that have brought nothing for long and whose end is not heard of."""
        with self._noting:
            self._open.forget_silent(now_s=time.monotonic())

    def _decide_later(self, ended: dict[str, bool], error: IchNodeError) -> None:
        with self._noting:
            self._ended = {**ended, **self._ended}
        logger.warning("the end of an association is dealt with later: %s", error)

    def _decide(self, study_instance_uid: str, released: dict[str, bool]) -> None:
        with self._database.writing() as session:
            lock_study(session, study_instance_uid)
            for series_instance_uid, was_released in released.items():
                with self._noting:
                    if self._open.is_open(series_instance_uid, now_s=time.monotonic()):
                        continue  # another association has begun to bring it; its end decides
                wait = (
                    self._settle
                    if was_released and self._is_whole(session, series_instance_uid)
                    else self._quiet
                )
                receipt.set_due(
                    session, series_instance_uid, self._due_at(session, series_instance_uid, wait)
                )

    def _due_at(self, session: Session, series_instance_uid: str, wait: timedelta) -> datetime:
        # Counted from its last new object at the most: a sender that starts over for ever, because one object
        # is refused each time, must not keep the others from being read.
        now = datetime.now(UTC)
        arrived = receipt.last_arrival(session, series_instance_uid) or now
        return min(now + wait, arrived + max(self._stalled, self._quiet))

    def _is_whole(self, session: Session, series_instance_uid: str) -> bool:
        if self._rows_missing():
            return False
        return is_geometrically_complete(receipt.series_geometry(session, series_instance_uid))
