"""Datasets that performers send, in the DICOM JSON model: checked, bounded, and kept as they came."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any

from pydicom.config import RAISE
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.valuerep import validate_value
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ich_node.database.json_model import JsonDataset, first_value, json_tag
from ich_node.receive.limits import is_valid_uid

MOST_BYTES = 2**18
JSON_TYPES = ("application/dicom+json", "application/json")
_MOST_DEPTH = 8
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_TEXT: tuple[type, ...] = (str,)
_NUMBER: tuple[type, ...] = (int, float)
_VALUES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ["AE", "AS", "AT", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT"], _TEXT
    ),
    **dict.fromkeys(["DS", "IS"], (str, int, float)),
    **dict.fromkeys(["FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"], _NUMBER),
    "PN": (dict,),
    "SQ": (dict,),
}
"""Types of values in the JSON model (PS3.18 Table F.2.3-1); bulk data has no place in a workitem."""
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_IGNORED = frozenset(map(json_tag, ("SpecificCharacterSet", "TimezoneOffsetFromUTC")))
"""JSON is UTF-8, whatever these say."""


class BadBody(HTTPException):
    """A body that is refused; the words hold no value of it."""


async def read_dataset(request: Request, *, may_be_absent: bool = False) -> JsonDataset:
    """Read the one dataset of a request's body, by itself or as the only one in a list.

    Raises
    ------
    BadBody
        It is of another media type, too large, or no dataset in the DICOM JSON model.
    """
    content = await _bounded(request)
    if not content and may_be_absent:
        return {}
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in JSON_TYPES:
        raise BadBody(415, f"A dataset comes as {JSON_TYPES[0]}.")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise BadBody(400, "The body is not JSON.") from None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    checked = _checked_dataset(found, depth=0)
    return {tag: element for tag, element in checked.items() if tag not in _IGNORED}


def only(data: JsonDataset, keywords: Collection[str]) -> JsonDataset:
    """Refuse attributes that have no place in a request.

    Raises
    ------
    BadBody
        There is another one.
    """
    allowed = {json_tag(keyword) for keyword in keywords}
    if others := sorted(data.keys() - allowed):
        raise BadBody(400, f"({others[0][:4]},{others[0][4:]}) cannot be set here.")
    return data


def take_uid(data: JsonDataset, keyword: str) -> str | None:
    """Take a UID out of a dataset; ``None`` where it is absent or empty.

    Raises
    ------
    BadBody
        It is not valid.
    """
    value = first_value(data, keyword)
    data.pop(json_tag(keyword), None)
    if value in (None, ""):
        return None
    if not isinstance(value, str) or not is_valid_uid(value):
        raise BadBody(400, f"{keyword} is not a valid UID.")
    return value


async def _bounded(request: Request) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            raise BadBody(413, f"A dataset has at most {MOST_BYTES} bytes.")
    return bytes(content)


def _checked_dataset(found: Any, *, depth: int) -> JsonDataset:
    """A dataset of standard attributes with the value representations of the dictionary (PS3.6)."""
    if not isinstance(found, dict) or depth > _MOST_DEPTH:
        raise BadBody(400, "The body is not one dataset in the DICOM JSON model.")
    return {tag.upper(): _checked_element(tag, element, depth) for tag, element in sorted(found.items())}


def _checked_element(tag: str, element: Any, depth: int) -> dict[str, Any]:
    known = _TAG.fullmatch(tag) is not None and dictionary_has_tag(int(tag, 16))
    if not known or not isinstance(element, dict) or element.keys() - {"vr", "Value"}:
        raise BadBody(400, "The body has what is no standard attribute with its values.")
    vr = element.get("vr", dictionary_VR(int(tag, 16)))
    values = element.get("Value", [])
    if (
        vr not in _VALUES
        or vr not in dictionary_VR(int(tag, 16)).split(" or ")
        or not isinstance(values, list)
    ):
        raise BadBody(400, f"({tag[:4]},{tag[4:]}) has another value representation, or no list of values.")
    if vr == "SQ":
        checked: list[Any] = [_checked_dataset(value, depth=depth + 1) for value in values]
    elif all(value is None or _is_valid(vr, value) for value in values):
        checked = values
    else:
        raise BadBody(400, f"({tag[:4]},{tag[4:]}) has a value that is none of {vr}.")
    return {"vr": vr, "Value": checked} if checked else {"vr": vr}


def _is_valid(vr: str, value: Any) -> bool:
    if not isinstance(value, _VALUES[vr]) or isinstance(value, bool):
        return False
    if isinstance(value, dict):
        return bool(value) and all(k in _NAME_GROUPS and isinstance(v, str) for k, v in value.items())
    if not isinstance(value, str):
        return not isinstance(value, float) or isfinite(value)
    try:
        validate_value(vr, value, RAISE)
    except ValueError:
        return False
    return not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\r\n\t\f\x1b" for c in value)
