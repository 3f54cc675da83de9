"""What a bundle must be before anything reads with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype, OperatingPoints
from ich_node.model.bundle import (
    find_bundle,
    find_bundles,
    identification,
    localization,
    members,
    prove_bundle,
    read_description,
    typed_section,
    verify_bundle,
)
from ich_node.model.bundle_section import Count, Limits, Positive, Share
from ich_node.model.predict import load_predictor
from ich_node.model.preprocess import PreprocessConfig
from ich_node.model.vicar_mil import VicarMil, VicarMilConfig, VicarMilSystem
from tests.system_bundles import ARCHITECTURES, write_system_bundle
from training.draft_bundle import write_bundle
from training.recipe import find_recipe

SMALL = replace(
    find_recipe("vicar-attention-small"),
    network=VicarMilConfig(widths=(4, 4, 8), attention_width=4),
    preprocessing=PreprocessConfig(size=64, pitch_mm=3),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "small-v1"
    members = [VicarMil(SMALL.network).state_dict() for _ in range(2)]
    points = {"high_confidence": 0.8, "sensitive": 0.4}
    write_bundle(folder, SMALL, members, {"version": "1.2.3", "operating_points": points}, "a card")
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
        (lambda d: d.update(members=0), "'members'"),
        (lambda d: d["config"].update(attention_width=5), r"tensor .* expected"),
        (lambda d: d.update(members=3), r"tensor '2\..*missing"),
        (lambda d: d.update(members=1), r"tensor '1\..*not part"),
        (lambda d: d["preprocessing"].update(size="big"), "preprocessing.size"),
        (lambda d: d.update(weights_sha256=5), "weights_sha256"),
        (lambda d: d.update(weights_sha256="AB" * 32), "weights_sha256"),
        (lambda d: d.update(source_sha256="short"), "source_sha256"),
        (lambda d: d.update(format=True), "format"),
        (lambda d: d.update(version=" "), "version"),
        (lambda d: d["config"].update(members=2), "'members' and 'config.members'"),
        (lambda d: d["config"].update(members=d.pop("members") > 1), "config.members"),
        (lambda d: d.update(localization={"most": 3}, detector={"most": 2}), "'localization' and 'detector'"),
        (lambda d: (d.pop("detector", None), d.update(localization={"most": 2.5})), "localization.most"),
        (lambda d: d.update(localization=[]), "localization"),
        (lambda d: d["decision"].update(rule="sum"), "decision.rule"),
        (lambda d: d["decision"].update(scale=float("inf")), "decision.scale"),
        (lambda d: d["decision"].update(scale=0), "decision.scale"),
        (lambda d: d["decision"].update(scale=-1), "decision.scale"),
        (lambda d: d["decision"].update(class_scale=[-1], class_offset=[0]), "decision.class_scale"),
        (lambda d: d["operating_points"].update(sensitive=10**400), "operating_points.sensitive"),
        (lambda d: d["config"].update(widths=[]), "'config'.*widths is empty"),
        (lambda d: d["config"].update(widths=[4, 0]), "config.widths"),
        (lambda d: d["config"].update(in_channels=4), "preprocessing.windows_hu.*in_channels"),
        (lambda d: d["config"].update(dropout=2), "config.dropout"),
        (lambda d: d["config"].update(dropout=-0.1), "config.dropout"),
        (lambda d: d["preprocessing"].update(size=0), "preprocessing.size"),
        (lambda d: d["preprocessing"].update(pitch_mm=-1), "preprocessing.pitch_mm"),
        (lambda d: d["preprocessing"].update(pitch_mm=0), "preprocessing.pitch_mm"),
        (lambda d: d["preprocessing"].update(windows_hu=[[40, 80]]), "preprocessing.windows_hu"),
        (lambda d: d["preprocessing"].update(windows_hu=[[40, 80], [50, 0]]), "preprocessing.windows_hu"),
    ],
)
def test_wrong_description_is_refused_with_file_and_key(
    bundle: Path, change: Callable[[dict[str, Any]], object], named: str
):
    edit(bundle, change)
    with pytest.raises(ConfigurationError, match=named) as refused:
        load_predictor(bundle)
    assert str(bundle) in str(refused.value)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small bundle of each system, which can be loaded."""
    root = tmp_path_factory.mktemp("sound")
    made = {name: write_system_bundle(root / name, name) for name in ARCHITECTURES}
    for folder in made.values():
        load_predictor(folder, "cpu")
    return made


