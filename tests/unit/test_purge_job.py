"""Images go when they may, with their files, and what comes again meanwhile stays."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ich_node import purge_job
from ich_node.database import chores, queue, retention
from ich_node.database.receipt import Receipt, known_file_names
from ich_node.errors import RejectionReason, TransientError
from ich_node.intake import Intake
from ich_node.node import Node
from ich_node.purge_job import (
    PurgeReport,
    PurgeSchedule,
    Terms,
    finish_removals,
    purge_delivered,
    purge_studies,
    purge_when_due,
)
from ich_node.settings import DiskSettings, Settings
from tests.purge_cases import SLICES, STUDY, PurgeCase, ago, purge_case

SOON_S = 20.0


@pytest.fixture
def case(tmp_path: Path) -> Iterator[PurgeCase]:
    with purge_case(tmp_path) as case:
        yield case


def terms(days: float | None = 30, **changes: Any) -> Terms:
    return Terms(before=None if days is None else ago(days), actor="cli:me", **changes)


def purge(case: PurgeCase, *studies: str, **changes: Any) -> PurgeReport:
    return purge_studies(case.node, studies or (STUDY,), terms(None, **changes))


def die_while_purging(case: PurgeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decide on the purge of a study, and die before any file has gone."""

    def die(_node: Node) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(purge_job, "finish_removals", die)
        with pytest.raises(KeyboardInterrupt):
            purge(case)


# what goes


def test_delivered_images_and_results_go_and_others_stay(case: PurgeCase) -> None:
    case.deliver(days=31)
    case.deliver("1.2.840.2", days=29)
    case.receive("1.2.840.3", days=50)
    report = purge_delivered(case.node, terms())
    (purged,) = report.studies
    assert (purged.study_instance_uid, purged.purged, purged.objects) == (STUDY, True, SLICES)
    assert purged.result_objects == 3
    assert purged.size_bytes > 0
    assert len(case.spooled()) == 2 * SLICES
    assert len(case.results()) == 3
    assert purge_delivered(case.node, terms()).studies == ()


def test_the_summary_says_how_much_went(case: PurgeCase) -> None:
    case.deliver()
    assert purge(case).summary == f"1 studies, {SLICES} objects, 0.0 MiB"
    last = case.report()["history"][-1]
    assert (last["actor"], last["action"]) == ("cli:me", "purged")
    assert last["why"] == f"{SLICES} images, 0.0 MiB, 3 results"


def test_a_dry_run_changes_nothing(case: PurgeCase) -> None:
    case.deliver()
    before = case.report()
    (study,) = purge_delivered(case.node, terms(dry_run=True)).studies
    assert (study.purged, study.objects) == (True, SLICES)
    assert case.report() == before
    assert len(case.spooled()) == SLICES


def test_without_a_destination_nothing_goes_by_itself(case: PurgeCase) -> None:
    case.deliver()
    alone = replace(case.node, settings=case.node.settings.model_copy(update={"pacs": ()}))
    assert purge_delivered(alone, terms()).studies == ()
    assert len(case.spooled()) == SLICES


def test_a_named_study_that_was_not_delivered_needs_force_and_keeps_its_results(case: PurgeCase) -> None:
    case.deliver(refusal="no")
    (kept,) = purge(case).studies
    assert (kept.purged, [str(o) for o in kept.obstacles]) == (False, ["NOT_DELIVERED"])
    assert len(case.spooled()) == SLICES
    (gone,) = purge(case, force=True).studies
    assert gone.purged
    assert case.spooled() == []
    assert len(case.results()) == 3  # no PACS has them
    assert "forced although not every PACS has its results" in case.report()["history"][-1]["why"]


def test_a_study_that_was_not_read_stays_marked_as_such_when_it_is_forced(case: PurgeCase) -> None:
    case.receive()
    case.studies.reject(STUDY, at=ago(30), reason=RejectionReason.NOT_HEAD, detail="a knee")
    assert purge_delivered(case.node, terms()).studies == ()
    assert not purge(case).studies[0].purged
    assert purge(case, force=True).studies[0].purged
    report = case.report()
    assert (report["state"], report["priority"], report["reason"]) == ("NOT_READ", "MEDIUM", "NOT_HEAD")


