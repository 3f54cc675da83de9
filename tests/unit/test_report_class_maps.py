"""Maps of several classes in one picture: each in its colour where it is, told apart without colour, named in the
legend.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw
from skimage.color import rgb2lab

from ich_node.findings import IchSubtype, Localization, SliceFinding
from ich_node.report import ReadingReport, build_secondary_captures, drawing
from ich_node.report.contours import class_contours, contours, grown
from ich_node.report.joint_maps import contour_labels
from ich_node.report.labels import Label, write_labels
from ich_node.report.overlay import FOOTER_HEIGHT, HEADER_HEIGHT, render_overlay
from ich_node.report.sketch import sketch_slice
from ich_node.report.slice_picture import render_slice
from ich_node.report.summary import render_summary
from ich_node.report.viewport import PAGE_WIDTH, whole_slice
from tests.report_builders import make_report

FloatArray = npt.NDArray[np.float32]
SUBTYPES = tuple(subtype for subtype in IchSubtype if subtype is not IchSubtype.ANY)
CORNER = {
    IchSubtype.EPIDURAL: (8, 8),
    IchSubtype.INTRAPARENCHYMAL: (8, 28),
    IchSubtype.INTRAVENTRICULAR: (8, 48),
    IchSubtype.SUBARACHNOID: (28, 8),
    IchSubtype.SUBDURAL: (28, 48),
    IchSubtype.ANY: (28, 28),
}
"""First row and column of each class's square."""
SIDE, SCALE = 8, 10
BRIGHTNESS_OF_BRAIN = (112, 112, 112)
# What people with protanopia, deuteranopia, tritanopia see: Machado, Oliveira, Fernandes 2009, severity 1.
COLOR_BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def square(subtype: IchSubtype, likelihood: float = 1.0) -> FloatArray:
    values = np.zeros((64, 64), np.float32)
    row, column = CORNER[subtype]
    values[row : row + SIDE, column : column + SIDE] = likelihood
    return values


def squares(classes: Collection[IchSubtype]) -> dict[IchSubtype, FloatArray]:
    """A map per class, those of other subtypes empty, as a model gives them."""
    return {s: square(s, 1.0 if s in classes else 0.0) for s in IchSubtype}


def dark_report(maps: Mapping[IchSubtype, FloatArray], places: Sequence[Localization] = ()) -> ReadingReport:
    """One slice of air without orientation: what is to be seen comes from the maps and the places."""
    report = make_report(0.9, shape=(1, 64, 64), header={"ImageOrientationPatient": None})
    finding = SliceFinding(
        probabilities=dict.fromkeys(IchSubtype, 0.9), localizations=tuple(places), likelihood_maps=maps
    )
    hu = np.full((1, 64, 64), -1000, np.float32)
    return replace(report, hu=hu, finding=replace(report.finding, slices=(finding,)))


def slice_picture(report: ReadingReport) -> npt.NDArray[np.uint8]:
    return np.asarray(render_slice(report, 0, whole_slice(report, width=64 * SCALE)))


def colored(picture: npt.NDArray[np.uint8], subtype: IchSubtype) -> npt.NDArray[np.bool_]:
    """Pixels that have exactly the colour of a class."""
    return np.all(picture == drawing.CLASS_COLOR[subtype], axis=-1)


