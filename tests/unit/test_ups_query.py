from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.database.engine import Database
from ich_node.database.workitem_states import WorkitemState
from ich_node.database.workitems import search_workitems
from ich_node.web.ups_query import BadQuery, read_date_time_range, read_keys, read_search
from tests.database_cases import STUDY, Sender, sqlite_database

NAMES = {
    "1.2.1": {"patient_name": "MÜLLER^JÖRG", "patient_id": "100%", "accession_number": "A_1"},
    "1.2.2": {"patient_name": "Muller^Jorg", "patient_id": "100x", "accession_number": "AB1"},
    "1.2.3": {"patient_name": "O'NEIL^X[1]", "patient_id": "'; DROP TABLE study; --", "patient_sex": "F"},
}


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with TemporaryDirectory() as folder, sqlite_database(Path(folder)) as database:
        for number, (study, header) in enumerate(NAMES.items()):
            header = {**header, "patient_birth_date": f"19{60 + number}0101"}
            Sender(database=database, study=study, series=f"{study}.1", header=header).send(1, seconds=number)
        yield database


def found(database: Database, **keys: str) -> list[str]:
    query = read_keys({name.replace("__", "."): value for name, value in keys.items()})
    with database.reading() as session:
        return sorted(item.study_instance_uid for item in search_workitems(session, query, limit=10))


@pytest.mark.parametrize(
    ("key", "value", "studies"),
    [
        ("PatientName", "müller*", "1"),
        ("PatientName", "MULLER^JORG", "2"),
        ("00100010", "M?ller^*", "12"),
        ("PatientName", "o'neil^x[1]", "3"),
        ("PatientName", "*", "123"),
        ("PatientName", "", "123"),
        ("PatientName", "*[*", "3"),
        ("PatientID", "100%", "1"),
        ("PatientID", "100?", "12"),
        ("PatientID", "100X", ""),
        ("PatientID", "'; DROP TABLE study; --", "3"),
        ("PatientID", "' OR '1'='1", ""),
        ("AccessionNumber", "A_1", "1"),
        ("ReferencedRequestSequence__AccessionNumber", "A*", "12"),
        ("0040A370__0020000D", "1.2.1,1.2.3", "13"),
        ("StudyInstanceUID", "1.2.2", "2"),
        ("PatientSex", "F", "3"),
        ("PatientBirthDate", "19600101-19610101", "12"),
        ("PatientBirthDate", "19610101-", "23"),
        ("PatientBirthDate", "-19600101", "1"),
        ("ProcedureStepState", "SCHEDULED", "123"),
        ("ProcedureStepState", "COMPLETED,CANCELED", ""),
        ("ProcedureStepState", "NONSENSE", ""),
        ("ScheduledProcedureStepPriority", "MEDIUM", "123"),
        ("ScheduledProcedureStepPriority", "HIGH\\LOW", ""),
        ("InputReadinessState", "INCOMPLETE", "123"),
        ("InputReadinessState", "READY", ""),
        ("ScheduledWorkitemCodeSequence__CodeValue", "110005", "123"),
        ("ScheduledWorkitemCodeSequence__CodeValue", "110004", ""),
        ("WorklistLabel", "I*", "123"),
        ("AdmissionID", "7", ""),
        ("ScheduledProcedureStepStartDateTime", "20260301030000+0000-20260301030100+0000", "123"),
        ("ScheduledProcedureStepStartDateTime", "20260301030001+0000", "2"),
        ("ScheduledProcedureStepStartDateTime", "20260301030001 0000", "2"),
        ("ScheduledProcedureStepStartDateTime", "-2025", ""),
    ],
)
def test_what_matches(database: Database, key: str, value: str, studies: str) -> None:
    assert found(database, **{key: value}) == [f"1.2.{number}" for number in studies]


def test_the_letters_of_a_name_are_enough_where_it_has_other_writings(tmp_path: Path) -> None:
    with sqlite_database(tmp_path) as database:
        header = {"patient_name": "Yamada^Tarou=山田^太郎", "patient_id": "7=8"}
        Sender(database=database, header=header).send(1)
        assert found(database, PatientName="YAMADA^tarou") == [STUDY]
        assert found(database, PatientName="*太郎") == [STUDY]
        assert found(database, PatientName="YAMADA^T") == found(database, PatientID="7") == []


