"""Pixel data of stored objects as DICOMweb serves it: as it is stored, or decoded, frame by frame."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ich_node.decoding import MAX_ROWS_OR_COLUMNS, DecodeLimits, DecoderProcess
from ich_node.decoding.codecs import is_decodable
from ich_node.decoding.encapsulation import Fragment, locate_frames
from ich_node.decoding.part10 import read_part10
from ich_node.decoding.pixel_format import PixelFormat
from ich_node.decoding.stored_image import number, quietly, text
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.web.pictures import MAX_PIXELS

CHUNK_BYTES = 2**18
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_KEYWORDS = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PhotometricInterpretation",
)
_EXTENDED_OFFSET_TABLE = 0x7FE00001
_MOST_FRAMES = 65536


@dataclass(frozen=True, kw_only=True)
class StoredPixels:
    """Integer pixel data (7FE0,0010) of one object."""

    path: Path
    format: PixelFormat
    samples_per_pixel: int
    number_of_frames: int
    photometric_interpretation: str
    offset: int
    """Of the value in the file."""
    length: int
    """Of it, bytes; 0 where it is encapsulated."""
    fragments: Sequence[list[Fragment]] | None
    """Of each compressed frame; None: not compressed."""
    is_ours: bool
    """Made here: its codec is one of ours and needs no process of its own."""

    @property
    def frame_bits(self) -> int:
        """Of one native frame; those of one bit per pixel may begin within a byte."""
        pixels = self.format.rows * self.format.columns * self.samples_per_pixel
        return pixels * self.format.bits_allocated

    @property
    def is_decodable(self) -> bool:
        """Whether frames can be had uncompressed."""
        if self.fragments is None:
            return self.format.transfer_syntax_uid in _NATIVE
        if not is_decodable(self.format.transfer_syntax_uid):
            return False
        if self.samples_per_pixel != 1 or self.format.bits_allocated not in (8, 16, 32):
            return self.is_ours and self.format.bits_allocated == 8
        return max(self.format.rows, self.format.columns) <= MAX_ROWS_OR_COLUMNS

    @property
    def is_drawable(self) -> bool:
        """Whether there is a picture of it."""
        if self.samples_per_pixel == 1:
            is_gray = self.photometric_interpretation in ("MONOCHROME1", "MONOCHROME2")
            return is_gray and self.is_decodable and self.format.bits_allocated > 1
        return self.format.bits_allocated == 8 and (self.fragments is None or self.is_ours)

    @property
    def decoded_bytes(self) -> int:
        """Size of all of it uncompressed."""
        if self.fragments is None:
            return self.length
        return self.frame_bits // 8 * self.number_of_frames

    def stored(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Frames by their numbers, counted from 1, with the bytes that are stored.

        Raises
        ------
        StudyRejected
            ``CORRUPT_PIXEL_DATA`` where the file has become shorter.
        """
        with self.path.open("rb") as file:
            for each in numbers:
                yield b"".join(
                    _exactly(file.fileno(), offset, length) for offset, length in self._places(each)
                )

    def decoded(self, numbers: Sequence[int], decoder: DecoderProcess) -> Iterator[bytes]:
        """Frames by their numbers as Explicit VR Little Endian has them.

        Raises
        ------
        StudyRejected
            As `DecoderProcess.decode`.
        """
        if self.fragments is None:
            yield from self.stored(numbers)
        elif self.samples_per_pixel == 1:
            with self.path.open("rb") as file:
                fragments = [self.fragments[each - 1] for each in numbers]
                for frame in decoder.decode(file.fileno(), self.format, fragments):
                    yield frame.astype(self.format.dtype, copy=False).tobytes()
        else:
            for each in numbers:
                yield _in_this_process(self, each)

    def native(self) -> Iterator[bytes]:
        """All of an uncompressed value, in pieces."""
        yield from file_part(self.path, self.offset, self.length)

    def _places(self, frame: int) -> list[Fragment]:
        if self.fragments is not None:
            return self.fragments[frame - 1]
        size = self.frame_bits // 8
        return [(self.offset + (frame - 1) * size, size)]


