"""The worklist as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ich_node.findings import Priority, StudyState
from ich_node.web import display
from ich_node.web.wording import PRIORITY, STATE, Standing, standing
from ich_node.web.worklist_filter import WorklistFilter


@dataclass(frozen=True, kw_only=True)
class WorklistLine:
    """One study on the worklist, in words."""

    study_instance_uid: str
    standing: Standing
    patient_name: str
    patient_id: str
    accession_number: str
    study_date: str
    study_time: str
    station: str
    received_at: str
    received_clock: str
    age: str
    suspicion: str
    suspicion_note: str
    model: str
    model_version: str
    delivered: str
    delivered_date: str
    """Where that is another day than today."""
    delivered_is_open: bool
    reviewed: str


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many studies of one priority the list shows."""

    priority: str
    words: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value that the list can be filtered by."""

    value: str
    words: str
    is_chosen: bool


@dataclass(frozen=True, kw_only=True)
class FilterChoices:
    """What the list can be filtered by, as the form shows it."""

    priorities: tuple[Choice, ...]
    states: tuple[Choice, ...]
    within: tuple[Choice, ...]
    stations: tuple[str, ...]
    """Those of the list, which the form suggests."""


_WITHIN_WORDS = {"": "any time", "1h": "1 hour", "8h": "8 hours", "24h": "24 hours", "7d": "7 days"}


def filter_choices(wanted: WorklistFilter, rows: Sequence[Mapping[str, Any]]) -> FilterChoices:
    """What the list of these rows can be filtered by."""
    stations = {display.plain_text(row["modality_ae_title"]) for row in rows} - {""}
    return FilterChoices(
        priorities=tuple(
            Choice(value=p, words=PRIORITY[p], is_chosen=p in wanted.priorities) for p in Priority
        ),
        states=(
            Choice(value="", words="any", is_chosen=not wanted.states),
            *(Choice(value=s, words=STATE[s], is_chosen=s in wanted.states) for s in StudyState),
        ),
        within=tuple(
            Choice(value=value, words=words, is_chosen=value == wanted.within)
            for value, words in _WITHIN_WORDS.items()
        ),
        stations=tuple(sorted(stations)),
    )


def worklist_lines(rows: Sequence[Mapping[str, Any]], *, now: datetime) -> list[WorklistLine]:
    """Rows of ``worklist_v1`` as lines, in the same order."""
    return [_line(row, now) for row in rows]


def tallies(rows: Sequence[Mapping[str, Any]]) -> list[Tally]:
    """One tally per priority, the most urgent first, zeros included."""
    found = [str(row["priority"]) for row in rows]
    return [Tally(priority=p, words=PRIORITY[p], count=found.count(p)) for p in Priority]


def suspicion_note(row: Mapping[str, Any]) -> str:
    """What must be said beside a suspicion that is not the last word on the study."""
    if row["suspicion"] is None:
        return ""
    return "" if row["state"] == StudyState.READ else "from an earlier reading"


def _line(row: Mapping[str, Any], now: datetime) -> WorklistLine:
    delivered, delivered_date = display.clock_time(row["delivered_at"], now=now)
    is_open = bool(row["sr_sop_instance_uid"]) and not row["delivered_at"]
    received_clock, received_date = display.clock_time(row["received_at"], now=now)
    return WorklistLine(
        study_instance_uid=row["study_instance_uid"],
        standing=standing(row["priority"], row["state"], row["reason"]),
        patient_name=display.patient_name(row["patient_name"]) or "(no name)",
        patient_id=display.plain_text(row["patient_id"]),
        accession_number=display.plain_text(row["accession_number"]),
        study_date=display.dicom_date(row["study_date"]),
        study_time=display.dicom_time(row["study_time"]),
        station=display.plain_text(row["modality_ae_title"]),
        received_at=row["received_at"],
        received_clock=f"{received_date} {received_clock}".strip(),
        age=display.age(row["received_at"], now=now),
        suspicion="" if row["suspicion"] is None else display.percent(row["suspicion"]),
        suspicion_note=suspicion_note(row),
        model=display.plain_text(row["model_name"]),
        model_version=display.plain_text(row["model_version"]),
        delivered="not yet" if is_open else delivered,
        delivered_date=delivered_date,
        delivered_is_open=is_open,
        reviewed=display.plain_text(row["reviewed_by"]) if row["reviewed_at"] else "",
    )
