"""Values of a dataset as odd headers need them: each attribute stands alone, and what cannot be parsed is absent.

The values are decoded here from the stored bytes and not by pydicom's element conversion, which warns or raises
on values that a node must live with, and costs half as much again.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import struct
from typing import Any, Protocol

from pydicom import charset
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement

from ich_node.errors import RejectionReason, StudyRejected

MAX_TEXT_CHARACTERS = 324
"""Longest text kept: five PN components in three groups; longer ones are cut, never refused."""
_MOST_VALUES = 64
"""Of an attribute with several; short ones take more memory than bytes."""
LONGEST_VALUE_BYTES = 65536
"""No value of a header that is looked at is longer; one that claims to be is absent."""

_US_KEYWORDS = frozenset(("Rows", "Columns", "SamplesPerPixel"))
_BINARY_FORMATS = {"FD": "d", "FL": "f", "UL": "L", "SL": "l", "US": "H", "SS": "h"}
_UID = re.compile(r"[0-9.]{1,64}")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


class Elements(Protocol):
    """What of a `pydicom.Dataset` is needed here."""

    def get_item(self, key: int, /) -> Any:
        """The element with its value as stored."""
        ...

    def __getitem__(self, key: int, /) -> Any:
        """The element with its value decoded, where it is a sequence."""
        ...

    def __contains__(self, name: Any, /) -> bool: ...


def _say_nothing(encoding: str, patched_encoding: str | None = None) -> None:
    """Stands in for pydicom's warning of a Specific Character Set (0008,0005) that is none.

    pydicom gives it whenever it reads such a data set, by its log and on stderr, and quotes the value: where
    lengths are damaged that is what follows, names included.
    """


charset._warn_about_invalid_encoding = _say_nothing


class HeaderValues:
    """Tolerant access to one dataset: whatever cannot be parsed is absent.

    Parameters
    ----------
    dataset
        With its ``file_meta`` where it has one.
    within
        The dataset that this one is an item of, somewhere below; its character set holds here too.
    """

    def __init__(self, dataset: Elements, *, within: HeaderValues | None = None) -> None:
        self._dataset = dataset
        self._meta: Any = getattr(dataset, "file_meta", None)
        self._encodings: list[str] = self._character_sets() if within is None else within._encodings

    def _character_sets(self) -> list[str]:
        names = self._strings("SpecificCharacterSet", ["iso8859"])
        try:
            return list(convert_encodings(names or [""]))
        except Exception:  # pydicom warns or raises on an unknown set; Latin-1 at least loses no byte
            return ["latin_1"]

    def _element(self, keyword: str) -> Any:
        try:
            element = self._dataset.get_item(tag_of(keyword))
        except Exception:
            return None
        # A length that is damaged; the receiver did not load it either.
        if isinstance(element, RawDataElement) and element.length > LONGEST_VALUE_BYTES:
            return None
        return element

    def _strings(self, keyword: str, encodings: list[str]) -> list[str]:
        element = self._element(keyword)
        value = getattr(element, "value", None)
        if value is None:
            return []
        if isinstance(value, bytes):
            parts = _decode(value, encodings).split("\\", _MOST_VALUES)[:_MOST_VALUES]
        elif isinstance(value, str) or not hasattr(value, "__iter__"):
            parts = [str(value)]
        else:
            parts = [str(part) for part in itertools.islice(value, _MOST_VALUES)]
        return [_CONTROL_CHARACTERS.sub(" ", part).strip()[:MAX_TEXT_CHARACTERS] for part in parts]

    def strings(self, keyword: str) -> list[str]:
        """Values of a text attribute, stripped; none where it is absent or empty."""
        parts = self._strings(keyword, self._encodings)
        return [] if parts == [""] else parts

    def text(self, keyword: str) -> str:
        """Value of a text attribute, several values joined by blanks; empty where it is absent."""
        element = self._element(keyword)
        value = getattr(element, "value", None)
        # PersonName iterates over its characters' groups, not over values.
        if value is not None and getattr(element, "VR", "") == "PN" and not isinstance(value, bytes):
            return _CONTROL_CHARACTERS.sub(" ", str(value)).strip()[:MAX_TEXT_CHARACTERS]
        return " ".join(self.strings(keyword)).strip()[:MAX_TEXT_CHARACTERS]

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Values of a numeric attribute; none where one of them is no finite number."""
        element = self._element(keyword)
        value = getattr(element, "value", None)
        # Implicit VR says nothing about a value, and the two bytes of "12" are as good a US as any: go by the
        # keyword.
        binary_vrs = (None, "US", "SS", "UN") if keyword in _US_KEYWORDS else ("US", "SS")
        if isinstance(element, RawDataElement) and isinstance(value, bytes) and element.VR in binary_vrs:
            binary = _unsigned(value, "<" if element.is_little_endian else ">")
            if binary is not None:
                return (float(binary),)
        if isinstance(element, RawDataElement) and isinstance(value, bytes):
            several = _several(keyword, element, value)
            if several is not None:
                return several
        try:
            parsed = tuple(float(part) for part in self.strings(keyword))
        except ValueError:
            return ()
        return parsed if all(math.isfinite(number) for number in parsed) else ()

    def number(self, keyword: str) -> float | None:
        """The first of `numbers`."""
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None

    def integer(self, keyword: str) -> int | None:
        """The first of `numbers`, where it is whole and of 32 bits."""
        number = self.number(keyword)
        if number is None or not number.is_integer() or abs(number) >= 2**31:
            return None
        return int(number)

    def triple(self, keyword: str) -> tuple[float, float, float] | None:
        """Exactly three numbers."""
        numbers = self.numbers(keyword)
        return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None

    def sextuple(self, keyword: str) -> tuple[float, float, float, float, float, float] | None:
        """Exactly six numbers."""
        n = self.numbers(keyword)
        return (n[0], n[1], n[2], n[3], n[4], n[5]) if len(n) == 6 else None

    def positive_pair(self, keyword: str) -> tuple[float, float] | None:
        """Exactly two numbers above zero."""
        numbers = self.numbers(keyword)
        return (numbers[0], numbers[1]) if len(numbers) == 2 and min(numbers) > 0 else None

    def uid(self, keyword: str) -> str:
        """A UID; empty where it is absent or has other characters than a UID has."""
        value = self.text(keyword)
        return value if _UID.fullmatch(value) else ""

    def meta_uid(self, keyword: str) -> str:
        """A UID of the File Meta Information."""
        try:
            value = str(getattr(self._meta, keyword, "")).strip(" \0")
        except Exception:
            return ""
        return value if _UID.fullmatch(value) else ""

    def identity(self, keyword: str, meta_keyword: str = "") -> str:
        """A UID without which the object is nothing.

        Raises
        ------
        StudyRejected
            ``MISSING_ATTRIBUTE``.
        """
        value = self.uid(keyword) or (self.meta_uid(meta_keyword) if meta_keyword else "")
        if not value:
            tag = tag_of(keyword)
            raise StudyRejected(
                RejectionReason.MISSING_ATTRIBUTE,
                f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X}) is absent or no valid UID.",
            )
        return value

    def tag(self, keyword: str) -> int | None:
        """An attribute tag (AT)."""
        element = self._element(keyword)
        value = getattr(element, "value", None)
        if isinstance(value, bytes) and len(value) == 4:
            endian = "<" if getattr(element, "is_little_endian", True) else ">"
            group, number = struct.unpack(endian + "2H", value)
            return int(group) << 16 | int(number)
        return int(value) if isinstance(value, int) else None

    def items(self, keyword: str) -> tuple[HeaderValues, ...]:
        """Items of a sequence; none where it is absent or cannot be parsed."""
        try:
            if tag_of(keyword) not in self._dataset:
                return ()
            return tuple(HeaderValues(item, within=self) for item in self._dataset[tag_of(keyword)].value)
        except Exception:  # pydicom raises whatever the damage leads to
            return ()

    def __contains__(self, keyword: str) -> bool:
        return tag_of(keyword) in self._dataset


