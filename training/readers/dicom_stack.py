"""Slices of a series become a stack that training can read: one image a place, inferior to superior, turned upright.

HU come from `ich_node.pixels`, so that a network is trained on what it will read: padding, signs and the known fault
of 12-bit values that wrapped around (public kernels for RSNA 2019 mend it the same way) are mended there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ich_node import geometry
from ich_node.errors import StudyRejected, TransientError
from ich_node.pixels import MissingAttributes, read_pixels
from ich_node.selection import select_series
from ich_node.series_words import Kernel, kernel
from ich_node.study import Instance, Series, Study
from training.readers.dicom_index import IndexedFile
from training.readers.faults import FaultKind, ReadOptions
from training.scan import TruthBox, Volume

ASSUMED_SLICE_SPACING_MM = 5.0
_KERNEL_ORDER = (Kernel.SOFT, Kernel.UNKNOWN, Kernel.SHARP, Kernel.BONE)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What brings stored images upright: rows to posterior, columns to the patient's left.

    Rows and columns are exchanged first, then mirrored.
    """

    exchange: bool
    mirror_rows: bool
    mirror_columns: bool

    @classmethod
    def of(cls, instance: Instance) -> Turn:
        """By Image Orientation (Patient) (0020,0037), to the nearest right angle."""
        assert instance.image_orientation_patient is not None
        along_columns = instance.image_orientation_patient[:3]
        along_rows = instance.image_orientation_patient[3:]
        exchange = abs(along_columns[0]) < abs(along_columns[1])
        if exchange:
            along_columns, along_rows = along_rows, along_columns
        return cls(exchange=exchange, mirror_rows=along_rows[1] < 0, mirror_columns=along_columns[0] < 0)

    def image(self, stored: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(rows, columns) as stored to (rows, columns) upright."""
        turned = stored.T if self.exchange else stored
        return turned[:: -1 if self.mirror_rows else 1, :: -1 if self.mirror_columns else 1]

    def box(self, box: TruthBox, instance: Instance) -> TruthBox:
        """A box in the stored image to the same in the upright one."""
        x, y = (box.left, box.right), (box.top, box.bottom)
        width, height = float(instance.columns or 0), float(instance.rows or 0)
        if self.exchange:
            x, y, width, height = y, x, height, width
        if self.mirror_columns:
            x = (width - x[1], width - x[0])
        if self.mirror_rows:
            y = (height - y[1], height - y[0])
        return TruthBox(
            slice_index=box.slice_index,
            subtype=box.subtype,
            left=x[0],
            top=y[0],
            right=x[1],
            bottom=y[1],
            drawn=box.drawn,
        )


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices of one pixel grid, one a place, inferior to superior."""

    instances: tuple[Instance, ...]
    spacing_mm: tuple[float, float, float]
    """(slice, row, column) of the upright images."""
    spacing_is_estimated: bool
    turn: Turn
    replaced: dict[str, str]
    """SOP Instance UIDs that were dropped as further images at a place, to that which was kept."""

    def read(self) -> Volume:
        """Decode all slices.

        Raises
        ------
        ValueError
            A slice cannot be decoded; names the file.
        """
        hu = np.stack([self.turn.image(_decoded(instance)) for instance in self.instances])
        return Volume(hu=hu, spacing_mm=self.spacing_mm, spacing_is_estimated=self.spacing_is_estimated)


def _decoded(instance: Instance) -> npt.NDArray[np.float32]:
    try:
        pixels = read_pixels(instance.path)
    except (StudyRejected, MissingAttributes, TransientError) as error:
        detail = error.detail if isinstance(error, StudyRejected) else str(error)
        raise ValueError(f"{instance.path}: {detail}") from error
    if pixels.hu.shape != (instance.rows, instance.columns):
        raise ValueError(f"{instance.path}: {pixels.hu.shape} pixels; the index of headers is out of date")
    return pixels.hu


def stacked(files: Iterable[IndexedFile], where: str, options: ReadOptions) -> Stack | None:
    """Sort the slices of one series and leave out what is no slice of it.

    Slices go by Image Position (Patient) along the normal. Of several images at one place the soft-tissue one, of
    the latest acquisition, is kept; a SOP Instance UID is kept once.

    Parameters
    ----------
    files
        Of one series.
    where
        What reports call the series.
    options
        What is left out is reported.

    Returns
    -------
    Stack or None
        None, and a report, where no slice says where it lies.
    """
    placed = _placed(_once(files, where, options), where, options)
    if not placed:
        return None
    grid, others = geometry.majority_grid(placed)
    if others:
        options.report(
            FaultKind.LEFT_OUT,
            where,
            f"{len(others)} of {len(placed)} slices differ in rows, columns, pixel spacing or orientation",
        )
    ordered, offsets = geometry.sort_upward(grid)
    kept, replaced = _one_a_place(ordered, offsets, where, options)
    _, offsets = geometry.sort_upward(kept)
    turn = Turn.of(kept[0])
    across = kept[0].pixel_spacing_mm
    assert across is not None
    between = geometry.spacing_mm(offsets) if len(kept) > 1 else kept[0].slice_thickness_mm
    return Stack(
        instances=tuple(kept),
        spacing_mm=(between or ASSUMED_SLICE_SPACING_MM, *(across[::-1] if turn.exchange else across)),
        spacing_is_estimated=len(kept) < 2,
        turn=turn,
        replaced=replaced,
    )


def chosen_series(
    name: str, by_series: Mapping[str, Sequence[IndexedFile]], options: ReadOptions
) -> str | None:
    """SeriesInstanceUID of what the node would read of a study; None, and a report, where it would read nothing."""
    series = (
        Series(series_instance_uid=uid, study_instance_uid=name, instances=tuple(f.instance for f in files))
        for uid, files in sorted(by_series.items())
    )
    selection = select_series(Study(study_instance_uid=name, series=tuple(series)))
    if selection.candidates:
        return selection.candidates[0].series_instance_uid
    for exclusion in selection.exclusions:
        where = f"{name}, series {exclusion.series_instance_uid}"
        options.report(FaultKind.LEFT_OUT, where, exclusion.detail)
    return None


def _once(files: Iterable[IndexedFile], where: str, options: ReadOptions) -> list[Instance]:
    """Each SOP Instance UID once, single-frame objects only."""
    found: dict[str, Instance] = {}
    doubled = many = 0
    for file in sorted(files, key=lambda f: str(f.instance.path)):
        if file.instance.number_of_frames > 1:
            many += 1
        elif file.instance.sop_instance_uid in found:
            doubled += 1
        else:
            found[file.instance.sop_instance_uid] = file.instance
    if doubled:
        options.report(
            FaultKind.DOUBLED, where, f"{doubled} files have the SOP Instance UID of another; one is kept"
        )
    if many:
        options.report(
            FaultKind.LEFT_OUT, where, f"{many} multi-frame objects; only single frames are read here"
        )
    return list(found.values())


def _placed(instances: Sequence[Instance], where: str, options: ReadOptions) -> list[Instance]:
    sound = [
        i
        for i in instances
        if i.image_position_patient_mm and i.pixel_spacing_mm and geometry.is_usable_orientation(i)
    ]
    if len(sound) < len(instances):
        options.report(
            FaultKind.LEFT_OUT,
            where,
            f"{len(instances) - len(sound)} of {len(instances)} slices have no usable ImagePositionPatient, "
            "ImageOrientationPatient or PixelSpacing",
        )
    return sound


def _one_a_place(
    ordered: Sequence[Instance], offsets: Sequence[float], where: str, options: ReadOptions
) -> tuple[list[Instance], dict[str, str]]:
    kept: list[Instance] = []
    replaced: dict[str, str] = {}
    for group in geometry.positions(offsets):
        images = sorted((ordered[i] for i in group), key=_preference)
        kept.append(images[0])
        replaced |= {image.sop_instance_uid: images[0].sop_instance_uid for image in images[1:]}
    if replaced:
        options.report(
            FaultKind.DOUBLED,
            where,
            f"{len(replaced)} slices lie where another one lies; one a place is kept",
        )
    return kept, replaced


def _preference(instance: Instance) -> tuple[int, int, int, str]:
    return (
        _KERNEL_ORDER.index(kernel(instance.convolution_kernel, instance.series_description)),
        -(instance.acquisition_number or 0),
        instance.instance_number or 0,
        instance.sop_instance_uid,
    )
