"""Somebody else's worklist table: how a study stands is written into one row of it, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Date,
    Executable,
    MetaData,
    String,
    Table,
    and_,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError, NoSuchTableError, StatementError

from ich_node.database.external_connection import connected, dialect_of, password_of, words_of
from ich_node.errors import ConfigurationError, IchNodeError
from ich_node.findings import Priority
from ich_node.notify.notice import Notice
from ich_node.notify.outcome import NoticeOutcome, NoticeResult, outcome

_CHANGED_AT = "changed_at"
_FREE_TEXT = ("patient_name", "reason_detail", "subtypes")
"""What may be cut to the length of a column and still says something true."""
_Value = str | int | float | bool


class _NotWritten(IchNodeError):
    """Nothing was changed; ``result`` says whether to try again."""

    def __init__(self, words: str, result: NoticeResult) -> None:
        super().__init__(words)
        self.result = result


@dataclass(frozen=True, kw_only=True)
class ExternalTable:
    """Which table, and which of its columns hold what."""

    url: str = field(repr=False)
    """SQLAlchemy URL."""
    schema: str | None
    table: str
    key: tuple[str, ...]
    """Names of ours that together find a row."""
    columns: Mapping[str, str]
    """Their column for a name of ours."""
    values: Mapping[str, _Value] = field(default_factory=dict)
    """Their value for a priority or a state."""
    constants: Mapping[str, _Value] = field(default_factory=dict)
    """Fixed values by column of theirs."""
    makes_rows: bool = False
    """Whether a row that is not there is made."""
    zone: tzinfo = UTC
    """Of their columns with times that have no zone."""

    @property
    def shown_name(self) -> str:
        """The table for people."""
        return f"{self.schema}.{self.table}" if self.schema else self.table


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement as it would run."""

    purpose: str
    sql: str
    parameters: Mapping[str, Any]


def write_notice(
    notice: Notice, external: ExternalTable, *, may_commit: Callable[[], bool] = lambda: True
) -> NoticeOutcome:
    """Write how a study stands into its row, in one transaction.

    A row that says how the study stood later is left as it is, where ``changed_at`` has a column.

    Parameters
    ----------
    notice
        With the patient's identity.
    may_commit
        Asked at the end; where it says no, nothing is changed.

    Returns
    -------
    NoticeOutcome
        ``TRANSIENT`` where the row is not there yet; ``REFUSED`` where the study has not what finds its row, where
        more than one row is found, and where the database does not take the values.

    Raises
    ------
    ConfigurationError
        The URL, the table or a column does not fit: a person can mend that.
    TransientError
        The database does not answer, or forbids something.
    """
    try:
        with connected(external.url) as connection:
            said = _write(connection, _Plan(external, _reflected(connection, external)), notice)
            if not may_commit():
                raise _NotWritten("another process has taken this notice over", NoticeResult.TRANSIENT)
        result = NoticeResult.SENT
    except _NotWritten as error:
        result, said = error.result, str(error)
    except StatementError as error:  # the database, or its driver, does not take a value
        words = words_of(error) if isinstance(error, DBAPIError) else str(error.orig)
        result, said = NoticeResult.REFUSED, f"{external.shown_name} does not take this: {words}"
    return outcome(result, said, secrets=(external.url, password_of(external.url)))


def planned_statements(notice: Notice, external: ExternalTable) -> list[Statement]:
    """The statements that `write_notice` runs, as their database wants them; it is not asked.

    Raises
    ------
    ConfigurationError
        The URL does not do.
    """
    dialect = dialect_of(external.url)
    planned = []
    for purpose, statement in _Plan(external, _unseen(external)).statements(notice):
        compiled = statement.compile(dialect=dialect)
        planned.append(Statement(purpose=purpose, sql=str(compiled), parameters=dict(compiled.params)))
    return planned