@functools.cache
def tag_of(keyword: str) -> int:
    """Tag of a keyword of the data dictionary (PS3.6)."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def _decode(value: bytes, encodings: list[str]) -> str:
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    try:
        return decode_bytes(value, encodings, {ord(c) for c in "\\^="})
    except Exception:  # a wrong Specific Character Set: show what can be shown
        return value.decode("latin_1")


def _unsigned(value: bytes, endian: str) -> int | None:
    """US as it is stored; None where the bytes are digits of a string VR."""
    if len(value) != 2:
        return None
    return int(struct.unpack(endian + "H", value)[0])


@functools.cache
def _dictionary_format(keyword: str) -> str | None:
    return _BINARY_FORMATS.get(dictionary_VR(keyword))


def _several(keyword: str, element: RawDataElement, value: bytes) -> tuple[float, ...] | None:
    """Numbers of a binary VR other than a single US; None where the bytes are digits of a string VR."""
    vr = element.VR
    code = _BINARY_FORMATS.get(vr) if vr not in (None, "UN") else _dictionary_format(keyword)
    if code is None or not value or len(value) % struct.calcsize("<" + code):
        return None
    count = len(value) // struct.calcsize("<" + code)
    numbers = struct.unpack(("<" if element.is_little_endian else ">") + str(count) + code, value)
    return tuple(map(float, numbers)) if all(map(math.isfinite, numbers)) else ()
