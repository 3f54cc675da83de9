"""The summary page: the most telling slices at a glance, with every number of the reading beside them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ich_node.findings import IchSubtype, Priority
from ich_node.report import drawing
from ich_node.report.overlay import (
    FOOTER_HEIGHT,
    HEADER_HEIGHT,
    class_text,
    footer_strip,
    header_strip,
    levels_text,
)
from ich_node.report.reading_report import ReadingReport
from ich_node.report.sketch import Sketches, SliceSketch, sketches_of
from ich_node.report.slice_picture import render_slice
from ich_node.report.viewport import TISSUE_FROM_HU, head_region
from ich_node.report.wording import SUBTYPE_NAME, algorithm_line, percent_text, slice_name

_MONTAGE = 972
_PANEL = 308
_GAP = 6
_CAPTION = 26
MAX_PANES = 9
_HEAD_SHARE = 0.05
"""Of a slice's pixels that are tissue: the head rest alone has less."""
_MOST_CAVEAT_LINES = 12
_Shown = dict[int, SliceSketch]
"""Index and sketch of each slice of the montage, in the order of the body."""


def montage_slices(report: ReadingReport) -> list[int]:
    """Choose the slices of the montage, in the order of the body.

    The most suspicious slices, four or nine of them; where nothing was found, nine spread evenly over the
    head.
    """
    finding = report.finding
    if report.finding.priority is Priority.ROUTINE:
        head = _slices_of_head(report)
        last, panes = len(head) - 1, min(MAX_PANES, len(head))
        return sorted({head[round(i)] for i in np.linspace(0.1 * last, 0.9 * last, panes)})
    panes = 4 if len(finding.key_slices) <= 4 else MAX_PANES
    own = filter(finding.stands_for_itself, range(len(finding.slices)))
    ranked = sorted(own, key=lambda i: (-finding.slices[i].probabilities[IchSubtype.ANY], i))
    return sorted(ranked[:panes])


def _slices_of_head(report: ReadingReport) -> list[int]:
    """Slices that show more than air and the head rest; all of them where none does."""
    # Every eighth pixel tells a head from air, and there may be hundreds of slices.
    shares = (report.hu[:, ::8, ::8] > TISSUE_FROM_HU).mean(axis=(1, 2))
    return np.flatnonzero(shares >= _HEAD_SHARE).tolist() or list(range(len(shares)))


def render_summary(report: ReadingReport, sketches: Sketches | None = None) -> npt.NDArray[np.uint8]:
    """Draw the summary page; ``sketches`` are those of the reading, where they are at hand.

    Returns
    -------
    numpy.ndarray
        (1108, 1280, 3) uint8, RGB.
    """
    width, height = _MONTAGE + _PANEL, HEADER_HEIGHT + _MONTAGE + FOOTER_HEIGHT
    page = Image.new("RGB", (width, height), drawing.BACKGROUND)
    draw = ImageDraw.Draw(page)
    shown = {index: (sketches or sketches_of(report))(index) for index in montage_slices(report)}
    _draw_montage(page, draw, report, shown)
    suspicious = len(report.finding.suspicious_slices)
    count = f"{suspicious} of {len(report.finding.slices)} slices suspicious"
    detail = f"Suspicion {percent_text(report.finding.suspicion)}, {count}"
    page.paste(header_strip(report, width, [detail]))
    _draw_panel(draw, report, shown, _MONTAGE + 12, width - 14)
    page.paste(footer_strip(width), (0, HEADER_HEIGHT + _MONTAGE))
    return np.asarray(page)


