"""A series becomes a volume of Hounsfield units that knows where it lies and which image each slice came
from.

The pixel grid is the stored one: nothing is flipped, rotated, resampled or filled in, because what is found
goes back to the source images. Tilt, prone or feet-first positions show in the affine alone.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.filereader import read_partial
from pydicom.valuerep import DSfloat

from ich_node import geometry
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.pixels import MAX_ROWS_OR_COLUMNS, DecodeLimits
from ich_node.plausibility import check_values, encloses_brain
from ich_node.selection import names_head, readable_images
from ich_node.series_words import Kernel, kernel
from ich_node.slice_pixels import PixelSource
from ich_node.study import Instance, Series

logger = logging.getLogger(__name__)

MAX_VOXELS = 1024 * 512 * 512
"""1 GiB of float32; a head of 0.5 mm slices has a quarter of it."""
MAX_OFF_GRID_FRACTION = 0.1
"""More slices than this on another pixel grid make a series inconsistent; fewer are set aside with a
caveat."""
_MIN_OFF_GRID = 2
_UNEVEN_FACTOR = 1.25
_THIN_COVER_FACTOR = 1.5
_TILT_CAVEAT_DEG = 5.0
_DRIFT_MM = 2.0
_FUNCTIONAL_GROUPS = 0x52009229


@dataclass(frozen=True, kw_only=True)
class HeadVolume:
    """Hounsfield units of one series, inferior to superior."""

    hu: npt.NDArray[np.float32]
    """(slices, rows, columns) float32, HU, -1024 to 3071, slices from inferior to superior, rows and columns
    as stored."""
    affine: npt.NDArray[np.float64]
    """(4, 4) float64: (column, row, slice, 1) indices of pixel centres to (x, y, z, 1) in LPS mm. Under
    gantry tilt it shears; with uneven gaps it holds exactly for the first and last slice: see `origins_mm`
    for every slice."""
    spacing_mm: tuple[float, float, float]
    """(slice, row, column): the median distance of neighbours along the slice normal, and PixelSpacing."""
    instances: tuple[Instance, ...]
    """The source image of each slice: an object of a single frame, or one frame of an object."""
    caveats: tuple[str, ...] = ()
    """What a reader of the result has to know, one sentence each, without identifying values."""

    @property
    def widest_gap_mm(self) -> float:
        """Largest distance of neighbours along the slice normal."""
        _, offsets = geometry.sort_upward(self.instances)
        return max(b - a for a, b in itertools.pairwise(offsets))

    @property
    def origins_mm(self) -> npt.NDArray[np.float64]:
        """(slices, 3) float64, LPS mm: Image Position (Patient) of each slice."""
        return np.array([i.image_position_patient_mm for i in self.instances], dtype=np.float64)


def load_volume(series: Series, limits: DecodeLimits | None = None) -> HeadVolume:
    """Decode a series, sort it and check that it can be read.

    Parameters
    ----------
    series
        A candidate of `ich_node.selection.select_series`; strays among its objects are set aside.
    limits
        What decoding one object may cost; by default the settings' defaults.

    Returns
    -------
    HeadVolume
        Deviations that leave it readable are in its caveats.

    Raises
    ------
    StudyRejected
        With the reason the worklist shows: ``MISSING_ATTRIBUTE``, ``INCONSISTENT_GEOMETRY``,
        ``DUPLICATE_POSITIONS``, ``MISSING_SLICES``, ``TOO_FEW_SLICES``, ``TOO_LARGE``,
        ``UNSUPPORTED_TRANSFER_SYNTAX``, ``CORRUPT_PIXEL_DATA``, ``IMPLAUSIBLE_VALUES``, ``NOT_HEAD``, or what
        `readable_images` says of strays.
    """
    images, notes = readable_images(series)
    caveats = list(notes)
    geometry.require_attributes(images)
    grid = _one_grid(images, caveats)
    source = PixelSource(limits or DecodeLimits())
    ordered = _one_image_per_position(grid, source, caveats)
    _, offsets = geometry.sort_upward(ordered)
    _check_stack(ordered, offsets)
    _describe_geometry(ordered, offsets, caveats)
    hu = _decode(ordered, source, caveats)
    check_values(hu)
    pixel_spacing = ordered[0].pixel_spacing_mm
    assert pixel_spacing is not None
    if not names_head(ordered) and not encloses_brain(hu, pixel_spacing):
        raise StudyRejected(
            RejectionReason.NOT_HEAD,
            "Nothing in the header says head, and the images show no skull around a brain.",
        )
    return HeadVolume(
        hu=hu,
        affine=geometry.affine(ordered),
        spacing_mm=(geometry.spacing_mm(offsets), *pixel_spacing),
        instances=tuple(ordered),
        caveats=tuple(caveats),
    )


def source_headers(volume: HeadVolume) -> list[pydicom.Dataset]:
    """Read the source images' headers again, without pixel data, parallel to the volume's slices.

    The header of a frame is that of its object without the functional groups, and with the frame's own place, pixel
    spacing and slice thickness at the top level, where a single-frame image has them.

    Raises
    ------
    StudyRejected
        ``NOT_AN_IMAGE`` where a file has become unreadable since the volume was loaded.
    """
    opened: dict[str, pydicom.Dataset] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for instance in volume.instances:
            if str(instance.path) in opened:
                continue
            try:
                opened[str(instance.path)] = _header_of(instance)
            except Exception as error:
                raise StudyRejected(
                    RejectionReason.NOT_AN_IMAGE,
                    f"A source image cannot be read again ({type(error).__name__}).",
                ) from error
        return [_with_place(opened[str(i.path)], i) for i in volume.instances]


def _header_of(instance: Instance) -> pydicom.Dataset:
    if instance.frame_number is None:
        return pydicom.dcmread(instance.path, stop_before_pixels=True)
    with instance.path.open("rb") as file:
        return read_partial(file, stop_when=lambda tag, _vr, _length: tag >= _FUNCTIONAL_GROUPS)


def _with_place(header: pydicom.Dataset, instance: Instance) -> pydicom.Dataset:
    if instance.frame_number is None:
        return header
    placed = pydicom.Dataset()
    placed.update(header)
    for keyword, values in (
        ("ImagePositionPatient", instance.image_position_patient_mm),
        ("ImageOrientationPatient", instance.image_orientation_patient),
        ("PixelSpacing", instance.pixel_spacing_mm),
    ):
        setattr(placed, keyword, [DSfloat(value, auto_format=True) for value in values or ()])
    if instance.slice_thickness_mm is not None:
        placed.SliceThickness = DSfloat(instance.slice_thickness_mm, auto_format=True)
    return placed


# --- which images


def _one_grid(images: Sequence[Instance], caveats: list[str]) -> list[Instance]:
    kept, others = geometry.majority_grid(images)
    if not others:
        return kept
    if len(others) > max(_MIN_OFF_GRID, MAX_OFF_GRID_FRACTION * len(images)):
        raise StudyRejected(
            RejectionReason.INCONSISTENT_GEOMETRY,
            f"{len(others)} of {len(images)} slices differ from the others in rows, columns, pixel spacing "
            "or orientation.",
        )
    caveats.append(
        f"{len(others)} of {len(images)} slices differ in rows, columns, pixel spacing or orientation "
        "and are not read."
    )
    return kept


def _one_image_per_position(
    images: Sequence[Instance], source: PixelSource, caveats: list[str]
) -> list[Instance]:
    ordered, offsets = geometry.sort_upward(images)
    groups = [[ordered[k] for k in group] for group in geometry.positions(offsets)]
    if all(len(group) == 1 for group in groups):
        return ordered
    contents = source.content_sha256s([image for group in groups if len(group) > 1 for image in group])
    distinct = [_without_copies(group, contents) for group in groups]
    copies = len(ordered) - sum(len(group) for group in distinct)
    if copies:
        caveats.append(f"{copies} images are exact copies of others at the same position and are dropped.")
    if all(len(group) == 1 for group in distinct):
        return [group[0] for group in distinct]
    return _one_set(distinct, caveats)


def _without_copies(group: list[Instance], contents: dict[tuple[str, int], bytes]) -> list[Instance]:
    """Drop images whose pixels equal an earlier one's at the same position."""
    if len(group) == 1:
        return group
    kept: dict[bytes, Instance] = {}
    for image in group:
        kept.setdefault(contents[geometry.by_identity(image)], image)
    return list(kept.values())


