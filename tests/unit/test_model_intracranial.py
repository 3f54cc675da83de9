"""The intracranial mask on heads of whole, open and missing skulls."""

from __future__ import annotations

import numpy as np
import pytest

from ich_node.model.intracranial import enclosure, intracranial_mask

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
