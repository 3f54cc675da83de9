"""Another system's worklist table gets the priority of each study, once and never an older one."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from ich_node.database.external_worklist import (
    ExternalTable,
    check_external,
    planned_statements,
    write_notice,
)
from ich_node.errors import ConfigurationError, TransientError
from ich_node.findings import Priority
from ich_node.notify.notice import Notice, PatientIdentity
from ich_node.notify.outcome import NoticeResult
from tests.external_cases import COLUMNS, VALUES, open_theirs, put, rows
from tests.notice_builders import not_read, notice


@pytest.fixture
def theirs_url(tmp_path: Path) -> str:
    """An empty database of another system."""
    (tmp_path / "ris.sqlite").touch()
    return f"sqlite:///{tmp_path / 'ris.sqlite'}"


@pytest.fixture
def external(theirs_url: str) -> ExternalTable:
    with open_theirs(theirs_url) as connection:
        quote = connection.dialect.identifier_preparer.quote
        connection.execute(
            text(
                f"CREATE TABLE {quote('Exam List')} (id INTEGER, acc_no VARCHAR(16) NOT NULL, prio INTEGER DEFAULT 5, "
                f"{quote('ai state')} VARCHAR(10), score NUMERIC(5, 3), remark VARCHAR(20), flagged TIMESTAMP NULL, "
                "changed TIMESTAMP NULL, made_by VARCHAR(10))"
            )
        )
    return ExternalTable(
        url=theirs_url,
        schema=None,
        table="Exam List",
        key=("accession_number",),
        columns=COLUMNS,
        values=VALUES,
    )


def later(seconds: float, **changes: Any) -> Notice:
    first = notice()
    return notice(happened_at=first.happened_at + timedelta(seconds=seconds), **changes)


def test_the_row_of_the_study_gets_what_the_settings_map(external: ExternalTable) -> None:
    put(external, "ACC-4711", "OTHER")
    said = write_notice(notice(), external)
    assert (said.result, said.detail) == (NoticeResult.SENT, "")
    mine, other = rows(external)
    assert (mine["acc_no"], mine["prio"], mine["ai state"], float(mine["score"])) == (
        "ACC-4711",
        1,
        "READ",
        0.934,
    )
    assert [str(mine[name]).partition(".")[0] for name in ("flagged", "changed")] == [
        "2024-05-06 07:08:10"
    ] * 2
    assert (other["prio"], other["ai state"]) == (5, None)


def test_a_study_that_was_not_read_says_so_and_long_text_is_cut(external: ExternalTable) -> None:
    put(external, "ACC-4711")
    assert write_notice(not_read(), external).result is NoticeResult.SENT
    (row,) = rows(external)
    assert (row["prio"], row["ai state"], row["remark"], row["flagged"]) == (
        3,
        "not read",
        "The series has 3 sli",
        None,
    )


def test_a_row_that_is_not_there_yet_is_waited_for(external: ExternalTable) -> None:
    said = write_notice(notice(), external)
    assert (said.result, said.detail) == (
        NoticeResult.TRANSIENT,
        "Exam List has no row with this accession_number yet",
    )
    put(external, "ACC-4711")
    assert write_notice(notice(), external).result is NoticeResult.SENT


def test_where_two_rows_are_found_none_is_changed(external: ExternalTable) -> None:
    put(external, "ACC-4711", "ACC-4711")
    said = write_notice(notice(), external)
    assert said.result is NoticeResult.REFUSED
    assert "2 rows of Exam List have this accession_number" in said.detail
    assert [row["prio"] for row in rows(external)] == [5, 5]


@pytest.mark.parametrize("identity", [None, PatientIdentity(accession_number="", patient_id="P")])
def test_a_study_without_the_key_finds_no_row_of_others(
    external: ExternalTable, identity: PatientIdentity | None
) -> None:
    put(external, "")
    said = write_notice(notice(identity=identity), external)
    assert said.result is NoticeResult.REFUSED
    assert "the study has no accession_number" in said.detail
    assert rows(external)[0]["prio"] == 5


def test_what_was_known_later_stays(external: ExternalTable) -> None:
    put(external, "ACC-4711")
    assert write_notice(later(60, priority=Priority.ROUTINE), external).detail == ""
    said = write_notice(notice(), external)
    assert said.result is NoticeResult.SENT
    assert said.detail == "the row says how the study stood later, and was left as it is"
    assert rows(external)[0]["prio"] == 9
    assert write_notice(later(61, priority=Priority.HIGH), external).detail == ""
    assert rows(external)[0]["prio"] == 2


def test_what_is_known_in_the_hour_that_comes_twice_is_written(external: ExternalTable) -> None:
    put(external, "ACC-4711")
    berlin = replace(external, zone=ZoneInfo("Europe/Berlin"))
    for hour, minute, priority in ((0, 50, Priority.MEDIUM), (1, 10, Priority.STAT)):
        happened_at = datetime(2026, 10, 25, hour, minute, tzinfo=UTC)
        said = write_notice(notice(happened_at=happened_at, priority=priority), berlin)
        assert (said.result, said.detail) == (NoticeResult.SENT, "")
    (row,) = rows(external)
    hour = "01" if external.url.startswith(("mysql", "mariadb")) else "02"  # whose TIMESTAMP is in UTC
    assert (row["prio"], str(row["changed"])[:16]) == (1, f"2026-10-25 {hour}:10")


def test_without_a_column_for_it_the_caller_sees_to_the_order(external: ExternalTable) -> None:
    put(external, "ACC-4711")
    plain = replace(external, columns={k: v for k, v in COLUMNS.items() if k != "changed_at"})
    for seconds, priority in ((60, Priority.ROUTINE), (0, Priority.STAT)):
        assert write_notice(later(seconds, priority=priority), plain).result is NoticeResult.SENT
    assert rows(external)[0]["prio"] == 1


def test_a_row_can_be_made_once(external: ExternalTable) -> None:
    maker = replace(external, makes_rows=True, constants={"made_by": "ICH"})
    for seconds, priority in ((0, Priority.STAT), (5, Priority.HIGH), (1, Priority.ROUTINE)):
        assert write_notice(later(seconds, priority=priority), maker).result is NoticeResult.SENT
    (row,) = rows(external)
    assert (row["acc_no"], row["prio"], row["made_by"]) == ("ACC-4711", 2, "ICH")


def test_who_has_lost_the_lease_changes_nothing(external: ExternalTable) -> None:
    put(external, "ACC-4711")
    said = write_notice(notice(), external, may_commit=lambda: False)
    assert said.result is NoticeResult.TRANSIENT
    assert rows(external)[0]["prio"] == 5


def test_text_of_a_header_is_a_value_and_never_sql(external: ExternalTable) -> None:
    hostile = "x'; DROP --"
    put(external, hostile, "ACC-4711")
    identity = PatientIdentity(accession_number=hostile, patient_id="%", patient_name="'\"`")
    assert write_notice(notice(identity=identity), external).result is NoticeResult.SENT
    assert {row["acc_no"]: row["prio"] for row in rows(external)} == {hostile: 1, "ACC-4711": 5}


def test_several_keys_find_a_row_together(external: ExternalTable) -> None:
    put(external, "ACC-4711", "OTHER")
    both = replace(
        external,
        key=("accession_number", "patient_id"),
        columns={"accession_number": "acc_no", "patient_id": "made_by", "priority": "prio"},
    )
    assert write_notice(notice(), both).result is NoticeResult.TRANSIENT
    with open_theirs(external.url) as connection:
        name = connection.dialect.identifier_preparer.quote("Exam List")
        connection.execute(text(f"UPDATE {name} SET made_by = 'MRN-0815'"))
    assert write_notice(notice(), both).result is NoticeResult.SENT
    assert [row["prio"] for row in rows(external)] == [1, 5]


def test_a_check_finds_all_there_and_changes_nothing(external: ExternalTable) -> None:
    put(external, "ACC-4711")
    before = rows(external)
    assert check_external(external) == "Exam List: its 7 columns are there, update is allowed"
    maker = replace(external, makes_rows=True)
    assert check_external(maker) == "Exam List: its 7 columns are there, update and insert is allowed"
    assert rows(external) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"table": "exams"}, r"there is no table exams for this user: mend table"),
        (
            {"columns": {**COLUMNS, "priority": "prio2"}},
            r"Exam List has no column prio2: mend .*it has id, acc_no",
        ),
        ({"constants": {"who": 1}}, r"has no column who"),
        (
            {
                "makes_rows": True,
                "key": ("study_instance_uid",),
                "columns": {"study_instance_uid": "made_by", "priority": "prio"},
            },
            r"a row that is made needs a value for acc_no",
        ),
    ],
)
def test_a_mapping_that_does_not_fit_is_named_with_the_way_out(
    external: ExternalTable, changes: dict[str, Any], words: str
) -> None:
    wrong = replace(external, **changes)
    with pytest.raises(ConfigurationError, match=words):
        check_external(wrong)


def test_a_wrong_address_is_named(tmp_path: Path, external: ExternalTable) -> None:
    (tmp_path / "there").touch()
    for url, words in (
        ("nonsense", "is not a URL such as"),
        (f"sqlite:///{tmp_path / 'absent'}", "is not there"),
        ("nodb://u:s3cret@h/d", "cannot be used"),
        ("postgresql+nodriver://u:s3cret@h/d", "cannot be used"),
        ("postgresql+pg8000://u:s3cret@h/d", "the driver that postgresql.pg8000 names is not installed"),
        (
            f"sqlite:///{tmp_path / 'there'}?timeout=s3cret",
            "does not take what stands behind the question mark",
        ),
    ):
        with pytest.raises(ConfigurationError, match=words) as raised:
            check_external(replace(external, url=url))
        assert "s3cret" not in str(raised.value)
    with pytest.raises(
        TransientError, match=r"the external worklist's database \(127\.0\.0\.1\) says"
    ) as refused:
        check_external(replace(external, url="postgresql://u:s3cret@127.0.0.1:1/d"))
    assert "s3cret" not in str(refused.value)


def test_many_writers_of_one_row_leave_the_latest(external: ExternalTable) -> None:
    put(external, "ACC-4711")
    order = [Priority.STAT, Priority.HIGH, Priority.MEDIUM, Priority.ROUTINE]
    barrier = threading.Barrier(4)
    said = []

    def work(number: int) -> None:
        barrier.wait(30)
        for step in range(4):
            told = notice() if order[(number + step) % 4] is not Priority.MEDIUM else not_read()
            said.append(
                write_notice(
                    replace(told, happened_at=told.happened_at + timedelta(seconds=number * 10 + step)),
                    external,
                ).result
            )

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(said) == {NoticeResult.SENT}
    (row,) = rows(external)
    assert str(row["changed"]).startswith("2024-05-06 07:08:43")


SQL = {
    "postgresql": (
        'SELECT count(*) AS count_1 FROM ris."Exam List" WHERE ris."Exam List".acc_no = :acc_no_1::VARCHAR',
        'UPDATE ris."Exam List" SET prio=:prio, "ai state"=:ai_state, changed=:changed WHERE',
    ),
    "mysql": (
        "SELECT count(*) AS count_1 FROM ris.`Exam List` WHERE ris.`Exam List`.acc_no = :acc_no_1",
        "UPDATE ris.`Exam List` SET prio=:prio, `ai state`=:ai_state, changed=:changed WHERE",
    ),
    "mssql": (
        "SELECT count(*) AS count_1 FROM ris.[Exam List] WHERE ris.[Exam List].acc_no = :acc_no_1",
        "UPDATE ris.[Exam List] SET prio=:prio, [ai state]=:ai_state, changed=:changed WHERE",
    ),
    "oracle": (
        'SELECT count(*) AS count_1 FROM ris."Exam List" WHERE ris."Exam List".acc_no = :acc_no_1',
        'UPDATE ris."Exam List" SET prio=:prio, "ai state"=:"ai state", changed=:changed WHERE',
    ),
}


@pytest.mark.parametrize("backend", SQL)
def test_the_sql_of_each_database_is_shown_without_it(backend: str) -> None:
    external = ExternalTable(
        url=f"{backend}://u:s3cret@nowhere/ris",
        schema="ris",
        table="Exam List",
        key=("accession_number",),
        columns={k: COLUMNS[k] for k in ("accession_number", "priority", "state", "changed_at")},
        values=VALUES,
        makes_rows=True,
        zone=ZoneInfo("Europe/Berlin"),
    )
    count, update, insert = planned_statements(notice(), external)
    assert " ".join(count.sql.split()) == SQL[backend][0]
    assert " ".join(update.sql.split()).startswith(SQL[backend][1])
    assert "changed IS NULL OR" in update.sql
    assert update.parameters["prio"] == 1
    assert update.parameters["changed"] == datetime(2024, 5, 6, 9, 8, 10)
    assert insert.sql.startswith("INSERT INTO ris.")
    assert insert.parameters["acc_no"] == "ACC-4711"
    assert all("s3cret" not in one.sql for one in (count, update, insert))


def test_the_table_of_an_error_shows_no_password(external: ExternalTable) -> None:
    assert "s3cret" not in repr(replace(external, url="postgresql://u:s3cret@h/d"))
