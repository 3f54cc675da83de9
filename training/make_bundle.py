"""Writes a bundle: weights, what is said of them, and the card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ich_node.model.bundle import DESCRIPTION_FILE, FORMAT, WEIGHTS_FILE
from ich_node.model.decision import DecisionConfig
from ich_node.model.localization import DetectorConfig
from ich_node.model.vicar_mil import ARCHITECTURE
from training.card import model_card
from training.ct_ich import CITATION, LICENCE
from training.evaluate import Points
from training.train_vicar import TrainingConfig

CARD_FILE = "MODEL_CARD.md"
INTENDED_USE = (
    "Research and demonstration: ordering a radiologist's reading list of non-contrast axial head CT. Not a "
    "medical device, not for clinical use, never a replacement of the reading."
)


def write_bundle(
    folder: Path,
    members: Sequence[Mapping[str, torch.Tensor]],
    config: TrainingConfig,
    decision: DecisionConfig,
    points: Points,
    *,
    version: str,
    metrics: Mapping[str, Any],
    phantoms: int,
    detector: DetectorConfig | None = None,
) -> None:
    """Write ``model.safetensors`` and ``bundle.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i}.{k}": v.contiguous() for i, m in enumerate(members) for k, v in m.items()}
    encoded = save(tensors)
    data = [
        {"name": "CT-ICH v1.0.0", "citation": CITATION, "licence": LICENCE, "patients": 60, "slices": 1808}
    ]
    if phantoms:
        data.append(
            {
                "name": "ich_node.testing.head_phantom",
                "citation": "this package",
                "licence": "Apache-2.0",
                "phantoms": phantoms,
            }
        )
    description = {
        "format": FORMAT,
        "name": folder.name,
        "version": version,
        "architecture": ARCHITECTURE,
        "config": {**asdict(config.network), "members": len(members)},
        "preprocessing": asdict(config.preprocess),
        "decision": asdict(decision),
        "detector": asdict(detector or DetectorConfig()),
        "operating_points": asdict(points),
        "training_data": data,
        "training_recipe": asdict(config),
        "metrics": dict(metrics),
        "intended_use": INTENDED_USE,
        "weights_sha256": hashlib.sha256(encoded).hexdigest(),
    }
    # weights first: a description never names weights that are not there
    (folder / WEIGHTS_FILE).write_bytes(encoded)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if "cross_validation" in metrics:
        (folder / CARD_FILE).write_text(model_card(description), encoding="utf-8")
