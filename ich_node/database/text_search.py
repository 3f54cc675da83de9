"""Text that a person types, looked for in columns: anywhere in them, in capitals or not, and never as a pattern.

Databases fold case as their build and their locale let them: SQLite only ASCII, PostgreSQL in the locale "C" too. So
the pattern itself names each letter in all its forms, which both understand in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, or_

_LONGEST = 300
"""Characters; nothing that is looked for is longer."""
_ASCII = re.compile(r"[\x00-\x7f]+")
_GLOB_SPECIAL = "*?["


def words_within(text: str, columns: Sequence[ColumnElement[str]], *, dialect: str) -> ColumnElement[bool]:
    """Whether each word of a text is somewhere in one of the columns.

    Parameters
    ----------
    text
        Without a word it is in every row.
    dialect
        ``sqlite`` or ``postgresql``.
    """
    # As `AnyText` has it, but before a "?" could become a sign of the pattern.
    held = text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    words = held[:_LONGEST].split()
    return and_(True, *(or_(*(_contains(column, word, dialect) for column in columns)) for word in words))


def _contains(column: ColumnElement[str], word: str, dialect: str) -> ColumnElement[bool]:
    if dialect == "postgresql":
        return column.op("~", is_comparison=True)("".join(_regular(c) for c in word))
    # SQLite's LIKE folds ASCII, and is several times as fast: GLOB looks at what that has left.
    plain = column.contains(max(_ASCII.findall(word), key=len, default=""), autoescape=True)
    if word.isascii():
        return plain
    return and_(plain, column.op("GLOB", is_comparison=True)(f"*{''.join(_glob(c) for c in word)}*"))


def _regular(character: str) -> str:
    forms = _forms(character)
    return f"[{forms}]" if len(forms) > 1 else re.escape(character)


def _glob(character: str) -> str:
    forms = _forms(character)
    return f"[{forms}]" if len(forms) > 1 or character in _GLOB_SPECIAL else character


def _forms(character: str) -> str:
    """A letter small, capital and in title case; anything else is its only form."""
    found = {character}
    for _ in range(2):  # the small sigma at a word's end is that of no capital
        found |= {form for one in found for form in (one.lower(), one.upper(), one.title())}
    folded = character.casefold()
    return "".join(sorted(form for form in found if len(form) == 1 and form.casefold() == folded))
