"""Slices on a network's grid, preprocessed once and kept in a file per scan that is read slice by slice.

An epoch reads what it draws from the page cache and decodes nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ich_node.findings import IchSubtype
from ich_node.model.coarse_grid import DEFAULT
from ich_node.model.preprocess import SliceFrame, cut_out
from ich_node.model.system import Head
from training.grids import cut
from training.scan import CLASSES, PRESENT, Labels, Scan, Volume, read_volume
from training.whole_file import written_whole

logger = logging.getLogger(__name__)

MARGIN = 32
"""Pixels that the cache keeps beyond the network's size, for augmentation to turn and shift into."""
KINDS = ("intraparenchymal", "extra-axial", "intraventricular")
"""Planes of a lesion: what a teacher tells apart, and from outlines the same."""
_KIND_OF = {
    IchSubtype.INTRAPARENCHYMAL: 0,
    IchSubtype.EPIDURAL: 1,
    IchSubtype.SUBARACHNOID: 1,
    IchSubtype.SUBDURAL: 1,
    IchSubtype.INTRAVENTRICULAR: 2,
}
_VERSION = 2
"""Of what is cached: raised whenever the same configuration gives other slices."""
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Where a teacher sees hemorrhage in some slices of a scan."""

    slices: Ints
    """(n,) indices of the slices."""
    likelihood: Bytes
    """(n, kinds, rows, columns) uint8, 255 for certainty, in the order of `KINDS`."""
    pitch_mm: float
    """Of that grid, whose first pixel's centre is that of the image."""


Teacher = Callable[[Scan], Taught | None]


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Index of all cached slices that show intracranial space, those of one scan together, inferior to superior."""

    files: tuple[Path, ...]
    """(scans,)"""
    scans: tuple[Scan, ...]
    scan: Ints
    """(slices,) index of the scan."""
    row: Ints
    """(slices,) within the scan's file."""
    index: Ints
    """(slices,) within the scan."""
    labels: Labels
    """(slices, classes)."""
    located: npt.NDArray[np.bool_]
    """(slices,) whether the lesion planes say where the hemorrhage is, be it nowhere."""
    area: Ints
    """(slices,) pixels of the intracranial space."""
    blood: npt.NDArray[np.float64]
    """(slices,) pixels of hemorrhage, as far as known."""

    @property
    def synthetic(self) -> npt.NDArray[np.bool_]:
        """(slices,) of phantoms."""
        return np.array([s.synthetic for s in self.scans])[self.scan]

    def read(self, rows: Sequence[int] | Ints) -> tuple[npt.NDArray[np.int16], Bytes, Bytes]:
        """Read some slices.

        Returns
        -------
        tuple of numpy.ndarray
            (n, planes, wide, wide) int16 HU, (n, wide, wide) uint8 mask, (n, kinds, wide, wide) uint8 lesions.
        """
        hu, mask, lesion = [], [], []
        for i in rows:
            with safe_open(self.files[self.scan[i]], framework="numpy") as file:
                row = int(self.row[i])
                hu.append(file.get_slice("hu")[row])
                mask.append(file.get_slice("mask")[row])
                lesion.append(file.get_slice("lesion")[row])
        return np.stack(hu), np.stack(mask), np.stack(lesion)


def load_cuts(scans: Sequence[Scan], preprocessing: Any, cache: Path, teacher: Teacher | None = None) -> Cuts:
    """Cut all scans on a system's grid, those from the cache that are there.

    Parameters
    ----------
    teacher
        Says where the hemorrhage is in slices of scans that have no outlines.

    Raises
    ------
    OSError, ValueError
        Images of a scan cannot be read; the message names the scan.
    """
    name = getattr(teacher, "name", "none")
    key = json.dumps(
        [_VERSION, type(preprocessing).__name__, asdict(preprocessing), asdict(DEFAULT), MARGIN, name]
    )
    folder = cache / f"cuts-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "of.json").write_text(key)
    files = tuple(folder / _file_name(scan) for scan in scans)
    missing = [(s, f) for s, f in zip(scans, files, strict=True) if not _is_whole(f)]
    _build(missing, partial(_write, preprocessing=preprocessing, teacher=teacher))
    return _indexed(tuple(scans), files)


def _file_name(scan: Scan) -> str:
    """Of a scan's slices; other labels or other slices under the same identifier are another file."""
    said = hashlib.sha256(json.dumps(scan.slice_ids).encode() + scan.labels.tobytes()).hexdigest()[:8]
    return f"{plain_name(scan.source)}-{plain_name(scan.scan_id)}-{said}.safetensors"


def _is_whole(file: Path) -> bool:
    """Whether a file is there and as long as it says; one that a full disk cut short is made anew."""
    try:
        with safe_open(file, framework="numpy"):
            return True
    except FileNotFoundError:
        return False
    except (OSError, SafetensorError):
        logger.warning("%s is damaged and is made anew", file)
        return False


