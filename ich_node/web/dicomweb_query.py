"""What a search asks for (QIDO-RS, PS3.18 8.3.4 and 10.6.1): keys to match, attributes to return, and which page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from starlette.exceptions import HTTPException

from ich_node.database.matching import Alternative, Between, Empty, Key, Value, is_universal
from ich_node.web.dicomweb_levels import SERIES_ATTRIBUTES, STUDY_ATTRIBUTES, Level, level_of, tag_of

MOST_RESULTS = {Level.STUDY: 500, Level.SERIES: 1000, Level.INSTANCE: 5000}
"""In one answer."""
_MOST_OFFSET = 1_000_000
_MOST_KEYS, _MOST_VALUES, _MOST_CHARACTERS, _MOST_STARS = 32, 256, 1024, 5
_NOT_KEYS = frozenset(("accept", "charset"))
_SWITCHES = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_UID_LIST = re.compile(r"[\\,]")
_RANGE = re.compile(r"(\d*(?:\.\d+)?)-(\d*(?:\.\d+)?)")
_DATE, _TIME = re.compile(r"\d{8}"), re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")
_WILDCARD_VRS = frozenset(["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"])
_NUMBER_VRS = frozenset(["DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV", "US or SS"])
_NO_KEY_VRS = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "UN", "SQ", "AT"])
_COUNTED = frozenset(
    (
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
        "NumberOfSeriesRelatedInstances",
        "InstanceAvailability",
        "RetrieveURL",
    )
)
"""Not matched: they are no attributes of an object."""


@dataclass(frozen=True, kw_only=True)
class HeaderKey:
    """A key whose value stands in a file."""

    path: tuple[str, ...]
    """Tags in eight hexadecimal digits: one, or those of sequences and of an attribute within."""
    key: Key


@dataclass(frozen=True, kw_only=True)
class Query:
    """A search."""

    level: Level
    keys: dict[Level, tuple[HeaderKey, ...]]
    """Of each level; the path of most is one tag."""
    include: frozenset[str]
    """Tags of attributes to return beside the standard ones, those that were matched among them."""
    include_all: bool
    limit: int
    offset: int
    is_fuzzy: bool
    """Whether fuzzy matching was asked for."""

    def keywords(self) -> frozenset[str]:
        """Of the keys, for the record of who searched: no values."""
        return frozenset(one.key.keyword for keys in self.keys.values() for one in keys)


def parse_query(level: Level, items: Iterable[tuple[str, str]]) -> Query:
    """Read query parameters.

    Raises
    ------
    HTTPException
        400 with a line that says which parameter is wrong, and why.
    """
    parameters: dict[str, list[str]] = {}
    for name, text in items:
        if name not in _NOT_KEYS:
            parameters.setdefault(name, []).append(text)
    switches = {name: _switch(name, parameters.pop(name, [])) for name in _SWITCHES}
    limit = _number("limit", parameters.pop("limit", []), MOST_RESULTS[level])
    offset = _number("offset", parameters.pop("offset", []), 0)
    include, include_all = _included(parameters.pop("includefield", []))
    if len(parameters) > _MOST_KEYS:
        raise _wrong(f"a search may have {_MOST_KEYS} keys")
    keys: dict[Level, list[HeaderKey]] = {one: [] for one in Level}
    for name, values in parameters.items():
        if len(values) > 1:
            raise _wrong(f"{_shown(name)} is given more than once")
        of, key = _key(name, values[0], level, switches)
        include |= {key.path[0]}
        if key.key.alternatives:
            keys[of].append(key)
    return Query(
        level=level,
        keys={one: tuple(found) for one, found in keys.items()},
        include=frozenset(include),
        include_all=include_all,
        limit=min(limit, MOST_RESULTS[level]),
        offset=min(offset, _MOST_OFFSET),
        is_fuzzy=switches["fuzzymatching"],
    )


def _key(name: str, text: str, level: Level, switches: dict[str, bool]) -> tuple[Level, HeaderKey]:
    path = tuple(_attribute(part) for part in name.split("."))
    keywords = [keyword_for_tag(int(tag, 16)) for tag in path]
    of = level_of(keywords[0])
    if of > level:
        raise _wrong(f"{_shown(name)} is an attribute of {of.name.lower()} level, and is not matched here")
    *sequences, vr = (
        dictionary_VR(int(tag, 16)) if keyword else "UN" for tag, keyword in zip(path, keywords, strict=True)
    )
    if _NO_KEY_VRS & set(vr.split()) or set(sequences) - {"SQ"} or keywords[0] in _COUNTED:
        raise _wrong(f"{_shown(name)} cannot be matched")
    key = Key(keyword=".".join(keywords), alternatives=_alternatives(name, text, vr, switches))
    return of, HeaderKey(path=path, key=key)


def _attribute(text: str) -> str:
    """Tag of a keyword or of a tag in eight hexadecimal digits."""
    if _TAG.fullmatch(text):
        return text.upper()
    tag = tag_for_keyword(text)
    if tag is None:
        raise _wrong(f"{_shown(text)} is neither a parameter of a search nor a DICOM attribute")
    return f"{tag:08X}"


def _alternatives(name: str, text: str, vr: str, switches: dict[str, bool]) -> tuple[Alternative, ...]:
    """What a value may be; nothing where it may be anything (universal matching)."""
    text = text.replace("\x00", "")  # no value has it, and PostgreSQL takes none
    if is_universal(text):
        return ()
    if len(text) > (_MOST_CHARACTERS if vr != "UI" else _MOST_VALUES * 65):
        raise _wrong(f"the value of {_shown(name)} is too long")
    if switches["emptyvaluematching"] and text == '""':
        return (Empty(),)
    values = [text]
    if vr == "UI":
        values = _UID_LIST.split(text)
    elif switches["multiplevaluematching"]:
        values = text.split("\\")
    if len(values) > _MOST_VALUES:
        raise _wrong(f"{_shown(name)} may have {_MOST_VALUES} values")
    return tuple(_alternative(name, value.strip(), vr) for value in values)


def _alternative(name: str, text: str, vr: str) -> Alternative:
    if vr in ("DA", "TM"):
        return _moment(name, text, vr)
    if text.count("*") > _MOST_STARS and vr in _WILDCARD_VRS:
        raise _wrong(f"{_shown(name)} may have {_MOST_STARS} asterisks")
    if vr in _NUMBER_VRS:
        return Value(text=_number_text(text))
    if vr == "PN":
        return Value(text=text.rstrip("^"), has_wildcards=True, is_name=True)
    return Value(text=text, has_wildcards=vr in _WILDCARD_VRS)


def _number_text(text: str) -> str:
    """As values of that kind are written here: 7 for 007 and 7.0."""
    try:
        return f"{float(text):.15g}"
    except ValueError:
        return text


def _moment(name: str, text: str, vr: str) -> Alternative:
    pattern = _DATE if vr == "DA" else _TIME
    matched = _RANGE.fullmatch(text)
    ends: Sequence[str] = matched.groups() if matched else (text,)
    if not any(ends) or any(end and not pattern.fullmatch(end) for end in ends):
        form = "YYYYMMDD" if vr == "DA" else "HHMMSS"
        raise _wrong(
            f"{_shown(name)} is to be {form}, or a range {form}-{form} of which one end may be left out"
        )
    if matched:
        return Between(low=ends[0], high=ends[1])
    return Between(low=text, high=text) if vr == "TM" else Value(text=text)


def _included(texts: list[str]) -> tuple[set[str], bool]:
    names = [name.strip() for text in texts for name in text.split(",")]
    tags = {tag for name in names if name not in ("", "all") for tag in (_attribute(name.partition(".")[0]),)}
    if len(tags) > _MOST_VALUES:
        raise _wrong(f"includefield may name {_MOST_VALUES} attributes")
    return tags, "all" in names


def _switch(name: str, texts: list[str]) -> bool:
    if len(texts) > 1 or any(text not in ("true", "false") for text in texts):
        raise _wrong(f"{name} is to be true or false")
    return texts == ["true"]


def _number(name: str, texts: list[str], default: int) -> int:
    if not texts:
        return default
    if len(texts) > 1 or not re.fullmatch(r"[0-9]{1,18}", texts[0]):
        raise _wrong(f"{name} is to be a whole number that is not negative")
    return int(texts[0])


def _shown(name: str) -> str:
    """A name from outside, as far as a line of an answer should carry it."""
    return repr(name[:64])


def _wrong(words: str) -> HTTPException:
    return HTTPException(400, f"The search cannot be understood: {words}.")


def included_tags(query: Query, level: Level) -> frozenset[str]:
    """Tags of attributes of a level that are to be returned beside the standard ones."""
    named = {tag for tag in query.include if level_of(keyword_for_tag(int(tag, 16))) is level}
    if not query.include_all or level is Level.INSTANCE:
        return frozenset(named)
    keywords = STUDY_ATTRIBUTES if level is Level.STUDY else SERIES_ATTRIBUTES
    return frozenset(named | {tag_of(keyword) for keyword in keywords - _COUNTED})
