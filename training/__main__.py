"""``python -m training``: cross-validate, fit and bundle the shipped model."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file

from training.cross_validate import cross_validate, pretrained
from training.dataset import SliceSet, load_ct_ich
from training.evaluate import OutOfFold
from training.first_weights import RECIPES, make
from training.phantoms import load_phantoms
from training.release import release
from training.train_vicar import TrainingConfig

_data = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of CT-ICH v1.0.0: Patients_CT and hemorrhage_diagnosis.csv.",
)
_cache = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("training-cache"),
    show_default=True,
    help="Where preprocessed slices are kept.",
)


@click.group()
def main() -> None:
    """Train the networks that the node reads with."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


@main.command("cross-validate")
@_data
@_cache
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the run."
)
@click.option("--epochs", type=click.IntRange(1), default=TrainingConfig.epochs, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=TrainingConfig.steps_per_epoch, show_default=True)
@click.option("--pretraining-epochs", type=click.IntRange(1), default=TrainingConfig.pretraining_epochs)
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True)
@click.option(
    "--begin",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Go on from the networks of this finished run of the same split.",
)
@click.option("--fold", "only", type=click.IntRange(0), multiple=True, help="Only these folds, from 0.")
@click.option(
    "--phantoms", type=click.IntRange(0), default=150, show_default=True, help="0: real slices only."
)
@click.option("--limit", type=click.IntRange(4), help="Only so many patients: a trial.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of torch.")
def cross_validate_(
    data: Path,
    cache: Path,
    out: Path,
    epochs: int,
    steps: int,
    pretraining_epochs: int,
    folds: int,
    begin: Path | None,
    only: tuple[int, ...],
    phantoms: int,
    limit: int | None,
    threads: int | None,
) -> None:
    """Train one network per fold of patients; goes on where an interrupted run stopped."""
    if threads:
        torch.set_num_threads(threads)
    config = replace(
        TrainingConfig(), epochs=epochs, steps_per_epoch=steps, pretraining_epochs=pretraining_epochs
    )
    slices = load_ct_ich(data, cache, config.preprocess, limit)
    synthetic = _phantoms(cache, config, phantoms)
    if any(fold >= folds for fold in only):
        raise click.BadParameter(f"folds are numbered 0 to {folds - 1}", param_hint="--fold")
    if cross_validate(slices, out, config, folds=folds, only=only, phantoms=synthetic, begin=begin):
        click.echo(f"Out-of-fold predictions are in {out / 'oof.npz'}; `python -m training release` goes on.")
    else:
        click.echo("These folds are done; others are not yet.")


@main.command("pretrain")
@_cache
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the run."
)
@click.option("--steps", type=click.IntRange(1), default=TrainingConfig.steps_per_epoch, show_default=True)
@click.option("--pretraining-epochs", type=click.IntRange(1), default=TrainingConfig.pretraining_epochs)
@click.option("--phantoms", type=click.IntRange(3), default=150, show_default=True)
def pretrain(cache: Path, out: Path, steps: int, pretraining_epochs: int, phantoms: int) -> None:
    """Train on phantoms alone; ``cross-validate`` with the same folder begins with the result."""
    config = replace(TrainingConfig(), steps_per_epoch=steps, pretraining_epochs=pretraining_epochs)
    synthetic = load_phantoms(cache, config.preprocess, phantoms)
    out.mkdir(parents=True, exist_ok=True)
    pretrained(out, config, synthetic)


@main.command("release")
@click.option(
    "--run",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of a finished cross-validation.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the bundle."
)
@click.option("--version", required=True, help="Version of the bundle.")
@click.option("--phantoms", type=click.IntRange(0), default=150, show_default=True)
@click.option(
    "--remark", "remarks", multiple=True, help="A sentence for the card: what else was tried and seen."
)
def release_(run: Path, out: Path, version: str, phantoms: int, remarks: tuple[str, ...]) -> None:
    """Evaluate a cross-validation and write its networks, as one ensemble, into a bundle."""
    with np.load(run / "oof.npz", allow_pickle=False) as arrays:
        predictions = OutOfFold(
            logit=arrays["logit"], label=arrays["label"], scan=arrays["scan"], fold_of=arrays["fold_of"]
        )
    members = [load_file(file) for file in sorted(run.glob("fold*.safetensors"))]
    metrics = release(
        out, members, predictions, run / "run.json", version=version, phantoms=phantoms, remarks=remarks
    )
    click.echo(json.dumps(metrics, indent=2))


@main.command("first-weights")
@_data
@_cache
@click.option("--system", type=click.Choice(sorted(RECIPES)), required=True, help="Which system.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the bundle."
)
@click.option("--steps", type=click.IntRange(10), help="Instead of the recipe's.")
@click.option("--phantoms", type=click.IntRange(3), default=45, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of torch.")
def first_weights(
    data: Path, cache: Path, system: str, out: Path, steps: int | None, phantoms: int, threads: int | None
) -> None:
    """Train a small network of one system for minutes, to see what it shows; no model to read with."""
    if threads:
        torch.set_num_threads(threads)
    recipe = RECIPES[system]
    recipe = replace(recipe, steps=steps or recipe.steps)
    click.echo(json.dumps(make(recipe, data, cache, out, phantoms=phantoms), indent=2))


def _phantoms(cache: Path, config: TrainingConfig, count: int) -> SliceSet | None:
    return load_phantoms(cache, config.preprocess, count) if count else None


if __name__ == "__main__":
    main(prog_name="python -m training")