def _one_set(groups: list[list[Instance]], caveats: list[str]) -> list[Instance]:
    """Choose one complete set of slices where positions were imaged more than once."""
    count = max(len(group) for group in groups)
    for by, split in (("reconstruction kernel", _by_kernel), ("acquisition", _by_acquisition)):
        chosen = split(groups)
        if chosen is not None:
            caveats.append(
                f"Positions are imaged up to {count} times; one complete set is read, told by its {by}."
            )
            return chosen
    repeated = sum(len(group) > 1 for group in groups)
    raise StudyRejected(
        RejectionReason.DUPLICATE_POSITIONS,
        f"{repeated} of {len(groups)} positions have several different images, "
        "and no acquisition number tells them apart.",
    )


def _by_kernel(groups: list[list[Instance]]) -> list[Instance] | None:
    """The soft-tissue reconstruction, where one kernel has one image at every position."""
    names = sorted({image.convolution_kernel for group in groups for image in group})
    soft = [name for name in names if kernel(name) is Kernel.SOFT]
    return _complete(groups, soft, lambda image: image.convolution_kernel) if len(names) > 1 else None


def _by_acquisition(groups: list[list[Instance]]) -> list[Instance] | None:
    """The latest complete acquisition: one number for all slices, or runs of numbers."""
    numbers = {image.acquisition_number for group in groups for image in group}
    if None in numbers:
        return None
    latest_first = sorted((n for n in numbers if n is not None), reverse=True)
    chosen = _complete(groups, latest_first, lambda image: image.acquisition_number)
    if chosen is not None:
        return chosen
    # Sequential scans count up at every table position: the sets are runs, and each position has one image of
    # each run.
    if len({len(group) for group in groups}) != 1:
        return None
    runs = list(zip(*(sorted(g, key=lambda i: i.acquisition_number or 0) for g in groups), strict=True))
    spans = [[image.acquisition_number or 0 for image in run] for run in runs]
    if all(max(a) < min(b) for a, b in itertools.pairwise(spans)):
        return list(runs[-1])
    return None


