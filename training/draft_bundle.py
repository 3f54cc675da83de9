"""A trained network as a bundle that the node loads: calibration and operating points come later, by ``release``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save

from ich_node.model.bundle import CARD_FILE, DESCRIPTION_FILE, FORMAT, WEIGHTS_FILE
from ich_node.model.decision import DecisionConfig

INTENDED_USE = (
    "Research and demonstration: ordering a radiologist's reading list of non-contrast axial head CT. Not a "
    "medical device, not for clinical use, never a replacement of the reading."
)
NOT_CHOSEN = {"high_confidence": 0.8, "sensitive": 0.5}


class Sections(Protocol):
    """What a bundle's description is made of: a recipe, or what was put together from several."""

    @property
    def architecture(self) -> str: ...  # noqa: D102
    @property
    def network(self) -> Any: ...  # noqa: D102
    @property
    def preprocessing(self) -> Any: ...  # noqa: D102
    @property
    def decision(self) -> DecisionConfig: ...  # noqa: D102
    @property
    def localization(self) -> Any: ...  # noqa: D102
    def as_dict(self) -> dict[str, Any]:
        """How it was trained."""
        ...


def write_bundle(
    folder: Path,
    recipe: Sections,
    members: Sequence[Mapping[str, torch.Tensor]],
    about: Mapping[str, Any],
    card: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write ``model.safetensors``, ``bundle.json`` and the card.

    Parameters
    ----------
    members
        State dicts of the ensemble's networks.
    about
        Keys of ``bundle.json`` beyond those that recipe and weights give; they take precedence.
    dtype
        Of the stored weights. Half precision halves the file; the networks run in full. A tensor that it cannot
        hold stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoded = save(
        {
            f"{number}.{key}": _stored(value, dtype).contiguous()
            for number, member in enumerate(members)
            for key, value in member.items()
        }
    )
    description = {
        "format": FORMAT,
        "name": folder.name,
        "version": "0.1.0",
        "architecture": recipe.architecture,
        "members": len(members),
        "config": asdict(recipe.network),
        "preprocessing": asdict(recipe.preprocessing),
        "decision": asdict(recipe.decision),
        "localization": asdict(recipe.localization),
        "operating_points": NOT_CHOSEN,
        "training_data": [],
        "training_recipe": recipe.as_dict(),
        "metrics": {},
        "intended_use": INTENDED_USE,
        **about,
        "weights_sha256": hashlib.sha256(encoded).hexdigest(),
    }
    # weights first: a description never names weights that are not there
    (folder / WEIGHTS_FILE).write_bytes(encoded)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    stored = value.to(dtype)
    # 16 bits end at 65504, which a variance may exceed
    return value if stored.isinf().any() else stored
