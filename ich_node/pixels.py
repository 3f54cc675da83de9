"""Stored CT images become Hounsfield units, frame by frame.

Where the values lie, whether they may be decoded, and decoding itself are `ich_node.decoding`'s. Here padding is told
apart, and the rescale of the Modality LUT (PS3.3 C.11.1), or of the Pixel Value Transformation of a multi-frame
image (C.7.6.16.2.9), gives HU. Nothing here looks at other images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

from ich_node.decoding import (
    MAX_ROWS_OR_COLUMNS,
    DecodeLimits,
    DecoderProcess,
    MissingAttributes,
    StoredImage,
    open_image,
    shared_decoder,
)
from ich_node.decoding.codecs import SIGN_CORRECTED_SYNTAXES
from ich_node.decoding.pixel_format import PixelFormat
from ich_node.decoding.stored_image import named, number, quietly, text
from ich_node.errors import RejectionReason, StudyRejected

__all__ = [
    "AIR_HU",
    "HIGHEST_HU",
    "MAX_ROWS_OR_COLUMNS",
    "DecodeLimits",
    "MissingAttributes",
    "SlicePixels",
    "read_frames",
    "read_pixels",
]

AIR_HU = -1024.0
"""What padding becomes, and the lowest HU kept."""
HIGHEST_HU = 3071.0
"""The highest HU kept: the top of the 12-bit scale, above all but metal."""

_PADDING_IS_AIR_BELOW_HU = -900.0
_PADDING_IS_METAL_ABOVE_HU = 3000.0
_WRAPPED_INTERCEPT_ABOVE = -100.0
_PIXEL_VALUE_TRANSFORMATION = "PixelValueTransformationSequence"
_KEYWORDS = (
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "LossyImageCompression",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_HU_RESCALE_TYPES = frozenset(("", "HU", "HU_MOD", "US"))
"""Rescale Type (0028,1054): absent means HU in CT; ``US`` (unspecified) is written for plain HU by several
makers."""
_ALWAYS_LOSSY = frozenset((JPEGBaseline8Bit, JPEGExtended12Bit))


@dataclass(frozen=True, kw_only=True)
class SlicePixels:
    """One decoded slice."""

    hu: npt.NDArray[np.float32]
    """(rows, columns) float32, HU, `AIR_HU` to `HIGHEST_HU`, padding at `AIR_HU`."""
    notes: frozenset[str]
    """What a reader of the result has to know about these values, as parts of a sentence."""


def read_pixels(
    path: Path, limits: DecodeLimits | None = None, decoder: DecoderProcess | None = None
) -> SlicePixels:
    """Decode an image of one frame to HU.

    Parameters
    ----------
    path, limits, decoder
        As for `read_frames`.

    Raises
    ------
    MissingAttributes
        As `read_frames`.
    StudyRejected
        As `read_frames`, and ``TOO_LARGE`` where the image has more than one frame.
    TransientError
        As `read_frames`.
    """
    limits = limits or DecodeLimits()
    with open_image(path, limits, _KEYWORDS) as image:
        if image.number_of_frames > 1:
            raise StudyRejected(
                RejectionReason.TOO_LARGE,
                f"An image has {image.number_of_frames} frames where it should be a single slice.",
            )
        (pixels,) = _decoded(image, limits, decoder)
    return pixels


def read_frames(
    path: Path, limits: DecodeLimits | None = None, decoder: DecoderProcess | None = None
) -> Iterator[SlicePixels]:
    """Decode an image of one or more frames to HU, a few frames at a time.

    Parameters
    ----------
    path
        Part 10 file of CT Image Storage, Enhanced CT or Legacy Converted Enhanced CT.
    limits
        What the image and its decoding may cost; by default the settings' defaults.
    decoder
        Decodes compressed frames; by default the one that this process shares.

    Yields
    ------
    SlicePixels
        Frames in stored order, on the stored pixel grid: nothing is flipped, rotated or resampled.

    Raises
    ------
    MissingAttributes
        An attribute without which the values mean nothing is absent. At the first frame, as all that the header
        tells.
    StudyRejected
        ``UNSUPPORTED_TRANSFER_SYNTAX``, ``TOO_LARGE``, ``CORRUPT_PIXEL_DATA``, or ``IMPLAUSIBLE_VALUES``
        where the values are declared to be something else than HU.
    TransientError
        Compressed frames cannot be decoded now: no process or no memory is to be had.
    """
    limits = limits or DecodeLimits()
    with open_image(path, limits, _KEYWORDS) as image:
        yield from _decoded(image, limits, decoder)


def _decoded(
    image: StoredImage, limits: DecodeLimits, decoder: DecoderProcess | None
) -> Iterator[SlicePixels]:
    meaning = quietly(lambda: _Meaning.of(image))
    for index, stored in enumerate(_stored_frames(image, limits, decoder)):
        yield _to_hu(stored, image.format, meaning, meaning.rescale_of(index))


def _stored_frames(
    image: StoredImage, limits: DecodeLimits, decoder: DecoderProcess | None
) -> Iterator[npt.NDArray[np.integer]]:
    if image.fragments is None:
        return (image.read_frame(index) for index in range(image.number_of_frames))
    process = decoder or shared_decoder(limits.decoder_memory_bytes)
    return process.decode(
        image.file.fileno(), image.format, image.fragments, seconds_per_frame=limits.seconds_per_frame
    )


@dataclass(frozen=True, kw_only=True)
class _Rescale:
    slope: float
    intercept: float

    @classmethod
    def of(cls, dataset: Dataset) -> _Rescale:
        slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
        if slope is None or intercept is None:
            absent = (("RescaleIntercept", intercept), ("RescaleSlope", slope))
            raise MissingAttributes(tuple(named(keyword) for keyword, value in absent if value is None))
        rescale_type = text(dataset, "RescaleType")
        if slope == 0 or rescale_type not in _HU_RESCALE_TYPES:
            raise StudyRejected(
                RejectionReason.IMPLAUSIBLE_VALUES,
                f"Rescale Slope is {slope:g} and Rescale Type {rescale_type[:16] or 'absent'}: "
                "the values are not Hounsfield units.",
            )
        return cls(slope=slope, intercept=intercept)


@dataclass(frozen=True, kw_only=True)
class _Meaning:
    """What stored values mean."""

    rescales: tuple[_Rescale, ...]
    """One for all frames, or one for each."""
    padding: tuple[int, int] | None
    is_lossy: bool

    @classmethod
    def of(cls, image: StoredImage) -> _Meaning:
        return cls(
            rescales=_rescales(image),
            padding=_padding(image.dataset),
            is_lossy=text(image.dataset, "LossyImageCompression") == "01"
            or image.format.transfer_syntax_uid in _ALWAYS_LOSSY,
        )

    def rescale_of(self, frame: int) -> _Rescale:
        return self.rescales[frame if len(self.rescales) > 1 else 0]


def _rescales(image: StoredImage) -> tuple[_Rescale, ...]:
    """From the functional groups of each frame, from the shared ones, or from the top level as in CT Image Storage."""
    shared = _transformation(next(iter(_items(image.dataset, "SharedFunctionalGroupsSequence")), None))
    per_frame = [_transformation(g) for g in _items(image.dataset, "PerFrameFunctionalGroupsSequence")]
    if not any(per_frame):
        return (_Rescale.of(shared or image.dataset),)
    if len(per_frame) != image.number_of_frames:
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA,
            f"The image has {image.number_of_frames} frames, but functional groups for {len(per_frame)}.",
        )
    return tuple(_Rescale.of(own or shared or image.dataset) for own in per_frame)


def _transformation(group: Dataset | None) -> Dataset | None:
    """Pixel Value Transformation Sequence (0028,9145) of a functional group."""
    return None if group is None else next(iter(_items(group, _PIXEL_VALUE_TRANSFORMATION)), None)


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    try:
        return list(dataset[keyword].value or ())
    except KeyError:
        return []
    except Exception as error:  # whatever the damage of a sequence leads to
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA,
            f"{named(keyword)} cannot be parsed ({type(error).__name__}).",
        ) from error


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """Pixel Padding Value (0028,0120) and Range Limit (0028,0121), low and high."""
    value = number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(dataset, "PixelPaddingRangeLimit")
    ends = sorted((int(value), int(value if limit is None else limit)))
    return ends[0], ends[1]


def _to_hu(
    stored: npt.NDArray[np.integer], pixel_format: PixelFormat, meaning: _Meaning, rescale: _Rescale
) -> SlicePixels:
    notes: set[str] = {"lossy compression"} if meaning.is_lossy else set()
    padding = _padding_mask(stored, pixel_format, meaning.padding, rescale, notes)
    values = _significant_bits(stored, pixel_format)
    if _has_wrapped(pixel_format, rescale):
        # Known fault: signed HU written into unsigned 12 bits, so that negative values have come round to the
        # top; described with the RSNA 2019 data, where it is told by the same three attributes.
        hu = ((values.astype(np.int32) + 1024) % 4096 - 1024).astype(np.float32)
        notes.add("12-bit values that had wrapped around, unwrapped")
    else:
        hu = values.astype(np.float32)
        hu *= np.float32(rescale.slope)
        hu += np.float32(rescale.intercept)
    if padding is not None:
        hu[padding] = AIR_HU
    np.clip(hu, AIR_HU, HIGHEST_HU, out=hu)
    return SlicePixels(hu=hu, notes=frozenset(notes))


def _has_wrapped(pixel_format: PixelFormat, rescale: _Rescale) -> bool:
    unsigned_12_bit = pixel_format.bits_stored == 12 and not pixel_format.is_signed
    return unsigned_12_bit and rescale.slope == 1 and rescale.intercept > _WRAPPED_INTERCEPT_ABOVE


def _padding_mask(
    stored: npt.NDArray[np.integer],
    pixel_format: PixelFormat,
    padding: tuple[int, int] | None,
    rescale: _Rescale,
    notes: set[str],
) -> npt.NDArray[np.bool_] | None:
    if padding is None:
        return None
    low, high = padding
    span = 1 << pixel_format.bits_allocated
    # Written with the wrong sign (SS for US or the reverse) by many: the same bits count.
    first, last = int(np.iinfo(stored.dtype).min), int(np.iinfo(stored.dtype).max)
    low, high = (v - span if v > last else v + span if v < first else v for v in (low, high))
    as_hu = [value * rescale.slope + rescale.intercept for value in (low, high)]
    if max(as_hu) > _PADDING_IS_AIR_BELOW_HU and min(as_hu) < _PADDING_IS_METAL_ABOVE_HU:
        if bool(((stored >= low) & (stored <= high)).any()):
            notes.add("a Pixel Padding Value inside the range of tissue, ignored")
        return None
    return (stored >= low) & (stored <= high)


def _significant_bits(stored: npt.NDArray[np.integer], pixel_format: PixelFormat) -> npt.NDArray[np.integer]:
    """Drop what lies above Bits Stored (old overlays), with the sign carried down (PS3.5 8.1.1)."""
    unused = 8 * stored.dtype.itemsize - pixel_format.bits_stored
    if unused <= 0 or pixel_format.transfer_syntax_uid in SIGN_CORRECTED_SYNTAXES:
        return stored
    values: npt.NDArray[np.integer] = np.right_shift(np.left_shift(stored, unused), unused)
    return values
