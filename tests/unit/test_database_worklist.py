"""The worklist as people and other systems see it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import text as hypothesis_text
from sqlalchemy import select, text, update

from ich_node.database.audit import record_change
from ich_node.database.engine import Database
from ich_node.database.outbox import claim_deliveries, record_failed, record_taken
from ich_node.database.queue import request_reprocess
from ich_node.database.tables import StudyRow
from ich_node.database.worklist import (
    COLUMNS,
    find_studies,
    overdue,
    page_end,
    result_file,
    result_files,
    state_counts,
    worklist,
    worklist_row,
)
from ich_node.database.worklist_order import precedence
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


def test_the_place_that_the_database_keeps_is_the_one_that_is_asked_for(database: Database) -> None:
    for n, priority in enumerate(Priority):
        for reviewed in (False, True):
            study = f"1.{n}.{int(reviewed)}"
            Sender(database=database, study=study, series=f"{study}.1").send(1)
            stand(database, study, priority=priority, reviewed_at=at(1) if reviewed else None)
            assert study_precedence(database, study) == precedence(priority, reviewed=reviewed)


def stand(database: Database, study: str, **values: object) -> None:
    """Put a study into a standing without a reading, with the audit row that belongs to it."""
    with database.writing() as session:
        row = session.get_one(StudyRow, study)
        for name, value in values.items():
            setattr(row, name, value)
        record_change(session, row, at=at(0), actor="test", action="set")


def study_precedence(database: Database, study: str) -> int:
    with database.reading() as session:
        return session.scalars(select(StudyRow.precedence).where(StudyRow.study_instance_uid == study)).one()


def test_pages_hold_each_study_once_and_in_reading_order(database: Database) -> None:
    urgencies = (Priority.STAT, Priority.MEDIUM, Priority.ROUTINE)
    for n in range(13):
        study = f"1.{n}"
        Sender(database=database, study=study, series=f"{study}.1").send(1, seconds=n // 2)
        reviewed_at = at(50) if n % 5 == 4 else None
        stand(database, study, priority=urgencies[n % 3], reviewed_at=reviewed_at)
    with database.reading() as session:
        whole = worklist(session)
        pages: list[list[dict[str, object]]] = []
        before = None
        while page := worklist(session, limit=3, before=before):
            pages.append(page)
            before = page_end(page)
        assert page_end([]) is None
        assert worklist(session, before="1.99") == []
    seen = [row for page in pages for row in page]
    assert [len(page) for page in pages] == [3, 3, 3, 3, 1]
    assert sorted(map(str, seen)) == sorted(map(str, whole))

    def place(row: dict[str, object]) -> tuple[object, ...]:
        return row["reviewed_at"] is not None, Priority(str(row["priority"])).urgency

    assert [place(row) for row in seen] == [place(row) for row in whole] == sorted(map(place, whole))
    newest_first = [
        max(str(row["received_at"]) for row in page) for page in pages if len(set(map(place, page))) == 1
    ]
    assert newest_first
    for earlier, later in itertools.pairwise(pages):
        alike = [str(row["received_at"]) for row in earlier if place(row) == place(later[0])]
        if alike:
            assert str(later[0]["received_at"]) <= min(alike)


def test_the_worklist_is_narrowed_by_state_station_time_and_review(database: Database) -> None:
    add(database, "1.1", Priority.STAT, seconds=1)
    add(database, "1.2", Priority.MEDIUM, seconds=2)
    add(database, "1.3", Priority.ROUTINE, seconds=3)
    Sender(database=database, study="1.4", series="1.4.1").send(1, seconds=4, due=1e9, source_ae_title="CT2")
    stand(database, "1.3", reviewed_at=at(9), reviewed_by="r")
    read, receiving = StudyState.READ, StudyState.RECEIVING
    assert order(database, states=[read]) == ["1.1", "1.3"]
    assert order(database, states=[read, receiving, read]) == ["1.1", "1.2", "1.4", "1.3"]
    assert order(database, states=[]) == []
    assert order(database, states=[read, receiving], limit=2) == ["1.1", "1.4"]
    assert order(database, unreviewed=True) == ["1.1", "1.2", "1.4"]
    assert order(database, unreviewed=False) == ["1.3"]
    assert order(database, received_since=at(3)) == ["1.4", "1.3"]
    assert order(database, modality_ae_title="CT2") == ["1.4"]
    assert order(database, modality_ae_title="ct2") == []
    assert order(database, limit=0) == []
    wanted = {"priorities": [Priority.MEDIUM], "states": [receiving], "modality_ae_title": "CT1"}
    assert order(database, **wanted, unreviewed=True, received_since=at(1), search="1.2") == ["1.2"]
    assert order(database, **wanted, before="1.4") == ["1.2"]
    assert order(database, **wanted, before="1.2") == []


PEOPLE = {
    "1.2.10": {"patient_name": "Müller^Käthe", "patient_id": "P100%", "accession_number": "A-1_2"},
    "1.2.11": {"patient_name": "ΠΑΠΑΔΟΠΟΥΛΟΣ^ΝΙΚΟΣ", "patient_id": "Q*[7]", "accession_number": "A-112"},
    "1.2.12": {"patient_name": "Иванов^Пётр=伊万诺夫", "patient_id": "100", "accession_number": "\\d+|(x)"},
    "1.2.13": {"patient_name": NAME, "patient_id": "straße", "accession_number": ""},
}


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("mÜLLER", ["1.2.10"]),
        ("käthe  müller", ["1.2.10"]),
        ("müller nikos", []),
        ("παπαδοπουλος", ["1.2.11"]),
        ("Νίκος", []),
        ("ιανοπ", []),
        ("ИВАНОВ", ["1.2.12"]),
        ("пётр", ["1.2.12"]),
        ("伊万", ["1.2.12"]),
        ("%", ["1.2.10"]),
        ("_", ["1.2.10"]),
        ("*", ["1.2.11"]),
        ("?", []),
        ("[7]", ["1.2.11"]),
        ("\\d+", ["1.2.12"]),
        ("(X)", ["1.2.12"]),
        ("ul.er", []),
        ("^k", ["1.2.10"]),
        ("'); drop table", ["1.2.13"]),
        ('"^<SCRIPT>', ["1.2.13"]),
        ("STRASSE", []),
        ("STRAßE", ["1.2.13"]),
        ("1.2.1", ["1.2.10", "1.2.11", "1.2.12", "1.2.13"]),
        ("1.2.12", ["1.2.12"]),
        ("100", ["1.2.12"]),
        ("p100", ["1.2.10"]),
        ("a-1", ["1.2.10", "1.2.11"]),
        ("A-112", ["1.2.11"]),
        ("  ", ["1.2.10", "1.2.11", "1.2.12", "1.2.13"]),
        ("\x00 müller", ["1.2.10"]),
        ("müller \ud800", []),
        ("x" * 5000, []),
        ("[" * 400, []),
    ],
)
def test_what_a_person_types_is_looked_for_as_text(people: Database, search: str, found: list[str]) -> None:
    assert order(people, search=search) == found


@pytest.fixture
def people(database: Database) -> Database:
    for n, (study, header) in enumerate(PEOPLE.items()):
        Sender(database=database, study=study, series=f"{study}.1", header=header).send(1, seconds=n)
    return database


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=hypothesis_text(min_size=1, max_size=12))
def test_any_text_is_found_in_itself_and_only_there(people: Database, text: str) -> None:
    with people.writing() as session:
        session.get_one(StudyRow, "1.2.13").patient_name = f"begin^{text}^end"
    kept = f"begin^{text}^end".replace("\x00", "").encode("utf-8", "replace").decode().casefold()
    if text.replace("\x00", "").strip():
        assert "1.2.13" in order(people, search=text)
    with people.reading() as session:
        for row in worklist(session, search=text):
            values = [
                row[n] for n in ("patient_name", "patient_id", "accession_number", "study_instance_uid")
            ]
            words = text.replace("\x00", "").encode("utf-8", "replace").decode().casefold().split()
            assert all(any(word in value.casefold() for value in values) for word in words), kept
