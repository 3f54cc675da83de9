"""What a finished claim writes: the reading, its objects, the outbox, the priority and the audit trail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from ich_node.database.engine import Database
from ich_node.database.queue import claim_study, request_reprocess
from ich_node.database.readings import (
    earlier_readings,
    finish_not_read,
    finish_read,
    finish_waiting,
    last_run_numbers,
)
from ich_node.database.tables import AuditRow, OutboxRow, ReadingRow, ResultObjectRow
from ich_node.database.worklist import study_report
from ich_node.errors import RejectionReason
from ich_node.findings import IchSubtype, Priority, StudyState
from ich_node.selection import SeriesExclusion
from tests.database_cases import (
    LEASE,
    MODEL,
    SERIES,
    STUDY,
    Sender,
    at,
    must_claim,
    read_once,
    reading,
    series_row,
    sqlite_database,
    study_row,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


def not_read(database: Database, *, seconds: float, state: StudyState = StudyState.NOT_READ) -> None:
    claimed = must_claim(database, seconds=seconds)
    with database.writing() as session:
        finish_not_read(
            session,
            claimed,
            exclusions=(),
            reason=RejectionReason.TOO_FEW_SLICES,
            detail="two slices",
            now=at(seconds),
            state=state,
        )


def test_a_reading_is_written_with_all_that_belongs_to_it(database: Database) -> None:
    Sender(database=database).send(1)
    assert read_once(database, Priority.STAT, destinations=("PACS", "archive", "PACS")) is Priority.STAT
    row = study_row(database)
    assert (row.state, row.priority, row.suspicion, row.reason) == ("READ", "STAT", 0.95, None)
    assert (row.subtypes, row.read_at, row.flagged_at) == ({"subdural": 0.475}, at(10), at(11))
    assert (row.lease_owner, row.lease_until, row.attempts) == (None, None, 0)
    with database.reading() as session:
        (found,) = session.scalars(select(ReadingRow))
        assert (found.id, found.superseded, found.model_name) == (row.reading_id, False, MODEL.name)
        objects = list(session.scalars(select(ResultObjectRow).order_by(ResultObjectRow.position)))
        assert [(o.kind, o.file_name, o.reading_id) for o in objects] == [
            ("SR", "1.sr", found.id),
            ("SC", "1.sc", found.id),
        ]
        waiting = session.execute(select(OutboxRow.sop_instance_uid, OutboxRow.destination)).all()
        assert sorted((uid[-1], name) for uid, name in waiting) == [
            ("1", "PACS"),
            ("1", "archive"),
            ("2", "PACS"),
            ("2", "archive"),
        ]
        assert {o.urgency for o in session.scalars(select(OutboxRow))} == {0}
        history = list(session.scalars(select(AuditRow).order_by(AuditRow.id)))
    assert [(a.action, a.state, a.priority, a.actor) for a in history] == [
        ("received", "RECEIVING", "MEDIUM", "CT1"),
        ("reading", "READING", "MEDIUM", "worker"),
        ("read", "READ", "STAT", "worker"),
    ]


def test_the_priority_is_the_most_urgent_of_the_readings_that_count(database: Database) -> None:
    for n, priority in enumerate([Priority.ROUTINE, Priority.HIGH, Priority.ROUTINE], 1):
        Sender(database=database, series=f"{STUDY}.{n}").send(1, seconds=n * 10, due=n * 10)
        read_once(database, priority, series=f"{STUDY}.{n}", seconds=n * 10 + 1)
    row = study_row(database)
    assert (row.priority, row.suspicion, row.read_at) == ("HIGH", 0.5, at(21))
    with database.reading() as session:
        assert [r.superseded for r in session.scalars(select(ReadingRow))] == [False] * 3


def test_a_new_reading_of_a_series_supersedes_the_old(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    read_once(database, Priority.STAT, seconds=1)
    flagged_at = study_row(database).flagged_at
    sender.send(2, seconds=20, due=20)
    read_once(database, Priority.HIGH, run=2, seconds=21)
    assert (study_row(database).priority, study_row(database).flagged_at) == ("HIGH", flagged_at)
    sender.send(3, seconds=30, due=30)
    read_once(database, Priority.ROUTINE, run=3, seconds=31)
    assert (study_row(database).priority, study_row(database).flagged_at) == ("ROUTINE", None)
    with database.reading() as session:
        assert [(r.run_number, r.superseded) for r in session.scalars(select(ReadingRow))] == [
            (1, True),
            (2, True),
            (3, False),
        ]
        (earlier,) = earlier_readings(session, SERIES).values()
        assert (earlier.run_number, earlier.content_sha256) == (3, "content 3")
        assert earlier_readings(session, "1.9") == {}
        assert last_run_numbers(session, SERIES) == {MODEL.name: 3}
        assert last_run_numbers(session, "1.9") == {}


def test_that_a_reading_still_holds_changes_nothing_but_the_state(database: Database) -> None:
    Sender(database=database).send(1)
    read_once(database, Priority.HIGH)
    Sender(database=database, series="1.2.3.2").send(1, seconds=20, due=20)
    claimed = must_claim(database, seconds=21)
    exclusion = SeriesExclusion(
        series_instance_uid="1.2.3.2", reason=RejectionReason.LOCALIZER, detail="a localizer"
    )
    with database.writing() as session:
        kept = finish_read(session, claimed, exclusions=[exclusion], readings=(), now=at(22))
    assert kept is Priority.HIGH
    assert (study_row(database).state, study_row(database).read_at) == ("READ", at(10))
    assert series_row(database, "1.2.3.2").exclusion_reason == RejectionReason.LOCALIZER
    assert series_row(database, "1.2.3.2").exclusion_detail == "a localizer"
    with database.reading() as session:
        assert len(session.scalars(select(OutboxRow)).all()) == 2
        assert session.scalars(select(AuditRow.action).order_by(AuditRow.id.desc())).first() == "unchanged"


@pytest.mark.parametrize(
    ("before", "after", "flagged"),
    [
        (None, "MEDIUM", False),
        (Priority.ROUTINE, "MEDIUM", False),
        (Priority.HIGH, "HIGH", True),
        (Priority.STAT, "STAT", True),
    ],
)
def test_not_read_is_never_negative_and_never_takes_a_flag_down(
    database: Database, before: Priority | None, after: str, flagged: bool
) -> None:
    sender = Sender(database=database)
    sender.send(1)
    if before is not None:
        read_once(database, before, seconds=1)
        sender.send(2, seconds=10, due=10)
    not_read(database, seconds=20)
    row = study_row(database)
    assert (row.state, row.reason, row.reason_detail) == ("NOT_READ", "TOO_FEW_SLICES", "two slices")
    assert (row.priority, row.flagged_at is not None) == (after, flagged)
    with database.reading() as session:
        last = session.scalars(select(AuditRow).order_by(AuditRow.id.desc())).first()
        assert last is not None
        assert (last.action, last.why) == ("not_read", "TOO_FEW_SLICES: two slices")


def test_a_failure_of_the_node_is_its_own_state(database: Database) -> None:
    Sender(database=database).send(1)
    not_read(database, seconds=1, state=StudyState.FAILED)
    assert (study_row(database).state, study_row(database).priority) == ("FAILED", "MEDIUM")


def test_a_reading_after_not_read_clears_the_reason(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    not_read(database, seconds=1)
    sender.send(2, seconds=10, due=10)
    assert (study_row(database).state, study_row(database).reason) == ("RECEIVING", None)
    read_once(database, Priority.ROUTINE, seconds=11)
    row = study_row(database)
    assert (row.state, row.reason, row.reason_detail, row.priority) == ("READ", None, None, "ROUTINE")


def test_waiting_for_other_series_says_why_and_keeps_the_person_looking(database: Database) -> None:
    Sender(database=database, series="1.2.3.1").send(1)
    Sender(database=database, series="1.2.3.2").send(1, due=60)
    claimed = must_claim(database, seconds=1)
    exclusion = SeriesExclusion(
        series_instance_uid="1.2.3.1", reason=RejectionReason.LOCALIZER, detail="a localizer"
    )
    with database.writing() as session:
        finish_waiting(session, claimed, exclusions=[exclusion], now=at(2))
    assert (study_row(database).state, study_row(database).priority) == ("RECEIVING", "MEDIUM")
    assert series_row(database, "1.2.3.1").exclusion_reason == "LOCALIZER"
    with database.reading() as session:
        last = session.scalars(select(AuditRow).order_by(AuditRow.id.desc())).first()
        assert last is not None
        assert (last.action, last.why) == ("waiting", "other series of the study are still arriving")


def test_a_flag_is_up_although_other_series_still_arrive(database: Database) -> None:
    Sender(database=database, series="1.2.3.1").send(1)
    Sender(database=database, series="1.2.3.2").send(1, due=60)
    assert read_once(database, Priority.STAT) is Priority.STAT
    assert (study_row(database).state, study_row(database).priority) == ("RECEIVING", "STAT")
    assert study_row(database).flagged_at == at(11)


def test_a_reading_that_does_not_fit_its_images_writes_nothing(database: Database) -> None:
    Sender(database=database).send(1)
    claimed = must_claim(database, seconds=1)
    broken = reading(Priority.STAT)
    object.__setattr__(broken, "sop_instance_uids", ("only one",))
    with pytest.raises(ValueError, match="zip"), database.writing() as session:
        finish_read(session, claimed, exclusions=(), readings=[broken], now=at(2))
    with database.reading() as session:
        assert session.scalars(select(ReadingRow)).all() == []
    assert study_row(database).state == "READING"


def test_reprocessing_raises_the_run_number_and_keeps_the_old_objects(database: Database) -> None:
    Sender(database=database).send(1)
    read_once(database, Priority.ROUTINE, seconds=1)
    with database.writing() as session:
        request_reprocess(session, STUDY, series_instance_uid=None, model=None, actor="cli", now=at(5))
    assert read_once(database, Priority.STAT, run=2, seconds=6) is Priority.STAT
    with database.reading() as session:
        assert len(session.scalars(select(ResultObjectRow)).all()) == 4
        assert len(session.scalars(select(OutboxRow)).all()) == 4


def test_one_transaction_may_hold_a_whole_life(database: Database) -> None:
    """Rows that the session has already loaded are seen as they are, not as they were."""
    sender = Sender(database=database)
    with database.writing() as session:
        for number in range(3):
            sender.send_in(session, number)
        claimed = claim_study(session, STUDY, owner="w", now=at(1), lease=LEASE, max_attempts=3)
        assert claimed is not None
        assert claimed.series[0].revision == 3
        finish_read(
            session,
            claimed,
            exclusions=(),
            readings=[reading(Priority.ROUTINE)],
            now=at(2),
        )
    assert (study_row(database).state, series_row(database).due_at) == ("READ", None)


def test_the_report_of_a_study_has_its_keys(database: Database) -> None:
    Sender(database=database, header={"patient_name": "<b>'\""}).send(1)
    Sender(database=database).send(1, content_hash="other")
    read_once(database, Priority.STAT)
    with database.reading() as session:
        report = study_report(session, STUDY)
        assert study_report(session, "1.9") is None
    assert report is not None
    assert json.loads(json.dumps(report)) == report
    assert report.keys() >= {"study_instance_uid", "priority", "state", "reason", "readings"}
    (found,) = report["readings"]
    assert found.keys() >= {
        "series_instance_uid",
        "run_number",
        "model_name",
        "model_version",
        "weights_sha256",
        "suspicion",
        "subtypes",
        "caveats",
        "timeline",
        "slices",
    }
    first = found["slices"][0]
    assert first["sop_instance_uid"] == f"{SERIES}.1"
    assert first["shown_on"] is None
    assert list(first["probabilities"]) == [str(subtype) for subtype in IchSubtype]
    assert (first["probabilities"]["any"], first["probabilities"]["subdural"]) == (0.95, None)
    assert first["localizations"] == [
        {"kind": "point", "subtype": "any", "coordinates": [10.5, 20.5], "score": 0.9}
    ]
    assert [d["state"] for d in found["deliveries"]] == ["PENDING", "PENDING"]
    (series,) = report["series"]
    assert (series["instances"], series["conflicting_instances"]) == (1, 1)
    assert [entry["action"] for entry in report["history"]] == ["received", "reading", "read"]
