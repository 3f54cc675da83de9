"""Retention: images go when they are read and every PACS has what was found; by schedule or by command.

For each study one transaction decides under the study's lock and is durable before any file is touched; then the
files go. A process that is killed in between leaves removals behind, which the next run finishes. A file that was
sent anew meanwhile stays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ich_node.database import chores, receipt, retention
from ich_node.database.engine import Database, Session
from ich_node.database.retention import Folder, Obstacle, Removal, Stock
from ich_node.errors import IchNodeError, StudyRejected
from ich_node.lease import showing_life, work_owner
from ich_node.node import Node
from ich_node.receive.free_space import FreeSpace, in_gib
from ich_node.receive.received import log_without_values, read_received
from ich_node.receive.removal import modified_ns, remove_files
from ich_node.receive.spool import Spool
from ich_node.settings import Settings

logger = logging.getLogger(__name__)

CHORE = "purge"
NO_DESTINATION = "no [[pacs]] is set, so nothing is ever delivered and nothing is purged unless it is forced"
_LEASE = timedelta(seconds=60)
_EVERY_WHEN_LOW = timedelta(minutes=10)
_LOOK_SECONDS = 30.0
_STOP_SECONDS = 10.0
_File = tuple[Folder, str]
_ROW_FOLLOWS_NS = 120 * 10**9
"""An object's row follows its file, at the latest so long after. A study that is just being sent again must not go in
between: the row would come back without the file."""
_STUDIES_AT_ONCE = 20
"""Studies that are decided on before their files go: folders are synchronized once for all of them."""


@dataclass(frozen=True, kw_only=True)
class PurgedStudy:
    """What became of one study."""

    study_instance_uid: str
    obstacles: tuple[Obstacle, ...]
    """What spoke against it, also where it was overruled."""
    purged: bool
    """Also in a dry run: that it would be."""
    objects: int
    size_bytes: int
    result_objects: int


@dataclass(frozen=True, kw_only=True)
class PurgeReport:
    """What one purge did, or would do."""

    studies: tuple[PurgedStudy, ...]
    files_left: int = 0
    """Files that could not be removed yet; each run tries again."""

    @property
    def purged(self) -> tuple[PurgedStudy, ...]:
        """Those whose images have gone."""
        return tuple(study for study in self.studies if study.purged)

    @property
    def summary(self) -> str:
        """One line for a log or a person."""
        objects = sum(study.objects for study in self.purged)
        size = in_gib(sum(study.size_bytes for study in self.purged))
        left = f"; {self.files_left} files could not be removed yet" if self.files_left else ""
        return f"{len(self.purged)} studies, {objects} objects, {size}{left}"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On which terms studies are purged."""

    before: datetime | None
    """Only what was delivered before; ``None``: at any time."""
    actor: str
    """Who asks, for the audit."""
    force: bool = False
    """Overrule the obstacles that a person may overrule; objects in conflict go too."""
    dry_run: bool = False


def purge_delivered(node: Node, terms: Terms, *, stop: threading.Event | None = None) -> PurgeReport:
    """Purge every study that nothing speaks against, those delivered longest ago first."""
    if terms.before is None or not node.settings.pacs:
        return PurgeReport(studies=())
    with node.database.reading() as session:
        found = retention.candidates(session, before=terms.before)
    return purge_studies(node, found, terms, stop=stop)


def purge_studies(
    node: Node, study_instance_uids: Sequence[str], terms: Terms, *, stop: threading.Event | None = None
) -> PurgeReport:
    """Purge these studies, except those that something speaks against.

    Parameters
    ----------
    stop
        Ends it after the study that is at hand.
    """
    studies: list[PurgedStudy] = []
    left = 0
    for start in range(0, len(study_instance_uids), _STUDIES_AT_ONCE):
        for uid in study_instance_uids[start : start + _STUDIES_AT_ONCE]:
            if stop is None or not stop.is_set():
                studies.append(_decide(node, uid, terms))
        if not terms.dry_run:
            left = finish_removals(node)
    report = PurgeReport(studies=tuple(studies), files_left=left)
    if report.purged and not terms.dry_run:
        logger.info("%s purged %s", terms.actor, report.summary)
    return report


