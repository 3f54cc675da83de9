"""What systems cost, counted without numbers: the same as with numbers, as by hand, and as the documents say."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ich_node.model
from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype
from ich_node.model import costs
from ich_node.model.bundle import DEFAULT_NAME, DESCRIPTION_FILE, SHIPPED, WEIGHTS_FILE
from ich_node.model.costs import Costs, all_costs, architecture_costs, bundle_costs, find_costs
from ich_node.model.execution import Execution
from ich_node.model.predict import load_predictor
from ich_node.model.radnet import RadNet, RadNetConfig, RadNetPreprocessing
from ich_node.model.system import architectures, find_system
from ich_node.model.vicar_mil import VicarMil, VicarMilConfig
from tests.unit.little_head import SPACING_MM, little_head

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
SHIPPED_BUNDLE = SHIPPED / "vicar-attention-v1"


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, str], Costs]:
    return {(each.name, each.config): each for each in all_costs()}


@pytest.fixture(scope="module")
def shipped() -> Costs:
    return bundle_costs(SHIPPED_BUNDLE)


def operations(run: Any) -> int:
    """Multiply-adds of what is run with numbers."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    return counter.get_total_flops() // 2


def described(folder: Path, **changes: Any) -> Path:
    """A bundle's folder with the shipped description, changed, and no weights."""
    folder.mkdir()
    description = json.loads((SHIPPED_BUNDLE / DESCRIPTION_FILE).read_text())
    (folder / DESCRIPTION_FILE).write_text(json.dumps({**description, **changes}))
    return folder


def test_every_architecture_is_counted_in_its_default_configuration(counted):
    assert {name for name, config in counted if not config} == set(architectures())
    assert all(each.parameters > 0 and each.multiply_adds > 0 for each in counted.values())
    assert all(each.input_size[0] == each.input_size[1] >= 160 for each in counted.values())


@pytest.mark.parametrize(
    ("name", "config", "parameters", "billions"),
    [
        ("he-fusion", "", 18_468_606, 21.41),
        ("radnet", "", 1_609_901, 16.12),
        ("burduja", "sequence=false", 86_754_630, 21.44),
        ("burduja", "", 86_754_630 + 3_931_178, 21.44),
        ("burduja", "backbone=efficientnet_lite0", 3_378_694 + 3_931_178, 0.51),
    ],
)
def test_published_shapes_have_the_known_size(counted, name, config, parameters, billions):
    each = counted[name, config]
    assert each.parameters == parameters
    assert round(each.multiply_adds / 1e9, 2) == billions


def test_lstm_is_counted_for_each_slice(counted):
    # by hand: two directions, four gates, 128 wide, on 448 features and 128 of its own
    lstm = 2 * 4 * 128 * (448 + 128)
    classifiers = 2 * 128 - 448
    difference = counted["radnet", ""].multiply_adds - counted["radnet", "lstm=false"].multiply_adds
    assert difference == lstm + classifiers


def test_count_does_not_depend_on_how_many_slices_are_read(monkeypatch: pytest.MonkeyPatch, counted):
    monkeypatch.setattr(costs, "_SLICES", 19)  # more than a batch
    monkeypatch.setattr(costs, "_SHAPES", {})
    assert architecture_costs("radnet") == (counted["radnet", ""],)


def test_score_with_numbers_takes_what_was_counted_without(monkeypatch: pytest.MonkeyPatch):
    shape = {"growth": 2, "lstm": False, "stem_stride": 4}
    monkeypatch.setattr(costs, "_SHAPES", {"radnet": (shape,)})
    (small,) = architecture_costs("radnet")
    config = RadNetConfig(growth=2, lstm=False, stem_stride=4)
    network = RadNet.network(config)
    execution = Execution("cpu")
    system = RadNet(
        (execution.place(network),), config, RadNetPreprocessing(), RadNet.localization_type(), execution
    )
    assert operations(lambda: system.score(costs._solid_head())) == costs._SLICES * small.multiply_adds
    assert small.parameters == sum(p.numel() for p in network.parameters())
    assert small.config == "growth=2, stem_stride=4, lstm=false"


def test_radnets_heads_come_on_top(counted):
    with torch.device("meta"):
        network, x = RadNet.network(RadNetConfig()).eval(), torch.empty(1, 1, 250, 250)
    whole = operations(lambda: network(x))
    assert round(whole / 1e9, 2) == 16.13
    assert whole > counted["radnet", ""].multiply_adds


def test_members_and_mirrors_of_a_bundle_are_counted(shipped):
    config = VicarMilConfig(widths=(16, 32, 48), attention_width=48, dropout=0.2)
    network = VicarMil(config).eval()
    x, mask = torch.zeros(1, 3, 160, 160), torch.ones(1, 160, 160, dtype=torch.bool)
    once = operations(lambda: network(x, mask))
    assert shipped.networks == 5
    assert shipped.multiply_adds == 5 * 2 * once
    assert shipped.parameters == sum(p.numel() for p in network.parameters())
    assert (shipped.name, shipped.architecture) == ("vicar-attention-v1", "vicar-mil")


