"""Figures for who keeps the node running."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.database import operations
from ich_node.database.changes import worklist_version
from ich_node.database.engine import Database
from ich_node.database.queue import StudyClaim, claim_study
from ich_node.errors import RejectionReason
from ich_node.findings import StudyState
from ich_node.lease import work_owner
from ich_node.web.operations_page import latency, throughput
from tests.stored_studies import ALGORITHM, StoredStudies

NOW = datetime(2026, 11, 21, 14, 20, tzinfo=UTC)


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[StoredStudies]:
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    database.upgrade()
    yield StoredStudies(database=database, results_dir=tmp_path / "results")
    database.dispose()


def read(
    studies: StoredStudies, uid: str, *, minutes: float, suspicion: float = 0.02, took: float = 0.5
) -> None:
    studies.receive(uid, at=ago(minutes))
    studies.read(uid, at=ago(minutes - took), suspicion=suspicion)


def test_a_node_that_has_seen_nothing(studies: StoredStudies) -> None:
    with studies.database.reading() as session:
        assert operations.received_since(session, ago(60)) == []
        assert operations.read_since(session, ago(60)) == []
        assert operations.waiting(session) == []
        assert operations.flag_times(session, ago(60)) == []
        assert operations.failures(session, ago(60)) == []
        assert operations.workers(session, now=NOW, since=ago(60)) == []
        assert operations.models_in_use(session) == []
        assert worklist_version(session) == "0-0"


def test_flag_times_are_of_first_readings_since_then(studies: StoredStudies) -> None:
    read(studies, "1.1", minutes=90, suspicion=0.9)
    read(studies, "1.2", minutes=30, suspicion=0.9, took=2)
    read(studies, "1.3", minutes=20, suspicion=0.5, took=0.25)
    read(studies, "1.4", minutes=10)
    studies.receive("1.3", at=ago(5), series=2)  # later images: nobody waited for the flag from these on
    with studies.database.reading() as session:
        times = operations.flag_times(session, ago(60))
    assert [(one.study_instance_uid, one.seconds) for one in times] == [("1.2", 120.0)]
    shown = latency("1 h", times, ago(60))
    assert (shown.flagged, shown.percentiles, shown.worst_study) == (1, ("2 min 00 s",) * 3, "1.2")
    assert latency("1 h", times, ago(1)).percentiles == ("–", "–", "–")


def test_what_waits_and_since_when(studies: StoredStudies) -> None:
    for number, minutes in ((1, 9), (2, 40), (3, 2)):
        studies.receive(f"1.{number}", at=ago(minutes))
    read(studies, "1.4", minutes=50)
    studies.queue(at=ago(3))
    with studies.database.reading() as session:
        found = {one.state: (one.studies, one.oldest, one.oldest_at) for one in operations.waiting(session)}
    assert found == {"QUEUED": (2, "1.2", ago(40)), "RECEIVING": (1, "1.3", ago(2))}


def test_failures_by_reason_name_the_newest(studies: StoredStudies) -> None:
    for number, reason, state in (
        (1, RejectionReason.LOCALIZER, StudyState.NOT_READ),
        (2, RejectionReason.LOCALIZER, StudyState.NOT_READ),
        (3, RejectionReason.WORKER_LOST, StudyState.FAILED),
    ):
        studies.receive(f"1.{number}", at=ago(50 - number))
        studies.reject(f"1.{number}", at=ago(10), reason=reason, detail="", state=state)
    studies.receive("1.9", at=ago(600))
    studies.reject("1.9", at=ago(9), reason=RejectionReason.NOT_CT, detail="")
    with studies.database.reading() as session:
        found = operations.failures(session, ago(60))
    assert [(one.state, one.reason, one.studies, one.newest) for one in found] == [
        ("NOT_READ", "LOCALIZER", 2, "1.2"),
        ("FAILED", "WORKER_LOST", 1, "1.3"),
    ]


def test_workers_show_life_by_what_they_did_and_hold(studies: StoredStudies) -> None:
    def take(uid: str, minutes: float, owner: str) -> StudyClaim:
        studies.receive(uid, at=ago(minutes + 1))
        with studies.database.writing() as session:
            claim = claim_study(
                session, uid, owner=owner, now=ago(minutes), lease=timedelta(seconds=60), max_attempts=3
            )
        assert claim is not None
        return claim

    here = work_owner()
    take("1.1", 30, "gone/12/abcdef01")
    take("1.2", 0.5, here)
    take("1.3", 300, "long-ago/7/abcdef02")
    with studies.database.reading() as session:
        found = operations.workers(session, now=NOW, since=ago(60))
    assert [(one.owner, one.study_instance_uid, one.is_reading) for one in found] == [
        (here.rpartition("/")[0], "1.2", True),
        ("gone/12", "1.1", False),
    ]


def test_models_that_have_read(studies: StoredStudies) -> None:
    read(studies, "1.1", minutes=90)
    read(studies, "1.2", minutes=30)
    with studies.database.reading() as session:
        (found,) = operations.models_in_use(session)
    assert (found.model_name, found.weights_sha256, found.readings) == (
        ALGORITHM.name,
        ALGORITHM.weights_sha256,
        2,
    )
    assert found.last_read_at == ago(29.5)


def test_the_version_changes_with_everything_that_the_worklist_shows(studies: StoredStudies) -> None:
    versions = []

    def note() -> None:
        with studies.database.reading() as session:
            versions.append(worklist_version(session))

    note()
    studies.receive("1.1", at=ago(9))
    note()
    studies.queue(at=ago(8))
    note()
    studies.read("1.1", at=ago(7), suspicion=0.9)
    note()
    studies.deliver(at=ago(6))
    note()
    assert len({*versions}) == len(versions) == 5
    note()
    assert versions[-1] == versions[-2]


def test_a_chart_has_every_hour_and_nothing_else() -> None:
    hours = operations.full_hours(NOW, 24)
    assert hours[-1] == datetime(2026, 11, 21, 14, tzinfo=UTC)
    assert len(hours) == 24
    chart = throughput(hours, [ago(1), ago(2), ago(60), ago(60 * 24)], [ago(1)])
    assert (chart.received, chart.read, chart.peak) == (3, 1, 2)
    assert [bar.received for bar in chart.bars][-2:] == [1, 2]
    assert "3 studies received and 1 read" in chart.summary


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = operations.percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_a_percentile_of_nothing_is_none() -> None:
    assert operations.percentile([], 0.5) is None
