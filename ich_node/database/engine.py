"""Connections, transactions and schema revisions, for SQLite (WAL) and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from ich_node.errors import ConfigurationError, TransientError


class Database:
    """One database; hands out sessions that are transactions.

    Parameters
    ----------
    url
        SQLAlchemy URL.

    Raises
    ------
    ConfigurationError
        The URL is malformed or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine: Engine = create_engine(url, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise ConfigurationError(f"database.url cannot be used: {error}") from None
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for queries only."""
        with _transient(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that commits at the end; on SQLite it takes the write lock at once, so it cannot deadlock."""
        engine = self.engine.execution_options(ich_node_write=True)
        with _transient(), Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def upgrade(self) -> None:
        """Bring the schema to the newest revision."""
        with _transient(), self.engine.begin() as connection:
            command.upgrade(_alembic(connection), "head")

    def revision(self) -> tuple[str | None, str]:
        """The database's schema revision and the one that this version of the package needs."""
        with _transient(), self.engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        head = ScriptDirectory.from_config(_alembic(None)).get_current_head()
        return current, str(head)

    def require_current(self) -> None:
        """Refuse to work on another schema revision.

        Raises
        ------
        ConfigurationError
            The schema is older or newer than this version of the package.
        """
        current, head = self.revision()
        if current != head:
            raise ConfigurationError(
                f"the database is at revision {current or 'none'}, this version needs {head}: run 'ich-node db upgrade'"
            )

    def dispose(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


@contextmanager
def _transient() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise TransientError(f"the database did not answer: {error.orig}") from error


def _alembic(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    connection.execute("PRAGMA journal_mode=WAL")
    # a power cut may cost the last commits but not the file; the spool and the leases heal those
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA busy_timeout=30000")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("ich_node_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
