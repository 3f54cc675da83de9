"""Pointing: a point in the bleed, near it, far from it, or none; and the phantoms that are pointed at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ich_node.findings import IchSubtype
from tests.system_bundles import write_system_bundle
from training.phantom_sets import training_phantoms, unseen_phantoms
from training.pointing import Pointing, counted, pointing
from training.predictions import Predictions
from training.readers import ReadOptions
from training.readers.phantom import FIRST_SEED, read_phantom
from training.scan import CLASSES, Scan, Volume, scan_labels_of

PIXEL = (2.0, 0.5)
"""(row, column), mm: one taken for the other is found out."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outlined(name: str, positive: list[int], slices: int = 3, *, with_outlines: bool = True) -> Scan:
    """Bleeds cover rows 10 and 11, columns 20 to 23, on the positive slices."""
    labels = np.zeros((slices, len(CLASSES)), np.int8)
    labels[positive, 0] = 1
    lesion = np.zeros((slices, len(CLASSES), 40, 60), np.bool_)
    lesion[positive, 0, 10:12, 20:24] = True
    volume = Volume(
        hu=np.zeros((slices, 40, 60), np.float32),
        spacing_mm=(5.0, *PIXEL),
        lesion=lesion if with_outlines else None,
    )
    return Scan(
        source="tests",
        scan_id=name,
        patient_id=name,
        slice_ids=tuple(map(str, range(slices))),
        labels=labels,
        scan_labels=scan_labels_of(labels),
        read=lambda: volume,
        outlined=with_outlines,
    )


def said(scans: list[Scan], places: list[tuple[float, ...]]) -> Predictions:
    """Points as (slice among all, score, x, y), or boxes as (slice, score, left, top, right, bottom)."""
    counts = [len(scan.slice_ids) for scan in scans]
    rows = [(p[0], 1, p[1], *(p[2:] if len(p) == 6 else (*p[2:], *p[2:]))) for p in places]
    total = sum(counts)
    values: dict[str, Any] = {
        "system": "mine",
        "data": "tests",
        "split": "none",
        "scan_ids": np.array([s.scan_id for s in scans]),
        "patient_ids": np.array([s.patient_id for s in scans]),
        "fold": np.zeros(len(scans), np.int64),
        "scan": np.repeat(np.arange(len(scans)), counts),
        "labels": np.concatenate([s.labels for s in scans]),
        "scan_labels": np.stack([s.scan_labels for s in scans]),
        "logits": np.zeros((total, 6)),
        "places": np.array(rows, np.float64).reshape(-1, 7),
        "boxes": np.zeros((0, 6)),
        "pixel_mm": np.tile(PIXEL, (total, 1)),
    }
    return Predictions(**values)


@pytest.mark.parametrize(
    ("x", "y", "hit", "near"),
    [
        (22.0, 11.0, True, True),  # the middle
        (20.0, 10.0, True, True),  # the corner of the first pixel
        (24.0, 12.0, True, True),
        (24.1, 11.0, False, True),
        (33.9, 11.0, False, True),  # 9.9 columns of 0.5 mm
        (34.1, 11.0, False, False),
        (22.0, 14.4, False, True),  # 2.4 rows of 2 mm
        (22.0, 14.6, False, False),
        (30.0, 14.0, False, False),  # 3 mm and 4 mm: 5 mm away, but for rounding
        (29.9, 14.0, False, True),
    ],
)
def test_the_distance_is_from_the_outline_in_millimetres(x: float, y: float, hit: bool, near: bool):
    scans = [outlined("a", [1])]
    found = counted(said(scans, [(1, 0.9, x, y)]), scans)
    if (x, y) == (30.0, 14.0):
        near = found.near == 1  # on the line itself either will do
    assert (found.slices, found.hits, found.near, found.without) == (1, int(hit), int(near), 0)


