"""Result objects as files: what is made of a reading, or of the fact that there was none, safe on disk."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
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
from ich_node.report.likelihood_maps import SUFFIX, encode_maps
from ich_node.report.not_read_report import NotReadReport, build_not_read_report
from ich_node.report.result_objects import ResultKind, ResultObject, Wish, build_result_objects
from ich_node.report.sr_class import SrClass
from ich_node.settings import Settings

logger = logging.getLogger(__name__)

_HEADERS_TRIED = 10
_CONTENT_DIGITS = 12
_CLAIMS_CLEARED = 10
"""Claims before the own one whose files are looked for: workers that died have left them."""


@dataclass(frozen=True, kw_only=True)
class ResultFiles:
    """Where results are written, and what destinations want of them."""

    folder: Path
    wishes: Mapping[str, Wish] = field(default_factory=dict)
    """By the name of the destination."""
    of_unread: Mapping[str, SrClass] = field(default_factory=dict)
    """Destinations that want a report of studies that were not read."""
    claim_number: int = 0
    """Of the claim on the study, in which what is made of a reading is written; 0: of none.

    A worker that stood still beyond its lease may go on to write while another has committed its reading of the same
    series, under the same UIDs: the files of one are not those of the other.
    """

    @classmethod
    def of(cls, settings: Settings, claim: StudyClaim | None = None) -> ResultFiles:
        """As the settings say, for what is read in a claim."""
        return cls(
            folder=settings.results_dir,
            wishes={pacs.name: _wish(pacs) for pacs in settings.pacs},
            of_unread={pacs.name: SrClass(pacs.sr_class) for pacs in settings.pacs if pacs.not_read_report},
            claim_number=0 if claim is None else claim.claim_number,
        )

    def write(self, report: ReadingReport) -> tuple[list[NewObject], Dataset]:
        """Make and write the objects of a reading; those objects, and the structured report in its default form."""
        made = build_result_objects(report, self.wishes)
        self._discard(each for item in made for each in self._left_behind(item.dataset))
        try:
            return [self._save(item, self._path(item.dataset)) for item in made], made[0].dataset
        except BaseException:  # a disk that is full is not kept full by half of a result
            self._discard(self._path(item.dataset) for item in made)
            raise

    def write_maps(self, report: ReadingReport, structured_report: Dataset) -> str | None:
        """Write the likelihood maps that the study page shows; the file's name, or ``None`` where there are none.

        The page can do without: a fault is logged and holds no reading back.

        Parameters
        ----------
        structured_report
            That of the same reading, after which the file is named.
        """
        path = self._path(structured_report).with_suffix(SUFFIX)
        try:
            self._discard(each.with_suffix(SUFFIX) for each in self._left_behind(structured_report))
            content = encode_maps(report.finding.slices)
            if content is None:
                return None
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_bytes_durably(path, content)
        except Exception:
            logger.exception("no likelihood maps for the study page")
            return None
        return path.name

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
            objects.append(self._save(item, self.folder / f"{made.SOPInstanceUID}.dcm", again=False))
        self.sync()
        return tuple(objects)

    def sync(self) -> None:
        """Make the names of what was written survive a power cut."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _path(self, dataset: Dataset, claim_number: int | None = None) -> Path:
        """Where an object of a reading goes that is made in this claim, or in another one."""
        number = self.claim_number if claim_number is None else claim_number
        return self.folder / (
            f"{dataset.SOPInstanceUID}-{number}.dcm" if number else f"{dataset.SOPInstanceUID}.dcm"
        )

    def _left_behind(self, dataset: Dataset) -> Iterator[Path]:
        """Files of the same object from the claims before: what was committed has other UIDs, for a run that follows
        it has another number.
        """
        for number in range(max(1, self.claim_number - _CLAIMS_CLEARED), self.claim_number):
            yield self._path(dataset, number)

    def _discard(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def _save(self, item: ResultObject, path: Path, *, again: bool = True) -> NewObject:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        dataset = item.dataset
        if again or not path.exists():
            _write_durably(path, dataset)
        return NewObject(
            sop_instance_uid=str(dataset.SOPInstanceUID),
            sop_class_uid=str(dataset.SOPClassUID),
            kind=item.name,
            file_name=path.name,
            destinations=item.destinations,
        )


def _write_durably(path: Path, dataset: Dataset) -> None:
    """Write a whole file or none."""
    # Written to memory first: pydicom makes another error, without its number, of one that the disk gives.
    encoded = io.BytesIO()
    dataset.save_as(encoded, enforce_file_format=True)
    _write_bytes_durably(path, encoded.getbuffer())


def _write_bytes_durably(path: Path, content: bytes | memoryview) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


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
