"""The phantom: same seed, same head; tissues where they belong; blood inside the skull, as dense as blood."""

import numpy as np
import pytest
from scipy import ndimage

from ich_node.findings import IchSubtype
from ich_node.testing.phantom import HeadPhantom, head_phantom

SUBTYPES = tuple(s for s in IchSubtype if s is not IchSubtype.ANY)
SMALL = {"rows": 256, "columns": 256}


@pytest.fixture(scope="module")
def normal() -> HeadPhantom:
    return head_phantom(seed=3, **SMALL)


@pytest.fixture(scope="module", params=[(s, seed) for s in SUBTYPES for seed in (21, 22)], ids=str)
def bleeding(request: pytest.FixtureRequest) -> tuple[IchSubtype, HeadPhantom]:
    subtype, seed = request.param
    return subtype, head_phantom(bleeds=[subtype], seed=seed, **SMALL)


def enclosed_by_bone(image: np.ndarray) -> np.ndarray:
    """What bone surrounds in one slice, gaps of a few millimetres in the bone closed."""
    closed = ndimage.binary_closing(np.pad(image > 250, 8), iterations=4)
    return ndimage.binary_fill_holes(closed)[8:-8, 8:-8]


def test_same_seed_same_head() -> None:
    first, again, other = (
        head_phantom(bleeds=[IchSubtype.SUBDURAL], seed=seed, slices=6, **SMALL) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.hu, again.hu)
    np.testing.assert_array_equal(first.masks[IchSubtype.ANY], again.masks[IchSubtype.ANY])
    assert not np.array_equal(first.hu, other.hu)


@pytest.mark.parametrize(
    ("rows", "columns", "slices"), [(256, 256, 4), (512, 512, 2), (300, 201, 3), (64, 64, 1)]
)
def test_any_size(rows: int, columns: int, slices: int) -> None:
    phantom = head_phantom(seed=1, rows=rows, columns=columns, slices=slices)
    assert phantom.hu.shape == phantom.masks[IchSubtype.ANY].shape == (slices, rows, columns)
    assert phantom.hu.dtype == np.float32
    assert phantom.spacing_mm == (5.0, 230 / columns, 230 / columns)
    assert np.isfinite(phantom.hu).all()


def test_size_does_not_change_the_head() -> None:
    coarse = head_phantom(seed=4, slices=4, noise_hu=0, **SMALL)
    fine = head_phantom(seed=4, slices=4, noise_hu=0, rows=512, columns=512)
    reduced = fine.hu.reshape(4, 256, 2, 256, 2).mean(axis=(2, 4))
    difference = np.abs(reduced - coarse.hu)[(coarse.hu > 0) & (coarse.hu < 80)]
    assert np.median(difference) < 1.5


def test_normal_head_has_the_tissues_of_a_head(normal: HeadPhantom) -> None:
    middle = normal.hu[18]
    brain = ndimage.binary_erosion(enclosed_by_bone(middle) & (middle < 150), iterations=4)
    assert 30 < middle[brain].mean() < 40
    smooth = ndimage.gaussian_filter(middle, 1.2)[brain]
    gray, white = np.percentile(smooth, [90, 25])
    assert 4 < gray - white < 15
    assert smooth.min() < 16, "no cerebrospinal fluid"
    assert (middle > 700).any()
    assert normal.hu.min() >= -1024
    assert normal.hu[:, :8, :8].max() < -900, "no air around the head"


def test_normal_head_has_no_bleed(normal: HeadPhantom) -> None:
    assert set(normal.masks) == {IchSubtype.ANY}
    assert not normal.masks[IchSubtype.ANY].any()
    assert set(normal.subtypes_by_slice()) == {frozenset()}


def test_head_tapers_to_the_vertex(normal: HeadPhantom) -> None:
    area = [enclosed_by_bone(image).sum() for image in normal.hu[16:29:4]]
    assert area == sorted(area, reverse=True)
    assert area[-1] < 0.6 * area[0]


