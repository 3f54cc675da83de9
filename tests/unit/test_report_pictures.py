"""What the pictures show: places where they are, letters on the right side, colours that mean something."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.findings import IchSubtype, Localization, SliceFinding
from ich_node.report import drawing
from ich_node.report.attributes import numbers
from ich_node.report.geometry import opposite, orientation_letters, patient_orientation
from ich_node.report.overlay import FOOTER_HEIGHT, HEADER_HEIGHT, header_strip, render_overlay
from ich_node.report.slice_picture import render_slice
from ich_node.report.summary import MAX_PANES, _caveat_lines, montage_slices, render_summary
from ich_node.report.viewport import PAGE_WIDTH, head_region, whole_slice
from ich_node.report.wording import percent, percent_text, slice_name
from tests.report_builders import make_report


def is_close(picture: np.ndarray, color: drawing.Color, tolerance: int = 60) -> np.ndarray:
    return np.all(np.abs(picture.astype(int) - color) <= tolerance, axis=-1)


@given(st.floats(4, 60), st.floats(4, 60))
def test_a_point_is_drawn_where_it_lies(x: float, y: float) -> None:
    report = make_report(0.9, shape=(1, 64, 64))
    place = Localization(kind="point", subtype=IchSubtype.ANY, coordinates=(x, y), score=0.9)
    empty = replace(report, hu=np.full((1, 64, 64), -1000, np.float32), source_images=report.source_images)
    finding = SliceFinding(probabilities={IchSubtype.ANY: 0.9}, localizations=(place,))
    marked = replace(empty, finding=replace(report.finding, slices=(finding,)))
    view = whole_slice(marked, width=512)
    picture = np.asarray(render_slice(marked, 0, view))
    plain = np.asarray(
        render_slice(
            replace(marked, finding=replace(marked.finding, slices=(replace(finding, localizations=()),))),
            0,
            view,
        )
    )
    rows, columns = np.nonzero(np.any(picture != plain, axis=-1))
    center = ((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)
    assert center == pytest.approx((x * 8, y * 8), abs=2.0)


def test_contours_enclose_the_likely_pixels_only() -> None:
    report = make_report(0.9, shape=(1, 64, 64))
    likelihood = np.zeros((64, 64), np.float32)
    likelihood[20:30, 40:50] = 1.0
    finding = SliceFinding(probabilities={IchSubtype.ANY: 0.9}, likelihood_maps={IchSubtype.ANY: likelihood})
    dark = replace(
        report,
        hu=np.full((1, 64, 64), -1000, np.float32),
        finding=replace(report.finding, slices=(finding,)),
    )
    for image in dark.source_images:
        del image.ImageOrientationPatient
    picture = np.asarray(render_slice(dark, 0, whole_slice(dark, width=640)))
    rows, columns = np.nonzero(picture.sum(axis=-1))
    assert rows.min() == pytest.approx(200, abs=10)
    assert rows.max() == pytest.approx(300, abs=10)
    assert columns.min() == pytest.approx(400, abs=10)
    assert columns.max() == pytest.approx(500, abs=10)


def test_missing_and_infinite_pixels_are_drawn() -> None:
    hu = np.array([[np.nan, np.inf], [-np.inf, 40.0]], np.float32)
    assert drawing.brain_window(hu).tolist() == [[0, 255], [0, 127]]
    assert np.asarray(drawing.heat(np.array([[np.nan, 0.0, 1.0]], np.float32)))[0, :, 3].tolist() == [
        0,
        0,
        76,
    ]


@pytest.mark.parametrize(
    ("direction", "letters"),
    [
        ((1, 0, 0), "L"),
        ((-1, 0, 0), "R"),
        ((0, 0.948, -0.317), "P"),
        ((0, -1, 0), "A"),
        ((0, 0, 1), "H"),
        ((0.6, 0.8, 0), "PL"),
    ],
)
def test_orientation_letters(direction: tuple[float, float, float], letters: str) -> None:
    assert orientation_letters(np.asarray(direction)) == letters
    assert orientation_letters(-np.asarray(direction)) == opposite(letters)


def test_orientation_that_is_none_is_not_shown() -> None:
    (image, *_) = make_report(0.1, header={"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}).source_images
    assert patient_orientation(image) is None
    image.ImageOrientationPatient = [1, 0, 0]
    assert patient_orientation(image) is None
    assert numbers(image, "ImageOrientationPatient", 6) is None


@pytest.mark.parametrize(
    ("score", "text", "number"),
    [
        (0.0, "0 %", 0.0),
        (0.0001, "<1 %", 0.1),
        (0.5, "50 %", 50.0),
        (0.99999, ">99 %", 99.9),
        (1.0, "100 %", 100.0),
    ],
)
def test_certainty_is_never_rounded_to_all_or_nothing(score: float, text: str, number: float) -> None:
    assert percent_text(score) == text
    assert percent(score) == number


def test_montage_shows_the_most_suspicious_slices_in_order() -> None:
    report = make_report(0.9)
    shown = montage_slices(report)
    assert shown == sorted(shown)
    assert set(report.finding.suspicious_slices) <= set(shown)


@pytest.mark.parametrize("slices", [1, 2, 5, 12, 400])
@pytest.mark.parametrize("suspicion", [0.1, 0.9])
def test_summary_is_drawn_for_any_number_of_slices(slices: int, suspicion: float) -> None:
    report = make_report(suspicion, shape=(slices, 32, 32))
    shown = montage_slices(report)
    assert 1 <= len(shown) <= min(MAX_PANES, slices)
    assert len(set(shown)) == len(shown)
    assert render_summary(report).shape == (1108, 1280, 3)


def test_summary_has_the_colour_of_its_priority() -> None:
    for suspicion, color in ((0.9, drawing.VERMILLION), (0.5, drawing.ORANGE), (0.1, drawing.SKY)):
        edge = render_summary(make_report(suspicion))[40, 4]
        assert tuple(edge) == color


def test_what_is_said_of_one_slice_stays_off_the_page_of_the_next() -> None:
    report = make_report(0.9)
    first, other, again = (
        np.asarray(header_strip(report, PAGE_WIDTH, [where, "Hemorrhage 90 %"]))
        for where in ("Image 1", "Image 200 of a series", "Image 1")
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    second_reading = header_strip(replace(report, run_number=2), PAGE_WIDTH, ["Image 1", "Hemorrhage 90 %"])
    assert not np.array_equal(first, np.asarray(second_reading))


def test_many_caveats_and_long_names_stay_inside_the_page() -> None:
    report = make_report(0.9, caveats=tuple(f"Caveat {n} " + "word " * 20 for n in range(20)))
    algorithm = replace(report.finding.algorithm, name="a" * 64, version="9" * 40)
    long = replace(report, finding=replace(report.finding, algorithm=algorithm))
    assert render_summary(long).shape == (1108, 1280, 3)
    assert render_overlay(long, report.finding.suspicious_slices[0]).shape[1:] == (PAGE_WIDTH, 3)


def test_wrapped_lines_fit_and_lose_no_word() -> None:
    text = "plain words and averyveryveryverylongwordthatfitsnoline at all"
    lines = drawing.wrap(text, size=14, width=120)
    assert all(drawing.font(14).getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_head_fills_its_pane_and_air_alone_is_drawn_whole() -> None:
    report = make_report(0.9, shape=(2, 64, 64))
    view = head_region(report, [0, 1], 300)
    assert 64 * view.scale_x > 300
    air = replace(report, hu=np.full((2, 64, 64), -1000, np.float32))
    whole = head_region(air, [0, 1], 300)
    assert 64 * whole.scale_x <= 300
    assert render_slice(air, 0, whole).size == (300, 300)


def test_slices_without_number_are_named_by_their_place() -> None:
    assert slice_name(make_report(0.1), 0).startswith("Image")
    assert slice_name(make_report(0.1, header={"InstanceNumber": None}), 4) == "Slice 5 from below"


def test_pixels_that_are_not_square_are_drawn_in_proportion() -> None:
    report = make_report(0.9, shape=(3, 32, 64), spacing_mm=(5.0, 1.0, 0.5))
    view = whole_slice(report)
    assert (view.width, view.height) == (PAGE_WIDTH, PAGE_WIDTH)
    assert np.any(is_close(render_overlay(report, 1), drawing.TEXT))


def test_the_page_of_a_narrow_slice_is_bounded_and_shows_it_whole() -> None:
    report = make_report(0.9, shape=(3, 512, 64))
    view = whole_slice(report)
    assert (view.width, view.height) == (PAGE_WIDTH, 2 * PAGE_WIDTH)
    assert view.to_picture(0.0, 0.0)[0] == pytest.approx(PAGE_WIDTH - view.to_picture(64.0, 0.0)[0])
    assert view.to_picture(0.0, 512.0)[1] == pytest.approx(2 * PAGE_WIDTH)
    assert render_overlay(report, 1).shape == (2 * PAGE_WIDTH + HEADER_HEIGHT + FOOTER_HEIGHT, PAGE_WIDTH, 3)


def test_montage_of_a_negative_reading_leaves_air_out() -> None:
    report = make_report(0.1, shape=(40, 32, 32))
    hu = report.hu.copy()
    hu[20:] = -1000
    shown = montage_slices(replace(report, hu=hu))
    assert len(shown) == MAX_PANES
    assert max(shown) < 20
    assert len(montage_slices(replace(report, hu=np.full_like(hu, -1000)))) == MAX_PANES


def test_caveats_are_shown_whole_or_counted() -> None:
    few = make_report(0.9, caveats=("Gantry tilt.", "Bone kernel."))
    assert _caveat_lines(few, 280) == ["Gantry tilt.", "Bone kernel."]
    many = make_report(0.9, caveats=tuple(f"Caveat {n} " + "word " * 12 for n in range(9)))
    lines = _caveat_lines(many, 280)
    shown = sum(line.startswith("Caveat") for line in lines)
    assert lines[-1] == f"{9 - shown} more, see the structured report."
    assert "".join(lines[:-1]).replace(" ", "") == "".join(many.caveats[:shown]).replace(" ", "")
    endless = _caveat_lines(make_report(0.9, caveats=("word " * 400,)), 280)
    assert len(endless) == 12
    assert endless[0].startswith("word")


def test_a_line_is_shortened_in_its_middle_until_it_fits() -> None:
    line = "a-name-that-nobody-could-want-in-full 2024.11.3"
    short = drawing.shortened(line, size=13, width=180)
    assert drawing.font(13).getlength(short) <= 180
    assert short.startswith("a-name")
    assert short.endswith("11.3")
    assert drawing.shortened("1.2", size=13, width=180) == "1.2"


def test_a_fill_lies_where_its_map_is() -> None:
    """At the edges of the slice and across the edges of the picture too."""
    report = make_report(0.9, shape=(1, 64, 64), header={"ImageOrientationPatient": None})
    for rows, columns in (
        (slice(0, 9), slice(0, 9)),
        (slice(20, 30), slice(40, 50)),
        (slice(58, 64), slice(60, 64)),
    ):
        likelihood = np.zeros((64, 64), np.float32)
        likelihood[rows, columns] = 1.0
        maps = {IchSubtype.ANY: likelihood}
        finding = SliceFinding(probabilities={IchSubtype.ANY: 0.9}, likelihood_maps=maps)
        dark = replace(
            report,
            hu=np.full((1, 64, 64), -1000, np.float32),
            finding=replace(report.finding, slices=(finding,)),
        )
        for view in (whole_slice(dark, width=640), replace(whole_slice(dark, width=640), left=5.0, top=5.0)):
            lit = np.asarray(render_slice(dark, 0, view)).any(axis=-1)
            down, across = np.indices(lit.shape) + 0.5
            x, y = across / view.scale_x + view.left, down / view.scale_y + view.top
            inside = (
                (x > columns.start + 1) & (x < columns.stop - 1) & (y > rows.start + 1) & (y < rows.stop - 1)
            )
            near = (
                (x > columns.start - 1) & (x < columns.stop + 1) & (y > rows.start - 1) & (y < rows.stop + 1)
            )
            assert lit[inside].all()
            assert not lit[~near].any()
