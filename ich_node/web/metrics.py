"""Metrics in the Prometheus text format, asked of the database and the disk when they are scraped.

Names and labels hold states, priorities and the names of PACS; never anything about a patient or a study.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ich_node import __version__
from ich_node.database import chores, drift, metrics
from ich_node.database.engine import Database, Session
from ich_node.errors import IchNodeError
from ich_node.findings import Priority, StudyState
from ich_node.receive.free_space import FreeSpace

logger = logging.getLogger(__name__)

_QUANTILES = (0.5, 0.95)
_PURGE = "purge"
_DRIFT_SECONDS = 600.0
"""What moves over weeks is looked at no more often."""
_WEIGHTS_DIGITS = 12


class NodeMetrics:
    """The metrics of an installation.

    Parameters
    ----------
    database
        Read only.
    free_space
        Of the spool; ``None``: nothing is said of the disk.
    destinations
        Names of the PACS, so that one that nothing waits for is shown with zero.
    """

    def __init__(
        self, database: Database, free_space: FreeSpace | None, destinations: Sequence[str] = ()
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_NodeCollector(database, free_space, destinations))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics as they are now, and their media type, which a scraper asks for by its Accept header."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type


class _NodeCollector(Collector):
    def __init__(self, database: Database, free_space: FreeSpace | None, destinations: Sequence[str]) -> None:
        self._database = database
        self._free_space = free_space
        self._destinations = destinations
        self._drifts: tuple[drift.ModelDrift, ...] = ()
        self._drifts_until = -math.inf

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        yield InfoMetricFamily("ich_node_build", "This version of ich_node.", {"version": __version__})
        if self._free_space is not None:
            yield from _disk(self._free_space)
        found: list[Metric] = []
        try:
            with self._database.reading() as session:
                found = list(self._of_database(session))
        except IchNodeError as error:
            logger.warning("metrics without the database: %s", type(error).__name__)
        yield _gauge("database_up", "Whether the database answers.", bool(found))
        yield from found

    def _of_database(self, session: Session) -> Iterator[Metric]:
        now = datetime.now(UTC)
        yield from _studies(session, now)
        yield from _spool(session)
        yield from _outbox(session, self._destinations, now)
        yield from _times(session)
        yield from _drift(self._drifts_now(session, now))
        last = chores.last_round(session, _PURGE)
        if last is not None and last.ended_at is not None:
            help_text = "When the schedule last looked for images to purge."
            yield _gauge("purge_last_end_timestamp_seconds", help_text, last.ended_at.timestamp())

    def _drifts_now(self, session: Session, now: datetime) -> tuple[drift.ModelDrift, ...]:
        if time.monotonic() >= self._drifts_until:
            self._drifts = tuple(drift.model_drifts(session, now=now))
            self._drifts_until = time.monotonic() + _DRIFT_SECONDS
        return self._drifts


def _disk(space: FreeSpace) -> Iterator[Metric]:
    yield _gauge("disk_low", "Whether new objects are refused (0xA700) for want of disk.", space.is_low())
    yield _gauge(
        "disk_min_free_bytes", "Less free space than this is low: disk.min_free_gib.", space.min_free_bytes
    )
    try:
        free = space.free_bytes()
    except OSError as error:
        logger.warning("the spool's file system does not answer: %s", error.strerror)
        return
    yield _gauge("disk_free_bytes", "Free space of the file system that holds the spool.", free)


def _studies(session: Session, now: datetime) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "ich_node_studies", "Studies by state and worklist priority.", labels=["state", "priority"]
    )
    counts = metrics.study_counts(session)
    for state in StudyState:
        for priority in Priority:
            family.add_metric([state, priority], counts.get((state, priority), 0))
    yield family
    unread = metrics.unread_images(session)
    age = 0.0 if unread.oldest_at is None else (now - unread.oldest_at).total_seconds()
    yield _gauge("unread_objects", "Images in studies that have not come to an end.", unread.objects)
    yield _gauge(
        "oldest_unread_study_seconds", "Since when the oldest study that has not come to an end is here.", age
    )


def _spool(session: Session) -> Iterator[Metric]:
    spool = metrics.spool_standing(session)
    yield CounterMetricFamily(
        "ich_node_objects_received", "Objects received, each once; conflicts apart.", value=spool.received
    )
    yield _gauge("spool_objects", "Objects in the spool.", spool.objects)
    yield _gauge("spool_bytes", "Bytes of the objects in the spool.", spool.size_bytes)
    yield _gauge(
        "conflicting_objects", "Objects in the spool whose UID another object had before.", spool.conflicts
    )
    yield _gauge("removals_pending", "Purged files that are still on the disk.", spool.removals)


def _outbox(session: Session, destinations: Sequence[str], now: datetime) -> Iterator[Metric]:
    objects = GaugeMetricFamily(
        "ich_node_outbox_objects",
        "Objects and notices on their way: pending are tried again, unconfirmed were taken, dead are given up.",
        labels=["destination", "state"],
    )
    oldest = GaugeMetricFamily(
        "ich_node_outbox_oldest_pending_seconds",
        "Since when the oldest that is pending waits for its destination.",
        labels=["destination"],
    )
    unconfirmed = GaugeMetricFamily(
        "ich_node_outbox_oldest_unconfirmed_seconds",
        "Since when a PACS has the oldest object of which it has not said yet that it keeps it.",
        labels=["destination"],
    )
    standing = {one.destination: one for one in metrics.outbox_standing(session)}
    for name in dict.fromkeys((*destinations, *standing)):
        one = standing.get(name)
        objects.add_metric([name, "pending"], one.pending if one else 0)
        objects.add_metric([name, "unconfirmed"], one.unconfirmed if one else 0)
        objects.add_metric([name, "dead"], one.dead if one else 0)
        age = (now - one.oldest_at).total_seconds() if one and one.oldest_at else 0.0
        oldest.add_metric([name], age)
        taken_at = one.oldest_unconfirmed_at if one else None
        unconfirmed.add_metric([name], 0.0 if taken_at is None else (now - taken_at).total_seconds())
    yield from (objects, oldest, unconfirmed)


def _times(session: Session) -> Iterator[Metric]:
    times = metrics.turnaround_times(session)
    for name, what, seconds in (
        ("receipt_to_reading_seconds", "result", times.to_reading_s),
        ("receipt_to_flag_seconds", "raised flag", times.to_flag_s),
    ):
        family = GaugeMetricFamily(
            f"ich_node_{name}",
            f"From the last image received to the {what}: quantiles of the last studies, at most 200.",
            labels=["quantile"],
        )
        for quantile in _QUANTILES if seconds else ():
            family.add_metric([str(quantile)], _quantile(seconds, quantile))
        yield family


def _drift(drifts: Iterable[drift.ModelDrift]) -> Iterator[Metric]:
    """Counts always; shares and indices only where `drift.MIN_READINGS` allow them."""
    model = ["model", "weights"]
    readings = _family("recent_readings", "First readings of series by period.", [*model, "period"])
    flagged = _family("flagged_share", "Share of the period's readings that was flagged.", [*model, "period"])
    unlike = _family(
        "unlike_training_share",
        "Share of the period's readings whose input is unlike the training data.",
        [*model, "period"],
    )
    psi = _family(
        "drift_psi",
        "Population stability index of the last 7 days against the 28 days before.",
        [*model, "quantity"],
    )
    chance = _family(
        "drift_psi_chance", "What the index exceeds by chance once in a thousand times.", [*model, "quantity"]
    )
    for one in drifts:
        who = [one.model_name, one.weights_sha256[:_WEIGHTS_DIGITS]]
        for name, period in (("last_7_days", one.recent), ("28_days_before", one.reference)):
            readings.add_metric([*who, name], period.readings)
            if period.flagged_share is not None:
                flagged.add_metric([*who, name], period.flagged_share)
            if period.unlike_share is not None:
                unlike.add_metric([*who, name], period.unlike_share)
        for quantity, stability in one.stability.items():
            psi.add_metric([*who, quantity], stability.psi)
            chance.add_metric([*who, quantity], stability.chance)
    yield from (readings, flagged, unlike, psi, chance)


def _family(name: str, help_text: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"ich_node_{name}", help_text, labels=labels)


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"ich_node_{name}", help_text, value=value)


def _quantile(values: Iterable[float], quantile: float) -> float:
    """By nearest rank: a time that was measured, not one in between."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]
