"""Results from the outbox to a PACS that takes them, refuses them, or is away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import update

from ich_node.confirmation_job import confirm_due
from ich_node.database import outbox
from ich_node.database.engine import Database
from ich_node.database.outbox import DeliveryRecord
from ich_node.database.tables import OutboxRow
from ich_node.database.worklist import worklist_row
from ich_node.delivery_job import Deliverer, deliver_due
from ich_node.destination_settings import HL7Settings
from ich_node.node import Node
from ich_node.settings import PacsSettings, Settings
from ich_node.testing.pacs import DemoPacs
from tests.stored_studies import StoredStudies


def make_node(folder: Path, port: int) -> Node:
    pacs = PacsSettings(name="archive", ae_title="DEMO_PACS", host="127.0.0.1", port=port)
    settings = Settings(data_dir=folder / "data", pacs=(pacs,))
    database = Database(settings.database_url)
    database.upgrade()
    return Node(settings=settings, database=database)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[DemoPacs]:
    with DemoPacs(tmp_path / "pacs") as pacs:
        yield pacs


@pytest.fixture
def node(tmp_path: Path, pacs: DemoPacs) -> Iterator[Node]:
    node = make_node(tmp_path, pacs.port)
    yield node
    node.database.dispose()


def fill(node: Node, destination: str = "archive", *, study: str = "1.2.3", numbered_from: int = 1) -> None:
    now = datetime.now(UTC) - timedelta(seconds=5)
    studies = StoredStudies(
        database=node.database, results_dir=node.settings.results_dir, _numbers=count(numbered_from)
    )
    studies.receive(study, at=now)
    studies.read(study, at=now, suspicion=0.9, destinations=(destination,))


def records(node: Node) -> list[DeliveryRecord]:
    with node.database.reading() as session:
        return outbox.deliveries(session)


def test_everything_that_is_due_arrives_once(node: Node, pacs: DemoPacs) -> None:
    fill(node)
    deliver_due(node, "archive")
    deliver_due(node, "archive")
    assert {r.state for r in records(node)} == {"SENT"}
    assert sorted(o.sop_instance_uid for o in pacs.received) == sorted(
        r.sop_instance_uid for r in records(node)
    )
    assert {o.calling_ae_title for o in pacs.received} == {"ICH_NODE"}


def test_a_pacs_that_is_full_is_tried_again_later(node: Node, pacs: DemoPacs) -> None:
    fill(node)
    pacs.store_status = 0xA700
    deliver_due(node, "archive")
    for record in records(node):
        assert (record.state, record.attempts) == ("PENDING", 1)
        assert record.next_attempt_at > datetime.now(UTC)
        assert "A700" in (record.note or "")


def test_what_a_pacs_refuses_for_good_is_a_dead_letter_until_retried(node: Node, pacs: DemoPacs) -> None:
    fill(node)
    pacs.store_status = 0xC123
    deliver_due(node, "archive")
    assert {r.state for r in records(node)} == {"DEAD"}
    pacs.store_status = 0
    with node.database.writing() as session:
        assert outbox.retry_failed(session, now=datetime.now(UTC)) == len(records(node))
    deliver_due(node, "archive")
    assert {r.state for r in records(node)} == {"SENT"}


def test_a_pacs_that_is_away_is_waited_for(node: Node, pacs: DemoPacs) -> None:
    fill(node)
    pacs.reject_associations = True
    deliver_due(node, "archive")
    assert {(r.state, r.attempts) for r in records(node)} == {("PENDING", 1)}
    assert all("rejected" in (r.note or "") for r in records(node))


def test_what_waits_goes_out_as_soon_as_the_pacs_takes_anything(node: Node, pacs: DemoPacs) -> None:
    fill(node)
    pacs.reject_associations = True
    deliver_due(node, "archive")
    pacs.reject_associations = False
    deliver_due(node, "archive")
    assert {r.state for r in records(node)} == {"PENDING"}, "not due yet"
    fill(node, study="1.2.4", numbered_from=100)
    deliver_due(node, "archive")
    assert {r.state for r in records(node)} == {"SENT"}


def test_a_destination_that_the_settings_no_longer_name_says_so(node: Node) -> None:
    fill(node, "former")
    deliver_due(node, "former")
    assert {r.state for r in records(node)} == {"DEAD"}
    assert all("no [[pacs]] is named former" in (r.note or "") for r in records(node))


def test_what_the_pacs_took_is_delivered_once_it_lists_it(node: Node, pacs: DemoPacs) -> None:
    fill(node)
    Deliverer(node).deliver_due("archive")
    assert {r.state for r in records(node)} == {"DELIVERED"}
    assert all(r.delivered_at >= r.sent_at for r in records(node) if r.delivered_at and r.sent_at)
    with node.database.reading() as session:
        row = worklist_row(session, "1.2.3")
    assert row is not None
    assert row["delivered_at"]


def test_what_the_pacs_took_and_lost_is_sent_again(node: Node, pacs: DemoPacs) -> None:
    fill(node)
    deliver_due(node, "archive")
    lost = pacs.received[0]
    lost.path.unlink()
    for asked in range(1, 7):
        make_due(node)
        confirm_due(node, node.settings.pacs[0])
        one = next(r for r in records(node) if r.sop_instance_uid == lost.sop_instance_uid)
        assert one.state == ("SENT" if asked < 6 else "PENDING"), asked
    assert "taken, then lost" in (one.note or "")
    assert {r.state for r in records(node)} == {"PENDING", "DELIVERED"}
    make_due(node)
    Deliverer(node).deliver_due("archive")
    assert {r.state for r in records(node)} == {"DELIVERED"}
    assert [o.sop_instance_uid for o in pacs.received].count(lost.sop_instance_uid) == 2


def test_a_pacs_whose_success_is_believed_is_not_asked(node: Node, pacs: DemoPacs) -> None:
    fill(node)
    believed = node.settings.pacs[0].model_copy(update={"confirm": "none"})
    trusting = replace(node, settings=node.settings.model_copy(update={"pacs": (believed,)}))
    deliver_due(trusting, "archive")
    assert {(r.state, r.note) for r in records(node)} == {("DELIVERED", None)}


def test_a_pacs_that_cannot_be_asked_leaves_the_matter_open(node: Node, pacs: DemoPacs) -> None:
    fill(node)
    deliver_due(node, "archive")
    pacs.reject_associations = True
    confirm_due(node, node.settings.pacs[0])
    for record in records(node):
        assert (record.state, record.delivered_at) == ("SENT", None)
        assert record.next_attempt_at > datetime.now(UTC)
        assert "rejected" in (record.note or "")


def test_objects_for_what_is_no_pacs_any_more_say_so(node: Node) -> None:
    fill(node, "RIS")
    listening = HL7Settings(name="RIS", host="127.0.0.1", port=1)
    changed = replace(node, settings=node.settings.model_copy(update={"hl7": (listening,)}))
    deliver_due(changed, "RIS")
    assert {r.state for r in records(node)} == {"DEAD"}
    assert all("RIS is no [[pacs]] any more" in (r.note or "") for r in records(node))


def make_due(node: Node) -> None:
    """Let the waits that were set come to their end."""
    with node.database.writing() as session:
        session.execute(update(OutboxRow).values(next_attempt_at=datetime.now(UTC)))
