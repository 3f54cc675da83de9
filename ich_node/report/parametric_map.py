"""The likelihood of hemorrhage as a Parametric Map (PS3.3 A.75), for software that computes with it."""

from __future__ import annotations

import numpy as np
from highdicom import VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from ich_node import codes
from ich_node.findings import IchSubtype
from ich_node.report.image_library import code
from ich_node.report.map_planes import complete, identification, map_planes
from ich_node.report.reading_report import ReadingReport

SERIES_NUMBER = 9904


def build_parametric_map(report: ReadingReport) -> Dataset | None:
    """Write the likelihood maps of ``ANY`` of one reading as a parametric map.

    Values are 32 bit floating point and are the likelihood itself: OHIF scales stored values as fractions and
    does not apply a mapping, and 3D Slicer's importer takes nothing but floating point. Slices without a map have
    no frame: their likelihood is not 0 but not kept. A viewer has to place frames by their position or their
    source image; one that counts frames from the first slice on places them wrongly.

    Returns
    -------
    pydicom.Dataset or None
        Parametric Map Storage with file meta, Explicit VR Little Endian, Float Pixel Data (7FE0,0008), ready for
        ``save_as(path, enforce_file_format=True)``. None where no slice has a map of ``ANY`` or, as in
        `map_planes`, the headers do not say where the slices lie. UIDs and bytes follow from the report alone.
    """
    planes = map_planes(report, IchSubtype.ANY)
    if planes is None:
        return None
    laid_out = ParametricMap(
        source_images=planes.stand_ins,
        pixel_array=np.zeros((len(planes.slices), 1, 1), dtype=np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping()],
        # LINEAR is defined from a width of 1 up, for whole numbers (PS3.3 C.11.2.1.2).
        voi_lut_transformations=[
            VOILUTTransformation(window_center=0.5, window_width=1.0, voi_lut_function="LINEAR_EXACT")
        ],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **identification(report, "pm", series_number=SERIES_NUMBER, what="likelihood map"),
    )
    result = complete(report, laid_out, planes, range(len(planes.slices)), "pm")
    maps = np.stack([report.finding.slices[n].likelihood_maps[IchSubtype.ANY] for n in planes.slices])
    result.FloatPixelData = np.clip(np.nan_to_num(maps), 0, 1).astype("<f4").tobytes()
    return result


def _mapping() -> RealWorldValueMapping:
    """Real World Value Mapping (PS3.3 C.7.6.16.2.11): the stored value is the likelihood, 0 to 1, without unit."""
    return RealWorldValueMapping(
        lut_label="LIKELIHOOD",
        lut_explanation="Likelihood of intracranial hemorrhage, AI, unverified",
        unit=code(codes.NO_UNITS),
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=code(codes.FRACTIONAL_PROBABILISTIC_SEGMENTATION),
    )
