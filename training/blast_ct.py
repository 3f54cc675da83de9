"""BLAST-CT as a teacher: likelihood of hemorrhage per voxel on slices that are known to show one.

Monteiro et al., "Multiclass semantic segmentation and quantification of traumatic brain injury lesions on head CT
using deep learning", Lancet Digital Health 2020, 2(6):e314. Network and weights: biomedia-mira/blast-ct,
Apache-2.0. The network is DeepMedic (Kamnitsas et al. 2017) with three pathways that see 5, 3 and 1 mm voxels.

Nothing of it is shipped and nothing reads with it: where outlines are missing it says where on a slice the bleed
that the radiologists labelled probably is. What was trained or measured with it has to say so.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from ich_node.model.intracranial import intracranial_mask
from training.cuts import Taught, plain_name
from training.scan import PRESENT, Scan, read_volume
from training.whole_file import written_whole

logger = logging.getLogger(__name__)

CITATION = (
    "Monteiro et al., Multiclass semantic segmentation and quantification of traumatic brain injury lesions on head "
    "CT using deep learning, Lancet Digital Health 2020, 2(6):e314; weights of biomedia-mira/blast-ct"
)
LICENCE = "Apache-2.0"
CLASSES = ("background", "intraparenchymal", "extra-axial", "oedema", "intraventricular")
BLOOD = (1, 2, 4)
"""Indices of the classes that are hemorrhage."""
_SCALES = (5, 3, 1)
_WIDTHS = (30, 30, 40, 40, 40, 40, 50, 50)
_CONNECTED = (250, 250)
_HU = (-15.0, 100.0)
_BORDER = 40
"""Voxels that the coarsest pathway sees beyond each side of what it labels."""
_START = {5: 0, 3: 16, 1: 32}
"""Where in the input each pathway begins."""
_TILE = (45, 90, 90)
"""Voxels labelled at once, multiples of 15."""
Floats = npt.NDArray[np.float32]


class _PreActivation(nn.Module):
    """Normalization, PReLU, convolution without padding; beside the identity where the width stays the same."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm3d(before)
        self.conv = nn.Conv3d(before, after, kernel, bias=False)
        self.prelu = nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, before, d, h, w) to (batch, after, d - k + 1, h - k + 1, w - k + 1)."""
        out: torch.Tensor = self.conv(self.prelu(self.bn(x)))
        cut = self.conv.kernel_size[0] // 2
        if x.shape[1] == out.shape[1]:
            inner = slice(cut, -cut or None)
            out = out + x[:, :, inner, inner, inner]
        return out


class _Pathway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [_PreActivation(a, b, 3) for a, b in zip((1, *_WIDTHS), _WIDTHS, strict=False)]
        # the published tensors are numbered from 1: number 0 takes every n-th voxel
        self.path = nn.Sequential(nn.Identity(), *layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the eight convolutions; each takes two voxels off every axis."""
        out: torch.Tensor = self.path(x)
        return out


