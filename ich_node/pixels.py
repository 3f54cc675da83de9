"""One stored CT slice becomes Hounsfield units.

Stored values are decoded by pydicom with the codecs that came with the installation, padding is told apart,
and the rescale of the Modality LUT (PS3.3 C.11.1) gives HU. Nothing here looks at other slices.
"""

from __future__ import annotations

import math
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from ich_node.errors import RejectionReason, StudyRejected

AIR_HU = -1024.0
"""What padding becomes, and the lowest HU kept."""
HIGHEST_HU = 3071.0
"""The highest HU kept: the top of the 12-bit scale, above all but metal."""
MAX_ROWS_OR_COLUMNS = 2048
"""CT is stored with 512, sometimes 1024 rows and columns."""

_PADDING_IS_AIR_BELOW_HU = -900.0
_PADDING_IS_METAL_ABOVE_HU = 3000.0
_WRAPPED_INTERCEPT_ABOVE = -100.0
_REQUIRED_KEYWORDS = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
)
_REQUIRED_TAGS = {
    "Rows": "(0028,0010)",
    "Columns": "(0028,0011)",
    "BitsAllocated": "(0028,0100)",
    "BitsStored": "(0028,0101)",
    "PixelRepresentation": "(0028,0103)",
    "RescaleIntercept": "(0028,1052)",
    "RescaleSlope": "(0028,1053)",
    "PixelData": "(7FE0,0010)",
}
_HU_RESCALE_TYPES = frozenset(("", "HU", "HU_MOD", "US"))
"""Rescale Type (0028,1054): absent means HU in CT; ``US`` (unspecified) is written for plain HU by several
makers."""
# The codec that is tried first where several decode a syntax: GDCM prints to stderr and reads damaged streams
# to an end.
_PREFERRED_PLUGINS = ("pylibjpeg", "pyjpegls", "pydicom", "gdcm", "pillow")
_JPEG_FAMILY = frozenset((*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes))


