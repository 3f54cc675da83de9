from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from ich_node import slice_pixels
from ich_node import volume as volume_module
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.selection import select_series
from ich_node.study import Instance, Series, Study
from ich_node.testing.series import ct_series
from ich_node.volume import HeadVolume, load_volume, source_headers
from tests.unit.little_head import SPACING_MM, as_series, little_head, little_series, received, stored
from tests.unit.test_selection import open_study

R = RejectionReason
COUNT = 28


def rejection(series: Series) -> StudyRejected:
    with pytest.raises(StudyRejected) as rejected:
        load_volume(series)
    return rejected.value


def copies(datasets: list[FileDataset], suffix: str, hu_shift: int = 0) -> list[FileDataset]:
    """Make the same images under other UIDs, with other pixels where there is a shift."""
    again = little_series()
    chosen = {d.InstanceNumber for d in datasets}
    again = [d for d in again if d.InstanceNumber in chosen]
    for dataset in again:
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{suffix}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.RescaleIntercept = str(-1024 + hu_shift)
    return again


def test_hu_affine_and_sources_agree(tmp_path: Path) -> None:
    series = received(little_series(), tmp_path)
    volume = load_volume(series)
    np.testing.assert_array_equal(volume.hu, little_head())
    assert volume.hu.dtype == np.float32
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    assert volume.instances == series.instances
    assert volume.caveats == ()
    for k, origin in enumerate(volume.origins_mm):
        np.testing.assert_allclose((volume.affine @ [0, 0, k, 1])[:3], origin, atol=1e-4)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(shuffler=st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(tmp_path: Path, shuffler: random.Random) -> None:
    series = received(little_series(), tmp_path)
    mixed = list(series.instances)
    shuffler.shuffle(mixed)
    volume = load_volume(replace(series, instances=tuple(mixed)))
    assert volume.instances == series.instances
    np.testing.assert_array_equal(volume.hu, little_head())


@pytest.mark.parametrize("tilt", [-25.0, -18.5, 12.0, 30.0])
def test_gantry_tilt_is_kept_as_shear(tmp_path: Path, tilt: float) -> None:
    volume = load_volume(received(little_series(gantry_tilt_deg=tilt), tmp_path))
    np.testing.assert_array_equal(volume.hu, little_head())
    assert volume.spacing_mm[0] == pytest.approx(5.0, abs=1e-3)
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, 5.0 / math.cos(math.radians(tilt))], atol=1e-3)
    assert f"tilted by {abs(tilt):.1f} degrees" in " ".join(volume.caveats)
    for k, origin in enumerate(volume.origins_mm):
        np.testing.assert_allclose((volume.affine @ [0, 0, k, 1])[:3], origin, atol=1e-3)


@pytest.mark.parametrize(("row_x", "column_y"), [*itertools.product((1, -1), repeat=2)])
def test_slices_go_up_and_pixels_stay_as_stored_in_any_position(
    tmp_path: Path, row_x: int, column_y: int
) -> None:
    orientation = (float(row_x), 0.0, 0.0, 0.0, float(column_y), 0.0)
    volume = load_volume(received(little_series(image_orientation=orientation), tmp_path))
    # the builder stacks slices along the cross product: downward where one direction is reversed
    expected = little_head() if row_x * column_y > 0 else little_head()[::-1]
    np.testing.assert_array_equal(volume.hu, expected)
    assert (np.diff(volume.origins_mm[:, 2]) > 0).all()
    assert np.sign(np.linalg.det(volume.affine[:3, :3])) == row_x * column_y
    assert any("rotated or mirrored" in c for c in volume.caveats) == ((row_x, column_y) != (1, 1))


@pytest.mark.parametrize("lost", [1, 9, 26])
def test_one_missing_slice_is_named(tmp_path: Path, lost: int) -> None:
    datasets = little_series()
    del datasets[lost]
    rejected = rejection(received(datasets, tmp_path))
    assert rejected.reason is R.MISSING_SLICES
    assert rejected.detail.startswith(f"1 slice is missing: between slices {lost} and {lost + 1} of 27")
    assert f"{(lost - 1) * 5.0:.1f} mm above the lowest" in rejected.detail