def stored_pixels(path: Path, *, is_ours: bool) -> StoredPixels | None:
    """Find the pixel data of an object; None where it has none.

    Raises
    ------
    FileNotFoundError
        The file is no longer there.
    StudyRejected
        ``CORRUPT_PIXEL_DATA``, ``NOT_AN_IMAGE``, ``TOO_LARGE``.
    """
    with closing(io.FileIO(path)) as file:
        try:
            tags = [Tag(keyword) for keyword in _KEYWORDS] + [Tag(_EXTENDED_OFFSET_TABLE)]
            part10 = read_part10(file, list(tags), DecodeLimits().max_image_bytes)
        except StudyRejected:
            raise
        except Exception as error:  # whatever the damage leads to
            raise StudyRejected(
                RejectionReason.NOT_AN_IMAGE, f"The object's file is damaged ({type(error).__name__})."
            ) from error
        dataset = part10.dataset
        if not part10.value_offset or part10.value_length == 0:
            return None
        values = quietly(lambda: {keyword: number(dataset, keyword) for keyword in _KEYWORDS[:7]})
        stored = PixelFormat(
            transfer_syntax_uid=str(dataset.file_meta.get("TransferSyntaxUID", "")),
            rows=_whole(values["Rows"]),
            columns=_whole(values["Columns"]),
            bits_allocated=_whole(values["BitsAllocated"]),
            bits_stored=_whole(values["BitsStored"] or values["BitsAllocated"]),
            is_signed=values["PixelRepresentation"] == 1,
        )
        samples, frames = _whole(values["SamplesPerPixel"] or 1.0), _whole(values["NumberOfFrames"] or 1.0)
        if frames > _MOST_FRAMES or samples > 4 or stored.bits_allocated > 64:
            raise StudyRejected(RejectionReason.TOO_LARGE, "The object has more pixels than are served.")
        fragments = None
        if part10.value_length is None:
            offsets = _extended_offsets(dataset.get_item(_EXTENDED_OFFSET_TABLE), frames)
            fragments = locate_frames(file.fileno(), part10.value_offset, stored, frames, offsets)
        pixels = StoredPixels(
            path=path,
            format=stored,
            samples_per_pixel=samples,
            number_of_frames=frames,
            photometric_interpretation=quietly(lambda: text(dataset, "PhotometricInterpretation")),
            offset=part10.value_offset,
            length=part10.value_length or 0,
            fragments=fragments,
            is_ours=is_ours,
        )
        _check(pixels, os.fstat(file.fileno()).st_size)
    return pixels


def file_part(path: Path, offset: int, length: int) -> Iterator[bytes]:
    """Bytes of a file, in pieces.

    Raises
    ------
    StudyRejected
        ``CORRUPT_PIXEL_DATA`` where it is shorter.
    """
    with path.open("rb") as file:
        for at in range(0, length, CHUNK_BYTES):
            yield _exactly(file.fileno(), offset + at, min(CHUNK_BYTES, length - at))


def _check(pixels: StoredPixels, size: int) -> None:
    if pixels.fragments is not None:
        return
    due = (pixels.frame_bits * pixels.number_of_frames + 7) // 8
    if pixels.length < due or pixels.offset + pixels.length > size:
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, "The pixel data is shorter than the object's header says."
        )


def _whole(value: float | None) -> int:
    if value is None or value < 1 or not value.is_integer():
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, "The object's header does not say how its pixels lie."
        )
    return int(value)


def _extended_offsets(element: object, frames: int) -> tuple[int, ...]:
    value = getattr(element, "value", None)
    try:
        return struct.unpack(f"<{frames}Q", value) if isinstance(value, bytes) else ()
    except struct.error:
        return ()


def _exactly(file: int, offset: int, length: int) -> bytes:
    data = os.pread(file, length, offset)
    if len(data) != length:
        raise StudyRejected(RejectionReason.CORRUPT_PIXEL_DATA, "The object's file was cut short.")
    return data


def _in_this_process(pixels: StoredPixels, frame: int) -> bytes:
    """A colour picture that was made here."""
    if pixels.format.rows * pixels.format.columns > MAX_PIXELS:
        raise StudyRejected(RejectionReason.TOO_LARGE, "The picture is larger than any that is made here.")
    try:
        array = quietly(lambda: pixel_array(pixels.path, index=frame - 1))
    except Exception as error:  # whatever a codec raises
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, f"The pixel data cannot be decoded ({type(error).__name__})."
        ) from error
    return bytes(array.tobytes())
