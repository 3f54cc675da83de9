"""Which studies are read first, found among a million without looking at them all.

Each query is a stretch of one index, left as soon as there are enough; where few studies can be meant, they are looked
up by their key instead. So it does not matter what the planner of a database knows of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, FromClause, Select, Table, select, tuple_, union, union_all
from sqlalchemy.orm import Session

from ich_node.database.among import among
from ich_node.database.tables import StudyRow
from ich_node.database.text_search import words_within
from ich_node.findings import Priority, StudyState

_STUDY = cast(Table, StudyRow.__table__)
_AGE = (_STUDY.c.received_at, _STUDY.c.study_instance_uid)
_FEW = 500
"""Studies that are looked up one by one."""


class Place(NamedTuple):
    """Where a study stands on the worklist; the greater is read first, and of equals the newer is kept."""

    precedence: int
    received_at: datetime
    study_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a list is narrowed to; ``None``: by nothing."""

    priorities: Collection[Priority] | None = None
    states: Collection[StudyState] | None = None
    unreviewed: bool | None = None
    received_since: datetime | None = None
    modality_ae_title: str | None = None

    def precedences(self) -> list[int]:
        """Values of `StudyRow.precedence`, the highest first."""
        priorities = [p for p in Priority if self.priorities is None or p in self.priorities]
        reviewed = [r for r in (False, True) if self.unreviewed is None or self.unreviewed is not r]
        return [precedence(p, reviewed=r) for r in reviewed for p in priorities]

    def conditions(self) -> list[ColumnElement[bool]]:
        """Those beside precedence and state."""
        found = []
        if self.received_since is not None:
            found.append(_STUDY.c.received_at >= self.received_since)
        if self.modality_ae_title is not None:
            found.append(_STUDY.c.modality_ae_title == self.modality_ae_title)
        return found


def precedence(priority: Priority, *, reviewed: bool) -> int:
    """What `StudyRow.precedence` is."""
    return (0 if reviewed else len(Priority)) + len(Priority) - 1 - priority.urgency


def place_of(session: Session, study_instance_uid: str) -> Place | None:
    """Where a study stands; ``None`` where it is not here."""
    row = (
        session.connection()
        .execute(_places().where(_STUDY.c.study_instance_uid == study_instance_uid))
        .first()
    )
    return None if row is None else Place(*row)


def first_studies(
    session: Session, wanted: Wanted, *, limit: int, search: str = "", after: Place | None = None
) -> list[tuple[int, str]]:
    """Precedence and Study Instance UID of each, of the highest precedence first and among equals of the newest.

    Parameters
    ----------
    search
        As `ich_node.database.worklist.worklist` has it.
    after
        Only what comes after this place.
    """
    fits: list[ColumnElement[bool]] = []
    if search.strip():
        fits = [_fits(session, search.strip())]
        few = _few_that_fit(session, search.strip(), fits[0])
        if few is not None:
            return _of_few(session, wanted, few, limit, after)
    found: list[tuple[int, str]] = []
    for rank in wanted.precedences():
        if len(found) < limit and (after is None or rank <= after.precedence):
            conditions = [_STUDY.c.precedence == rank, *wanted.conditions(), *fits]
            if after is not None and rank == after.precedence:
                conditions.append(tuple_(after.received_at, after.study_instance_uid) > tuple_(*_AGE))
            newest = _newest(session, conditions, wanted.states, limit - len(found))
            found += [(rank, uid) for uid in newest]
    return found


def _places() -> Select[Any]:
    return select(_STUDY.c.precedence, _STUDY.c.received_at, _STUDY.c.study_instance_uid)


def _newest(
    session: Session,
    conditions: Sequence[ColumnElement[bool]],
    states: Collection[StudyState] | None,
    limit: int,
) -> Sequence[str]:
    """Of one precedence; each state is a stretch of its own."""
    uid, stretches = _STUDY.c.study_instance_uid, []
    for state in [None] if states is None else sorted(set(states)):
        rows = select(uid).where(*conditions, *([] if state is None else [_STUDY.c.state == state]))
        stretches.append(rows.order_by(*_newest_first(_STUDY)).limit(limit))
    if len(stretches) < 2:
        return [uid for each in stretches for uid in session.connection().scalars(each)]
    found = union_all(*(select(each.with_only_columns(*_AGE).subquery()) for each in stretches)).subquery()
    newest = select(found.c.study_instance_uid).order_by(*_newest_first(found)).limit(limit)
    return session.connection().scalars(newest).all()


def _newest_first(rows: FromClause) -> tuple[ColumnElement[Any], ...]:
    return rows.c.received_at.desc(), rows.c.study_instance_uid.desc()


def _identifiers() -> tuple[ColumnElement[str], ...]:
    return _STUDY.c.study_instance_uid, _STUDY.c.accession_number, _STUDY.c.patient_id


def _fits(session: Session, search: str) -> ColumnElement[bool]:
    columns = (*_identifiers(), _STUDY.c.patient_name)
    return words_within(search, columns, dialect=session.get_bind().dialect.name)


def _few_that_fit(session: Session, search: str, fits: ColumnElement[bool]) -> list[str] | None:
    """Studies with just this identifier, else those that fit; ``None`` where there are more than a few."""
    uid = _STUDY.c.study_instance_uid
    same = union(*(select(uid).where(column == search) for column in _identifiers()))
    for query in (same.limit(_FEW), select(uid).where(fits).limit(_FEW + 1)):
        if found := list(session.connection().scalars(query)):
            break
    return found if len(found) <= _FEW else None


def _of_few(
    session: Session, wanted: Wanted, uids: Sequence[str], limit: int, after: Place | None
) -> list[tuple[int, str]]:
    listed = among(_STUDY.c.study_instance_uid, uids, dialect=session.get_bind().dialect.name)
    rows = _places().where(listed, *wanted.conditions())
    if wanted.states is not None:
        rows = rows.where(_STUDY.c.state.in_(sorted(set(wanted.states))))
    ranks = wanted.precedences()
    places = [Place(*row) for row in session.connection().execute(rows)]
    kept = [p for p in places if p.precedence in ranks and (after is None or p < after)]
    return [(p.precedence, p.study_instance_uid) for p in sorted(kept, reverse=True)[:limit]]
