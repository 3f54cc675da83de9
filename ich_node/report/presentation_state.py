"""The findings as a Grayscale Softcopy Presentation State (PS3.3 A.33.1): lines and letters that a viewer lays over the
original slices and that a person turns on and off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from highdicom.base import SOPClass
from highdicom.color import CIELabColor
from highdicom.content import ModalityLUTTransformation
from highdicom.pr import (
    AnnotationUnitsValues,
    GraphicLayer,
    GraphicObject,
    GraphicTypeValues,
    SoftcopyVOILUTTransformation,
    TextJustificationValues,
    TextObject,
)
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, GrayscaleSoftcopyPresentationStateStorage
from pydicom.valuerep import DSfloat

from ich_node.findings import IchSubtype, Localization, SliceFinding
from ich_node.report import drawing
from ich_node.report.attributes import numbers, text
from ich_node.report.contours import CLASS_LEVELS, Contour
from ich_node.report.header import choose_character_set, copy_identity, order_items, stamp
from ich_node.report.key_object_selection import flagged_slices
from ich_node.report.reading_report import MANUFACTURER, ReadingReport
from ich_node.report.sketch import SliceSketch, sketch_slice
from ich_node.report.uids import device_uid, result_uid
from ich_node.report.wording import ABBREVIATION, DISCLAIMER, SUBTYPE_NAME, percent_text, series_description

SERIES_NUMBER = 9905
_CONTENT_LABEL = "ICH AI"
_MOST_POINTS = 8191
"""Points of one line: Explicit VR gives Graphic Data (0070,0022) a length of 16 bits, and a point takes 8 bytes."""
_DASHES = 0x00FF00FF
"""Line Pattern (0070,0284): 8 of 16 units drawn."""
_LETTER_HEIGHT = 1 / 36
"""Of the slice's height."""
_LETTER_WIDTH = 0.6
"""Of a letter's height."""
_SLICE_TEXT_BOX = (0.02, 0.90, 0.98, 0.99)
"""Left, top, right, bottom as shares of the displayed area: what is said of the whole slice stands at its foot."""


