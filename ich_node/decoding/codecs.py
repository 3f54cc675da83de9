"""One compressed frame becomes stored values, by the codecs that came with the installation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSTransferSyntaxes,
    RLELossless,
)
from rle.utils import decode_segment  # type: ignore[attr-defined]

from ich_node.decoding.codestream import check_stream, rle_segments
from ich_node.decoding.pixel_format import PixelFormat
from ich_node.errors import RejectionReason, StudyRejected

SIGN_CORRECTED_SYNTAXES = frozenset((*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes))
"""Their values come with the sign right and nothing above the stored bits."""
# The codec that is tried first where several decode a syntax: GDCM prints to stderr and reads damaged streams
# to an end.
_PREFERRED_PLUGINS = ("pylibjpeg", "pyjpegls", "pydicom", "gdcm", "pillow")
_PADDING_BYTES = 2
"""Zeros that make a segment's length even may read as a literal."""


def is_decodable(transfer_syntax_uid: str) -> bool:
    """Whether this installation reads a transfer syntax, compressed or not."""
    try:
        return bool(get_decoder(transfer_syntax_uid).is_available)
    except NotImplementedError:
        return False


def decode_frame(frame: bytes, expected: PixelFormat) -> npt.NDArray[np.integer]:
    """Decode one frame.

    Parameters
    ----------
    frame
        Its compressed stream, the fragments joined.
    expected
        What the header says of it.

    Returns
    -------
    (rows, columns) integers
        Stored values, with whatever lies above Bits Stored but in JPEG 2000 and JPEG-LS; in no more bytes than Bits
        Allocated, in fewer where the stream has fewer.

    Raises
    ------
    StudyRejected
        ``CORRUPT_PIXEL_DATA`` where the stream is not the image that the header describes.
    Exception
        Whatever a codec raises.
    """
    check_stream(frame, expected)
    if expected.transfer_syntax_uid == RLELossless:
        return _decode_rle(frame, expected)
    decoder = _decoder(expected)
    plugin = next(p for p in _PREFERRED_PLUGINS if p in decoder.available_plugins)
    options: dict[str, Any] = {
        "rows": expected.rows,
        "columns": expected.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": expected.bits_allocated,
        "bits_stored": expected.bits_stored,
        "pixel_representation": int(expected.is_signed),
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
    }
    if expected.transfer_syntax_uid not in SIGN_CORRECTED_SYNTAXES:
        # Unused bits stay for now: padding may be written into them.
        options["correct_unused_bits"] = False
    array, _ = decoder.as_array(encapsulate([frame]), raw=True, decoding_plugin=plugin, **options)
    fits = array.shape == (expected.rows, expected.columns) and array.nbytes <= expected.frame_bytes
    if not fits or array.dtype.kind not in "iu":
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA,
            "Pixel Data is not one plane of whole numbers of the declared size.",
        )
    return array


def _decode_rle(frame: bytes, expected: PixelFormat) -> npt.NDArray[np.integer]:
    """Decode segment by segment (PS3.5 G.2): the whole-frame decoder takes no notice of what a segment has too much."""
    segments = rle_segments(frame)
    pixels, width = expected.rows * expected.columns, len(segments)
    planes = np.empty((pixels, width), dtype=np.uint8)
    for index, segment in enumerate(segments):
        plane = np.frombuffer(decode_segment(segment), dtype=np.uint8)
        if not pixels <= len(plane) <= pixels + _PADDING_BYTES:
            raise StudyRejected(
                RejectionReason.CORRUPT_PIXEL_DATA,
                f"A segment of a run-length encoded frame expands to {len(plane)} bytes where {pixels} are due.",
            )
        planes[:, width - 1 - index] = plane[:pixels]  # the most significant byte is stored first
    return planes.view(expected.dtype).reshape(expected.rows, expected.columns)


def _decoder(expected: PixelFormat) -> Decoder:
    syntax = expected.transfer_syntax_uid
    if syntax == JPEGExtended12Bit and expected.bits_allocated > 8:
        # pydicom's plug-in keeps this from GDCM, whose JPEG codec goes by the stream and reads 12 bits well.
        syntax = JPEGLossless
    return get_decoder(syntax)
