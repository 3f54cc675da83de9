"""What a reading finds: frozen values shared by model, report, database and web."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

DISCLAIMER = "AI result, unverified, not for primary diagnosis"
"""Stands in every result object and in everything that people are told."""


class IchSubtype(StrEnum):
    """Hemorrhage classes, in the order of the RSNA 2019 labels; ``ANY`` is the union."""

    ANY = "any"
    EPIDURAL = "epidural"
    INTRAPARENCHYMAL = "intraparenchymal"
    INTRAVENTRICULAR = "intraventricular"
    SUBARACHNOID = "subarachnoid"
    SUBDURAL = "subdural"


class Priority(StrEnum):
    """Reading priority: the defined terms of Requested Procedure Priority (0040,1003) that this node uses."""

    STAT = "STAT"
    """Hemorrhage at the high-confidence operating point."""
    HIGH = "HIGH"
    """Hemorrhage at the sensitive operating point only."""
    MEDIUM = "MEDIUM"
    """Not read: a person must look."""
    ROUTINE = "ROUTINE"
    """Read, nothing found."""

    @property
    def urgency(self) -> int:
        """Rank on the worklist, 0 first."""
        return list(Priority).index(self)


class StudyState(StrEnum):
    """Where a study is on its way through the node."""

    RECEIVING = "RECEIVING"
    QUEUED = "QUEUED"
    READING = "READING"
    READ = "READ"
    NOT_READ = "NOT_READ"
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True)
class Localization:
    """A place on one source slice that the model holds suspicious.

    Coordinates are image coordinates in pixels of the *stored* image as in SCOORD GraphicData (PS3.3 C.18.6.1.2):
    ``x`` (columns) to the right and ``y`` (rows) down, the top left corner of the top left pixel is (0, 0), so the
    centre of that pixel is (0.5, 0.5).
    """

    kind: Literal["point", "box"]
    subtype: IchSubtype
    coordinates: tuple[float, ...]
    """``(x, y)`` for a point; ``(left, top, right, bottom)`` for a box."""
    score: float
    """Likelihood at the place, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class SliceFinding:
    """What the model says of one slice."""

    probabilities: dict[IchSubtype, float]
    """Probability per class the model knows; a model without subtypes gives ``ANY`` alone."""
    localizations: tuple[Localization, ...] = ()
    likelihood_maps: Mapping[IchSubtype, npt.NDArray[np.float32]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Likelihood per class, 0 to 1, each (rows, columns) float32 on the source pixel grid, zero outside the
    intracranial space; a model without subtypes gives ``ANY`` alone. Kept only for the most suspicious slices."""
    shown_on: int | None = None
    """Of thin slices that were read together as one slab: index of the slice that shows what was found there.
    ``None``: this one was read by itself."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoints:
    """Thresholds on the study's suspicion, chosen on validation data only."""

    high_confidence: float
    sensitive: float


@dataclass(frozen=True, kw_only=True)
class AlgorithmIdentification:
    """Who read: what TID 4019 Algorithm Identification and the worklist need."""

    name: str
    version: str
    weights_sha256: str
    operating_points: OperatingPoints


@dataclass(frozen=True, kw_only=True)
class SeriesFinding:
    """What one model says of one series. ``slices`` is parallel to the volume's slices."""

    slices: tuple[SliceFinding, ...]
    suspicion: float
    """0 to 1: the study-level score that the operating points cut."""
    subtypes: dict[IchSubtype, float]
    """Study-level score per subtype that the model knows, without ``ANY``."""
    algorithm: AlgorithmIdentification
    input_features: Mapping[str, float] = field(default_factory=dict)
    """What the input was like, by the names of `ich_node.model.input_range.InputFeatures`."""
    unlike_training: Mapping[str, str] | None = None
    """Feature of the input that lies outside of what the model was trained on to a sentence that says so; ``None``:
    the model's bundle does not say what it was trained on."""
    slab_mm: float | None = None
    """Height of the slabs that thin slices were averaged to before they were read; ``None``: they were not."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader of the result has to know of this model on this input, one sentence each."""
        slabs = () if self.slab_mm is None else (f"Thin slices were read as slabs of {self.slab_mm:.1f} mm.",)
        return (*slabs, *(self.unlike_training or {}).values())

    @property
    def priority(self) -> Priority:
        """The worklist priority of this finding."""
        if self.suspicion >= self.algorithm.operating_points.high_confidence:
            return Priority.STAT
        if self.suspicion >= self.algorithm.operating_points.sensitive:
            return Priority.HIGH
        return Priority.ROUTINE

    @property
    def suspicious_slices(self) -> tuple[int, ...]:
        """Indices of slices at or above the sensitive operating point, most suspicious first."""
        cut = self.algorithm.operating_points.sensitive
        hits = [(s.probabilities[IchSubtype.ANY], i) for i, s in enumerate(self.slices)]
        return tuple(i for p, i in sorted(hits, key=lambda h: (-h[0], h[1])) if p >= cut)

    @property
    def key_slices(self) -> tuple[int, ...]:
        """The suspicious slices that a report shows, most suspicious first: of a slab the one that stands for it."""
        return tuple(i for i in self.suspicious_slices if self.stands_for_itself(i))

    def stands_for_itself(self, index: int) -> bool:
        """Whether a slice was read by itself, or shows what was found on its slab."""
        return self.slices[index].shown_on in (None, index)
