"""Predictions with a decision applied, and the labelled slices or scans of one class among them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ich_node.findings import IchSubtype
from ich_node.model.decision import DecisionConfig, slice_probabilities, suspicion
from training.predictions import Floats, Ints, Predictions
from training.scan import CLASSES, PRESENT, UNKNOWN

Bools = npt.NDArray[np.bool_]
NOT_GIVEN = "not given by the system"
"""Said instead of a number for a class that the system does not tell apart."""


@dataclass(frozen=True, kw_only=True)
class Items:
    """Slices or scans of which it is known whether they show one class."""

    label: Bools
    """(items,) whether the class is there."""
    score: Floats
    """(items,) probability of the class, 0 to 1."""
    patient: Ints
    """(items,) 0 to patients - 1, every number taken."""
    missing: str = ""
    """Why there is nothing to measure, where that is so whatever the labels are."""

    @property
    def patients(self) -> int:
        """How many there are."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Predictions and how logits become probabilities and the suspicion of a scan."""

    predictions: Predictions
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    """Its ``class_scale`` and ``class_offset`` have one number for each class that the system gives, in the order
    of `training.scan.CLASSES`."""

    @property
    def name(self) -> str:
        """Name of the system, as a table shows it."""
        return self.predictions.system

    @cached_property
    def patient(self) -> Ints:
        """(scans,) index of the patient."""
        return np.unique(self.predictions.patient_ids, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def classes(self) -> tuple[IchSubtype, ...]:
        """What the system tells apart."""
        return tuple(c for c, there in zip(CLASSES, given(self.predictions), strict=True) if there)

    @cached_property
    def probabilities(self) -> Floats:
        """(slices, classes) float64, 0 to 1; 0 without intracranial space, NaN for a class that is not given."""
        columns = given(self.predictions)
        found = np.full(self.predictions.logits.shape, np.nan)
        found[:, columns] = slice_probabilities(self.predictions.logits[:, columns], self.decision)
        return found

    def suspicion_of(self, subtype: IchSubtype = IchSubtype.ANY) -> Floats:
        """(scans,) float64, 0 to 1, NaN for a class that is not given.

        As in reading, slices without intracranial space break no run of neighbours. A scan that has no other
        has suspicion 0: the node would refuse it, and here a bleed in it counts as missed.
        """
        column = CLASSES.index(subtype)
        if subtype not in self.classes:
            return np.full(len(self.patient), np.nan)
        inside = np.isfinite(self.predictions.logits[:, column])
        scan, values = self.predictions.scan[inside], self.probabilities[inside, column]
        order = np.argsort(scan, kind="stable")
        parts = np.split(values[order], np.searchsorted(scan[order], np.arange(1, len(self.patient))))
        return np.array([suspicion(part, self.decision) if len(part) else 0.0 for part in parts])

    def slices(self, subtype: IchSubtype = IchSubtype.ANY) -> Items:
        """Slices whose label of a class is known."""
        column, patient = CLASSES.index(subtype), self.patient[self.predictions.scan]
        return _items(self.predictions.labels[:, column], self.probabilities[:, column], patient)

    def scans(self, subtype: IchSubtype = IchSubtype.ANY) -> Items:
        """Scans whose label of a class is known."""
        column = CLASSES.index(subtype)
        return _items(self.predictions.scan_labels[:, column], self.suspicion_of(subtype), self.patient)


def _items(label: npt.NDArray[np.int8], score: Floats, patient: Ints) -> Items:
    known = label != UNKNOWN
    return Items(
        label=label[known] == PRESENT,
        score=score[known],
        patient=np.unique(patient[known], return_inverse=True)[1].astype(np.int64),
        missing=NOT_GIVEN if np.isnan(score).any() else "",
    )


def given(predictions: Predictions) -> Bools:
    """(classes,) which classes the system tells apart.

    Raises
    ------
    ValueError
        A class has a logit for some slices and NaN for others, or a logit is infinite: the message says which.
    """
    logits = predictions.logits
    absent = np.isnan(logits)
    wrong = np.isposinf(logits) | (absent & np.isfinite(logits).any(axis=0))
    if wrong.any():
        index, column = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"predictions of {predictions.system}: the logit of {CLASSES[column]} in slice {index} (scan "
            f"{predictions.scan_ids[predictions.scan[index]]}) is {logits[index, column]}: score it again"
        )
    return np.asarray(~absent.any(axis=0))


def scans_where(predictions: Predictions, keep: Bools) -> Predictions:
    """The same predictions for some scans only.

    Parameters
    ----------
    keep
        (scans,) bool.
    """
    slices = keep[predictions.scan]
    number = np.cumsum(slices) - 1

    def of_slices(rows: Floats) -> Floats:
        index = rows[:, 0].astype(np.int64)
        kept = rows[slices[index]].copy()
        kept[:, 0] = number[index[slices[index]]]
        return kept

    return replace(
        predictions,
        scan_ids=predictions.scan_ids[keep],
        patient_ids=predictions.patient_ids[keep],
        fold=predictions.fold[keep],
        scan=(np.cumsum(keep) - 1)[predictions.scan[slices]],
        labels=predictions.labels[slices],
        scan_labels=predictions.scan_labels[keep],
        logits=predictions.logits[slices],
        places=of_slices(predictions.places),
        boxes=of_slices(predictions.boxes),
        pixel_mm=predictions.pixel_mm[slices],
    )
