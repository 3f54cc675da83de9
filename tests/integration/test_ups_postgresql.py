"""Workitems and the C-FIND worklist on PostgreSQL: the same answers as on SQLite, and one winner."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from ich_node.database.engine import Database
from ich_node.database.workitem_actions import change_state
from ich_node.database.workitem_events import prune_events, workitem_uid
from ich_node.database.workitem_states import WorkitemRefused, WorkitemState
from ich_node.database.workitem_subscriptions import GLOBAL_UID, recent_events, subscribe, unsubscribe
from ich_node.database.workitems import make_known, search_workitems
from ich_node.database.worklist_items import find_worklist_items
from ich_node.findings import Priority
from ich_node.receive.worklist_find import WorklistQuestion
from ich_node.web.ups_query import read_keys
from tests.database_cases import Sender, at, read_once, together
from tests.postgresql_server import postgresql_server
from tests.unit.test_ups_query import NAMES


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with postgresql_server() as server:
        # The locale in which PostgreSQL itself folds no letter but those of ASCII.
        server.run("CREATE DATABASE ups TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
        database = Database(server.url("ups"))
        database.upgrade()
        for number, (study, header) in enumerate(NAMES.items()):
            Sender(database=database, study=study, series=f"{study}.1", header=header).send(1, seconds=number)
        yield database
        database.dispose()


@pytest.mark.parametrize(
    ("key", "value", "studies"),
    [
        ("PatientName", "müller*", "1"),
        ("PatientName", "M?ller^*", "12"),
        ("PatientName", "o'neil^x[1]", "3"),
        ("PatientID", "100%", "1"),
        ("PatientID", "100?", "12"),
        ("PatientID", "100X", ""),
        ("PatientID", "*\\*", ""),
        ("AccessionNumber", "A_*", "1"),
        ("ProcedureStepState", "SCHEDULED", "123"),
        ("ScheduledProcedureStepStartDateTime", "20260301030001+0000", "2"),
    ],
)
def test_what_matches(database: Database, key: str, value: str, studies: str) -> None:
    with database.reading() as session:
        found = search_workitems(session, read_keys({key: value}), limit=10)
        uids = sorted(item.study_instance_uid for item in found)
    assert uids == [f"1.2.{number}" for number in studies]
    names = {"PatientName": "patient_name", "PatientID": "patient_id", "AccessionNumber": "accession_number"}
    if key in names:
        question = WorklistQuestion(asker="RIS", host="127.0.0.1", **{names[key]: value})
        with database.reading() as session:
            assert sorted(item.study_instance_uid for item in find_worklist_items(session, question)) == uids


def test_of_many_who_claim_at_once_one_wins(database: Database) -> None:
    uid = workitem_uid("1.2.2")

    def claim(number: int) -> bool:
        try:
            with database.writing() as session:
                change_state(
                    session,
                    uid,
                    WorkitemState.IN_PROGRESS,
                    transaction_uid=f"1.2.{number + 1}",
                    performer=str(number),
                    now=at(5),
                )
        except WorkitemRefused:
            return False
        return True

    assert sum(together(8, claim)) == 1


def test_subscriptions_and_events(database: Database) -> None:
    def join(number: int) -> None:
        with database.writing() as session:
            subscribe(
                session,
                ae_title="WS",
                workitem_uid=GLOBAL_UID,
                deletion_lock=False,
                now=datetime.now(UTC) - timedelta(seconds=1),
            )

    together(4, join)
    read_once(database, Priority.STAT, study="1.2.3")
    with database.reading() as session:
        recent = recent_events(
            session,
            ["WS"],
            since=datetime.now(UTC) - timedelta(minutes=1),
            told=(),
            matches=lambda keys, uids: (),
        )
    told = [
        r.content["00741200"]["Value"][0] for r in recent.reports if workitem_uid("1.2.3") in str(r.content)
    ]
    assert told[-1] == "HIGH"
    with database.writing() as session:
        make_known(session, search_workitems(session, read_keys({}), limit=10), datetime.now(UTC))
        assert unsubscribe(session, ae_title="WS", workitem_uid=GLOBAL_UID, now=datetime.now(UTC))
        assert prune_events(session, datetime.now(UTC) + timedelta(days=2)) > 0
