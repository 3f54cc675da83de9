"""What a compressed frame says of itself, compared with the header before a codec takes memory for it."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes, RLELossless

from ich_node.decoding.pixel_format import PixelFormat
from ich_node.errors import RejectionReason, StudyRejected

_JPEG_2000 = frozenset(JPEG2000TransferSyntaxes)
_JPEG = frozenset((*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes))
_SOC_SIZ = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_END = b"\xff\xd9"
"""EOI of JPEG and JPEG-LS, EOC of JPEG 2000."""
_LONGEST_PACK_BITS_RUN = 64
"""Two bytes of a run become 128 at most (PS3.5 G.3.1)."""
_RLE_HEADER = struct.Struct("<16L")


@dataclass(frozen=True, kw_only=True)
class StreamHeader:
    """What a JPEG, JPEG-LS or JPEG 2000 stream declares."""

    rows: int
    columns: int
    components: int
    bits_per_sample: int


def check_stream(frame: bytes, expected: PixelFormat) -> None:
    """Refuse a compressed frame that is not whole, or is another image than its header says.

    Raises
    ------
    StudyRejected
        ``CORRUPT_PIXEL_DATA``.
    """
    if expected.transfer_syntax_uid == RLELossless:
        _check_rle(frame, expected)
        return
    found = stream_header(frame, expected.transfer_syntax_uid)
    if found is None:
        raise _corrupt("A compressed frame has no readable header.")
    if (found.rows, found.columns) != (expected.rows, expected.columns):
        raise _corrupt(
            f"The compressed stream says {found.rows} x {found.columns} pixels, "
            f"the header {expected.rows} x {expected.columns}."
        )
    if found.components != 1 or not 1 <= found.bits_per_sample <= expected.bits_allocated:
        raise _corrupt(
            f"The compressed stream has {found.components} samples of {found.bits_per_sample} bits per pixel, "
            f"the header 1 of {expected.bits_allocated}."
        )
    # Some codecs fill up with gray what is missing, and say nothing.
    if not frame.rstrip(b"\0").endswith(_END):
        raise _corrupt("A compressed frame has no end: it was cut short.")


def stream_header(frame: bytes, transfer_syntax_uid: str) -> StreamHeader | None:
    """Read what a JPEG, JPEG-LS or JPEG 2000 stream declares; ``None`` where it declares nothing."""
    try:
        if transfer_syntax_uid in _JPEG_2000:
            return _jpeg_2000_header(frame)
        return _jpeg_header(frame) if transfer_syntax_uid in _JPEG else None
    except (struct.error, IndexError):
        return None


def _jpeg_2000_header(frame: bytes) -> StreamHeader | None:
    """SOC and SIZ (ISO/IEC 15444-1 A.5.1)."""
    start = _start_of_codestream(frame)
    if frame[start : start + 4] != _SOC_SIZ:
        return None
    # after Lsiz and Rsiz: Xsiz, Ysiz, XOsiz, YOsiz, four numbers about tiles, Csiz, and of the first component Ssiz,
    # XRsiz, YRsiz
    width, height, left, top = struct.unpack_from(">4L", frame, start + 8)
    components, depth, step_x, step_y = struct.unpack_from(">H3B", frame, start + 40)
    if step_x == 0 or step_y == 0:
        return None
    return StreamHeader(
        rows=-(-height // step_y) + (-top // step_y),
        columns=-(-width // step_x) + (-left // step_x),
        components=components,
        bits_per_sample=(depth & 0x7F) + 1,
    )


def _start_of_codestream(frame: bytes) -> int:
    """0, or where the first jp2c box begins: the JP2 file format does not belong here (PS3.5 A.4.4), but is met."""
    if not frame.startswith(_JP2_SIGNATURE):
        return 0
    at = 0
    while True:
        length, kind = struct.unpack_from(">L4s", frame, at)
        if kind == b"jp2c":
            return at + 8
        if length < 8:  # the last box, or one of 64-bit length: no frame of CT has it
            return 0
        at += length


def _jpeg_header(frame: bytes) -> StreamHeader | None:
    """The first SOF marker segment (ISO/IEC 10918-1 B.2.2, ISO/IEC 14495-1 C.2.2)."""
    at = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (0xD9, 0xDA):
            return None
        # SOF0..SOF15 but DHT, JPG, DAC (table B.1), and SOF55 of JPEG-LS
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            return StreamHeader(rows=rows, columns=columns, components=components, bits_per_sample=bits)
        at += 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    return None


def rle_segments(frame: bytes) -> list[bytes]:
    """Split a run-length encoded frame by its header (PS3.5 G.5); `check_stream` has seen to it that this works."""
    count, *offsets = _RLE_HEADER.unpack_from(frame)
    return [frame[a:b] for a, b in itertools.pairwise((*offsets[:count], len(frame)))]


def _check_rle(frame: bytes, expected: PixelFormat) -> None:
    """Check the RLE header: one segment per byte of a pixel, in order, each long enough and none too long."""
    if len(frame) < _RLE_HEADER.size:
        raise _corrupt("A run-length encoded frame has no header.")
    count, *offsets = _RLE_HEADER.unpack_from(frame)
    if count != expected.bits_allocated // 8:
        raise _corrupt(
            f"A run-length encoded frame has {count} segments where {expected.bits_allocated // 8} are due."
        )
    lengths = [b - a for a, b in itertools.pairwise((*offsets[:count], len(frame)))]
    if offsets[0] != _RLE_HEADER.size or min(lengths) <= 0:
        raise _corrupt("The segments of a run-length encoded frame do not lie inside it.")
    pixels = expected.rows * expected.columns
    if min(lengths) * _LONGEST_PACK_BITS_RUN < pixels:
        raise _corrupt(
            "A segment of a run-length encoded frame is too short for its pixels: it was cut short."
        )
    if max(lengths) > 2 * pixels + _RLE_HEADER.size:
        raise _corrupt("A segment of a run-length encoded frame is longer than its pixels need.")


def _corrupt(detail: str) -> StudyRejected:
    return StudyRejected(RejectionReason.CORRUPT_PIXEL_DATA, detail)
