"""A run: one recipe on one split of labelled scans, a network and its predictions per fold, in one folder."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from training.cuts import Teacher, load_cuts
from training.draft_bundle import INTENDED_USE, write_bundle
from training.engine import WEIGHTS_FILE
from training.learner import Learner
from training.predictions import Predictions
from training.reading import joined, read_scans
from training.recipe import Recipe
from training.scan import Scan
from training.split import Split
from training.whole_file import written_whole

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
SPLIT_FILE = "split.json"
PREDICTIONS_FILE = "predictions.npz"
_RECORDED = ("torch", "lightning", "numpy", "scipy", "ich-node")


def learner_type(recipe: Recipe) -> type[Learner]:
    """The kind of learner of a recipe's system.

    Raises
    ------
    LookupError
        There is none: the architecture can be read with, but not trained here.
    """
    name = f"training.learn_{recipe.architecture.replace('-', '_')}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise LookupError(f"architecture {recipe.architecture!r} cannot be trained here") from None
    kind: type[Learner] = module.LEARNER
    return kind


def learner_of(recipe: Recipe) -> Learner:
    """The learner of a recipe's system.

    Raises
    ------
    LookupError
        As `learner_type`.
    """
    return learner_type(recipe)(recipe)


def train_folds(
    recipe: Recipe,
    scans: Sequence[Scan],
    split: Split,
    cache: Path,
    out: Path,
    *,
    only: Sequence[int] = (),
    teacher: Teacher | None = None,
    engine: Mapping[str, Any] | None = None,
) -> Predictions | None:
    """Train one network per fold and score the patients it was not shown.

    Everything is written under ``out`` as it comes; the same call after an interruption goes on where it stopped.

    Parameters
    ----------
    scans
        All of them; synthetic ones are trained on in every fold and never scored.
    only
        Folds to train here, so that several processes can share a run; all of them when empty.
    engine
        Further arguments of `training.engine.fit`: devices, progress.

    Returns
    -------
    Predictions
        Of all folds; None where some are not done yet.

    Raises
    ------
    LookupError
        The recipe's system cannot be trained here.
    ValueError
        ``out`` holds a run of another recipe, split or data; or nobody of a fold is among the scans.
    """
    kind = learner_type(recipe)
    for fold in only or range(split.count):
        if not split.measuring(scans, fold):
            raise ValueError(
                f"split {split.name}: fold {fold} has no patient here: take fewer folds or more patients"
            )
    out.mkdir(parents=True, exist_ok=True)
    _claim(out / RUN_FILE, _description(recipe, scans, split, teacher))
    split.save(out / SPLIT_FILE)
    for fold in only or range(split.count):
        file = out / f"fold{fold}" / PREDICTIONS_FILE
        if file.is_file():
            continue
        cuts = load_cuts(scans, recipe.preprocessing, cache, teacher)
        logger.info("%s: fold %d of %d", recipe.name, fold, split.count)
        seen = {(scan.source, scan.scan_id) for scan in split.training(scans, fold)}
        trained = np.array([(scan.source, scan.scan_id) in seen for scan in scans])
        learner = kind(recipe)
        learner.base = out.parent / recipe.base / f"fold{fold}" if recipe.base else None
        seed = recipe.schedule.seed + fold
        network = learner.train(cuts, trained, out / f"fold{fold}", seed=seed, **(engine or {}))
        bundle = out / f"fold{fold}" / f"{recipe.name}-fold{fold}"
        card = f"# {bundle.name}\n\nOne fold of a cross-validation, not calibrated.\n\n{INTENDED_USE}\n"
        write_bundle(bundle, recipe, [network.state_dict()], {}, card)
        held = split.measuring(scans, fold)
        said = f"{split.count}-fold cross-validation by patient"
        read_scans(bundle, held, system=recipe.name, split=said, fold=fold).save(file)
    return predictions_of(out)


def predictions_of(out: Path) -> Predictions | None:
    """Predictions of a run for all patients, each by the network that never saw it; None while folds are missing."""
    split = Split.load(out / SPLIT_FILE)
    files = [out / f"fold{fold}" / PREDICTIONS_FILE for fold in range(split.count)]
    if not all(file.is_file() for file in files):
        return None
    return joined([Predictions.load(file) for file in files])


def members_of(out: Path) -> list[dict[str, Any]]:
    """Weights of a run's networks, one per fold."""
    split = Split.load(out / SPLIT_FILE)
    return [load_file(out / f"fold{fold}" / WEIGHTS_FILE) for fold in range(split.count)]


def _description(
    recipe: Recipe, scans: Sequence[Scan], split: Split, teacher: Teacher | None
) -> dict[str, Any]:
    return {
        "recipe": recipe.as_dict(),
        "folds": split.count,
        "split": dict(split.folds),
        "scans": counted_scans(scans),
        "teacher": getattr(teacher, "name", None),
        "versions": {name: version(name) for name in _RECORDED},
        "source": source_state(),
    }


def counted_scans(scans: Sequence[Scan]) -> dict[str, int]:
    """How many there are of each data set."""
    return dict(sorted(Counter(scan.source for scan in scans).items()))


def source_state() -> str:
    """Commit of the checkout that trains, with ``+`` where files differ from it; ``unknown`` outside of one."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _claim(file: Path, description: dict[str, Any]) -> None:
    """Write what the run is, or refuse where another run is; only the source may change under way, and is added."""
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        sources = before.pop("sources")
        source = description.pop("source")
        if json.loads(json.dumps(description)) != before:
            raise ValueError(f"{file} describes another run: give another folder or remove it")
        sources += [source] if source not in sources else []
    else:
        sources = [description.pop("source")]
    text = json.dumps({**description, "sources": sources}, indent=1, sort_keys=True)
    with written_whole(file) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
