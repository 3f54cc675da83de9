"""Connections, transactions and schema revisions, for SQLite (WAL) and PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from ich_node.database.workitem_events import report_changes
from ich_node.errors import ConfigurationError, IchNodeError, TransientError

__all__ = ["Database", "Session"]

_BUSY_TIMEOUT_MS = 30_000
_PAGE_CACHE_KIB = 16 * 1024
"""Of each connection; what a screen of the worklist touches fits, which the usual 2 MiB do not hold."""
_LOCK_WAIT_MS = 300
"""Less than PostgreSQL's deadlock_timeout of 1 s: whoever else is in it need not lose."""
_UPGRADE_LOCK = 0x1C4
"""Key of the PostgreSQL advisory lock that lets one process at a time change the schema."""
_PASSING_SQLITE_FAULTS = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_PROTOCOL,
)
_LASTING_SQLITE_FAULTS = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOTADB,
)
_MISSING_SCHEMA_SQLSTATES = ("42P01", "42703")
"""undefined_table and undefined_column (PostgreSQL, Appendix A)."""
_INSUFFICIENT_PRIVILEGE = "42501"


class Database:
    """One database; hands out sessions that are transactions.

    Parameters
    ----------
    url
        SQLAlchemy URL: ``sqlite:///file`` or ``postgresql+psycopg://user:password@host/name``.

    Raises
    ------
    ConfigurationError
        The URL is malformed, or names another kind of database or one in memory; its driver is not installed;
        the SQLite file cannot be made.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parsed = _parse(url)
        try:
            if parsed.get_backend_name() == "sqlite":
                _prepare_file(parsed)
            # An error's text must not carry the row's values into a log.
            self.engine: Engine = create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise ConfigurationError(
                f"database.url cannot be used: {error}; for PostgreSQL: pip install 'ich-node[postgresql]'"
            ) from None
        if self.engine.dialect.is_async:
            raise ConfigurationError(f"database.url names the asynchronous driver {parsed.drivername}")
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._writer = self.engine.execution_options(ich_node_write=True)
        self._durable_writer = self.engine.execution_options(ich_node_write=True, ich_node_durable=True)
        self._upgrader = self.engine.execution_options(
            ich_node_write=True, ich_node_durable=True, ich_node_upgrade=True
        )
        self._reader = self.engine
        if self.engine.dialect.name == "postgresql":
            # One snapshot for all queries of a reading session, as SQLite gives it.
            self._reader = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        _forget_connections_in_children(self.engine)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for queries only: one snapshot, and no statement in it can change anything.

        Raises
        ------
        TransientError
            The database did not answer.
        ConfigurationError
            Its file, its schema or this user's rights do not fit.
        """
        with _errors_named(), Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[Session]:
        """A session that commits at the end; on SQLite it takes the write lock at once and cannot deadlock.

        Parameters
        ----------
        durable
            What is committed survives a power cut. Without it SQLite may lose the last commits, which the spool
            and the leases heal; what cannot be healed, such as a decision to remove files, needs it.

        Raises
        ------
        TransientError
            The database did not answer, or another transaction was in the way; nothing was written.
        ConfigurationError
            Its file, its schema or this user's rights do not fit.
        """
        writer = self._durable_writer if durable else self._writer
        with _errors_named(), Session(writer, expire_on_commit=False) as session, session.begin():
            yield session
            report_changes(session)

    def upgrade(self) -> None:
        """Bring the schema to the newest revision; safe when several processes do it at once.

        Raises
        ------
        ConfigurationError
            The schema is newer than this version of the package, or the database holds something else.
        """
        with _errors_named(), self._upgrader.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
            try:
                _upgrade(connection)
            except CommandError as error:
                raise ConfigurationError(
                    f"the database cannot be upgraded by this version of ich-node: {error}"
                ) from None
            except DBAPIError as error:
                if _is_passing(error):
                    raise
                raise ConfigurationError(
                    f"the database cannot be upgraded, it holds something else: {_message(error)}"
                ) from error

    def revision(self) -> tuple[str | None, str]:
        """The database's schema revision and the one that this version of the package needs."""
        with _errors_named(), self._reader.connect() as connection:
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
        if current == head:
            return
        known = {script.revision for script in ScriptDirectory.from_config(_alembic(None)).walk_revisions()}
        mend = "run 'ich-node db upgrade'"
        if current is not None and current not in known:
            mend = "a newer ich-node made it, install that"
        raise ConfigurationError(
            f"the database is at revision {current or 'none'}, this version needs {head}: {mend}"
        )

    def dispose(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "database.url is not a URL such as sqlite:///file or postgresql+psycopg://user:password@host/name"
        ) from None
    if backend not in ("sqlite", "postgresql"):
        raise ConfigurationError(f"database.url names {backend}; only sqlite and postgresql can be used")
    in_memory = not parsed.database or ":memory:" in parsed.database or parsed.query.get("mode") == "memory"
    if backend == "sqlite" and in_memory:
        raise ConfigurationError("database.url names a database in memory, which no other process would see")
    return parsed