def finish_removals(node: Node) -> int:
    """Remove what was given up, also by a run that was killed; how many files could not be removed."""
    refused_in_all, after = 0, 0
    while True:
        with node.database.reading() as session:
            some = retention.removals(session, after=after)
        if not some:
            return refused_in_all
        after = some[-1].id
        refused = _remove(node.settings, some)
        _record_returned(node, some, refused)
        with node.database.writing() as session:
            retention.forget_removals(session, [r for r in some if r.id not in refused])
        refused_in_all += len(refused)


def purge_when_due(node: Node, *, stop: threading.Event) -> PurgeReport | None:
    """Do what the settings' schedule asks for, if it is time and no other process is at it.

    Low disk makes it time sooner. It purges nothing more for that: only what retention allows.
    """
    every, owner = _interval(node.settings), work_owner()
    with node.database.reading() as session:
        if not chores.is_due(session, CHORE, every=every, now=_now()):
            return None
    with node.database.writing() as session:
        if not chores.take_turn(session, CHORE, owner=owner, every=every, lease=_LEASE, now=_now()):
            return None

    def show_life() -> bool:
        with node.database.writing() as session:
            return chores.show_life(session, CHORE, owner=owner, lease=_LEASE, now=_now())

    with showing_life(show_life, _LEASE):
        left = finish_removals(node)
        days = node.settings.disk.retention_days
        terms = Terms(before=_now() - timedelta(days=days) if days > 0 else None, actor="node")
        report = purge_delivered(node, terms, stop=stop)
    with node.database.writing() as session:
        note = report.summary if report.studies or not left else f"{left} files could not be removed yet"
        chores.end_turn(session, CHORE, owner=owner, now=_now(), note=note)
    return report


