"""The package's own system: slabs of thin slices, neighbours, pooling over positions, maps and the names of points."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_node.findings import IchSubtype
from ich_node.model.efficientnet_lite import (
    IMAGENET_PACKAGE,
    EfficientNetLite0,
    LitePyramid,
    load_imagenet,
    load_imagenet_pyramid,
)
from ich_node.model.lite_mil import (
    CLASSES,
    LiteMil,
    LiteMilConfig,
    LiteMilPreprocessing,
    LiteMilSystem,
    joined_with_neighbours,
    network_input,
    slab_hu,
    slice_hu,
)
from ich_node.model.predict import load_predictor
from ich_node.model.preprocess import cut_out
from ich_node.model.system import Head
from tests.system_bundles import small_bleed, write_system_bundle

PREPROCESSING = LiteMilPreprocessing(size=64, pitch_mm=3.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Convolutions this small wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_system_bundle(tmp_path_factory.mktemp("bundles") / "lite-mil", "lite-mil")


@pytest.fixture
def system(bundle: Path) -> LiteMilSystem:
    """A small one, with a quarter of a slice's logits from its neighbours."""
    loaded = load_predictor(bundle, "cpu").system
    assert isinstance(loaded, LiteMilSystem)
    return loaded


def numbered(slices: int, distance_mm: float) -> Head:
    """Every pixel holds the number of its slice."""
    hu = np.arange(slices, dtype=np.float32)[:, None, None].repeat(4, 1).repeat(4, 2)
    return Head(hu=hu, spacing_mm=(distance_mm, 1.0, 1.0))


def thin(times: int) -> Head:
    """The middle slices of a phantom, each so often and so much nearer to the next: thin slices of the same."""
    phantom = small_bleed()
    distance, row, column = phantom.spacing_mm
    return Head(hu=phantom.hu[4:8].repeat(times, axis=0), spacing_mm=(distance / times, row, column))


# --- slices and slabs


@pytest.mark.parametrize("distance", [4.0, 5.0, 7.5, 13.0])
def test_thick_slices_are_shown_as_they_are_with_their_neighbours(distance: float):
    head = numbered(9, distance)
    for index, below, above in ((0, 0, 1), (4, 3, 5), (8, 7, 8)):
        shown = [slab_hu(head, index, offset, 5.0)[0, 0] for offset in (-5.0, 0.0, 5.0)]
        assert shown == [below, index, above]


@pytest.mark.parametrize("distance", [0.5, 0.6, 0.625, 1.0, 1.25, 2.0, 2.5, 3.0])
def test_thin_slices_are_averaged_around_the_place_they_stand_for(distance: float):
    head = numbered(81, distance)
    for offset in (-5.0, 0.0, 5.0):
        # the middle of what was averaged lies within half a slice of what was asked for
        assert abs(float(slab_hu(head, 40, offset, 5.0)[0, 0]) - 40 - offset / distance) <= 0.5


def test_averaging_takes_the_noise_of_thin_slices_away():
    noise = np.random.default_rng(0).normal(0, 10, (60, 40, 40)).astype(np.float32)
    head = Head(hu=noise, spacing_mm=(0.6, 1.0, 1.0))
    assert slab_hu(head, 30, 0.0, 5.0).std() == pytest.approx(10 / 9**0.5, rel=0.05)  # 9 lie within 5 mm


@pytest.mark.parametrize("distance", [0.625, 1.25, 2.5])
def test_rounded_positions_do_not_change_a_slab(distance: float):
    """A slice at the very edge of the slab is in it, whichever way its position was rounded."""
    hu = np.random.default_rng(0).normal(size=(41, 3, 3)).astype(np.float32)
    for offset in (-5.0, 0.0, 5.0):
        slabs = [
            slab_hu(Head(hu=hu, spacing_mm=(distance * factor, 1.0, 1.0)), 20, offset, 5.0)
            for factor in (0.9998, 1.0, 1.0002)
        ]
        assert np.array_equal(slabs[0], slabs[1])
        assert np.array_equal(slabs[1], slabs[2])


