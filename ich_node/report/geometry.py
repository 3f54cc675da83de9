"""Numbers of the image plane as a report needs them, from headers that may lack any of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from ich_node.report.attributes import numbers

_OBLIQUE = 0.5
"""Second letter from this direction cosine on: a gantry tilt of 30 degrees still reads L and P."""
_LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))
_OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "H": "F", "F": "H"}


def directions(image: Dataset) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Return Image Orientation (Patient) (0020,0037) as row and column direction, LPS, or None."""
    cosines = numbers(image, "ImageOrientationPatient", 6)
    if cosines is None:
        return None
    row, column = np.asarray(cosines[:3]), np.asarray(cosines[3:])
    perpendicular = abs(float(row @ column)) < 0.05
    unit = all(abs(float(np.linalg.norm(v)) - 1) < 0.05 for v in (row, column))
    return (row, column) if perpendicular and unit else None


def orientation_letters(direction: npt.NDArray[np.float64]) -> str:
    """Name the patient side that a direction points to, as Patient Orientation (0020,0020) does.

    Parameters
    ----------
    direction
        (3,) float64, LPS.

    Returns
    -------
    str
        One or two of L R P A H F, the largest component first.
    """
    order = np.argsort(-np.abs(direction), kind="stable")
    letters = [
        _LETTERS[axis][0 if direction[axis] > 0 else 1]
        for rank, axis in enumerate(order)
        if rank == 0 or abs(direction[axis]) >= _OBLIQUE
    ]
    return "".join(letters[:2])


def opposite(letters: str) -> str:
    """Return the letters of the opposite direction."""
    return "".join(_OPPOSITE[letter] for letter in letters)


def patient_orientation(image: Dataset) -> tuple[str, str] | None:
    """Return Patient Orientation (0020,0020) of the image: to where its rows and its columns run."""
    pair = directions(image)
    return None if pair is None else (orientation_letters(pair[0]), orientation_letters(pair[1]))
