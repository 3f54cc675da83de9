"""Model bundles: a folder with ``model.safetensors``, ``bundle.json`` and a card, checked before use.

A bundle's weights are read from safetensors only: a pickle could run code when it is loaded. What others published
as one is read once, as plain tensors, by `ich_node.model.bundle_import`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ich_node.errors import ConfigurationError
from ich_node.findings import AlgorithmIdentification, OperatingPoints
from ich_node.model.bundle_section import typed_section as typed_section

SHIPPED = Path(__file__).parent / "bundles"
"""Bundles that come with the package."""
DEFAULT_NAME = "mil-pair-v1"
DESCRIPTION_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "MODEL_CARD.md"
FAILURES_FILE = "failures.png"
"""Picture of slices that the model fails on, for the card."""
FORMAT = 1
MOST_MEMBERS = 32
"""Networks of an ensemble at most."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
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
_OPTIONAL: Mapping[str, type] = {
    "localization": dict,
    "detector": dict,  # the older name of "localization"
    "members": int,
    "source_sha256": str,
    "licence": str,
    "training_inputs": dict,
}


def find_bundles(folder: Path | None = None) -> dict[str, Path]:
    """Bundles by name: those shipped, and those installed in a folder, which take precedence."""
    found: dict[str, Path] = {}
    for root in (SHIPPED, folder):
        if root is not None and root.is_dir():
            folders = [file.parent for file in sorted(root.glob(f"*/{DESCRIPTION_FILE}"))]
            found |= {path.name: path for path in folders if _NAME.fullmatch(path.name)}
    return found


def find_bundle(name: str, folder: Path | None = None) -> Path:
    """Folder of the bundle with this name.

    Raises
    ------
    ConfigurationError
        There is none, and the message lists those there are; or its description cannot be read or names another
        bundle than its folder does.
    """
    bundles = find_bundles(folder)
    if name not in bundles:
        there = ", ".join(bundles) or "none"
        raise ConfigurationError(f"model.bundles: there is no bundle {name!r}; there is: {there}")
    described = read_description(bundles[name])["name"]
    if described != name:
        raise ConfigurationError(
            f"{bundles[name] / DESCRIPTION_FILE}: key 'name' is {described!r}, but its folder is {name!r}: "
            "rename the folder, or install the bundle again"
        )
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
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(description, dict):
        raise ConfigurationError(f"{file}: has to hold one JSON object")
    for key in _REQUIRED:
        if key not in description:
            raise ConfigurationError(f"{file}: key {key!r} is missing")
    for key, kind in {**_REQUIRED, **_OPTIONAL}.items():
        if key in description and not _is(description[key], kind):
            raise ConfigurationError(f"{file}: key {key!r} has to be of type {kind.__name__}")
    if description["format"] != FORMAT:
        raise ConfigurationError(
            f"{file}: key 'format' is {description['format']}; this version reads {FORMAT}"
        )
    _check_values(file, description)
    return description


def members(bundle: Path, description: Mapping[str, Any]) -> int:
    """How many networks a bundle holds; ``config.members`` is the older place of ``members``.

    Raises
    ------
    ConfigurationError
        It is not 1 to `MOST_MEMBERS`, or is said twice.
    """
    file, config = bundle / DESCRIPTION_FILE, description["config"]
    if "members" in description and "members" in config:
        raise ConfigurationError(f"{file}: keys 'members' and 'config.members' say the same: leave one")
    key = "config.members" if "members" in config else "members"
    count = config.get("members", description.get("members", 1))
    if not _is(count, int) or not 1 <= count <= MOST_MEMBERS:
        raise ConfigurationError(f"{file}: key {key!r} has to be 1 to {MOST_MEMBERS}")
    return int(count)


def localization(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """How maps become places; ``detector`` is the older name of the section, and without any it is empty."""
    section: Mapping[str, Any] = description.get("localization", description.get("detector", {}))
    return section


def slab_mm(bundle: Path, description: Mapping[str, Any]) -> float | None:
    """Height of the slabs, in mm, that thin slices are read as (`ich_node.model.slabs`); ``None``: as they are.

    Raises
    ------
    ConfigurationError
        It is no number above 0.
    """
    if "slab_mm" not in description:
        return None
    height = number(bundle, description, "slab_mm")
    if height <= 0:
        raise ConfigurationError(f"{bundle / DESCRIPTION_FILE}: key 'slab_mm' has to be more than 0")
    return height


def verify_bundle(bundle: Path) -> str:
    """Check description and weights hash; a sentence that says what was checked. `prove_bundle` also loads it.

    Raises
    ------
    ConfigurationError
        Anything is not as the description says.
    """
    description = read_description(bundle)
    verified_weights(bundle, description)
    identification(bundle, description)
    members(bundle, description)
    slab_mm(bundle, description)
    title = f"{description['name']} {description['version']}"
    return f"{title}: weights match SHA-256 {description['weights_sha256']}"


def prove_bundle(bundle: Path) -> str:
    """Check a bundle as `verify_bundle` does and load it as reading does, on the CPU; the sentence of the former.

    Raises
    ------
    ConfigurationError
        It is not as its description says, or nothing can read with it. The message names file and key.
    """
    from ich_node.model.predict import load_predictor  # with torch, which nothing else here needs

    said = verify_bundle(bundle)
    load_predictor(bundle, "cpu")
    return said


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
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:  # of an integer
            found = math.inf
        if math.isfinite(found):
            return found
    raise ConfigurationError(f"{bundle / DESCRIPTION_FILE}: key '{prefix}{key}' has to be a finite number")


def require_name(name: str, where: str) -> None:
    """Refuse a bundle's name that is no plain folder name.

    Parameters
    ----------
    where
        File and key, or option, that holds it: for the message.

    Raises
    ------
    ConfigurationError
        It has other characters than letters, digits, ``-``, ``_`` and ``.``, begins with none of the first two,
        or is longer than 100.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{where} is {name!r}: a bundle's name is made of letters, digits, '-', '_' and '.', begins with a "
            "letter or a digit and has at most 100 of them"
        )


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _check_values(file: Path, description: Mapping[str, Any]) -> None:
    require_name(description["name"], f"{file}: key 'name'")
    if not description["version"].strip():
        raise ConfigurationError(f"{file}: key 'version' is empty")
    for key in ("weights_sha256", "source_sha256"):
        if key in description and not _SHA256.fullmatch(description[key]):
            raise ConfigurationError(f"{file}: key {key!r} has to be 64 hexadecimal digits, lower case")
    if "localization" in description and "detector" in description:
        raise ConfigurationError(f"{file}: keys 'localization' and 'detector' say the same: leave one")
