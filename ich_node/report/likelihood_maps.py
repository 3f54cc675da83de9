"""The likelihood maps of a reading, small, for the study page to lay over the slices. No DICOM object; never sent.

The file is gzip (RFC 1952) of one line of JSON and the maps behind it, so that the web service sends it as it is and
the browser unpacks it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ich_node.findings import IchSubtype, SliceFinding

MOST_CELLS = 96
"""Along a side of a map: the networks' own maps are no finer, and the page smooths between cells."""
LEVELS = 32
"""Of likelihood. More is not seen in a faint colour, and packs half as well."""
SUFFIX = ".maps.gz"

_FORMAT = 1
_STEP_OF_LEVEL = 8
"""What one level is in the 0 to 255 of the file."""
_FASTEST = 1
"""For the reader waits."""


def encode_maps(slices: Sequence[SliceFinding]) -> bytes | None:
    """Encode the maps of all classes and slices that have any.

    The line of JSON has ``format`` (1), ``rows`` and ``columns`` of each map, ``first`` and ``step`` (cell ``(i, j)``
    is the source pixel ``(first + i * step, first + j * step)``), ``maps`` (pairs of slice index, from below, and
    class). Behind it are the maps in that order, rows x columns uint8, 255 times the likelihood.

    Parameters
    ----------
    slices
        Of a reading, from inferior to superior, with their maps on one source pixel grid.

    Returns
    -------
    bytes or None
        ``None`` where there is nothing to be seen.
    """
    names: list[tuple[int, str]] = []
    cells: list[npt.NDArray[np.uint8]] = []
    first = step = 0
    for index, finding in enumerate(slices):
        for subtype in IchSubtype:
            likelihood = finding.likelihood_maps.get(subtype)
            if likelihood is None:
                continue
            step = max(1, -(-max(likelihood.shape) // MOST_CELLS))
            first = step // 2
            # Maps are smooth: a cell's middle says what its mean does, and costs a fraction.
            levels = (likelihood[first::step, first::step] * (LEVELS - 1) + 0.5).astype(np.uint8)
            if levels.any():
                names.append((index, subtype.value))
                cells.append(levels * np.uint8(_STEP_OF_LEVEL))
    if not cells:
        return None
    rows, columns = cells[0].shape
    head = {
        "format": _FORMAT,
        "rows": rows,
        "columns": columns,
        "first": first,
        "step": step,
        "maps": names,
    }
    content = json.dumps(head, separators=(",", ":")).encode() + b"\n" + np.stack(cells).tobytes()
    return gzip.compress(content, _FASTEST, mtime=0)