def test_slabs_end_where_the_scan_ends():
    head = numbered(50, 0.6)
    assert slab_hu(head, 0, -5.0, 5.0)[0, 0] == slab_hu(head, 0, 0.0, 5.0)[0, 0] == 2.0  # slices 0 to 4
    assert slab_hu(head, 49, 5.0, 5.0)[0, 0] == slab_hu(head, 49, 0.0, 5.0)[0, 0] == 47.0


def test_input_shows_windows_neighbours_and_how_much_denser_the_slice_is():
    hu = torch.tensor([0.0, 60.0, 40.0]).view(1, 3, 1, 1).repeat(1, 1, 2, 2)  # below, the slice, above
    config = LiteMilPreprocessing()
    shown = network_input(hu, config)
    assert shown.shape == (1, LiteMilConfig().in_channels, 2, 2)
    windows = [0.5, 2 * (60 - 80) / 200, 2 * (60 - 150) / 700]
    assert shown[0, :, 0, 0].tolist() == pytest.approx([*windows, -1.0, 0.0, 0.75 - (0 + 0.5) / 2], abs=1e-6)
    assert network_input(torch.full((1, 3, 2, 2), 5000.0), config).max() <= 1
    assert network_input(torch.full((1, 3, 2, 2), -5000.0), config).min() >= -1


