"""Connections, transactions, errors and schema revisions on SQLite."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import IntegrityError

from ich_node.database import engine as engine_module
from ich_node.database import queue
from ich_node.database.engine import Database
from ich_node.database.receipt import Receipt
from ich_node.database.tables import InstanceRow, SeriesRow, StudyRow, Table
from ich_node.database.worklist import COLUMNS
from ich_node.errors import ConfigurationError, TransientError
from tests.database_cases import STUDY, Sender, at, series_row, study_row, together

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "below" / "ich-node.sqlite"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    yield database
    database.dispose()


# settings that cannot be


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "is not a URL"),
        ("", "is not a URL"),
        ("/var/lib/ich-node.sqlite", "is not a URL"),
        ("postgresql://u:secret@host:port/name", "is not a URL"),
        ("mysql://u:secret@host/name", "names mysql; only sqlite and postgresql"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
        ("postgresql+nosuchdriver://u:secret@host/name", "ich-node\\[postgresql\\]"),
        ("postgresql+pg8000://u:secret@host/name", "pg8000.*ich-node\\[postgresql\\]"),
        ("sqlite:////dev/null/below/x.sqlite", "cannot be made: Not a directory"),
    ],
)
def test_a_url_that_cannot_be_used_is_named(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        Database(url)
    assert "secret" not in str(caught.value)


def test_an_asynchronous_driver_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="asynchronous"):
        Database("postgresql+psycopg_async://host/name")


def test_a_folder_in_the_place_of_the_file_is_a_matter_of_settings(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}")
    with pytest.raises(ConfigurationError, match="unable to open database file"):
        database.upgrade()


def test_a_file_that_is_no_database_is_a_matter_of_settings(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all " * 100)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(ConfigurationError, match="not a database"):
        database.revision()
    database.dispose()


def test_a_server_that_does_not_answer_may_answer_later() -> None:
    database = Database("postgresql+psycopg://u:secret@/name?host=/nowhere/at/all")
    with pytest.raises(TransientError, match="did not answer") as caught:
        database.require_current()
    assert "secret" not in str(caught.value)


# the file


def test_the_file_is_for_its_owner_alone(database: Database, path: Path) -> None:
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_readers_and_one_writer_work_at_once(database: Database) -> None:
    Sender(database=database).send(1)
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(InstanceRow)) == 1
        Sender(database=database).send(2)  # another connection commits meanwhile
        assert session.scalar(select(func.count()).select_from(InstanceRow)) == 1  # one snapshot
    assert series_row(database).revision == 2


def test_a_reading_session_cannot_write_and_leaves_no_trace_of_that(database: Database) -> None:
    with pytest.raises(ConfigurationError, match="readonly"), database.reading() as session:
        session.execute(text("DELETE FROM study"))
    assert Sender(database=database).send(1) is Receipt.NEW


def test_an_error_undoes_the_whole_transaction(database: Database) -> None:
    sender = Sender(database=database)
    sender.send(1)
    with pytest.raises(RuntimeError, match="after two"), database.writing() as session:  # noqa: PT012
        sender.send_in(session, 2)
        sender.send_in(session, 3)
        raise RuntimeError("after two")
    assert series_row(database).revision == 1


def test_foreign_keys_hold_and_errors_carry_no_values(database: Database) -> None:
    broken = SeriesRow(
        series_instance_uid="1.9.1",
        study_instance_uid="no such study",
        modality="CT",
        series_description="Doe^Jane",
        revision=0,
        handled_revision=0,
    )
    with pytest.raises(IntegrityError) as caught, database.writing() as session:
        session.add(broken)
    assert "Doe^Jane" not in str(caught.value)


def test_a_lock_that_is_not_given_up_is_a_passing_fault(
    database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_BUSY_TIMEOUT_MS", 20)
    impatient = Database(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientError, match="did not answer: database is locked"):
        Sender(database=impatient).send(1)
    other.execute("ROLLBACK")
    other.close()
    assert Sender(database=impatient).send(1) is Receipt.NEW
    impatient.dispose()


def test_too_many_connections_are_a_passing_fault(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database.engine.pool, "_timeout", 0.01)
    held = [database.engine.connect() for _ in range(15)]
    with pytest.raises(TransientError, match="too many connections"), database.reading() as session:
        session.get(StudyRow, STUDY)
    for connection in held:
        connection.close()


FORK = """
import os, sys
from ich_node.database.engine import Database
from tests.database_cases import Sender
database = Database(sys.argv[1])
Sender(database=database).send(1)  # leaves a connection in the pool
parents = database.engine.pool
child = os.fork()
if child == 0:
    kept = database.engine.pool is parents
    Sender(database=database).send(2)
    os._exit(int(kept))
