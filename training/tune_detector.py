"""The detector's h, T and d by Bayesian optimization of Dice, as Vicar et al. chose theirs.

Maps are made once and kept on pixels of about 1 mm; a trial runs the node's own detector on them. A box with a point
in it is found, one without is missed, a point in no box is false; as in `training.evaluation.detection`, slices with
hemorrhage but without a box are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy import ndimage

from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype
from ich_node.model import bundle as bundles
from ich_node.model.decision import DecisionConfig
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.predict import Predictor, load_predictor
from ich_node.model.system import Head, find_system
from training.cuts import Teacher, plain_name
from training.evaluation.calibration import fit_decision
from training.evaluation.metrics import dice
from training.predictions import Floats, Ints
from training.release import recipe_of_run
from training.run import RUN_FILE, SPLIT_FILE, predictions_of
from training.scan import ABSENT, CLASSES, PRESENT, Scan, Volume
from training.split import Split

RESULT_FILE = "detector.json"
SPACE: Mapping[str, FloatDistribution] = {
    "height": FloatDistribution(0.002, 0.3, log=True),
    "threshold": FloatDistribution(0.02, 0.98),
    "distance_mm": FloatDistribution(4, 60),
}
"""What is searched. The published d of 10 and 58 pixels are about 9 and 50 mm."""
LEAST_AREA_MM2 = 5.0
"""Of a part of an outline that gets a box."""
TAUGHT_FROM = 0.5
"""Likelihood from which a teacher's pixel is in a bleed."""
_DIGITS = {"height": 4, "threshold": 3, "distance_mm": 1}
_PITCH_MM = 1.0
_ANY = CLASSES.index(IchSubtype.ANY)
_VERSION = 1
"""Of what is kept of maps: raised whenever the same bundle gives other maps."""
Arrays = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanMaps:
    """Likelihood of *any* in the slices of a scan, cut to where it is not 0 in all of them."""

    scan: Scan
    fold: int
    """Which network read it."""
    index: Ints
    """(maps,) the slices: those that somewhere reach the least T that is tried."""
    likelihood: npt.NDArray[np.float16]
    """(maps, rows, columns); each pixel is the highest of ``step`` x ``step`` of the image, so no peak is lost."""
    corner: Ints
    """(2,) row and column of the first pixel, in pixels of the map."""
    step: int
    image_mm: Floats
    """(2,) row and column distance of the image's pixels, mm."""

    def points(self, number: int, config: DetectorConfig) -> Floats:
        """(points, 2) x and y in image coordinates, of one map."""
        row_mm, column_mm = (float(mm) * self.step for mm in self.image_mm)
        found = detect(self.likelihood[number].astype(np.float32), (row_mm, column_mm), config)
        xy = np.array([point.coordinates for point in found], np.float64).reshape(-1, 2)
        return np.asarray((xy + self.corner[::-1]) * self.step)


