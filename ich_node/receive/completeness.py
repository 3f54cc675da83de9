"""Whether the slices of a series that are here look like the whole stack, and who may still bring some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

_MIN_POSITIONS = 10
_SAME_DIRECTION = 1e-3
"""Largest difference of a direction cosine within one stack; scanners round to 4 digits or better."""
_SAME_POSITION_MM = 0.01
_SPACING_TOLERANCE = 0.1
_ROUNDING_MM = 0.12
"""Positions are often rounded to 0.1 mm, which shows as uneven gaps in thin slices."""
_MIN_RUN = 3
"""Gaps on one side of a change of spacing; fewer could as well be a hole at the end."""

_MAX_CHANGES = 400
"""Places that are looked at for a change of spacing, so that no sender can make this long."""

_Gaps = npt.NDArray[np.float64]


class SlicePlace(Protocol):
    """The part of an `ich_node.study.Instance` that says where it stands in its stack."""

    @property
    def instance_number(self) -> int | None: ...  # noqa: D102

    @property
    def number_of_frames(self) -> int: ...  # noqa: D102

    @property
    def image_position_patient_mm(self) -> Sequence[float] | None: ...  # noqa: D102

    @property
    def image_orientation_patient(self) -> Sequence[float] | None: ...  # noqa: D102


class OpenSeries:
    """Which associations that are still open have brought objects of which series.

    A PACS sends a series over several associations at once, and one association may carry many studies. Only
    the end of the last association that brought a series says that it may be whole. An association whose end
    is never heard of (its process died) counts no longer when it has brought nothing for some time.

    Parameters
    ----------
    silence_s
        So long after its last object an association no longer counts.
    """

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._last_brought: dict[str, dict[str, float]] = {}  # series -> association -> time
        self._series_of: dict[str, set[str]] = {}  # association -> series

    def bring(self, association_id: str, series_instance_uid: str, *, now_s: float) -> bool:
        """Note that an association has brought an object of a series; whether it is its first of it.

        Parameters
        ----------
        now_s
            Of a clock that never goes back.
        """
        brought = self._last_brought.setdefault(series_instance_uid, {})
        first = association_id not in brought
        brought[association_id] = now_s
        if first:
            self._series_of.setdefault(association_id, set()).add(series_instance_uid)
        return first

    def end(
        self, association_id: str, series_instance_uids: Iterable[str] = (), *, now_s: float
    ) -> list[str]:
        """Note the end of an association.

        Parameters
        ----------
        series_instance_uids
            What it brought by its own account, which may be more than was noted here.

        Returns
        -------
        list of str
            Those of its series that no open association brings any more.
        """
        ended = dict.fromkeys(series_instance_uids)
        ended.update(dict.fromkeys(sorted(self._series_of.pop(association_id, ()))))
        for series_instance_uid in ended:
            self._forget(series_instance_uid, association_id)
        return [uid for uid in ended if not self.is_open(uid, now_s=now_s)]

    def is_open(self, series_instance_uid: str, *, now_s: float) -> bool:
        """Whether an open association has brought objects of the series lately."""
        brought = self._last_brought.get(series_instance_uid, {})
        return any(now_s - at_s <= self._silence_s for at_s in brought.values())

    def forget_silent(self, *, now_s: float) -> None:
        """Forget associations that no longer count."""
        silent = [
            (series_instance_uid, association_id)
            for series_instance_uid, brought in self._last_brought.items()
            for association_id, at_s in brought.items()
            if now_s - at_s > self._silence_s
        ]
        for series_instance_uid, association_id in silent:
            self._forget(series_instance_uid, association_id)
            self._series_of[association_id].discard(series_instance_uid)
            if not self._series_of[association_id]:
                del self._series_of[association_id]

    def __len__(self) -> int:
        return len(self._last_brought)

    def _forget(self, series_instance_uid: str, association_id: str) -> None:
        brought = self._last_brought.get(series_instance_uid, {})
        brought.pop(association_id, None)
        if not brought:
            self._last_brought.pop(series_instance_uid, None)


def is_geometrically_complete(instances: Sequence[SlicePlace]) -> bool:
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


def _positions_along_normal(instances: Sequence[SlicePlace]) -> _Gaps | None:
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
        for cut, width in _possible_changes(gaps)
    )


def _possible_changes(gaps: _Gaps) -> list[tuple[int, int]]:
    """Where a run may end, and how many gaps may follow that belong to no run; the largest steps first."""
    even_before, even_after = _are_even(gaps), _are_even(gaps[::-1])[::-1]
    possible = [
        (int(cut), width)
        for cut in np.flatnonzero(even_before[_MIN_RUN - 1 : len(gaps) - _MIN_RUN]) + _MIN_RUN
        for width in (0, 1)
        if cut + width < len(gaps) and even_after[cut + width]
    ]
    by_step = sorted(possible, key=lambda change: -abs(gaps[sum(change)] - gaps[change[0] - 1]))
    return by_step[:_MAX_CHANGES]


def _are_even(gaps: _Gaps) -> npt.NDArray[np.bool_]:
    """Whether the gaps up to each one can be regular at all: what `_is_regular` needs, in one pass."""
    largest, smallest = np.maximum.accumulate(gaps), np.minimum.accumulate(gaps)
    even: npt.NDArray[np.bool_] = largest - smallest <= 2.01 * np.maximum(
        _SPACING_TOLERANCE * largest, _ROUNDING_MM
    )
    return even


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
