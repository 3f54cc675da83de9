"""What a search for workitems asks for (PS3.18 8.3.4 and 11.9), and the filter of a subscription (11.10.1.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from fnmatch import fnmatchcase

from pydicom.datadict import keyword_for_tag, tag_for_keyword

from ich_node.codes import INTERPRETATION
from ich_node.database.matching import is_universal
from ich_node.database.workitem_events import readiness, step_priority
from ich_node.database.workitem_states import WorkitemState
from ich_node.database.workitems import TEXT_KEYS, WorkitemQuery
from ich_node.errors import IchNodeError
from ich_node.findings import Priority, StudyState
from ich_node.receive.limits import is_valid_uid

WORKLIST_LABEL = "ICH"
PROCEDURE_STEP_LABEL = "Interpretation of CT"
DEFAULT_LIMIT, MOST_RESULTS = 200, 1000
_LONGEST_VALUE = 1024
_MOST_UIDS = 500
_LARGEST_OFFSET = 10_000_000
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_REQUEST = "ReferencedRequestSequence"
_CODE = "ScheduledWorkitemCodeSequence"
_CONSTANTS: Mapping[str, str] = {
    "WorklistLabel": WORKLIST_LABEL,
    "ProcedureStepLabel": PROCEDURE_STEP_LABEL,
    f"{_CODE}.CodeValue": INTERPRETATION.value,
    f"{_CODE}.CodingSchemeDesignator": INTERPRETATION.scheme_designator,
    f"{_CODE}.CodeMeaning": INTERPRETATION.meaning,
}
"""The same in all workitems."""
_EMPTY = frozenset(
    (
        "AdmissionID",
        "IssuerOfPatientID",
        "RequestedProcedureID",
        "RequestingService",
        "ReferencedSOPInstanceUID",
    )
)
"""Of which no workitem has a value."""
_DATE = re.compile(r"[0-9]{8}")
_DATE_TIME = re.compile(
    r"(?P<y>\d{4})((?P<mo>\d\d)((?P<d>\d\d)((?P<h>\d\d)((?P<mi>\d\d)((?P<s>\d\d)(\.(?P<f>\d{1,6}))?)?)?)?)?)?"
    r"(?P<zone>[+-]\d{4})?"
)


class BadQuery(IchNodeError):
    """A parameter that means nothing here; the text says which and why."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A search transaction."""

    query: WorkitemQuery = field(default_factory=WorkitemQuery)
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    with_inputs: bool = False
    """Whether Input Information Sequence (0040,4021) is to be included: it names every image."""
    asks_for_fuzzy_matching: bool = False


def read_search(parameters: Iterable[tuple[str, str]]) -> SearchRequest:
    """Read the query of a search.

    Parameters
    ----------
    parameters
        Names and values, decoded, in their order.

    Raises
    ------
    BadQuery
        One is not known, cannot be matched here, comes twice or has a value that is none.
    """
    request, keys = SearchRequest(), {}
    for name, value in parameters:
        if name == "limit":
            request = replace(request, limit=min(_number(name, value, least=1), MOST_RESULTS))
        elif name == "offset":
            request = replace(request, offset=_number(name, value, least=0))
        elif name == "includefield":
            request = replace(request, with_inputs=request.with_inputs or _names_inputs(value))
        elif name == "fuzzymatching":
            request = replace(request, asks_for_fuzzy_matching=_truth(name, value))
        elif name not in ("accept", "charset"):
            if name in keys:
                raise BadQuery(f"{_shown(name)} comes twice")
            keys[name] = value
    return replace(request, query=read_keys(keys))


def read_keys(keys: Mapping[str, str]) -> WorkitemQuery:
    """Read matching keys: keywords or tags, with dots between them where they are inside of a sequence.

    Raises
    ------
    BadQuery
        See `read_search`.
    """
    query = WorkitemQuery()
    for name, value in keys.items():
        if len(value) > _LONGEST_VALUE * 32:
            raise BadQuery(f"the value of {_shown(name)} is too long")
        path = attribute_path(name)
        query = _with_key(query, path, value.replace("\x00", ""))
    return query


def attribute_path(name: str) -> str:
    """Keywords with dots between them.

    Raises
    ------
    BadQuery
        One is in no dictionary.
    """
    keywords = []
    for part in name.split("."):
        keyword = keyword_for_tag(int(part, 16)) if _TAG.fullmatch(part) else part
        if not keyword or tag_for_keyword(keyword) is None:
            raise BadQuery(f"{_shown(name)} is no attribute that is known here")
        keywords.append(keyword)
    return ".".join(keywords)


def _with_key(query: WorkitemQuery, path: str, value: str) -> WorkitemQuery:
    parent, _, keyword = path.rpartition(".")
    if path in _CONSTANTS:
        fits = is_universal(value) or fnmatchcase(_CONSTANTS[path], value.replace("[", "[[]"))
        return replace(query, is_impossible=query.is_impossible or not fits)
    if parent in ("", _REQUEST) and keyword in _EMPTY:
        return replace(query, is_impossible=query.is_impossible or not is_universal(value))
    if parent in ("", _REQUEST) and keyword in TEXT_KEYS:
        return replace(query, texts={**(query.texts or {}), keyword: value})
    reader = (
        _READERS.get(keyword) if parent == "" or (parent, keyword) == (_REQUEST, "StudyInstanceUID") else None
    )
    if reader is None:
        raise BadQuery(f"{_shown(path)} cannot be matched here")
    return query if is_universal(value) else reader(query, keyword, value)


