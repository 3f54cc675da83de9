"""Attributes of source images, read so that no vendor's bytes stop a result: what cannot be read counts as
absent.
"""

from __future__ import annotations

import math
import struct
import warnings
from functools import cache
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.errors import BytesLengthException
from pydicom.tag import BaseTag, Tag

UNREADABLE = (
    AttributeError,
    BytesLengthException,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom raises, by the kind of damage, where it cannot make sense of the bytes of an attribute."""


def element(image: Dataset, keyword: str) -> DataElement | None:
    """Return an attribute of an image, or None where it is absent or its bytes cannot be read."""
    tag = _tag(keyword)
    if tag not in image:
        return None
    found = image.get_item(tag)
    if isinstance(found, DataElement) and found.VR != "SQ":
        return found
    with warnings.catch_warnings():
        # A vendor's odd value is the vendor's; whoever asks for it judges it.
        warnings.simplefilter("ignore")
        try:
            return image[tag]
        except UNREADABLE:
            return None


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def value(image: Dataset, keyword: str) -> Any:
    """Return the value of an attribute; None where it is absent, empty or unreadable."""
    found = element(image, keyword)
    return None if found is None or found.is_empty else found.value


def numbers(image: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers of an attribute, or None where it has not got them."""
    found = value(image, keyword)
    try:
        values = tuple(float(v) for v in ((found,) if count == 1 else found or ()))
    except (TypeError, ValueError):
        return None
    return values if len(values) == count and all(math.isfinite(v) for v in values) else None


def whole_number(image: Dataset, keyword: str) -> int | None:
    """Return the integer of an attribute, or None where it has none."""
    found = numbers(image, keyword, 1)
    return int(found[0]) if found is not None and found[0].is_integer() else None


def text(image: Dataset, keyword: str) -> str:
    """Return the text of an attribute with a single value, stripped; empty where it has none."""
    found = value(image, keyword)
    return found.strip() if isinstance(found, str) else ""
