"""What an input is like, beside what a model learnt from: slices, field of view, coverage, values inside the skull.

A network gives a score for whatever it is shown. A scan unlike all that it was trained on (thin slices, another field
of view, contrast medium, much noise) is read all the same, and the reading says so. A feature within its range is no
proof that the model is right: the ranges are of one feature at a time, and know nothing of what is not measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

from ich_node.model.system import Head

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Bounds = tuple[float, float]
"""Lowest and highest value, both within."""
QUANTILES = (0.005, 0.995)
MARGIN = 0.1
_DENSE_HU, _BRIGHT_HU = 60.0, 100.0
_CUT_QUANTILE, _CUT_MEAN = 0.9, 0.7561
"""Of a standard normal value z: the mean of the lesser of |z| and its 90th percentile, 1.6449."""
_MOST_SLICES = 64
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class InputFeatures:
    """What one volume is like, each to four significant digits.

    Values in HU are of the intracranial space without its outermost cell of about 2 mm, where bone shines in.
    """

    slice_spacing_mm: float
    """Distance of neighbouring slices."""
    slice_thickness_mm: float | None = None
    """Slice Thickness (0018,0050), where it is known."""
    pixel_spacing_mm: float
    """The larger of the distances of rows and of columns."""
    field_of_view_mm: float
    """The larger side of the image."""
    cavity_height_mm: float
    """From the lowest to the highest slice that shows intracranial space, with both."""
    cavity_volume_ml: float
    """The intracranial space that is shown."""
    brain_hu_median: float
    brain_hu_spread: float
    """Half the distance of the 16th and 84th percentile: the standard deviation where values are normal."""
    noise_hu: float
    """Standard deviation of white noise that makes neighbours in a row differ as much; the tenth that differs most,
    edges for the most part, counts as the 90th percentile."""
    dense_share: float
    """Share of 60 to 100 HU, 0 to 1: acute blood, and brain and veins after contrast medium."""
    bright_share: float
    """Share above 100 HU, 0 to 1: vessels after contrast medium, calcium, metal."""

    def known(self) -> dict[str, float]:
        """Name to value, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class InputRange:
    """Lowest and highest value of each feature that a model was trained on; ``None``: not said, and not compared.

    The section ``training_inputs`` of a bundle's description. What it says is compared as it stands.
    """

    slice_spacing_mm: Bounds | None = None
    slice_thickness_mm: Bounds | None = None
    pixel_spacing_mm: Bounds | None = None
    field_of_view_mm: Bounds | None = None
    cavity_height_mm: Bounds | None = None
    cavity_volume_ml: Bounds | None = None
    brain_hu_median: Bounds | None = None
    brain_hu_spread: Bounds | None = None
    noise_hu: Bounds | None = None
    dense_share: Bounds | None = None
    bright_share: Bounds | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in self.known().items():
            if low > high:
                raise ValueError(f"{name} goes from {low:g} to {high:g}; the lower number comes first")

    def known(self) -> dict[str, Bounds]:
        """Name to bounds, without what is not said: the section as JSON takes it."""
        return {name: bounds for name, bounds in asdict(self).items() if bounds is not None}


FEATURES = tuple(field.name for field in fields(InputFeatures))
_SENTENCES = {
    "slice_spacing_mm": ("Slices are {} mm apart", "mm"),
    "slice_thickness_mm": ("Slices are {} mm thick", "mm"),
    "pixel_spacing_mm": ("Pixels are {} mm wide", "mm"),
    "field_of_view_mm": ("The field of view is {} mm wide", "mm"),
    "cavity_height_mm": ("The inside of the skull is shown over {} mm", "mm"),
    "cavity_volume_ml": ("The inside of the skull that is shown measures {} ml", "ml"),
    "brain_hu_median": ("The median inside the skull is {} HU", "HU"),
    "brain_hu_spread": ("Values inside the skull spread by {} HU", "HU"),
    "noise_hu": ("The noise is {} HU", "HU"),
    "dense_share": ("Of the inside of the skull {} % has 60 to 100 HU", "%"),
    "bright_share": ("Of the inside of the skull {} % has more than 100 HU", "%"),
}


def measure(head: Head, slice_thickness_mm: float | None = None) -> InputFeatures:
    """Measure what an input is like; HU by one pixel of each coarse cell of the mask, in 64 slices at most.

    Parameters
    ----------
    head
        A volume of which at least one slice shows intracranial space (`Head.inside`).
    slice_thickness_mm
        Where it is known.

    Raises
    ------
    ValueError
        No slice shows intracranial space.
    """
    if not head.inside:
        raise ValueError("no slice shows intracranial space, so there is nothing to measure")
    slice_mm, row_mm, column_mm = head.spacing_mm
    rows, columns = head.hu.shape[1:]
    cell_ml = slice_mm * row_mm * column_mm * math.prod(head.mask.block) / 1000
    measured = {
        "slice_spacing_mm": slice_mm,
        "pixel_spacing_mm": max(row_mm, column_mm),
        "field_of_view_mm": max(rows * row_mm, columns * column_mm),
        "cavity_height_mm": (head.inside[-1] - head.inside[0] + 1) * slice_mm,
        "cavity_volume_ml": int(head.mask.mask.sum()) * cell_ml,
        **_values_inside(head),
    }
    if slice_thickness_mm is not None:
        measured["slice_thickness_mm"] = slice_thickness_mm
    return InputFeatures(**{name: _rounded(value) for name, value in measured.items()})


