"""A node with real files in spool and results, in the states that a purge meets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ich_node.database.engine import Database
from ich_node.database.receipt import Receipt, record_instances
from ich_node.database.worklist import study_report
from ich_node.node import Node
from ich_node.receive.received import read_received
from ich_node.receive.spool import Spool
from ich_node.settings import Settings
from tests.database_cases import sqlite_database
from tests.small_objects import encoded, small_object
from tests.stored_studies import StoredStudies

STUDY = "1.2.840.1"
PACS = {"name": "PACS", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
SLICES = 3


def ago(days: float) -> datetime:
    """So long before now."""
    return datetime.now(UTC) - timedelta(days=days)


@dataclass(frozen=True, kw_only=True)
class PurgeCase:
    """The node, and what brings studies into it."""

    node: Node
    spool: Spool
    studies: StoredStudies

    @property
    def database(self) -> Database:
        return self.node.database

    def store(
        self,
        number: int = 1,
        *,
        study: str = STUDY,
        series: int = 1,
        at: datetime | None = None,
        **changes: Any,
    ) -> Receipt:
        """One object through the spool into the rows; the same number is the same object."""
        dataset = small_object(
            StudyInstanceUID=study,
            SeriesInstanceUID=f"{study}.{series}",
            SOPInstanceUID=f"{study}.{series}.{number}",
            **changes,
        )
        stored = self.spool.store(
            encoded(dataset),
            sop_class_uid=str(dataset.SOPClassUID),
            sop_instance_uid=str(dataset.SOPInstanceUID),
            transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
            source_ae_title="CT_ER",
        )
        at = at or ago(0)
        received = replace(read_received(self.spool, stored.path), received_at=at)
        with self.database.writing() as session:
            (receipt,) = record_instances(session, [received], due_at=at)
        return receipt

    def receive(self, study: str = STUDY, *, series: int = 1, days: float = 40) -> None:
        """All slices of a series."""
        at = ago(days)
        for number in range(1, SLICES + 1):
            self.store(number, study=study, series=series, at=at)
        for path in self.spool.scan():
            os.utime(path, (at.timestamp(), at.timestamp()))

    def deliver(
        self,
        study: str = STUDY,
        *,
        days: float = 31,
        destinations: Sequence[str] = ("PACS",),
        refusal: str | None = None,
    ) -> None:
        """Receive a study, read it and deliver what was found so long ago."""
        self.receive(study, days=days + 1)
        self.studies.read(study, at=ago(days), suspicion=0.9, destinations=tuple(destinations))
        for destination in destinations:
            self.studies.deliver(at=ago(days), destination=destination, refusal=refusal)

    def spooled(self) -> list[str]:
        """Names of the objects on disk."""
        return [path.relative_to(self.spool.root).as_posix() for path in self.spool.scan()]

    def results(self) -> list[str]:
        """Names of the result files on disk."""
        return sorted(path.name for path in self.node.settings.results_dir.glob("*.dcm"))

    def report(self, study: str = STUDY) -> dict[str, Any]:
        """The study as `ich-node study show --json` prints it."""
        with self.database.reading() as session:
            report = study_report(session, study)
        assert report is not None
        return report


@contextmanager
def purge_case(folder: Path, **changes: Any) -> Iterator[PurgeCase]:
    """A node with one PACS and a retention of 30 days."""
    values = {
        "data_dir": folder,
        "pacs": [PACS],
        "disk": {"retention_days": 30, "min_free_gib": 0},
        **changes,
    }
    settings = Settings.model_validate(values)
    with sqlite_database(folder) as database:
        yield PurgeCase(
            node=Node(settings=settings, database=database),
            spool=Spool(settings.spool_dir),
            studies=StoredStudies(database=database, results_dir=settings.results_dir, slices=SLICES),
        )