def _build(missing: Sequence[tuple[Scan, Path]], write: Callable[[tuple[Scan, Path]], None]) -> None:
    if missing:
        logger.info("preprocessing %d scans", len(missing))
    processes = min(os.cpu_count() or 1, len(missing) // 8)
    if processes < 2:
        for one in missing:
            write(one)
        return
    # spawned, since torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(write, missing))


def _write(item: tuple[Scan, Path], preprocessing: Any, teacher: Teacher | None) -> None:
    scan, file = item
    volume = read_volume(scan)
    tensors = scan_tensors(volume, scan.labels, preprocessing, teacher and teacher(scan))
    with written_whole(file) as temporary:
        save_file(tensors, temporary)


def margin(preprocessing: Any) -> int:
    """Pixels that a cached slice has beyond the network's size: none where that shows the whole image."""
    return MARGIN if preprocessing.pitch_mm > 0 else 0


def scan_tensors(
    volume: Volume, labels: Labels, preprocessing: Any, taught: Taught | None
) -> dict[str, npt.NDArray[Any]]:
    """What is kept of a scan: every slice that shows intracranial space."""
    head = Head(hu=volume.hu, spacing_mm=volume.spacing_mm)
    wide = replace(preprocessing, size=preprocessing.size + margin(preprocessing))
    hu, mask, lesion, located = [], [], [], []
    for index in head.inside:
        one = cut(wide, head, index)
        where, known = _lesion(volume, labels[index], index, one.frame, wide.size, taught)
        hu.append(np.rint(one.hu).astype(np.int16))
        mask.append(one.mask.astype(np.uint8))
        lesion.append(where)
        located.append(known)
    size = (0, 1, wide.size, wide.size)
    return {
        "hu": np.stack(hu) if hu else np.zeros(size, np.int16),
        "mask": np.stack(mask) if mask else np.zeros(size[1:], np.uint8)[:0],
        "lesion": np.stack(lesion) if lesion else np.zeros((0, len(KINDS), *size[2:]), np.uint8),
        "located": np.array(located, np.uint8),
        "index": np.array(head.inside, np.int64),
        "area": np.array([m.sum() for m in mask], np.int64),
        "blood": np.array([where.max(axis=0).sum() / 255 for where in lesion], np.float64),
    }


def _lesion(
    volume: Volume, labels: Labels, index: int, frame: SliceFrame, size: int, taught: Taught | None
) -> tuple[Bytes, bool]:
    """(kinds, size, size) likelihood and whether it is known."""
    nowhere = np.zeros((len(KINDS), size, size), np.uint8)
    if volume.lesion is not None:
        outlined = [255 * plane.astype(np.float32) for plane in _kinds(volume.lesion[index])]
        # a slice labelled positive that nobody outlined does not say where
        known = bool(labels[0] != PRESENT or volume.lesion[index].any())
        return np.stack([_moved(plane, frame, size) for plane in outlined]), known
    if labels[0] != PRESENT:
        return nowhere, bool(labels[0] == 0)
    if taught is None or index not in taught.slices:
        return nowhere, False
    row = int(np.flatnonzero(taught.slices == index)[0])
    scale = [mm / taught.pitch_mm for mm in volume.spacing_mm[1:]]
    coarse = SliceFrame(
        origin=(frame.origin[0] * scale[0], frame.origin[1] * scale[1]),
        step=(frame.step[0] * scale[0], frame.step[1] * scale[1]),
    )
    planes, sure = _sharpened(taught.likelihood[row])
    return np.stack([_moved(p, coarse, size) for p in planes]), sure


def _kinds(outlined: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """(classes, rows, columns) outlines by `KINDS`; what has no subtype counts as intraparenchymal."""
    planes = [np.zeros(outlined.shape[1:], bool) for _ in KINDS]
    for number, subtype in enumerate(CLASSES):
        if subtype in _KIND_OF:
            planes[_KIND_OF[subtype]] |= outlined[number]
    planes[0] |= outlined[0] & ~(planes[1] | planes[2])
    return planes


def _sharpened(likelihood: Bytes) -> tuple[npt.NDArray[np.float32], bool]:
    """A teacher's likelihood on a slice that is known to bleed: its highest becomes certain, if it is no guess."""
    planes = likelihood.astype(np.float32)
    highest = float(planes.sum(axis=0).max())
    if highest < 0.35 * 255:
        return planes * 0, False
    return np.clip(planes * max(1.0, 0.7 * 255 / highest), 0, 255), True


def _moved(plane: npt.NDArray[np.float32], frame: SliceFrame, size: int) -> Bytes:
    return np.rint(cut_out(plane.astype(np.float32), frame, size, (0.0, 255.0))).astype(np.uint8)


def _indexed(scans: tuple[Scan, ...], files: tuple[Path, ...]) -> Cuts:
    columns: dict[str, list[npt.NDArray[Any]]] = {
        k: [] for k in ("scan", "row", "index", "labels", "located", "area", "blood")
    }
    for number, (scan, path) in enumerate(zip(scans, files, strict=True)):
        with safe_open(path, framework="numpy") as file:
            index = file.get_tensor("index")
            parts = {k: file.get_tensor(k) for k in ("located", "area", "blood")}
        parts |= {
            "scan": np.full(len(index), number),
            "row": np.arange(len(index)),
            "index": index,
            "labels": scan.labels[index],
        }
        for name, part in parts.items():
            columns[name].append(part)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    joined["located"] = joined["located"].astype(bool)
    return Cuts(files=files, scans=scans, **joined)


def plain_name(name: str) -> str:
    """A file name of any identifier, of limited length and without meaning to the file system."""
    kept = re.sub(r"[^A-Za-z0-9.-]+", "_", name).lstrip(".")[:60]
    return f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
