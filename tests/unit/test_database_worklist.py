"""The worklist as people and other systems see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import text, update

from ich_node.database.engine import Database
from ich_node.database.outbox import claim_deliveries, record_failed, record_taken
from ich_node.database.queue import request_reprocess
from ich_node.database.tables import StudyRow
from ich_node.database.worklist import (
    COLUMNS,
    find_studies,
    overdue,
    result_file,
    result_files,
    state_counts,
    worklist,
    worklist_row,
)
from ich_node.findings import Priority, StudyState
from tests.database_cases import LEASE, STUDY, Sender, at, read_once, sqlite_database

DESIGNED = [
    "study_instance_uid",
    "accession_number",
    "patient_id",
    "patient_name",
    "study_date",
    "study_time",
    "modality_ae_title",
    "received_at",
    "read_at",
    "flagged_at",
    "priority",
    "state",
    "reason",
    "suspicion",
    "subtypes",
    "model_name",
    "model_version",
    "sr_sop_instance_uid",
    "delivered_at",
    "reviewed_at",
    "reviewed_by",
]
NAME = "O'Brien\"^<script>alert(1)</script>'); DROP TABLE study;--"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


def add(database: Database, study: str, priority: Priority, *, seconds: float) -> None:
    """A study that ended with this priority; MEDIUM is one that still arrives."""
    sender = Sender(database=database, study=study, series=f"{study}.1")
    if priority is Priority.MEDIUM:
        sender.send(1, seconds=seconds, due=1e9)
        return
    sender.send(1, seconds=seconds, due=seconds)
    read_once(database, priority, study=study, seconds=seconds)


def order(database: Database, **arguments: object) -> list[str]:
    with database.reading() as session:
        return [row["study_instance_uid"] for row in worklist(session, **arguments)]  # type: ignore[arg-type]


def test_the_view_has_the_columns_that_others_rely_on_in_their_order(database: Database) -> None:
    Sender(database=database).send(1)
    with database.reading() as session:
        plain = session.execute(text("SELECT * FROM worklist_v1"))
        assert list(plain.keys()) == DESIGNED
        assert list(worklist(session)[0]) == DESIGNED
    assert list(COLUMNS) == DESIGNED


def test_a_row_says_what_is_known(database: Database) -> None:
    header = {
        "patient_name": NAME,
        "patient_id": "P1",
        "accession_number": "A1",
        "study_date": "20260301",
        "study_time": "025900.5",
    }
    Sender(database=database, header=header).send(1)
    read_once(database, Priority.STAT)
    with database.reading() as session:
        row = worklist_row(session, STUDY)
        assert worklist_row(session, "1.9") is None
    assert row is not None
    assert json.loads(json.dumps(row)) == row
    assert json.loads(row.pop("subtypes")) == {"subdural": 0.475}
    assert row == {
        "study_instance_uid": STUDY,
        "accession_number": "A1",
        "patient_id": "P1",
        "patient_name": NAME,
        "study_date": "20260301",
        "study_time": "025900.5",
        "modality_ae_title": "CT1",
        "received_at": "2026-03-01T03:00:00.123+00:00",
        "read_at": "2026-03-01T03:00:10.123+00:00",
        "flagged_at": "2026-03-01T03:00:11.123+00:00",
        "priority": "STAT",
        "state": "READ",
        "reason": None,
        "suspicion": 0.95,
        "model_name": "vicar-attention",
        "model_version": "1",
        "sr_sop_instance_uid": "9.1.2.3.1.1.1",
        "delivered_at": None,
        "reviewed_at": None,
        "reviewed_by": None,
    }


def test_plain_sql_sees_the_same(database: Database) -> None:
    Sender(database=database, header={"patient_name": NAME}).send(1)
    query = text("SELECT study_instance_uid, priority, subtypes FROM worklist_v1 WHERE patient_name = :name")
    with database.reading() as session:
        assert session.execute(query, {"name": NAME}).all() == [(STUDY, "MEDIUM", None)]


def test_the_most_urgent_come_first_and_among_equals_the_longest_waiting(database: Database) -> None:
    wanted = [
        ("1.1", Priority.ROUTINE, 1),
        ("1.2", Priority.MEDIUM, 2),
        ("1.3", Priority.STAT, 3),
        ("1.4", Priority.HIGH, 4),
        ("1.5", Priority.STAT, 5),
        ("1.6", Priority.MEDIUM, 6),
    ]
    for study, priority, seconds in wanted:
        add(database, study, priority, seconds=seconds)
    assert order(database) == ["1.3", "1.5", "1.4", "1.2", "1.6", "1.1"]
    assert order(database, priorities=[Priority.STAT, Priority.ROUTINE]) == ["1.3", "1.5", "1.1"]
    assert order(database, priorities=[]) == []
    with database.writing() as session:
        session.execute(
            update(StudyRow)
            .where(StudyRow.study_instance_uid == "1.3")
            .values(reviewed_at=at(9), reviewed_by="r")
        )
    assert order(database) == ["1.5", "1.4", "1.2", "1.6", "1.1", "1.3"]


def test_a_full_worklist_always_shows_what_has_just_come_in(database: Database) -> None:
    for n in range(5):
        add(database, f"1.{n}", Priority.STAT, seconds=n)
    add(database, "1.9", Priority.ROUTINE, seconds=9)
    assert order(database, limit=3) == ["1.2", "1.3", "1.4"]


def test_delivered_means_every_object_at_every_destination(database: Database) -> None:
    Sender(database=database).send(1)
    read_once(database, Priority.STAT, destinations=("PACS", "archive"))
    with database.writing() as session:
        report, capture = claim_deliveries(session, "PACS", owner="s", now=at(20), lease=LEASE)
        record_taken(session, report, now=at(21), note=None, confirm=False)
        record_taken(session, capture, now=at(30), note=None, confirm=False)
        left = claim_deliveries(session, "archive", owner="s", now=at(20), lease=LEASE)
        record_taken(session, left[0], now=at(22), note=None, confirm=False)
        record_failed(session, left[1], next_attempt_at=None, note="refused")
    with database.reading() as session:
        row = worklist_row(session, STUDY)
        assert row is not None
        assert row["delivered_at"] is None
    with database.writing() as session:
        record_taken(session, left[1], now=at(25), note=None, confirm=False)
    with database.reading() as session:
        row = worklist_row(session, STUDY)
    assert row is not None
    assert datetime.fromisoformat(row["delivered_at"]) == at(30).replace(microsecond=123000)


def test_without_destinations_nothing_counts_as_delivered(database: Database) -> None:
    Sender(database=database).send(1)
    read_once(database, Priority.STAT, destinations=())
    with database.reading() as session:
        row = worklist_row(session, STUDY)
    assert row is not None
    assert row["delivered_at"] is None


def test_result_files_are_those_of_the_reading_that_counts(database: Database) -> None:
    Sender(database=database).send(1)
    read_once(database, Priority.STAT, seconds=1)
    with database.writing() as session:
        request_reprocess(session, STUDY, series_instance_uid=None, model=None, actor="cli", now=at(5))
    read_once(database, Priority.HIGH, run=2, seconds=6)
    with database.reading() as session:
        assert result_files(session, STUDY) == [
            ("SR", "9.1.2.3.1.2.1", "2.sr"),
            ("SC", "9.1.2.3.1.2.2", "2.sc"),
        ]
        assert result_files(session, "1.9") == []
        found = result_file(session, "9.1.2.3.1.1.2")
        assert found is not None
        assert (found.kind, found.file_name, found.study_instance_uid) == ("SC", "1.sc", STUDY)
        assert result_file(session, "1.9") is None


def test_studies_are_found_and_counted(database: Database) -> None:
    add(database, "1.1", Priority.STAT, seconds=1)
    add(database, "1.2", Priority.MEDIUM, seconds=2)
    with database.reading() as session:
        assert state_counts(session) == {"READ": 1, "RECEIVING": 1}
        assert find_studies(session) == ["1.1", "1.2"]
        assert find_studies(session, states=[StudyState.READ]) == ["1.1"]
        assert find_studies(session, received_since=at(2)) == ["1.2"]
        assert find_studies(session, study_instance_uids=["1.2", "1.9"]) == ["1.2"]


def test_a_study_without_an_end_is_overdue(database: Database) -> None:
    Sender(database=database).send(1)
    with database.reading() as session:
        assert (overdue(session, before=at(-1)), overdue(session, before=at(900))) == (0, 1)
    read_once(database, Priority.ROUTINE)
    with database.reading() as session:
        assert overdue(session, before=at(900)) == 0
