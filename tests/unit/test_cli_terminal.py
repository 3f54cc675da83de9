"""What reaches a terminal or a pipe: nothing of a header obeys, nothing is cut; and which studies a worklist shows."""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from ich_node.cli import main, terminal
from ich_node.cli.moments import MOMENT
from ich_node.cli.terminal import cell, plain, print_json
from ich_node.database.engine import Database
from ich_node.database.tables import ReadingRow
from ich_node.settings import Settings
from tests.stored_studies import StoredStudies

EVIL = "\x1b[2J\x1b]0;owned\x07Evil^\x9b31mName\r\n\u202edrowssap"
NOW = datetime.now(UTC)


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredStudies:
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path / "data"))
    settings = Settings(data_dir=tmp_path / "data")
    database = Database(settings.database_url)
    database.upgrade()
    studies = StoredStudies(database=database, results_dir=settings.results_dir)
    studies.receive(
        "1.1", at=NOW - timedelta(hours=9), patient_name=EVIL, accession_number="A\x1b[7m1", description=EVIL
    )
    studies.read("1.1", at=NOW, suspicion=0.9)
    studies.deliver(at=NOW, refusal=EVIL)
    studies.receive("1.2", at=NOW, patient_name="山田^太郎" * 12, accession_number="A2", patient_id="P[2]")
    return studies


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    shown = plain(text)
    left = {unicodedata.category(c) for c in shown if c not in "\u200c\u200d\u200e\u200f"}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert "".join(c for c in text if c.isprintable()) in shown or not text.isprintable()


@given(st.recursive(st.text() | st.none(), lambda inner: st.dictionaries(st.text(), inner)))
def test_json_is_the_same_value_and_harmless(value: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr(click, "echo", printed.append)
        print_json(value)
    assert json.loads(printed[0]) == value
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c != "\n" for c in printed[0])


