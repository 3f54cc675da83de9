"""What a result says in words, the same in the structured report and in the pictures."""

from __future__ import annotations

import math

from ich_node.findings import IchSubtype, Localization, Priority
from ich_node.report.attributes import whole_number
from ich_node.report.reading_report import ReadingReport

DISCLAIMER = "AI result, unverified, not for primary diagnosis"
"""Stands in every result object."""

HEADLINE: dict[Priority, str] = {
    Priority.STAT: "Suspected hemorrhage: high confidence",
    Priority.HIGH: "Possible hemorrhage: sensitive threshold only",
    Priority.ROUTINE: "No hemorrhage flagged",
}
"""MEDIUM is a study that was not read: it has no findings to report."""

NOT_READ = "NOT read by AI: read as usual. This says nothing of what the images show"
"""Of a study that was not read."""

SUBTYPE_NAME: dict[IchSubtype, str] = {
    IchSubtype.ANY: "Any hemorrhage",
    IchSubtype.EPIDURAL: "Epidural",
    IchSubtype.INTRAPARENCHYMAL: "Intraparenchymal",
    IchSubtype.INTRAVENTRICULAR: "Intraventricular",
    IchSubtype.SUBARACHNOID: "Subarachnoid",
    IchSubtype.SUBDURAL: "Subdural",
}

ABBREVIATION: dict[IchSubtype, str] = {
    IchSubtype.ANY: "ANY",
    IchSubtype.EPIDURAL: "EDH",
    IchSubtype.INTRAPARENCHYMAL: "IPH",
    IchSubtype.INTRAVENTRICULAR: "IVH",
    IchSubtype.SUBARACHNOID: "SAH",
    IchSubtype.SUBDURAL: "SDH",
}
"""As radiologists write the classes; for letters inside a picture."""


def percent(score: float) -> float:
    """A score of 0 to 1 as percent with one decimal, never rounded up to certainty nor down to none."""
    if score in (0.0, 1.0):
        return 100.0 * score
    return min(max(round(100.0 * score, 1), 0.1), 99.9)


def percent_text(score: float) -> str:
    """``percent`` for a person: whole percent, with ``<1 %`` and ``>99 %`` at the ends."""
    if 0 < score < 0.01:
        return "<1 %"
    if 0.99 < score < 1:
        return ">99 %"
    return f"{100 * score:.0f} %"


def conclusion(report: ReadingReport) -> str:
    """Return the result in one short paragraph."""
    finding = report.finding
    points = finding.algorithm.operating_points
    suspicious = len(finding.suspicious_slices)
    parts = [
        f"{HEADLINE[finding.priority]}.",
        f"Suspicion {finding.suspicion:.3f} (high confidence from {points.high_confidence:.3f}, "
        f"sensitive from {points.sensitive:.3f}).",
        f"Suggested reading priority {finding.priority}.",
        f"{suspicious} of {len(finding.slices)} slices suspicious.",
    ]
    return " ".join(parts)


def subtype_lines(report: ReadingReport) -> list[str]:
    """One line per subtype that the model tells apart; none for a model that does not."""
    scores = sorted(report.finding.subtypes.items(), key=lambda item: -item[1])
    return [f"{SUBTYPE_NAME[subtype]}: {percent_text(score)}" for subtype, score in scores]


def slice_lines(report: ReadingReport, limit: int = 20) -> list[str]:
    """One line per suspicious slice, or slab, most suspicious first: where it is and what was found on it."""
    lines = []
    for index in report.finding.key_slices[:limit]:
        finding = report.finding.slices[index]
        places = [_place_text(place) for place in finding.localizations]
        text = f"{slice_name(report, index)}: {percent_text(finding.probabilities[IchSubtype.ANY])}"
        lines.append("; ".join([text, *places]))
    return lines


def _place_text(place: Localization) -> str:
    """Name a place by its subtype, where it has one, and by its pixel; a box by that of its top left corner."""
    # counted from 1: column n reaches from n - 1 to n in image coordinates
    column, row = (math.ceil(c) for c in place.coordinates[:2])
    kind = (
        place.kind
        if place.subtype is IchSubtype.ANY
        else f"{SUBTYPE_NAME[place.subtype].lower()} {place.kind}"
    )
    return f"{kind} at column {column}, row {row}"


def slice_name(report: ReadingReport, index: int) -> str:
    """Name a slice as a viewer does, by Instance Number (0020,0013) or the number of its frame; by its place from
    below where it has none.
    """
    if report.frame_number(index) is not None:
        return _frame_name(report, index)
    number = whole_number(report.source_images[index], "InstanceNumber")
    return f"Image {number}" if number is not None else f"Slice {index + 1} from below"


def _frame_name(report: ReadingReport, index: int) -> str:
    objects, number = report.objects, report.frame_number(index)
    if len(objects) == 1:
        return f"Frame {number}"
    for keyword, word in (("InConcatenationNumber", "Part"), ("InstanceNumber", "Image")):
        numbers = [whole_number(image, keyword) for image in objects.values()]
        if None not in numbers and len(set(numbers)) == len(objects):
            return f"{word} {whole_number(report.source_images[index], keyword)}, frame {number}"
    return f"Slice {index + 1} from below"


def series_description(report: ReadingReport, what: str) -> str:
    """Series Description (0008,103E), at most 64 characters: results of several models lie side by side in a PACS."""
    return f"ICH AI {what} (unverified) {report.finding.algorithm.name}"[:64]


def algorithm_line(report: ReadingReport) -> str:
    """Name, version and the start of the weights' hash."""
    algorithm = report.finding.algorithm
    return f"{algorithm.name} {algorithm.version}, weights {algorithm.weights_sha256[:12]}"


def caveat_lines(report: ReadingReport) -> list[str]:
    """One line per caveat of the input."""
    return [f"Caveat: {caveat}" for caveat in report.caveats]


def reading_line(report: ReadingReport) -> str:
    """Who read, and which reading of the series this is."""
    return f"Algorithm: {algorithm_line(report)}. Reading {report.run_number} of this series."


def algorithm_parameters(report: ReadingReport) -> list[str]:
    """Return what the algorithm was set to, one line each: weights and operating points."""
    algorithm = report.finding.algorithm
    return [
        f"weights sha256 {algorithm.weights_sha256}",
        f"high-confidence operating point {algorithm.operating_points.high_confidence:.6g}",
        f"sensitive operating point {algorithm.operating_points.sensitive:.6g}",
    ]
