"""What a shell completes: quickly, from this installation, and never with what could run."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from ich_node.cli import completion, main, root
from ich_node.database.engine import Database
from ich_node.settings import Settings
from tests.stored_studies import StoredStudies


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ICH_NODE_PACS", json.dumps([{"name": "main", "url": "http://127.0.0.1:1/"}]))
    return tmp_path / "data"


@pytest.fixture
def studies(data_dir: Path) -> None:
    settings = Settings(data_dir=data_dir)
    database = Database(settings.database_url)
    database.upgrade()
    studies = StoredStudies(database=database, results_dir=settings.results_dir)
    for uid, accession, patient in (
        ("1.2.3", "A-1", "P1"),
        ("1.2.4", "A$(touch x)", "P 2"),
        ("1.9.1", "A;id", "P`id`"),
    ):
        studies.receive(uid, at=datetime.now(UTC), accession_number=accession, patient_id=patient)


def completed(*words: str) -> list[str]:
    complete = BashComplete(root, {}, "ich-node", "_ICH_NODE_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("wor",), ["worker", "worklist"]),
        (("study", "sh"), ["show"]),
        (("study", "show", "1.2."), ["1.2.3", "1.2.4"]),
        (("reprocess", "1.2.3", "1.9"), ["1.9.1"]),
        (("reprocess", "--accession", "A"), ["A-1"]),
        (("reprocess", "--patient", ""), ["P1"]),
        (("reprocess", "--model", "vic"), ["vicar-attention-v1"]),
        (("models", "show", ""), ["mil-pair-v1", "vicar-attention-v1"]),
        (("doctor", "--pacs", "m"), ["main"]),
        (("purge", "2."), []),
    ],
)
def test_words(studies: None, words: tuple[str, ...], found: list[str]) -> None:
    assert sorted(completed(*words)) == found


def test_what_fails_completes_nothing_and_says_nothing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completed("study", "show", "") == []
    assert not data_dir.exists()
    monkeypatch.setenv("ICH_NODE_RECEIVER__PORT", "many")
    assert completed("study", "show", "") == []
    assert completed("doctor", "--pacs", "") == []
    assert "".join(capsys.readouterr()) == ""


def test_what_hangs_is_given_up(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(completion, "_WAIT_SECONDS", 0.1)

    def hang(_settings: Settings, _incomplete: str) -> list[str]:
        release.wait(30)
        return ["late"]

    begun = time.monotonic()
    with root.make_context("ich-node", ["study"], resilient_parsing=True) as context:
        assert completion.completer(hang)(context, root.params[0], "") == []
    release.set()
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_for_the_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell])
    assert ended.value.code == 0
    assert f"_ICH_NODE_COMPLETE={shell}_complete" in capsys.readouterr().out
