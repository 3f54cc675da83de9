"""Whether decoded values can be a head CT at all: the last check before a model sees them.

A model answers whatever it is given. Values that are no HU, or slices that are no head, must come out as not
read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ich_node.errors import RejectionReason, StudyRejected

AIR_BELOW_HU = -700.0
SOFT_TISSUE_HU = (-50.0, 120.0)
BONE_ABOVE_HU = 300.0
_MIN_FRACTION = {"air": 0.005, "soft tissue": 0.01, "bone": 0.001}
_GRID_MM = 2.0
_MIN_BRAIN_AREA_CM2 = 40.0
_MIN_BRAIN_SLICES = 3
# Sutures, foramina and partial volume open the ring of the skull by a few mm.
_CLOSING_MM = 6.0


def check_values(hu: npt.NDArray[np.float32]) -> None:
    """Refuse values that cannot be HU of a head.

    Parameters
    ----------
    hu
        (slices, rows, columns) float32, HU, inferior to superior.

    Raises
    ------
    StudyRejected
        ``IMPLAUSIBLE_VALUES`` where air, soft tissue or bone is all but absent, or a slice between others is
        blank.
    """
    blank = [bool(plane.min() == plane.max()) for plane in hu]
    inside = [k for k, b in enumerate(blank) if b and not all(blank[: k + 1]) and not all(blank[k:])]
    if inside:
        raise StudyRejected(
            RejectionReason.IMPLAUSIBLE_VALUES,
            f"Slice {inside[0] + 1} of {len(hu)}, counted from below, is blank.",
        )
    sample = hu[:, ::2, ::2]
    fractions = {
        "air": float((sample < AIR_BELOW_HU).mean()),
        "soft tissue": float(((sample > SOFT_TISSUE_HU[0]) & (sample < SOFT_TISSUE_HU[1])).mean()),
        "bone": float((sample > BONE_ABOVE_HU).mean()),
    }
    absent = [name for name, fraction in fractions.items() if fraction < _MIN_FRACTION[name]]
    if absent:
        raise StudyRejected(
            RejectionReason.IMPLAUSIBLE_VALUES,
            f"The values cannot be Hounsfield units of a head: no {' and no '.join(absent)}; "
            "check Rescale Intercept (0028,1052) and Rescale Slope (0028,1053).",
        )


def encloses_brain(hu: npt.NDArray[np.float32], pixel_spacing_mm: tuple[float, float]) -> bool:
    """Whether slices show a ring of bone around an area of soft tissue as large as a brain.

    Ribs, pelvis and spine make no such ring. A head after craniectomy may fail, so this speaks only where no
    header text names the region.

    Parameters
    ----------
    hu
        (slices, rows, columns) float32, HU.
    pixel_spacing_mm
        (row, column) spacing.
    """
    steps = [max(1, round(_GRID_MM / spacing)) for spacing in pixel_spacing_mm]
    area_cm2 = pixel_spacing_mm[0] * steps[0] * pixel_spacing_mm[1] * steps[1] / 100.0
    reach = max(1, round(_CLOSING_MM / 2 / max(_GRID_MM, *pixel_spacing_mm)))
    count = 0
    for plane in hu:
        rows, columns = (size // step * step for size, step in zip(plane.shape, steps, strict=True))
        blocks = plane[:rows, :columns].reshape(rows // steps[0], steps[0], columns // steps[1], steps[1])
        bone = blocks.max(axis=(1, 3)) > BONE_ABOVE_HU
        closed = ndimage.binary_closing(np.pad(bone, reach), iterations=reach)
        filled = ndimage.binary_fill_holes(closed)[reach:-reach, reach:-reach]
        mean = blocks.mean(axis=(1, 3))
        tissue = filled & ~bone & (mean > SOFT_TISSUE_HU[0]) & (mean < SOFT_TISSUE_HU[1])
        count += bool(tissue.sum() * area_cm2 >= _MIN_BRAIN_AREA_CM2)
    return count >= _MIN_BRAIN_SLICES
