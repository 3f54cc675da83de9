"""The short report of a study that was not read: that it was not, why, and that a person has to read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydicom import Dataset

from ich_node import __version__, codes
from ich_node.errors import REASON_WORDS, RejectionReason, StudyRejected
from ich_node.report import attributes
from ich_node.report.content_items import ContentItem, code_item, container, text_item
from ich_node.report.reading_report import DEVICE_NAME, is_uid
from ich_node.report.sr_class import SrClass
from ich_node.report.sr_document import DeviceObserver, ObjectReference, SrDocument, build_document, opening
from ich_node.report.uids import derived_uid
from ich_node.report.wording import DISCLAIMER, NOT_READ

_FAULTS_OF_THE_NODE = (
    RejectionReason.INVALID_MODEL_OUTPUT,
    RejectionReason.WORKER_LOST,
    RejectionReason.INTERNAL_ERROR,
)
_REFERENCE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")


@dataclass(frozen=True, kw_only=True)
class NotReadReport:
    """One study that was not read, ready to be written into a report.

    Two equal ones give equal bytes, so a retry has to pass the same ``decided_at``.

    Raises
    ------
    StudyRejected
        ``NO_IMAGES`` without a header, ``MISSING_ATTRIBUTE`` where the first has no Study Instance UID: the report
        would belong to no study.
    ValueError
        ``decided_at`` has no time zone.
    """

    source_images: Sequence[Dataset]
    """Headers of images of the study, one is enough; patient and order are those of the first."""
    reason: RejectionReason
    detail: str
    """One sentence for a person, without identifying values."""
    decided_at: datetime
    """With time zone."""
    attempt: str
    """What tells this decision from every other on the study, such as the number of the attempt."""

    def __post_init__(self) -> None:
        if self.decided_at.tzinfo is None:
            raise ValueError("decided_at needs a time zone")
        if not self.source_images:
            raise StudyRejected(RejectionReason.NO_IMAGES, "No image of the study names its patient.")
        if not is_uid(attributes.value(self.source_images[0], "StudyInstanceUID")):
            raise StudyRejected(
                RejectionReason.MISSING_ATTRIBUTE, "StudyInstanceUID is absent or no UID in the first image."
            )

    @property
    def study_instance_uid(self) -> str:
        """Study Instance UID (0020,000D)."""
        return str(self.source_images[0].StudyInstanceUID)


def build_not_read_report(report: NotReadReport, *, sr_class: SrClass = SrClass.COMPREHENSIVE_3D) -> Dataset:
    """Write that a study was not read, and why.

    In the shape of TID 2000 whatever the class: it has no measurement and no finding, and whoever looks for one finds
    none, present or absent. Evidence is every
    image of ``source_images`` that can be referred to. The UIDs follow from study, attempt, reason, detail, version
    of this node and class.

    Returns
    -------
    pydicom.Dataset
        With file meta, Explicit VR Little Endian, ready for ``save_as(path, enforce_file_format=True)``.
    """
    device_uid = derived_uid("device", DEVICE_NAME, __version__)
    observer = DeviceObserver(uid=device_uid, model_name=DEVICE_NAME, serial_number=__version__)
    document = SrDocument(
        source=report.source_images[0],
        title=codes.DIAGNOSTIC_IMAGING_REPORT,
        template="2000",
        content=[
            *opening(observer, codes.IMAGING_PROCEDURE),
            container(codes.CONCLUSIONS, _statements(report)),
        ],
        sop_class_uid=sr_class.sop_class_uid,
        sop_instance_uid=_uid(report, sr_class.role("sr")),
        series_instance_uid=_uid(report, sr_class.role("sr-series")),
        series_description="ICH AI: NOT READ (unverified)",
        device_uid=device_uid,
        made_at=report.decided_at,
        evidence=_evidence(report),
    )
    return build_document(document)


def _statements(report: NotReadReport) -> list[ContentItem]:
    has_failed = report.reason in _FAULTS_OF_THE_NODE
    lines = [
        f"Why: {REASON_WORDS[report.reason]} ({report.reason}).",
        report.detail,
        DISCLAIMER,
        f"By {DEVICE_NAME} {__version__}.",
    ]
    return [
        text_item(codes.CONCLUSION, f"{NOT_READ}."),
        code_item(codes.SUMMARY_OF_DETECTIONS, codes.FAILED if has_failed else codes.NOT_ATTEMPTED),
        *(text_item(codes.COMMENT, line) for line in lines if line),
    ]


def _evidence(report: NotReadReport) -> list[ObjectReference]:
    return [
        ObjectReference.of(image)
        for image in report.source_images
        if all(is_uid(attributes.value(image, keyword)) for keyword in _REFERENCE)
    ]


def _uid(report: NotReadReport, role: str) -> str:
    return derived_uid(
        "not-read",
        report.study_instance_uid,
        report.attempt,
        report.reason,
        report.detail,
        __version__,
        role,
    )
