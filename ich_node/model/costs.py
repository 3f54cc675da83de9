"""What a system costs: its parameters, and the multiply-adds of reading one slice, counted without any weights.

A system reads a head on PyTorch's meta device, where tensors have shapes and no numbers, so that a large network
is counted in a moment and in no memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ich_node.errors import ConfigurationError
from ich_node.model import bundle as bundles
from ich_node.model.execution import Execution
from ich_node.model.intracranial import CoarseMask
from ich_node.model.system import Head, System, architectures, find_system

_SLICES, _PIXELS = 4, 64
_SHAPES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "burduja": ({}, {"sequence": False}, {"backbone": "efficientnet_lite0"}),
    "he-fusion": ({}, {"fusion": False}),
    "radnet": ({}, {"lstm": False}, {"stem_stride": 4}),
}
"""Configurations that are shown of an architecture: the paper's and what it is compared with. Others: the default."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one configuration of a system costs."""

    name: str
    """Of the architecture, or of the bundle."""
    architecture: str
    config: str
    """What differs from the architecture's defaults, as ``key=value``; empty where nothing does."""
    input_size: tuple[int, int]
    """(rows, columns) of the network's input, pixels; of a pair that of the first."""
    networks: int
    """Members of the ensemble; each reads every slice."""
    parameters: int
    """Trainable numbers of one network; what is fitted otherwise (normalization's means, principal components) is not
    among them."""
    multiply_adds: int
    """Per slice of a scan, of all that a system runs to score it: every network, and mirrored slices where there are
    any. Convolutions and matrix products are counted, an LSTM's too; normalization, activations, pooling and the maps
    of suspicious slices are not."""


def architecture_costs(architecture: str) -> tuple[Costs, ...]:
    """Count an architecture in its default configuration, and in those that it is compared with.

    Raises
    ------
    ConfigurationError
        This version does not know it.
    """
    system = find_system(architecture)
    return tuple(
        _count(architecture, architecture, system, system.config_type(**config), system.preprocessing_type())
        for config in _SHAPES.get(architecture, ({},))
    )


def all_costs() -> tuple[Costs, ...]:
    """Count every architecture, as `architecture_costs` does."""
    return tuple(each for name in architectures() for each in architecture_costs(name))


def bundle_costs(bundle: Path) -> Costs:
    """Count what a bundle describes; its weights are not opened.

    Parameters
    ----------
    bundle
        Folder of the bundle.

    Raises
    ------
    ConfigurationError
        The description cannot be read, or is of an architecture or a network that there is not.
    """
    description = bundles.read_description(bundle)
    system = find_system(description["architecture"])
    values = {key: value for key, value in description["config"].items() if key != "members"}
    return _count(
        description["name"],
        description["architecture"],
        system,
        bundles.typed_section(system.config_type, values, bundle / bundles.DESCRIPTION_FILE, "config"),
        bundles.typed_section(
            system.preprocessing_type,
            description["preprocessing"],
            bundle / bundles.DESCRIPTION_FILE,
            "preprocessing",
        ),
        bundles.members(bundle, description),
    )


def find_costs(names: Sequence[str], folder: Path | None = None) -> tuple[Costs, ...]:
    """Count what names stand for, architectures or bundles; all architectures where there are none.

    Parameters
    ----------
    folder
        Of the bundles that are installed, see `ich_node.model.bundle.find_bundles`.

    Raises
    ------
    ConfigurationError
        A name stands for neither; the message lists both.
    """
    if not names:
        return all_costs()
    known, there = architectures(), bundles.find_bundles(folder)
    found: list[Costs] = []
    for name in names:
        if name in known:
            found += architecture_costs(name)
        elif name in there:
            found.append(bundle_costs(bundles.find_bundle(name, folder)))
        else:
            raise ConfigurationError(
                f"{name!r} is no architecture ({', '.join(known)}) and no bundle ({', '.join(there) or 'none'})"
            )
    return tuple(found)


def _count(
    name: str, architecture: str, system: type[System], config: Any, preprocessing: Any, members: int = 1
) -> Costs:
    execution = _MetaExecution()
    with torch.device("meta"):
        networks = tuple(system.network(config) for _ in range(members))
    parameters = sum(p.numel() for p in networks[0].parameters())
    placed = tuple(execution.place(network) for network in networks)
    loaded = system(placed, config, preprocessing, system.localization_type(), execution)
    counter = FlopCounterMode(display=False)
    with _NumbersOfMeta(), counter:
        loaded.score(_solid_head())
    return Costs(
        name=name,
        architecture=architecture,
        config=_differences(config),
        input_size=execution.input_size,
        networks=members,
        parameters=parameters,
        # torch counts a multiply-add as two operations
        multiply_adds=counter.get_total_flops() // (2 * _SLICES),
    )


def _differences(config: Any) -> str:
    changed = _changed(config, type(config)())
    return ", ".join(f"{key}={_plain(value)}" for key, value in changed.items())


def _changed(config: Any, default: Any, prefix: str = "") -> dict[str, Any]:
    """What differs from the default, by the path of its name."""
    found: dict[str, Any] = {}
    for key, value in vars(config).items():
        usual = getattr(default, key)
        if is_dataclass(value):
            found |= _changed(value, usual, f"{prefix}{key}.")
        elif value != usual:
            found[f"{prefix}{key}"] = value
    return found


def _plain(value: Any) -> str:
    """A value as ``bundle.json`` has it; text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value)


class _MetaExecution(Execution):
    """Runs networks on the meta device, and remembers how large their input was."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.device = torch.device("meta")
        self.input_size = (0, 0)

    def tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """Shape and kind of an array."""
        if not any(self.input_size) and array.ndim > 2:
            self.input_size = (array.shape[-2], array.shape[-1])
        return super().tensor(array)


class _NumbersOfMeta(TorchFunctionMode):
    """What is brought from the meta device to the host is zero, and finite: a shape has no numbers to look at."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is torch.Tensor.cpu and arguments[0].is_meta:
            return torch.zeros(arguments[0].shape, dtype=arguments[0].dtype)
        if function is torch.isfinite and arguments[0].is_meta:
            return torch.ones(arguments[0].shape, dtype=torch.bool)
        return function(*arguments, **(options or {}))


class _SolidHead(Head):
    """Intracranial space and nothing else, so that every slice is read."""

    @cached_property
    def mask(self) -> CoarseMask:
        """All of it."""
        return CoarseMask(mask=np.ones(self.hu.shape, bool), block=(1, 1), shape=self.hu.shape[1:3])


def _solid_head() -> Head:
    return _SolidHead(hu=np.zeros((_SLICES, _PIXELS, _PIXELS), np.float32), spacing_mm=(5.0, 4.0, 4.0))
