"""Figures about the whole node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ich_node.database import metrics, retention
from ich_node.database.engine import Database
from ich_node.database.metrics import TurnaroundTimes, UnreadImages
from ich_node.database.outbox import claim_deliveries, record_failed, record_taken
from ich_node.findings import Priority
from tests.database_cases import LEASE, STUDY, Sender, at, must_claim, read_once, sqlite_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


def ask(database: Database, query: Callable[..., Any]) -> Any:
    with database.reading() as session:
        return query(session)


def received(database: Database, study: str, *, images: int = 2, seconds: float = 0) -> None:
    sender = Sender(database=database, study=study, series=f"{study}.1")
    for number in range(1, images + 1):
        sender.send(number, seconds=seconds, due=seconds)


def test_a_node_that_has_seen_nothing(database: Database) -> None:
    assert ask(database, metrics.study_counts) == {}
    assert ask(database, metrics.unread_images) == UnreadImages(studies=0, objects=0, oldest_at=None)
    assert ask(database, metrics.outbox_standing) == []
    assert ask(database, metrics.turnaround_times) == TurnaroundTimes(to_reading_s=(), to_flag_s=())
    spool = ask(database, metrics.spool_standing)
    assert (spool.objects, spool.size_bytes, spool.conflicts, spool.received, spool.removals) == (0,) * 5


def test_studies_are_counted_by_state_and_priority(database: Database) -> None:
    for n in range(3):
        received(database, f"1.{n}")
    read_once(database, Priority.STAT, study="1.0")
    must_claim(database, seconds=1, study="1.1")
    assert ask(database, metrics.study_counts) == {
        ("READ", "STAT"): 1,
        ("READING", "MEDIUM"): 1,
        ("RECEIVING", "MEDIUM"): 1,
    }


def test_unread_images_and_since_when(database: Database) -> None:
    received(database, "1.1", seconds=5)
    received(database, "1.2", images=3, seconds=3)
    received(database, "1.3", seconds=1)
    read_once(database, Priority.STAT, study="1.3")
    assert ask(database, metrics.unread_images) == UnreadImages(studies=2, objects=5, oldest_at=at(3))


def test_received_objects_are_never_counted_back(database: Database) -> None:
    received(database, STUDY)
    Sender(database=database).send(1, content_hash="other bytes")
    spool = ask(database, metrics.spool_standing)
    assert (spool.objects, spool.size_bytes, spool.conflicts, spool.received) == (3, 3 * 2**33, 1, 2)
    read_once(database, Priority.STAT, destinations=("PACS",))
    with database.writing() as session:
        stock = retention.take_stock(session, STUDY, before=None, conflicts=True, now=at(100), lock=True)
        there = {(retention.Folder.SPOOL, name): 1 for name in stock.spool_files}
        retention.mark_purged(session, stock, there, conflicts=True, actor="a", why="", now=at(100))
    spool = ask(database, metrics.spool_standing)
    assert (spool.objects, spool.size_bytes, spool.conflicts, spool.received) == (0, 0, 0, 2)
    assert spool.removals == 3


def test_the_outbox_by_destination(database: Database) -> None:
    received(database, STUDY)
    read_once(database, Priority.STAT, seconds=10, destinations=("A", "B", "C"))
    with database.writing() as session:
        (dead,) = claim_deliveries(session, "A", owner="d", now=at(20), lease=LEASE, limit=1)
        record_failed(session, dead, next_attempt_at=None, note="no")
        for sent in claim_deliveries(session, "B", owner="d", now=at(20), lease=LEASE):
            record_taken(session, sent, now=at(20), note=None, confirm=False)
    found = ask(database, metrics.outbox_standing)
    assert [(o.destination, o.pending, o.dead, o.oldest_at) for o in found] == [
        ("A", 1, 1, at(11)),
        ("C", 2, 0, at(11)),
    ]


def test_turnaround_is_from_the_last_image_to_the_result(database: Database) -> None:
    for n, priority in enumerate((Priority.STAT, Priority.ROUTINE)):
        received(database, f"1.{n}")
        read_once(database, priority, study=f"1.{n}", seconds=7 + n)
    assert ask(database, metrics.turnaround_times) == TurnaroundTimes(
        to_reading_s=(8.0, 7.0), to_flag_s=(8.0,)
    )
    Sender(database=database, study="1.0", series="1.0.1").send(9, seconds=60, due=60)
    assert ask(database, metrics.turnaround_times).to_flag_s == ()  # its flag is older than its last image
    read_once(database, Priority.STAT, study="1.0", run=2, seconds=70)
    assert ask(database, metrics.turnaround_times).to_reading_s == (8.0,)
