"""A database that a hospital has filled for years: rows of a million studies, made without the node's own code."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import psycopg

from ich_node.database.engine import Database

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
YEARS = 8
SERIES_PER_STUDY = 2
"""Instances have no rows: their images were purged, but for those of the last studies."""
LATEST_WITH_IMAGES = 2000
IMAGES = 40
_FAMILIES = [
    "Müller",
    "Schmidt",
    "Novák",
    "Dvořák",
    "Иванов",
    "Παπαδόπουλος",
    "Nguyen",
    "García",
    "O'Brien",
    "Yılmaz",
    "Kowalski",
    "Rossi",
]
_GIVEN = [
    "Käthe",
    "Hans",
    "Zoë",
    "Jürgen",
    "Anna",
    "Пётр",
    "Νίκος",
    "José",
    "Siân",
    "Łukasz",
    "Ferran",
    "Minh",
]
_STATIONS = ("CT1", "CT2", "CT3", "CT_EMERGENCY")
_READ_AFTER = timedelta(seconds=45)


def study_instance_uid(number: int) -> str:
    """UID of one study, 1 for the oldest."""
    return f"1.2.826.0.1.3680043.10.99.{number:07d}.{number * 7919 % 100000}"


def accession_number(number: int) -> str:
    """Of one study."""
    return f"A{number:09d}"


def patient_id(number: int) -> str:
    """Of the patient of one study; each has two in the mean."""
    return f"P{number * 7919 % 500_000:07d}"


def fill(database: Database, studies: int) -> None:
    """Write the rows of so many studies, the oldest first, and tell the database's planner what there is.

    Of a hundred studies 88 are read with nothing found, 3 STAT, 5 HIGH, 3 not read, 1 failed; the last few are
    under way. Nobody has reviewed any.
    """
    for table, columns, rows in _tables(studies):
        _write(database, table, columns, rows)
    if database.engine.dialect.name == "postgresql":  # as its autovacuum does; SQLite has no such thing
        _run_alone(database, "VACUUM ANALYZE")


def review_all(database: Database, *, before: datetime) -> None:
    """Let somebody review all studies that came before a time."""
    with database.writing() as session:
        session.connection().exec_driver_sql(
            f"UPDATE study SET reviewed_at = '{_text(NOW)}', reviewed_by = 'r' WHERE received_at < '{_text(before)}'"
        )
    if database.engine.dialect.name == "postgresql":
        _run_alone(database, "VACUUM ANALYZE study")


def received_at(number: int, studies: int) -> datetime:
    """When a study came: evenly over the years."""
    return NOW - timedelta(days=365 * YEARS) * ((studies - number) / studies)


def _run_alone(database: Database, statement: str) -> None:
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(statement)


_Rows = Iterator[tuple[Any, ...]]


def _tables(studies: int) -> Iterator[tuple[str, str, _Rows]]:
    numbers = range(1, studies + 1)
    yield (
        "study",
        "study_instance_uid patient_id patient_name patient_birth_date patient_sex accession_number study_date "
        "study_time study_description modality_ae_title received_at last_received_at state reason priority suspicion "
        "subtypes reading_id read_at flagged_at claim_number attempts",
        (_study(n, studies) for n in numbers),
    )
    yield (
        "series",
        "series_instance_uid study_instance_uid modality series_number series_description revision handled_revision "
        "due_at purged_instances",
        (_series(n, k, studies) for n in numbers for k in range(SERIES_PER_STUDY)),
    )
    ids = count(1)
    yield (
        "instance",
        "id sop_instance_uid series_instance_uid sop_class_uid transfer_syntax_uid number_of_frames file_name "
        "size_bytes content_hash source_ae_title received_at conflict",
        (_instance(next(ids), n, k, studies) for n in numbers[-LATEST_WITH_IMAGES:] for k in range(IMAGES)),
    )
    read = [n for n in numbers if _standing(n, studies)[0] == "READ"]
    yield (
        "reading",
        "id study_instance_uid series_instance_uid run_number model_name model_version weights_sha256 content_sha256 "
        "suspicion operating_points priority subtypes caveats slices timeline read_at superseded sr_sop_instance_uid "
        "sr_series_instance_uid",
        (_reading(n, studies) for n in read),
    )
    yield (
        "result_object",
        "sop_instance_uid reading_id sop_class_uid kind position file_name study_instance_uid",
        ((f"2.{n}", n, "1.2", "SR", 0, f"{n}.dcm", study_instance_uid(n)) for n in read),
    )
    yield (
        "outbox",
        "id sop_instance_uid destination urgency state attempts created_at next_attempt_at sent_at delivered_at",
        (_delivery(n, studies) for n in read),
    )
    ids = count(1)
    yield (
        "audit",
        "id at study_instance_uid actor action state priority",
        (
            (
                next(ids),
                _text(received_at(n, studies)),
                study_instance_uid(n),
                "CT1",
                action,
                *_standing(n, studies),
            )
            for n in numbers
            for action in ("received", "read")
        ),
    )


def _standing(number: int, studies: int) -> tuple[str, str]:
    left = studies - number
    if left < 20:
        return ("READING", "QUEUED", "RECEIVING")[left % 3], "MEDIUM"
    kind = random.Random(number).randrange(100)
    if kind < 8:
        return "READ", "STAT" if kind < 3 else "HIGH"
    return ("READ", "ROUTINE") if kind < 96 else ("NOT_READ" if kind < 99 else "FAILED", "MEDIUM")


def _study(number: int, studies: int) -> tuple[Any, ...]:
    state, priority = _standing(number, studies)
    came = received_at(number, studies)
    done = _text(came + _READ_AFTER) if state == "READ" else None
    name = f"{_FAMILIES[number % 12]}^{_GIVEN[number // 12 % 12]}"
    return (
        study_instance_uid(number),
        patient_id(number),
        name,
        "19500101",
        "O",
        accession_number(number),
        f"{came:%Y%m%d}",
        f"{came:%H%M%S}",
        "CT head",
        _STATIONS[number % 4],
        _text(came),
        _text(came),
        state,
        None if state != "NOT_READ" else "NO_READABLE_SERIES",
        priority,
        _suspicion(priority) if state == "READ" else None,
        json.dumps({"subdural": 0.5}) if state == "READ" else None,
        number if state == "READ" else None,
        done,
        done if priority in ("STAT", "HIGH") else None,
        1,
        0,
    )


def _suspicion(priority: str) -> float:
    return {"STAT": 0.95, "HIGH": 0.5}.get(priority, 0.02)


def _series(number: int, which: int, studies: int) -> tuple[Any, ...]:
    study = study_instance_uid(number)
    arriving = _standing(number, studies)[0] in ("RECEIVING", "QUEUED", "READING")
    due_at = _text(NOW + timedelta(seconds=number % 3 - 1)) if arriving and which == 0 else None
    images = IMAGES if which == 0 else 0
    purged = 0 if studies - number < LATEST_WITH_IMAGES else images
    return f"{study}.{which}", study, "CT", which, "head", images, images, due_at, purged


def _instance(row_id: int, number: int, which: int, studies: int) -> tuple[Any, ...]:
    series = f"{study_instance_uid(number)}.0"
    uid = f"{series}.{which}"
    came = _text(received_at(number, studies))
    return row_id, uid, series, "1.2", "1.2", 1, f"{uid}.dcm", 2**19, uid, "CT1", came, False


def _reading(number: int, studies: int) -> tuple[Any, ...]:
    priority = _standing(number, studies)[1]
    study, hexadecimal = study_instance_uid(number), f"{number:064x}"
    points = json.dumps({"high_confidence": 0.8, "sensitive": 0.3})
    return (
        *(
            number,
            study,
            f"{study}.0",
            1,
            "vicar-attention",
            "1",
            "ab" * 32,
            hexadecimal,
            _suspicion(priority),
        ),
        *(points, priority, json.dumps({"subdural": 0.5}), "[]", "[]", "{}"),
        _text(received_at(number, studies) + _READ_AFTER),
        *(False, f"2.{number}", f"2.{number}.0"),
    )


def _delivery(number: int, studies: int) -> tuple[Any, ...]:
    made = _text(received_at(number, studies) + _READ_AFTER)
    waits = studies - number < 200
    state = "DEAD" if number % 10_000 == 0 else "PENDING" if waits else "DELIVERED"
    done = None if waits or state == "DEAD" else made
    return number, f"2.{number}", "PACS", 3, state, 1, made, made, done, done


def _text(time: datetime) -> str:
    """As SQLite keeps it; PostgreSQL is told that it is UTC."""
    return f"{time:%Y-%m-%d %H:%M:%S.%f}"


def _write(database: Database, table: str, columns: str, rows: _Rows) -> None:
    names = columns.split()
    with database.writing() as session:
        connection = session.connection().connection.driver_connection
        if isinstance(connection, sqlite3.Connection):
            marks = ", ".join("?" * len(names))
            connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", rows)
            return
        assert isinstance(connection, psycopg.Connection)
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL TIME ZONE 'UTC'")
            with cursor.copy(f"COPY {table} ({', '.join(names)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
