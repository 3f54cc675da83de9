"""First weights for He's, RADnet's and Burduja's systems: minutes on a CPU, to see that they learn and what they show.

Not the papers' recipes and no models to read with: small networks, few steps, 48 patients and phantoms. The
bundles that come out say so.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional

from ich_node.model import burduja, he_fusion, radnet
from ich_node.model.bundle import CARD_FILE, DESCRIPTION_FILE, FORMAT, WEIGHTS_FILE
from ich_node.model.decision import DecisionConfig
from ich_node.model.efficientnet_lite import load_imagenet
from ich_node.model.feature_selection import fit_selection
from training.augment import centre_crop
from training.ct_ich import CITATION, LICENCE
from training.evaluate import auc
from training.first_cuts import CLASSES, Array, Batches, Cuts, load_cuts
from training.make_bundle import INTENDED_USE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one system is trained here."""

    architecture: str
    config: Any
    preprocessing: Any
    localization: Any
    decision: DecisionConfig
    learning_rate: float
    steps: int
    batch: int = 16


RECIPES = {
    "he-fusion": Recipe(
        architecture="he-fusion",
        config=he_fusion.HeFusionConfig(width=0.25, batch_norm=True, reduction=4, dropout=0.2),
        preprocessing=he_fusion.HeFusionPreprocessing(size=192, pitch_mm=1.2),
        localization=he_fusion.HeFusionLocalization(),
        decision=DecisionConfig(rule="max"),
        learning_rate=1e-3,
        steps=260,
    ),
    "radnet": Recipe(
        architecture="radnet",
        config=radnet.RadNetConfig(stem_stride=4),
        preprocessing=radnet.RadNetPreprocessing(size=192, pitch_mm=1.25),
        localization=radnet.RadNet.localization_type(),
        decision=DecisionConfig(rule="consecutive3"),
        learning_rate=2e-3,
        steps=260,
    ),
    "burduja": Recipe(
        architecture="burduja",
        config=burduja.BurdujaConfig(backbone="efficientnet_lite0"),
        preprocessing=burduja.BurdujaPreprocessing(size=192, pitch_mm=1.2),
        localization=burduja.BurdujaSystem.localization_type(),
        decision=DecisionConfig(rule="max"),
        learning_rate=5e-4,
        steps=260,
    ),
}


def make(recipe: Recipe, data: Path, cache: Path, out: Path, *, phantoms: int = 45) -> dict[str, float]:
    """Train one system on CT-ICH and phantoms, write its bundle, and say how it does on patients held out.

    Parameters
    ----------
    data
        Folder of CT-ICH v1.0.0.
    cache
        Where slices on the system's grid are kept.
    out
        Folder of the bundle.
    phantoms
        How many are trained on beside the patients.
    """
    torch.manual_seed(0)
    cuts = load_cuts(recipe.preprocessing, data, cache, phantoms)
    network = _TRAINERS[recipe.architecture](recipe, cuts)
    network.eval()
    with torch.no_grad():
        scores = _SCORERS[recipe.architecture](network, recipe, cuts)
    held = cuts.held_out & ~cuts.is_phantom
    metrics = {"slice_auc": auc(cuts.labels[held, 0], scores[held, 0].astype(np.float64))}
    _write(out, network, recipe, cuts, metrics)
    return metrics


def _batches(recipe: Recipe, cuts: Cuts) -> Batches:
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    return Batches(cuts, recipe.preprocessing, recipe.batch, rng, generator)


def _fit(
    network: torch.nn.Module, recipe: Recipe, loss_of: Callable[[], torch.Tensor], steps: int, rate: float
) -> None:
    network.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    recent: list[float] = []
    for step in range(steps):
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 2.0)
        optimizer.step()
        schedule.step()
        recent.append(float(loss.detach()))
        if step % 20 == 19:
            logger.info(
                "%s step %d/%d loss %.4f", recipe.architecture, step + 1, steps, np.mean(recent[-20:])
            )


def weighted_log_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Weighted multi-label log loss of the RSNA challenge: ``any`` counts twice. (n, 6) logits and labels."""
    weights = logits.new_tensor([2.0, *[1.0] * (len(CLASSES) - 1)]) / (len(CLASSES) + 1)
    each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (each * weights).sum(1).mean()


def _train_he(recipe: Recipe, cuts: Cuts) -> torch.nn.Module:
    network = he_fusion.FusionNetwork(recipe.config)
    batches = _batches(recipe, cuts)

    def loss() -> torch.Tensor:
        hu, _, labels = batches.changed(batches.slices())
        return weighted_log_loss(network(hu[:, None]).logits, labels)

    _fit(network, recipe, loss, recipe.steps, recipe.learning_rate)
    return network


def _train_radnet(recipe: Recipe, cuts: Cuts) -> torch.nn.Module:
    """Both windows of a batch go through the CNN together, each through the LSTM by itself.

    The auxiliary heads learn from phantoms alone, whose bleeds are known.
    """
    network = radnet.RecurrentAttentionDenseNet(recipe.config)
    batches = _batches(recipe, cuts)
    weights = radnet.LossWeights(positive_pixel=10.0)

    def loss() -> torch.Tensor:
        windows = [batches.window(is_phantom=False), batches.window(is_phantom=True)]
        hu, lesion, labels = batches.changed(np.concatenate(windows))
        features, auxiliary = network.features(radnet.windowed(hu, recipe.preprocessing))
        split = len(windows[0])
        logits = torch.cat([network.sequence(features[:split]), network.sequence(features[split:])])
        contoured = torch.from_numpy(cuts.is_phantom[np.concatenate(windows)].astype(np.float32))
        return radnet.radnet_loss(
            radnet.RadNetOutput(logits, auxiliary),
            labels[:, 0],
            lesion,
            weights,
            pixel_weights=contoured[:, None, None],
        )

    _fit(network, recipe, loss, recipe.steps, recipe.learning_rate)
    return network


def _train_burduja(recipe: Recipe, cuts: Cuts) -> torch.nn.Module:
    """The paper's three stages: the CNN on slices, PCA of its features, the LSTM on scans."""
    network = burduja.Burduja(recipe.config)
    load_imagenet(network.cnn)  # type: ignore[arg-type]
    batches = _batches(recipe, cuts)

    def cnn_loss() -> torch.Tensor:
        hu, _, labels = batches.changed(batches.slices())
        return weighted_log_loss(network.describe(burduja.network_input(hu, recipe.preprocessing))[1], labels)

    _fit(network.cnn, recipe, cnn_loss, recipe.steps, recipe.learning_rate)
    network.eval()
    with torch.no_grad():
        features, logits = _described(network, recipe, cuts)
    trained = ~cuts.held_out
    weights = network.cnn.classifier.weight.detach().numpy()
    network.selection.load_state_dict(
        fit_selection(
            recipe.config.selection,
            recipe.config.selected,
            features[torch.from_numpy(trained)].numpy(),
            weights,
        )
    )
    scans = np.unique(cuts.scan[trained])
    labels = torch.from_numpy(cuts.labels.astype(np.float32))

    def scan_loss() -> torch.Tensor:
        rows = torch.from_numpy(np.flatnonzero(cuts.scan == batches.rng.choice(scans)))
        return weighted_log_loss(network.read(features[rows], logits[rows]), labels[rows])

    network.requires_grad_(False)
    for part in (network.lstm, network.last):
        part.requires_grad_(True)
    _fit(network, recipe, scan_loss, 4 * len(scans), 1e-3)
    return network


