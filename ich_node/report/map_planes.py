"""Frames of results that lie on slices of the source series: where they lie, and what they were made from.

highdicom lays out a multi-frame object (dimensions, functional groups, references) from source images whose
headers are complete, and it takes frames of one Enhanced CT object only if all of them are given. So it gets a
stand-in for each slice, of one pixel: real headers lack attributes that it demands, and it sorts all pixel values
of a fractional segmentation to check them, which takes seconds. Pixels, references and identity are written
afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, config
from pydicom.uid import UID, CTImageStorage
from pydicom.valuerep import DSfloat

from ich_node.findings import IchSubtype
from ich_node.report.attributes import numbers, text
from ich_node.report.geometry import directions
from ich_node.report.header import choose_character_set, copy_identity, order_items, stamp
from ich_node.report.reading_report import DEVICE_NAME, MANUFACTURER, ReadingReport
from ich_node.report.uids import derived_uid, device_uid, result_uid
from ich_node.report.wording import DISCLAIMER, algorithm_line, series_description

_SAME_DIRECTION = 1e-3
"""Largest difference of direction cosines between slices of one orientation."""
_SAME_PLACE_MM = 1e-3
_ABSENT = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime",
)  # fmt: skip
"""Identity is copied afterwards, without highdicom's checks."""


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """Place and grid of one slice."""

    index: int
    """Of the slice in the reading."""
    frame_of_reference_uid: str
    position: npt.NDArray[np.float64]
    """(3,) float64, LPS mm: Image Position (Patient) (0020,0032)."""
    orientation: npt.NDArray[np.float64]
    """(6,) float64: Image Orientation (Patient) (0020,0037)."""
    pixel_spacing_mm: tuple[float, ...]
    """(row, column) spacing: Pixel Spacing (0028,0030)."""
    slice_thickness_mm: float

    @property
    def distance_mm(self) -> float:
        """Where the slice lies on the normal along which highdicom orders frames: columns cross rows."""
        row, column = np.split(self.orientation, 2)
        return float(np.cross(column, row) @ self.position)


@dataclass(frozen=True, kw_only=True)
class MapPlanes:
    """Slices that have maps, as highdicom takes them."""

    slices: tuple[int, ...]
    """Of the reading, in the order of the frames."""
    slice_thickness_mm: tuple[float, ...]
    """Parallel to ``slices``."""
    stand_ins: tuple[Dataset, ...]
    """Parallel to ``slices``: a complete CT header of one pixel each."""


def map_planes(report: ReadingReport, subtype: IchSubtype | None = None) -> MapPlanes | None:
    """Find the slices that have likelihood maps, of one class or of any, and their places.

    Returns
    -------
    MapPlanes or None
        None where no slice has such a map, and where the planes cannot be told: a multi-frame result has to say
        where each of its frames lies (PS3.3 A.51.5 and A.75.5), in one Frame of Reference. That takes Frame of
        Reference UID, Image Position and Image Orientation (Patient) and Pixel Spacing of every slice, equal but
        for the position, and no two slices in one place.
    """
    mapped = [
        index
        for index, finding in enumerate(report.finding.slices)
        if (finding.likelihood_maps if subtype is None else subtype in finding.likelihood_maps)
    ]
    planes = [plane for index in mapped if (plane := _plane(report, index)) is not None]
    if not planes or len(planes) < len(mapped):
        return None
    planes.sort(key=lambda plane: plane.distance_mm)
    if not _are_parallel(planes):
        return None
    return MapPlanes(
        slices=tuple(plane.index for plane in planes),
        slice_thickness_mm=tuple(plane.slice_thickness_mm for plane in planes),
        stand_ins=tuple(_stand_in(report, plane, planes[0].orientation) for plane in planes),
    )


