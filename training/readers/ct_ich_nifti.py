"""Reader of CT-ICH from version 1.1 on: 75 patients as NIfTI with outlines of the bleeds.

Hssayeni et al., "Computed Tomography Images for Intracranial Hemorrhage Detection and Segmentation", PhysioNet
v1.3.1, doi 10.13026/4nae-zg36; paper: Data 2020, 5(1):14.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError

from ich_node.findings import IchSubtype
from ich_node.pixels import AIR_HU, HIGHEST_HU
from training.readers.faults import FaultKind, ReadOptions
from training.readers.label_table import SUBTYPES, Row, flag, labels_of_row, rows
from training.scan import CLASSES, PRESENT, UNKNOWN, Labels, Scan, Volume, scan_labels_of

SOURCE = "ct-ich-nifti"
_TABLE = "hemorrhage_diagnosis_raw_ct.csv"
_COLUMNS: dict[IchSubtype, str] = {c: c.value.capitalize() for c in SUBTYPES}
_orientations: Any = nibabel.orientations
_UPRIGHT = _orientations.axcodes2ornt(("S", "P", "L"))
"""Slices to superior, rows to posterior, columns to the patient's left."""
_ANY = CLASSES.index(IchSubtype.ANY)


@dataclass(frozen=True, kw_only=True)
class _Files:
    image: Path
    mask: Path | None
    labels: Labels
    """(slices, classes), inferior to superior."""

    def read(self) -> Volume:
        image = _opened(self.image)
        stored = _data(image, self.image)
        turn = _turn(image, self.image)
        sizes = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0))
        # a transform lists, for each stored axis, the axis that it becomes
        order = np.argsort(turn[:, 0])
        hu = np.ascontiguousarray(_orientations.apply_orientation(stored, turn), np.float32)
        return Volume(
            hu=np.clip(hu, AIR_HU, HIGHEST_HU, out=hu),
            spacing_mm=(float(sizes[order[0]]), float(sizes[order[1]]), float(sizes[order[2]])),
            lesion=None if self.mask is None else self._lesion(stored.shape, turn, self.mask),
        )

    def _lesion(self, shape: tuple[int, ...], turn: npt.NDArray[Any], file: Path) -> npt.NDArray[np.bool_]:
        """(slices, classes, rows, columns): the outline is of any hemorrhage; it is a subtype's where that is alone."""
        mask = _data(_opened(file), file)
        if mask.shape != shape:
            raise ValueError(f"{file}: the outline is {mask.shape}, the image {shape}")
        outline = _orientations.apply_orientation(mask, turn) >= 0.5
        alone = (self.labels == PRESENT) & (
            (np.delete(self.labels, _ANY, axis=1) == PRESENT).sum(axis=1) == 1
        )[:, None]
        alone[:, _ANY] = True
        return np.asarray(outline[:, None] & alone[:, :, None, None])


def read_ct_ich_nifti(root: Path, options: ReadOptions | None = None) -> list[Scan]:
    """One scan a patient, by patient number.

    Parameters
    ----------
    root
        With ``ct_scans/NNN.nii``, ``masks/NNN.nii`` (either may be ``.nii.gz``) and
        ``hemorrhage_diagnosis_raw_ct.csv``.
    options
        Patients whose files are damaged, missing or do not fit their labels are reported.

    Raises
    ------
    FileNotFoundError
        The table is not there.
    ValueError
        A column of it is missing.
    """
    options = options or ReadOptions()
    if not (root / _TABLE).is_file():
        raise FileNotFoundError(f"{root / _TABLE} is not there")
    table = _table(root / _TABLE, options)
    images = {f.name.split(".")[0]: f for f in sorted((root / "ct_scans").glob("*.nii*"))}
    for patient in sorted(images.keys() - table.keys()):
        options.report(
            FaultKind.IMAGE_WITHOUT_LABEL, images[patient], f"{_TABLE} does not have it; it is left out"
        )
    for patient in sorted(table.keys() - images.keys()):
        options.report(
            FaultKind.LABEL_WITHOUT_IMAGE, f"patient {patient}", f"there is no ct_scans/{patient}.nii"
        )
    return [
        scan
        for patient in sorted(images.keys() & table.keys())
        for scan in _scan(root, patient, images[patient], table[patient], options)
    ]