def test_a_bundle_needs_no_weights(tmp_path: Path):
    folder = described(tmp_path / "bare", name="bare", config={"pooling": "max"}, members=2)
    found = bundle_costs(folder)
    assert (found.name, found.config, found.networks) == ("bare", "pooling=max", 2)
    assert find_costs(["bare", "vicar-published"], tmp_path)[0] == found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": {"breadth": 1}}, "config.breadth"),
        ({"preprocessing": {"size": "large"}}, "preprocessing.size"),
        ({"architecture": "unheard-of"}, "unheard-of"),
        ({"members": 99, "config": {}}, "members"),
        (
            {"architecture": "burduja", "config": {"backbone": "resnext99_1x1d"}, "preprocessing": {}},
            "resnext99",
        ),
    ],
)
def test_a_bundle_that_cannot_be_read_is_not_counted(tmp_path: Path, changes: dict[str, Any], said: str):
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        bundle_costs(described(tmp_path / "faulty", **changes))


def test_unknown_name_is_refused_with_those_there_are(tmp_path: Path):
    with pytest.raises(
        ConfigurationError, match=r"'other' is no architecture \(burduja, .*vicar-attention-v1"
    ):
        find_costs(["radnet", "other"], tmp_path)


def table_of_the_document() -> list[list[str]]:
    """Cells of the costs' table, without its head."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if "multiply-adds per slice |" in line)
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def test_table_of_the_document_is_what_is_counted(counted, shipped):
    wanted = [
        [
            each.name,
            each.config or "default",
            f"{each.input_size[0]} x {each.input_size[1]}",
            str(each.networks),
            f"{each.parameters:,}",
            f"{each.multiply_adds / 1e9:.3f} G",
        ]
        for each in (*counted.values(), shipped, bundle_costs(SHIPPED / DEFAULT_NAME))
    ]
    assert table_of_the_document() == wanted


@dataclass(frozen=True, kw_only=True)
class Fifth:
    """The document's example as an architecture."""

    folder: Path
    name: str


@pytest.fixture
def fifth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fifth]:
    """Save the document's code as the file that it names, in a folder that the package looks in."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (file,) = re.findall(r"Saved as `(\w+\.py)`", text)
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / file).write_text(code)
    monkeypatch.setattr(ich_node.model, "__path__", [*ich_node.model.__path__, str(folder)])
    module = file.removesuffix(".py")
    yield Fifth(folder=tmp_path, name=module.replace("_", "-"))
    monkeypatch.delattr(ich_node.model, module, raising=False)
    monkeypatch.delitem(sys.modules, f"ich_node.model.{module}", raising=False)


def test_fifth_system_of_the_document_reads_and_is_counted(fifth: Fifth):
    assert fifth.name in architectures()
    (found,) = find_costs([fifth.name])
    assert found.input_size == (160, 160)
    # by hand: 39 x 39 places of a 7x7 convolution at stride 4, and a 1x1 one
    assert found.multiply_adds == 39 * 39 * (16 * 3 * 49 + 16)
    assert found.parameters == 16 * 3 * 49 + 16 + 16 + 1
    bundle = described(
        fifth.folder / "fifth",
        name="fifth",
        architecture=fifth.name,
        config={},
        members=2,
        weights_sha256=_bright_weights(fifth),
        decision={"rule": "max"},
    )
    shutil.copy(fifth.folder / WEIGHTS_FILE, bundle)
    finding = load_predictor(bundle, "cpu").predict(little_head(), SPACING_MM)
    suspicious = [each for each in finding.slices if each.localizations]
    assert 0 < finding.suspicion < 1
    assert suspicious
    assert all(place.subtype is IchSubtype.ANY for each in suspicious for place in each.localizations)
    assert len({round(each.probabilities[IchSubtype.ANY], 6) for each in suspicious}) > 1


def _bright_weights(fifth: Fifth) -> str:
    """Weights of two networks that see what is bright in the brain window; their SHA-256."""
    system = find_system(fifth.name)
    networks = nn.ModuleList(system.network(system.config_type()) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for tensor in networks.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator).abs() * 0.02)
    file = fifth.folder / WEIGHTS_FILE
    save_file(networks.state_dict(), file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_counting_leaves_numbers_alone():
    """The mode that stands in for numbers touches tensors of the meta device only."""
    with costs._NumbersOfMeta():
        assert torch.full((2,), 3.0).cpu().tolist() == [3.0, 3.0]
        assert not torch.isfinite(torch.tensor(np.inf))