@pytest.mark.parametrize(
    ("architecture", "section", "key", "value"),
    [
        ("he-fusion", "preprocessing", "size", 20),
        ("he-fusion", "preprocessing", "size", 0),
        ("he-fusion", "preprocessing", "pitch_mm", -1.0),
        ("he-fusion", "config", "reduction", 0),
        ("he-fusion", "config", "width", -1.0),
        ("he-fusion", "config", "dropout", 1.5),
        ("radnet", "config", "growth", -1),
        ("radnet", "config", "lstm_layers", 0),
        ("radnet", "config", "dropout", 2),
        ("radnet", "preprocessing", "size", 0),
        ("radnet", "preprocessing", "pitch_mm", 0),
        ("radnet", "preprocessing", "window_hu", [40, 0]),
        ("burduja", "config", "backbone", "resnext15_2x4d"),
        ("burduja", "config", "backbone", "no network"),
        ("burduja", "config", "selected", 0),
        ("burduja", "config", "selected", 10**6),
        ("burduja", "config", "dropout", 2),
        ("burduja", "config", "hidden", 0),
        ("burduja", "preprocessing", "size", -4),
        ("burduja", "preprocessing", "pitch_mm", -1),
        ("burduja", "preprocessing", "windows_hu", [[40, 80], [80, 200]]),
        ("burduja", "preprocessing", "mean", [0.5]),
        ("burduja", "preprocessing", "std", [0.5, 0.5, 0.5, 0.5]),
        ("burduja", "preprocessing", "std", [0.5, 0.5, 0]),
        ("vicar-published", "preprocessing", "size", 0),
    ],
)
def test_values_that_nothing_can_be_read_with(
    sound: dict[str, Path], tmp_path: Path, architecture: str, section: str, key: str, value: Any
):
    folder = Path(shutil.copytree(sound[architecture], tmp_path / architecture))
    edit(folder, lambda d: d[section].update({key: value}))
    with pytest.raises(ConfigurationError, match=rf"key '{section}") as refused:
        load_predictor(folder, "cpu")
    said = str(refused.value)
    assert said.startswith(f"{folder / 'bundle.json'}: ")
    assert key in said or str(value) in said


def test_no_network_is_made_before_the_weights_are_known(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[VicarMilConfig] = []
    monkeypatch.setattr(VicarMilSystem, "network", staticmethod(made.append))
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    with pytest.raises(ConfigurationError, match="weights_sha256"):
        load_predictor(bundle, "cpu")
    assert not made


def test_whatever_a_network_raises_names_file_and_key(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(_config: VicarMilConfig) -> VicarMil:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(VicarMilSystem, "network", staticmethod(fails))
    with pytest.raises(ConfigurationError, match=r"bundle\.json: key 'config': .*ZeroDivisionError: by zero"):
        load_predictor(bundle, "cpu")


def test_proof_loads_what_verifying_only_hashes(bundle: Path):
    assert prove_bundle(bundle) == verify_bundle(bundle)
    edit(bundle, lambda d: d.update(architecture="no-such-net"))
    verify_bundle(bundle)
    with pytest.raises(ConfigurationError, match=r"bundle\.json: key 'architecture'"):
        prove_bundle(bundle)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", '{"a":' * 100_000])
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
    edit(bundle, lambda d: (d.update(weights_sha256=digest), d.update(members=1)))
    with pytest.raises(ConfigurationError, match=r"'0\.classifier\.bias' is missing"):
        load_predictor(bundle)


def test_unknown_name_lists_those_there_are(bundle: Path):
    assert find_bundles(bundle.parent)["small-v1"] == bundle
    assert find_bundle("small-v1", bundle.parent) == bundle
    with pytest.raises(ConfigurationError, match="vicar-attention-v1"):
        find_bundle("nothing")


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a\\b", "a b", "x" * 101, "ü", "a\n"])
def test_name_has_to_be_a_plain_folder_name(bundle: Path, name: str):
    edit(bundle, lambda d: d.update(name=name))
    with pytest.raises(ConfigurationError, match=r"bundle\.json: key 'name'"):
        read_description(bundle)


def test_folder_of_another_name_is_refused(bundle: Path):
    other = bundle.rename(bundle.parent / "other")
    with pytest.raises(ConfigurationError, match=r"key 'name' is 'small-v1', but its folder is 'other'"):
        find_bundle("other", other.parent)


def test_folders_that_are_being_made_are_no_bundles(bundle: Path):
    bundle.rename(bundle.parent / ".new-abc")
    assert find_bundles(bundle.parent).keys() == find_bundles().keys()


def test_old_and_new_keys_say_the_same(bundle: Path):
    before = read_description(bundle)
    places = dict(localization(before))
    assert members(bundle, before) == 2

    def renamed(about: dict[str, Any]) -> None:
        about["config"]["members"] = about.pop("members")
        about["detector"] = about.pop("localization")

    edit(bundle, renamed)
    after = read_description(bundle)
    assert (members(bundle, after), dict(localization(after))) == (2, places)
    assert load_predictor(bundle, "cpu").algorithm.name == "small-v1"


def test_without_a_word_there_is_one_member_and_nothing_on_places(bundle: Path):
    edit(bundle, lambda d: (d.pop("members"), d.pop("localization")))
    about = read_description(bundle)
    assert (members(bundle, about), dict(localization(about))) == (1, {})


@dataclass(frozen=True, kw_only=True)
class Section:
    whole: int = 1
    number: float = 1.0
    yes: bool = False
    text: str = ""
    rule: Literal["max", "pair"] = "pair"
    level: Literal[1, 2] = 1
    widths: tuple[int, ...] = (1,)
    window: tuple[float, float] = (40.0, 80.0)
    windows: tuple[tuple[float, float], ...] = ()
    subtype: IchSubtype = IchSubtype.ANY
    maybe: float | None = None
    counts: tuple[Count, ...] = (1,)
    share: Share = 0.0
    positive: Positive = 1.0
    some: Annotated[int, Limits(least=2, most=4)] = 2

    def __post_init__(self) -> None:
        if self.whole < 0:
            raise ValueError("whole is below 0")


def section(**values: Any) -> Section:
    return typed_section(Section, values, Path("/b/bundle.json"), "config")


def test_section_takes_what_json_gives():
    made = section(
        number=3, windows=[[40, 80], [50.5, 130]], widths=[], subtype="subdural", level=2, maybe=None
    )
    assert made == Section(
        number=3.0, windows=((40.0, 80.0), (50.5, 130.0)), widths=(), subtype=IchSubtype.SUBDURAL, level=2
    )
    assert type(made.number) is float
    assert type(made.windows[0][0]) is float
    assert isinstance(made.subtype, IchSubtype)
    assert section(maybe=2) == Section(maybe=2.0)
    assert section(share=1, positive=1e-9, some=4) == Section(share=1.0, positive=1e-9, some=4)
    assert type(section(share=1).share) is float
    assert section() == Section()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unknown", 1),
        ("whole", 1.0),
        ("whole", True),
        ("whole", "1"),
        ("whole", None),
        ("number", True),
        ("number", "1"),
        ("number", float("nan")),
        ("number", float("-inf")),
        ("number", 10**400),
        ("yes", 1),
        ("text", 5),
        ("rule", "sum"),
        ("rule", ["max"]),
        ("level", True),
        ("level", 1.0),
        ("widths", 3),
        ("widths", "12"),
        ("widths", [1.5]),
        ("widths", [True]),
        ("window", [40.0]),
        ("window", [40.0, 80.0, 1.0]),
        ("window", [40.0, float("nan")]),
        ("windows", [40.0, 80.0]),
        ("windows", [[40.0, 80.0, 1.0]]),
        ("subtype", "thalamic"),
        ("maybe", "none"),
        ("counts", [1, 0]),
        ("counts", [1.5]),
        ("share", -1e-9),
        ("share", 1.1),
        ("share", True),
        ("positive", 0),
        ("some", 1),
        ("some", 5),
    ],
)
def test_section_refuses_what_is_unknown_or_of_the_wrong_kind(key: str, value: Any):
    with pytest.raises(ConfigurationError, match=rf"/b/bundle\.json: key 'config\.{key}'"):
        section(**{key: value})


