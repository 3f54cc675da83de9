"""Data sets as DICOM JSON (PS3.18 annex F), in UTF-8; long values become addresses.

A value that cannot be read as its VR says does not keep the others back: it is given as the text that is stored, or
left out.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.valuerep import BYTES_VR

from ich_node.decoding.stored_image import quietly

Attributes: TypeAlias = dict[str, dict[str, Any]]
"""Of one data set, by tag in eight hexadecimal digits."""
Locate: TypeAlias = Callable[[str], str]
"""The address of a value, by its path: a tag, or tag, number of an item counted from 1, and tag within, with dots."""

INLINE_BYTES = 1024
"""Binary values that are no longer stand in the JSON itself."""
_CHARACTER_SET = 0x00080005
_UTF_8 = "ISO_IR 192"
_FLOATS = ("FL", "FD", "DS")
_TEXT_VRS = frozenset(
    ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"]
)
_OF_ONE_VALUE = ("LT", "ST", "UT", "UR")


def to_json(dataset: Dataset, locate: Locate) -> Attributes:
    """Write a data set; File Meta Information is left out."""
    attributes: Attributes = quietly(lambda: _attributes(dataset, locate, ""))
    return attributes


def element(keyword: str, values: Iterable[Any]) -> Attributes:
    """One attribute that is in the dictionary, from text or numbers; empty text is no value."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    vr = dictionary_VR(tag)
    written = [_value(vr, value) for value in values]
    written = [] if all(value is None for value in written) else written
    return {f"{tag:08X}": {"vr": vr, "Value": written} if written else {"vr": vr}}


def in_order(attributes: Attributes) -> Attributes:
    """Sort by tag."""
    return dict(sorted(attributes.items()))


def texts(attributes: Attributes, tag: str) -> list[str]:
    """Values of an attribute as text, as a search compares them."""
    return [
        "=".join(value.get(part, "") for part in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")
        if isinstance(value, dict)
        else f"{value:.15g}"
        if isinstance(value, int | float)
        else str(value)
        for value in attributes.get(tag, {}).get("Value", ())
        if value is not None
    ]


def _attributes(dataset: Dataset, locate: Locate, within: str) -> Attributes:
    found: Attributes = {}
    # Not by get_item: that would read a value that has been left in the file.
    for tag, raw in sorted(dataset.items(), key=lambda item: item[0]):
        if tag.group > 2 and tag.element != 0:  # no File Meta Information, no group lengths (retired)
            found[f"{tag:08X}"] = _element(dataset, raw, locate, f"{within}{tag:08X}")
    if f"{_CHARACTER_SET:08X}" in found:
        found[f"{_CHARACTER_SET:08X}"] = {"vr": "CS", "Value": [_UTF_8]}
    return found


def _element(
    dataset: Dataset, raw: RawDataElement | DataElement, locate: Locate, path: str
) -> dict[str, Any]:
    if isinstance(raw, RawDataElement) and raw.value is None and raw.length:
        return {"vr": _vr_of(raw), "BulkDataURI": locate(path)}
    try:
        converted = dataset[raw.tag]
        vr = str(converted.VR)
        if vr == "SQ":
            return _sequence(converted, locate, path)
        if vr in BYTES_VR or isinstance(converted.value, bytes):
            return _binary(vr, bytes(converted.value or b""), locate, path)
        values = [_value(vr, value) for value in _values(converted)]
    except Exception:  # whatever the damage leads to
        return _as_stored(raw)
    return {"vr": vr, "Value": values} if any(value is not None for value in values) else {"vr": vr}


def _vr_of(raw: RawDataElement | DataElement) -> str:
    """Of a value that is not read."""
    vr = raw.VR
    if vr is None:
        try:
            vr = dictionary_VR(raw.tag)
        except KeyError:
            vr = "UN"
    return vr.split()[-1]  # "OB or OW"


def _sequence(converted: DataElement, locate: Locate, path: str) -> dict[str, Any]:
    items = converted.value if isinstance(converted.value, Items) else ()
    written = [_attributes(item, locate, f"{path}.{number}.") for number, item in enumerate(items, start=1)]
    return {"vr": "SQ", "Value": written} if written else {"vr": "SQ"}


def _binary(vr: str, value: bytes, locate: Locate, path: str) -> dict[str, Any]:
    vr = vr.split()[-1]
    if not value:
        return {"vr": vr}
    if len(value) > INLINE_BYTES:
        return {"vr": vr, "BulkDataURI": locate(path)}
    return {"vr": vr, "InlineBinary": base64.b64encode(value).decode("ascii")}


def _values(converted: DataElement) -> Iterable[Any]:
    value = converted.value
    if value is None or value == "":
        return ()
    return value if isinstance(value, MultiValue | list | tuple) else (value,)


def _value(vr: str, value: Any) -> Any:
    """One value; None where it is empty."""
    if value is None or value == "":
        return None
    if vr == "PN":
        return _name(str(value))
    if vr == "AT":
        return f"{int(value):08X}"
    if vr in _FLOATS:
        number = float(value)
        # JSON has no such numbers (F.2.3).
        return number if math.isfinite(number) else {math.inf: "inf", -math.inf: "-inf"}.get(number, "NaN")
    return int(value) if vr == "IS" or isinstance(value, int) else str(value)


def _name(text: str) -> dict[str, str] | None:
    """Component groups (F.2.2)."""
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return {group: part for group, part in groups if part} or None


def _as_stored(raw: RawDataElement | DataElement) -> dict[str, Any]:
    vr, value = _vr_of(raw), getattr(raw, "value", None)
    if vr not in _TEXT_VRS or not isinstance(value, bytes):
        return {"vr": vr}
    text = value.decode("latin-1").rstrip(" \x00")
    parts = [text] if vr in _OF_ONE_VALUE else text.split("\\")
    written = [_name(part) if vr == "PN" else part or None for part in parts]
    return {"vr": vr, "Value": written} if any(part is not None for part in written) else {"vr": vr}
