"""Model bundles: a folder with ``bundle.json`` and ``model.safetensors``. Nothing in it is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ich_node.errors import ConfigurationError

DESCRIPTION = "bundle.json"
WEIGHTS = "model.safetensors"
_SHIPPED = Path(__file__).with_name("bundles")
_REQUIRED = (
    "name",
    "version",
    "architecture",
    "config",
    "operating_points",
    "training_data",
    "metrics",
    "intended_use",
    "weights_sha256",
)


def find_bundles(installed: Path | None = None) -> dict[str, Path]:
    """Folders of all bundles by name; one under ``installed`` comes before a shipped one of the same name."""
    found: dict[str, Path] = {}
    for root in (_SHIPPED, installed):
        if root is not None and root.is_dir():
            found |= {folder.name: folder for folder in sorted(root.iterdir()) if (folder / DESCRIPTION).is_file()}
    return found


def find_bundle(name: str, installed: Path | None = None) -> Path:
    """The folder of a bundle.

    Raises
    ------
    ConfigurationError
        No bundle has that name.
    """
    found = find_bundles(installed)
    if name not in found:
        raise ConfigurationError(f"no model bundle is named {name}; there are: {', '.join(found) or 'none'}")
    return found[name]


def read_description(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself.

    Raises
    ------
    ConfigurationError
        ``bundle.json`` cannot be read or lacks a key; names file and key.
    """
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    if not isinstance(description, dict):
        raise ConfigurationError(f"{path} is not a JSON object")
    if missing := [key for key in _REQUIRED if key not in description]:
        raise ConfigurationError(f"{path} lacks {', '.join(missing)}")
    return description


def verify_bundle(folder: Path) -> str:
    """Check that the weights are those that the description names; one line for a person.

    Raises
    ------
    ConfigurationError
        They are not, or a file cannot be read.
    """
    description = read_description(folder)
    _require_hash(folder / WEIGHTS, description["weights_sha256"])
    return f"{description['name']} {description['version']}, weights as described"


def load_weights(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Description and verified weights of a bundle.

    Raises
    ------
    ConfigurationError
        The hash does not fit, or a file cannot be read.
    """
    description = read_description(folder)
    path = folder / WEIGHTS
    _require_hash(path, description["weights_sha256"])
    try:
        return description, load_file(path)
    except SafetensorError as error:
        raise ConfigurationError(f"{path} is not a safetensors file: {error}") from None


def _require_hash(path: Path, expected: str) -> None:
    try:
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    if actual != expected:
        raise ConfigurationError(f"{path} has SHA-256 {actual}, its description says {expected}: install it again")
