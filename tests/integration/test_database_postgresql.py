"""The database's tests again on a real PostgreSQL, and what only PostgreSQL can show."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.exc import InternalError

from ich_node.database import queue as queue_module
from ich_node.database.engine import Database
from ich_node.database.outbox import claim_deliveries
from ich_node.database.receipt import set_due
from ich_node.database.tables import Table
from ich_node.database.worklist import COLUMNS, worklist
from ich_node.errors import ConfigurationError, TransientError
from ich_node.findings import Priority
from ich_node.intake import Intake
from ich_node.receive.spool import Spool
from ich_node.settings import Settings
from tests.database_cases import (
    SERIES,
    STUDY,
    Sender,
    at,
    claim,
    must_claim,
    read_once,
    series_row,
    study_row,
    together,
)
from tests.postgresql_server import Server, postgresql_server
from tests.unit.test_database_audit import *  # noqa: F403
from tests.unit.test_database_drift import *  # noqa: F403
from tests.unit.test_database_metrics import *  # noqa: F403
from tests.unit.test_database_migrations import *  # noqa: F403
from tests.unit.test_database_outbox import *  # noqa: F403
from tests.unit.test_database_queue import *  # noqa: F403
from tests.unit.test_database_readings import *  # noqa: F403
from tests.unit.test_database_receipt import *  # noqa: F403
from tests.unit.test_database_retention import *  # noqa: F403
from tests.unit.test_database_study_sizes import *  # noqa: F403
from tests.unit.test_database_worklist import *  # noqa: F403

_names = count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with postgresql_server() as server:
        server.run("CREATE DATABASE template_ich_node")
        database = Database(server.url("template_ich_node"))
        database.upgrade()
        database.dispose()
        yield server


@pytest.fixture
def empty_url(server: Server) -> Iterator[str]:
    name = f"empty_{next(_names)}"
    server.run(f"CREATE DATABASE {name}")
    yield server.url(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    name = f"test_{next(_names)}"
    server.run(f"CREATE DATABASE {name} TEMPLATE template_ich_node")
    yield server.url(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.dispose()


def test_it_is_postgresql(database: Database) -> None:
    with database.reading() as session:
        assert str(session.scalar(text("SELECT version()"))).startswith("PostgreSQL")


def test_the_migrations_lead_to_the_tables(database: Database) -> None:
    with database.reading() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_the_migrations_make_what_the_tables_would(empty_url: str, database: Database) -> None:
    direct = Database(empty_url)
    with direct.writing() as session:
        Table.metadata.create_all(session.connection())
    described = [_described(one) for one in (database, direct)]
    direct.dispose()
    assert described[0] == described[1]


def _described(database: Database) -> list[object]:
    columns = """
        SELECT table_name, column_name, data_type, is_nullable, column_default
          FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name NOT IN ('alembic_version', 'worklist_v1') ORDER BY 1, 2
    """
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    constraints = """
        SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint
         WHERE connamespace = 'public'::regnamespace AND conrelid <> 0
           AND conrelid::regclass::text <> 'alembic_version' ORDER BY 1, 2
    """
    with database.reading() as session:
        connection = session.connection()
        return [
            [tuple(row) for row in connection.exec_driver_sql(columns)],
            sorted(row[0] for row in connection.exec_driver_sql(indexes)),
            [tuple(row) for row in connection.exec_driver_sql(constraints)],
        ]


def test_an_upgrade_by_many_at_once_is_one_upgrade(empty_url: str) -> None:
    databases = [Database(empty_url) for _ in range(4)]
    together(4, lambda n: databases[n].upgrade())
    databases[0].upgrade()
    databases[0].require_current()
    Sender(database=databases[1]).send(1)
    for database in databases:
        database.dispose()


def test_the_view_is_there_with_its_columns_and_types(database: Database) -> None:
    with database.reading() as session:
        found = inspect(session.connection()).get_columns("worklist_v1")
    assert [column["name"] for column in found] == list(COLUMNS)
    types = {column["name"]: str(column["type"]) for column in found}
    assert (types["subtypes"], types["suspicion"]) == ("TEXT", "DOUBLE PRECISION")
    assert {types[name] for name in ("received_at", "delivered_at", "reviewed_at")} == {"TIMESTAMP"}


def test_a_reading_session_is_one_snapshot_and_cannot_write(database: Database) -> None:
    Sender(database=database).send(1)
    with database.reading() as session:
        assert len(worklist(session)) == 1
        Sender(database=database, study="1.9", series="1.9.1").send(1)
        assert len(worklist(session)) == 1
    with pytest.raises(InternalError, match="read-only"), database.reading() as session:
        session.execute(text("DELETE FROM audit"))
    assert Sender(database=database).send(2) == "NEW"


def test_a_missing_schema_is_named_with_the_way_out(empty_url: str) -> None:
    database = Database(empty_url)
    with pytest.raises(ConfigurationError, match=r"revision none.*'ich-node db upgrade'"):
        database.require_current()
    with pytest.raises(ConfigurationError, match=r"does not exist.*'ich-node db upgrade'"):
        study_row(database)
    database.dispose()


def test_a_missing_right_is_a_matter_of_settings(server: Server, database: Database) -> None:
    server.run("DROP ROLE IF EXISTS guest")
    server.run("CREATE ROLE guest LOGIN")
    guest = Database(database.url.replace("//ich_node@", "//guest@"))
    with pytest.raises(ConfigurationError, match="permission denied"):
        study_row(guest)
    with pytest.raises(ConfigurationError, match=r"cannot be (used|upgraded)"):
        guest.upgrade()
    guest.dispose()


def test_a_database_that_is_not_there_is_named(server: Server) -> None:
    database = Database(server.url("no_such_database"))
    with pytest.raises(TransientError, match="no_such_database"):
        database.require_current()


def test_a_connection_that_the_server_ended_is_a_passing_fault(server: Server, database: Database) -> None:
    with pytest.raises(TransientError, match="did not answer"), database.writing() as session:  # noqa: PT012
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        server.run(f"SELECT pg_terminate_backend({pid}, 5000)")
        session.execute(text("SELECT 1"))
    assert Sender(database=database).send(1) == "NEW"


def test_a_deadlock_is_a_passing_fault(database: Database) -> None:
    """Two transactions that lock two studies in opposite order: one of them is refused, neither hangs."""
    for study in ("1.1", "1.2"):
        Sender(database=database, study=study, series=f"{study}.1").send(1)
    barrier = threading.Barrier(2)

    def lock(who: int) -> str:
        order = ("1.1", "1.2") if who else ("1.2", "1.1")
        try:
            with database.writing() as session:
                for n, study in enumerate(order):
                    Sender(database=database, study=study, series=f"{study}.1").send_in(session, 10 + who)
                    if n == 0:
                        barrier.wait(30)
        except TransientError as error:
            return str(error)
        return "done"

    outcomes = sorted(together(2, lock))
    assert outcomes[0].startswith("done")
    assert "deadlock detected" in outcomes[1]


def test_a_claim_that_waited_for_the_lock_asks_again_what_is_due(database: Database) -> None:
    """READ COMMITTED gives a statement that waited the new row, but the old answer of its subqueries."""
    Sender(database=database).send(1)
    first = must_claim(database, seconds=1)
    outcome: list[object] = []
    with database.writing() as session:
        queue_module.finish_claim(session, queue_module.owned_study(session, first), first)
        session.flush()
        waiting = threading.Thread(target=lambda: outcome.append(claim(database, seconds=100)))
        waiting.start()
        _wait_until_someone_waits_for_a_lock(session.connection(), database)
    waiting.join(30)
    assert outcome == [None]


def test_images_that_arrive_while_a_claim_is_made_are_in_it_or_due_after_it(database: Database) -> None:
    """The revision and the images of a claim belong together."""
    sender = Sender(database=database)
    sender.send(1)
    claims: list[queue_module.StudyClaim | None] = []
    with database.writing() as session:
        sender.send_in(session, 2)
        session.flush()
        claimer = threading.Thread(target=lambda: claims.append(claim(database, seconds=1)))
        claimer.start()
        _wait_until_someone_waits_for_a_lock(session.connection(), database)
    claimer.join(30)
    (claimed,) = claims
    assert claimed is not None
    assert (claimed.series[0].revision, len(claimed.series[0].file_names)) == (2, 2)


def test_locked_rows_are_passed_over_by_reconcilers_and_senders(database: Database) -> None:
    for n in range(2):
        study = f"1.{n}"
        Sender(database=database, study=study, series=f"{study}.1").send(1, seconds=n)
        read_once(database, Priority.STAT, study=study, seconds=n + 1)
        Sender(database=database, study=study, series=f"{study}.1").send(2, seconds=20, due=20)
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    with database.writing() as session:
        session.execute(text("SELECT 1 FROM study WHERE study_instance_uid = '1.0' FOR UPDATE"))
        session.execute(text("SELECT 1 FROM outbox WHERE id = (SELECT MIN(id) FROM outbox) FOR UPDATE"))
        with database.writing() as other:
            other.execute(text("SET LOCAL lock_timeout = '10s'"))  # waiting for ever is no test result
            assert queue_module.take_due_studies(other, at(30)) == ["1.1"]
            taken = claim_deliveries(other, "PACS", owner="s", now=at(30), lease=queue_module.ENQUEUE_AGAIN)
            assert len(taken) == 3
    assert any("FOR UPDATE OF study SKIP LOCKED" in statement for statement in statements)
    assert any("FOR UPDATE OF outbox SKIP LOCKED" in statement for statement in statements)


def test_the_first_two_images_of_a_study_may_come_at_once(database: Database) -> None:
    """The second sender waits for the first one's study row, and finds it."""
    receipts: list[str] = []
    with database.writing() as session:
        Sender(database=database).send_in(session, 1)
        session.flush()
        second = threading.Thread(target=lambda: receipts.append(Sender(database=database).send(2, due=9)))
        second.start()
        _wait_until_someone_waits_for_a_lock(session.connection(), database)
    second.join(30)
    assert receipts == ["NEW"]
    (seen,) = must_claim(database, seconds=9).series
    assert seen.revision == 2


