"""What a report is made of: one finished reading, with the headers and pixels that it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import UID

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.findings import SeriesFinding

MANUFACTURER = "ich_node"
"""Manufacturer (0008,0070) of every result object."""
DEVICE_NAME = "ICH_NODE"
"""Device Observer Name of TID 1004 and Manufacturer's Model Name (0008,1090)."""
_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


@dataclass(frozen=True, kw_only=True)
class Predecessor:
    """The earlier reading of the same series by the same model that a new one supersedes.

    The UIDs of its objects follow from it (`uids.predecessor_uid`), for a report of each form its own.
    """

    model_name: str
    model_version: str
    run_number: int
    sr_forms: frozenset[str] | None = None
    """Forms of its structured reports that somebody was to get, as `SrForm` names them; the default one was made in any
    case. ``None``: those that are made now."""


@dataclass(frozen=True, kw_only=True)
class ReadingReport:
    """One reading of one series, ready to be written into DICOM objects.

    ``source_images``, ``hu`` and ``finding.slices`` are parallel: entry ``i`` of each is the same slice,
    inferior to superior. Two equal reports give equal bytes, so a retry has to pass the same ``read_at``.

    Raises
    ------
    StudyRejected
        ``MISSING_ATTRIBUTE`` where a source image lacks a UID, ``INVALID_MODEL_OUTPUT`` where a score is not
        between 0 and 1 (a comparison with NaN is false, and the study would look negative) or a coordinate is not
        finite.
    ValueError
        The parallel parts differ in length or shape, or ``read_at`` has no time zone.
    """

    finding: SeriesFinding
    source_images: Sequence[Dataset]
    """Headers of the slices that were read, without PixelData; attributes may be missing, apart from the
    UIDs. Of a frame, that of its object with the frame's own plane."""
    hu: npt.NDArray[np.float32]
    """(slices, rows, columns) float32, HU, on the source pixel grid."""
    spacing_mm: tuple[float, float, float]
    """(slice, row, column) spacing."""
    run_number: int
    """1 for the first reading of the series; reprocessing raises it."""
    read_at: datetime
    """When the model finished, with time zone."""
    predecessor: Predecessor | None = None
    caveats: tuple[str, ...] = ()
    """What a reader should know of the input, one sentence each, without identifying values."""
    frame_numbers: tuple[int | None, ...] = ()
    """Of the slices in their objects, counted from 1, ``None`` for an image of a single frame; empty: all are such
    images."""

    def __post_init__(self) -> None:
        if self.read_at.tzinfo is None:
            raise ValueError("read_at needs a time zone")
        if self.run_number < 1:
            raise ValueError(f"run_number starts at 1, got {self.run_number}")
        self._check_shapes()
        for name in _REQUIRED:
            if not all(is_uid(image.get(name)) for image in self.source_images):
                raise StudyRejected(
                    RejectionReason.MISSING_ATTRIBUTE, f"{name} is absent or no UID in a source image."
                )
        if not all(math.isfinite(score) and 0 <= score <= 1 for score in self._scores()):
            raise StudyRejected(
                RejectionReason.INVALID_MODEL_OUTPUT, "The model gave a score that is not between 0 and 1."
            )
        places = (place for finding in self.finding.slices for place in finding.localizations)
        if not all(math.isfinite(coordinate) for place in places for coordinate in place.coordinates):
            raise StudyRejected(
                RejectionReason.INVALID_MODEL_OUTPUT, "The model gave a place that is nowhere on its slice."
            )

    def _check_shapes(self) -> None:
        count = len(self.finding.slices)
        if count == 0 or count != len(self.source_images) or self.hu.ndim != 3 or count != self.hu.shape[0]:
            raise ValueError(
                f"slices do not match: {count} findings, {len(self.source_images)} headers, "
                f"pixels {self.hu.shape}"
            )
        if len(self.frame_numbers) not in (0, count):
            raise ValueError(
                f"slices do not match: {count} findings, {len(self.frame_numbers)} frame numbers"
            )
        for finding in self.finding.slices:
            for subtype, likelihood in finding.likelihood_maps.items():
                if likelihood.shape != self.hu.shape[1:]:
                    raise ValueError(
                        f"likelihood map of {subtype} {likelihood.shape} is not on the pixel grid "
                        f"{self.hu.shape[1:]}"
                    )

    def _scores(self) -> Iterator[float]:
        yield self.finding.suspicion
        yield from self.finding.subtypes.values()
        for finding in self.finding.slices:
            yield from finding.probabilities.values()
            yield from (place.score for place in finding.localizations)

    def frame_number(self, index: int) -> int | None:
        """Referenced Frame Number (0008,1160) of a slice; ``None`` where its object has a single frame."""
        return self.frame_numbers[index] if self.frame_numbers else None

    def referenced_frames(self, index: int) -> list[int] | None:
        """Referenced Frame Number (0008,1160) of a slice as a reference takes it."""
        number = self.frame_number(index)
        return None if number is None else [number]

    def slice_key(self, index: int) -> str:
        """What tells a slice from every other: its SOP Instance UID, with the frame's number where it has one."""
        uid, number = str(self.source_images[index].SOPInstanceUID), self.frame_number(index)
        return uid if number is None else f"{uid}/frame/{number}"

    @cached_property
    def objects(self) -> dict[str, Dataset]:
        """A header of each object that the slices are images or frames of, by its SOP Instance UID."""
        return {str(image.SOPInstanceUID): image for image in self.source_images}

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID (0020,000E) of the series that was read."""
        return str(self.source_images[0].SeriesInstanceUID)

    @property
    def study_instance_uid(self) -> str:
        """Study Instance UID (0020,000D)."""
        return str(self.source_images[0].StudyInstanceUID)


def is_uid(value: object) -> bool:
    """Whether an attribute's value is a valid UID."""
    return isinstance(value, str) and bool(value) and UID(value).is_valid
