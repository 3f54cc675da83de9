"""What set-up decides without installing anything."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def set_up() -> ModuleType:
    spec = importlib.util.spec_from_file_location("set_up", REPOSITORY / "deploy" / "set_up.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*names: str) -> dict[str, object]:
    return {"install": [{"metadata": {"name": name}} for name in names]}


def test_a_cpu_build_needs_no_cuda_packages(set_up: ModuleType) -> None:
    assert set_up.cuda_packages(report("torch", "filelock", "sympy", "Jinja2")) == []


def test_packages_for_gpus_are_noticed(set_up: ModuleType) -> None:
    found = set_up.cuda_packages(
        report("torch", "nvidia-cublas", "NVIDIA-NCCL-cu13", "cuda_bindings", "sympy")
    )
    assert found == ["cuda_bindings", "nvidia-cublas", "nvidia-nccl-cu13"]


def test_without_a_gpu_a_cuda_build_stops_set_up(set_up: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(set_up, "_pip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(set_up, "_installed", lambda package: "")
    monkeypatch.setattr(set_up, "has_gpu", lambda: False)
    monkeypatch.setattr(set_up, "torch_report", lambda *arguments: report("torch", "nvidia-cublas"))
    monkeypatch.delenv("ICH_NODE_ALLOW_CUDA", raising=False)
    monkeypatch.delenv("ICH_NODE_TORCH_INDEX_URL", raising=False)
    with pytest.raises(set_up.SetUpError, match="ICH_NODE_TORCH_INDEX_URL"):
        set_up.install_torch()
    assert calls == []
    monkeypatch.setenv("ICH_NODE_ALLOW_CUDA", "1")
    set_up.install_torch()
    assert [call[0] for call in calls] == ["install"]


def test_the_index_that_is_named_is_the_one_that_is_asked(
    set_up: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    calls: list[tuple[str, ...]] = []

    def answer(requirement: str, index: list[str]) -> dict[str, object]:
        asked.append(index)
        return report("torch")

    monkeypatch.setattr(set_up, "_pip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(set_up, "_installed", lambda package: "")
    monkeypatch.setattr(set_up, "has_gpu", lambda: False)
    monkeypatch.setattr(set_up, "torch_report", answer)
    monkeypatch.delenv("ICH_NODE_ALLOW_CUDA", raising=False)
    monkeypatch.setenv("ICH_NODE_TORCH_INDEX_URL", "https://example.org/cpu")
    set_up.install_torch()
    assert asked == [["--index-url", "https://example.org/cpu"]]
    assert calls == [("install", "--no-deps", *asked[0], f"torch=={pins()['torch']}")]


def test_a_changed_file_or_place_or_python_means_set_up_again(set_up: ModuleType, tmp_path: Path) -> None:
    names = ("pyproject.toml", "constraints.txt", "deploy/set_up.py")
    for place in ("here", "there"):
        for name in names:
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    here, there = tmp_path / "here", tmp_path / "there"
    first = set_up.fingerprint(here, "3.12.1")
    assert set_up.fingerprint(here, "3.12.1") == first
    seen = {first, set_up.fingerprint(there, "3.12.1"), set_up.fingerprint(here, "3.13.0")}
    for name in names:
        (here / name).write_text(f"{name} changed")
        seen.add(set_up.fingerprint(here, "3.12.1"))
    assert len(seen) == 3 + len(names)


def test_an_unpinned_package_is_said(set_up: ModuleType) -> None:
    assert set_up.pinned_version("numpy==2.4\nTorch==2.13.0\n", "torch") == "2.13.0"
    with pytest.raises(set_up.SetUpError, match="does not pin torch"):
        set_up.pinned_version("pytorch==1\n", "torch")


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in entries}


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    pinned = pins()
    for requirement in map(Requirement, chain(project["dependencies"], *extras)):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_everything_installed_is_pinned(set_up: ModuleType) -> None:
    if not (set_up.STAMP.is_file() and Path(sys.prefix) == set_up.VENV):
        pytest.skip("this Python is not the environment that deploy/setup made")
    named = {canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}
    named.pop("ich-node")
    pinned = pins()
    assert {n: v.partition("+")[0] for n, v in named.items() if n not in pinned} == {}


@pytest.mark.parametrize("module", ["ich_node.intake", "ich_node.web", "ich_node.cli", "ich_node.tasks"])
def test_a_process_without_torch_stays_so(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_peers_are_named_and_do_not_fail(tmp_path: Path) -> None:
    (tmp_path / "sort").symlink_to(shutil.which("sort") or "sort")
    done = subprocess.run(
        [shutil.which("bash") or "bash", str(REPOSITORY / "deploy" / "install-peers")],
        env={"PATH": str(tmp_path), "ICH_NODE_INSTALL_PEERS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "dcmtk" in done.stderr
    assert "skipped" in done.stderr
