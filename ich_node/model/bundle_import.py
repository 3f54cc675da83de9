"""Bundles made of checkpoints that the authors of a published system gave out.

A checkpoint of PyTorch is a pickle. It is read as plain tensors only (``weights_only``), and one that holds anything
else is refused. Nothing of what it cannot say is made up: what was not chosen on data is marked so.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save

from ich_node.errors import ConfigurationError
from ich_node.findings import OperatingPoints
from ich_node.model import vicar_published as vicar
from ich_node.model.bundle import (
    CARD_FILE,
    DESCRIPTION_FILE,
    FORMAT,
    WEIGHTS_FILE,
    require_name,
    verify_bundle,
)
from ich_node.model.bundle_install import InstalledBundle, folder_beside, place_bundle
from ich_node.model.decision import DecisionConfig
from ich_node.model.import_card import import_card
from ich_node.model.weights import require_fit

Tensors = dict[str, torch.Tensor]

INTENDED_USE = (
    "Research and demonstration: ordering a radiologist's reading list of non-contrast axial head CT. Not a "
    "medical device, not for clinical use, never a replacement of the reading."
)
NOT_CHOSEN = "not chosen on data"
DEFAULT_POINTS = OperatingPoints(high_confidence=0.9, sensitive=0.5)
"""Where none are given; 0.5 is where the published code calls a slice positive."""
_VICAR_PAPER = (
    "Nemcek, Vicar, Jakubicek: Weakly supervised deep learning-based intracranial hemorrhage localization, "
    "arXiv:2105.00781"
)
_BURDUJA_PAPER = (
    "Burduja, Ionescu, Verga: Accurate and efficient intracranial hemorrhage detection and subtype "
    "classification in 3D CT scans with convolutional and long short-term memory neural networks, Sensors 2020, "
    "20(19):5611"
)
_PUBLISHED_DETECTOR = {
    "attention": vicar.PublishedDetector(height=0.0038, threshold=0.024, distance_pixels=58.0),
    "max": vicar.PublishedDetector(height=0.024, threshold=0.76, distance_pixels=10.0),
}
_PUBLISHED_METRICS = {
    "attention": {"validation_slice_accuracy": 0.9133, "localization_dice_cq500": 0.4730},
    "max": {"validation_slice_accuracy": 0.8954, "localization_dice_cq500": 0.5808},
}


@dataclass(frozen=True, kw_only=True)
class ImportTerms:
    """What whoever imports a checkpoint says of it."""

    name: str | None = None
    """Of the bundle; by default that of the system."""
    version: str = "1.0.0"
    licence: str = "unknown"
    """Of the weights."""
    points: OperatingPoints | None = None
    """On the study's suspicion, from validation data; by default `DEFAULT_POINTS`, marked as not chosen on data."""


def import_vicar(
    checkpoint: Path, into: Path, terms: ImportTerms = ImportTerms(), *, replace: bool = False
) -> InstalledBundle:
    """Make a bundle of a checkpoint that Vicar et al. published.

    Parameters
    ----------
    checkpoint
        State dict as ``torch.save`` wrote it. Which pooling it has shows in its names.
    into
        Folder that bundles are installed in.
    terms
        What is said of the weights.
    replace
        Whether another bundle of the name may be replaced.

    Raises
    ------
    ConfigurationError
        The file cannot be read as tensors alone, they are not those of the published network, or there is another
        bundle of the name; the message names the file and the tensors.
    """
    tensors = read_checkpoint(checkpoint)
    pooling: Literal["attention", "max"] = (
        "attention" if any(name.startswith("attention.") for name in tensors) else "max"
    )
    config = vicar.VicarPublishedConfig(pooling=pooling)
    live = live_tensors(tensors)
    require_fit(checkpoint, live, vicar.VicarPublished(config).state_dict())
    title = {"attention": "gated attention", "max": "global maximum"}[pooling]
    said = {
        "architecture": "vicar-published",
        "config": asdict(config),
        "preprocessing": asdict(vicar.PublishedInput()),
        "localization": asdict(_PUBLISHED_DETECTOR[pooling]),
        "training_data": [
            {
                "name": "RSNA 2019 Brain CT Hemorrhage Challenge, part",
                "citation": f"as published: {_VICAR_PAPER}",
                "licence": "terms of the RSNA challenge",
            },
            {
                "name": "CQ500 with the boxes of BHX, for the detector's parameters only",
                "citation": f"as published: {_VICAR_PAPER}",
                "licence": "CC BY-NC-SA 4.0 (CQ500), see PhysioNet for BHX",
            },
        ],
        "metrics": {
            "note": "As published, not measured by this package.",
            "published": _PUBLISHED_METRICS[pooling],
        },
        "about": f"The checkpoint with {title} that Vicar et al. published, without its dead layers.",
    }
    name = terms.name or f"vicar-published-{pooling}"
    return _write(checkpoint, into, name, terms, said, live, replace=replace)


