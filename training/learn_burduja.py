"""How system D learns, in three stages: the CNN on slices, the selection on its features, the LSTM on scans."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ich_node.model.burduja import Burduja, network_input
from ich_node.model.efficientnet_lite import EfficientNetLite0, load_imagenet
from ich_node.model.feature_selection import fit_selection
from training.augment import AugmentConfig, augment, centre_crop
from training.batches import Batch, Rows, in_turn
from training.cuts import Cuts
from training.engine import WEIGHTS_FILE, device_of, fit, save_weights
from training.learner import Learner, StageLearner, weighted_log_loss
from training.recipe import Recipe
from training.whole_file import written_whole

CNN_FOLDER, SEQUENCE_FOLDER = "cnn", "sequence"
TAUGHT_FILE = "taught.json"
"""Beside a CNN's weights: what it was taught, so that no other run takes it for its own."""
_CNN_PARTS = ("preprocessing", "augment", "mix", "schedule", "start")
_CHUNK = 16
_MOST_FITTED = 30_000
"""Slices that the selection is fitted on, as in the paper."""


class ScanBatch(NamedTuple):
    """Scans of one step, described by the CNN."""

    features: torch.Tensor
    """(slices, features)."""
    cnn_logits: torch.Tensor
    """(slices, classes)."""
    labels: torch.Tensor
    """(slices, classes) float32: 1, 0 or -1 for not known."""
    lengths: tuple[int, ...]
    """Slices of each scan."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the CNN says of the slices that may be seen: once as they are, then with random changes."""

    features: torch.Tensor
    """(passes, slices, features)."""
    logits: torch.Tensor
    """(passes, slices, classes)."""
    rows: Rows
    """(slices,) of the cuts, those of one scan together."""


class BurdujaLearner(Learner):
    """Three stages, the first and the last of which `training.engine.fit` runs."""

    network: Burduja

    def train(
        self, cuts: Cuts, trained: npt.NDArray[np.bool_], out: Path, *, seed: int, **engine: Any
    ) -> nn.Module:
        """Train all stages that are not done, each in its own folder.

        Raises
        ------
        FileNotFoundError
            The run whose CNN this one takes over has none for this fold yet.
        ValueError
            That CNN was taught something else, or there are fewer slices than features to select.
        """
        self.renew(seed)
        weights, network = out / WEIGHTS_FILE, self.network
        if weights.is_file():
            network.load_state_dict(load_file(weights))
            return network.eval()
        folder = (self.base or out) / CNN_FOLDER
        self._train_cnn(cuts, trained, folder, seed, engine)
        if network.config.sequence:
            self._train_sequence(cuts, trained, folder, out, seed, engine)
        out.mkdir(parents=True, exist_ok=True)
        save_weights(network, weights)
        return network.eval()

    def _train_cnn(
        self,
        cuts: Cuts,
        trained: npt.NDArray[np.bool_],
        folder: Path,
        seed: int,
        engine: Mapping[str, Any],
    ) -> None:
        taught = _taught(self.recipe, cuts, trained, seed)
        file = folder / TAUGHT_FILE
        if self.base is not None and not (folder / WEIGHTS_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} has no {WEIGHTS_FILE}: train the recipe {self.recipe.base!r} there first"
            )
        if self.base is None and not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(taught, indent=1) + "\n", encoding="utf-8")
        elif json.loads(file.read_text(encoding="utf-8")) != taught:
            raise ValueError(f"{folder} holds a CNN of other scans, another seed or another recipe")
        fit(_Cnn(self.recipe, self.network), cuts, trained, folder, seed=seed, **engine)

    def _train_sequence(
        self,
        cuts: Cuts,
        trained: npt.NDArray[np.bool_],
        folder: Path,
        out: Path,
        seed: int,
        engine: Mapping[str, Any],
    ) -> None:
        network, config = self.network, self.network.config
        told = self._described(cuts, trained, folder, seed, device_of(engine.get("accelerator", "auto")))
        last_layer = network.cnn.classifier.weight.detach().numpy()
        plain = told.features[0]
        some = in_turn(len(plain), 0, min(len(plain), _MOST_FITTED), seed)
        fitted = fit_selection(config.selection, config.selected, plain[some].numpy(), last_layer)
        network.selection.load_state_dict(fitted)
        stage = _Sequence(self.recipe, network, told)
        fit(stage, cuts, trained, out / SEQUENCE_FOLDER, seed=seed, **engine)
        # averaged weights are rounded, and so would be the whole numbers that say which features are kept
        network.selection.load_state_dict(fitted)

    def _described(
        self, cuts: Cuts, trained: npt.NDArray[np.bool_], folder: Path, seed: int, device: torch.device
    ) -> Described:
        """What the CNN says, kept beside it for all runs that take it over."""
        rows = np.flatnonzero(trained[cuts.scan])
        passes = self.recipe.sequence.augmented_passes + 1
        file = folder / f"features-{passes}.safetensors"
        if not file.is_file():
            save = _describe(self.network, self.recipe, cuts, rows, passes, seed, device)
            with written_whole(file) as temporary:
                save_file(save, temporary)
        return Described(**load_file(file), rows=rows)


