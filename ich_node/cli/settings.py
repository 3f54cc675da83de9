"""What every command needs: the settings and the database."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ich_node.cli.terminal import console as console
from ich_node.cli.terminal import print_json as print_json
from ich_node.database.engine import Database, Session
from ich_node.errors import ConfigurationError, TransientError
from ich_node.settings import SQLITE_FILE, Settings
from ich_node.settings_sources import LoadedSettings


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
    """The database, looked at once: a command must not fail half-way for a wrong address.

    Raises
    ------
    ConfigurationError
        It does not answer, its schema is not the one that this version needs, or no node has made it yet.
    """
    database = existing_database(settings_of(load))
    try:
        database.require_current()
    except TransientError as error:
        raise ConfigurationError(f"{error}: check database.url, and that its server runs") from None
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


@contextmanager
def looking_into(settings: Settings) -> Iterator[Session]:
    """One look into the database, over a connection that is closed after it."""
    database = existing_database(settings)
    try:
        with database.reading() as session:
            yield session
    finally:
        database.dispose()


def actor() -> str:
    """Who runs the command, for the audit."""
    return f"cli:{user_name()}"


def user_name() -> str:
    """Who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())
