"""What an image costs in memory, refused or read."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from ich_node.decoding import DecodeLimits
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.pixels import read_frames, read_pixels
from tests.unit.encoded_images import image, multi_frame, save, smooth_hu

MIB = 2**20
HU = smooth_hu(3)


def rejection(path: Path, limits: DecodeLimits | None = None) -> StudyRejected:
    with pytest.raises(StudyRejected) as rejected:
        list(read_frames(path, limits))
    return rejected.value


def gibibyte(folder: Path, **changes: Any) -> Path:
    """Make a file whose 128 frames of 2048 x 2048 pixels take no place on disk."""
    dataset = multi_frame(np.zeros((1, 16, 16)))
    dataset.Rows = dataset.Columns = 2048
    dataset.NumberOfFrames = 128
    dataset.PixelData = b"\xa5" * 8
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    del dataset.PerFrameFunctionalGroupsSequence
    path = save(dataset, folder)
    start = path.read_bytes()
    at = start.index(b"\xa5" * 8)
    with path.open("r+b") as file:
        file.seek(at - 4)
        file.write(struct.pack("<L", 2**30))
        file.truncate(at + 2**30)
    return path


def test_a_gibibyte_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = gibibyte(tmp_path)
    tracemalloc.start()
    try:
        assert rejection(path, DecodeLimits(max_image_bytes=1023 * MIB)).reason is RejectionReason.TOO_LARGE
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_gibibyte_is_read_frame_by_frame(tmp_path: Path) -> None:
    path = gibibyte(tmp_path)
    tracemalloc.start()
    try:
        frames = read_frames(path)
        for _ in range(4):
            next(frames)
        frames.close()
        assert tracemalloc.get_traced_memory()[1] < 100 * MIB  # a frame of float32 and masks of it
    finally:
        tracemalloc.stop()


def test_compressed_frames_are_decoded_a_few_at_a_time(tmp_path: Path) -> None:
    hu = np.zeros((40, 512, 512), dtype=np.float32)
    path = save(multi_frame(hu, RLELossless), tmp_path)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_frames(path)) == 40
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB  # stored values alone are 20 MiB
    finally:
        tracemalloc.stop()


def deflated(dataset: FileDataset, folder: Path, more: int) -> Path:
    """Write a Deflated file with ``more`` zero bytes in a private element after the header."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.private_block(0x0009, "ICH TEST", create=True).add_new(1, "OB", bytes(more))
    return save(dataset, folder)


def test_a_deflate_bomb_is_refused(tmp_path: Path) -> None:
    path = deflated(image(HU[0]), tmp_path, 64 * MIB)
    assert path.stat().st_size < MIB
    tracemalloc.start()
    try:
        error = rejection(path, DecodeLimits(max_image_bytes=8 * MIB))
        assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    finally:
        tracemalloc.stop()
    assert error.reason is RejectionReason.TOO_LARGE
    assert "inflates" in error.detail


def test_a_deflated_image_is_read(tmp_path: Path) -> None:
    path = deflated(image(HU[0]), tmp_path, 10)
    np.testing.assert_array_equal(read_pixels(path).hu, HU[0])
    path.write_bytes(path.read_bytes()[:-500])
    assert rejection(path).reason is RejectionReason.CORRUPT_PIXEL_DATA


def test_large_attributes_that_are_not_wanted_are_passed_over(tmp_path: Path) -> None:
    dataset = image(HU[0])
    dataset.private_block(0x0009, "ICH TEST", create=True).add_new(1, "OB", bytes(40 * MIB))
    path = save(dataset, tmp_path)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(read_pixels(path).hu, HU[0])
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_header_that_is_too_large_is_refused(tmp_path: Path) -> None:
    dataset = multi_frame(HU)
    item = Dataset()
    item.add_new(0x00091001, "OB", bytes(40 * MIB))
    dataset.SharedFunctionalGroupsSequence.append(item)
    error = rejection(save(dataset, tmp_path))
    assert error.reason is RejectionReason.TOO_LARGE
    assert "header" in error.detail
