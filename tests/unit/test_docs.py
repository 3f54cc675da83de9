"""The documents say what is there: links resolve, every command, setting and reason is described."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ich_node.cli import root
from ich_node.destination_settings import (
    HL7Settings,
    MailSettings,
    NotifiedSettings,
    PacsSettings,
    WebhookSettings,
)
from ich_node.errors import RejectionReason
from ich_node.findings import Priority, StudyState
from ich_node.settings import PeerSettings
from ich_node.settings_section import Section
from ich_node.settings_sources import load_settings

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def links(text: str) -> list[str]:
    """Targets of the links and pictures of a document, without those in code blocks."""
    return [markdown or html for markdown, html in _LINK.findall(_FENCE.sub("", text))]


def anchors(text: str) -> set[str]:
    """Names that a heading can be linked by."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    broken = []
    for target in links(document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):  # elsewhere; tests go nowhere
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def commands(group: click.Group, prefix: str = "ich-node") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{prefix} {name}", command


def described_options(path: str) -> set[str]:
    """Options that the page names in the usage of a command."""
    text = (REPOSITORY / "docs/command-line.md").read_text(encoding="utf-8")
    return set(re.findall(r"--[a-z-]+", " ".join(re.findall(rf"`{re.escape(path)}(?! [a-z])([^`]*)`", text))))


COMMANDS = dict(commands(root))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_relative_links_resolve(document: Path) -> None:
    assert not broken_links(document)


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One heading\n")
    document = tmp_path / "document.md"
    document.write_text(
        "[a](there.md) [b](there.md#one-heading) [c](there.md#another) ![d](absent.png) [e](#nowhere)\n"
        '<img src="gone.png">\n```\n[f](in-code.md)\n```\n[g](https://example.org/absent)\n'
    )
    assert broken_links(document) == ["there.md#another", "absent.png", "#nowhere", "gone.png"]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        targets = (target.partition("#")[0] for target in links(page.read_text(encoding="utf-8")))
        waiting += [page.parent / target for target in targets if target and ":" not in target]
    assert set(DOCUMENTS) - reached == set()


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_is_described_with_its_options(path: str) -> None:
    text = (REPOSITORY / "docs/command-line.md").read_text(encoding="utf-8")
    assert re.search(rf"`{re.escape(path)}[` ]", text)
    options = {option for parameter in COMMANDS[path].params for option in parameter.opts if "--" in option}
    assert described_options(path) == options


def test_no_command_is_described_that_does_not_exist() -> None:
    text = (REPOSITORY / "docs/command-line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(ich-node(?: [a-z][a-z-]*)+)", text)) - COMMANDS.keys() == set()


def test_every_setting_is_described_with_its_default() -> None:
    text = (REPOSITORY / "docs/settings.md").read_text(encoding="utf-8")
    described = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \|", text, re.MULTILINE))
    rows = {row.key: row.value for row in load_settings(None, {}).rows()}
    assert described.keys() == rows.keys()
    for key, value in rows.items():
        if isinstance(value, bool | int | float) or (isinstance(value, str) and "/" not in value):
            written = str(value).lower() if isinstance(value, bool) else str(value)
            assert described[key] == (f"`{written}`" if written else "empty"), key


@pytest.mark.parametrize(
    ("begin", "section", "without"),
    [
        ("Who may send\n", PeerSettings, None),
        ("Where results go\n", PacsSettings, None),
        ("`[[hl7]]` has\n", HL7Settings, NotifiedSettings),
        ("`[[webhook]]` has\n", WebhookSettings, NotifiedSettings),
        ("`[[mail]]` has\n", MailSettings, NotifiedSettings),
    ],
)
def test_every_key_of_a_table_is_described_with_its_default(
    begin: str, section: type[Section], without: type[Section] | None
) -> None:
    text = (REPOSITORY / "docs/settings.md").read_text(encoding="utf-8")
    table = text[text.index("|---", text.index(begin)) :].partition("\n\n")[0]
    described = {
        key: default.strip("`") for key, default in re.findall(r"^\| (\w+) \| (.+?) \|", table, re.MULTILINE)
    }
    shared = set(without.model_fields) if without else set()
    assert list(described) == [key for key in section.model_fields if key not in shared]
    for key, written in described.items():
        field = section.model_fields[key]
        value = "needed" if field.is_required() else field.default
        if isinstance(value, tuple):
            value = "[" + ", ".join(f'"{each}"' for each in value) + "]"
        assert written == {"": "empty", "False": "false"}.get(str(value), str(value)), key


@pytest.mark.parametrize("term", [*Priority, *StudyState, *RejectionReason])
def test_every_term_of_the_worklist_is_described(term: str) -> None:
    text = (REPOSITORY / "docs/worklist.md").read_text(encoding="utf-8")
    assert f"| `{term}` |" in text