def check_external(external: ExternalTable) -> str:
    """Try connection, table, columns and rights, without a change; what was found, in one line.

    The statements run with a condition that no row meets, and are rolled back.

    Raises
    ------
    ConfigurationError
        The URL, the table or a column does not fit; says what to do.
    TransientError
        The database does not answer, or forbids something.
    """
    with connected(external.url, commit=False) as connection:
        plan = _Plan(external, _reflected(connection, external))
        lacking = plan.columns_without_value() if external.makes_rows else []
        if lacking:
            raise ConfigurationError(
                f"{external.shown_name}: a row that is made needs a value for {', '.join(lacking)}: name it in "
                "[worklist.external.constants], or give the column a default"
            )
        for statement in plan.idle_statements():
            connection.execute(statement)
    allowed = "update and insert" if external.makes_rows else "update"
    return f"{external.shown_name}: its {len(external.columns)} columns are there, {allowed} is allowed"


class _Plan:
    """The statements for one table."""

    def __init__(self, external: ExternalTable, table: Table) -> None:
        self.external = external
        self._table = table
        self._column = {name: table.c[theirs] for name, theirs in external.columns.items()}
        self._key = [self._column[name] for name in external.key]

    def count(self, notice: Notice) -> Executable:
        """How many rows are the study's."""
        return select(func.count()).select_from(self._table).where(self._is_row(notice))

    def update(self, notice: Notice) -> Executable:
        """Its row, unless that is newer."""
        keys = {column.name for column in self._key}
        changes = {name: value for name, value in self._row(notice).items() if name not in keys}
        return update(self._table).where(self._is_row(notice), *self._not_newer(notice)).values(changes)

    def insert(self, notice: Notice) -> Executable:
        """A row where there is none."""
        return insert(self._table).values(self._row(notice))

    def statements(self, notice: Notice) -> Iterator[tuple[str, Any]]:
        """All of them, with what each is for."""
        yield "count the study's rows: more than one is refused", self.count(notice)
        yield "its row, unless that is newer" if self._not_newer(notice) else "its row", self.update(notice)
        if self.external.makes_rows:
            yield "where there is none", self.insert(notice)

    def idle_statements(self) -> Iterator[Executable]:
        """Statements that need the same rights and meet no row."""
        written = [column for name, column in self._column.items() if name not in self.external.key]
        written += [self._table.c[name] for name in self.external.constants]
        yield select(*self._key).where(false())
        yield update(self._table).where(false()).values(dict.fromkeys(written))
        if self.external.makes_rows:
            every = [*self._key, *written]
            nothing = select(*(literal(None, column.type) for column in every)).where(false())
            yield insert(self._table).from_select(every, nothing, include_defaults=False)

    def columns_without_value(self) -> list[str]:
        """Columns that a row must have and that neither this node nor the database fills."""
        given = {column.name for column in self._column.values()} | set(self.external.constants)
        return [
            column.name
            for column in self._table.columns
            if column.name not in given
            and not (column.nullable or column.server_default or column.identity or column.computed)
            and column.autoincrement is not True
        ]

    def _is_row(self, notice: Notice) -> ColumnElement[bool]:
        facts = _facts(notice)
        for name in self.external.key:
            if not facts[name]:  # an empty one would find the rows of others that have none
                raise _NotWritten(f"the study has no {name}, which finds its row", NoticeResult.REFUSED)
        return and_(*(self._column[name] == facts[name] for name in self.external.key))

    def _not_newer(self, notice: Notice) -> list[ColumnElement[bool]]:
        column = self._column.get(_CHANGED_AT)
        if column is None:
            return []
        latest = notice.happened_at + _turned_back(notice.happened_at, self.external.zone)
        return [or_(column.is_(None), column <= self._fitted(_CHANGED_AT, column, latest))]

    def _row(self, notice: Notice) -> dict[str, Any]:
        facts = _facts(notice)
        row = {column.name: self._fitted(name, column, facts[name]) for name, column in self._column.items()}
        return row | dict(self.external.constants)

    def _fitted(self, name: str, column: Column[Any], value: Any) -> Any:
        """A value as the column takes it."""
        if isinstance(value, datetime):
            return _time(column, value, self.external.zone)
        if name in ("priority", "state"):
            return self.external.values.get(value, value)
        length = getattr(column.type, "length", None)
        return value[:length] if name in _FREE_TEXT and value and length else value


