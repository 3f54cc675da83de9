"""The DICOM JSON model (PS3.18 annex F) of the few attributes that this node writes out of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from pydicom.datadict import dictionary_VR, tag_for_keyword

from ich_node.codes import CodedConcept

JsonDataset: TypeAlias = dict[str, dict[str, Any]]
"""Tag of eight hexadecimal digits to ``vr`` and, unless it is empty, ``Value``."""


def json_tag(keyword: str) -> str:
    """The name of an attribute in the JSON model; ``keyword`` is in the dictionary."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return f"{tag:08X}"


def attribute(keyword: str, *values: Any) -> JsonDataset:
    """One attribute. ``None`` and the empty string are no values; a sequence has datasets for values."""
    vr = dictionary_VR(keyword)
    kept = [value for value in values if value is not None and value != ""]
    element: dict[str, Any] = {"vr": vr}
    if kept:
        element["Value"] = [_person_name(value) if vr == "PN" else value for value in kept]
    return {json_tag(keyword): element}


def dataset(*parts: JsonDataset) -> JsonDataset:
    """All attributes in the order of their tags; of one that comes twice, the later."""
    merged: JsonDataset = {}
    for part in parts:
        merged |= part
    return dict(sorted(merged.items()))


def coded(keyword: str, concept: CodedConcept) -> JsonDataset:
    """A code sequence with one item (PS3.3 Table 8.8-1a)."""
    return attribute(
        keyword,
        dataset(
            attribute("CodeValue", concept.value),
            attribute("CodingSchemeDesignator", concept.scheme_designator),
            attribute("CodeMeaning", concept.meaning),
        ),
    )


def first_value(data: Mapping[str, Any], keyword: str) -> Any:
    """First value of an attribute; ``None`` where it is absent or empty."""
    element = data.get(json_tag(keyword))
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def date_time(moment: datetime) -> str:
    """A DT value with its offset from UTC (PS3.5 6.2)."""
    return moment.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def _person_name(text: str) -> dict[str, str]:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return {group: name for group, name in groups if name}
