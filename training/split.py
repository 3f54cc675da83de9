"""Which patient is in which fold: stratified, the same whatever the order of the scans, kept beside a run."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.scan import CLASSES, PRESENT, Scan


@dataclass(frozen=True, kw_only=True)
class Split:
    """Folds of patients.

    Raises
    ------
    ValueError
        A fold is none of 0 to ``count`` - 1, or one is empty.
    """

    count: int
    seed: int
    folds: Mapping[str, int]
    """Patient to fold."""

    def __post_init__(self) -> None:
        if self.count < 2 or set(self.folds.values()) != set(range(self.count)):
            raise ValueError(f"a split in {self.count} folds needs patients in each of them and in no other")

    @property
    def sha256(self) -> str:
        """Of who is where."""
        return hashlib.sha256(json.dumps(sorted(self.folds.items())).encode()).hexdigest()

    def require(self, scans: Sequence[Scan]) -> None:
        """Refuse a split that does not fit the scans.

        Raises
        ------
        ValueError
            A patient of a scan that is no phantom has no fold.
        """
        without = sorted({s.patient_id for s in scans if not s.synthetic} - self.folds.keys())
        if without:
            raise ValueError(f"{len(without)} patients have no fold in the split, {without[0]!r} the first")

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        values = {"count": self.count, "seed": self.seed, "folds": dict(sorted(self.folds.items()))}
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path) -> Split:
        """Read what `save` wrote.

        Raises
        ------
        OSError, ValueError
            The file is absent or no split; the message names it.
        """

        def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
            if len({key for key, _ in pairs}) != len(pairs):
                raise ValueError(f"{file}: a patient is there twice")
            return dict(pairs)

        values = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once)
        try:
            return cls(count=int(values["count"]), seed=int(values["seed"]), folds=values["folds"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: is no split ({error})") from error


def split_patients(scans: Sequence[Scan], count: int, seed: int) -> Split:
    """Deal patients out to folds so that each gets its share of every class, the rarest first.

    Iterative stratification (Sechidis et al. 2011) over patients: a patient goes to the fold that lacks most of the
    class, then to the one with fewest patients, then by lot.

    Raises
    ------
    ValueError
        There are fewer patients than folds.
    """
    found: dict[str, set[int]] = defaultdict(set)
    slices: dict[str, int] = defaultdict(int)
    for scan in scans:
        if not scan.synthetic:
            found[scan.patient_id] |= set(np.flatnonzero(scan.scan_labels == PRESENT).tolist())
            slices[scan.patient_id] += int((scan.labels[:, 0] == PRESENT).sum())
    if len(found) < count:
        raise ValueError(f"{len(found)} patients cannot be dealt out to {count} folds")
    rng = np.random.default_rng(seed)
    lot = dict(zip(sorted(found), rng.permutation(len(found)).tolist(), strict=True))
    folds: dict[str, int] = {}
    sizes = [0] * count
    held = [[0] * len(CLASSES) for _ in range(count)]
    by_rarity = sorted(range(len(CLASSES)), key=lambda c: (sum(c in f for f in found.values()), c))
    for number in [*by_rarity, None]:
        # those with most positive slices first, so that large bleeds do not meet in one fold
        waiting = [p for p in found if p not in folds and (number is None or number in found[p])]
        for patient in sorted(waiting, key=lambda p: (-slices[p], lot[p])):
            order = rng.permutation(count).tolist()
            fold = min(
                range(count),
                key=lambda k: (0 if number is None else held[k][number], sizes[k], order[k]),
            )
            folds[patient] = fold
            sizes[fold] += 1
            for present in found[patient]:
                held[fold][present] += 1
    return Split(count=count, seed=seed, folds=folds)