_HU_RESCALE_TYPES = ("", "HU", "HU_MOD", "US")
"""Rescale Type (0028,1054) of images that are read as HU."""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A graphic layer (PS3.3 C.10.7): what a viewer turns on and off as one."""

    name: str
    """Graphic Layer (0070,0002), at most 16 capitals, digits and spaces."""
    description: str
    color: drawing.Color


_LEVEL_LAYER = {
    level: _Layer(
        name=f"LIKELIHOOD {round(100 * level)}",
        description=f"Likelihood of any hemorrhage from {percent_text(level)}",
        color=color,
    )
    for level, color in drawing.LEVELS
}
"""For slices with the likelihood of any hemorrhage alone: a colour per level."""
_CLASS_LAYER = {
    subtype: _Layer(
        name=ABBREVIATION[subtype],
        description=f"{SUBTYPE_NAME[subtype]}: dashed from {percent_text(CLASS_LEVELS[0])}, "
        f"solid {percent_text(CLASS_LEVELS[1])}",
        color=drawing.CLASS_COLOR[subtype],
    )
    for subtype in IchSubtype
}
"""For slices with several classes: a colour per class."""
_PLACES = _Layer(name="PLACES", description="Places that the model points at", color=drawing.TEXT)
_SLICE = _Layer(name="SLICE", description="Probability of the slice", color=drawing.TEXT)
_LAYERS = (*_LEVEL_LAYER.values(), *_CLASS_LAYER.values(), _PLACES, _SLICE)
"""From the bottom up."""


@dataclass(frozen=True, kw_only=True)
class _Caption:
    """Letters beside a thing on the slice."""

    layer: _Layer
    text: str
    at: tuple[float, float]
    """Right end of the thing, x and y in image coordinates."""


def build_presentation_state(report: ReadingReport) -> Dataset | None:
    r"""Draw one reading on its source slices: contours, places and probabilities of every suspicious slice.

    Contours are those of the overlays, at the same likelihoods, in the same colours. Graphic Annotation Units PIXEL
    are the image coordinates of `Localization`: the top left corner of the first pixel is 0\0 (PS3.3 C.10.5). The
    slices are shown whole, in the brain window; where they do not share one rescale that is known, the grayscale
    transformations are left out, since a presentation state has one modality LUT for all of its images. UIDs and bytes
    follow from the report alone.

    Returns
    -------
    pydicom.Dataset or None
        Grayscale Softcopy Presentation State with file meta, Explicit VR Little Endian, ready for
        ``save_as(path, enforce_file_format=True)``; ``None`` where the study is not flagged.
    """
    indices = sorted(flagged_slices(report))
    if not indices:
        return None
    state = _head(report)
    series = Dataset()
    series.SeriesInstanceUID = report.series_instance_uid
    series.ReferencedImageSequence = _references(report, indices)
    state.ReferencedSeriesSequence = [series]
    annotations = [annotation for index in indices for annotation in _annotations(report, index)]
    state.GraphicAnnotationSequence = annotations
    state.GraphicLayerSequence = _layers({str(annotation.GraphicLayer) for annotation in annotations})
    state.DisplayedAreaSelectionSequence = [_displayed_area(report, indices[0])]
    _add_grayscale(report, indices, state)
    choose_character_set(report.source_images[0], state)
    return state


def _head(report: ReadingReport) -> Dataset:
    """Everything of a presentation state that is not about its images."""
    state = SOPClass(
        study_instance_uid=report.study_instance_uid,
        series_instance_uid=result_uid(report, "gsps-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(report, "gsps"),
        sop_class_uid=GrayscaleSoftcopyPresentationStateStorage,
        instance_number=1,
        modality="PR",
        manufacturer=MANUFACTURER,
        series_description=series_description(report, "annotations"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    source = report.source_images[0]
    copy_identity(source, state)
    requests = order_items(source)
    if requests:
        state.RequestAttributesSequence = requests
    state.BodyPartExamined = "HEAD"
    state.DeviceUID = device_uid(report)
    stamp(report, state)
    state.PresentationCreationDate, state.PresentationCreationTime = state.ContentDate, state.ContentTime
    del state.ContentDate, state.ContentTime
    state.ContentLabel = _CONTENT_LABEL
    state.ContentDescription = DISCLAIMER
    state.ContentCreatorName = None
    return state


def _references(report: ReadingReport, indices: Sequence[int]) -> list[Dataset]:
    """Items of Referenced Image Sequence (0008,1140): each object once, with its frames where it has several."""
    items: dict[str, Dataset] = {}
    frames: dict[str, list[int]] = {}
    for index in indices:
        image, uid = report.source_images[index], str(report.source_images[index].SOPInstanceUID)
        item = items.setdefault(uid, Dataset())
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = str(image.SOPClassUID), uid
        number = report.frame_number(index)
        if number is not None:
            frames.setdefault(uid, []).append(number)
            item.ReferencedFrameNumber = frames[uid]
    return list(items.values())


def _annotations(report: ReadingReport, index: int) -> Iterator[Dataset]:
    """Items of Graphic Annotation Sequence (0070,0001) of one slice, from the lowest layer up."""
    finding = report.finding.slices[index]
    rows, columns = report.hu.shape[1:]
    limit = np.array([columns, rows], dtype=np.float64)
    drawn = list(_drawn_contours(sketch_slice(report, index))) if finding.likelihood_maps else []
    graphics = [*_contour_graphics(drawn, limit), *_place_graphics(finding.localizations, limit)]
    captions = [*_contour_captions(drawn, finding), *_place_captions(finding.localizations)]
    texts = [*_written(captions, limit), (_SLICE, _slice_text(finding))]
    for layer in _LAYERS:
        own_graphics = [graphic for where, graphic in graphics if where == layer]
        own_texts = [written for where, written in texts if where == layer]
        if not own_graphics and not own_texts:
            continue
        annotation = Dataset()
        annotation.ReferencedImageSequence = _references(report, [index])
        annotation.GraphicLayer = layer.name
        if own_graphics:
            annotation.GraphicObjectSequence = own_graphics
        if own_texts:
            annotation.TextObjectSequence = own_texts
        yield annotation


def _drawn_contours(sketch: SliceSketch) -> Iterator[tuple[_Layer, Contour]]:
    """Yield the contours that the slice's overlay has."""
    for subtype, lines in sketch.contours.items():
        for contour in lines:
            yield _CLASS_LAYER[subtype] if sketch.is_joint else _LEVEL_LAYER[contour.level], contour


