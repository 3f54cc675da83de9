"""Headers of stored objects for DICOMweb, read in bounded memory and without their pixels."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydicom.dataset import FileDataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from ich_node.decoding.stored_image import quietly
from ich_node.errors import RejectionReason, StudyRejected

# What it says of odd values quotes them.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

PIXEL_DATA = Tag(0x7FE00010)
LARGE_BYTES = 65536
"""A longer value is left in the file."""
_ELEMENT_BYTES = 8
"""Of the beginning of an element, which is asked for at the end as well."""
_MOST_READS = 600_000
"""Of a header: pydicom reads one to three times for an element or item, which take some hundred bytes each."""
_MOST_BYTES = 2**24
_MOST_ITEMS = 100_000
"""In one sequence that is not read yet: an empty item takes 8 bytes of a file and some 600 of memory."""
_ITEM = b"\xfe\xff\x00\xe0"
_ODD_SYNTAXES = (DeflatedExplicitVRLittleEndian.encode(), ExplicitVRBigEndian.encode() + b"\x00")


class _TooMuch(Exception):
    """A header is built of more pieces, or more bytes, than is allowed."""


class _BoundedFile(io.FileIO):
    """A file of which only so much can be read."""

    reads = 0
    bytes_read = 0
    is_short = False
    """More was asked for than there is: pydicom takes a file that was cut off for one that ends there."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, as long as it may."""
        rest = self._size() - self.tell()
        asked = max(rest, 0) if size is None or size < 0 else size
        self.is_short = self.is_short or rest < 0 or (asked > rest and (rest > 0 or asked > _ELEMENT_BYTES))
        wanted = min(asked, max(rest, 0))
        self.reads += 1
        self.bytes_read += wanted
        if self.reads > _MOST_READS or self.bytes_read > _MOST_BYTES:
            raise _TooMuch
        return super().read(wanted) or b""

    def _size(self) -> int:
        if not hasattr(self, "_bytes"):
            at = self.tell()
            self._bytes = self.seek(0, io.SEEK_END)
            self.seek(at)
        return self._bytes


@dataclass(frozen=True, kw_only=True)
class StoredHeader:
    """All of an object but its pixels and long values."""

    dataset: FileDataset
    """Values longer than `LARGE_BYTES` are raw elements without a value."""
    transfer_syntax_uid: str
    has_pixel_data: bool
    """Integer pixels (7FE0,0010)."""


def whole_header(path: Path, *, defer: bool = True) -> StoredHeader:
    """Read everything before the pixel data.

    Parameters
    ----------
    path
        Part 10 file.
    defer
        Whether long values are left out.

    Raises
    ------
    FileNotFoundError
        It is no longer there.
    StudyRejected
        ``NOT_AN_IMAGE`` where it is damaged, ``TOO_LARGE`` where its header is, ``UNSUPPORTED_TRANSFER_SYNTAX`` where
        it can only be served as it is stored.
    """
    found: list[int] = []

    def at_pixel_data(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if tag != PIXEL_DATA:
            return False
        found.append(length)
        return True

    dataset = _read(path, stop_when=at_pixel_data, defer_size=LARGE_BYTES if defer else None)
    return StoredHeader(
        dataset=dataset,
        transfer_syntax_uid=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        has_pixel_data=bool(found and found[-1]),
    )


def some_of_header(path: Path, tags: Collection[int]) -> FileDataset:
    """Read top-level attributes; those before the last of them are passed over.

    Raises
    ------
    FileNotFoundError, StudyRejected
        As `whole_header`.
    """
    last = max(tags)
    wanted = cast(list[BaseTag | int], list(tags))
    return _read(
        path, stop_when=lambda tag, _vr, _length: tag > last or tag >= PIXEL_DATA, specific_tags=wanted
    )


def _read(path: Path, **options: Any) -> FileDataset:
    try:
        file = _BoundedFile(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StudyRejected(
            RejectionReason.NOT_AN_IMAGE, f"The object's file cannot be opened: {error.strerror}."
        ) from error
    with file:
        _refuse_odd_syntaxes(file)
        try:
            dataset: FileDataset = quietly(lambda: read_partial(cast(BinaryIO, file), **options))
        except Exception as error:  # whatever the damage leads to
            if file.reads > _MOST_READS or file.bytes_read > _MOST_BYTES:
                raise StudyRejected(
                    RejectionReason.TOO_LARGE, "The object's header is too large to be shown."
                ) from error
            raise StudyRejected(
                RejectionReason.NOT_AN_IMAGE, f"The object's file is damaged ({type(error).__name__})."
            ) from error
        if any(_count_items(element) > _MOST_ITEMS for element in dataset.values()):
            raise StudyRejected(
                RejectionReason.TOO_LARGE, "The object's header has more items than can be shown."
            )
        if file.is_short:
            raise StudyRejected(RejectionReason.NOT_AN_IMAGE, "The object's file was cut short.")
    return dataset


def _count_items(element: object) -> int:
    """At most so many are in a value as it is stored."""
    value = getattr(element, "value", None)
    return value.count(_ITEM) if isinstance(value, bytes) else 0


def _refuse_odd_syntaxes(file: _BoundedFile) -> None:
    """What the receiver does not take: a small Deflated data set may inflate without bound."""
    start = os.pread(file.fileno(), 1024, 0)
    if any(syntax in start for syntax in _ODD_SYNTAXES):
        raise StudyRejected(
            RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX,
            "The object's transfer syntax can only be served as it is stored.",
        )