print(os.waitpid(child, 0)[1])
Sender(database=database).send(3)
"""


def test_a_forked_child_does_not_use_its_parents_connection(database: Database, path: Path) -> None:
    command = [sys.executable, "-c", FORK, f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert series_row(database).revision == 3


WRITER = """
import sys
from ich_node.database.engine import Database
from tests.database_cases import Sender
writer = int(sys.argv[2])
database = Database(sys.argv[1])
database.upgrade()
sys.stdin.readline()
for n in range(10):
    Sender(database=database).send(writer * 10 + n)
"""


def test_processes_that_start_at_once_on_a_new_file_lose_nothing(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, f"sqlite:///{path}"]
    processes = [
        subprocess.Popen(
            [*command, str(n)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for n in range(4)
    ]
    errors = [process.communicate("go\n", timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    database = Database(f"sqlite:///{path}")
    assert series_row(database).revision == 40
    database.dispose()


# the schema


def test_the_migrations_lead_to_the_tables(database: Database) -> None:
    with database.reading() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_the_migrations_make_what_the_tables_would(database: Database, tmp_path: Path) -> None:
    """Defaults, partial indexes and names too, which a comparison by reflection does not see."""
    direct = Database(f"sqlite:///{tmp_path / 'direct.sqlite'}")
    with direct.writing() as session:
        Table.metadata.create_all(session.connection())
    schemas = [_described(one) for one in (database, direct)]
    direct.dispose()
    assert schemas[0] == schemas[1]


def _described(database: Database) -> dict[str, object]:
    described: dict[str, object] = {}
    with database.reading() as session:
        found = inspect(session.connection())
        for name in sorted(set(found.get_table_names()) - {"alembic_version"}):
            described[name] = (
                [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in found.get_columns(name)],
                sorted((str(i["name"]), i["column_names"], i["unique"]) for i in found.get_indexes(name)),
                sorted((str(u["name"]), u["column_names"]) for u in found.get_unique_constraints(name)),
                sorted(
                    (f["constrained_columns"], f["referred_table"], f["referred_columns"])
                    for f in found.get_foreign_keys(name)
                ),
                found.get_pk_constraint(name)["constrained_columns"],
            )
        partial = session.connection().exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '%WHERE%' ORDER BY name"
        )
        described["partial indexes"] = [(name, " ".join(sql.split())) for name, sql in partial]
    return described


def test_an_upgrade_twice_or_by_many_at_once_is_one_upgrade(path: Path) -> None:
    databases = [Database(f"sqlite:///{path}") for _ in range(4)]
    together(4, lambda n: databases[n].upgrade())
    databases[0].upgrade()
    databases[0].require_current()
    Sender(database=databases[1]).send(1)
    for database in databases:
        database.dispose()


def test_an_old_schema_is_refused_with_the_way_out(path: Path) -> None:
    database = Database(f"sqlite:///{path}")
    with pytest.raises(ConfigurationError, match=r"revision none.*'ich-node db upgrade'"):
        database.require_current()
    with pytest.raises(ConfigurationError, match=r"no such table.*'ich-node db upgrade'"):
        study_row(database)
    database.dispose()


def test_a_newer_schema_is_refused_with_the_way_out(database: Database) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="a newer ich-node made it"):
        database.require_current()
    with pytest.raises(ConfigurationError, match="cannot be upgraded by this version"):
        database.upgrade()


def test_a_database_of_something_else_is_left_as_it_was(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE study (something TEXT)")
    other.commit()
    other.close()
    database = Database(f"sqlite:///{path}")
    with pytest.raises(ConfigurationError, match="holds something else"):
        database.upgrade()
    with database.reading() as session:
        assert inspect(session.connection()).get_table_names() == ["study"]
    database.dispose()


def test_due_studies_are_found_by_index(database: Database) -> None:
    query = select(StudyRow.study_instance_uid).where(*queue._wants_a_message(at(0)))
    sql = str(query.compile(database.engine, compile_kwargs={"literal_binds": True}))
    with database.reading() as session:
        plan = [row[3] for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}")]
    assert not {"SCAN study", "SCAN series"} & set(plan), plan


def test_the_view_is_there_with_its_columns(database: Database) -> None:
    with database.reading() as session:
        found = inspect(session.connection())
        assert found.get_view_names() == ["worklist_v1"]
        assert [column["name"] for column in found.get_columns("worklist_v1")] == list(COLUMNS)


def test_a_node_starts_whatever_was_deleted_by_hand_since_the_upgrade(database: Database) -> None:
    by_hand = database.engine.execution_options(ich_node_write=True, ich_node_upgrade=True)
    row = "INSERT INTO notice (study_instance_uid, facts, created_at) VALUES ('gone', '{}', '2026-03-01')"
    with by_hand.begin() as connection:
        connection.execute(text(row))
    database.upgrade()
    database.require_current()