def test_two_keys_both_have_to_match(database: Database) -> None:
    assert found(database, PatientName="*", AccessionNumber="AB1") == ["1.2.2"]
    assert found(database, PatientName="MÜLLER*", AccessionNumber="AB1") == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ([("nonsense", "1")], "no attribute"),
        ([("Rows", "1")], "cannot be matched"),
        ([("PatientID.Rows", "1")], "cannot be matched"),
        ([("PatientID", "1"), ("PatientID", "2")], "comes twice"),
        ([("limit", "0")], "limit takes"),
        ([("limit", "-1")], "limit takes"),
        ([("limit", "²")], "limit takes"),
        ([("offset", "99999999999999999999")], "offset takes"),
        ([("fuzzymatching", "perhaps")], "true or false"),
        ([("includefield", "nonsense")], "no attribute"),
        ([("StudyInstanceUID", "1.2.x")], "valid UIDs"),
        ([("StudyInstanceUID", ",".join(["1.2"] * 501))], "valid UIDs"),
        ([("PatientBirthDate", "1960")], "YYYYMMDD"),
        ([("ScheduledProcedureStepStartDateTime", "20261301")], "YYYYMMDD"),
        ([("PatientName", "x" * 40000)], "too long"),
    ],
)
def test_what_is_refused(query: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(BadQuery, match=words):
        read_search(query)


def test_paging_and_other_parameters() -> None:
    asked = read_search(
        [("limit", "5000"), ("offset", "20"), ("includefield", "00404021"), ("fuzzymatching", "true")]
    )
    assert (asked.limit, asked.offset, asked.with_inputs, asked.asks_for_fuzzy_matching) == (
        1000,
        20,
        True,
        True,
    )
    assert read_search([("ProcedureStepState", "IN PROGRESS")]).query.states == {WorkitemState.IN_PROGRESS}


@pytest.mark.parametrize(
    ("value", "states", "priorities"),
    [
        ("C*", {"COMPLETED", "CANCELED"}, set()),
        ("?IGH,LOW", set(), {"HIGH", "LOW"}),
        ("[H]IGH", set(), set()),
        ("SCHEDULED,x", {"SCHEDULED"}, set()),
    ],
)
def test_code_strings_are_matched_with_wild_cards(value: str, states: set[str], priorities: set[str]) -> None:
    query = read_search([("ProcedureStepState", value), ("ScheduledProcedureStepPriority", value)]).query
    assert query.states == states
    assert query.step_priorities == priorities


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("2026+0000", (2026, 1, 1), (2027, 1, 1)),
        ("202612+0000", (2026, 12, 1), (2027, 1, 1)),
        ("20260228+0000", (2026, 2, 28), (2026, 3, 1)),
        ("2026022823+0000", (2026, 2, 28, 23), (2026, 3, 1)),
        ("20260228-0500", (2026, 2, 28, 5), (2026, 3, 1, 5)),
        ("20260228+0000-20260301+0000", (2026, 2, 28), (2026, 3, 2)),
        ("20260228-0500-20260301-0500", (2026, 2, 28, 5), (2026, 3, 2, 5)),
        ("20260228+0000-", (2026, 2, 28), None),
        ("-20260228235959.5+0000", None, (2026, 2, 28, 23, 59, 59, 500001)),
    ],
)
def test_date_time_ranges(text: str, begin: tuple[int, ...] | None, end: tuple[int, ...] | None) -> None:
    expected = tuple(None if bound is None else datetime(*bound, tzinfo=UTC) for bound in (begin, end))  # type: ignore[misc,arg-type]
    assert read_date_time_range("X", text) == expected


TEXT = st.text(max_size=30) | st.text("0123456789-+.*?,\\[]%_' ", max_size=30)
KEYS = st.sampled_from(
    [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "ScheduledProcedureStepStartDateTime",
        "StudyInstanceUID",
        "SOPInstanceUID",
        "ProcedureStepState",
        "ScheduledWorkitemCodeSequence.CodeValue",
    ]
)


@given(keys=st.dictionaries(KEYS | TEXT, TEXT, max_size=4))
def test_nothing_that_is_asked_breaks_anything(database: Database, keys: dict[str, str]) -> None:
    try:
        query = read_keys(keys)
    except BadQuery:
        return
    with database.reading() as session:
        uids = [item.study_instance_uid for item in search_workitems(session, query, limit=10)]
    assert set(uids) <= set(NAMES)