class MissingAttributes(Exception):
    """Required attributes are absent from one slice; the volume counts them over all slices."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(", ".join(names))
        self.names = names


@dataclass(frozen=True, kw_only=True)
class SlicePixels:
    """One decoded slice."""

    hu: npt.NDArray[np.float32]
    """(rows, columns) float32, HU, `AIR_HU` to `HIGHEST_HU`, padding at `AIR_HU`."""
    notes: frozenset[str]
    """What a reader of the result has to know about these values, as parts of a sentence."""


def read_pixels(path: Path) -> SlicePixels:
    """Decode one CT Image Storage object to HU.

    Parameters
    ----------
    path
        Part 10 file, single frame.

    Returns
    -------
    SlicePixels
        On the stored pixel grid: nothing is flipped, rotated or resampled.

    Raises
    ------
    MissingAttributes
        An attribute without which the values mean nothing is absent.
    StudyRejected
        ``UNSUPPORTED_TRANSFER_SYNTAX``, ``TOO_LARGE``, ``CORRUPT_PIXEL_DATA``, or ``IMPLAUSIBLE_VALUES``
        where the values are declared to be something else than HU.
    """
    with warnings.catch_warnings():
        # pydicom warns of every oddity; what matters of them is judged here.
        warnings.simplefilter("ignore")
        dataset = _read(path)
        decoder = _decoder(str(getattr(dataset.file_meta, "TransferSyntaxUID", "")))
        header = _PixelHeader.of(dataset, is_encapsulated=decoder.UID.is_encapsulated)
        stored = _decode(dataset, decoder, header)
    return _to_hu(stored, header)


@dataclass(frozen=True, kw_only=True)
class _PixelHeader:
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    is_lossy: bool
    is_encapsulated: bool

    @classmethod
    def of(cls, dataset: Dataset, *, is_encapsulated: bool) -> _PixelHeader:
        values = {keyword: _number(dataset, keyword) for keyword in _REQUIRED_KEYWORDS}
        missing = [f"{k} {_REQUIRED_TAGS[k]}" for k, v in values.items() if v is None]
        if "PixelData" not in dataset or not dataset["PixelData"].value:
            missing.append(f"PixelData {_REQUIRED_TAGS['PixelData']}")
        if missing:
            raise MissingAttributes(tuple(missing))
        number = {k: v for k, v in values.items() if v is not None}
        rows, columns = int(number["Rows"]), int(number["Columns"])
        if max(rows, columns) > MAX_ROWS_OR_COLUMNS or (_number(dataset, "NumberOfFrames") or 1) > 1:
            raise StudyRejected(
                RejectionReason.TOO_LARGE, f"A slice of {rows} x {columns} pixels is larger than any head CT."
            )
        rescale_type = _text(dataset, "RescaleType")
        if number["RescaleSlope"] == 0 or rescale_type not in _HU_RESCALE_TYPES:
            raise StudyRejected(
                RejectionReason.IMPLAUSIBLE_VALUES,
                f"Rescale Slope is {number['RescaleSlope']:g} and Rescale Type "
                f"{rescale_type[:16] or 'absent'}: the values are not Hounsfield units.",
            )
        return cls(
            rows=rows,
            columns=columns,
            bits_allocated=int(number["BitsAllocated"]),
            bits_stored=int(number["BitsStored"]),
            is_signed=number["PixelRepresentation"] == 1,
            slope=number["RescaleSlope"],
            intercept=number["RescaleIntercept"],
            padding=_padding(dataset),
            is_encapsulated=is_encapsulated,
            is_lossy=_text(dataset, "LossyImageCompression") == "01",
        )


def _read(path: Path) -> FileDataset:
    try:
        return dcmread(path)
    except Exception as error:  # whatever the damage leads to
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, f"A slice cannot be read ({type(error).__name__})."
        ) from error


def _number(dataset: Dataset, keyword: str) -> float | None:
    try:
        number = float(dataset[keyword].value)
    except Exception:  # absent, empty, or not a number
        return None
    return number if math.isfinite(number) else None


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        return str(dataset[keyword].value or "").strip().upper()
    except Exception:
        return ""


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """Pixel Padding Value (0028,0120) and Range Limit (0028,0121), low and high."""
    value = _number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(dataset, "PixelPaddingRangeLimit")
    ends = sorted((int(value), int(value if limit is None else limit)))
    return ends[0], ends[1]


def _decoder(transfer_syntax_uid: str) -> Decoder:
    try:
        decoder = get_decoder(transfer_syntax_uid)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise StudyRejected(
            RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX,
            f"No codec here decodes transfer syntax {transfer_syntax_uid or '(absent)'}; "
            "send the study uncompressed.",
        )
    return decoder


def _decode(dataset: FileDataset, decoder: Decoder, header: _PixelHeader) -> npt.NDArray[np.integer]:
    """Decode (rows, columns) stored values, with the bits above Bits Stored."""
    try:
        if decoder.UID.is_encapsulated:
            _check_codestream(dataset, decoder, header)
        else:
            _check_length(dataset, header)
        plugin = next((p for p in _PREFERRED_PLUGINS if p in decoder.available_plugins), "")
        # Unused bits stay for now: padding may be written into them.
        options: dict[str, Any] = {"correct_unused_bits": False}
        array, _ = decoder.as_array(dataset, raw=True, decoding_plugin=plugin, **options)
    except StudyRejected:
        raise
    except Exception as error:  # every codec has exceptions of its own
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, f"Pixel Data cannot be decoded ({type(error).__name__})."
        ) from error
    if array.shape != (header.rows, header.columns) or array.dtype.kind not in "iu":
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA,
            "Pixel Data is not one plane of whole numbers of the declared size.",
        )
    return array


def _check_length(dataset: Dataset, header: _PixelHeader) -> None:
    expected = header.rows * header.columns * header.bits_allocated // 8
    actual = len(dataset.PixelData)
    if actual not in (expected, expected + expected % 2):
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, f"Pixel Data has {actual} bytes where {expected} are due."
        )


def _check_codestream(dataset: Dataset, decoder: Decoder, header: _PixelHeader) -> None:
    """Compare the size inside the compressed stream with the header before a codec takes memory for it."""
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    size = codestream_size(frame, str(decoder.UID))
    if size is not None and size != (header.rows, header.columns):
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA,
            f"The compressed stream says {size[0]} x {size[1]} pixels, "
            f"the header {header.rows} x {header.columns}.",
        )


def codestream_size(frame: bytes, transfer_syntax_uid: str) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream declares; None where it declares none."""
    if transfer_syntax_uid in JPEG2000TransferSyntaxes or frame[:4] == b"\xff\x4f\xff\x51":
        # SOC, SIZ, Lsiz, Rsiz, then Xsiz, Ysiz, XOsiz, YOsiz (ISO/IEC 15444-1 A.5.1)
        if len(frame) < 24 or frame[:4] != b"\xff\x4f\xff\x51":
            return None
        width, height, left, top = struct.unpack(">4L", frame[8:24])
        return height - top, width - left
    if transfer_syntax_uid not in _JPEG_FAMILY:
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = struct.unpack(">xBH", frame[at : at + 4])
        # SOF0..SOF15 but DHT, JPG, DAC (ISO/IEC 10918-1 table B.1), and SOF55 of JPEG-LS
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack(">2H", frame[at + 5 : at + 9])
            return rows, columns
        at += 2 + length
    return None