def _contour_graphics(
    drawn: Iterable[tuple[_Layer, Contour]], limit: npt.NDArray[np.float64]
) -> Iterator[tuple[_Layer, GraphicObject]]:
    for layer, contour in drawn:
        # Contours are closed around the image's edge, half a pixel outside of it.
        line = np.clip(contour.line, 0, limit)
        dashed = layer in _CLASS_LAYER.values() and contour.level == CLASS_LEVELS[0]
        for start in range(0, len(line) - 1, _MOST_POINTS - 1):
            part = line[start : start + _MOST_POINTS]
            yield layer, _graphic(GraphicTypeValues.POLYLINE, part, layer.color, dashed=dashed)


def _place_graphics(
    places: Iterable[Localization], limit: npt.NDArray[np.float64]
) -> Iterator[tuple[_Layer, GraphicObject]]:
    for place in places:
        if place.kind == "point":
            graphic_type, outline = GraphicTypeValues.POINT, [place.coordinates]
        else:
            left, top, right, bottom = place.coordinates
            graphic_type = GraphicTypeValues.POLYLINE
            outline = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        inside = np.clip(np.asarray(outline, dtype=np.float64), 0, limit)
        yield _PLACES, _graphic(graphic_type, inside, drawing.CLASS_COLOR[place.subtype])


def _graphic(
    graphic_type: GraphicTypeValues,
    points: npt.NDArray[np.float64],
    color: drawing.Color,
    *,
    dashed: bool = False,
) -> GraphicObject:
    """Return an item of Graphic Object Sequence (0070,0009); ``points`` (points, 2) float64 in image coordinates."""
    graphic = GraphicObject(graphic_type=graphic_type, graphic_data=points, units=AnnotationUnitsValues.PIXEL)
    if graphic_type is GraphicTypeValues.POINT:
        del graphic.GraphicFilled  # is for what can be filled
    style = Dataset()
    style.PatternOnColorCIELabValue = _cielab(color)
    style.PatternOnOpacity = 1.0
    style.LineThickness = 1.0
    style.LineDashingStyle = "DASHED" if dashed else "SOLID"
    if dashed:
        style.LinePattern = _DASHES
    style.ShadowStyle = "OFF"
    style.ShadowOffsetX = style.ShadowOffsetY = style.ShadowOpacity = 0.0
    style.ShadowColorCIELabValue = _cielab(drawing.BACKGROUND)
    graphic.LineStyleSequence = [style]
    return graphic


def _contour_captions(drawn: Sequence[tuple[_Layer, Contour]], finding: SliceFinding) -> Iterator[_Caption]:
    """Letters for the largest contour of each class: colour is never the only sign, least of all in grayscale.

    A class that has a place has its letters there.
    """
    for subtype, layer in _CLASS_LAYER.items():
        lines = [contour.line for where, contour in drawn if where == layer]
        if lines and not any(place.subtype is subtype for place in finding.localizations):
            largest = max(lines, key=lambda line: float(np.prod(np.ptp(line, axis=0))))
            x, y = largest[np.argmax(largest[:, 0])].tolist()
            yield _Caption(layer=layer, text=layer.name, at=(x, y))


def _place_captions(places: Iterable[Localization]) -> Iterator[_Caption]:
    for place in places:
        letters = "" if place.subtype is IchSubtype.ANY else f"{ABBREVIATION[place.subtype]} "
        # A point itself, a box's corner at the top right.
        at = (place.coordinates[-2], place.coordinates[1])
        yield _Caption(layer=_PLACES, text=f"{letters}{percent_text(place.score)}", at=at)


