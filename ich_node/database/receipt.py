"""Rows about received images. All of them can be rebuilt from the spool."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple, cast

from sqlalchemy import Executable, Table, bindparam, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ich_node.database.audit import record_change
from ich_node.database.retention import Folder
from ich_node.database.standing import lock_study, never_negative, set_state
from ich_node.database.tables import InstanceRow, RemovalRow, SeriesRow, StudyRow
from ich_node.database.workitem_events import study_is_new
from ich_node.errors import RejectionReason
from ich_node.findings import Priority, StudyState
from ich_node.receive.received import ReceivedInstance
from ich_node.study import Instance, StudyHeader

_STUDY, _SERIES, _INSTANCE = (cast(Table, row.__table__) for row in (StudyRow, SeriesRow, InstanceRow))
_MORE_OBJECTS = (
    update(_SERIES)
    .where(_SERIES.c.series_instance_uid == bindparam("uid"))
    .values(revision=_SERIES.c.revision + bindparam("count"), due_at=bindparam("due"))
)


_ASKED_AT_ONCE = 1000
"""Databases bound the number of values in one statement."""


class Receipt(StrEnum):
    """What an arriving object was."""

    NEW = "NEW"
    DUPLICATE = "DUPLICATE"
    """The same object again; nothing changed."""
    CONFLICT = "CONFLICT"
    """Other bytes under a known SOP Instance UID, or another study's image under a known Series Instance UID;
    kept, shown, not read."""


class SlicePlace(NamedTuple):
    """Where a received image stands in its series, as `ich_node.receive.completeness` asks for it."""

    instance_number: int | None
    number_of_frames: int
    image_position_patient_mm: Sequence[float] | None
    image_orientation_patient: Sequence[float] | None


def record_instances(
    session: Session, batch: Sequence[ReceivedInstance], *, due_at: datetime
) -> list[Receipt]:
    """Record objects of one study that are safe in the spool, with few statements however many they are.

    Two transactions that lock several studies in different orders wait for each other, and PostgreSQL ends
    one of them: therefore one study, and rows in the order of their UIDs.

    Parameters
    ----------
    batch
        In the order of arrival. The source of the first names the study's modality.
    due_at
        When a worker may look at their series if nothing else arrives.

    Returns
    -------
    list of Receipt
        What each of them was.

    Raises
    ------
    ValueError
        They are not of one study.
    """
    uids = {r.instance.study_instance_uid for r in batch} | {r.study.study_instance_uid for r in batch}
    if len(uids) != 1:
        raise ValueError("instances and headers are of different studies")
    study = _lock_or_add_study(session, batch[0])
    mine = _series_of(session, batch, study.study_instance_uid)
    once: dict[str, ReceivedInstance] = {}
    for received in batch:
        once.setdefault(received.spooled.file_name, received)
    # The unique constraints decide, not a query before: two senders may bring the same UID at the same time.
    ordered = sorted(once.values(), key=lambda received: received.instance.sop_instance_uid)
    new = _insert_instances(
        session, [r for r in ordered if r.instance.series_instance_uid in mine], conflict=False
    )
    rest = [received for received in ordered if received.spooled.file_name not in new]
    conflicting = _insert_instances(session, rest, conflict=True)
    _note_new(session, study, [r for name, r in once.items() if name in new], due_at)
    if conflicting and not new:
        _conflict_arrived(session, study, batch[0])
    return _receipts(batch, new, conflicting)


def series_geometry(session: Session, series_instance_uid: str) -> list[SlicePlace]:
    """Where the received instances of a series stand, for the completeness check."""
    rows = session.execute(
        select(
            InstanceRow.instance_number,
            InstanceRow.number_of_frames,
            InstanceRow.position_mm,
            InstanceRow.orientation,
        ).where(InstanceRow.series_instance_uid == series_instance_uid, InstanceRow.conflict.is_(False))
    )
    return [SlicePlace(*row) for row in rows]


def last_arrival(session: Session, series_instance_uid: str) -> datetime | None:
    """When the last object of a series arrived that was new."""
    return session.scalar(
        select(func.max(InstanceRow.received_at)).where(
            InstanceRow.series_instance_uid == series_instance_uid, InstanceRow.conflict.is_(False)
        )
    )


def waiting_series(session: Session, series_instance_uids: Collection[str]) -> dict[str, str]:
    """Those of the series that no worker has looked at since their last object, each with its study's UID."""
    uids = list(series_instance_uids)
    found: dict[str, str] = {}
    for at in range(0, len(uids), _ASKED_AT_ONCE):
        rows = session.execute(
            select(SeriesRow.series_instance_uid, SeriesRow.study_instance_uid).where(
                SeriesRow.series_instance_uid.in_(uids[at : at + _ASKED_AT_ONCE]),
                SeriesRow.due_at.is_not(None),
            )
        )
        found.update((row.series_instance_uid, row.study_instance_uid) for row in rows)
    return found


