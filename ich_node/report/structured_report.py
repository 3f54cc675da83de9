"""The result as a Comprehensive 3D SR: TID 1500 Measurement Report in the shape of IHE AI Results."""

from __future__ import annotations

from highdicom.sr import (
    Comprehensive3DSR,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes as dicom_codes

from ich_node import codes
from ich_node.report.header import choose_character_set, copy_identity, referenced_requests, stamp
from ich_node.report.image_library import code, image_library
from ich_node.report.measurements import measurement_groups
from ich_node.report.reading_report import DEVICE_NAME, MANUFACTURER, Predecessor, ReadingReport
from ich_node.report.uids import device_uid, result_uid
from ich_node.report.wording import (
    DISCLAIMER,
    algorithm_line,
    conclusion,
    series_description,
    slice_lines,
    subtype_lines,
)

SERIES_NUMBER = 9901
_CONTAINS = RelationshipTypeValues.CONTAINS


def build_structured_report(report: ReadingReport) -> Dataset:
    """Write one reading as a structured report, whether hemorrhage was found or not.

    Flags COMPLETE, UNVERIFIED, PRELIMINARY (PS3.3 C.17.2); evidence is every slice that was read; a
    predecessor is named where the reading supersedes another. UIDs and bytes follow from the report alone.

    Returns
    -------
    pydicom.Dataset
        With file meta, Explicit VR Little Endian, ready for ``save_as(path, enforce_file_format=True)``.
    """
    tree = _content(report)
    document = Comprehensive3DSR(
        evidence=_evidence(report),
        content=tree[0],
        series_instance_uid=result_uid(report, "sr-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(report, "sr"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=series_description(report, "result"),
        previous_versions=[_predecessor(report.predecessor)] if report.predecessor else None,
    )
    source = report.source_images[0]
    copy_identity(source, document)
    requests = referenced_requests(source)
    if requests:
        document.ReferencedRequestSequence = requests
    document.ReferencedPerformedProcedureStepSequence = []
    document.DeviceUID = device_uid(report)
    stamp(report, document)
    choose_character_set(source, document)
    return document


def _evidence(report: ReadingReport) -> list[Dataset]:
    """Every object that was read, once, however many of its frames were."""
    objects: dict[str, Dataset] = {}
    for image in report.source_images:
        objects.setdefault(str(image.SOPInstanceUID), image)
    return [_reference(image) for image in objects.values()]


def _reference(image: Dataset) -> Dataset:
    """Return what highdicom needs of a source image; the identity is copied afterwards, without its
    checks.
    """
    reference = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(reference, keyword, str(image[keyword].value))
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
        setattr(reference, keyword, None)
    for keyword in ("AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(reference, keyword, None)
    return reference


def _predecessor(earlier: Predecessor) -> Dataset:
    document = Dataset()
    document.StudyInstanceUID = earlier.study_instance_uid
    document.SeriesInstanceUID = earlier.series_instance_uid
    document.SOPInstanceUID = earlier.sop_instance_uid
    document.SOPClassUID = earlier.sop_class_uid
    return document


def _content(report: ReadingReport) -> MeasurementReport:
    tree = MeasurementReport(
        observation_context=_observation_context(report),
        procedure_reported=code(codes.CT_OF_HEAD),
        imaging_measurements=measurement_groups(report),
    )
    root = tree[0].ContentSequence
    # The order of TID 1500: the library before the measurements, qualitative evaluations last.
    root.insert(len(root) - 1, image_library(report))
    root.append(_evaluations(report))
    return tree


def _observation_context(report: ReadingReport) -> ObservationContext:
    algorithm = report.finding.algorithm
    device = DeviceObserverIdentifyingAttributes(
        uid=device_uid(report),
        name=DEVICE_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.name,
        serial_number=algorithm.version,
    )
    observer = ObserverContext(observer_type=dicom_codes.DCM.Device, observer_identifying_attributes=device)
    return ObservationContext(observer_device_context=observer)


def _evaluations(report: ReadingReport) -> ContainerContentItem:
    """Return the facts once more as coded values and as text, for viewers that show no measurement groups."""
    container = ContainerContentItem(name=code(codes.QUALITATIVE_EVALUATIONS), relationship_type=_CONTAINS)
    lines = [
        DISCLAIMER,
        *subtype_lines(report),
        *slice_lines(report),
        *(f"Caveat: {caveat}" for caveat in report.caveats),
        f"Algorithm: {algorithm_line(report)}. Reading {report.run_number} of this series.",
    ]
    items: list[ContentItem] = [_text(codes.CONCLUSION, conclusion(report))]
    items.extend(_text(codes.COMMENT, line) for line in lines)
    container.ContentSequence = ContentSequence(items)
    return container


def _text(name: codes.CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name=code(name), value=value, relationship_type=_CONTAINS)
