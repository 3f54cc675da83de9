"""A head small enough to be made in a millisecond: ellipsoid skull, brain, ventricle, air around."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset

from ich_node.receive.header import read_header
from ich_node.study import Series
from ich_node.testing.series import ct_series

SPACING_MM = (5.0, 3.0, 3.0)


def little_head(slices: int = 28, rows: int = 80, columns: int = 72) -> npt.NDArray[np.float32]:
    """Build a head, (slices, rows, columns) float32 HU, no two slices alike; `SPACING_MM` apart."""
    z, y, x = np.meshgrid(
        np.linspace(-0.9, 0.9, slices), np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij"
    )
    radius = np.sqrt(x**2 / 0.75**2 + y**2 / 0.9**2 + z**2)
    hu = np.full(radius.shape, -1000.0, dtype=np.float32)
    hu[radius < 1.0] = 40.0
    hu[radius < 0.95] = 1000.0
    hu[radius < 0.86] = 32.0
    hu[radius < 0.25] = 8.0
    hu[:, 0, 0] += np.arange(slices)
    return hu


def little_series(**options: Any) -> list[FileDataset]:
    """Make the CT series of `little_head`."""
    return ct_series(little_head(), SPACING_MM, **options)


def stored(datasets: Iterable[FileDataset], folder: Path) -> list[Path]:
    """Save datasets as the spool would."""
    paths = []
    for index, dataset in enumerate(datasets):
        path = folder / f"{index:04}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def as_series(paths: Sequence[Path]) -> Series:
    """Read the headers of stored objects of one series."""
    instances = tuple(read_header(path)[0] for path in paths)
    return Series(
        series_instance_uid=instances[0].series_instance_uid,
        study_instance_uid=instances[0].study_instance_uid,
        instances=instances,
    )


def received(datasets: Iterable[FileDataset], folder: Path) -> Series:
    """Save datasets and read their headers."""
    return as_series(stored(datasets, folder))
