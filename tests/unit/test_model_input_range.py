"""What an input is like, and whether that is like what a model learnt from."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ich_node.errors import ConfigurationError
from ich_node.findings import SeriesFinding
from ich_node.model.bundle_section import typed_section
from ich_node.model.input_range import (
    FEATURES,
    InputFeatures,
    InputRange,
    _sentence,
    measure,
    ranges_of,
    unlike,
)
from ich_node.model.predict import load_predictor
from ich_node.model.system import Head
from ich_node.testing.phantom import HeadPhantom, head_phantom
from tests.system_bundles import write_system_bundle
from tests.unit.little_head import SPACING_MM, little_head


@lru_cache
def phantom() -> HeadPhantom:
    return head_phantom(seed=4, rows=160, columns=160, slices=28)


@lru_cache
def features() -> InputFeatures:
    return measure(Head(hu=phantom().hu, spacing_mm=phantom().spacing_mm), 5.0)


@lru_cache
def plain() -> InputFeatures:
    return measure(Head(hu=little_head(), spacing_mm=SPACING_MM))


def little_features(**changes: Any) -> InputFeatures:
    return replace(plain(), **changes)


# --- measuring


def test_geometry_and_values_of_a_phantom_are_those_that_it_was_made_with():
    found = features()
    assert (found.slice_spacing_mm, found.slice_thickness_mm) == (5.0, 5.0)
    assert found.pixel_spacing_mm == pytest.approx(230 / 160, abs=0.001)
    assert found.field_of_view_mm == 230
    assert 1000 < found.cavity_volume_ml < 1900
    assert 90 < found.cavity_height_mm <= 28 * 5
    assert 25 < found.brain_hu_median < 42
    assert 0 <= found.dense_share < 0.02
    assert 0 <= found.bright_share < 0.01


def test_a_thickness_that_is_not_known_is_no_feature():
    assert "slice_thickness_mm" not in little_features().known()
    assert set(features().known()) == set(FEATURES)


@pytest.mark.parametrize("deviation", [2.0, 6.0, 15.0])
def test_noise_is_measured_as_its_standard_deviation(deviation: float):
    hu = little_head(rows=160, columns=144)
    noise = np.random.default_rng(1).normal(0, deviation, hu.shape)
    found = measure(Head(hu=np.rint(hu + noise).astype(np.float32), spacing_mm=(5.0, 1.5, 1.5)))
    assert found.noise_hu == pytest.approx(deviation, rel=0.1)


def test_contrast_medium_shows_in_veins_and_brain():
    hu = phantom().hu.copy()
    head = Head(hu=hu, spacing_mm=phantom().spacing_mm)
    inside = np.stack([head.mask.on_source_grid(index) for index in range(len(hu))])
    vessel = np.zeros(hu.shape, np.bool_)
    vessel[:, 60:100, 78:82] = True
    hu[inside] += 6
    hu[vessel & inside] = 130
    enhanced = measure(Head(hu=hu, spacing_mm=phantom().spacing_mm))
    assert enhanced.brain_hu_median == pytest.approx(features().brain_hu_median + 6, abs=0.6)
    assert enhanced.bright_share > 5 * features().bright_share
    training = ranges_of([features()])
    assert {"brain_hu_median", "bright_share"} <= set(unlike(enhanced, training))


def test_what_lies_outside_the_skull_changes_only_the_geometry():
    wide = np.pad(phantom().hu, ((0, 0), (20, 20), (20, 20)), constant_values=-3024)
    found = measure(Head(hu=wide, spacing_mm=phantom().spacing_mm), 5.0)
    assert found.field_of_view_mm == pytest.approx(230 * 200 / 160, abs=0.1)
    assert found.cavity_volume_ml == pytest.approx(features().cavity_volume_ml, rel=0.03)
    assert found.brain_hu_median == pytest.approx(features().brain_hu_median, abs=0.5)


def test_a_thin_stack_is_measured_by_some_of_its_slices():
    thin = np.repeat(little_head(), 10, axis=0)
    found = measure(Head(hu=thin, spacing_mm=(0.5, *SPACING_MM[1:])))
    usual = little_features()
    assert found.slice_spacing_mm == 0.5
    assert found.cavity_volume_ml == pytest.approx(usual.cavity_volume_ml, rel=0.1)
    assert found.cavity_height_mm == pytest.approx(usual.cavity_height_mm, abs=12)
    assert found.brain_hu_median == usual.brain_hu_median


def test_a_last_cell_of_one_pixel_is_measured_as_well():
    hu = little_head(rows=161, columns=145)
    head = Head(hu=hu, spacing_mm=(5.0, 1.5 * 2 / 3, 1.5 * 2 / 3))  # cells of 2 x 2 pixels
    assert head.mask.block == (2, 2)
    assert measure(head).brain_hu_median == little_features().brain_hu_median


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="no slice shows"):
        measure(Head(hu=np.full((4, 64, 64), -1000, np.float32), spacing_mm=SPACING_MM))


# --- ranges


def test_every_feature_has_a_range_and_a_sentence():
    assert tuple(field.name for field in fields(InputRange)) == FEATURES
    for name in FEATURES:
        assert _sentence(name, 1.0, (2.0, 3.0)).startswith(("Slices", "Pixels", "The ", "Values", "Of the"))


def test_a_range_goes_a_tenth_beyond_what_was_seen():
    seen = [little_features(slice_spacing_mm=5.0, dense_share=0.0) for _ in range(3)]
    found = ranges_of(seen)
    assert found.slice_spacing_mm == (4.5, 5.5)
    assert found.dense_share == (0.0, 0.0)
    assert found.slice_thickness_mm is None
    assert ranges_of(seen, margin=0).slice_spacing_mm == (5.0, 5.0)
    negative = ranges_of([little_features(brain_hu_median=-10.0)])
    assert negative.brain_hu_median == (-11.0, -9.0)


def test_a_few_odd_scans_widen_no_range():
    seen = [little_features(noise_hu=4.0 + n % 10 / 10) for n in range(1000)]
    odd = [little_features(noise_hu=40.0) for _ in range(4)]
    assert ranges_of([*seen, *odd], margin=0).noise_hu == (4.0, 4.9)
    assert ranges_of([*seen, *odd], (0, 1), margin=0).noise_hu == (4.0, 40.0)


def test_the_thickness_of_those_scans_that_have_one_is_its_range():
    seen = [little_features(slice_thickness_mm=t) for t in (None, 5.0, 4.0, None)]
    assert ranges_of(seen, (0, 1), margin=0).slice_thickness_mm == (4.0, 5.0)


def test_what_training_data_do_not_show_is_left_out():
    found = ranges_of([features()], leave_out=("pixel_spacing_mm", "bright_share"))
    assert set(found.known()) == set(FEATURES) - {"pixel_spacing_mm", "bright_share"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": []}, "at least one scan"),
        ({"leave_out": ["pixel_spacing"]}, "pixel_spacing: no such feature"),
        ({"quantiles": (0.9, 0.1)}, "make no range"),
        ({"quantiles": (0.0, 1.5)}, "make no range"),
        ({"margin": -0.1}, "make no range"),
    ],
)
def test_ranges_of_nothing_are_an_error(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ranges_of(**({"features": [features()]} | arguments))


# --- comparing


def test_a_feature_outside_is_said_with_its_unit_and_its_range():
    thin = little_features(slice_spacing_mm=0.6, dense_share=0.31)
    training = InputRange(slice_spacing_mm=(4.5, 5.5), dense_share=(0.0, 0.025), noise_hu=(0.0, 100.0))
    assert unlike(thin, training) == {
        "slice_spacing_mm": "Slices are 0.6 mm apart; the model learnt from 4.5 to 5.5 mm.",
        "dense_share": (
            "Of the inside of the skull 31 % has 60 to 100 HU; the model learnt from 0 to 2.5 %."
        ),
    }


@pytest.mark.parametrize(("value", "outside"), [(4.4, True), (4.5, False), (5.5, False), (5.501, True)])
def test_bounds_are_within_and_widened_by_nothing(value: float, outside: bool):
    training = InputRange(slice_spacing_mm=(4.5, 5.5))
    assert bool(unlike(little_features(slice_spacing_mm=value), training)) is outside


def test_what_one_side_does_not_know_is_not_compared():
    assert unlike(little_features(), InputRange(slice_thickness_mm=(1.0, 2.0))) == {}
    assert unlike(features(), InputRange()) == {}
    assert unlike(features(), ranges_of([features()])) == {}


# --- in a bundle


def section(values: Any) -> InputRange:
    return typed_section(InputRange, values, Path("/b"), "training_inputs")


def test_ranges_go_through_a_bundle_unchanged():
    found = ranges_of([features(), little_features()])
    assert section(json.loads(json.dumps(found.known()))) == found


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"slice_spacing": [4, 5]}, r"training_inputs\.slice_spacing'"),
        ({"slice_spacing_mm": 5}, r"training_inputs\.slice_spacing_mm"),
        ({"slice_spacing_mm": [5]}, r"training_inputs\.slice_spacing_mm"),
        ({"slice_spacing_mm": [4, True]}, r"training_inputs\.slice_spacing_mm"),
        ({"slice_spacing_mm": [4, float("nan")]}, r"training_inputs\.slice_spacing_mm"),
        ({"slice_spacing_mm": [5, 4]}, r"slice_spacing_mm goes from 5 to 4"),
    ],
)
def test_a_section_that_is_no_range_is_refused(values: dict[str, Any], named: str):
    with pytest.raises(ConfigurationError, match=named):
        section(values)


def read(folder: Path, hu: Any = None, **options: Any) -> SeriesFinding:
    spacing = options.pop("spacing_mm", SPACING_MM)
    return load_predictor(folder, "cpu").predict(little_head() if hu is None else hu, spacing, **options)


def with_training_inputs(tmp_path: Path, values: Any) -> Path:
    folder = write_system_bundle(tmp_path / "small", "vicar-mil")
    about = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(about | {"training_inputs": values}))
    return folder


def test_a_model_that_says_nothing_of_its_training_gives_features_and_no_caveat(tmp_path: Path):
    finding = read(write_system_bundle(tmp_path / "small", "vicar-mil"))
    assert finding.unlike_training is None
    assert finding.caveats == ()
    assert finding.input_features == little_features().known()


def test_an_input_like_the_training_has_no_caveat_and_another_has(tmp_path: Path):
    folder = with_training_inputs(tmp_path, ranges_of([little_features(slice_thickness_mm=5.0)]).known())
    usual = read(folder, slice_thickness_mm=5.0)
    assert (usual.unlike_training, usual.caveats) == ({}, ())
    thick = read(folder, slice_thickness_mm=10.0)
    assert thick.caveats == ("Slices are 10 mm thick; the model learnt from 4.5 to 5.5 mm.",)
    thin = read(folder, np.repeat(little_head(), 5, axis=0), spacing_mm=(1.0, *SPACING_MM[1:]))
    assert set(thin.unlike_training or ()) == {"slice_spacing_mm"}
    assert thin.suspicion == pytest.approx(usual.suspicion, abs=0.2)  # read all the same


def test_the_shipped_model_says_what_it_did_not_learn_from():
    phantom = head_phantom(seed=3, rows=192, columns=192)
    shipped = load_predictor(device="cpu")
    assert shipped.predict(phantom.hu, phantom.spacing_mm).unlike_training == {}
    part = shipped.predict(phantom.hu[:12], phantom.spacing_mm)
    assert list(part.unlike_training or ()) == ["cavity_height_mm"]
    brighter = shipped.predict(phantom.hu + np.float32(20), phantom.spacing_mm)
    assert "brain_hu_median" in (brighter.unlike_training or ())


@pytest.mark.parametrize("values", [[], {"noise_hu": "low"}, {"noise": [0, 1]}])
def test_a_bundle_with_a_faulty_range_is_refused(tmp_path: Path, values: Any):
    with pytest.raises(ConfigurationError, match="training_inputs"):
        load_predictor(with_training_inputs(tmp_path, values), "cpu")
