"""Which studies are read first, found among a million without looking at them all.

Each query is a stretch of one index, left as soon as there are enough; where few studies can be meant, they are looked
up by their key instead. So it does not matter what the planner of a database knows of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, Select, Table, select, tuple_, union, union_all
from sqlalchemy.orm import Session

from ich_node.database.tables import StudyRow
from ich_node.database.text_search import words_within
from ich_node.findings import Priority, StudyState

_STUDY = cast(Table, StudyRow.__table__)
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
) -> list[str]:
    """Study Instance UIDs, of the highest precedence first and among equals of the newest.

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
    stretches = [
        _stretch(rank, state, [*wanted.conditions(), *fits], after, limit)
        for rank in wanted.precedences()
        if after is None or rank <= after.precedence
        for state in ([None] if wanted.states is None else sorted(set(wanted.states)))
    ]
    if not stretches:
        return []
    found = union_all(*(select(stretch.subquery()) for stretch in stretches)).subquery()
    order = (found.c.precedence.desc(), found.c.received_at.desc(), found.c.study_instance_uid.desc())
    first = select(found.c.study_instance_uid).order_by(*order).limit(limit)
    return list(session.connection().scalars(first))


def _places() -> Select[Any]:
    return select(_STUDY.c.precedence, _STUDY.c.received_at, _STUDY.c.study_instance_uid)


def _stretch(
    rank: int,
    state: StudyState | None,
    conditions: Sequence[ColumnElement[bool]],
    after: Place | None,
    limit: int,
) -> Select[Any]:
    """The newest studies of one precedence and state."""
    age = (_STUDY.c.received_at, _STUDY.c.study_instance_uid)
    stretch = _places().where(_STUDY.c.precedence == rank, *conditions)
    if state is not None:
        stretch = stretch.where(_STUDY.c.state == state)
    if after is not None and rank == after.precedence:
        stretch = stretch.where(tuple_(after.received_at, after.study_instance_uid) > tuple_(*age))
    return stretch.order_by(*(column.desc() for column in age)).limit(limit)


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
) -> list[str]:
    rows = _places().where(_STUDY.c.study_instance_uid.in_(uids), *wanted.conditions())
    if wanted.states is not None:
        rows = rows.where(_STUDY.c.state.in_(sorted(set(wanted.states))))
    ranks = wanted.precedences()
    places = [Place(*row) for row in session.connection().execute(rows)]
    kept = [p for p in places if p.precedence in ranks and (after is None or p < after)]
    return [place.study_instance_uid for place in sorted(kept, reverse=True)[:limit]]
