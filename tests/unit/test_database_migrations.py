"""An installation that has run for a while is upgraded with its data in place."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import text

from ich_node.database import drift, metrics, retention
from ich_node.database import engine as engine_module
from ich_node.database.engine import Database
from ich_node.database.receipt import Receipt
from ich_node.database.worklist import study_report, worklist_row
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
}
"""As revision 0001 holds them."""


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ich-node.sqlite'}"


@pytest.fixture
def old(empty_url: str) -> Iterator[Database]:
    """A database of revision 0001 with one study that is read and delivered."""
    database = Database(empty_url)
    with database.writing() as session:
        command.upgrade(engine_module._alembic(session.connection()), "0001")
    with database.writing() as session:
        sqlite = session.get_bind().dialect.name == "sqlite"
        for table, row in ROWS.items():
            values = {
                k: v.replace(tzinfo=None) if sqlite and isinstance(v, datetime) else v for k, v in row.items()
            }
            values = {k: str(v) if sqlite and isinstance(v, datetime) else v for k, v in values.items()}
            columns, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
            session.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({marks})"), values)
    yield database
    database.dispose()


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
