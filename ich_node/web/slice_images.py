"""Frames of received images for the browser: as stored, and as Hounsfield units.

Decoding is `ich_node.decoding`'s, with its limits and its process for compressed frames. Only the frame that is asked
for is read, so that the last of a thousand costs what the first one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from ich_node.decoding import (
    DecodeLimits,
    DecoderProcess,
    MissingAttributes,
    StoredImage,
    open_image,
    shared_decoder,
)
from ich_node.decoding.codecs import SIGN_CORRECTED_SYNTAXES
from ich_node.decoding.stored_image import quietly, text
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.pixels import AIR_HU, HIGHEST_HU, read_pixels

HounsfieldUnits = npt.NDArray[np.int16]
"""(rows, columns) int16, little-endian, HU."""

_LIMITS = DecodeLimits()
_TOP_KEYWORDS = (
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PhotometricInterpretation",
)
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TRANSFORMATION, _VOI = "PixelValueTransformationSequence", "FrameVOILUTSequence"


@dataclass(frozen=True, kw_only=True)
class FrameMeaning:
    """What a header says of how one frame is shown; attributes that are absent or no numbers count as absent."""

    rescale_slope: float
    """1 where it is absent (PS3.3 C.11.1), and where it is 0."""
    rescale_intercept: float
    window_center: float | None
    """The first of Window Center (0028,1050), in rescaled units (C.11.2.1.2)."""
    window_width: float | None


@dataclass(frozen=True, kw_only=True)
class StoredFrame:
    """One frame of one sample per pixel, as stored."""

    pixels: npt.NDArray[np.integer]
    """(rows, columns) int16, uint16 or uint8 as a rule, without the bits above Bits Stored (0028,0101)."""
    is_padding: npt.NDArray[np.bool_] | None
    """(rows, columns): pixels that Pixel Padding Value (0028,0120) and Range Limit name; ``None``: the header
    names none."""
    meaning: FrameMeaning
    photometric_interpretation: str

    def rescaled(self) -> npt.NDArray[np.float32]:
        """Values after slope and intercept (PS3.3 C.11.1), (rows, columns) float32; HU in CT."""
        slope, intercept = np.float32(self.meaning.rescale_slope), np.float32(self.meaning.rescale_intercept)
        return self.pixels.astype(np.float32) * slope + intercept


def stored_frame(
    path: Path,
    frame_number: int | None,
    decoder: DecoderProcess | None = None,
    *,
    limits: DecodeLimits = _LIMITS,
) -> StoredFrame:
    """Read one frame of a received image.

    Parameters
    ----------
    path
        Part 10 file, of any transfer syntax that the node reads.
    frame_number
        Counted from 1 as in Referenced Frame Number (0008,1160); ``None``: the first.
    decoder
        Decodes compressed frames; by default the process that this one shares.
    limits
        Held against the header before anything is decoded.

    Raises
    ------
    StudyRejected
        ``NO_IMAGES`` where there is no such frame, ``MISSING_ATTRIBUTE``, ``UNSUPPORTED_TRANSFER_SYNTAX``,
        ``TOO_LARGE``, ``CORRUPT_PIXEL_DATA``, also for more than one sample per pixel.
    TransientError
        The file cannot be opened, or no process to decode can be had, now.
    """
    index = (frame_number or 1) - 1
    try:
        with open_image(path, limits, _TOP_KEYWORDS) as image:
            if not 0 <= index < image.number_of_frames:
                raise StudyRejected(
                    RejectionReason.NO_IMAGES,
                    f"The object has {image.number_of_frames} frame(s) and none of number {frame_number}.",
                )
            stored = _decoded(image, index, decoder, limits)
            top = quietly(lambda: _meaning((image.dataset,), (image.dataset,)))
            padding = quietly(lambda: _padding(stored, image))
            photometric = text(image.dataset, "PhotometricInterpretation")
            pixels = _significant_bits(stored, image)
    except MissingAttributes as missing:
        raise StudyRejected(
            RejectionReason.MISSING_ATTRIBUTE, f"{missing} is absent or cannot be parsed."
        ) from missing
    return StoredFrame(
        pixels=pixels,
        is_padding=padding,
        meaning=top if frame_number is None else _meaning_of_frame(path, index, limits) or top,
        photometric_interpretation=photometric,
    )


def slice_hu(
    path: Path,
    frame_number: int | None,
    decoder: DecoderProcess | None = None,
    *,
    limits: DecodeLimits = _LIMITS,
) -> HounsfieldUnits:
    """Hounsfield units of a slice as the reading saw it, padding as air.

    Parameters
    ----------
    path, decoder, limits
        As for `stored_frame`.
    frame_number
        Of a multi-frame object; ``None``: the object is a slice.

    Raises
    ------
    StudyRejected, TransientError
        As `stored_frame`, and ``IMPLAUSIBLE_VALUES`` where the values are declared to be no HU.
    """
    if frame_number is None:
        try:
            return _whole(read_pixels(path, limits, decoder).hu)
        except MissingAttributes as missing:
            raise StudyRejected(
                RejectionReason.MISSING_ATTRIBUTE, f"{missing} is absent or cannot be parsed."
            ) from missing
    frame = stored_frame(path, frame_number, decoder, limits=limits)
    hu = frame.rescaled()
    if frame.is_padding is not None:
        hu[frame.is_padding] = AIR_HU
    return _whole(hu)


def _whole(hu: npt.NDArray[np.float32]) -> HounsfieldUnits:
    return np.rint(np.clip(hu, AIR_HU, HIGHEST_HU)).astype("<i2")


def _decoded(
    image: StoredImage, index: int, decoder: DecoderProcess | None, limits: DecodeLimits
) -> npt.NDArray[np.integer]:
    if image.fragments is None:
        return image.read_frame(index)
    process = decoder or shared_decoder(limits.decoder_memory_bytes)
    (frame,) = process.decode(
        image.file.fileno(),
        image.format,
        [image.fragments[index]],
        seconds_per_frame=limits.seconds_per_frame,
    )
    return frame


def _significant_bits(stored: npt.NDArray[np.integer], image: StoredImage) -> npt.NDArray[np.integer]:
    """Drop what lies above Bits Stored, with the sign carried down (PS3.5 8.1.1)."""
    unused = 8 * stored.dtype.itemsize - image.format.bits_stored
    if unused <= 0 or image.format.transfer_syntax_uid in SIGN_CORRECTED_SYNTAXES:
        return stored
    values: npt.NDArray[np.integer] = np.right_shift(np.left_shift(stored, unused), unused)
    return values


def _padding(stored: npt.NDArray[np.integer], image: StoredImage) -> npt.NDArray[np.bool_] | None:
    value = _number(image.dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(image.dataset, "PixelPaddingRangeLimit")
    span = 1 << image.format.bits_allocated
    first, last = int(np.iinfo(stored.dtype).min), int(np.iinfo(stored.dtype).max)
    # Written with the wrong sign (SS for US or the reverse) by many: the same bits count.
    ends = [int(v) for v in (value, value if limit is None else limit)]
    low, high = sorted(v - span if v > last else v + span if v < first else v for v in ends)
    return np.logical_and(stored >= low, stored <= high)


def _meaning_of_frame(path: Path, index: int, limits: DecodeLimits) -> FrameMeaning | None:
    """From the functional groups (PS3.3 C.7.6.16.2.9, .10); ``None`` where the object has none for the frame."""
    try:
        status = path.stat()
    except OSError:  # it has just gone; the pixels are here
        return None
    meanings = _meanings(path, status.st_mtime_ns, status.st_size, limits)
    return meanings[index] if index < len(meanings) else None


@lru_cache(maxsize=8)
def _meanings(path: Path, _modified_ns: int, _size: int, limits: DecodeLimits) -> tuple[FrameMeaning, ...]:
    """Of all frames: a person who scrolls asks for one after the other."""
    with open_image(path, limits, (*_TOP_KEYWORDS, *_GROUPS)) as image:
        found: tuple[FrameMeaning, ...] = quietly(lambda: _meanings_in(image.dataset))
    return found


def _meanings_in(dataset: Dataset) -> tuple[FrameMeaning, ...]:
    shared, frames = (_items(dataset, keyword) for keyword in _GROUPS)
    found = []
    for frame in frames:
        holders = (frame, *shared[:1])
        values = [item for holder in holders for item in _items(holder, _TRANSFORMATION)[:1]]
        windows = [item for holder in holders for item in _items(holder, _VOI)[:1]]
        found.append(_meaning((*values, dataset), (*windows, dataset)))
    return tuple(found)


def _meaning(values: tuple[Dataset, ...], windows: tuple[Dataset, ...]) -> FrameMeaning:
    width = _first(windows, "WindowWidth")
    return FrameMeaning(
        rescale_slope=_first(values, "RescaleSlope") or 1.0,
        rescale_intercept=_first(values, "RescaleIntercept") or 0.0,
        window_center=_first(windows, "WindowCenter") if width else None,
        window_width=width if width and width > 0 else None,
    )


def _first(holders: tuple[Dataset, ...], keyword: str) -> float | None:
    return next((n for holder in holders if (n := _number(holder, keyword)) is not None), None)


def _number(dataset: Dataset, keyword: str) -> float | None:
    """The first value as a finite number."""
    try:
        value = dataset[keyword].value
        number = float(value[0] if isinstance(value, MultiValue | list) else value)
    except Exception:  # absent, empty, or whatever its damage leads to
        return None
    return number if np.isfinite(number) else None


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    try:
        return list(dataset[keyword].value or ())
    except Exception:  # absent, or whatever its damage leads to
        return []
