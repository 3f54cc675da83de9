"""Slices on the network grid, preprocessed once and kept in one file, and the split by patient."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ich_node.model.coarse_grid import DEFAULT, IntracranialConfig
from ich_node.model.intracranial import intracranial_mask
from ich_node.model.preprocess import PreprocessConfig, network_slice
from training.ct_ich import Scan, read_scans

MARGIN = 32
"""Pixels that the cache keeps beyond the network's size, for augmentation to turn and shift into."""
SLICE_SPACING_MM = 5.0
_ASSUMED_PIXEL_MM = 0.4
_ADULT_CROSS_SECTION_MM2 = 18500.0
"""Largest intracranial cross-section of an adult, by which the missing pixel spacing is estimated."""


@dataclass(frozen=True, kw_only=True)
class SliceSet:
    """Slices of many scans, those of one scan together and inferior to superior."""

    hu: npt.NDArray[np.int16]
    """(slices, size + MARGIN, size + MARGIN) int16, HU."""
    mask: npt.NDArray[np.bool_]
    """Same shape: intracranial space."""
    label: npt.NDArray[np.bool_]
    """(slices,) any hemorrhage."""
    scan: npt.NDArray[np.intp]
    """(slices,) index into ``scans``."""
    scans: tuple[str, ...]
    lesion: npt.NDArray[np.bool_] | None = None
    """Where the hemorrhage is, where that is known: in phantoms only."""

    @property
    def scan_label(self) -> npt.NDArray[np.bool_]:
        """(scans,) any hemorrhage in any slice."""
        return np.array([self.label[self.scan == i].any() for i in range(len(self.scans))])

    def of_scans(self, indices: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Indices of the slices of these scans."""
        return np.flatnonzero(np.isin(self.scan, indices))


def estimated_spacing_mm(
    hu: npt.NDArray[np.float32], config: IntracranialConfig = DEFAULT
) -> tuple[float, float, float]:
    """Spacing for images that come without: the pixel at which the largest cross-section is an adult's.

    Children's heads are enlarged by it, and an adult's real deviation (about 5 % in length) is lost; the
    random scale of the augmentation is wider than both.
    """
    guess = (SLICE_SPACING_MM, _ASSUMED_PIXEL_MM, _ASSUMED_PIXEL_MM)
    areas = intracranial_mask(hu, guess, config)
    cell = areas.block[0] * areas.block[1] * _ASSUMED_PIXEL_MM**2
    # the third largest is less at the mercy of one leaking slice
    largest = float(np.sort(areas.mask.sum(axis=(1, 2)))[-3:][0] * cell)
    if largest <= 0:
        return guess
    pixel = _ASSUMED_PIXEL_MM * (_ADULT_CROSS_SECTION_MM2 / largest) ** 0.5
    pixel = float(np.clip(pixel, 0.25, 0.6))
    return (SLICE_SPACING_MM, pixel, pixel)


def preprocess_volume(
    hu: npt.NDArray[np.float32], spacing_mm: tuple[float, float, float], config: PreprocessConfig
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """Slices of a volume on the network grid with the margin: HU and mask."""
    wide = replace(config, size=config.size + MARGIN)
    mask = intracranial_mask(hu, spacing_mm)
    slices = [network_slice(image, mask, i, spacing_mm, wide) for i, image in enumerate(hu)]
    return np.stack([np.rint(s.hu).astype(np.int16) for s in slices]), np.stack([s.mask for s in slices])


def load_ct_ich(root: Path, cache: Path, config: PreprocessConfig, limit: int | None = None) -> SliceSet:
    """CT-ICH on the network grid, from the cache where it fits the configuration, else read and cached.

    Parameters
    ----------
    limit
        Only this many scans, half of them with hemorrhage where there are so many: for quick trials.
    """
    scans = read_scans(root)
    if limit is not None:
        positive = [s for s in scans if s.labels.any()][: limit // 2]
        scans = sorted(
            positive + [s for s in scans if not s.labels.any()][: limit - len(positive)],
            key=lambda s: s.patient,
        )
    key = json.dumps([asdict(config), asdict(DEFAULT), MARGIN, [s.patient for s in scans]])
    file = cache / f"ct_ich-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        parts = [_one(scan, config) for scan in scans]
        temporary = file.with_suffix(".tmp.npz")
        np.savez(
            temporary, hu=np.concatenate([p[0] for p in parts]), mask=np.concatenate([p[1] for p in parts])
        )
        temporary.replace(file)
    with np.load(file, allow_pickle=False) as arrays:
        hu, mask = arrays["hu"], arrays["mask"]
    return SliceSet(
        hu=hu,
        mask=mask,
        label=np.concatenate([s.labels for s in scans]),
        scan=np.concatenate([np.full(len(s.labels), i) for i, s in enumerate(scans)]),
        scans=tuple(s.patient for s in scans),
    )


def _one(scan: Scan, config: PreprocessConfig) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    hu = scan.hu()
    return preprocess_volume(hu, estimated_spacing_mm(hu), config)


def stratified_folds(slices: SliceSet, folds: int, seed: int) -> npt.NDArray[np.intp]:
    """Fold of each scan, (scans,): patients dealt out in turn, by falling number of positive slices.

    Every fold so gets its share of large, small and no hemorrhage.
    """
    rng = np.random.default_rng(seed)
    count = np.array([slices.label[slices.scan == i].sum() for i in range(len(slices.scans))])
    order = np.lexsort((rng.random(len(count)), -count))
    assigned = np.empty(len(count), np.intp)
    for start in range(0, len(order), folds):
        block = order[start : start + folds]
        assigned[block] = rng.permutation(folds)[: len(block)]
    return assigned
