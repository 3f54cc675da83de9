"""What every reader of labelled data gives: scans with their labels, whose images are read when they are wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ich_node.findings import IchSubtype

CLASSES = tuple(IchSubtype)
"""Columns of all labels: any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural."""
ABSENT, PRESENT, UNKNOWN = 0, 1, -1
"""Values of a label."""
Labels = npt.NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class TruthBox:
    """A reader's box around a bleed."""

    slice_index: int
    """Into the scan's slices."""
    subtype: IchSubtype
    left: float
    top: float
    right: float
    bottom: float
    """Edges in image coordinates (column, row), pixels; the corner of the image is (0, 0)."""
    drawn: Literal["manual", "extrapolated"] = "manual"


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Images of one scan."""

    hu: npt.NDArray[np.float32]
    """(slices, rows, columns) float32, HU, inferior to superior, rows to posterior, columns to the patient's left."""
    spacing_mm: tuple[float, float, float]
    """(slice, row, column) distance of neighbouring centres, mm."""
    spacing_is_estimated: bool = False
    is_of_pictures: bool = False
    """HU come from compressed pictures of a window: noise is not the scanner's, and what is bright is cut off."""
    lesion: npt.NDArray[np.bool_] | None = None
    """(slices, classes, rows, columns) bool in the order of `CLASSES`, where outlines are known; else None."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One labelled scan.

    Attributes that say nothing of a class or slice hold `UNKNOWN`, never `ABSENT`.
    """

    source: str
    """Name of the data set."""
    scan_id: str
    """Unique within the data set."""
    patient_id: str
    """Splits go by it. Where the data set has no patients, the scan's own."""
    slice_ids: tuple[str, ...]
    """What the data set calls each slice, inferior to superior."""
    labels: Labels
    """(slices, classes) int8."""
    scan_labels: Labels
    """(classes,) int8."""
    read: Callable[[], Volume]
    """Read the images. Raises OSError or ValueError that name the file when one is absent or damaged."""
    boxes: tuple[TruthBox, ...] = ()
    boxes_are_complete: bool = False
    """Whether a slice without a box is known to have none to draw, so that a point outside is a false one."""
    outlined: bool = False
    """Whether `Volume.lesion` will be there."""
    synthetic: bool = False
    """A phantom: it trains and is never part of a measurement on patients."""

    def __post_init__(self) -> None:
        shape = (len(self.slice_ids), len(CLASSES))
        if self.labels.shape != shape or self.scan_labels.shape != (len(CLASSES),):
            raise ValueError(f"scan {self.scan_id}: labels of {self.labels.shape} for {shape}")


def read_volume(scan: Scan) -> Volume:
    """Read a scan's images.

    Raises
    ------
    OSError, ValueError
        They cannot be read; the message names the scan.
    """
    try:
        return scan.read()
    except OSError as error:
        raise OSError(f"scan {scan.scan_id}: {error}") from error
    except ValueError as error:
        raise ValueError(f"scan {scan.scan_id}: {error}") from error


def scan_labels_of(labels: Labels) -> Labels:
    """Labels of a scan from those of its slices: present where any is, absent where all are.

    Parameters
    ----------
    labels
        (slices, classes) int8.

    Returns
    -------
    numpy.ndarray
        (classes,) int8.
    """
    present, absent = (labels == PRESENT).any(axis=0), (labels == ABSENT).all(axis=0)
    return np.where(present, PRESENT, np.where(absent, ABSENT, UNKNOWN)).astype(np.int8)


def labels_of(subtypes: frozenset[IchSubtype]) -> Labels:
    """(classes,) int8 of a slice whose subtypes are all known; *any* is among them wherever one is."""
    found = subtypes | {IchSubtype.ANY} if subtypes else subtypes
    return np.array([PRESENT if c in found else ABSENT for c in CLASSES], np.int8)