def test_section_that_its_own_check_refuses():
    with pytest.raises(ConfigurationError, match="'config': whole is below 0"):
        section(whole=-1)
    with pytest.raises(ConfigurationError, match="'config' has to be an object"):
        typed_section(Section, [1], Path("/b/bundle.json"), "config")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.update(surplus=torch.zeros(1)), "'surplus' is not part of the network"),
        (
            lambda t: t.update({"1.classifier.bias": torch.zeros(2)}),
            r"'1\.classifier\.bias' is \(2,\), expected \(1,\)",
        ),
        (
            lambda t: t.update({"1.classifier.bias": torch.tensor([1])}),
            r"'1\.classifier\.bias' is torch\.int64",
        ),
        (lambda t: t["0.stem.0.weight"].view(-1)[3:4].fill_(float("nan")), r"'0\.stem\.0\.weight' holds NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    bundle: Path, change: Callable[[dict[str, torch.Tensor]], object], named: str
):
    import hashlib

    from safetensors.torch import load_file

    file = bundle / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    edit(bundle, lambda d: d.update(weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest()))
    with pytest.raises(ConfigurationError, match=rf"model\.safetensors: tensor {named}"):
        load_predictor(bundle, "cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "bundle.json"])
def test_folder_in_the_place_of_a_file(bundle: Path, name: str):
    (bundle / name).unlink()
    (bundle / name).mkdir()
    with pytest.raises(ConfigurationError, match=rf"{name}: cannot be read"):
        verify_bundle(bundle)


def test_device_that_is_not_there(bundle: Path):
    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has eight GPUs")
    with pytest.raises(ConfigurationError, match="cuda:7"):
        load_predictor(bundle, "cuda:7")


def test_looking_at_bundles_loads_no_torch():
    code = "import sys, ich_node.model.bundle as b; b.verify_bundle(b.find_bundle('vicar-attention-v1'));"
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
