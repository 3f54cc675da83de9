"""The result as pictures that every viewer shows: RGB Secondary Captures, a summary and one overlay per
suspicious slice.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from PIL import Image
from pydicom import Dataset
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat, format_number_as_ds

from ich_node import codes
from ich_node.findings import IchSubtype, Priority
from ich_node.report.attributes import numbers, text
from ich_node.report.compression import Compression, compress_capture
from ich_node.report.content_items import (
    encoded_dataset,
    sequence_element,
    sop_reference,
    tag_of,
    uid_element,
)
from ich_node.report.encoded_attributes import SharedAttributes, encoded_attribute
from ich_node.report.geometry import directions, patient_orientation
from ich_node.report.header import choose_character_set, copy_identity, order_items, stamp
from ich_node.report.overlay import HEADER_HEIGHT, render_overlay
from ich_node.report.reading_report import MANUFACTURER, ReadingReport
from ich_node.report.sketch import Sketches, SliceSketch, sketches_of
from ich_node.report.summary import montage_slices, render_summary
from ich_node.report.uids import device_uid, result_uid
from ich_node.report.viewport import Viewport, whole_slice
from ich_node.report.wording import DISCLAIMER, series_description

SERIES_NUMBER = 9902
MAX_OVERLAYS = 8
"""Most overlays of one reading, most suspicious slices first."""
_NOBODY = "2.25.0"
"""Stands for every UID until it is known whose capture it becomes."""
_DECIMAL_LENGTH = 16
_ITEM_HEADER = 8
"""Bytes of tag and length before the attributes of an encoded item (PS3.5 section 7.5)."""


def build_secondary_captures(
    report: ReadingReport, compression: Compression = Compression.NONE
) -> list[Dataset]:
    """Draw one reading: the summary first, then the suspicious slices from the most suspicious down.

    A reading that found nothing has the summary alone. UIDs and bytes follow from the report and the compression
    alone; `compress_capture` makes a further encoding without drawing again.

    Returns
    -------
    list of pydicom.Dataset
        Secondary Capture Image Storage with file meta, RGB, Explicit VR Little Endian where ``compression`` does not
        say otherwise, ready for ``save_as(path, enforce_file_format=True)``.
    """
    sketches = sketches_of(report)
    shared = SharedAttributes(_blank(report))
    captures = [shared.with_own(_summary(report, sketches))]
    for number, index in enumerate(overlay_slices(report), start=2):
        captures.append(shared.with_own(_overlay(report, sketches(index), index, number)))
    return [compress_capture(capture, compression) for capture in captures]


def overlay_slices(report: ReadingReport) -> list[int]:
    """Choose the slices that get an overlay of their own; at least one where the study is flagged."""
    finding = report.finding
    if finding.priority is Priority.ROUTINE:
        return []
    if finding.key_slices:
        return list(finding.key_slices[:MAX_OVERLAYS])
    own = [i for i in range(len(finding.slices)) if finding.stands_for_itself(i)]
    return [max(own, key=lambda i: (finding.slices[i].probabilities[IchSubtype.ANY], -i))]


def sc_to_png(capture: Dataset) -> bytes:
    """Return the picture of an RGB Secondary Capture as PNG.

    Parameters
    ----------
    capture
        One that `build_secondary_captures` made, or one read back from a PACS.
    """
    file = io.BytesIO()
    Image.fromarray(capture.pixel_array).save(file, "PNG")
    return file.getvalue()


def _summary(report: ReadingReport, sketches: Sketches) -> Iterator[RawDataElement]:
    """What only the summary has."""
    yield encoded_attribute("ImageType", "DERIVED", "SECONDARY", "OTHER", "SUMMARY")
    yield encoded_attribute(
        "DerivationDescription", "Montage of the most telling slices with likelihood contours and scores"
    )
    yield from _named_sources(report, montage_slices(report), codes.SOURCE_IMAGE_FOR_MONTAGE)
    yield from _named_page(result_uid(report, "sc-summary"), 1, render_summary(report, sketches))


def _overlay(report: ReadingReport, sketch: SliceSketch, index: int, number: int) -> Iterator[RawDataElement]:
    """What only the overlay of one slice has."""
    yield encoded_attribute("ImageType", "DERIVED", "SECONDARY", "OTHER", "OVERLAY")
    yield encoded_attribute(
        "DerivationDescription", "Slice in the brain window with likelihood contours and scores"
    )
    yield from _named_sources(report, [index], codes.SOURCE_IMAGE_FOR_PROCESSING)
    yield from _placed_in_patient(report, report.source_images[index])
    uid = result_uid(report, f"sc-overlay/{report.slice_key(index)}")
    yield from _named_page(uid, number, render_overlay(report, index, sketch))


def _named_page(
    sop_instance_uid: str, number: int, pixels: npt.NDArray[np.uint8]
) -> Iterator[RawDataElement]:
    yield encoded_attribute("SOPInstanceUID", sop_instance_uid)
    yield encoded_attribute("InstanceNumber", number)
    yield encoded_attribute("Rows", pixels.shape[0])
    yield encoded_attribute("Columns", pixels.shape[1])
    yield encoded_attribute("PixelData", pixels.tobytes())


@cache
def _empty_capture() -> SharedAttributes:
    """Build, once, a capture of nobody with a picture of one pixel, as highdicom makes it."""
    capture = SCImage(
        pixel_array=np.zeros((1, 1, 3), np.uint8),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        study_instance_uid=_NOBODY,
        series_instance_uid=_NOBODY,
        series_number=SERIES_NUMBER,
        sop_instance_uid=_NOBODY,
        instance_number=1,
        manufacturer=MANUFACTURER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    return SharedAttributes(capture)


def _blank(report: ReadingReport) -> Dataset:
    """Return what all captures of a reading share; each gets a name and a picture of its own."""
    capture = _empty_capture().with_own([])
    capture.SeriesInstanceUID = result_uid(report, "sc-series")
    capture.SeriesDescription = series_description(report, "overlays")
    source = report.source_images[0]
    copy_identity(source, capture)
    requests = order_items(source)
    if requests:
        capture.RequestAttributesSequence = requests
    capture.PatientOrientation = list(patient_orientation(source) or ())
    capture.BodyPartExamined = "HEAD"
    capture.ConversionType = "WSD"
    # The text names neither patient nor acquisition date, which is what the attribute asks (PS3.3 C.7.6.1).
    capture.BurnedInAnnotation = "NO"
    capture.LossyImageCompression = "00"
    capture.DeviceUID = device_uid(report)
    capture.ImageComments = DISCLAIMER
    capture.DerivationCodeSequence = [_code_item(codes.SPATIAL_RESAMPLING)]
    _copy_acquisition(report, capture)
    stamp(report, capture)
    capture.DateOfSecondaryCapture = capture.ContentDate
    capture.TimeOfSecondaryCapture = capture.ContentTime
    choose_character_set(source, capture)
    return capture


def _copy_acquisition(report: ReadingReport, capture: Dataset) -> None:
    """Lossy compression of a source stays part of the picture's history (PS3.3 C.7.6.1.1.5)."""
    for image in report.source_images:
        if text(image, "LossyImageCompression") == "01":
            capture.LossyImageCompression = "01"
            ratio = numbers(image, "LossyImageCompressionRatio", 1)
            if ratio is not None:
                capture.LossyImageCompressionRatio = DSfloat(ratio[0], auto_format=True)
            return


