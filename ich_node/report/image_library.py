"""TID 1600 Image Library: every slice that was read, with its place in the patient.

What all slices share stands once at the group, what differs at each image (TID 1601).
highdicom's own `ImageLibrary` repeats 15 items for every image and demands attributes that real headers lack.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from ich_node import codes
from ich_node.report.attributes import numbers, text
from ich_node.report.content_items import (
    ContentItem,
    Relationship,
    code_item,
    container,
    image_item,
    number_item,
    uid_item,
)
from ich_node.report.reading_report import ReadingReport

_CONTEXT = Relationship.HAS_ACQ_CONTEXT
_LAYOUT = (
    ("Rows", (codes.PIXEL_DATA_ROWS,), codes.PIXELS),
    ("Columns", (codes.PIXEL_DATA_COLUMNS,), codes.PIXELS),
    ("PixelSpacing", (codes.VERTICAL_PIXEL_SPACING, codes.HORIZONTAL_PIXEL_SPACING), codes.MILLIMETER),
    ("SliceThickness", (codes.SLICE_THICKNESS,), codes.MILLIMETER),
    ("ImagePositionPatient", codes.IMAGE_POSITION, codes.MILLIMETER),
    ("ImageOrientationPatient", codes.IMAGE_ORIENTATION, codes.COSINE),
)
"""Attributes of TID 1602 and TID 1604 with the concept of each of their values and its unit."""
_DESCRIPTORS = tuple((concept, unit) for _, concepts, unit in _LAYOUT for concept in concepts)


def code(concept: codes.CodedConcept) -> Code:
    """Return a concept in the form that highdicom takes."""
    return Code(concept.value, concept.scheme_designator, concept.meaning)


def image_library(report: ReadingReport) -> ContentItem:
    """Return the library of the slices of one reading, in their order; each frame is an entry of its own."""
    described = [_described(image) for image in report.source_images]
    is_shared = [len(set(values)) == 1 for values in zip(*described, strict=True)]
    shared = _numbers(described[0], is_shared)
    entries = [
        image_item(
            codes.SOURCE,
            str(image.SOPClassUID),
            str(image.SOPInstanceUID),
            children=_numbers(values, [not common for common in is_shared]),
            frames=report.referenced_frames(index),
        )
        for index, (image, values) in enumerate(zip(report.source_images, described, strict=True))
    ]
    group = [*_common(report.source_images), *shared, *entries]
    return container(codes.IMAGE_LIBRARY, [container(codes.IMAGE_LIBRARY_GROUP, group)])


def _common(images: Sequence[Dataset]) -> list[ContentItem]:
    """TID 1602: modality, target region and frame of reference."""
    items = [
        code_item(codes.MODALITY, codes.COMPUTED_TOMOGRAPHY, _CONTEXT),
        code_item(codes.TARGET_REGION, codes.HEAD, _CONTEXT),
    ]
    frames = {text(image, "FrameOfReferenceUID") for image in images}
    frame = frames.pop()
    if not frames and frame and UID(frame).is_valid:
        items.append(uid_item(codes.FRAME_OF_REFERENCE_UID, frame, _CONTEXT))
    return items


def _described(image: Dataset) -> list[float | None]:
    """Return a value for each of the descriptors; None where the image lacks it."""
    found: list[float | None] = []
    for keyword, concepts, _ in _LAYOUT:
        found.extend(numbers(image, keyword, len(concepts)) or [None] * len(concepts))
    return found


def _numbers(values: Sequence[float | None], wanted: Sequence[bool]) -> list[ContentItem]:
    return [
        number_item(concept, int(value) if value.is_integer() else value, unit, _CONTEXT)
        for (concept, unit), value, is_wanted in zip(_DESCRIPTORS, values, wanted, strict=True)
        if is_wanted and value is not None
    ]