def set_due(session: Session, series_instance_uid: str, due_at: datetime) -> None:
    """Say when a worker may look at a series, unless it has been looked at since its last object arrived."""
    study_instance_uid = session.scalar(
        select(SeriesRow.study_instance_uid).where(SeriesRow.series_instance_uid == series_instance_uid)
    )
    if study_instance_uid is None or lock_study(session, study_instance_uid) is None:
        return
    series = session.get_one(SeriesRow, series_instance_uid, populate_existing=True)
    if series.due_at is not None:
        series.due_at = due_at


def put_off(session: Session, series_instance_uid: str, until: datetime) -> None:
    """Have a waiting series wait until then at least. The study is locked by the caller."""
    session.execute(
        update(_SERIES)
        .where(_SERIES.c.series_instance_uid == series_instance_uid, _SERIES.c.due_at < until)
        .values(due_at=until)
    )


def known_file_names(session: Session, *, beginning: str = "") -> set[str]:
    """Spool files that have a row, or that were purged and wait to be removed; those whose name begins so."""
    purged = select(RemovalRow.file_name).where(RemovalRow.folder == Folder.SPOOL)
    return {
        name
        for column, query in (
            (InstanceRow.file_name, select(InstanceRow.file_name)),
            (RemovalRow.file_name, purged),
        )
        for name in session.scalars(query.where(column.startswith(beginning, autoescape=True)))
    }


def conflicts(session: Session, *, since: timedelta, now: datetime) -> int:
    """How many objects arrived under a UID that another object already had."""
    rows = select(func.count()).where(InstanceRow.conflict.is_(True), InstanceRow.received_at >= now - since)
    return session.scalar(rows) or 0


def _lock_or_add_study(session: Session, first: ReceivedInstance) -> StudyRow:
    study_instance_uid = first.study.study_instance_uid
    study = lock_study(session, study_instance_uid)
    if study is not None:
        return study
    insert = _insert_if_absent(_dialect(session), _STUDY, "study_instance_uid")
    added = session.execute(insert, _study_values(first)).first() is not None
    study = lock_study(session, study_instance_uid)
    assert study is not None
    if added:
        study_is_new(session, study)
        record_change(session, study, at=first.received_at, actor=_actor(first), action="received")
    return study


def _series_of(session: Session, batch: Sequence[ReceivedInstance], study_instance_uid: str) -> set[str]:
    """Make the series that are missing; those of the batch that belong to the study."""
    wanted = {received.instance.series_instance_uid: received.instance for received in reversed(batch)}
    owners = _owners(session, wanted)
    missing = sorted(wanted.keys() - owners.keys())
    if missing:
        session.execute(
            _insert_if_absent(_dialect(session), _SERIES), [_series_values(wanted[uid]) for uid in missing]
        )
        owners |= _owners(session, missing)
    return {uid for uid, owner in owners.items() if owner == study_instance_uid}


def _owners(session: Session, series_instance_uids: Collection[str]) -> dict[str, str]:
    """The study of each series that is here."""
    rows = session.execute(
        select(SeriesRow.series_instance_uid, SeriesRow.study_instance_uid).where(
            SeriesRow.series_instance_uid.in_(series_instance_uids)
        )
    )
    return {row.series_instance_uid: row.study_instance_uid for row in rows}


def _insert_instances(session: Session, received: Sequence[ReceivedInstance], *, conflict: bool) -> set[str]:
    """Insert those that are not here; returns the names of their files."""
    if not received:
        return set()
    insert = _insert_if_absent(_dialect(session), _INSTANCE, "file_name")
    return set(session.scalars(insert, [{**_instance_values(r), "conflict": conflict} for r in received]))


def _note_new(session: Session, study: StudyRow, new: Sequence[ReceivedInstance], due_at: datetime) -> None:
    if not new:
        return
    counts = Counter(received.instance.series_instance_uid for received in new)
    session.connection().execute(
        _MORE_OBJECTS, [{"uid": uid, "count": count, "due": due_at} for uid, count in sorted(counts.items())]
    )
    _images_arrived(session, study, new)


