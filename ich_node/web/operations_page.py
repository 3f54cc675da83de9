"""The operations page: how much comes in, how fast it is flagged, what waits, what failed, in words and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ich_node import __version__
from ich_node.database import metrics, operations
from ich_node.database.drift import RECENT, REFERENCE, SUSPICION, ModelDrift
from ich_node.database.engine import Session
from ich_node.database.operations import Failure, FlagTime, ModelInUse, Waiting, WorkerLife
from ich_node.errors import REASON_WORDS
from ich_node.receive.free_space import FreeSpace, in_gib
from ich_node.web import display
from ich_node.web.wording import STATE, words_of

HOURS = 24
WIDTH, HEIGHT = 480.0, 96.0
"""Of the chart, in SVG user units."""
PERIODS = (("1 h", timedelta(hours=1)), ("24 h", timedelta(hours=24)), ("7 d", timedelta(days=7)))
_WORKERS_OF = timedelta(hours=24)
_SHARES = (0.5, 0.95, 0.99)
_WEIGHTS_DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class HourBar:
    """One hour of the chart."""

    x: float
    y: float
    width: float
    height: float
    read_y: float
    read_height: float
    hour: str
    received: int
    read: int


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Studies by hour, the hour that runs at the right."""

    bars: tuple[HourBar, ...]
    received: int
    read: int
    peak: int
    first_hour: str
    last_hour: str
    summary: str
    """The same in words."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """From the last image to the flag, of the studies flagged in one period."""

    period: str
    flagged: int
    percentiles: tuple[str, ...]
    worst: str
    worst_study: str
    is_cut: bool
    """Whether only the last `operations.MOST_TIMES` of the period count."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table, with the study that it names."""

    name: str
    count: str
    since: str
    study_instance_uid: str
    address: str
    """Of the worklist with just these studies; empty where it has no such filter."""
    needs_a_person: bool


@dataclass(frozen=True, kw_only=True)
class DestinationLine:
    """What waits for one destination."""

    name: str
    pending: int
    unconfirmed: int
    dead: int
    since: str


@dataclass(frozen=True, kw_only=True)
class DiskState:
    """The file system that holds the spool."""

    words: str
    is_low: bool


@dataclass(frozen=True, kw_only=True)
class ModelLine:
    """A model that has read lately."""

    name: str
    version: str
    weights: str
    readings: int
    last: str


@dataclass(frozen=True, kw_only=True)
class OperationsPage:
    """All of the page."""

    version: str
    revision: str
    database: str
    bundles: tuple[str, ...]
    throughput: Throughput
    latencies: tuple[Latency, ...]
    waiting: tuple[Line, ...]
    failures: tuple[Line, ...]
    destinations: tuple[DestinationLine, ...]
    disk: DiskState | None
    workers: tuple[Line, ...]
    models: tuple[ModelLine, ...]
    drift: tuple[str, ...] | None
    """One line for each model that has drifted; ``None``: not looked at yet."""


def operations_page(
    session: Session,
    *,
    now: datetime,
    revision: str,
    bundles: Sequence[str],
    destinations: Sequence[str],
    free_space: FreeSpace | None,
    drifts: Sequence[ModelDrift] | None,
) -> OperationsPage:
    """Ask everything of the database and put it into words."""
    hours = operations.full_hours(now, HOURS)
    times = operations.flag_times(session, now - PERIODS[-1][1])
    return OperationsPage(
        version=__version__,
        revision=revision,
        database=session.get_bind().dialect.name,
        bundles=tuple(bundles),
        throughput=throughput(
            hours, operations.received_since(session, hours[0]), operations.read_since(session, hours[0])
        ),
        latencies=tuple(latency(name, times, now - period) for name, period in PERIODS),
        waiting=tuple(_waiting_line(one, now) for one in operations.waiting(session)),
        failures=tuple(_failure_line(one, now) for one in operations.failures(session, now - PERIODS[-1][1])),
        destinations=tuple(_destination_lines(metrics.outbox_standing(session), destinations, now)),
        disk=None if free_space is None else disk_state(free_space),
        workers=tuple(
            _worker_line(one, now) for one in operations.workers(session, now=now, since=now - _WORKERS_OF)
        ),
        models=tuple(_model_line(one, now) for one in operations.models_in_use(session)),
        drift=None if drifts is None else drift_lines(drifts),
    )


def throughput(
    hours: Sequence[datetime], received: Iterable[datetime], read: Iterable[datetime]
) -> Throughput:
    """Chart the times by the hours that they are in."""
    came, done = _by_hour(received), _by_hour(read)
    peak = max(1, *(came[hour] for hour in hours), *(done[hour] for hour in hours))
    bars = tuple(
        _bar(index, hour, came[hour], done[hour], peak, len(hours)) for index, hour in enumerate(hours)
    )
    total, finished = sum(bar.received for bar in bars), sum(bar.read for bar in bars)
    busiest = max(bars, key=lambda bar: bar.received)
    summary = f"{total} studies received and {finished} read in the last {len(hours)} hours"
    if total:
        summary += f"; most in the hour from {busiest.hour}: {busiest.received}"
    return Throughput(
        bars=bars,
        received=total,
        read=finished,
        peak=peak,
        first_hour=bars[0].hour,
        last_hour=bars[-1].hour,
        summary=f"{summary}.",
    )


