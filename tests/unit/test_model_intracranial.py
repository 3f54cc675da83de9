"""The intracranial mask on heads of whole, open and missing skulls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest

from ich_node.model.intracranial import enclosure, intracranial_mask
from ich_node.testing import phantom
from ich_node.testing.anatomy import Points

SPACING = (5.0, 1.0, 1.0)


def disk(radius: float, size: int = 220) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.asarray(np.hypot(y, x) <= radius)


def head(opening_deg: float = 0.0) -> np.ndarray:
    """A round skull of 70 mm inside a scalp, in air; open to the right over an angle."""
    image = np.full((220, 220), -1000, np.float32)
    image[disk(88)] = 50
    image[disk(78)] = 900
    y, x = np.mgrid[:220, :220] - 109.5
    gap = (np.abs(np.degrees(np.arctan2(y, x))) < opening_deg / 2) & disk(78)
    image[gap] = 35
    image[disk(70)] = 35
    return image


def test_inside_of_a_whole_skull():
    mask = intracranial_mask(np.stack([head()] * 3), SPACING)
    inside = mask.on_source_grid(1)
    assert inside[disk(66)].all()
    assert not inside[~disk(76)].any()


@pytest.mark.parametrize("opening_deg", [20, 60, 90])
def test_open_skull_keeps_its_inside(opening_deg: float):
    mask = intracranial_mask(np.stack([head(opening_deg)] * 3), SPACING).on_source_grid(1)
    assert (mask & disk(66)).sum() > 0.8 * disk(66).sum()
    # at most the place of the missing bone belongs to it
    assert (mask & ~disk(88)).sum() == 0


def test_calcification_air_and_metal_inside_belong_to_it():
    image = head()
    for column, value in ((90, 700.0), (110, -1000.0), (130, 3000.0)):
        image[100:106, column : column + 6] = value
    inside = intracranial_mask(np.stack([image] * 3), SPACING).on_source_grid(1)
    assert inside[disk(64)].all()


def test_empty_without_a_skull():
    soft = np.where(disk(80), 40, -1000).astype(np.float32)
    assert not intracranial_mask(np.stack([soft] * 3), SPACING).mask.any()


def test_padding_value_does_not_matter():
    plain = np.stack([head()] * 3)
    padded = plain.copy()
    padded[:, ~disk(105)] = -3024
    assert np.array_equal(intracranial_mask(plain, SPACING).mask, intracranial_mask(padded, SPACING).mask)


def test_sizes_that_no_block_divides():
    image = np.pad(head(), ((0, 1), (0, 3)), constant_values=-1000)
    mask = intracranial_mask(np.stack([image] * 3), SPACING)
    assert mask.on_source_grid(0).shape == (221, 223)


def test_nothing_is_taken_up_again_below_the_skull_base():
    neck = np.full((220, 220), -1000, np.float32)
    neck[disk(60)] = 45
    jaw = head()  # bone all around, but two slices of neck lie between
    volume = np.stack([jaw, neck, neck, neck, head(), head(), head(), head()])
    volume[0] = np.where(disk(40), head(), -1000)
    kept = intracranial_mask(volume, SPACING).mask.any(axis=(1, 2))
    assert kept.tolist() == [False] * 4 + [True] * 4


def test_enclosure_counts_directions():
    ring = disk(50, 121) & ~disk(46, 121)
    assert enclosure(ring)[60, 60] == 1
    half = ring.copy()
    half[:, 61:] = False
    assert 0.4 < enclosure(half)[60, 60] < 0.65
    assert enclosure(np.zeros((20, 20), bool)).max() == 0


@dataclass(frozen=True, kw_only=True)
class Head:
    """A phantom and where its surfaces are; all arrays (slices, rows, columns) float32."""

    hu: np.ndarray
    space: np.ndarray
    """Signed distance to the intracranial space, mm, negative inside."""
    canal: np.ndarray
    vault: np.ndarray
    """Signed distance to the inner table of the vault, mm, negative inside."""
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    """Places in the head frame, mm."""
    spacing_mm: tuple[float, float, float]


@lru_cache(maxsize=6)
def phantom_head(
    roll_deg: float = 0.0,
    nod_deg: float = 0.0,
    shear_deg: float = 0.0,
    noise_hu: float = 4.0,
    slices: int = 24,
    slice_mm: float = 6.0,
) -> Head:
    """The shipped phantom in another pose, with the truth that its own surfaces give; the gantry may be tilted."""
    seen: dict[str, object] = {}
    place, measure = phantom._to_head_frame, phantom.distances

    def posed(grid, rng):
        before = place(grid, rng)
        z = np.broadcast_to(grid.z[:, None, None], grid.shape).ravel()
        roll, nod, shear = np.deg2rad([roll_deg, nod_deg, shear_deg])
        x, y, up = before.x, before.y + np.tan(shear) * z, before.z - phantom.MIDDLE_MM
        x, y = np.cos(roll) * x + np.sin(roll) * y, -np.sin(roll) * x + np.cos(roll) * y
        y, up = np.cos(nod) * y + np.sin(nod) * up, -np.sin(nod) * y + np.cos(nod) * up
        after = Points(
            x=x.astype(np.float32),
            y=y.astype(np.float32),
            z=(up + phantom.MIDDLE_MM).astype(np.float32),
        )
        seen.update(grid=grid, points=after)
        return after

    def measured(points, shape):
        seen["shape"] = shape
        return measure(points, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "_to_head_frame", posed)
        patch.setattr(phantom, "distances", measured)
        # at 1 mm the phantom's own grid is the image's
        made = phantom.head_phantom(
            seed=0,
            slices=slices,
            rows=230,
            columns=230,
            field_of_view_mm=230.0,
            slice_spacing_mm=slice_mm,
            noise_hu=noise_hu,
        )
    grid, points = seen["grid"], seen["points"]
    truth = measure(points, seen["shape"])

    def volume(flat):
        cells = flat.reshape(-1, grid.sub_slices, *grid.shape[1:])
        return np.asarray(cells.mean(axis=1), np.float32)

    return Head(
        hu=made.hu,
        space=volume(np.maximum(truth.vault, truth.floor)),
        canal=volume(truth.canal),
        vault=volume(truth.vault),
        x=volume(points.x),
        y=volume(points.y),
        z=volume(points.z),
        spacing_mm=made.spacing_mm,
    )


def without_part_of_vault(whole: Head, bulge_mm: float, lowest_mm: float = 45.0) -> Head:
    """Right hemicraniectomy: brain up to the bulge, then 6 mm of dura, fat and skin, then air."""
    hu, space = whole.hu.copy(), whole.space.copy()
    part = (whole.x > 25) & (whole.y > -70) & (whole.y < 55) & (whole.z > lowest_mm)
    hu[part & (whole.vault > -1.5)] = 33
    hu[part & (whole.vault > bulge_mm)] = 20
    hu[part & (whole.vault > bulge_mm + 6)] = -1000
    space[part] = whole.vault[part] - bulge_mm
    return replace(whole, hu=hu, space=space)


def inside_of(head: Head) -> np.ndarray:
    mask = intracranial_mask(head.hu, head.spacing_mm)
    return np.stack([mask.on_source_grid(i) for i in range(len(head.hu))])


def missed(head: Head, found: np.ndarray) -> float:
    """Fraction of the space deeper than 1.5 mm that the mask lacks."""
    deep = head.space < -1.5
    return float((deep & ~found).sum() / deep.sum())


def leaked_mm(head: Head, found: np.ndarray) -> float:
    """How far the mask reaches beyond the space and the spinal canal."""
    return float(np.minimum(head.space, head.canal)[found].max())


def hold(head: Head, most_missed: float, most_leaked_mm: float = 5.0) -> None:
    found = inside_of(head)
    assert missed(head, found) < most_missed
    assert leaked_mm(head, found) < most_leaked_mm


@pytest.mark.parametrize("roll_deg", [-15.0, 15.0])
def test_head_turned_in_the_plane(roll_deg: float):
    """The rays have sixteen directions; none of them may be better than the others."""
    hold(phantom_head(roll_deg=roll_deg), 0.03)


@pytest.mark.parametrize("tilt_deg", [-20.0, 20.0])
def test_tilted_gantry(tilt_deg: float):
    """Tilted slices cut orbits and posterior fossa at once, and shift against each other."""
    hold(phantom_head(nod_deg=tilt_deg, shear_deg=-tilt_deg), 0.03)


@pytest.mark.parametrize("noise_hu", [30.0, 40.0])
def test_low_dose(noise_hu: float):
    """Noise makes cells of brain look like bone and like fat; they must not eat the mask from its edge."""
    hold(phantom_head(noise_hu=noise_hu), 0.03)


def test_thin_slices_with_noise():
    """A walk by slices must not end sooner, or spread further, because slices are thin."""
    hold(phantom_head(noise_hu=25.0, slices=100, slice_mm=1.2), 0.03)


def test_anisotropic_pixels():
    """Every radius is in mm, so pixels twice as wide as high change little."""
    head = phantom_head()
    wide = {k: getattr(head, k)[:, :, ::2].copy() for k in ("hu", "space", "canal", "vault", "x", "y", "z")}
    hold(Head(**wide, spacing_mm=(head.spacing_mm[0], 1.0, 2.0)), 0.03)


@pytest.mark.parametrize("axis", [1, 2])
def test_head_cut_by_the_edge_of_the_image(axis: int):
    """Where the bone lies outside the image, the space reaches the image's edge."""
    head = phantom_head()
    kept = (slice(None),) * axis + (slice(45, None),)
    cut = {k: getattr(head, k)[kept].copy() for k in ("hu", "space", "canal", "vault", "x", "y", "z")}
    hold(Head(**cut, spacing_mm=head.spacing_mm), 0.03)


