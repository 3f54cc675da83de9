"""A quick look at the elements before the pixel data, for the hot path of receiving.

pydicom takes a third of a millisecond for the header of a CT image, as long as writing it. `scan` reads no more
than is asked for of data sets that are plainly built, and leaves everything else, damaged or merely unusual, to
pydicom: it never decides that something is wrong. A property test holds its answers to pydicom's.
"""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from ich_node.receive.header import (
    FIRST_TAG,
    HEADER_TAGS,
    ends_header,
    header_from_dataset,
    promises_pixel_data,
)
from ich_node.receive.header_values import HeaderValues, tag_of
from ich_node.study import Instance, StudyHeader

_TAG = struct.Struct("<HH")
_SHORT_ELEMENT = struct.Struct("<HH2sH")
_SHORT = struct.Struct("<H")
_LONG = struct.Struct("<I")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()  # PS3.5 7.1.2
)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_NO_VRS: frozenset[bytes] = frozenset()
_DEEPEST = 8
_DELIMITERS_GROUP = 0xFFFE
_VARYING_TAGS = frozenset(
    tag_of(keyword) for keyword in ("SOPInstanceUID", "InstanceNumber", "ImagePositionPatient")
)
"""What a slice has for itself."""
_SPECIFIC_CHARACTER_SET = 0x00080005
_PLAIN_NAMES = re.compile(rb"[A-Z0-9_ \\]*")
"""What pydicom makes of others, it must say itself: some of them make a data set that it cannot read."""


class _Found(NamedTuple):
    """An element that is kept."""

    vr: bytes
    """Empty where it has none."""
    value: bytes
    value_at: int


class ScannedHeader:
    """The elements that `scan` found, with as much of a `pydicom.Dataset` as reading a header needs."""

    def __init__(self, elements: dict[int, _Found], transfer_syntax_uid: str, *, implicit_vr: bool) -> None:
        self._elements = elements
        self._implicit_vr = implicit_vr
        self.file_meta = SimpleNamespace(TransferSyntaxUID=transfer_syntax_uid)

    def common_elements(self) -> tuple[object, ...]:
        """What the slices of a series have in common, as bytes; equal where the decoded values are."""
        return (
            self.file_meta.TransferSyntaxUID,
            self._implicit_vr,
            *((tag, e.vr, e.value) for tag, e in self._elements.items() if tag not in _VARYING_TAGS),
        )

    def get_item(self, tag: int) -> RawDataElement | None:
        """The element as it is stored, None where it is absent."""
        return self[tag] if tag in self._elements else None

    def __getitem__(self, tag: int) -> RawDataElement:
        found = self._elements[tag]
        return RawDataElement(
            BaseTag(tag),
            found.vr.decode() or None,
            len(found.value),
            found.value,
            found.value_at,
            self._implicit_vr,
            True,
        )

    def __contains__(self, tag: object) -> bool:
        return tag in self._elements


class HeaderCache:
    """Headers of objects that come one after the other: the slices of a series differ in three elements only.

    Used by several threads.

    Parameters
    ----------
    size
        So many series are remembered.
    """

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._headers: dict[object, tuple[Instance, StudyHeader]] = {}

    def header(
        self, scanned: ScannedHeader, path: Path, *, has_pixel_data: bool
    ) -> tuple[Instance, StudyHeader]:
        """The same as `header_from_dataset`, decoded once for elements with the same bytes.

        Raises
        ------
        StudyRejected
            As `header_from_dataset`.
        """
        key = (has_pixel_data, *scanned.common_elements())
        known = self._headers.get(key)
        if known is None:
            instance, study = header_from_dataset(scanned, path)
            known = replace(instance, has_pixel_data=has_pixel_data), study
            if len(self._headers) >= self._size:
                self._headers.clear()
            self._headers[key] = known
            return known
        values = HeaderValues(scanned)
        another = object.__new__(Instance)
        # As dataclasses.replace, which sets each of three dozen fields anew.
        another.__dict__.update(
            known[0].__dict__,
            path=path,
            sop_instance_uid=values.identity("SOPInstanceUID"),
            instance_number=values.integer("InstanceNumber"),
            image_position_patient_mm=values.triple("ImagePositionPatient"),
        )
        return another, known[1]


