"""Where the slices lie: pure geometry on headers, shared by series selection and the volume.

The frame is the DICOM patient frame (LPS: x to the patient's left, y to the back, z to the head; mm). A
slice's normal is the cross product of its row and column directions (PS3.3 C.7.6.2.1.1), turned to point to
the head. Slices are sorted along it and never by Instance Number or Slice Location, and gaps are measured
along it, so that gantry tilt does not lengthen them.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.study import Instance

Vector = npt.NDArray[np.float64]

MAX_TILT_DEG = 35.0
"""Largest angle between slice normal and body axis that still counts as axial: gantries tilt up to 30
degrees."""
SAME_POSITION_MM = 0.1
"""Slices closer than this along the normal are at one position."""
MIN_POSITIONS = 10
"""Fewer distinct positions are no head: 10 slices of 7 mm is the coarsest scan in use."""
MIN_COVERAGE_MM = 60.0
"""A brain is about 120 mm high; less than half of it is a piece of a head."""
MISSING_GAP_FACTOR = 1.7
"""A gap this many times the spacing on both sides means that a slice between is missing."""
_NEIGHBOURS = 3
_DIRECTION_TOLERANCE = 0.01
_SPACING_TOLERANCE = 0.01
_UNIT_TOLERANCE = 0.05

_REQUIRED = {
    "rows": "Rows (0028,0010)",
    "columns": "Columns (0028,0011)",
    "pixel_spacing_mm": "PixelSpacing (0028,0030)",
    "image_position_patient_mm": "ImagePositionPatient (0020,0032)",
    "image_orientation_patient": "ImageOrientationPatient (0020,0037)",
}


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A hole in a stack of slices."""

    index: int
    """The slice below the gap, counted from 0 at the lowest slice."""
    width_mm: float
    """Distance along the normal between the slices on both sides."""
    expected_mm: float
    """Spacing of the slices around it."""
    offset_mm: float
    """Distance of the slice below the gap from the lowest slice."""

    @property
    def missing_slices(self) -> int:
        """How many slices of the expected spacing would fill the gap."""
        return max(1, round(self.width_mm / self.expected_mm) - 1)


def is_usable_orientation(instance: Instance) -> bool:
    """Whether Image Orientation (Patient) is two perpendicular unit vectors."""
    if instance.image_orientation_patient is None:
        return False
    row, column = _directions(instance)
    lengths = (float(np.linalg.norm(row)), float(np.linalg.norm(column)))
    return all(abs(n - 1) < _UNIT_TOLERANCE for n in lengths) and abs(float(row @ column)) < _UNIT_TOLERANCE


def _directions(instance: Instance) -> tuple[Vector, Vector]:
    cosines = np.asarray(instance.image_orientation_patient, dtype=np.float64)
    return cosines[:3], cosines[3:]


def stored_normal(instance: Instance) -> Vector:
    """(3,) float64, unit: row direction x column direction, as stored."""
    row, column = _directions(instance)
    normal = np.cross(row, column)
    return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)


def upward_normal(instance: Instance) -> Vector:
    """(3,) float64, unit, LPS: the slice normal, turned to the head (z not negative)."""
    normal = stored_normal(instance)
    return -normal if normal[2] < 0 else normal


def tilt_deg(instance: Instance) -> float:
    """Angle between the slice normal and the body axis (z), 0 to 90 degrees."""
    return float(np.degrees(np.arccos(np.clip(upward_normal(instance)[2], -1.0, 1.0))))


def require_attributes(instances: Sequence[Instance]) -> None:
    """Refuse slices whose place in the patient is unknown.

    Raises
    ------
    StudyRejected
        ``MISSING_ATTRIBUTE``, naming keyword, tag and the number of slices.
    """
    for field, name in _REQUIRED.items():
        count = sum(getattr(instance, field) is None for instance in instances)
        if count:
            raise StudyRejected(
                RejectionReason.MISSING_ATTRIBUTE,
                f"{name} is absent or cannot be parsed in {count} of {len(instances)} slices.",
            )
    count = sum(not is_usable_orientation(instance) for instance in instances)
    if count:
        raise StudyRejected(
            RejectionReason.MISSING_ATTRIBUTE,
            "ImageOrientationPatient (0020,0037) is not two perpendicular unit vectors "
            f"in {count} of {len(instances)} slices.",
        )


def same_plane(a: Instance, b: Instance) -> bool:
    """Whether two slices have one pixel grid: rows, columns, pixel spacing and orientation."""
    if (a.rows, a.columns) != (b.rows, b.columns) or a.pixel_spacing_mm is None or b.pixel_spacing_mm is None:
        return False
    if a.image_orientation_patient is None or b.image_orientation_patient is None:
        return False
    # as numpy.allclose, which costs fifty times as much for a handful of numbers
    return all(
        abs(x - y) <= _SPACING_TOLERANCE * abs(y)
        for x, y in zip(a.pixel_spacing_mm, b.pixel_spacing_mm, strict=True)
    ) and all(
        abs(x - y) <= _DIRECTION_TOLERANCE
        for x, y in zip(a.image_orientation_patient, b.image_orientation_patient, strict=True)
    )


