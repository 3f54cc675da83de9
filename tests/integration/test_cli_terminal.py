"""The command in a real terminal and in real pipes: live, and ended without a traceback."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ich_node.database.engine import Database
from ich_node.settings import Settings
from tests.stored_studies import StoredStudies

COMMAND = [sys.executable, "-P", "-m", "ich_node"]
CTRL_C = b"\x03"


class Terminal:
    """A command in a terminal of 30 lines and 120 columns."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        environ = os.environ | {"ICH_NODE_DATA_DIR": str(data_dir), "TERM": "xterm-256color"}
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # whoever runs the tests in the background ignores it
            os.execvpe(COMMAND[0], [*COMMAND, *arguments], environ | {"COLUMNS": "120", "LINES": "30"})
        self.shown = b""

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text.encode() not in self.shown and time.monotonic() < deadline:
            self._read(0.2)
        assert text.encode() in self.shown, self.shown.decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)

    def exit_code(self) -> int:
        deadline = time.monotonic() + 60.0
        while self._read(30.0):
            assert time.monotonic() < deadline, "it does not end"
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._terminal], [], [], timeout_s)[0]:
            return False
        try:
            some = os.read(self._terminal, 2**16)
        except OSError:  # Linux says so where the other end is closed
            return False
        self.shown += some
        return bool(some)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoredStudies]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("node"))
    database = Database(settings.database_url)
    database.upgrade()
    yield StoredStudies(database=database, results_dir=settings.results_dir)
    database.dispose()


def test_a_watched_worklist_shows_what_comes_and_ends_on_ctrl_c(studies: StoredStudies) -> None:
    studies.receive("1.1", at=datetime.now(UTC), patient_name="First^One")
    terminal = Terminal(studies.settings.data_dir, "worklist", "--watch")
    terminal.wait_for("First One")
    assert b"Second" not in terminal.shown
    studies.receive("1.2", at=datetime.now(UTC), patient_name="Second^\x1b[41mOne")
    terminal.wait_for(r"Second \x1b[41mOne")
    terminal.press(CTRL_C)
    assert terminal.exit_code() == 130
    assert b"Traceback" not in terminal.shown
    assert b"\x1b[41mOne" not in terminal.shown
    assert terminal.shown.rstrip().endswith(b"\x1b[?1049l")  # the screen that was there before is back


@pytest.mark.parametrize("arguments", [("doctor",), ("reprocess", "1.3", "--wait")])
def test_ctrl_c_ends_a_command_that_waits(studies: StoredStudies, arguments: tuple[str, ...]) -> None:
    studies.receive("1.3", at=datetime.now(UTC))
    terminal = Terminal(studies.settings.data_dir, *arguments)
    terminal.wait_for("Looking" if arguments == ("doctor",) else "Reading")
    terminal.press(CTRL_C)
    assert terminal.exit_code() == 130
    assert b"Traceback" not in terminal.shown


def test_a_reader_that_goes_away_is_no_traceback(studies: StoredStudies) -> None:
    environ = os.environ | {"ICH_NODE_DATA_DIR": str(studies.settings.data_dir)}
    command = " ".join([*COMMAND, "config", "show", "--json"])
    done = subprocess.run(
        ["bash", "-c", f"({command}; echo $? >&2) | true"],
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_character_set_that_lacks_a_name_does_not_end_the_command(studies: StoredStudies) -> None:
    studies.receive("1.4", at=datetime.now(UTC), patient_name="山田^太郎")
    environ = os.environ | {
        "ICH_NODE_DATA_DIR": str(studies.settings.data_dir),
        "PYTHONIOENCODING": "latin-1:strict",
        "NO_COLOR": "1",
    }
    done = subprocess.run([*COMMAND, "worklist"], capture_output=True, env=environ, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"\u5c71\u7530" in done.stdout
    assert b"\x1b" not in done.stdout
