"""A bundle's tensors brought into networks: every one that is expected, no other, each of its shape and finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from ich_node.errors import ConfigurationError
from ich_node.model.bundle import DESCRIPTION_FILE, WEIGHTS_FILE, verified_weights

_MOST_NAMED = 8


def load_networks(
    folder: Path, description: Mapping[str, Any], make: Callable[[], nn.Module], members: int = 1
) -> tuple[nn.Module, ...]:
    """Load the members of a bundle's ensemble; the tensors of number n are stored as ``n.<name>``.

    Parameters
    ----------
    folder, description
        Of the bundle.
    make
        Makes a network on the CPU, whose weights are overwritten. It is called only once the weights are known to
        be those of the bundle.
    members
        How many networks there are.

    Raises
    ------
    ConfigurationError
        The file is absent, another one than the description names, or no safetensors file; no network can be made
        of the description; or its tensors do not fit the networks. The message names file and key, or tensors.
    """
    tensors = _read_tensors(folder, description)
    networks = nn.ModuleList(_made(folder, make) for _ in range(members))
    require_fit(folder / WEIGHTS_FILE, tensors, networks.state_dict())
    networks.load_state_dict(tensors)
    return tuple(networks)


def _read_tensors(folder: Path, description: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    encoded = verified_weights(folder, description)
    try:
        return load(encoded)
    except (SafetensorError, KeyError, ValueError) as error:  # the latter two: numbers unknown to torch
        raise ConfigurationError(f"{folder / WEIGHTS_FILE}: is no safetensors file ({error})") from error


def _made(folder: Path, make: Callable[[], nn.Module]) -> nn.Module:
    file = folder / DESCRIPTION_FILE
    try:
        return make()
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: key 'config': {error}") from error
    except Exception as error:  # what a network says of numbers that it cannot be made of
        raise ConfigurationError(
            f"{file}: key 'config': no network can be made of it ({type(error).__name__}: {error})"
        ) from error


def require_fit(file: Path, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are not those of a network.

    Parameters
    ----------
    file
        Where they come from: for the messages.
    tensors, wanted
        By name; those that there are, and the network's own.

    Raises
    ------
    ConfigurationError
        Some are missing, surplus, of another shape, whole numbers for fractions or the reverse, or not finite.
    """
    for problem, names in (
        ("is missing", wanted.keys() - tensors.keys()),
        ("is not part of the network", tensors.keys() - wanted.keys()),
    ):
        if names:
            raise ConfigurationError(f"{file}: tensor {_listed(names)} {problem}")
    for name, model in wanted.items():
        tensor = tensors[name]
        if tensor.shape != model.shape:
            raise ConfigurationError(
                f"{file}: tensor {name!r} is {tuple(tensor.shape)}, expected {tuple(model.shape)}"
            )
        if tensor.is_floating_point() != model.is_floating_point() or tensor.is_complex():
            raise ConfigurationError(f"{file}: tensor {name!r} is {tensor.dtype}, expected {model.dtype}")
        if tensor.is_floating_point() and not torch.isfinite(tensor.double()).all():
            raise ConfigurationError(f"{file}: tensor {name!r} holds NaN or infinity")


def _listed(names: set[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
