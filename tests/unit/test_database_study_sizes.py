"""How much of each study is here, and which spooled files have rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, event

from ich_node.database.engine import Database
from ich_node.database.known_files import KnownFiles
from ich_node.database.receipt import record_instances
from ich_node.database.study_sizes import StudySizes, studies_over, study_bytes
from ich_node.database.tables import InstanceRow
from tests.database_cases import STUDY, Sender, at, sqlite_database

OBJECT = 2**33
"""Bytes of an object of `Sender`."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_sums_are_of_all_objects_of_a_study(database: Database) -> None:
    for series in (f"{STUDY}.1", f"{STUDY}.2"):
        for number in range(3):
            Sender(database=database, series=series).send(number)
    Sender(database=database).send(1, content_hash="other bytes")
    Sender(database=database, study="1.9", series="1.9.1").send(1, seconds=100)
    with database.reading() as session:
        assert study_bytes(session, STUDY) == 7 * OBJECT
        assert study_bytes(session, "1.9") == OBJECT
        assert study_bytes(session, "no such study") == 0
        assert studies_over(session, 6 * OBJECT, since=at(0)) == {STUDY}
        assert studies_over(session, 7 * OBJECT, since=at(0)) == set()
        assert studies_over(session, 0, since=at(0)) == {STUDY, "1.9"}
        assert studies_over(session, 0, since=at(1)) == {"1.9"}


def test_a_study_is_full_once_it_holds_more_than_it_may(database: Database) -> None:
    sizes = StudySizes(2 * OBJECT)
    told = []
    for number in range(4):
        with database.writing() as session:
            Sender(database=database).send_in(session, number)
            told.append(sizes.add(session, STUDY, OBJECT))
    assert told == [False, False, True, False]
    assert sizes.full == {STUDY}


def test_the_database_is_asked_only_now_and_then(database: Database) -> None:
    clock, asked = Clock(), []
    sizes = StudySizes(100 * OBJECT, clock=clock)
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda *call: asked.append(call[2]) if "sum(" in call[2] else None,
    )
    for number in range(20):
        with database.writing() as session:
            Sender(database=database).send_in(session, number)
            sizes.add(session, STUDY, OBJECT)
    assert len(asked) == 1
    clock.now_s = 61.0
    with database.writing() as session:
        sizes.add(session, STUDY, 0)
    assert len(asked) == 2


def test_what_other_processes_bring_and_take_counts(database: Database) -> None:
    clock = Clock()
    sizes = StudySizes(4 * OBJECT, clock=clock)
    sender = Sender(database=database)
    with database.writing() as session:
        sender.send_in(session, 0)
        assert not sizes.add(session, STUDY, OBJECT)
    for number in range(1, 5):
        sender.send(number)  # by another process
    clock.now_s = 61.0
    with database.writing() as session:
        assert sizes.add(session, STUDY, 0)
        sizes.ask_again(session)
        assert sizes.full == {STUDY}
        session.execute(delete(InstanceRow))
        sizes.ask_again(session)
    assert sizes.full == frozenset()
    with database.writing() as session:  # nothing of what was is counted against what comes
        sender.send_in(session, 9)
        assert not sizes.add(session, STUDY, OBJECT)


def test_a_start_finds_the_full_ones(database: Database) -> None:
    for number in range(3):
        Sender(database=database).send(number)
    sizes = StudySizes(2 * OBJECT)
    with database.reading() as session:
        sizes.ask(session, since=at(0))
    assert sizes.full == {STUDY}


def test_known_files_are_asked_for_in_portions(database: Database) -> None:
    names = [f"{digit}{rest}/x.dcm" for digit in "0123456789abcdef" for rest in "0f"]
    with database.writing() as session:
        received = [
            replace(one, spooled=replace(one.spooled, file_name=names[n]))
            for n, one in enumerate(Sender(database=database).received(number) for number in range(20))
        ]
        record_instances(session, received, due_at=at(0))
    asked = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    known = KnownFiles(database)
    assert [name in known for name in names] == [True] * 20 + [False] * 12
    assert sum("FROM instance" in statement for statement in asked) == 16
    assert "0%" not in known
    assert "00/x.dcm" in KnownFiles(database)


def test_a_search_that_is_stopped_knows_everything(database: Database) -> None:
    stopped = []
    known = KnownFiles(database, stopped=lambda: bool(stopped))
    assert "00/x.dcm" not in known
    stopped.append(True)
    assert "00/x.dcm" in known