def _prepare_file(url: URL) -> None:
    if str(url.database).startswith("file:"):
        return  # SQLite's own URI; whoever writes one makes the folder
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)  # it names patients; SQLite gives -wal and -shm the same mode
    except OSError as error:
        raise ConfigurationError(f"the database file {path} cannot be made: {error.strerror}") from None


@contextmanager
def _errors_named() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise TransientError("the database did not answer: too many connections are in use") from error
    except DBAPIError as error:
        named = _named(error)
        if named is None:
            raise
        raise named from error


def _named(error: DBAPIError) -> IchNodeError | None:
    if _is_passing(error):
        return TransientError(f"the database did not answer: {_message(error)}")
    sqlstate = getattr(error.orig, "sqlstate", None)
    primary = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    missing = primary == sqlite3.SQLITE_ERROR and str(error.orig).startswith("no such")
    if missing or sqlstate in _MISSING_SCHEMA_SQLSTATES:
        return ConfigurationError(
            f"the database has not the schema of this version ({_message(error)}): run 'ich-node db upgrade'"
        )
    if primary in _LASTING_SQLITE_FAULTS or sqlstate == _INSUFFICIENT_PRIVILEGE:
        return ConfigurationError(f"the database cannot be used: {_message(error)}")
    return None


def _is_passing(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _PASSING_SQLITE_FAULTS
    return isinstance(error, OperationalError) or error.connection_invalidated


def _message(error: DBAPIError) -> str:
    return str(error.orig).splitlines()[0] if str(error.orig) else type(error.orig).__name__


def _alembic(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _switch_to_wal(connection: Any) -> None:
    """Switch, and again while another process does the same: SQLite does not wait for that by itself."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")  # first: the next line may have to wait
    connection.execute(f"PRAGMA cache_size=-{_PAGE_CACHE_KIB}")
    _switch_to_wal(connection)


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    write = options.get("ich_node_write", False)
    connection.exec_driver_sql(f"PRAGMA query_only={'OFF' if write else 'ON'}")
    # NORMAL: a power cut may cost the last commits but not the file; the spool and the leases heal those
    durable = options.get("ich_node_durable", False)
    connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    # SQLite changes a column by making the table anew, which rows that refer to it would not let happen
    upgrade = options.get("ich_node_upgrade", False)
    connection.exec_driver_sql(f"PRAGMA foreign_keys={'OFF' if upgrade else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _upgrade(connection: Connection) -> None:
    before = MigrationContext.configure(connection).get_current_revision()
    config = _alembic(connection)
    if before is not None and before != ScriptDirectory.from_config(config).get_current_head():
        _keep_others_out(connection)
    command.upgrade(config, "head")
    if MigrationContext.configure(connection).get_current_revision() != before:
        _check_references(connection)


def _keep_others_out(connection: Connection) -> None:
    """Take all locks before anything is changed: waiting for one with others in hand, a node that runs deadlocks."""
    if connection.dialect.name != "postgresql":
        return
    names = ", ".join(
        map(connection.dialect.identifier_preparer.quote, inspect(connection).get_table_names())
    )
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}")
    deadline = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
            break
        except OperationalError:
            if time.monotonic() > deadline:
                raise
    connection.exec_driver_sql("SET LOCAL lock_timeout = DEFAULT")


def _check_references(connection: Connection) -> None:
    """What SQLite did not look at while tables were made anew; an error undoes the upgrade."""
    if connection.dialect.name != "sqlite":
        return
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if broken is not None:
        raise ConfigurationError(
            f"the database cannot be upgraded: rows of {broken[0]} refer to what is not there"
        )


def _forget_connections_in_children(engine: Engine) -> None:
    """Two processes must never talk over one connection: a forked child opens its own."""
    alive = weakref.ref(engine)

    def forget() -> None:
        inherited = alive()
        if inherited is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=forget)