def _plane(report: ReadingReport, index: int) -> _Plane | None:
    image = report.source_images[index]
    frame = text(image, "FrameOfReferenceUID")
    pair, position = directions(image), numbers(image, "ImagePositionPatient", 3)
    spacing = numbers(image, "PixelSpacing", 2)
    thickness = numbers(image, "SliceThickness", 1)
    if pair is None or position is None or spacing is None or min(spacing) <= 0:
        return None
    if not frame or not UID(frame, config.IGNORE).is_valid:
        return None
    return _Plane(
        index=index,
        frame_of_reference_uid=frame,
        position=np.asarray(position),
        orientation=np.concatenate(pair),
        pixel_spacing_mm=spacing,
        # Type 2 in a CT image, but a frame has to have one (C.7.6.16.2.1): then each fills the gap to the next.
        slice_thickness_mm=thickness[0] if thickness and thickness[0] > 0 else report.spacing_mm[0],
    )


def _are_parallel(planes: Sequence[_Plane]) -> bool:
    """Whether planes share frame of reference, orientation and spacing, and none lies on another."""
    first = planes[0]
    return (
        all(plane.frame_of_reference_uid == first.frame_of_reference_uid for plane in planes)
        and all(plane.pixel_spacing_mm == first.pixel_spacing_mm for plane in planes)
        and all(np.allclose(p.orientation, first.orientation, rtol=0, atol=_SAME_DIRECTION) for p in planes)
        and bool(np.all(np.diff([plane.distance_mm for plane in planes]) > _SAME_PLACE_MM))
    )


def _stand_in(report: ReadingReport, plane: _Plane, orientation: npt.NDArray[np.float64]) -> Dataset:
    image = report.source_images[plane.index]
    stand_in = Dataset()
    stand_in.SOPClassUID = CTImageStorage
    # Of its own: highdicom tells images apart by it, and frames share that of their object.
    stand_in.SOPInstanceUID = derived_uid("stand-in", report.slice_key(plane.index))
    stand_in.SeriesInstanceUID = report.series_instance_uid
    stand_in.StudyInstanceUID = report.study_instance_uid
    stand_in.FrameOfReferenceUID = plane.frame_of_reference_uid
    stand_in.PositionReferenceIndicator = text(image, "PositionReferenceIndicator") or None
    stand_in.ImagePositionPatient = _decimals(plane.position)
    stand_in.ImageOrientationPatient = _decimals(orientation)
    stand_in.PixelSpacing = _decimals(plane.pixel_spacing_mm)
    stand_in.SliceThickness = _decimals([plane.slice_thickness_mm])[0]
    stand_in.Rows = stand_in.Columns = 1
    for keyword in _ABSENT:
        setattr(stand_in, keyword, None)
    return stand_in


def _decimals(values: Sequence[float] | npt.NDArray[np.float64]) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]


def identification(report: ReadingReport, role: str, *, series_number: int, what: str) -> dict[str, Any]:
    """Return what highdicom's multi-frame constructors take to tell an object from others, by parameter."""
    algorithm = report.finding.algorithm
    return {
        "series_instance_uid": result_uid(report, f"{role}-series"),
        "series_number": series_number,
        "sop_instance_uid": result_uid(report, role),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": DEVICE_NAME,
        "software_versions": algorithm.version[:64],
        "device_serial_number": algorithm.version[:64],
        "series_description": series_description(report, what),
        "content_label": "ICH_LIKELIHOOD",
        "content_description": DISCLAIMER,
    }


def complete(
    report: ReadingReport, laid_out: Dataset, planes: MapPlanes, frames: Sequence[int], role: str
) -> Dataset:
    """Make a result, but for its pixels, of what highdicom laid out over the stand-ins.

    Parameters
    ----------
    report
        The reading.
    laid_out
        A highdicom multi-frame image: for each of its channels a frame for each plane.
    planes
        What it was laid out over.
    frames
        Its frames that the result has, counted from 0.
    role
        Of the result, as in `identification`.

    Returns
    -------
    pydicom.Dataset
        With file meta and the identity, order, equipment and times of the reading.
    """
    result = Dataset()
    result.update(laid_out)
    result.file_meta = laid_out.file_meta
    result.Rows, result.Columns = report.hu.shape[1:]
    result.NumberOfFrames = len(frames)
    groups = laid_out.PerFrameFunctionalGroupsSequence
    result.PerFrameFunctionalGroupsSequence = [groups[frame] for frame in frames]
    plane_of_frame = [frame % len(planes.slices) for frame in frames]
    _measure_frames(result, planes, plane_of_frame)
    _name_sources(report, result, [planes.slices[plane] for plane in plane_of_frame])
    _organize(result, result_uid(report, f"{role}-dimensions"))
    _copy_compression(report, result)
    _identify(report, result)
    return result


