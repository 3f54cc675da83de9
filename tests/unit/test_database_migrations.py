"""An installation that has run for a while is upgraded with its data in place."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError

from ich_node.database import drift, metrics, retention
from ich_node.database import engine as engine_module
from ich_node.database.engine import Database
from ich_node.database.receipt import Receipt
from ich_node.database.tables import StudyRow
from ich_node.database.worklist import study_report, worklist, worklist_row
from ich_node.errors import ConfigurationError
from tests.database_cases import SERIES, STUDY, Sender, at, must_claim

ROWS: dict[str, dict[str, Any]] = {
    "study": {
        "study_instance_uid": STUDY,
        **dict.fromkeys(("patient_id", "patient_birth_date", "patient_sex", "accession_number"), "x"),
        **dict.fromkeys(("study_date", "study_time", "study_description", "modality_ae_title"), "x"),
        "patient_name": "Meyer^Käthe",
        "received_at": datetime(2026, 3, 1, 3, tzinfo=UTC),
        "last_received_at": datetime(2026, 3, 1, 3, 1, tzinfo=UTC),
        "state": "READ",
        "priority": "STAT",
        "suspicion": 0.9,
        "reading_id": 1,
        "claim_number": 1,
        "attempts": 0,
    },
    "series": {
        "series_instance_uid": SERIES,
        "study_instance_uid": STUDY,
        "modality": "CT",
        "series_description": "head",
        "revision": 1,
        "handled_revision": 1,
    },
    "instance": {
        "id": 1,
        "sop_instance_uid": f"{SERIES}.1",
        "series_instance_uid": SERIES,
        "sop_class_uid": "1.2",
        "transfer_syntax_uid": "1.2",
        "number_of_frames": 1,
        "file_name": f"sha-of-{SERIES}.1.dcm",
        "size_bytes": 2**33,
        "sha256": f"sha-of-{SERIES}.1",
        "source_ae_title": "CT1",
        "received_at": datetime(2026, 3, 1, 3, tzinfo=UTC),
        "conflict": False,
    },
    "reading": {
        "id": 1,
        "study_instance_uid": STUDY,
        "series_instance_uid": SERIES,
        "run_number": 1,
        **dict.fromkeys(("model_name", "model_version", "weights_sha256", "content_sha256"), "x"),
        "suspicion": 0.9,
        **dict.fromkeys(("operating_points", "subtypes", "timeline"), "{}"),
        **dict.fromkeys(("caveats", "slices"), "[]"),
        "priority": "STAT",
        "read_at": datetime(2026, 3, 1, 3, 2, tzinfo=UTC),
        "superseded": False,
        "sr_sop_instance_uid": "9.1",
        "sr_series_instance_uid": "9",
    },
    "result_object": {
        "sop_instance_uid": "9.1",
        "reading_id": 1,
        "sop_class_uid": "1.1",
        "kind": "SR",
        "position": 0,
        "file_name": "9.1.dcm",
    },
    "outbox": {
        "id": 1,
        "sop_instance_uid": "9.1",
        "destination": "PACS",
        "urgency": 0,
        "state": "SENT",
        "attempts": 1,
        "created_at": datetime(2026, 3, 1, 3, 2, tzinfo=UTC),
        "next_attempt_at": datetime(2026, 3, 1, 3, 2, tzinfo=UTC),
        "sent_at": datetime(2026, 3, 1, 3, 3, tzinfo=UTC),
    },
    "audit": {
        "at": datetime(2026, 3, 1, 3, 2, tzinfo=UTC),
        "study_instance_uid": STUDY,
        "actor": "worker",
        "action": "read",
        "state": "READ",
        "priority": "STAT",
    },
}
"""As revision 0001 holds them."""
LATER = datetime(2026, 4, 1, 3, tzinfo=UTC)
WHO = {"at": LATER, "study_instance_uid": STUDY}
ADDED: dict[str, dict[str, dict[str, Any]]] = {
    "0002": {
        "removal": {"id": 1, "folder": "SPOOL", "file_name": "x.dcm", "modified_ns": 1, "decided_at": LATER},
        "chore": {"name": "purge", "started_at": LATER, "ended_at": LATER, "note": "nothing"},
    },
    "0003": {},
    "0004": {
        "notice": {"id": 1, "study_instance_uid": STUDY, "facts": "{}", "created_at": LATER},
        "outbox": {
            "id": 2,
            "notice_id": 1,
            "destination": "RIS",
            "urgency": 0,
            "state": "PENDING",
            "attempts": 0,
            "created_at": LATER,
            "next_attempt_at": LATER,
            "confirm_attempts": 0,
        },
    },
    "0005": {
        "access": {"id": 1, **WHO, **dict.fromkeys(("caller", "role", "source", "action", "outcome"), "x")},
        "access_export": {"access_id": 1},
        "review": {"id": 1, **WHO, "reviewer": "r", "verdict": "SEEN", "priority": "STAT"},
        "web_user": {
            **dict.fromkeys(("name", "role", "password_hash"), "x"),
            **dict.fromkeys(("created_at", "password_changed_at"), LATER),
        },
        "web_session": {
            **dict.fromkeys(("token_sha256", "user_name", "role", "origin", "csrf_token"), "x"),
            **dict.fromkeys(("created_at", "last_seen_at", "expires_at"), LATER),
        },
        "api_token": {
            **dict.fromkeys(("token_sha256", "name", "role", "created_by"), "x"),
            "created_at": LATER,
        },
        "login_failure": {"id": 1, "at": LATER, "user_name": "x", "source": "x"},
        "workitem": {
            "sop_instance_uid": "2.25.1",
            "study_instance_uid": STUDY,
            "procedure_step_state": "SCHEDULED",
            "attributes": "{}",
            "changed_at": LATER,
        },
        "workitem_subscription": {
            "id": 1,
            "ae_title": "x",
            "workitem_uid": "2.25.1",
            "deletion_lock": False,
            "filter": "{}",
            "created_at": LATER,
        },
        "workitem_event": {"id": 1, **WHO, "sop_instance_uid": "2.25.1", "content": "{}"},
    },
}
"""What each later revision has beside that."""
RELEASED = ("0001", *ADDED)


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ich-node.sqlite'}"


@pytest.fixture
def old(empty_url: str) -> Iterator[Database]:
    """A database of revision 0001 with one study that is read and delivered."""
    database = Database(empty_url)
    bring_to(database, "0001")
    put(database, ROWS)
    yield database
    database.dispose()


def bring_to(database: Database, revision: str) -> None:
    with database._upgrader.begin() as connection:
        command.upgrade(engine_module._alembic(connection), revision)


def put(database: Database, rows: dict[str, dict[str, Any]]) -> None:
    with database.writing() as session:
        sqlite = session.get_bind().dialect.name == "sqlite"
        for table, row in rows.items():
            values = {
                k: str(v.replace(tzinfo=None)) if sqlite and isinstance(v, datetime) else v
                for k, v in row.items()
            }
            columns, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
            session.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({marks})"), values)


def contents(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table."""
    with database.reading() as session:
        tables = sorted(set(inspect(session.connection()).get_table_names()) - {"alembic_version"})
        return {
            table: sorted(
                (dict(row._mapping) for row in session.execute(text(f"SELECT * FROM {table}"))), key=str
            )
            for table in tables
        }