@pytest.mark.parametrize("bulge_mm", [0.0, 6.0])
@pytest.mark.parametrize("noise_hu", [4.0, 30.0])
def test_craniectomy_keeps_the_brain_behind_it(bulge_mm: float, noise_hu: float):
    """A third of the vault is missing: the brain up to the flap belongs to the space, the flap does not."""
    head = without_part_of_vault(phantom_head(noise_hu=noise_hu), bulge_mm)
    found = inside_of(head)
    behind = (
        (head.x > 20) & (head.z > 55) & (head.z < 110) & (head.space < -3) & (head.y > -60) & (head.y < 45)
    )
    assert (found & behind).sum() > 0.93 * behind.sum()
    assert missed(head, found) < 0.06
    assert leaked_mm(head, found) < 8
    flap = (head.vault > bulge_mm + 6) & (head.z > 55)
    assert (found & flap).sum() < 0.005 * found.sum()


def test_whole_vault_is_taken_for_no_craniectomy():
    """Gaps of the skull base and the face are no reason to add muscle, orbit or sinus."""
    head = phantom_head()
    found = inside_of(head)
    assert missed(head, found) < 0.03
    assert (found & (head.space > 4) & (head.canal > 4)).sum() < 0.0005 * found.sum()


@pytest.mark.parametrize("hounsfield", [50, 70, 90])
def test_blood_along_the_inner_table_is_inside(hounsfield: int):
    """Subdural blood touches bone; what is lost of it is the coarse cell that it shares with the bone."""
    head = phantom_head()
    blood = (head.x > 5) & (head.z > 50) & (head.space > -8) & (head.space < -1.5) & (head.vault < 0)
    hu = head.hu.copy()
    hu[blood] = hounsfield
    found = inside_of(replace(head, hu=hu))
    assert (found & blood).sum() > 0.95 * blood.sum()


