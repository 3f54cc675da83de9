"""What people are told of studies is committed with what was found, and sent once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ich_node.database.engine import Database
from ich_node.database.notices import Listener, NoticeDelivery, claim_notices
from ich_node.database.outbox import (
    claim_deliveries,
    deliveries,
    destinations_due,
    record_failed,
    record_taken,
)
from ich_node.database.queue import GivenUp, claim_study
from ich_node.database.readings import NewObject, finish_not_read, finish_read
from ich_node.errors import RejectionReason
from ich_node.findings import IchSubtype, Priority, StudyState
from tests.database_cases import LEASE, STUDY, Sender, at, must_claim, read_once, sqlite_database

URGENT = Listener(name="pager", priorities=frozenset({Priority.STAT, Priority.MEDIUM}))
ALL = Listener(name="RIS", priorities=frozenset(Priority))
IDENTITY = {"patient_name": "Meyer^Käthe", "patient_id": "4711", "accession_number": "A-1"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        Sender(database=database, header=IDENTITY).send(1)
        yield database


def take(database: Database, seconds: float, *, to: str = "RIS") -> list[NoticeDelivery]:
    with database.writing() as session:
        return claim_notices(session, to, owner="a", now=at(seconds), lease=LEASE, limit=10)


def test_a_flagged_study_is_told_to_each_who_wants_to_know(database: Database) -> None:
    read_once(database, Priority.STAT, listeners=[URGENT, ALL], seconds=10)
    with database.reading() as session:
        assert sorted(destinations_due(session, at(12))) == ["PACS", "RIS", "pager"]
        assert {(r.kind, r.destination, r.sop_instance_uid) for r in deliveries(session)} >= {
            ("NOTICE", "pager", None),
            ("NOTICE", "RIS", None),
        }
    (told,) = take(database, 12)
    notice = told.notice
    assert (notice.study_instance_uid, notice.priority, notice.state) == (
        STUDY,
        Priority.STAT,
        StudyState.READ,
    )
    assert notice.identity is not None
    assert (notice.identity.patient_name, notice.identity.accession_number) == ("Meyer^Käthe", "A-1")
    assert (notice.suspicion, notice.model_name, notice.model_version) == (0.95, "vicar-attention", "1")
    assert notice.subtypes == (IchSubtype.SUBDURAL,)
    assert notice.report_sop_instance_uids == ("9.1.2.3.1.1.1", "9.1.2.3.1.1.2")
    assert (notice.happened_at, notice.read_at) == (at(11), at(10))
    with database.writing() as session:
        assert claim_deliveries(session, "RIS", owner="a", now=at(12), lease=LEASE) == []


def test_the_same_notice_is_told_again_after_a_failure(database: Database) -> None:
    read_once(database, Priority.STAT, listeners=[ALL], seconds=10)
    (first,) = take(database, 12)
    with database.writing() as session:
        record_failed(session, first, next_attempt_at=at(20), note="AE: busy")
    assert take(database, 19) == []
    (second,) = take(database, 20)
    assert (second.notice, second.attempts) == (first.notice, 2)
    with database.writing() as session:
        record_taken(session, second, now=at(21), note=None, confirm=False)
    assert take(database, 1e6) == []


def test_who_is_told_of_urgent_studies_hears_nothing_of_others(database: Database) -> None:
    read_once(database, Priority.ROUTINE, listeners=[URGENT, ALL], seconds=10)
    assert take(database, 12, to="pager") == []
    (told,) = take(database, 12)
    assert (told.notice.priority, told.notice.subtypes) == (Priority.ROUTINE, ())


def test_that_a_study_was_not_read_is_told_with_the_reason_and_reported(database: Database) -> None:
    report = NewObject(
        sop_instance_uid="8.1", sop_class_uid="1.1", kind="SR", file_name="8.1.dcm", destinations=("PACS",)
    )
    for seconds in (10, 30):
        if seconds == 30:
            Sender(database=database).send(2, seconds=25, due=25)
        claimed = must_claim(database, seconds=seconds)
        with database.writing() as session:
            finish_not_read(
                session,
                claimed,
                exclusions=(),
                reason=RejectionReason.NOT_HEAD,
                detail="no head in it",
                now=at(seconds + 1),
                objects=[report],
                listeners=[URGENT],
            )
        (told,) = take(database, seconds + 2, to="pager")
        assert (told.notice.state, told.notice.priority) == (StudyState.NOT_READ, Priority.MEDIUM)
        assert (told.notice.reason, told.notice.suspicion) == ("NOT_HEAD", None)
        assert told.notice.reason_detail == "no head in it"
        assert told.notice.report_sop_instance_uids == ("8.1",)
        with database.writing() as session:
            record_taken(session, told, now=at(seconds + 3), note=None, confirm=False)
    with database.reading() as session:
        sent = [r for r in deliveries(session) if r.kind == "SR"]
    assert [(r.sop_instance_uid, r.study_instance_uid) for r in sent] == [("8.1", STUDY)], (
        "the same report once"
    )


def test_nothing_new_is_nothing_to_tell(database: Database) -> None:
    read_once(database, Priority.STAT, listeners=[ALL], seconds=10)
    assert len(take(database, 12)) == 1
    Sender(database=database).send(2, seconds=20, due=20)
    claimed = must_claim(database, seconds=21)
    with database.writing() as session:
        finish_read(session, claimed, exclusions=(), readings=(), now=at(22), listeners=[ALL])
    assert take(database, 23) == []


def test_images_that_came_meanwhile_keep_the_news_back(database: Database) -> None:
    claimed = must_claim(database, seconds=10)
    Sender(database=database).send(2, seconds=10.5, due=30)
    with database.writing() as session:
        finish_not_read(
            session,
            claimed,
            exclusions=(),
            reason=RejectionReason.NOT_HEAD,
            detail="no head in it",
            now=at(11),
            listeners=[ALL],
        )
    assert take(database, 12) == []


def test_that_a_study_took_too_many_workers_down_is_told(database: Database) -> None:
    for seconds in (10, 40):
        must_claim(database, seconds=seconds, max_attempts=2)
    with database.writing() as session:
        given_up = claim_study(
            session, STUDY, owner="w", now=at(80), lease=LEASE, max_attempts=2, listeners=[URGENT]
        )
    assert isinstance(given_up, GivenUp)
    assert [series.series_instance_uid for series in given_up.claim.series] != []
    (told,) = take(database, 81, to="pager")
    assert (told.notice.state, told.notice.reason) == (StudyState.FAILED, "WORKER_LOST")
    assert told.notice.priority is Priority.MEDIUM
