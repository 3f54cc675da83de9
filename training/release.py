"""From a finished cross-validation to a bundle: calibration, operating points, metrics and the card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ich_node.findings import OperatingPoints
from ich_node.model.bundle import require_name
from ich_node.model.bundle_section import typed_section
from ich_node.model.decision import DecisionConfig
from ich_node.model.input_range import InputFeatures, measure, ranges_of
from ich_node.model.localization import DetectorConfig
from ich_node.model.system import Head
from training.card import model_card
from training.draft_bundle import Sections, write_bundle
from training.evaluation.operating_point import Choice, choose
from training.evaluation.report import write_report
from training.pointing import pointing
from training.predictions import Predictions
from training.recipe import Recipe, recipe_of
from training.run import RUN_FILE, counted_scans, members_of, predictions_of
from training.scan import Scan
from training.sources import IMAGENET, TEACHER, training_data

_ESTIMATED = ("pixel_spacing_mm", "field_of_view_mm", "cavity_volume_ml")
"""What says nothing where the pixel spacing is estimated from the size of the cavity."""
_OF_PICTURES = ("noise_hu", "brain_hu_spread", "dense_share", "bright_share")
"""What compressed pictures of a window do not show as it was: noise, what it adds to, and what the window cuts off."""
NOTE = (
    "Each patient was scored by one network that never saw that patient. Calibration, study rule and operating points "
    "were chosen on these same out-of-fold predictions; 'nested' gives the operating points' results when those of "
    "each fold come from the other folds alone. The bundle reads with the mean of all folds' networks, which no "
    "patient of this data can evaluate: each was seen by all networks but one."
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a release is asked for."""

    version: str
    sensitivity: float = 0.95
    """Of scans at the sensitive operating point."""
    specificity: float = 0.95
    """Of scans at the high-confidence one."""
    remarks: tuple[str, ...] = ()
    """What a reader of the card must know of how these weights came about: what else was tried and seen."""
    detector: DetectorConfig | None = None
    half_precision: bool = True
    """Whether weights are stored in 16 bits."""


def read_detector(file: Path) -> DetectorConfig:
    """The detector that `training.tune_detector.tune_run` wrote.

    Raises
    ------
    ConfigurationError
        A key is unknown or has a value that does not fit; the message names file and key.
    LookupError, ValueError
        The file is no such result.
    """
    values = json.loads(file.read_text(encoding="utf-8"))["localization"]
    return typed_section(DetectorConfig, values, file, "localization")


def recipe_of_run(run: Path) -> Recipe:
    """The recipe that a run wrote beside its results.

    Raises
    ------
    ConfigurationError
        It is no recipe of this version.
    """
    stored = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))["recipe"]
    return recipe_of(stored, run / RUN_FILE, run.name)


def release(
    run: Path,
    scans: Sequence[Scan],
    out: Path,
    wanted: Wanted,
    outlined: Callable[[], Sequence[Scan]] | None = None,
) -> dict[str, Any]:
    """Choose calibration, rule and operating points, write the bundle with its card, return the metrics.

    Parameters
    ----------
    run
        Folder of a finished cross-validation. Its report is written there too.
    scans
        All that it was trained on.
    outlined
        Gives scans with outlines that trained nothing, when the bundle is there: how often its strongest point lies
        in the bleed is counted on them.

    Raises
    ------
    ConfigurationError
        The folder's name is none that a bundle can have.
    ValueError
        Folds are missing, the scans are not those of the run, or no operating point can be chosen.
    """
    require_name(out.name, "the bundle's folder")
    described = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    _check_scans(scans, described, run)
    predictions = predictions_of(run)
    if predictions is None:
        raise ValueError(f"{run}: not all folds are done")
    recipe = recipe_of_run(run)
    if wanted.detector is not None:
        recipe = replace(recipe, localization=wanted.detector)
    features, lost = real_features(scans)
    about = {
        "training_data": _sources(scans, described, recipe),
        "training_inputs": inputs_of(features, lost),
        **_slabs(recipe, features),
        "training_sources": described["sources"],
        "training_versions": described["versions"],
    }
    return finish(out, recipe, members_of(run), predictions, about, wanted, run / "report", outlined)


