"""What may be purged, and what a purge leaves in the database.

A purge takes the files and the rows of images: a node that runs for years must not grow by them. What was found
stays: the study's row, its series with the number of images that they had, readings, deliveries and the audit. So
an object that is sent again is a new one, and a series of which only a part is here again is known not to be whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice

from sqlalchemy import ColumnElement, Select, delete, exists, func, insert, or_, select
from sqlalchemy.orm import Session

from ich_node.database.audit import record_change
from ich_node.database.outbox import DeliveryState
from ich_node.database.standing import lock_study
from ich_node.database.tables import (
    InstanceRow,
    OutboxRow,
    ReadingRow,
    RemovalRow,
    ResultObjectRow,
    SeriesRow,
    StudyRow,
)
from ich_node.database.worklist import delivered_at, delivered_before
from ich_node.errors import IchNodeError
from ich_node.findings import StudyState

_AT_ONCE = 1000
"""Values in one statement; both databases take more."""


class ImagesPurged(IchNodeError):
    """The study's images are no longer here."""


class Folder(StrEnum):
    """Where a stored file lies."""

    SPOOL = "SPOOL"
    RESULTS = "RESULTS"


class Obstacle(StrEnum):
    """Why a study is not purged."""

    NOT_HERE = "NOT_HERE"
    PURGED = "PURGED"
    UNDER_WAY = "UNDER_WAY"
    NOT_READ = "NOT_READ"
    NOT_DELIVERED = "NOT_DELIVERED"
    TOO_NEW = "TOO_NEW"
    ELSEWHERE = "ELSEWHERE"

    @property
    def words(self) -> str:
        """For a person."""
        return _WORDS[self]

    @property
    def may_be_forced(self) -> bool:
        """Whether an administrator may decide to purge it all the same."""
        return self not in (Obstacle.NOT_HERE, Obstacle.PURGED, Obstacle.UNDER_WAY)


_WORDS = {
    Obstacle.NOT_HERE: "no such study is here",
    Obstacle.PURGED: "it has no images here any more",
    Obstacle.UNDER_WAY: "its images have just arrived, wait to be read or are being read",
    Obstacle.NOT_READ: "it was not read",
    Obstacle.NOT_DELIVERED: "not every PACS has its results",
    Obstacle.TOO_NEW: "its results were delivered more recently",
    Obstacle.ELSEWHERE: "none of its files is in the spool of this host",
}


@dataclass(frozen=True, kw_only=True)
class Stock:
    """What a purge of a study would take, and what speaks against it."""

    study_instance_uid: str
    obstacles: tuple[Obstacle, ...]
    spool_files: tuple[str, ...] = ()
    """Of the images that were read; with those in conflict where these are to go too."""
    result_files: tuple[str, ...] = ()
    """Of result objects that every PACS has, and the likelihood maps of readings of which every PACS has all."""
    size_bytes: int = 0
    """Of the images."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A file that is to go."""

    id: int
    folder: Folder
    file_name: str
    modified_ns: int


def candidates(session: Session, *, before: datetime) -> list[str]:
    """Studies whose results were delivered before a time and that have images; the longest ago first."""
    return list(session.scalars(delivered_before(before).where(_has_images())))


def take_stock(
    session: Session,
    study_instance_uid: str,
    *,
    before: datetime | None,
    conflicts: bool,
    now: datetime,
    lock: bool = False,
) -> Stock:
    """Look at a study.

    Parameters
    ----------
    before
        Its results must have been delivered before; ``None``: at any time.
    conflicts
        Whether objects whose UID another object had are to go too. No worker has ever looked at them.
    lock
        Keep it as it is until the transaction ends.
    """
    study = lock_study(session, study_instance_uid) if lock else session.get(StudyRow, study_instance_uid)
    if study is None:
        return Stock(study_instance_uid=study_instance_uid, obstacles=(Obstacle.NOT_HERE,))
    rows = session.execute(
        _images(study_instance_uid, conflicts=conflicts).with_only_columns(
            InstanceRow.file_name, InstanceRow.size_bytes
        )
    ).all()
    return Stock(
        study_instance_uid=study_instance_uid,
        obstacles=tuple(_obstacles(session, study, before, now)) if rows else (Obstacle.PURGED,),
        spool_files=tuple(row.file_name for row in rows),
        result_files=tuple(_delivered_results(session, study_instance_uid)),
        size_bytes=sum(row.size_bytes for row in rows),
    )


