"""What a worklist of a million studies answers, and how soon, on SQLite and on PostgreSQL.

The floor is the look-up of one study by its primary key, through the same session and mapping. Every query is asked
in turn with the others; percentiles are of all rounds. Two hospitals: one where nobody ever presses "seen", and one
where all but the last day is reviewed.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ColumnElement, select

from ich_node.database import metrics, outbox, queue, worklist
from ich_node.database.engine import Database, Session
from ich_node.database.tables import StudyRow
from ich_node.findings import Priority, StudyState
from tests.benchmarks import million_studies as million
from tests.postgresql_server import postgresql_server

STUDIES = 1_000_000
ROUNDS = 100
SLOW_ROUNDS = 3
"""Of what counts or looks at everything."""
_FLOOR = "floor: one study by its primary key"


class _Undone(Exception):
    """Ends a transaction without a trace, so that all rounds see the same."""


_Query = Callable[[Session, random.Random], object]


def run(studies: int = STUDIES) -> None:
    """Fill, measure and print, on one database after the other."""
    with tempfile.TemporaryDirectory() as folder:
        _measure(f"sqlite:///{Path(folder) / 'ich-node.sqlite'}", studies)
    try:
        with postgresql_server("shared_buffers=512MB max_wal_size=4GB") as server:
            server.run("CREATE DATABASE million")
            _measure(server.url("million"), studies)
    except pytest.skip.Exception as skipped:
        print(skipped)


def _measure(url: str, studies: int) -> None:
    with _filled(url, studies) as database:
        _table(database, studies, "nobody reviews")
        million.review_all(database, before=million.NOW - timedelta(days=1))
        _table(database, studies, "all but the last day is reviewed")


@contextmanager
def _filled(url: str, studies: int) -> Iterator[Database]:
    database = Database(url)
    try:
        database.upgrade()
        started = time.perf_counter()
        million.fill(database, studies)
        print(f"{database.engine.dialect.name}: {studies} studies in {time.perf_counter() - started:.0f} s")
        yield database
    finally:
        database.dispose()


def _table(database: Database, studies: int, hospital: str) -> None:
    with database.reading() as session:
        screen = worklist.page_end(_rows(session))
    quick, slow = _quick(studies, screen), _slow()
    times: dict[str, list[float]] = {name: [] for name in (*quick, *slow)}
    for number in range(ROUNDS + 1):
        chosen = random.Random(number)
        for name, query in (*quick.items(), *(slow.items() if number <= SLOW_ROUNDS else ())):
            seconds = _seconds(database, query, chosen)
            if number:  # the first round warms caches and compiled statements
                times[name].append(seconds)
    floor = _percentile(times[_FLOOR], 50)
    print(f"\n{database.engine.dialect.name}, {hospital}", flush=True)
    print(f"{'':52}{'p50 ms':>9}{'p95':>9}{'p99':>9}{'p50 / floor':>13}")
    for name, taken in times.items():
        p50, p95, p99 = (_percentile(taken, percent) * 1e3 for percent in (50, 95, 99))
        print(f"{name:52}{p50:9.2f}{p95:9.2f}{p99:9.2f}{p50 / 1e3 / floor:13.1f}")


def _quick(studies: int, screen: str | None) -> dict[str, _Query]:
    """What has to answer within 10 ms; ``screen``: where the first page ends."""
    top = _rows
    day = million.NOW - timedelta(days=1)
    pick = partial(_pick, studies)
    return {
        _FLOOR: lambda s, r: s.execute(select(StudyRow.state).where(_is(pick(r)))).one(),
        "worklist: top 200": lambda s, r: top(s),
        "worklist: 200 after the first 200": lambda s, r: top(s, before=screen),
        "worklist: 200 after any": lambda s, r: top(s, before=million.study_instance_uid(pick(r))),
        "worklist: STAT and HIGH": lambda s, r: top(s, priorities=[Priority.STAT, Priority.HIGH]),
        "worklist: ROUTINE": lambda s, r: top(s, priorities=[Priority.ROUTINE]),
        "worklist: last 8 hours": lambda s, r: top(s, received_since=million.NOW - timedelta(hours=8)),
        "worklist: unreviewed": lambda s, r: top(s, unreviewed=True),
        "worklist: reviewed": lambda s, r: top(s, unreviewed=False),
        "worklist: READ": lambda s, r: top(s, states=[StudyState.READ]),
        "worklist: FAILED, NOT_READ": lambda s, r: top(s, states=[StudyState.FAILED, StudyState.NOT_READ]),
        "worklist: one station": lambda s, r: top(s, modality_ae_title="CT2"),
        "worklist: a station that never sent": lambda s, r: top(s, modality_ae_title="CT9"),
        "worklist: accession number": lambda s, r: top(s, search=million.accession_number(pick(r))),
        "worklist: one patient": lambda s, r: top(s, search=million.patient_id(pick(r))),
        "worklist: Study Instance UID": lambda s, r: top(s, search=million.study_instance_uid(pick(r))),
        "one study: row of worklist_v1": lambda s, r: worklist.worklist_row(
            s, million.study_instance_uid(pick(r))
        ),
        "one study: report": lambda s, r: worklist.study_report(s, million.study_instance_uid(pick(r))),
        "studies of the last day (reprocess)": lambda s, r: worklist.find_studies(s, received_since=day),
        "failed studies of the last day": lambda s, r: worklist.find_studies(
            s, received_since=day, states=[StudyState.FAILED]
        ),
        "overdue": lambda s, r: worklist.overdue(s, before=million.NOW),
        "queue: is a study due": lambda s, r: queue.has_due_study(s, million.NOW),
        "queue: studies that are due": lambda s, r: queue.take_due_studies(s, million.NOW),
        "outbox: destinations that are due": lambda s, r: outbox.destinations_due(s, million.NOW),
        "metrics: unread images": lambda s, r: metrics.unread_images(s),
        "metrics: outbox": lambda s, r: metrics.outbox_standing(s),
        "metrics: turnaround": lambda s, r: metrics.turnaround_times(s),
    }


def _slow() -> dict[str, _Query]:
    """What counts or looks at everything."""
    return {
        "metrics: studies by state and priority": lambda s, r: metrics.study_counts(s),
        "studies by state": lambda s, r: worklist.state_counts(s),
        "metrics: spool": lambda s, r: metrics.spool_standing(s),
        "worklist: a name's words, many": lambda s, r: _rows(s, search="kowalski łuk"),
        "worklist: text that is nowhere": lambda s, r: _rows(s, search="nobody has this"),
    }


def _rows(session: Session, **narrowed: Any) -> list[dict[str, Any]]:
    return worklist.worklist(session, **narrowed)


def _pick(studies: int, chosen: random.Random) -> int:
    return chosen.randint(1, studies)


def _is(number: int) -> ColumnElement[bool]:
    return StudyRow.study_instance_uid == million.study_instance_uid(number)


def _seconds(database: Database, query: _Query, chosen: random.Random) -> float:
    with suppress(_Undone), database.writing() as session:
        started = time.perf_counter()
        query(session, chosen)
        taken = time.perf_counter() - started
        raise _Undone
    return taken


def _percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


if __name__ == "__main__":
    run()
