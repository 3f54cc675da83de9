"""Settings of the worklist, and of somebody else's that the flags are written into too."""

from __future__ import annotations

from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import field_validator, model_validator

from ich_node.destination_settings import PriorityName
from ich_node.settings_section import Section, setting

Fact = Literal[
    "study_instance_uid",
    "accession_number",
    "patient_id",
    "patient_name",
    "priority",
    "state",
    "reason",
    "reason_detail",
    "suspicion",
    "subtypes",
    "model_name",
    "model_version",
    "flagged_at",
    "received_at",
    "read_at",
    "changed_at",
]
"""What there is to write, by the names of ``worklist_v1``; ``changed_at`` is the time since when all of it is so."""
_Key = Literal["study_instance_uid", "accession_number", "patient_id"]
_BACKENDS = ("postgresql", "mysql", "mariadb", "mssql", "oracle", "sqlite")
_PRIORITIES = ("STAT", "HIGH", "MEDIUM", "ROUTINE")
_TERMS = (*_PRIORITIES, "READ", "NOT_READ", "FAILED")


class ExternalWorklistSettings(Section):
    """A table of another system, such as a RIS, that priorities are written into; off without url and url_file."""

    name: str = setting("external worklist", "a name for people; unique among the destinations", min_length=1)
    url: str = setting(
        "", "SQLAlchemy URL of its database: postgresql, mysql, mariadb, mssql, oracle or sqlite://..."
    )
    url_file: str = setting(
        "", "file with that URL, which keeps its password out of the settings; it goes before url"
    )
    table: str = setting("", "table that has a row for each study")
    table_schema: str = setting("", "schema that the table is in; empty: that of the database's user")
    key: tuple[_Key, ...] = setting(
        ("accession_number",),
        "what finds the row of a study; each needs its column under columns",
        min_length=1,
    )
    columns: dict[Fact, str] = setting({}, "their column for each of our names; what has none is not written")
    values: dict[str, str | int | float | bool] = setting(
        {},
        "their value for STAT, HIGH, MEDIUM, ROUTINE, READ, NOT_READ and FAILED; without it the word itself",
    )
    constants: dict[str, str | int | float | bool] = setting(
        {}, "columns of theirs that are set to a fixed value in each row that is written"
    )
    mode: Literal["update", "upsert"] = setting(
        "update", "update: their row is waited for; upsert: it is made where there is none"
    )
    priorities: tuple[PriorityName, ...] = setting(
        _PRIORITIES,
        "of the studies that are written; where one is left out, a row keeps what it had before",
        min_length=1,
    )
    time_zone: str = setting("UTC", "of columns that hold times without a zone, such as Europe/Berlin")

    @property
    def is_on(self) -> bool:
        """Whether there is such a table."""
        return bool(self.url or self.url_file)

    @property
    def disclose(self) -> str:
        """How much is told: the row is found by what identifies the order."""
        return "patient"

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        check_backend(value) if value else None
        return value

    @field_validator("values", mode="before")
    @classmethod
    def _terms(cls, value: Any) -> Any:
        """In capitals, as the environment has none."""
        return {str(k).upper(): v for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("values")
    @classmethod
    def _known_terms(cls, value: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(value) - set(_TERMS)):
            raise ValueError(f"{unknown[0]} is none of {', '.join(_TERMS)}")
        return value

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError("no such time zone; it is written like Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.is_on:
            if self.table or self.columns:
                raise ValueError("url or url_file says in which database the table is")
            return self
        if not self.table:
            raise ValueError("table is needed")
        self._check_columns()
        missing = [term for term in self.priorities if term not in self.values]
        if missing and set(self.values) & set(_PRIORITIES):
            raise ValueError(f"values: has some priorities and lacks {', '.join(missing)}")
        return self

    def _check_columns(self) -> None:
        if missing := [name for name in self.key if name not in self.columns]:
            raise ValueError(f"columns: {missing[0]} is in key and has no column")
        if not set(self.columns) - set(self.key):
            raise ValueError("columns: nothing would be written; name the column of priority at least")
        theirs = [name.lower() for name in (*self.columns.values(), *self.constants)]
        twice = sorted({name for name in theirs if theirs.count(name) > 1})
        if twice:
            raise ValueError(f"columns: {twice[0]} is named twice")
        if not all(theirs):
            raise ValueError("columns: an empty name is no column")


class WorklistSettings(Section):
    """The reading worklist."""

    external: ExternalWorklistSettings = ExternalWorklistSettings()


def check_backend(url: str) -> None:
    """Refuse what is no URL of a database that can be written to; its text, which may hold a password, is not told.

    Raises
    ------
    ValueError
        It is none.
    """
    scheme, slashes, _ = url.partition("://")
    if scheme.partition("+")[0] not in _BACKENDS or not slashes:
        raise ValueError(f"a URL is needed that begins with one of {', '.join(_BACKENDS)} and ://")
