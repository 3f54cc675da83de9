"""Make ``.venv``: pip, torch, and the project in editable form with every extra but ``fuzz``.

Does nothing where that is up to date. Needs nothing but the standard library. Environment variables:

ICH_NODE_TORCH_INDEX_URL
    Package index to take torch from, for instance the one of PyTorch's CPU builds.
ICH_NODE_ALLOW_CUDA
    ``1`` installs a torch build with CUDA packages although no GPU was found.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
STAMP = VENV / ".ich-node-set-up"
EXTRAS = "dev,postgresql,training"
_ADVICE = """\
deploy/setup: no GPU was found here, and the torch build that pip would install needs {names}:
several GB made for NVIDIA GPUs. Take a CPU build instead: PyTorch's "Get Started" page names the package
index that has them (choose Stable, Linux, Pip, Python, CPU). Then run the same command again with

    export ICH_NODE_TORCH_INDEX_URL=<address of that index>

or, to install the CUDA packages on purpose,

    export ICH_NODE_ALLOW_CUDA=1"""


class SetUpError(Exception):
    """Set-up cannot go on; the message says what to do."""


def fingerprint(root: Path, version: str) -> str:
    """SHA-256 of everything that decides what the environment holds.

    Parameters
    ----------
    root
        The repository; part of it because an environment does not survive being moved.
    version
        Of the Python that the environment is made with.
    """
    digest = hashlib.sha256(f"{root}\n{version}\n".encode())
    for name in ("pyproject.toml", "constraints.txt", "deploy/set_up.py"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def pinned_version(constraints: str, package: str) -> str:
    """Version of ``package`` in the text of a constraints file.

    Raises
    ------
    SetUpError
        The file does not pin it.
    """
    match = re.search(rf"^{re.escape(package)}==(\S+)$", constraints, re.MULTILINE | re.IGNORECASE)
    if match is None:
        raise SetUpError(f"constraints.txt does not pin {package}")
    return match.group(1)


def cuda_packages(report: Mapping[str, Any]) -> list[str]:
    """Names of the packages for NVIDIA GPUs in the report of ``pip install --report``, sorted.

    A CPU build of torch needs none of them.
    """
    names = (item["metadata"]["name"].lower() for item in report["install"])
    return sorted(name for name in names if re.match(r"(nvidia|cuda)[-_]", name))


def has_gpu() -> bool:
    """Whether an NVIDIA GPU can be used on this machine."""
    if Path("/dev/nvidia0").exists():
        return True
    program = shutil.which("nvidia-smi")
    return program is not None and subprocess.run([program], capture_output=True, check=False).returncode == 0


def torch_report(requirement: str, index: Sequence[str]) -> dict[str, Any]:
    """Ask pip, without installing or downloading packages, what it would install for torch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        _pip(
            "install",
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--report",
            str(path),
            *index,
            requirement,
        )
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report


def install_torch() -> None:
    """Install the pinned torch: the CPU build unless there is a GPU or CUDA packages are asked for.

    Raises
    ------
    SetUpError
        Only a build with CUDA packages is to be had, and nothing says that they are wanted.
    """
    version = pinned_version(CONSTRAINTS.read_text(encoding="utf-8"), "torch")
    if _installed("torch").partition("+")[0] == version:
        return
    requirement = f"torch=={version}"
    url = os.environ.get("ICH_NODE_TORCH_INDEX_URL")
    index = ["--index-url", url] if url else []
    if not has_gpu() and os.environ.get("ICH_NODE_ALLOW_CUDA") != "1":
        unwanted = cuda_packages(torch_report(requirement, index))
        if unwanted:
            raise SetUpError(_ADVICE.format(names=f"{len(unwanted)} packages such as {unwanted[0]}"))
    # an index of torch builds alone need not have the pinned versions of what torch needs
    _pip("install", "--no-deps", *index, requirement)


def set_up() -> None:
    """Bring ``.venv`` up to date."""
    wanted = fingerprint(ROOT, sys.version)
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == wanted and PYTHON.exists():
        return
    _say("making .venv; the first time this takes some minutes")
    STAMP.unlink(missing_ok=True)
    if not _usable():
        venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(VENV)
    # an old pip would download whole packages for a dry run
    _pip("install", "--quiet", "-c", str(CONSTRAINTS), "pip", "setuptools")
    install_torch()
    _say("installing the project and what it needs")
    _pip(
        "install",
        "--quiet",
        "-c",
        str(CONSTRAINTS),
        "--no-build-isolation",
        "--editable",
        f"{ROOT}[{EXTRAS}]",
    )
    STAMP.write_text(wanted, encoding="utf-8")
    _say(".venv is ready")


def main() -> int:
    """Set up once, whoever else tries at the same time."""
    try:
        with _alone():
            set_up()
    except SetUpError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"deploy/setup: pip failed with exit code {error.returncode}; see above", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _alone() -> Iterator[None]:
    folder = os.open(ROOT / "deploy", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _usable() -> bool:
    """Whether ``.venv`` is an environment of this very Python in this very place."""
    if not PYTHON.exists():
        return False
    question = "import pip, sys; print(sys.prefix, sys.version)"
    answer = subprocess.run([PYTHON, "-c", question], capture_output=True, text=True, check=False)
    pip = VENV / "bin" / "pip"
    shebang = pip.read_text(encoding="utf-8").partition("\n")[0] if pip.is_file() else ""
    return answer.stdout.strip() == f"{VENV} {sys.version}" and shebang == f"#!{PYTHON}"


def _installed(package: str) -> str:
    question = f"from importlib.metadata import version; print(version({package!r}))"
    answer = subprocess.run([PYTHON, "-c", question], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _pip(*arguments: str) -> None:
    subprocess.run([PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def _say(text: str) -> None:
    print(f"deploy/setup: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