def from_rim(subtype: IchSubtype, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """How far each picture pixel is outside (above 0) or inside the rim of a class's square, in picture pixels."""
    row, column = np.indices(shape) + 0.5
    top, left = CORNER[subtype][0] * SCALE, CORNER[subtype][1] * SCALE
    half = SIDE * SCALE / 2
    return np.maximum(abs(row - top - half), abs(column - left - half)) - half


@pytest.mark.parametrize("classes", [SUBTYPES[:1], SUBTYPES[1:4], SUBTYPES, tuple(IchSubtype)])
def test_each_class_has_its_colour_at_its_contour_and_nowhere_else(classes: Sequence[IchSubtype]) -> None:
    picture = slice_picture(dark_report(squares(classes)))
    for subtype in IchSubtype:
        own = colored(picture, subtype)
        if subtype not in classes:
            assert not own.any()
            continue
        away = from_rim(subtype, picture.shape[:2])
        assert own[abs(away) <= SCALE].sum() > 2 * SIDE * SCALE
        # Inside there is translucent fill alone; outside there are the letters, near.
        assert not own[away < -SCALE].any()
        assert not own[away > 70].any()
        assert picture[away < -SCALE].any() == (subtype is not IchSubtype.ANY)


@pytest.mark.parametrize(("likelihood", "dashed_only"), [(0.4, True), (1.0, False)])
def test_a_contour_is_solid_from_the_second_level_on(likelihood: float, dashed_only: bool) -> None:
    subtype = IchSubtype.SUBDURAL
    picture = slice_picture(dark_report({subtype: square(subtype, likelihood)}))
    row, column = CORNER[subtype]
    # A line along the right side, where no letters are, has gaps only if it is dashed.
    left = (column + SIDE) * SCALE - SCALE
    side = colored(picture, subtype)[(row + 1) * SCALE : (row + SIDE - 1) * SCALE, left : left + SCALE]
    assert side.any()
    assert bool(side.any(axis=1).all()) is not dashed_only


def test_where_two_classes_coincide_both_colours_are_seen() -> None:
    here = square(IchSubtype.SUBDURAL)
    picture = slice_picture(dark_report({IchSubtype.EPIDURAL: here, IchSubtype.SUBDURAL: here}))
    near = abs(from_rim(IchSubtype.SUBDURAL, picture.shape[:2])) <= SCALE
    counts = [colored(picture, s)[near].sum() for s in (IchSubtype.EPIDURAL, IchSubtype.SUBDURAL)]
    assert min(counts) > 0.3 * sum(counts)
    middle = (
        (CORNER[IchSubtype.SUBDURAL][0] + SIDE // 2) * SCALE,
        (CORNER[IchSubtype.SUBDURAL][1] + SIDE // 2) * SCALE,
    )
    alone = slice_picture(dark_report({IchSubtype.SUBDURAL: here}))
    # Green and yellow mixed are bluer than yellow.
    assert picture[middle][2] > alone[middle][2] > 0


def test_any_is_drawn_only_where_no_subtype_reaches() -> None:
    lone, shared = IchSubtype.ANY, IchSubtype.SUBDURAL
    both = np.maximum(square(lone), square(shared))
    picture = slice_picture(dark_report({lone: both, shared: square(shared)}))
    white = colored(picture, lone)
    assert white[abs(from_rim(lone, white.shape)) <= SCALE].any()
    assert not white[abs(from_rim(shared, white.shape)) <= SCALE].any()
    faint = slice_picture(dark_report({lone: both, shared: square(shared, 0.2)}))
    assert colored(faint, lone)[abs(from_rim(shared, white.shape)) <= SCALE].any()
    assert not colored(faint, shared).any()


def test_any_alone_is_drawn_by_levels_of_likelihood() -> None:
    picture = slice_picture(dark_report({IchSubtype.ANY: square(IchSubtype.ANY)}))
    near = abs(from_rim(IchSubtype.ANY, picture.shape[:2])) <= SCALE
    for _, color in drawing.LEVELS:
        assert np.all(picture[near] == color, axis=-1).any()
    assert not colored(picture, IchSubtype.ANY).any()


def legend_part(page: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The part of an overlay's page where the lines of its legend are, above the scale bar."""
    return page[HEADER_HEIGHT + PAGE_WIDTH // 2 : -(FOOTER_HEIGHT + 40), 22:42]


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)), st.integers(0, 15))
def test_a_mask_grows_to_all_sides_as_far_as_it_is_told(mask: npt.NDArray[np.bool_], by: int) -> None:
    rows, columns = np.indices(mask.shape)
    expected = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        expected |= np.maximum(abs(rows - row), abs(columns - column)) <= by
    assert np.array_equal(grown(mask, by), expected)


def swatches(strip: npt.NDArray[np.uint8]) -> set[tuple[int, ...]]:
    """Colours of the rows of a picture that have one colour from end to end, without those of the ground."""
    even = strip[np.all(strip == strip[:, :1], axis=(1, 2)), 0]
    return {tuple(color) for color in even.tolist()} - {(0, 0, 0), drawing.BACKGROUND, drawing.PANEL}


@pytest.mark.parametrize(
    "classes",
    [SUBTYPES[:1], SUBTYPES[2:5], (IchSubtype.ANY, IchSubtype.SUBARACHNOID), tuple(IchSubtype)],
)
def test_the_legends_list_exactly_the_classes_that_are_shown(classes: Sequence[IchSubtype]) -> None:
    report = dark_report(squares(classes))
    expected = {drawing.CLASS_COLOR[subtype] for subtype in classes}
    assert set(sketch_slice(report, 0).classes) == set(classes)
    page = render_overlay(report, 0)
    assert swatches(legend_part(page)) == expected
    panel = render_summary(report)[700:1000, 986:1004]
    assert swatches(panel) == expected


def test_the_legends_of_any_alone_list_the_levels() -> None:
    report = dark_report({IchSubtype.ANY: square(IchSubtype.ANY)})
    assert sketch_slice(report, 0).classes == ()
    levels = {color for _, color in drawing.LEVELS}
    assert swatches(legend_part(render_overlay(report, 0))) == levels
    assert swatches(render_summary(report)[700:1000, 986:1004]) == {drawing.LEVELS[0][1]}


@pytest.mark.parametrize("kind", ["point", "box"])
@pytest.mark.parametrize("width", [292, 640])
def test_a_place_has_the_colour_of_its_subtype_and_its_letters(kind: str, width: int) -> None:
    coordinates = (32.0, 32.0) if kind == "point" else (28.0, 30.0, 36.0, 34.0)
    for subtype in SUBTYPES:
        place = Localization(kind="point", subtype=subtype, coordinates=(32.0, 32.0), score=0.83)
        place = replace(place, kind=kind, coordinates=coordinates)
        report = dark_report({}, [place])
        picture = np.asarray(render_slice(report, 0, whole_slice(report, width=width)))
        assert colored(picture, subtype).any()
        assert not any(colored(picture, other).any() for other in IchSubtype if other is not subtype)
        assert sketch_slice(report, 0).classes == (subtype,)
        no_score = replace(place, score=0.11)
        other = dark_report({}, [no_score])
        changed = np.any(
            picture != np.asarray(render_slice(other, 0, whole_slice(other, width=width))), axis=-1
        )
        # Another score changes the label, beside the mark, and nothing else.
        assert changed.any()
        assert np.ptp(np.nonzero(changed)[0]) <= 24


def test_a_box_of_less_than_a_pixel_is_drawn() -> None:
    place = Localization(
        kind="box", subtype=IchSubtype.SUBDURAL, coordinates=(32.0, 32.0, 32.05, 32.0), score=0.83
    )
    assert colored(slice_picture(dark_report({}, [place])), IchSubtype.SUBDURAL).any()


def label_texts(maps: Mapping[IchSubtype, FloatArray], places: Sequence[Localization] = ()) -> list[str]:
    report = dark_report(maps, places)
    view = whole_slice(report, width=64 * SCALE)
    return sorted(label.text for label in contour_labels(sketch_slice(report, 0), places, view))


def test_every_contour_carries_the_letters_of_its_class() -> None:
    assert label_texts(squares(IchSubtype)) == ["ANY", "EDH", "IPH", "IVH", "SAH", "SDH"]
    two = np.maximum(square(IchSubtype.SUBDURAL), square(IchSubtype.EPIDURAL))
    assert label_texts({IchSubtype.SUBDURAL: two}) == ["SDH", "SDH"]


def test_letters_are_not_written_twice_nor_for_the_rim_of_a_hole() -> None:
    maps = squares([IchSubtype.SUBDURAL])
    inside = Localization(kind="point", subtype=IchSubtype.SUBDURAL, coordinates=(52.0, 32.0), score=0.9)
    assert label_texts(maps, [inside]) == []
    assert label_texts(maps, [replace(inside, coordinates=(10.0, 10.0))]) == ["SDH"]
    assert label_texts(maps, [replace(inside, subtype=IchSubtype.EPIDURAL)]) == ["SDH"]
    around = replace(inside, kind="box", coordinates=(40.0, 20.0, 60.0, 40.0))
    assert label_texts(maps, [around]) == []
    ring = np.ones((64, 64), np.float32)
    ring[20:40, 20:40] = 0
    assert [c.encloses for c in contours(ring, (0.5,))].count(True) == 1
    assert len(contours(ring, (0.5,))) == 2
    assert label_texts({IchSubtype.SUBDURAL: ring}) == ["SDH"]


def test_letters_tell_classes_apart_without_colour() -> None:
    """The same map under two names: gray pictures differ by the letters, though the lines are equal."""
    here = square(IchSubtype.SUBDURAL)
    lit = [
        np.any(slice_picture(dark_report({subtype: here})) > 0, axis=-1)
        for subtype in (IchSubtype.SUBDURAL, IchSubtype.EPIDURAL)
    ]
    away = from_rim(IchSubtype.SUBDURAL, lit[0].shape)
    assert np.array_equal(lit[0][abs(away) <= 3], lit[1][abs(away) <= 3])
    assert not np.array_equal(lit[0], lit[1])


def test_crowded_labels_lie_inside_the_picture_and_off_each_other() -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (300, 300)))
    rng = np.random.default_rng(7)
    labels = [
        Label(
            text=f"SDH {n} %",
            color=drawing.YELLOW,
            around=rng.uniform(0, 300, (1, 2)) + rng.normal(0, 6, (9, 2)),
        )
        for n in range(10, 24)
    ]
    letters = (140.0, 0.0, 160.0, 24.0)
    boxes = write_labels(draw, labels, size=12, taken=[letters], busy=Image.new("L", (300, 300)))
    assert len(boxes) == len(labels)
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert top >= 0
        assert right <= 300
        assert bottom <= 300
    for (left, top, right, bottom), other in combinations([letters, *boxes], 2):
        assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]


