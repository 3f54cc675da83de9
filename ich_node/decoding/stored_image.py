"""An image in a file: what its header says of the pixels, checked before any of them is read."""

from __future__ import annotations

import errno
import io
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRBigEndian

from ich_node.decoding.codecs import is_decodable
from ich_node.decoding.encapsulation import Fragment, locate_frames
from ich_node.decoding.limits import DecodeLimits
from ich_node.decoding.part10 import QUIET, Part10, read_part10
from ich_node.decoding.pixel_format import PixelFormat
from ich_node.errors import RejectionReason, StudyRejected, TransientError

MAX_ROWS_OR_COLUMNS = 2048
"""CT is stored with 512, sometimes 1024 rows and columns."""
MAX_FRAMES = 65536
"""A 4D scan of a whole head has some 16,000."""

_REQUIRED_KEYWORDS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
_OWN_KEYWORDS = (*_REQUIRED_KEYWORDS, "SamplesPerPixel", "NumberOfFrames", "ExtendedOffsetTable")
_BITS_ALLOCATED = (8, 16, 32)
_PASSING_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


class MissingAttributes(Exception):
    """Required attributes are absent from one image; the volume counts them over all slices."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(", ".join(names))
        self.names = names


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An open image whose header has been held against the limits and the file."""

    format: PixelFormat
    number_of_frames: int
    dataset: Dataset
    """The attributes that were asked for."""
    file: BinaryIO
    value_offset: int
    """Of Pixel Data (7FE0,0010) in ``file``."""
    fragments: list[list[Fragment]] | None
    """Of each compressed frame; ``None``: not compressed."""

    def read_frame(self, index: int) -> npt.NDArray[np.integer]:
        """Read an uncompressed frame, (rows, columns) stored values with the bits above Bits Stored.

        Raises
        ------
        StudyRejected
            ``CORRUPT_PIXEL_DATA`` where the file has become shorter.
        """
        kind = self.format.dtype
        if self.format.transfer_syntax_uid == ExplicitVRBigEndian:
            kind = kind.newbyteorder(">")
        values = np.empty((self.format.rows, self.format.columns), dtype=kind)
        self.file.seek(self.value_offset + index * self.format.frame_bytes)
        view, filled = memoryview(values.data).cast("B"), 0
        while filled < len(view):
            count = self.file.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                raise StudyRejected(
                    RejectionReason.CORRUPT_PIXEL_DATA, "A slice cannot be read: the file is short."
                )
            filled += count
        return values.astype(kind.newbyteorder("="), copy=False)


@contextmanager
def open_image(path: Path, limits: DecodeLimits, keywords: tuple[str, ...]) -> Iterator[StoredImage]:
    """Open an image and check it: format, size, and that its frames lie inside the file.

    No memory is taken for pixels.

    Parameters
    ----------
    path
        Part 10 file.
    keywords
        Top-level attributes to read beside those of the pixels.

    Raises
    ------
    MissingAttributes
        An attribute without which there are no pixels is absent.
    StudyRejected
        ``UNSUPPORTED_TRANSFER_SYNTAX``, ``TOO_LARGE``, ``CORRUPT_PIXEL_DATA``.
    TransientError
        The host cannot open the file now.
    """
    try:
        file = io.FileIO(path)
    except OSError as error:
        if error.errno in _PASSING_FAULTS:
            raise TransientError(f"an image cannot be opened: {error.strerror}") from error
        raise _unreadable(error) from error
    with file:
        try:
            part10 = read_part10(file, _tags((*_OWN_KEYWORDS, *keywords)), limits.max_image_bytes)
        except StudyRejected:
            raise
        except Exception as error:  # whatever the damage leads to
            raise _unreadable(error) from error
        yield quietly(lambda: _check(part10, limits))


def quietly(read: Callable[[], Any]) -> Any:
    """Call what converts values, without pydicom's warnings: they quote the values."""
    with QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read()


def number(dataset: Dataset, keyword: str) -> float | None:
    """A finite number, or ``None`` where the attribute is absent, empty or no number."""
    try:
        value = float(dataset[keyword].value)
    except Exception:
        return None
    return value if math.isfinite(value) else None


def text(dataset: Dataset, keyword: str) -> str:
    """Upper-case text; empty where the attribute is absent."""
    try:
        return str(dataset[keyword].value or "").strip().upper()
    except Exception:
        return ""


def named(keyword: str) -> str:
    """Keyword and tag of an attribute, for a person."""
    (tag,) = _tags((keyword,))
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _tags(keywords: tuple[str, ...]) -> list[BaseTag | int]:
    tags = [tag_for_keyword(keyword) for keyword in keywords]
    assert None not in tags, keywords
    return [tag for tag in tags if tag is not None]


