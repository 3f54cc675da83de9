"""Batches: the same for the same seed and step, true to their labels, and never of a scan that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from training.augment import AugmentConfig, augment, centre_crop
from training.batches import Batch, Batches, Mix
from training.cuts import KINDS, Cuts
from training.scan import Labels, Scan, scan_labels_of

SIZE, WIDE, CUT = 24, 32, 4
STILL = AugmentConfig(
    rotation_deg=0, scale=0, shift_pixels=0, brightness_hu=0, contrast=0, noise_hu=0, sharpen=0
)
SOUND, BLEED, TRACE, UNSAID = (
    (0, 0, 0, 0, 0, 0),
    (1, 0, 1, 0, 0, 0),
    (0, 0, -1, 0, 0, 0),
    (-1, -1, -1, -1, -1, -1),
)
BOX = np.s_[10:22, 10:22]
"""Where the hemorrhage of a slice is."""
NONE = {"positives": 0, "negatives": 0, "transplants": 0, "phantoms": 0}


@dataclass(frozen=True, kw_only=True)
class Made:
    """One scan to be made: a label and whether the lesion is known for each slice."""

    labels: Sequence[tuple[int, ...]]
    located: Sequence[bool] | None = None
    synthetic: bool = False
    cavity: tuple[slice, slice] = np.s_[4:28, 4:28]
    holed: bool = False
    """Nothing in the middle of the cavity is intracranial."""
    hu: int | None = None
    """Of all slices; otherwise each pixel holds the number of its slice."""
    blood_hu: int | None = None


def _read() -> NoReturn:
    raise AssertionError("images are not read again")


def made(folder: Path, *scans: Made) -> Cuts:
    """Cached slices as `load_cuts` finds them, whose every pixel says which slice it is."""
    folder.mkdir(parents=True, exist_ok=True)
    files, all_scans, blood, located, number = [], [], [], [], 0
    for which, one in enumerate(scans):
        count = len(one.labels)
        labels: Labels = np.array(one.labels, np.int8)
        numbers = np.arange(number, number + count, dtype=np.int16)
        number += count
        hu = np.broadcast_to(
            numbers[:, None, None, None] if one.hu is None else np.int16(one.hu), (count, 1, WIDE, WIDE)
        ).copy()
        mask = np.zeros((count, WIDE, WIDE), np.uint8)
        mask[:, *one.cavity] = 1
        if one.holed:
            mask[:, 7:25, 7:25] = 0
        known = np.ones(count, bool) if one.located is None else np.array(one.located)
        lesion = np.zeros((count, len(KINDS), WIDE, WIDE), np.uint8)
        for row in np.flatnonzero((labels != 0).any(axis=1) & known):
            lesion[row, 0][BOX] = 255
            if one.blood_hu is not None:
                hu[row, 0][BOX] = one.blood_hu
        file = folder / f"{which}.safetensors"
        save_file({"hu": hu, "mask": mask, "lesion": lesion}, file)
        files.append(file)
        blood.append(lesion.max(axis=1).sum(axis=(1, 2)) / 255)
        located.append(known)
        all_scans.append(
            Scan(
                source="phantom" if one.synthetic else "real",
                scan_id=str(which),
                patient_id=str(which),
                slice_ids=tuple(map(str, range(count))),
                labels=labels,
                scan_labels=scan_labels_of(labels),
                read=_read,
                synthetic=one.synthetic,
            )
        )
    counts = [len(one.labels) for one in scans]
    rows = np.concatenate([np.arange(count) for count in counts])
    return Cuts(
        files=tuple(files),
        scans=tuple(all_scans),
        scan=np.repeat(np.arange(len(scans)), counts),
        row=rows,
        index=rows,
        labels=np.concatenate([scan.labels for scan in all_scans]),
        located=np.concatenate(located),
        area=np.full(number, 24 * 24),
        blood=np.concatenate(blood),
    )


def batches(
    cuts: Cuts,
    trained: Sequence[bool] | None = None,
    seed: int = 1,
    config: AugmentConfig = STILL,
    **mix: float,
) -> Batches:
    seen = np.ones(len(cuts.scans), bool) if trained is None else np.array(trained)
    return Batches(cuts, seen, SIZE, Mix(**{**NONE, **mix}), config, seed=seed, steps=50)  # type: ignore[arg-type]


def numbers(batch: Batch) -> list[int]:
    """Which slices these are, where each pixel says it."""
    return [round(float(image[0, SIZE // 2, SIZE // 2])) for image in batch.hu]


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))


PATIENTS = (
    Made(labels=[SOUND, BLEED, SOUND], located=[True, True, True]),
    Made(labels=[SOUND, SOUND, SOUND]),
    Made(labels=[BLEED, BLEED, SOUND], located=[True, False, True]),
    Made(labels=[SOUND, BLEED, SOUND, SOUND]),
    Made(labels=[BLEED, SOUND, SOUND], synthetic=True),
    Made(labels=[SOUND, BLEED, BLEED], synthetic=True),
)
ALL_KINDS = {"positives": 3, "negatives": 3, "transplants": 4, "phantoms": 4, "uniform": 2}


# --- chance


def test_a_batch_follows_from_seed_and_step_alone(tmp_path: Path):
    cuts = made(tmp_path, *PATIENTS)
    first, again = (batches(cuts, config=AugmentConfig(), **ALL_KINDS) for _ in range(2))
    forward = [first[step] for step in range(4)]
    for step in (3, 0, 2, 1):
        assert same(forward[step], again[step])
    assert not same(forward[0], forward[1])
    assert not same(forward[0], batches(cuts, seed=2, config=AugmentConfig(), **ALL_KINDS)[0])
    assert len(first) == 50


def test_half_of_the_positives_is_drawn_by_patient_and_half_by_slice(tmp_path: Path):
    cuts = made(tmp_path, Made(labels=[BLEED, SOUND]), Made(labels=[BLEED] * 9))
    drawn = batches(cuts, positives=1)
    assert drawn.weight[0] == pytest.approx(0.5 / 2 + 0.5 / 10)
    assert drawn.weight.sum() == pytest.approx(1)


# --- no leak


@pytest.mark.parametrize("held", range(4))
def test_nothing_of_a_held_out_scan_reaches_a_batch(tmp_path: Path, held: int):
    """Another head, other labels and another lesion in its place change not one bit."""
    trained = [which != held for which in range(len(PATIENTS))]
    other = Made(
        labels=[BLEED, SOUND, BLEED, SOUND][: len(PATIENTS[held].labels)],
        hu=99,
        blood_hu=100,
        cavity=np.s_[9:12, 9:12],
    )
    changed = [other if which == held else one for which, one in enumerate(PATIENTS)]
    # slices are numbered through: the same count keeps the others' numbers
    before = batches(made(tmp_path / "a", *PATIENTS), trained, config=AugmentConfig(), **ALL_KINDS)
    after = batches(made(tmp_path / "b", *changed), trained, config=AugmentConfig(), **ALL_KINDS)
    assert all(same(before[step], after[step]) for step in range(12))
    seen = batches(made(tmp_path / "b", *changed), config=AugmentConfig(), **ALL_KINDS)
    whole = batches(made(tmp_path / "a", *PATIENTS), config=AugmentConfig(), **ALL_KINDS)
    assert not all(same(whole[step], seen[step]) for step in range(12))  # were it trained, it would show


def test_slices_drawn_are_those_of_trained_scans(tmp_path: Path):
    cuts = made(tmp_path, *PATIENTS)
    trained = [True, False, True, False, True, True]
    drawn = batches(cuts, trained, positives=4, negatives=4, phantoms=4, uniform=4)
    seen = {number for step in range(25) for number in numbers(drawn[step])}
    assert seen == set(np.flatnonzero(np.array(trained)[cuts.scan]).tolist())


def test_held_out_bleeds_are_never_set_into_another_head(tmp_path: Path):
    """Donor and host alike: the blood of each patient has a density of its own."""
    scans = [Made(labels=[BLEED, SOUND], hu=20 + 5 * n, blood_hu=60 + 10 * n) for n in range(4)]
    cuts = made(tmp_path, *scans)
    for held in range(4):
        drawn = batches(cuts, [n != held for n in range(4)], transplants=6, real_donors=1.0)
        hosts = torch.cat([drawn[step].hu[:, 0, 1, 1] for step in range(8)]).round().int().tolist()
        assert set(hosts) == {20 + 5 * n for n in range(4) if n != held}
        donors = set(drawn.real_donors.tolist()) | set(drawn.phantom_donors.tolist())
        assert {int(cuts.scan[row]) for row in donors} == set(range(4)) - {held}


# --- labels


def test_each_slice_comes_with_its_own_labels_lesion_and_knowledge(tmp_path: Path):
    cuts = made(tmp_path, *PATIENTS)
    drawn = batches(cuts, positives=5, negatives=5, phantoms=6)
    for step in range(5):
        batch = drawn[step]
        assert batch.hu.shape == (16, 1, SIZE, SIZE)
        assert batch.mask.dtype == torch.bool
        assert batch.lesion.shape == (16, len(KINDS), SIZE, SIZE)
        rows = numbers(batch)
        assert np.array_equal(batch.labels.numpy(), cuts.labels[rows])
        assert batch.located.tolist() == cuts.located[rows].tolist()
        shown = (batch.lesion[:, 0] > 0.5).sum((1, 2)).tolist()
        assert [bool(n) for n in shown] == (cuts.blood[rows] > 0).tolist()
        # positives, negatives, phantoms with hemorrhage and without
        assert (batch.labels[:, 0] == 1).tolist() == [True] * 5 + [False] * 5 + [True] * 3 + [False] * 3


def test_phantom_slice_with_a_trace_of_blood_is_neither(tmp_path: Path):
    cuts = made(tmp_path, Made(labels=[SOUND, BLEED, TRACE], synthetic=True))
    drawn = batches(cuts, phantoms=8)
    assert {number for step in range(10) for number in numbers(drawn[step])} == {0, 1}


def test_uniform_passes_show_every_labelled_slice_of_patients_once(tmp_path: Path):
    cuts = made(tmp_path, *PATIENTS, Made(labels=[UNSAID, (-1, 0, 0, 0, 0, 0), UNSAID]))
    trained = [True, False, True, True, True, True, True]
    drawn = batches(cuts, trained, uniform=11)
    passes = [numbers(drawn[step]) for step in range(3)]
    labelled = [
        0,
        1,
        2,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        20,
    ]  # of 11; not of the held out, phantoms, or the unlabelled
    assert all(sorted(one) == labelled for one in passes)
    assert passes[0] != passes[1] != passes[2]
    other = batches(cuts, trained, uniform=4)
    joined = [number for step in range(11) for number in numbers(other[step])]
    assert all(sorted(joined[k : k + 11]) == labelled for k in (0, 11, 22, 33))


# --- transplants


def test_a_transplant_has_the_labels_and_the_lesion_of_its_donor(tmp_path: Path):
    cuts = made(
        tmp_path,
        Made(labels=[SOUND] * 3, hu=30),
        Made(labels=[BLEED], hu=40, blood_hu=75),
        Made(labels=[SOUND]),
    )
    batch = batches(cuts, [True, True, False], transplants=8, real_donors=1.0)[0]
    assert batch.labels.tolist() == [list(map(float, BLEED))] * 8
    assert batch.located.all()
    blood = batch.lesion[:, 0] > 0.9
    assert (blood.sum((1, 2)) > 100).all()
    assert not batch.lesion[:, 1:].any()
    density = torch.stack(
        [image[lesion].median() for image, lesion in zip(batch.hu[:, 0], blood, strict=True)]
    )
    assert ((density - 35) / 40).min() > 0.74
    assert ((density - 35) / 40).max() < 1.26
    assert density.std() > 1  # each of its own
    away = torch.nn.functional.max_pool2d(batch.lesion.amax(1), 5, 1, 2) == 0
    assert (batch.hu[:, 0][away] - 30).abs().max() < 0.01


def test_a_transplant_lies_in_its_new_head_as_in_the_old(tmp_path: Path):
    """A bleed of rows 10 to 22 in a cavity of rows 4 to 28 fills the same part of one of half the height."""
    donor, host = (
        Made(labels=[BLEED], hu=40, blood_hu=75),
        Made(labels=[SOUND], hu=30, cavity=np.s_[12:24, 4:28]),
    )
    batch = batches(made(tmp_path, host, donor), transplants=2, real_donors=1.0)[0]
    rows = torch.nonzero((batch.lesion[0, 0] > 0.5).any(1)).flatten() + CUT
    assert (int(rows[0]), int(rows[-1])) == (15, 20)  # 12 + (10 - 4) / 2 to 12 + (22 - 4) / 2
    assert not batch.lesion[:, 0][~batch.mask].any()


def test_a_transplant_that_does_not_show_leaves_the_host_as_it_was(tmp_path: Path):
    host = Made(labels=[SOUND], hu=30, holed=True)
    cuts = made(tmp_path, host, Made(labels=[BLEED], hu=40, blood_hu=75))
    batch = batches(cuts, transplants=4, real_donors=1.0)[0]
    assert not batch.labels.any()
    assert not batch.lesion.any()
    assert batch.located.all()
    assert (batch.hu - 30).abs().max() < 0.01


def test_bone_stays_bone(tmp_path: Path):
    cuts = made(tmp_path, Made(labels=[SOUND], hu=900), Made(labels=[BLEED], hu=40, blood_hu=75))
    assert (batches(cuts, transplants=2, real_donors=1.0)[0].hu - 900).abs().max() < 0.01


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_donors_are_patients_or_phantoms_as_the_mix_says(tmp_path: Path, share: float):
    phantom = (0, 1, 0, 0, 0, 0)
    cuts = made(
        tmp_path,
        Made(labels=[SOUND] * 2, hu=30),
        Made(labels=[BLEED], hu=40, blood_hu=75),
        Made(labels=[(1, *phantom[1:])], hu=40, blood_hu=75, synthetic=True),
    )
    batch = batches(cuts, transplants=6, real_donors=share)[0]
    column = 2 if share else 1
    assert batch.labels[:, column].tolist() == [1] * 6
    assert batch.labels.sum() == 12


def test_bleeds_that_nobody_located_are_not_set_in(tmp_path: Path):
    cuts = made(tmp_path, Made(labels=[SOUND] * 2), Made(labels=[BLEED] * 2, located=[False, False]))
    batch = batches(cuts, positives=1, transplants=6)[0]
    assert len(batch.hu) == 1
    assert batch.located.tolist() == [False]


# --- what cannot be drawn


@pytest.mark.parametrize(
    ("labels", "mix", "said"),
    [
        ([SOUND], {"positives": 1}, "with and without hemorrhage"),
        ([BLEED], {"negatives": 1}, "with and without hemorrhage"),
        ([UNSAID], {"uniform": 1}, "slices of patients with labels"),
        ([SOUND, BLEED], {}, "none of those that the recipe's mix"),
        ([SOUND, BLEED], {"phantoms": 4}, "none of those that the recipe's mix"),
    ],
)
def test_a_mix_of_what_is_not_there_is_refused(
    tmp_path: Path, labels: list[tuple[int, ...]], mix: dict[str, int], said: str
):
    with pytest.raises(ValueError, match=said):
        batches(made(tmp_path, Made(labels=labels)), **mix)


# --- random changes


def test_no_change_is_the_centre_crop_or_its_mirror():
    hu = torch.rand(8, 2, 24, 24) * 100
    masks = (torch.rand(8, 2, 24, 24) > 0.5).float()
    out, moved = augment(hu, masks, 16, STILL, torch.Generator().manual_seed(0))
    plain = centre_crop(hu, 16)
    hits = [
        (torch.allclose(o, p, atol=1e-3), torch.allclose(o, p.flip(-1), atol=1e-3))
        for o, p in zip(out, plain, strict=True)
    ]
    assert all(straight != mirrored for straight, mirrored in hits)
    assert {straight for straight, _ in hits} == {True, False}
    for index, (straight, _) in enumerate(hits):
        want = centre_crop(masks[index], 16)
        assert torch.allclose(moved[index], want if straight else want.flip(-1), atol=1e-4)


def test_masks_move_with_the_image_and_all_planes_alike():
    hu = torch.full((16, 3, 48, 48), -900.0)
    hu[:, :, 20:30, 15:25] = 50
    config = AugmentConfig(brightness_hu=0, contrast=0, noise_hu=0, sharpen=0)
    out, moved = augment(hu, (hu[:, :1] > 0).float(), 32, config, torch.Generator().manual_seed(1))
    assert torch.equal(out[:, 0], out[:, 2])
    assert ((out[:, 0] > -425) == (moved[:, 0] > 0.5)).float().mean() > 0.995
    assert len({tuple(m.flatten().tolist()) for m in moved > 0.5}) > 10


def test_random_changes_repeat_by_their_seed_and_bring_air_in_from_the_border():
    hu, masks = torch.rand(4, 24, 24) * 100, torch.ones(4, 2, 24, 24)
    config = AugmentConfig(rotation_deg=45, noise_hu=0, contrast=0, brightness_hu=0, sharpen=0)
    first, second, other = (
        augment(hu, masks, 24, config, torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.min() < -990
    assert first.max() <= 100.01
