"""``ich-node reprocess``: which studies, none twice, and how it waits."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ich_node.cli import main, reprocess, waiting
from ich_node.database.engine import Database
from ich_node.errors import RejectionReason
from ich_node.findings import StudyState
from ich_node.settings import Settings
from tests.stored_studies import StoredStudies

NOW = datetime.now(UTC)
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredStudies:
    """READ 9 h ago, NOT_READ 3 h ago, FAILED 1 h ago, RECEIVING now."""
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path / "data"))
    settings = Settings(data_dir=tmp_path / "data")
    database = Database(settings.database_url)
    database.upgrade()
    studies = StoredStudies(database=database, results_dir=settings.results_dir)
    for uid, hours, accession in (("1.1", 9, "A1"), ("1.2", 3, "A2"), ("1.3", 1, "A3"), ("1.4", 0, "A4")):
        at = NOW - timedelta(hours=hours)
        studies.receive(uid, at=at, accession_number=accession, patient_id="P" + accession)
    studies.read("1.1", at=NOW, suspicion=0.9)
    detail = "no head"
    studies.reject("1.2", at=NOW, reason=RejectionReason.NOT_HEAD, detail=detail)
    studies.reject(
        "1.3", at=NOW, reason=RejectionReason.INTERNAL_ERROR, detail=detail, state=StudyState.FAILED
    )
    return studies


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["reprocess", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def run(studies: StoredStudies, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert code_of(*arguments, "--json") == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


@pytest.mark.parametrize(
    ("arguments", "again"),
    [
        (("1.1",), ["1.1"]),
        (("1.3", "1.1"), ["1.1", "1.3"]),
        (("--accession", "A2"), ["1.2"]),
        (("--accession", "A2", "1.1", "--patient", "PA3"), ["1.1", "1.2", "1.3"]),
        (("--failed",), ["1.3"]),
        (("--not-read",), ["1.2"]),
        (("--failed", "--not-read"), ["1.2", "1.3"]),
        (("1.1", "--failed"), []),
        (("--since", "4h"), ["1.2", "1.3"]),
        (("--until", "2h"), ["1.1", "1.2"]),
        (("--since", "4h", "--until", "2h"), ["1.2"]),
        (("--read-by", "vicar-attention-v1"), ["1.1"]),
        (("--read-by", "another"), []),
    ],
)
def test_which_studies(run: Run, arguments: tuple[str, ...], again: list[str]) -> None:
    assert run(*arguments, "--dry-run")["would_read"] == again
    assert run(*arguments)["queued"] == again


def test_a_dry_run_changes_nothing(run: Run, studies: StoredStudies) -> None:
    assert run("1.1", "--dry-run")["would_read"] == ["1.1"]
    assert not studies.queue(at=NOW - timedelta(days=1))


def test_what_is_under_way_is_not_read_twice(run: Run, studies: StoredStudies) -> None:
    assert run("1.4") == {
        "dry_run": False,
        "queued": [],
        "under_way": [{"study_instance_uid": "1.4", "state": "RECEIVING"}],
        "purged": [],
        "ended": {},
    }
    assert run("1.1")["queued"] == ["1.1"]
    assert run("1.1")["under_way"] == [{"study_instance_uid": "1.1", "state": "QUEUED"}]
    studies.claim("1.1", at=datetime.now(UTC))
    assert run("1.1")["under_way"] == [{"study_instance_uid": "1.1", "state": "READING"}]
    assert run("1.1", "--model", "vicar-attention-v1")["queued"] == ["1.1"]


def test_what_comes_under_way_between_look_and_request_is_left_alone(
    run: Run, studies: StoredStudies, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = reprocess._queue_some

    def after_another(database: Database, uids: list[str], **choice: Any) -> list[str]:
        asked(database, uids, **choice)
        return asked(database, uids, **choice)

    monkeypatch.setattr(reprocess, "_queue_some", after_another)
    assert code_of("1.1") == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "queued already: 1.1\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say which studies"),
        (("1.1", "1.2", "--series", "1.1.1"), "exactly one study UID"),
        (("1.1", "--series", "1.1.1", "--failed"), "exactly one study UID"),
        (("--accession", "A1", "--series", "1.1.1"), "exactly one study UID"),
        (("1.1", "--dry-run", "--wait"), "--dry-run"),
        (("--since", "1h", "--until", "2h"), "no study can fit"),
    ],
)
def test_conflicting_options(
    studies: StoredStudies, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert code_of(*arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("1.9", "1.1"), "not here: 1.9"),
        (("1.9", "--failed"), "not here: 1.9"),
        (("--accession", "A9"), "not here: accession number A9"),
        (("--patient", "P9"), "not here: patient ID P9"),
        (("1.1", "--series", "1.9.1"), "study 1.1 has no series 1.9.1"),
    ],
)
def test_what_is_not_here_is_named_and_nothing_is_queued(
    studies: StoredStudies, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert code_of(*arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"ich-node: {said}")
    assert "queued" not in printed.out


def test_many_need_a_yes(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reprocess, "_ASK_FROM", 1)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert code_of("--failed", "--not-read") == 2
    assert "add --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    assert code_of("--failed", "--not-read") == 1
    assert capsys.readouterr().err == "ich-node: nothing was queued\n"
    assert run("--failed", "--not-read", "--yes")["queued"] == ["1.2", "1.3"]


def test_waiting_ends_with_the_reading(
    studies: StoredStudies, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.02)
    looked = threading.Event()
    look = waiting._look

    def and_tell(*arguments: Any) -> Any:
        looked.set()
        return look(*arguments)

    monkeypatch.setattr(waiting, "_look", and_tell)

    def work() -> None:
        assert looked.wait(30)
        now = datetime.now(UTC)
        studies.read("1.1", at=now, suspicion=0.1)
        detail = "out of order"
        studies.reject(
            "1.2", at=now, reason=RejectionReason.INTERNAL_ERROR, detail=detail, state=StudyState.FAILED
        )

    worker = threading.Thread(target=work)
    worker.start()
    ended = run("1.1", "1.2", "--wait", code=1)["ended"]
    worker.join()
    assert ended == {"1.1": "READ", "1.2": "FAILED"}


def test_ctrl_c_ends_the_waiting_and_not_the_reading(
    studies: StoredStudies, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting.time, "sleep", press)
    assert code_of("1.1", "--wait") == 130
    printed = capsys.readouterr()
    assert printed.out == "queued 1.1\n"
    assert "No longer waiting for 1 studies; they are read all the same" in printed.err
    assert studies.queue(at=datetime.now(UTC))
