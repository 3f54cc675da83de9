"""The suspicious slices as a Key Object Selection (PS3.3 A.35.4), TID 2010: the list of key images that viewers show
of a study.
"""

from __future__ import annotations

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext
from pydicom import Dataset
from pydicom.sr.codedict import codes as dicom_codes

from ich_node import codes
from ich_node.findings import Priority
from ich_node.report.header import choose_character_set, copy_identity, referenced_requests, stamp
from ich_node.report.image_library import code
from ich_node.report.reading_report import DEVICE_NAME, MANUFACTURER, ReadingReport
from ich_node.report.secondary_capture import overlay_slices
from ich_node.report.uids import device_uid, result_uid
from ich_node.report.wording import (
    DISCLAIMER,
    algorithm_line,
    conclusion,
    series_description,
    slice_lines,
)

SERIES_NUMBER = 9906
_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_IDENTITY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_STUDY = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime")


def flagged_slices(report: ReadingReport) -> list[int]:
    """Choose the slices that a person is to look at, most suspicious first.

    Returns
    -------
    list of int
        Every suspicious slice, also beyond those that have overlays, of a slab of thin ones the middle one; the
        most suspicious one where the study is flagged and no slice reaches the sensitive operating point; empty
        where the study is not flagged.
    """
    if report.finding.priority is Priority.ROUTINE:
        return []
    return list(report.finding.key_slices) or overlay_slices(report)


def build_key_object_selection(report: ReadingReport) -> Dataset | None:
    """Select the slices, or the frames, that one reading holds suspicious.

    The title is "Of Interest" of CID 7010: the other titles name a purpose or a receiver that a person chooses, or
    reject images. The observer is the device, as in the structured report. UIDs and bytes follow from the report
    alone.

    Returns
    -------
    pydicom.Dataset or None
        Key Object Selection Document with file meta, Explicit VR Little Endian, ready for
        ``save_as(path, enforce_file_format=True)``; ``None`` where the study is not flagged.
    """
    indices = flagged_slices(report)
    if not indices:
        return None
    document = KeyObjectSelectionDocument(
        evidence=_evidence(report, indices),
        content=_content(report, indices),
        series_instance_uid=result_uid(report, "kos-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(report, "kos"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        series_description=series_description(report, "key images"),
    )
    source = report.source_images[0]
    copy_identity(source, document)
    requests = referenced_requests(source)
    if requests:
        document.ReferencedRequestSequence = requests
    document.DeviceUID = device_uid(report)
    stamp(report, document)
    choose_character_set(source, document)
    return document


def _evidence(report: ReadingReport, indices: list[int]) -> list[Dataset]:
    """Every object that has a selected slice, once, however many of its frames are selected."""
    objects = {str(report.source_images[i].SOPInstanceUID): report.source_images[i] for i in indices}
    references = []
    for image in objects.values():
        reference = Dataset()
        for keyword in _UIDS:
            setattr(reference, keyword, str(image[keyword].value))
        for keyword in (*_IDENTITY, *_STUDY):
            # The identity is copied afterwards, without highdicom's checks.
            setattr(reference, keyword, None)
        references.append(reference)
    return references


def _content(report: ReadingReport, indices: list[int]) -> KeyObjectSelection:
    rows, columns = report.hu.shape[1:]
    selected = []
    for index in indices:
        reference = Dataset()
        reference.SOPClassUID = str(report.source_images[index].SOPClassUID)
        reference.SOPInstanceUID = str(report.source_images[index].SOPInstanceUID)
        # By these highdicom knows an image.
        reference.Rows, reference.Columns = rows, columns
        selected.append(reference)
    content = KeyObjectSelection(
        document_title=code(codes.OF_INTEREST),
        referenced_objects=selected,
        observer_device_context=_observer(report),
        description=_description(report),
    )
    for item, index in zip(content.get_references(), indices, strict=True):
        number = report.frame_number(index)
        if number is not None:
            item.ReferencedSOPSequence[0].ReferencedFrameNumber = number
    return content


def _observer(report: ReadingReport) -> ObserverContext:
    """TID 1004, the same device as in the structured report."""
    algorithm = report.finding.algorithm
    device = DeviceObserverIdentifyingAttributes(
        uid=device_uid(report),
        name=DEVICE_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.name,
        serial_number=algorithm.version,
    )
    return ObserverContext(observer_type=dicom_codes.DCM.Device, observer_identifying_attributes=device)


def _description(report: ReadingReport) -> str:
    """Key Object Description (113012, DCM)."""
    lines = [
        f"{DISCLAIMER}.",
        conclusion(report),
        *slice_lines(report),
        *(f"Caveat: {caveat}" for caveat in report.caveats),
        f"Algorithm: {algorithm_line(report)}.",
    ]
    return "\r\n".join(lines)
