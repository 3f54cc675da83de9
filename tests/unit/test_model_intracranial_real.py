"""The intracranial mask on real heads. Nobody has outlined their cavities, so these hold what anatomy demands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from ich_node.model.intracranial import intracranial_mask
from training.ct_ich import estimated_spacing_mm, read_scans


def tilted_head(data: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """GE head with 18.5 degrees of gantry tilt, inferior to superior."""
    images = [pydicom.dcmread(p) for p in (data / "ge_head_tilted").glob("*.dcm")]
    images.sort(key=lambda i: float(i.ImagePositionPatient[2]))
    hu = [i.pixel_array * float(i.RescaleSlope) + float(i.RescaleIntercept) for i in images]
    row_mm, column_mm = (float(v) for v in images[0].PixelSpacing)
    return np.stack(hu).astype(np.float32), (4.0, row_mm, column_mm)


def cavity(image: np.ndarray, pixel_mm: float) -> np.ndarray:
    """What a closed ring of bone holds, 6 mm and more from bone: an independent way, good for the vault only."""
    bone = image > 200
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(bone, iterations=3))
    deep = ndimage.distance_transform_edt(filled & ~bone) * pixel_mm > 6
    # else the ring was open and the comparison would be empty
    assert deep.sum() * pixel_mm**2 > 2500
    return np.asarray(deep)


def beyond_bone(image: np.ndarray) -> np.ndarray:
    """What no ring of bone holds: scalp, air and holder."""
    return np.asarray(~ndimage.binary_fill_holes(ndimage.binary_closing(image > 200, iterations=3)))


def test_tilted_head(shared_data: Path):
    """The neck has none, the vault has all of it, and hardly anything in it is not brain, fluid or blood."""
    hu, spacing_mm = tilted_head(shared_data)
    mask = intracranial_mask(hu, spacing_mm)
    found = np.stack([mask.on_source_grid(i) for i in range(len(hu))])
    assert not found[:3].any()
    for index in range(13, 22):
        deep = cavity(hu[index], spacing_mm[1])
        assert (found[index] & deep).sum() > 0.99 * deep.sum()
    for index in range(8, 24):
        values = hu[index][found[index]]
        assert ((values > -20) & (values < 120)).mean() > 0.95


def test_infant_with_open_sutures(shared_data: Path):
    """Sutures and the fontanelle of patient 085 are wide gaps; no slice of the vault may lose a part to them."""
    (scan,) = [s for s in read_scans(shared_data / "ct_ich") if s.patient == "085"]
    hu = scan.hu()
    areas = intracranial_mask(hu, estimated_spacing_mm(hu)).mask.sum(axis=(1, 2)).astype(float)
    # a head is round: a slice has no less than the mean of its neighbours, but for a few cells
    for index in range(7, 17):
        assert areas[index] > 0.95 * (areas[index - 1] + areas[index + 1]) / 2


@pytest.mark.parametrize("patient", ["071", "090", "095", "111", "118"])
def test_vault_is_whole_and_holds_no_scalp(shared_data: Path, patient: str):
    """The upper half of a closed skull is filled, and nothing beyond the ring of bone belongs to it."""
    (scan,) = [s for s in read_scans(shared_data / "ct_ich") if s.patient == patient]
    hu = scan.hu()
    spacing_mm = estimated_spacing_mm(hu)
    mask = intracranial_mask(hu, spacing_mm)
    widest = int(mask.mask.sum(axis=(1, 2)).argmax())
    for index in range(widest, widest + 5):
        found = mask.on_source_grid(index)
        deep = cavity(hu[index], spacing_mm[1])
        assert (found & deep).sum() > 0.98 * deep.sum()
        assert (found & beyond_bone(hu[index])).sum() < 0.002 * found.sum()
