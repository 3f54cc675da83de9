"""The commands about bundles: what they print and what they exit with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ich_node.cli import checks, main
from ich_node.errors import ConfigurationError
from ich_node.model.bundle import DEFAULT_NAME
from ich_node.settings import ModelSettings, Settings
from tests.unit.published_checkpoints import vicar_checkpoint
from tests.unit.test_model_bundle_install import CANNOT_READ, OTHER, make_bundle, tarred

SHIPPED = "vicar-attention-v1"
ALL_SHIPPED = (DEFAULT_NAME, SHIPPED)
DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.save(vicar_checkpoint("max"), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["models", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_looking_makes_nothing(data_dir: Path, capsys: pytest.CaptureFixture[str]):
    assert run("list") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if SHIPPED in line)
    assert line.split()[:3] == [SHIPPED, "1.2.0", "vicar-mil"]  # another one reads
    assert run("show", SHIPPED, "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == SHIPPED
    assert run("show", SHIPPED) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["name", SHIPPED] in lines
    assert ["preprocessing.windows_hu", "1", "40.0,", "80.0"] in lines
    assert run("verify", SHIPPED) == 0
    assert not data_dir.exists()


def test_installed_bundle_is_listed_and_shown(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    archive = tarred(make_bundle(tmp_path / "b"), "", ".tar.gz")
    assert run("install", str(archive)) == 0
    printed = capsys.readouterr()
    assert "small 1 installed" in printed.out
    assert 'set model.bundles = ["small"] and' in printed.err
    assert (data_dir / "models" / "small" / "bundle.json").is_file()
    assert run("install", str(archive)) == 0
    assert "already installed" in capsys.readouterr().out
    assert run("install", str(archive), "--json") == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True
    assert run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out).keys() == {*ALL_SHIPPED, "small"}


def test_replacing_has_to_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("install", str(make_bundle(tmp_path / "one"))) == 0
    other = str(make_bundle(tmp_path / "two", version="2", weights=OTHER))
    assert run("install", other) == 2
    assert "--replace" in capsys.readouterr().err
    assert run("install", other, "--replace") == 0
    assert "small 2 installed in place of 1" in capsys.readouterr().out


def test_verify_goes_on_after_a_faulty_bundle(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("aa", "bb", "cc"):
        assert run("install", str(make_bundle(tmp_path / name, name))) == 0
    (data_dir / "models" / "aa" / "model.safetensors").write_bytes(b"others")
    (data_dir / "models" / "bb" / "bundle.json").write_text("{")
    capsys.readouterr()
    assert run("verify") == 1
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == [*ALL_SHIPPED, "cc"]
    assert "aa: FAULT" in printed.err
    assert "bb: FAULT" in printed.err
    assert run("verify", "aa") == 1
    assert run("verify", "bb") == 1
    assert run("verify", "cc") == 0
    capsys.readouterr()
    assert run("verify", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert {name for name, about in found.items() if not about["ok"]} == {"aa", "bb"}
    assert run("verify", "dd") == 2
    assert "there is no bundle 'dd'" in capsys.readouterr().err
    assert run("list", "--json") == 1
    listed = json.loads(capsys.readouterr().out)
    assert "cannot be read as JSON" in listed["bb"]["error"]
    assert "weights_sha256" in listed["aa"]["error"]
    assert listed["aa"]["version"] == "1"
    assert "error" not in listed["cc"]
    assert listed["cc"]["version"] == "1"
    assert run("show", "bb") == 2


def test_bundle_that_is_to_read_but_is_not_here_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("ICH_NODE_MODEL__BUNDLES", f'["{SHIPPED}", "absent"]')
    assert run("list", "--json") == 1
    listed = json.loads(capsys.readouterr().out)
    assert listed.keys() == {*ALL_SHIPPED, "absent"}
    assert "error" not in listed[SHIPPED]
    assert "there is no bundle 'absent'" in listed["absent"]["error"]
    assert run("list") == 1
    first_words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert first_words[:4] == ["Name", DEFAULT_NAME, "reads", "absent"]


@pytest.mark.parametrize("named", CANNOT_READ)
def test_bundle_that_cannot_read_is_a_fault(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str], named: str
):
    """The hash is right: only loading it shows."""
    assert run("install", str(make_bundle(tmp_path / "b", **CANNOT_READ[named]))) == 2
    assert re.search(named, capsys.readouterr().err)
    assert not list(data_dir.glob("models/*"))
    make_bundle(data_dir / "models" / "small", **CANNOT_READ[named])
    assert run("verify", "small") == 1
    assert re.search(named, capsys.readouterr().err)


def test_doctor_loads_the_bundles_that_read(tmp_path: Path):
    settings = Settings(data_dir=tmp_path, model=ModelSettings(bundles=("small",)))
    folder = make_bundle(settings.bundles_dir / "small")
    assert checks._model(settings)[0]
    about = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(about | {"architecture": "no-such-net"}))
    with pytest.raises(ConfigurationError, match=r"small/bundle\.json: key 'architecture'"):  # a failed check
        checks._model(settings)


def test_import_says_what_was_not_chosen(checkpoint: str, data_dir: Path, capsys: pytest.CaptureFixture[str]):
    assert run("import", "vicar", checkpoint, "--licence", "MIT") == 0
    printed = capsys.readouterr()
    assert "vicar-published-max 1.0.0 installed" in printed.out
    assert "not chosen on data" in printed.err
    assert run("verify") == 0
    points = ("--sensitive", "0.3", "--high-confidence", "0.8")
    assert run("import", "vicar", checkpoint, "--name", "mine", "--version", "2", *points) == 0
    assert "not chosen" not in capsys.readouterr().err
    about = json.loads((data_dir / "models" / "mine" / "bundle.json").read_text())
    assert about["operating_points"] == {"high_confidence": 0.8, "sensitive": 0.3}
    assert about["version"] == "2"


def test_costs_of_architectures_and_bundles(data_dir: Path, capsys: pytest.CaptureFixture[str]):
    assert run("costs", "he-fusion", SHIPPED) == 0
    head, *rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert head == "Name Architecture Configuration Input Networks Parameters Multiply-adds per slice"
    assert rows[0] == "he-fusion he-fusion default 256 x 256 1 18,468,606 21.406 G"
    assert rows[1].startswith("he-fusion he-fusion fusion=false 256 x 256")
    assert rows[2].startswith(f"{SHIPPED} vicar-mil widths=[16, 32, 48]")
    assert rows[2].endswith("160 x 160 5 218,546 9.770 G")
    assert not data_dir.exists()


def test_costs_as_json_and_of_an_installed_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save(vicar_checkpoint("max"), tmp_path / "max.pt")
    assert run("import", "vicar", str(tmp_path / "max.pt"), "--name", "mine") == 0
    capsys.readouterr()
    assert run("costs", "mine", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "mine",
            "architecture": "vicar-published",
            "config": "pooling=max",
            "input_size": [256, 256],
            "networks": 1,
            "parameters": 66313,
            "multiply_adds": 748818432,
        }
    ]


def test_document_shows_what_the_commands_print(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(vicar_checkpoint("attention"), tmp_path / "attention.pt")
    assert run("import", "vicar", str(tmp_path / "attention.pt"), "--licence", "MIT") == 0
    assert run("verify", SHIPPED) == 0
    printed = capsys.readouterr()
    said = (DOCUMENTS / "models.md").read_text(encoding="utf-8").splitlines()
    for line in (printed.out + printed.err).splitlines():
        assert line.replace(str(data_dir), "/srv/ich-node-data") in said


def test_looking_for_commands_loads_no_torch():
    code = "import sys, ich_node.cli, ich_node.cli.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--sensitive", "0.9", "--high-confidence", "0.5"), "--sensitive"),
        (("--sensitive", "nan", "--high-confidence", "0.5"), "--sensitive"),
        (("--version", " "), "--version"),
        (("--name", "a b"), "--name"),
    ],
)
def test_option_of_an_import_is_named(
    checkpoint: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], option: str
):
    assert run("import", "vicar", checkpoint, *arguments) == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("import", "vicar", "absent.pt"),
        ("import", "vicar", "."),
        ("import", "other", "model.pt"),
        ("import", "vicar", "model.pt", "--sensitive", "0.3"),
        ("import", "vicar", "model.pt", "--sensitive", "0", "--high-confidence", "1"),
        ("import", "vicar", "model.pt", "--sensitive", "0.8", "--high-confidence", "0.3"),
        ("import", "vicar", "model.pt", "--backbone", "resnext50_32x4d"),
        ("import", "vicar", "model.pt", "--name", "../evil"),
        ("install", "absent"),
        ("install", "model.pt"),
        ("show", "absent"),
        ("costs", "radnet", "absent"),
    ],
)
def test_wrong_usage_and_bad_files_exit_with_2(
    checkpoint: str, data_dir: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
):
    assert run(*arguments) == 2
    assert capsys.readouterr().err
    assert not list(data_dir.glob("models/*"))
