"""The doctor: what hangs is given up, what is wrong has its mend, and settings that are wrong end with 2."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ich_node.cli import checks, machine_checks, main
from ich_node.cli.check_run import Examination, Outcome, run_examinations
from ich_node.database import examination
from ich_node.database.engine import Database
from ich_node.destination_settings import PacsSettings
from ich_node.errors import TransientError
from ich_node.settings import Settings
from tests.certificates import Authority
from tests.stored_studies import StoredStudies


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def fails() -> tuple[bool, str]:
    raise TransientError("out of order")


def breaks() -> tuple[bool, str]:
    raise ZeroDivisionError("by zero")


def test_checks_run_side_by_side_and_what_hangs_is_given_up() -> None:
    release = threading.Event()

    def hangs() -> tuple[bool, str]:
        release.wait(60)
        return True, ""

    begun = time.monotonic()
    found = run_examinations(
        [
            Examination(name="well", look=lambda: (True, "fine"), mend=""),
            *(Examination(name=f"h{n}", look=hangs, mend="x", seconds=0.3) for n in range(10)),
            Examination(name="slow", look=hangs, mend="x", seconds=0.3, worst=Outcome.WARN),
            Examination(name="fails", look=fails, mend="x"),
            Examination(name="breaks", look=breaks, mend="x"),
            Examination(name="more", look=lambda: (True, ""), mend="y", needs="fails"),
            Examination(name="warns", look=lambda: (Outcome.WARN, "nearly"), mend="x"),
        ]
    )
    release.set()
    assert time.monotonic() - begun < 2.5  # ten times 0.3 s, one after the other, would be 3
    outcomes = {check.name: (check.outcome, check.found) for check in found}
    assert outcomes["well"] == (Outcome.OK, "fine")
    assert outcomes["h9"] == (Outcome.FAIL, "no answer within 0 s")
    assert outcomes["slow"][0] == Outcome.WARN
    assert outcomes["fails"] == (Outcome.FAIL, "out of order")
    assert outcomes["breaks"] == (Outcome.FAIL, "the check itself failed: ZeroDivisionError: by zero")
    assert outcomes["more"] == (Outcome.WARN, "not known: the fails does not answer")
    assert outcomes["warns"][0] == Outcome.WARN
    assert [check.name for check in found if not check.ok][-2:] == ["fails", "breaks"]


def test_everything_hangs_and_the_doctor_ends(
    tmp_path: Path,
    silent_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Examination, "__init__", with_limit(1.5))
    monkeypatch.setattr(checks, "_model", lambda _: (True, ""))
    pacs = [
        {"name": "a", "ae_title": "A", "host": "127.0.0.1", "port": silent_port},
        {"name": "b", "url": f"http://127.0.0.1:{silent_port}/dicom-web"},
    ]
    for key, value in {
        "DATA_DIR": str(tmp_path),
        "DATABASE__URL": f"postgresql+psycopg://u:p@127.0.0.1:{silent_port}/x",
        "BROKER__URL": f"redis://127.0.0.1:{silent_port}/0",
        "RECEIVER__PORT": str(silent_port),
        "WEB__PORT": str(silent_port),
        "PACS": json.dumps(pacs),
    }.items():
        monkeypatch.setenv(f"ICH_NODE_{key}", value)
    begun = time.monotonic()
    assert run("doctor", "--json") == 1
    assert time.monotonic() - begun < 8
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    for name in ("database", "broker", "receiver", "web", "PACS a", "PACS b"):
        assert found[name]["outcome"] == "FAIL", name


def with_limit(seconds: float) -> Any:
    made = Examination.__init__

    def make(self: Examination, **values: Any) -> None:
        made(self, **{**values, "seconds": seconds})

    return make


def test_settings_that_are_wrong_are_a_check_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ICH_NODE_RECEIVER__PORT", "many")
    assert run("doctor", "--json") == 2
    (check,) = json.loads(capsys.readouterr().out)
    assert (check["name"], check["outcome"]) == ("settings", "FAIL")
    assert "receiver.port" in check["found"]
    assert run("doctor") == 2
    assert "config check" in capsys.readouterr().out


def test_one_pacs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path))
    pacs = [{"name": name, "ae_title": "A", "host": "127.0.0.1", "port": 1} for name in "ab"]
    monkeypatch.setenv("ICH_NODE_PACS", json.dumps(pacs))
    assert run("doctor", "--pacs", "b", "--json") == 1
    assert [check["name"] for check in json.loads(capsys.readouterr().out)] == ["PACS b"]
    assert run("doctor", "--pacs", "c") == 2


def test_folders_that_others_may_look_into(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert machine_checks.folders(settings) == (Outcome.FAIL, f"{tmp_path}/data does not exist")
    settings.spool_dir.mkdir(parents=True)
    settings.data_dir.chmod(0o700)
    assert machine_checks.folders(settings)[0] is Outcome.OK
    settings.data_dir.chmod(0o755)
    settings.spool_dir.chmod(0o700)
    assert machine_checks.folders(settings)[0] is Outcome.OK
    settings.spool_dir.chmod(0o750)
    outcome, found = machine_checks.folders(settings)
    assert outcome is Outcome.WARN
    assert str(settings.spool_dir) in found
    settings.results_dir.touch()
    assert machine_checks.folders(settings)[1] == f"{settings.results_dir} is not a folder"


class _Clock(BaseHTTPRequestHandler):
    """A service whose Date is wrong, and that wants a token."""

    def do_GET(self) -> None:
        self.send_response_only(401)
        self.send_header("Date", "Sun, 06 Nov 1994 08:49:37 GMT")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stopped_clock() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Clock) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


def test_a_clock_that_others_do_not_share(tmp_path: Path, stopped_clock: int) -> None:
    pacs = PacsSettings(name="old", url=f"http://127.0.0.1:{stopped_clock}/dicom-web")
    outcome, found = machine_checks.clock(Settings(data_dir=tmp_path, pacs=(pacs,)))
    assert outcome is Outcome.FAIL
    assert found.endswith("s ahead of PACS old")
    assert machine_checks.clock(Settings(data_dir=tmp_path))[1].endswith("nothing to compare it with")


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    database = Database(settings.database_url)
    database.upgrade()
    studies = StoredStudies(database=database, results_dir=settings.results_dir)
    studies.receive("1.2", at=datetime.now(UTC) - timedelta(minutes=1))
    assert machine_checks.clock(settings)[0] is Outcome.OK
    studies.receive("1.3", at=datetime.now(UTC) + timedelta(hours=1))
    outcome, found = machine_checks.clock(settings)
    assert outcome is Outcome.FAIL
    assert found.endswith("behind the last change in the database")


def test_orphaned_work(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    database = Database(settings.database_url)
    database.upgrade()
    studies = StoredStudies(database=database, results_dir=settings.results_dir)
    now = datetime.now(UTC)
    studies.receive("1.2", at=now - timedelta(hours=1))
    studies.claim("1.2", at=now - timedelta(hours=1))
    with database.reading() as session:
        assert examination.orphans(session, before=now - timedelta(minutes=5)).studies == 1
        assert examination.orphans(session, before=now - timedelta(hours=2)).studies == 0


def test_a_port_that_another_program_has(tmp_path: Path, stopped_clock: int) -> None:
    web = {"data_dir": tmp_path, "web": {"port": stopped_clock}}
    outcome, found = machine_checks.page(Settings.model_validate(web))
    assert outcome is Outcome.FAIL
    assert "another program" in found
    assert machine_checks.port_in_words("127.0.0.1", stopped_clock).endswith(
        f"some program listens on port {stopped_clock}"
    )
    assert machine_checks.port_in_words("127.0.0.1", 1).endswith("it is free")


@pytest.mark.parametrize(
    ("days", "outcome"), [(40.0, Outcome.OK), (20.0, Outcome.FAIL), (-2.0, Outcome.FAIL)]
)
def test_certificates(tmp_path: Path, days: float, outcome: Outcome) -> None:
    files = Authority(tmp_path).issue("node.example", begins_in_days=-60, days=days)
    assert machine_checks.certificate(str(files.certificate))[0] is outcome
    assert machine_checks.certificate(str(files.key))[1].endswith("cannot be read as a certificate")