def _write(connection: Connection, plan: _Plan, notice: Notice) -> str:
    """What there is to say of it."""
    found = connection.execute(plan.count(notice)).scalar_one()
    key = " and ".join(plan.external.key)
    if found == 0 and not plan.external.makes_rows:
        raise _NotWritten(
            f"{plan.external.shown_name} has no row with this {key} yet", NoticeResult.TRANSIENT
        )
    if found == 0:
        connection.execute(plan.insert(notice))
        return ""
    changed = connection.execute(plan.update(notice)).rowcount if found == 1 else found
    if changed > 1:
        words = f"{changed} rows of {plan.external.shown_name} have this {key}: none was changed"
        raise _NotWritten(words, NoticeResult.REFUSED)
    return "" if changed else "the row says how the study stood later, and was left as it is"


def _reflected(connection: Connection, external: ExternalTable) -> Table:
    """The table as it is, with a column under each name that the settings have for it."""
    try:
        table = Table(
            external.table,
            MetaData(),
            schema=external.schema,
            autoload_with=connection,
            resolve_fks=False,
        )
    except NoSuchTableError:
        raise ConfigurationError(
            f"there is no table {external.shown_name} for this user: mend table and table_schema of "
            "[worklist.external], or grant the user rights on it"
        ) from None
    for name in (*external.columns.values(), *external.constants):
        if name not in table.c:
            raise ConfigurationError(
                f"{external.shown_name} has no column {name}: mend [worklist.external]; it has "
                f"{', '.join(column.name for column in table.columns)}"
            )
    return table


def _unseen(external: ExternalTable) -> Table:
    """The table as the settings have it, whatever the types of its columns are."""
    columns: list[Column[Any]] = [Column(name) for name in (*external.columns.values(), *external.constants)]
    return Table(external.table, MetaData(), *columns, schema=external.schema)


def _facts(notice: Notice) -> dict[str, Any]:
    identity = notice.identity
    is_flagged = notice.priority in (Priority.STAT, Priority.HIGH)
    return {
        "study_instance_uid": notice.study_instance_uid,
        "accession_number": identity.accession_number if identity else "",
        "patient_id": identity.patient_id if identity else "",
        "patient_name": identity.patient_name if identity else "",
        "priority": str(notice.priority),
        "state": str(notice.state),
        "reason": notice.reason or None,
        "reason_detail": notice.reason_detail or None,
        "suspicion": notice.suspicion,
        "subtypes": ", ".join(notice.subtypes) or None,
        "model_name": notice.model_name or None,
        "model_version": notice.model_version or None,
        "flagged_at": notice.happened_at if is_flagged else None,
        "received_at": notice.received_at,
        "read_at": notice.read_at,
        _CHANGED_AT: notice.happened_at,
    }


def _turned_back(value: datetime, zone: tzinfo) -> timedelta:
    """By how much clocks were turned back where it is the hour that comes twice: a row of its first time is older."""
    local = value.astimezone(zone)
    shift = (local.replace(fold=0).utcoffset() or timedelta()) - (local.utcoffset() or timedelta())
    return shift if local.fold else timedelta()


def _time(column: Column[Any], value: datetime, zone: tzinfo) -> Any:
    """A time as the column takes it.

    In whole seconds: a column that rounds up would make a row newer than the next thing that is known of the study.
    """
    local, kind = value.replace(microsecond=0).astimezone(zone), column.type
    if isinstance(kind, String):
        return local.isoformat()
    if isinstance(kind, Date):
        return local.date()
    if getattr(kind, "timezone", False):
        return local
    if isinstance(kind, mysql.TIMESTAMP) or kind.__visit_name__.upper() == "DATETIMEOFFSET":
        return value.replace(microsecond=0).astimezone(UTC).replace(tzinfo=None)
    return local.replace(tzinfo=None)
