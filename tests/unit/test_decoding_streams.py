"""Every transfer syntax through the decoder process, and streams that lie."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ich_node.decoding import DecoderProcess
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.pixels import read_frames, read_pixels
from ich_node.receive.accepted import TRANSFER_SYNTAXES
from tests.unit.encoded_images import (
    COMPRESSED,
    EXTENDED_12_BIT_SHA256,
    TOLERANCE_HU,
    frames_of,
    image,
    multi_frame,
    save,
    smooth_hu,
    with_frames,
)

DCT = (JPEGBaseline8Bit, JPEGExtended12Bit)
"""A discrete cosine transform has no sign; and an Enhanced CT has 16 bits."""


@pytest.fixture(scope="module")
def steady() -> Iterator[DecoderProcess]:
    """One process for all: none of these should harm it."""
    with DecoderProcess() as process:
        yield process


# --- values


def test_every_compressed_syntax_that_is_received_is_tried() -> None:
    assert {str(uid) for uid in COMPRESSED} == {
        str(uid) for uid in TRANSFER_SYNTAXES if UID(uid).is_encapsulated
    }


@pytest.mark.parametrize(
    ("syntax", "signed"),
    [(syntax, False) for syntax in COMPRESSED]
    + [(syntax, True) for syntax in COMPRESSED if syntax not in DCT],
    ids=lambda value: UID(value).keyword if isinstance(value, str) else "signed" if value else "unsigned",
)
def test_every_syntax_decodes_as_in_process(
    tmp_path: Path, steady: DecoderProcess, syntax: UID, signed: bool
) -> None:
    hu = smooth_hu()[0]
    dataset = image(hu, syntax, signed=signed, rescale_intercept=0.0 if signed else -1024.0)
    path = save(dataset, tmp_path)
    pixels = read_pixels(path, decoder=steady)
    np.testing.assert_allclose(pixels.hu, hu, atol=TOLERANCE_HU.get(syntax, 0))
    if syntax != JPEGExtended12Bit:  # which pydicom does not read
        expected = dcmread(path).pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        np.testing.assert_array_equal(pixels.hu, expected)


def test_12_bit_jpeg_extended_is_what_dcmtk_makes_of_it(tmp_path: Path, steady: DecoderProcess) -> None:
    dataset = image(smooth_hu()[0], JPEGExtended12Bit)
    hu = read_pixels(save(dataset, tmp_path), decoder=steady).hu
    stored = (hu - float(dataset.RescaleIntercept)).astype("<u2")
    assert hashlib.sha256(stored.tobytes()).hexdigest() == EXTENDED_12_BIT_SHA256


@pytest.mark.parametrize("syntax", [s for s in COMPRESSED if s not in DCT], ids=lambda u: UID(u).keyword)
def test_frames_come_in_order_over_several_requests(
    tmp_path: Path, steady: DecoderProcess, syntax: UID
) -> None:
    hu = smooth_hu(19)
    got = np.stack([f.hu for f in read_frames(save(multi_frame(hu, syntax), tmp_path), decoder=steady)])
    np.testing.assert_allclose(got, hu, atol=TOLERANCE_HU.get(syntax, 0))


# --- streams that lie


def corrupt(path: Path, decoder: DecoderProcess) -> str:
    with pytest.raises(StudyRejected) as caught:
        read_pixels(path, decoder=decoder)
    error = caught.value
    assert error.reason is RejectionReason.CORRUPT_PIXEL_DATA
    return error.detail


def with_stream(syntax: str, change: bytes | slice, at: int = 0) -> FileDataset:
    """Make an image whose stream is changed from ``at``, or cut to a slice."""
    dataset = image(smooth_hu()[0], syntax)
    (stream,) = frames_of(dataset)
    changed = (
        stream[change] if isinstance(change, slice) else stream[:at] + change + stream[at + len(change) :]
    )
    return with_frames(dataset, [changed])


def test_a_codestream_of_40000_x_40000_is_refused_undecoded(tmp_path: Path, steady: DecoderProcess) -> None:
    dataset = with_stream(JPEG2000Lossless, struct.pack(">2L", 40000, 40000), at=8)
    before = steady.pid
    assert "40000 x 40000 pixels, the header 40 x 32" in corrupt(save(dataset, tmp_path), steady)
    assert steady.pid == before


@pytest.mark.parametrize("syntax", [s for s in COMPRESSED if s != RLELossless], ids=lambda u: UID(u).keyword)
def test_a_stream_without_its_end_is_cut_short(tmp_path: Path, steady: DecoderProcess, syntax: UID) -> None:
    dataset = with_stream(syntax, slice(0, -40))
    assert "cut short" in corrupt(save(dataset, tmp_path), steady)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_colour_in_the_stream_is_refused(tmp_path: Path, steady: DecoderProcess, syntax: UID) -> None:
    dataset = image(smooth_hu()[0], syntax)
    (stream,) = frames_of(dataset)
    size = struct.pack(">2L", 32, 40) if syntax == JPEG2000Lossless else struct.pack(">2H", 40, 32)
    # Csiz follows the tiles; the number of components follows rows and columns
    at = 41 if syntax == JPEG2000Lossless else stream.index(size) + 4
    path = save(with_frames(dataset, [stream[:at] + b"\x03" + stream[at + 1 :]]), tmp_path)
    assert "3 samples" in corrupt(path, steady)


def test_more_bits_than_allocated_are_refused(tmp_path: Path, steady: DecoderProcess) -> None:
    dataset = image(smooth_hu()[0], JPEG2000Lossless)
    dataset.BitsAllocated = dataset.BitsStored = 8
    assert "12 bits" in corrupt(save(dataset, tmp_path), steady)


def test_a_jp2_file_inside_is_measured_too(tmp_path: Path, steady: DecoderProcess) -> None:
    dataset = image(smooth_hu()[0], JPEG2000Lossless)
    (stream,) = frames_of(dataset)
    header = bytes.fromhex(
        "0000000c6a5020200d0a870a 00000014667479706a703220000000006a703220 0000002d6a703268"
        "00000016696864720000002800000020000 10b070000 0000000f636f6c7201000000000011".replace(" ", "")
    )
    boxed = header + struct.pack(">L4s", len(stream) + 8, b"jp2c")
    path = save(with_frames(dataset, [boxed + stream]), tmp_path)
    np.testing.assert_array_equal(read_pixels(path, decoder=steady).hu, smooth_hu()[0])
    larger = stream[:8] + struct.pack(">2L", 40000, 40000) + stream[16:]
    assert "40000" in corrupt(save(with_frames(dataset, [boxed + larger]), tmp_path), steady)


def rle(segments: list[bytes], count: int | None = None, first: int = 64) -> bytes:
    starts = [first + sum(map(len, segments[:n])) for n in range(len(segments))]
    numbers = [len(segments) if count is None else count, *starts, *[0] * 15]
    return struct.pack("<16L", *numbers[:16]) + b"".join(segments)


RUN = b"\x81\x07"
"""128 times the byte 7; 10 of them are 40 x 32 pixels."""


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (rle([RUN * 11, RUN * 10]), "expands to 1408 bytes where 1280 are due"),
        (rle([RUN * 10, RUN * 11]), "expands to 1408 bytes where 1280 are due"),
        (rle([RUN * 10, RUN * 1000]), "expands to 128000 bytes"),
        (rle([RUN * 10, RUN * 4000]), "longer than its pixels need"),
        (rle([RUN * 10, RUN * 9 + b"\x7f" * 2]), "cannot be decoded"),
        (rle([RUN * 10, RUN * 9]), "too short"),
        (rle([RUN * 10, RUN * 9 + b"\0\0" * 10]), "expands to 1162 bytes"),
        (rle([RUN * 10]), "1 segments where 2 are due"),
        (rle([RUN * 10, RUN * 10], count=15), "15 segments"),
        (rle([RUN * 10, RUN * 10], count=2**31), "segments"),
        (rle([RUN * 10, RUN * 10], first=4000), "inside"),
        (b"\2\0\0\0", "no header"),
    ],
    ids=[
        "high",
        "low",
        "bomb",
        "long",
        "broken",
        "short",
        "few",
        "one",
        "fifteen",
        "2^31",
        "outside",
        "no header",
    ],
)
def test_run_lengths_that_lie_are_refused(
    tmp_path: Path, steady: DecoderProcess, frame: bytes, says: str
) -> None:
    dataset = image(smooth_hu()[0], RLELossless)
    before = steady.pid
    assert says in corrupt(save(with_frames(dataset, [frame]), tmp_path), steady)
    assert steady.pid == before


def test_run_lengths_that_fit_are_read(tmp_path: Path, steady: DecoderProcess) -> None:
    dataset = with_frames(image(smooth_hu()[0], RLELossless), [rle([b"\x81\x00" * 10, RUN * 10])])
    assert (read_pixels(save(dataset, tmp_path), decoder=steady).hu == 7 - 1024).all()
