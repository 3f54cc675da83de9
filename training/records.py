"""What is kept of a run for good: what its networks said of each slice, without the data they said it of.

A run's folder has gigabytes of checkpoints and logs and stays on the machine that trained. A record is one small file
that goes with the source; with the labelled data at hand the page of results is made from records anew, to the same
numbers. Labels are the data's, and come from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from training.predictions import Predictions
from training.reading import boxes_of
from training.run import RUN_FILE, predictions_of
from training.scan import Scan
from training.whole_file import written_whole

_NAMES = ("system", "data", "split")
_WHOLE = ("scan_ids", "patient_ids", "fold", "scan")
_ROUNDED = ("logits", "pixel_mm", "places")
"""Kept with 24 bits."""

Said = tuple[Predictions, dict[str, Any]]
"""Predictions for all patients of a run, and what its ``run.json`` says."""


def file_of(records: Path, recipe: str) -> Path:
    """Where the record of a recipe's run is kept."""
    return records / f"{recipe}.npz"


def of_run(run: Path) -> Said | None:
    """What a run says; None where folds of it are not done, or there is none."""
    predictions = predictions_of(run) if (run / RUN_FILE).is_file() else None
    if predictions is None:
        return None
    return predictions, json.loads((run / RUN_FILE).read_text(encoding="utf-8"))


def keep(said: Said, file: Path) -> None:
    """Write a record, whole or not at all."""
    predictions, described = said
    values: dict[str, Any] = {name: getattr(predictions, name) for name in (*_NAMES, *_WHOLE)}
    values |= {name: getattr(predictions, name).astype(np.float32) for name in _ROUNDED}
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as temporary:
        np.savez_compressed(temporary, **values, run=json.dumps(described, sort_keys=True))


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
        It is no record; a scan of it is not among ``scans``, is there twice, or has another number of slices there.
    """
    try:
        # opened here: np.load leaves a damaged file open
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            values: dict[str, Any] = {name: kept[name] for name in _WHOLE}
            values |= {name: kept[name].astype(np.float64) for name in _ROUNDED}
            values |= {name: str(kept[name]) for name in _NAMES}
            described: dict[str, Any] = json.loads(str(kept["run"]))
    except (KeyError, TypeError, ValueError, BadZipFile) as error:
        raise ValueError(f"{file} is no record of a run: {error}") from error
    counts = np.bincount(values["scan"], minlength=len(values["scan_ids"]))
    found = [
        _scan(file, scan_id, int(count), values["data"], scans)
        for scan_id, count in zip(values["scan_ids"].tolist(), counts, strict=True)
    ]
    predictions = Predictions(
        **values,
        labels=np.concatenate([scan.labels for scan in found]),
        scan_labels=np.stack([scan.scan_labels for scan in found]),
        boxes=boxes_of(found),
    )
    return predictions, described


def _scan(file: Path, scan_id: str, slices: int, data: str, scans: Sequence[Scan]) -> Scan:
    found = [scan for scan in scans if scan.scan_id == scan_id and scan.source in data.split(", ")]
    if len(found) != 1:
        raise ValueError(
            f"{file}: scan {scan_id} of {data} is {len(found)} times in the data that were given"
        )
    if len(found[0].slice_ids) != slices:
        raise ValueError(
            f"{file}: scan {scan_id} has {slices} slices, but {len(found[0].slice_ids)} in the data"
        )
    return found[0]
