"""Builders for tests of `ich_node.database`, on whichever database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ich_node.database.engine import Database, Session
from ich_node.database.notices import Listener
from ich_node.database.queue import StudyClaim, claim_study
from ich_node.database.readings import NewObject, NewReading, finish_read
from ich_node.database.receipt import Receipt, record_instances
from ich_node.database.tables import SeriesRow, StudyRow
from ich_node.findings import (
    AlgorithmIdentification,
    IchSubtype,
    Localization,
    OperatingPoints,
    Priority,
    SeriesFinding,
    SliceFinding,
)
from ich_node.receive.received import ReceivedInstance
from ich_node.receive.spool import SpooledObject
from ich_node.study import Instance, StudyHeader

T0 = datetime(2026, 3, 1, 3, 0, 0, 123456, tzinfo=UTC)
LEASE = timedelta(seconds=15)
STUDY, SERIES = "1.2.3", "1.2.3.1"
SUSPICION = {Priority.STAT: 0.95, Priority.HIGH: 0.5, Priority.ROUTINE: 0.02}
MODEL = AlgorithmIdentification(
    name="vicar-attention",
    version="1",
    weights_sha256="ab" * 32,
    operating_points=OperatingPoints(high_confidence=0.8, sensitive=0.3),
)


def at(seconds: float) -> datetime:
    """So long after the tests' beginning of time."""
    return T0 + timedelta(seconds=seconds)


@cache
def _empty_file() -> bytes:
    """An SQLite file of the newest schema; migrating anew for every test would take most of its time."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ich-node.sqlite"
        database = Database(f"sqlite:///{path}")
        database.upgrade()
        database.dispose()
        return path.read_bytes()


@contextmanager
def sqlite_database(folder: Path) -> Iterator[Database]:
    """An empty database of the newest schema in a file."""
    path = folder / "ich-node.sqlite"
    path.write_bytes(_empty_file())
    database = Database(f"sqlite:///{path}")
    database.require_current()
    yield database
    database.dispose()


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work`` in so many threads, which start as one."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Brings objects to a database, numbering them."""

    database: Database
    study: str = STUDY
    series: str = SERIES
    header: Mapping[str, Any] = field(default_factory=dict)

    def send(self, number: int, *, seconds: float = 0.0, due: float = 0.0, **changes: Any) -> Receipt:
        """One object; the same number is the same object unless ``changes`` say otherwise."""
        with self.database.writing() as session:
            return self.send_in(session, number, seconds=seconds, due=due, **changes)

    def send_in(
        self, session: Session, number: int, *, seconds: float = 0.0, due: float = 0.0, **changes: Any
    ) -> Receipt:
        """As `send`, in a transaction that is open."""
        received = self.received(number, seconds=seconds, **changes)
        (receipt,) = record_instances(session, [received], due_at=at(due))
        return receipt

    def received(self, number: int, *, seconds: float = 0.0, **changes: Any) -> ReceivedInstance:
        """What the receiver hands on for such an object."""
        uid = changes.pop("sop_instance_uid", f"{self.series}.{number}")
        content_hash = changes.pop("content_hash", f"sha-of-{uid}")
        source_ae_title = changes.pop("source_ae_title", "CT1")
        name = f"{content_hash}.dcm"
        instance = Instance(
            path=Path("/nowhere"),
            sop_instance_uid=uid,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            series_instance_uid=self.series,
            study_instance_uid=self.study,
            modality="CT",
            instance_number=number,
            image_position_patient_mm=(0.0, 0.5, float(number)),
            image_orientation_patient=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            series_number=2,
            series_description="head",
        )
        return ReceivedInstance(
            spooled=SpooledObject(
                file_name=name, path=Path(name), size_bytes=2**33, content_hash=content_hash
            ),
            instance=replace(instance, **changes),
            study=StudyHeader(study_instance_uid=self.study, **self.header),
            source_ae_title=source_ae_title,
            received_at=at(seconds),
        )


def claim(
    database: Database, *, seconds: float, study: str = STUDY, owner: str = "worker", max_attempts: int = 3
) -> StudyClaim | None:
    """Try to take a study up; `None` also for one that is given up."""
    with database.writing() as session:
        claimed = claim_study(
            session, study, owner=owner, now=at(seconds), lease=LEASE, max_attempts=max_attempts
        )
    return claimed if isinstance(claimed, StudyClaim) else None


def must_claim(database: Database, **arguments: Any) -> StudyClaim:
    """Take a study up, which has to succeed."""
    claimed = claim(database, **arguments)
    assert claimed is not None
    return claimed


def finding(priority: Priority, *, slices: int = 2) -> SeriesFinding:
    """A finding that leads to this priority."""
    suspicion = SUSPICION[priority]
    point = Localization(kind="point", subtype=IchSubtype.ANY, coordinates=(10.5, 20.5), score=0.9)
    found = SliceFinding(probabilities={IchSubtype.ANY: suspicion}, localizations=(point,))
    return SeriesFinding(
        slices=(found,) * slices,
        suspicion=suspicion,
        subtypes={IchSubtype.SUBDURAL: suspicion / 2},
        algorithm=MODEL,
    )


def reading(
    priority: Priority,
    *,
    series: str = SERIES,
    run: int = 1,
    seconds: float = 10.0,
    destinations: Sequence[str] = (),
) -> NewReading:
    """A reading with one structured report and one secondary capture."""
    result, to = f"9.{series}.{run}", tuple(destinations)
    return NewReading(
        series_instance_uid=series,
        run_number=run,
        finding=finding(priority),
        sop_instance_uids=(f"{series}.1", f"{series}.2"),
        content_sha256=f"content {run}",
        caveats=("a caveat",),
        timeline={"started": at(seconds).isoformat()},
        read_at=at(seconds),
        sr_sop_instance_uid=f"{result}.1",
        sr_series_instance_uid=f"{result}.0",
        objects=tuple(
            NewObject(
                sop_instance_uid=f"{result}.{number}",
                sop_class_uid=f"1.{number}",
                kind=kind.upper(),
                file_name=f"{run}.{kind}",
                destinations=to,
            )
            for number, kind in ((1, "sr"), (2, "sc"))
        ),
    )


def read_once(
    database: Database,
    priority: Priority,
    *,
    study: str = STUDY,
    series: str | None = None,
    run: int = 1,
    seconds: float = 10.0,
    destinations: Sequence[str] = ("PACS",),
    listeners: Sequence[Listener] = (),
) -> Priority:
    """Claim a due study and commit a reading of one of its series."""
    claimed = must_claim(database, seconds=seconds, study=study)
    found = reading(
        priority, series=series or f"{study}.1", run=run, seconds=seconds, destinations=destinations
    )
    with database.writing() as session:
        return finish_read(
            session, claimed, exclusions=(), readings=[found], now=at(seconds + 1), listeners=listeners
        )


def study_row(database: Database, study: str = STUDY) -> StudyRow:
    """The study as it stands."""
    with database.reading() as session:
        return session.get_one(StudyRow, study)


def series_row(database: Database, series: str = SERIES) -> SeriesRow:
    """The series as it stands."""
    with database.reading() as session:
        return session.get_one(SeriesRow, series)
