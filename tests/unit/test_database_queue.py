"""Which study is due, who has it, and how it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from ich_node.database.engine import Database
from ich_node.database.queue import (
    ENQUEUE_AGAIN,
    LeaseLost,
    StudyClaim,
    forget_enqueued,
    give_back,
    has_due_study,
    renew_lease,
    request_reprocess,
    take_due_studies,
)
from ich_node.database.readings import finish_not_read, finish_read, finish_waiting
from ich_node.database.receipt import set_due
from ich_node.database.tables import AuditRow, OutboxRow, ReadingRow
from ich_node.errors import RejectionReason
from ich_node.findings import Priority
from tests.database_cases import (
    LEASE,
    SERIES,
    STUDY,
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

AGAIN = ENQUEUE_AGAIN.total_seconds()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


def take(database: Database, seconds: float, **arguments: Any) -> list[str]:
    """What the reconciler sends messages for; it asks first, and both answers have to agree."""
    with database.reading() as session:
        any_due = has_due_study(session, at(seconds))
    with database.writing() as session:
        taken = take_due_studies(session, at(seconds), **arguments)
    assert any_due == bool(taken)
    return taken


def finish(database: Database, claimed: StudyClaim, *, seconds: float, run: int = 1) -> Priority:
    with database.writing() as session:
        return finish_read(
            session,
            claimed,
            exclusions=(),
            readings=[reading(Priority.ROUTINE, run=run)],
            now=at(seconds),
        )


def ask_again(database: Database, seconds: float, **wanted: Any) -> None:
    arguments = {"series_instance_uid": None, "model": None, **wanted}
    with database.writing() as session:
        request_reprocess(session, STUDY, actor="cli:eve", now=at(seconds), **arguments)


def audit(database: Database) -> list[tuple[str, str, str]]:
    with database.reading() as session:
        return [(a.action, a.state, a.actor) for a in session.scalars(select(AuditRow).order_by(AuditRow.id))]


# when a study is due


def test_a_study_is_due_when_its_time_has_come_and_not_before(database: Database) -> None:
    Sender(database=database).send(1, due=5)
    assert take(database, 4.9) == []
    assert claim(database, seconds=4.9) is None
    assert study_row(database).state == "RECEIVING"
    assert take(database, 5) == [STUDY]
    assert study_row(database).state == "QUEUED"
    assert claim(database, seconds=5) is not None
    assert study_row(database).state == "READING"


def test_studies_come_in_the_order_of_their_arrival_and_not_all_at_once(database: Database) -> None:
    for n, seconds in enumerate([3, 1, 2]):
        Sender(database=database, study=f"1.{n}", series=f"1.{n}.1").send(1, seconds=seconds)
    assert take(database, 5, limit=2) == ["1.1", "1.2"]
    assert take(database, 5, limit=2) == ["1.0"]
    assert take(database, 5) == []


def test_a_message_is_sent_again_only_when_the_first_must_be_lost(database: Database) -> None:
    Sender(database=database).send(1)
    assert take(database, 0) == [STUDY]
    assert take(database, AGAIN) == []
    assert take(database, AGAIN + 0.1) == [STUDY]


def test_messages_of_a_broker_that_lost_them_are_sent_at_once(database: Database) -> None:
    for n in range(2):
        Sender(database=database, study=f"1.{n}", series=f"1.{n}.1").send(1, seconds=n)
    take(database, 1)
    with database.writing() as session:
        forget_enqueued(session, ["1.1"])
    assert take(database, 2) == ["1.1"]
    with database.writing() as session:
        forget_enqueued(session)
    assert take(database, 3) == ["1.0", "1.1"]


def test_a_message_that_finds_the_study_not_due_yet_costs_no_time(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    assert take(database, 0) == [STUDY]
    sender.send(2, seconds=1, due=3)  # a late image overtakes the message
    assert study_row(database).state == "RECEIVING"
    assert claim(database, seconds=2) is None
    assert take(database, 2.9) == []
    assert take(database, 3) == [STUDY]


def test_a_late_image_makes_a_read_study_due_again(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    read_once(database, Priority.ROUTINE)
    assert take(database, 1e6) == []
    sender.send(2, seconds=20, due=22)
    assert (series_row(database).revision, series_row(database).handled_revision) == (2, 1)
    assert take(database, 21) == []
    assert take(database, 22) == [STUDY]
    (seen,) = must_claim(database, seconds=22).series
    assert (seen.revision, len(seen.file_names)) == (2, 2)


def test_what_arrives_during_a_reading_stays_due(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    claimed = must_claim(database, seconds=1)
    sender.send(2, seconds=2, due=4)
    assert study_row(database).state == "READING"
    assert claimed.series[0].revision == 1
    assert finish(database, claimed, seconds=3) is Priority.MEDIUM  # half of it is unread: not a negative
    row = study_row(database)
    assert (row.state, row.priority) == ("RECEIVING", "MEDIUM")
    assert take(database, 4) == [STUDY]
    (seen,) = must_claim(database, seconds=4).series
    assert len(seen.file_names) == 2


def test_a_series_that_still_arrives_is_left_out_of_the_claim_and_follows(database: Database) -> None:
    Sender(database=database, series="1.2.3.1").send(1, due=1)
    Sender(database=database, series="1.2.3.2").send(1, due=9)
    first = must_claim(database, seconds=2)
    assert [s.series_instance_uid for s in first.series] == ["1.2.3.1"]
    assert first.still_receiving
    with database.writing() as session:
        finish_waiting(session, first, exclusions=(), now=at(3))
    assert (study_row(database).state, study_row(database).priority) == ("RECEIVING", "MEDIUM")
    assert take(database, 8) == []
    assert take(database, 9) == [STUDY]
    second = must_claim(database, seconds=9)
    assert [s.series_instance_uid for s in second.series] == ["1.2.3.1", "1.2.3.2"]
    assert not second.still_receiving


def test_waiting_for_nothing_is_refused(database: Database) -> None:
    Sender(database=database).send(1)
    claimed = must_claim(database, seconds=1)
    with pytest.raises(ValueError, match="no other series"), database.writing() as session:
        finish_waiting(session, claimed, exclusions=(), now=at(2))
    assert study_row(database).state == "READING"


# who has it


def test_of_many_claims_at_once_exactly_one_wins(database: Database) -> None:
    Sender(database=database).send(1)
    claims = together(8, lambda n: claim(database, seconds=1, owner=f"worker {n}"))
    (winner,) = [c for c in claims if c is not None]
    assert study_row(database).lease_owner == winner.owner
    assert study_row(database).attempts == 1


def test_a_claim_that_waits_for_the_end_of_a_reading_does_not_read_again(database: Database) -> None:
    """Finish and claim at once: whoever comes second sees what the first has done."""
    for n in range(12):
        study, series = f"1.{n}", f"1.{n}.1"
        Sender(database=database, study=study, series=series).send(1)
        claimed = must_claim(database, study=study, seconds=1)

        def act(
            who: int, *, study: str = study, series: str = series, claimed: StudyClaim = claimed
        ) -> StudyClaim | None:
            if who:  # the lease has run out for this one
                return claim(database, study=study, seconds=100, owner="second")
            with database.writing() as session:
                finish_read(
                    session,
                    claimed,
                    exclusions=(),
                    readings=[reading(Priority.ROUTINE, series=series)],
                    now=at(2),
                )
            return None

        try:
            _, second = together(2, act)
        except LeaseLost:
            assert study_row(database, study).lease_owner == "second"
        else:
            assert second is None
            assert study_row(database, study).state == "READ"


def test_reconcilers_and_finishing_workers_leave_nothing_queued(database: Database) -> None:
    """A study that is taken just as its reading ends must not stay QUEUED with nothing to do."""
    for n in range(12):
        study, series = f"1.{n}", f"1.{n}.1"
        Sender(database=database, study=study, series=series).send(1)
        claimed = must_claim(database, study=study, seconds=1)

        def act(who: int, *, series: str = series, claimed: StudyClaim = claimed) -> None:
            with database.writing() as session:
                if who:
                    take_due_studies(session, at(100))
                else:
                    finish_read(
                        session,
                        claimed,
                        exclusions=(),
                        readings=[reading(Priority.ROUTINE, series=series)],
                        now=at(2),
                    )

        together(3, act) if n % 2 else together(2, act)
        assert study_row(database, study).state == "READ"


def test_a_study_under_an_unexpired_lease_is_left_alone(database: Database) -> None:
    Sender(database=database).send(1)
    must_claim(database, seconds=1)
    assert claim(database, seconds=16) is None
    assert take(database, 16) == []


def test_life_shown_in_time_keeps_the_study(database: Database) -> None:
    Sender(database=database).send(1)
    claimed = must_claim(database, seconds=1)
    with database.writing() as session:
        assert renew_lease(session, claimed, now=at(10), lease=LEASE)
    assert claim(database, seconds=25) is None
    assert finish(database, claimed, seconds=26) is Priority.ROUTINE


@pytest.mark.parametrize("owner", ["second", "first"])
def test_after_a_lost_lease_the_earlier_holder_writes_nothing(database: Database, owner: str) -> None:
    Sender(database=database).send(1)
    earlier = must_claim(database, seconds=1, owner="first")
    assert take(database, 17) == [STUDY]
    assert ("queued", "QUEUED", "node") in audit(database)
    later = must_claim(database, seconds=17, owner=owner)
    with database.writing() as session:
        assert not renew_lease(session, earlier, now=at(18), lease=timedelta(days=1))
    with pytest.raises(LeaseLost):
        finish(database, earlier, seconds=18)
    with pytest.raises(LeaseLost), database.writing() as session:
        give_back(session, earlier, now=at(18), again_at=at(19))
    with pytest.raises(LeaseLost), database.writing() as session:
        finish_not_read(
            session,
            earlier,
            exclusions=(),
            reason=RejectionReason.NOT_HEAD,
            detail="",
            now=at(18),
        )
    with database.reading() as session:
        for table in (ReadingRow, OutboxRow):
            assert session.scalars(select(table)).all() == []
    assert (study_row(database).state, study_row(database).lease_owner) == ("READING", owner)
    assert finish(database, later, seconds=19) is Priority.ROUTINE


def test_a_late_worker_whose_study_nobody_took_may_still_finish(database: Database) -> None:
    Sender(database=database).send(1)
    claimed = must_claim(database, seconds=1)
    assert take(database, 100) == [STUDY]
    assert finish(database, claimed, seconds=101) is Priority.ROUTINE
    assert study_row(database).state == "READ"
    assert claim(database, seconds=102) is None  # the message that was sent meanwhile finds nothing to do
    assert study_row(database).state == "READ"


# how it comes back


def test_a_study_that_takes_its_workers_down_fails_visibly(database: Database) -> None:
    Sender(database=database).send(1)
    for seconds in (0, 20, 40):
        assert claim(database, seconds=seconds) is not None
    assert take(database, 60) == [STUDY]
    assert claim(database, seconds=60) is None
    row = study_row(database)
    assert (row.state, row.reason, row.priority) == ("FAILED", RejectionReason.WORKER_LOST, "MEDIUM")
    assert "3 workers died" in str(row.reason_detail)
    assert take(database, 1e6) == []
    assert audit(database)[-1] == ("failed", "FAILED", "node")


@pytest.mark.parametrize(("before", "after"), [(Priority.ROUTINE, "MEDIUM"), (Priority.STAT, "STAT")])
def test_failing_after_a_reading_never_looks_negative(
    database: Database, before: Priority, after: str
) -> None:
    sender = Sender(database=database)
    sender.send(1)
    read_once(database, before, seconds=1)
    ask_again(database, 5)
    assert claim(database, seconds=10, max_attempts=1) is not None
    assert claim(database, seconds=30, max_attempts=1) is None
    assert (study_row(database).state, study_row(database).priority) == ("FAILED", after)
    assert take(database, 1e6) == []


def test_new_images_of_a_failed_study_are_tried_afresh(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    assert claim(database, seconds=0, max_attempts=1) is not None
    assert claim(database, seconds=20, max_attempts=1) is None
    sender.send(2, seconds=30, due=31)
    assert must_claim(database, seconds=31, max_attempts=1).series[0].revision == 2


def test_images_that_came_while_workers_died_are_not_forgotten(database: Database) -> None:
    Sender(database=database).send(1)
    assert claim(database, seconds=0, max_attempts=1) is not None
    Sender(database=database, series="1.2.3.9").send(1, seconds=19, due=25)
    assert claim(database, seconds=20, max_attempts=1) is None
    assert study_row(database).state == "RECEIVING"
    assert take(database, 25) == [STUDY]
    assert len(must_claim(database, seconds=25, max_attempts=1).series) == 2


def test_what_was_given_back_is_due_at_its_time_and_not_before(database: Database) -> None:
    Sender(database=database).send(1)
    for start in range(0, 100, 20):  # more often than a study may take its worker down
        claimed = must_claim(database, seconds=start)
        with database.writing() as session:
            give_back(session, claimed, now=at(start + 1), again_at=at(start + 10))
        assert study_row(database).state == "QUEUED"
        assert claim(database, seconds=start + 9) is None  # a message that was sent twice
        assert take(database, start + 9) == []
        assert take(database, start + 10) == [STUDY]
    assert claim(database, seconds=100) is not None


def test_a_broker_that_starts_anew_does_not_shorten_the_wait(database: Database) -> None:
    Sender(database=database).send(1)
    claimed = must_claim(database, seconds=0)
    with database.writing() as session:
        give_back(session, claimed, now=at(1), again_at=at(300))
        forget_enqueued(session)
    assert take(database, 299) == []
    assert take(database, 300) == [STUDY]


def test_another_run_can_be_asked_for(database: Database) -> None:
    Sender(database=database).send(1)
    read_once(database, Priority.STAT, seconds=1)
    ask_again(database, 5, series_instance_uid=SERIES, model="other")
    assert (study_row(database).state, study_row(database).priority) == ("QUEUED", "STAT")
    assert take(database, 5) == [STUDY]
    claimed = must_claim(database, seconds=6)
    assert claimed.reprocess is not None
    assert (claimed.reprocess.series_instance_uid, claimed.reprocess.models) == (SERIES, ("other",))
    assert [s.series_instance_uid for s in claimed.series] == [SERIES]
    finish(database, claimed, seconds=7, run=2)
    assert take(database, 1e6) == []
    assert ("reprocess", "QUEUED", "cli:eve") in audit(database)


def test_another_run_asked_for_during_a_reading_follows_it(database: Database) -> None:
    Sender(database=database).send(1)
    claimed = must_claim(database, seconds=1)
    ask_again(database, 2, model="other")
    assert study_row(database).state == "READING"
    finish(database, claimed, seconds=3)
    assert take(database, 3) == [STUDY]
    again = must_claim(database, seconds=4)
    assert again.reprocess is not None
    assert again.reprocess.models == ("other",)
    ask_again(database, 5, model="a third")
    finish(database, again, seconds=6, run=2)
    assert take(database, 6) == [STUDY]


def test_another_run_of_what_is_not_here_is_refused(database: Database) -> None:
    Sender(database=database).send(1)
    Sender(database=database, study="1.9", series="1.9.1").send(1)
    with pytest.raises(LookupError, match="series"):
        ask_again(database, 1, series_instance_uid="1.9.1")
    with pytest.raises(LookupError, match="no study"), database.writing() as session:
        request_reprocess(session, "1.8", series_instance_uid=None, model=None, actor="cli", now=at(1))
    assert study_row(database).reprocess_requested_at is None


def test_a_failed_study_can_be_read_again(database: Database) -> None:
    Sender(database=database).send(1)
    assert claim(database, seconds=0, max_attempts=1) is not None
    assert claim(database, seconds=20, max_attempts=1) is None
    ask_again(database, 30)
    row = study_row(database)
    assert (row.state, row.reason, row.reason_detail) == ("QUEUED", None, None)
    finish(database, must_claim(database, seconds=31, max_attempts=1), seconds=32)
    assert (study_row(database).state, study_row(database).priority) == ("READ", "ROUTINE")


# all of it at once


def test_receiving_claiming_and_settling_at_once_neither_deadlock_nor_lose(database: Database) -> None:
    """Receivers, the end of associations, reconcilers and workers on the same study."""
    rounds = 6
    series = [f"{STUDY}.1", f"{STUDY}.2"]

    def receive(who: int) -> None:
        for n in range(rounds):
            uid = series[(who + n) % 2]
            Sender(database=database, series=uid).send(who * rounds + n, seconds=0, due=0)
            with database.writing() as session:
                set_due(session, uid, at(0))

    def work(who: int) -> None:
        for _ in range(rounds):
            with database.writing() as session:
                take_due_studies(session, at(1))
            claimed = claim(database, seconds=1, owner=f"worker {who}")
            if claimed is not None:
                with database.writing() as session:
                    finish_read(session, claimed, exclusions=(), readings=(), now=at(1))

    together(8, lambda who: receive(who) if who < 4 else work(who))
    while (last := claim(database, seconds=1e3)) is not None:
        with database.writing() as session:
            finish_read(session, last, exclusions=(), readings=(), now=at(1e3))
    rows = [series_row(database, uid) for uid in series]
    assert sum(row.revision for row in rows) == 4 * rounds
    assert [(row.handled_revision, row.due_at) for row in rows] == [(row.revision, None) for row in rows]
    assert study_row(database).state == "READ"