def test_a_sender_whose_forerunner_failed_makes_the_study_itself(database: Database) -> None:
    receipts: list[str] = []
    second = threading.Thread(target=lambda: receipts.append(Sender(database=database).send(2)))
    with pytest.raises(RuntimeError, match="lost"), database.writing() as session:  # noqa: PT012
        Sender(database=database).send_in(session, 1)
        session.flush()
        second.start()
        _wait_until_someone_waits_for_a_lock(session.connection(), database)
        raise RuntimeError("lost")
    second.join(30)
    assert receipts == ["NEW"]
    with database.writing() as session:
        set_due(session, SERIES, at(3))
    assert study_row(database, STUDY).state == "RECEIVING"


def test_two_processes_record_the_same_studies_and_wait_for_each_other_only(
    database: Database, tmp_path: Path
) -> None:
    """One takes objects by C-STORE, the other by STOW-RS; half of them come both ways."""
    senders = [Sender(database=database, study=f"1.{n % 3}", series=f"1.{n % 3}.{n}") for n in range(9)]
    batches = [[s.received(n) for n in numbers for s in senders] for numbers in (range(40), range(20, 60))]

    def process(number: int) -> None:
        with Intake(Settings(data_dir=tmp_path), database, Spool(tmp_path / "spool")) as intake:
            for one in batches[number] if number else reversed(batches[number]):
                intake.put(one)
            intake.flush()
            intake.mend()

    together(2, process)
    for sender in senders:
        assert series_row(database, sender.series).revision == 60


def test_an_upgrade_and_a_node_that_runs_wait_for_each_other(old: Database) -> None:
    upgrade = threading.Thread(target=old.upgrade)
    with old.writing() as session:
        session.execute(text("UPDATE outbox SET note = 'a'"))
        upgrade.start()
        _wait_until_someone_waits_for_a_lock(session.connection(), old)
        assert session.execute(text("SELECT count(*) FROM worklist_v1")).scalar_one() == 1
    upgrade.join(60)
    old.require_current()


def _wait_until_someone_waits_for_a_lock(connection: Connection, database: Database) -> None:
    own = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    with database.engine.connect() as watcher:
        for _ in range(100_000):
            blocked = watcher.exec_driver_sql(
                f"SELECT count(*) FROM pg_stat_activity WHERE {own} = ANY(pg_blocking_pids(pid))"
            ).scalar_one()
            watcher.rollback()
            if blocked:
                return
    raise AssertionError("nobody waits")