def test_the_strongest_place_of_a_slice_counts_whatever_its_class():
    scans = [outlined("a", [0]), outlined("b", [0, 2])]
    places = [
        (0, 0.5, 1.0, 1.0),
        (0, 0.9, 22.0, 11.0),
        (3, 0.9, 1.0, 1.0),
        (3, 0.5, 22.0, 11.0),
        (4, 0.9, 22.0, 11.0),  # a slice without hemorrhage
    ]
    found = counted(said(scans, places), scans)
    assert found == Pointing(slices=3, hits=1, near=1, without=1, by_scan=((1, 1), (2, 0)))
    assert found.share == pytest.approx(1 / 3)


def test_a_box_stands_for_its_middle():
    scans = [outlined("a", [0])]
    assert counted(said(scans, [(0, 0.9, 2.0, 1.0, 42.0, 21.0)]), scans).hits == 1
    assert counted(said(scans, [(0, 0.9, 20.0, 10.0, 60.0, 40.0)]), scans).hits == 0


def test_scans_without_hemorrhage_say_nothing():
    scans = [outlined("a", []), outlined("b", [1])]
    found = counted(said(scans, [(4, 0.9, 22.0, 11.0)]), scans)
    assert (found.slices, found.hits, len(found.by_scan)) == (1, 1, 1)
    nothing = counted(said(scans[:1], []), scans[:1])
    assert nothing.slices == 0
    assert math.isnan(nothing.share)
    assert all(math.isnan(bound) for bound in nothing.interval())


def test_scans_without_outlines_are_refused():
    scans = [outlined("a", [1], with_outlines=False)]
    with pytest.raises(ValueError, match="scan a has no outlines"):
        counted(said(scans, []), scans)


def test_the_interval_is_over_scans_and_repeats():
    many = Pointing(slices=80, hits=40, near=40, without=0, by_scan=((2, 1),) * 40)
    assert many.interval() == (0.5, 0.5)  # all scans are alike
    uneven = Pointing(slices=40, hits=20, near=20, without=0, by_scan=((2, 2), (2, 0)) * 10)
    low, high = uneven.interval()
    assert 0.2 < low < 0.4
    assert 0.6 < high < 0.8
    assert uneven.interval() == (low, high)


def test_phantoms_are_pointed_at_with_a_bundle(tmp_path: Path):
    """Read and counted to the end: every slice with hemorrhage is a hit, a miss or without a point."""
    bundle = write_system_bundle(tmp_path / "lite-mil", "lite-mil")
    scans = read_phantom(count=3, first_seed=4200, pixels=112, slices=12)
    found = pointing(bundle, scans)
    assert found.slices == sum(int((scan.labels[:, 0] == 1).sum()) for scan in scans) > 0
    assert 0 <= found.hits <= found.near <= found.slices - found.without
    assert len(found.by_scan) == 2  # every third is a normal head


def test_phantoms_that_are_pointed_at_trained_nothing(tmp_path: Path):
    """By their seeds, at the largest numbers that anybody asks for."""
    seeds = {}
    for name, wanted in (("trained", training_phantoms), ("unseen", unseen_phantoms)):
        (tmp_path / name).mkdir()
        options = ReadOptions(cache=tmp_path / name)
        # labels as they would lie in the cache: building heads takes long, and nothing here looks at them
        for count, first, pixels, slices in _files(name):
            file = tmp_path / name / f"phantom-labels-{first}-{count}-{pixels}-{slices}.npy"
            np.save(file, np.zeros((count, slices, len(CLASSES)), np.int8))
        scans = wanted(3000, options)
        assert [len(scan.slice_ids) for scan in scans] == [32] * 2000 + [64] * 1000
        seeds[name] = {int(scan.scan_id.split()[1]) for scan in scans}
        assert len(seeds[name]) == 3000
        assert all(scan.synthetic and scan.outlined for scan in scans)
        assert min(seeds[name]) >= FIRST_SEED
    assert not seeds["trained"] & seeds["unseen"]


def _files(name: str) -> list[tuple[int, int, int, int]]:
    first = FIRST_SEED + (0 if name == "trained" else 1_000_000)
    return [(2000, first, 384, 32), (1000, first + 100_000, 256, 64)]


def test_any_is_the_first_class():
    """What pointing counts: hemorrhage of any kind."""
    assert CLASSES[0] is IchSubtype.ANY
