from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ich_node.decoding.codestream import StreamHeader, stream_header
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.pixels import MissingAttributes, read_frames, read_pixels
from ich_node.testing.series import ct_series
from tests.unit import encoded_images
from tests.unit.little_head import SPACING_MM, little_head

MIDDLE = little_head()[14:15]


def one_slice(hu: npt.ArrayLike = MIDDLE, **options: Any) -> FileDataset:
    return ct_series(hu, SPACING_MM, **options)[0]


def save(dataset: FileDataset, folder: Path) -> Path:
    path = folder / "object.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def rejection(path: Path) -> StudyRejected:
    with pytest.raises(StudyRejected) as rejected:
        read_pixels(path)
    return rejected.value


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
)
@pytest.mark.parametrize("signed", [False, True])
def test_every_common_encoding_gives_the_same_hu(tmp_path: Path, syntax: UID, signed: bool) -> None:
    intercept = 0.0 if signed else -1024.0
    dataset = one_slice(transfer_syntax_uid=syntax, signed=signed, rescale_intercept=intercept)
    pixels = read_pixels(save(dataset, tmp_path))
    np.testing.assert_array_equal(pixels.hu, MIDDLE[0])
    assert pixels.hu.dtype == np.float32
    assert pixels.notes == frozenset()


def jpeg_lossless(folder: Path) -> Path:
    """Make the JPEG Lossless object that many scanners send."""
    return save(encoded_images.encoded(one_slice(), JPEGLosslessSV1), folder)


def test_jpeg_lossless_of_scanners_is_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_pixels(jpeg_lossless(tmp_path)).hu, MIDDLE[0])


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_jpeg_lossless_cut_short_is_corrupt(tmp_path: Path, kept: float) -> None:
    dataset = dcmread(jpeg_lossless(tmp_path))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[: int(len(frame) * kept)]])
    assert rejection(save(dataset, tmp_path)).reason is RejectionReason.CORRUPT_PIXEL_DATA


def test_slope_and_clipping(tmp_path: Path) -> None:
    dataset = one_slice()
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-3000"
    hu = read_pixels(save(dataset, tmp_path)).hu
    expected = np.clip((MIDDLE[0] + 1024) * 2 - 3000, -1024, 3071)
    np.testing.assert_array_equal(hu, expected)
    assert hu.min() == -1024


@pytest.mark.parametrize(
    ("padding", "signed", "vr"),
    [(-2000, True, "SS"), (63536, True, "US"), (-3024, True, "SS"), (4000, False, "US")],
)
def test_padding_becomes_air(tmp_path: Path, padding: int, signed: bool, vr: str) -> None:
    dataset = one_slice(signed=signed, rescale_intercept=0.0 if signed else -1024.0)
    kind = np.int16 if signed else np.uint16
    values = np.frombuffer(dataset.PixelData, kind).reshape(MIDDLE[0].shape).copy()
    # a high padding value would be metal: nearly the top of the 12-bit scale plus rescale
    values[:10] = np.array(padding).astype(kind)
    dataset.PixelData = values.tobytes()
    dataset.add_new("PixelPaddingValue", vr, padding)
    if padding == 4000:
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-900"
    hu = read_pixels(save(dataset, tmp_path)).hu
    assert (hu[:10] == -1024).all()
    assert (hu[30:50] > -1024).any()


def test_padding_range(tmp_path: Path) -> None:
    dataset = one_slice(signed=True, rescale_intercept=0.0)
    values = np.frombuffer(dataset.PixelData, np.int16).reshape(MIDDLE[0].shape).copy()
    values[0], values[1], values[2] = -2000, -1990, -1980
    dataset.PixelData = values.tobytes()
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -1990)
    assert (read_pixels(save(dataset, tmp_path)).hu[:2] == -1024).all()


def test_padding_inside_tissue_is_ignored_and_said(tmp_path: Path) -> None:
    dataset = one_slice(signed=True, rescale_intercept=0.0)
    dataset.add_new("PixelPaddingValue", "SS", 32)
    pixels = read_pixels(save(dataset, tmp_path))
    np.testing.assert_array_equal(pixels.hu, MIDDLE[0])
    assert any("Pixel Padding Value" in note for note in pixels.notes)


