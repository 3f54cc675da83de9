"""Two bundles of multiple-instance systems put together as one `ich_node.model.mil_pair`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load

from ich_node.findings import IchSubtype
from ich_node.model.bundle import (
    DESCRIPTION_FILE,
    localization,
    members,
    read_description,
    require_name,
    slab_mm,
    typed_section,
    verified_weights,
)
from ich_node.model.decision import DecisionConfig
from ich_node.model.lite_mil import LiteMilConfig, LiteMilPreprocessing
from ich_node.model.localization import DetectorConfig
from ich_node.model.mil_pair import Calibration, MilPairConfig, MilPairPreprocessing
from ich_node.model.preprocess import PreprocessConfig
from ich_node.model.vicar_mil import VicarMilConfig
from training.evaluation.calibration import fit_decision
from training.predictions import Predictions
from training.records import Said
from training.release import Wanted, finish, inputs_of, real_features
from training.scan import CLASSES, Scan

T = TypeVar("T")
_ANY = CLASSES.index(IchSubtype.ANY)
NOTE = (
    "Each patient was scored by one network of each kind, neither of which had seen that patient, and not in the "
    "mirror. Calibration of both kinds and of their mean, study rule and operating points were chosen on these same "
    "out-of-fold predictions; 'nested' gives the operating points' results when those of each fold come from the other "
    "folds alone. The bundle reads with the mean of all networks, which no patient of this data can evaluate: each was "
    "seen by most of them."
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the two."""

    bundle: Path
    """Folder."""
    said: Predictions
    """Of each patient, what the network said that had not seen that patient, without the mirror image."""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """Sections of the pair's description."""

    network: MilPairConfig
    preprocessing: MilPairPreprocessing
    localization: DetectorConfig
    recipes: Mapping[str, Any]
    architecture: str = "mil-pair"
    decision: DecisionConfig = field(default_factory=DecisionConfig)

    def as_dict(self) -> dict[str, Any]:
        """How each part was trained."""
        return dict(self.recipes)


def part_of(bundle: Path, said: Said) -> Part:
    """A bundle with the record of what its networks said.

    Raises
    ------
    ValueError
        The record is of other weights, or of networks that saw mirror images.
    """
    predictions, described = said
    if described.get("bundle", {}).get("weights_sha256") != read_description(bundle)["weights_sha256"]:
        raise ValueError(
            f"the record given for {bundle} is of other weights: make it by `out-of-fold --upright`"
        )
    if not described["upright"]:
        raise ValueError(
            f"the record given for {bundle} is with mirror images: make it by `out-of-fold --upright`"
        )
    return Part(bundle=bundle, said=predictions)


def averaged(
    vicar: Predictions, lite: Predictions, name: str
) -> tuple[Predictions, Calibration, Calibration]:
    """Mean of the calibrated logits of *any*, slice by slice, and the calibrations.

    Each calibration is fitted on all out-of-fold predictions of its part: two numbers from many slices.

    Parameters
    ----------
    name
        Of the system that says the result.

    Returns
    -------
    Predictions, Calibration, Calibration
        Scans and folds in the order of ``lite``; the other classes are not given.

    Raises
    ------
    ValueError
        They are not of the same slices with the same labels.
    """
    order = _same_slices(vicar, lite)
    fitted = [_calibration(predictions) for predictions in (vicar, lite)]
    parts = [
        calibration.scale * logits + calibration.offset
        for calibration, logits in zip(fitted, (vicar.logits[order, _ANY], lite.logits[:, _ANY]), strict=True)
    ]
    logits = np.full_like(lite.logits, np.nan)
    logits[:, _ANY] = np.mean(parts, axis=0)
    nowhere = np.empty((0, lite.places.shape[1]))
    return replace(lite, system=name, logits=logits, places=nowhere), fitted[0], fitted[1]


