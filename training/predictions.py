"""What a system said of labelled scans: the one thing that evaluation looks at, kept in one file per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.scan import CLASSES
from training.whole_file import written_whole

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Scores and places of slices, those of one scan together and inferior to superior."""

    system: str
    """Name of the system or of its variant, as a table shows it."""
    data: str
    """Name of the data set."""
    split: str
    """How the scored patients relate to the trained ones: ``5-fold cross-validation by patient``, say."""
    scan_ids: Names
    """(scans,)"""
    patient_ids: Names
    """(scans,)"""
    fold: Ints
    """(scans,) which network scored it; 0 for all where there is one."""
    scan: Ints
    """(slices,) index of the scan."""
    labels: npt.NDArray[np.int8]
    """(slices, classes) in the order of `CLASSES`: 1, 0, or -1 for not known."""
    scan_labels: npt.NDArray[np.int8]
    """(scans, classes), the same."""
    logits: Floats
    """(slices, classes) uncalibrated; NaN for a class that the system does not know; -inf where there is no
    intracranial space, and the slice counts as without hemorrhage."""
    places: Floats
    """(places, 7): slice, class, score, left, top, right, bottom in image pixels; a point has left = right."""
    boxes: Floats
    """(boxes, 6) truth: slice, class, left, top, right, bottom in image pixels."""
    pixel_mm: Floats
    """(slices, 2) row and column distance, mm."""

    def __post_init__(self) -> None:
        slices, scans, classes = len(self.scan), len(self.scan_ids), len(CLASSES)
        wanted = {
            "patient_ids": (scans,),
            "fold": (scans,),
            "labels": (slices, classes),
            "scan_labels": (scans, classes),
            "logits": (slices, classes),
            "pixel_mm": (slices, 2),
            "places": (len(self.places), 7),
            "boxes": (len(self.boxes), 6),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"predictions: {name} is {getattr(self, name).shape}, expected {shape}")

    def save(self, file: Path) -> None:
        """Write all of it as an npz file, whole or not at all."""
        with written_whole(file) as temporary:
            np.savez_compressed(temporary, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, file: Path) -> Predictions:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            The file is absent.
        ValueError
            It is damaged, or no such file.
        """
        values: dict[str, Any] = arrays_of(file, [f.name for f in fields(cls)])
        for name in ("system", "data", "split"):
            values[name] = str(values[name])
        return cls(**values)


def arrays_of(file: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an npz file.

    Raises
    ------
    OSError
        The file is absent.
    ValueError
        It is damaged, no such file, or lacks one of ``names``.
    """
    try:
        # opened here: np.load leaves a damaged file open
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except OSError:
        raise
    except Exception as error:  # zip, zlib and NumPy's headers each raise their own of damage
        raise ValueError(
            f"{file} is damaged, or another kind of file: {error or type(error).__name__}"
        ) from error
