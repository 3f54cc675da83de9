"""The audit only grows, and no change of a state or a priority is committed without its row in it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, or_, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased

from ich_node.database import queue, retention
from ich_node.database.access import Access, AccessAction, record_access
from ich_node.database.engine import Database
from ich_node.database.readings import finish_not_read, finish_waiting
from ich_node.database.reviews import Verdict, add_review
from ich_node.database.tables import AuditRow, StudyRow
from ich_node.errors import RejectionReason
from ich_node.findings import Priority, StudyState
from tests.database_cases import STUDY, Sender, at, must_claim, read_once, sqlite_database

ONLY_GROW = ("audit", "access", "review")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


@pytest.fixture(autouse=True)
def every_change_is_audited() -> Iterator[None]:
    """Each commit of each test is held to it."""
    event.listen(Session, "before_commit", refuse_unaudited)
    yield
    event.remove(Session, "before_commit", refuse_unaudited)


def refuse_unaudited(session: Session) -> None:
    session.flush()
    row = aliased(AuditRow)
    own = select(func.max(row.id)).where(row.study_instance_uid == StudyRow.study_instance_uid)
    standings = (  # by one statement: others commit meanwhile
        select(
            StudyRow.study_instance_uid, StudyRow.state, StudyRow.priority, AuditRow.state, AuditRow.priority
        )
        .outerjoin(AuditRow, AuditRow.id == own.correlate(StudyRow).scalar_subquery())
        .where(
            or_(
                AuditRow.id.is_(None),
                AuditRow.state != StudyRow.state,
                AuditRow.priority != StudyRow.priority,
            )
        )
    )
    for uid, *stands in session.execute(standings):
        raise AssertionError(f"study {uid} is not what the audit says: {stands}")


def test_the_guard_of_these_tests_sees_a_change_without_its_row(database: Database) -> None:
    Sender(database=database).send(1)
    with pytest.raises(AssertionError, match="is not what the audit says"), database.writing() as session:
        session.get_one(StudyRow, STUDY).priority = Priority.STAT
    with database.reading() as session:
        assert session.get_one(StudyRow, STUDY).priority == Priority.MEDIUM


def test_every_way_of_a_study_is_in_the_audit(database: Database) -> None:
    """From the first image over each end that a reading can come to, to its purge."""
    sender = Sender(database=database)
    sender.send(1)
    with database.writing() as session:
        assert queue.take_due_studies(session, at(1)) == [STUDY]
    claimed = must_claim(database, seconds=1)
    with database.writing() as session:
        queue.give_back(session, claimed, now=at(2), again_at=at(2))
    read_once(database, Priority.ROUTINE, seconds=3)
    sender.send(2, seconds=5, due=5)
    Sender(database=database, series="1.2.3.2").send(7, seconds=6, due=100)
    waiting = must_claim(database, seconds=6)
    with database.writing() as session:
        finish_waiting(session, waiting, exclusions=(), now=at(7))
    sender.send(3, seconds=8, due=8)
    for n in range(3):
        must_claim(database, seconds=10 + 100 * n)
    assert isinstance(claim_again(database, 400), queue.GivenUp)
    not_read(database, 500)
    reprocess(database, 600)
    read_once(database, Priority.STAT, run=2, seconds=601, destinations=())
    with database.writing() as session:
        for verdict in (Verdict.SEEN, Verdict.UNSEEN):
            add_review(session, study_instance_uid=STUDY, verdict=verdict, reviewer="r", now=at(700))
    purge(database, 800)
    with database.reading() as session:
        rows = session.execute(select(AuditRow.action, AuditRow.actor).order_by(AuditRow.id)).all()
        actions = [row.action for row in rows]
        assert all(row.actor for row in rows)
    images = ["received", "queued", "reading", "given back", "reading", "read", "more images"]
    ends = [
        "reading",
        "waiting",
        "reading",
        "reading",
        "reading",
        "failed",
        "reprocess",
        "reading",
        "not_read",
    ]
    expected = [*images, *ends, "reprocess", "reading", "read"]
    assert actions[: len(expected)] == expected
    assert actions[-1] == "purged"
    assert len(actions) == len(expected) + 3


def claim_again(database: Database, seconds: float) -> queue.StudyClaim | queue.GivenUp | None:
    with database.writing() as session:
        return queue.claim_study(
            session, STUDY, owner="w", now=at(seconds), lease=timedelta(seconds=15), max_attempts=3
        )


def not_read(database: Database, seconds: float) -> None:
    reprocess(database, seconds)
    claimed = must_claim(database, seconds=seconds + 1)
    with database.writing() as session:
        finish_not_read(
            session,
            claimed,
            exclusions=(),
            reason=RejectionReason.NOT_HEAD,
            detail="x",
            now=at(seconds + 2),
            state=StudyState.NOT_READ,
        )


def reprocess(database: Database, seconds: float) -> None:
    with database.writing() as session:
        queue.request_reprocess(
            session, STUDY, series_instance_uid=None, model=None, actor="cli:me", now=at(seconds)
        )


def purge(database: Database, seconds: float) -> None:
    with database.writing() as session:
        stock = retention.take_stock(session, STUDY, before=None, conflicts=False, now=at(seconds), lock=True)
        retention.mark_purged(session, stock, {}, conflicts=False, actor="a", why="b", now=at(seconds))


@pytest.fixture
def grown(database: Database) -> Database:
    """A database with a row in each table that only grows."""
    Sender(database=database).send(1)
    read_once(database, Priority.STAT)
    with database.writing() as session:
        add_review(session, study_instance_uid=STUDY, verdict=Verdict.SEEN, reviewer="r", now=at(20))
        seen = Access(
            at=at(21),
            caller="r",
            role="viewer",
            source="127.0.0.1",
            action=AccessAction.VIEW,
            study_instance_uid=STUDY,
        )
        record_access(session, seen, export=True)
    return database


@pytest.mark.parametrize("table", ONLY_GROW)
def test_a_row_that_stands_cannot_be_changed_or_taken_away(grown: Database, table: str) -> None:
    is_sqlite = grown.engine.dialect.name == "sqlite"
    statements = [
        f"UPDATE {table} SET study_instance_uid = 'x'",
        f"DELETE FROM {table}",
        f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}" if is_sqlite else f"TRUNCATE {table} CASCADE",
    ]
    before = dump(grown, table)
    assert before
    for statement in statements:
        with pytest.raises(DBAPIError, match=f"{table} is only ever added to"), grown.writing() as session:
            session.execute(text(statement))
    assert dump(grown, table) == before


def test_what_must_go_can_go(grown: Database) -> None:
    with grown.writing() as session:
        session.execute(text("DELETE FROM access_export"))
        assert session.scalar(text("SELECT count(*) FROM access_export")) == 0


def test_the_ids_of_the_audit_go_on(grown: Database) -> None:
    with grown.reading() as session:
        before = session.scalar(select(func.max(AuditRow.id))) or 0
    Sender(database=grown, study="1.9", series="1.9.1").send(1)
    with grown.reading() as session:
        assert (session.scalar(select(func.max(AuditRow.id))) or 0) > before


def dump(database: Database, table: str) -> list[tuple[Any, ...]]:
    with database.reading() as session:
        return [tuple(row) for row in session.execute(text(f"SELECT * FROM {table} ORDER BY id"))]
