"""Measurement groups of TID 1500: one for the study and one per subtype (TID 1501), one per place (TID
1410), one per segment (TID 1411).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from pydicom import Dataset

from ich_node import codes
from ich_node.findings import IchSubtype, Localization, Priority
from ich_node.report.content_items import (
    ContentItem,
    Relationship,
    code_item,
    container,
    image_item,
    number_item,
    region_item,
    text_item,
    uid_item,
)
from ich_node.report.reading_report import MANUFACTURER, ReadingReport
from ich_node.report.uids import result_uid, tracking_uid
from ich_node.report.viewport import head_bounds
from ich_node.report.wording import (
    DISCLAIMER,
    HEADLINE,
    SUBTYPE_NAME,
    algorithm_parameters,
    percent,
    slice_name,
)

MAX_SOURCE_IMAGES = 8
"""Most suspicious slices that the study's group names as its source."""
PRESENCE_OF: dict[Priority, codes.CodedConcept] = {
    Priority.STAT: codes.PRESENT,
    Priority.HIGH: codes.INDETERMINATE,
    Priority.ROUTINE: codes.ABSENT,
}
"""What the priority says of hemorrhage in the study."""


def measurement_groups(report: ReadingReport, segmentation: Dataset | None) -> list[ContentItem]:
    """Every group of the report: study, subtypes as the model orders them, then places from the lowest slice
    up, then segments.

    A group that is about no place has the head on its most suspicious slice as the region that its number is
    inferred from (TID 300, TID 320): OHIF, for one, shows nothing of a report in which a group has no coordinates,
    and opens it where those of the first group lie.
    """
    slices = _SlicesToShow(report)
    groups = [_study_group(report, slices)]
    groups.extend(_subtype_group(report, subtype, slices) for subtype in report.finding.subtypes)
    for index, finding in enumerate(report.finding.slices):
        groups.extend(_place_group(report, index, n, place) for n, place in enumerate(finding.localizations))
    if segmentation is not None:
        groups.extend(
            _segment_group(report, segmentation, number, subtype, slices)
            for subtype, number in segment_numbers(report, segmentation).items()
        )
    return groups


def presence(report: ReadingReport, score: float) -> codes.CodedConcept:
    """Return Present from the high-confidence operating point on, Indeterminate from the sensitive one on,
    else Absent.

    No subtype is more present than hemorrhage is: where the study is below an operating point, so are its
    subtypes.
    """
    points = report.finding.algorithm.operating_points
    score = min(score, report.finding.suspicion)
    if score >= points.high_confidence:
        return codes.PRESENT
    return codes.INDETERMINATE if score >= points.sensitive else codes.ABSENT


def segment_numbers(report: ReadingReport, segmentation: Dataset) -> dict[IchSubtype, int]:
    """Segment Number (0062,0004) of each class that a segmentation of the same reading has a segment of.

    Raises
    ------
    ValueError
        A segment tracks none of this reading's findings.
    """
    classes = {_tracking_uid(report, subtype): subtype for subtype in IchSubtype}
    numbers: dict[IchSubtype, int] = {}
    for segment in segmentation.SegmentSequence:
        subtype = classes.get(str(segment.get("TrackingUID", "")))
        if subtype is None:
            raise ValueError(f"segment {segment.SegmentNumber} tracks no finding of this reading")
        numbers[subtype] = int(segment.SegmentNumber)
    return numbers


class _SlicesToShow:
    """Which slice a group of the study or of a class opens on: its most suspicious one that no other has.

    Viewers write the texts of all groups on a slice over each other.
    """

    def __init__(self, report: ReadingReport) -> None:
        self._report = report
        self._taken: set[int] = set()

    def take(self, subtype: IchSubtype) -> int:
        """Choose the slice for one more group."""
        finding = self._report.finding
        scores = [one.probabilities.get(subtype, one.probabilities[IchSubtype.ANY]) for one in finding.slices]
        own = [index for index in range(len(scores)) if finding.stands_for_itself(index)]
        free = [index for index in own if index not in self._taken] or own
        chosen = max(free, key=lambda index: (scores[index], -index))
        self._taken.add(chosen)
        return chosen


def _study_group(report: ReadingReport, slices: _SlicesToShow) -> ContentItem:
    finding = report.finding
    sources = [
        image_item(
            codes.SOURCE_OF_MEASUREMENT,
            str(report.source_images[index].SOPClassUID),
            str(report.source_images[index].SOPInstanceUID),
            frames=report.referenced_frames(index),
        )
        for index in finding.key_slices[:MAX_SOURCE_IMAGES]
    ]
    return _group(
        report,
        IchSubtype.ANY,
        tracking=("Intracranial hemorrhage in the study", _tracking_uid(report, IchSubtype.ANY)),
        actionable=finding.priority is not Priority.ROUTINE,
        score=finding.suspicion,
        region=_head_region(report, slices.take(IchSubtype.ANY)),
        comments=(HEADLINE[finding.priority], DISCLAIMER),
        others=[code_item(codes.PRESENCE, PRESENCE_OF[finding.priority]), *sources],
        template="1501",
    )


def _subtype_group(report: ReadingReport, subtype: IchSubtype, slices: _SlicesToShow) -> ContentItem:
    score = report.finding.subtypes[subtype]
    found = presence(report, score)
    return _group(
        report,
        subtype,
        tracking=(f"{SUBTYPE_NAME[subtype]} hemorrhage in the study", _tracking_uid(report, subtype)),
        actionable=found is not codes.ABSENT,
        score=score,
        region=_head_region(report, slices.take(subtype)),
        comments=(f"{SUBTYPE_NAME[subtype]} hemorrhage",),
        others=[code_item(codes.PRESENCE, found)],
        template="1501",
    )


