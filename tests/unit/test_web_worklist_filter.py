"""Filters of the worklist in an address."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from ich_node.findings import Priority, StudyState
from ich_node.web.worklist_filter import WITHIN, WorklistFilter

NOW = datetime(2026, 11, 21, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60).map(str.strip)


@given(
    st.builds(
        WorklistFilter,
        priorities=st.sets(st.sampled_from(Priority)).map(
            lambda some: tuple(p for p in Priority if p in some)
        ),
        states=st.sets(st.sampled_from(StudyState)).map(
            lambda some: tuple(s for s in StudyState if s in some)
        ),
        unreviewed=st.booleans(),
        within=st.sampled_from(["", *WITHIN]),
        station=TEXT,
        search=TEXT,
        before=TEXT,
    )
)
def test_a_bookmark_gives_the_same_list(wanted: WorklistFilter) -> None:
    assert WorklistFilter.of(QueryParams(wanted.query)) == wanted
    assert WorklistFilter.of(QueryParams(wanted.first_page)).before == ""
    assert WorklistFilter.of(QueryParams(wanted.page_after("1.2.3"))).before == "1.2.3"
    assert wanted.is_active == (wanted.first_page != "")


def test_what_a_form_sends_empty_is_no_condition() -> None:
    wanted = WorklistFilter.of(QueryParams("state=&within=&station=+&q="))
    assert wanted == WorklistFilter()
    assert not wanted.is_active
    assert set(wanted.criteria(NOW).values()) == {None}


def test_a_character_that_no_database_takes_is_left_out() -> None:
    wanted = WorklistFilter.of(QueryParams("q=a%00b&station=%00&before=1.2%00"))
    assert wanted == WorklistFilter(search="ab", before="1.2")


def test_conditions_as_the_database_takes_them() -> None:
    wanted = WorklistFilter.of(
        QueryParams(
            "priority=HIGH&priority=STAT&state=READ&unreviewed=1&within=8h&station=CT_ER&q=%25&before=1.2"
        )
    )
    assert wanted.criteria(NOW) == {
        "priorities": (Priority.STAT, Priority.HIGH),
        "states": (StudyState.READ,),
        "unreviewed": True,
        "received_since": NOW - timedelta(hours=8),
        "modality_ae_title": "CT_ER",
        "search": "%",
        "before": "1.2",
    }


@pytest.mark.parametrize(
    "query", ["priority=stat", "priority=STAT&priority=X", "state=DONE", "within=9h", "unreviewed=0"]
)
def test_a_value_that_there_is_not_is_refused_in_one_line(query: str) -> None:
    with pytest.raises(HTTPException) as caught:
        WorklistFilter.of(QueryParams(query))
    assert caught.value.status_code == 400
    assert "cannot be filtered by" in caught.value.detail


def test_a_search_is_cut_where_nothing_is_so_long() -> None:
    assert len(WorklistFilter.of(QueryParams({"q": "x" * 100_000})).search) == 200
