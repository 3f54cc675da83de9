"""From Hounsfield units to network input, once, for training and for reading alike.

A slice is cut out on a square grid (`SliceFrame`): the whole image, as some papers have it, or a field of
fixed physical pitch, so that the network sees heads at one scale whatever the field of view. Nothing here
looks at another slice except through the intracranial mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from ich_node.model.intracranial import CoarseMask

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How a slice becomes network input."""

    size: int = 160
    """Rows and columns of the network's input, pixels."""
    pitch_mm: float = 1.2
    """Distance of its pixels, mm: 160 x 1.2 mm hold an adult's cavity."""
    hu_range: tuple[float, float] = (-900.0, 1500.0)
    """Values outside are padding, air or metal, and are clipped before anything is averaged."""
    windows_hu: tuple[tuple[float, float], ...] = ((40.0, 80.0), (50.0, 130.0))
    """(level, width) of the brain and the subdural window, the second and third channel of Vicar et al."""


@dataclass(frozen=True, kw_only=True)
class SliceFrame:
    """Where a network grid lies on its source slice; pixel centres have whole numbers in both."""

    origin: tuple[float, float]
    """(row, column) on the source grid of the network's pixel (0, 0)."""
    step: tuple[float, float]
    """Source rows per network row, source columns per network column."""

    def to_source(self, row: float, column: float) -> tuple[float, float]:
        """(row, column) on the source grid of a place on the network grid."""
        return self.origin[0] + row * self.step[0], self.origin[1] + column * self.step[1]

    def to_network(self, row: float, column: float) -> tuple[float, float]:
        """(row, column) on the network grid of a place on the source grid."""
        return (row - self.origin[0]) / self.step[0], (column - self.origin[1]) / self.step[1]


@dataclass(frozen=True, kw_only=True)
class NetworkSlice:
    """One slice on the network grid."""

    hu: FloatArray
    """(size, size) float32, HU clipped to the configured range."""
    mask: BoolArray
    """(size, size) bool, intracranial space."""
    frame: SliceFrame


def network_slice(
    image: FloatArray,
    mask: CoarseMask,
    index: int,
    spacing_mm: tuple[float, float, float],
    config: PreprocessConfig,
) -> NetworkSlice:
    """Cut one slice out on the network grid.

    Parameters
    ----------
    image
        (rows, columns) float32, HU.
    mask, index
        Intracranial mask of the volume, and which of its slices this is.
    spacing_mm
        (slice, row, column), mm.
    """
    frame = field_of_view(cavity_centre(mask, index), spacing_mm, config.size, config.pitch_mm)
    return NetworkSlice(
        hu=cut_out(image, frame, config.size, config.hu_range),
        mask=mask_on_grid(mask, index, frame, config.size),
        frame=frame,
    )


def field_of_view(
    centre: tuple[float, float], spacing_mm: tuple[float, float, float], size: int, pitch_mm: float
) -> SliceFrame:
    """A grid of ``size`` x ``size`` pixels of ``pitch_mm`` around a (row, column) of the source grid."""
    step = (pitch_mm / spacing_mm[1], pitch_mm / spacing_mm[2])
    half = (size - 1) / 2
    return SliceFrame(origin=(centre[0] - half * step[0], centre[1] - half * step[1]), step=step)


def whole_image(shape: tuple[int, int], size: int) -> SliceFrame:
    """A grid of ``size`` x ``size`` pixels over a whole image of (rows, columns), edge to edge."""
    step = (shape[0] / size, shape[1] / size)
    return SliceFrame(origin=(step[0] / 2 - 0.5, step[1] / 2 - 0.5), step=step)