def _table(file: Path, options: ReadOptions) -> dict[str, dict[int, Labels]]:
    """Labels by patient, as files name it, and slice number."""
    found: dict[str, dict[int, Labels]] = defaultdict(dict)
    for line, row in rows(file, ("PatientNumber", "SliceNumber", *_COLUMNS.values())):
        where = f"{file}, line {line}"
        try:
            patient, number = f"{int(float(row['patientnumber'])):03d}", int(float(row["slicenumber"]))
        except ValueError:
            options.report(
                FaultKind.CONFLICTING, where, "PatientNumber or SliceNumber is no number; the row is ignored"
            )
            continue
        if number in found[patient]:
            options.report(
                FaultKind.DOUBLED, where, f"slice {number} of patient {patient} again; the last row counts"
            )
        found[patient][number] = _labels(row, where, options)
    return found


def _labels(row: Row, where: str, options: ReadOptions) -> Labels:
    labels = labels_of_row(row, where, options, _COLUMNS)
    if labels[_ANY] == PRESENT and flag(row, "No_Hemorrhage", where, options) == PRESENT:
        what = "No_Hemorrhage and a subtype are both 1; the slice is unknown"
        options.report(FaultKind.CONFLICTING, where, what)
        labels[:] = UNKNOWN
    return labels


def _scan(
    root: Path, patient: str, file: Path, table: dict[int, Labels], options: ReadOptions
) -> Iterator[Scan]:
    try:
        image = _opened(file)
        turn = _turn(image, file)
        shape = image.shape
    except (OSError, ValueError) as error:
        options.report(FaultKind.DAMAGED, file, f"{error}; it is left out")
        return
    count = int(shape[2])
    labels = _slices(table, count, f"patient {patient}", options)
    numbers = np.arange(1, count + 1)
    if turn[2, 1] < 0:
        labels, numbers = labels[::-1].copy(), numbers[::-1]
    mask = next(
        (m for m in (root / "masks" / f"{patient}{end}" for end in (".nii", ".nii.gz")) if m.is_file()), None
    )
    if mask is None:
        options.report(
            FaultKind.LABEL_WITHOUT_IMAGE, f"patient {patient}", f"there is no masks/{patient}.nii"
        )
    yield Scan(
        source=SOURCE,
        scan_id=patient,
        patient_id=patient,
        slice_ids=tuple(f"{patient}/{number}" for number in numbers),
        labels=labels,
        scan_labels=scan_labels_of(labels),
        read=_Files(image=file, mask=mask, labels=labels).read,
        outlined=mask is not None,
    )


def _slices(table: dict[int, Labels], count: int, where: str, options: ReadOptions) -> Labels:
    """(slices, classes) in stored order. Slices are numbered from 1; where all have a row, rows go by order."""
    labels = np.full((count, len(CLASSES)), UNKNOWN, np.int8)
    numbers = sorted(table)
    if len(numbers) == count:
        numbered = dict(enumerate(numbers))
    else:
        numbered = {number - 1: number for number in numbers if 1 <= number <= count}
        options.report(
            FaultKind.CONFLICTING,
            where,
            f"{len(numbers)} slices are labelled and the image has {count}; the others are unknown or ignored",
        )
    for index, number in numbered.items():
        labels[index] = table[number]
    return labels


# --- files


def _opened(file: Path) -> Any:
    try:
        image: Any = nibabel.load(file)
    except ImageFileError as error:
        raise ValueError(f"{file} is no NIfTI file") from error
    if len(image.shape) != 3:
        raise ValueError(f"{file}: an image of shape {image.shape} is no stack of slices")
    return image


def _data(image: Any, file: Path) -> npt.NDArray[np.float32]:
    try:
        return np.asarray(image.dataobj, np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{file} is damaged or cut short ({error})") from error


def _turn(image: Any, file: Path) -> npt.NDArray[Any]:
    """Orientation transform (3, 2) from the stored axes to slices, rows and columns as `Volume` has them."""
    turn: npt.NDArray[Any] = _orientations.ornt_transform(
        _orientations.io_orientation(image.affine), _UPRIGHT
    )
    if turn[2, 0] != 0:
        raise ValueError(f"{file}: its slices are not axial, so its labels do not fit them")
    return turn