def test_wrapped_12_bit_values_are_unwrapped(tmp_path: Path) -> None:
    dataset = one_slice()
    wrapped = (MIDDLE[0].astype(np.int32) % 4096).astype(np.uint16)
    dataset.PixelData = wrapped.tobytes()
    dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 12, 11, "0"
    pixels = read_pixels(save(dataset, tmp_path))
    np.testing.assert_array_equal(pixels.hu, MIDDLE[0])
    assert any("wrapped" in note for note in pixels.notes)


def test_signed_values_with_intercept_zero_are_left_alone(tmp_path: Path) -> None:
    dataset = one_slice(signed=True, rescale_intercept=0.0)
    dataset.BitsStored, dataset.HighBit = 12, 11
    np.testing.assert_array_equal(read_pixels(save(dataset, tmp_path)).hu, MIDDLE[0])


def test_old_overlays_above_the_stored_bits_are_dropped(tmp_path: Path) -> None:
    dataset = one_slice()
    values = np.frombuffer(dataset.PixelData, np.uint16).copy()
    values[::3] |= 0x8000
    dataset.PixelData = values.tobytes()
    dataset.BitsStored, dataset.HighBit = 12, 11
    np.testing.assert_array_equal(read_pixels(save(dataset, tmp_path)).hu, MIDDLE[0])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    stored=st.lists(st.integers(0, 4095), min_size=16, max_size=16),
    slope=st.sampled_from([0.5, 1.0, 2.0]),
    intercept=st.sampled_from([-1024.0, -1000.0, -8192.0]),
    compressed=st.booleans(),
)
def test_hu_is_slope_times_stored_plus_intercept(
    tmp_path: Path, stored: list[int], slope: float, intercept: float, compressed: bool
) -> None:
    values = np.array(stored, dtype=np.uint16).reshape(4, 4)
    dataset = one_slice(values[None].astype(np.float32), rescale_intercept=0.0)
    dataset.RescaleSlope, dataset.RescaleIntercept = str(slope), str(intercept)
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    hu = read_pixels(save(dataset, tmp_path)).hu
    np.testing.assert_allclose(hu, np.clip(values * slope + intercept, -1024, 3071))


@pytest.mark.parametrize(
    "keyword",
    ["RescaleSlope", "RescaleIntercept", "BitsStored", "BitsAllocated", "PixelRepresentation", "PixelData"],
)
def test_an_absent_attribute_is_named_with_its_tag(tmp_path: Path, keyword: str) -> None:
    dataset = one_slice()
    del dataset[keyword]
    with pytest.raises(MissingAttributes) as missing:
        read_pixels(save(dataset, tmp_path))
    (name,) = missing.value.names
    assert name.startswith(f"{keyword} (")


@pytest.mark.parametrize(
    ("keyword", "value"), [("RescaleSlope", "0"), ("RescaleType", "OD"), ("RescaleType", "Z_EFF")]
)
def test_what_is_declared_to_be_no_hu_is_not_read(tmp_path: Path, keyword: str, value: str) -> None:
    dataset = one_slice()
    setattr(dataset, keyword, value)
    assert rejection(save(dataset, tmp_path)).reason is RejectionReason.IMPLAUSIBLE_VALUES


@pytest.mark.parametrize("change", [-2, -1000, +2, +1000])
def test_a_wrong_length_is_corrupt(tmp_path: Path, change: int) -> None:
    dataset = one_slice()
    dataset.PixelData = (dataset.PixelData + bytes(2000))[: len(dataset.PixelData) + change]
    rejected = rejection(save(dataset, tmp_path))
    assert rejected.reason is RejectionReason.CORRUPT_PIXEL_DATA
    assert "bytes" in rejected.detail


def test_a_file_cut_short_is_corrupt(tmp_path: Path) -> None:
    path = save(one_slice(), tmp_path)
    path.write_bytes(path.read_bytes()[:-3000])
    assert rejection(path).reason is RejectionReason.CORRUPT_PIXEL_DATA


