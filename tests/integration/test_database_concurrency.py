"""Sixteen who write and fifty who read, at once, with the operations that the node is made of: nothing is lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from ich_node.database.engine import Database, Session
from ich_node.database.queue import StudyClaim, claim_study, request_reprocess
from ich_node.database.readings import NewReading, finish_read, last_run_numbers
from ich_node.database.reviews import ReviewRefused, Verdict, add_review
from ich_node.database.standing import has_unread_images
from ich_node.database.tables import AuditRow, InstanceRow, ReadingRow, SeriesRow, StudyRow
from ich_node.database.web_tables import ReviewRow
from ich_node.database.worklist import study_report, worklist
from ich_node.errors import TransientError
from ich_node.findings import Priority
from tests.database_cases import Sender, at, reading, sqlite_database
from tests.postgresql_server import postgresql_server

WRITERS, READERS, STUDIES, ROUNDS = 16, 50, 6, 3
FOUND = (Priority.STAT, Priority.HIGH, Priority.ROUTINE)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        with sqlite_database(tmp_path) as database:
            yield database
        return
    with postgresql_server() as server:
        server.run("CREATE DATABASE busy")
        database = Database(server.url("busy"))
        database.upgrade()
        yield database
        database.dispose()


@dataclass(kw_only=True)
class Deeds:
    """What one writer has done, as the database told it."""

    images: Counter[str] = field(default_factory=Counter)
    claims: Counter[str] = field(default_factory=Counter)
    readings: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Deeds) -> Deeds:
        return Deeds(
            **{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__}
        )


def study_uid(number: int) -> str:
    return f"1.2.{number % STUDIES + 1}"


class Writer:
    """One of those who write: a scanner, a worker, a person and a script in one."""

    def __init__(self, url: str, number: int) -> None:
        self._database = Database(url)
        self._number = number
        self.deeds = Deeds()

    def work(self) -> Deeds:
        for step in range(ROUNDS):
            study = study_uid(self._number + step)
            seconds = float(step * WRITERS + self._number)
            _until_done(self._send, study, step, seconds)
            _until_done(self._read, study, step, seconds)
            if step % 2:
                _until_done(self._ask_again, study, seconds)
            _until_done(self._review, study, step, seconds)
        self._database.dispose()
        return self.deeds

    def _send(self, study: str, step: int, seconds: float) -> None:
        sender = Sender(database=self._database, study=study, series=f"{study}.1")
        receipt = sender.send(self._number * ROUNDS + step, seconds=seconds, due=seconds)
        assert receipt == "NEW"
        self.deeds.images[study] += 1

    def _read(self, study: str, step: int, seconds: float) -> None:
        with self._database.writing() as session:
            claimed = claim_study(
                session,
                study,
                owner=f"worker {self._number}",
                now=at(1e6),
                lease=timedelta(hours=1),
                max_attempts=1000,
            )
            series = f"{study}.1"
            run = last_run_numbers(session, series).get("vicar-attention", 0) + 1
        if claimed is None:
            return
        self.deeds.claims[study] += 1
        found = reading(FOUND[(self._number + step) % 3], series=series, run=run, seconds=seconds)
        _until_done(self._finish, claimed, found)

    def _finish(self, claimed: StudyClaim, found: NewReading) -> None:
        with self._database.writing() as session:
            finish_read(session, claimed, exclusions=(), readings=[found], now=at(1e6))
        self.deeds.readings[claimed.study_instance_uid] += 1

    def _ask_again(self, study: str, seconds: float) -> None:
        with self._database.writing() as session:
            request_reprocess(
                session, study, series_instance_uid=None, model=None, actor="script", now=at(seconds)
            )
        self.deeds.requests[study] += 1

    def _review(self, study: str, step: int, seconds: float) -> None:
        verdict = Verdict.AGREE if step % 2 else Verdict.SEEN
        try:
            with self._database.writing() as session:
                is_new = add_review(
                    session,
                    study_instance_uid=study,
                    verdict=verdict,
                    reviewer=f"radiologist {self._number}",
                    now=at(seconds),
                )
        except ReviewRefused:
            return
        self.deeds.reviews[study] += int(is_new)


def _until_done(work: Callable[..., None], *arguments: Any) -> None:
    """What met a passing fault has written nothing, and is done again as the node does it."""
    for _ in range(20):
        with suppress(TransientError):
            return work(*arguments)
    raise AssertionError("never done")


def read_on(url: str, done: threading.Event) -> int:
    """Look at list and studies until the writers have ended; each look must hold together. How often."""
    database, looks = Database(url), 0
    while not done.is_set() or looks == 0:
        with database.reading() as session:
            rows = worklist(session)
            for row in rows[:2]:
                look_at(session, str(row["study_instance_uid"]), row)
        urgencies = [(row["reviewed_at"] is not None, Priority(row["priority"]).urgency) for row in rows]
        assert urgencies == sorted(urgencies)
        looks += 1
        done.wait(2.0)  # fifty who never rest would leave no time to those who write
    database.dispose()
    return looks


def look_at(session: Session, study: str, row: dict[str, object]) -> None:
    """A study, its readings and its audit are of one moment."""
    report = study_report(session, study)
    assert report is not None
    assert (report["state"], report["priority"]) == (row["state"], row["priority"])
    last = report["history"][-1]
    assert (last["state"], last["priority"]) == (row["state"], row["priority"])
    assert sum(not one["superseded"] for one in report["readings"]) == (1 if report["readings"] else 0)
    if row["state"] == "READ":
        assert row["model_name"] == "vicar-attention"


def test_nothing_is_lost_among_many(database: Database) -> None:
    writers = [Writer(database.url, number) for number in range(WRITERS)]
    done = threading.Event()
    with ThreadPoolExecutor(WRITERS + READERS) as pool:
        looking = [pool.submit(read_on, database.url, done) for _ in range(READERS)]
        try:
            deeds = sum((each.result() for each in [pool.submit(w.work) for w in writers]), Deeds())
        finally:
            done.set()
        looks = [each.result() for each in looking]
    assert min(looks) >= 1
    with database.reading() as session:
        for number in range(STUDIES):
            agree(session, study_uid(number), deeds)


def agree(session: Session, study: str, deeds: Deeds) -> None:
    """The database holds what it told the writers, each thing once."""
    row = session.get_one(StudyRow, study)
    series = session.get_one(SeriesRow, f"{study}.1")
    mine = ReadingRow.study_instance_uid == study
    numbers = sorted(session.scalars(select(ReadingRow.run_number).where(mine)))
    standing = session.scalars(select(ReadingRow).where(mine, ReadingRow.superseded.is_(False))).all()
    images = select(func.count()).where(InstanceRow.series_instance_uid == series.series_instance_uid)
    assert series.revision == session.scalar(images) == deeds.images[study] > 0
    assert row.claim_number == deeds.claims[study] == deeds.readings[study]
    assert numbers == list(range(1, deeds.readings[study] + 1))
    assert audited(session, study, "reading") == deeds.claims[study]
    assert audited(session, study, "reprocess") == deeds.requests[study]
    assert audited(session, study, "read") == deeds.readings[study]
    assert len(standing) == (1 if numbers else 0)
    said = session.scalars(
        select(ReviewRow).where(ReviewRow.study_instance_uid == study).order_by(ReviewRow.id)
    ).all()
    assert len(said) == deeds.reviews[study]
    # Becoming more urgent makes a study unseen again, so not every review counts; one that was less urgent never does.
    counting = [one for one in said if Priority(one.priority).urgency <= Priority(row.priority).urgency]
    assert row.reviewed_by is None or row.reviewed_by in {one.reviewer for one in counting}
    assert (row.reviewed_by is None) == (row.reviewed_at is None)
    if standing and not has_unread_images(session, study):
        assert row.priority == standing[0].priority
    else:
        assert row.priority != Priority.ROUTINE


def audited(session: Session, study: str, action: str) -> int:
    query = select(func.count()).where(AuditRow.study_instance_uid == study, AuditRow.action == action)
    return session.scalar(query) or 0
