"""Thin slices are read as slabs, as high as the slices that a model learnt from.

A thin slice has several times the noise, and shows small bleeds sharper, than the 5 mm slices that networks for head
CT are mostly trained on; a study rule that wants two neighbours to agree is no rule for slices half a millimetre apart.
The mean of neighbouring slices is what the scanner would have reconstructed at their height, but for the few tenths of
a millimetre by which slices of a tilted gantry are shifted against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ich_node.model.system import Head

_ROUNDING = 0.01
"""Of a slice: how many fit into a slab must not hang on how their distance was rounded."""
_UNEVEN = 1.25
"""A distance of neighbours this many times the usual one is no matter of rounding."""


@dataclass(frozen=True, kw_only=True)
class Slabs:
    """A head, and the slabs that are read in its place."""

    head: Head
    """What is read: its slices are the slabs."""
    slab_of: npt.NDArray[np.intp]
    """(slices,) which slab each slice of the volume is part of."""
    middle: tuple[int, ...]
    """(slabs,) the slice in the middle of each, the lower of two."""
    height_mm: float | None = None
    """Distance of neighbouring slabs; ``None``: slices are read as they are."""
    thickness_mm: float | None = None
    """What a slab, or a slice, shows in height, where it is known: more than the distance where slices overlap."""


def in_slabs(
    head: Head,
    slab_mm: float | None,
    *,
    slice_thickness_mm: float | None = None,
    widest_gap_mm: float | None = None,
) -> Slabs:
    """Average neighbouring slices as far as a slab of a height holds them.

    Parameters
    ----------
    head
        Any head.
    slab_mm
        Height of a slab at most, mm; ``None``, or one that holds a single slice: slices are read as they are.
    slice_thickness_mm
        Where it is known, else the distance of the slices: thick slices that overlap are no thin ones.
    widest_gap_mm
        Largest distance of neighbours. Where it is much more than the usual one, a slab is nowhere higher than asked:
        the thick slices of a head of which a part was cut thin are not averaged.

    Returns
    -------
    Slabs
        Every slice is part of exactly one slab. The uppermost holds up to half a slab more than the others, or as
        little as half of one.
    """
    count, spacing = len(head.hu), head.spacing_mm[0]
    widest = widest_gap_mm or spacing
    step = widest if widest > _UNEVEN * spacing else spacing
    thickness = max(slice_thickness_mm or step, step)
    together = 1 if slab_mm is None else int(min((slab_mm - thickness) / step + 1 + _ROUNDING, count))
    uneven = step > spacing
    if together < 2 or count < 2 * together:
        middle = tuple(range(count))
        head = replace(head, widest_mm=step) if uneven else head
        return Slabs(head=head, slab_of=np.arange(count), middle=middle, thickness_mm=slice_thickness_mm)
    edges = [*range(0, count - together // 2, together), count]
    hu = np.stack([head.hu[a:b].mean(axis=0, dtype=np.float32) for a, b in pairwise(edges)])
    height_mm = together * spacing
    return Slabs(
        head=Head(
            hu=hu,
            spacing_mm=(height_mm, *head.spacing_mm[1:]),
            widest_mm=together * step if uneven else None,
        ),
        slab_of=np.repeat(np.arange(len(hu)), np.diff(edges)),
        middle=tuple((a + b - 1) // 2 for a, b in pairwise(edges)),
        height_mm=height_mm,
        thickness_mm=height_mm - spacing + (slice_thickness_mm or spacing),
    )