def cut_out(image: FloatArray, frame: SliceFrame, size: int, hu_range: tuple[float, float]) -> FloatArray:
    """Bring a slice to a grid, linearly, averaged first where the grid is coarser than the source.

    Returns
    -------
    numpy.ndarray
        (size, size) float32, HU clipped to the range; its lower end where the grid leaves the image.
    """
    clipped = np.clip(image, *hu_range)
    # without the average, noise and thin blood would alias
    smooth = ndimage.gaussian_filter(clipped, [0.35 * max(0.0, s - 1) for s in frame.step], truncate=3)
    return _resample(smooth, frame, size, hu_range[0])


def on_source_grid(
    evidence: npt.NDArray[np.floating], frame: SliceFrame, size: int, shape: tuple[int, int]
) -> FloatArray:
    """Bring a map from a network's output grid back to the source pixel grid, linearly.

    Parameters
    ----------
    evidence
        (h, w), each cell ``size / h`` x ``size / w`` pixels of the network's input.
    frame
        Where that input lies on the source slice.
    shape
        (rows, columns) of the source image.

    Returns
    -------
    numpy.ndarray
        (rows, columns) float32; beyond the grid's edge as at its edge.
    """
    cell = np.array([size / n for n in evidence.shape])
    # source pixel centre -> network pixel centre -> output cell centre
    step = 1 / (np.array(frame.step) * cell)
    origin = (frame.to_network(0, 0) + 0.5 * np.ones(2)) / cell - 0.5
    fine = ndimage.affine_transform(
        np.asarray(evidence, np.float32), step, offset=origin, output_shape=shape, order=1, mode="nearest"
    )
    return np.asarray(fine, np.float32)


def unit_windows(hu: torch.Tensor, windows_hu: tuple[tuple[float, float], ...]) -> torch.Tensor:
    """Show HU through windows as viewers do (linear exact: PS3.3 C.11.2.1.3.2), each scaled to 0 to 1.

    Parameters
    ----------
    hu
        (batch, size, size), HU.
    windows_hu
        (level, width) of each.

    Returns
    -------
    torch.Tensor
        (batch, windows, size, size).
    """
    shown = [((hu - level) / width + 0.5).clamp(0, 1) for level, width in windows_hu]
    return torch.stack(shown, dim=1)


def channels(hu: torch.Tensor, config: PreprocessConfig) -> torch.Tensor:
    """Windows of Vicar et al., each scaled to about unit range.

    Parameters
    ----------
    hu
        (batch, size, size) float32, HU.

    Returns
    -------
    torch.Tensor
        (batch, 1 + windows, size, size) float32: the slice itself, brain window, subdural window.
    """
    wide = hu.clamp(*config.hu_range) / 500
    narrow = [((hu - level) / (width / 2)).clamp(-1, 1) for level, width in config.windows_hu]
    return torch.stack([wide, *narrow], dim=1)


def cavity_centre(mask: CoarseMask, index: int) -> tuple[float, float]:
    """Centre of the intracranial bounding box in source pixels; of the image where the slice has none."""
    cells = mask.mask[index]
    if not cells.any():
        return (mask.shape[0] - 1) / 2, (mask.shape[1] - 1) / 2
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    return (
        (rows[0] + rows[-1] + 1) / 2 * mask.block[0] - 0.5,
        (columns[0] + columns[-1] + 1) / 2 * mask.block[1] - 0.5,
    )


def _resample(image: FloatArray, frame: SliceFrame, size: int, outside: float) -> FloatArray:
    resampled = ndimage.affine_transform(
        image, frame.step, offset=frame.origin, output_shape=(size, size), order=1, cval=outside
    )
    return np.asarray(resampled, np.float32)


def mask_on_grid(mask: CoarseMask, index: int, frame: SliceFrame, size: int) -> BoolArray:
    """Intracranial mask of one slice on a grid, (size, size) bool."""
    block = np.array(mask.block, float)
    offset = (np.array(frame.origin) + 0.5) / block - 0.5
    step = np.array(frame.step) / block
    cells = mask.mask[index].astype(np.float32)
    return np.asarray(
        ndimage.affine_transform(cells, step, offset=offset, output_shape=(size, size), order=1) > 0.5
    )
