"""Types of columns that are the same on each database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Text, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, on databases that keep the zone and on those that do not."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times; SQLite gets naive UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without zone has no place in the database")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class iso_text(FunctionElement[str]):
    """What `UtcDateTime` keeps as ISO 8601 with milliseconds in UTC; for long lists, where Python takes longer."""

    name = "iso_text"
    type = Text()
    inherit_cache = True


@compiles(iso_text, "sqlite")
def _iso_text_of_text(element: iso_text, compiler: SQLCompiler, **options: Any) -> str:
    kept = compiler.process(element.clauses, **options)  # as "2026-01-31 12:00:00.000000"
    return f"substr({kept}, 1, 10) || 'T' || substr({kept}, 12, 12) || '+00:00'"


@compiles(iso_text, "postgresql")
def _iso_text_of_time(element: iso_text, compiler: SQLCompiler, **options: Any) -> str:
    kept = compiler.process(element.clauses, **options)
    return f"to_char({kept} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS+00:00')"


class AnyText(TypeDecorator[str]):
    """Text as it comes from DICOM headers and peers; what a database cannot hold does not stop the row.

    PostgreSQL refuses NUL, and no database takes a surrogate that stands alone.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Drop NUL, show lone surrogates as ``?``."""
        if value is None:
            return None
        return value.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