def test_grid_holds_the_slice_between_its_neighbours():
    head = Head(hu=small_bleed().hu, spacing_mm=small_bleed().spacing_mm)
    index = head.inside[len(head.inside) // 2]
    hu, mask, frame = slice_hu(head, index, PREPROCESSING)
    assert hu.shape == (3, 64, 64)
    assert mask.any()
    for plane, source in zip(hu, (index - 1, index, index + 1), strict=True):
        alone = slice_hu(Head(hu=head.hu[source : source + 1], spacing_mm=head.spacing_mm), 0, PREPROCESSING)
        if alone[2] == frame:
            assert np.array_equal(plane, alone[0][1])
    one = slice_hu(Head(hu=head.hu[index : index + 1], spacing_mm=head.spacing_mm), 0, PREPROCESSING)[0]
    assert np.array_equal(one[0], one[1])
    assert np.array_equal(one[1], one[2])


# --- the network


@pytest.mark.parametrize("size", [64, 100])
@torch.no_grad()
def test_pyramid_is_the_network_without_its_end(size: int):
    torch.manual_seed(0)
    whole, pyramid = EfficientNetLite0(2).eval(), LitePyramid(3).eval()
    pyramid.load_state_dict({key: whole.state_dict()[key] for key in pyramid.state_dict()})
    x = torch.randn(1, 3, size, size)
    maps = pyramid(x)
    assert [m.shape[1] for m in maps] == list(LitePyramid.widths)
    assert [m.shape[-1] for m in maps] == [-(-size // by) for by in (4, 8, 16, 32)]
    h = torch.nn.functional.relu6(whole._bn0(whole._conv_stem(x)))
    for number, block in enumerate(whole._blocks[:15]):
        h = block(h)
        for end, found in zip((2, 4, 10, 14), maps, strict=True):
            if number == end:
                assert torch.equal(h, found)


@pytest.mark.skipif(
    importlib.util.find_spec(IMAGENET_PACKAGE) is None, reason="ImageNet weights are not installed"
)
@torch.no_grad()
def test_imagenet_sees_a_grey_image_in_any_number_of_channels():
    torch.manual_seed(0)
    whole, pyramid = EfficientNetLite0().eval(), LitePyramid(6).eval()
    load_imagenet(whole)
    load_imagenet_pyramid(pyramid)
    grey = torch.rand(1, 1, 64, 64)
    h = torch.nn.functional.relu6(whole._bn0(whole._conv_stem(grey.repeat(1, 3, 1, 1))))
    for block in whole._blocks[:15]:
        h = block(h)
    assert torch.allclose(pyramid(grey.repeat(1, 6, 1, 1))[-1], h, atol=1e-3)
    assert h.std() > 0.1


@torch.no_grad()
def test_positions_outside_the_mask_are_in_no_bag():
    torch.manual_seed(0)
    network = LiteMil(LiteMilConfig(width=8)).eval()
    for name in ("weight", "bias"):
        getattr(network.whole[1], name).zero_()  # what is left is the bag
    x = torch.randn(2, 6, 64, 64)
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[0, 20, 40] = mask[1, 63, 0] = True
    out = network(x, mask)
    assert torch.allclose(out.logits[0], out.positions[0, :, 5, 10], atol=1e-6)
    assert torch.allclose(out.logits[1], out.positions[1, :, 15, 0], atol=1e-6)
    empty, full = torch.zeros_like(mask), torch.ones_like(mask)
    assert torch.equal(network(x, empty).logits, network(x, full).logits)
    # the more suspicious a position, the more it counts
    plain_mean = out.positions[:, 0].mean((1, 2))
    assert (network(x, full).logits[:, 0] > plain_mean).all()


def test_logits_of_neighbours_are_mixed():
    logits = np.array([0.0, 4.0, 8.0, 0.0])
    assert joined_with_neighbours(logits, 0.25).tolist() == [0.5, 4.0, 6.5, 1.0]
    assert joined_with_neighbours(logits, 0.0).tolist() == logits.tolist()
    assert joined_with_neighbours(logits[:1], 0.5).tolist() == [0.0]
    assert len(joined_with_neighbours(logits[:0], 0.5)) == 0


# --- heads


def test_not_every_thin_slice_is_scored_and_what_lies_between_is_interpolated(system: LiteMilSystem):
    head = thin(20)  # 0.65 mm
    scores = system.score(head)
    scored, inside = sorted(scores.kept), list(head.inside)
    assert scored == sorted({*inside[::3], inside[-1]})
    assert np.isfinite(scores.logits[inside]).all()
    between = sorted(set(inside) - set(scored))
    assert len(between) > 1.8 * len(scored)
    for index in between:
        below, above = max(s for s in scored if s < index), min(s for s in scored if s > index)
        share = (index - below) / (above - below)
        want = (1 - share) * scores.logits[below] + share * scores.logits[above]
        assert scores.logits[index] == pytest.approx(want)


@pytest.mark.parametrize(
    ("distance", "stride"), [(5.0, 1), (2.4, 1), (1.25, 1), (1.2, 2), (0.8, 3), (0.6, 4)]
)
def test_scored_slices_are_at_most_some_millimetres_apart(
    system: LiteMilSystem, distance: float, stride: int, monkeypatch: pytest.MonkeyPatch
):
    phantom = small_bleed()
    head = Head(hu=phantom.hu, spacing_mm=(distance, *phantom.spacing_mm[1:]))
    # a squeezed head is no head: its intracranial space is that of the head as it was
    head.__dict__["mask"] = Head(hu=phantom.hu, spacing_mm=phantom.spacing_mm).mask
    inside = list(head.inside)
    assert sorted(system.score(head).kept) == sorted({*inside[::stride], inside[-1]})


def test_map_of_a_slice_between_is_that_of_the_nearest_scored(system: LiteMilSystem):
    head = thin(20)
    scores = system.score(head)
    first, second = sorted(scores.kept)[4:6]
    assert second - first == 3
    shown = [system.maps(head, index, scores) for index in range(first, second + 1)]
    for at, like in ((1, 0), (2, 3)):
        for subtype in CLASSES:
            assert np.array_equal(shown[at][subtype], shown[like][subtype])
    assert not np.array_equal(shown[0][IchSubtype.ANY], shown[3][IchSubtype.ANY])


def test_slab_and_neighbours_within_one_thick_slice_show_that_slice_three_times():
    phantom = small_bleed()
    head = Head(hu=phantom.hu[4:7].repeat(20, axis=0), spacing_mm=(1.0, *phantom.spacing_mm[1:]))
    for index, source in ((30, 5), (32, 5), (50, 6)):  # 7.5 mm to either side are within 20 mm
        hu, _, frame = slice_hu(head, index, PREPROCESSING)
        alone = cut_out(phantom.hu[source], frame, PREPROCESSING.size, PREPROCESSING.hu_range)
        assert all(np.abs(plane - alone).max() < 1e-3 for plane in hu)
    assert np.abs(np.diff(slice_hu(head, 39, PREPROCESSING)[0], axis=0)).max() > 1  # at the edge it is not


def test_head_without_intracranial_space_gets_no_score(system: LiteMilSystem):
    scores = system.score(Head(hu=np.full((4, 64, 64), -1000, np.float32), spacing_mm=(5.0, 2.0, 2.0)))
    assert scores.logits.shape == (4, 6)
    assert np.isneginf(scores.logits).all()
    assert not scores.kept


def test_head_of_one_slice_is_scored(system: LiteMilSystem):
    phantom = small_bleed()
    index = len(phantom.hu) // 2
    scores = system.score(Head(hu=phantom.hu[index : index + 1], spacing_mm=phantom.spacing_mm))
    assert np.isfinite(scores.logits).all()
    assert list(scores.kept) == [0]


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_slice_is_judged_with_those_beside_it_alone(system: LiteMilSystem, share: float):
    system.config = replace(system.config, neighbours=share)
    phantom = small_bleed()
    head = Head(hu=phantom.hu, spacing_mm=phantom.spacing_mm)
    changed = head.hu.copy()
    middle = len(changed) // 2
    changed[middle, 60:68, 60:68] += 30
    other = Head(hu=changed, spacing_mm=head.spacing_mm)
    assert np.array_equal(head.mask.mask, other.mask.mask)
    differs = (system.score(head).logits != system.score(other).logits).any(axis=1)
    reach = 1 if share == 0 else 2  # the neighbour's logit has a neighbour in turn
    assert np.flatnonzero(differs).tolist() == list(range(middle - reach, middle + reach + 1))


def test_mirrored_head_has_mirrored_maps_and_the_same_scores(system: LiteMilSystem):
    phantom = small_bleed()
    head = Head(hu=phantom.hu, spacing_mm=phantom.spacing_mm)
    mirrored = Head(hu=np.ascontiguousarray(phantom.hu[:, :, ::-1]), spacing_mm=phantom.spacing_mm)
    assert np.array_equal(head.mask.mask[:, :, ::-1], mirrored.mask.mask)
    scores, other = system.score(head), system.score(mirrored)
    inside = list(head.inside)
    assert scores.logits[inside] == pytest.approx(other.logits[inside], abs=1e-3)
    for index in inside[1:-1:3]:
        maps, turned = system.maps(head, index, scores), system.maps(mirrored, index, other)
        for subtype in CLASSES:
            assert maps[subtype] == pytest.approx(turned[subtype][:, ::-1], abs=2e-3)


# --- points


def peak(row: int, column: int, height: float) -> np.ndarray:
    y, x = np.mgrid[:80, :90]
    return np.asarray(height * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 30), np.float32)


def test_points_are_named_after_the_likeliest_subtype_whose_likelihood_they_carry(system: LiteMilSystem):
    maps = {subtype: np.zeros((80, 90), np.float32) for subtype in CLASSES}
    maps[IchSubtype.ANY] = peak(20, 30, 0.9) + peak(60, 70, 0.8)
    maps[IchSubtype.SUBDURAL] = peak(20, 30, 0.5)
    maps[IchSubtype.EPIDURAL] = peak(20, 30, 0.3)
    maps[IchSubtype.INTRAVENTRICULAR] = peak(60, 70, 0.7)
    maps[IchSubtype.SUBARACHNOID] = peak(5, 5, 0.9)  # where *any* says nothing there is no point
    places = system.places(maps, (5.0, 1.0, 1.0))
    assert [(p.kind, p.subtype, p.coordinates) for p in places] == [
        ("point", IchSubtype.INTRAVENTRICULAR, (70.5, 60.5)),
        ("point", IchSubtype.SUBDURAL, (30.5, 20.5)),
    ]
    assert [p.score for p in places] == pytest.approx([0.7, 0.5], abs=1e-3)
    maps[IchSubtype.ANY][:] = 0
    assert system.places(maps, (5.0, 1.0, 1.0)) == ()
