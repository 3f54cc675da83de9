"""Likelihood maps of a run's scans, made once on pixels of about 1 mm, and the boxes that points have to lie in."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype
from ich_node.model import bundle as bundles
from ich_node.model.decision import DecisionConfig
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.predict import Predictor, load_predictor
from ich_node.model.system import Head, find_system
from training.cuts import Teacher, plain_name
from training.predictions import Floats, Ints
from training.scan import CLASSES, PRESENT, Scan, Volume
from training.whole_file import written_whole

LEAST_AREA_MM2 = 5.0
"""Of a part of an outline that gets a box."""
TAUGHT_FROM = 0.5
"""Likelihood from which a teacher's pixel is in a bleed."""
LEAST_LIKELIHOOD = 0.02
"""Maps that stay below it everywhere are not kept: no threshold that is tried is as low."""
_PITCH_MM = 1.0
ANY = CLASSES.index(IchSubtype.ANY)
_VERSION = 1
"""Of what is kept of maps: raised whenever the same bundle gives other maps."""
Arrays = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanMaps:
    """Likelihood of *any* in the slices of a scan, cut to where it is not 0 in all of them."""

    scan: Scan
    fold: int
    """Which network read it."""
    index: Ints
    """(maps,) the slices: those that somewhere reach the least T that is tried."""
    likelihood: npt.NDArray[np.float16]
    """(maps, rows, columns); each pixel is the highest of ``step`` x ``step`` of the image, so no peak is lost."""
    corner: Ints
    """(2,) row and column of the first pixel, in pixels of the map."""
    step: int
    image_mm: Floats
    """(2,) row and column distance of the image's pixels, mm."""

    def points(self, number: int, config: DetectorConfig) -> Floats:
        """(points, 2) x and y in image coordinates, of one map."""
        row_mm, column_mm = (float(mm) * self.step for mm in self.image_mm)
        found = detect(self.likelihood[number].astype(np.float32), (row_mm, column_mm), config)
        xy = np.array([point.coordinates for point in found], np.float64).reshape(-1, 2)
        return np.asarray((xy + self.corner[::-1]) * self.step)