def _draw_montage(page: Image.Image, draw: ImageDraw.ImageDraw, report: ReadingReport, shown: _Shown) -> None:
    across = 1 if len(shown) == 1 else 2 if len(shown) <= 4 else 3
    cell = _MONTAGE // across
    view = head_region(report, list(shown), cell - _GAP - _CAPTION)
    for n, (index, sketch) in enumerate(shown.items()):
        left, top = (n % across) * cell, HEADER_HEIGHT + (n // across) * cell
        offset = (cell - view.width) // 2
        pane = render_slice(report, index, view, letter_size=18, sketch=sketch)
        page.paste(pane, (left + offset, top + _CAPTION))
        _draw_caption(draw, report, index, (left + offset, top, left + offset + view.width, top + _CAPTION))


def _draw_caption(draw: ImageDraw.ImageDraw, report: ReadingReport, index: int, box: drawing.Box) -> None:
    left, top, right, bottom = box
    score = report.finding.slices[index].probabilities[IchSubtype.ANY]
    middle = (top + bottom) / 2
    drawing.write(draw, (left, middle), slice_name(report, index), size=16, anchor="lm")
    drawing.write(draw, (right, middle), percent_text(score), size=16, anchor="rm")
    start = left + 0.45 * (right - left)
    points = report.finding.algorithm.operating_points
    drawing.bar(
        draw,
        (start, middle - 4, right - 56, middle + 4),
        score,
        score_color(report, score),
        ticks=(points.sensitive,),
    )


def score_color(report: ReadingReport, score: float) -> drawing.Color:
    """Return the colour of the priority that a score would give the study."""
    points = report.finding.algorithm.operating_points
    if score >= points.high_confidence:
        return drawing.PRIORITY_COLOR[Priority.STAT]
    if score >= points.sensitive:
        return drawing.PRIORITY_COLOR[Priority.HIGH]
    return drawing.PRIORITY_COLOR[Priority.ROUTINE]


def _draw_panel(
    draw: ImageDraw.ImageDraw, report: ReadingReport, shown: _Shown, left: int, right: int
) -> None:
    top = HEADER_HEIGHT + 10
    bottom = HEADER_HEIGHT + _MONTAGE - 10
    draw.line((left - 12, HEADER_HEIGHT, left - 12, bottom + 10), fill=drawing.RULE)
    top = _draw_suspicion(draw, report, left, right, top)
    classes = _classes(shown)
    top = _draw_subtypes(draw, report, classes, (left, top, right))
    bottom = _draw_notes(draw, report, left, right, bottom)
    bottom = _draw_legend(draw, report, shown, classes, (left, bottom))
    _draw_profile(draw, report, shown, (left, top, right, bottom - 16))


def _classes(shown: _Shown) -> list[IchSubtype]:
    """Classes that have a colour of their own in one of the panes, ``ANY`` last."""
    seen = {subtype for sketch in shown.values() for subtype in sketch.classes}
    ordered = [subtype for subtype in IchSubtype if subtype in seen]
    return sorted(ordered, key=lambda subtype: subtype is IchSubtype.ANY)


def _title(draw: ImageDraw.ImageDraw, left: float, top: float, text: str) -> float:
    drawing.write(draw, (left, top), text, size=16, color=drawing.MUTED)
    return top + 26


def _draw_suspicion(draw: ImageDraw.ImageDraw, report: ReadingReport, left: int, right: int, top: int) -> int:
    finding = report.finding
    points = finding.algorithm.operating_points
    below = _title(draw, left, top, "Suspicion of the study")
    color = score_color(report, finding.suspicion)
    drawing.write(draw, (left, below - 4), percent_text(finding.suspicion), size=42, color=color)
    box = (left, below + 54, right, below + 68)
    drawing.bar(draw, box, finding.suspicion, color, ticks=(points.sensitive, points.high_confidence))
    sensitive, high = percent_text(points.sensitive), percent_text(points.high_confidence)
    text = f"Ticks: sensitive {sensitive}, high confidence {high}"
    size = drawing.fitted(text, size=15, width=right - left)
    drawing.write(draw, (left, below + 78), text, size=size, color=drawing.MUTED)
    return int(below + 112)


def _draw_subtypes(
    draw: ImageDraw.ImageDraw, report: ReadingReport, classes: list[IchSubtype], place: tuple[int, int, int]
) -> int:
    """Bar per subtype; where the panes show subtypes in colours, the bars have those and the thresholds ticks."""
    left, top, right = place
    if not report.finding.subtypes:
        return top
    points = report.finding.algorithm.operating_points
    ticks = (points.sensitive, points.high_confidence) if classes else ()
    below = _title(draw, left, top, "Types of hemorrhage")
    for n, (subtype, score) in enumerate(sorted(report.finding.subtypes.items(), key=lambda s: -s[1])):
        y = below + 24 * n + 10
        color = drawing.class_color(subtype, classes) if classes else score_color(report, score)
        drawing.write(draw, (left, y), SUBTYPE_NAME[subtype], size=16, anchor="lm")
        drawing.bar(draw, (left + 140, y - 5, right - 56, y + 5), score, color, ticks=ticks)
        drawing.write(draw, (right, y), percent_text(score), size=16, anchor="rm")
    return int(below + 24 * len(report.finding.subtypes) + 16)


def _draw_profile(
    draw: ImageDraw.ImageDraw, report: ReadingReport, shown: _Shown, box: tuple[int, int, int, int]
) -> None:
    """One bar per slice, the highest slice on top, as the head stands."""
    left, top, right, bottom = box
    start = int(_title(draw, left, top, "Hemorrhage per slice, vertex on top"))
    scores = [s.probabilities[IchSubtype.ANY] for s in report.finding.slices]
    step = (bottom - start) / len(scores)
    # Hundreds of thin slices have less than a pixel each: then the highest of those that share a pixel
    # counts.
    bars = min(len(scores), (bottom - start) // 2)
    track = left + 16
    draw.rectangle((track, start, right, bottom), fill=drawing.PANEL)
    for n, members in enumerate(np.array_split(np.arange(len(scores))[::-1], bars)):
        score = max(scores[i] for i in members)
        y = start + (bottom - start) * n / bars
        thick = max(1.0, (bottom - start) / bars - 1)
        if score > 0:
            draw.rectangle(
                (track, y, track + max(1.0, score * (right - track)), y + thick - 1),
                fill=score_color(report, score),
            )
    for index in shown:
        y = start + step * (len(scores) - index - 0.5)
        draw.polygon([(left, y - 4), (left + 9, y), (left, y + 4)], fill=drawing.TEXT)
    x = track + report.finding.algorithm.operating_points.sensitive * (right - track)
    draw.line((x, start, x, bottom), fill=drawing.TEXT)


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    report: ReadingReport,
    shown: _Shown,
    classes: list[IchSubtype],
    corner: tuple[int, int],
) -> int:
    """Say what the signs of the panes mean, from the bottom up; return where the legend begins."""
    left, bottom = corner
    drawing.point_marker(draw, left + 11, bottom - 14, 6, drawing.TEXT, 1)
    drawing.write(draw, (left + 30, bottom - 14), "place that the model points at", size=15, anchor="lm")
    top = bottom - 30
    with_maps = [s for index, s in shown.items() if report.finding.slices[index].likelihood_maps]
    joint = any(sketch.is_joint for sketch in with_maps)
    if classes:
        top = _draw_class_legend(draw, classes, joint, left, top)
    # Heat is explained where there is some, and where there is no map at all: then it is what is not there.
    if not joint or not all(sketch.is_joint for sketch in with_maps):
        top = _draw_level_legend(draw, left, top)
    draw.polygon([(left, top - 19), (left + 9, top - 15), (left, top - 11)], fill=drawing.TEXT)
    drawing.write(draw, (left + 18, top - 15), "shown; line: sensitive threshold", size=15, anchor="lm")
    return top - 24


def _draw_level_legend(draw: ImageDraw.ImageDraw, left: int, bottom: int) -> int:
    top = bottom - 44
    drawing.write(draw, (left, top + 10), "Likelihood contours", size=15, anchor="lm")
    x = left
    for level, color in drawing.LEVELS:
        draw.line((x, top + 34, x + 22, top + 34), fill=color, width=4)
        drawing.write(draw, (x + 28, top + 34), percent_text(level), size=15, anchor="lm")
        x += 82
    return top


def _draw_class_legend(
    draw: ImageDraw.ImageDraw, classes: list[IchSubtype], with_maps: bool, left: int, bottom: int
) -> int:
    lines = len(classes) + with_maps
    top = bottom - 20 * lines - 4
    for n, subtype in enumerate(classes):
        y = top + 20 * n + 10
        draw.line((left, y, left + 22, y), fill=drawing.CLASS_COLOR[subtype], width=4)
        drawing.write(draw, (left + 30, y), class_text(subtype), size=15, anchor="lm")
    if with_maps:
        at = (left, top + 20 * len(classes) + 10)
        drawing.write(draw, at, f"Contours: {levels_text()}", size=15, anchor="lm")
    return top


def _draw_notes(draw: ImageDraw.ImageDraw, report: ReadingReport, left: int, right: int, bottom: int) -> int:
    """Caveats of the input, as many as there is room for, and the algorithm; return where they begin."""
    lines = [(line, drawing.TEXT) for line in _caveat_lines(report, right - left)]
    algorithm = drawing.wrap(algorithm_line(report), size=14, width=right - left)
    lines.extend((line, drawing.MUTED) for line in algorithm[:4])
    lines.append(("Brain window L 40 W 80", drawing.MUTED))
    top = bottom - 19 * len(lines)
    for n, (line, color) in enumerate(lines):
        drawing.write(draw, (left, top + 19 * n), line, size=14, color=color)
    if report.caveats:
        top -= 26
        drawing.write(draw, (left, top), "Caveats of the input", size=16, color=drawing.YELLOW)
    return top - 12


def _caveat_lines(report: ReadingReport, width: int) -> list[str]:
    """Wrap the caveats; those that do not fit as a whole are counted, and stand in the structured report."""
    lines: list[str] = []
    for n, caveat in enumerate(report.caveats):
        wrapped = drawing.wrap(caveat, size=14, width=width)
        # The last line is kept for the count; of a first caveat that is too long the beginning is shown.
        room = _MOST_CAVEAT_LINES - 1 - len(lines)
        if len(wrapped) > room:
            shown = wrapped[:room] if n == 0 else []
            more = len(report.caveats) - n
            return [*lines, *shown, f"{more} more, see the structured report."]
        lines += wrapped
    return lines
