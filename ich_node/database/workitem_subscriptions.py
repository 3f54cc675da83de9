"""Who is told of which workitems (PS3.4 CC.2.3), and what there is to tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ich_node.database.json_model import attribute, dataset, first_value
from ich_node.database.tables import StudyRow
from ich_node.database.web_tables import SubscriptionRow, WorkitemEventRow, WorkitemRow
from ich_node.database.workitem_events import EventType, add_event, state_report
from ich_node.database.workitem_states import WorkitemRefused, WorkitemStatus
from ich_node.errors import IchNodeError

GLOBAL_UID = "1.2.840.10008.5.1.4.34.5"
"""Well-known UID: all workitems."""
FILTERED_UID = "1.2.840.10008.5.1.4.34.5.1"
"""Well-known UID: all workitems that fit a filter."""
MOST_SUBSCRIPTIONS = 10_000

_KEYS, _SUSPENDED_AT, _EXCLUDED = "keys", "suspended_at", "excluded"
_MOST_EVENTS = 2000


class TooManySubscriptions(IchNodeError):
    """No more are kept."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """An event report for one subscriber."""

    id: int
    """Of the event."""
    ae_title: str
    content: Mapping[str, Any]
    """In the DICOM JSON model."""


@dataclass(frozen=True, kw_only=True)
class RecentEvents:
    """What happened lately."""

    ids: frozenset[int]
    """Of all events, whoever is told of them."""
    reports: tuple[Report, ...]


@dataclass(frozen=True, kw_only=True)
class _Event:
    id: int
    at: datetime
    sop_instance_uid: str
    received_at: datetime
    """When the study came that its workitem is of."""
    only_for: str | None
    content: Mapping[str, Any]


Matches = Callable[[Mapping[str, str], Collection[str]], Collection[str]]
"""Those of the workitems that fit the matching keys of a filter."""


def subscribe(
    session: Session,
    *,
    ae_title: str,
    workitem_uid: str,
    deletion_lock: bool,
    keys: Mapping[str, str] | None = None,
    now: datetime,
) -> bool:
    """Have an application told of a workitem, of all, or of those that fit ``keys``.

    Returns
    -------
    bool
        Whether the deletion lock is granted. One on all workitems is not: with it each of them, finished or not,
        would have to be reported at once.

    Raises
    ------
    WorkitemRefused
        The workitem is not here.
    TooManySubscriptions
        So many are kept already.
    """
    is_single = workitem_uid not in (GLOBAL_UID, FILTERED_UID)
    row = session.get(WorkitemRow, workitem_uid) if is_single else None
    if is_single and row is None:
        raise WorkitemRefused(WorkitemStatus.NOT_HERE)
    granted = deletion_lock and is_single
    _store(
        session,
        ae_title,
        workitem_uid,
        lock=granted,
        terms={_KEYS: dict(keys)} if keys is not None else {},
        now=now,
    )
    if row is not None:
        study = session.get_one(StudyRow, row.study_instance_uid)
        told = dataset(state_report(study, row), attribute("ReceivingAE", ae_title))
        add_event(session, row, EventType.STATE_REPORT, told, now)
    return granted


def unsubscribe(session: Session, *, ae_title: str, workitem_uid: str, now: datetime) -> bool:
    """Tell an application no more; false where it was not told.

    Who leaves all workitems leaves each of them; who leaves one stays with the others (table CC.2.3-2).
    """
    rows = _rows(session, ae_title)
    if workitem_uid == GLOBAL_UID:
        session.execute(delete(SubscriptionRow).where(SubscriptionRow.ae_title == ae_title))
        return GLOBAL_UID in rows
    own = rows.get(workitem_uid)
    if workitem_uid == FILTERED_UID:
        if own is not None:
            session.delete(own)
        return own is not None
    if session.get(WorkitemRow, workitem_uid) is None:
        return False
    if GLOBAL_UID in rows or FILTERED_UID in rows:
        _store(session, ae_title, workitem_uid, lock=False, terms={_EXCLUDED: True}, now=now)
        return True
    if own is None or own.filter.get(_EXCLUDED):
        return False
    session.delete(own)
    return True


def suspend(session: Session, *, ae_title: str, workitem_uid: str, now: datetime) -> bool:
    """Tell an application nothing of workitems that come from now on; false where it has no such subscription."""
    row = _rows(session, ae_title).get(workitem_uid)
    if row is None:
        return False
    row.filter = {_SUSPENDED_AT: now.isoformat(), **row.filter}
    return True


def recent_events(
    session: Session,
    ae_titles: Collection[str],
    *,
    since: datetime,
    told: Collection[int],
    matches: Matches,
) -> RecentEvents:
    """What there is to tell to applications that listen, in the order in which it happened.

    Parameters
    ----------
    since
        Earlier events are of no interest.
    told
        Events that were told to all of them.
    matches
        Looks a filter up.
    """
    recent = _events(session, since)
    ids = frozenset(event.id for event in recent)
    events = [event for event in recent if event.id not in told]
    if not events:
        return RecentEvents(ids=ids, reports=())
    query = select(SubscriptionRow).where(SubscriptionRow.ae_title.in_(list(ae_titles)))
    by_title: dict[str, dict[str, SubscriptionRow]] = {}
    for row in session.scalars(query):
        by_title.setdefault(row.ae_title, {})[row.workitem_uid] = row
    uids = {event.sop_instance_uid for event in events}
    fitting = {
        title: set(matches(rows[FILTERED_UID].filter.get(_KEYS, {}), uids)) if FILTERED_UID in rows else set()
        for title, rows in by_title.items()
    }
    reports = tuple(
        Report(id=event.id, ae_title=title, content=event.content)
        for event in events
        for title, rows in by_title.items()
        if _is_told(event, title, rows, fitting[title])
    )
    return RecentEvents(ids=ids, reports=reports)


def _is_told(event: _Event, ae_title: str, rows: Mapping[str, SubscriptionRow], fitting: set[str]) -> bool:
    if event.only_for is not None:
        return event.only_for == ae_title
    own = rows.get(event.sop_instance_uid)
    if own is not None:
        return not own.filter.get(_EXCLUDED) and event.at >= own.created_at
    for uid in (GLOBAL_UID, FILTERED_UID):
        row = rows.get(uid)
        if row is None or event.at < row.created_at or _is_too_new(event, row):
            continue
        if uid == GLOBAL_UID or event.sop_instance_uid in fitting:
            return True
    return False


def _is_too_new(event: _Event, row: SubscriptionRow) -> bool:
    suspended_at = row.filter.get(_SUSPENDED_AT)
    return suspended_at is not None and event.received_at > datetime.fromisoformat(suspended_at)


def _events(session: Session, since: datetime) -> list[_Event]:
    rows = session.execute(
        select(WorkitemEventRow, StudyRow.received_at)
        .join(StudyRow, StudyRow.study_instance_uid == WorkitemEventRow.study_instance_uid)
        .where(WorkitemEventRow.at >= since)
        .order_by(WorkitemEventRow.id.desc())
        .limit(_MOST_EVENTS)
    ).all()
    receiving = next(iter(attribute("ReceivingAE")))
    return [
        _Event(
            id=row.id,
            at=row.at,
            sop_instance_uid=row.sop_instance_uid,
            received_at=received_at,
            only_for=first_value(row.content, "ReceivingAE"),
            content={tag: element for tag, element in row.content.items() if tag != receiving},
        )
        for row, received_at in reversed(rows)
    ]


def _rows(session: Session, ae_title: str) -> dict[str, SubscriptionRow]:
    query = select(SubscriptionRow).where(SubscriptionRow.ae_title == ae_title)
    return {row.workitem_uid: row for row in session.scalars(query)}


def _store(
    session: Session, ae_title: str, workitem_uid: str, *, lock: bool, terms: dict[str, Any], now: datetime
) -> None:
    if (session.scalar(select(func.count()).select_from(SubscriptionRow)) or 0) >= MOST_SUBSCRIPTIONS:
        raise TooManySubscriptions(f"{MOST_SUBSCRIPTIONS} subscriptions are kept already")
    kept = {"deletion_lock": lock, "filter": terms, "created_at": now}
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(SubscriptionRow).values(ae_title=ae_title, workitem_uid=workitem_uid, **kept)
    session.execute(statement.on_conflict_do_update(index_elements=["ae_title", "workitem_uid"], set_=kept))