class _NotPlain(Exception):
    """To be read by pydicom."""


def scan(
    beginning: bytes, *, implicit_vr: bool, transfer_syntax_uid: str
) -> tuple[ScannedHeader, bool] | None:
    """Collect the elements that make a header from the beginning of a little endian data set.

    Parameters
    ----------
    beginning
        The first bytes of the data set.
    implicit_vr
        Whether its elements have no VR.
    transfer_syntax_uid
        Kept beside what is found.

    Returns
    -------
    tuple of ScannedHeader and bool, or None
        With whether there is pixel data. None where pydicom must look: the header does not end within these
        bytes, tags do not ascend, a VR is unknown, a character set has an odd name.
    """
    elements: dict[int, _Found] = {}
    short_vrs = _NO_VRS if implicit_vr else _SHORT_VRS
    try:
        at, last = 0, FIRST_TAG - 1
        while True:
            # Most elements are of this kind; for them no function is called.
            group, number, vr, length = _SHORT_ELEMENT.unpack_from(beginning, at)
            tag, value_at = group << 16 | number, at + 8
            is_short = vr in short_vrs
            if not is_short:
                tag, vr, length, value_at = _element(beginning, at, implicit_vr)
            if group == _DELIMITERS_GROUP:  # of no sequence; pydicom reads it in its own way
                return None
            if ends_header(tag):
                header = ScannedHeader(elements, transfer_syntax_uid, implicit_vr=implicit_vr)
                return header, promises_pixel_data(tag, length)
            if tag <= last:
                return None
            last = tag
            if is_short:
                at = value_at + length
                if at > len(beginning):
                    return None
            else:
                at = _after(beginning, tag, vr, length, value_at, implicit_vr, 0)
            if tag in HEADER_TAGS and length != _UNDEFINED:
                if tag == _SPECIFIC_CHARACTER_SET and not _PLAIN_NAMES.fullmatch(beginning, value_at, at):
                    return None
                elements[tag] = _Found(vr, beginning[value_at:at], value_at)
    except (struct.error, _NotPlain):
        return None


def _element(data: bytes, at: int, implicit_vr: bool) -> tuple[int, bytes, int, int]:
    """Tag, VR, length and place of the value of the element at ``at``."""
    group, number = _TAG.unpack_from(data, at)
    tag = group << 16 | number
    if implicit_vr or group == 0xFFFE:
        return tag, b"", _LONG.unpack_from(data, at + 4)[0], at + 8
    vr = data[at + 4 : at + 6]
    if vr in _SHORT_VRS:
        return tag, vr, _SHORT.unpack_from(data, at + 6)[0], at + 8
    if vr in _LONG_VRS:
        return tag, vr, _LONG.unpack_from(data, at + 8)[0], at + 12
    raise _NotPlain


def _after(
    data: bytes, tag: int, vr: bytes, length: int, value_at: int, implicit_vr: bool, depth: int
) -> int:
    """Where the next element begins."""
    if length != _UNDEFINED:
        if value_at + length > len(data):
            raise _NotPlain
        return value_at + length
    if not (vr == b"SQ" or (implicit_vr and _is_sequence(tag))) or depth >= _DEEPEST:
        raise _NotPlain
    at = value_at
    while True:
        tag, _, item_length, at = _element(data, at, implicit_vr)
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise _NotPlain
        at = _after_item(data, item_length, at, implicit_vr, depth)


def _after_item(data: bytes, length: int, at: int, implicit_vr: bool, depth: int) -> int:
    if length != _UNDEFINED:
        if at + length > len(data):
            raise _NotPlain
        return at + length
    while True:
        tag, vr, element_length, at = _element(data, at, implicit_vr)
        if tag == _ITEM_END:
            return at
        at = _after(data, tag, vr, element_length, at, implicit_vr, depth + 1)


@lru_cache(maxsize=4096)
def _is_sequence(tag: int) -> bool:
    """Whether the data dictionary says so; one that it does not know is nothing plain."""
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
