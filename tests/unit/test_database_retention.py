"""What may be purged and what a purge leaves in the rows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ich_node.database import chores, metrics, queue, retention
from ich_node.database.engine import Database
from ich_node.database.outbox import claim_deliveries, record_failed, record_taken
from ich_node.database.readings import finish_not_read, finish_read
from ich_node.database.receipt import Receipt, known_file_names
from ich_node.database.retention import Folder, ImagesPurged, Obstacle, Stock
from ich_node.database.worklist import study_report, worklist_row
from ich_node.errors import RejectionReason
from ich_node.findings import Priority
from tests.database_cases import (
    LEASE,
    SERIES,
    STUDY,
    Sender,
    at,
    must_claim,
    read_once,
    series_row,
    sqlite_database,
    study_row,
    together,
)

DAY = 86400.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


def deliver(database: Database, *, seconds: float = 20, count: int = 100, refused: bool = False) -> None:
    with database.writing() as session:
        for delivery in claim_deliveries(
            session, "PACS", owner="d", now=at(seconds), lease=LEASE, limit=count
        ):
            if refused:
                record_failed(session, delivery, next_attempt_at=None, note="no")
            else:
                record_taken(session, delivery, now=at(seconds), note=None, confirm=False)


def delivered_study(
    database: Database, study: str = STUDY, *, images: int = 2, seconds: float = 20
) -> Sender:
    sender = Sender(database=database, study=study, series=f"{study}.1")
    for number in range(1, images + 1):
        sender.send(number)
    read_once(database, Priority.STAT, study=study)
    deliver(database, seconds=seconds)
    return sender


def stock(
    database: Database, study: str = STUDY, *, before: datetime | None = None, conflicts: bool = False
) -> Stock:
    with database.reading() as session:
        return retention.take_stock(session, study, before=before, conflicts=conflicts, now=at(DAY))


def obstacles(database: Database, study: str = STUDY, *, before: datetime | None = None) -> set[str]:
    return {str(obstacle) for obstacle in stock(database, study, before=before).obstacles}


def purge(database: Database, study: str = STUDY, *, conflicts: bool = False, seconds: float = DAY) -> Stock:
    with database.writing(durable=True) as session:
        taken = retention.take_stock(
            session, study, before=None, conflicts=conflicts, now=at(seconds), lock=True
        )
        there = dict.fromkeys([(Folder.SPOOL, name) for name in taken.spool_files], 7)
        there |= dict.fromkeys([(Folder.RESULTS, name) for name in taken.result_files], 8)
        retention.mark_purged(
            session, taken, there, conflicts=conflicts, actor="cli:me", why="because", now=at(seconds)
        )
    return taken


def candidates(database: Database, seconds: float) -> list[str]:
    with database.reading() as session:
        return retention.candidates(session, before=at(seconds))


# what may go


def test_what_is_read_and_delivered_may_go(database: Database) -> None:
    delivered_study(database)
    found = stock(database, before=at(20))
    assert found.obstacles == ()
    assert sorted(found.spool_files) == [f"sha-of-{SERIES}.1.dcm", f"sha-of-{SERIES}.2.dcm"]
    assert sorted(found.result_files) == ["1.sc", "1.sr"]
    assert found.size_bytes == 2 * 2**33


def test_a_study_that_is_not_here_cannot_go(database: Database) -> None:
    assert obstacles(database, "1.9") == {"NOT_HERE"}


def test_what_arrives_waits_or_is_read_cannot_go_even_by_force(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    assert "UNDER_WAY" in obstacles(database)
    claimed = must_claim(database, seconds=10)
    assert "UNDER_WAY" in obstacles(database)
    with database.writing() as session:
        finish_read(session, claimed, exclusions=(), readings=(), now=at(11))
    assert "UNDER_WAY" not in obstacles(database)
    with database.writing() as session:
        queue.request_reprocess(
            session, STUDY, series_instance_uid=None, model=None, actor="cli:me", now=at(12)
        )
    assert "UNDER_WAY" in obstacles(database)
    assert not Obstacle.UNDER_WAY.may_be_forced


def test_a_late_image_keeps_a_delivered_study(database: Database) -> None:
    delivered_study(database).send(3, seconds=30, due=40)
    assert "UNDER_WAY" in obstacles(database)
    assert candidates(database, 100) == []


def test_what_was_not_read_goes_by_force_only(database: Database) -> None:
    Sender(database=database).send(1)
    claimed = must_claim(database, seconds=10)
    with database.writing() as session:
        finish_not_read(
            session, claimed, exclusions=(), reason=RejectionReason.NOT_HEAD, detail="d", now=at(11)
        )
    assert obstacles(database, before=at(DAY)) == {"NOT_READ"}
    assert Obstacle.NOT_READ.may_be_forced
    assert candidates(database, DAY) == []


@pytest.mark.parametrize("refused", [False, True])
def test_what_one_pacs_has_not_stays(database: Database, refused: bool) -> None:
    Sender(database=database).send(1)
    read_once(database, Priority.ROUTINE)
    deliver(database, count=1)
    if refused:
        deliver(database, refused=True)
    assert obstacles(database) == {"NOT_DELIVERED"}
    assert len(stock(database).result_files) == 1  # the other one is nowhere else
    assert candidates(database, DAY) == []


def test_without_a_destination_nothing_is_delivered(database: Database) -> None:
    Sender(database=database).send(1)
    read_once(database, Priority.ROUTINE, destinations=())
    assert obstacles(database) == {"NOT_DELIVERED"}
    assert stock(database).result_files == ()
    assert candidates(database, DAY) == []


def test_results_of_a_superseded_reading_must_have_gone_too(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    read_once(database, Priority.STAT)
    deliver(database, refused=True)
    sender.send(2, seconds=30, due=30)
    read_once(database, Priority.STAT, run=2, seconds=40)
    deliver(database, seconds=50)
    with database.reading() as session:
        row = worklist_row(session, STUDY)
        assert row is not None
        assert row["delivered_at"] is not None
    assert obstacles(database) == {"NOT_DELIVERED"}


def test_what_was_delivered_recently_stays(database: Database) -> None:
    delivered_study(database, seconds=20)
    assert obstacles(database, before=at(19)) == {"TOO_NEW"}
    assert obstacles(database, before=at(20)) == set()


def test_candidates_are_those_delivered_before_the_oldest_first(database: Database) -> None:
    for study, seconds in (("1.3", 40), ("1.1", 20), ("1.2", 30), ("1.4", 50)):
        delivered_study(database, study, seconds=seconds)
    assert candidates(database, 40) == ["1.1", "1.2", "1.3"]
    purge(database, "1.1")
    assert candidates(database, 40) == ["1.2", "1.3"]


def test_objects_in_conflict_were_never_read_and_go_by_force_only(database: Database) -> None:
    sender = delivered_study(database)
    assert sender.send(1, content_hash="other bytes") is Receipt.CONFLICT
    assert stock(database).obstacles == ()
    assert "other bytes.dcm" not in stock(database).spool_files
    assert "other bytes.dcm" in stock(database, conflicts=True).spool_files
    purge(database)
    assert obstacles(database) == {"PURGED"}
    assert stock(database, conflicts=True).spool_files == ("other bytes.dcm",)
    assert candidates(database, DAY) == []
    purge(database, conflicts=True)
    with database.reading() as session:
        assert metrics.spool_standing(session).objects == 0


# what a purge leaves


def test_rows_of_images_go_and_what_was_found_stays(database: Database) -> None:
    delivered_study(database)
    with database.reading() as session:
        before = worklist_row(session, STUDY)
    purge(database)
    with database.reading() as session:
        assert worklist_row(session, STUDY) == before
        report = study_report(session, STUDY)
        removals = retention.removals(session)
    assert report is not None
    assert report["purged_at"] == at(DAY).isoformat(timespec="milliseconds")
    (series,) = report["series"]
    assert (series["instances"], series["purged_instances"]) == (0, 2)
    (reading,) = report["readings"]
    assert [item["purged_at"] for item in reading["objects"]] == [report["purged_at"]] * 2
    assert {d["state"] for d in reading["deliveries"]} == {"DELIVERED"}
    last = report["history"][-1]
    assert (last["actor"], last["action"], last["state"], last["why"]) == (
        "cli:me",
        "purged",
        "READ",
        "because",
    )
    assert {(r.folder, r.file_name, r.modified_ns) for r in removals} == {
        (Folder.SPOOL, f"sha-of-{SERIES}.1.dcm", 7),
        (Folder.SPOOL, f"sha-of-{SERIES}.2.dcm", 7),
        (Folder.RESULTS, "1.sc", 8),
        (Folder.RESULTS, "1.sr", 8),
    }


def test_files_that_wait_for_their_removal_are_known_until_they_have_gone(database: Database) -> None:
    delivered_study(database, images=1)
    purge(database)
    with database.writing() as session:
        assert known_file_names(session) == {f"sha-of-{SERIES}.1.dcm"}
        assert retention.count_removals(session) == 3
        assert len(retention.removals(session, limit=2)) == 2
        retention.forget_removals(session, retention.removals(session))
    with database.reading() as session:
        assert known_file_names(session) == set()


def test_what_is_purged_cannot_be_purged_again(database: Database) -> None:
    delivered_study(database)
    purge(database)
    assert obstacles(database) == {"PURGED"}
    assert not Obstacle.PURGED.may_be_forced


def test_an_object_that_comes_again_is_a_new_one(database: Database) -> None:
    sender = delivered_study(database)
    purge(database)
    assert sender.send(1, seconds=DAY + 1, due=DAY + 2) is Receipt.NEW
    row = study_row(database)
    assert (row.state, row.priority) == ("RECEIVING", "STAT")
    (seen,) = must_claim(database, seconds=DAY + 3).series
    assert (seen.file_names, seen.purged_instances) == ((f"sha-of-{SERIES}.1.dcm",), 2)


def test_other_bytes_under_a_purged_uid_are_no_conflict(database: Database) -> None:
    """A PACS compresses and corrects what it keeps."""
    sender = delivered_study(database)
    purge(database)
    assert sender.send(1, content_hash="compressed", seconds=DAY) is Receipt.NEW
    assert sender.send(1, content_hash="yet another", seconds=DAY) is Receipt.CONFLICT


def test_a_study_that_was_sent_again_can_be_purged_again(database: Database) -> None:
    sender = delivered_study(database, images=3)
    purge(database)
    for number in (1, 2):
        sender.send(number, seconds=DAY, due=DAY)
    claimed = must_claim(database, seconds=DAY + 1)
    with database.writing() as session:
        finish_read(session, claimed, exclusions=(), readings=(), now=at(DAY + 2))
    assert obstacles(database) == set()
    purge(database, seconds=2 * DAY)
    assert series_row(database).purged_instances == 3  # the most that it ever was
    with database.reading() as session:
        assert retention.count_removals(session) == 5  # a file is named once
        assert metrics.spool_standing(session).received == 5


@pytest.mark.parametrize("series", [None, SERIES])
def test_reprocess_of_a_purged_study_is_refused_and_says_why(database: Database, series: str | None) -> None:
    sender = delivered_study(database)
    purge(database)
    sender.send(1, seconds=DAY, due=DAY)  # one of two
    with (
        pytest.raises(ImagesPurged, match=r"purged at 2026-03-02 03:00 UTC: send it again"),
        database.writing() as session,
    ):
        queue.request_reprocess(
            session, STUDY, series_instance_uid=series, model=None, actor="cli:me", now=at(DAY)
        )
    assert study_row(database).reprocess_requested_at is None
    with database.reading() as session:
        assert retention.purged_studies(session, [STUDY, "1.9"]) == {STUDY: at(DAY)}
    sender.send(2, seconds=DAY, due=DAY)
    with database.writing() as session:
        assert retention.purged_studies(session, [STUDY]) == {}
        queue.request_reprocess(
            session, STUDY, series_instance_uid=series, model=None, actor="cli:me", now=at(DAY)
        )
    assert study_row(database).reprocess_requested_at == at(DAY)


def test_a_new_series_of_a_purged_study_can_be_read_again(database: Database) -> None:
    delivered_study(database)
    purge(database)
    Sender(database=database, series="1.2.3.9").send(1, seconds=DAY, due=DAY)
    with database.writing() as session:
        queue.request_reprocess(
            session, STUDY, series_instance_uid=None, model=None, actor="cli:me", now=at(DAY)
        )
        with pytest.raises(ImagesPurged):
            queue.request_reprocess(
                session, STUDY, series_instance_uid=SERIES, model=None, actor="cli:me", now=at(DAY)
            )


def test_a_purge_and_an_arrival_at_once_leave_a_study_purged_before_or_kept(database: Database) -> None:
    for round_number in range(10):
        study = f"1.7.{round_number}"
        sender = delivered_study(database, study)

        def act(who: int, study: str = study, sender: Sender = sender) -> bool:
            if who:
                sender.send(9, seconds=DAY, due=DAY)
                return True
            with database.writing(durable=True) as session:
                taken = retention.take_stock(
                    session, study, before=None, conflicts=False, now=at(DAY), lock=True
                )
                if taken.obstacles:
                    return False
                retention.mark_purged(session, taken, {}, conflicts=False, actor="a", why="", now=at(DAY))
                return True

        purged, _ = together(2, act)
        (seen,) = must_claim(database, seconds=DAY + 1, study=study).series
        assert (len(seen.file_names), seen.purged_instances) == ((1, 2) if purged else (3, 0))


# who purges


def take(database: Database, owner: str, seconds: float, every_s: float = 3600) -> bool:
    with database.writing() as session:
        return chores.take_turn(
            session, "purge", owner=owner, every=timedelta(seconds=every_s), lease=LEASE, now=at(seconds)
        )


def test_one_process_takes_a_turn(database: Database) -> None:
    assert sum(together(4, lambda n: take(database, f"host {n}", 0))) == 1
    with database.reading() as session:
        assert not chores.is_due(session, "purge", every=timedelta(0), now=at(1))


def test_a_turn_comes_again_after_its_interval(database: Database) -> None:
    assert take(database, "a", 0)
    with database.writing() as session:
        assert chores.show_life(session, "purge", owner="a", lease=LEASE, now=at(50))
        chores.end_turn(session, "purge", owner="b", now=at(60), note="not mine")
        assert not chores.is_due(session, "purge", every=timedelta(0), now=at(61))
        chores.end_turn(session, "purge", owner="a", now=at(62), note="3 studies")
        last = chores.last_round(session, "purge")
        assert last is not None
        assert (last.started_at, last.ended_at, last.note) == (at(0), at(62), "3 studies")
    assert not take(database, "b", 3599)
    assert take(database, "b", 3600)


def test_a_turn_whose_process_died_is_taken_over_in_ten_minutes(database: Database) -> None:
    assert take(database, "a", 0)
    assert not take(database, "b", 590)
    assert take(database, "b", 600)
    with database.writing() as session:
        assert not chores.show_life(session, "purge", owner="a", lease=LEASE, now=at(601))
