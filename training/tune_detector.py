"""The detector's h, T and d by Bayesian optimization of Dice, as Vicar et al. chose theirs.

Maps are made once and kept on pixels of about 1 mm; a trial runs the node's own detector on them. A box with a point
in it is found, one without is missed, a point in no box is false; as in `training.evaluation.detection`, slices with
hemorrhage but without a box are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from ich_node.model.localization import DetectorConfig
from training.cuts import Teacher
from training.evaluation.calibration import fit_decision
from training.evaluation.metrics import dice
from training.likelihood_maps import (
    ANY,
    LEAST_LIKELIHOOD,
    Maps,
    ScanMaps,
    Truth,
    likelihood_maps,
    require_detector,
    truth_boxes,
)
from training.predictions import Floats
from training.release import recipe_of_run
from training.run import RUN_FILE, SPLIT_FILE, predictions_of
from training.scan import ABSENT, Scan
from training.split import Split
from training.whole_file import written_whole

RESULT_FILE = "detector.json"
SPACE: Mapping[str, FloatDistribution] = {
    "height": FloatDistribution(0.002, 0.3, log=True),
    "threshold": FloatDistribution(LEAST_LIKELIHOOD, 0.98),
    "distance_mm": FloatDistribution(4, 60),
}
"""What is searched. The published d of 10 and 58 pixels are about 9 and 50 mm."""
_DIGITS = {"height": 4, "threshold": 3, "distance_mm": 1}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The best of all trials; of equals the first."""

    config: DetectorConfig
    counts: Floats
    """(scans, 3) found, false, missed on the scans that it was chosen on."""
    trials: tuple[tuple[DetectorConfig, float], ...]
    """Setting and Dice in order; the first is the detector as it was."""

    @property
    def dice(self) -> float:
        """Optimistic: on what it was chosen on."""
        return dice_of(self.counts)


@dataclass(frozen=True, kw_only=True)
class CrossTuned:
    """One setting from all patients, and what such a choice is worth on patients that did not choose."""

    whole: Tuned
    folds: Mapping[int, Tuned]
    """What the patients of all other folds chose for those of a fold."""
    counts: Floats
    """(scans, 3) found, false, missed, each scan with the setting of its fold."""

    @property
    def dice(self) -> float:
        """Honest: no patient is in what chose for it."""
        return dice_of(self.counts)


def counted(maps: Maps, truth: Truth, config: DetectorConfig) -> Floats:
    """(scans, 3) found, false and missed of each scan with this setting.

    Slices with a box count, and those labelled to be without hemorrhage. A box on a slice where the mask found no
    intracranial space is missed.
    """
    counts = np.zeros((len(maps), 3))
    for row, each, boxes in zip(counts, maps, truth.boxes, strict=True):
        for number, index in enumerate(each.index.tolist()):
            if index not in boxes and each.scan.labels[index, ANY] != ABSENT:
                continue
            x, y = each.points(number, config).T[:, :, None]
            left, top, right, bottom = boxes.get(index, np.zeros((0, 4))).T
            inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)  # (points, boxes)
            row += inside.any(axis=0).sum(), (~inside.any(axis=1)).sum(), 0
        row[2] = sum(map(len, boxes.values())) - row[0]
    return counts


def dice_of(counts: Floats) -> float:
    """2 TP / (2 TP + FP + FN), pooled over all slices."""
    return float(dice(*counts.sum(axis=0)))


def tune(
    maps: Maps,
    truth: Truth,
    *,
    trials: int = 60,
    seed: int = 20,
    start: DetectorConfig | None = None,
    journal: Path | None = None,
) -> Tuned:
    """Choose h, T and d for the highest Dice.

    The same input and seed give the same trials, whether or not they were interrupted.

    Parameters
    ----------
    start
        The detector as it is: it is tried first, brought into `SPACE`, and ``most`` is taken from it.
    journal
        File that keeps the trials; those that it has of the same maps, truth, start and seed are not run again.

    Raises
    ------
    ValueError
        There is no box to find, or no trial is asked for.
    """
    if trials < 1 or not any(truth.boxes):
        why = "no slice has a box" if trials else "no trial is asked for"
        raise ValueError(f"the detector cannot be tuned: {why}")
    start = start or DetectorConfig()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        storage=None if journal is None else JournalStorage(JournalFileBackend(str(journal))),
        study_name=_digest(maps, truth, start, seed),
        load_if_exists=True,
    )

    def worth(values: Mapping[str, float]) -> float:
        return dice_of(counted(maps, truth, _setting(values, start)))

    done = _completed(study)
    if not done:
        first = {name: min(max(getattr(start, name), d.low), d.high) for name, d in SPACE.items()}
        study.add_trial(create_trial(params=first, distributions=dict(SPACE), value=worth(first)))
    for number in range(max(1, len(done)), trials):
        # drawn anew for each trial, so that one that goes on draws what an uninterrupted one does
        study.sampler = optuna.samplers.TPESampler(seed=seed + number, constant_liar=False)
        trial = study.ask(dict(SPACE))
        study.tell(trial, worth(trial.params))
    tried = tuple((_setting(t.params, start), float(t.value or 0)) for t in _completed(study)[:trials])
    best = max(tried, key=lambda one: one[1])[0]
    return Tuned(config=best, counts=counted(maps, truth, best), trials=tried)


