"""What every command needs: the settings, the database, and a way to print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Protocol

import click
from rich.console import Console

from ich_node.database.engine import Database
from ich_node.errors import ConfigurationError
from ich_node.settings import SQLITE_FILE, Settings
from ich_node.settings_sources import LoadedSettings

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
    """The database, refused where its schema is not the one that this version needs, or no node has made it yet."""
    database = existing_database(settings_of(load))
    database.require_current()
    return database


def existing_database(settings: Settings) -> Database:
    """The database; looking at an installation that is not there makes nothing.

    Raises
    ------
    ConfigurationError
        The settings name no database and there is none in data_dir.
    """
    file = settings.data_dir / SQLITE_FILE
    if not settings.database.url and not file.exists():
        raise ConfigurationError(
            f"{file} is not there: start 'ich-node up', or name the settings of a node by --config"
        )
    return Database(settings.database_url)


def print_json(value: Any) -> None:
    """Print for another program."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
