"""Attribute matching of searches (PS3.4 C.2.2.2), in SQL and, by the same rules, of values that are in no column.

Values of a search are data: they reach the database as parameters, and the characters that its pattern operators know
are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, or_

_WILDCARD = re.compile(r"[*?]")


@dataclass(frozen=True, kw_only=True)
class Value:
    """Single Value Matching (C.2.2.2.1), and Wild Card Matching (C.2.2.2.4) where ``*`` and ``?`` may stand."""

    text: str
    has_wildcards: bool = False
    is_name: bool = False
    """Of a person: upper and lower case are alike, and the first of several component groups is enough."""

    def fits(self, text: str) -> bool:
        """Whether a value matches."""
        if not self.is_name:
            return self._fits(self.text, text)
        folded = "".join(map(_forms, text))
        return any(
            self._fits("".join(map(_forms, self.text)), name) for name in (folded, folded.partition("=")[0])
        )

    def _fits(self, pattern: str, text: str) -> bool:
        return fits_wildcards(pattern, text) if self.has_wildcards else pattern == text


@dataclass(frozen=True, kw_only=True)
class Between:
    """Range Matching (C.2.2.2.5) of dates and times, both ends included."""

    low: str = ""
    """Empty: any."""
    high: str = ""

    @property
    def last(self) -> str:
        """The last that matches: a time that names no seconds or fractions means all of them."""
        return self.high.ljust(16, "9")

    def fits(self, text: str) -> bool:
        """Whether a value matches; an absent one never does."""
        return bool(text) and self.low <= text and (not self.high or text <= self.last)


@dataclass(frozen=True, kw_only=True)
class Empty:
    """Empty Value Matching (C.2.2.2.7)."""

    def fits(self, text: str) -> bool:
        """Whether there is no value."""
        return not text


Alternative: TypeAlias = Value | Between | Empty


@dataclass(frozen=True, kw_only=True)
class Key:
    """One attribute, and what its value may be."""

    keyword: str
    alternatives: tuple[Alternative, ...]
    """One of them has to match."""

    def fits(self, values: Collection[str]) -> bool:
        """Whether one of an attribute's values matches."""
        return any(one.fits(text) for one in self.alternatives for text in (values or ("",)))


def fits_wildcards(pattern: str, text: str) -> bool:
    """Match ``*`` and ``?`` in time that grows with the product of both lengths, whatever the pattern is."""
    at = in_text = 0
    star, resumed = -1, 0
    while in_text < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resumed = at, in_text
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[in_text]):
            at += 1
            in_text += 1
        elif star >= 0:
            resumed += 1
            at, in_text = star + 1, resumed
        else:
            return False
    return not pattern[at:].strip("*")


def is_universal(value: str) -> bool:
    """Whether a text with wild cards selects everything (C.2.2.2.3): empty, or nothing but ``*``."""
    return not value.strip("*")


def text_matches(
    column: SQLColumnExpression[str], text: str, *, dialect: str, is_name: bool = False
) -> ColumnElement[bool]:
    """Whether a column matches a text in which wild cards may stand."""
    return _any_of(column, (Value(text=text, has_wildcards=True, is_name=is_name),), dialect)


def any_of(column: SQLColumnExpression[str], key: Key, dialect: str) -> ColumnElement[bool]:
    """Whether a column matches a key."""
    return _any_of(column, key.alternatives, dialect)


def _any_of(
    column: SQLColumnExpression[str], alternatives: Sequence[Alternative], dialect: str
) -> ColumnElement[bool]:
    plain = [one.text for one in alternatives if isinstance(one, Value) and _is_plain(one)]
    others = [_condition(column, one, dialect) for one in alternatives if not _is_plain(one)]
    return or_(*([column.in_(plain)] if plain else ()), *others)


def _is_plain(one: Alternative) -> bool:
    if not isinstance(one, Value) or one.is_name:
        return False
    return not (one.has_wildcards and _WILDCARD.search(one.text))


def _condition(column: SQLColumnExpression[str], one: Alternative, dialect: str) -> ColumnElement[bool]:
    if isinstance(one, Empty):
        return column == ""
    if isinstance(one, Between):
        ends = [column >= one.low if one.low else column != ""]
        return and_(*ends, *([column <= one.last] if one.high else ()))
    letter = _glob if dialect == "sqlite" else _regular
    pattern = "".join(letter(c, fold=one.is_name, is_wild=one.has_wildcards) for c in one.text)
    if dialect == "sqlite":
        patterns = (pattern, f"{pattern}=*") if one.is_name else (pattern,)
        return or_(*(column.op("GLOB", is_comparison=True)(each) for each in patterns))
    return column.op("~", is_comparison=True)(f"^(?:{pattern}){'(?:=.*)?' if one.is_name else ''}$")


def _glob(character: str, *, fold: bool, is_wild: bool) -> str:
    """As in a pattern of SQLite, whose LIKE takes ASCII letters for their capitals."""
    if character in "*?":
        return character if is_wild else f"[{character}]"
    forms = _forms(character) if fold else character
    return f"[{forms}]" if len(forms) > 1 or character == "[" else character


def _regular(character: str, *, fold: bool, is_wild: bool) -> str:
    """As in a regular expression of PostgreSQL, whose folding of case depends on the locale."""
    if is_wild and character in "*?":
        return ".*" if character == "*" else "."
    forms = _forms(character) if fold else character
    return f"[{forms}]" if len(forms) > 1 else re.sub(r"(\W)", r"\\\1", character)


def _forms(character: str) -> str:
    """A letter small and capital."""
    return "".join(
        sorted({form for form in (character.lower(), character.upper(), character) if len(form) == 1})
    )


def literal(keyword: str, values: Sequence[str]) -> Key:
    """A key that one of these values fits."""
    return Key(keyword=keyword, alternatives=tuple(Value(text=text) for text in values))
