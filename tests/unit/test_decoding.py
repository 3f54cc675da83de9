"""What is checked before anything is decoded."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate_extended
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ich_node.decoding import DecodeLimits, MissingAttributes
from ich_node.decoding.encapsulation import locate_frames
from ich_node.decoding.pixel_format import PixelFormat
from ich_node.errors import RejectionReason, StudyRejected, TransientError
from ich_node.pixels import read_frames, read_pixels
from tests.unit.encoded_images import frames_of, image, multi_frame, save, smooth_hu, with_frames

MIB = 2**20
HU = smooth_hu(3)


def rejection(path: Path, limits: DecodeLimits | None = None) -> StudyRejected:
    with pytest.raises(StudyRejected) as rejected:
        list(read_frames(path, limits))
    return rejected.value


def corrupt(path: Path) -> str:
    error = rejection(path)
    assert error.reason is RejectionReason.CORRUPT_PIXEL_DATA
    return error.detail


def are_right(path: Path) -> bool:
    return np.array_equal(np.stack([frame.hu for frame in read_frames(path)]), HU)


# --- sizes


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("Rows", 60000), ("Columns", 65535), ("NumberOfFrames", 2**31 - 1), ("NumberOfFrames", 70000)],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless], ids=lambda u: UID(u).keyword)
def test_absurd_sizes_are_refused(tmp_path: Path, syntax: UID, keyword: str, value: int) -> None:
    dataset = image(HU[0], syntax)
    setattr(dataset, keyword, value)
    error = rejection(save(dataset, tmp_path))
    assert error.reason is RejectionReason.TOO_LARGE
    assert str(value) in error.detail


def test_a_number_of_frames_beyond_32_bits_is_refused(tmp_path: Path) -> None:
    dataset = image(HU[0])
    dataset.NumberOfFrames = 1234
    path = save(dataset, tmp_path)
    element = b"\x28\x00\x08\x00IS\x04\x001234"
    assert element in path.read_bytes()
    digits = b"\x28\x00\x08\x00IS\x0c\x00214748364800"
    path.write_bytes(path.read_bytes().replace(element, digits))
    assert rejection(path).reason is RejectionReason.TOO_LARGE


def test_the_limit_counts_rows_columns_frames_and_bytes(tmp_path: Path) -> None:
    for syntax in (ExplicitVRLittleEndian, RLELossless):
        path = save(multi_frame(HU, syntax), tmp_path)
        size = 40 * 32 * 3 * 2
        assert len(list(read_frames(path, DecodeLimits(max_image_bytes=size)))) == 3
        error = rejection(path, DecodeLimits(max_image_bytes=size - 1))
        assert error.reason is RejectionReason.TOO_LARGE
        assert "3 frame(s) of 40 x 32" in error.detail
        assert "worker.max_image_mib" in error.detail


@pytest.mark.parametrize("frames", ["0", ""])
def test_no_number_of_frames_is_one_frame(tmp_path: Path, frames: str) -> None:
    dataset = image(HU[0])
    dataset.NumberOfFrames = frames
    np.testing.assert_array_equal(read_pixels(save(dataset, tmp_path)).hu, HU[0])


@pytest.mark.parametrize(
    ("keyword", "value", "says"),
    [
        ("NumberOfFrames", -3, "-3"),
        ("SamplesPerPixel", 3, "3 samples"),
        ("BitsAllocated", 12, "in 12"),
        ("BitsAllocated", 1, "in 1"),
        ("BitsStored", 0, "0 bits"),
        ("BitsStored", 17, "17 bits"),
        ("Rows", 0, "no rows"),
    ],
)
def test_pixels_that_are_no_ct_are_refused(tmp_path: Path, keyword: str, value: int, says: str) -> None:
    dataset = image(HU[0])
    setattr(dataset, keyword, value)
    assert says in corrupt(save(dataset, tmp_path))


def test_several_frames_are_no_single_slice(tmp_path: Path) -> None:
    with pytest.raises(StudyRejected, match="3 frames") as rejected:
        read_pixels(save(multi_frame(HU), tmp_path))
    assert rejected.value.reason is RejectionReason.TOO_LARGE


def test_a_host_without_free_descriptors_tries_later(tmp_path: Path) -> None:
    path = save(image(HU[0]), tmp_path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(TransientError):
            read_pixels(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- fragments and offset tables


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("table", ["basic", "none", "extended", "wrong"])
def test_frames_are_found(tmp_path: Path, syntax: UID, table: str) -> None:
    dataset = multi_frame(HU, syntax)
    frames = frames_of(dataset)
    if table == "extended":
        stream, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        dataset.PixelData = stream
        dataset["PixelData"].is_undefined_length = True
    else:
        with_frames(dataset, frames, has_bot=table != "none")
    if table == "wrong":  # with a fragment for each frame it can say nothing new
        dataset.PixelData = dataset.PixelData[:12] + b"\xff" * 8 + dataset.PixelData[20:]
    assert are_right(save(dataset, tmp_path))


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("has_table", [True, False])
def test_frames_in_several_fragments_are_found(tmp_path: Path, syntax: UID, has_table: bool) -> None:
    dataset = multi_frame(HU, syntax)
    with_frames(dataset, frames_of(dataset), fragments_per_frame=4, has_bot=has_table)
    assert are_right(save(dataset, tmp_path))


def test_frames_by_an_extended_table_in_several_fragments(tmp_path: Path) -> None:
    dataset = multi_frame(HU, JPEGLSLossless)
    with_frames(dataset, frames_of(dataset), fragments_per_frame=3)
    offsets = struct.unpack("<3L", dataset.PixelData[8:20])
    dataset.ExtendedOffsetTable = struct.pack("<3Q", *offsets)
    dataset.PixelData = dataset.PixelData[:4] + bytes(4) + dataset.PixelData[20:]
    dataset["PixelData"].is_undefined_length = True
    assert are_right(save(dataset, tmp_path))


@pytest.mark.parametrize(
    "offsets", [(0, 0, 0), (0, 4, 8), (8, 16, 24), (0, 2**31, 2**32 - 1), (0, 900000, 100)]
)
def test_an_offset_table_that_points_nowhere_is_refused(tmp_path: Path, offsets: tuple[int, ...]) -> None:
    dataset = multi_frame(HU, JPEGLSLossless)
    with_frames(dataset, frames_of(dataset), fragments_per_frame=4)
    dataset.PixelData = dataset.PixelData[:8] + struct.pack("<3L", *offsets) + dataset.PixelData[20:]
    assert "offset table" in corrupt(save(dataset, tmp_path))


def test_an_offset_table_of_another_length_is_refused(tmp_path: Path) -> None:
    dataset = multi_frame(HU, JPEGLSLossless)
    with_frames(dataset, frames_of(dataset), fragments_per_frame=4)
    dataset.PixelData = (
        dataset.PixelData[:4] + struct.pack("<L", 8) + dataset.PixelData[8:16] + dataset.PixelData[20:]
    )
    assert "offset table" in corrupt(save(dataset, tmp_path))


def test_frames_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    dataset = multi_frame(HU, JPEGLSLossless)
    frames = [frame.replace(b"\xff\xd9", b"\xff\xd8") for frame in frames_of(dataset)]
    with_frames(dataset, frames, fragments_per_frame=4, has_bot=False)
    assert "told apart" in corrupt(save(dataset, tmp_path))


@pytest.mark.parametrize("count", [2, 4])
def test_run_length_frames_have_one_fragment_each(tmp_path: Path, count: int) -> None:
    dataset = multi_frame(HU, RLELossless)
    with_frames(dataset, (frames_of(dataset) * 2)[:count])
    assert f"{count} fragments for 3 frames" in corrupt(save(dataset, tmp_path))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_fewer_frames_than_the_header_says_are_refused(tmp_path: Path, syntax: UID) -> None:
    dataset = multi_frame(HU, syntax)
    with_frames(dataset, frames_of(dataset)[:2])
    assert "2 fragments for 3 frames" in corrupt(save(dataset, tmp_path))


@pytest.mark.parametrize("cut", [4, 8, 9, 100, 700])
def test_a_compressed_file_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = save(multi_frame(HU, JPEGLSLossless), tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    assert corrupt(path)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 2**20])
def test_a_fragment_beyond_the_file_is_refused(tmp_path: Path, length: int) -> None:
    dataset = image(HU[0], RLELossless)
    stream = dataset.PixelData
    item = stream.index(b"\xfe\xff\x00\xe0", 8)
    dataset.PixelData = stream[: item + 4] + struct.pack("<L", length) + stream[item + 8 :]
    path = save(dataset, tmp_path)
    assert "inside the file" in corrupt(path)


def test_no_fragments_are_refused(tmp_path: Path) -> None:
    dataset = image(HU[0], RLELossless)
    dataset.PixelData = b"\xfe\xff\x00\xe0" + bytes(4)
    assert "empty" in corrupt(save(dataset, tmp_path))


def test_countless_fragments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fragments"
    path.write_bytes(b"\xfe\xff\x00\xe0\0\0\0\0" * (2**18 + 2) + b"\xfe\xff\xdd\xe0\0\0\0\0")
    pixel_format = PixelFormat(
        transfer_syntax_uid=str(JPEGLSLossless),
        rows=40,
        columns=32,
        bits_allocated=16,
        bits_stored=12,
        is_signed=False,
    )
    with path.open("rb") as file, pytest.raises(StudyRejected, match="fragments"):
        locate_frames(file.fileno(), 0, pixel_format, 3)


def test_a_stream_far_longer_than_its_pixels_is_refused(tmp_path: Path) -> None:
    dataset = image(HU[0], JPEGLSLossless)
    with_frames(dataset, [frames_of(dataset)[0] + bytes(2 * MIB)])
    assert "2560 uncompressed" in corrupt(save(dataset, tmp_path))


@pytest.mark.parametrize("change", [-2, 2, 2560])
def test_uncompressed_frames_of_another_length_are_refused(tmp_path: Path, change: int) -> None:
    dataset = multi_frame(HU)
    dataset.PixelData = (dataset.PixelData + bytes(3000))[: len(dataset.PixelData) + change]
    assert "where 7680 bytes are due" in corrupt(save(dataset, tmp_path))


def test_uncompressed_pixels_beyond_the_file_are_refused(tmp_path: Path) -> None:
    path = save(multi_frame(HU), tmp_path)
    os.truncate(path, path.stat().st_size - 2)
    assert "cut short" in corrupt(path)


def test_big_endian_is_read(tmp_path: Path) -> None:
    source = image(HU[0])
    dataset = Dataset()
    dataset.update(source)
    dataset.file_meta = source.file_meta
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = np.frombuffer(source.PixelData, "<u2").astype(">u2").tobytes()
    path = tmp_path / "object.dcm"
    dataset.save_as(path, implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_array_equal(read_pixels(path).hu, HU[0])


def test_32_bits_are_read(tmp_path: Path) -> None:
    dataset = image(HU[0])
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype("<u4").tobytes()
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 32, 16, 15
    np.testing.assert_array_equal(read_pixels(save(dataset, tmp_path)).hu, HU[0])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_an_image_or_a_rejection(tmp_path: Path, data: st.DataObject) -> None:
    syntax = data.draw(
        st.sampled_from([ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless])
    )
    whole = bytearray(_whole(tmp_path, syntax))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(132, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.dcm"
    path.write_bytes(whole[: data.draw(st.integers(400, len(whole)))])
    try:
        for frame in read_frames(path, DecodeLimits(max_image_bytes=16 * MIB)):
            assert np.isfinite(frame.hu).all()
    except (StudyRejected, MissingAttributes):
        pass


def _whole(folder: Path, syntax: UID) -> bytes:
    path = folder / f"whole-{syntax.keyword}.dcm"
    if not path.exists():
        save(multi_frame(HU, syntax), folder, path.name)
    return path.read_bytes()
