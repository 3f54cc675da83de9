"""The result as a structured report: TID 1500 Measurement Report in the shape of IHE AI Results, or Basic Text."""

from __future__ import annotations

from dataclasses import replace

from pydicom import Dataset

from ich_node import codes
from ich_node.report.basic_text import basic_text_sections
from ich_node.report.content_items import ContentItem, container, text_item
from ich_node.report.image_library import image_library
from ich_node.report.measurements import measurement_groups
from ich_node.report.reading_report import ReadingReport
from ich_node.report.sr_class import SrClass, SrForm
from ich_node.report.sr_document import DeviceObserver, ObjectReference, SrDocument, build_document, opening
from ich_node.report.uids import device_uid, predecessor_uid, result_uid
from ich_node.report.wording import (
    DISCLAIMER,
    caveat_lines,
    conclusion,
    reading_line,
    series_description,
    slice_lines,
    subtype_lines,
)


def build_structured_report(
    report: ReadingReport,
    *,
    sr_class: SrClass = SrClass.COMPREHENSIVE_3D,
    segmentation: Dataset | None = None,
) -> Dataset:
    """Write one reading as a structured report, whether hemorrhage was found or not.

    Flags COMPLETE, UNVERIFIED, PRELIMINARY (PS3.3 C.17.2); evidence is every slice that was read; a
    predecessor is named where the reading supersedes another. UIDs and bytes follow from the arguments alone; a
    report of another class, or one that refers to a segmentation, is another object, and its predecessor is the
    earlier reading's report of the same form, or what comes closest of those that were made.

    Parameters
    ----------
    report
        The reading.
    sr_class
        The SOP class.
    segmentation
        One of the same reading, whose segments are referred to (TID 1411; in Basic Text from the findings).

    Returns
    -------
    pydicom.Dataset
        With file meta, Explicit VR Little Endian, ready for ``save_as(path, enforce_file_format=True)``.

    Raises
    ------
    ValueError
        The segmentation is not of this reading.
    """
    form = SrForm(sr_class=sr_class, with_segmentation=segmentation is not None)
    algorithm = report.finding.algorithm
    is_text = sr_class is SrClass.BASIC_TEXT
    objects = [*report.source_images, *([] if segmentation is None else [segmentation])]
    document = SrDocument(
        source=report.source_images[0],
        title=codes.DIAGNOSTIC_IMAGING_REPORT if is_text else codes.IMAGING_MEASUREMENT_REPORT,
        template="2000" if is_text else "1500",
        content=[
            *opening(_observer(report), codes.CT_OF_HEAD),
            *(basic_text_sections if is_text else _measurement_report)(report, segmentation),
        ],
        sop_class_uid=sr_class.sop_class_uid,
        sop_instance_uid=result_uid(report, form.role("sr")),
        series_instance_uid=result_uid(report, form.role("sr-series")),
        series_description=series_description(report, "result"),
        device_uid=device_uid(report),
        made_at=report.read_at,
        software=[f"{algorithm.name} {algorithm.version}"[:64]],
        evidence=[ObjectReference.of(item) for item in objects],
        predecessor=_predecessor(report, form),
    )
    return build_document(document)


def _predecessor(report: ReadingReport, form: SrForm) -> ObjectReference | None:
    earlier = report.predecessor
    if earlier is None:
        return None
    if earlier.sr_forms is not None:  # what was found, and who wants what, may have been different then
        others = (form, replace(form, with_segmentation=not form.with_segmentation))
        form = next((each for each in others if str(each) in earlier.sr_forms), SrForm())
    return ObjectReference(
        study_instance_uid=report.study_instance_uid,
        series_instance_uid=predecessor_uid(report, earlier, form.role("sr-series")),
        sop_class_uid=form.sr_class.sop_class_uid,
        sop_instance_uid=predecessor_uid(report, earlier, form.role("sr")),
    )


def _observer(report: ReadingReport) -> DeviceObserver:
    algorithm = report.finding.algorithm
    return DeviceObserver(uid=device_uid(report), model_name=algorithm.name, serial_number=algorithm.version)


def _measurement_report(report: ReadingReport, segmentation: Dataset | None) -> list[ContentItem]:
    """In the order of TID 1500: library, measurements, qualitative evaluations."""
    return [
        image_library(report),
        container(codes.IMAGING_MEASUREMENTS, measurement_groups(report, segmentation)),
        container(codes.QUALITATIVE_EVALUATIONS, _evaluations(report)),
    ]


def _evaluations(report: ReadingReport) -> list[ContentItem]:
    """Return the facts once more as text, for viewers that show no measurement groups."""
    lines = [
        DISCLAIMER,
        *subtype_lines(report),
        *slice_lines(report),
        *caveat_lines(report),
        reading_line(report),
    ]
    return [
        text_item(codes.CONCLUSION, conclusion(report)),
        *(text_item(codes.COMMENT, line) for line in lines),
    ]