def _place_group(report: ReadingReport, index: int, number: int, place: Localization) -> ContentItem:
    name = f"{SUBTYPE_NAME[place.subtype]}, {slice_name(report, index)}, {place.kind} {number + 1}"
    return _group(
        report,
        place.subtype,
        tracking=(name, result_uid(report, f"place/{report.slice_key(index)}/{number}")),
        score=place.score,
        others=[_place_region(report, index, place)],
        template="1410",
    )


def _segment_group(
    report: ReadingReport, segmentation: Dataset, number: int, subtype: IchSubtype, slices: _SlicesToShow
) -> ContentItem:
    """Where the likelihood of a class lies; its score is that of the study, its tracking that of the finding."""
    finding = report.finding
    name = "Intracranial" if subtype is IchSubtype.ANY else SUBTYPE_NAME[subtype]
    segment = image_item(
        codes.REFERENCED_SEGMENT,
        str(segmentation.SOPClassUID),
        str(segmentation.SOPInstanceUID),
        segment=number,
    )
    return _group(
        report,
        subtype,
        tracking=(f"{name} hemorrhage in the study, likelihood", _tracking_uid(report, subtype)),
        score=finding.suspicion if subtype is IchSubtype.ANY else finding.subtypes.get(subtype),
        region=_head_region(report, slices.take(subtype)),
        others=[segment, uid_item(codes.SOURCE_SERIES_FOR_SEGMENTATION, report.series_instance_uid)],
        template="1411",
    )


def _tracking_uid(report: ReadingReport, subtype: IchSubtype) -> str:
    return tracking_uid(report, "study" if subtype is IchSubtype.ANY else subtype)


def _group(
    report: ReadingReport,
    subtype: IchSubtype,
    *,
    tracking: tuple[str, str],
    score: float | None,
    others: Iterable[ContentItem],
    template: str,
    actionable: bool = False,
    region: ContentItem | None = None,
    comments: Iterable[str] = (),
) -> ContentItem:
    """Return a group with what all of them have: tracking, finding, site, algorithm and certainty.

    Parameters
    ----------
    region
        What the certainty is inferred from, in a group that has no place of its own.
    comments
        A few words for viewers that show no codes.
    """
    identifier, uid = tracking
    items = [
        text_item(codes.TRACKING_IDENTIFIER, identifier, Relationship.HAS_OBS_CONTEXT),
        uid_item(codes.TRACKING_UNIQUE_IDENTIFIER, uid, Relationship.HAS_OBS_CONTEXT),
    ]
    if actionable:
        items.append(code_item(codes.FINDING_CATEGORY, codes.ACR_CATEGORY_1))
    items.append(code_item(codes.FINDING, codes.FINDING_OF[subtype]))
    items.append(code_item(codes.FINDING_SITE, codes.SITE_OF[subtype], Relationship.HAS_CONCEPT_MOD))
    items.extend(_algorithm(report))
    if score is not None:
        inferred_from = () if region is None else (region,)
        certainty = number_item(
            codes.CERTAINTY_OF_FINDING, percent(score), codes.PERCENT, children=inferred_from
        )
        items.append(certainty)
    items.extend(text_item(codes.COMMENT, line) for line in comments)
    return container(codes.MEASUREMENT_GROUP, [*items, *others], template=template)


def _algorithm(report: ReadingReport) -> list[ContentItem]:
    """TID 4019, with the weights' hash and the operating points as parameters."""
    algorithm = report.finding.algorithm
    facts = [
        (codes.ALGORITHM_NAME, algorithm.name),
        (codes.ALGORITHM_VERSION, algorithm.version),
        (codes.ALGORITHM_MANUFACTURER, MANUFACTURER),
        *((codes.ALGORITHM_PARAMETERS, line) for line in algorithm_parameters(report)),
    ]
    return [text_item(name, value, Relationship.HAS_CONCEPT_MOD) for name, value in facts]


def _head_region(report: ReadingReport, index: int) -> ContentItem:
    """SCOORD around the head on one slice."""
    left, top, right, bottom = head_bounds(report, [index])
    outline = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return _region(report, index, outline, Relationship.INFERRED_FROM)


def _place_region(report: ReadingReport, index: int, place: Localization) -> ContentItem:
    """SCOORD of a point, or of the closed outline of a box."""
    if place.kind == "point":
        x, y = place.coordinates
        return _region(report, index, [(x, y)])
    left, top, right, bottom = place.coordinates
    return _region(report, index, [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])


def _region(
    report: ReadingReport,
    index: int,
    outline: Sequence[tuple[float, float]],
    relationship: Relationship = Relationship.CONTAINS,
) -> ContentItem:
    """SCOORD (PS3.3 C.18.6) within a slice, selected from its image."""
    image = report.source_images[index]
    rows, columns = report.hu.shape[1:]
    source = image_item(
        codes.SOURCE,
        str(image.SOPClassUID),
        str(image.SOPInstanceUID),
        Relationship.SELECTED_FROM,
        frames=report.referenced_frames(index),
    )
    inside = [(float(np.clip(x, 0, columns)), float(np.clip(y, 0, rows))) for x, y in outline]
    return region_item(
        codes.IMAGE_REGION, "POINT" if len(outline) == 1 else "POLYLINE", inside, source, relationship
    )
