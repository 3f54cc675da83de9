"""Which studies a person means, and what stands against reading them again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from ich_node.database import queue
from ich_node.database.retention import can_be_read_again
from ich_node.database.standing import lock_study
from ich_node.database.tables import ReadingRow, StudyRow
from ich_node.findings import StudyState

_AT_ONCE = 1000
"""Names in one statement; both databases take more."""
_UNDER_WAY = (StudyState.RECEIVING, StudyState.QUEUED, StudyState.READING)


@dataclass(frozen=True, kw_only=True)
class StudyChoice:
    """Studies by name, or all; of those the ones that fit every condition that is given."""

    study_instance_uids: tuple[str, ...] = ()
    accession_numbers: tuple[str, ...] = ()
    patient_ids: tuple[str, ...] = ()
    states: tuple[StudyState, ...] = ()
    """One of them."""
    received_since: datetime | None = None
    received_until: datetime | None = None
    """Before it."""
    read_by: str | None = None
    """Name of a bundle: one of the readings that count is by it."""

    @property
    def is_named(self) -> bool:
        """Whether it names studies."""
        return bool(self.study_instance_uids or self.accession_numbers or self.patient_ids)

    @property
    def names(self) -> StudyChoice:
        """The same without its conditions."""
        return replace(self, states=(), received_since=None, received_until=None, read_by=None)


@dataclass(frozen=True, kw_only=True)
class ChosenStudy:
    """A study that fits."""

    study_instance_uid: str
    accession_number: str
    patient_id: str
    state: StudyState
    is_requested: bool
    """Whether somebody has asked for another run that is not done yet."""
    purged_at: datetime | None
    """Set where so many of its images are gone that it cannot be read again."""

    @property
    def is_under_way(self) -> bool:
        """Whether it is arriving, waiting or being read."""
        return self.state in _UNDER_WAY or self.is_requested


def choose_studies(session: Session, choice: StudyChoice) -> list[ChosenStudy]:
    """Those that fit, the oldest first."""
    conditions = list(_conditions(choice))
    if not choice.is_named:
        rows = list(session.scalars(select(StudyRow).where(*conditions)))
    else:
        found = {
            row.study_instance_uid: row
            for named in _named(choice)
            for row in session.scalars(select(StudyRow).where(named, *conditions))
        }
        rows = list(found.values())
    rows.sort(key=lambda row: (row.received_at, row.study_instance_uid))
    return [_chosen(session, row) for row in rows]


def request_again(
    session: Session,
    study_instance_uid: str,
    *,
    series_instance_uid: str | None,
    model: str | None,
    actor: str,
    now: datetime,
) -> StudyState | None:
    """Ask for another run, unless the one that is wanted is to come or under way anyhow.

    A run that is under way reads all with the models of the settings. So a request for a series or a model of
    one's own stands beside it.

    Returns
    -------
    The state that makes another run needless; ``None``: it was asked for.

    Raises
    ------
    LookupError
        The study, or the series in it, is not here.
    ImagesPurged
        There is nothing of it that could be read.
    """
    study = lock_study(session, study_instance_uid)
    if study is not None and series_instance_uid is None and model is None:
        state = StudyState(study.state)
        if state in _UNDER_WAY or study.reprocess_requested_at is not None:
            return state
    queue.request_reprocess(
        session,
        study_instance_uid,
        series_instance_uid=series_instance_uid,
        model=model,
        actor=actor,
        now=now,
    )
    return None


def _named(choice: StudyChoice) -> Iterator[ColumnElement[bool]]:
    for column, names in (
        (StudyRow.study_instance_uid, choice.study_instance_uids),
        (StudyRow.accession_number, choice.accession_numbers),
        (StudyRow.patient_id, choice.patient_ids),
    ):
        for some in _portions(names):
            yield column.in_(some)


def _conditions(choice: StudyChoice) -> Iterator[ColumnElement[bool]]:
    if choice.states:
        yield StudyRow.state.in_([str(state) for state in choice.states])
    if choice.received_since is not None:
        yield StudyRow.received_at >= choice.received_since
    if choice.received_until is not None:
        yield StudyRow.received_at < choice.received_until
    if choice.read_by is not None:
        yield exists().where(
            ReadingRow.study_instance_uid == StudyRow.study_instance_uid,
            ReadingRow.superseded.is_(False),
            ReadingRow.model_name == choice.read_by,
        )


def _portions(names: Sequence[str]) -> Iterator[Collection[str]]:
    left = iter(dict.fromkeys(names))
    while some := list(islice(left, _AT_ONCE)):
        yield some


def _chosen(session: Session, row: StudyRow) -> ChosenStudy:
    gone = row.purged_at is not None and not can_be_read_again(session, row)
    return ChosenStudy(
        study_instance_uid=row.study_instance_uid,
        accession_number=row.accession_number,
        patient_id=row.patient_id,
        state=StudyState(row.state),
        is_requested=row.reprocess_requested_at is not None,
        purged_at=row.purged_at if gone else None,
    )
