"""DICOM series of the phantom: what goes in comes out, and the geometry is that of a scanner."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.pixels import apply_rescale
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import AXIAL, ct_series, localizer_series, phantom_series


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return head_phantom(seed=1, rows=128, columns=128, slices=5)


def through_a_file(dataset: pydicom.Dataset) -> pydicom.Dataset:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return pydicom.dcmread(BytesIO(buffer.getvalue()))


def hu_of(dataset: pydicom.Dataset) -> np.ndarray:
    return np.asarray(apply_rescale(dataset.pixel_array, dataset))


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
        JPEGLSLossless,
    ],
    ids=lambda uid: uid.name,
)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_hounsfield_units_survive(phantom: HeadPhantom, syntax: str, signed: bool) -> None:
    series = phantom_series(phantom, transfer_syntax_uid=syntax, signed=signed)
    for image, hu in zip(series, phantom.hu, strict=True):
        read = through_a_file(image)
        assert read.file_meta.TransferSyntaxUID == syntax
        np.testing.assert_allclose(hu_of(read), hu, atol=0.5)


@pytest.mark.parametrize(("intercept", "signed"), [(0.0, True), (-1024.0, False), (-8192.0, False)])
def test_any_intercept(phantom: HeadPhantom, intercept: float, signed: bool) -> None:
    image = through_a_file(phantom_series(phantom, rescale_intercept=intercept, signed=signed)[2])
    np.testing.assert_allclose(hu_of(image), phantom.hu[2], atol=0.5)


def test_values_out_of_range_are_clipped_not_wrapped() -> None:
    image = ct_series(np.full((1, 4, 4), -3024.0), (5, 1, 1))[0]
    assert (hu_of(image) == -1024).all()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 6),
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    spacing=st.tuples(st.floats(0.5, 10), st.floats(0.2, 2), st.floats(0.2, 2)),
    tilt=st.floats(-30, 30).map(lambda v: round(v, 1)),
)
def test_geometry(
    count: int, shape: tuple[int, int], spacing: tuple[float, float, float], tilt: float
) -> None:
    series = ct_series(np.zeros((count, *shape)), spacing, gantry_tilt_deg=tilt)
    orientation = np.array(series[0].ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    positions = np.array([image.ImagePositionPatient for image in series], float)
    np.testing.assert_allclose(np.diff(positions @ normal), spacing[0], atol=1e-4)
    assert (np.diff(positions[:, 2]) > 0).all(), "not inferior to superior"
    np.testing.assert_allclose(positions[:, 0], positions[0, 0])
    np.testing.assert_allclose(np.diff(positions[:, 1]), 0, atol=1e-6)
    rows, columns = np.array(series[0].PixelSpacing, float)
    middle = (
        positions.mean(axis=0)
        + orientation[:3] * columns * (shape[1] - 1) / 2
        + orientation[3:] * rows * (shape[0] - 1) / 2
    )
    np.testing.assert_allclose(middle, 0, atol=1e-4)
    assert (rows, columns) == pytest.approx(spacing[1:], abs=1e-6)
    assert all(image.SliceThickness == pytest.approx(spacing[0], abs=1e-6) for image in series)


def test_another_orientation_steps_along_its_normal() -> None:
    coronal = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    series = ct_series(np.zeros((3, 4, 4)), (5, 1, 1), image_orientation=coronal)
    positions = np.array([image.ImagePositionPatient for image in series], float)
    np.testing.assert_allclose(np.diff(positions, axis=0), [[0, 5, 0], [0, 5, 0]])
    with pytest.raises(ValueError, match="tilt"):
        ct_series(np.zeros((3, 4, 4)), (5, 1, 1), image_orientation=coronal, gantry_tilt_deg=10)


def test_uids_follow_from_the_name(phantom: HeadPhantom) -> None:
    first, again = (phantom_series(phantom, name="one") for _ in range(2))
    assert [i.SOPInstanceUID for i in first] == [i.SOPInstanceUID for i in again]
    assert len({i.SOPInstanceUID for i in first}) == len(first)
    other = phantom_series(phantom, name="two")
    assert not {i.SOPInstanceUID for i in first} & {i.SOPInstanceUID for i in other}
    assert first[0].StudyInstanceUID != other[0].StudyInstanceUID
    bone = phantom_series(phantom, name="one", series_number=3, convolution_kernel="BONE")
    assert bone[0].StudyInstanceUID == first[0].StudyInstanceUID
    assert bone[0].SeriesInstanceUID != first[0].SeriesInstanceUID
    given_uid = phantom_series(phantom, study_instance_uid="1.2.3", series_instance_uid="1.2.3.4")
    assert {(i.StudyInstanceUID, i.SeriesInstanceUID) for i in given_uid} == {("1.2.3", "1.2.3.4")}


def test_header_says_what_was_asked_for(phantom: HeadPhantom) -> None:
    image = through_a_file(
        phantom_series(
            phantom,
            patient_name="Prüfer^Ä",
            patient_id="P1",
            accession_number="A1",
            contrast_bolus_agent="IODINE",
            convolution_kernel="H60s",
            image_comments="pixel spacing is assumed",
            source_ae_title="CT1",
        )[0]
    )
    assert image.SOPClassUID == image.file_meta.MediaStorageSOPClassUID == CTImageStorage
    assert image.SOPInstanceUID == image.file_meta.MediaStorageSOPInstanceUID
    assert image.file_meta.SourceApplicationEntityTitle == "CT1"
    assert (image.PatientName, image.PatientID, image.AccessionNumber) == ("Prüfer^Ä", "P1", "A1")
    assert (image.ContrastBolusAgent, image.ConvolutionKernel) == ("IODINE", "H60s")
    assert image.ImageComments == "pixel spacing is assumed"
    assert list(image.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert list(image.ImageOrientationPatient) == list(AXIAL)
    plain = phantom_series(phantom)[0]
    assert "ContrastBolusAgent" not in plain
    assert "ImageComments" not in plain


def test_localizer_shows_the_head_upright() -> None:
    head = head_phantom(seed=1, rows=128, columns=128)
    frontal, lateral = localizer_series(head, name="x")
    assert frontal.StudyInstanceUID == phantom_series(head, name="x")[0].StudyInstanceUID
    assert frontal.SeriesInstanceUID == lateral.SeriesInstanceUID
    for image, orientation in ((frontal, [1, 0, 0, 0, 0, -1]), (lateral, [0, 1, 0, 0, 0, -1])):
        assert list(image.ImageType) == ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        assert list(image.ImageOrientationPatient) == orientation
        height_mm = image.Rows * image.PixelSpacing[0]
        assert height_mm == pytest.approx(160, abs=2)
        view = hu_of(image)
        # above the vertex there is air, below the skull base there is neck
        assert (view[2] < -500).mean() > 0.8 > (view[-3] < -500).mean()
    assert len(localizer_series(head, views=["lateral"])) == 1


def test_wrong_arguments_are_refused(phantom: HeadPhantom) -> None:
    with pytest.raises(TypeError, match="no_such_field"):
        phantom_series(phantom, no_such_field=1)
    with pytest.raises(ValueError, match="transfer syntax"):
        phantom_series(phantom, transfer_syntax_uid=ExplicitVRBigEndian)
    with pytest.raises(ValueError, match="shape"):
        ct_series(np.zeros((4, 4)), (5, 1, 1))


def test_it_can_be_written_as_part_10(phantom: HeadPhantom, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    phantom_series(phantom)[0].save_as(path, enforce_file_format=True)
    assert path.read_bytes()[128:132] == b"DICM"
