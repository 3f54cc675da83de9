"""The worklist for systems that ask by C-FIND: Modality Worklist Information Model (PS3.4 annex K), provider.

Studies that nobody has reviewed yet are its scheduled procedure steps, the most urgent first. What is asked for and
what is answered crosses to the process that has the database as `WorklistQuestion` and `WorklistItem`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import TypeAlias

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from ich_node.findings import Priority
from ich_node.receive.admission import Refusal
from ich_node.receive.limits import is_valid_uid
from ich_node.receive.worklist_answer import encode_item as encode_item

SOP_CLASS_UID = "1.2.840.10008.5.1.4.31"
"""Modality Worklist Information Model - FIND."""
MOST_ANSWERS = 500
"""The most urgent are answered; then the status says that there are more."""

_MOST_LOOKED_AT = 5000
"""Where items are asked for by the time of the day alone."""
_STEP = Tag("ScheduledProcedureStepSequence")
_LONGEST_TEXT = 256
_MOST_UIDS = 200
_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?")


class FindStatus(IntEnum):
    """Status (0000,0900) of an answer (PS3.4 table K.4.1-1)."""

    PENDING = 0xFF00
    PENDING_WITH_UNSUPPORTED_KEYS = 0xFF01
    CANCELED = 0xFE00
    NOT_AUTHORIZED = 0x0124
    OUT_OF_RESOURCES = 0xA700
    DOES_NOT_MATCH_SOP_CLASS = 0xA900
    UNABLE_TO_PROCESS = 0xC000


class FindRefused(Refusal):
    """A question that is answered with a failure status."""

    status: FindStatus


@dataclass(frozen=True, kw_only=True)
class WorklistQuestion:
    """What is looked for; what is empty is not. Text may hold the wild cards ``*`` and ``?``."""

    asker: str
    """Calling AE title."""
    host: str
    patient_name: str = ""
    patient_id: str = ""
    accession_number: str = ""
    station_ae_title: str = ""
    modality: str = ""
    study_instance_uids: tuple[str, ...] = ()
    priorities: tuple[str, ...] = ()
    received_from: datetime | None = None
    received_before: datetime | None = None
    limit: int = MOST_ANSWERS + 1


@dataclass(frozen=True, kw_only=True)
class WorklistItem:
    """A study that nobody has reviewed. Identifying: never logged."""

    study_instance_uid: str
    patient_name: str
    patient_id: str
    patient_birth_date: str
    patient_sex: str
    accession_number: str
    study_description: str
    modality: str
    station_ae_title: str
    received_at: datetime
    reason: str | None
    priority: str
    suspicion: float | None


LookUp: TypeAlias = Callable[[WorklistQuestion], list[WorklistItem]]
"""Finds items in the order of the worklist; raises `FindRefused` where it cannot look."""


class WorklistProvider:
    """Answers C-FIND. Safe to use from several threads.

    Parameters
    ----------
    look_up
        Finds the items.
    """

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up

    def answers(
        self, identifier: Dataset, *, asker: str, host: str
    ) -> Iterator[tuple[Dataset, Dataset | None]]:
        """Status and identifier of each answer but the final success, in their order."""
        try:
            question, after_time = read_question(identifier, asker=asker, host=host)
            found = self._look_up(question)
        except FindRefused as refusal:
            yield failure(refusal.status, refusal.comment), None
            return
        kept = [item for item in found if after_time is None or after_time(item)]
        pending = failure(_pending_status(identifier))
        for item in kept[:MOST_ANSWERS]:
            yield pending, encode_item(item, identifier)
        if len(found) >= question.limit or len(kept) > MOST_ANSWERS:
            comment = f"more than {MOST_ANSWERS} match: only the most urgent were sent"
            if len(kept) <= MOST_ANSWERS:
                comment = f"only the {question.limit} most urgent were looked at: give a date"
            yield failure(FindStatus.OUT_OF_RESOURCES, comment), None


def read_question(
    identifier: Dataset, *, asker: str, host: str
) -> tuple[WorklistQuestion, Callable[[WorklistItem], bool] | None]:
    """Read the matching keys of an identifier (K.2.2.1.1).

    Returns
    -------
    tuple
        The question, and a look at the time of the day where times are asked for without a date.

    Raises
    ------
    FindRefused
        A key has a value that is none, or there is more than one step to match.
    """
    step = _step_of(identifier)
    dates = _range(step, "ScheduledProcedureStepStartDate", _DATE)
    times = _range(step, "ScheduledProcedureStepStartTime", _TIME)
    begin, end = _moments(dates, times)
    uids = _text(identifier, "StudyInstanceUID").replace("\\", ",").split(",")
    uids = [uid for uid in uids if uid.strip("*")]
    if len(uids) > _MOST_UIDS or not all(map(is_valid_uid, uids)):
        raise FindRefused(FindStatus.DOES_NOT_MATCH_SOP_CLASS, "StudyInstanceUID is no list of UIDs")
    by_time = _time_of_day(times) if times != ("", "") and dates == ("", "") else None
    question = WorklistQuestion(
        asker=asker,
        host=host,
        patient_name=_text(identifier, "PatientName"),
        patient_id=_text(identifier, "PatientID"),
        accession_number=_text(identifier, "AccessionNumber"),
        station_ae_title=_text(step, "ScheduledStationAETitle"),
        modality=_text(step, "Modality"),
        study_instance_uids=tuple(uids),
        priorities=_priorities(_text(identifier, "RequestedProcedurePriority")),
        received_from=begin,
        received_before=end,
        limit=MOST_ANSWERS + 1 if by_time is None else _MOST_LOOKED_AT,
    )
    constants = [
        (identifier, "RequestedProcedureID", "1"),
        (step, "ScheduledProcedureStepID", "1"),
        (step, "ScheduledPerformingPhysicianName", ""),
    ]
    fits = all(_fits(value, _text(part, keyword)) for part, keyword, value in constants)
    return question, by_time if fits else lambda item: False


def _pending_status(identifier: Dataset) -> FindStatus:
    """Whether a matching key has a value that nothing here is held against (K.4.1.1.4)."""
    supported = {Tag(name) for name in _MATCHED}
    step = {Tag(name) for name in _MATCHED_IN_STEP}
    unsupported = _valued(identifier) - supported - {_STEP, Tag("SpecificCharacterSet")}
    unsupported |= _valued(_step_of(identifier)) - step
    return FindStatus.PENDING_WITH_UNSUPPORTED_KEYS if unsupported else FindStatus.PENDING


_MATCHED = (
    "PatientName",
    "PatientID",
    "AccessionNumber",
    "StudyInstanceUID",
    "RequestedProcedurePriority",
    "RequestedProcedureID",
)
_MATCHED_IN_STEP = (
    "ScheduledStationAETitle",
    "Modality",
    "ScheduledProcedureStepStartDate",
    "ScheduledProcedureStepStartTime",
    "ScheduledProcedureStepID",
    "ScheduledPerformingPhysicianName",
)


def _valued(dataset: Dataset) -> set[BaseTag]:
    return {
        element.tag
        for element in dataset
        if element.value not in (None, "", b"", "*") and element.value != []
    }


def _step_of(identifier: Dataset) -> Dataset:
    items = list(identifier[_STEP].value or ()) if _STEP in identifier else []
    if len(items) > 1:
        raise FindRefused(FindStatus.DOES_NOT_MATCH_SOP_CLASS, "more than one step to match")
    return items[0] if items else Dataset()


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    if value is None:
        return ""
    values = list(value) if isinstance(value, list | MultiValue) else [value]
    text = "\\".join(str(one) for one in values).replace("\x00", "").strip()
    if len(text) > _LONGEST_TEXT * (_MOST_UIDS if keyword == "StudyInstanceUID" else 1):
        raise FindRefused(FindStatus.DOES_NOT_MATCH_SOP_CLASS, f"{keyword} is too long")
    return text if text.strip("*") else ""


def _range(dataset: Dataset, keyword: str, pattern: re.Pattern[str]) -> tuple[str, str]:
    """First and last value of range matching (C.2.2.2.5); both empty: any."""
    text = _text(dataset, keyword).replace(":", "").replace(".", "." if pattern is _TIME else "")
    first, dash, last = (part.strip() for part in text.partition("-"))
    bounds = (first, last if dash else first)
    if not all(pattern.fullmatch(bound) for bound in bounds if bound):
        raise FindRefused(FindStatus.DOES_NOT_MATCH_SOP_CLASS, f"{keyword} is no range")
    return bounds


def _moments(dates: tuple[str, str], times: tuple[str, str]) -> tuple[datetime | None, datetime | None]:
    """From when until when, in the time zone of this node; dates and times together are one stretch (K.2.2.1.1)."""
    try:
        begin = None if not dates[0] else _moment(dates[0], times[0] or "000000")
        last = times[1].partition(".")[0]  # the whole hour or minute where it names no more
        last += "235959"[len(last) :]
        end = None if not dates[1] else _moment(dates[1], last) + timedelta(seconds=1)
    except (ValueError, OverflowError):
        raise FindRefused(FindStatus.DOES_NOT_MATCH_SOP_CLASS, "a date that there is not") from None
    return begin, end


def _moment(date: str, time: str) -> datetime:
    padded = time.partition(".")[0].ljust(6, "0")
    return datetime.strptime(date + padded, "%Y%m%d%H%M%S").astimezone()


def _time_of_day(times: tuple[str, str]) -> Callable[[WorklistItem], bool]:
    first, last = times[0].partition(".")[0], times[1].partition(".")[0]

    def fits(item: WorklistItem) -> bool:
        at = item.received_at.astimezone().strftime("%H%M%S")
        return (not first or at >= first.ljust(6, "0")) and (not last or at[: len(last)] <= last)

    return fits


def _priorities(text: str) -> tuple[str, ...]:
    patterns = [one.strip() for one in text.split("\\")]
    if not all(one.strip("*") for one in patterns):
        return ()
    fitting = [str(p) for p in Priority if any(_fits(p, one) for one in patterns)]
    return tuple(fitting or patterns)  # of a priority that there is not, no item


def _fits(value: str, pattern: str) -> bool:
    return not pattern or fnmatchcase(value, pattern.replace("[", "[[]"))


def failure(status: FindStatus, comment: str = "") -> Dataset:
    """A status (0000,0900) with its comment, as pynetdicom takes it."""
    answer = Dataset()
    answer.Status = int(status)
    if comment:
        answer.ErrorComment = comment[:64]
    return answer
