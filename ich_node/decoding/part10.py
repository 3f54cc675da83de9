"""The wanted attributes of a Part 10 file, read up to its Pixel Data in bounded memory."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from typing import BinaryIO, cast

from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ich_node.errors import RejectionReason, StudyRejected

MAX_HEADER_BYTES = 32 * 2**20
"""Wanted attributes before the Pixel Data; 16,000 frames of an Enhanced CT have less."""
PIXEL_DATA_TAG = 0x7FE00010

QUIET = threading.Lock()
"""Held while warnings are off, which is not safe among threads: pydicom warns of every oddity, with values."""
_UNDEFINED_LENGTH = 0xFFFFFFFF
_EXPLICIT_VRS_OF_LONG_FORM = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
_DEFLATED_START = struct.Struct("<128x4s4s4sL")
"""Preamble, DICM, and File Meta Information Group Length (0002,0000) with its value (PS3.10 7.1)."""
_DEFLATED_SYNTAX = b"\x02\x00\x10\x00UI\x16\x00" + DeflatedExplicitVRLittleEndian.encode()
"""Transfer Syntax UID (0002,0010)."""


@dataclass(frozen=True, kw_only=True)
class Part10:
    """An open file, its wanted attributes, and where its Pixel Data lies."""

    file: BinaryIO
    dataset: FileDataset
    value_offset: int
    """Of Pixel Data (7FE0,0010) in ``file``; 0 where there is none."""
    value_length: int | None
    """Of Pixel Data; ``None``: undefined."""


def read_part10(file: io.FileIO, wanted_tags: list[BaseTag | int], most_inflated_bytes: int) -> Part10:
    """Read the wanted attributes; nothing else is kept, and Pixel Data is not touched.

    Parameters
    ----------
    file
        Just opened.
    wanted_tags
        Top-level attributes; sequences come whole.
    most_inflated_bytes
        A Deflated dataset (PS3.5 A.5) that grows beyond is refused.

    Raises
    ------
    StudyRejected
        ``TOO_LARGE`` where header or inflated dataset exceed their bounds.
    Exception
        Whatever pydicom makes of the damage in a file.
    """
    found: list[tuple[str | None, int]] = []

    def at_pixel_data(tag: int, vr: str | None, length: int) -> bool:
        if tag != PIXEL_DATA_TAG:
            return False
        found.append((vr, length))
        return True

    inflated = _inflated(file, most_inflated_bytes)
    # BufferedReader takes BytesIO too; its stub says raw streams only.
    source = _BoundedReader(cast(io.RawIOBase, inflated or file))
    with QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if inflated is None:
            dataset = read_partial(source, stop_when=at_pixel_data, specific_tags=wanted_tags)
        else:
            body = read_dataset(source, False, True, stop_when=at_pixel_data, specific_tags=wanted_tags)
            dataset = FileDataset("", body, is_implicit_VR=False, is_little_endian=True)
            dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    offset, length = 0, 0
    if found:
        vr, length = found[-1]
        offset = source.tell() + (12 if vr in _EXPLICIT_VRS_OF_LONG_FORM else 8)
    source.detach()
    return Part10(
        file=cast(BinaryIO, inflated or file),
        dataset=dataset,
        value_offset=offset,
        value_length=None if length == _UNDEFINED_LENGTH else length,
    )


class _BoundedReader(io.BufferedReader):
    """Gives at most `MAX_HEADER_BYTES`; what is skipped does not count."""

    _left = MAX_HEADER_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._left + 1 if size is None or size < 0 else min(size, self._left + 1)
        data = super().read(wanted)
        self._left -= len(data)
        if self._left < 0:
            raise StudyRejected(
                RejectionReason.TOO_LARGE,
                f"The header has more than {MAX_HEADER_BYTES // 2**20} MiB before its Pixel Data.",
            )
        return data


def _inflated(file: io.FileIO, most_bytes: int) -> io.BytesIO | None:
    """Inflate a Deflated dataset in bounded memory; ``None`` where it is another transfer syntax."""
    start = file.read(1024)
    file.seek(0)
    if _DEFLATED_SYNTAX not in start:
        return None
    meta_length = _DEFLATED_START.unpack_from(start)[3]
    file.seek(_DEFLATED_START.size + meta_length)
    inflater, whole = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO()
    while chunk := inflater.unconsumed_tail or file.read(2**16):
        whole.write(inflater.decompress(chunk, 2**20))
        if whole.tell() > most_bytes:
            raise StudyRejected(
                RejectionReason.TOO_LARGE,
                f"The compressed dataset inflates to more than {most_bytes // 2**20} MiB.",
            )
    whole.seek(0)
    return whole
