"""Whether the slices of a series that are here look like the whole stack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ich_node.study import Instance

_MIN_POSITIONS = 10
_SAME_DIRECTION = 1e-3
"""Largest difference of a direction cosine within one stack; scanners round to 4 digits or better."""
_SAME_POSITION_MM = 0.01
_SPACING_TOLERANCE = 0.1
_ROUNDING_MM = 0.12
"""Positions are often rounded to 0.1 mm, which shows as uneven gaps in thin slices."""
_MIN_RUN = 3
"""Gaps on one side of a change of spacing; fewer could as well be a hole at the end."""

_Gaps = npt.NDArray[np.float64]


def is_geometrically_complete(instances: Sequence[Instance]) -> bool:
    """Whether the instances form a stack without a hole.

    A stack has one orientation, at least 10 positions along its normal, one regular spacing or a single
    change from one to another (head protocols with thin slices at the skull base), and no hole in Instance
    Number (0020,0013) where every instance has one. What is missing before the first or after the last slice
    cannot be seen here, so the caller asks only after the association has ended. ``False`` is no verdict on
    the series; it only means that waiting a little longer is worth while.

    Parameters
    ----------
    instances
        The instances of one series, in any order. Multi-frame instances carry their geometry inside: a
        series of them is complete when one has 10 frames.

    Returns
    -------
    bool
        Whether nothing seems to be missing.
    """
    if any(instance.number_of_frames > 1 for instance in instances):
        return any(instance.number_of_frames >= _MIN_POSITIONS for instance in instances)
    positions = _positions_along_normal(instances)
    if positions is None or _has_hole([instance.instance_number for instance in instances]):
        return False
    return len(positions) >= _MIN_POSITIONS and _is_regular_or_changes_once(np.diff(positions))


def _positions_along_normal(instances: Sequence[Instance]) -> _Gaps | None:
    """Return the distinct positions (mm) along the slice normal in ascending order; None without a stack."""
    positions = [i.image_position_patient_mm for i in instances if i.image_position_patient_mm is not None]
    directions = [i.image_orientation_patient for i in instances if i.image_orientation_patient is not None]
    if not instances or len(positions) != len(instances) or len(directions) != len(instances):
        return None
    orientations = np.asarray(directions, dtype=np.float64)
    points = np.asarray(positions, dtype=np.float64)
    if not (np.isfinite(orientations).all() and np.isfinite(points).all()):
        return None
    if np.abs(orientations - orientations[0]).max() > _SAME_DIRECTION:
        return None
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    if not 0.9 < np.linalg.norm(normal) < 1.1:
        return None
    along = np.sort(points @ normal)
    distinct: _Gaps = along[np.concatenate([[True], np.diff(along) > _SAME_POSITION_MM])]
    return distinct


def _has_hole(numbers: Sequence[int | None]) -> bool:
    known = {number for number in numbers if number is not None}
    if len(known) == 0 or None in numbers:
        return False
    return max(known) - min(known) + 1 != len(known)


def _is_regular_or_changes_once(gaps: _Gaps) -> bool:
    if _is_regular(gaps):
        return True
    # Between two runs the scanner may leave one gap that belongs to neither: an overlap, or the mean of both.
    return any(
        _runs_meet(gaps[:cut], gaps[cut : cut + width], gaps[cut + width :])
        for cut in range(_MIN_RUN, len(gaps) - _MIN_RUN + 1)
        for width in (0, 1)
    )


def _runs_meet(before: _Gaps, between: _Gaps, after: _Gaps) -> bool:
    if len(after) < _MIN_RUN or not (_is_regular(before) and _is_regular(after)):
        return False
    spacings = float(np.median(before)), float(np.median(after))
    mean, smaller = sum(spacings) / 2, min(spacings)
    return all(gap <= smaller + _tolerance(smaller) or abs(gap - mean) <= _tolerance(mean) for gap in between)


def _is_regular(gaps: _Gaps) -> bool:
    spacing = float(np.median(gaps))
    return bool((np.abs(gaps - spacing) <= _tolerance(spacing)).all())


def _tolerance(spacing: float) -> float:
    return max(_SPACING_TOLERANCE * spacing, _ROUNDING_MM)
