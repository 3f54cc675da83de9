"""Localization against boxes: the point-in-box rule of Vicar et al., average precision of boxes, strongest points.

Which boxes: a place of *any* is held against all boxes of its slice, whatever their subtype; a place of a subtype
against boxes of that subtype. Where a system gives no place of *any*, all its places stand for it.

Which slices: those with a box, and those whose label says that the class is absent. A slice with hemorrhage and
without a box, or one of unknown label, says nothing of a place and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ich_node.findings import IchSubtype
from training.evaluation.bootstrap import LEAST_PATIENTS, Measured, Resampling, measure, not_measured, too_few
from training.evaluation.metrics import average_precision, dice, divided
from training.evaluation.scored import NOT_GIVEN, Bools, given
from training.predictions import Floats, Ints, Predictions
from training.scan import ABSENT, CLASSES

IOU = 0.5
"""Overlap from which a box is found, as in He et al."""
NO_BOXES = "the system gives no boxes"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Places of one class and the boxes to find, of the slices that tell."""

    places: Floats
    """As `Predictions.places`, of the class and of these slices."""
    boxes: Floats
    """As `Predictions.boxes`."""
    counted: Bools
    """(slices,) which slices these are."""
    patient: Ints
    """(slices,) index of the patient, over all patients."""

    @property
    def patients(self) -> int:
        """How many there are, counted or not."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    @property
    def slices_with_box(self) -> Ints:
        """Indices of slices with a box, ascending."""
        return np.unique(self.boxes[:, 0]).astype(np.int64)

    def by_patient(self, slices: Floats | Ints, amount: Floats | None = None) -> Floats:
        """(patients,) sum of ``amount``, or count, of what lies in these slices."""
        who = self.patient[slices.astype(np.int64)]
        return np.asarray(np.bincount(who, amount, minlength=self.patients), np.float64)


def truth_of(predictions: Predictions, subtype: IchSubtype = IchSubtype.ANY) -> Truth:
    """What there is of a class."""
    column = CLASSES.index(subtype)
    boxes = predictions.boxes
    if subtype is not IchSubtype.ANY:
        boxes = boxes[boxes[:, 1] == column]
    counted = predictions.labels[:, column] == ABSENT
    counted[boxes[:, 0].astype(np.int64)] = True
    places = _places(predictions, subtype)
    return Truth(
        places=places[counted[places[:, 0].astype(np.int64)]],
        boxes=boxes,
        counted=counted,
        patient=np.unique(predictions.patient_ids, return_inverse=True)[1][predictions.scan].astype(np.int64),
    )


def _places(predictions: Predictions, subtype: IchSubtype) -> Floats:
    of_class: Bools = predictions.places[:, 1] == CLASSES.index(subtype)
    if subtype is IchSubtype.ANY and not of_class.any():
        return predictions.places
    return predictions.places[of_class]


@dataclass(frozen=True, kw_only=True)
class Localized:
    """Table I of Vicar et al., pooled over slices."""

    ppv: Measured
    sensitivity: Measured
    dice: Measured
    slices: int
    slices_left_out: int


def point_in_box(predictions: Predictions, subtype: IchSubtype = IchSubtype.ANY) -> Localized:
    """Precision, sensitivity and Dice 2 TP / (2 TP + FP + FN) by the point-in-box rule.

    A box with a point in it is one TP, however many points are in it; a box without is one FN. A point in no box
    is one FP. So further points in a box that is found count neither way, and a point in two boxes finds both. A
    place that is a box stands for its centre. Edges belong to the box. The rule says nothing of several points in
    one box: were each a TP, scattered points would raise sensitivity, PPV and Dice without finding more.
    """
    truth = truth_of(predictions, subtype)
    found, false = _points_in_boxes(truth)
    boxes = truth.by_patient(truth.boxes[:, 0])
    tp = truth.by_patient(truth.boxes[:, 0], found.astype(float))
    fp = truth.by_patient(truth.places[:, 0], false.astype(float))
    counts = (len(truth.boxes), int(truth.counted.sum()) - len(truth.slices_with_box))
    statistics = {
        "ppv": lambda w: divided(w @ tp, w @ (tp + fp)),
        "sensitivity": lambda w: divided(w @ tp, w @ boxes),
        "dice": lambda w: dice(w @ tp, w @ fp, w @ (boxes - tp)),
    }
    why = _lacking(truth)
    resampling = Resampling.of(boxes > 0)
    return Localized(
        **{name: measure(resampling, each, counts, why) for name, each in statistics.items()},
        slices=int(truth.counted.sum()),
        slices_left_out=int((~truth.counted).sum()),
    )


def _points_in_boxes(truth: Truth) -> tuple[Bools, Bools]:
    """(boxes,) which have a point in them; (places,) which are in no box."""
    found, false = np.zeros(len(truth.boxes), bool), np.ones(len(truth.places), bool)
    for box, place in _same_slice(truth.boxes, truth.places):
        inside = _inside(truth.places[place], truth.boxes[box])
        found[box], false[place] = inside.any(axis=0), ~inside.any(axis=1)
    return found, false


def strongest_in_box(predictions: Predictions, subtype: IchSubtype = IchSubtype.ANY) -> Measured:
    """Share of slices with a box whose place of the highest score lies in one.

    A slice in which the system shows no place counts as missed.
    """
    truth = truth_of(predictions, subtype)
    slices = truth.slices_with_box
    hit = np.zeros(len(truth.counted))
    for box, place in _same_slice(truth.boxes, truth.places):
        best = place[np.argmax(truth.places[place, 2])]
        hit[int(truth.places[best, 0])] = _inside(truth.places[[best]], truth.boxes[box]).any()
    hits, all_of_them = truth.by_patient(slices, hit[slices]), truth.by_patient(slices)
    counts = (len(slices), int(truth.counted.sum()) - len(slices))
    return measure(
        Resampling.of(all_of_them > 0), lambda w: divided(w @ hits, w @ all_of_them), counts, _lacking(truth)
    )


def box_average_precision(
    predictions: Predictions, subtype: IchSubtype = IchSubtype.ANY, iou: float = IOU
) -> Measured:
    """Average precision of boxes of a class (Everingham et al., The Pascal Visual Object Classes Challenge, 2010).

    By falling score, a box is right where it overlaps one of its slice that no stronger one has taken by ``iou`` or
    more (of the free ones the most overlapped); the precision at a recall is the highest at this recall or above.
    """
    truth = truth_of(predictions, subtype)
    why = _gives_no_boxes(predictions, subtype) or _lacking(truth)
    counts = (len(truth.boxes), int(truth.counted.sum()) - len(truth.slices_with_box))
    resampling = Resampling.of(truth.by_patient(truth.boxes[:, 0]) > 0)
    return measure(resampling, _Precision.of(truth, iou), counts, why, width=len(truth.places))


def mean_average_precision(predictions: Predictions, iou: float = IOU) -> Measured:
    """Mean of `box_average_precision` over the subtypes that the system gives and that enough patients have."""
    subtypes = [c for c in CLASSES if c is not IchSubtype.ANY and not _gives_no_boxes(predictions, c)]
    truths = [truth for c in subtypes if not _lacking(truth := truth_of(predictions, c))]
    if not truths:
        why = "no subtype has boxes of enough patients" if subtypes else _no_subtype_boxes(predictions)
        return not_measured(why)
    boxes = np.concatenate([truth.boxes for truth in truths])
    each = [_Precision.of(truth, iou) for truth in truths]
    counted = np.any([truth.counted for truth in truths], axis=0)
    return measure(
        Resampling.of(truths[0].by_patient(boxes[:, 0]) > 0),
        lambda w: np.mean([precision(w) for precision in each], axis=0),
        (len(boxes), int(counted.sum()) - len(np.unique(boxes[:, 0]))),
        width=max(len(truth.places) for truth in truths),
    )


@dataclass(frozen=True)
class _Precision:
    """Average precision of places that were matched once, under any weights of patients."""

    right: Bools
    score: Floats
    patient: Ints
    boxes: Floats

    @classmethod
    def of(cls, truth: Truth, iou: float) -> _Precision:
        right = _matched(truth, iou)
        patient = truth.patient[truth.places[:, 0].astype(np.int64)]
        return cls(right, truth.places[:, 2], patient, truth.by_patient(truth.boxes[:, 0]))

    def __call__(self, weights: Floats) -> Floats:
        return average_precision(
            self.right, self.score, weights[:, self.patient], positives=weights @ self.boxes, envelope=True
        )


def _matched(truth: Truth, iou: float) -> Bools:
    """(places,) which find a box that no stronger place of the slice has found."""
    right = np.zeros(len(truth.places), bool)
    for box, place in _same_slice(truth.boxes, truth.places):
        overlap = overlaps(truth.places[place, 3:], truth.boxes[box, 2:])
        for row in np.argsort(-truth.places[place, 2], kind="stable"):
            best = int(np.argmax(overlap[row]))
            if overlap[row, best] >= iou:
                right[place[row]] = True
                overlap[:, best] = -1
    return right


def overlaps(places: Floats, boxes: Floats) -> Floats:
    """Intersection over union, (places, boxes), of (n, 4) edges: left, top, right, bottom."""
    low = np.maximum(places[:, None, :2], boxes[None, :, :2])
    high = np.minimum(places[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(each[:, 2:] - each[:, :2], 0, None), axis=1) for each in (places, boxes)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0)


def _inside(places: Floats, boxes: Floats) -> Bools:
    """(places, boxes) whether the centre of a place lies in a box."""
    x, y = (places[:, 3] + places[:, 5]) / 2, (places[:, 4] + places[:, 6]) / 2
    left, top, right, bottom = boxes[:, 2:].T
    across = (x[:, None] >= left) & (x[:, None] <= right)
    return np.asarray(across & (y[:, None] >= top) & (y[:, None] <= bottom))


def _same_slice(boxes: Floats, places: Floats) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Indices of boxes and of places for each slice that has both."""
    shared = np.intersect1d(boxes[:, 0], places[:, 0])
    rows = []
    for each in (boxes, places):
        order = np.argsort(each[:, 0], kind="stable")
        first, last = (np.searchsorted(each[order, 0], shared, side) for side in ("left", "right"))
        rows.append([order[a:b] for a, b in zip(first, last, strict=True)])
    return list(zip(*rows, strict=True))


def _lacking(truth: Truth) -> str:
    patients = int((truth.by_patient(truth.boxes[:, 0]) > 0).sum())
    return too_few(patients, " with boxes") if patients < LEAST_PATIENTS else ""


def _gives_no_boxes(predictions: Predictions, subtype: IchSubtype) -> str:
    if not given(predictions)[CLASSES.index(subtype)]:
        return NOT_GIVEN
    places = predictions.places
    return "" if (places[:, 5] > places[:, 3]).any() else NO_BOXES


def _no_subtype_boxes(predictions: Predictions) -> str:
    return _gives_no_boxes(predictions, IchSubtype.ANY) or NOT_GIVEN