def _complete(
    groups: list[list[Instance]], keys: Sequence[object], key_of: Callable[[Instance], object]
) -> list[Instance] | None:
    for key in keys:
        members = [[image for image in group if key_of(image) == key] for group in groups]
        if all(len(found) == 1 for found in members):
            return [found[0] for found in members]
    return None


# --- what their geometry says


def _check_stack(ordered: Sequence[Instance], offsets: Sequence[float]) -> None:
    if len(ordered) < geometry.MIN_POSITIONS or offsets[-1] < geometry.MIN_COVERAGE_MM:
        raise StudyRejected(
            RejectionReason.TOO_FEW_SLICES,
            f"{len(ordered)} slices over {offsets[-1]:.0f} mm; a head needs {geometry.MIN_POSITIONS} "
            f"over {geometry.MIN_COVERAGE_MM:.0f} mm.",
        )
    holes = geometry.holes(offsets, [image.slice_thickness_mm for image in ordered])
    if holes:
        raise StudyRejected(RejectionReason.MISSING_SLICES, _describe_holes(holes, len(ordered)))
    rows, columns = ordered[0].rows or 0, ordered[0].columns or 0
    if max(rows, columns) > MAX_ROWS_OR_COLUMNS or rows * columns * len(ordered) > MAX_VOXELS:
        raise StudyRejected(
            RejectionReason.TOO_LARGE,
            f"{len(ordered)} slices of {rows} x {columns} pixels are more than the {MAX_VOXELS} voxels "
            "that this node decodes.",
        )


def _describe_holes(holes: Sequence[geometry.Gap], count: int) -> str:
    first, total = holes[0], sum(hole.missing_slices for hole in holes)
    more = f", and {len(holes) - 1} more such gaps" if len(holes) > 1 else ""
    return (
        f"{total} {'slice is' if total == 1 else 'slices are'} missing: between slices {first.index + 1} "
        f"and {first.index + 2} of {count}, {first.offset_mm:.1f} mm above the lowest, there are "
        f"{first.width_mm:.1f} mm where {first.expected_mm:.1f} mm are usual{more}; send the series again."
    )


def _describe_geometry(ordered: Sequence[Instance], offsets: Sequence[float], caveats: list[str]) -> None:
    gaps = [b - a for a, b in itertools.pairwise(offsets)]
    known = sorted({round(i.slice_thickness_mm, 2) for i in ordered if i.slice_thickness_mm})
    if len(known) > 1:
        caveats.append(f"Slice thickness is mixed: {', '.join(f'{t:g}' for t in known)} mm.")
    if max(gaps) > _UNEVEN_FACTOR * min(gaps):
        caveats.append(f"Slices are unevenly spaced: {min(gaps):.2f} to {max(gaps):.2f} mm apart.")
    if known and geometry.spacing_mm(offsets) > _THIN_COVER_FACTOR * known[-1]:
        caveats.append(
            f"Slices {known[-1]:g} mm thick lie {geometry.spacing_mm(offsets):.1f} mm apart: "
            "what is between them was not imaged."
        )
    tilt = geometry.tilt_deg(ordered[0])
    if tilt > _TILT_CAVEAT_DEG:
        caveats.append(f"Slices are tilted by {tilt:.1f} degrees.")
    matrix = geometry.affine(ordered)
    # (x, y) of the column and row directions: usual is right to left and front to back, both positive in LPS.
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        caveats.append(
            "Images are stored rotated or mirrored against the usual view from the feet (prone, say)."
        )
    origins = np.array([i.image_position_patient_mm for i in ordered], dtype=np.float64)
    line = matrix[:3, 3] + np.asarray(offsets)[:, None] / offsets[-1] * (origins[-1] - origins[0])
    drift = float(np.abs(origins - line).max())
    if drift > _DRIFT_MM:
        caveats.append(f"Slices are shifted against each other by up to {drift:.1f} mm.")


# --- pixels


def _decode(ordered: Sequence[Instance], source: PixelSource, caveats: list[str]) -> npt.NDArray[np.float32]:
    rows, columns = ordered[0].rows or 0, ordered[0].columns or 0
    hu = np.empty((len(ordered), rows, columns), dtype=np.float32)
    notes: Counter[str] = Counter()
    for index, pixels in source.decode(ordered):
        if pixels.hu.shape != (rows, columns):
            raise StudyRejected(
                RejectionReason.CORRUPT_PIXEL_DATA, "A slice has changed its size since its receipt."
            )
        hu[index] = pixels.hu
        notes.update(pixels.notes)
    caveats.extend(f"{count} of {len(ordered)} slices have {note}." for note, count in sorted(notes.items()))
    return hu
