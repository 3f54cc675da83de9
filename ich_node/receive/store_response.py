"""The answer to a Store transaction: the Store Instances Response Module (PS3.18 annex I).

As DICOM JSON (PS3.18 annex F) and as Native DICOM Model (PS3.19 annex A.1).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TypeAlias
from urllib.request import parse_http_list
from xml.etree import ElementTree

from ich_node.receive.multipart_related import MediaType

_NATIVE_DICOM_MODEL = "http://dicom.nema.org/PS3.19/models/NativeDICOM"

_KEYWORDS = {
    "RetrieveURL": ("00081190", "UR"),
    "FailureReason": ("00081197", "US"),
    "FailedSOPSequence": ("00081198", "SQ"),
    "ReferencedSOPSequence": ("00081199", "SQ"),
    "OtherFailuresSequence": ("0008119A", "SQ"),
    "ReferencedSOPClassUID": ("00081150", "UI"),
    "ReferencedSOPInstanceUID": ("00081155", "UI"),
}
_Values: TypeAlias = dict[str, "list[str | int | _Values]"]
"""Values of a data set by keyword; no values make an empty element."""


class FailureReason(IntEnum):
    """Values of Failure Reason (0008,1197) that PS3.18 table I.2-2 adds to the status codes of C-STORE."""

    PROCESSING_FAILURE = 0x0110
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122


class ResponseType(StrEnum):
    """Media types that the answer can have; the first is the default (PS3.18 section 10.5.4)."""

    DICOM_JSON = "application/dicom+json"
    JSON = "application/json"
    DICOM_XML = "application/dicom+xml"


@dataclass(kw_only=True)
class StoreReport:
    """What became of each part of a request."""

    stored: list[tuple[str, str]] = field(default_factory=list)
    """SOP Class UID and SOP Instance UID."""
    failed: list[tuple[str, str, int]] = field(default_factory=list)
    """SOP Class UID, SOP Instance UID and Failure Reason."""
    unidentified: list[int] = field(default_factory=list)
    """Failure Reason of each part that does not say which object it is."""

    @property
    def reasons(self) -> set[int]:
        """Every Failure Reason that is given."""
        return {reason for _, _, reason in self.failed} | set(self.unidentified)

    def encode(self, response_type: ResponseType) -> bytes:
        """Write the response module.

        Retrieve URL (type 2) is empty: under which name this node is reached is not known here.
        """
        values = self._values()
        if response_type is ResponseType.DICOM_XML:
            return _to_xml(values)
        return json.dumps(_to_json(values), separators=(",", ":")).encode()

    def _values(self) -> _Values:
        sequences: _Values = {
            "FailedSOPSequence": [
                {**_reference(sop_class, instance), "FailureReason": [reason]}
                for sop_class, instance, reason in self.failed
            ],
            "ReferencedSOPSequence": [
                {**_reference(sop_class, instance), "RetrieveURL": []} for sop_class, instance in self.stored
            ],
            "OtherFailuresSequence": [{"FailureReason": [reason]} for reason in self.unidentified],
        }
        return {"RetrieveURL": [], **{name: items for name, items in sequences.items() if items}}


def choose_response_type(accept: str) -> ResponseType | None:
    """Choose what an Accept header wants most (RFC 9110 section 12.5.1); None where it is nothing that we have.

    An empty header wants the default.
    """
    ranges = [MediaType.parse(item) for item in parse_http_list(accept)] or [MediaType(name="*/*")]
    best = max(ResponseType, key=lambda offered: _quality(offered, ranges))
    return best if _quality(best, ranges) > 0 else None


def _quality(offered: ResponseType, ranges: list[MediaType]) -> float:
    wanted = {_range_name(media_range): _q(media_range) for media_range in ranges}
    for name in (offered.value, "application/*", "*/*"):
        if name in wanted:
            return wanted[name]
    return 0.0


def _range_name(media_range: MediaType) -> str:
    # Editions before 2016 had the XML answer in a multipart body of one part.
    if media_range.name == "multipart/related":
        return media_range.parameters.get("type", "").lower()
    return media_range.name


def _q(media_range: MediaType) -> float:
    try:
        return float(media_range.parameters.get("q", "1"))
    except ValueError:
        return 0.0


def _reference(sop_class_uid: str, sop_instance_uid: str) -> _Values:
    return {"ReferencedSOPClassUID": [sop_class_uid], "ReferencedSOPInstanceUID": [sop_instance_uid]}


def _to_json(values: _Values) -> dict[str, object]:
    encoded: dict[str, object] = {}
    for keyword, items in sorted(values.items(), key=lambda item: _KEYWORDS[item[0]]):
        tag, vr = _KEYWORDS[keyword]
        written = [_to_json(item) if isinstance(item, dict) else item for item in items]
        encoded[tag] = {"vr": vr, "Value": written} if written else {"vr": vr}
    return encoded


def _to_xml(values: _Values) -> bytes:
    root = ElementTree.Element("NativeDicomModel", {"xmlns": _NATIVE_DICOM_MODEL, "xml:space": "preserve"})
    _add_attributes(root, values)
    encoded: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return encoded


def _add_attributes(parent: ElementTree.Element, values: _Values) -> None:
    for keyword, items in sorted(values.items(), key=lambda item: _KEYWORDS[item[0]]):
        tag, vr = _KEYWORDS[keyword]
        attributes = {"tag": tag, "vr": vr, "keyword": keyword}
        element = ElementTree.SubElement(parent, "DicomAttribute", attributes)
        for number, item in enumerate(items, start=1):
            if isinstance(item, dict):
                _add_attributes(ElementTree.SubElement(element, "Item", number=str(number)), item)
            else:
                ElementTree.SubElement(element, "Value", number=str(number)).text = str(item)
