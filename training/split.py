"""Which patients train and which measure: a split by patient, kept beside the run that it belongs to.

Patients are dealt by iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-label
Data", ECML PKDD 2011, algorithm 1): the class with the fewest patients left is dealt first, each patient to the part
that lacks that class most. So a class of three patients reaches three folds.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from training.scan import PRESENT, Labels, Scan
from training.whole_file import written_whole

HeldOutSet = Literal["test", "validation"]
_NO_HEMORRHAGE = -1


class SplitError(ValueError):
    """A split that would measure on what was trained on, or that does not know a scan."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Patients and their parts. Phantoms are in none: they train always and measure never.

    Raises
    ------
    SplitError
        A patient is in two parts, or there is no fold.
    """

    name: str
    seed: int
    data: str
    """Names of the data sets."""
    folds: Mapping[str, int]
    """Fold by patient, from 0."""
    held_out: Mapping[str, HeldOutSet] = field(default_factory=dict)
    """Patients of no fold."""

    def __post_init__(self) -> None:
        twice = sorted(self.folds.keys() & self.held_out.keys())
        if twice:
            raise SplitError(f"split {self.name}: {_listed(twice)} both in a fold and held out")
        if sorted(set(self.folds.values())) != list(range(self.count)) or not self.folds:
            raise SplitError(
                f"split {self.name}: folds {sorted(set(self.folds.values()))} do not count up from 0"
            )

    @property
    def count(self) -> int:
        """How many folds there are."""
        return max(self.folds.values(), default=-1) + 1

    def verify(self, scans: Iterable[Scan]) -> None:
        """Refuse scans that the split does not know.

        Raises
        ------
        SplitError
            Names the patients.
        """
        unknown = {s.patient_id for s in scans if not s.synthetic} - self.folds.keys() - self.held_out.keys()
        if unknown:
            raise SplitError(
                f"split {self.name} of {self.data} has no fold for {_listed(sorted(unknown))}; "
                "make a new split, or leave these scans out"
            )

    def training(self, scans: Sequence[Scan], fold: int) -> list[Scan]:
        """Scans that train the network of a fold: those of all other folds, and phantoms.

        Raises
        ------
        SplitError
            A scan has no fold, or there is no such fold.
        """
        self._check_fold(scans, fold)
        return [s for s in scans if s.synthetic or self.folds.get(s.patient_id, fold) != fold]

    def measuring(self, scans: Sequence[Scan], part: int | HeldOutSet) -> list[Scan]:
        """Scans of a fold, or of a set that is held out from all folds.

        Raises
        ------
        SplitError
            A scan has no fold, or there is no such fold.
        """
        self._check_fold(scans, part)
        return [s for s in scans if not s.synthetic and self.part_of(s) == part]

    def part_of(self, scan: Scan) -> int | HeldOutSet:
        """Fold of a scan, or the set that it is held out for.

        Raises
        ------
        SplitError
            It has none.
        """
        self.verify([scan])
        if scan.synthetic:
            raise SplitError(f"{scan.scan_id} is a phantom and belongs to no part of split {self.name}")
        fold = self.folds.get(scan.patient_id)
        return self.held_out[scan.patient_id] if fold is None else fold

    def _check_fold(self, scans: Iterable[Scan], part: int | HeldOutSet) -> None:
        self.verify(scans)
        if isinstance(part, int) and not 0 <= part < self.count:
            raise SplitError(f"split {self.name} has folds 0 to {self.count - 1}, and no fold {part}")

    def save(self, file: Path) -> None:
        """Write it as JSON, patients listed by part, whole or not at all."""
        parts: dict[str, list[str]] = {str(fold): [] for fold in range(self.count)}
        for patient, part in sorted({**self.folds, **self.held_out}.items()):
            parts.setdefault(str(part), []).append(patient)
        value = {"name": self.name, "seed": self.seed, "data": self.data, "parts": parts}
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Split:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            The file is absent.
        SplitError
            It is no split, or a patient is in two parts.
        """
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
            parts: dict[str, list[str]] = value["parts"]
            seen = Counter(patient for patients in parts.values() for patient in patients)
            identity = {"name": str(value["name"]), "data": str(value["data"])}
            seed = int(value["seed"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SplitError(f"{file} is no split: {error!r}") from error
        if twice := sorted(patient for patient, times in seen.items() if times > 1):
            raise SplitError(f"{file}: {_listed(twice)} in more than one part")
        if odd := [part for part in parts if not part.isdigit() and part not in get_args(HeldOutSet)]:
            raise SplitError(
                f"{file}: part {odd[0]!r} is neither a fold nor {' nor '.join(get_args(HeldOutSet))}"
            )
        folds = {p: int(part) for part, patients in parts.items() if part.isdigit() for p in patients}
        sets: tuple[HeldOutSet, ...] = get_args(HeldOutSet)
        held_out = {p: part for part in sets for p in parts.get(part, [])}
        return cls(**identity, seed=seed, folds=folds, held_out=held_out)


def _listed(patients: Sequence[str]) -> str:
    more = f" and {len(patients) - 5} more" if len(patients) > 5 else ""
    return f"patient{'s' if len(patients) > 1 else ''} {', '.join(patients[:5])}{more}"


def make_split(
    scans: Sequence[Scan], *, name: str, seed: int, folds: int = 5, test: float = 0.0, validation: float = 0.0
) -> Split:
    """Deal the patients of scans.

    Parameters
    ----------
    scans
        In any order: the split is the same. Phantoms are passed over.
    name, seed
        What it is called, and what chance goes by.
    folds
        How many.
    test, validation
        Share of the patients that no fold gets, 0 to 1.

    Raises
    ------
    SplitError
        There are fewer patients than folds, or no patients are left for the folds.
    """
    real = [s for s in scans if not s.synthetic]
    patients = _patients(real)
    shares: dict[int | HeldOutSet, float] = dict.fromkeys(
        range(folds), (1 - test - validation) / max(folds, 1)
    )
    shares |= {"test": test} if test > 0 else {}
    shares |= {"validation": validation} if validation > 0 else {}
    if min(test, validation) < 0 or folds < 1 or test + validation >= 1 or len(patients) < len(shares):
        raise SplitError(
            f"{len(patients)} patients cannot be dealt to {folds} folds, {test:g} test and {validation:g} validation"
        )
    parts = _dealt(patients, shares, np.random.default_rng(seed))
    return Split(
        name=name,
        seed=seed,
        data=", ".join(sorted({s.source for s in real})),
        folds={p: part for p, part in parts.items() if isinstance(part, int)},
        held_out={p: part for p, part in parts.items() if not isinstance(part, int)},
    )


@dataclass(frozen=True, kw_only=True)
class _Patient:
    name: str
    strata: frozenset[int]
    """Classes that are present, or `_NO_HEMORRHAGE` alone."""
    positive_slices: int
    slices: int


def _patients(scans: Sequence[Scan]) -> list[_Patient]:
    """By name, so that the order of the scans does not matter."""
    grouped: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        grouped[scan.patient_id].append(scan)
    return [
        _Patient(
            name=name,
            strata=frozenset(c for s in own for c in _classes(s)) or frozenset({_NO_HEMORRHAGE}),
            positive_slices=sum(int((s.labels == PRESENT).any(axis=1).sum()) for s in own),
            slices=sum(len(s.labels) for s in own),
        )
        for name, own in sorted(grouped.items())
    ]


def _classes(scan: Scan) -> list[int]:
    rows: Labels = np.vstack([scan.labels, scan.scan_labels])
    return [int(c) for c in np.flatnonzero((rows == PRESENT).any(axis=0))]


@dataclass(kw_only=True)
class _Part:
    name: int | HeldOutSet
    share: float
    """Of all patients."""
    tie: float
    lacking: dict[int, float]
    """Patients of each class that it still wants."""
    room: float
    positive_slices: int = 0
    slices: int = 0

    def need(self, patient: _Patient, rarest: int) -> tuple[float, ...]:
        """How much it wants a patient; rounded, so that equal shares tie."""
        return (
            round(self.lacking.get(rarest, 0.0), 9),
            round(sum(self.lacking.get(c, 0.0) for c in patient.strata), 9),
            round(self.room, 9),
            -self.positive_slices / self.share,
            -self.slices / self.share,
            self.tie,
        )

    def take(self, patient: _Patient) -> None:
        for c in patient.strata & self.lacking.keys():
            self.lacking[c] -= 1
        self.room -= 1
        self.positive_slices += patient.positive_slices
        self.slices += patient.slices


def _dealt(
    patients: list[_Patient], shares: Mapping[int | HeldOutSet, float], rng: np.random.Generator
) -> dict[str, int | HeldOutSet]:
    chance = {p.name: c for p, c in zip(patients, rng.random(len(patients)), strict=True)}
    totals = Counter(c for p in patients for c in p.strata if c != _NO_HEMORRHAGE)
    parts = [
        _Part(
            name=name,
            share=share,
            tie=float(rng.random()),
            lacking={c: share * n for c, n in totals.items()},
            room=share * len(patients),
        )
        for name, share in shares.items()
    ]
    dealt: dict[str, int | HeldOutSet] = {}
    left = list(patients)
    while left:
        counts = Counter(c for p in left for c in p.strata)
        # any after the subtypes that it follows from; those without hemorrhage last, to fill up by room
        rarest = min(counts, key=lambda c: (c == _NO_HEMORRHAGE, counts[c], -c))
        of_class = [p for p in left if rarest in p.strata]
        # most hemorrhage first: what comes later evens out what it leaves uneven
        for patient in sorted(of_class, key=lambda p: (-p.positive_slices, chance[p.name])):
            part = max(parts, key=lambda f: f.need(patient, rarest))
            part.take(patient)
            dealt[patient.name] = part.name
        left = [p for p in left if p.name not in dealt]
    return dealt
