"""Arriving objects: what they are, and when their series is due."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select
from sqlalchemy.exc import StatementError

from ich_node.database.engine import Database
from ich_node.database.queue import take_due_studies
from ich_node.database.readings import finish_read
from ich_node.database.receipt import (
    Receipt,
    conflicts,
    known_file_names,
    last_arrival,
    put_off,
    record_instances,
    series_geometry,
    set_due,
    waiting_series,
)
from ich_node.database.tables import AuditRow, InstanceRow, ReadingRow, SeriesRow, StudyRow
from ich_node.errors import RejectionReason
from ich_node.findings import Priority, StudyState
from ich_node.receive.received import ReceivedInstance
from tests.database_cases import (
    SERIES,
    STUDY,
    T0,
    Sender,
    at,
    claim,
    must_claim,
    read_once,
    reading,
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
        assert (row.image_position_patient_mm, row.number_of_frames) == ([0.0, 0.5, 1.0], 1)
        assert known_file_names(session) == {f"sha-of-{SERIES}.1.dcm"}
        assert session.scalar(select(InstanceRow.size_bytes)) == 2**33
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
    assert sender.send(1, seconds=9, due=99, content_hash="other") is Receipt.CONFLICT
    assert sender.send(1, seconds=9, due=99, content_hash="other") is Receipt.DUPLICATE
    assert (series_row(database).revision, series_row(database).due_at) == (1, at(5))
    with database.reading() as session:
        assert len(series_geometry(session, SERIES)) == 1
        kept = dict(session.execute(select(InstanceRow.content_hash, InstanceRow.conflict)).all())
        assert kept == {f"sha-of-{SERIES}.1": False, "other": True}
        assert conflicts(session, since=timedelta(days=1), now=at(10)) == 1
        assert conflicts(session, since=timedelta(seconds=1), now=at(11)) == 0
        assert len(known_file_names(session)) == 2
    (seen,) = must_claim(database, seconds=6).series
    assert seen.content_hashes == (f"sha-of-{SERIES}.1",)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One object of a batch."""

    number: int
    series: int
    content: int
    source: str
    patient_id: str


_sent = st.builds(
    Sent,
    number=st.integers(0, 5),
    series=st.integers(0, 2),
    content=st.sampled_from([0, 0, 0, 1, 2]),
    source=st.sampled_from(["CT1", "CT2", ""]),
    patient_id=st.sampled_from(["", "P1", "P2"]),
)
_examples = count(1)


def _received(database: Database, root: str, sent: Sent, second: int) -> ReceivedInstance:
    # Series 2 belongs to another study.
    sender = Sender(
        database=database,
        study=f"{root}.1",
        series=f"{root}.2.{sent.series}",
        header={"patient_id": sent.patient_id},
    )
    return sender.received(
        sent.number,
        seconds=second,
        content_hash=f"{root} {sent.number} {sent.series} {sent.content}",
        sop_instance_uid=f"{root}.3.{sent.number}",
        source_ae_title=sent.source,
    )


def _outcome(database: Database, root: str) -> list[object]:
    with database.reading() as session:
        study = session.get_one(StudyRow, f"{root}.1")
        series = session.scalars(
            select(SeriesRow)
            .where(SeriesRow.series_instance_uid.startswith(f"{root}.2."))
            .order_by("series_instance_uid")
        )
        instances = session.scalars(
            select(InstanceRow)
            .where(InstanceRow.series_instance_uid.startswith(f"{root}.2."))
            .order_by("sop_instance_uid", "content_hash")
        )
        audit = session.scalars(select(AuditRow).where(AuditRow.study_instance_uid == f"{root}.1"))
        last = [(row.state, row.priority) for row in audit][-1:]
        return [
            (study.state, study.reason, study.priority, study.patient_id, study.last_received_at),
            last if study.state == StudyState.NOT_READ else [],
            [(row.series_instance_uid.replace(root, ""), row.revision, row.due_at) for row in series],
            [
                (row.content_hash.replace(root, ""), row.conflict, row.received_at, row.source_ae_title)
                for row in instances
            ],
        ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_sent, min_size=1, max_size=12), st.data())
def test_a_batch_is_what_its_objects_are_one_by_one(
    database: Database, sent: list[Sent], data: st.DataObject
) -> None:
    roots = [f"7.{next(_examples)}", f"7.{next(_examples)}"]
    receipts = []
    cuts = data.draw(st.sets(st.integers(1, len(sent))), label="cuts")
    for root, ends in zip(roots, (range(1, len(sent) + 1), sorted({*cuts, len(sent)})), strict=True):
        Sender(database=database, study=f"{root}.9", series=f"{root}.2.2").send(1)
        received = [_received(database, root, one, second) for second, one in enumerate(sent)]
        receipts.append([])
        for begin, end in pairwise([0, *ends]):
            with database.writing() as session:
                receipts[-1] += record_instances(session, received[begin:end], due_at=at(99))
    assert receipts[0] == receipts[1]
    assert _outcome(database, roots[0]) == _outcome(database, roots[1])