def _unreadable(error: Exception) -> StudyRejected:
    return StudyRejected(
        RejectionReason.CORRUPT_PIXEL_DATA, f"A slice cannot be read ({type(error).__name__})."
    )


def _check(part10: Part10, limits: DecodeLimits) -> StoredImage:
    dataset = part10.dataset
    syntax = UID(str(getattr(dataset.file_meta, "TransferSyntaxUID", "")))
    if not is_decodable(syntax):
        raise StudyRejected(
            RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX,
            f"No codec here decodes transfer syntax {syntax or '(absent)'}; send the study uncompressed.",
        )
    values = {keyword: number(dataset, keyword) for keyword in _REQUIRED_KEYWORDS}
    missing = [named(keyword) for keyword, value in values.items() if value is None]
    if part10.value_length == 0:
        missing.append(named("PixelData"))
    if missing:
        raise MissingAttributes(tuple(missing))
    pixel_format = _pixel_format(syntax, {k: int(v) for k, v in values.items() if v is not None}, dataset)
    frames = _number_of_frames(dataset)
    _check_size(pixel_format, frames, limits)
    if syntax.is_encapsulated:
        offsets = _extended_offsets(dataset, frames)
        fragments = locate_frames(part10.file.fileno(), part10.value_offset, pixel_format, frames, offsets)
    else:
        fragments = None
        _check_length(part10, pixel_format.frame_bytes * frames)
    return StoredImage(
        format=pixel_format,
        number_of_frames=frames,
        dataset=dataset,
        file=part10.file,
        value_offset=part10.value_offset,
        fragments=fragments,
    )


def _pixel_format(syntax: UID, values: dict[str, int], dataset: Dataset) -> PixelFormat:
    allocated, stored = values["BitsAllocated"], values["BitsStored"]
    samples = number(dataset, "SamplesPerPixel")
    if samples not in (None, 1) or allocated not in _BITS_ALLOCATED or not 1 <= stored <= allocated:
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA,
            f"Pixel Data with {samples or 1:g} samples of {stored} bits in {allocated} per pixel is no CT.",
        )
    if min(values["Rows"], values["Columns"]) < 1:
        raise StudyRejected(RejectionReason.CORRUPT_PIXEL_DATA, "The image has no rows or no columns.")
    return PixelFormat(
        transfer_syntax_uid=str(syntax),
        rows=values["Rows"],
        columns=values["Columns"],
        bits_allocated=allocated,
        bits_stored=stored,
        is_signed=values["PixelRepresentation"] == 1,
    )


def _number_of_frames(dataset: Dataset) -> int:
    """Number of Frames (0028,0008); absent, empty or 0 is one frame, as some writers mean it."""
    frames = number(dataset, "NumberOfFrames") or 1.0
    if frames < 1 or not frames.is_integer():
        raise StudyRejected(RejectionReason.CORRUPT_PIXEL_DATA, f"Number of Frames is {frames:g}.")
    return int(frames)


def _check_size(pixel_format: PixelFormat, frames: int, limits: DecodeLimits) -> None:
    size = pixel_format.frame_bytes * frames
    what = f"{frames} frame(s) of {pixel_format.rows} x {pixel_format.columns} pixels"
    if max(pixel_format.rows, pixel_format.columns) > MAX_ROWS_OR_COLUMNS or frames > MAX_FRAMES:
        raise StudyRejected(RejectionReason.TOO_LARGE, f"An image of {what} is larger than any head CT.")
    if size > limits.max_image_bytes:
        raise StudyRejected(
            RejectionReason.TOO_LARGE,
            f"An image of {what} takes {size / 2**20:.1f} MiB; "
            f"worker.max_image_mib allows {limits.max_image_bytes / 2**20:g}.",
        )


def _check_length(part10: Part10, expected: int) -> None:
    actual = part10.value_length
    if actual not in (expected, expected + expected % 2):
        says = "no length" if actual is None else f"{actual} bytes"
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, f"Pixel Data has {says} where {expected} bytes are due."
        )
    end = part10.file.seek(0, io.SEEK_END)
    if part10.value_offset + expected > end:
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA,
            "Pixel Data does not lie inside the file, which was cut short.",
        )


def _extended_offsets(dataset: Dataset, frames: int) -> tuple[int, ...]:
    """Extended Offset Table (7FE0,0001), where it has a place for every frame."""
    try:
        table = bytes(dataset["ExtendedOffsetTable"].value)
        return struct.unpack(f"<{frames}Q", table)
    except (KeyError, TypeError, struct.error):
        return ()
