"""A reading as Basic Text (PS3.3 A.35.1): headings, texts and codes in the shape of TID 2000, for PACS that take
nothing else.
"""

from __future__ import annotations

from pydicom import Dataset

from ich_node import codes
from ich_node.findings import IchSubtype
from ich_node.report.content_items import (
    ContentItem,
    Relationship,
    code_item,
    container,
    image_item,
    text_item,
)
from ich_node.report.measurements import PRESENCE_OF, presence, segment_numbers
from ich_node.report.reading_report import ReadingReport
from ich_node.report.wording import (
    DISCLAIMER,
    SUBTYPE_NAME,
    algorithm_parameters,
    caveat_lines,
    conclusion,
    percent_text,
    reading_line,
    slice_lines,
)


def basic_text_sections(report: ReadingReport, segmentation: Dataset | None) -> list[ContentItem]:
    """Return the sections: what it comes to, what was found on which image, and how it was read."""
    segments = {} if segmentation is None else _segments(report, segmentation)
    return [
        container(codes.CONCLUSIONS, _conclusions(report)),
        container(codes.FINDINGS, [*_classes(report, segments), *_slices(report)]),
        container(codes.CURRENT_PROCEDURE_DESCRIPTIONS, _procedure(report)),
    ]


def _conclusions(report: ReadingReport) -> list[ContentItem]:
    comments = [DISCLAIMER, *caveat_lines(report)]
    return [
        text_item(codes.CONCLUSION, conclusion(report)),
        *(text_item(codes.COMMENT, line) for line in comments),
    ]


def _classes(report: ReadingReport, segments: dict[IchSubtype, ContentItem]) -> list[ContentItem]:
    """One text per class, with its codes as properties: a code alone would look as if it had been found."""
    finding = report.finding
    found = {IchSubtype.ANY: (finding.suspicion, PRESENCE_OF[finding.priority])}
    found |= {subtype: (score, presence(report, score)) for subtype, score in finding.subtypes.items()}
    items = []
    for subtype, (score, present) in found.items():
        name = SUBTYPE_NAME[subtype] if subtype is IchSubtype.ANY else f"{SUBTYPE_NAME[subtype]} hemorrhage"
        properties = [
            code_item(codes.PRESENCE, present, Relationship.HAS_PROPERTIES),
            code_item(codes.FINDING, codes.FINDING_OF[subtype], Relationship.HAS_PROPERTIES),
            code_item(codes.FINDING_SITE, codes.SITE_OF[subtype], Relationship.HAS_PROPERTIES),
        ]
        if present is not codes.ABSENT:
            category = code_item(codes.FINDING_CATEGORY, codes.ACR_CATEGORY_1, Relationship.HAS_PROPERTIES)
            properties.append(category)
        if subtype in segments:
            properties.append(segments[subtype])
        words = f"{name}: {present.meaning.lower()}, certainty {percent_text(score)}"
        items.append(text_item(codes.FINDING, words, children=properties))
    return items


def _slices(report: ReadingReport) -> list[ContentItem]:
    """One text per suspicious slice, inferred from its image."""
    lines = slice_lines(report)
    return [
        text_item(codes.FINDING, line, children=[_source(report, index)])
        for index, line in zip(report.finding.key_slices, lines, strict=False)
    ]


def _source(report: ReadingReport, index: int) -> ContentItem:
    image = report.source_images[index]
    return image_item(
        codes.SOURCE,
        str(image.SOPClassUID),
        str(image.SOPInstanceUID),
        Relationship.INFERRED_FROM,
        frames=report.referenced_frames(index),
    )


def _segments(report: ReadingReport, segmentation: Dataset) -> dict[IchSubtype, ContentItem]:
    return {
        subtype: image_item(
            codes.REFERENCED_SEGMENT,
            str(segmentation.SOPClassUID),
            str(segmentation.SOPInstanceUID),
            Relationship.INFERRED_FROM,
            segment=number,
        )
        for subtype, number in segment_numbers(report, segmentation).items()
    }


def _procedure(report: ReadingReport) -> list[ContentItem]:
    lines = [reading_line(report), *(f"Algorithm: {line}" for line in algorithm_parameters(report))]
    return [
        text_item(codes.PROCEDURE_DESCRIPTION, codes.CT_OF_HEAD.meaning),
        *(text_item(codes.COMMENT, line) for line in lines),
    ]