def _setting(values: Mapping[str, float], start: DetectorConfig) -> DetectorConfig:
    """To what a person can read, before anything is measured with it."""
    return DetectorConfig(
        **{name: round(values[name], digits) for name, digits in _DIGITS.items()}, most=start.most
    )


def _completed(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _digest(maps: Maps, truth: Truth, start: DetectorConfig, seed: int) -> str:
    """Name of a study: another one wherever a Dice may be another."""
    found = hashlib.sha256(repr((seed, start, sorted(SPACE.items()), _DIGITS)).encode())
    for each, boxes in zip(maps, truth.boxes, strict=True):
        place = (each.scan.source, each.scan.scan_id, each.step, each.corner.tolist(), each.image_mm.tolist())
        slices = sorted((index, edges.tolist()) for index, edges in boxes.items())
        found.update(repr((place, each.index.tolist(), each.scan.labels[:, ANY].tolist(), slices)).encode())
        found.update(np.ascontiguousarray(each.likelihood).tobytes())
    return found.hexdigest()


def cross_tuned(maps: Maps, truth: Truth, **options: Any) -> CrossTuned:
    """Tune on all scans, and for each fold on those of the other folds; ``options`` are those of `tune`.

    Raises
    ------
    ValueError
        As `tune`; or there is one fold only, or a patient is in two.
    """
    fold = np.array([each.fold for each in maps])
    pairs = {(each.scan.patient_id, each.fold) for each in maps}
    if len({patient for patient, _ in pairs}) < len(pairs):
        raise ValueError("the detector cannot be tuned by folds: a patient is in two of them")

    def part(which: npt.NDArray[np.bool_]) -> tuple[Maps, Truth]:
        rows = np.flatnonzero(which).tolist()
        return [maps[i] for i in rows], Truth(boxes=tuple(truth.boxes[i] for i in rows), origin=truth.origin)

    whole = tune(maps, truth, **options)
    folds, counts = {}, np.zeros((len(maps), 3))
    for one in np.unique(fold).tolist():
        folds[one] = tune(*part(fold != one), **options)
        counts[fold == one] = counted(*part(fold == one), folds[one].config)
    return CrossTuned(whole=whole, folds=folds, counts=counts)


def tune_run(
    run: Path,
    scans: Sequence[Scan],
    out: Path,
    teacher: Teacher | None = None,
    *,
    trials: int = 60,
    seed: int = 20,
) -> dict[str, Any]:
    """Tune the detector of a finished run on the patients that each of its networks never saw.

    Maps are read with the calibration that a release would have, since that changes those of some systems. Under
    ``out`` it keeps the maps and all trials, so that the same call goes on where it stopped.

    Returns
    -------
    dict
        What ``out/detector.json`` holds: ``localization`` for a bundle, its optimistic Dice, the honest one, the one
        as it was, counts, and where the boxes are from.

    Raises
    ------
    ConfigurationError
        The system does not find places by h, T and d.
    ValueError
        Folds are missing, the split does not know a scan, or no slice has a box.
    """
    recipe, split = recipe_of_run(run), Split.load(run / SPLIT_FILE)
    require_detector(recipe.architecture, run / RUN_FILE)
    predictions = predictions_of(run)
    if predictions is None:
        raise ValueError(f"{run}: not all folds are done")
    decision = fit_decision(predictions)
    maps: list[ScanMaps] = []
    for fold in range(split.count):
        bundle = run / f"fold{fold}" / f"{recipe.name}-fold{fold}"
        held = split.measuring(scans, fold)
        maps += likelihood_maps(bundle, held, cache=out / "maps", decision=decision, fold=fold)
    truth = truth_boxes(maps, teacher)
    journal = out / "trials.journal"
    tuned = cross_tuned(maps, truth, trials=trials, seed=seed, start=recipe.localization, journal=journal)
    found = {"run": run.name, "seed": seed, **_described(tuned, truth)}
    with written_whole(out / RESULT_FILE) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _described(found: CrossTuned, truth: Truth) -> dict[str, Any]:
    def plain(counts: Floats) -> dict[str, float | int]:
        named = zip(("found", "false", "missed"), counts.sum(axis=0).astype(int).tolist(), strict=True)
        return {"dice": round(dice_of(counts), 4), **dict(named)}

    settings = {str(fold): asdict(tuned.config) for fold, tuned in found.folds.items()}
    return {
        "localization": asdict(found.whole.config),
        "optimistic": plain(found.whole.counts),
        "cross_validated": {**plain(found.counts), "localization_by_fold": settings},
        "dice_before": round(found.whole.trials[0][1], 4),
        "trials": len(found.whole.trials),
        "truth": {"scans_by_origin": dict(truth.origin), "slices_with_box": sum(map(len, truth.boxes))},
        "scans": len(found.counts),
    }