def test_a_label_keeps_off_what_is_drawn() -> None:
    busy = Image.new("L", (200, 200))
    busy.paste(255, (100, 0, 200, 200))
    around = np.array([[100.0, 90.0], [100.0, 110.0], [95.0, 100.0], [105.0, 100.0]])
    draw = ImageDraw.Draw(Image.new("RGB", (200, 200)))
    label = Label(text="IVH", color=drawing.PURPLE, around=around)
    ((_, _, right, _),) = write_labels(draw, [label], size=12, taken=[], busy=busy)
    assert right < 100.5


def test_what_is_no_number_counts_as_nothing() -> None:
    maps = squares(SUBTYPES[:3])
    gaps = {
        subtype: np.where(likelihood == 0, np.float32(np.nan), likelihood)
        for subtype, likelihood in maps.items()
    }
    assert np.array_equal(slice_picture(dark_report(maps)), slice_picture(dark_report(gaps)))
    nothing = {subtype: np.full((64, 64), np.nan, np.float32) for subtype in IchSubtype}
    assert class_contours(nothing) == {}
    assert not slice_picture(dark_report(nothing)).any()


def test_the_order_of_the_maps_does_not_change_the_picture() -> None:
    here = square(IchSubtype.SUBDURAL)
    maps = {**squares(IchSubtype), IchSubtype.EPIDURAL: here}
    backwards = dict(reversed(maps.items()))
    assert np.array_equal(slice_picture(dark_report(maps)), slice_picture(dark_report(backwards)))


def test_same_maps_give_the_same_bytes() -> None:
    def saved() -> list[bytes]:
        files = []
        for capture in build_secondary_captures(dark_report(squares(IchSubtype))):
            file = io.BytesIO()
            capture.save_as(file, enforce_file_format=True)
            files.append(file.getvalue())
        return files

    first = saved()
    assert len(first) == 2
    assert first == saved()


@pytest.mark.parametrize("sight", COLOR_BLINDNESS)
def test_colours_of_subtypes_differ_from_each_other_and_from_brain(sight: str) -> None:
    def seen(color: drawing.Color) -> npt.NDArray[np.float64]:
        value = np.asarray(color) / 255
        linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        linear = np.clip(np.asarray(COLOR_BLINDNESS[sight]) @ linear, 0, 1)
        value = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        return np.asarray(rgb2lab(value[None, None])[0, 0])

    colors = [drawing.CLASS_COLOR[subtype] for subtype in SUBTYPES]
    for one, other in combinations([*colors, BRIGHTNESS_OF_BRAIN], 2):
        assert np.linalg.norm(seen(one) - seen(other)) > 12, (one, other)
