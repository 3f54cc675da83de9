"""Model bundles: a folder with ``model.safetensors``, ``bundle.json`` and a card, checked before use.

Weights are read from safetensors only. A pickle could run code when it is loaded, so none is ever opened.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ich_node.errors import ConfigurationError
from ich_node.findings import AlgorithmIdentification, OperatingPoints

SHIPPED = Path(__file__).parent / "bundles"
"""Bundles that come with the package."""
DEFAULT_NAME = "vicar-attention-v1"
DESCRIPTION_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = 1

_REQUIRED: Mapping[str, type] = {
    "format": int,
    "name": str,
    "version": str,
    "architecture": str,
    "config": dict,
    "preprocessing": dict,
    "decision": dict,
    "operating_points": dict,
    "training_data": list,
    "metrics": dict,
    "intended_use": str,
    "weights_sha256": str,
}


def find_bundles(folder: Path | None = None) -> dict[str, Path]:
    """Bundles by name: those shipped, and those installed in a folder, which take precedence."""
    found: dict[str, Path] = {}
    for root in (SHIPPED, folder):
        if root is not None and root.is_dir():
            found |= {p.parent.name: p.parent for p in sorted(root.glob(f"*/{DESCRIPTION_FILE}"))}
    return found


def find_bundle(name: str, folder: Path | None = None) -> Path:
    """Folder of the bundle with this name.

    Raises
    ------
    ConfigurationError
        There is none; the message lists those there are.
    """
    bundles = find_bundles(folder)
    if name not in bundles:
        there = ", ".join(bundles) or "none"
        raise ConfigurationError(f"model.bundles: there is no bundle {name!r}; there is: {there}")
    return bundles[name]


def read_description(bundle: Path) -> dict[str, Any]:
    """Read ``bundle.json`` and check that every required key is there and of its type.

    Raises
    ------
    ConfigurationError
        The file is absent or no JSON object, or a key is missing or wrong; the message names file and key.
    """
    file = bundle / DESCRIPTION_FILE
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(description, dict):
        raise ConfigurationError(f"{file}: has to hold one JSON object")
    for key, kind in _REQUIRED.items():
        if key not in description:
            raise ConfigurationError(f"{file}: key {key!r} is missing")
        if not isinstance(description[key], kind):
            raise ConfigurationError(f"{file}: key {key!r} has to be of type {kind.__name__}")
    if description["format"] != FORMAT:
        raise ConfigurationError(
            f"{file}: key 'format' is {description['format']}; this version reads {FORMAT}"
        )
    return description


def verify_bundle(bundle: Path) -> str:
    """Check description and weights hash; a sentence that says what was checked.

    Raises
    ------
    ConfigurationError
        Anything is not as the description says.
    """
    description = read_description(bundle)
    verified_weights(bundle, description)
    identification(bundle, description)
    title = f"{description['name']} {description['version']}"
    return f"{title}: weights match SHA-256 {description['weights_sha256']}"


def verified_weights(bundle: Path, description: Mapping[str, Any]) -> bytes:
    """Bytes of the weights file, only if they have the hash that the description names.

    Raises
    ------
    ConfigurationError
        The file is absent or another one.
    """
    file = bundle / WEIGHTS_FILE
    try:
        encoded = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error})") from error
    found = hashlib.sha256(encoded).hexdigest()
    if found != description["weights_sha256"]:
        raise ConfigurationError(
            f"{file}: SHA-256 is {found}, but key 'weights_sha256' of {bundle / DESCRIPTION_FILE} says "
            f"{description['weights_sha256']}: the weights are not those of this bundle"
        )
    return encoded


def identification(bundle: Path, description: Mapping[str, Any]) -> AlgorithmIdentification:
    """Who reads with this bundle.

    Raises
    ------
    ConfigurationError
        The operating points are not two numbers between 0 and 1 in their order.
    """
    points = description["operating_points"]
    values = {
        key: number(bundle, points, key, "operating_points.") for key in ("high_confidence", "sensitive")
    }
    if not 0 < values["sensitive"] <= values["high_confidence"] <= 1:
        raise ConfigurationError(
            f"{bundle / DESCRIPTION_FILE}: key 'operating_points' needs 0 < sensitive <= high_confidence <= 1"
        )
    return AlgorithmIdentification(
        name=description["name"],
        version=description["version"],
        weights_sha256=description["weights_sha256"],
        operating_points=OperatingPoints(**values),
    )


def number(bundle: Path, section: Mapping[str, Any], key: str, prefix: str = "") -> float:
    """A finite number of the description.

    Raises
    ------
    ConfigurationError
        It is missing or no number.
    """
    value = section.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(
            f"{bundle / DESCRIPTION_FILE}: key '{prefix}{key}' has to be a finite number"
        )
    return float(value)
