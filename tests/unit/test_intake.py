"""Objects that were acknowledged get their rows, also where the database was away when they came."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ich_node import intake as intake_module
from ich_node.database import receipt
from ich_node.database.engine import Database
from ich_node.database.worklist import worklist
from ich_node.errors import TransientError
from ich_node.intake import Intake
from ich_node.receive.received import AssociationSummary, ReceivedInstance, read_received
from ich_node.receive.spool import Spool
from ich_node.settings import Settings
from tests.small_objects import encoded, small_object


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    database.upgrade()
    yield database
    database.dispose()


@pytest.fixture
def received(settings: Settings) -> ReceivedInstance:
    dataset = small_object()
    spool = Spool(settings.spool_dir)
    spooled = spool.store(
        encoded(dataset),
        sop_class_uid=dataset.SOPClassUID,
        sop_instance_uid=dataset.SOPInstanceUID,
        transfer_syntax_uid=dataset.file_meta.TransferSyntaxUID,
        source_ae_title="CT01",
    )
    return read_received(spool, spooled.path)


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While set, the database takes no rows of objects."""
    away = threading.Event()
    record = receipt.record_instance

    def record_unless_away(*arguments: Any, **options: Any) -> Any:
        if away.is_set():
            raise TransientError("the database did not answer")
        return record(*arguments, **options)

    monkeypatch.setattr(receipt, "record_instance", record_unless_away)
    return away


def summary(received: ReceivedInstance) -> AssociationSummary:
    return AssociationSummary(
        calling_ae_title="CT01",
        peer_host="127.0.0.1",
        released=True,
        series_instance_uids=(received.instance.series_instance_uid,),
        stored=1,
        refused=0,
        unrecorded=1,
        ended_at=datetime.now(UTC),
    )


def studies(database: Database) -> list[str]:
    with database.reading() as session:
        return [row["study_instance_uid"] for row in worklist(session)]


def test_rows_are_made_good_when_the_database_is_back(
    settings: Settings, database: Database, received: ReceivedInstance, outage: threading.Event
) -> None:
    intake = Intake(settings, database, Spool(settings.spool_dir))
    outage.set()
    with pytest.raises(TransientError):
        intake.record(received)
    intake.end_association(summary(received))
    intake.mend()
    assert studies(database) == []
    outage.clear()
    intake.mend()
    assert studies(database) == [received.instance.study_instance_uid]


def test_nothing_is_looked_for_where_nothing_is_missing(
    settings: Settings, database: Database, received: ReceivedInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake(settings, database, Spool(settings.spool_dir))
    intake.record(received)
    monkeypatch.setattr(intake, "rebuild", lambda: pytest.fail("the whole spool was read"))
    intake.mend()


def test_a_running_receiver_makes_rows_good_by_itself(
    settings: Settings,
    database: Database,
    received: ReceivedInstance,
    outage: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake_module, "_MEND_SECONDS", 0.02)
    mended = threading.Event()
    mend = Intake.mend

    def mend_and_say(intake: Intake) -> None:
        mend(intake)
        if not outage.is_set():
            mended.set()

    monkeypatch.setattr(Intake, "mend", mend_and_say)
    outage.set()
    any_port = settings.model_copy(update={"receiver": settings.receiver.model_copy(update={"port": 0})})
    with intake_module.open_receiver(any_port, database):
        assert studies(database) == []
        outage.clear()
        assert mended.wait(20)
    assert studies(database) == [received.instance.study_instance_uid]
