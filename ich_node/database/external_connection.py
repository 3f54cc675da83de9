"""Connections to a database of somebody else: PostgreSQL, MySQL or MariaDB, SQL Server, Oracle or SQLite, by URL.

Nothing waits for it for ever, and its errors get words that say whether settings or time can mend them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from ich_node.errors import ConfigurationError, TransientError

_CONNECT_SECONDS = 10
_STATEMENT_SECONDS = 20
_DRIVERS = {
    "postgresql": "psycopg",
    "mysql": "pymysql",
    "mariadb": "pymysql",
    "mssql": "pymssql",
    "oracle": "oracledb",
}
"""Those that an extra of the package brings; a URL may name another."""
_EXTRAS = {
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
    "mssql": "mssql",
    "oracle": "oracle",
}
_TIMEOUTS: dict[str, dict[str, Any]] = {
    "psycopg": {
        "connect_timeout": _CONNECT_SECONDS,
        "options": f"-c statement_timeout={_STATEMENT_SECONDS}s -c lock_timeout={_STATEMENT_SECONDS}s",
    },
    "pymysql": {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _STATEMENT_SECONDS,
        "write_timeout": _STATEMENT_SECONDS,
        # Its columns of type TIMESTAMP are then in UTC.
        "init_command": "SET time_zone = '+00:00'",
    },
    "pymssql": {"login_timeout": _CONNECT_SECONDS, "timeout": _STATEMENT_SECONDS},
    "oracledb": {"tcp_connect_timeout": _CONNECT_SECONDS},
    "pysqlite": {"timeout": _STATEMENT_SECONDS},
}

_OF_DRIVERS = (AttributeError, LookupError, TypeError, ValueError)
"""What drivers raise of an argument in a URL, with its value as text."""
_NOT_TAKEN = "[worklist.external] url: its driver does not take what stands behind the question mark"


@contextmanager
def connected(url: str, *, commit: bool = True) -> Iterator[Connection]:
    """A connection with a transaction, which ends with the block.

    Parameters
    ----------
    url
        SQLAlchemy URL; one without a driver gets the one that an extra of the package brings.
    commit
        Whether what was done stays, where nothing was raised.

    Raises
    ------
    ConfigurationError
        The URL does not do, or its driver is not installed.
    TransientError
        The database did not answer, or did not let it be done.
    sqlalchemy.exc.DataError, sqlalchemy.exc.IntegrityError
        It does not take the values.
    """
    engine = _engine(url)
    try:
        with _opened(engine) as connection, connection.begin() as transaction:
            yield connection
            if not commit:
                transaction.rollback()
    except (DataError, IntegrityError):
        raise
    except DBAPIError as error:
        where = engine.url.host or engine.url.database
        words = words_of(error).replace(engine.url.password or "\0", "***")
        raise TransientError(f"the external worklist's database ({where}) says: {words}") from None
    finally:
        engine.dispose()


def dialect_of(url: str) -> Dialect:
    """How its SQL is written; no driver is needed.

    Raises
    ------
    ConfigurationError
        The URL does not do.
    """
    try:
        make: Callable[..., Dialect] = _parsed(url).get_dialect()
        return make(paramstyle="named")
    except NoSuchModuleError as error:
        raise ConfigurationError(f"[worklist.external] url: {error}") from None


def password_of(url: str) -> str:
    """What must not be seen of a URL."""
    return str(_parsed(url).password or "")


def words_of(error: DBAPIError) -> str:
    """A database's own words in one line, without the values that PostgreSQL adds as detail."""
    said: Any = error.orig
    while isinstance(said, BaseException | tuple):
        parts = said.args if isinstance(said, BaseException) else said
        said = parts[-1] if parts else ""  # after the number, where there is one
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    return " ".join(text.partition("DETAIL:")[0].split()) or type(error.orig).__name__


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # whose text may hold the password
        raise ConfigurationError(
            "[worklist.external] url is not a URL such as postgresql://user:password@host/database"
        ) from None
    backend = parsed.get_backend_name()
    if "+" not in parsed.drivername and backend in _DRIVERS:
        parsed = parsed.set(drivername=f"{backend}+{_DRIVERS[backend]}")
    return parsed


def _engine(url: str) -> Engine:
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise ConfigurationError(f"[worklist.external] url: the file {parsed.database} is not there")
    try:
        driver = parsed.get_driver_name()
        arguments = {k: v for k, v in _TIMEOUTS.get(driver, {}).items() if k not in parsed.query}
        engine = create_engine(parsed, poolclass=NullPool, hide_parameters=True, connect_args=arguments)
    except ImportError:
        backend = parsed.get_backend_name()
        if parsed.drivername != f"{backend}+{_DRIVERS.get(backend)}":
            raise ConfigurationError(
                f"the driver that {parsed.drivername} names is not installed: install it, or leave it out of the URL"
            ) from None
        raise ConfigurationError(
            f"the driver for {backend} is not installed: pip install 'ich-node[{_EXTRAS[backend]}]'"
        ) from None
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigurationError(f"[worklist.external] url cannot be used: {error}") from None
    except _OF_DRIVERS:
        raise ConfigurationError(_NOT_TAKEN) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    if engine.dialect.driver == "oracledb":
        event.listen(engine, "connect", _bound_calls)
    return engine


def _opened(engine: Engine) -> Connection:
    try:
        return engine.connect()
    except _OF_DRIVERS:
        raise ConfigurationError(_NOT_TAKEN) from None


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


def _bound_calls(connection: Any, _record: Any) -> None:
    connection.call_timeout = _STATEMENT_SECONDS * 1000
