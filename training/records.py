"""What is kept of a run for good: what its networks said of each slice, without images and labels.

A run's folder has gigabytes of checkpoints and logs and stays on the machine that trained. A record is one small file
that goes with the source; with the labelled data at hand the page of results is made from records anew, to the same
numbers. It names patients and scans as the data set does, so records of data that are not public stay with the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.predictions import Predictions, arrays_of
from training.reading import boxes_of
from training.run import RUN_FILE, predictions_of
from training.scan import Scan
from training.whole_file import written_whole

_NAMES = ("system", "data", "split")
_WHOLE = ("scan_ids", "patient_ids", "fold", "scan")
_ROUNDED = ("logits", "pixel_mm", "places")
"""Kept with 24 bits."""
_OF_DATA = ("labels", "scan_labels", "boxes")
"""Kept as a digest alone."""

Said = tuple[Predictions, dict[str, Any]]
"""Predictions for all patients of a run, and what its ``run.json`` says."""


def file_of(records: Path, recipe: str) -> Path:
    """Where the record of a recipe's run is kept."""
    return records / f"{recipe}.npz"


def of_run(run: Path) -> Said | None:
    """What a run says; None where folds of it are not done, or there is none.

    Raises
    ------
    ValueError
        A file of it is damaged.
    """
    predictions = predictions_of(run) if (run / RUN_FILE).is_file() else None
    if predictions is None:
        return None
    return predictions, json.loads((run / RUN_FILE).read_text(encoding="utf-8"))


def keep(said: Said, scans: Sequence[Scan], file: Path) -> None:
    """Write a record, whole or not at all; one of the same patients and folds is replaced.

    Parameters
    ----------
    scans
        The labelled scans, or more.

    Raises
    ------
    ValueError
        The run's labels are not those of ``scans``, or ``file`` is a record on other patients or folds.
    """
    predictions, described = said
    values: dict[str, Any] = {name: getattr(predictions, name) for name in _WHOLE}
    values |= {name: getattr(predictions, name).astype(np.float32) for name in _ROUNDED}
    values |= {name: np.array(getattr(predictions, name)) for name in _NAMES}
    values["run"] = np.array(json.dumps(described, sort_keys=True))
    values["labels_sha256"] = np.array(_digest(predictions))
    labelled = _labelled(values, scans, file)
    if _digest(labelled) != str(values["labels_sha256"]):
        raise ValueError(f"{file}: the data that were given have other labels than those of the run")
    if file.is_file() and _patients(recall(file, scans)[0]) != _patients(predictions):
        raise ValueError(f"{file} is a record on other patients or folds: remove it, or take another folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as temporary:
        np.savez_compressed(temporary, **values)


def recall(file: Path, scans: Sequence[Scan]) -> Said:
    """Read a record, with the labels and boxes of the data.

    Parameters
    ----------
    scans
        The labelled scans, or more.

    Raises
    ------
    OSError
        The file is absent.
    ValueError
        It is damaged, or no record; a scan of it is not among ``scans``, is there twice, or has other labels.
    """
    values = arrays_of(file, (*_NAMES, *_WHOLE, *_ROUNDED, "run", "labels_sha256"))
    predictions = _labelled(values, scans, file)
    if _digest(predictions) != str(values["labels_sha256"]):
        raise ValueError(f"{file}: the data that were given have other labels than those of the run")
    described: dict[str, Any] = json.loads(str(values["run"]))
    return predictions, described


def _labelled(values: Mapping[str, Any], scans: Sequence[Scan], file: Path) -> Predictions:
    """What is kept, with what the data say of the same scans."""
    counts = np.bincount(values["scan"], minlength=len(values["scan_ids"]))
    found = [
        _scan(file, str(scan_id), str(patient_id), int(count), scans)
        for scan_id, patient_id, count in zip(values["scan_ids"], values["patient_ids"], counts, strict=True)
    ]
    said: dict[str, Any] = {name: str(values[name]) for name in _NAMES}
    said |= {name: values[name] for name in _WHOLE}
    said |= {name: values[name].astype(np.float64) for name in _ROUNDED}
    return Predictions(
        **said,
        labels=np.concatenate([scan.labels for scan in found]),
        scan_labels=np.stack([scan.scan_labels for scan in found]),
        boxes=boxes_of(found),
    )


def _scan(file: Path, scan_id: str, patient_id: str, slices: int, scans: Sequence[Scan]) -> Scan:
    found = [scan for scan in scans if (scan.scan_id, scan.patient_id) == (scan_id, patient_id)]
    if len(found) != 1:
        given = ", ".join(sorted({scan.source for scan in scans})) or "none"
        raise ValueError(
            f"{file}: scan {scan_id} of patient {patient_id} is {len(found)} times in the data given ({given})"
        )
    if len(found[0].slice_ids) != slices:
        raise ValueError(
            f"{file}: scan {scan_id} has {slices} slices, but {len(found[0].slice_ids)} in the data"
        )
    return found[0]


def _patients(predictions: Predictions) -> list[tuple[str, str, int]]:
    """Scan, patient and fold."""
    rows = zip(predictions.scan_ids, predictions.patient_ids, predictions.fold, strict=True)
    return sorted((str(scan), str(patient), int(fold)) for scan, patient, fold in rows)


def _digest(predictions: Predictions) -> str:
    """Of what the data say of the scans, slice by slice."""
    digest = hashlib.sha256()
    for name in _OF_DATA:
        array = getattr(predictions, name)
        digest.update(f"{name} {array.shape} ".encode() + np.asarray(array, "<f8").tobytes())
    return digest.hexdigest()
