"""Parts of training: augmentation, small bags, sampling, splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.model.vicar_mil import BagOutput
from training.augment import AugmentConfig, augment, centre_crop
from training.bags import tile_loss
from training.dataset import SliceSet, stratified_folds
from training.sampling import Mix, Sampler

STILL = AugmentConfig(
    rotation_deg=0, scale=0, shift_pixels=0, brightness_hu=0, contrast=0, noise_hu=0, sharpen=0
)


def slice_set(positives: list[int], per_scan: int = 10, wide: int = 24, lesion: bool = False) -> SliceSet:
    """Scans with so many positive slices each; every pixel of a slice holds the slice's number."""
    label = np.concatenate([np.arange(per_scan) < n for n in positives])
    hu = np.arange(len(label), dtype=np.int16)[:, None, None].repeat(wide, 1).repeat(wide, 2)
    inside = np.zeros((wide, wide), bool)
    inside[4:-4, 4:-4] = True
    blood = np.zeros_like(inside)
    blood[8:16, 8:16] = True
    return SliceSet(
        hu=hu,
        mask=np.stack([inside] * len(label)),
        label=label,
        scan=np.repeat(np.arange(len(positives)), per_scan),
        scans=tuple(f"p{i}" for i in range(len(positives))),
        lesion=np.stack([blood & bool(x) for x in label]) if lesion else None,
    )


def test_no_change_is_the_centre_crop_or_its_mirror():
    hu = torch.rand(8, 24, 24) * 100
    masks = (torch.rand(8, 2, 24, 24) > 0.5).float()
    out, moved = augment(hu, masks, 16, STILL, torch.Generator().manual_seed(0))
    plain = centre_crop(hu, 16)
    mirrored = plain.flip(-1)
    hits = [
        (torch.allclose(o, p, atol=1e-3), torch.allclose(o, m, atol=1e-3))
        for o, p, m in zip(out, plain, mirrored, strict=True)
    ]
    assert all(a != b for a, b in hits)
    assert {a for a, _ in hits} == {True, False}
    for index, (straight, _) in enumerate(hits):
        want = centre_crop(masks[index], 16)
        assert torch.allclose(moved[index], want if straight else want.flip(-1), atol=1e-4)


def test_masks_move_with_the_image():
    hu = torch.full((16, 48, 48), -900.0)
    hu[:, 20:30, 15:25] = 50
    masks = (hu > 0).float()[:, None]
    config = AugmentConfig(brightness_hu=0, contrast=0, noise_hu=0, sharpen=0)
    out, moved = augment(hu, masks, 32, config, torch.Generator().manual_seed(1))
    assert ((out > -425) == (moved[:, 0] > 0.5)).float().mean() > 0.995
    assert len({tuple(m.flatten().tolist()) for m in moved > 0.5}) > 10


def test_augmentation_repeats_by_its_seed():
    hu = torch.rand(4, 24, 24) * 100
    masks = torch.ones(4, 2, 24, 24)
    first, second, other = (
        augment(hu, masks, 16, AugmentConfig(), torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def bag(position_logits: torch.Tensor) -> BagOutput:
    energy = torch.zeros_like(position_logits)
    return BagOutput(position_logits.mean((1, 2)), position_logits, energy, energy + 1 / energy[0].numel())


def test_tiles_are_judged_by_their_own_lesion():
    lesion = torch.zeros(1, 64, 64)
    lesion[0, :32, :32] = 1  # the first of four tiles
    right = torch.full((1, 16, 16), -8.0)
    right[0, :8, :8] = 8
    located = torch.tensor([True])
    assert tile_loss(bag(right), lesion, located, 0) < 0.01
    assert tile_loss(bag(-right), lesion, located, 0) > 5


def test_tiles_of_a_real_positive_are_not_judged():
    out = bag(torch.full((2, 16, 16), 9.0))
    lesion = torch.zeros(2, 64, 64)
    assert tile_loss(out, lesion, torch.tensor([False, False]), 0) == 0
    assert tile_loss(out, lesion, torch.tensor([True, False]), 0) > 5


def test_tile_with_a_trace_of_blood_has_no_label():
    lesion = torch.zeros(1, 64, 64)
    lesion[0, 0, :5] = 1
    wrong_only_there = torch.full((1, 16, 16), -8.0)
    wrong_only_there[0, :8, :8] = 8
    assert tile_loss(bag(wrong_only_there), lesion, torch.tensor([True]), 0) < 0.01


def test_sampler_keeps_to_the_training_scans():
    slices = slice_set([3, 0, 5, 0])
    sampler = Sampler(slices, np.array([0, 1]), Mix(positives=4, negatives=6), None)
    rng = np.random.default_rng(0)
    seen = {int(b.hu[i, 0, 0]) for b in (sampler.batch(rng) for _ in range(30)) for i in range(10)}
    assert seen == set(range(20))


def test_batch_has_the_mix_and_knows_what_is_located():
    real, phantoms = slice_set([4, 0, 4, 0]), slice_set([5, 0], lesion=True)
    mix = Mix(positives=3, negatives=5, transplants=4, phantoms=6)
    batch = Sampler(real, np.arange(4), mix, phantoms).batch(np.random.default_rng(0))
    assert batch.hu.shape == (18, 24, 24)
    assert batch.label[:8].tolist() == [1] * 3 + [0] * 5
    assert batch.located.tolist() == [False] * 3 + [True] * 15
    assert batch.label[8:14].tolist() == [1] * 3 + [0] * 3
    # a set-in bleed is bright, labelled, and inside the host's skull
    for hu, masks, label in zip(batch.hu[14:], batch.masks[14:], batch.label[14:], strict=True):
        blood = masks[1] > 0.5
        assert label == 1
        assert blood.sum() > 30
        assert (masks[0][blood] > 0.5).all()
        assert hu[blood].mean() > 45


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 10), min_size=5, max_size=30), st.integers(2, 5), st.integers(0, 99))
def test_folds_split_patients_evenly_and_repeat(positives: list[int], folds: int, seed: int):
    slices = slice_set(positives, wide=10)
    fold_of = stratified_folds(slices, folds, seed)
    assert np.array_equal(fold_of, stratified_folds(slices, folds, seed))
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    bleeding = np.bincount(fold_of[slices.scan_label], minlength=folds)
    assert bleeding.max() - bleeding.min() <= 1


def test_no_slice_of_a_patient_is_on_both_sides():
    slices = slice_set([2, 0, 7, 0, 1])
    fold_of = stratified_folds(slices, 5, 1)
    for fold in range(5):
        held_out = slices.of_scans(np.flatnonzero(fold_of == fold))
        shown = slices.of_scans(np.flatnonzero(fold_of != fold))
        assert not set(slices.scan[held_out]) & set(slices.scan[shown])
        assert len(held_out) + len(shown) == len(slices.label)


def test_training_needs_slices_with_and_without_hemorrhage():
    with pytest.raises(ValueError, match="with and without hemorrhage"):
        Sampler(slice_set([0, 0]), np.arange(2), Mix(), None).batch(np.random.default_rng(0))
