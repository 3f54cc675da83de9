"""One slice on the grid of a system's own network, by the system's own preprocessing: what training caches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt

from ich_node.model import burduja, he_fusion, lite_mil, radnet
from ich_node.model.preprocess import (
    PreprocessConfig,
    SliceFrame,
    cavity_centre,
    cut_out,
    field_of_view,
    mask_on_grid,
)
from ich_node.model.system import Head

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One slice on a network's grid."""

    hu: Floats
    """(planes, size, size) float32, HU; one plane, or the slice below, the slice and the slice above."""
    mask: npt.NDArray[np.bool_]
    """(size, size) intracranial space."""
    frame: SliceFrame


@singledispatch
def cut(preprocessing: Any, head: Head, index: int) -> Cut:
    """Bring one slice to the grid.

    Raises
    ------
    TypeError
        The preprocessing is that of a system which cannot be trained here.
    """
    raise TypeError(f"nothing here cuts slices by {type(preprocessing).__name__}")


@cut.register
def _(preprocessing: PreprocessConfig, head: Head, index: int) -> Cut:
    centre = cavity_centre(head.mask, index)
    frame = field_of_view(centre, head.spacing_mm, preprocessing.size, preprocessing.pitch_mm)
    return _one_plane(preprocessing, head, index, frame)


@cut.register
def _(preprocessing: he_fusion.HeFusionPreprocessing, head: Head, index: int) -> Cut:
    shape = (head.hu.shape[1], head.hu.shape[2])
    return _one_plane(preprocessing, head, index, preprocessing.frame(shape, head.spacing_mm))


@cut.register
def _(preprocessing: radnet.RadNetPreprocessing, head: Head, index: int) -> Cut:
    return _one_plane(preprocessing, head, index, radnet.frame_of(head, preprocessing))


@cut.register
def _(preprocessing: burduja.BurdujaPreprocessing, head: Head, index: int) -> Cut:
    hu, frame = burduja.slice_hu(head, index, preprocessing)
    return Cut(hu=hu[None], mask=mask_on_grid(head.mask, index, frame, preprocessing.size), frame=frame)


@cut.register
def _(preprocessing: lite_mil.LiteMilPreprocessing, head: Head, index: int) -> Cut:
    hu, mask, frame = lite_mil.slice_hu(head, index, preprocessing)
    return Cut(hu=hu, mask=mask, frame=frame)


def _one_plane(preprocessing: Any, head: Head, index: int, frame: SliceFrame) -> Cut:
    hu = cut_out(head.hu[index], frame, preprocessing.size, preprocessing.hu_range)
    return Cut(hu=hu[None], mask=mask_on_grid(head.mask, index, frame, preprocessing.size), frame=frame)
