"""A bundle's tensors brought into networks: every one that is expected, no other, each of its shape and finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from ich_node.errors import ConfigurationError
from ich_node.model.bundle import WEIGHTS_FILE, verified_weights

_MOST_NAMED = 8


def load_networks(
    folder: Path, description: Mapping[str, Any], networks: Sequence[nn.Module]
) -> tuple[nn.Module, ...]:
    """Load the members of a bundle's ensemble; the tensors of number n are stored as ``n.<name>``.

    Parameters
    ----------
    folder, description
        Of the bundle.
    networks
        One for each member, on the CPU, whose weights are overwritten.

    Returns
    -------
    tuple of torch.nn.Module
        The same networks.

    Raises
    ------
    ConfigurationError
        As for `load_tensors`.
    """
    load_tensors(folder, description, nn.ModuleList(networks))
    return tuple(networks)


def load_tensors(folder: Path, description: Mapping[str, Any], network: nn.Module) -> None:
    """Load a bundle's weights into a network, only if their hash is the one that the description names.

    Raises
    ------
    ConfigurationError
        The file is absent, another one or no safetensors file, or its tensors do not fit the network; the message
        names file and tensors.
    """
    file = folder / WEIGHTS_FILE
    encoded = verified_weights(folder, description)
    try:
        tensors = load(encoded)
    except (
        SafetensorError,
        KeyError,
        ValueError,
    ) as error:  # the latter two: a kind of number unknown to torch
        raise ConfigurationError(f"{file}: is no safetensors file ({error})") from error
    require_fit(file, tensors, network.state_dict())
    network.load_state_dict(tensors)


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
