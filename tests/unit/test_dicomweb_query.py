"""What a search asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from ich_node.database.matching import Between, Empty, Value
from ich_node.web.dicomweb_levels import Level
from ich_node.web.dicomweb_query import MOST_RESULTS, Query, parse_query

NAMES = st.sampled_from(
    ["PatientID", "00100010", "StudyDate", "StudyTime", "StudyInstanceUID", "limit", "offset", "includefield",
     "fuzzymatching", "00400275.00400009", "Rows", "accept", "emptyvaluematching", "multiplevaluematching", "nonsense"]
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", "*", "20260101-", "-0815", "1.2,1.3", "true", "all", "7", "a*?"]),
)


def parsed(level: Level = Level.INSTANCE, **parameters: str) -> Query:
    return parse_query(level, parameters.items())


def alternatives(name: str, text: str, **others: str) -> tuple[object, ...]:
    query = parsed(**{name: text, **others})
    return tuple(one for keys in query.keys.values() for key in keys for one in key.key.alternatives)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.sampled_from(Level))
def test_whatever_is_asked_is_understood_or_refused_with_one_line(items: list[tuple[str, str]], level: Level):
    query, refusal = None, None
    try:
        query = parse_query(level, items)
    except HTTPException as error:
        refusal = error
    if query is None:
        assert refusal is not None
        assert refusal.status_code == 400
        assert refusal.detail.startswith("The search cannot be understood: ")
        assert "\n" not in refusal.detail
        return
    assert 0 <= query.limit <= MOST_RESULTS[level]
    assert query.offset >= 0
    for of, keys in query.keys.items():
        assert of <= level or not keys
        for key in keys:
            assert key.key.alternatives
            assert all(len(tag) == 8 for tag in key.path)
            key.key.fits(("abc", "20260101"))


@given(st.text("0123456789.", min_size=1, max_size=20).filter(lambda text: text.strip(".")))
def test_one_uid_is_itself_whatever_stands_around_it(uid: str):
    assert alternatives("StudyInstanceUID", uid) == (Value(text=uid),)
    assert alternatives("0020000d", f"{uid},1.2\\1.3") == tuple(
        Value(text=one) for one in (uid, "1.2", "1.3")
    )


def test_values_are_read_by_what_their_attribute_holds():
    assert alternatives("PatientID", "a*?") == (Value(text="a*?", has_wildcards=True),)
    assert alternatives("PatientName", "Doe^John^^") == (
        Value(text="Doe^John", has_wildcards=True, is_name=True),
    )
    assert alternatives("StudyDate", "20260101") == (Value(text="20260101"),)
    assert alternatives("StudyDate", "20260101-20260131") == (Between(low="20260101", high="20260131"),)
    assert alternatives("StudyTime", "08-") == (Between(low="08"),)
    assert alternatives("StudyTime", "081559.5") == (Between(low="081559.5", high="081559.5"),)
    assert alternatives("SeriesNumber", "007") == (Value(text="7"),)
    assert alternatives("SliceThickness", "5.0") == (Value(text="5"),)
    assert alternatives("PatientID", "") == ()
    for name in ("PatientID", "StudyDate", "StudyTime", "StudyInstanceUID", "PatientName"):
        assert alternatives(name, "*") == ()
    assert alternatives("PatientID", "a\x00b") == (Value(text="ab", has_wildcards=True),)
    assert alternatives("PatientID", '""') == (Value(text='""', has_wildcards=True),)
    assert alternatives("PatientID", '""', emptyvaluematching="true") == (Empty(),)
    assert len(alternatives("PatientID", "a\\b", multiplevaluematching="true")) == 2
    assert len(alternatives("PatientID", "a\\b")) == 1


def test_attributes_within_sequences_are_named_by_keyword_or_tag():
    (key,) = parsed(**{"RequestAttributesSequence.ScheduledProcedureStepID": "S1"}).keys[Level.SERIES]
    assert key.path == ("00400275", "00400009")
    assert key.key.keyword == "RequestAttributesSequence.ScheduledProcedureStepID"
    for name in (
        "PatientID.StudyID",
        "00400275",
        "7FE00010",
        "00091001",
        "NumberOfStudyRelatedSeries",
        "RetrieveURL",
    ):
        with pytest.raises(HTTPException, match="cannot be matched"):
            parsed(**{name: "x"})


def test_a_key_of_a_lower_level_is_refused_by_name():
    with pytest.raises(HTTPException, match="'Modality' is an attribute of series level"):
        parsed(Level.STUDY, Modality="CT")
    with pytest.raises(HTTPException, match="'Rows' is an attribute of instance level"):
        parsed(Level.SERIES, Rows="512")


def test_a_parameter_that_comes_twice_is_refused():
    with pytest.raises(HTTPException, match="more than once"):
        parse_query(Level.STUDY, [("PatientID", "a"), ("PatientID", "b")])
    query = parse_query(
        Level.STUDY,
        [("includefield", "PatientAge"), ("includefield", "00101030,PatientSize"), ("accept", "x")],
    )
    assert query.include == {"00101010", "00101030", "00101020"}


def test_no_value_is_among_what_the_record_of_a_search_says():
    assert parsed(PatientName="Doe^Jane", StudyDate="20260101").keywords() == {"PatientName", "StudyDate"}
