"""A running node, a real Orthanc beside it, and DCMTK's storescu: what the acceptance tests drive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import pytest

ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = 120.0) -> Any:
    """Poll until ``holds`` gives something true; fail with ``what`` where it does not in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := holds():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Orthanc:
    """A PACS of another make, told apart by nothing but its REST interface."""

    dicom_port: int
    http_port: int

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
            return json.load(answer)

    def file(self, instance: str) -> bytes:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.http_port}/instances/{instance}/file", timeout=10
        ) as a:
            return bytes(a.read())

    def objects(self, study_instance_uid: str) -> list[pydicom.Dataset]:
        """What the PACS holds of a study."""
        query = json.dumps(
            {"Level": "Instance", "Query": {"StudyInstanceUID": study_instance_uid}, "Expand": False}
        ).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}/tools/find", data=query)
        with urllib.request.urlopen(request, timeout=10) as answer:
            ids = json.load(answer)
        from io import BytesIO

        return [pydicom.dcmread(BytesIO(self.file(i))) for i in ids]


@dataclass
class RunningNode:
    """``ich-node up`` in a process of its own."""

    config: Path
    data_dir: Path
    port: int
    web_port: int
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    def worklist(self) -> dict[str, dict[str, Any]]:
        """``worklist_v1`` by plain SQL, as another system reads it."""
        return {row["study_instance_uid"]: row for row in self._rows("SELECT * FROM worklist_v1")}

    def readings(self, study_instance_uid: str) -> int:
        """How many readings there are of a study."""
        query = "SELECT count(*) AS readings FROM reading WHERE study_instance_uid = ?"
        return int(self._rows(query, study_instance_uid)[0]["readings"])

    def _rows(self, query: str, *values: str) -> list[dict[str, Any]]:
        with closing(
            sqlite3.connect(f"file:{self.data_dir / 'ich-node.sqlite'}?mode=ro", uri=True)
        ) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, values)]

    def row_when(self, study_instance_uid: str, *states: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """The study's row once it is in one of the states."""

        def row() -> dict[str, Any] | None:
            found = self.worklist().get(study_instance_uid)
            return found if found and found["state"] in states else None

        try:
            return dict(wait_until(row, f"study in {states}", timeout_s))
        except AssertionError as error:
            seen = self.worklist().get(study_instance_uid)
            raise AssertionError(f"{error}; it is {seen}; log:\n{self.log.read_text()[-3000:]}") from None

    def part_pid(self, part: str) -> int:
        """Process id of one part, as it announced it."""
        return int((self.data_dir / "run" / part).read_text())

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ich_node", "--config", str(self.config), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=node_environ(), timeout=60
        )


def node_environ() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("ICH_NODE_")}


@pytest.fixture(scope="package")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if not Path(ORTHANC).exists():
        pytest.skip("Orthanc is not installed")
    folder = tmp_path_factory.mktemp("orthanc")
    pacs = Orthanc(dicom_port=free_port(), http_port=free_port())
    (folder / "orthanc.json").write_text(
        json.dumps(
            {
                "Name": "PACS",
                "StorageDirectory": str(folder / "db"),
                "IndexDirectory": str(folder / "db"),
                "DicomAet": "ORTHANC",
                "DicomPort": pacs.dicom_port,
                "HttpPort": pacs.http_port,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomAlwaysAllowStore": True,
                "DicomAlwaysAllowFind": True,
                "Plugins": [],
            }
        )
    )
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [ORTHANC, str(folder / "orthanc.json")],
        stdout=log,
        stderr=log,
        env={**os.environ, "TCP_NODELAY": "1"},
    )
    try:
        wait_until(lambda: _answers(pacs.http_port), "Orthanc answers", 60)
        yield pacs
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@contextmanager
def run_node(folder: Path, settings: str) -> Iterator[RunningNode]:
    """Run ``ich-node up`` with these settings, and free ports and short waits besides."""
    port, web_port = free_port(), free_port()
    config = folder / "ich-node.toml"
    config.write_text(
        f"""data_dir = "{folder / "data"}"
[receiver]
port = {port}
settle_seconds = 0.5
quiet_seconds = 2.0
[web]
port = {web_port}
[worker]
lease_seconds = 4.0
{settings}
"""
    )
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "ich_node", "--config", str(config), "up"]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=node_environ())
        running = RunningNode(
            config=config,
            data_dir=folder / "data",
            port=port,
            web_port=web_port,
            log=folder / "log",
            process=process,
        )
        try:
            wait_until(
                lambda: (running.data_dir / "run" / "worker-read").exists() or process.poll() is not None,
                "node is up",
            )
            assert process.poll() is None, (folder / "log").read_text()
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc) -> Iterator[RunningNode]:
    """A node with default settings but for ports and short waits, and Orthanc as its PACS."""
    destination = f"""
[[pacs]]
name = "orthanc"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {orthanc.dicom_port}
"""
    with run_node(tmp_path_factory.mktemp("node"), destination) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path, node: RunningNode) -> Callable[..., int]:
    """Send data sets to the node with DCMTK's storescu; gives its exit status."""
    program = shutil.which("storescu")
    if program is None:
        pytest.skip("DCMTK's storescu is not installed")

    def send(images: Sequence[pydicom.Dataset | Path], *options: str) -> int:
        folder = tmp_path / f"outgoing-{time.monotonic_ns()}"
        folder.mkdir()
        for number, image in enumerate(images):
            path = folder / f"{number:04d}.dcm"
            if isinstance(image, Path):
                shutil.copyfile(image, path)
            else:
                image.save_as(path, enforce_file_format=True)
        command = [program, "-aet", "CT01", "-aec", "ICH_NODE", *options]
        command += ["+sd", "127.0.0.1", str(node.port), str(folder)]
        environ = {**os.environ, "TCP_NODELAY": "1"}
        return subprocess.run(command, check=False, env=environ, timeout=120, capture_output=True).returncode

    return send


def _answers(http_port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/system", timeout=2):
            return True
    except OSError:
        return False