def test_no_force_takes_images_that_are_still_to_be_read(case: PurgeCase) -> None:
    case.receive()
    (study,) = purge(case, force=True).studies
    assert not study.purged
    assert "UNDER_WAY" in study.obstacles
    assert len(case.spooled()) == SLICES


def test_a_study_that_is_not_here_is_named(case: PurgeCase) -> None:
    assert [str(o) for o in purge(case, "1.9", force=True).studies[0].obstacles] == ["NOT_HERE"]


def test_a_host_that_has_not_the_files_leaves_them_to_the_one_that_has(
    case: PurgeCase, tmp_path: Path
) -> None:
    case.deliver()
    elsewhere = replace(case.node, settings=Settings(data_dir=tmp_path / "other"))
    (study,) = purge_studies(elsewhere, [STUDY], terms(None)).studies
    assert (study.purged, [str(o) for o in study.obstacles]) == (False, ["ELSEWHERE"])
    assert purge(case).studies[0].purged


def test_some_files_that_are_lost_do_not_keep_the_others(case: PurgeCase) -> None:
    case.deliver()
    case.spool.path(case.spooled()[0]).unlink()
    assert purge(case).studies[0].purged
    assert case.spooled() == []


def test_a_study_that_is_just_being_sent_again_waits(case: PurgeCase) -> None:
    """Its rows follow its files; a purge in between would leave rows without files."""
    case.deliver()
    assert case.store(1) is Receipt.DUPLICATE
    (study,) = purge(case, force=True).studies
    assert (study.purged, [str(o) for o in study.obstacles]) == (False, ["UNDER_WAY"])
    assert len(case.spooled()) == SLICES


# what dies, and what comes again