def _named_sources(
    report: ReadingReport, indices: Sequence[int], purpose: codes.CodedConcept
) -> Iterator[RawDataElement]:
    """Source Image Sequence (0008,2112), with the references by series of SOP Common (PS3.3 C.12.2)."""
    sources, references = [], []
    for indices_in_object in _by_object(report, indices):
        image = report.source_images[indices_in_object[0]]
        uids = str(image.SOPClassUID), str(image.SOPInstanceUID)
        references.append(sop_reference(*uids))
        frames = [report.frame_number(index) for index in indices_in_object]
        numbered = [frame for frame in frames if frame is not None]
        source = sop_reference(*uids, frames=numbered if len(numbered) == len(frames) else None)
        sources.append(encoded_dataset([source[_ITEM_HEADER:], _encoded_purpose(purpose)]))
    yield encoded_attribute("SourceImageSequence", b"".join(sources))
    listed = sequence_element(tag_of("ReferencedInstanceSequence"), references)
    series = encoded_dataset([listed, uid_element("SeriesInstanceUID", report.series_instance_uid)])
    yield encoded_attribute("ReferencedSeriesSequence", series)


def _by_object(report: ReadingReport, indices: Sequence[int]) -> list[list[int]]:
    """Group slices by the object that they are frames of; a single-frame image is a group of its own."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(str(report.source_images[index].SOPInstanceUID), []).append(index)
    return list(groups.values())


def _code_item(concept: codes.CodedConcept) -> Dataset:
    code = Code(concept.value, concept.scheme_designator, concept.meaning)
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        code.value,
        code.scheme_designator,
        code.meaning,
    )
    return item


@cache
def _encoded_purpose(purpose: codes.CodedConcept) -> bytes:
    """Purpose of Reference Code Sequence (0040,A170)."""
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = False, True
    write_data_element(file, DataElement("PurposeOfReferenceCodeSequence", "SQ", [_code_item(purpose)]))
    return file.getvalue()


def _placed_in_patient(report: ReadingReport, image: Dataset) -> Iterator[RawDataElement]:
    """Give an overlay the plane of its slice, so that viewers measure on it and draw its reference line.

    Pixel Spacing (0028,0030) is that of the drawn slice, Image Position (Patient) that of the page's first
    pixel, above the slice by the height of the header.
    """
    pixel_spacing = numbers(image, "PixelSpacing", 2)
    if pixel_spacing is None or min(pixel_spacing) <= 0:
        return
    view = whole_slice(report)
    spacing = (pixel_spacing[0] / view.scale_y, pixel_spacing[1] / view.scale_x)
    if not np.isfinite(spacing).all():
        return
    yield encoded_attribute("PixelSpacing", *map(_decimal, spacing))
    pair, position = directions(image), numbers(image, "ImagePositionPatient", 3)
    frame = text(image, "FrameOfReferenceUID")
    if pair is None or position is None or not frame or not UID(frame).is_valid:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        corner = _first_pixel(view, pixel_spacing, pair, np.asarray(position))
    if not np.isfinite(corner).all():
        return
    yield encoded_attribute("FrameOfReferenceUID", frame)
    yield encoded_attribute("PositionReferenceIndicator")
    yield encoded_attribute("ImagePositionPatient", *(_decimal(round(float(c), 6)) for c in corner))
    cosines = (float(c) for direction in pair for c in direction)
    yield encoded_attribute("ImageOrientationPatient", *map(_decimal, cosines))


def _decimal(number: float) -> str:
    """Decimal string (VR DS) of at most 16 characters."""
    shortest = str(number)
    return shortest if len(shortest) <= _DECIMAL_LENGTH else format_number_as_ds(number)


def _first_pixel(
    view: Viewport,
    pixel_spacing: tuple[float, ...],
    pair: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    position: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Centre of the page's first pixel, LPS mm (PS3.3 C.7.6.2.1.1): (3,) float64."""
    column = view.left + 0.5 / view.scale_x - 0.5
    row = view.top + (0.5 - HEADER_HEIGHT) / view.scale_y - 0.5
    return position + pair[0] * column * pixel_spacing[1] + pair[1] * row * pixel_spacing[0]
