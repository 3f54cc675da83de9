"""Phantoms as labelled scans: heads made of mathematics whose bleeds are known to the pixel.

They train and try out; nothing measured on them says anything of patients.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ich_node.findings import IchSubtype
from ich_node.testing.phantom import HeadPhantom, head_phantom
from training.readers.faults import ReadOptions
from training.readers.label_table import SUBTYPES
from training.scan import ABSENT, CLASSES, PRESENT, UNKNOWN, Labels, Scan, Volume, scan_labels_of
from training.whole_file import written_whole

SOURCE = "phantom"
FIRST_SEED = 1_000_000
"""Seeds of training phantoms start here, so that no test or demonstration meets one of them by accident."""
_PRESENT_FROM_MM2 = 25.0
_PIXELS = 256


@dataclass(frozen=True, kw_only=True)
class _Phantom:
    """What one seed makes: every third a normal head, the others with one or two kinds of bleed."""

    seed: int
    pixels: int
    slices: int

    def build(self) -> HeadPhantom:
        rng = np.random.default_rng(self.seed)
        kinds = rng.permutation(len(SUBTYPES))[: rng.integers(1, 3)]
        return head_phantom(
            bleeds=[] if self.seed % 3 == 0 else [SUBTYPES[k] for k in kinds],
            seed=self.seed,
            slices=self.slices,
            rows=self.pixels,
            columns=self.pixels,
            slice_spacing_mm=160.0 / self.slices,
            field_of_view_mm=float(rng.uniform(215, 250)),
            noise_hu=float(rng.uniform(2, 8)),
        )

    def volume(self) -> Volume:
        head = self.build()
        lesion = np.zeros((len(head.hu), len(CLASSES), *head.hu.shape[1:]), np.bool_)
        for subtype, mask in head.masks.items():
            lesion[:, CLASSES.index(subtype)] = mask
        return Volume(hu=head.hu, spacing_mm=head.spacing_mm, lesion=lesion)

    def labels(self) -> Labels:
        """(slices, classes). A trace of blood, less than `_PRESENT_FROM_MM2`, is neither present nor absent."""
        head = self.build()
        pixel_mm2 = head.spacing_mm[1] * head.spacing_mm[2]
        labels = np.full((len(head.hu), len(CLASSES)), ABSENT, np.int8)
        for subtype, mask in head.masks.items():
            area_mm2 = mask.sum(axis=(1, 2)) * pixel_mm2
            traced = np.where(area_mm2 > 0, UNKNOWN, ABSENT)
            labels[:, CLASSES.index(subtype)] = np.where(area_mm2 >= _PRESENT_FROM_MM2, PRESENT, traced)
        any_ = CLASSES.index(IchSubtype.ANY)
        # two traces may add up to enough of any
        labels[(labels == PRESENT).any(axis=1), any_] = PRESENT
        return labels


def read_phantom(
    root: Path | None = None,
    options: ReadOptions | None = None,
    *,
    count: int = 30,
    first_seed: int = FIRST_SEED,
    pixels: int = _PIXELS,
    slices: int = 32,
) -> list[Scan]:
    """Phantoms of 16 cm in so many slices.

    Each is built once here, for its labels (half a second), and again whenever it is read.

    Parameters
    ----------
    root
        Nothing is read from a folder.
    options
        How many processes build them; its cache folder keeps the labels.
    count, first_seed
        Seeds ``first_seed`` to ``first_seed + count - 1``. Those of tests and demonstrations are below
        `FIRST_SEED`.
    pixels, slices
        Size: rows and columns, and slices.
    """
    options = options or ReadOptions()
    phantoms = [_Phantom(seed=first_seed + i, pixels=pixels, slices=slices) for i in range(count)]
    return [_scan(p, labels) for p, labels in zip(phantoms, _all_labels(phantoms, options), strict=True)]


def _all_labels(phantoms: list[_Phantom], options: ReadOptions) -> Iterable[Labels]:
    if options.cache is None or not phantoms:
        return _built(phantoms, options.processes)
    first = phantoms[0]
    file = options.cache / f"phantom-labels-{first.seed}-{len(phantoms)}-{first.pixels}-{first.slices}.npy"
    if not file.is_file():
        options.cache.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as temporary:
            np.save(temporary, np.stack(list(_built(phantoms, options.processes))))
    return list(np.load(file, allow_pickle=False))


def _built(phantoms: list[_Phantom], processes: int) -> Iterable[Labels]:
    if processes < 2:
        return map(_Phantom.labels, phantoms)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_Phantom.labels, phantoms))


def _scan(phantom: _Phantom, labels: Labels) -> Scan:
    name = f"phantom {phantom.seed}"
    return Scan(
        source=SOURCE,
        scan_id=name,
        patient_id=name,
        slice_ids=tuple(f"{name}/{i}" for i in range(len(labels))),
        labels=labels,
        scan_labels=scan_labels_of(labels),
        read=partial(_Phantom.volume, phantom),
        outlined=True,
        synthetic=True,
    )