def test_a_batch_takes_few_statements(database: Database) -> None:
    senders = [Sender(database=database, series=f"{STUDY}.{n}") for n in range(5)]
    batch = [sender.received(number) for number in range(20) for sender in senders]
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    with database.writing() as session:
        assert record_instances(session, batch, due_at=at(5)) == [Receipt.NEW] * 100
    assert len(statements) < 20
    assert {series_row(database, sender.series).revision for sender in senders} == {20}


def test_a_batch_is_of_one_study(database: Database) -> None:
    batch = [Sender(database=database, study=study).received(1) for study in ("1.1", "1.2")]
    with pytest.raises(ValueError, match="different studies"), database.writing() as session:
        record_instances(session, batch, due_at=at(0))


def test_a_late_slice_is_read_and_supersedes(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    sender.send(2)
    assert read_once(database, Priority.ROUTINE) is Priority.ROUTINE
    assert series_row(database).due_at is None
    assert sender.send(3, seconds=20, due=21) is Receipt.NEW
    assert (study_row(database).state, study_row(database).priority) == ("RECEIVING", "MEDIUM")
    assert claim(database, seconds=20) is None
    with database.writing() as session:
        assert take_due_studies(session, at(21)) == [STUDY]
    assert read_once(database, Priority.STAT, run=2, seconds=22) is Priority.STAT
    with database.reading() as session:
        readings = session.scalars(select(ReadingRow).order_by(ReadingRow.run_number))
        assert [(row.run_number, row.superseded) for row in readings] == [(1, True), (2, False)]
    assert (study_row(database).state, study_row(database).priority) == ("READ", "STAT")
    assert series_row(database).due_at is None


def test_a_late_slice_that_comes_during_the_reading_is_due_after_it(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    claimed = must_claim(database, seconds=1)
    sender.send(2, seconds=2, due=3)
    assert study_row(database).state == StudyState.READING
    with database.writing() as session:
        found = reading(Priority.ROUTINE)
        finish_read(session, claimed, exclusions=(), readings=[found], now=at(4))
    assert (study_row(database).state, study_row(database).priority) == ("RECEIVING", "MEDIUM")
    (seen,) = must_claim(database, seconds=5).series
    assert len(seen.file_names) == 2


def test_a_series_that_waits_is_put_off_and_never_brought_forward(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1, seconds=3, due=5)
    sender.send(2, seconds=7, due=5)
    sender.send(1, seconds=9, content_hash="other bytes")
    with database.writing() as session:
        assert last_arrival(session, SERIES) == at(7)
        assert last_arrival(session, "no such series") is None
        assert waiting_series(session, [SERIES, "no such series"]) == {SERIES: STUDY}
        put_off(session, SERIES, at(4))
    assert series_row(database).due_at == at(5)
    with database.writing() as session:
        put_off(session, SERIES, at(6))
    assert series_row(database).due_at == at(6)
    read_once(database, Priority.ROUTINE)
    with database.writing() as session:
        assert waiting_series(session, [SERIES]) == {}
        put_off(session, SERIES, at(99))
    assert series_row(database).due_at is None


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
    assert other.send(1, sop_instance_uid=f"{SERIES}.1", content_hash="other") is Receipt.CONFLICT
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
        assert row == (None, 1, None, None)
        # SQL NULL, not the JSON value null, which plain SQL would take for a position
        assert session.scalar(select(InstanceRow.id).where(InstanceRow.orientation.is_(None))) is not None


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
        return Sender(database=database).send(1, content_hash=f"bytes {writer % 4}")

    receipts = together(WRITERS, send)
    assert receipts.count(Receipt.NEW) == 1
    assert receipts.count(Receipt.CONFLICT) == 3
    assert series_row(database).revision == 1


def test_one_uid_in_many_studies_at_once_is_new_in_one(database: Database) -> None:
    def send(writer: int) -> Receipt:
        sender = Sender(database=database, study=f"1.{writer}", series=f"1.{writer}.1")
        return sender.send(1, sop_instance_uid="7.7", content_hash=f"bytes {writer}")

    assert sorted(together(WRITERS, send)) == [*[Receipt.CONFLICT] * (WRITERS - 1), Receipt.NEW]
    with database.reading() as session:
        states = list(session.scalars(select(StudyRow.state)))
    assert sorted(states) == [*["NOT_READ"] * (WRITERS - 1), "RECEIVING"]