def test_all_missing_slices_are_counted(tmp_path: Path) -> None:
    datasets = [d for k, d in enumerate(little_series()) if k not in (5, 6, 15)]
    rejected = rejection(received(datasets, tmp_path))
    assert rejected.detail.startswith("3 slices are missing")
    assert "1 more such gap" in rejected.detail


def test_mixed_thickness_is_read_with_caveats(tmp_path: Path) -> None:
    datasets = little_series()
    z = np.concatenate([[0], np.cumsum([4.0] * 13 + [1.1] + [7.0] * 13)])
    for k, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = [-100, -100, float(z[k])]
        dataset.SliceThickness = "4" if k < 14 else "7"
    volume = load_volume(received(datasets, tmp_path))
    assert volume.hu.shape[0] == COUNT
    text = " ".join(volume.caveats)
    assert "mixed: 4, 7 mm" in text
    assert "1.10 to 7.00 mm" in text
    assert volume.widest_gap_mm == pytest.approx(7.0)
    np.testing.assert_allclose((volume.affine @ [0, 0, COUNT - 1, 1])[:3], volume.origins_mm[-1])


def test_space_between_thin_slices_is_said(tmp_path: Path) -> None:
    volume = load_volume(received(little_series(slice_thickness_mm=2.0), tmp_path))
    assert any("was not imaged" in caveat for caveat in volume.caveats)


def test_slices_shifted_against_each_other_are_said(tmp_path: Path) -> None:
    datasets = little_series()
    for dataset in datasets[10:20]:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x + 12, y, z]
    volume = load_volume(received(datasets, tmp_path))
    assert any("shifted against each other by up to 12.0 mm" in caveat for caveat in volume.caveats)


def test_exact_copies_are_dropped(tmp_path: Path) -> None:
    datasets = little_series()
    volume = load_volume(received([*copies(datasets[3:6], "9"), *datasets], tmp_path))
    np.testing.assert_array_equal(volume.hu, little_head())
    assert volume.caveats == ("3 images are exact copies of others at the same position and are dropped.",)


def test_different_images_at_one_position_are_rejected(tmp_path: Path) -> None:
    datasets = little_series()
    rejected = rejection(received([*datasets, *copies(datasets[3:5], "9", hu_shift=3)], tmp_path))
    assert rejected.reason is R.DUPLICATE_POSITIONS
    assert "2 of 28 positions" in rejected.detail


