"""A node with real objects of many kinds in spool and results, for tests of DICOMweb."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import delete

from ich_node.database.engine import Database
from ich_node.database.receipt import record_instances
from ich_node.database.result_objects import NewObject, add_objects
from ich_node.database.tables import OutboxRow, ReadingRow, ResultObjectRow, StudyRow
from ich_node.receive.received import read_received
from ich_node.receive.spool import Spool
from ich_node.report.result_objects import ResultObject
from ich_node.settings import Settings
from tests.stored_studies import StoredStudies
from tests.unit.encoded_images import image, multi_frame, smooth_hu

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class DicomwebNode:
    """Spool, results and rows of one node."""

    settings: Settings
    database: Database
    spool: Spool
    studies: StoredStudies

    def receive(self, dataset: FileDataset) -> Path:
        """Take one object through the spool into the rows; its file."""
        stored = self.spool.store(
            data_set(dataset),
            sop_class_uid=str(dataset.SOPClassUID),
            sop_instance_uid=str(dataset.SOPInstanceUID),
            transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
            source_ae_title="CT_ER",
        )
        received = replace(read_received(self.spool, stored.path), received_at=NOW)
        with self.database.writing() as session:
            record_instances(session, [received], due_at=NOW)
        return stored.path

    def read(self, study: str, series: int = 1) -> None:
        """Read a series ``{study}.{series}``: a structured report and two captures."""
        self.studies.queue(at=NOW + timedelta(minutes=1))
        self.studies.read(study, at=NOW + timedelta(minutes=2), suspicion=0.9, series=series)

    def add_results(self, study: str, objects: Sequence[ResultObject]) -> None:
        """Real result objects in the place of those that the study has."""
        for path in self.result_files():
            path.unlink()
        made = [self._write(study, item) for item in objects]
        with self.database.writing() as session:
            row = session.get_one(StudyRow, study)
            session.execute(delete(OutboxRow))
            session.execute(delete(ResultObjectRow).where(ResultObjectRow.study_instance_uid == study))
            reading = None if row.reading_id is None else session.get(ReadingRow, row.reading_id)
            add_objects(session, row, made, reading, NOW)

    def _write(self, study: str, item: ResultObject) -> NewObject:
        dataset = item.dataset
        dataset.StudyInstanceUID = study
        name = f"{dataset.SOPInstanceUID}-1.dcm"
        dataset.save_as(self.settings.results_dir / name, enforce_file_format=True)
        return NewObject(
            sop_instance_uid=str(dataset.SOPInstanceUID),
            sop_class_uid=str(dataset.SOPClassUID),
            kind=item.name,
            file_name=name,
        )

    def result_files(self) -> list[Path]:
        return sorted(self.settings.results_dir.glob("*.dcm"))


@contextmanager
def dicomweb_node(folder: Path, **settings: Any) -> Iterator[DicomwebNode]:
    """An empty node below a folder."""
    chosen = Settings(data_dir=folder, **settings)
    chosen.results_dir.mkdir(parents=True, exist_ok=True)
    database = Database(chosen.database_url)
    database.upgrade()
    try:
        studies = StoredStudies(database=database, results_dir=chosen.results_dir, slices=1)
        yield DicomwebNode(settings=chosen, database=database, spool=Spool(chosen.spool_dir), studies=studies)
    finally:
        database.dispose()


def placed(dataset: FileDataset, study: str, series: int = 1, number: int = 1, **changes: Any) -> FileDataset:
    """The object in a study and series of its own; ``changes`` are keywords, None deletes."""
    values: dict[str, Any] = {
        "StudyInstanceUID": study,
        "SeriesInstanceUID": f"{study}.{series}",
        "SOPInstanceUID": f"{study}.{series}.{number}",
        "SeriesNumber": series,
        "InstanceNumber": number,
        **changes,
    }
    for keyword, value in values.items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def slice_of(
    study: str, series: int = 1, number: int = 1, *, syntax: str = "", **changes: Any
) -> FileDataset:
    """A small CT slice."""
    hu = smooth_hu(number)[number - 1]
    return placed(image(hu, syntax or str(ExplicitVRLittleEndian)), study, series, number, **changes)


def frames_of(study: str, series: int, frames: int, *, syntax: str = "") -> FileDataset:
    """A small Enhanced CT."""
    return placed(multi_frame(smooth_hu(frames), syntax or str(ExplicitVRLittleEndian)), study, series, 1)


def data_set(dataset: FileDataset) -> bytes:
    """As it travels."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = dataset.file_meta.TransferSyntaxUID.is_implicit_VR
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def values_of(path: Path | bytes) -> Any:
    """Stored values by pydicom, apart from the node."""
    dataset: Dataset = dcmread(io.BytesIO(path) if isinstance(path, bytes) else path)
    return np.asarray(dataset.pixel_array)
