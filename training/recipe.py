"""A recipe: everything that decides how a system is trained, in one TOML file of typed sections."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from ich_node.errors import ConfigurationError
from ich_node.model.bundle import require_name
from ich_node.model.bundle_section import Count, Limits, NotNegative, Positive, Share, typed_section
from ich_node.model.decision import DecisionConfig
from ich_node.model.system import System, find_system
from training.augment import AugmentConfig
from training.batches import Mix

SHIPPED = Path(__file__).parent / "recipes"
"""Recipes that come with the package, by file name."""

_IMAGENET = ("lite-mil", "burduja")
"""Architectures that can start from ImageNet."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, how fast and how reproducibly."""

    epochs: Count = 20
    epoch: Literal["steps", "slices"] = "steps"
    """What an epoch is: ``steps_per_epoch``, or as many steps as show every real slice once."""
    steps_per_epoch: Count = 25
    """Batches; several processes share them."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    momentum: Share = 0.9
    """Of SGD."""
    weight_decay: NotNegative = 1e-2
    course: Literal["cosine", "steps", "constant"] = "cosine"
    """Of the learning rate: warm-up and half a cosine; divided by ten after each of ``milestones``; or constant."""
    milestones: tuple[Count, ...] = ()
    """Epochs."""
    gradient_norm: NotNegative = 2.0
    """Longer gradients are shortened to it; 0: none is."""
    average_decay: Share = 0.0
    """Of the exponential moving average of the weights, per step; 0: the last weights are the result."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    seed: int = 20


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Weights of the parts of the loss; a system uses those that it has."""

    positions: NotNegative = 0.0
    """Of the positions of slices whose lesion is known."""
    positive_position: Positive = 4.0
    """Weight of a position with hemorrhage beside one without."""
    auxiliary: NotNegative = 0.0
    """Of RADnet's segmentation heads."""
    tiles: NotNegative = 0.0
    """Of small bags within a slice (system A)."""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """How slices of one scan are learnt from together."""

    epochs: Count = 4
    """Passes over the scans of the second stage of system D, which read single slices in the first."""
    learning_rate: Positive = 1e-4
    """Of that stage."""
    scans_per_step: Count = 1
    """In that stage."""
    augmented_passes: Annotated[int, Limits(least=0)] = 0
    """How often that stage's slices are described with random changes beside once without."""
    window: Count = 8
    """Neighbouring slices that system C reads at once while it learns."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What system B's windows begin as, and stay where they are fixed."""

    hu: tuple[tuple[float, Positive], ...] = ()
    """(level, width) of its three channels; empty: the paper's."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one system is trained."""

    name: str
    architecture: str
    network: Any
    """The system's configuration, of its own type, and so the next two."""
    preprocessing: Any
    localization: Any
    decision: DecisionConfig
    augment: AugmentConfig
    mix: Mix
    schedule: Schedule
    loss: Loss
    sequence: Sequence
    windows: Windows = field(default_factory=Windows)
    base: str = ""
    """Name of a run beside this one whose CNN, of the same fold, this one takes over (system D)."""
    start: Literal["random", "imagenet"] = "random"
    source: str = ""
    """Where the recipe is from and how it differs."""

    @property
    def system(self) -> type[System]:
        """The system that it trains."""
        return find_system(self.architecture)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as it is written beside a run and into a bundle."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def find_recipe(name_or_file: str) -> Recipe:
    """Read a recipe that is shipped, by its name, or any by its file.

    Raises
    ------
    ConfigurationError
        There is none of that name, and the message lists those there are; or it is not a recipe, and the message
        names file and key.
    """
    file = Path(name_or_file)
    if file.suffix != ".toml":
        file = SHIPPED / f"{name_or_file}.toml"
        if not file.is_file():
            there = ", ".join(sorted(f.stem for f in SHIPPED.glob("*.toml")))
            raise ConfigurationError(f"there is no recipe {name_or_file!r}; there is: {there}")
    return read_recipe(file)


def read_recipe(file: Path) -> Recipe:
    """Read one recipe file.

    Raises
    ------
    ConfigurationError
        It cannot be read, or holds a key or value that no recipe has; the message names file and key.
    """
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file}: cannot be read as TOML ({error})") from error
    return recipe_of(values, file, file.stem)


def recipe_of(values: Mapping[str, Any], file: Path, name: str) -> Recipe:
    """Make a recipe of the sections of a file.

    Raises
    ------
    ConfigurationError
        As `read_recipe`.
    """
    system = _system(values, file)
    sections: dict[str, type] = {
        "network": system.config_type,
        "preprocessing": system.preprocessing_type,
        "localization": system.localization_type,
        "decision": DecisionConfig,
        "augment": AugmentConfig,
        "mix": Mix,
        "schedule": Schedule,
        "loss": Loss,
        "sequence": Sequence,
        "windows": Windows,
    }
    unknown = values.keys() - sections.keys() - {"name", "architecture", "base", "start", "source"}
    if unknown:
        raise ConfigurationError(f"{file}: key {sorted(unknown)[0]!r} is not known to this version")
    name = str(values.get("name", name))
    require_name(name, f"{file}: the recipe's name")
    start = values.get("start", "random")
    if start not in ("random", "imagenet"):
        raise ConfigurationError(f"{file}: key 'start' is {start!r}; it has to be random or imagenet")
    if start == "imagenet" and values["architecture"] not in _IMAGENET:
        raise ConfigurationError(
            f"{file}: key 'start' is 'imagenet', which there is for {' and '.join(_IMAGENET)} alone"
        )
    made: dict[str, Any] = {
        key: typed_section(kind, values.get(key, {}), file, key) for key, kind in sections.items()
    }
    return Recipe(
        name=name,
        architecture=values["architecture"],
        base=str(values.get("base", "")),
        start=start,
        source=" ".join(str(values.get("source", "")).split()),
        **made,
    )


def _system(values: Mapping[str, Any], file: Path) -> type[System]:
    try:
        return find_system(str(values.get("architecture", "")))
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: key 'architecture': {error}") from error


def _plain(value: Any) -> Any:
    """What JSON keeps of a section, so that a recipe read back compares equal."""
    if isinstance(value, str):
        return value
    return json.loads(json.dumps(asdict(value)))
