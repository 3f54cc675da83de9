"""The parametric map: the likelihood itself, as floating point, with what it is and how to show it."""

from __future__ import annotations

import io
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from ich_node.findings import IchSubtype
from ich_node.report import ReadingReport
from ich_node.report.parametric_map import build_parametric_map
from tests.enhanced_builders import enhanced_report
from tests.report_builders import make_report


def encoded(dataset: Dataset | None) -> io.BytesIO:
    assert dataset is not None
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return file


@pytest.fixture(params=["single frames", "enhanced in two"])
def report(request: pytest.FixtureRequest, tmp_path: Path) -> ReadingReport:
    if request.param == "single frames":
        return make_report(shape=(12, 32, 48))
    return enhanced_report(tmp_path, objects=2)


def test_highdicom_reads_the_likelihood_of_every_slice_back(report: ReadingReport) -> None:
    file = encoded(build_parametric_map(report))
    parametric_map = hd.pm.ParametricMap.from_file(file)
    frames = parametric_map.get_frames(apply_real_world_transform=True)
    of_slice = {
        (str(image.SOPInstanceUID), report.frame_number(n)): report.finding.slices[n].likelihood_maps
        for n, image in enumerate(report.source_images)
    }
    groups = parametric_map.PerFrameFunctionalGroupsSequence
    assert len(frames) == len(groups) == sum(bool(maps) for maps in of_slice.values())
    for frame, group in zip(frames, groups, strict=True):
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        key = (source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber"))
        np.testing.assert_array_equal(frame.astype(np.float32), of_slice[key][IchSubtype.ANY])


def test_stored_values_are_the_likelihood() -> None:
    report = make_report()
    parametric_map = dcmread(encoded(build_parametric_map(report)))
    assert parametric_map.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert parametric_map.BitsAllocated == 32
    assert "PixelData" not in parametric_map
    values = parametric_map.pixel_array
    assert values.dtype == np.float32
    assert values.max() == pytest.approx(0.9, abs=0.01)
    mapped = [finding.likelihood_maps[IchSubtype.ANY] for finding in report.finding.slices[7:4:-1]]
    np.testing.assert_array_equal(values, np.stack(mapped))


def test_it_says_what_the_values_are_and_how_to_show_them() -> None:
    parametric_map = dcmread(encoded(build_parametric_map(make_report())))
    shared = parametric_map.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    assert mapping.LUTLabel == "LIKELIHOOD"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == 0
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == 1
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    (quantity,) = mapping.QuantityDefinitionSequence
    assert quantity.ConceptCodeSequence[0].CodeValue == "110854"
    (window,) = shared.FrameVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth, window.VOILUTFunction) == (0.5, 1, "LINEAR_EXACT")
    assert parametric_map.ContentQualification == "RESEARCH"