def test_air_in_the_skull_base_and_not_in_the_vault(normal: HeadPhantom) -> None:
    air = [(enclosed_by_bone(image) & (image < -500)).sum() for image in normal.hu]
    assert sum(air[:12]) > 200
    assert sum(air[18:]) == 0


def test_noise_is_as_strong_as_asked_and_correlated(normal: HeadPhantom) -> None:
    noise = normal.hu - head_phantom(seed=3, noise_hu=0, **SMALL).hu
    inside = np.abs(normal.hu) < 500
    assert noise[inside].std() == pytest.approx(4.0, abs=0.3)
    neighbours = np.corrcoef(noise[15:20, :, :-1].ravel(), noise[15:20, :, 1:].ravel())[0, 1]
    assert neighbours > 0.3


def test_bleed_lies_inside_the_skull(bleeding: tuple[IchSubtype, HeadPhantom]) -> None:
    subtype, phantom = bleeding
    mask = phantom.masks[subtype]
    inside = np.stack([enclosed_by_bone(image) for image in phantom.hu])
    assert (mask & inside).sum() > 0.95 * mask.sum()


def test_bleed_is_as_dense_as_blood(bleeding: tuple[IchSubtype, HeadPhantom]) -> None:
    subtype, phantom = bleeding
    hu = phantom.hu[phantom.masks[subtype]]
    assert 47 < hu.mean() < 77
    assert np.percentile(hu, 2) > 28
    assert np.percentile(hu, 95) < 110


def test_bleed_is_large_enough_to_see(bleeding: tuple[IchSubtype, HeadPhantom]) -> None:
    subtype, phantom = bleeding
    volume_ml = phantom.masks[subtype].sum() * np.prod(phantom.spacing_mm) / 1000
    assert 2 < volume_ml < 120
    found = phantom.subtypes_by_slice()
    assert sum(subtype in s for s in found) >= 2


def test_epidural_is_a_lens_and_subdural_a_crescent() -> None:
    """The crescent is longer for its thickness: extent over the greatest depth, in the largest slice."""

    def slenderness(subtype: IchSubtype) -> float:
        phantom = head_phantom(bleeds=[subtype], seed=8, **SMALL)
        mask = phantom.masks[subtype]
        mask = mask[int(mask.sum(axis=(1, 2)).argmax())]
        depth = ndimage.distance_transform_edt(mask).max() * 2
        spread = np.hypot(*(np.ptp(axis) for axis in np.nonzero(mask)))
        return float(spread / depth)

    assert slenderness(IchSubtype.SUBDURAL) > 1.5 * slenderness(IchSubtype.EPIDURAL)


def test_blood_in_the_ventricles_sinks_to_the_back() -> None:
    phantom = head_phantom(bleeds=[IchSubtype.INTRAVENTRICULAR], seed=9, noise_hu=0, **SMALL)
    mask = phantom.masks[IchSubtype.INTRAVENTRICULAR]
    image, blood = max(zip(phantom.hu, mask, strict=True), key=lambda pair: pair[1].sum())
    fluid = ndimage.binary_opening(enclosed_by_bone(image) & (image < 15) & (image > -5), iterations=2)
    assert np.nonzero(blood)[0].mean() > np.nonzero(fluid)[0].mean()


def test_any_is_the_union_of_what_was_asked_for() -> None:
    asked = [IchSubtype.INTRAPARENCHYMAL, IchSubtype.SUBDURAL]
    masks = head_phantom(bleeds=asked, seed=2, **SMALL).masks
    assert set(masks) == {*asked, IchSubtype.ANY}
    np.testing.assert_array_equal(masks[IchSubtype.ANY], masks[asked[0]] | masks[asked[1]])


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="ANY"):
        head_phantom(bleeds=[IchSubtype.ANY])
    with pytest.raises(ValueError, match="positive"):
        head_phantom(slices=0)
