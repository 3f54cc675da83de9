"""Studies that the real pipeline has read: images in the spool, rows, result objects, maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from ich_node.database.receipt import record_instances
from ich_node.findings import (
    AlgorithmIdentification,
    IchSubtype,
    Localization,
    OperatingPoints,
    SeriesFinding,
    SliceFinding,
)
from ich_node.node import Node
from ich_node.pipeline import Predictor
from ich_node.reading_job import read_due_study
from ich_node.receive.received import rebuild
from ich_node.receive.spool import Spool
from ich_node.settings import PacsSettings, Settings
from tests.database_cases import sqlite_database

SUBTYPES = (IchSubtype.ANY, IchSubtype.SUBDURAL)
ALGORITHM = AlgorithmIdentification(
    name="scripted",
    version="1",
    weights_sha256="0" * 64,
    operating_points=OperatingPoints(high_confidence=0.8, sensitive=0.5),
)


class MappingPredictor:
    """Finds a hemorrhage in given slices, each with a map per class and a point; or in slabs, by their middle slice."""

    def __init__(self, suspicious: Sequence[int], together: int = 1) -> None:
        self.suspicious = suspicious
        self.together = together
        self.algorithm = ALGORITHM

    def predict(
        self,
        hu: npt.NDArray[np.float32],
        spacing_mm: tuple[float, float, float],
        *,
        slice_thickness_mm: float | None = None,
        widest_gap_mm: float | None = None,
    ) -> SeriesFinding:
        slices = [self._of_slab(index, hu.shape[1:]) for index in range(len(hu))]
        return SeriesFinding(
            slices=tuple(slices),
            suspicion=0.9,
            subtypes={IchSubtype.SUBDURAL: 0.7},
            algorithm=self.algorithm,
        )

    def _of_slab(self, index: int, shape: tuple[int, ...]) -> SliceFinding:
        if self.together == 1:
            return self._slice(index, shape)
        middle = index // self.together * self.together + (self.together - 1) // 2
        found = replace(self._slice(middle, shape), shown_on=middle)
        return found if index == middle else replace(found, localizations=(), likelihood_maps={})

    def _slice(self, index: int, shape: tuple[int, ...]) -> SliceFinding:
        if index not in self.suspicious:
            return SliceFinding(probabilities=dict.fromkeys(SUBTYPES, 0.1))
        score = 0.9 - 0.01 * index
        return SliceFinding(
            probabilities={IchSubtype.ANY: score, IchSubtype.SUBDURAL: 0.7},
            localizations=(
                Localization(kind="point", subtype=IchSubtype.SUBDURAL, coordinates=(40.5, 60.5), score=0.7),
            ),
            likelihood_maps={subtype: disk(shape) for subtype in SUBTYPES},
        )


def disk(shape: tuple[int, ...], row: float = 0.47, column: float = 0.32) -> npt.NDArray[np.float32]:
    """A likelihood map that rises to 1 at one place: (rows, columns) float32."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    distance = np.hypot(rows - row * shape[0], columns - column * shape[1])
    return np.clip(1 - distance / (0.12 * shape[0]), 0, 1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class ReadStudies:
    """A node whose worker is this test."""

    node: Node

    def arrive(self, images: Sequence[FileDataset]) -> str:
        """Put images into spool and database as the receiver does; returns the Study Instance UID."""
        spool = Spool(self.node.settings.spool_dir)
        for image in images:
            buffer = DicomBytesIO()
            buffer.is_little_endian = True
            buffer.is_implicit_VR = image.file_meta.TransferSyntaxUID.is_implicit_VR
            write_dataset(buffer, image)
            spool.store(
                buffer.getvalue(),
                sop_class_uid=image.SOPClassUID,
                sop_instance_uid=image.SOPInstanceUID,
                transfer_syntax_uid=image.file_meta.TransferSyntaxUID,
                source_ae_title="CT01",
            )
        now = datetime.now(UTC)

        def record(received: Any) -> None:
            with self.node.database.writing() as session:
                record_instances(session, [received], due_at=now)

        assert rebuild(spool, record).failed == ()
        return str(images[0].StudyInstanceUID)

    def read(self, images: Sequence[FileDataset], predictor: Predictor) -> str:
        """Receive images and read them."""
        uid = self.arrive(images)
        assert read_due_study(self.node, uid, lambda _name: [predictor])
        return uid


@contextmanager
def read_studies(folder: Path) -> Iterator[ReadStudies]:
    """A node with an empty database and one PACS that nobody calls."""
    pacs = PacsSettings(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=104)
    settings = Settings(data_dir=folder, pacs=(pacs,))
    with sqlite_database(folder) as database:
        yield ReadStudies(node=Node(settings=settings, database=database))
