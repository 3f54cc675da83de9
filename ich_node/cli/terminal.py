"""What is printed, and how: tables for people, JSON for programs, and never a control character from a header."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from typing import Any

import click
from rich.console import Console
from rich.text import Text

_PIPE_WIDTH = 10_000
"""Columns where no terminal has an edge: nothing is wrapped or cut for a program that reads it."""
_WIDE = 190
"""Columns from which on a table also has UIDs that nobody reads but some copy."""
_HARMLESS = frozenset("\u200c\u200d\u200e\u200f")
"""Format characters that names are written with: joiners and marks of direction, which end with the word."""
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
progress = Console(highlight=False, stderr=True)
"""For bars and what is said meanwhile: what is printed stays clean for whoever reads it by a pipe."""


def plain(text: object, *, keep: str = "") -> str:
    r"""Text that a terminal shows and does not obey: escape sequences are written out, as ``\x1b[2J``.

    Parameters
    ----------
    keep
        Control characters that stay, such as a line's end.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c in keep or not _is_control(c) else _written_out(c) for c in shown)


def cell(text: object, style: str = "") -> Text:
    """Text of a header or a peer for a table; nothing in it is markup or reaches the terminal as a command."""
    return Text("" if text is None else plain(text), style=style)


def say(text: str, *, err: bool = False) -> None:
    """Print a line or more for people."""
    click.echo(plain(text, keep="\n"), err=err)


def print_json(value: Any) -> None:
    """Print for another program."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    click.echo(_UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def is_wide() -> bool:
    """Whether there is room for columns that few need."""
    return console.width >= _WIDE


def print_what_can_be_printed() -> None:
    """Where the terminal's character set lacks a character, write its number: a name must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_control(character: str) -> bool:
    category = unicodedata.category(character)
    return category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and character not in _HARMLESS)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
