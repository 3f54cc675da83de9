"""The result as pictures that every viewer shows: RGB Secondary Captures, a summary and one overlay per
suspicious slice.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from ich_node import codes
from ich_node.findings import IchSubtype, Priority
from ich_node.report.attributes import numbers, text
from ich_node.report.compression import Compression, compress_capture
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
    copy_blank = _copier(_blank(report))
    captures = [_summary(report, copy_blank(), sketches)]
    for number, index in enumerate(overlay_slices(report), start=2):
        captures.append(_overlay(report, copy_blank(), sketches(index), index, number))
    return [compress_capture(capture, compression) for capture in captures]


def overlay_slices(report: ReadingReport) -> list[int]:
    """Choose the slices that get an overlay of their own; at least one where the study is flagged."""
    finding = report.finding
    if finding.priority is Priority.ROUTINE:
        return []
    if finding.suspicious_slices:
        return list(finding.suspicious_slices[:MAX_OVERLAYS])
    scores = [s.probabilities[IchSubtype.ANY] for s in finding.slices]
    return [scores.index(max(scores))]


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


def _summary(report: ReadingReport, blank: Dataset, sketches: Sketches) -> Dataset:
    shown = montage_slices(report)
    pixels = render_summary(report, sketches)
    capture = _page(blank, pixels, sop_instance_uid=result_uid(report, "sc-summary"), number=1)
    capture.ImageType = ["DERIVED", "SECONDARY", "OTHER", "SUMMARY"]
    capture.DerivationDescription = "Montage of the most telling slices with likelihood contours and scores"
    _name_sources(report, capture, shown, codes.SOURCE_IMAGE_FOR_MONTAGE)
    return capture


def _overlay(report: ReadingReport, blank: Dataset, sketch: SliceSketch, index: int, number: int) -> Dataset:
    image = report.source_images[index]
    uid = result_uid(report, f"sc-overlay/{report.slice_key(index)}")
    pixels = render_overlay(report, index, sketch)
    capture = _page(blank, pixels, sop_instance_uid=uid, number=number)
    capture.ImageType = ["DERIVED", "SECONDARY", "OTHER", "OVERLAY"]
    capture.DerivationDescription = "Slice in the brain window with likelihood contours and scores"
    _name_sources(report, capture, [index], codes.SOURCE_IMAGE_FOR_PROCESSING)
    _place_in_patient(report, image, capture)
    return capture


def _page(capture: Dataset, pixels: npt.NDArray[np.uint8], *, sop_instance_uid: str, number: int) -> Dataset:
    """Give a blank capture pixels and a name of its own."""
    capture.SOPInstanceUID = sop_instance_uid
    capture.file_meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    capture.InstanceNumber = number
    capture.Rows, capture.Columns = pixels.shape[:2]
    data = pixels.tobytes()
    capture.PixelData = data + b"\0" * (len(data) % 2)
    return capture


def _copier(blank: Dataset) -> Callable[[], Dataset]:
    """Return what makes one more independent copy of a dataset at each call.

    Copies that are read from the encoded dataset take a third of the time of deep copies, and are saved faster, as
    their attributes stay encoded until someone asks for them. Free text that breaks its length would make pydicom
    complain then: a dataset that has some is copied deeply.
    """
    file = io.BytesIO()
    blank.save_as(file, enforce_file_format=True)
    encoded = file.getvalue()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            dcmread(io.BytesIO(encoded)).decode()
        except (UserWarning, ValueError, LookupError):
            return lambda: copy.deepcopy(blank)
    return lambda: dcmread(io.BytesIO(encoded))


def _blank(report: ReadingReport) -> Dataset:
    """Return what all captures of a reading share, with a picture of one pixel."""
    capture = SCImage(
        pixel_array=np.zeros((1, 1, 3), np.uint8),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        study_instance_uid=report.study_instance_uid,
        series_instance_uid=result_uid(report, "sc-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(report, "sc-summary"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        series_description=series_description(report, "overlays"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
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


def _name_sources(
    report: ReadingReport, capture: Dataset, indices: Sequence[int], purpose: codes.CodedConcept
) -> None:
    """Source Image Sequence (0008,2112), with the references by series of SOP Common (PS3.3 C.12.2)."""
    sources, references = [], []
    for indices_in_object in _by_object(report, indices):
        image = report.source_images[indices_in_object[0]]
        reference = Dataset()
        reference.ReferencedSOPClassUID = str(image.SOPClassUID)
        reference.ReferencedSOPInstanceUID = str(image.SOPInstanceUID)
        references.append(reference)
        source = Dataset()
        source.update(reference)
        frames = [report.frame_number(index) for index in indices_in_object]
        if None not in frames:
            source.ReferencedFrameNumber = frames
        source.PurposeOfReferenceCodeSequence = [_code_item(purpose)]
        sources.append(source)
    series = Dataset()
    series.SeriesInstanceUID = report.series_instance_uid
    series.ReferencedInstanceSequence = references
    capture.SourceImageSequence = sources
    capture.ReferencedSeriesSequence = [series]


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


def _place_in_patient(report: ReadingReport, image: Dataset, capture: Dataset) -> None:
    """Give an overlay the plane of its slice, so that viewers measure on it and draw its reference line.

    Pixel Spacing (0028,0030) is that of the drawn slice, Image Position (Patient) that of the page's first
    pixel, above the slice by the height of the header.
    """
    pixel_spacing = numbers(image, "PixelSpacing", 2)
    if pixel_spacing is None or min(pixel_spacing) <= 0:
        return
    view = whole_slice(report)
    spacing = (pixel_spacing[0] / view.scale_y, pixel_spacing[1] / view.scale_x)
    capture.PixelSpacing = [DSfloat(s, auto_format=True) for s in spacing]
    pair, position = directions(image), numbers(image, "ImagePositionPatient", 3)
    frame = text(image, "FrameOfReferenceUID")
    if pair is None or position is None or not frame or not UID(frame).is_valid:
        return
    corner = _first_pixel(view, pixel_spacing, pair, np.asarray(position))
    capture.FrameOfReferenceUID = frame
    capture.PositionReferenceIndicator = None
    capture.ImagePositionPatient = [DSfloat(round(float(c), 6), auto_format=True) for c in corner]
    capture.ImageOrientationPatient = [
        DSfloat(float(c), auto_format=True) for direction in pair for c in direction
    ]


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
