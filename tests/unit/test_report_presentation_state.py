"""The presentation state lays over the source slices what the overlays show, where they show it."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from highdicom.color import CIELabColor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import EnhancedCTImageStorage
from pydicom.valuerep import PersonName
from scipy import ndimage

from ich_node.findings import IchSubtype, Localization, SliceFinding
from ich_node.report import ReadingReport, drawing
from ich_node.report.contours import CLASS_LEVELS
from ich_node.report.key_object_selection import flagged_slices
from ich_node.report.overlay import HEADER_HEIGHT, render_overlay
from ich_node.report.presentation_state import build_presentation_state
from ich_node.report.viewport import whole_slice
from ich_node.report.wording import ABBREVIATION, DISCLAIMER
from tests.enhanced_builders import enhanced_report
from tests.report_builders import make_report

JAPANESE_NAME = {
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    "PatientName": PersonName("Yamada^Tarou=山田^太郎", convert_encodings(["", "ISO 2022 IR 87"])),
}
ODD_BYTES = st.one_of(
    st.binary(max_size=24),
    st.sampled_from([b"abc", b"1.5", b"1\\2", b"-", b"nan", b"1e400", b"\\\\", b"0", b" " * 70, b"\x1b$B"]),
)


def encoded(dataset: Dataset | None) -> bytes:
    assert dataset is not None
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def state_of(report: ReadingReport) -> Dataset:
    """The presentation state as a PACS gives it back."""
    return pydicom.dcmread(io.BytesIO(encoded(build_presentation_state(report))))


def with_slice(report: ReadingReport, finding: SliceFinding) -> ReadingReport:
    """A report whose middle slice, the most suspicious one, has another finding."""
    slices = list(report.finding.slices)
    slices[len(slices) // 2] = finding
    return replace(report, finding=replace(report.finding, slices=tuple(slices)))


def middle(report: ReadingReport) -> int:
    return len(report.finding.slices) // 2


def annotations_on(state: Dataset, report: ReadingReport, index: int) -> list[Dataset]:
    uid = report.source_images[index].SOPInstanceUID
    return [
        annotation
        for annotation in state.GraphicAnnotationSequence
        if [item.ReferencedSOPInstanceUID for item in annotation.ReferencedImageSequence] == [uid]
    ]


def points_of(graphic: Dataset) -> npt.NDArray[np.float64]:
    """(points, 2) float64, x and y as stored."""
    points = np.reshape(np.asarray(graphic.GraphicData, dtype=np.float64), (-1, 2))
    assert len(points) == graphic.NumberOfGraphicPoints
    assert (graphic.GraphicDimensions, graphic.GraphicAnnotationUnits) == (2, "PIXEL")
    return points


def graphics_on(state: Dataset, report: ReadingReport, index: int) -> Iterator[tuple[str, Dataset]]:
    """Layer and item of every graphic of a slice."""
    for annotation in annotations_on(state, report, index):
        for graphic in annotation.get("GraphicObjectSequence", []):
            yield annotation.GraphicLayer, graphic


def texts_on(state: Dataset, report: ReadingReport, index: int) -> Iterator[tuple[str, Dataset]]:
    for annotation in annotations_on(state, report, index):
        for written in annotation.get("TextObjectSequence", []):
            yield annotation.GraphicLayer, written


def rgb(cielab: object) -> list[int]:
    color = CIELabColor(0, 0, 0)
    values = np.asarray(cielab, dtype=np.float64) / 0xFFFF
    color = CIELabColor(values[0] * 100, values[1] * 255 - 128, values[2] * 255 - 128)
    return list(color.to_rgb(clip=True))


def without_places(report: ReadingReport) -> ReadingReport:
    found = report.finding.slices[middle(report)]
    return with_slice(report, replace(found, localizations=()))


def test_a_study_that_is_not_flagged_has_none() -> None:
    assert build_presentation_state(make_report(0.1)) is None


@pytest.mark.parametrize("with_subtypes", [True, False])
def test_the_same_report_gives_the_same_bytes_and_another_run_another_object(with_subtypes: bool) -> None:
    first, again = (
        encoded(build_presentation_state(make_report(0.9, with_subtypes=with_subtypes))) for _ in range(2)
    )
    assert first == again
    other = state_of(make_report(0.9, with_subtypes=with_subtypes, run_number=2))
    assert other.SOPInstanceUID != pydicom.dcmread(io.BytesIO(first)).SOPInstanceUID


def test_it_names_the_suspicious_slices_and_no_others() -> None:
    report = make_report(0.9)
    state = state_of(report)
    (series,) = state.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == report.series_instance_uid
    named = [str(item.ReferencedSOPInstanceUID) for item in series.ReferencedImageSequence]
    expected = [str(report.source_images[index].SOPInstanceUID) for index in sorted(flagged_slices(report))]
    assert named == expected
    assert 1 < len(named) < len(report.source_images)
    assert not any("ReferencedFrameNumber" in item for item in series.ReferencedImageSequence)
    drawn_on = {
        str(item.ReferencedSOPInstanceUID)
        for annotation in state.GraphicAnnotationSequence
        for item in annotation.ReferencedImageSequence
    }
    assert drawn_on == set(expected)


def test_a_flagged_study_without_a_suspicious_slice_shows_the_most_suspicious_one() -> None:
    report = make_report(0.3)
    report = replace(report, finding=replace(report.finding, suspicion=0.5))
    state = state_of(report)
    (item,) = state.ReferencedSeriesSequence[0].ReferencedImageSequence
    assert item.ReferencedSOPInstanceUID == report.source_images[middle(report)].SOPInstanceUID
    assert [written.UnformattedTextValue for _, written in texts_on(state, report, middle(report))] == [
        f"Hemorrhage 30 %\r\n{DISCLAIMER}"
    ]


@pytest.mark.parametrize("with_subtypes", [True, False])
def test_contours_lie_where_the_likelihood_has_their_level(with_subtypes: bool) -> None:
    report = without_places(make_report(0.9, with_subtypes=with_subtypes))
    maps = report.finding.slices[middle(report)].likelihood_maps
    subtype_of = {ABBREVIATION[subtype]: subtype for subtype in IchSubtype}
    levels = set()
    for layer, graphic in graphics_on(state_of(report), report, middle(report)):
        x, y = points_of(graphic).T
        likelihood = maps[subtype_of.get(layer, IchSubtype.ANY)]
        # Image coordinates have the centre of the first pixel at 0.5.
        values = ndimage.map_coordinates(likelihood, [y - 0.5, x - 0.5], order=1)
        level = round(float(values.mean()), 2)
        assert values == pytest.approx(level, abs=0.01)
        levels.add((layer, level))
        dashed = graphic.LineStyleSequence[0].LineDashingStyle == "DASHED"
        assert dashed is (with_subtypes and level == CLASS_LEVELS[0])
    if with_subtypes:
        assert levels == {("IPH", 0.25), ("IPH", 0.5), ("SAH", 0.25)}
    else:
        assert levels == {("LIKELIHOOD 25", 0.25), ("LIKELIHOOD 50", 0.5), ("LIKELIHOOD 75", 0.75)}


@pytest.mark.parametrize("with_subtypes", [True, False])
def test_contours_lie_where_the_overlay_draws_them(with_subtypes: bool) -> None:
    """Both are drawn, colour by colour, and compared pixel by pixel."""
    report = without_places(make_report(0.9, with_subtypes=with_subtypes))
    index = middle(report)
    view = whole_slice(report)
    page = np.asarray(render_overlay(report, index))[HEADER_HEIGHT : HEADER_HEIGHT + view.height]
    state = state_of(report)
    # Legend and score bars lie below, the orientation letters at the edges.
    rows, columns = page.shape[:2]
    part = np.s_[rows // 10 : 3 * rows // 5, 2 * columns // 5 : 9 * columns // 10]
    colors = {
        tuple(rgb(layer.GraphicLayerRecommendedDisplayCIELabValue)) for layer in state.GraphicLayerSequence
    }
    compared = 0
    for color in colors - {tuple(drawing.TEXT)}:
        picture = Image.new("L", (columns, rows))
        draw = ImageDraw.Draw(picture)
        for _, graphic in graphics_on(state, report, index):
            if tuple(rgb(graphic.LineStyleSequence[0].PatternOnColorCIELabValue)) == color:
                # 0\0 is the top left corner of the slice, Columns\Rows the bottom right one.
                line = points_of(graphic) * [columns / report.hu.shape[2], rows / report.hu.shape[1]]
                draw.line([tuple(at) for at in line.tolist()], fill=255, width=2)
        ours = np.asarray(picture)[part] > 0
        near = np.abs(page.astype(int) - color).max(axis=-1) <= 2
        theirs = near[part]
        if not theirs.any():
            continue
        compared += 1
        away = ndimage.distance_transform_edt(~ours)[theirs]
        # Letters of the overlay have the same colour; they lie beside the contours.
        assert np.mean(away <= 2) > 0.8
        assert np.median(away) <= 1
        # An overlay dashes the lowest level, and colours take turns where contours lie on each other.
        assert np.mean(ndimage.distance_transform_edt(~theirs)[ours] <= 8) > 0.95
    assert compared == (2 if with_subtypes else 3)


def test_places_lie_at_their_image_coordinates_in_the_colour_of_their_class() -> None:
    report = make_report(0.9)
    places = report.finding.slices[middle(report)].localizations
    state = state_of(report)
    found = [g for layer, g in graphics_on(state, report, middle(report)) if layer == "PLACES"]
    point, box = places
    assert [graphic.GraphicType for graphic in found] == ["POINT", "POLYLINE"]
    assert points_of(found[0]).tolist() == [pytest.approx(point.coordinates)]
    corners = points_of(found[1])
    assert corners.min(axis=0).tolist() == pytest.approx(box.coordinates[:2])
    assert corners.max(axis=0).tolist() == pytest.approx(box.coordinates[2:])
    assert (corners[0] == corners[-1]).all()
    for graphic, place in zip(found, places, strict=True):
        color = rgb(graphic.LineStyleSequence[0].PatternOnColorCIELabValue)
        assert color == pytest.approx(drawing.CLASS_COLOR[place.subtype], abs=2)


def test_texts_give_probability_class_and_disclaimer() -> None:
    report = make_report(0.9)
    texts = [
        (layer, t.UnformattedTextValue) for layer, t in texts_on(state_of(report), report, middle(report))
    ]
    assert set(texts) == {
        ("IPH", "IPH"),
        ("SAH", "SAH"),
        ("PLACES", "90 %"),
        ("PLACES", "IVH 45 %"),
        ("SLICE", f"Hemorrhage 90 %\r\n{DISCLAIMER}"),
    }
    assert len(texts) == 5


def test_layers_are_those_in_use_in_the_colours_of_the_overlays() -> None:
    state = state_of(make_report(0.9))
    layers = {layer.GraphicLayer: layer for layer in state.GraphicLayerSequence}
    assert list(layers) == ["IPH", "SAH", "PLACES", "SLICE"]
    assert [layer.GraphicLayerOrder for layer in layers.values()] == [1, 2, 3, 4]
    assert {annotation.GraphicLayer for annotation in state.GraphicAnnotationSequence} == set(layers)
    for subtype in (IchSubtype.INTRAPARENCHYMAL, IchSubtype.SUBARACHNOID):
        color = rgb(layers[ABBREVIATION[subtype]].GraphicLayerRecommendedDisplayCIELabValue)
        assert color == pytest.approx(drawing.CLASS_COLOR[subtype], abs=2)
    levels = state_of(make_report(0.9, with_subtypes=False)).GraphicLayerSequence
    for layer, (_, expected) in zip(levels, drawing.LEVELS, strict=False):
        assert rgb(layer.GraphicLayerRecommendedDisplayCIELabValue) == pytest.approx(expected, abs=2)


COORDINATE = st.floats(-40, 110, allow_nan=False, width=32)
PLACE = st.builds(
    lambda kind, subtype, a, b, c, d, score: Localization(
        kind=kind,
        subtype=subtype,
        coordinates=(a, b) if kind == "point" else (min(a, c), min(b, d), max(a, c), max(b, d)),
        score=score,
    ),
    st.sampled_from(["point", "box"]),
    st.sampled_from(list(IchSubtype)),
    *([COORDINATE] * 4),
    st.floats(0, 1),
)


@settings(max_examples=40)
@given(
    places=st.lists(PLACE, max_size=8),
    center=st.tuples(COORDINATE, COORDINATE),
    shape=st.sampled_from([(1, 64, 48), (1, 8, 70), (1, 40, 3)]),
)
def test_whatever_the_finding_all_lies_on_the_slice(
    places: list[Localization], center: tuple[float, float], shape: tuple[int, int, int]
) -> None:
    report = make_report(0.9, shape=shape)
    rows, columns = np.mgrid[: shape[1], : shape[2]] + 0.5
    near = np.exp(-((columns - center[0]) ** 2 + (rows - center[1]) ** 2) / 200).astype(np.float32)
    maps = {IchSubtype.ANY: near, IchSubtype.SUBDURAL: near * np.float32(0.7)}
    finding = replace(report.finding.slices[0], localizations=tuple(places), likelihood_maps=maps)
    report = with_slice(report, finding)
    state = state_of(report)
    limit = [shape[2], shape[1]]
    graphics = list(graphics_on(state, report, 0))
    assert sum(layer == "PLACES" for layer, _ in graphics) == len(places)
    for _, graphic in graphics:
        points = points_of(graphic)
        assert (points >= 0).all()
        assert (points <= limit).all()
    for layer, written in texts_on(state, report, 0):
        corner, opposite = written.BoundingBoxTopLeftHandCorner, written.BoundingBoxBottomRightHandCorner
        end = [1, 1] if layer == "SLICE" else limit
        for low, high, last in zip(corner, opposite, end, strict=True):
            assert 0 <= low < high <= last * (1 + 1e-6)


def test_captions_do_not_cover_each_other() -> None:
    report = make_report(0.9, shape=(1, 512, 512))
    places = tuple(
        Localization(kind="point", subtype=subtype, coordinates=(250.0 + n, 200.0 + n), score=0.8)
        for n, subtype in enumerate(IchSubtype)
    )
    report = with_slice(report, replace(report.finding.slices[0], localizations=places))
    boxes = [
        (*written.BoundingBoxTopLeftHandCorner, *written.BoundingBoxBottomRightHandCorner)
        for layer, written in texts_on(state_of(report), report, 0)
        if layer != "SLICE"
    ]
    assert len(boxes) >= len(places)
    for n, a in enumerate(boxes):
        for b in boxes[:n]:
            assert min(a[2], b[2]) - max(a[0], b[0]) < 1e-3 or min(a[3], b[3]) - max(a[1], b[1]) < 1e-3


def test_a_line_too_long_for_one_element_comes_in_pieces_that_join() -> None:
    report = make_report(0.9, shape=(1, 256, 256), with_subtypes=False)
    comb = np.zeros((256, 256), np.float32)
    comb[4:250, 4:250:2] = 0.4
    comb[4, 4:250] = 0.4
    finding = replace(report.finding.slices[0], localizations=(), likelihood_maps={IchSubtype.ANY: comb})
    report = with_slice(report, finding)
    state = state_of(report)
    pieces = [points_of(g) for layer, g in graphics_on(state, report, 0) if layer == "LIKELIHOOD 25"]
    assert len(pieces) > 1
    assert all(g["GraphicData"].VR == "FL" for _, g in graphics_on(state, report, 0))
    for before, after in itertools.pairwise(pieces):
        assert before[-1].tolist() == after[0].tolist()
    assert pieces[0][0].tolist() == pieces[-1][-1].tolist()


@pytest.mark.parametrize("intercept", [-1024.0, -8192.0, 0.0])
def test_the_window_is_the_brain_window_on_hounsfield_units(intercept: float) -> None:
    state = state_of(make_report(0.9, header={"RescaleIntercept": intercept, "RescaleSlope": 1}))
    assert (float(state.RescaleIntercept), float(state.RescaleSlope)) == (intercept, 1.0)
    assert state.RescaleType == "HU"
    (window,) = state.SoftcopyVOILUTSequence
    assert (float(window.WindowCenter), float(window.WindowWidth)) == (40.0, 80.0)
    assert state.PresentationLUTShape == "IDENTITY"


@pytest.mark.parametrize("missing", ["RescaleIntercept", "RescaleSlope"])
def test_no_window_is_put_on_stored_values(missing: str) -> None:
    state = state_of(make_report(0.9, header={missing: None}))
    assert "SoftcopyVOILUTSequence" not in state
    assert "RescaleIntercept" not in state


def test_slices_of_unlike_rescale_have_no_common_window() -> None:
    report = make_report(0.9)
    report.source_images[middle(report)].RescaleIntercept = -1000
    assert "SoftcopyVOILUTSequence" not in state_of(report)
    report.source_images[0].RescaleIntercept = report.source_images[middle(report) + 1].RescaleIntercept
    assert "RescaleSlope" not in state_of(report)


def test_the_whole_slice_is_shown_in_its_proportions() -> None:
    report = make_report(0.9, shape=(3, 32, 64), header={"PixelSpacing": [0.5, 0.4]})
    (area,) = state_of(report).DisplayedAreaSelectionSequence
    assert area.DisplayedAreaTopLeftHandCorner == [1, 1]
    assert area.DisplayedAreaBottomRightHandCorner == [64, 32]
    assert [float(v) for v in area.PresentationPixelSpacing] == [0.5, 0.4]
    (area,) = state_of(make_report(0.9, header={"PixelSpacing": None})).DisplayedAreaSelectionSequence
    assert "PresentationPixelSpacing" not in area
    assert area.PresentationPixelAspectRatio == [1, 1]


@pytest.mark.parametrize("options", [{}, {"objects": 2}, {"objects": 3, "concatenated": True}])
def test_frames_are_told_apart(options: dict[str, int], tmp_path: Path) -> None:
    report = enhanced_report(tmp_path, **options)
    state = state_of(report)
    expected = {
        (str(report.source_images[i].SOPInstanceUID), report.frame_number(i)) for i in flagged_slices(report)
    }
    items = state.ReferencedSeriesSequence[0].ReferencedImageSequence
    assert len({item.ReferencedSOPInstanceUID for item in items}) == len(items)
    named = set()
    for item in items:
        assert item.ReferencedSOPClassUID == EnhancedCTImageStorage
        numbers = item["ReferencedFrameNumber"]
        values = numbers.value if numbers.VM > 1 else [numbers.value]
        named |= {(str(item.ReferencedSOPInstanceUID), int(number)) for number in values}
    assert named == expected
    drawn = set()
    for annotation in state.GraphicAnnotationSequence:
        (item,) = annotation.ReferencedImageSequence
        drawn.add((str(item.ReferencedSOPInstanceUID), int(item.ReferencedFrameNumber)))
    assert drawn == expected


def test_identity_is_that_of_the_images() -> None:
    report = make_report(0.9, header={**JAPANESE_NAME, "AccessionNumber": "A1"})
    before = [Dataset(image) for image in report.source_images]
    state = state_of(report)
    assert str(state.PatientName) == str(JAPANESE_NAME["PatientName"])
    assert state.SpecificCharacterSet == JAPANESE_NAME["SpecificCharacterSet"]
    assert (state.AccessionNumber, state.StudyInstanceUID) == ("A1", report.study_instance_uid)
    assert (state.Modality, state.SeriesNumber) == ("PR", 9905)
    assert state.ContentDescription == DISCLAIMER
    assert list(report.source_images) == before


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept", "RescaleType", "PixelSpacing"])
@settings(max_examples=15)
@given(value=ODD_BYTES)
def test_odd_bytes_in_the_headers_stop_nothing(keyword: str, value: bytes) -> None:
    report = make_report(0.9, shape=(1, 32, 32))
    tag = Tag(tag_for_keyword(keyword) or 0)
    for image in report.source_images:
        image[tag] = RawDataElement(tag, dictionary_VR(keyword), len(value), value, 0, False, True, True)
    with warnings.catch_warnings():
        # pydicom tells of the bytes that it cannot understand, which is what this test feeds it.
        warnings.simplefilter("ignore")
        assert len(state_of(report).GraphicAnnotationSequence) > 1
