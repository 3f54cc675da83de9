"""Arriving objects: what they are, and when their series is due."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import StatementError

from ich_node.database.engine import Database
from ich_node.database.queue import take_due_studies
from ich_node.database.receipt import Receipt, conflicts, known_file_names, series_geometry, set_due
from ich_node.database.tables import AuditRow, InstanceRow, SeriesRow, StudyRow
from ich_node.errors import RejectionReason
from ich_node.findings import Priority, StudyState
from tests.database_cases import (
    SERIES,
    STUDY,
    T0,
    Sender,
    at,
    claim,
    must_claim,
    read_once,
    series_row,
    sqlite_database,
    study_row,
    together,
)

WRITERS = 16


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


def test_the_first_object_makes_study_series_and_instance(database: Database) -> None:
    header = {"patient_id": "P1", "patient_name": "Doe^Jane", "accession_number": "A1"}
    assert Sender(database=database, header=header).send(1, due=5) is Receipt.NEW
    study, series = study_row(database), series_row(database)
    assert (study.patient_id, study.patient_name, study.accession_number) == ("P1", "Doe^Jane", "A1")
    assert (study.state, study.priority, study.modality_ae_title) == ("RECEIVING", "MEDIUM", "CT1")
    assert (study.received_at, study.last_received_at) == (T0, T0)
    assert (series.revision, series.handled_revision, series.due_at) == (1, 0, at(5))
    with database.reading() as session:
        (row,) = series_geometry(session, SERIES)
        assert (row.position_mm, row.size_bytes, row.number_of_frames) == ([0.0, 0.5, 1.0], 2**33, 1)
        assert known_file_names(session) == {row.file_name}
        assert [a.action for a in session.scalars(select(AuditRow))] == ["received"]


def test_the_same_object_again_changes_nothing(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1, due=5)
    assert sender.send(1, seconds=9, due=99) is Receipt.DUPLICATE
    assert (series_row(database).revision, series_row(database).due_at) == (1, at(5))
    assert study_row(database).last_received_at == T0


def test_other_bytes_under_the_same_uid_are_kept_but_not_read(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1, due=5)
    assert sender.send(1, seconds=9, due=99, sha256="other") is Receipt.CONFLICT
    assert sender.send(1, seconds=9, due=99, sha256="other") is Receipt.DUPLICATE
    assert (series_row(database).revision, series_row(database).due_at) == (1, at(5))
    with database.reading() as session:
        assert [row.sha256 for row in series_geometry(session, SERIES)] == [f"sha-of-{SERIES}.1"]
        assert conflicts(session, since=timedelta(days=1), now=at(10)) == 1
        assert conflicts(session, since=timedelta(seconds=1), now=at(11)) == 0
        assert len(known_file_names(session)) == 2
    (seen,) = must_claim(database, seconds=6).series
    assert seen.content_sha256s == (f"sha-of-{SERIES}.1",)


def test_another_studys_images_never_join_a_series(database: Database) -> None:
    Sender(database=database).send(1)
    other = Sender(database=database, study="1.2.4", series=SERIES)
    assert other.send(2) is Receipt.CONFLICT
    assert series_row(database).revision == 1
    (seen,) = must_claim(database, seconds=1).series
    assert seen.file_names == (f"sha-of-{SERIES}.1.dcm",)
    row = study_row(database, "1.2.4")
    assert (row.state, row.reason, row.priority) == ("NOT_READ", RejectionReason.CONFLICTING_UID, "MEDIUM")


def test_a_study_whose_every_object_conflicts_does_not_wait_for_ever(database: Database) -> None:
    Sender(database=database).send(1)
    other = Sender(database=database, study="1.2.4", series="1.2.4.1")
    assert other.send(1, sop_instance_uid=f"{SERIES}.1", sha256="other") is Receipt.CONFLICT
    assert study_row(database, "1.2.4").state == StudyState.NOT_READ
    assert claim(database, study="1.2.4", seconds=1e6) is None
    assert other.send(2) is Receipt.NEW
    row = study_row(database, "1.2.4")
    assert (row.state, row.reason, row.reason_detail) == ("RECEIVING", None, None)
    (seen,) = must_claim(database, study="1.2.4", seconds=1).series
    assert len(seen.file_names) == 1


def test_an_instance_of_another_study_than_its_header_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="different studies"):
        Sender(database=database).send(1, study_instance_uid="9.9")
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(StudyRow)) == 0


def test_blank_attributes_are_filled_by_later_objects_and_others_stay(database: Database) -> None:
    Sender(database=database, header={"patient_id": "P1"}).send(1)
    Sender(database=database, header={"patient_id": "P2", "accession_number": "A9"}).send(2)
    row = study_row(database)
    assert (row.patient_id, row.accession_number) == ("P1", "A9")


@pytest.mark.parametrize(
    "name",
    ['O\'Brien^"Bob"', "x'); DROP TABLE study;--", "<script>alert(1)</script>", "山田^太郎", "%s{}:a"],
)
def test_a_name_is_data(database: Database, name: str) -> None:
    Sender(database=database, header={"patient_name": name}).send(1)
    assert study_row(database).patient_name == name


def test_what_no_database_can_hold_does_not_stop_the_object(database: Database) -> None:
    header = {"patient_name": "Do\x00e^Jane\ud800", "patient_id": "\x00"}
    sent = Sender(database=database, header=header).send(
        1,
        instance_number=2**40,
        series_number=-(2**70),
        number_of_frames=2**99,
        series_description="a\x00b",
        image_position_patient_mm=(math.nan, 0.0, math.inf),
        image_orientation_patient=None,
    )
    assert sent is Receipt.NEW
    assert (study_row(database).patient_name, study_row(database).patient_id) == ("Doe^Jane?", "")
    assert (series_row(database).series_number, series_row(database).series_description) == (None, "ab")
    with database.reading() as session:
        (row,) = series_geometry(session, SERIES)
        assert (row.instance_number, row.position_mm, row.orientation) == (None, None, None)
        # SQL NULL, not the JSON value null, which plain SQL would take for a position
        assert session.scalar(select(InstanceRow.id).where(InstanceRow.orientation.is_(None))) == row.id


def test_each_image_puts_the_due_time_off(database: Database) -> None:
    sender = Sender(database=database)
    for number in range(3):
        sender.send(number, seconds=number, due=number + 60)
    assert series_row(database).due_at == at(62)
    with database.writing() as session:
        set_due(session, SERIES, at(4))
        set_due(session, "no.such.series", at(4))
    assert series_row(database).due_at == at(4)
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(SeriesRow)) == 1


def test_a_series_that_was_looked_at_is_not_made_due_by_the_end_of_an_association(database: Database) -> None:
    Sender(database=database).send(1)
    read_once(database, Priority.ROUTINE)
    with database.writing() as session:
        set_due(session, SERIES, at(20))
    assert series_row(database).due_at is None
    with database.writing() as session:
        assert take_due_studies(session, at(1e6)) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [(Priority.ROUTINE, "MEDIUM"), (Priority.STAT, "STAT"), (Priority.HIGH, "HIGH")],
)
def test_new_images_never_look_negative(database: Database, before: Priority, after: str) -> None:
    sender = Sender(database=database)
    sender.send(1)
    assert read_once(database, before) is before
    sender.send(2, seconds=20, due=30)
    assert (study_row(database).state, study_row(database).priority) == ("RECEIVING", after)
    with database.reading() as session:
        last = session.scalars(select(AuditRow).order_by(AuditRow.id.desc())).first()
        assert last is not None
        assert (last.action, last.priority, last.actor) == ("more images", after, "CT1")


def test_a_time_without_zone_is_refused(database: Database) -> None:
    Sender(database=database).send(1)
    with pytest.raises(StatementError, match="without zone"), database.writing() as session:
        set_due(session, SERIES, datetime(2026, 3, 1))
    assert series_row(database).due_at == T0


def test_times_come_back_aware_whatever_zone_they_were_given_in(database: Database) -> None:
    local = T0.astimezone(timezone(timedelta(hours=5, minutes=45)))
    Sender(database=database).send(1)
    with database.writing() as session:
        set_due(session, SERIES, local)
    due_at = series_row(database).due_at
    assert due_at is not None
    assert (due_at, due_at.utcoffset()) == (T0, timedelta(0))


def test_many_writers_of_one_study_lose_nothing(database: Database) -> None:
    each = 5

    def send(writer: int) -> list[Receipt]:
        sender = Sender(database=database, series=f"{STUDY}.{writer % 2}")
        return [sender.send(writer * each + n, seconds=n, due=60) for n in range(each)]

    receipts = [r for sent in together(WRITERS, send) for r in sent]
    assert receipts == [Receipt.NEW] * (WRITERS * each)
    for series in (f"{STUDY}.0", f"{STUDY}.1"):
        assert series_row(database, series).revision == WRITERS * each // 2
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(InstanceRow)) == WRITERS * each
        assert [a.action for a in session.scalars(select(AuditRow))] == ["received"]


def test_of_many_senders_of_one_object_exactly_one_is_new(database: Database) -> None:
    def send(writer: int) -> Receipt:
        return Sender(database=database).send(1, sha256=f"bytes {writer % 4}")

    receipts = together(WRITERS, send)
    assert receipts.count(Receipt.NEW) == 1
    assert receipts.count(Receipt.CONFLICT) == 3
    assert series_row(database).revision == 1


def test_one_uid_in_many_studies_at_once_is_new_in_one(database: Database) -> None:
    def send(writer: int) -> Receipt:
        sender = Sender(database=database, study=f"1.{writer}", series=f"1.{writer}.1")
        return sender.send(1, sop_instance_uid="7.7", sha256=f"bytes {writer}")

    assert sorted(together(WRITERS, send)) == [*[Receipt.CONFLICT] * (WRITERS - 1), Receipt.NEW]
    with database.reading() as session:
        states = list(session.scalars(select(StudyRow.state)))
    assert sorted(states) == [*["NOT_READ"] * (WRITERS - 1), "RECEIVING"]