def _images_arrived(session: Session, study: StudyRow, new: Sequence[ReceivedInstance]) -> None:
    before = (study.state, study.priority)
    for header in {received.study: None for received in new}:
        for name, value in _header_values(header).items():
            if not getattr(study, name):  # some scanners leave attributes out of their localizers
                setattr(study, name, value)
    study.last_received_at = max(study.last_received_at, *(received.received_at for received in new))
    if study.state != StudyState.READING:
        set_state(study, StudyState.RECEIVING)
    never_negative(study)
    if (study.state, study.priority) != before:
        record_change(session, study, at=new[0].received_at, actor=_actor(new[0]), action="more images")


def _conflict_arrived(session: Session, study: StudyRow, received: ReceivedInstance) -> None:
    readable = exists().where(
        SeriesRow.study_instance_uid == study.study_instance_uid, SeriesRow.revision > 0
    )
    if session.scalar(select(readable)):
        return
    # Nothing of this study will ever be due, so no worker would say why it is not read.
    detail = "every object of this study has a UID that another object already has; the sender must mend that"
    set_state(study, StudyState.NOT_READ, reason=RejectionReason.CONFLICTING_UID, detail=detail)
    record_change(
        session, study, at=received.received_at, actor=_actor(received), action="not_read", why=detail
    )


def _receipts(
    batch: Sequence[ReceivedInstance], new: Collection[str], conflicting: Collection[str]
) -> list[Receipt]:
    seen: set[str] = set()
    receipts = []
    for received in batch:
        name = received.spooled.file_name
        if name in seen:
            receipts.append(Receipt.DUPLICATE)
        elif name in new:
            receipts.append(Receipt.NEW)
        else:
            receipts.append(Receipt.CONFLICT if name in conflicting else Receipt.DUPLICATE)
        seen.add(name)
    return receipts


def _dialect(session: Session) -> str:
    return session.get_bind().dialect.name


def _actor(received: ReceivedInstance) -> str:
    return received.source_ae_title or "node"


def _header_values(header: StudyHeader) -> dict[str, str]:
    return {
        "patient_id": header.patient_id,
        "patient_name": header.patient_name,
        "patient_birth_date": header.patient_birth_date,
        "patient_sex": header.patient_sex,
        "accession_number": header.accession_number,
        "study_date": header.study_date,
        "study_time": header.study_time,
        "study_description": header.study_description,
    }


def _study_values(first: ReceivedInstance) -> dict[str, Any]:
    return {
        "study_instance_uid": first.study.study_instance_uid,
        **_header_values(first.study),
        "modality_ae_title": first.source_ae_title,
        "received_at": first.received_at,
        "last_received_at": first.received_at,
        "state": StudyState.RECEIVING,
        "priority": Priority.MEDIUM,  # not read yet: never shown as negative
        "claim_number": 0,
        "attempts": 0,
    }


def _series_values(instance: Instance) -> dict[str, Any]:
    return {
        "series_instance_uid": instance.series_instance_uid,
        "study_instance_uid": instance.study_instance_uid,
        "modality": instance.modality,
        "series_number": _as_integer_string(instance.series_number),
        "series_description": instance.series_description,
        "revision": 0,
        "handled_revision": 0,
    }


def _instance_values(received: ReceivedInstance) -> dict[str, Any]:
    instance, spooled = received.instance, received.spooled
    return {
        "sop_instance_uid": instance.sop_instance_uid,
        "series_instance_uid": instance.series_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "instance_number": _as_integer_string(instance.instance_number),
        "number_of_frames": _as_integer_string(instance.number_of_frames) or 1,
        "position_mm": _as_list(instance.image_position_patient_mm),
        "orientation": _as_list(instance.image_orientation_patient),
        "file_name": spooled.file_name,
        "size_bytes": spooled.size_bytes,
        "content_hash": spooled.content_hash,
        "source_ae_title": received.source_ae_title,
        "received_at": received.received_at,
    }


@cache
def _insert_if_absent(dialect: str, table: Table, returned: str | None = None) -> Executable:
    """Insert rows unless others with the same unique values are here; gives a column of those inserted."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(table).on_conflict_do_nothing()
    return statement if returned is None else statement.returning(table.c[returned])


def _as_integer_string(value: int | None) -> int | None:
    """An IS value; what the VR cannot hold (PS3.5 6.2) is as good as absent."""
    return value if value is not None and -(2**31) <= value < 2**31 else None


def _as_list(values: Iterable[float] | None) -> list[float] | None:
    numbers = [] if values is None else [float(value) for value in values]
    return numbers if numbers and all(map(math.isfinite, numbers)) else None
