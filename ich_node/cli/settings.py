"""What every command needs: the settings, the database, and a way to print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Protocol

import click
from rich.console import Console

from ich_node.database.engine import Database
from ich_node.settings import LoadedSettings, Settings

_PIPE_WIDTH = 140
console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


class Loader(Protocol):
    """Gives the settings that the command line names."""

    config_file: Path | None

    def __call__(self) -> LoadedSettings:
        """Load them once."""
        ...


def settings_of(load: Loader) -> Settings:
    """The settings alone."""
    return load().settings


def open_database(load: Loader) -> Database:
    """The database, refused where its schema is not the one that this version needs."""
    database = Database(settings_of(load).database_url)
    database.require_current()
    return database


def print_json(value: Any) -> None:
    """Print for another program."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