def majority_grid(instances: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
    """Split slices into the largest set that shares one pixel grid, and the others.

    Of sets of one size the one met first wins, so callers sort first where they want an answer that does not
    hang on the order of arrival.
    """
    groups: list[list[Instance]] = []
    for instance in instances:
        for group in groups:
            if same_plane(group[0], instance):
                group.append(instance)
                break
        else:
            groups.append([instance])
    kept = max(groups, key=len, default=[])
    chosen = {id(instance) for instance in kept}
    return kept, [instance for instance in instances if id(instance) not in chosen]


def by_identity(instance: Instance) -> tuple[str, int]:
    """Key that sorts images by their UID, and frames by their number; says nothing of where they lie."""
    return instance.sop_instance_uid, instance.frame_number or 0


def offsets_mm(instances: Sequence[Instance], normal: Vector) -> list[float]:
    """Place of each slice along ``normal`` (mm), for slices that have a position."""
    return [float(np.asarray(i.image_position_patient_mm, dtype=np.float64) @ normal) for i in instances]


def sort_upward(instances: Sequence[Instance]) -> tuple[list[Instance], list[float]]:
    """Sort slices of one pixel grid from inferior to superior.

    Returns
    -------
    tuple of list of Instance and list of float
        The slices, and their places along the normal in mm, the lowest at 0. Slices at one place are sorted
        by acquisition number, instance number, UID and frame number.
    """
    if not instances:
        return [], []
    # One normal for all: header rounding must not shear the order.
    normal = upward_normal(min(instances, key=by_identity))
    placed = sorted(
        zip(offsets_mm(instances, normal), instances, strict=True),
        key=lambda p: (p[0], p[1].acquisition_number or 0, p[1].instance_number or 0, by_identity(p[1])),
    )
    lowest = placed[0][0]
    return [instance for _, instance in placed], [offset - lowest for offset, _ in placed]


def positions(offsets: Sequence[float]) -> list[list[int]]:
    """Group sorted places that are one position; returns the indices at each position, lowest first."""
    groups: list[list[int]] = []
    for index, offset in enumerate(offsets):
        if groups and offset - offsets[groups[-1][0]] < SAME_POSITION_MM:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def spacing_mm(offsets: Sequence[float]) -> float:
    """Median distance along the normal between neighbours of sorted, distinct places."""
    return float(statistics.median(b - a for a, b in itertools.pairwise(offsets)))


def holes(offsets: Sequence[float], thickness_mm: Sequence[float | None]) -> list[Gap]:
    """Find gaps where slices of an otherwise regular series are missing.

    A gap is a hole where it is `MISSING_GAP_FACTOR` times wider than the usual (median of up to three) gap on
    either side. Scans that change spacing half way, with thicker slices to match, have wide gaps beside wide
    gaps and are no holes.

    Parameters
    ----------
    offsets
        Sorted, distinct places along the normal, mm.
    thickness_mm
        Slice Thickness (0018,0050) of the same slices, None where absent.
    """
    gaps = [b - a for a, b in itertools.pairwise(offsets)]
    found = []
    for index, gap in enumerate(gaps):
        sides = (gaps[max(0, index - _NEIGHBOURS) : index], gaps[index + 1 : index + 1 + _NEIGHBOURS])
        expected = max((statistics.median(side) for side in sides if side), default=gap)
        if gap < MISSING_GAP_FACTOR * expected or _is_thicker_slice(index, gap, thickness_mm):
            continue
        found.append(Gap(index=index, width_mm=gap, expected_mm=expected, offset_mm=offsets[index]))
    return found


def _is_thicker_slice(index: int, gap: float, thickness_mm: Sequence[float | None]) -> bool:
    """Whether a gap is wide because the slice beside it is thicker than usual and covers it."""
    known = [t for t in thickness_mm if t is not None and t > 0]
    beside = [t for t in thickness_mm[index : index + 2] if t is not None]
    if not known or not beside:
        return False
    thickest = max(beside)
    return thickest > 1.2 * min(known) and gap <= 1.1 * thickest


def affine(ordered: Sequence[Instance]) -> npt.NDArray[np.float64]:
    """Map voxel indices of sorted slices of one grid to the patient.

    Equation of PS3.3 C.7.6.2.1.1 with a third column: the mean step from slice to slice, which under gantry
    tilt is not along the normal (shear). Exact for evenly spaced slices; the first and the last slice are
    exact always.

    Returns
    -------
    numpy.ndarray
        (4, 4) float64: (column, row, slice, 1) to (x, y, z, 1), LPS mm, pixel centres. Its determinant is
        negative where the images are stored mirrored or seen from above.
    """
    first = ordered[0]
    assert first.pixel_spacing_mm is not None
    row, column = _directions(first)
    matrix = np.eye(4, dtype=np.float64)
    matrix[:3, 0] = row * first.pixel_spacing_mm[1]
    matrix[:3, 1] = column * first.pixel_spacing_mm[0]
    start, end = (np.asarray(ordered[k].image_position_patient_mm, dtype=np.float64) for k in (0, -1))
    matrix[:3, 2] = (end - start) / (len(ordered) - 1) if len(ordered) > 1 else upward_normal(first)
    matrix[:3, 3] = start
    return matrix
