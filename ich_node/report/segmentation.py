"""The likelihood maps of a reading as a Segmentation (PS3.3 A.51), for viewers that overlay one on its images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import DataElement, Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from ich_node import codes
from ich_node.findings import IchSubtype
from ich_node.report.drawing import CLASS_COLOR
from ich_node.report.image_library import code
from ich_node.report.map_planes import MapPlanes, complete, identification, map_planes
from ich_node.report.reading_report import MANUFACTURER, ReadingReport
from ich_node.report.uids import tracking_uid
from ich_node.report.wording import SUBTYPE_NAME

SERIES_NUMBER = 9903
MAXIMUM_FRACTIONAL_VALUE = 255
"""Stored value of the likelihood 1: Maximum Fractional Value (0062,000E)."""
_ENCODER = "pylibjpeg"
"""Named, because encoders find different runs and a retry has to resend the same bytes, and because pydicom's
first choice, GDCM, ends the process on frames of odd size."""


def build_segmentation(report: ReadingReport) -> Dataset | None:
    """Write the likelihood maps of one reading as a fractional segmentation.

    A segment per class that has maps, ``ANY`` first; for each of them a frame on every slice that has its map, on
    the grid of that slice. Segments carry the Tracking UID of their finding in the structured report.

    Returns
    -------
    pydicom.Dataset or None
        Segmentation Storage with file meta, FRACTIONAL of type PROBABILITY, ready for
        ``save_as(path, enforce_file_format=True)``. RLE Lossless: most of a map is 0, and of the lossless transfer
        syntaxes it is the one that viewers of segmentations read longest. None where no slice has a map or, as in
        `map_planes`, the headers do not say where the slices lie. UIDs and bytes follow from the report alone.
    """
    planes = map_planes(report)
    if planes is None:
        return None
    classes = _classes(report)
    laid_out = Segmentation(
        source_images=planes.stand_ins,
        pixel_array=np.zeros((len(planes.slices), 1, 1, len(classes)), dtype=np.bool_),
        segmentation_type="FRACTIONAL",
        fractional_type="PROBABILITY",
        max_fractional_value=MAXIMUM_FRACTIONAL_VALUE,
        segment_descriptions=[_segment(report, n, subtype) for n, subtype in enumerate(classes, start=1)],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
        **identification(report, "seg", series_number=SERIES_NUMBER, what="likelihood"),
    )
    maps = _maps(report, planes, classes)
    segmentation = complete(report, laid_out, planes, list(maps), "seg")
    # ANY covers the subtypes, and of fractions it is left open what overlapping means.
    segmentation.SegmentsOverlap = "UNDEFINED"
    segmentation.file_meta.TransferSyntaxUID = RLELossless
    frames = [_encoded(likelihood) for likelihood in maps.values()]
    segmentation["PixelData"] = DataElement("PixelData", "OB", encapsulate(frames))
    return segmentation


def _classes(report: ReadingReport) -> list[IchSubtype]:
    """Classes that have a map on some slice, in the order of `IchSubtype`."""
    return [
        subtype
        for subtype in IchSubtype
        if any(subtype in finding.likelihood_maps for finding in report.finding.slices)
    ]


def _maps(
    report: ReadingReport, planes: MapPlanes, classes: list[IchSubtype]
) -> dict[int, npt.NDArray[np.float32]]:
    """Maps by frame, classes outside and planes inside; a class without a map on a slice leaves its frame out."""
    places = [(subtype, index) for subtype in classes for index in planes.slices]
    return {
        frame: report.finding.slices[index].likelihood_maps[subtype]
        for frame, (subtype, index) in enumerate(places)
        if subtype in report.finding.slices[index].likelihood_maps
    }


def _segment(report: ReadingReport, number: int, subtype: IchSubtype) -> SegmentDescription:
    """Return the item of Segment Sequence (0062,0002) of a class."""
    name = SUBTYPE_NAME[subtype]
    finding = name if subtype is IchSubtype.ANY else f"{name} hemorrhage"
    segment = SegmentDescription(
        segment_number=number,
        segment_label=finding,
        segmented_property_category=code(codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE),
        segmented_property_type=code(codes.FINDING_OF[subtype]),
        algorithm_type="AUTOMATIC",
        algorithm_identification=_algorithm(report),
        tracking_uid=tracking_uid(report, "study" if subtype is IchSubtype.ANY else subtype),
        tracking_id=f"{finding} in the study",
        anatomic_regions=[code(codes.SITE_OF[subtype])],
        display_color=CIELabColor.from_rgb(*CLASS_COLOR[subtype]),
    )
    segment.SegmentDescription = f"Likelihood of {finding.lower()}, AI, unverified"
    return segment


def _algorithm(report: ReadingReport) -> AlgorithmIdentificationSequence:
    algorithm = report.finding.algorithm
    return AlgorithmIdentificationSequence(
        name=algorithm.name[:64],
        family=code(codes.ARTIFICIAL_INTELLIGENCE),
        version=algorithm.version[:64],
        source=MANUFACTURER,
        parameters={"weights sha256": algorithm.weights_sha256},
    )


def _encoded(likelihood: npt.NDArray[np.float32]) -> bytes:
    """Encode a (rows, columns) float32 map of 0 to 1 as one frame; NaN counts as 0."""
    fraction = np.clip(np.nan_to_num(likelihood), 0, 1)
    stored = np.round(fraction * MAXIMUM_FRACTIONAL_VALUE).astype(np.uint8)
    return RLELosslessEncoder.encode(
        stored,
        encoding_plugin=_ENCODER,
        rows=stored.shape[0],
        columns=stored.shape[1],
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
    )
