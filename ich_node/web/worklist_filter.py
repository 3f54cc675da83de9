"""Which studies a person wants to see, as it stands in an address that can be kept as a bookmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from ich_node.findings import Priority, StudyState

WITHIN: dict[str, timedelta] = {
    "1h": timedelta(hours=1),
    "8h": timedelta(hours=8),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
}
"""How long ago the first image came, at most."""
_LONGEST = 200
"""Characters of a search; a UID has 64."""
_NAMES = ("priority", "state", "unreviewed", "within", "station", "q", "before")

_Code = TypeVar("_Code", bound=StrEnum)


@dataclass(frozen=True, kw_only=True)
class WorklistFilter:
    """Conditions that a study must all meet; those that are empty are none."""

    priorities: tuple[Priority, ...] = ()
    states: tuple[StudyState, ...] = ()
    unreviewed: bool = False
    within: str = ""
    """A key of `WITHIN`."""
    station: str = ""
    """AE title of the sender."""
    search: str = ""
    before: str = ""
    """Where the page before this one ended."""

    @classmethod
    def of(cls, query: QueryParams) -> WorklistFilter:
        """Read the query of an address.

        Raises
        ------
        HTTPException
            400: a value is none that there is. A filter that is not understood must not look like one that is.
        """
        return cls(
            priorities=_codes(Priority, "priority", query.getlist("priority")),
            states=_codes(StudyState, "state", query.getlist("state")),
            unreviewed=_one_of(("", "1"), "unreviewed", query.get("unreviewed", "")) == "1",
            within=_one_of(("", *WITHIN), "within", query.get("within", "")),
            station=_text(query.get("station", "")),
            search=_text(query.get("q", "")),
            before=_text(query.get("before", "")),
        )

    @property
    def is_active(self) -> bool:
        """Whether some studies may not be shown because of it; which page it is does not count."""
        return replace(self, before="") != WorklistFilter()

    @property
    def query(self) -> str:
        """Of the address of this list, without a question mark; empty where everything is shown."""
        return urlencode(list(self._pairs()))

    def page_after(self, study_instance_uid: str) -> str:
        """Query of the list of what a page that ends there has left out."""
        return replace(self, before=study_instance_uid).query

    @property
    def first_page(self) -> str:
        """Query of the same list from its top."""
        return replace(self, before="").query

    def criteria(self, now: datetime) -> dict[str, Any]:
        """As `ich_node.database.worklist.worklist` takes it."""
        return {
            "priorities": self.priorities or None,
            "states": self.states or None,
            "unreviewed": True if self.unreviewed else None,
            "received_since": now - WITHIN[self.within] if self.within else None,
            "modality_ae_title": self.station or None,
            "search": self.search or None,
            "before": self.before or None,
        }

    def _pairs(self) -> Iterator[tuple[str, str]]:
        values: tuple[Iterable[str], ...] = (
            self.priorities,
            self.states,
            ("1",) if self.unreviewed else (),
            (self.within,),
            (self.station,),
            (self.search,),
            (self.before,),
        )
        for name, several in zip(_NAMES, values, strict=True):
            yield from ((name, str(value)) for value in several if value)


def _text(value: str) -> str:
    """Without NUL, which PostgreSQL takes in no text."""
    return value.replace("\0", "").strip()[:_LONGEST]


def _codes(kind: type[_Code], name: str, values: Iterable[str]) -> tuple[_Code, ...]:
    """In the order of the kind, each once."""
    wanted = {_one_of(("", *kind), name, value) for value in values}
    return tuple(code for code in kind if code in wanted)


def _one_of(known: Iterable[str], name: str, value: str) -> str:
    if value not in known:
        listed = ", ".join(str(one) for one in known if one)
        raise HTTPException(
            400, f"The worklist cannot be filtered by {name}={value[:40]!r}; there is: {listed}."
        )
    return value