def _written(
    captions: Iterable[_Caption], limit: npt.NDArray[np.float64]
) -> Iterator[tuple[_Layer, TextObject]]:
    """Put captions to the right of what they name, each below those whose place it would take."""
    columns, rows = limit.tolist()
    height = rows * _LETTER_HEIGHT
    taken: list[drawing.Box] = []
    for caption in sorted(captions, key=lambda caption: caption.at[::-1]):
        width = min(columns, height * _LETTER_WIDTH * (len(caption.text) + 1))
        left = min(max(caption.at[0] + height / 2, 0.0), columns - width)
        top = caption.at[1] - height / 2
        while any(_overlap((left, top, left + width, top + height), box) for box in taken):
            top += height / 2
        taken.append((left, top, left + width, top + height))
        top = min(max(top, 0.0), rows - height)
        yield (
            caption.layer,
            TextObject(
                text_value=caption.text,
                units=AnnotationUnitsValues.PIXEL,
                bounding_box=(left, top, left + width, top + height),
                text_justification=TextJustificationValues.LEFT,
            ),
        )


def _overlap(a: drawing.Box, b: drawing.Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _slice_text(finding: SliceFinding) -> TextObject:
    probability = percent_text(finding.probabilities[IchSubtype.ANY])
    return TextObject(
        text_value=f"Hemorrhage {probability}\r\n{DISCLAIMER}",
        units=AnnotationUnitsValues.DISPLAY,
        bounding_box=_SLICE_TEXT_BOX,
        text_justification=TextJustificationValues.LEFT,
    )


def _layers(names: set[str]) -> list[GraphicLayer]:
    """Items of Graphic Layer Sequence (0070,0060): the layers that something is drawn in."""
    used = [layer for layer in _LAYERS if layer.name in names]
    items = []
    for order, layer in enumerate(used, start=1):
        item = GraphicLayer(
            layer_name=layer.name,
            order=order,
            description=layer.description,
            display_color=CIELabColor.from_rgb(*layer.color),
        )
        item.GraphicLayerRecommendedDisplayGrayscaleValue = 0xFFFF
        items.append(item)
    return items


def _cielab(color: drawing.Color) -> list[int]:
    """CIELab value as PS3.3 C.10.7.1.1 encodes it, three numbers of 16 bits."""
    return list(CIELabColor.from_rgb(*color).value)


def _displayed_area(report: ReadingReport, index: int) -> Dataset:
    """Return the whole slice (PS3.3 C.10.4), whose pixels are counted from 1 there."""
    rows, columns = report.hu.shape[1:]
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [columns, rows]
    area.PresentationSizeMode = "SCALE TO FIT"
    spacing = numbers(report.source_images[index], "PixelSpacing", 2)
    if spacing is not None and min(spacing) > 0:
        area.PresentationPixelSpacing = [DSfloat(value, auto_format=True) for value in spacing]
    else:
        area.PresentationPixelAspectRatio = [1, 1]
    return area


def _add_grayscale(report: ReadingReport, indices: Sequence[int], state: Dataset) -> None:
    """Add the modality LUT of the images and the brain window.

    What a presentation state lacks is an identity, also where its images have it (PS3.4 N.2): a window without the
    modality LUT would be one on stored values.
    """
    # High CT numbers are bright whatever Photometric Interpretation says, which is overridden (PS3.4 N.2.1.4).
    state.PresentationLUTShape = "IDENTITY"
    rescales = {_rescale(report.source_images[index]) for index in indices}
    rescale = rescales.pop()
    if rescales or rescale is None:
        return
    slope, intercept = rescale
    state.update(
        ModalityLUTTransformation(rescale_intercept=intercept, rescale_slope=slope, rescale_type="HU")
    )
    window = SoftcopyVOILUTTransformation(
        window_center=[drawing.BRAIN_WINDOW_CENTER_HU],
        window_width=[drawing.BRAIN_WINDOW_WIDTH_HU],
        window_explanation=["BRAIN"],
        voi_lut_function="LINEAR_EXACT",
    )
    state.SoftcopyVOILUTSequence = [window]


def _rescale(image: Dataset) -> tuple[float, float] | None:
    """Rescale Slope (0028,1053) and Rescale Intercept (0028,1052); ``None`` where they give no HU."""
    slope, intercept = numbers(image, "RescaleSlope", 1), numbers(image, "RescaleIntercept", 1)
    if slope is None or intercept is None or slope[0] == 0:
        return None
    return (slope[0], intercept[0]) if text(image, "RescaleType") in _HU_RESCALE_TYPES else None
