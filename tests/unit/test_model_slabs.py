"""Thin slices are read as slabs, and what was found on a slab is shown once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype, SeriesFinding, SliceFinding
from ich_node.model import bundle as bundles
from ich_node.model.predict import Predictor, load_predictor
from ich_node.model.slabs import in_slabs
from ich_node.model.system import Head
from ich_node.report.key_object_selection import build_key_object_selection, flagged_slices
from ich_node.report.reading_report import ReadingReport
from ich_node.report.secondary_capture import overlay_slices
from ich_node.report.summary import montage_slices
from ich_node.report.wording import conclusion, slice_lines
from ich_node.testing.phantom import head_phantom
from tests.report_builders import make_report, series_finding

SHIPPED = bundles.SHIPPED / bundles.DEFAULT_NAME
TOGETHER = 8


@lru_cache
def shipped() -> Predictor:
    return load_predictor(device="cpu")


@lru_cache
def thick() -> tuple[np.ndarray, SeriesFinding]:
    """A phantom of 5 mm slices, read."""
    head = head_phantom(bleeds=(IchSubtype.INTRAPARENCHYMAL,), seed=501, rows=256, columns=256, slices=28)
    assert head.spacing_mm[0] == 5
    hu = head.hu[8:20]
    return hu, shipped().predict(hu, head.spacing_mm)


def thin(hu: np.ndarray, spacing_mm: float, count: int) -> Head:
    return Head(hu=np.repeat(hu, count, axis=0), spacing_mm=(spacing_mm, 0.9, 0.9))


@given(
    slices=st.integers(1, 90),
    spacing=st.floats(0.3, 8),
    slab=st.one_of(st.none(), st.floats(0.5, 12)),
)
def test_every_slice_is_part_of_one_slab(slices: int, spacing: float, slab: float | None):
    hu = np.arange(slices, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    found = in_slabs(Head(hu=hu, spacing_mm=(spacing, 1, 1)), slab)
    count = len(found.head.hu)
    assert found.slab_of.shape == (slices,)
    assert sorted(set(found.slab_of.tolist())) == list(range(count)) == sorted(range(len(found.middle)))
    assert (np.diff(found.slab_of) >= 0).all()
    assert [found.slab_of[middle] for middle in found.middle] == list(range(count))
    for number, slab_hu in enumerate(found.head.hu):
        np.testing.assert_allclose(slab_hu, hu[found.slab_of == number].mean(0), rtol=1e-6)
    if found.height_mm is None:
        assert found.head.hu is hu
        return
    assert slab is not None
    assert found.height_mm == found.head.spacing_mm[0] <= slab + 0.01 * spacing
    sizes = np.bincount(found.slab_of)
    together = round(found.height_mm / spacing)
    assert (sizes[:-1] == together).all()
    assert together / 2 <= sizes[-1] <= 1.5 * together


@pytest.mark.parametrize(
    ("spacing", "height"), [(5.0, None), (3.0, None), (2.5, 5.0), (1.25, 5.0), (0.6, 4.8)]
)
def test_slabs_are_at_most_as_high_as_asked(spacing: float, height: float | None):
    found = in_slabs(Head(hu=np.zeros((40, 2, 2), np.float32), spacing_mm=(spacing, 1, 1)), 5.0)
    assert found.height_mm == (None if height is None else pytest.approx(height))


@pytest.mark.parametrize("slab_mm", [300.0, 1e308])
def test_a_slab_higher_than_the_head_is_none(slab_mm: float):
    found = in_slabs(Head(hu=np.zeros((40, 2, 2), np.float32), spacing_mm=(0.5, 1, 1)), slab_mm)
    assert found.height_mm is None


@pytest.mark.parametrize("spacing", [2.5, 2.4999, 2.5001, 1.6667, 0.62503])
def test_a_distance_that_was_rounded_loses_no_slice_of_a_slab(spacing: float):
    found = in_slabs(Head(hu=np.zeros((64, 2, 2), np.float32), spacing_mm=(spacing, 1, 1)), 5.0)
    assert found.height_mm == pytest.approx(5.0, abs=0.02)


def test_slices_cut_thin_are_read_as_they_were_thick():
    hu, whole = thick()
    cut = thin(hu, 5 / TOGETHER, TOGETHER)
    found = shipped().predict(cut.hu, (5 / TOGETHER, *head_spacing(hu)), slice_thickness_mm=5 / TOGETHER)
    assert found.suspicion == whole.suspicion
    assert found.slab_mm == 5.0
    assert len(found.slices) == TOGETHER * len(whole.slices)
    for index, one in enumerate(found.slices):
        of_slab = whole.slices[index // TOGETHER]
        middle = index // TOGETHER * TOGETHER + (TOGETHER - 1) // 2
        assert one.probabilities == of_slab.probabilities
        assert one.shown_on == middle
        assert one.localizations == (of_slab.localizations if index == middle else ())
        assert bool(one.likelihood_maps) == (bool(of_slab.likelihood_maps) and index == middle)
    assert found.key_slices == tuple(TOGETHER * i + (TOGETHER - 1) // 2 for i in whole.suspicious_slices)
    assert len(found.suspicious_slices) == TOGETHER * len(whole.suspicious_slices)
    assert found.input_features == whole.input_features | {"slice_thickness_mm": 5.0}
    assert found.caveats == ("Thin slices were read as slabs of 5.0 mm.", *whole.caveats)
    assert not any("slab" in caveat for caveat in whole.caveats)
    assert whole.key_slices == whole.suspicious_slices


def head_spacing(hu: np.ndarray) -> tuple[float, float]:
    head = head_phantom(bleeds=(IchSubtype.INTRAPARENCHYMAL,), seed=501, rows=256, columns=256, slices=28)
    assert head.hu.shape[1:] == hu.shape[1:]
    return head.spacing_mm[1:]


def test_a_bundle_that_says_nothing_of_slabs_reads_slices(tmp_path: Path):
    folder = Path(shutil.copytree(SHIPPED, tmp_path / SHIPPED.name))
    change(folder, None)
    hu, _ = thick()
    finding = load_predictor(folder, "cpu").predict(np.repeat(hu[4:8], 2, axis=0), (2.5, *head_spacing(hu)))
    assert finding.slab_mm is None
    assert {one.shown_on for one in finding.slices} == {None}


@pytest.mark.parametrize("value", [0, -5.0, True, "5", [5.0]])
def test_a_height_that_is_none_is_refused(tmp_path: Path, value: object):
    folder = Path(shutil.copytree(SHIPPED, tmp_path / SHIPPED.name))
    change(folder, value)
    for use in (bundles.verify_bundle, load_predictor):
        with pytest.raises(ConfigurationError, match=r"bundle\.json: key 'slab_mm'"):
            use(folder)


def change(folder: Path, slab_mm: object) -> None:
    file = folder / bundles.DESCRIPTION_FILE
    about = json.loads(file.read_text())
    about.pop("slab_mm")
    file.write_text(json.dumps(about if slab_mm is None else {**about, "slab_mm": slab_mm}))


def report_of_slabs() -> ReadingReport:
    """Sixteen slices in slabs of four, of which the lower two are suspicious, the second more so."""
    shape = (16, 64, 64)
    own = series_finding((4, 64, 64)).slices
    read = [own[2], replace(own[2], probabilities={s: 0.95 * p for s, p in own[2].probabilities.items()})]
    read = [read[1], read[0], *([SliceFinding(probabilities=dict.fromkeys(own[2].probabilities, 0.1))] * 2)]
    slices = [
        replace(read[i // 4], shown_on=i // 4 * 4 + 1)
        if i % 4 == 1
        else SliceFinding(probabilities=read[i // 4].probabilities, shown_on=i // 4 * 4 + 1)
        for i in range(16)
    ]
    report = make_report(shape=shape)
    return replace(report, finding=replace(report.finding, slices=tuple(slices), slab_mm=5.0))


def test_a_slab_is_shown_once():
    report = report_of_slabs()
    assert report.finding.key_slices == (5, 1)
    assert overlay_slices(report) == flagged_slices(report) == [5, 1]
    assert montage_slices(report) == [1, 5, 9, 13]
    assert len(slice_lines(report)) == 2
    assert "8 of 16 slices suspicious" in conclusion(report)
    selection = build_key_object_selection(report)
    assert selection is not None
    referenced = selection.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert {one.ReferencedSOPInstanceUID for one in referenced.ReferencedSOPSequence} == {
        report.source_images[index].SOPInstanceUID for index in (1, 5)
    }


def test_a_flagged_study_without_a_suspicious_slice_shows_the_middle_of_a_slab():
    report = report_of_slabs()
    faint = [
        replace(one, probabilities={s: p / 4 for s, p in one.probabilities.items()}, localizations=())
        for one in report.finding.slices
    ]
    assert overlay_slices(replace(report, finding=replace(report.finding, slices=tuple(faint)))) == [5]


@pytest.mark.parametrize(
    ("spacing", "widest", "height"),
    [
        (2.5, 5.0, None),
        (2.5, 2.6, 5.0),
        (0.625, 0.7, 5.0),
        (0.625, 5.0, None),
        (0.625, 1.25, 2.5),
        (5.0, 5.0, None),
    ],
)
def test_thick_slices_among_thin_ones_are_not_averaged(spacing: float, widest: float, height: float | None):
    head = Head(hu=np.zeros((40, 2, 2), np.float32), spacing_mm=(spacing, 1, 1))
    assert in_slabs(head, 5.0, widest_gap_mm=widest).height_mm == (
        None if height is None else pytest.approx(height)
    )


@pytest.mark.parametrize(
    ("spacing", "thickness", "height", "shown"),
    [
        (2.5, 2.5, 5.0, 5.0),
        (2.5, None, 5.0, 5.0),
        (2.5, 1.0, 5.0, 3.5),
        (2.5, 5.0, None, 5.0),
        (1.0, 2.0, 4.0, 5.0),
        (0.625, 1.25, 4.375, 5.0),
        (5.0, 3.0, None, 3.0),
        (5.0, None, None, None),
    ],
)
def test_a_slab_shows_no_more_than_was_asked(
    spacing: float, thickness: float | None, height: float | None, shown: float | None
):
    head = Head(hu=np.zeros((40, 2, 2), np.float32), spacing_mm=(spacing, 1, 1))
    slabs = in_slabs(head, 5.0, slice_thickness_mm=thickness)
    assert (slabs.height_mm, slabs.thickness_mm) == (height, shown)
