"""Reads labelled scans with a bundle, as the node does, and keeps what it said."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ich_node.model.predict import Predictor, load_predictor
from ich_node.model.slabs import in_slabs
from ich_node.model.system import Head
from training.predictions import Predictions
from training.scan import CLASSES, Scan, Volume, read_volume

logger = logging.getLogger(__name__)
Floats = npt.NDArray[np.float64]


def read_scans(
    reader: Path | Predictor,
    scans: Sequence[Scan],
    *,
    system: str,
    split: str,
    fold: int = 0,
    places: bool = True,
) -> Predictions:
    """Score scans and find places in their slices.

    Parameters
    ----------
    reader
        A bundle's folder, or one that is loaded; its decision and detector are used as they are.
    system, split
        Names for the tables.
    fold
        Number that the predictions get.
    places
        Whether places are looked for, which takes longer.

    Raises
    ------
    OSError, ValueError
        Images of a scan cannot be read; the message names the scan.
    """
    predictor = load_predictor(reader) if isinstance(reader, Path) else reader
    parts = [_read(predictor, scan, places=places) for scan in scans]
    first = np.cumsum([0, *(len(scan.slice_ids) for scan in scans)])
    return Predictions(
        system=system,
        data=", ".join(sorted({scan.source for scan in scans})),
        split=split,
        scan_ids=np.array([scan.scan_id for scan in scans], np.str_),
        patient_ids=np.array([scan.patient_id for scan in scans], np.str_),
        fold=np.full(len(scans), fold, np.int64),
        scan=np.repeat(np.arange(len(scans)), np.diff(first)),
        labels=np.concatenate([scan.labels for scan in scans]),
        scan_labels=np.stack([scan.scan_labels for scan in scans]),
        logits=np.concatenate([logits for logits, _, _ in parts]),
        places=np.concatenate([_shifted(found, at) for (_, found, _), at in zip(parts, first, strict=False)]),
        boxes=boxes_of(scans),
        pixel_mm=np.concatenate([pixel for _, _, pixel in parts]),
    )


def _read(predictor: Predictor, scan: Scan, *, places: bool) -> tuple[Floats, Floats, Floats]:
    """(slices, classes) logits, (places, 7) and (slices, 2) pixel spacing of one scan.

    Where the bundle reads thin slices as slabs, each slice has what was said of its slab.
    """
    volume = read_volume(scan)
    system = predictor.system
    slabs = in_slabs(Head(hu=volume.hu, spacing_mm=volume.spacing_mm), predictor.slab_mm)
    head = slabs.head
    scores = system.score(head)
    logits = np.full((len(volume.hu), len(CLASSES)), np.nan)
    for column, subtype in enumerate(system.classes):
        logits[:, CLASSES.index(subtype)] = scores.logits[slabs.slab_of, column]
    found = [
        (
            index,
            CLASSES.index(place.subtype),
            place.score,
            *(place.coordinates * 2 if place.kind == "point" else place.coordinates),
        )
        for slab in (head.inside if places else ())
        for place in system.places(predictor.maps(head, slab, scores), head.spacing_mm)
        for index in np.flatnonzero(slabs.slab_of == slab)
    ]
    return logits, np.array(found, np.float64).reshape(-1, 7), _pixels(volume)


def _pixels(volume: Volume) -> Floats:
    return np.tile(np.array(volume.spacing_mm[1:], np.float64), (len(volume.hu), 1))


def boxes_of(scans: Sequence[Scan]) -> Floats:
    """(boxes, 6) what readers drew, as `Predictions` has it."""
    first = np.cumsum([0, *(len(scan.slice_ids) for scan in scans)])
    return np.concatenate([_shifted(_boxes(scan), at) for scan, at in zip(scans, first, strict=False)])


def _boxes(scan: Scan) -> Floats:
    rows = [
        (box.slice_index, CLASSES.index(box.subtype), box.left, box.top, box.right, box.bottom)
        for box in scan.boxes
    ]
    return np.array(rows, np.float64).reshape(-1, 6)


def _shifted(rows: Floats, by: int) -> Floats:
    """Slice numbers within a scan to those among all scans."""
    return np.concatenate([rows[:, :1] + by, rows[:, 1:]], axis=1)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several folds as one; of several data sets a fold may hold scans of one alone.

    Raises
    ------
    ValueError
        They are of different systems or splits, or a patient is in two of them.
    """
    said = {(p.system, p.split) for p in parts}
    patients = [patient for p in parts for patient in set(p.patient_ids.tolist())]
    if len(said) != 1 or len(set(patients)) != len(patients):
        raise ValueError("predictions of different systems or splits, or with a patient in common")
    scans = np.cumsum([0, *(len(p.scan_ids) for p in parts)])
    slices = np.cumsum([0, *(len(p.scan) for p in parts)])
    system, split = said.pop()
    data = ", ".join(sorted({name for p in parts for name in p.data.split(", ")}))
    return Predictions(
        system=system,
        data=data,
        split=split,
        scan_ids=np.concatenate([p.scan_ids for p in parts]),
        patient_ids=np.concatenate([p.patient_ids for p in parts]),
        fold=np.concatenate([p.fold for p in parts]),
        scan=np.concatenate([p.scan + at for p, at in zip(parts, scans, strict=False)]),
        labels=np.concatenate([p.labels for p in parts]),
        scan_labels=np.concatenate([p.scan_labels for p in parts]),
        logits=np.concatenate([p.logits for p in parts]),
        places=np.concatenate([_shifted(p.places, at) for p, at in zip(parts, slices, strict=False)]),
        boxes=np.concatenate([_shifted(p.boxes, at) for p, at in zip(parts, slices, strict=False)]),
        pixel_mm=np.concatenate([p.pixel_mm for p in parts]),
    )