def finish(
    out: Path,
    recipe: Sections,
    members: Sequence[Mapping[str, torch.Tensor]],
    predictions: Predictions,
    about: Mapping[str, Any],
    wanted: Wanted,
    report: Path,
    outlined: Callable[[], Sequence[Scan]] | None = None,
    note: str = NOTE,
) -> dict[str, Any]:
    """Choose by out-of-fold predictions, write report, bundle and card, and count where the bundle's points lie.

    Parameters
    ----------
    members, predictions
        The networks, and what they said of patients that they had not seen.
    about
        What else the description says: data, inputs, slabs.
    report
        Folder.
    note
        How the numbers came about.

    Raises
    ------
    ValueError
        No operating point can be chosen.
    """
    choice = rounded(choose(predictions, sensitivity=wanted.sensitivity, specificity=wanted.specificity))
    found = write_report(
        predictions,
        choice.decision,
        choice.points,
        report,
        sensitivity=wanted.sensitivity,
        specificity=wanted.specificity,
    )
    metrics: dict[str, Any] = {
        "note": note,
        "cross_validation": found["summary"],
        "pointing": None,
        "remarks": list(wanted.remarks),
    }
    said: dict[str, Any] = {
        "version": wanted.version,
        "decision": asdict(choice.decision),
        "operating_points": asdict(choice.points),
        **about,
        "metrics": metrics,
    }
    dtype = torch.float16 if wanted.half_precision else torch.float32
    _write(out, recipe, members, said, dtype)
    if outlined is not None:
        # with the bundle itself: what it does is what is counted
        metrics["pointing"] = pointing(out, outlined()).as_dict()
        _write(out, recipe, members, said, dtype)
    return metrics


def inputs_of(features: Sequence[InputFeatures], lost: Sequence[str]) -> dict[str, list[float]]:
    """``training_inputs`` of a bundle; see `real_features`."""
    return {name: list(bounds) for name, bounds in ranges_of(features, leave_out=lost).known().items()}


def _write(
    out: Path,
    recipe: Sections,
    members: Sequence[Mapping[str, torch.Tensor]],
    about: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    said = {
        "name": out.name,
        "members": len(members),
        "architecture": recipe.architecture,
        "training_recipe": recipe.as_dict(),
        **about,
    }
    write_bundle(out, recipe, members, about, model_card(said), dtype)


def _check_scans(scans: Sequence[Scan], described: dict[str, Any], run: Path) -> None:
    """Refuse other data than the run's: the card would name what trained nothing."""
    given = counted_scans(scans)
    if given != described["scans"]:
        raise ValueError(f"{run} was trained on {_listed(described['scans'])}; given is {_listed(given)}")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} scans of {source}" for source, count in counts.items()) or "nothing"


def rounded(choice: Choice) -> Choice:
    """To what a person can read, before anything is measured with it."""
    decision = choice.decision
    return Choice(
        decision=DecisionConfig(
            scale=round(decision.scale, 4),
            offset=round(decision.offset, 4),
            class_scale=tuple(round(v, 4) for v in decision.class_scale),
            class_offset=tuple(round(v, 4) for v in decision.class_offset),
            rule=decision.rule,
        ),
        points=OperatingPoints(
            # a threshold of 0 is none
            high_confidence=max(round(choice.points.high_confidence, 4), 0.0001),
            sensitive=max(round(choice.points.sensitive, 4), 0.0001),
        ),
    )


def real_features(scans: Sequence[Scan]) -> tuple[list[InputFeatures], tuple[str, ...]]:
    """What the real scans are like, and the names of the features that their data do not show as they were."""
    features: list[InputFeatures] = []
    lost: set[str] = set()
    for scan in scans:
        if scan.synthetic:
            continue
        volume = scan.read()
        head = Head(hu=volume.hu, spacing_mm=volume.spacing_mm)
        if head.inside:
            features.append(measure(head))
        lost |= set(_ESTIMATED) if volume.spacing_is_estimated else set()
        lost |= set(_OF_PICTURES) if volume.is_of_pictures else set()
    return features, tuple(sorted(lost))


def _slabs(recipe: Recipe, features: Sequence[InputFeatures]) -> dict[str, float]:
    """Thin slices are read as high as the usual one of the training, if none of that was thin.

    Otherwise the measured scores would not be those of the bundle. A system may make slabs itself.
    """
    heights = [one.slice_spacing_mm for one in features]
    if not heights or hasattr(recipe.preprocessing, "slab_mm") or 1.9 * min(heights) <= median(heights):
        return {}
    return {"slab_mm": round(median(heights), 2)}


def _sources(scans: Sequence[Scan], described: dict[str, Any], recipe: Recipe) -> list[dict[str, Any]]:
    data = training_data(scans)
    if described["teacher"]:
        data.append({**TEACHER, "name": f"BLAST-CT ({described['teacher']})"})
    return [*data, IMAGENET] if recipe.start == "imagenet" else data