def pair(
    vicar: Part,
    lite: Part,
    scans: Sequence[Scan],
    out: Path,
    wanted: Wanted,
    outlined: Callable[[], Sequence[Scan]] | None = None,
) -> tuple[dict[str, Any], Predictions]:
    """Put two bundles together, choose by their out-of-fold predictions, and write the bundle with its card.

    Parameters
    ----------
    vicar, lite
        Of architecture ``vicar-mil`` and ``lite-mil``, with as many networks each.
    scans
        What the real patients are like is measured on them; phantoms may be among them.
    outlined
        As `training.release.release` has it.

    Returns
    -------
    dict, Predictions
        The metrics, and what the pair says of patients that neither network had seen.

    Raises
    ------
    ConfigurationError
        A bundle is not what its description says, or the folder's name is none that a bundle can have.
    ValueError
        A bundle is of another architecture, they differ in the number of networks, or the predictions are of
        different slices.
    """
    require_name(out.name, "the bundle's folder")
    described = _described(vicar.bundle, "vicar-mil"), _described(lite.bundle, "lite-mil")
    counts = [members(part.bundle, one) for part, one in zip((vicar, lite), described, strict=True)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{vicar.bundle} has {counts[0]} networks, {lite.bundle} has {counts[1]}: a pair has as many of each"
        )
    predictions, of_vicar, of_lite = averaged(vicar.said, lite.said, out.name)
    made = _Made(
        network=MilPairConfig(
            vicar=replace(_section(vicar.bundle, described[0], VicarMilConfig, "config"), mirror="alternate"),
            lite=replace(_section(lite.bundle, described[1], LiteMilConfig, "config"), mirror="alternate"),
            vicar_calibration=of_vicar,
            lite_calibration=of_lite,
        ),
        preprocessing=MilPairPreprocessing(
            vicar=_section(vicar.bundle, described[0], PreprocessConfig, "preprocessing"),
            lite=_section(lite.bundle, described[1], LiteMilPreprocessing, "preprocessing"),
        ),
        localization=wanted.detector
        or typed_section(
            DetectorConfig, localization(described[0]), vicar.bundle / DESCRIPTION_FILE, "localization"
        ),
        recipes={"vicar": described[0]["training_recipe"], "lite": described[1]["training_recipe"]},
    )
    height = slab_mm(vicar.bundle, described[0])
    features, lost = real_features(scans)
    about = {
        "training_data": _sources(described),
        "training_inputs": inputs_of(features, lost),
        **({} if height is None else {"slab_mm": height}),
        "parts": [{key: one[key] for key in ("name", "version", "weights_sha256")} for one in described],
    }
    networks = [
        {f"vicar.{k}": v for k, v in first.items()} | {f"lite.{k}": v for k, v in second.items()}
        for first, second in zip(
            _networks(vicar.bundle, described[0], counts[0]),
            _networks(lite.bundle, described[1], counts[1]),
            strict=True,
        )
    ]
    report = out.with_name(f"{out.name}-report")
    return finish(out, made, networks, predictions, about, wanted, report, outlined, NOTE), predictions


def _same_slices(vicar: Predictions, lite: Predictions) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Row in ``vicar`` of each slice in ``lite``."""
    where = {
        (str(scan), str(patient)): i
        for i, (scan, patient) in enumerate(zip(vicar.scan_ids, vicar.patient_ids, strict=True))
    }
    names = [(str(scan), str(patient)) for scan, patient in zip(lite.scan_ids, lite.patient_ids, strict=True)]
    if len(where) != len(names) or set(names) != where.keys():
        raise ValueError("the two parts were measured on different scans: a pair needs the same")
    order = np.concatenate([np.flatnonzero(vicar.scan == where[name]) for name in names])
    if len(order) != len(lite.scan) or not np.array_equal(vicar.labels[order], lite.labels):
        raise ValueError("the two parts were measured on different slices or labels: a pair needs the same")
    return order


def _calibration(predictions: Predictions) -> Calibration:
    alone = np.full_like(predictions.logits, np.nan)
    alone[:, _ANY] = predictions.logits[:, _ANY]
    found = fit_decision(replace(predictions, logits=alone))
    return Calibration(scale=round(found.scale, 4), offset=round(found.offset, 4))


def _described(bundle: Path, architecture: str) -> dict[str, Any]:
    description = read_description(bundle)
    if description["architecture"] != architecture:
        raise ValueError(f"{bundle} is of architecture {description['architecture']}, not {architecture}")
    return description


def _section(bundle: Path, description: Mapping[str, Any], kind: type[T], key: str) -> T:
    values = {name: value for name, value in description[key].items() if name != "members"}
    return typed_section(kind, values, bundle / DESCRIPTION_FILE, key)


def _networks(bundle: Path, description: Mapping[str, Any], count: int) -> list[dict[str, torch.Tensor]]:
    tensors = load(verified_weights(bundle, description))
    return [
        {name.removeprefix(f"{n}."): tensor for name, tensor in tensors.items() if name.startswith(f"{n}.")}
        for n in range(count)
    ]


def _sources(described: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What either learnt from; patients that both did, with what the later one says of them."""
    found: list[dict[str, Any]] = []
    for description in reversed(described):
        for source in description["training_data"]:
            if not any(source["name"] == one["name"] and "phantoms" not in one for one in found):
                found.append(dict(source))
    return found
