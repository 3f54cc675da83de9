"""Rows by many keys, in one statement whose text is the same for any number of them.

So SQLAlchemy, SQLite and PostgreSQL make ready once what is asked again and again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import JSON, ColumnElement, Text, any_, cast, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY


def among(column: ColumnElement[str], values: Sequence[str], *, dialect: str) -> ColumnElement[bool]:
    """Whether a column is one of values that are in the database.

    Parameters
    ----------
    dialect
        ``sqlite`` or ``postgresql``.
    """
    written = literal(json.dumps(values), Text)
    if dialect == "postgresql":
        listed = select(func.json_array_elements_text(cast(written, JSON)))
        return column == any_(func.array(listed.scalar_subquery(), type_=ARRAY(Text)))
    return column.in_(select(func.json_each(written).table_valued("value").c.value))
