"""Somebody else's worklist in a real PostgreSQL and a real MariaDB, and the way there from a reading."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from ich_node.cli import root
from ich_node.database.engine import Database
from ich_node.database.external_connection import connected
from ich_node.database.external_worklist import ExternalTable, check_external, write_notice
from ich_node.database.outbox import DeliveryState, deliveries, retry_failed
from ich_node.database.queue import request_reprocess
from ich_node.delivery_job import deliver_due
from ich_node.errors import TransientError
from ich_node.findings import Priority
from ich_node.node import Node
from ich_node.notice_job import listeners_of
from ich_node.notify.outcome import NoticeResult
from ich_node.settings import Settings
from tests.database_cases import STUDY, Sender, read_once, sqlite_database
from tests.external_cases import open_theirs, put, rows
from tests.mariadb_server import PASSWORD, USER, mariadb_server
from tests.notice_builders import notice
from tests.postgresql_server import Server, postgresql_server
from tests.unit.test_external_worklist import *  # noqa: F403

_names = count()
ACCESSION = "ACC-4711"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    with postgresql_server() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb() -> Iterator[int]:
    with mariadb_server() as port:
        yield port


@pytest.fixture(params=["postgresql", "mariadb"])
def theirs_url(request: pytest.FixtureRequest) -> str:
    name = f"ris_{next(_names)}"
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgresql")
        server.run(f"CREATE DATABASE {name}")
        return server.url(name).replace("+psycopg", "")
    port: int = request.getfixturevalue("mariadb")
    with connected(f"mysql://{USER}:{PASSWORD}@127.0.0.1:{port}/ris") as connection:
        connection.execute(text(f"CREATE DATABASE {name} CHARACTER SET utf8mb4"))
    return f"mariadb://{USER}:{PASSWORD}@127.0.0.1:{port}/{name}"


def test_a_wrong_password_is_named_and_not_shown(mariadb: int, postgresql: Server) -> None:
    wrong = ExternalTable(
        url=f"mysql://{USER}:wr0ng-secret@127.0.0.1:{mariadb}/ris",
        schema=None,
        table="t",
        key=("accession_number",),
        columns={"accession_number": "a", "priority": "p"},
    )
    with pytest.raises(
        TransientError, match=r"the external worklist's database \(127.0.0.1\) says: Access denied"
    ):
        check_external(wrong)


def test_a_missing_right_is_found_without_writing_and_few_are_enough(
    postgresql: Server, external: ExternalTable
) -> None:
    if external.url.startswith("mariadb"):
        pytest.skip("shown on PostgreSQL, whose roles need no password here")
    postgresql.run("DROP ROLE IF EXISTS reader")
    postgresql.run("CREATE ROLE reader LOGIN")
    put(external, ACCESSION)
    narrow = dataclasses.replace(
        external,
        url=external.url.replace("//ich_node@", "//reader@"),
        columns={"accession_number": "acc_no", "priority": "prio", "changed_at": "changed"},
    )
    grant(external, 'GRANT SELECT (acc_no, changed) ON "Exam List" TO reader')
    with pytest.raises(TransientError, match="permission denied for table Exam List"):
        check_external(narrow)
    grant(external, 'GRANT UPDATE (prio, changed) ON "Exam List" TO reader')
    assert check_external(narrow) == "Exam List: its 3 columns are there, update is allowed"
    assert write_notice(notice(), narrow).result is NoticeResult.SENT
    assert rows(external)[0]["prio"] == 1


def grant(external: ExternalTable, statement: str) -> None:
    with open_theirs(external.url) as connection:
        connection.execute(text(statement))


# from a reading to the row


@pytest.fixture
def node(tmp_path: Path, external: ExternalTable) -> Iterator[Node]:
    with sqlite_database(tmp_path) as database:
        yield Node(settings=settings_for(tmp_path, external), database=database)


def settings_for(folder: Path, external: ExternalTable, **changes: Any) -> Settings:
    (folder / "url").write_text(external.url)
    section = {
        "url_file": str(folder / "url"),
        "table": external.table,
        "columns": dict(external.columns),
        "values": {**external.values},
        **changes,
    }
    return Settings(data_dir=folder, worklist={"external": section})  # type: ignore[arg-type]


def read(node: Node, priority: Priority, *, run: int = 1, seconds: float = 10.0) -> None:
    if run == 1:
        Sender(database=node.database, header={"accession_number": ACCESSION}).send(1)
    else:
        with node.database.writing() as session:
            request_reprocess(
                session, STUDY, series_instance_uid=None, model=None, actor="t", now=datetime.now(UTC)
            )
    listeners = listeners_of(node.settings)
    read_once(node.database, priority, run=run, seconds=seconds, destinations=(), listeners=listeners)


def told(database: Database) -> list[tuple[str, str | None]]:
    with database.reading() as session:
        return [(one.state, one.note) for one in reversed(deliveries(session))]


def test_a_reading_reaches_the_row(node: Node, external: ExternalTable) -> None:
    put(external, ACCESSION, "OTHER")
    assert node.destination_names == ("external worklist",)
    read(node, Priority.STAT)
    deliver_due(node, "external worklist")
    assert [(row["acc_no"], row["prio"]) for row in rows(external)] == [(ACCESSION, 1), ("OTHER", 5)]
    assert told(node.database) == [(DeliveryState.DELIVERED, None)]
    read(node, Priority.ROUTINE, run=2, seconds=20)
    deliver_due(node, "external worklist")
    assert rows(external)[0]["prio"] == 9


def test_a_row_that_comes_later_is_written_then_with_what_is_known_then(
    node: Node, external: ExternalTable
) -> None:
    read(node, Priority.STAT)
    deliver_due(node, "external worklist")
    assert told(node.database) == [
        (DeliveryState.PENDING, "Exam List has no row with this accession_number yet")
    ]
    put(external, ACCESSION)
    read(node, Priority.HIGH, run=2, seconds=20)
    deliver_due(node, "external worklist")
    with node.database.writing() as session:
        retry_failed(session, now=datetime.now(UTC))
    deliver_due(node, "external worklist")
    assert rows(external)[0]["prio"] == 2
    assert told(node.database)[-1] == (DeliveryState.DELIVERED, None)
    assert {state for state, _ in told(node.database)} == {DeliveryState.DELIVERED}


def test_a_database_that_is_away_loses_nothing(node: Node, external: ExternalTable, tmp_path: Path) -> None:
    put(external, ACCESSION)
    read(node, Priority.STAT)
    (tmp_path / "url").write_text("postgresql://u:s3cret@127.0.0.1:1/d")
    deliver_due(node, "external worklist")
    ((state, note),) = told(node.database)
    assert state == DeliveryState.PENDING
    assert note is not None
    assert "the external worklist's database (127.0.0.1) says" in note
    assert "s3cret" not in note
    (tmp_path / "url").write_text(external.url)
    with node.database.writing() as session:
        assert retry_failed(session, now=datetime.now(UTC)) == 1
    deliver_due(node, "external worklist")
    assert rows(external)[0]["prio"] == 1


def test_the_command_shows_the_sql_and_tries_it(tmp_path: Path, external: ExternalTable) -> None:
    config = tmp_path / "node.toml"
    columns = "\n".join(f'{name} = "{theirs}"' for name, theirs in external.columns.items())
    config.write_text(
        f'data_dir = "{tmp_path}"\n[worklist.external]\nurl = "{external.url}"\ntable = "Exam List"\n'
        f"[worklist.external.columns]\n{columns}\n[worklist.external.values]\n"
        "STAT = 1\nHIGH = 2\nMEDIUM = 3\nROUTINE = 9\n"
    )

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(root, ["--config", str(config), "worklist", "external", *arguments])

    shown = run("--dry-run", "--check")
    assert shown.exit_code == 0, shown.output
    assert "UPDATE" in shown.output
    assert "its 7 columns are there" in shown.output
    assert PASSWORD not in shown.output
    as_json = json.loads(run("--dry-run", "--check", "--json").output)
    assert [one["purpose"] for one in as_json["statements"]] == [
        "count the study's rows: more than one is refused",
        "its row, unless that is newer",
    ]
    assert as_json["ok"] is True
    assert run().exit_code == 2
    config.write_text(config.read_text().replace('"Exam List"', '"Exams"'))
    wrong = run("--check")
    assert wrong.exit_code == 1
    assert "there is no table Exams for this user" in wrong.output
