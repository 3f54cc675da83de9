"""The settings of another system's worklist refuse what cannot work, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ich_node.worklist_settings import ExternalWorklistSettings

GOOD: dict[str, Any] = {
    "url": "mssql://ich:secret@ris.local/RIS",
    "table": "Worklist",
    "columns": {"accession_number": "AccessionNo", "priority": "Prio"},
}


def test_it_is_off_until_it_names_a_database() -> None:
    assert not ExternalWorklistSettings().is_on
    assert ExternalWorklistSettings(**GOOD).is_on
    by_file = {k: v for k, v in GOOD.items() if k != "url"} | {"url_file": "/etc/ich-node/ris-url"}
    assert ExternalWorklistSettings(**by_file).is_on


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": ""}, "url or url_file says in which database"),
        ({"url": "http://ris.local/RIS"}, "begins with one of postgresql"),
        ({"url": "mssql"}, "begins with one of"),
        ({"url": "http://ich:secret\N{ACCOUNT OF}@ris.local/RIS"}, "begins with one of"),
        ({"table": ""}, "table is needed"),
        ({"columns": {"priority": "Prio"}}, "accession_number is in key and has no column"),
        ({"columns": {"accession_number": "AccessionNo"}}, "nothing would be written"),
        ({"columns": {"accession_number": "Prio", "priority": "PRIO"}}, "prio is named twice"),
        ({"columns": {"accession_number": "A", "priority": ""}}, "an empty name"),
        ({"columns": {"accession_number": "A", "urgency": "B"}}, "columns.urgency"),
        ({"constants": {"prio": 1}}, "prio is named twice"),
        ({"values": {"URGENT": 1}}, "URGENT is none of"),
        ({"values": {"STAT": 1, "HIGH": 2}}, "lacks MEDIUM, ROUTINE"),
        ({"key": []}, "at least 1"),
        ({"time_zone": "Mars/Olympus"}, "no such time zone"),
        ({"time_zone": "../../etc/passwd"}, "no such time zone"),
        ({"mode": "replace"}, "update"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as raised:
        ExternalWorklistSettings(**GOOD | changes)
    assert "secret" not in "".join(error["msg"] for error in raised.value.errors())


def test_values_for_some_priorities_do_where_only_those_are_told() -> None:
    some = ExternalWorklistSettings(**GOOD, priorities=("STAT",), values={"STAT": 1, "READ": "done"})
    assert some.values == {"STAT": 1, "READ": "done"}


def test_terms_may_be_written_small_as_in_the_environment() -> None:
    some = ExternalWorklistSettings(**GOOD, priorities=("STAT",), values={"stat": "1"})
    assert some.values == {"STAT": "1"}
