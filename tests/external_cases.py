"""A table of another system for tests, on whichever database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, text

from ich_node.database.external_connection import connected
from ich_node.database.external_worklist import ExternalTable

COLUMNS = {
    "accession_number": "acc_no",
    "priority": "prio",
    "state": "ai state",
    "suspicion": "score",
    "reason_detail": "remark",
    "flagged_at": "flagged",
    "changed_at": "changed",
}
VALUES = {"STAT": 1, "HIGH": 2, "MEDIUM": 3, "ROUTINE": 9, "NOT_READ": "not read"}


@contextmanager
def open_theirs(url: str) -> Iterator[Connection]:
    with connected(url) as connection:
        yield connection


def put(external: ExternalTable, *accession_numbers: str) -> None:
    with open_theirs(external.url) as connection:
        name = connection.dialect.identifier_preparer.quote(external.table)
        for number in accession_numbers:
            connection.execute(text(f"INSERT INTO {name} (acc_no) VALUES (:number)"), {"number": number})


def rows(external: ExternalTable) -> list[dict[str, Any]]:
    with open_theirs(external.url) as connection:
        name = connection.dialect.identifier_preparer.quote(external.table)
        return [
            dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {name} ORDER BY acc_no"))
        ]
