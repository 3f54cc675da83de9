"""Bundles of every system: small networks with seeded weights, whose scores are neither all 0 nor all 1.

Nobody trained them. They show that a system keeps its contract, not that it finds anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from ich_node.findings import IchSubtype
from ich_node.model.bundle_section import typed_section
from ich_node.model.execution import Execution
from ich_node.model.system import Head, System, find_system
from ich_node.testing.phantom import HeadPhantom, head_phantom

Spoil = Callable[[dict[str, torch.Tensor]], None]
"""Changes the tensors of a bundle before they are written."""
POINTS: Mapping[str, float] = {"high_confidence": 0.8, "sensitive": 0.3}


@dataclass(frozen=True, kw_only=True)
class SmallSystem:
    """The sections of one small bundle."""

    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    localization: Mapping[str, Any] = field(default_factory=dict)
    rule: str = "pair"
    members: int = 1


_POINTS_OF_MAPS = {"threshold": 0.05, "height": 0.01}
SMALL: Mapping[str, SmallSystem] = {
    "vicar-mil": SmallSystem(
        config={"widths": [4, 4, 8], "attention_width": 4},
        preprocessing={"size": 64, "pitch_mm": 3},
        localization=_POINTS_OF_MAPS,
        members=2,
    ),
    "vicar-published": SmallSystem(
        config={"pooling": "attention"},
        preprocessing={"size": 64},
        # 64 positions share the attention; T is a little below the mean
        localization={"threshold": 0.0125, "height": 0.0001, "distance_pixels": 8},
    ),
    "he-fusion": SmallSystem(
        config={"width": 0.0625, "batch_norm": True, "reduction": 4},
        preprocessing={"size": 64},
        localization={"threshold": 0.2},
        rule="max",
    ),
    "radnet": SmallSystem(
        config={
            "growth": 4,
            "layers_per_block": 2,
            "initial_channels": 4,
            "stem_stride": 4,
            "lstm_width": 6,
        },
        preprocessing={"size": 64, "pitch_mm": 4},
        localization=_POINTS_OF_MAPS,
        rule="consecutive3",
    ),
    "burduja": SmallSystem(
        config={"backbone": "resnext14_2x4d", "selected": 12, "hidden": 8, "layers": 2},
        preprocessing={"size": 64},
        localization=_POINTS_OF_MAPS,
        rule="max",
    ),
    "lite-mil": SmallSystem(
        config={"width": 8, "neighbours": 0.25},
        preprocessing={"size": 64, "pitch_mm": 3},
        localization=_POINTS_OF_MAPS,
    ),
    "mil-pair": SmallSystem(
        config={
            "vicar": {"widths": [4, 4, 8], "attention_width": 4},
            "lite": {"width": 8, "neighbours": 0.25},
            "vicar_calibration": {"scale": 0.5, "offset": 0.25},
            "lite_calibration": {"scale": 1.0, "offset": 0.0},
        },
        preprocessing={"vicar": {"size": 64, "pitch_mm": 3}, "lite": {"size": 64, "pitch_mm": 3}},
        localization=_POINTS_OF_MAPS,
        members=2,
    ),
}
ARCHITECTURES = tuple(SMALL)
SIX_CLASSES = ("he-fusion", "burduja", "lite-mil")
"""The systems that tell the subtypes apart."""


@lru_cache
def small_phantom(
    *bleeds: IchSubtype, seed: int = 5, slices: int = 12, slice_spacing_mm: float = 13.0
) -> HeadPhantom:
    """Make a head of few and small slices; some lie below and above the intracranial space."""
    return head_phantom(
        bleeds=bleeds, seed=seed, rows=128, columns=128, slices=slices, slice_spacing_mm=slice_spacing_mm
    )


def small_bleed() -> HeadPhantom:
    """The head that the bundles are calibrated on."""
    return small_phantom(IchSubtype.INTRAPARENCHYMAL, IchSubtype.SUBDURAL)


def write_system_bundle(
    folder: Path,
    architecture: str,
    *,
    version: str = "1.0.0",
    points: Mapping[str, float] = POINTS,
    spoil: Spoil | None = None,
) -> Path:
    """Write the small bundle of a system; its name is that of the folder.

    Parameters
    ----------
    folder
        Is made.
    points
        Operating points, ``high_confidence`` and ``sensitive``.
    spoil
        Changes the tensors, whose names begin with the member's number, before they are hashed.
    """
    tensors, decision = _fitted(architecture)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if spoil is not None:
        spoil(tensors)
    small, encoded = SMALL[architecture], save(tensors)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(encoded)
    description = {
        "format": 1,
        "name": folder.name,
        "version": version,
        "architecture": architecture,
        "members": small.members,
        "config": dict(small.config),
        "preprocessing": dict(small.preprocessing),
        "localization": dict(small.localization),
        "decision": decision,
        "operating_points": dict(points),
        "training_data": [],
        "metrics": {},
        "intended_use": "Tests: nobody trained it.",
        "weights_sha256": hashlib.sha256(encoded).hexdigest(),
    }
    (folder / "bundle.json").write_text(json.dumps(description))
    return folder


def fill(*fragments: str, value: float) -> Spoil:
    """Fill every tensor whose name holds one of the fragments."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        named = [name for name in tensors if any(fragment in name for fragment in fragments)]
        assert named, f"no tensor is called {fragments}"
        for name in named:
            tensors[name] = torch.full_like(tensors[name], value)

    return spoil


@lru_cache
def _fitted(architecture: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and decision of a small bundle."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        system = _random_system(architecture)
        head = Head(hu=small_bleed().hu, spacing_mm=small_bleed().spacing_mm)
        _fit_batch_norm(system, head)
        logits = system.score(head).logits[list(head.inside)]
    # two standard deviations of the logits to either side of the sigmoid's middle
    scale = 2 / logits.std(axis=0)
    offset = -scale * np.median(logits, axis=0)
    decision: dict[str, Any] = {"rule": SMALL[architecture].rule}
    if len(system.classes) == 1:
        decision |= {"scale": round(float(scale[0]), 6), "offset": round(float(offset[0]), 6)}
    else:
        decision["class_scale"] = [round(float(each), 6) for each in scale]
        decision["class_offset"] = [round(float(each), 6) for each in offset]
    return dict(nn.ModuleList(system.networks).state_dict()), decision


def _random_system(architecture: str) -> System:
    kind, small = find_system(architecture), SMALL[architecture]
    folder = Path(architecture)  # for the messages
    config: Any = typed_section(kind.config_type, small.config, folder / "bundle.json", "config")
    execution = Execution(device="cpu")
    networks = tuple(kind.network(config).eval().requires_grad_(False) for _ in range(small.members))
    preprocessing: Any = typed_section(
        kind.preprocessing_type, small.preprocessing, folder / "bundle.json", "preprocessing"
    )
    localization: Any = typed_section(
        kind.localization_type, small.localization, folder / "bundle.json", "localization"
    )
    return kind(networks, config, preprocessing, localization, execution)


def _fit_batch_norm(system: System, head: Head) -> None:
    """Take the statistics of batch normalization from a head: else random networks say the same of every slice."""
    norms = [m for n in system.networks for m in n.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average over the batches
        norm.train()
    system.score(head)
    for norm in norms:
        norm.eval()