def test_a_file_that_is_gone_is_corrupt(tmp_path: Path) -> None:
    assert rejection(tmp_path / "gone.dcm").reason is RejectionReason.CORRUPT_PIXEL_DATA


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("damage", ["cut", "empty frame", "garbage"])
def test_a_damaged_stream_is_corrupt(tmp_path: Path, syntax: UID, damage: str) -> None:
    dataset = one_slice(np.random.default_rng(0).normal(0, 300, (1, 64, 64)), transfer_syntax_uid=syntax)
    frame = dataset.PixelData[16:]
    damaged = {"cut": frame[: len(frame) // 3], "empty frame": b"\0\0", "garbage": b"\xa5" * 400}[damage]
    dataset.PixelData = encapsulate([damaged])
    assert rejection(save(dataset, tmp_path)).reason is RejectionReason.CORRUPT_PIXEL_DATA


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_stream_of_another_size_is_refused_before_decoding(tmp_path: Path, syntax: UID) -> None:
    dataset = one_slice(transfer_syntax_uid=syntax)
    dataset.Rows = 40
    rejected = rejection(save(dataset, tmp_path))
    assert rejected.reason is RejectionReason.CORRUPT_PIXEL_DATA
    assert "80 x 72" in rejected.detail


def test_streams_tell_their_size() -> None:
    jpeg = bytes.fromhex(
        "ffd8 ffe0 0004 0000 ffff c4 0003 00 ffc3 000b 10 0200 0100 01 01 11 00".replace(" ", "")
    )
    found = stream_header(jpeg, str(JPEGLosslessSV1))
    assert found == StreamHeader(rows=512, columns=256, components=1, bits_per_sample=16)
    assert stream_header(jpeg[:8], str(JPEGLosslessSV1)) is None
    assert stream_header(b"\xff\xd8\xff\xd9" + jpeg, str(JPEGLosslessSV1)) is None
    assert stream_header(b"", str(JPEG2000Lossless)) is None
    assert stream_header(jpeg, str(JPEG2000Lossless)) is None
    assert stream_header(jpeg, str(RLELossless)) is None


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.100", "1.2.3.4.5"])
def test_an_unknown_transfer_syntax_is_named(tmp_path: Path, syntax: str) -> None:
    dataset = one_slice()
    dataset.PixelData = encapsulate([bytes(100)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    path = tmp_path / "object.dcm"
    dataset.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)
    rejected = rejection(path)
    assert rejected.reason is RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX
    assert syntax in rejected.detail


def test_lossy_compression_is_said(tmp_path: Path) -> None:
    dataset = one_slice()
    dataset.LossyImageCompression = "01"
    assert read_pixels(save(dataset, tmp_path)).notes == frozenset({"lossy compression"})


def test_eight_bit_jpeg_is_decoded_or_refused_but_never_crashes(tmp_path: Path) -> None:
    dataset = one_slice()
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    assert rejection(save(dataset, tmp_path)).reason is RejectionReason.CORRUPT_PIXEL_DATA


def test_jpeg_of_the_lossy_kinds_is_said_to_be_lossy(tmp_path: Path) -> None:
    path = encoded_images.save(
        encoded_images.image(encoded_images.smooth_hu()[0], JPEGBaseline8Bit), tmp_path
    )
    assert read_pixels(path).notes == frozenset({"lossy compression"})


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLosslessSV1])
def test_bits_above_the_stored_ones_are_dropped(tmp_path: Path, syntax: UID) -> None:
    hu = np.clip(encoded_images.smooth_hu()[0], -2048, 2047)
    dataset = encoded_images.image(hu, signed=True, rescale_intercept=0.0)
    values = np.frombuffer(dataset.PixelData, "<i2").copy()
    assert (values < 0).any()
    dataset.PixelData = (values & 0x0FFF).tobytes()  # the sign is in bit 11, and nothing above it
    if syntax == JPEGLosslessSV1:
        dataset.BitsStored, dataset.HighBit = 16, 15
    encoded_images.encoded(dataset, syntax)
    dataset.BitsStored, dataset.HighBit = 12, 11
    np.testing.assert_array_equal(read_pixels(save(dataset, tmp_path)).hu, hu)


# --- frames

FRAMES = encoded_images.smooth_hu(3)


def frames(dataset: FileDataset, folder: Path) -> npt.NDArray[np.float32]:
    return np.stack([frame.hu for frame in read_frames(save(dataset, folder))])


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless]
)
def test_frames_have_the_shared_rescale(tmp_path: Path, syntax: UID) -> None:
    dataset = encoded_images.multi_frame(FRAMES, syntax)
    np.testing.assert_array_equal(frames(dataset, tmp_path), FRAMES)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