@pytest.mark.parametrize(
    "numbers",
    [
        (lambda k: 1, lambda k: 2),
        (lambda k: 1 + k // 2, lambda k: 21 + k // 2),
    ],
    ids=["one number each", "counting at every table position"],
)
def test_of_repeated_acquisitions_the_latest_is_read(tmp_path: Path, numbers: tuple[Any, Any]) -> None:
    first = little_series()
    second = copies(first, "9", hu_shift=3)
    for acquisition, datasets in zip(numbers, (first, second), strict=True):
        for k, dataset in enumerate(datasets):
            dataset.AcquisitionNumber = acquisition(k)
    volume = load_volume(received([*second, *first], tmp_path))
    np.testing.assert_array_equal(volume.hu, np.maximum(little_head() + 3, -1024))
    assert "imaged up to 2 times" in volume.caveats[0]


def test_an_incomplete_repetition_is_not_read(tmp_path: Path) -> None:
    first = little_series()
    second = copies(first[10:20], "9", hu_shift=3)
    for dataset in second:
        dataset.AcquisitionNumber = 2
    volume = load_volume(received([*second, *first], tmp_path))
    np.testing.assert_array_equal(volume.hu, little_head())


def test_of_two_kernels_in_one_series_the_soft_one_is_read(tmp_path: Path) -> None:
    first = little_series()
    second = copies(first, "9", hu_shift=3)
    for dataset in second:
        dataset.ConvolutionKernel = "H31s"
    for dataset in first:
        dataset.ConvolutionKernel = "H60s"
    volume = load_volume(received([*second, *first], tmp_path))
    np.testing.assert_array_equal(volume.hu, np.maximum(little_head() + 3, -1024))


def other_grids(count: int) -> list[FileDataset]:
    datasets = little_series()
    for dataset in datasets[COUNT - count :]:
        dataset.PixelSpacing = [1.5, 1.5]
    return datasets


def test_a_few_slices_on_another_grid_are_set_aside(tmp_path: Path) -> None:
    volume = load_volume(received(other_grids(2), tmp_path))
    assert volume.hu.shape[0] == COUNT - 2
    assert "2 of 28 slices differ" in volume.caveats[0]


def test_many_slices_on_another_grid_are_inconsistent(tmp_path: Path) -> None:
    assert rejection(received(other_grids(8), tmp_path)).reason is R.INCONSISTENT_GEOMETRY


@pytest.mark.parametrize(
    ("keyword", "tag"),
    [
        ("ImagePositionPatient", "(0020,0032)"),
        ("ImageOrientationPatient", "(0020,0037)"),
        ("PixelSpacing", "(0028,0030)"),
        ("Rows", "(0028,0010)"),
        ("RescaleIntercept", "(0028,1052)"),
        ("RescaleSlope", "(0028,1053)"),
        ("BitsStored", "(0028,0101)"),
    ],
)
def test_absent_attributes_are_named_and_counted(tmp_path: Path, keyword: str, tag: str) -> None:
    datasets = little_series()
    for dataset in datasets[4:7]:
        del dataset[keyword]
    rejected = rejection(received(datasets, tmp_path))
    assert rejected.reason is R.MISSING_ATTRIBUTE
    assert rejected.detail.startswith(f"{keyword} {tag}")
    assert "3 of 28 slices" in rejected.detail


def test_a_corrupt_slice_is_named(tmp_path: Path) -> None:
    datasets = little_series()
    datasets[16].PixelData = datasets[16].PixelData[:-100]
    rejected = rejection(received(datasets, tmp_path))
    assert rejected.reason is R.CORRUPT_PIXEL_DATA
    assert rejected.detail.startswith("Slice 17 of 28")


def test_a_corrupt_compressed_slice_is_named(tmp_path: Path) -> None:
    datasets = little_series(transfer_syntax_uid=JPEG2000Lossless)
    datasets[0].PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(300)])
    rejected = rejection(received(datasets, tmp_path))
    assert rejected.reason is R.CORRUPT_PIXEL_DATA
    assert rejected.detail.startswith("Slice 1 of 28")


def test_an_unknown_transfer_syntax_is_rejected(tmp_path: Path) -> None:
    paths = stored(little_series(), tmp_path)
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0", 1))
    assert rejection(as_series(paths)).reason is R.UNSUPPORTED_TRANSFER_SYNTAX


@pytest.mark.parametrize(
    ("hu", "missing"),
    [
        (np.full((COUNT, 80, 72), -1000.0), "soft tissue"),
        (little_head() + 1024, "air"),
        (little_head() / 10, "bone"),
        (np.random.default_rng(0).uniform(2000, 3000, (COUNT, 80, 72)), "air"),
    ],
)
def test_values_that_are_no_hu_are_implausible(tmp_path: Path, hu: np.ndarray, missing: str) -> None:
    rejected = rejection(received(ct_series(hu, SPACING_MM), tmp_path))
    assert rejected.reason is R.IMPLAUSIBLE_VALUES
    assert f"no {missing}" in rejected.detail


def test_a_blank_slice_in_the_middle_is_implausible(tmp_path: Path) -> None:
    hu = little_head()
    hu[11] = -1000
    rejected = rejection(received(ct_series(hu, SPACING_MM), tmp_path))
    assert rejected.reason is R.IMPLAUSIBLE_VALUES
    assert "Slice 12 of 28" in rejected.detail


def test_blank_slices_above_the_head_are_read(tmp_path: Path) -> None:
    hu = little_head()
    hu[-2:] = -1000
    assert load_volume(received(ct_series(hu, SPACING_MM), tmp_path)).hu.shape[0] == COUNT


def test_too_few_slices(tmp_path: Path) -> None:
    assert rejection(received(little_series()[:9], tmp_path)).reason is R.TOO_FEW_SLICES