def latency(period: str, times: Sequence[FlagTime], since: datetime) -> Latency:
    """Percentiles of the studies flagged since then."""
    within = [one for one in times if one.flagged_at >= since]
    seconds = [one.seconds for one in within]
    worst = max(within, key=lambda one: one.seconds, default=None)
    return Latency(
        period=period,
        flagged=len(within),
        percentiles=tuple(_seconds(operations.percentile(seconds, share)) for share in _SHARES),
        worst=_seconds(worst.seconds if worst else None),
        worst_study=worst.study_instance_uid if worst else "",
        is_cut=len(within) >= operations.MOST_TIMES,
    )


def disk_state(space: FreeSpace) -> DiskState:
    """Free space, and the mark below which objects are refused."""
    is_low, mark = space.is_low(), space.min_free_bytes
    try:
        free = space.free_bytes()
    except OSError:
        return DiskState(words="the file system does not answer", is_low=is_low)
    words = f"{in_gib(free)} free; " + (
        f"new objects are refused below {in_gib(mark)}" if mark else "no low-water mark is set"
    )
    return DiskState(words=words, is_low=is_low)


def drift_lines(drifts: Sequence[ModelDrift]) -> tuple[str, ...]:
    """What has moved, for each model of which something has."""
    lines = []
    for one in drifts:
        name = f"{display.plain_text(one.model_name)} ({one.weights_sha256[:_WEIGHTS_DIGITS]})"
        if one.drifted:
            moved = ", ".join(
                f"{'suspicion' if quantity == SUSPICION else words_of(quantity)} "
                f"(PSI {one.stability[quantity].psi:.2f})"
                for quantity in one.drifted
            )
            lines.append(
                f"{name}: the last {RECENT.days} days differ from the {REFERENCE.days} before in {moved}."
            )
        if one.often_unlike:
            share = display.percent(one.recent.unlike_share)
            lines.append(
                f"{name}: {share} of the last {RECENT.days} days' inputs are unlike its training data."
            )
    return tuple(lines)


def _by_hour(moments: Iterable[datetime]) -> Counter[datetime]:
    return Counter(moment.replace(minute=0, second=0, microsecond=0) for moment in moments)


def _bar(index: int, hour: datetime, received: int, read: int, peak: int, bars: int) -> HourBar:
    step = WIDTH / bars
    tall, done = HEIGHT * received / peak, HEIGHT * read / peak
    return HourBar(
        x=round(index * step + 1, 2),
        y=round(HEIGHT - tall, 2),
        width=round(step - 2, 2),
        height=round(tall, 2),
        read_y=round(HEIGHT - done, 2),
        read_height=round(done, 2),
        hour=hour.astimezone().strftime("%H:%M"),
        received=received,
        read=read,
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 1:
        return f"{seconds} s"
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _waiting_line(one: Waiting, now: datetime) -> Line:
    return Line(
        name=STATE[one.state],
        count=str(one.studies),
        since=display.age(one.oldest_at, now=now),
        study_instance_uid=one.oldest,
        address=f"/?state={one.state}",
        needs_a_person=False,
    )


def _failure_line(one: Failure, now: datetime) -> Line:
    reason = REASON_WORDS.get(one.reason, words_of(one.reason))
    return Line(
        name=f"{STATE[one.state]}: {reason or 'no reason'}",
        count=str(one.studies),
        since=display.age(one.newest_at, now=now),
        study_instance_uid=one.newest,
        address=f"/?state={one.state}&within=7d",
        needs_a_person=one.state == "FAILED",
    )


def _destination_lines(
    standing: Sequence[metrics.OutboxStanding], names: Sequence[str], now: datetime
) -> Iterable[DestinationLine]:
    found = {one.destination: one for one in standing}
    for name in dict.fromkeys((*names, *found)):
        one = found.get(name)
        yield DestinationLine(
            name=display.plain_text(name),
            pending=one.pending if one else 0,
            unconfirmed=one.unconfirmed if one else 0,
            dead=one.dead if one else 0,
            since=display.age(one.oldest_at, now=now) if one else "",
        )


def _worker_line(one: WorkerLife, now: datetime) -> Line:
    return Line(
        name=display.plain_text(one.owner),
        count="reading" if one.is_reading else words_of(display.plain_text(one.action)),
        since=display.age(one.at, now=now),
        study_instance_uid=one.study_instance_uid,
        address="",
        needs_a_person=False,
    )


def _model_line(one: ModelInUse, now: datetime) -> ModelLine:
    return ModelLine(
        name=display.plain_text(one.model_name),
        version=display.plain_text(one.model_version),
        weights=one.weights_sha256[:_WEIGHTS_DIGITS],
        readings=one.readings,
        last=display.age(one.last_read_at, now=now),
    )
