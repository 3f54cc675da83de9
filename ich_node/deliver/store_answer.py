"""The answer to a Store transaction, read: Store Instances Response Module (PS3.18 annex I).

As DICOM JSON (PS3.18 annex F) or as Native DICOM Model (PS3.19 annex A.1), whichever the service prefers. Only
what says which object was stored is looked at, so the rest may be as wrong as it likes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

_FAILED_SOP_SEQUENCE, _REFERENCED_SOP_SEQUENCE = "00081198", "00081199"
_REFERENCED_SOP_INSTANCE_UID = "00081155"
_WARNING_REASON, _FAILURE_REASON = "00081196", "00081197"


class UnreadableAnswer(Exception):
    """It is no Store Instances Response Module."""


@dataclass(frozen=True, kw_only=True)
class StoreAnswer:
    """What a service says of the objects that it was sent, by SOP Instance UID."""

    failed: dict[str, int | None]
    """Failure Reason (0008,1197); `None` where none is given."""
    stored: dict[str, int | None]
    """Warning Reason (0008,1196) where there is one."""


class _NoDeclarations(ElementTree.TreeBuilder):
    """Takes no document type declaration: DICOM has none, and entities in one can be made to fill the memory."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise UnreadableAnswer


def read_store_answer(content: bytes) -> StoreAnswer:
    """Read the body of an answer.

    Raises
    ------
    UnreadableAnswer
        It is neither of the two forms.
    """
    try:
        sequences = _from_xml(content) if _is_xml(content) else _from_json(content)
    except (ValueError, RecursionError, ElementTree.ParseError, LookupError):
        raise UnreadableAnswer from None
    return StoreAnswer(
        failed=_by_instance(sequences[_FAILED_SOP_SEQUENCE], _FAILURE_REASON),
        stored=_by_instance(sequences[_REFERENCED_SOP_SEQUENCE], _WARNING_REASON),
    )


def _is_xml(content: bytes) -> bool:
    # With a byte order mark, in UTF-8 or UTF-16, where the service begins with one.
    return content[:64].lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"<")


def _by_instance(items: list[dict[str, str]], reason: str) -> dict[str, int | None]:
    return {
        item[_REFERENCED_SOP_INSTANCE_UID]: _number(item.get(reason, ""))
        for item in items
        if _REFERENCED_SOP_INSTANCE_UID in item
    }


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else None


_Items = dict[str, list[dict[str, str]]]
"""Of each of the two sequences, the first value of each attribute of each item."""


def _from_json(content: bytes) -> _Items:
    data_set = json.loads(content)
    if isinstance(data_set, list) and len(data_set) == 1:  # some wrap the one in an array, as QIDO-RS does
        data_set = data_set[0]
    if not isinstance(data_set, dict):
        raise UnreadableAnswer
    return {
        tag: [
            {key: _text(values[0]) for key, element in item.items() if (values := _values(element))}
            for item in _values(data_set.get(tag))
            if isinstance(item, dict)
        ]
        for tag in (_FAILED_SOP_SEQUENCE, _REFERENCED_SOP_SEQUENCE)
    }


def _values(element: Any) -> list[Any]:
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _text(value: Any) -> str:
    return str(value).strip(" \0")


def _from_xml(content: bytes) -> _Items:
    root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDeclarations()))
    if root.tag.rpartition("}")[2] != "NativeDicomModel":
        raise UnreadableAnswer
    return {
        tag: [
            {
                attribute.get("tag", "").upper(): _text(value.text or "")
                for attribute in item.iterfind("{*}DicomAttribute")
                if (value := attribute.find("{*}Value")) is not None
            }
            for item in root.iterfind(f"{{*}}DicomAttribute[@tag='{tag}']/{{*}}Item")
        ]
        for tag in (_FAILED_SOP_SEQUENCE, _REFERENCED_SOP_SEQUENCE)
    }