def unlike(features: InputFeatures, training: InputRange) -> dict[str, str]:
    """What an input has that the model was not trained on.

    Returns
    -------
    dict
        Name of the feature to a sentence for a reader of the result; empty where all is within.
    """
    values = features.known()
    return {
        name: _sentence(name, values[name], bounds)
        for name, bounds in training.known().items()
        if name in values and not bounds[0] <= values[name] <= bounds[1]
    }


def ranges_of(
    features: Sequence[InputFeatures],
    quantiles: tuple[float, float] = QUANTILES,
    *,
    margin: float = MARGIN,
    leave_out: Collection[str] = (),
) -> InputRange:
    """Ranges of the scans that a model was trained on, for its bundle.

    Parameters
    ----------
    features
        Of each scan.
    quantiles
        Of a feature's values, as its bounds: a few odd scans do not widen a range.
    margin
        Each bound is moved outwards by this share of itself: 5.0 mm alone becomes 4.5 to 5.5 mm with 0.1. A bound
        of 0 stays.
    leave_out
        Features that the training data do not show as they are: distances that were estimated, HU beyond the window
        that pictures were kept in.

    Returns
    -------
    InputRange
        Without features that no scan knows.

    Raises
    ------
    ValueError
        There are no scans, a name in ``leave_out`` is no feature, or quantiles or margin make no range.
    """
    if not features:
        raise ValueError("ranges are of at least one scan")
    if unknown := set(leave_out) - set(FEATURES):
        raise ValueError(f"{', '.join(sorted(unknown))}: no such feature; there is {', '.join(FEATURES)}")
    if not 0 <= quantiles[0] <= quantiles[1] <= 1 or margin < 0:
        raise ValueError(f"quantiles {quantiles} with a margin of {margin} make no range")
    found = [each.known() for each in features]
    bounds: dict[str, Bounds] = {}
    for name in FEATURES:
        values = [each[name] for each in found if name in each]
        if values and name not in leave_out:
            low, high = (float(bound) for bound in np.quantile(values, quantiles))
            bounds[name] = (_rounded(low - margin * abs(low)), _rounded(high + margin * abs(high)))
    return InputRange(**bounds)


def _values_inside(head: Head) -> dict[str, float]:
    block_rows, block_columns = head.mask.block
    # some slices of a very thin stack say as much as all
    chosen = slice(head.inside[0], head.inside[-1] + 1, math.ceil(len(head.inside) / _MOST_SLICES))
    core = _core(head.mask.mask[chosen])
    lines = head.hu[chosen, ::block_rows]
    sampled = lines[:, :, ::block_columns]
    beside = lines[:, :, 1::block_columns]  # one column less where the last cell is one pixel wide
    width = beside.shape[2]
    steps = np.abs(beside - sampled[:, :, :width])[core[:, :, :width]]
    values = sampled[core]
    low, median, high = (float(value) for value in np.percentile(values, (16, 50, 84)))
    bright = float((values > _BRIGHT_HU).mean())
    return {
        "brain_hu_median": median,
        "brain_hu_spread": (high - low) / 2,
        "noise_hu": _noise(steps) if steps.size else 0.0,
        "dense_share": float((values >= _DENSE_HU).mean()) - bright,
        "bright_share": bright,
    }


def _noise(steps: FloatArray) -> float:
    """Noise by what neighbours differ; a mean, because the median of whole HU moves in steps of one."""
    cut = np.minimum(steps, np.quantile(steps, _CUT_QUANTILE))
    return float(cut.mean(dtype=np.float64)) / _CUT_MEAN / math.sqrt(2)


def _core(mask: BoolArray) -> BoolArray:
    """The mask without its outermost cells in each slice; as it is where nothing would be left."""
    core = mask.copy()
    core[:, 1:] &= mask[:, :-1]
    core[:, :-1] &= mask[:, 1:]
    core[:, :, 1:] &= mask[:, :, :-1]
    core[:, :, :-1] &= mask[:, :, 1:]
    return core if core.any() else mask


def _rounded(value: float) -> float:
    """To four significant digits, so that rounding in a header is no difference between scanners."""
    return float(f"{value:.{_DIGITS}g}")


def _sentence(name: str, value: float, bounds: Bounds) -> str:
    said, unit = _SENTENCES[name]
    scale = 100 if unit == "%" else 1
    shown, low, high = (f"{scale * each:.{_DIGITS}g}" for each in (value, *bounds))
    return f"{said.format(shown)}; the model learnt from {low} to {high} {unit}."
