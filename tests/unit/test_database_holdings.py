"""What is here, searched and listed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ich_node.database import holdings
from ich_node.database.engine import Database
from ich_node.database.holdings import RESULT_MODALITIES
from ich_node.database.matching import Between, Empty, Key, Value, fits_wildcards, literal
from ich_node.database.result_objects import NewObject, add_objects
from ich_node.database.retention import Folder
from ich_node.database.tables import InstanceRow, ReadingRow, ResultObjectRow, StudyRow
from ich_node.findings import Priority
from ich_node.report.compression import Compression
from ich_node.report.result_objects import ResultKind, Wish, build_result_objects
from ich_node.report.sr_class import SrClass
from tests.database_cases import STUDY, Sender, at, read_once, sqlite_database
from tests.report_builders import make_report

LETTERS = "aAbÄäß%_[]*?\\^'.(-"
_numbers = count(1)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


def found(database: Database, *keys: Key, **page: int) -> list[str]:
    with database.reading() as session:
        rows = holdings.studies(session, keys, **{"limit": 100, **page})
        assert holdings.count_studies(session, keys, most=1000) >= len(rows)
        return [row.study_instance_uid for row in rows]


def send(database: Database, study: str, **header: str) -> None:
    Sender(database=database, study=study, series=f"{study}.1", header=header).send(1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.text(LETTERS, max_size=6), min_size=1, max_size=5),
    pattern=st.text(LETTERS, max_size=5),
    has_wildcards=st.booleans(),
    is_name=st.booleans(),
)
@example(values=[""], pattern="*", has_wildcards=False, is_name=True)
@example(values=["a", "?"], pattern="?", has_wildcards=False, is_name=True)
def test_the_database_matches_as_the_rules_do(
    database: Database, values: list[str], pattern: str, has_wildcards: bool, is_name: bool
):
    run = f"1.{next(_numbers)}"
    key = Key(
        keyword="PatientName",
        alternatives=(Value(text=pattern, has_wildcards=has_wildcards, is_name=is_name),),
    )
    expected = set()
    for number, value in enumerate(values):
        send(database, f"{run}.{number}", patient_name=value, study_description=run)
        if key.fits((value,)):
            expected.add(f"{run}.{number}")
    assert set(found(database, key, literal("StudyDescription", [run]))) == expected


@given(pattern=st.text("ab*?", max_size=12), text=st.text("ab", max_size=12))
def test_wildcards_fit_as_a_plain_recursion_says(pattern: str, text: str):
    def fits(p: str, t: str) -> bool:
        if not p:
            return not t
        if p[0] == "*":
            return fits(p[1:], t) or (bool(t) and fits(p, t[1:]))
        return bool(t) and p[0] in ("?", t[0]) and fits(p[1:], t[1:])

    assert fits_wildcards(pattern, text) == fits(pattern, text)


def test_a_pattern_that_is_made_to_hurt_takes_no_time():
    assert not fits_wildcards("*a" * 500 + "b", "a" * 5000)


def test_names_are_alike_in_capitals_and_by_their_first_group(database: Database):
    send(database, "1.1", patient_name="Groß^Jörg=山田^太郎")
    for text, fits in (("GROß^JÖRG", True), ("groß^*", True), ("Groß^Jörg=山田^太郎", True), ("*太郎", True),
                       ("Groß", False), ("山田^太郎", False)):  # fmt: skip
        key = Key(keyword="PatientName", alternatives=(Value(text=text, has_wildcards=True, is_name=True),))
        assert (found(database, key) == ["1.1"]) is fits, text


def test_ranges_hold_their_ends_and_leave_out_what_is_absent(database: Database):
    for number, (date, time) in enumerate(
        [("20260101", "0815"), ("20260131", "081559.5"), ("", ""), ("20260201", "0816")]
    ):
        send(database, f"1.{number}", study_date=date, study_time=time)

    def within(keyword: str, low: str, high: str) -> set[str]:
        return set(found(database, Key(keyword=keyword, alternatives=(Between(low=low, high=high),))))

    assert within("StudyDate", "20260101", "20260131") == {"1.0", "1.1"}
    assert within("StudyDate", "", "20260131") == {"1.0", "1.1"}
    assert within("StudyDate", "20260131", "") == {"1.1", "1.3"}
    assert within("StudyTime", "0815", "0815") == {"1.0", "1.1"}
    assert within("StudyTime", "08", "08") == {"1.0", "1.1", "1.3"}
    assert found(database, Key(keyword="StudyDate", alternatives=(Empty(),))) == ["1.2"]
    assert found(database) == ["1.3", "1.1", "1.0", "1.2"]
    assert found(database, limit=1, offset=2) == ["1.0"]


def test_a_summary_counts_what_is_here(database: Database):
    read_once_with_objects(database)
    other = Sender(database=database, series="1.2.3.2")
    other.send(7)
    other.send(8)
    other.send(8, content_hash="another object under the same UID")
    with database.reading() as session:
        summary = holdings.summaries(session, [STUDY, "1.9"])
        (row,) = holdings.studies(session, [literal("StudyInstanceUID", [STUDY])], limit=2)
        received, made = holdings.received_of(session, STUDY), holdings.results_of(session, STUDY)
    assert list(summary) == [STUDY]
    assert (summary[STUDY].series, summary[STUDY].instances) == (2 + 6, 3 + len(made))
    assert summary[STUDY].modalities == {"CT", "SR", "OT", "SEG", "PR", "KO"}
    assert summary[STUDY].sample is not None
    assert summary[STUDY].sample[0] is Folder.SPOOL
    assert [one.sop_instance_uid for one in received] == ["1.2.3.1.1", "1.2.3.2.7", "1.2.3.2.8"]
    assert row.purged_at is None


def read_once_with_objects(database: Database) -> None:
    """One reading with an object of every kind, captures in two compressions and one report."""
    Sender(database=database).send(1)
    read_once(database, Priority.STAT)
    with database.writing() as session:
        study = session.get_one(StudyRow, STUDY)
        reading = session.get_one(ReadingRow, study.reading_id)
        for row in session.query(ResultObjectRow).all():
            row.purged_at = at(100)
        names = ["SR/SEG", "SC", "SC", "SC/jpeg-lossless", "SEG", "GSPS", "KOS", "PM"]
        new = [
            NewObject(sop_instance_uid=f"2.{n}", sop_class_uid="1.2", kind=kind, file_name=f"{n}.dcm")
            for n, kind in enumerate(names)
        ]
        add_objects(session, study, new, reading, at(100))


def test_modalities_and_objects_choose_studies(database: Database):
    read_once_with_objects(database)
    send(database, "1.5")
    for keyword, text, expected in (
        ("ModalitiesInStudy", "SEG", [STUDY]),
        ("ModalitiesInStudy", "S*", [STUDY]),
        ("Modality", "CT", [STUDY, "1.5"]),
        ("Modality", "MR", []),
        ("SeriesInstanceUID", "1.5.1", ["1.5"]),
        ("SOPInstanceUID", "1.5.1.1", ["1.5"]),
        ("SOPInstanceUID", "2.4", [STUDY]),
        ("SOPInstanceUID", "2.99", []),
    ):
        key = Key(keyword=keyword, alternatives=(Value(text=text, has_wildcards="UID" not in keyword),))
        assert sorted(found(database, key)) == sorted(expected), (keyword, text)


def test_a_result_that_came_back_is_counted_once(database: Database):
    read_once_with_objects(database)
    Sender(database=database, series="9.9").send(1, sop_instance_uid="2.4", modality="SEG")
    with database.reading() as session:
        one = holdings.instance(session, "2.4")
        made = holdings.results_of(session, STUDY)
        summary = holdings.summaries(session, [STUDY])[STUDY]
    assert one is not None
    assert one.folder is Folder.SPOOL
    assert "2.4" not in [each.sop_instance_uid for each in made]
    assert summary.instances == 1 + 8


def test_what_was_purged_is_not_here(database: Database):
    read_once_with_objects(database)
    with database.writing() as session:
        session.get_one(ResultObjectRow, "2.0").purged_at = at(200)
        for row in session.query(InstanceRow).all():
            session.delete(row)
    with database.reading() as session:
        assert holdings.was_purged(session, "2.0")
        assert not holdings.was_purged(session, "2.1")
        assert holdings.instance(session, "2.0") is None
        assert holdings.received_of(session, STUDY) == []
        assert holdings.summaries(session, [STUDY])[STUDY].sample == (Folder.RESULTS, "1.dcm")


def test_the_modality_of_every_kind_of_result_is_what_its_objects_say():
    wishes = {
        "A": Wish(kinds=frozenset(ResultKind), sr_class=SrClass.BASIC_TEXT),
        "B": Wish(sc_compression=Compression.JPEG_LOSSLESS),
    }
    places: dict[str, set[str]] = {}
    for item in build_result_objects(make_report(), wishes):
        assert item.dataset.Modality == RESULT_MODALITIES[item.kind]
        place = "SC" if item.kind == "SC" else item.name
        places.setdefault(place, set()).add(str(item.dataset.SeriesInstanceUID))
    assert set(RESULT_MODALITIES) == set(ResultKind)
    # As series are counted: captures make one, whatever their compression; every form of a report makes its own.
    assert all(len(uids) == 1 for uids in places.values())
    assert len(set.union(*places.values())) == len(places)