def test_streaks_of_a_coil_do_not_cost_the_head():
    """Metal makes slices unreadable; the space is followed across them and they have what both sides have."""
    head = phantom_head()
    hu = head.hu.copy()
    y, x = np.mgrid[:230, :230] - np.array([120, 125])[:, None, None]
    streak = 20000 * np.cos(9 * np.arctan2(y, x)) / (np.hypot(y, x) + 3)
    for index in (10, 11, 12):
        hu[index] += streak
        hu[index, 116:124, 121:129] = 3071
    hu = np.clip(hu, -1024, 3071)
    found = inside_of(replace(head, hu=hu))
    assert missed(head, found) < 0.05
    assert leaked_mm(head, found) < 5


@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
def test_padding_around_the_field_of_view(padding: int):
    """Scanners pad with values of their own; none of them is tissue, and no mean may be drawn down by them."""
    head = phantom_head()
    y, x = np.mgrid[:230, :230] - 114.5
    hu = head.hu.copy()
    hu[:, np.hypot(y, x) > 114] = padding
    assert np.array_equal(inside_of(replace(head, hu=hu)), inside_of(head))


def test_bone_like_holder_outside_does_not_close_the_rays():
    """A bright rest behind the head meets rays too, yet nothing between it and the skull is brain."""
    head = phantom_head()
    y, x = np.mgrid[:230, :230] - 114.5
    shell = (np.abs(np.hypot(y, x) - 111) < 2) & (y > -40)
    hu = np.where(shell & (head.hu < -500), 500, head.hu).astype(np.float32)
    hold(replace(head, hu=hu), 0.03)
