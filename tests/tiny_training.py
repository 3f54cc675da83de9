"""Tiny recipes on small phantoms: seconds of training, by the code that trains for hours.

Run as a script it trains one of them, so that a test can kill it: ``python -m tests.tiny_training NAME CACHE OUT``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from scipy.stats import rankdata

from training.cuts import Cuts, load_cuts
from training.draft_bundle import write_bundle
from training.engine import WEIGHTS_FILE
from training.readers.faults import ReadOptions
from training.readers.phantom import read_phantom
from training.reading import read_scans
from training.recipe import Recipe, recipe_of
from training.run import learner_of
from training.scan import Scan

SEEN, UNSEEN = 8, 4
PHANTOMS = {"positives": 0, "negatives": 0, "transplants": 0, "phantoms": 16}
STILL = {"rotation_deg": 5, "scale": 0.03, "shift_pixels": 2, "brightness_hu": 2, "noise_hu": 2, "sharpen": 0}
SCHEDULE = {
    "epochs": 4,
    "steps_per_epoch": 6,
    "learning_rate": 4e-3,
    "course": "constant",
    "average_decay": 0.6,
}
_OWN: dict[str, dict[str, Any]] = {
    "vicar-mil": {
        "network": {"widths": [8, 8, 16], "attention_width": 8},
        "preprocessing": {"size": 64, "pitch_mm": 3.0},
        "loss": {"tiles": 0.5},
    },
    "he-fusion": {
        "network": {"width": 0.125, "batch_norm": True, "reduction": 2},
        "preprocessing": {"size": 64, "pitch_mm": 3.0},
    },
    "radnet": {
        "network": {"layers_per_block": 3, "stem_stride": 2, "lstm_width": 16},
        "preprocessing": {"size": 64, "pitch_mm": 3.0},
        "loss": {"auxiliary": 1.0, "positive_position": 10.0},
        "sequence": {"window": 4},
    },
    "burduja": {
        "start": "imagenet",
        "schedule": {**SCHEDULE, "learning_rate": 2e-3, "steps_per_epoch": 8},
        "network": {"backbone": "efficientnet_lite0", "selected": 12, "hidden": 16, "layers": 1},
        "preprocessing": {"size": 64, "pitch_mm": 3.0},
        "sequence": {"epochs": 4, "learning_rate": 5e-3, "augmented_passes": 1},
    },
}


def tiny(architecture: str, changes: Mapping[str, Mapping[str, Any]] | None = None, **values: Any) -> Recipe:
    """A recipe of an architecture; ``changes`` by section go before its own."""
    own = {"mix": PHANTOMS, "augment": STILL, "schedule": SCHEDULE, **_OWN[architecture]}
    for name, section in (changes or {}).items():
        own[name] = {**own.get(name, {}), **section}
    return recipe_of({"architecture": architecture, **own, **values}, Path("tiny.toml"), "tiny")


@cache
def phantoms(folder: Path | None = None) -> list[Scan]:
    """Small heads; the first `SEEN` are trained on. A folder keeps their labels for other processes."""
    options = ReadOptions(cache=folder)
    return read_phantom(None, options, count=SEEN + UNSEEN, first_seed=4000, pixels=112, slices=12)


def short(architecture: str) -> Recipe:
    """A recipe that learns little, in many epochs."""
    changes = {"mix": {"phantoms": 8}, "schedule": {"epochs": 4, "steps_per_epoch": 2}}
    return tiny(
        architecture, changes | {"sequence": {"epochs": 15}} if architecture == "burduja" else changes
    )


def trained_ones(scans: list[Scan]) -> npt.NDArray[np.bool_]:
    """(scans,) bool."""
    return np.arange(len(scans)) < SEEN


def train(recipe: Recipe, scans: list[Scan], folder: Path, out: Path, base: Path | None = None) -> Any:
    """Train it on one thread, in the way of `training.run.train_folds`."""
    torch.set_num_threads(1)
    learner = learner_of(recipe)
    learner.base = base
    cuts = cuts_of(recipe, scans, folder)
    return learner.train(cuts, trained_ones(scans), out, seed=3, accelerator="cpu", tensorboard=False)


def cuts_of(recipe: Recipe, scans: list[Scan], folder: Path) -> Cuts:
    """Slices of small heads on the recipe's grid."""
    return load_cuts(scans, recipe.preprocessing, folder)


def unseen_auc(recipe: Recipe, out: Path, scans: list[Scan]) -> float:
    """Slice AUC on the heads not trained on, read with a bundle as the node reads."""
    bundle = out / "bundle"
    write_bundle(bundle, recipe, [load_file(out / WEIGHTS_FILE)], {}, "# tiny\n")
    read = read_scans(bundle, scans[SEEN:], system="tiny", split="none", places=False)
    known = (read.labels[:, 0] >= 0) & np.isfinite(read.logits[:, 0])
    truth, ranks = read.labels[known, 0] == 1, rankdata(read.logits[known, 0])
    positive, negative = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


if __name__ == "__main__":
    train(short(sys.argv[1]), phantoms(Path(sys.argv[2])), Path(sys.argv[2]), Path(sys.argv[3]))