def _measure_frames(result: Dataset, planes: MapPlanes, plane_of_frame: Sequence[int]) -> None:
    """Pixel measures of each frame where the slices differ in thickness (PS3.3 C.7.6.16.2.1)."""
    if len(set(planes.slice_thickness_mm)) == 1:
        return
    shared = result.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    del shared.PixelMeasuresSequence
    for group, plane in zip(result.PerFrameFunctionalGroupsSequence, plane_of_frame, strict=True):
        own = copy.deepcopy(measures)
        own.SliceThickness = planes.stand_ins[plane].SliceThickness
        group.PixelMeasuresSequence = [own]


def _name_sources(report: ReadingReport, result: Dataset, slice_of_frame: Sequence[int]) -> None:
    """Name the slice that each frame was made from, and all of them by object and by series (C.12.2)."""
    for group, index in zip(result.PerFrameFunctionalGroupsSequence, slice_of_frame, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        source.update(_reference(report, index))
        _name_frames(report, source, [index])
    objects: dict[str, list[int]] = {}
    for index in dict.fromkeys(slice_of_frame):
        objects.setdefault(str(report.source_images[index].SOPInstanceUID), []).append(index)
    series = Dataset()
    series.SeriesInstanceUID = report.series_instance_uid
    series.ReferencedInstanceSequence = [_reference(report, indices[0]) for indices in objects.values()]
    result.ReferencedSeriesSequence = [series]
    result.SourceImageSequence = [_reference(report, indices[0]) for indices in objects.values()]
    for source, indices in zip(result.SourceImageSequence, objects.values(), strict=True):
        _name_frames(report, source, indices)


def _reference(report: ReadingReport, index: int) -> Dataset:
    """Refer to the object of a slice (PS3.3 table 10-11)."""
    image = report.source_images[index]
    reference = Dataset()
    reference.ReferencedSOPClassUID = str(image.SOPClassUID)
    reference.ReferencedSOPInstanceUID = str(image.SOPInstanceUID)
    return reference


def _name_frames(report: ReadingReport, reference: Dataset, indices: Sequence[int]) -> None:
    """Narrow a reference to the frames of its slices (PS3.3 table 10-3)."""
    numbers_of_frames = [report.frame_number(index) for index in indices]
    if None not in numbers_of_frames:
        reference.ReferencedFrameNumber = numbers_of_frames


def _organize(result: Dataset, uid: str) -> None:
    """Dimension Organization UID (0020,9164): highdicom draws one anew with every call."""
    for item in (*result.DimensionOrganizationSequence, *result.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _copy_compression(report: ReadingReport, result: Dataset) -> None:
    """Lossy compression of a source stays part of a result's history (PS3.3 C.7.6.1.1.5)."""
    for image in report.source_images:
        if text(image, "LossyImageCompression") == "01":
            result.LossyImageCompression = "01"
            ratio = numbers(image, "LossyImageCompressionRatio", 1)
            if ratio is not None:
                result.LossyImageCompressionRatio = _decimals(ratio)[0]
            return


def _identify(report: ReadingReport, result: Dataset) -> None:
    source = report.source_images[0]
    copy_identity(source, result)
    requests = order_items(source)
    if requests:
        result.RequestAttributesSequence = requests
    result.BodyPartExamined = "HEAD"
    result.DerivationDescription = f"Likelihood maps by {algorithm_line(report)}"
    result.DeviceUID = device_uid(report)
    stamp(report, result)
    choose_character_set(source, result)