def mark_purged(
    session: Session,
    stock: Stock,
    modified_ns: Mapping[tuple[Folder, str], int],
    *,
    conflicts: bool,
    actor: str,
    why: str,
    now: datetime,
) -> None:
    """Give up a study's files: from now on its images are not here, whenever the files go.

    Parameters
    ----------
    stock
        As `take_stock` gave it in this transaction, locked.
    modified_ns
        Of those of its files that are there.
    """
    study = session.get_one(StudyRow, stock.study_instance_uid)
    _count_images(session, stock.study_instance_uid)
    images = _images(stock.study_instance_uid, conflicts=conflicts).with_only_columns(InstanceRow.id)
    session.execute(delete(InstanceRow).where(InstanceRow.id.in_(images)))
    for reading in session.scalars(_readings_with_maps_to_go(stock.study_instance_uid)):
        reading.maps_file_name = None
    for row in session.scalars(_delivered_objects(stock.study_instance_uid)):
        row.purged_at = now
    study.purged_at = now
    _request_removals(session, modified_ns, now)
    record_change(session, study, at=now, actor=actor, action="purged", why=why)


def removals(session: Session, *, after: int = 0, limit: int = 2000) -> list[Removal]:
    """Files that are still to be removed, in the order of their ids."""
    rows = session.scalars(
        select(RemovalRow).where(RemovalRow.id > after).order_by(RemovalRow.id).limit(limit)
    )
    return [
        Removal(id=r.id, folder=Folder(r.folder), file_name=r.file_name, modified_ns=r.modified_ns)
        for r in rows
    ]


def count_removals(session: Session) -> int:
    """How many files are still to be removed."""
    return session.scalar(select(func.count()).select_from(RemovalRow)) or 0


def forget_removals(session: Session, done: Collection[Removal]) -> None:
    """Note that these files have gone for good."""
    ids = iter([removal.id for removal in done])
    while some := list(islice(ids, _AT_ONCE)):
        session.execute(delete(RemovalRow).where(RemovalRow.id.in_(some)))


def purged_studies(session: Session, study_instance_uids: Iterable[str]) -> dict[str, datetime]:
    """Those of the studies that cannot be read again because of their purge, and when that was."""
    found = {}
    for uid in study_instance_uids:
        study = session.get(StudyRow, uid)
        if study is not None and study.purged_at is not None and not can_be_read_again(session, study):
            found[uid] = study.purged_at
    return found


def can_be_read_again(session: Session, study: StudyRow, series_instance_uid: str | None = None) -> bool:
    """Whether a series of the study, or this one, has all images that it had when it was purged."""
    if study.purged_at is None:
        return True
    series = select(SeriesRow).where(SeriesRow.study_instance_uid == study.study_instance_uid)
    if series_instance_uid is not None:
        series = series.where(SeriesRow.series_instance_uid == series_instance_uid)
    return any(
        row.purged_instances <= present > 0
        for row in session.scalars(series)
        for present in (_present(session, row.series_instance_uid),)
    )


def _obstacles(
    session: Session, study: StudyRow, before: datetime | None, now: datetime
) -> Iterable[Obstacle]:
    if _is_under_way(session, study, now):
        yield Obstacle.UNDER_WAY
    is_read = study.state == StudyState.READ
    if not is_read:
        yield Obstacle.NOT_READ
    delivered = delivered_at(session, study.study_instance_uid)
    open_rows = exists(_results(study.study_instance_uid)).where(OutboxRow.state != DeliveryState.DELIVERED)
    if (is_read and delivered is None) or session.scalar(select(open_rows)):
        yield Obstacle.NOT_DELIVERED
    elif before is not None and delivered is not None and delivered > before:
        yield Obstacle.TOO_NEW


