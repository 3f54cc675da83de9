"""Result objects as files: what is made of a reading, or of the fact that there was none, safe on disk."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pydicom
from pydicom import Dataset

from ich_node.database.queue import StudyClaim
from ich_node.database.result_objects import NewObject
from ich_node.destination_settings import PacsSettings
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.report import ReadingReport
from ich_node.report.compression import Compression
from ich_node.report.not_read_report import NotReadReport, build_not_read_report
from ich_node.report.result_objects import ResultKind, ResultObject, Wish, build_result_objects
from ich_node.report.sr_class import SrClass
from ich_node.settings import Settings

logger = logging.getLogger(__name__)

_HEADERS_TRIED = 10
_CONTENT_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class ResultFiles:
    """Where results are written, and what destinations want of them."""

    folder: Path
    wishes: Mapping[str, Wish] = field(default_factory=dict)
    """By the name of the destination."""
    of_unread: Mapping[str, SrClass] = field(default_factory=dict)
    """Destinations that want a report of studies that were not read."""

    @classmethod
    def of(cls, settings: Settings) -> ResultFiles:
        """As the settings say."""
        return cls(
            folder=settings.results_dir,
            wishes={pacs.name: _wish(pacs) for pacs in settings.pacs},
            of_unread={pacs.name: SrClass(pacs.sr_class) for pacs in settings.pacs if pacs.not_read_report},
        )

    def write(self, report: ReadingReport) -> tuple[list[NewObject], Dataset]:
        """Make and write the objects of a reading; those objects, and the structured report in its default form."""
        made = build_result_objects(report, self.wishes)
        return [self._save(each) for each in made], made[0].dataset

    def write_not_read(
        self, claim: StudyClaim, spool_dir: Path, *, reason: RejectionReason, detail: str
    ) -> tuple[NewObject, ...]:
        """Write the reports that a study was not read, for the destinations that want one.

        The same decision on the same images is the same report, and is not written again. Of a study without an
        image whose header can be read there is none.
        """
        if not self.of_unread:
            return ()
        try:
            report = NotReadReport(
                source_images=list(_headers(claim, spool_dir)),
                reason=reason,
                detail=detail,
                decided_at=datetime.now(UTC),
                attempt=_content(claim),
            )
        except StudyRejected as rejected:
            logger.warning("no report that a study was not read: %s", rejected.reason)
            return ()
        by_class: dict[SrClass, list[str]] = {}
        for name, sr_class in self.of_unread.items():
            by_class.setdefault(sr_class, []).append(name)
        objects = []
        for sr_class, names in by_class.items():
            made = build_not_read_report(report, sr_class=sr_class)
            item = ResultObject(kind=ResultKind.SR, dataset=made, destinations=tuple(names))
            objects.append(self._save(item, again=False))
        self.sync()
        return tuple(objects)

    def sync(self) -> None:
        """Make the names of what was written survive a power cut."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _save(self, item: ResultObject, *, again: bool = True) -> NewObject:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        dataset = item.dataset
        path = self.folder / f"{dataset.SOPInstanceUID}.dcm"
        if again or not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}.part")
            with unfinished.open("wb") as file:
                dataset.save_as(file, enforce_file_format=True)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        return NewObject(
            sop_instance_uid=str(dataset.SOPInstanceUID),
            sop_class_uid=str(dataset.SOPClassUID),
            kind=item.name,
            file_name=path.name,
            destinations=item.destinations,
        )


def _wish(pacs: PacsSettings) -> Wish:
    return Wish(
        kinds=frozenset(map(ResultKind, pacs.objects)),
        sr_class=SrClass(pacs.sr_class),
        sc_compression=Compression(pacs.sc_compression),
    )


def _headers(claim: StudyClaim, spool_dir: Path) -> Iterator[Dataset]:
    """The header of one image of the study, if one can be read."""
    names = [name for series in claim.series for name in series.file_names]
    for name in names[:_HEADERS_TRIED]:
        try:
            header = pydicom.dcmread(spool_dir / name, stop_before_pixels=True)
            if str(header.StudyInstanceUID) == claim.study_instance_uid:
                yield header
                return
        except Exception as error:  # pydicom raises whatever the damage leads to
            logger.warning("%s in the spool cannot be read: %s", name, type(error).__name__)


def _content(claim: StudyClaim) -> str:
    hashes = sorted(each for series in claim.series for each in series.content_hashes)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:_CONTENT_DIGITS]