Maps = Sequence[ScanMaps]


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Boxes to find."""

    boxes: tuple[Mapping[int, Floats], ...]
    """(scans,) slice to (boxes, 4): left, top, right, bottom in image coordinates; no slice without a box."""
    origin: Mapping[str, int]
    """Where the boxes are from, and of how many scans; ``none``: scans with hemorrhage and without a box."""


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


def likelihood_maps(
    bundle: Path, scans: Sequence[Scan], *, cache: Path, decision: DecisionConfig | None = None, fold: int = 0
) -> Maps:
    """Read scans as the node does and keep the maps of *any*.

    Parameters
    ----------
    scans
        None of them trained the bundle.
    cache
        Folder for what was read, a file per scan; what is there is not read again.
    decision
        Calibration instead of the bundle's: some systems calibrate their maps like their scores.
    fold
        Number that the scans get.

    Raises
    ------
    ConfigurationError
        The bundle cannot be read with, or does not find places by h, T and d.
    OSError, ValueError
        Images of a scan cannot be read; the message names the scan.
    """
    description = bundles.read_description(bundle)
    _check_detector(description["architecture"], bundle / bundles.DESCRIPTION_FILE)
    decided = asdict(decision) if decision else description["decision"]
    read_with = ("architecture", "config", "preprocessing", "members", "weights_sha256")
    key = json.dumps([_VERSION, decided, *(description.get(name) for name in read_with)], sort_keys=True)
    folder = cache / f"maps-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)

    @once
    def predictor() -> Predictor:
        loaded = load_predictor(bundle)
        loaded.system.decision = decision or loaded.system.decision
        return loaded

    def read(scan: Scan) -> Arrays:
        file = folder / f"{plain_name(scan.source)}-{plain_name(scan.scan_id)}.npz"
        if not file.is_file():
            temporary = file.with_suffix(".tmp.npz")
            np.savez_compressed(temporary, **_read(predictor(), scan))
            temporary.replace(file)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    kept = [(scan, read(scan)) for scan in scans]
    return [ScanMaps(scan=scan, fold=fold, step=int(a.pop("step")), **a) for scan, a in kept]


def _check_detector(architecture: str, where: Path) -> None:
    kind = find_system(architecture).localization_type
    if kind is not DetectorConfig:
        raise ConfigurationError(
            f"{where}: {architecture} finds places by {kind.__name__}, not by the detector with h, T and d in mm: "
            "there is nothing to tune"
        )


def _volume(scan: Scan) -> Volume:
    try:
        return scan.read()
    except (OSError, ValueError) as error:
        raise type(error)(f"scan {scan.scan_id}: {error}") from error


def _read(predictor: Predictor, scan: Scan) -> Arrays:
    volume = _volume(scan)
    head = Head(hu=volume.hu, spacing_mm=volume.spacing_mm)
    scores = predictor.system.score(head)
    image_mm = np.array(volume.spacing_mm[1:])
    step = max(1, round(_PITCH_MM / float(np.sqrt(image_mm.prod()))))
    seen = {i: coarsened(predictor.maps(head, i, scores)[IchSubtype.ANY], step) for i in head.inside}
    # the others have no point at any T that is tried
    seen = {i: each for i, each in seen.items() if each.max() >= SPACE["threshold"].low}
    stack = np.stack(list(seen.values())) if seen else np.zeros((0, 1, 1), np.float16)
    where = np.argwhere(stack.any(axis=0)) if seen else np.zeros((1, 2), np.int64)
    (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0) + 1
    return {
        "index": np.array(list(seen), np.int64),
        "likelihood": stack[:, top:bottom, left:right],
        "corner": np.array([top, left]),
        "step": np.array(step),
        "image_mm": image_mm,
    }


def coarsened(likelihood: npt.NDArray[np.float32], step: int) -> npt.NDArray[np.float16]:
    """Highest of each ``step`` x ``step`` pixels; at the far edges of those that are left."""
    padded = np.pad(likelihood, [(0, -n % step) for n in likelihood.shape])
    rows, columns = (n // step for n in padded.shape)
    return np.asarray(padded.reshape(rows, step, columns, step).max(axis=(1, 3)), np.float16)


def truth_boxes(maps: Maps, teacher: Teacher | None = None) -> Truth:
    """Readers' boxes; else boxes around the outlines of a scan; else around what a teacher sees.

    Outlines and teachers give a box for each part of a slice that is connected over edges or corners and has
    `LEAST_AREA_MM2`; a teacher only where the slice is labelled to show hemorrhage.

    Raises
    ------
    OSError, ValueError
        Images of an outlined scan cannot be read; the message names the scan.
    """
    found = [_boxes_of(each.scan, each.image_mm, teacher) for each in maps]
    bleeding = [
        boxes or (each.scan.labels == PRESENT).any() for each, (_, boxes) in zip(maps, found, strict=True)
    ]
    names = (
        name if boxes else "none" for (name, boxes), wanted in zip(found, bleeding, strict=True) if wanted
    )
    return Truth(boxes=tuple(boxes for _, boxes in found), origin=dict(Counter(names)))


def _boxes_of(scan: Scan, image_mm: Floats, teacher: Teacher | None) -> tuple[str, dict[int, Floats]]:
    """Where the boxes of a scan are from, and they by slice."""
    if scan.boxes:
        edges = [
            (b.slice_index, np.array([b.left, b.top, b.right, b.bottom], np.float64)) for b in scan.boxes
        ]
        slices = {index for index, _ in edges}
        return "boxes", {index: np.stack([edge for i, edge in edges if i == index]) for index in slices}
    lesion = _volume(scan).lesion if scan.outlined else None
    if lesion is not None:
        return "outlines", _around(enumerate(lesion[:, _ANY]), image_mm, image_mm)
    taught = teacher and teacher(scan)
    if not taught:
        return "none", {}
    pairs = zip(taught.slices.tolist(), taught.likelihood, strict=True)
    planes = [
        (i, seen.max(axis=0) >= 255 * TAUGHT_FROM) for i, seen in pairs if scan.labels[i, _ANY] == PRESENT
    ]
    name = f"teacher {getattr(teacher, 'name', 'without a name')}, likelihood from {TAUGHT_FROM} up"
    return name, _around(planes, np.full(2, taught.pitch_mm), image_mm)


def _around(
    planes: Iterable[tuple[int, npt.NDArray[np.bool_]]], grid_mm: Floats, image_mm: Floats
) -> dict[int, Floats]:
    """Boxes around the parts of masks, in image coordinates; the first pixel's centre is that of the image."""
    found = {}
    for index, plane in planes:
        labels, _ = ndimage.label(plane, np.ones((3, 3)))
        large = np.bincount(labels.ravel())[1:] * grid_mm.prod() >= LEAST_AREA_MM2
        edges = [
            (x.start, y.start, x.stop, y.stop)
            for (y, x), wanted in zip(ndimage.find_objects(labels), large, strict=True)
            if wanted
        ]
        if edges:
            found[index] = (np.array(edges) - 0.5) * np.tile((grid_mm / image_mm)[::-1], 2) + 0.5
    return found


def counted(maps: Maps, truth: Truth, config: DetectorConfig) -> Floats:
    """(scans, 3) found, false and missed of each scan with this setting.

    Slices with a box count, and those labelled to be without hemorrhage. A box on a slice where the mask found no
    intracranial space is missed.
    """
    counts = np.zeros((len(maps), 3))
    for row, each, boxes in zip(counts, maps, truth.boxes, strict=True):
        for number, index in enumerate(each.index.tolist()):
            if index not in boxes and each.scan.labels[index, _ANY] != ABSENT:
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
        found.update(repr((place, each.index.tolist(), each.scan.labels[:, _ANY].tolist(), slices)).encode())
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
    _check_detector(recipe.architecture, run / RUN_FILE)
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
    temporary = out / f".{RESULT_FILE}.tmp"
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    temporary.replace(out / RESULT_FILE)
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
