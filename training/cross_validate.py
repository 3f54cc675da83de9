"""Cross-validation by patient: each patient is scored by a network that never saw that patient."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from ich_node.model.vicar_mil import VicarMil
from training.dataset import SliceSet, stratified_folds
from training.sampling import Mix
from training.train_vicar import TrainingConfig, slice_logits, train

logger = logging.getLogger(__name__)


def cross_validate(
    slices: SliceSet,
    out: Path,
    config: TrainingConfig,
    *,
    folds: int = 5,
    only: Sequence[int] = (),
    phantoms: SliceSet | None = None,
    begin: Path | None = None,
) -> bool:
    """Train one network per fold and score the patients it was not shown.

    Everything is written under ``out`` as it comes; the same call after an interruption goes on where it
    stopped. When all folds are there, ``oof.npz`` holds each slice's logit and label and each scan's fold.

    Parameters
    ----------
    only
        Folds to train here, so that several processes can share a run; all of them when empty.
    begin
        Folder of a finished run of the same split: each fold goes on from its weights there.

    Returns
    -------
    bool
        Whether all folds are there.

    Raises
    ------
    ValueError
        ``out`` holds a run of another configuration, or ``begin`` one of another split.
    """
    out.mkdir(parents=True, exist_ok=True)
    fold_of = stratified_folds(slices, folds, config.seed)
    split = _split(slices, fold_of)
    if begin is not None and json.loads((begin / "run.json").read_text())["fold_of"] != split:
        raise ValueError(
            f"{begin} has another split: its networks have seen patients that they would be tested on"
        )
    _claim(
        out / "run.json",
        {"config": asdict(config), "folds": folds, "fold_of": split, "begin": begin and begin.name},
    )
    start = pretrained(out, config, phantoms) if phantoms is not None and begin is None else None
    # a run that goes on from another draws other slices than that did
    seed = config.seed if begin is None else config.seed + 100
    for fold in only or range(folds):
        first = load_file(_weights(begin, fold)) if begin is not None else start
        _fold(slices, out, config, fold_of, fold, phantoms, first, seed + fold)
    if not all(_weights(out, fold).is_file() for fold in range(folds)):
        return False
    logits = np.full(len(slices.label), np.nan)
    for fold in range(folds):
        network = _fold(slices, out, config, fold_of, fold, phantoms, None, seed + fold)
        rows = slices.of_scans(np.flatnonzero(fold_of == fold))
        logits[rows] = slice_logits(network, slices, rows, config.preprocess)
    np.savez(out / "oof.npz", logit=logits, label=slices.label, scan=slices.scan, fold_of=fold_of)
    return True


def _weights(out: Path, fold: int) -> Path:
    return out / f"fold{fold}.safetensors"


def _fold(
    slices: SliceSet,
    out: Path,
    config: TrainingConfig,
    fold_of: npt.NDArray[np.intp],
    fold: int,
    phantoms: SliceSet | None,
    start: dict[str, torch.Tensor] | None,
    seed: int,
) -> VicarMil:
    weights = _weights(out, fold)
    if weights.is_file():
        network = VicarMil(config.network)
        network.load_state_dict(load_file(weights))
        return network.eval()
    logger.info("fold %d", fold)
    network = train(
        slices,
        np.flatnonzero(fold_of != fold),
        config,
        seed=seed,
        checkpoint=out / f"fold{fold}.checkpoint",
        phantoms=phantoms,
        start=start,
    )
    _write(network, weights)
    return network


def pretrained(out: Path, config: TrainingConfig, phantoms: SliceSet) -> dict[str, torch.Tensor]:
    """Weights trained on phantoms alone, with which every fold begins: no patient is in them."""
    weights = out / "pretrained.safetensors"
    if not weights.is_file():
        logger.info("pretraining on phantoms")
        alone = replace(config, mix=Mix(phantoms=24), epochs=config.pretraining_epochs)
        nobody = np.array([], np.intp)
        network = train(
            None, nobody, alone, seed=config.seed, checkpoint=out / "pretrained.checkpoint", phantoms=phantoms
        )
        _write(network, weights)
    return load_file(weights)


def _write(network: VicarMil, weights: Path) -> None:
    temporary = weights.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, temporary)
    temporary.replace(weights)


def _split(slices: SliceSet, fold_of: npt.NDArray[np.intp]) -> dict[str, int]:
    return {name: int(fold) for name, fold in zip(slices.scans, fold_of, strict=True)}


def _claim(file: Path, description: dict[str, object]) -> None:
    text = json.dumps(description, indent=1, sort_keys=True)
    if file.is_file() and file.read_text() != text:
        raise ValueError(f"{file} describes another run: give another folder or remove it")
    file.write_text(text)
