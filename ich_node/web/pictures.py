"""Result pictures for the browser: Secondary Captures (PS3.3 A.8) to PNG, and what they were drawn from.

The report room draws them; this reads them back by pydicom alone, so that the web process stays small.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from ich_node.errors import RejectionReason, StudyRejected

MAX_PIXELS = 64_000_000
"""Of one picture; ours are far smaller, and a header must not decide how much memory a page takes."""

_BAD_DICOM = (InvalidDicomError, ValueError, TypeError, AttributeError, KeyError, IndexError, EOFError)
_BAD_PIXELS = (*_BAD_DICOM, RuntimeError, NotImplementedError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class PictureSource:
    """What one picture shows."""

    is_summary: bool
    source_slices: tuple[tuple[str, int | None], ...]
    """From Source Image Sequence (0008,2112): SOP Instance UID, and the frame where the object has several."""


def sc_to_png(path: Path) -> bytes:
    """Decode an 8-bit RGB or gray Secondary Capture, compressed or not, into PNG.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    StudyRejected
        ``NOT_AN_IMAGE`` where it has no single 8-bit picture, ``TOO_LARGE``, ``CORRUPT_PIXEL_DATA``.
    """
    try:
        dataset = pydicom.dcmread(path)
        pixels = int(dataset.Rows) * int(dataset.Columns)
    except _BAD_DICOM as error:
        raise StudyRejected(RejectionReason.NOT_AN_IMAGE, "the result object has no picture") from error
    if pixels > MAX_PIXELS:
        raise StudyRejected(RejectionReason.TOO_LARGE, f"a picture of {pixels} pixels is not shown")
    try:
        array = dataset.pixel_array
    except _BAD_PIXELS as error:
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, "the result object's pixel data cannot be decoded"
        ) from error
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise StudyRejected(RejectionReason.NOT_AN_IMAGE, "the result object is no single 8-bit picture")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, "PNG", compress_level=4)
    return file.getvalue()


def picture_source(path: Path) -> PictureSource | None:
    """Say what a picture was drawn from; ``None`` where the file does not tell."""
    wanted = ["ImageType", "SourceImageSequence"]
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=wanted)
        items = dataset.get("SourceImageSequence") or []
        slices = tuple(
            (str(item.ReferencedSOPInstanceUID), frame) for item in items for frame in _frames(item)
        )
        return PictureSource(is_summary="SUMMARY" in (dataset.get("ImageType") or ()), source_slices=slices)
    except (OSError, *_BAD_DICOM):
        return None


def _frames(item: pydicom.Dataset) -> list[int | None]:
    """Referenced Frame Number (0008,1160); one ``None`` where it is absent."""
    numbers = item.get("ReferencedFrameNumber")
    if numbers is None:
        return [None]
    return [int(number) for number in (numbers if isinstance(numbers, MultiValue) else [numbers])]
