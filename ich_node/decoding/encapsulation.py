"""Where the frames of encapsulated Pixel Data lie in a file (PS3.5 A.4), found without reading them."""

from __future__ import annotations

import bisect
import itertools
import os
import struct
from collections.abc import Sequence

from pydicom.uid import RLELossless

from ich_node.decoding.pixel_format import PixelFormat
from ich_node.errors import RejectionReason, StudyRejected

Fragment = tuple[int, int]
"""Offset in the file and length, bytes."""

_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_ITEM_HEADER = struct.Struct("<HHL")
_MOST_FRAGMENTS = 2**18
_MOST_COMPRESSED_FACTOR = 4
_SPARE_FRAME_BYTES = 2**20
"""Beside the pixels a stream may hold a colour profile or comments."""
_END_OF_IMAGE = b"\xff\xd9"
_END_IS_WITHIN_BYTES = 10
"""EOI, and what a writer may have put behind it."""


def locate_frames(
    file: int,
    start: int,
    pixel_format: PixelFormat,
    number_of_frames: int,
    extended_offsets: Sequence[int] = (),
) -> list[list[Fragment]]:
    """Find the fragments of every frame.

    Parameters
    ----------
    file
        Descriptor of a file that can be read.
    start
        Where the Basic Offset Table's item begins.
    pixel_format, number_of_frames
        From the header.
    extended_offsets
        Extended Offset Table (7FE0,0001).

    Raises
    ------
    StudyRejected
        ``CORRUPT_PIXEL_DATA`` where the file is cut short, the items make no frames, or a frame is far longer
        than its pixels.
    """
    table, fragments = _items(file, start)
    frames = _group(file, fragments, table, extended_offsets, pixel_format, number_of_frames)
    longest = max(sum(length for _, length in frame) for frame in frames)
    if longest > _MOST_COMPRESSED_FACTOR * pixel_format.frame_bytes + _SPARE_FRAME_BYTES:
        raise _corrupt(
            f"A compressed frame has {longest} bytes; its pixels need {pixel_format.frame_bytes} uncompressed."
        )
    return frames


def _items(file: int, start: int) -> tuple[Fragment, list[Fragment]]:
    """Walk over the items: the offset table and the fragments, all inside the file."""
    size = os.fstat(file).st_size
    items: list[Fragment] = []
    at = start
    while True:
        head = os.pread(file, _ITEM_HEADER.size, at)
        if len(head) < _ITEM_HEADER.size:
            raise _corrupt("The compressed Pixel Data has no end: the file was cut short.")
        group, element, length = _ITEM_HEADER.unpack(head)
        at += _ITEM_HEADER.size
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or at + length > size:
            raise _corrupt("A fragment of the compressed Pixel Data does not lie inside the file.")
        items.append((at, length))
        if len(items) > _MOST_FRAGMENTS:
            raise _corrupt(f"The compressed Pixel Data is in more than {_MOST_FRAGMENTS} fragments.")
        at += length
    if len(items) < 2:
        raise _corrupt("The compressed Pixel Data is empty.")
    return items[0], items[1:]


def _group(
    file: int,
    fragments: list[Fragment],
    table: Fragment,
    extended_offsets: Sequence[int],
    pixel_format: PixelFormat,
    number_of_frames: int,
) -> list[list[Fragment]]:
    """Share the fragments out among the frames.

    Every frame has one at least, in order: with as many fragments as frames, or with one frame, an offset table
    could add nothing but mistakes.
    """
    if number_of_frames == 1:
        return [fragments]
    if len(fragments) == number_of_frames:
        return [[fragment] for fragment in fragments]
    if len(fragments) < number_of_frames or pixel_format.transfer_syntax_uid == RLELossless:
        raise _corrupt(
            f"The compressed Pixel Data has {len(fragments)} fragments for {number_of_frames} frames."
        )
    offsets = extended_offsets or _basic_offsets(file, table, number_of_frames)
    firsts = _by_offsets(fragments, offsets) if offsets else _by_ends(file, fragments)
    if len(firsts) != number_of_frames:
        raise _corrupt("The frames of the compressed Pixel Data cannot be told apart.")
    return [fragments[first:last] for first, last in itertools.pairwise((*firsts, len(fragments)))]


def _basic_offsets(file: int, table: Fragment, number_of_frames: int) -> Sequence[int]:
    offset, length = table
    if length == 0:
        return ()
    if length != 4 * number_of_frames:
        raise _corrupt(f"The offset table of the compressed Pixel Data has {length} bytes.")
    return struct.unpack(f"<{number_of_frames}L", os.pread(file, length, offset))


def _by_offsets(fragments: list[Fragment], offsets: Sequence[int]) -> list[int]:
    """First fragment of each frame; offsets count from the first fragment's item tag (PS3.5 A.4)."""
    tags = [offset - _ITEM_HEADER.size for offset, _ in fragments]
    firsts = [bisect.bisect_left(tags, tags[0] + offset) for offset in offsets]
    exact = all(f < len(tags) and tags[f] == tags[0] + o for f, o in zip(firsts, offsets, strict=True))
    if not exact or firsts[0] != 0 or any(a >= b for a, b in itertools.pairwise(firsts)):
        raise _corrupt("The offset table of the compressed Pixel Data does not point at its frames.")
    return firsts


def _by_ends(file: int, fragments: list[Fragment]) -> list[int]:
    """First fragment of each frame, where no table says it: a frame ends with the stream's end marker."""
    firsts = [0]
    for index, (offset, length) in enumerate(fragments[:-1]):
        tail = min(length, _END_IS_WITHIN_BYTES)
        if _END_OF_IMAGE in os.pread(file, tail, offset + length - tail):
            firsts.append(index + 1)
    return firsts


def _corrupt(detail: str) -> StudyRejected:
    return StudyRejected(RejectionReason.CORRUPT_PIXEL_DATA, detail)