def _to_hu(stored: npt.NDArray[np.integer], header: _PixelHeader) -> SlicePixels:
    notes: set[str] = {"lossy compression"} if header.is_lossy else set()
    padding = _padding_mask(stored, header, notes)
    values = _significant_bits(stored, header)
    if _has_wrapped(header):
        # Known fault: signed HU written into unsigned 12 bits, so that negative values have come round to the
        # top; described with the RSNA 2019 data, where it is told by the same three attributes.
        hu = ((values.astype(np.int32) + 1024) % 4096 - 1024).astype(np.float32)
        notes.add("12-bit values that had wrapped around, unwrapped")
    else:
        hu = values.astype(np.float32)
        hu *= np.float32(header.slope)
        hu += np.float32(header.intercept)
    if padding is not None:
        hu[padding] = AIR_HU
    np.clip(hu, AIR_HU, HIGHEST_HU, out=hu)
    return SlicePixels(hu=hu, notes=frozenset(notes))


def _has_wrapped(header: _PixelHeader) -> bool:
    unsigned_12_bit = header.bits_stored == 12 and not header.is_signed
    return unsigned_12_bit and header.slope == 1 and header.intercept > _WRAPPED_INTERCEPT_ABOVE


def _padding_mask(
    stored: npt.NDArray[np.integer], header: _PixelHeader, notes: set[str]
) -> npt.NDArray[np.bool_] | None:
    if header.padding is None:
        return None
    low, high = header.padding
    span = 1 << header.bits_allocated
    # Written with the wrong sign (SS for US or the reverse) by many: the same bits count.
    first, last = int(np.iinfo(stored.dtype).min), int(np.iinfo(stored.dtype).max)
    low, high = (v - span if v > last else v + span if v < first else v for v in (low, high))
    as_hu = [value * header.slope + header.intercept for value in (low, high)]
    if max(as_hu) > _PADDING_IS_AIR_BELOW_HU and min(as_hu) < _PADDING_IS_METAL_ABOVE_HU:
        if bool(((stored >= low) & (stored <= high)).any()):
            notes.add("a Pixel Padding Value inside the range of tissue, ignored")
        return None
    return (stored >= low) & (stored <= high)


def _significant_bits(stored: npt.NDArray[np.integer], header: _PixelHeader) -> npt.NDArray[np.integer]:
    """Drop what lies above Bits Stored (old overlays), with the sign carried down (PS3.5 8.1.1)."""
    unused = 8 * stored.dtype.itemsize - header.bits_stored
    if unused <= 0 or header.is_encapsulated:
        return stored
    values: npt.NDArray[np.integer] = np.right_shift(np.left_shift(stored, unused), unused)
    return values
