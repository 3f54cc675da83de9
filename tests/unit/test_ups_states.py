"""The state of a workitem against PS3.4 table CC.1.1-2: cell by cell, and in any order on a database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from ich_node.database.engine import Database
from ich_node.database.json_model import attribute, dataset
from ich_node.database.tables import AuditRow, StudyRow
from ich_node.database.web_tables import ReviewRow, WorkitemEventRow, WorkitemRow
from ich_node.database.workitem_actions import (
    PERFORMED,
    change_state,
    request_cancel,
    station_code,
    update_workitem,
)
from ich_node.database.workitem_events import workitem_uid
from ich_node.database.workitem_states import (
    WorkitemRefused,
    WorkitemState,
    judge_cancel_request,
    judge_change,
)
from ich_node.database.workitems import find_workitem
from ich_node.findings import Priority
from tests.database_cases import STUDY, Sender, at, read_once, sqlite_database

S, P, C, X = WorkitemState
MINE, OTHERS = "1.2.3.4.1", "1.2.3.4.2"
TABLE = {
    # event: state before -> status; 0 with the new state is the arrow of the table
    (P, True): {S: 0x0000, P: 0xC302, C: 0xC300, X: 0xC300},
    (S, True): {S: 0xC303, P: 0xC303, C: 0xC303, X: 0xC303},
    (S, False): {S: 0xC303, P: 0xC303, C: 0xC303, X: 0xC303},
    (C, True): {S: 0xC310, P: 0x0000, C: 0xB306, X: 0xC300},
    (C, False): {P: 0xC301, C: 0xC301, X: 0xC301},
    (X, True): {S: 0xC310, P: 0x0000, C: 0xC300, X: 0xB304},
    (X, False): {P: 0xC301, C: 0xC301, X: 0xC301},
}
"""Requested state and whether the Transaction UID is correct. A claim without the correct one is late, so it learns
what one with the correct one would (the table says C301 there)."""
CANCEL = {S: 0x0000, P: 0x0000, C: 0xC311, X: 0xB304}
DONE = attribute(
    PERFORMED,
    dataset(
        attribute("PerformedStationNameCodeSequence", station_code("WS1")),
        attribute("PerformedWorkitemCodeSequence", station_code("110005")),
        attribute("PerformedProcedureStepStartDateTime", "20261122080000"),
        attribute("PerformedProcedureStepEndDateTime", "20261122080100"),
    ),
)


@pytest.mark.parametrize(("requested", "correct"), TABLE)
def test_each_cell_of_the_table(requested: WorkitemState, correct: bool) -> None:
    for state, status in TABLE[requested, correct].items():
        assert judge_change(state, requested, holds_lock=correct) == status, state
        if requested is P:
            assert judge_change(state, requested, holds_lock=False) == status, state
    assert {state: judge_cancel_request(state) for state in S.__class__} == CANCEL


def test_a_final_state_needs_its_attributes() -> None:
    assert judge_change(P, C, holds_lock=True, final_state_is_met=False) == 0xC304
    assert judge_change(P, C, holds_lock=False, final_state_is_met=False) == 0xC301


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with TemporaryDirectory() as folder, sqlite_database(Path(folder)) as database:
        yield database


REQUESTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(list(WorkitemState)), st.sampled_from([MINE, OTHERS])),
        st.sampled_from([("cancel", ""), ("done", MINE), ("done", OTHERS)]),
    ),
    min_size=1,
    max_size=8,
)
_number = iter(range(10**6))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=REQUESTS)
def test_any_requests_in_any_order(database: Database, requests: list[tuple[str, str]]) -> None:
    study = f"1.2.{next(_number)}"
    Sender(database=database, study=study, series=f"{study}.1").send(1)
    uid, state, lock, is_done, events = workitem_uid(study), S, None, False, 1
    for request, transaction in requests:
        try:
            with database.writing() as session:
                if request == "cancel":
                    status = int(request_cancel(session, uid, {}, requester="RIS", now=at(1)))
                elif request == "done":
                    update_workitem(session, uid, DONE, transaction_uid=transaction, now=at(1))
                    status = 0
                else:
                    status = int(
                        change_state(
                            session,
                            uid,
                            WorkitemState(request),
                            transaction_uid=transaction,
                            performer="DOE",
                            now=at(1),
                        )
                    )
        except WorkitemRefused as refused:
            status = int(refused.status)
        if request == "cancel":
            assert status == CANCEL[state]
            events += {S: 2, P: 1}.get(state, 0)
            state = X if state is S else state
        elif request == "done":
            allowed = state is P and transaction == lock
            assert (status == 0) is allowed
            is_done = is_done or allowed
        else:
            wanted = WorkitemState(request)
            correct = wanted is P or state is S or transaction == lock
            expected = TABLE[wanted, correct][state]
            if (state, wanted, expected) == (P, C, 0) and not is_done:
                expected = 0xC304
            assert status == expected
            if status == 0:
                state, lock, events = wanted, transaction if wanted is P else lock, events + 1
    with database.reading() as session:
        row = session.get_one(WorkitemRow, uid)
        assert (row.procedure_step_state, row.transaction_uid) == (state, lock)
        assert (session.get_one(StudyRow, study).reviewed_at is not None) is (state is C)
        kept = session.scalars(
            select(WorkitemEventRow.id).where(WorkitemEventRow.sop_instance_uid == uid)
        ).all()
        assert len(kept) == events


def test_a_completed_workitem_is_a_review(tmp_path: Path) -> None:
    with sqlite_database(tmp_path) as database:
        Sender(database=database).send(1)
        uid = workitem_uid(STUDY)
        for requested in (P, C):
            with database.writing() as session:
                if requested is C:
                    update_workitem(session, uid, DONE, transaction_uid=MINE, now=at(2))
                change_state(session, uid, requested, transaction_uid=MINE, performer="ROE", now=at(3))
        with database.reading() as session:
            study = session.get_one(StudyRow, STUDY)
            assert (study.reviewed_at, study.reviewed_by) == (at(3), "ROE")
            assert session.scalars(select(ReviewRow.verdict)).all() == ["SEEN"]
            assert "seen" in session.scalars(select(AuditRow.action)).all()


@pytest.mark.parametrize("final", [C, X])
def test_what_was_finished_with_is_scheduled_again_where_the_study_becomes_more_urgent(
    tmp_path: Path, final: WorkitemState
) -> None:
    with sqlite_database(tmp_path) as database:
        Sender(database=database).send(1)
        uid = workitem_uid(STUDY)

        def change(requested: WorkitemState, transaction: str) -> None:
            with database.writing() as session:
                change_state(session, uid, requested, transaction_uid=transaction, performer="ROE", now=at(3))

        change(P, MINE)
        with database.writing() as session:
            update_workitem(session, uid, DONE, transaction_uid=MINE, now=at(2))
        change(final, MINE)
        read_once(database, Priority.STAT)
        with database.reading() as session:
            item = find_workitem(session, uid)
            last = session.scalars(select(WorkitemEventRow).order_by(WorkitemEventRow.id.desc())).first()
        assert item is not None
        assert last is not None
        assert (item.state, item.step_priority, item.reviewed_at, item.attributes) == (S, "HIGH", None, {})
        assert last.content["00741000"]["Value"] == ["SCHEDULED"]
        change(P, OTHERS)


def test_who_performs_a_workitem_keeps_it_while_the_study_becomes_more_urgent(tmp_path: Path) -> None:
    with sqlite_database(tmp_path) as database:
        Sender(database=database).send(1)
        with database.writing() as session:
            change_state(session, workitem_uid(STUDY), P, transaction_uid=MINE, performer="ROE", now=at(3))
        read_once(database, Priority.STAT)
        with database.reading() as session:
            item = find_workitem(session, workitem_uid(STUDY))
        assert item is not None
        assert (item.state, item.step_priority) == (P, "HIGH")


def test_events_are_written_once_for_each_change_and_none_for_what_changes_nothing(tmp_path: Path) -> None:
    def told(database: Database) -> list[tuple[str, str, str]]:
        with database.reading() as session:
            rows = session.scalars(select(WorkitemEventRow).order_by(WorkitemEventRow.id)).all()
        tags = ("00741000", "00404041", "00741200")
        return [tuple(row.content[tag]["Value"][0] for tag in tags) for row in rows]  # type: ignore[misc]

    with sqlite_database(tmp_path) as database:
        sender = Sender(database=database)
        sender.send(1)
        assert told(database) == [("SCHEDULED", "INCOMPLETE", "MEDIUM")]
        sender.send(1)
        sender.send(2)
        assert len(told(database)) == 1
        read_once(database, Priority.STAT)
        assert told(database)[1:] == [("SCHEDULED", "READY", "MEDIUM"), ("SCHEDULED", "READY", "HIGH")]
        with (
            contextlib.suppress(ZeroDivisionError),
            database.writing() as session,
        ):  # what is undone is not told
            session.get_one(StudyRow, STUDY).priority = Priority.ROUTINE
            _ = 1 / 0
        with database.writing() as session:  # nor what is the same at the end
            study = session.get_one(StudyRow, STUDY)
            for priority in (Priority.ROUTINE, Priority.STAT):
                study.priority = priority
                session.flush()
        assert len(told(database)) == 3
        with database.writing() as session:
            study = session.get_one(StudyRow, STUDY)
            study.reviewed_at, study.reviewed_by = at(60) + timedelta(0), "somebody on the page"
        assert told(database)[3:] == [("COMPLETED", "READY", "HIGH")]