@torch.no_grad()
def _describe(
    network: Burduja, recipe: Recipe, cuts: Cuts, rows: Rows, passes: int, seed: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """(passes, slices, features) and (passes, slices, classes)."""
    network.eval().to(device)
    half = torch.float16 if recipe.schedule.precision == "16-mixed" else torch.bfloat16
    features, logits = [], []
    for number in range(passes):
        for first in range(0, len(rows), _CHUNK):
            rng = np.random.default_rng([seed, number, first])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            change = recipe.augment if number else None
            hu = _slices(cuts, rows[first : first + _CHUNK], recipe.preprocessing.size, change, generator)
            x = network_input(hu.to(device), recipe.preprocessing)
            with torch.autocast(device.type, half, enabled=recipe.schedule.precision != "32-true"):
                told = network.describe(x.contiguous(memory_format=torch.channels_last))
            features.append(told[0].float().cpu())
            logits.append(told[1].float().cpu())
    network.cpu()
    return {
        "features": torch.cat(features).view(passes, len(rows), -1),
        "logits": torch.cat(logits).view(passes, len(rows), -1),
    }


def _slices(
    cuts: Cuts, rows: Rows, size: int, change: AugmentConfig | None, generator: torch.Generator
) -> torch.Tensor:
    """(slices, size, size) HU, as they are or changed at random."""
    hu = torch.from_numpy(cuts.read(rows)[0]).float()[:, 0]
    if change is None:
        return centre_crop(hu, size)
    return augment(hu, hu.new_zeros(len(hu), 1, *hu.shape[1:]), size, change, generator)[0]


def _taught(recipe: Recipe, cuts: Cuts, trained: npt.NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """What decides a CNN's weights."""
    whole = recipe.as_dict()
    said = {
        "backbone": recipe.network.backbone,
        "seed": seed,
        "scans": sorted(
            f"{s.source}/{s.scan_id}" for s, seen in zip(cuts.scans, trained, strict=True) if seen
        ),
        # its name stands for the preprocessing and the teacher
        "cuts": cuts.files[0].parent.name,
        **{part: whole[part] for part in _CNN_PARTS},
    }
    said_as_read: dict[str, Any] = json.loads(json.dumps(said))
    return said_as_read


class _Cnn(StageLearner):
    """The first stage: the CNN on single slices."""

    def __init__(self, recipe: Recipe, whole: Burduja) -> None:
        self.recipe, self.whole = recipe, whole
        self.network = whole.cnn

    def begin(self) -> None:
        """Start from ImageNet where the recipe says so."""
        if self.recipe.start != "imagenet":
            return
        if not isinstance(self.whole.cnn, EfficientNetLite0):
            backbone = self.whole.config.backbone
            raise ValueError(f"recipe {self.recipe.name}: no package has ImageNet weights for {backbone}")
        load_imagenet(self.whole.cnn)

    def losses(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Weighted log loss of the slices."""
        x = network_input(batch.hu[:, 0], self.recipe.preprocessing)
        _, logits = self.whole.describe(x.contiguous(memory_format=torch.channels_last))
        return {"slices": weighted_log_loss(logits, batch.labels)}


class _Sequence(StageLearner):
    """The last stage: the LSTM on whole scans, as the CNN describes them."""

    def __init__(self, recipe: Recipe, whole: Burduja, told: Described) -> None:
        self.whole, self.told = whole, told
        stage = recipe.sequence
        schedule = replace(
            recipe.schedule, epochs=stage.epochs, learning_rate=stage.learning_rate, milestones=()
        )
        self.recipe = replace(recipe, schedule=schedule)
        parts = {"selection": whole.selection, "lstm": whole.lstm, "last": whole.last}
        self.network = nn.ModuleDict(parts)

    def batches(self, cuts: Cuts, trained: npt.NDArray[np.bool_], seed: int) -> torch.utils.data.Dataset[Any]:
        """Scans, all in turn."""
        return _Scans(cuts, self.told, self.recipe, seed)

    def losses(self, batch: ScanBatch) -> Mapping[str, torch.Tensor]:
        """Weighted log loss of the slices, each among the others of its scan."""
        parts = (torch.split(t, list(batch.lengths)) for t in (batch.features, batch.cnn_logits))
        logits = torch.cat([self.whole.read(*scan) for scan in zip(*parts, strict=True)])
        return {"slices": weighted_log_loss(logits, batch.labels)}


class _Scans(torch.utils.data.Dataset[ScanBatch]):
    """Step number to whole scans."""

    def __init__(self, cuts: Cuts, told: Described, recipe: Recipe, seed: int) -> None:
        self.told, self.seed, self.count = told, seed, recipe.sequence.scans_per_step
        self.labels = torch.from_numpy(cuts.labels[told.rows].astype(np.float32))
        scan = cuts.scan[told.rows]
        self.rows = [torch.from_numpy(np.flatnonzero(scan == one)) for one in np.unique(scan)]
        self.steps = recipe.schedule.epochs * math.ceil(len(self.rows) / self.count)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> ScanBatch:
        rng = np.random.default_rng([self.seed, step])
        turn = in_turn(len(self.rows), step * self.count, self.count, self.seed)
        drawn = [(int(rng.integers(len(self.told.features))), self.rows[i]) for i in turn]
        return ScanBatch(
            torch.cat([self.told.features[number, rows] for number, rows in drawn]),
            torch.cat([self.told.logits[number, rows] for number, rows in drawn]),
            torch.cat([self.labels[rows] for _, rows in drawn]),
            tuple(len(rows) for _, rows in drawn),
        )


LEARNER = BurdujaLearner