@pytest.mark.parametrize("revision", RELEASED)
def test_nothing_is_lost_on_the_way_from_any_released_revision(old: Database, revision: str) -> None:
    for step in RELEASED[1 : RELEASED.index(revision) + 1]:
        bring_to(old, step)
        put(old, ADDED[step])
    before = contents(old)
    assert all(before.values())
    old.upgrade()
    old.require_current()
    after = contents(old)
    for table, rows in before.items():
        assert len(after[table]) == len(rows), table
        if revision >= "0004":  # 0002 renames a column, 0004 settles what was sent long ago
            kept = [{name: row[name] for name in rows[0]} for row in after[table]]
            assert sorted(kept, key=str) == rows, table
    with old.reading() as session:
        assert session.scalars(select(StudyRow.precedence)).all() == [7]
        assert [row["study_instance_uid"] for row in worklist(session)] == [STUDY]
    with pytest.raises(DBAPIError, match="only ever added to"), old.writing() as session:
        session.execute(text("UPDATE audit SET actor = 'x'"))


def test_data_of_the_first_revision_is_there_after_the_upgrade(old: Database) -> None:
    with pytest.raises(ConfigurationError, match="revision 0001"):
        old.require_current()
    old.upgrade()
    old.require_current()
    with old.reading() as session:
        row, report = worklist_row(session, STUDY), study_report(session, STUDY)
    assert row is not None
    assert report is not None
    assert (row["patient_name"], row["priority"]) == ("Meyer^Käthe", "STAT")
    assert row["delivered_at"].startswith("2026-03-01T03:03:00")
    assert report["purged_at"] is None
    assert [(s["instances"], s["purged_instances"]) for s in report["series"]] == [(1, 0)]
    assert report["readings"][0]["objects"] == [{"kind": "SR", "sop_instance_uid": "9.1", "purged_at": None}]


def test_readings_of_the_first_revision_have_no_features_of_their_input(old: Database) -> None:
    old.upgrade()
    with old.reading() as session:
        report = study_report(session, STUDY)
        (found,) = drift.model_drifts(session, now=datetime(2026, 3, 1, 3, 2, tzinfo=UTC) + timedelta(days=1))
    assert report is not None
    assert (report["readings"][0]["input_features"], report["readings"][0]["unlike_training"]) == ({}, None)
    assert (found.recent.readings, found.recent.flagged, found.recent.compared) == (1, 1, 0)


def test_what_the_first_revision_received_can_be_purged_and_added_to(old: Database) -> None:
    old.upgrade()
    assert Sender(database=old).send(1) is Receipt.DUPLICATE
    with old.reading() as session:
        assert retention.candidates(session, before=at(3600)) == [STUDY]
        assert metrics.spool_standing(session).received == 1
        stock = retention.take_stock(session, STUDY, before=None, conflicts=False, now=at(3600))
        assert (stock.obstacles, stock.size_bytes) == ((), 2**33)
    assert Sender(database=old).send(2, due=1) is Receipt.NEW
    assert len(must_claim(old, seconds=2).series[0].file_names) == 2
