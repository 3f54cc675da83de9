"""Two multiple-instance systems as one reader: system A (Vicar et al.) and the package's own, averaged.

They look at different things, small bags of HU windows at one scale and ImageNet features at several with the slices
beside, and so err on different patients. Each is calibrated by itself first; the mean of their calibrated logits is
the slice's, and the mean of their maps is what is shown and pointed at.

They speak of any hemorrhage alone. The package's own knows subtypes too, but what a bundle of few patients knows of
them is not worth a line in a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from torch import nn

from ich_node.findings import IchSubtype, Localization
from ich_node.model.bundle_section import Positive
from ich_node.model.decision import DecisionConfig
from ich_node.model.lite_mil import LiteMil, LiteMilConfig, LiteMilPreprocessing, LiteMilSystem
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.preprocess import PreprocessConfig
from ich_node.model.system import ClassMaps, Head, Scores, Spacing, System
from ich_node.model.vicar_mil import VicarMil, VicarMilConfig, VicarMilSystem


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Logit of *any* to be averaged = ``scale`` * logit + ``offset``."""

    scale: Positive = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MilPairConfig:
    """Shape of both networks, and how the logits of each are calibrated before they are averaged."""

    vicar: VicarMilConfig = field(default_factory=VicarMilConfig)
    lite: LiteMilConfig = field(default_factory=LiteMilConfig)
    vicar_calibration: Calibration = field(default_factory=Calibration)
    lite_calibration: Calibration = field(default_factory=Calibration)


@dataclass(frozen=True, kw_only=True)
class MilPairPreprocessing:
    """How slices become the input of each."""

    vicar: PreprocessConfig = field(default_factory=PreprocessConfig)
    lite: LiteMilPreprocessing = field(default_factory=LiteMilPreprocessing)


class MilPair(nn.Module):
    """One member of the ensemble: a network of each kind. They are run by their systems."""

    def __init__(self, config: MilPairConfig) -> None:
        super().__init__()
        self.vicar = VicarMil(config.vicar)
        self.lite = LiteMil(config.lite)


class MilPairSystem(System):
    """Both systems on the same slices."""

    config_type = MilPairConfig
    preprocessing_type = MilPairPreprocessing
    localization_type = DetectorConfig
    required: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "config": ("vicar", "lite", "vicar_calibration", "lite_calibration"),
        "preprocessing": ("vicar", "lite"),
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config: MilPairConfig = self.config
        preprocessing: MilPairPreprocessing = self.preprocessing
        pairs = [network for network in self.networks if isinstance(network, MilPair)]
        # its map is calibrated as its logits are; the other's is not
        calibrated = DecisionConfig(
            scale=config.vicar_calibration.scale, offset=config.vicar_calibration.offset
        )
        self._vicar = VicarMilSystem(
            tuple(pair.vicar for pair in pairs),
            config.vicar,
            preprocessing.vicar,
            self.localization,
            self.execution,
            calibrated,
        )
        self._lite = LiteMilSystem(
            tuple(pair.lite for pair in pairs),
            config.lite,
            preprocessing.lite,
            self.localization,
            self.execution,
        )
        self._parts = ((self._vicar, config.vicar_calibration), (self._lite, config.lite_calibration))

    @staticmethod
    def network(config: Any) -> MilPair:
        """Make the pair of networks that a `MilPairConfig` describes, with random weights."""
        return MilPair(config)

    @property
    def classes(self) -> tuple[IchSubtype, ...]:
        """*Any* alone."""
        return (IchSubtype.ANY,)

    def score(self, head: Head) -> Scores:
        """Score every slice that shows intracranial space by both, and average."""
        logits, told = np.zeros((len(head.hu), 1)), []
        for system, calibration in self._parts:
            scores = system.score(head)
            column = system.classes.index(IchSubtype.ANY)
            logits[:, 0] += (calibration.scale * scores.logits[:, column] + calibration.offset) / len(
                self._parts
            )
            told.append(replace(scores, logits=np.empty(0)))
        return Scores(logits=logits, kept=dict.fromkeys(head.inside, told))

    def maps(self, head: Head, index: int, scores: Scores) -> ClassMaps:
        """Mean of both systems' own probability of each position."""
        both = [
            system.maps(head, index, told)[IchSubtype.ANY]
            for (system, _), told in zip(self._parts, scores.kept[index], strict=True)
        ]
        return {IchSubtype.ANY: np.mean(both, axis=0, dtype=np.float32)}

    def places(self, maps: ClassMaps, spacing_mm: Spacing) -> tuple[Localization, ...]:
        """Points by the detector of Vicar et al."""
        return detect(maps[IchSubtype.ANY], spacing_mm[1:], self.localization)


SYSTEM = MilPairSystem