class PurgeSchedule:
    """Purges now and then in a thread of its own, so that whoever calls `tick` is never held up."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._look_again_at = 0.0

    def tick(self) -> None:
        """Begin to purge if it may be time; returns at once."""
        if time.monotonic() < self._look_again_at or self._stop.is_set():
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._look_again_at = time.monotonic() + _LOOK_SECONDS
        self._thread = threading.Thread(target=self._run, name="purge", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the study that is at hand; what remains is for the next run."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        database: Database | None = None
        try:
            database = Database(self._settings.database_url)
            purge_when_due(Node(settings=self._settings, database=database), stop=self._stop)
        except IchNodeError as error:
            logger.warning("purging again later: %s", error)
        except Exception:  # this thread's boundary
            logger.exception("purging again later")
        finally:
            if database is not None:
                database.dispose()


def _decide(node: Node, study_instance_uid: str, terms: Terms) -> PurgedStudy:
    with node.database.reading() as session:
        stock = _take_stock(session, study_instance_uid, terms)
    # Before the study is locked: an old disk takes its time to find thousands of files.
    there = _files_there(node.settings, _named(stock))
    looked_for = {*_named(stock)}
    if not terms.dry_run and _goes(_obstacles(stock, there), terms):
        with node.database.writing(durable=True) as session:
            stock = _take_stock(session, study_instance_uid, terms, lock=True)
            if _goes(obstacles := _obstacles(stock, there), terms):
                named = {*_named(stock)}
                there |= _files_there(node.settings, named - looked_for)
                retention.mark_purged(
                    session,
                    stock,
                    {file: there[file] for file in sorted(named & there.keys())},
                    conflicts=terms.force,
                    actor=terms.actor,
                    why=_why(stock, obstacles),
                    now=_now(),
                )
    obstacles = _obstacles(stock, there)
    return PurgedStudy(
        study_instance_uid=study_instance_uid,
        obstacles=obstacles,
        purged=_goes(obstacles, terms),
        objects=len(stock.spool_files),
        size_bytes=stock.size_bytes,
        result_objects=len(stock.result_files),
    )


def _take_stock(session: Session, study_instance_uid: str, terms: Terms, *, lock: bool = False) -> Stock:
    return retention.take_stock(
        session, study_instance_uid, before=terms.before, conflicts=terms.force, now=_now(), lock=lock
    )


def _obstacles(stock: Stock, there: Mapping[_File, int]) -> tuple[Obstacle, ...]:
    modified = [then_ns for (folder, _), then_ns in there.items() if folder is Folder.SPOOL]
    if stock.spool_files and not modified:
        return (*stock.obstacles, Obstacle.ELSEWHERE)
    recent = any(abs(time.time_ns() - then_ns) < _ROW_FOLLOWS_NS for then_ns in modified)
    if recent and stock.spool_files and Obstacle.UNDER_WAY not in stock.obstacles:
        return (Obstacle.UNDER_WAY, *stock.obstacles)
    return stock.obstacles


def _goes(obstacles: Iterable[Obstacle], terms: Terms) -> bool:
    return all(terms.force and obstacle.may_be_forced for obstacle in obstacles)


def _named(stock: Stock) -> Iterator[_File]:
    yield from ((Folder.SPOOL, name) for name in stock.spool_files)
    yield from ((Folder.RESULTS, name) for name in stock.result_files)


def _files_there(settings: Settings, files: Iterable[_File]) -> dict[_File, int]:
    found = ((file, modified_ns(_root(settings, file[0]), file[1])) for file in files)
    return {file: then_ns for file, then_ns in found if then_ns is not None}


def _remove(settings: Settings, removals: Iterable[Removal]) -> set[int]:
    removals = list(removals)
    refused = set()
    for folder in Folder:
        mine = {r.file_name: r for r in removals if r.folder is folder}
        errors = remove_files(_root(settings, folder), {name: r.modified_ns for name, r in mine.items()})
        refused |= {mine[name].id for name in errors}
        if errors:
            name, error = next(iter(errors.items()))
            logger.error("%d files cannot be removed; %s: %s", len(errors), name, error.strerror)
    return refused


def _record_returned(node: Node, removals: Iterable[Removal], refused: Collection[int]) -> None:
    """Make sure that files that took the place of purged ones have their rows: nobody else looks for them now."""
    root, wait = node.settings.spool_dir, timedelta(seconds=node.settings.receiver.quiet_seconds)
    for removal in removals:
        if removal.folder is not Folder.SPOOL or removal.id in refused:
            continue
        if modified_ns(root, removal.file_name) is None:
            continue
        try:
            received = read_received(Spool(root), root / removal.file_name)
        except (StudyRejected, OSError) as error:
            log_without_values(logger, "an object that came again during its purge cannot be read", error)
            continue
        with node.database.writing() as session:
            receipt.record_instances(session, [received], due_at=_now() + wait)


def _why(stock: Stock, obstacles: Sequence[Obstacle]) -> str:
    taken = f"{len(stock.spool_files)} images, {in_gib(stock.size_bytes)}, {len(stock.result_files)} results"
    return "; ".join([taken, *(f"forced although {obstacle.words}" for obstacle in obstacles)])


def _interval(settings: Settings) -> timedelta:
    every = timedelta(hours=settings.disk.purge_every_hours)
    space = spool_space(settings)
    try:
        low = space.free_bytes() < space.min_free_bytes
    except OSError:
        low = False
    return min(every, _EVERY_WHEN_LOW) if low else every


def spool_space(settings: Settings) -> FreeSpace:
    """The free space where received objects go, with the mark that the settings name."""
    return FreeSpace(settings.spool_dir, int(settings.disk.min_free_gib * 2**30))


def _root(settings: Settings, folder: Folder) -> Path:
    return settings.spool_dir if folder is Folder.SPOOL else settings.results_dir


def _now() -> datetime:
    return datetime.now(UTC)
