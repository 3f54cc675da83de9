"""A new published system is one file: nothing else of the node has to know it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import ich_node.model
from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype
from ich_node.model.predict import load_predictor
from ich_node.model.system import architectures, find_system
from tests.system_bundles import ARCHITECTURES, small_bleed

FIFTH = '''
"""A system that calls bright blood what lies above a density that it was told."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ich_node.findings import IchSubtype
from ich_node.model.execution import finite
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.system import Scores, System


@dataclass(frozen=True, kw_only=True)
class BrightConfig:
    sharpness: float = 0.2


@dataclass(frozen=True, kw_only=True)
class BrightPreprocessing:
    most_hu: float = 100.0


class Bright(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.sharpness = config.sharpness
        self.level = nn.Parameter(torch.tensor(60.0))

    def forward(self, hu):
        return self.sharpness * (hu - self.level)


class BrightSystem(System):
    config_type = BrightConfig
    preprocessing_type = BrightPreprocessing
    localization_type = DetectorConfig

    @staticmethod
    def network(config):
        return Bright(config)

    @property
    def classes(self):
        return (IchSubtype.ANY,)

    def score(self, head):
        logits = np.full((len(head.hu), 1), -np.inf)
        for index, logit in zip(
            head.inside,
            self.execution.in_batches(head.inside, lambda part: [self._map(head, i).max() for i in part]),
        ):
            logits[index, 0] = logit
        return Scores(logits=logits)

    def maps(self, head, index, scores):
        return {IchSubtype.ANY: (1 / (1 + np.exp(-self._map(head, index)))).astype(np.float32)}

    def places(self, maps, spacing_mm):
        return detect(maps[IchSubtype.ANY], spacing_mm[1:], self.localization)

    def _map(self, head, index):
        """Brightness inside, where no bone is."""
        hu = np.where(head.mask.on_source_grid(index), head.hu[index], 0)
        hu = np.where(hu < self.preprocessing.most_hu, hu, 0)
        (network,) = self.networks
        return finite(network(self.execution.tensor(hu)))


SYSTEM = BrightSystem
'''


@pytest.fixture
def fifth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module of a fifth system, and its bundle, which is given."""
    modules, bundle = tmp_path / "modules", tmp_path / "bright-v1"
    modules.mkdir()
    bundle.mkdir()
    (modules / "bright_blood.py").write_text(FIFTH)
    encoded = save({"0.level": torch.tensor(55.0)})
    (bundle / "model.safetensors").write_bytes(encoded)
    description = {
        "format": 1,
        "name": "bright-v1",
        "version": "0.1",
        "architecture": "bright-blood",
        "config": {"sharpness": 0.5},
        "preprocessing": {"most_hu": 90},
        "localization": {"threshold": 0.4},
        "decision": {"rule": "max"},
        "operating_points": {"high_confidence": 0.9, "sensitive": 0.3},
        "training_data": [],
        "metrics": {},
        "intended_use": "Tests.",
        "weights_sha256": hashlib.sha256(encoded).hexdigest(),
    }
    (bundle / "bundle.json").write_text(json.dumps(description))
    monkeypatch.setattr(ich_node.model, "__path__", [*ich_node.model.__path__, str(modules)])
    yield bundle
    sys.modules.pop("ich_node.model.bright_blood", None)
    if hasattr(ich_node.model, "bright_blood"):
        delattr(ich_node.model, "bright_blood")


def test_the_published_systems_are_here() -> None:
    assert architectures() == tuple(sorted(ARCHITECTURES))


def test_a_fifth_system_is_one_file(fifth: Path) -> None:
    assert set(architectures()) == {*ARCHITECTURES, "bright-blood"}
    assert find_system("bright-blood").__name__ == "BrightSystem"
    reader, head = load_predictor(fifth, "cpu"), small_bleed()
    assert reader.system.config.sharpness == 0.5
    assert reader.system.preprocessing.most_hu == 90
    finding = reader.predict(head.hu, head.spacing_mm)
    assert (finding.algorithm.name, finding.algorithm.version) == ("bright-v1", "0.1")
    worst = finding.suspicious_slices[0]
    assert finding.suspicion == finding.slices[worst].probabilities[IchSubtype.ANY]
    place = finding.slices[worst].localizations[0]
    x, y = place.coordinates
    assert place.score == pytest.approx(finding.slices[worst].likelihood_maps[IchSubtype.ANY][int(y), int(x)])
    assert head.hu[worst][int(y), int(x)] > 55


def test_without_its_file_its_bundle_is_refused(fifth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ich_node.model, "__path__", ich_node.model.__path__[:-1])
    with pytest.raises(ConfigurationError, match=r"bright-v1/bundle\.json.*'architecture'.*vicar-mil"):
        load_predictor(fifth, "cpu")


def test_a_fifth_system_that_cannot_be_imported_says_what_is_missing(
    fifth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not unknown: the module that it needs is."""
    broken = fifth.parent / "modules" / "broken_system.py"
    broken.write_text("import a_module_that_nobody_has\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        find_system("broken-system")


@pytest.mark.parametrize("name", ["", "execution", "..system", "vicar_mil", "Vicar-mil", "vicar--mil", "os"])
def test_what_is_no_system_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match="is none of burduja, he-fusion, lite-mil, mil-pair, radnet, vicar-mil"
    ):
        find_system(name)
