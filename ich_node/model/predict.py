"""Reading a volume with a bundle: Hounsfield units in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ich_node.errors import ConfigurationError, RejectionReason, StudyRejected
from ich_node.findings import AlgorithmIdentification, IchSubtype, SeriesFinding, SliceFinding
from ich_node.model import bundle as bundles
from ich_node.model.decision import DecisionConfig, Probabilities, slice_probabilities, suspicion
from ich_node.model.execution import Execution, Precision
from ich_node.model.input_range import InputRange, measure, unlike
from ich_node.model.lite_mil import LiteMilPreprocessing
from ich_node.model.preprocess import PreprocessConfig
from ich_node.model.slabs import Slabs, in_slabs
from ich_node.model.system import ClassMaps, Head, Scores, Spacing, System, find_system
from ich_node.model.weights import load_networks

FloatArray = npt.NDArray[np.float32]
_MOST_MAPPED = 32
"""Slices, or slabs, whose likelihood maps are kept, the most suspicious ones: a thin-slice study may have hundreds, of
which a report shows a few. Places are given for all."""


class Predictor:
    """A loaded bundle. Deterministic on the CPU; one instance serves any number of volumes, one at a time."""

    def __init__(
        self,
        *,
        system: System,
        decision: DecisionConfig,
        algorithm: AlgorithmIdentification,
        training_inputs: InputRange | None = None,
        slab_mm: float | None = None,
    ) -> None:
        self.algorithm = algorithm
        """Who reads, for the report and the worklist."""
        self.system = system
        """What reads."""
        self.slab_mm = slab_mm
        """Thin slices are averaged to slabs of at most this height."""
        self._decision = decision
        self._any = system.classes.index(IchSubtype.ANY)
        self._training_inputs = training_inputs

    def predict(
        self,
        hu: FloatArray,
        spacing_mm: Spacing,
        *,
        slice_thickness_mm: float | None = None,
        widest_gap_mm: float | None = None,
    ) -> SeriesFinding:
        """Read a head CT.

        Parameters
        ----------
        hu
            (slices, rows, columns) float32, HU, inferior to superior.
        spacing_mm
            (slice, row, column) distance of neighbouring centres, mm.
        slice_thickness_mm
            Where it is known: compared with what the model was trained on, and thick slices are no slab's.
        widest_gap_mm
            Largest distance of neighbouring slices, where it is known: thick slices among thin ones are no slab.

        Returns
        -------
        SeriesFinding
            Slices without intracranial space have probability 0. Points and boxes are given for slices at or
            above the sensitive operating point, likelihood maps for the most suspicious of them. Thin slices that
            were read as a slab have its probability each; its places and maps are its middle slice's.

        Raises
        ------
        StudyRejected
            INVALID_MODEL_OUTPUT: the network gave NaN or infinity. NOT_HEAD: no slice shows the inside of a
            skull. IMPLAUSIBLE_VALUES: the volume holds NaN or infinity, is empty, or its spacing is not
            positive.
        """
        _check_input(hu, spacing_mm)
        slabs = in_slabs(
            Head(hu=hu, spacing_mm=spacing_mm),
            self.slab_mm,
            slice_thickness_mm=slice_thickness_mm,
            widest_gap_mm=widest_gap_mm,
        )
        head = slabs.head
        if not head.inside:
            raise StudyRejected(RejectionReason.NOT_HEAD, "No slice shows the inside of a skull.")
        scores = self.system.score(head)
        _check_scores(scores, head)
        probabilities = slice_probabilities(scores.logits, self._decision)
        # A slice that the mask lost among others breaks no run of neighbours.
        inside = probabilities[list(head.inside)]
        by_class = {
            subtype: suspicion(inside[:, column], self._decision)
            for column, subtype in enumerate(self.system.classes)
        }
        features = measure(head, slabs.thickness_mm)
        training = self._training_inputs
        return SeriesFinding(
            slices=_of_volume(self._slices(head, scores, probabilities), slabs),
            suspicion=by_class.pop(IchSubtype.ANY),
            subtypes=by_class,
            algorithm=self.algorithm,
            input_features=features.known(),
            unlike_training=None if training is None else unlike(features, training),
            slab_mm=slabs.height_mm,
        )

    def maps(self, head: Head, index: int, scores: Scores) -> ClassMaps:
        """Likelihood maps of one slice that was scored, 0 to 1 and cut to the intracranial space.

        Raises
        ------
        StudyRejected
            INVALID_MODEL_OUTPUT: a map holds NaN or infinity.
        """
        return _inside(self.system.maps(head, index, scores), head, index)

    def _slices(self, head: Head, scores: Scores, probabilities: Probabilities) -> tuple[SliceFinding, ...]:
        of_any = probabilities[:, self._any]
        suspicious = np.flatnonzero(of_any >= self.algorithm.operating_points.sensitive)
        most = sorted(suspicious, key=lambda index: (-of_any[index], index))
        shown = {int(index): rank < _MOST_MAPPED for rank, index in enumerate(most)}
        return tuple(
            self._slice(head, scores, index, row, keep_maps=shown.get(index))
            for index, row in enumerate(probabilities)
        )

    def _slice(
        self, head: Head, scores: Scores, index: int, row: Probabilities, *, keep_maps: bool | None
    ) -> SliceFinding:
        """What is said of one slice; ``keep_maps`` is ``None`` for one that is not suspicious."""
        probabilities = {subtype: float(p) for subtype, p in zip(self.system.classes, row, strict=True)}
        if keep_maps is None:
            return SliceFinding(probabilities=probabilities)
        maps = self.maps(head, index, scores)
        return SliceFinding(
            probabilities=probabilities,
            localizations=self.system.places(maps, head.spacing_mm),
            likelihood_maps=maps if keep_maps else {},
        )


def load_predictor(
    bundle: Path | None = None, device: str = "auto", precision: Precision = "float32"
) -> Predictor:
    """Load a bundle, by default the one that is shipped.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    device
        ``auto`` (CUDA where there is any), ``cpu``, ``cuda`` or ``cuda:N``.
    precision
        Of weights and arithmetic, see `ich_node.model.execution.Execution`.

    Raises
    ------
    ConfigurationError
        The bundle is not what its description says, is of an architecture that this version does not know,
        has a value that nothing can be read with, or the device is not there. The message names the file and the
        key.
    """
    folder = bundle if bundle is not None else bundles.SHIPPED / bundles.DEFAULT_NAME
    description = bundles.read_description(folder)
    algorithm = bundles.identification(folder, description)
    members, system = bundles.members(folder, description), _system(folder, description["architecture"])

    def section(kind: type, key: str, values: Mapping[str, Any]) -> Any:
        return bundles.typed_section(kind, values, folder / bundles.DESCRIPTION_FILE, key)

    for key, names in system.required.items():
        for name in names:
            if name not in description[key]:
                raise ConfigurationError(
                    f"{folder / bundles.DESCRIPTION_FILE}: key '{key}.{name}' is missing"
                )
    config = section(system.config_type, "config", _without_members(description["config"]))
    preprocessing = section(system.preprocessing_type, "preprocessing", description["preprocessing"])
    localization = section(system.localization_type, "localization", bundles.localization(description))
    decision = section(DecisionConfig, "decision", description["decision"])
    training_inputs = None
    if "training_inputs" in description:
        training_inputs = section(InputRange, "training_inputs", description["training_inputs"])
    _check_preprocessing(folder, config, preprocessing)
    execution = Execution(device, precision)
    networks = load_networks(folder, description, lambda: system.network(config), members)
    placed = tuple(execution.place(network) for network in networks)
    loaded = system(placed, config, preprocessing, localization, execution, decision)
    _check_decision(folder, loaded, decision)
    return Predictor(
        system=loaded,
        decision=decision,
        algorithm=algorithm,
        training_inputs=training_inputs,
        slab_mm=bundles.slab_mm(folder, description),
    )


def _system(folder: Path, architecture: str) -> type[System]:
    try:
        return find_system(architecture)
    except (ConfigurationError, ImportError) as error:
        raise ConfigurationError(
            f"{folder / bundles.DESCRIPTION_FILE}: key 'architecture': {error}"
        ) from error


def _without_members(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "members"}


def _of_volume(read: Sequence[SliceFinding], slabs: Slabs) -> tuple[SliceFinding, ...]:
    """What was found on slabs, slice by slice of the volume."""
    if slabs.height_mm is None:
        return tuple(read)
    found = [
        SliceFinding(probabilities=read[k].probabilities, shown_on=slabs.middle[k]) for k in slabs.slab_of
    ]
    for slab, middle in zip(read, slabs.middle, strict=True):
        found[middle] = replace(slab, shown_on=middle)
    return tuple(found)


def _inside(maps: ClassMaps, head: Head, index: int) -> ClassMaps:
    """Maps of one slice, 0 to 1 and cut to the intracranial space."""
    inside = head.mask.on_source_grid(index)
    if not all(np.isfinite(each).all() for each in maps.values()):
        raise StudyRejected(
            RejectionReason.INVALID_MODEL_OUTPUT, "The model's map is not a number; the weights are unfit."
        )
    return {subtype: np.asarray(np.clip(each, 0, 1) * inside, np.float32) for subtype, each in maps.items()}


def _check_preprocessing(folder: Path, config: Any, preprocessing: Any, part: str = "") -> None:
    """Refuse what the fields of the sections themselves do not, or what only two sections together show."""
    key, file = f"preprocessing{part}", folder / bundles.DESCRIPTION_FILE
    for field in fields(preprocessing):
        inner = getattr(preprocessing, field.name)
        if is_dataclass(inner):  # of a system of several, each with its own
            _check_preprocessing(folder, getattr(config, field.name), inner, f"{part}.{field.name}")
    size = getattr(preprocessing, "size", None)
    if isinstance(size, int) and size < 1:
        raise ConfigurationError(f"{file}: key '{key}.size' is {size}; it has to be 1 or more")
    low, high = getattr(preprocessing, "hu_range", (0, 1))
    if not low < high:
        raise ConfigurationError(f"{file}: key '{key}.hu_range' has to rise; it is {low:g} to {high:g}")
    if isinstance(preprocessing, LiteMilPreprocessing):
        _check_channels(file, part, config.in_channels, len(preprocessing.windows_hu), beside=3)
    if not isinstance(preprocessing, PreprocessConfig):
        return
    if preprocessing.pitch_mm <= 0:
        raise ConfigurationError(
            f"{file}: key '{key}.pitch_mm' is {preprocessing.pitch_mm}; it has to be more than 0"
        )
    windows = preprocessing.windows_hu
    if not all(width > 0 for _, width in windows):
        raise ConfigurationError(f"{file}: key '{key}.windows_hu': the width of a window is more than 0")
    if hasattr(config, "in_channels"):
        _check_channels(
            file, part, config.in_channels, len(windows), beside=1
        )  # the slice itself is the first


def _check_channels(file: Path, part: str, channels: int, windows: int, *, beside: int) -> None:
    """Refuse a network that takes another number of channels than are shown to it."""
    if channels != windows + beside:
        raise ConfigurationError(
            f"{file}: key 'preprocessing{part}.windows_hu' has {windows} windows, but 'config{part}.in_channels' is "
            f"{channels}, which needs {channels - beside}"
        )


def _check_decision(folder: Path, system: System, decision: DecisionConfig) -> None:
    file = folder / bundles.DESCRIPTION_FILE
    for key in ("class_scale", "class_offset"):
        given: tuple[Any, ...] = getattr(decision, key)
        if given and len(given) != len(system.classes):
            raise ConfigurationError(
                f"{file}: key 'decision.{key}' has {len(given)} numbers for {len(system.classes)} classes"
            )
    # 0 would call all slices the same; with less the most suspicious would be the least
    for key, scales in (("scale", (decision.scale,)), ("class_scale", decision.class_scale)):
        if not all(scale > 0 for scale in scales):
            raise ConfigurationError(f"{file}: key 'decision.{key}' has to be more than 0")


def _check_scores(scores: Scores, head: Head) -> None:
    inside = scores.logits[list(head.inside)]
    if not np.isfinite(inside).all():
        raise StudyRejected(
            RejectionReason.INVALID_MODEL_OUTPUT, "The model's output is not a number; the weights are unfit."
        )


def _check_input(hu: FloatArray, spacing_mm: Spacing) -> None:
    if hu.ndim != 3 or 0 in hu.shape or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise StudyRejected(
            RejectionReason.IMPLAUSIBLE_VALUES, f"A volume of shape {hu.shape} with spacing {spacing_mm} mm."
        )
    if not np.isfinite(hu).all():
        raise StudyRejected(
            RejectionReason.IMPLAUSIBLE_VALUES, "The volume holds values that are no numbers."
        )