Maps = Sequence[ScanMaps]


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Boxes to find."""

    boxes: tuple[Mapping[int, Floats], ...]
    """(scans,) slice to (boxes, 4): left, top, right, bottom in image coordinates; no slice without a box."""
    origin: Mapping[str, int]
    """Where the boxes are from, and of how many scans; ``none``: scans with hemorrhage and without a box."""


def likelihood_maps(
    bundle: Path, scans: Sequence[Scan], *, cache: Path, decision: DecisionConfig | None = None, fold: int = 0
) -> Maps:
    """Read scans as the node does and keep the maps of *any*.

    Parameters
    ----------
    scans
        None of them trained the bundle.
    cache
        Folder for what was read, a file per scan; what is there is not read again.
    decision
        Calibration instead of the bundle's: some systems calibrate their maps like their scores.
    fold
        Number that the scans get.

    Raises
    ------
    ConfigurationError
        The bundle cannot be read with, or does not find places by h, T and d.
    OSError, ValueError
        Images of a scan cannot be read; the message names the scan.
    """
    description = bundles.read_description(bundle)
    require_detector(description["architecture"], bundle / bundles.DESCRIPTION_FILE)
    decided = asdict(decision) if decision else description["decision"]
    read_with = ("architecture", "config", "preprocessing", "members", "weights_sha256")
    key = json.dumps([_VERSION, decided, *(description.get(name) for name in read_with)], sort_keys=True)
    folder = cache / f"maps-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)

    @once
    def predictor() -> Predictor:
        loaded = load_predictor(bundle)
        loaded.system.decision = decision or loaded.system.decision
        return loaded

    def read(scan: Scan) -> Arrays:
        file = folder / f"{plain_name(scan.source)}-{plain_name(scan.scan_id)}.npz"
        if not file.is_file():
            with written_whole(file) as temporary:
                np.savez_compressed(temporary, **_read(predictor(), scan))
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    kept = [(scan, read(scan)) for scan in scans]
    return [ScanMaps(scan=scan, fold=fold, step=int(a.pop("step")), **a) for scan, a in kept]


def require_detector(architecture: str, where: Path) -> None:
    """Refuse a system that finds places in another way.

    Raises
    ------
    ConfigurationError
        It does; the message names ``where``.
    """
    kind = find_system(architecture).localization_type
    if kind is not DetectorConfig:
        raise ConfigurationError(
            f"{where}: {architecture} finds places by {kind.__name__}, not by the detector with h, T and d in mm: "
            "there is nothing to tune"
        )


def _volume(scan: Scan) -> Volume:
    try:
        return scan.read()
    except (OSError, ValueError) as error:
        raise type(error)(f"scan {scan.scan_id}: {error}") from error


def _read(predictor: Predictor, scan: Scan) -> Arrays:
    volume = _volume(scan)
    head = Head(hu=volume.hu, spacing_mm=volume.spacing_mm)
    scores = predictor.system.score(head)
    image_mm = np.array(volume.spacing_mm[1:])
    step = max(1, round(_PITCH_MM / float(np.sqrt(image_mm.prod()))))
    seen = {i: coarsened(predictor.maps(head, i, scores)[IchSubtype.ANY], step) for i in head.inside}
    # the others have no point at any T that is tried
    seen = {i: each for i, each in seen.items() if each.max() >= LEAST_LIKELIHOOD}
    stack = np.stack(list(seen.values())) if seen else np.zeros((0, 1, 1), np.float16)
    where = np.argwhere(stack.any(axis=0)) if seen else np.zeros((1, 2), np.int64)
    (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0) + 1
    return {
        "index": np.array(list(seen), np.int64),
        "likelihood": stack[:, top:bottom, left:right],
        "corner": np.array([top, left]),
        "step": np.array(step),
        "image_mm": image_mm,
    }


def coarsened(likelihood: npt.NDArray[np.float32], step: int) -> npt.NDArray[np.float16]:
    """Highest of each ``step`` x ``step`` pixels; at the far edges of those that are left."""
    padded = np.pad(likelihood, [(0, -n % step) for n in likelihood.shape])
    rows, columns = (n // step for n in padded.shape)
    return np.asarray(padded.reshape(rows, step, columns, step).max(axis=(1, 3)), np.float16)


def truth_boxes(maps: Maps, teacher: Teacher | None = None) -> Truth:
    """Readers' boxes; else boxes around the outlines of a scan; else around what a teacher sees.

    Outlines and teachers give a box for each part of a slice that is connected over edges or corners and has
    `LEAST_AREA_MM2`; a teacher only where the slice is labelled to show hemorrhage.

    Raises
    ------
    OSError, ValueError
        Images of an outlined scan cannot be read; the message names the scan.
    """
    found = [_boxes_of(each.scan, each.image_mm, teacher) for each in maps]
    bleeding = [
        boxes or (each.scan.labels == PRESENT).any() for each, (_, boxes) in zip(maps, found, strict=True)
    ]
    names = (
        name if boxes else "none" for (name, boxes), wanted in zip(found, bleeding, strict=True) if wanted
    )
    return Truth(boxes=tuple(boxes for _, boxes in found), origin=dict(Counter(names)))


def _boxes_of(scan: Scan, image_mm: Floats, teacher: Teacher | None) -> tuple[str, dict[int, Floats]]:
    """Where the boxes of a scan are from, and they by slice."""
    if scan.boxes:
        edges = [
            (b.slice_index, np.array([b.left, b.top, b.right, b.bottom], np.float64)) for b in scan.boxes
        ]
        slices = {index for index, _ in edges}
        return "boxes", {index: np.stack([edge for i, edge in edges if i == index]) for index in slices}
    lesion = _volume(scan).lesion if scan.outlined else None
    if lesion is not None:
        return "outlines", _around(enumerate(lesion[:, ANY]), image_mm, image_mm)
    taught = teacher and teacher(scan)
    if not taught:
        return "none", {}
    pairs = zip(taught.slices.tolist(), taught.likelihood, strict=True)
    planes = [
        (i, seen.max(axis=0) >= 255 * TAUGHT_FROM) for i, seen in pairs if scan.labels[i, ANY] == PRESENT
    ]
    name = f"teacher {getattr(teacher, 'name', 'without a name')}, likelihood from {TAUGHT_FROM} up"
    return name, _around(planes, np.full(2, taught.pitch_mm), image_mm)


def _around(
    planes: Iterable[tuple[int, npt.NDArray[np.bool_]]], grid_mm: Floats, image_mm: Floats
) -> dict[int, Floats]:
    """Boxes around the parts of masks, in image coordinates; the first pixel's centre is that of the image."""
    found = {}
    for index, plane in planes:
        labels, _ = ndimage.label(plane, np.ones((3, 3)))
        large = np.bincount(labels.ravel())[1:] * grid_mm.prod() >= LEAST_AREA_MM2
        edges = [
            (x.start, y.start, x.stop, y.stop)
            for (y, x), wanted in zip(ndimage.find_objects(labels), large, strict=True)
            if wanted
        ]
        if edges:
            found[index] = (np.array(edges) - 0.5) * np.tile((grid_mm / image_mm)[::-1], 2) + 0.5
    return found
