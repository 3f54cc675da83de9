"""Objects that a destination took: asked about until it is known that it keeps them, sent again where it lost them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from ich_node.database.confirmation import (
    Answer,
    Unconfirmed,
    claim_unconfirmed,
    record_answer,
    record_kept,
    record_lost,
    record_request,
    record_waiting,
    renew_leases,
)
from ich_node.database.engine import Database
from ich_node.database.outbox import (
    DeliveryRecord,
    claim_deliveries,
    deliveries,
    destinations_due,
    record_taken,
    retry_failed,
)
from ich_node.database.worklist import worklist_row
from ich_node.findings import Priority
from tests.database_cases import LEASE, STUDY, Sender, at, read_once, sqlite_database

SR, SC = "9.1.2.3.1.1.1", "9.1.2.3.1.1.2"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """One study whose two objects a PACS took at 20 s."""
    with sqlite_database(tmp_path) as database:
        Sender(database=database).send(1)
        read_once(database, Priority.STAT)
        send(database, 20)
        yield database


def send(database: Database, seconds: float) -> None:
    with database.writing() as session:
        for delivery in claim_deliveries(session, "PACS", owner="a", now=at(seconds), lease=LEASE):
            record_taken(session, delivery, now=at(seconds), note=None, confirm=True)


def ask(database: Database, seconds: float) -> list[Unconfirmed]:
    with database.writing() as session:
        return claim_unconfirmed(session, "PACS", owner="a", now=at(seconds), lease=LEASE, limit=100)


def records(database: Database) -> list[DeliveryRecord]:
    with database.reading() as session:
        return list(reversed(deliveries(session)))


def delivered_at(database: Database) -> str | None:
    with database.reading() as session:
        row = worklist_row(session, STUDY)
    assert row is not None
    found: str | None = row["delivered_at"]
    return found


def again(seconds: float) -> datetime | None:
    return at(seconds)


def test_what_is_taken_is_not_delivered_until_it_is_confirmed(database: Database) -> None:
    assert [(r.state, r.sent_at, r.delivered_at) for r in records(database)] == [("SENT", at(20), None)] * 2
    assert delivered_at(database) is None
    with database.reading() as session:
        assert destinations_due(session, at(21)) == ["PACS"]
    claimed = ask(database, 21)
    assert [(c.sop_class_uid, c.sop_instance_uid, c.attempts, c.sends) for c in claimed] == [
        ("1.1", SR, 1, 1),
        ("1.2", SC, 1, 1),
    ]
    assert {c.study_instance_uid for c in claimed} == {STUDY}
    with database.writing() as session:
        record_kept(session, claimed[:1], now=at(22))
    assert delivered_at(database) is None, "a part is not the whole"
    with database.writing() as session:
        record_kept(session, claimed[1:], now=at(23))
        record_kept(session, claimed, now=at(99))
    assert [(r.state, r.delivered_at) for r in records(database)] == [
        ("DELIVERED", at(22)),
        ("DELIVERED", at(23)),
    ]
    assert str(delivered_at(database)).startswith(at(23).isoformat(timespec="milliseconds")[:19])
    with database.reading() as session:
        assert destinations_due(session, at(1e6)) == []


def test_a_destination_that_says_nothing_yet_is_asked_again_at_its_time(database: Database) -> None:
    with database.writing() as session:
        claimed = claim_unconfirmed(session, "PACS", owner="a", now=at(21), lease=LEASE, limit=1)
        record_waiting(session, claimed, next_attempt_at=at(60), note="not listed yet")
    assert [c.sop_instance_uid for c in ask(database, 22)] == [SC]
    assert ask(database, 23) == [], "the lease of who asks stands"
    assert [(c.sop_instance_uid, c.attempts) for c in ask(database, 61)] == [(SR, 2), (SC, 2)]


def test_one_that_asks_too_long_is_overtaken_and_spoils_nothing(database: Database) -> None:
    slow = ask(database, 21)
    with database.writing() as session:
        assert renew_leases(session, slow, now=at(30), lease=LEASE) == 2
    assert ask(database, 44) == []
    fast = ask(database, 46)
    with database.writing() as session:
        assert renew_leases(session, slow, now=at(47), lease=LEASE) == 0
        record_waiting(session, slow, next_attempt_at=None, note="late")
        record_lost(session, slow, again_at=None, note="late")
    assert [(r.state, r.note) for r in records(database)] == [("SENT", None)] * 2
    with database.writing() as session:
        record_kept(session, slow, now=at(48))  # that it keeps them is true whoever hears it
        record_lost(session, fast, again_at=at(50), note="lost")
    assert [r.state for r in records(database)] == ["DELIVERED"] * 2


def test_what_a_destination_lost_is_sent_again(database: Database) -> None:
    claimed = ask(database, 21)
    with database.writing() as session:
        record_lost(session, claimed[:1], again_at=at(30), note="it does not list it")
        record_lost(session, claimed[1:], again_at=None, note="lost for good")
    assert [(r.state, r.note) for r in records(database)] == [
        ("PENDING", "it does not list it"),
        ("DEAD", "lost for good"),
    ]
    with database.reading() as session:
        assert len(deliveries(session, failed=True)) == 2
    send(database, 31)
    assert [(r.state, r.attempts, r.sent_at) for r in records(database)] == [
        ("SENT", 2, at(31)),
        ("DEAD", 1, at(20)),
    ]
    (asked,) = ask(database, 32)
    assert (asked.attempts, asked.sends, asked.transaction_uid) == (1, 2, None)


def test_an_answer_is_written_down_whoever_takes_it(database: Database) -> None:
    claimed = ask(database, 21)
    with database.writing() as session:
        record_request(session, claimed, "1.2.9", answer_by=at(90))
    answer = Answer(transaction_uid="1.2.9", committed=[SR, "8.8"], failed={SC: "0x0112 no such object"})
    with database.writing() as session:
        assert record_answer(session, answer, now=at(25), again_at=lambda sends: again(25 + sends)) == 2
        assert record_answer(session, answer, now=at(26), again_at=again) == 0, "a repetition changes nothing"
    kept, lost = records(database)
    assert (kept.state, kept.delivered_at) == ("DELIVERED", at(25))
    assert (lost.state, lost.next_attempt_at) == ("PENDING", at(26))
    assert lost.note == "taken, then not committed: 0x0112 no such object"
    with database.writing() as session:  # of who asked, and did not hear of it
        record_waiting(session, claimed, next_attempt_at=None, note="no answer")
    assert [r.state for r in records(database)] == ["DELIVERED", "PENDING"]


def test_an_answer_to_a_request_of_before_is_about_nothing(database: Database) -> None:
    with database.writing() as session:
        record_request(session, ask_in(session, 21), "1.2.9", answer_by=at(30))
    with database.writing() as session:
        record_request(session, ask_in(session, 40), "1.2.10", answer_by=at(90))
        late = Answer(transaction_uid="1.2.9", committed=[], failed={SR: "x", SC: "x"})
        assert record_answer(session, late, now=at(41), again_at=again) == 0
    assert {c.transaction_uid for c in ask(database, 91)} == {"1.2.10"}


def test_one_that_never_confirms_shows_among_the_failed_and_can_be_sent_again(database: Database) -> None:
    for number in range(4):
        with database.writing() as session:
            claimed = ask_in(session, 100 * (number + 1))
            record_waiting(session, claimed, next_attempt_at=at(100 * (number + 1)), note="no answer")
    with database.reading() as session:
        assert deliveries(session, failed=True) == []
    ask(database, 1000)
    with database.reading() as session:
        assert len(deliveries(session, failed=True)) == 2
    with database.writing() as session:
        assert retry_failed(session, now=at(1100)) == 2
    send(database, 1200)
    assert [(r.state, r.attempts) for r in records(database)] == [("SENT", 1)] * 2


def ask_in(session: object, seconds: float) -> list[Unconfirmed]:
    return claim_unconfirmed(session, "PACS", owner="a", now=at(seconds), lease=LEASE, limit=100)  # type: ignore[arg-type]


def test_a_warning_outlives_what_was_said_while_it_was_not_confirmed(database: Database) -> None:
    with database.writing() as session:
        retry = ask_in(session, 21)
        record_lost(session, retry, again_at=at(30), note="lost")
    with database.writing() as session:
        for delivery in claim_deliveries(session, "PACS", owner="a", now=at(31), lease=LEASE):
            note = "0xB000 coerced" if delivery.sop_instance_uid == SR else None
            record_taken(session, delivery, now=at(31), note=note, confirm=True)
    for seconds, said in ((32, "no answer"), (60, "not listed yet")):
        with database.writing() as session:
            record_waiting(session, ask_in(session, seconds), next_attempt_at=at(seconds + 1), note=said)
    assert [r.note for r in records(database)] == [
        "0xB000 coerced not confirmed: not listed yet",
        "not confirmed: not listed yet",
    ]
    with database.writing() as session:
        record_kept(session, ask_in(session, 90), now=at(91))
    assert [(r.state, r.note) for r in records(database)] == [
        ("DELIVERED", "0xB000 coerced"),
        ("DELIVERED", None),
    ]


def test_what_was_kept_of_an_earlier_sending_confirms_no_later_one(database: Database) -> None:
    earlier = ask(database, 21)
    with database.writing() as session:
        record_lost(session, ask_in(session, 40), again_at=at(41), note="lost")
        record_kept(session, earlier, now=at(42))
    assert [r.state for r in records(database)] == ["PENDING"] * 2
    send(database, 43)
    with database.writing() as session:
        record_kept(session, earlier, now=at(44))
        record_lost(session, earlier, again_at=None, note="late")
    assert [r.state for r in records(database)] == ["SENT"] * 2
