"""What a bundle must be before anything reads with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ich_node.errors import ConfigurationError
from ich_node.findings import OperatingPoints
from ich_node.model.bundle import find_bundle, find_bundles, identification, read_description, verify_bundle
from ich_node.model.decision import DecisionConfig
from ich_node.model.predict import load_predictor
from ich_node.model.preprocess import PreprocessConfig
from ich_node.model.vicar_mil import VicarMil, VicarMilConfig
from training.evaluate import Points
from training.make_bundle import write_bundle
from training.train_vicar import TrainingConfig

SMALL = TrainingConfig(
    network=VicarMilConfig(widths=(4, 4, 8), attention_width=4),
    preprocess=PreprocessConfig(size=64, pitch_mm=3),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "small-v1"
    members = [VicarMil(SMALL.network).state_dict() for _ in range(2)]
    points = Points(high_confidence=0.8, sensitive=0.4)
    write_bundle(folder, members, SMALL, DecisionConfig(), points, version="1.2.3", metrics={}, phantoms=0)
    return folder


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = bundle / "bundle.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


def test_written_bundle_verifies_and_loads(bundle: Path):
    assert verify_bundle(bundle).startswith("small-v1 1.2.3: weights match SHA-256 ")
    algorithm = load_predictor(bundle, "cpu").algorithm
    assert (algorithm.name, algorithm.version) == ("small-v1", "1.2.3")
    assert algorithm.operating_points == OperatingPoints(high_confidence=0.8, sensitive=0.4)
    assert algorithm == identification(bundle, read_description(bundle))


def test_other_weights_are_refused(bundle: Path):
    weights = bundle / "model.safetensors"
    encoded = bytearray(weights.read_bytes())
    encoded[-1] ^= 1
    weights.write_bytes(encoded)
    for load in (verify_bundle, load_predictor):
        with pytest.raises(ConfigurationError, match=r"model\.safetensors.*weights_sha256"):
            load(bundle)


def test_a_pickle_is_never_opened(bundle: Path, tmp_path: Path):
    """A pickle under the name of the weights, its hash in the description, runs no code."""
    import hashlib
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    encoded = pickle.dumps(Bomb())
    (bundle / "model.safetensors").write_bytes(encoded)
    edit(bundle, lambda d: d.update(weights_sha256=hashlib.sha256(encoded).hexdigest()))
    with pytest.raises(ConfigurationError, match="no safetensors file"):
        load_predictor(bundle)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.pop("operating_points"), "operating_points"),
        (lambda d: d.update(format=2), "format"),
        (lambda d: d.update(architecture="resnet"), "architecture"),
        (lambda d: d["operating_points"].update(sensitive=0.9), "operating_points"),
        (lambda d: d["operating_points"].update(sensitive="low"), "operating_points.sensitive"),
        (lambda d: d["operating_points"].update(sensitive=float("nan")), "operating_points.sensitive"),
        (lambda d: d["config"].update(layers=3), "config.layers"),
        (lambda d: d["config"].update(members=0), "config.members"),
        (lambda d: d["config"].update(attention_width=5), r"tensor .* expected"),
        (lambda d: d["config"].update(members=3), r"tensor '2\..*missing"),
        (lambda d: d["config"].update(members=1), r"tensor '1\..*not part"),
        (lambda d: d["preprocessing"].update(size="big"), "preprocessing.size"),
        (lambda d: d.update(weights_sha256=5), "weights_sha256"),
    ],
)
def test_wrong_description_is_refused_with_file_and_key(
    bundle: Path, change: Callable[[dict[str, Any]], object], named: str
):
    edit(bundle, change)
    with pytest.raises(ConfigurationError, match=named) as refused:
        load_predictor(bundle)
    assert str(bundle) in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_no_json_object(bundle: Path, text: str):
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"bundle\.json"):
        read_description(bundle)


def test_missing_tensor_is_named(bundle: Path):
    import hashlib

    tensors = VicarMil(SMALL.network).state_dict()
    tensors.pop("classifier.bias")
    save_file({f"0.{k}": v for k, v in tensors.items()}, bundle / "model.safetensors")
    digest = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
    edit(bundle, lambda d: (d.update(weights_sha256=digest), d["config"].update(members=1)))
    with pytest.raises(ConfigurationError, match=r"'0\.classifier\.bias' is missing"):
        load_predictor(bundle)


def test_unknown_name_lists_those_there_are(bundle: Path):
    assert find_bundles(bundle.parent)["small-v1"] == bundle
    assert find_bundle("small-v1", bundle.parent) == bundle
    with pytest.raises(ConfigurationError, match="vicar-attention-v1"):
        find_bundle("nothing")


def test_device_that_is_not_there(bundle: Path):
    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has eight GPUs")
    with pytest.raises(ConfigurationError, match="cuda:7"):
        load_predictor(bundle, "cuda:7")


def test_looking_at_bundles_loads_no_torch():
    code = "import sys, ich_node.model.bundle as b; b.verify_bundle(b.find_bundle('vicar-attention-v1'));"
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
