"""Deliveries: their order, who sends them, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ich_node.database.engine import Database
from ich_node.database.outbox import (
    Delivery,
    claim_deliveries,
    deliveries,
    destinations_due,
    give_up,
    record_failed,
    record_taken,
    renew_leases,
    retry_failed,
    wake,
)
from ich_node.findings import Priority
from tests.database_cases import LEASE, Sender, at, read_once, sqlite_database, together


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


def add(
    database: Database, number: int, priority: Priority = Priority.ROUTINE, *, to: tuple[str, ...] = ("PACS",)
) -> None:
    """A study with an SR and an SC on their way since its number in seconds."""
    study = f"1.{number}"
    Sender(database=database, study=study, series=f"{study}.1").send(1)
    read_once(database, priority, study=study, seconds=number, destinations=to)


def take(database: Database, seconds: float, *, to: str = "PACS", **arguments: Any) -> list[Delivery]:
    with database.writing() as session:
        return claim_deliveries(session, to, owner="sender", now=at(seconds), lease=LEASE, **arguments)


def due(database: Database, seconds: float) -> set[str]:
    with database.reading() as session:
        return set(destinations_due(session, at(seconds)))


def states(database: Database) -> list[tuple[str, int, str | None]]:
    with database.reading() as session:
        return [(r.state, r.attempts, r.note) for r in reversed(deliveries(session))]


def test_the_most_urgent_go_first_and_among_equals_the_oldest(database: Database) -> None:
    for number, priority in enumerate([Priority.ROUTINE, Priority.HIGH, Priority.STAT, Priority.STAT]):
        add(database, number, priority)
    claimed = take(database, 100, limit=6)
    assert [d.sop_instance_uid for d in claimed] == [
        f"9.1.{study}.1.1.{item}" for study in (2, 3, 1) for item in (1, 2)
    ]
    assert [d.file_name for d in claimed[:2]] == ["1.sr", "1.sc"]
    assert [d.attempts for d in claimed] == [1] * 6
    assert len(take(database, 100)) == 2


def test_one_destination_does_not_hold_up_another(database: Database) -> None:
    add(database, 0, Priority.STAT, to=("dead", "PACS"))
    add(database, 1, Priority.ROUTINE, to=("dead", "PACS"))
    assert due(database, 50) == {"dead", "PACS"}
    stuck = take(database, 50, to="dead")
    assert len(stuck) == 4
    assert due(database, 50) == {"PACS"}
    assert len(take(database, 50, to="PACS")) == 4
    assert due(database, 50) == set()


def test_what_another_process_sends_is_left_alone_until_its_lease_runs_out(database: Database) -> None:
    add(database, 0)
    first = take(database, 50)
    assert take(database, 64) == []
    second = take(database, 66)
    assert [d.id for d in second] == [d.id for d in first]
    assert [d.attempts for d in second] == [2, 2]


def test_of_many_senders_each_delivery_goes_to_one(database: Database) -> None:
    for number in range(4):
        add(database, number)
    claimed = together(8, lambda _: take(database, 50, limit=2))
    ids = [d.id for one in claimed for d in one]
    assert sorted(ids + [d.id for d in take(database, 50)]) == sorted(range(1, 9))
    assert len(set(ids)) == len(ids)


def test_sent_is_final(database: Database) -> None:
    add(database, 0)
    report, capture = take(database, 50)
    with database.writing() as session:
        record_taken(session, report, now=at(51), note=None, confirm=False)
        record_taken(session, capture, now=at(52), note="warning: coerced", confirm=False)
        record_taken(session, report, now=at(99), note="again", confirm=False)
        record_failed(session, report, next_attempt_at=None, note="late")
    assert states(database) == [("DELIVERED", 1, None), ("DELIVERED", 1, "warning: coerced")]
    assert take(database, 1e6) == []
    with database.reading() as session:
        assert {r.sent_at for r in deliveries(session)} == {at(51), at(52)}
        assert deliveries(session, failed=True) == []


def test_a_failure_is_tried_again_at_its_time_until_it_is_dead(database: Database) -> None:
    add(database, 0)
    report, capture = take(database, 50)
    with database.writing() as session:
        record_failed(session, report, next_attempt_at=at(60), note="connection refused")
        record_failed(session, capture, next_attempt_at=None, note="0x0122: no such class")
    assert take(database, 59) == []
    (again,) = take(database, 60)
    assert (again.id, again.attempts) == (report.id, 2)
    assert states(database) == [
        ("PENDING", 2, "connection refused"),
        ("DEAD", 1, "0x0122: no such class"),
    ]
    assert [d.id for d in take(database, 1e6)] == [report.id]  # the dead letter stays
    with database.reading() as session:
        assert len(deliveries(session, failed=True)) == 2


def test_a_sender_that_was_overtaken_spoils_nothing(database: Database) -> None:
    add(database, 0)
    slow = take(database, 50)[0]
    fast = take(database, 70)[0]
    assert slow.id == fast.id
    with database.writing() as session:
        record_failed(session, slow, next_attempt_at=None, note="late failure")
    assert states(database)[0] == ("PENDING", 2, None)
    assert [d.id for d in take(database, 71)] == []  # the lease of the second sender stands
    with database.writing() as session:
        record_failed(session, fast, next_attempt_at=None, note="refused")
        record_taken(session, slow, now=at(80), note=None, confirm=False)  # it did arrive after all
    assert states(database)[0][0] == "DELIVERED"


def test_retry_sends_dead_letters_again_and_nothing_else(database: Database) -> None:
    add(database, 0)
    add(database, 1)
    one, two, three, _ = take(database, 50)
    with database.writing() as session:
        record_failed(session, one, next_attempt_at=None, note="dead")
        record_failed(session, two, next_attempt_at=at(1e6), note="waits")
        record_taken(session, three, now=at(51), note="a warning", confirm=False)
    with database.writing() as session:
        assert retry_failed(session, now=at(60)) == 2
    again = take(database, 60)
    assert sorted(d.id for d in again) == sorted([one.id, two.id])
    assert {(d.attempts, d.created_at) for d in again} == {(1, at(60))}


def test_records_name_their_study(database: Database) -> None:
    add(database, 0, to=("PACS", "archive"))
    with database.reading() as session:
        records = deliveries(session)
        assert len(deliveries(session, limit=3)) == 3
    assert {(r.study_instance_uid, r.kind, r.destination) for r in records} == {
        ("1.0", kind, name) for kind in ("SR", "SC") for name in ("PACS", "archive")
    }


def test_a_renewed_lease_keeps_others_away(database: Database) -> None:
    add(database, 1)
    claimed = take(database, 10)
    with database.writing() as session:
        assert renew_leases(session, claimed, now=at(10 + LEASE.total_seconds() - 1), lease=LEASE) == len(
            claimed
        )
    assert take(database, 10 + LEASE.total_seconds() + 1) == []
    later = take(database, 10 + 2 * LEASE.total_seconds() + 1)
    assert [d.id for d in later] == [d.id for d in claimed]
    with database.writing() as session:
        assert renew_leases(session, claimed, now=at(200), lease=LEASE) == 0, "others have taken them over"


def test_what_waits_is_woken_by_the_first_success_after_a_while_and_not_by_each(database: Database) -> None:
    for number in range(3):
        add(database, number)
    waiting, first, second, third, *_ = take(database, 50)

    def succeed(delivery: Delivery, seconds: float) -> list[int]:
        with database.writing() as session:
            wake(session, "PACS", now=at(seconds))
            record_taken(session, delivery, now=at(seconds), note=None, confirm=True)
            if delivery is first:
                record_failed(session, waiting, next_attempt_at=at(1e6), note="0xA700")
        return [d.id for d in take(database, seconds) if d.id == waiting.id]

    assert succeed(first, 51) == []
    assert succeed(second, 60) == [], "it has been at work all the time"
    assert succeed(third, 130) == [waiting.id], "it is back"


def test_what_is_for_a_destination_that_is_no_more_comes_to_an_end(database: Database) -> None:
    add(database, 0, to=("former", "PACS"))
    add(database, 1, to=("former",))
    with database.writing() as session:
        for delivery in take_in(session, 50, "former")[:2]:
            record_taken(session, delivery, now=at(50), note=None, confirm=True)
    with database.writing() as session:
        assert give_up(session, "former", now=at(51), note="gone") == 2, "the others are being sent"
        assert give_up(session, "former", now=at(500), note="gone") == 2
    assert due(database, 1e6) == {"PACS"}
    assert sorted(states(database)) == [("DEAD", 1, "gone")] * 4 + [("PENDING", 0, None)] * 2


def take_in(session: Any, seconds: float, to: str) -> list[Delivery]:
    return claim_deliveries(session, to, owner="sender", now=at(seconds), lease=LEASE)