class DeepMedic(nn.Module):
    """Three pathways on three grids, joined voxel by voxel; tensors are named as the published ones."""

    def __init__(self) -> None:
        super().__init__()
        for number, scale in enumerate(_SCALES):
            self.add_module(f"path({scale}, {scale}, {scale}){number}", _Pathway())
        widths = (_WIDTHS[-1] * len(_SCALES), *_CONNECTED, len(CLASSES))
        self.fully_connected = nn.Sequential(*(_PreActivation(a, b, 1) for a, b in pairwise(widths)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 1, d + 80, h + 80, w + 80) to (batch, 5, d, h, w) logits; d, h, w are multiples of 15."""
        size = [n - 2 * _BORDER for n in x.shape[2:]]
        joined = []
        for scale, pathway in zip(_SCALES, self.children(), strict=False):
            first = _START[scale]
            part = x
            for axis, n in enumerate(size, start=2):
                part = part.narrow(axis, first, n + 16 * scale)
            middle = slice(scale // 2, None, scale)
            seen = pathway(part[:, :, middle, middle, middle])
            joined.append(functional.interpolate(seen, scale_factor=scale, mode="nearest"))
        out: torch.Tensor = self.fully_connected(torch.cat(joined, 1))
        return out


class BlastCt:
    """The teacher of `training.cuts.load_cuts`: asks the networks once per scan and keeps what they say.

    Parameters
    ----------
    weights
        Folder with ``model_*.pt``.
    cache
        Where likelihoods are kept, a file per scan.
    """

    def __init__(self, weights: Path, cache: Path) -> None:
        files = teacher_files(weights)
        self.weights = weights
        self.name = f"blast-ct-v1-{len(files)}"
        self.folder = cache / self.name

    def __call__(self, scan: Scan) -> Taught | None:
        """Likelihood on the slices of a patient that are labelled positive; None where there are none."""
        slices = np.flatnonzero(scan.labels[:, 0] == PRESENT)
        if scan.synthetic or not len(slices):
            return None
        file = self.folder / f"{plain_name(scan.source)}-{plain_name(scan.scan_id)}.npz"
        kept = _kept(file)
        # asked again where other slices are labelled positive now
        if kept is None or not np.array_equal(kept.slices, slices):
            self._ask(scan, slices, file)
            kept = _kept(file)
        return kept

    def _ask(self, scan: Scan, slices: npt.NDArray[np.int64], file: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        volume = read_volume(scan)
        mask = intracranial_mask(volume.hu, volume.spacing_mm)
        inside = np.stack([mask.on_source_grid(i) for i in range(len(volume.hu))])
        likelihood = blood_likelihood(
            load_teachers(self.weights), volume.hu, volume.spacing_mm, inside, slices.tolist()
        )
        with written_whole(file) as temporary:
            np.savez_compressed(temporary, slices=slices, likelihood=likelihood)
        logger.info("%s: %d slices of %s taught", self.name, len(slices), scan.scan_id)


def _kept(file: Path) -> Taught | None:
    """What was answered before; None where nothing was, or the file is damaged."""
    try:
        # opened here: np.load leaves a damaged file open
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return Taught(slices=arrays["slices"], likelihood=arrays["likelihood"], pitch_mm=1.0)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        logger.warning("%s is damaged; the teacher is asked again", file)
        return None


def teacher_files(folder: Path) -> list[Path]:
    """Weights of the networks in a folder.

    Raises
    ------
    FileNotFoundError
        There are none.
    """
    files = sorted(folder.glob("model_*.pt"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no model_*.pt of BLAST-CT")
    return files


def load_teachers(folder: Path) -> list[DeepMedic]:
    """Load every ``model_*.pt`` of a folder.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        A file holds something else; the message names it.
    """
    teachers = []
    for file in teacher_files(folder):
        network = DeepMedic()
        try:
            network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
            first = (str(error).strip() or repr(error)).splitlines()[0]
            raise ValueError(f"{file} does not hold the weights of BLAST-CT v1 ({first})") from error
        for tensor in network.parameters():
            if tensor.ndim == 5:  # takes two thirds of the time or less
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last_3d)
        teachers.append(network.eval())
    return teachers


@torch.inference_mode()
def blood_likelihood(
    teachers: Sequence[DeepMedic],
    hu: Floats,
    spacing_mm: tuple[float, float, float],
    inside: npt.NDArray[np.bool_],
    slices: Sequence[int],
) -> npt.NDArray[np.uint8]:
    """Likelihood of intraparenchymal, extra-axial and intraventricular hemorrhage on some slices of a head.

    Parameters
    ----------
    hu
        (slices, rows, columns) float32, HU, inferior to superior, rows front to back, columns right to left of the
        patient.
    spacing_mm
        (slice, row, column), mm.
    inside
        Same shape: where hemorrhage may be. Nothing outside its bounding box is looked at; 0 outside of it.
    slices
        Which slices are wanted.

    Returns
    -------
    numpy.ndarray
        (len(slices), 3, rows, columns) uint8, 255 for certainty, on a grid of 1 mm whose first pixel's centre is
        that of the image.
    """
    shape = [round((n - 1) * mm) + 1 for n, mm in zip(hu.shape, spacing_mm, strict=True)]
    step = [1 / mm for mm in spacing_mm]
    fine = ndimage.affine_transform(hu, step, output_shape=shape, order=1, mode="nearest")
    low, high = _HU
    x = (2 * np.clip(fine, low, high) - low - high) / (high - low)
    found = np.zeros((len(slices), len(BLOOD), *shape[1:]), np.float32)
    # the last of the fine grid may lie a little beyond the last slice, row or column
    where = ndimage.affine_transform(
        inside.astype(np.uint8), step, output_shape=shape, order=0, mode="nearest"
    )
    levels = [round(i * spacing_mm[0]) for i in slices]
    for corner in _corners(where, levels):
        tile = tuple(slice(a - _BORDER, a + n + _BORDER) for a, n in zip(corner, _TILE, strict=True))
        part = torch.from_numpy(_cut(x, tile))[None, None].contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16):
            seen = torch.stack([t(part).float().softmax(1)[0] for t in teachers]).mean(0)[list(BLOOD)].numpy()
        for number, level in enumerate(levels):
            if 0 <= level - corner[0] < _TILE[0]:
                _put(found[number], seen[:, level - corner[0]], corner[1:])
    kept = found * where[[min(level, shape[0] - 1) for level in levels]][:, None]
    return np.asarray(np.rint(kept * 255), np.uint8)


def _corners(where: npt.NDArray[np.uint8], levels: Sequence[int]) -> list[tuple[int, int, int]]:
    """First voxels of the tiles that cover the wanted levels of a region."""
    out = []
    rest = sorted(set(levels))
    while rest:
        top = rest[0]
        depth = [level for level in rest if level < top + _TILE[0]]
        rest = rest[len(depth) :]
        rows, columns = (np.flatnonzero(where[depth].any(axis=(0, axis))) for axis in (2, 1))
        if not len(rows):
            continue
        out += [
            (top, int(r), int(c))
            for r in range(rows[0], rows[-1] + 1, _TILE[1])
            for c in range(columns[0], columns[-1] + 1, _TILE[2])
        ]
    return out


def _cut(x: Floats, tile: tuple[slice, ...]) -> Floats:
    """Part of a volume that may reach beyond it, where it goes on as at its edge."""
    index = [np.clip(np.arange(s.start, s.stop), 0, n - 1) for s, n in zip(tile, x.shape, strict=True)]
    return np.ascontiguousarray(x[np.ix_(*index)], np.float32)


def _put(image: Floats, seen: Floats, corner: tuple[int, ...]) -> None:
    """Write (classes, h, w) into (classes, rows, columns) at a corner, as far as it lies inside."""
    r, c = corner
    target = image[:, r : r + seen.shape[1], c : c + seen.shape[2]]
    target[...] = seen[:, : target.shape[1], : target.shape[2]]