def test_a_run_that_was_killed_is_finished_by_the_next(
    case: PurgeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.deliver()
    die_while_purging(case, monkeypatch)
    assert len(case.spooled()) == SLICES
    with case.database.reading() as session:
        assert retention.count_removals(session) == SLICES + 3
    Intake(case.node.settings, case.database, case.spool).rebuild()
    assert case.report()["series"][0]["instances"] == 0  # no receiver takes them for new ones
    assert finish_removals(case.node) == 0
    assert case.spooled() == []
    assert case.results() == []
    with case.database.reading() as session:
        assert retention.count_removals(session) == 0


def test_an_object_that_came_again_before_its_file_went_stays_with_its_row(
    case: PurgeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.deliver()
    die_while_purging(case, monkeypatch)
    assert case.store(2) is Receipt.NEW
    finish_removals(case.node)
    (name,) = case.spooled()
    with case.database.reading() as session:
        assert known_file_names(session) == {name}
    assert case.report()["series"][0]["instances"] == 1


def test_an_object_that_came_again_and_has_no_row_gets_one(
    case: PurgeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its receiver died between success and row, and the next one passed it over as a file that is to go."""
    case.deliver()
    die_while_purging(case, monkeypatch)
    name = case.spooled()[1]
    os.utime(case.spool.path(name))  # as a new file of that name has it
    Intake(case.node.settings, case.database, case.spool).rebuild()
    assert case.report()["series"][0]["instances"] == 0
    finish_removals(case.node)
    assert case.spooled() == [name]
    assert case.report()["series"][0]["instances"] == 1
    assert case.report()["state"] == "RECEIVING"


def test_an_object_sent_again_after_the_purge_is_here_again(case: PurgeCase) -> None:
    case.deliver()
    purge(case)
    assert [case.store(number) for number in range(1, SLICES + 1)] == [Receipt.NEW] * SLICES
    assert len(case.spooled()) == SLICES
    series = case.report()["series"][0]
    assert (series["instances"], series["purged_instances"]) == (SLICES, 0)


def test_files_that_cannot_be_removed_are_counted_and_tried_again(
    case: PurgeCase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case.deliver()
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.parent == case.node.settings.results_dir:
            raise PermissionError(13, "Permission denied")
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        report = purge(case)
    assert report.files_left == 3
    assert "3 files could not be removed yet" in report.summary
    assert "3 files cannot be removed; " in caplog.text
    assert case.spooled() == []
    assert finish_removals(case.node) == 0
    assert case.results() == []


def test_nothing_identifying_is_logged(case: PurgeCase, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    case.deliver()
    purge(case)
    assert "cli:me purged 1 studies" in caplog.text
    assert STUDY not in caplog.text


# reading again


def test_a_late_slice_of_a_purged_study_is_no_study_of_one_slice(case: PurgeCase) -> None:
    case.deliver()
    purge(case)
    case.store(9, at=ago(0))
    with case.database.writing() as session:
        claim = queue.claim_study(
            session, STUDY, owner="w", now=datetime.now(UTC), lease=timedelta(60), max_attempts=3
        )
    assert claim is not None
    (series,) = claim.series
    assert (len(series.file_names), series.purged_instances) == (1, SLICES)


# the schedule


def due(case: PurgeCase) -> PurgeReport | None:
    return purge_when_due(case.node, stop=threading.Event())


def test_the_schedule_purges_and_comes_back_after_its_interval(case: PurgeCase) -> None:
    case.deliver()
    report = due(case)
    assert report is not None
    assert len(report.purged) == 1
    assert case.report()["history"][-1]["actor"] == "node"
    assert due(case) is None
    with case.database.reading() as session:
        last = chores.last_round(session, "purge")
        assert last is not None
        assert last.note == report.summary
        assert last.lease_owner is None
        in_six_hours = datetime.now(UTC) + timedelta(hours=6)
        assert chores.is_due(session, "purge", every=timedelta(hours=6), now=in_six_hours)


def test_without_retention_the_schedule_only_finishes_what_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with purge_case(tmp_path, disk={"retention_days": 0}) as case:
        case.deliver("1.2.840.2")
        case.deliver()
        die_while_purging(case, monkeypatch)
        report = due(case)
        assert report is not None
        assert report.studies == ()
        assert len(case.spooled()) == SLICES
        assert case.report("1.2.840.2")["purged_at"] is None


def test_low_disk_brings_the_next_round_forward(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def interval(gib: float) -> timedelta:
        disk = DiskSettings(min_free_gib=gib)
        return purge_job._interval(Settings(data_dir=tmp_path, disk=disk))

    assert interval(0) == timedelta(hours=6)
    assert interval(2**40) == timedelta(minutes=10)
    assert caplog.records == []  # it looks every half minute; whoever refuses objects says so


def test_a_round_that_broke_off_is_not_written_down_as_done(
    case: PurgeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> int:
        raise TransientError("the database did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(purge_job, "finish_removals", away)
        with pytest.raises(TransientError):
            due(case)
    with case.database.reading() as session:
        last = chores.last_round(session, "purge")
    assert last is not None
    assert last.started_at is not None
    assert last.ended_at is None


def test_a_round_stops_after_the_study_at_hand(case: PurgeCase) -> None:
    case.deliver(days=40)
    case.deliver("1.2.840.2", days=35)
    stop = threading.Event()
    stop.set()
    assert purge_delivered(case.node, terms(), stop=stop).studies == ()
    assert len(case.spooled()) == 2 * SLICES


def test_the_schedule_runs_beside_its_caller(
    case: PurgeCase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, release, calls = threading.Event(), threading.Event(), []

    def slow(_node: Node, *, stop: threading.Event) -> None:
        calls.append(stop.is_set())
        begun.set()
        assert release.wait(SOON_S)
        raise ZeroDivisionError

    monkeypatch.setattr(purge_job, "purge_when_due", slow)
    monkeypatch.setattr(purge_job, "_LOOK_SECONDS", 0.0)
    schedule = PurgeSchedule(case.node.settings)
    schedule.tick()
    assert begun.wait(SOON_S)
    schedule.tick()  # comes back, and begins no second round
    release.set()
    schedule.stop()
    assert calls == [False]
    assert "purging again later" in caplog.text
    schedule.tick()
    assert calls == [False]


def test_the_schedule_does_the_work(case: PurgeCase) -> None:
    case.deliver()
    schedule = PurgeSchedule(case.node.settings)
    schedule.tick()
    assert schedule._thread is not None
    schedule._thread.join(SOON_S)
    schedule.stop()
    assert case.spooled() == []
