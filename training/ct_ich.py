"""Reader of CT-ICH v1.0.0: 60 patients as JPEG in a brain and a bone window, labelled slice by slice.

Hssayeni et al., "Computed Tomography Images for Intracranial Hemorrhage Detection and Segmentation", Data
2020, 5(1):14, PhysioNet doi 10.13026/w8q8-ky94, CC BY 4.0.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ich_node.findings import IchSubtype
from ich_node.model.coarse_grid import DEFAULT, IntracranialConfig
from ich_node.model.intracranial import intracranial_mask

_COLUMNS = {
    "Epidural": IchSubtype.EPIDURAL,
    "Intraparenchymal": IchSubtype.INTRAPARENCHYMAL,
    "Intraventricular": IchSubtype.INTRAVENTRICULAR,
    "Subarachnoid": IchSubtype.SUBARACHNOID,
    "Subdural": IchSubtype.SUBDURAL,
}
CITATION = (
    "Hssayeni et al., Computed Tomography Images for Intracranial Hemorrhage Detection and Segmentation, "
    "Data 2020, 5(1):14, PhysioNet v1.0.0, doi 10.13026/w8q8-ky94"
)
LICENCE = "CC BY 4.0"
_BONE_FLOOR_HU = 165.0
SLICE_SPACING_MM = 5.0
_ASSUMED_PIXEL_MM = 0.4
_ADULT_CROSS_SECTION_MM2 = 18500.0
"""Largest intracranial cross-section of an adult, by which the missing pixel spacing is estimated."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One patient's labelled slices, inferior to superior."""

    patient: str
    slice_numbers: tuple[int, ...]
    subtypes: tuple[frozenset[IchSubtype], ...]
    """Subtypes present per slice; empty where there is no hemorrhage."""
    folder: Path

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """(slices,) bool: any hemorrhage."""
        return np.array([bool(s) for s in self.subtypes])

    def hu(self) -> npt.NDArray[np.float32]:
        """(slices, rows, columns) float32, HU as far as two 8-bit windows give it."""
        return np.stack([read_slice(self.folder, n) for n in self.slice_numbers])


def read_scans(root: Path) -> list[Scan]:
    """All patients of the data set, by patient number.

    Parameters
    ----------
    root
        Folder with ``Patients_CT`` and ``hemorrhage_diagnosis.csv``.

    Raises
    ------
    FileNotFoundError
        The table, or an image that the table lists, is not there.
    """
    rows: dict[str, dict[int, frozenset[IchSubtype]]] = defaultdict(dict)
    with (root / "hemorrhage_diagnosis.csv").open(encoding="utf-8-sig", newline="") as table:
        for row in csv.DictReader(table):
            found = frozenset(s for column, s in _COLUMNS.items() if int(row[column]))
            rows[f"{int(row['PatientNumber']):03d}"][int(row["SliceNumber"])] = found
    return list(_scans(root, rows))


def _scans(root: Path, rows: dict[str, dict[int, frozenset[IchSubtype]]]) -> Iterator[Scan]:
    for patient, slices in sorted(rows.items()):
        numbers = tuple(sorted(slices))
        folder = root / "Patients_CT" / patient
        for number in numbers:
            if not (folder / "brain" / f"{number}.jpg").is_file():
                raise FileNotFoundError(
                    f"{folder / 'brain' / f'{number}.jpg'} is listed in the table but absent"
                )
        yield Scan(
            patient=patient,
            slice_numbers=numbers,
            subtypes=tuple(slices[n] for n in numbers),
            folder=folder,
        )


def read_slice(folder: Path, number: int) -> npt.NDArray[np.float32]:
    """HU of one slice from its two window pictures, (rows, columns) float32.

    Brain window: level 40, width 120; bone window: level 700, width 3200. The brain window is finer and is
    taken wherever it is not saturated.
    """
    brain = _grey(folder / "brain" / f"{number}.jpg")
    bone = _grey(folder / "bone" / f"{number}.jpg")
    fine = -20 + 120 * brain / 255
    wide = -900 + 3200 * bone / 255
    # JPEG rings by a few grey levels around the saturated ends. In some patients the bone pictures lag the
    # brain pictures by a slice, so what the brain window shows white is held at bone whatever the bone
    # window says.
    black, white = brain <= 4, brain >= 251
    wide = np.where(white, np.maximum(wide, _BONE_FLOOR_HU), np.minimum(wide, -18))
    return np.where(black | white, wide, fine).astype(np.float32)


def estimated_spacing_mm(
    hu: npt.NDArray[np.float32], config: IntracranialConfig = DEFAULT
) -> tuple[float, float, float]:
    """Spacing for images that come without: the pixel at which the largest cross-section is an adult's.

    Children's heads are enlarged by it, and an adult's real deviation (about 5 % in length) is lost; the
    random scale of the augmentation is wider than both.
    """
    guess = (SLICE_SPACING_MM, _ASSUMED_PIXEL_MM, _ASSUMED_PIXEL_MM)
    areas = intracranial_mask(hu, guess, config)
    cell = areas.block[0] * areas.block[1] * _ASSUMED_PIXEL_MM**2
    # the third largest is less at the mercy of one leaking slice
    largest = float(np.sort(areas.mask.sum(axis=(1, 2)))[-3:][0] * cell)
    if largest <= 0:
        return guess
    pixel = _ASSUMED_PIXEL_MM * (_ADULT_CROSS_SECTION_MM2 / largest) ** 0.5
    pixel = float(np.clip(pixel, 0.25, 0.6))
    return (SLICE_SPACING_MM, pixel, pixel)


def _grey(path: Path) -> npt.NDArray[np.float32]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"), np.float32)