@pytest.mark.parametrize(
    "command",
    [
        ("worklist",),
        ("study", "show", "1.1"),
        ("deliveries",),
        ("deliveries", "--failed"),
        ("study", "show", EVIL),
        ("reprocess", EVIL),
        ("purge", EVIL),
        ("worklist", "--json"),
        ("study", "show", "1.1", "--json"),
        ("reprocess", "--accession", "\x1b[31m"),
        ("config", "show"),
    ],
)
def test_escape_sequences_of_headers_and_arguments_are_text(
    studies: StoredStudies, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    run(*command)
    printed = "".join(capsys.readouterr())
    assert printed
    assert not set(printed) & {"\x1b", "\x07", "\x9b", "\r", "\u202e"}


def test_a_slab_takes_one_line_of_the_worst_slices(
    studies: StoredStudies, capsys: pytest.CaptureFixture[str]
) -> None:
    with studies.database.writing() as session:
        row = session.scalars(select(ReadingRow)).one()
        first = row.slices[0]
        row.slices = [
            {**first, "probabilities": {"any": 0.9 - index // 12 / 10}, "shown_on": index // 12 * 12 + 5}
            for index in range(36)
        ]
    assert run("study", "show", "1.1") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  slice ")]
    assert [(number, score) for _, number, score, *_ in lines] == [
        ("6:", "90.0%"),
        ("18:", "80.0%"),
        ("30:", "70.0%"),
    ]


def test_a_pipe_gets_whole_words_without_color(
    studies: StoredStudies, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("worklist") == 0
    out = capsys.readouterr().out
    assert ("山田^太郎" * 12).replace("^", " ") in out
    line = next(line for line in out.splitlines() if "A2" in line)
    assert line.rstrip().endswith("1.2")  # the UID, on the same line


@pytest.mark.parametrize("width", [80, 100, 130])
def test_a_terminal_gets_one_line_for_a_study(
    studies: StoredStudies, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    from rich.cells import cell_len
    from rich.console import Console

    from ich_node.cli import studies as shown

    narrow = Console(width=width, force_terminal=True, highlight=False, color_system=None, record=True)
    monkeypatch.setattr(shown, "console", narrow)
    monkeypatch.setattr(terminal, "console", narrow)
    assert run("worklist") == 0
    lines = narrow.export_text().splitlines()
    assert len(lines) == 3
    assert all(cell_len(line) <= width for line in lines)
    assert lines[1].startswith(" STAT")
    assert lines[2].startswith(" MEDIUM")


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ((), ["1.1", "1.2"]),
        (("--priority", "stat"), ["1.1"]),
        (("--priority", "HIGH", "--priority", "MEDIUM"), ["1.2"]),
        (("--state", "READ"), ["1.1"]),
        (("--since", "8h"), ["1.2"]),
        (("--search", "a2"), ["1.2"]),
        (("--search", "%"), []),
        (("--station", "CT_ER", "--limit", "1"), ["1.1"]),
        (("--station", "CT_OR"), []),
        (("--unreviewed",), ["1.1", "1.2"]),
    ],
)
def test_worklist_by_its_conditions(
    studies: StoredStudies,
    capsys: pytest.CaptureFixture[str],
    conditions: tuple[str, ...],
    found: list[str],
) -> None:
    assert run("worklist", "--json", *conditions) == 0
    assert [row["study_instance_uid"] for row in json.loads(capsys.readouterr().out)] == found


@pytest.mark.parametrize(
    "arguments",
    [
        ("worklist", "--watch", "--json"),
        ("worklist", "--watch"),  # no terminal here
        ("worklist", "--since", "yesterday"),
        ("worklist", "--since", "0001-01-01"),
        ("worklist", "--since", "999999w"),
        ("worklist", "--priority", "URGENT"),
        ("worklist", "--limit", "0"),
    ],
)
def test_wrong_usage(
    studies: StoredStudies, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(*arguments) == 2
    assert "Error:" in capsys.readouterr().err


def test_a_study_by_its_accession_number(studies: StoredStudies, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study", "show", "A2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["study_instance_uid"] == "1.2"
    studies.receive("1.3", at=NOW, accession_number="A2")
    assert run("study", "show", "A2") == 1
    assert capsys.readouterr().err == "ich-node: 2 studies have accession number A2: 1.2, 1.3\n"


def test_a_mistyped_uid_is_one_line_with_what_may_be_meant(
    studies: StoredStudies, capsys: pytest.CaptureFixture[str]
) -> None:
    studies.receive("1.2.840.113619.2.55.3", at=NOW)
    assert run("study", "show", "1.2.840.113619.2.56.3") == 1
    said = "ich-node: no study 1.2.840.113619.2.56.3 is here; did you mean 1.2.840.113619.2.55.3?\n"
    assert capsys.readouterr().err == said
    assert run("study", "show", "") == 1
    assert run("study", "show", "%") == 1


def test_an_unmigrated_database_is_one_line_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ich-node.sqlite").touch()
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path))
    for command in (("worklist",), ("reprocess", "--failed"), ("study", "show", "1"), ("deliveries",)):
        assert run(*command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "run 'ich-node db upgrade'" in line


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://a@b/c", "only sqlite and postgresql"),
        ("nonsense", "is not a URL"),
        ("postgresql+psycopg://u:s3cret@127.0.0.1:1/x?connect_timeout=2", "check database.url"),
    ],
)
def test_a_wrong_database_url_is_one_line_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, said: str
) -> None:
    monkeypatch.setenv("ICH_NODE_DATABASE__URL", url)
    assert run("worklist") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "s3cret" not in line


def test_moments() -> None:
    ago = MOMENT.convert("90m", None, None)
    assert abs(ago - (datetime.now(UTC) - timedelta(minutes=90))) < timedelta(seconds=5)
    assert MOMENT.convert("2026-01-31T18:00+01:00", None, None) == datetime(2026, 1, 31, 17, tzinfo=UTC)
    local = MOMENT.convert("2026-01-31T18:00", None, None)
    assert local.astimezone().replace(tzinfo=None) == datetime(2026, 1, 31, 18)


def test_a_cell_is_never_markup() -> None:
    assert cell("[bold]x[/bold]").plain == "[bold]x[/bold]"
    assert cell(None).plain == ""