def _described(network: burduja.Burduja, recipe: Recipe, cuts: Cuts) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and CNN logits of every slice."""
    parts = [network.describe(burduja.network_input(hu, recipe.preprocessing)) for hu in _plain(recipe, cuts)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _plain(recipe: Recipe, cuts: Cuts) -> list[torch.Tensor]:
    """Slices without changes, (n, size, size) HU each."""
    return [
        centre_crop(
            torch.from_numpy(cuts.hu[start : start + 32].astype(np.float32)), recipe.preprocessing.size
        )
        for start in range(0, len(cuts.hu), 32)
    ]


def _score_he(network: Any, recipe: Recipe, cuts: Cuts) -> Array:
    return np.asarray(torch.cat([network(hu[:, None]).logits for hu in _plain(recipe, cuts)]).numpy())


def _score_radnet(network: Any, recipe: Recipe, cuts: Cuts) -> Array:
    features = torch.cat(
        [
            network.features(radnet.windowed(hu, recipe.preprocessing), auxiliary=False)[0]
            for hu in _plain(recipe, cuts)
        ]
    )
    return _by_scan(cuts, lambda rows: network.sequence(features[rows])[:, None])


def _score_burduja(network: Any, recipe: Recipe, cuts: Cuts) -> Array:
    features, logits = _described(network, recipe, cuts)
    return _by_scan(cuts, lambda rows: network.read(features[rows], logits[rows]))


def _by_scan(cuts: Cuts, read: Callable[[torch.Tensor], torch.Tensor]) -> Array:
    parts = [read(torch.from_numpy(np.flatnonzero(cuts.scan == scan))) for scan in np.unique(cuts.scan)]
    return np.asarray(torch.cat(parts).numpy())


_TRAINERS: Mapping[str, Callable[[Recipe, Cuts], torch.nn.Module]] = {
    "he-fusion": _train_he,
    "radnet": _train_radnet,
    "burduja": _train_burduja,
}
_SCORERS: Mapping[str, Callable[[Any, Recipe, Cuts], Array]] = {
    "he-fusion": _score_he,
    "radnet": _score_radnet,
    "burduja": _score_burduja,
}


def _write(
    out: Path, network: torch.nn.Module, recipe: Recipe, cuts: Cuts, metrics: Mapping[str, float]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    encoded = save({f"0.{key}": value.contiguous() for key, value in network.state_dict().items()})
    real, held = ~cuts.is_phantom, cuts.held_out
    trained = len(np.unique(cuts.scan[real & ~held]))
    remark = (
        f"First weights: {recipe.steps} steps on {trained} patients and phantoms, to see what the system shows. "
        "Operating points were not chosen on data."
    )
    description = {
        "format": FORMAT,
        "name": out.name,
        "version": "0.1.0",
        "architecture": recipe.architecture,
        "config": asdict(recipe.config),
        "preprocessing": asdict(recipe.preprocessing),
        "decision": asdict(recipe.decision),
        "localization": asdict(recipe.localization),
        "operating_points": {"high_confidence": 0.8, "sensitive": 0.5},
        "training_data": [
            {"name": "CT-ICH v1.0.0", "citation": CITATION, "licence": LICENCE, "patients": trained},
            {"name": "ich_node.testing.head_phantom", "citation": "this package", "licence": "Apache-2.0"},
        ],
        "metrics": {
            "held_out": {
                "data": "CT-ICH v1.0.0",
                "patients": len(np.unique(cuts.scan[real & held])),
                "slices": int((real & held).sum()),
                **metrics,
                "interval": "none: one split of few patients",
            },
            "remarks": [remark],
        },
        "intended_use": INTENDED_USE,
        "weights_sha256": hashlib.sha256(encoded).hexdigest(),
    }
    (out / WEIGHTS_FILE).write_bytes(encoded)
    (out / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (out / CARD_FILE).write_text(f"# {out.name}\n\n{remark}\n\n{INTENDED_USE}\n", encoding="utf-8")