def test_too_large_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = received(little_series(), tmp_path)
    monkeypatch.setattr(volume_module, "MAX_VOXELS", 28 * 80 * 72)
    assert load_volume(series).hu.size == 28 * 80 * 72
    monkeypatch.setattr(volume_module, "MAX_VOXELS", 28 * 80 * 72 - 1)
    monkeypatch.setattr(slice_pixels, "read_pixels", None)
    assert rejection(series).reason is R.TOO_LARGE


SILENT = {"body_part_examined": "", "series_description": "", "protocol_name": "", "study_description": ""}


def test_where_no_text_says_head_the_skull_does(tmp_path: Path) -> None:
    assert load_volume(received(little_series(**SILENT), tmp_path)).hu.shape[0] == COUNT


def test_where_neither_text_nor_skull_says_head_it_is_none(tmp_path: Path) -> None:
    hu = little_head()
    hu[hu > 300] = 50.0
    hu[:, 60:64, 30:40] = 700.0  # a spine without a skull
    rejected = rejection(received(ct_series(hu, SPACING_MM, **SILENT), tmp_path))
    assert rejected.reason is R.NOT_HEAD
    assert load_volume(received(ct_series(hu, SPACING_MM), tmp_path)).hu.shape[0] == COUNT


def test_strays_are_set_aside_with_a_caveat(tmp_path: Path) -> None:
    datasets = [*little_series(), *copies(little_series()[:1], "9")]
    datasets[-1].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    volume = load_volume(received(datasets, tmp_path))
    assert volume.hu.shape[0] == COUNT
    assert volume.caveats == ("1 of 29 objects of the series are set aside (LOCALIZER).",)


def test_notes_on_pixels_become_caveats(tmp_path: Path) -> None:
    datasets = little_series()
    for dataset in datasets[:7]:
        dataset.LossyImageCompression = "01"
    assert load_volume(received(datasets, tmp_path)).caveats == ("7 of 28 slices have lossy compression.",)


def test_source_headers_are_parallel_and_without_pixels(tmp_path: Path) -> None:
    series = received(little_series(), tmp_path)
    volume = load_volume(replace(series, instances=series.instances[::-1]))
    headers = source_headers(volume)
    assert [h.SOPInstanceUID for h in headers] == [i.sop_instance_uid for i in volume.instances]
    assert all("PixelData" not in header for header in headers)
    volume.instances[3].path.unlink()
    with pytest.raises(StudyRejected):
        source_headers(volume)


def load_real(folder: Path) -> HeadVolume:
    (series,) = select_series(open_study(folder)).candidates
    return load_volume(series)


def test_real_tilted_head_of_mixed_thickness(shared_data: Path) -> None:
    volume = load_real(shared_data / "ge_head_tilted")
    assert volume.hu.shape == (28, 512, 512)
    assert volume.spacing_mm == pytest.approx((4.0, 0.488, 0.488), abs=0.01)
    text = " ".join(volume.caveats)
    assert "mixed: 4, 7 mm" in text
    assert "1.08 to 7.00 mm" in text
    assert "tilted by 18.5 degrees" in text
    assert [i.instance_number for i in volume.instances] == list(range(1, 29))
    inside_skull = volume.hu[18, 150:350, 150:370]
    assert 20 < float(np.median(inside_skull[(inside_skull > 0) & (inside_skull < 80)])) < 40
    assert float(volume.hu.min()) == -1024


def test_real_phantom_tilted_the_other_way(shared_data: Path) -> None:
    volume = load_real(shared_data / "philips_head_phantom")
    assert volume.hu.shape == (54, 512, 512)
    assert volume.spacing_mm == pytest.approx((2.371, 0.482, 0.482), abs=0.001)
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, 2.5], atol=1e-6)
    np.testing.assert_allclose((volume.affine @ [0, 0, 53, 1])[:3], volume.origins_mm[53], atol=1e-6)


@pytest.mark.parametrize("lost", [5, 20])
def test_real_series_without_one_slice(shared_data: Path, lost: int) -> None:
    study: Study = open_study(shared_data / "ge_head_tilted")
    (series,) = study.series
    kept: list[Instance] = [i for i in series.instances if i.instance_number != lost]
    assert rejection(replace(series, instances=tuple(kept))).reason is R.MISSING_SLICES
