"""What the command line says and leaves alone where something is wrong; exit codes 0, 1 and 2."""

from __future__ import annotations

import getpass
import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from ich_node.cli import checks, main, root
from ich_node.database.engine import Database
from ich_node.model.bundle import SHIPPED
from ich_node.settings import Settings
from tests.stored_studies import StoredStudies


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def studies(tmp_path: Path) -> StoredStudies:
    settings = Settings(data_dir=tmp_path / "data")
    database = Database(settings.database_url)
    database.upgrade()
    return StoredStudies(database=database, results_dir=settings.results_dir)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("arguments", [("--help",), ("up", "--help"), ("config", "show", "--help")])
def test_help_needs_no_settings(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setenv("ICH_NODE_RECEIVER__PORT", "many")
    assert run(*arguments) == 0
    assert run("config", "check") == 2


@pytest.mark.parametrize(
    "command", [("worklist",), ("study", "show", "1.2"), ("deliveries",), ("reprocess", "1.2")]
)
def test_looking_at_a_node_that_is_not_there_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert run(*command) == 2
    assert "ich-node.sqlite is not there" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_doctor_on_a_node_that_is_down_names_every_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(_settings: Settings) -> list[str]:
        raise RuntimeError("out of order")

    monkeypatch.setattr(checks, "count_workers", break_down)
    monkeypatch.setenv("ICH_NODE_RECEIVER__PORT", "1")
    assert run("doctor", "--json") == 1
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    outcomes = {name: check["outcome"] for name, check in found.items()}
    well = {"settings", "clock", "device", "model", "commitment"}
    assert {name for name, outcome in outcomes.items() if outcome == "OK"} == well
    faulty = {"disk", "folders", "database", "broker", "receiver", "web", "PACS"}
    assert {name for name, outcome in outcomes.items() if outcome == "FAIL"} == faulty
    assert found["workers"]["found"] == "not known: the broker does not answer"
    assert found["studies"]["found"] == "not known: the database does not answer"
    assert all(check["mend"] for check in found.values() if check["outcome"] != "OK")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["up", "receiver", "worker", "web"])
def test_data_dir_that_cannot_be_made_is_a_fault_of_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path / "file" / "data"))
    assert run(command) == 2
    assert "data_dir: cannot make" in capsys.readouterr().err


_PRINTS_NO_JSON = {
    "up": "runs until it is stopped",
    "receiver": "runs until it is stopped",
    "worker": "runs until it is stopped",
    "web": "runs until it is stopped",
    "completion": "prints a script for a shell",
}


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{prefix}{name}", command


def test_every_command_that_prints_prints_json() -> None:
    without = {
        name
        for name, command in commands(root)
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == _PRINTS_NO_JSON.keys()


@pytest.mark.parametrize("arguments", [("worker",), ("worker", "--queue", "read")])
def test_no_worker_where_none_is_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ICH_NODE_WORKER__PROCESSES", "0")
    assert run(*arguments) == 2
    assert "worker.processes is 0" in capsys.readouterr().err


def test_demo_removes_no_folder_that_it_has_not_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    assert run("demo", "--output", str(tmp_path / "mine")) == 2
    assert "is not from a demo" in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter").exists()


def test_what_a_pacs_answers_is_shown_as_it_is(
    studies: StoredStudies, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC)
    studies.receive("1.2", at=now)
    studies.read("1.2", at=now, suspicion=0.9)
    studies.deliver(at=now, refusal="[/bold] no")
    assert run("deliveries", "--failed") == 0
    assert "[/bold]" in capsys.readouterr().out


def test_reprocess_says_when_no_study_fits(
    studies: StoredStudies, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reprocess", "--failed") == 0
    assert capsys.readouterr().err == "No study fits.\n"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"weights_sha256": "0" * 64}, "weights_sha256"),
        ({"architecture": "no-such-net"}, "'architecture'"),
    ],
)
def test_reprocess_with_a_bundle_that_cannot_read_queues_nothing(
    studies: StoredStudies,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: dict[str, Any],
    named: str,
) -> None:
    studies.receive("1.2", at=datetime.now(UTC))
    folder = tmp_path / "data" / "models" / "small"
    shutil.copytree(SHIPPED / "vicar-attention-v1", folder)
    about = json.loads((folder / "bundle.json").read_text()) | {"name": "small"}
    (folder / "bundle.json").write_text(json.dumps(about | damage))
    assert run("reprocess", "1.2", "--model", "small") == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert not printed.out
    (folder / "bundle.json").write_text(json.dumps(about))
    assert run("reprocess", "1.2", "--model", "small") == 0
    assert capsys.readouterr().out == "queued 1.2\n"


def test_reprocess_by_a_user_without_a_name(
    studies: StoredStudies, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    now = datetime.now(UTC)
    studies.receive("1.2", at=now)
    studies.read("1.2", at=now, suspicion=0.9)
    assert run("reprocess", "1.2") == 0
    assert capsys.readouterr().out == "queued 1.2\n"
    assert run("study", "show", "1.2", "--json") == 0
    last = json.loads(capsys.readouterr().out)["history"][-1]
    assert last["actor"] == f"cli:{os.getuid()}"