def _is_under_way(session: Session, study: StudyRow, now: datetime) -> bool:
    if study.state in (StudyState.RECEIVING, StudyState.QUEUED, StudyState.READING):
        return True
    if study.reprocess_requested_at is not None:
        return True
    if study.lease_until is not None and study.lease_until >= now:
        return True
    waiting = exists().where(
        SeriesRow.study_instance_uid == study.study_instance_uid,
        or_(SeriesRow.due_at.is_not(None), SeriesRow.revision != SeriesRow.handled_revision),
    )
    return bool(session.scalar(select(waiting)))


def _count_images(session: Session, study_instance_uid: str) -> None:
    for series in session.scalars(
        select(SeriesRow)
        .where(SeriesRow.study_instance_uid == study_instance_uid)
        .execution_options(populate_existing=True)
    ):
        present = _present(session, series.series_instance_uid)
        series.purged_instances = max(series.purged_instances, present)


def _request_removals(session: Session, modified_ns: Mapping[tuple[Folder, str], int], now: datetime) -> None:
    files = iter(modified_ns.items())
    while some := list(islice(files, _AT_ONCE)):
        for folder in Folder:
            names = [name for (where, name), _ in some if where == folder]
            session.execute(
                delete(RemovalRow).where(RemovalRow.folder == folder, RemovalRow.file_name.in_(names))
            )
        session.execute(
            insert(RemovalRow),
            [
                {"folder": folder, "file_name": name, "modified_ns": then_ns, "decided_at": now}
                for (folder, name), then_ns in some
            ],
        )


def _present(session: Session, series_instance_uid: str) -> int:
    return (
        session.scalar(
            select(func.count()).where(
                InstanceRow.series_instance_uid == series_instance_uid, InstanceRow.conflict.is_(False)
            )
        )
        or 0
    )


def _images(study_instance_uid: str, *, conflicts: bool) -> Select[InstanceRow]:
    query = (
        select(InstanceRow)
        .join(SeriesRow, SeriesRow.series_instance_uid == InstanceRow.series_instance_uid)
        .where(SeriesRow.study_instance_uid == study_instance_uid)
    )
    return query if conflicts else query.where(InstanceRow.conflict.is_(False))


def _has_images() -> ColumnElement[bool]:
    return exists().where(
        SeriesRow.study_instance_uid == StudyRow.study_instance_uid,
        InstanceRow.series_instance_uid == SeriesRow.series_instance_uid,
        InstanceRow.conflict.is_(False),
    )


def _results(study_instance_uid: str) -> Select[OutboxRow]:
    return (
        select(OutboxRow)
        .join(ResultObjectRow, ResultObjectRow.sop_instance_uid == OutboxRow.sop_instance_uid)
        .where(ResultObjectRow.study_instance_uid == study_instance_uid)
    )


def _delivered_objects(study_instance_uid: str) -> Select[ResultObjectRow]:
    deliveries = exists().where(OutboxRow.sop_instance_uid == ResultObjectRow.sop_instance_uid)
    return select(ResultObjectRow).where(
        ResultObjectRow.study_instance_uid == study_instance_uid,
        ResultObjectRow.purged_at.is_(None),
        deliveries,
        ~deliveries.where(OutboxRow.state != DeliveryState.DELIVERED),
    )


def _readings_with_maps_to_go(study_instance_uid: str) -> Select[ReadingRow]:
    """Readings with a file of maps and with objects that were to be sent, of which every PACS has all."""
    sent = exists().where(
        ResultObjectRow.reading_id == ReadingRow.id,
        OutboxRow.sop_instance_uid == ResultObjectRow.sop_instance_uid,
    )
    return select(ReadingRow).where(
        ReadingRow.study_instance_uid == study_instance_uid,
        ReadingRow.maps_file_name.is_not(None),
        sent,
        ~sent.where(OutboxRow.state != DeliveryState.DELIVERED),
    )


def _delivered_results(session: Session, study_instance_uid: str) -> list[str]:
    objects = [row.file_name for row in session.scalars(_delivered_objects(study_instance_uid))]
    readings = session.scalars(_readings_with_maps_to_go(study_instance_uid))
    return [*objects, *(row.maps_file_name for row in readings if row.maps_file_name)]
