"""TID 1600 Image Library: every slice that was read, with its place in the patient.

What all slices share stands once at the group, what differs at each image (TID 1601).
highdicom's own `ImageLibrary` repeats 15 items for every image, demands attributes that real headers lack and
takes seven times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    UIDRefContentItem,
)
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from ich_node import codes
from ich_node.report.attributes import numbers, text
from ich_node.report.reading_report import ReadingReport

_CONTEXT = RelationshipTypeValues.HAS_ACQ_CONTEXT
_CONTAINS = RelationshipTypeValues.CONTAINS


def code(concept: codes.CodedConcept) -> Code:
    """Return a concept in the form that highdicom takes."""
    return Code(concept.value, concept.scheme_designator, concept.meaning)


def image_library(report: ReadingReport) -> ContainerContentItem:
    """Return the library of the slices of one reading, in their order; each frame is an entry of its own."""
    images = report.source_images
    shared, varying = _split_descriptors(images)
    group = ContainerContentItem(name=code(codes.IMAGE_LIBRARY_GROUP), relationship_type=_CONTAINS)
    group.ContentSequence = ContentSequence([*_common(images), *shared])
    for index, (image, descriptors) in enumerate(zip(images, varying, strict=True)):
        entry = ImageContentItem(
            name=code(codes.SOURCE),
            referenced_sop_class_uid=str(image.SOPClassUID),
            referenced_sop_instance_uid=str(image.SOPInstanceUID),
            referenced_frame_numbers=report.referenced_frames(index),
            relationship_type=_CONTAINS,
        )
        if descriptors:
            entry.ContentSequence = ContentSequence(descriptors)
        group.ContentSequence.append(entry)
    library = ContainerContentItem(name=code(codes.IMAGE_LIBRARY), relationship_type=_CONTAINS)
    library.ContentSequence = ContentSequence([group])
    return library


def _common(images: Sequence[Dataset]) -> list[ContentItem]:
    """TID 1602: modality, target region and frame of reference."""
    items: list[ContentItem] = [
        CodeContentItem(
            name=code(codes.MODALITY), value=code(codes.COMPUTED_TOMOGRAPHY), relationship_type=_CONTEXT
        ),
        CodeContentItem(name=code(codes.TARGET_REGION), value=code(codes.HEAD), relationship_type=_CONTEXT),
    ]
    frames = {text(image, "FrameOfReferenceUID") for image in images}
    frame = frames.pop()
    if not frames and frame and UID(frame).is_valid:
        items.append(
            UIDRefContentItem(
                name=code(codes.FRAME_OF_REFERENCE_UID), value=frame, relationship_type=_CONTEXT
            )
        )
    return items


Descriptor = tuple[codes.CodedConcept, codes.CodedConcept, float]
"""Concept, unit, value."""


def _split_descriptors(images: Sequence[Dataset]) -> tuple[list[ContentItem], list[list[ContentItem]]]:
    """Split TID 1602 and TID 1604 numbers into those that all images share and those of each image."""
    each = [_descriptors(image) for image in images]
    shared = [d for d in each[0] if all(d in others for others in each)]
    varying: list[list[ContentItem]] = [
        [_number(d) for d in descriptors if d not in shared] for descriptors in each
    ]
    return [_number(d) for d in shared], varying


def _descriptors(image: Dataset) -> list[Descriptor]:
    layout = (
        ("Rows", (codes.PIXEL_DATA_ROWS,), codes.PIXELS),
        ("Columns", (codes.PIXEL_DATA_COLUMNS,), codes.PIXELS),
        ("PixelSpacing", (codes.VERTICAL_PIXEL_SPACING, codes.HORIZONTAL_PIXEL_SPACING), codes.MILLIMETER),
        ("SliceThickness", (codes.SLICE_THICKNESS,), codes.MILLIMETER),
        ("ImagePositionPatient", codes.IMAGE_POSITION, codes.MILLIMETER),
        ("ImageOrientationPatient", codes.IMAGE_ORIENTATION, codes.COSINE),
    )
    found: list[Descriptor] = []
    for keyword, concepts, unit in layout:
        values = numbers(image, keyword, len(concepts))
        if values is not None:
            found.extend((concept, unit, value) for concept, value in zip(concepts, values, strict=True))
    return found


def _number(descriptor: Descriptor) -> NumContentItem:
    concept, unit, value = descriptor
    whole = int(value) if value.is_integer() else value
    return NumContentItem(name=code(concept), value=whole, unit=code(unit), relationship_type=_CONTEXT)
