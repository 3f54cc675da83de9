"""Content items of a structured report (PS3.3 C.17.3), and how they are encoded.

highdicom's items are pydicom data sets that check and copy each other: a report on 400 slices takes it seconds. A
report is a few kinds of items, thousands of times, so they are plain values here, and become the bytes of Explicit
VR Little Endian (PS3.5 section 7.1) in one pass. The tests hold the result to highdicom's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from pydicom.charset import encode_string
from pydicom.datadict import tag_for_keyword
from pydicom.valuerep import format_number_as_ds

from ich_node.codes import CodedConcept


class Relationship(StrEnum):
    """Relationship Type (0040,A010) of an item to the one that holds it."""

    CONTAINS = "CONTAINS"
    HAS_ACQ_CONTEXT = "HAS ACQ CONTEXT"
    HAS_CONCEPT_MOD = "HAS CONCEPT MOD"
    HAS_OBS_CONTEXT = "HAS OBS CONTEXT"
    HAS_PROPERTIES = "HAS PROPERTIES"
    INFERRED_FROM = "INFERRED FROM"
    SELECTED_FROM = "SELECTED FROM"


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentItem:
    """One item of the content tree."""

    value_type: str
    """Value Type (0040,A040)."""
    name: CodedConcept | None
    """Concept Name Code Sequence (0040,A043)."""
    relationship: Relationship
    """To the item that holds it; the root's is not written."""
    value: tuple[tuple[int, bytes], ...] = ()
    """Tag and encoding of the attributes that carry its value, but for a text."""
    text: str | None = None
    """Text Value (0040,A160): its bytes depend on the character set of the document."""
    children: tuple[ContentItem, ...] = ()
    """Content Sequence (0040,A730)."""


def container(
    name: CodedConcept,
    children: Iterable[ContentItem],
    relationship: Relationship = Relationship.CONTAINS,
    *,
    template: str | None = None,
) -> ContentItem:
    """CONTAINER; ``template`` is the number of its template in PS3.16."""
    value = [(_CONTINUITY, _CONTINUOUS)]
    if template is not None:
        value.append((_TEMPLATE, _template_sequence(template)))
    return ContentItem(
        value_type="CONTAINER",
        name=name,
        relationship=relationship,
        value=tuple(value),
        children=tuple(children),
    )


def text_item(
    name: CodedConcept,
    text: str,
    relationship: Relationship = Relationship.CONTAINS,
    children: Iterable[ContentItem] = (),
) -> ContentItem:
    """TEXT."""
    return ContentItem(
        value_type="TEXT", name=name, relationship=relationship, text=text, children=tuple(children)
    )


def code_item(
    name: CodedConcept, value: CodedConcept, relationship: Relationship = Relationship.CONTAINS
) -> ContentItem:
    """CODE."""
    encoded = ((_CONCEPT_CODE, _code_sequence(_CONCEPT_CODE, value)),)
    return ContentItem(value_type="CODE", name=name, relationship=relationship, value=encoded)


def number_item(
    name: CodedConcept,
    value: float,
    unit: CodedConcept,
    relationship: Relationship = Relationship.CONTAINS,
    children: Iterable[ContentItem] = (),
) -> ContentItem:
    """NUM; a float comes with its Floating Point Value (0040,A161), for decimal strings hold 16 characters."""
    return ContentItem(
        value_type="NUM",
        name=name,
        relationship=relationship,
        value=((_MEASURED_VALUE, _measured_value(value, unit)),),
        children=tuple(children),
    )


def uid_item(name: CodedConcept, uid: str, relationship: Relationship = Relationship.CONTAINS) -> ContentItem:
    """UIDREF."""
    return ContentItem(
        value_type="UIDREF", name=name, relationship=relationship, value=((_UID, _uid_element(_UID, uid)),)
    )


def image_item(
    name: CodedConcept | None,
    sop_class_uid: str,
    sop_instance_uid: str,
    relationship: Relationship = Relationship.CONTAINS,
    children: Iterable[ContentItem] = (),
    *,
    frames: Sequence[int] | None = None,
    segment: int | None = None,
) -> ContentItem:
    """IMAGE, or some of its frames, or a segment of a Segmentation; frames and segments count from 1."""
    reference = sop_reference(sop_class_uid, sop_instance_uid, frames=frames, segment=segment)
    return ContentItem(
        value_type="IMAGE",
        name=name,
        relationship=relationship,
        value=((_REFERENCED_SOP, sequence_element(_REFERENCED_SOP, [reference])),),
        children=tuple(children),
    )


def region_item(
    name: CodedConcept,
    graphic_type: str,
    points: Iterable[tuple[float, float]],
    source: ContentItem,
    relationship: Relationship = Relationship.CONTAINS,
) -> ContentItem:
    """SCOORD (PS3.3 C.18.6): (column, row) image coordinates on the image that it is selected from."""
    graphic_data = [coordinate for point in points for coordinate in point]
    packed = struct.pack(f"<{len(graphic_data)}f", *graphic_data)
    return ContentItem(
        value_type="SCOORD",
        name=name,
        relationship=relationship,
        value=(
            (_GRAPHIC_DATA, _short_element(_GRAPHIC_DATA, b"FL", packed)),
            (_GRAPHIC_TYPE, _short_element(_GRAPHIC_TYPE, b"CS", graphic_type.encode())),
        ),
        children=(source,),
    )


def texts(items: Iterable[ContentItem]) -> Iterator[str]:
    """Every text of some items and of those below them."""
    for item in items:
        if item.text is not None:
            yield item.text
        yield from texts(item.children)