def test_frames_have_their_own_rescale(tmp_path: Path, syntax: UID) -> None:
    rescales = [(1.0, -1024.0), (2.0, -1000.0), (4.0, -2048.0)]
    dataset = encoded_images.multi_frame(FRAMES, syntax, rescales)
    np.testing.assert_array_equal(frames(dataset, tmp_path), FRAMES)


def test_a_frame_without_its_own_rescale_has_the_shared_one(tmp_path: Path) -> None:
    dataset = encoded_images.multi_frame(FRAMES)
    shared = dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    own = Dataset()
    own.RescaleSlope, own.RescaleIntercept, own.RescaleType = 1, -124, "HU"
    assert shared.RescaleIntercept == -1024
    dataset.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence = Sequence([own])
    got = frames(dataset, tmp_path)
    np.testing.assert_array_equal(got[::2], FRAMES[::2])
    np.testing.assert_array_equal(got[1], FRAMES[1] + 900)


def test_frames_without_functional_groups_have_the_rescale_of_the_image(tmp_path: Path) -> None:
    dataset = encoded_images.multi_frame(FRAMES)
    del dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    np.testing.assert_array_equal(frames(dataset, tmp_path), FRAMES)


def test_a_single_slice_is_one_frame(tmp_path: Path) -> None:
    path = save(one_slice(), tmp_path)
    (frame,) = read_frames(path)
    np.testing.assert_array_equal(frame.hu, MIDDLE[0])


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescale_absent_from_the_functional_groups_is_named(tmp_path: Path, keyword: str) -> None:
    dataset = encoded_images.multi_frame(FRAMES)
    del dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0][keyword]
    with pytest.raises(MissingAttributes, match=rf"^{keyword} \(0028,105[23]\)$"):
        frames(dataset, tmp_path)


def test_one_frame_that_is_no_hu_refuses_the_image(tmp_path: Path) -> None:
    dataset = encoded_images.multi_frame(FRAMES, rescales=[(1.0, -1024.0)] * 3)
    dataset.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence[0].RescaleType = "Z_EFF"
    with pytest.raises(StudyRejected) as rejected:
        next(read_frames(save(dataset, tmp_path)))
    assert rejected.value.reason is RejectionReason.IMPLAUSIBLE_VALUES


def test_functional_groups_for_other_frames_refuse_the_image(tmp_path: Path) -> None:
    dataset = encoded_images.multi_frame(FRAMES, rescales=[(1.0, -1024.0)] * 3)
    dataset.PerFrameFunctionalGroupsSequence.pop()
    rejected = rejection_of_frames(save(dataset, tmp_path))
    assert rejected.reason is RejectionReason.CORRUPT_PIXEL_DATA
    assert "groups for 2" in rejected.detail


def rejection_of_frames(path: Path) -> StudyRejected:
    with pytest.raises(StudyRejected) as rejected:
        list(read_frames(path))
    return rejected.value


def test_padding_of_frames_becomes_air(tmp_path: Path) -> None:
    dataset = encoded_images.multi_frame(FRAMES)
    values = np.frombuffer(dataset.PixelData, "<u2").reshape(FRAMES.shape).copy()
    values[1, :5] = 0
    values[:, 7] = 10
    dataset.PixelData = values.tobytes()
    dataset.add_new("PixelPaddingValue", "US", 0)
    got = frames(dataset, tmp_path)
    assert (got[1, :5] == -1024).all()
    assert (got[:, 7] == -1014).all()
    np.testing.assert_array_equal(got[0, :5], FRAMES[0, :5])


def test_an_oversized_slice_is_refused_before_decoding(tmp_path: Path) -> None:
    dataset = one_slice()
    dataset.Rows = 60000
    assert rejection(save(dataset, tmp_path)).reason is RejectionReason.TOO_LARGE
