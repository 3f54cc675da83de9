"""What a published system is to the node: one class that scores a head's slices and shows where.

A module of this package that defines ``SYSTEM``, a subclass of `System`, is an architecture that a bundle can
name: ``vicar_mil`` is found as ``vicar-mil``. Nothing else has to be changed for a new one.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from torch import nn

import ich_node.model
from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype, Localization
from ich_node.model.decision import DecisionConfig
from ich_node.model.execution import Execution
from ich_node.model.intracranial import CoarseMask, intracranial_mask

FloatArray = npt.NDArray[np.float32]
Spacing = tuple[float, float, float]
ClassMaps = dict[IchSubtype, FloatArray]
"""Likelihood per class, 0 to 1, each (rows, columns) float32 on the source pixel grid."""

_ARCHITECTURE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every system gets: a volume with its intracranial space."""

    hu: FloatArray
    """(slices, rows, columns) float32, HU, inferior to superior."""
    spacing_mm: Spacing
    """(slice, row, column) distance of neighbouring centres, mm."""
    widest_mm: float | None = None
    """Distance of neighbours where the head was cut thicker, if that is much more than the usual one."""

    @property
    def step_mm(self) -> float:
        """What neighbouring slices lie apart at most: whoever averages or leaves out slices goes by it."""
        return self.widest_mm or self.spacing_mm[0]

    @cached_property
    def mask(self) -> CoarseMask:
        """The intracranial space."""
        return intracranial_mask(self.hu, self.spacing_mm)

    @cached_property
    def inside(self) -> tuple[int, ...]:
        """Indices of the slices that show intracranial space, ascending: the ones to score."""
        return tuple(int(i) for i in np.flatnonzero(self.mask.mask.any(axis=(1, 2))))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a system says of each slice of a head."""

    logits: npt.NDArray[np.float64]
    """(slices, classes) float64, uncalibrated; -inf in slices without intracranial space."""
    kept: Mapping[int, Any] = field(default_factory=dict)
    """Slice to whatever the system wants back when it is asked for the slice's maps. Small: it is kept for all."""


class System(ABC):
    """One published system with its weights, ready to read.

    Parameters
    ----------
    networks
        One, or the members of an ensemble, whose outputs are averaged; on the device, in evaluation mode.
    config, preprocessing, localization
        The bundle's sections, of the types that the class names.
    execution
        Where and how the networks run.
    decision
        How logits become probabilities, for a system whose maps are calibrated like its scores.
    """

    config_type: ClassVar[type]
    """Frozen dataclass of the bundle's ``config``: the shape of the network. Every field has a default."""
    preprocessing_type: ClassVar[type]
    """Frozen dataclass of ``preprocessing``: how slices become network input. Every field has a default."""
    required: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Keys that a bundle's ``config`` and ``preprocessing`` must have, by section; others have their defaults."""
    localization_type: ClassVar[type]
    """Frozen dataclass of ``localization``: how maps become points or boxes. Every field has a default."""

    def __init__(
        self,
        networks: tuple[nn.Module, ...],
        config: Any,
        preprocessing: Any,
        localization: Any,
        execution: Execution,
        decision: DecisionConfig | None = None,
    ) -> None:
        self.networks = networks
        self.config, self.preprocessing, self.localization = config, preprocessing, localization
        self.execution, self.decision = execution, decision or DecisionConfig()

    def member(self, number: int, **changes: Any) -> System:
        """One network of the ensemble, by itself.

        Parameters
        ----------
        changes
            Fields of its configuration that are to be other ones.

        Raises
        ------
        IndexError
            There are not so many.
        """
        return type(self)(
            (self.networks[number],),
            replace(self.config, **changes),
            self.preprocessing,
            self.localization,
            self.execution,
            self.decision,
        )

    @staticmethod
    @abstractmethod
    def network(config: Any) -> nn.Module:
        """Make the network that a configuration describes, with random weights."""

    @property
    @abstractmethod
    def classes(self) -> tuple[IchSubtype, ...]:
        """The columns of `Scores.logits`; `IchSubtype.ANY` is among them."""

    @abstractmethod
    def score(self, head: Head) -> Scores:
        """Score every slice in `Head.inside`, at most `Execution.batch` of them in memory at once."""

    @abstractmethod
    def maps(self, head: Head, index: int, scores: Scores) -> ClassMaps:
        """Show where the system sees each class in one slice.

        Returns
        -------
        ClassMaps
            Need not keep to the intracranial space: who calls cuts it to that.
        """

    @abstractmethod
    def places(self, maps: ClassMaps, spacing_mm: Spacing) -> tuple[Localization, ...]:
        """Points or boxes of the maps of one slice, after they were cut to the intracranial space.

        Returns
        -------
        tuple of Localization
            In image coordinates, highest score first.
        """


Mirror = Literal["each", "alternate"]
"""Which networks of an ensemble see the mirror image: each of them beside the slice itself, or every second one instead
of it, which takes half the time."""


def passes(networks: Sequence[nn.Module], mirror: Mirror) -> list[tuple[nn.Module, bool]]:
    """Networks in the order in which they run, and whether each sees the mirror image."""
    if mirror == "alternate":
        return [(network, number % 2 == 1) for number, network in enumerate(networks)]
    return [(network, mirrored) for network in networks for mirrored in (False, True)]


def architectures() -> tuple[str, ...]:
    """Names of the architectures that this version reads."""
    found = []
    for module in pkgutil.iter_modules(ich_node.model.__path__):
        if not module.ispkg and hasattr(importlib.import_module(f"ich_node.model.{module.name}"), "SYSTEM"):
            found.append(module.name.replace("_", "-"))
    return tuple(sorted(found))


def find_system(architecture: str) -> type[System]:
    """The system that an architecture's name stands for.

    Raises
    ------
    ConfigurationError
        This version does not know it; the message lists those that it knows.
    """
    if _ARCHITECTURE.fullmatch(architecture):
        name = f"ich_node.model.{architecture.replace('-', '_')}"
        try:
            system = getattr(importlib.import_module(name), "SYSTEM", None)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            system = None
        if isinstance(system, type) and issubclass(system, System):
            return system
    raise ConfigurationError(f"{architecture!r} is none of {', '.join(architectures())}")