def encoded_items(items: Iterable[ContentItem], encodings: Sequence[str]) -> bytes:
    """Value of a Content Sequence (0040,A730), Explicit VR Little Endian.

    Parameters
    ----------
    items
        What the sequence holds.
    encodings
        Python names of the document's character sets, as `pydicom.charset.convert_encodings` gives them.
    """
    return b"".join(_encoded_item(item, encodings) for item in items)


def _encoded_item(item: ContentItem, encodings: Sequence[str]) -> bytes:
    elements = [*item.value, (_RELATIONSHIP, _code_string(_RELATIONSHIP, item.relationship))]
    elements.append((_VALUE_TYPE, _code_string(_VALUE_TYPE, item.value_type)))
    if item.name is not None:
        elements.append((_CONCEPT_NAME, _code_sequence(_CONCEPT_NAME, item.name)))
    if item.text is not None:
        elements.append((_TEXT, _long_element(_TEXT, b"UT", encode_string(item.text, encodings))))
    if item.children:
        nested = encoded_items(item.children, encodings)
        elements.append((_CONTENT, _long_element(_CONTENT, b"SQ", nested)))
    elements.sort()
    return encoded_dataset(element for _, element in elements)


# attributes of items ------------------------------------------------------------------------------------------------


def sop_reference(
    sop_class_uid: str,
    sop_instance_uid: str,
    *,
    frames: Sequence[int] | None = None,
    segment: int | None = None,
) -> bytes:
    """Return an encoded item that refers to an object: SOP Instance Reference Macro (PS3.3 Table 10-11)."""
    elements = [
        _uid_element(_SOP_CLASS, sop_class_uid),
        _uid_element(_SOP_INSTANCE, sop_instance_uid),
    ]
    if frames:
        numbers = "\\".join(str(number) for number in frames)
        elements.append(_short_element(_FRAME_NUMBER, b"IS", numbers.encode()))
    if segment is not None:
        elements.append(_short_element(_SEGMENT_NUMBER, b"US", struct.pack("<H", segment)))
    return encoded_dataset(elements)


def encoded_dataset(elements: Iterable[bytes]) -> bytes:
    """Return an item of a sequence, with explicit length (PS3.5 section 7.5)."""
    content = b"".join(elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def sequence_element(tag: int, items: Iterable[bytes]) -> bytes:
    """Return a sequence of encoded items, with explicit length."""
    return _long_element(tag, b"SQ", b"".join(items))


def uid_element(keyword: str, uid: str) -> bytes:
    """Return an encoded UID."""
    return _uid_element(tag_of(keyword), uid)


@cache
def tag_of(keyword: str) -> int:
    """Return the tag of an attribute."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is no DICOM keyword")
    return tag


def _short_element(tag: int, vr: bytes, value: bytes, padding: bytes = b" ") -> bytes:
    if len(value) % 2:
        value += padding
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def _long_element(tag: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" "
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value


def _uid_element(tag: int, uid: str) -> bytes:
    return _short_element(tag, b"UI", uid.encode("ascii"), b"\0")


@cache
def _code_string(tag: int, value: str) -> bytes:
    return _short_element(tag, b"CS", value.encode("ascii"))


@cache
def _code_sequence(tag: int, concept: CodedConcept) -> bytes:
    """Code Sequence Macro (PS3.3 Table 8.8-1)."""
    parts = (
        ("CodeValue", b"SH", concept.value),
        ("CodingSchemeDesignator", b"SH", concept.scheme_designator),
        ("CodeMeaning", b"LO", concept.meaning),
    )
    elements = (_short_element(tag_of(keyword), vr, value.encode("ascii")) for keyword, vr, value in parts)
    return sequence_element(tag, [encoded_dataset(elements)])


@cache
def _template_sequence(number: str) -> bytes:
    mapping = _code_string(tag_of("MappingResource"), "DCMR")
    identifier = _code_string(tag_of("TemplateIdentifier"), number)
    return sequence_element(_TEMPLATE, [encoded_dataset([mapping, identifier])])


def _measured_value(value: float, unit: CodedConcept) -> bytes:
    elements = [_code_sequence(_UNITS, unit)]
    if isinstance(value, float):
        elements.append(_short_element(_FLOATING_POINT, b"FD", struct.pack("<d", value)))
    shortest = str(value)
    decimal = shortest if len(shortest) <= 16 else format_number_as_ds(float(value))
    elements.append(_short_element(_NUMERIC_VALUE, b"DS", decimal.encode()))
    return sequence_element(_MEASURED_VALUE, [encoded_dataset(elements)])


_CONCEPT_CODE = tag_of("ConceptCodeSequence")
_CONCEPT_NAME = tag_of("ConceptNameCodeSequence")
_CONTENT = tag_of("ContentSequence")
_CONTINUITY = tag_of("ContinuityOfContent")
_FLOATING_POINT = tag_of("FloatingPointValue")
_FRAME_NUMBER = tag_of("ReferencedFrameNumber")
_GRAPHIC_DATA = tag_of("GraphicData")
_GRAPHIC_TYPE = tag_of("GraphicType")
_MEASURED_VALUE = tag_of("MeasuredValueSequence")
_NUMERIC_VALUE = tag_of("NumericValue")
_REFERENCED_SOP = tag_of("ReferencedSOPSequence")
_RELATIONSHIP = tag_of("RelationshipType")
_SEGMENT_NUMBER = tag_of("ReferencedSegmentNumber")
_SOP_CLASS = tag_of("ReferencedSOPClassUID")
_SOP_INSTANCE = tag_of("ReferencedSOPInstanceUID")
_TEMPLATE = tag_of("ContentTemplateSequence")
_TEXT = tag_of("TextValue")
_UID = tag_of("UID")
_UNITS = tag_of("MeasurementUnitsCodeSequence")
_VALUE_TYPE = tag_of("ValueType")
_CONTINUOUS = _code_string(_CONTINUITY, "CONTINUOUS")
