"""Attribute matching of DICOM queries (PS3.4 C.2.2.2) as conditions on columns; what is looked for is data."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute

_GLOB_SPECIAL = "*?["


def is_universal(value: str) -> bool:
    """Whether a matching key selects everything (C.2.2.2.3): empty, or nothing but ``*``."""
    return not value.strip("*")


def text_matches(
    column: InstrumentedAttribute[str], value: str, *, dialect: str, fold_case: bool = False
) -> ColumnElement[bool]:
    """Single value and wild card matching (C.2.2.2.1, C.2.2.2.4): ``*`` is any text, ``?`` any character.

    Parameters
    ----------
    dialect
        ``sqlite`` or ``postgresql``.
    fold_case
        Whether capitals and small letters are the same, as for names of persons.
    """
    value = value.replace("\x00", "")
    if not fold_case and "*" not in value and "?" not in value:
        return column == value
    if dialect == "postgresql":
        like: Any = column.ilike if fold_case else column.like
        found: ColumnElement[bool] = like(_like(value), escape="\\")
        return found
    pattern = "".join(_glob(character, fold_case) for character in value)
    return column.op("GLOB", is_comparison=True)(pattern)


def _like(value: str) -> str:
    special = {"*": "%", "?": "_", "%": "\\%", "_": "\\_", "\\": "\\\\"}
    return "".join(special.get(character, character) for character in value)


def _glob(character: str, fold_case: bool) -> str:
    if character in "*?":
        return character
    forms = {character, character.lower(), character.upper()} if fold_case else {character}
    forms = {form for form in forms if len(form) == 1}
    return f"[{''.join(sorted(forms))}]" if len(forms) > 1 or character in _GLOB_SPECIAL else character