def _states(query: WorkitemQuery, keyword: str, value: str) -> WorkitemQuery:
    return replace(query, states=frozenset(map(WorkitemState, _fitting(map(str, WorkitemState), value))))


def _priorities(query: WorkitemQuery, keyword: str, value: str) -> WorkitemQuery:
    return replace(query, step_priorities=_fitting(map(step_priority, Priority), value))


def _readiness(query: WorkitemQuery, keyword: str, value: str) -> WorkitemQuery:
    return replace(query, readiness=_fitting(map(readiness, StudyState), value))


def _fitting(known: Iterable[str], value: str) -> frozenset[str]:
    """Those of a code string's values that a list of values and patterns names."""
    patterns = [one.replace("[", "[[]") for one in _list(value)]
    return frozenset(one for one in known if any(fnmatchcase(one, pattern) for pattern in patterns))


def _uids(query: WorkitemQuery, keyword: str, value: str) -> WorkitemQuery:
    uids = _list(value)
    if len(uids) > _MOST_UIDS or not all(map(is_valid_uid, uids)):
        raise BadQuery(f"{keyword} takes up to {_MOST_UIDS} valid UIDs")
    if keyword == "SOPInstanceUID":
        return replace(query, sop_instance_uids=frozenset(uids))
    return replace(query, study_instance_uids=frozenset(uids))


def _birth_dates(query: WorkitemQuery, keyword: str, value: str) -> WorkitemQuery:
    first, dash, last = value.partition("-")
    bounds = (first, last if dash else first)
    if not any(bounds) or not all(_DATE.fullmatch(bound) for bound in bounds if bound):
        raise BadQuery(f"{keyword} takes YYYYMMDD or a range of such dates")
    return replace(query, birth_dates=bounds)


def _start(query: WorkitemQuery, keyword: str, value: str) -> WorkitemQuery:
    return replace(query, start=read_date_time_range(keyword, value.replace(" ", "+")))


_READERS: Mapping[str, Callable[[WorkitemQuery, str, str], WorkitemQuery]] = {
    "ProcedureStepState": _states,
    "ScheduledProcedureStepPriority": _priorities,
    "InputReadinessState": _readiness,
    "SOPInstanceUID": _uids,
    "StudyInstanceUID": _uids,
    "PatientBirthDate": _birth_dates,
    "ScheduledProcedureStepStartDateTime": _start,
}


def read_date_time_range(keyword: str, value: str) -> tuple[datetime | None, datetime | None]:
    """Read range matching of a DT (PS3.4 C.2.2.2.5): the earliest that fits, and what is just too late.

    A time without offset is in the time zone of this node; one that leaves out seconds stands for its whole minute.

    Raises
    ------
    BadQuery
        It is no range of date-times.
    """
    whole = _period(value)
    if whole is not None:
        return whole
    for at in (at for at, character in enumerate(value) if character == "-"):
        first, last = value[:at], value[at + 1 :]
        begin, end = (_period(bound) if bound else (None, None) for bound in (first, last))
        if (first or last) and begin is not None and end is not None:
            return begin[0], end[1]
    raise BadQuery(f"{keyword} takes YYYYMMDDHHMMSS or a range of such times")


def _period(value: str) -> tuple[datetime, datetime] | None:
    found = _DATE_TIME.fullmatch(value)
    if found is None:
        return None
    part = found.groupdict()
    try:
        begin = datetime(
            int(part["y"]),
            int(part["mo"] or 1),
            int(part["d"] or 1),
            int(part["h"] or 0),
            int(part["mi"] or 0),
            min(int(part["s"] or 0), 59),
            int((part["f"] or "0").ljust(6, "0")),
            tzinfo=_zone(part["zone"]),
        )
        if begin.tzinfo is None:
            begin = begin.astimezone()
        return begin.astimezone(UTC), _after(begin, part).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _after(begin: datetime, part: Mapping[str, str | None]) -> datetime:
    """When the period is over that a date-time of this precision stands for."""
    if part["mo"] is None:
        return begin.replace(year=begin.year + 1)
    if part["d"] is None:
        return (begin + timedelta(days=31)).replace(day=1)
    for name, length in (("h", timedelta(days=1)), ("mi", timedelta(hours=1)), ("s", timedelta(minutes=1))):
        if part[name] is None:
            return begin + length
    return begin + (timedelta(seconds=1) if part["f"] is None else timedelta(microseconds=1))


def _zone(text: str | None) -> timezone | None:
    if text is None:
        return None
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[3:]))
    return timezone(-offset if text[0] == "-" else offset)


def _list(value: str) -> list[str]:
    return [one.strip() for one in re.split(r"[,\\]", value) if one.strip()]


def _number(name: str, value: str, *, least: int) -> int:
    if (
        not (value.isascii() and value.isdecimal())
        or len(value) > 8
        or not least <= int(value) <= _LARGEST_OFFSET
    ):
        raise BadQuery(f"{name} takes a number from {least} to {_LARGEST_OFFSET}")
    return int(value)


def _truth(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise BadQuery(f"{name} takes true or false")
    return value == "true"


def _names_inputs(value: str) -> bool:
    names = value.split(",")
    paths = [attribute_path(name) for name in names if name != "all"]
    return "all" in names or any(path.startswith("InputInformationSequence") for path in paths)


def _shown(name: str) -> str:
    """A name that a caller has sent, as much of it as fits into a line."""
    return repr(name[:80])