def import_burduja(
    checkpoint: Path,
    into: Path,
    terms: ImportTerms = ImportTerms(),
    *,
    backbone: str = "resnext101_32x8d",
    replace: bool = False,
) -> InstalledBundle:
    """Make a bundle of a CNN of system D (Burduja et al.), without their sequence model.

    Parameters
    ----------
    checkpoint
        State dict with torchvision's names and an ``fc`` of six outputs in the authors' order.
    backbone
        Which ResNeXt it is.
    into, terms, replace
        As for `import_vicar`.

    Raises
    ------
    ConfigurationError
        As for `import_vicar`.
    """
    from ich_node.model import burduja

    tensors = read_checkpoint(checkpoint)
    config = burduja.BurdujaConfig(backbone=backbone, sequence=False)
    network = burduja.Burduja(config)
    try:
        burduja.from_published(network, tensors)
    except ConfigurationError as error:
        raise ConfigurationError(f"{checkpoint}: {error}") from error
    loaded = network.state_dict()
    require_fit(checkpoint, loaded, loaded)  # the names are right by now; NaN and infinity are still refused
    said = {
        "architecture": "burduja",
        "config": asdict(config),
        "preprocessing": asdict(burduja.BurdujaPreprocessing()),
        "localization": asdict(burduja.BurdujaSystem.localization_type()),
        "training_data": [
            {
                "name": "RSNA 2019 Brain CT Hemorrhage Challenge",
                "citation": f"as published: {_BURDUJA_PAPER}",
                "licence": "terms of the RSNA challenge",
            }
        ],
        "metrics": {
            "note": "As published, not measured by this package; of the paper's CNN, which this may or may not be.",
            "published": {"weighted_log_loss": 0.06259},
        },
        "about": f"The CNN ({backbone}) of Burduja et al.; each slice is read by itself, without their LSTM.",
    }
    name = terms.name or f"burduja-{backbone.replace('_', '-')}"
    return _write(checkpoint, into, name, terms, said, loaded, replace=replace)


def read_checkpoint(file: Path) -> Tensors:
    """Read a state dict without running anything that it holds.

    Returns
    -------
    dict
        Name to tensor on the CPU; floating point ones as float32; without a leading ``module.`` of DataParallel.

    Raises
    ------
    ConfigurationError
        The file cannot be read, holds anything but tensors by name, or a pickle that could run code.
    """
    try:
        with warnings.catch_warnings():
            # it warns of pickle protocols that are read all the same, or refused below
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"{file}: is no checkpoint of plain tensors; a pickle can run code, so it is not opened"
        ) from error
    except Exception as error:  # of every kind: damaged ones of the old format even end in an AssertionError
        said = str(error) or type(error).__name__
        raise ConfigurationError(f"{file}: cannot be read as a checkpoint ({said})") from error
    # Lightning writes ``state_dict``, torch's own tutorials ``model_state_dict``, the published training code of
    # Burduja et al. ``model``
    for wrapping in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapping), Mapping):
            state = state[wrapping]
    if not isinstance(state, Mapping) or not state:
        raise ConfigurationError(f"{file}: holds no tensors by name")
    tensors: Tensors = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ConfigurationError(f"{file}: {name!r} is no tensor")
        plain = name.removeprefix("module.")
        if plain in tensors:
            raise ConfigurationError(f"{file}: tensor {plain!r} is there with and without 'module.'")
        tensors[plain] = _plain(file, name, tensor)
    return tensors


def _plain(file: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its numbers, floating point ones as float32."""
    # sparse ones have other parts, those of "meta" no numbers at all
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
        raise ConfigurationError(f"{file}: tensor {name!r} is no plain tensor ({kind})")
    try:
        return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
    except RuntimeError as error:  # a view may claim to be far larger than its file
        raise ConfigurationError(f"{file}: tensor {name!r} cannot be read ({error})") from error


def live_tensors(tensors: Tensors) -> Tensors:
    """Leave out the dead layers of a published checkpoint of Vicar et al., and supply counts of old versions.

    PyTorch before 0.4.1 did not store how many batches a normalization has seen, which reading does not need.
    """
    dead = tuple(f"layers.{number}." for number in vicar.DEAD_LAYERS)
    live = {name: tensor for name, tensor in tensors.items() if not name.startswith(dead)}
    for name in [name for name in live if name.endswith(".bn.running_mean")]:
        live.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return live


def _write(
    source: Path,
    into: Path,
    name: str,
    terms: ImportTerms,
    said: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    replace: bool,
) -> InstalledBundle:
    require_name(name, "--name")
    # copied, since two names may share one memory, which safetensors does not write
    copies = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    encoded = save({f"0.{key}": tensor for key, tensor in copies.items()})
    description = {
        "format": FORMAT,
        "name": name,
        "version": terms.version,
        **said,
        "members": 1,
        "decision": asdict(DecisionConfig()),
        "operating_points": asdict(terms.points or DEFAULT_POINTS),
        "chosen": {
            "decision": NOT_CHOSEN,
            "operating_points": "given by whoever imported the weights" if terms.points else NOT_CHOSEN,
        },
        "licence": terms.licence,
        "intended_use": INTENDED_USE,
        "weights_sha256": hashlib.sha256(encoded).hexdigest(),
        "source_file": source.name,
        "source_sha256": _sha256(source),
    }
    with folder_beside(into) as made:
        (made / WEIGHTS_FILE).write_bytes(encoded)
        text = json.dumps(description, indent=2, allow_nan=False) + "\n"
        (made / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
        (made / CARD_FILE).write_text(import_card(description), encoding="utf-8")
        verify_bundle(made)
        return place_bundle(made, into, replace=replace)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
