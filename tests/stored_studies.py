"""Studies in a database as receiver, worker and deliverer leave them, with real result objects on disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from ich_node.database.engine import Database
from ich_node.database.outbox import claim_deliveries, record_failed, record_taken
from ich_node.database.queue import StudyClaim, claim_study, take_due_studies
from ich_node.database.readings import NewObject, NewReading, finish_not_read, finish_read, last_run_numbers
from ich_node.database.receipt import record_instances
from ich_node.errors import RejectionReason
from ich_node.findings import (
    AlgorithmIdentification,
    IchSubtype,
    Localization,
    OperatingPoints,
    SeriesFinding,
    SliceFinding,
    StudyState,
)
from ich_node.receive.received import ReceivedInstance
from ich_node.receive.spool import SpooledObject
from ich_node.selection import SeriesExclusion
from ich_node.settings import Settings
from ich_node.study import Instance, StudyHeader

ALGORITHM = AlgorithmIdentification(
    name="vicar-attention-v1",
    version="1.0.0",
    weights_sha256="ab" * 32,
    operating_points=OperatingPoints(high_confidence=0.8, sensitive=0.4),
)
_LEASE = timedelta(seconds=60)


@dataclass
class StoredStudies:
    """Fills a database the way the node does."""

    database: Database
    results_dir: Path
    slices: int = 6
    _numbers: count[int] = field(default_factory=lambda: count(1))

    @property
    def settings(self) -> Settings:
        """Of an installation that keeps its results there."""
        return Settings(data_dir=self.results_dir.parent)

    def receive(
        self, study: str, *, at: datetime, series: int = 1, description: str = "Head 5mm", **header: str
    ) -> str:
        """Record a series of the study; returns its Series Instance UID."""
        series_uid = f"{study}.{series}"
        with self.database.writing() as session:
            for number in range(1, self.slices + 1):
                instance = Instance(
                    path=Path("unused"),
                    sop_instance_uid=f"{series_uid}.{number}",
                    sop_class_uid=CTImageStorage,
                    transfer_syntax_uid=ExplicitVRLittleEndian,
                    series_instance_uid=series_uid,
                    study_instance_uid=study,
                    modality="CT",
                    instance_number=number,
                    series_number=series,
                    series_description=description,
                )
                name = f"{series_uid}.{number}"
                received = ReceivedInstance(
                    spooled=SpooledObject(
                        file_name=f"{name}.dcm", path=Path("unused"), size_bytes=1, content_hash=name
                    ),
                    instance=instance,
                    study=StudyHeader(study_instance_uid=study, **header),
                    source_ae_title="CT_ER",
                    received_at=at,
                )
                record_instances(session, [received], due_at=at)
        return series_uid

    def queue(self, *, at: datetime) -> list[str]:
        """Queue what is due."""
        with self.database.writing() as session:
            return take_due_studies(session, at)

    def claim(self, study: str, *, at: datetime) -> StudyClaim:
        """Start to read a study."""
        with self.database.writing() as session:
            claim = claim_study(session, study, owner="ct-node/1", now=at, lease=_LEASE, max_attempts=3)
        assert claim is not None
        return claim

    def read(
        self,
        study: str,
        *,
        at: datetime,
        suspicion: float,
        series: int = 1,
        captures: list[npt.NDArray[np.uint8]] | None = None,
        caveats: tuple[str, ...] = (),
        subtypes: dict[IchSubtype, float] | None = None,
        exclusions: tuple[SeriesExclusion, ...] = (),
        destinations: tuple[str, ...] = ("PACS",),
    ) -> NewReading:
        """Read a study: findings, a structured report and one capture per picture given."""
        claim = self.claim(study, at=at)
        series_uid = f"{study}.{series}"
        with self.database.reading() as session:
            run = last_run_numbers(session, series_uid).get(ALGORITHM.name, 0) + 1
        pictures = [picture(i) for i in range(2)] if captures is None else captures
        made = (self._report(series_uid), *(self._capture(p, i, series_uid) for i, p in enumerate(pictures)))
        objects = tuple(replace(item, destinations=destinations) for item in made)
        finding = _finding(suspicion, self.slices, subtypes or {})
        reading = NewReading(
            series_instance_uid=series_uid,
            run_number=run,
            finding=finding,
            sop_instance_uids=tuple(f"{series_uid}.{n}" for n in range(1, self.slices + 1)),
            content_sha256=f"content {run}",
            caveats=caveats,
            timeline={"started": at.isoformat(), "predicted": at.isoformat()},
            read_at=at,
            sr_sop_instance_uid=objects[0].sop_instance_uid,
            sr_series_instance_uid=f"{series_uid}.900",
            objects=objects,
        )
        with self.database.writing() as session:
            finish_read(session, claim, exclusions=exclusions, readings=[reading], now=at)
        return reading

    def reject(
        self,
        study: str,
        *,
        at: datetime,
        reason: RejectionReason,
        detail: str,
        exclusions: tuple[SeriesExclusion, ...] = (),
        state: StudyState = StudyState.NOT_READ,
    ) -> None:
        """Find that a study cannot be read."""
        claim = self.claim(study, at=at)
        with self.database.writing() as session:
            finish_not_read(
                session, claim, exclusions=exclusions, reason=reason, detail=detail, now=at, state=state
            )

    def deliver(self, *, at: datetime, destination: str = "PACS", refusal: str | None = None) -> int:
        """Send everything that is due, or have it refused for good; how many objects."""
        with self.database.writing() as session:
            claimed = claim_deliveries(
                session, destination, owner="ct-node/2", now=at, lease=_LEASE, limit=1000
            )
            for delivery in claimed:
                if refusal is None:
                    record_taken(session, delivery, now=at, note=None, confirm=False)
                else:
                    record_failed(session, delivery, next_attempt_at=None, note=refusal)
        return len(claimed)

    def _uid(self) -> str:
        return f"2.25.{7000 + next(self._numbers)}"

    def _report(self, series_uid: str) -> NewObject:
        dataset = _dataset(self._uid(), Comprehensive3DSRStorage)
        _place(dataset, series_uid, "900")
        dataset.Modality = "SR"
        return self._save(dataset, "SR")

    def _capture(self, pixels: npt.NDArray[np.uint8], index: int, series_uid: str) -> NewObject:
        dataset = secondary_capture(self._uid(), pixels)
        _place(dataset, series_uid, "901")
        dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER", "OVERLAY" if index else "SUMMARY"]
        source = Dataset()
        source.ReferencedSOPClassUID = CTImageStorage
        source.ReferencedSOPInstanceUID = f"{series_uid}.{min(index + 2, self.slices)}"
        dataset.SourceImageSequence = [source]
        return self._save(dataset, "SC")

    def _save(self, dataset: Dataset, kind: str) -> NewObject:
        self.results_dir.mkdir(parents=True, exist_ok=True)
        name = f"{dataset.SOPInstanceUID}.dcm"
        dataset.save_as(self.results_dir / name, enforce_file_format=True)
        return NewObject(
            sop_instance_uid=str(dataset.SOPInstanceUID),
            sop_class_uid=str(dataset.SOPClassUID),
            kind=kind,
            file_name=name,
        )


def picture(seed: int, size: int = 48) -> npt.NDArray[np.uint8]:
    """(rows, columns, 3) uint8: a color gradient that tells a lost channel or a swapped axis."""
    rows, columns = np.mgrid[0:size, 0 : size + 16]
    pixels: npt.NDArray[np.uint8] = np.stack(
        [rows * 3, columns * 2, np.full_like(rows, 40 * seed)], axis=-1
    ).astype(np.uint8)
    return pixels


def _place(dataset: Dataset, series_uid: str, number: str) -> None:
    """Into a series of results of the study that a series of images is of."""
    dataset.StudyInstanceUID = series_uid.rpartition(".")[0]
    dataset.SeriesInstanceUID = f"{series_uid}.{number}"


def secondary_capture(uid: str, pixels: npt.NDArray[np.uint8]) -> Dataset:
    """An uncompressed 8-bit Secondary Capture, RGB or gray."""
    dataset = _dataset(uid, SecondaryCaptureImageStorage)
    dataset.Modality = "OT"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    return dataset


def _dataset(uid: str, sop_class_uid: str) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, uid
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _finding(suspicion: float, slices: int, subtypes: dict[IchSubtype, float]) -> SeriesFinding:
    middle = (slices - 1) / 2
    found = []
    for index in range(slices):
        score = suspicion * max(0.02, 1 - abs(index - middle) / (slices / 3))
        places: tuple[Any, ...] = ()
        if score >= ALGORITHM.operating_points.sensitive:
            places = (
                Localization(kind="point", subtype=IchSubtype.ANY, coordinates=(20.5, 30.5), score=score),
            )
        found.append(SliceFinding(probabilities={IchSubtype.ANY: score}, localizations=places))
    return SeriesFinding(slices=tuple(found), suspicion=suspicion, subtypes=subtypes, algorithm=ALGORITHM)
