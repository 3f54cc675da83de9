"""Enhanced CT from files to results, with the shipped model; the shipped builder before a judge not ours."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from ich_node.database.readings import NewReading
from ich_node.errors import RejectionReason
from ich_node.findings import AlgorithmIdentification, IchSubtype, Priority, SeriesFinding
from ich_node.model.predict import load_predictor
from ich_node.pipeline import History, NotRead, Read, read_study
from ich_node.result_files import ResultFiles
from ich_node.testing.enhanced import enhanced_ct, enhanced_phantom
from ich_node.testing.functional_groups import EnhancedFrame
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import localizer_series, phantom_series
from tests.enhanced_builders import claim_of
from tests.unit.little_head import stored

SYNTAXES = (RLELossless, JPEG2000Lossless, JPEGLSLossless)


@dataclass
class Watched:
    """The shipped model, and what it was shown."""

    predictor: Any
    volumes: list[npt.NDArray[np.float32]]

    @property
    def algorithm(self) -> AlgorithmIdentification:
        algorithm: AlgorithmIdentification = self.predictor.algorithm
        return algorithm

    def predict(
        self,
        hu: npt.NDArray[np.float32],
        spacing_mm: tuple[float, float, float],
        *,
        slice_thickness_mm: float | None = None,
        widest_gap_mm: float | None = None,
    ) -> SeriesFinding:
        self.volumes.append(hu.copy())
        finding: SeriesFinding = self.predictor.predict(
            hu, spacing_mm, slice_thickness_mm=slice_thickness_mm, widest_gap_mm=widest_gap_mm
        )
        return finding


@pytest.fixture(scope="module")
def predictor() -> Watched:
    return Watched(load_predictor(device="cpu"), [])


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return head_phantom(bleeds=[IchSubtype.INTRAPARENCHYMAL], seed=1)


@pytest.fixture(scope="module")
def coarse_phantom() -> HeadPhantom:
    return head_phantom(bleeds=[IchSubtype.INTRAPARENCHYMAL], seed=1, slices=16, rows=256, columns=256)


Reader = Callable[[Sequence[FileDataset]], Any]


@pytest.fixture
def read(tmp_path: Path, predictor: Watched) -> Iterator[Reader]:
    def read_them(datasets: Sequence[FileDataset]) -> Any:
        spool = tmp_path / f"spool{len(list(tmp_path.iterdir()))}"
        spool.mkdir()
        return read_study(
            claim_of(stored(datasets, spool)),
            spool_dir=spool,
            results=ResultFiles(folder=tmp_path / "results"),
            predictors=[predictor],
            history=lambda _uid: History(last_run_numbers={}, earlier={}),
        )

    predictor.volumes.clear()
    yield read_them
    predictor.volumes.clear()


def the_reading(outcome: Any) -> NewReading:
    assert isinstance(outcome, Read), outcome
    (reading,) = outcome.readings
    return reading


def test_a_bleed_is_found_in_the_frames_that_show_it(
    read: Reader, phantom: HeadPhantom, predictor: Watched, tmp_path: Path
) -> None:
    single = the_reading(read(phantom_series(phantom)))
    upside_down = [EnhancedFrame(image=image) for image in phantom_series(phantom, name="enhanced")][::-1]
    reading = the_reading(read(enhanced_ct(upside_down)))
    np.testing.assert_array_equal(predictor.volumes[1], predictor.volumes[0])
    np.testing.assert_array_equal(predictor.volumes[1], np.rint(phantom.hu))
    assert reading.finding == single.finding
    assert reading.finding.priority in (Priority.STAT, Priority.HIGH)

    count = phantom.hu.shape[0]
    assert reading.frame_numbers == tuple(range(count, 0, -1)), "stored from the vertex down"
    assert single.frame_numbers == (None,) * count
    bleeding = phantom.masks[IchSubtype.INTRAPARENCHYMAL]
    places = [(k, p) for k, s in enumerate(reading.finding.slices) for p in s.localizations]
    hits = [
        k
        for k, place in places
        if place.kind == "point" and bleeding[k][int(place.coordinates[1]), int(place.coordinates[0])]
    ]
    assert len(hits) > len(places) / 2

    document = hd.sr.srread(tmp_path / "results" / f"{reading.sr_sop_instance_uid}.dcm")
    groups = document.content.get_planar_roi_measurement_groups()
    named = [group[0].ContentSequence for group in groups]
    frames = [
        reference.ReferencedFrameNumber
        for content in named
        for item in content
        if item.get("ValueType") == "SCOORD"
        for reference in item.ContentSequence[0].ReferencedSOPSequence
    ]
    assert frames == [count - k for k, _ in places]
    for found in reading.objects[2:]:
        capture = pydicom.dcmread(tmp_path / "results" / found.file_name)
        (source,) = capture.SourceImageSequence
        assert reading.finding.slices[count - source.ReferencedFrameNumber].probabilities[IchSubtype.ANY] >= (
            reading.finding.algorithm.operating_points.sensitive
        )


def test_objects_that_share_the_frames_are_read_together(
    read: Reader, coarse_phantom: HeadPhantom, predictor: Watched
) -> None:
    datasets = enhanced_phantom(coarse_phantom, objects=2, transfer_syntax_uid=JPEG2000Lossless)
    reading = the_reading(read([*localizer_series(coarse_phantom), *datasets]))
    np.testing.assert_array_equal(predictor.volumes[0], np.rint(coarse_phantom.hu))
    assert reading.sop_instance_uids == tuple(
        str(d.SOPInstanceUID) for d in datasets for _ in range(d.NumberOfFrames)
    )
    assert reading.frame_numbers == (*range(1, 9), *range(1, 9))


def test_the_better_series_is_read_however_it_is_stored(read: Reader, coarse_phantom: HeadPhantom) -> None:
    bone = phantom_series(coarse_phantom, convolution_kernel="BONEPLUS", series_number=3)
    soft = enhanced_phantom(coarse_phantom, series_number=4)
    outcome = read([*bone, *soft])
    assert the_reading(outcome).series_instance_uid == soft[0].SeriesInstanceUID
    assert [e.reason for e in outcome.exclusions] == [RejectionReason.BONE_KERNEL]


def test_a_part_of_a_concatenation_makes_no_reading(read: Reader, coarse_phantom: HeadPhantom) -> None:
    outcome = read(enhanced_phantom(coarse_phantom, objects=3, concatenated=True)[:2])
    assert isinstance(outcome, NotRead)
    assert outcome.reason is RejectionReason.MISSING_SLICES
    assert "2 of 3" in outcome.detail


def test_an_object_without_functional_groups_makes_no_reading(
    read: Reader, coarse_phantom: HeadPhantom
) -> None:
    (dataset,) = enhanced_phantom(coarse_phantom)
    del dataset.PerFrameFunctionalGroupsSequence
    outcome = read([dataset])
    assert isinstance(outcome, NotRead)
    assert outcome.reason is RejectionReason.MISSING_ATTRIBUTE
    assert "(5200,9230)" in outcome.detail


def test_frames_in_a_ct_image_storage_object_make_no_reading(
    read: Reader, coarse_phantom: HeadPhantom
) -> None:
    (dataset,) = enhanced_phantom(coarse_phantom)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    outcome = read([dataset])
    assert isinstance(outcome, NotRead)
    assert outcome.reason is RejectionReason.UNSUPPORTED_SOP_CLASS


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objects": 2},
        {"objects": 3, "concatenated": True},
        {"contrast_bolus_agent": "IOPAMIDOL"},
        {"gantry_tilt_deg": 15.0, "convolution_kernel": "BONEPLUS"},
        {"signed": True, "rescale_intercept": 0.0},
        *({"transfer_syntax_uid": syntax} for syntax in SYNTAXES),
    ],
    ids=str,
)
def test_the_builders_objects_are_valid(options: dict[str, Any], tmp_path: Path) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    small = head_phantom(rows=64, columns=64, slices=12)
    for path in stored(enhanced_phantom(small, **options), tmp_path):
        run = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert (run.stdout + run.stderr).splitlines() == ["EnhancedCTImage"]


def test_the_judge_finds_faults(tmp_path: Path) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    (dataset,) = enhanced_phantom(head_phantom(rows=64, columns=64, slices=12))
    del dataset.SharedFunctionalGroupsSequence[0].CTReconstructionSequence
    (path,) = stored([dataset], tmp_path)
    run = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert "Error" in run.stdout + run.stderr
