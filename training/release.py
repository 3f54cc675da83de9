"""From a finished cross-validation to a bundle with its card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ich_node.model.decision import DecisionConfig
from ich_node.model.preprocess import PreprocessConfig
from ich_node.model.vicar_mil import VicarMilConfig
from training.augment import AugmentConfig
from training.evaluate import OutOfFold, best_rule, calibrated, nested, operating_points, report, scan_scores
from training.make_bundle import write_bundle
from training.sampling import Mix
from training.train_vicar import TrainingConfig

_NOTE = (
    "Each patient was scored by one network that never saw that patient. Calibration, study rule and operating "
    "points were chosen on these same out-of-fold predictions. "
    "'nested' gives the operating points' results when those of each fold come from the other folds alone. The bundle "
    "reads with the mean of all folds' networks, which no patient of this data can evaluate: each was seen by all "
    "networks but one."
)
_SECTIONS = {"network": VicarMilConfig, "preprocess": PreprocessConfig, "augment": AugmentConfig, "mix": Mix}


def release(
    out: Path,
    members: Sequence[Mapping[str, torch.Tensor]],
    predictions: OutOfFold,
    run: Path,
    *,
    version: str,
    phantoms: int,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Choose calibration, rule and operating points, write the bundle, return the metrics.

    Parameters
    ----------
    run
        ``run.json`` of the cross-validation.
    remarks
        What a reader of the card must know of how these weights came about: what else was tried and seen.
    """
    scale, offset = calibrated(predictions.logit, predictions.label)
    rule, table = best_rule(predictions, scale, offset)
    decision = DecisionConfig(scale=round(scale, 4), offset=round(offset, 4), rule=rule)
    points = operating_points(predictions.scan_label, scan_scores(predictions, decision))
    metrics = {
        "note": _NOTE,
        "cross_validation": report(predictions, decision, points),
        "nested": nested(predictions),
        "scan_auc_by_rule": {name: round(value, 3) for name, value in table.items()},
        "remarks": list(remarks),
    }
    config = read_config(run)
    write_bundle(out, members, config, decision, points, version=version, metrics=metrics, phantoms=phantoms)
    return metrics


def read_config(run: Path) -> TrainingConfig:
    """The configuration that a run wrote beside its results."""
    stored = json.loads(run.read_text(encoding="utf-8"))["config"]
    sections: dict[str, Any] = {}
    for name, kind in _SECTIONS.items():
        values = stored.pop(name)
        known = {f.name for f in fields(kind)}
        sections[name] = kind(**{k: _tuples(v) for k, v in values.items() if k in known})
    return TrainingConfig(**stored, **sections)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
