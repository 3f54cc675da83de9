"""The plugin in a real Orthanc, beside a real node: head CT goes there, flag and results come back."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest

from ich_node.findings import IchSubtype
from ich_node.testing.phantom import head_phantom
from ich_node.testing.series import localizer_series, phantom_series
from tests.acceptance.conftest import ORTHANC, RunningNode, free_port, run_node, wait_until

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancPython.so")
SCRIPTS = Path(__file__).resolve().parents[2] / "deploy" / "orthanc"
SR = "1.2.840.10008.5.1.4.1.1.88.34"
pytestmark = [
    pytest.mark.skipif(not Path(ORTHANC).exists(), reason="Orthanc is not installed"),
    pytest.mark.skipif(not PLUGIN.exists(), reason="orthanc-python is not installed"),
]


@dataclass
class Pacs:
    """An Orthanc with the plugin, by its REST interface."""

    folder: Path
    dicom_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def call(
        self, path: str, body: bytes | None = None, method: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Status, and the JSON or text that came."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode()

    def get(self, path: str) -> Any:
        status, value = self.call(path)
        assert status == 200, (path, status, value)
        return value

    def upload(self, images: Sequence[pydicom.Dataset]) -> str:
        """Give images to Orthanc; its identifier of their study."""
        for image in images:
            buffer = BytesIO()
            image.save_as(buffer, enforce_file_format=True)
            status, value = self.call("/instances", buffer.getvalue())
            assert status == 200, value
        return str(value["ParentStudy"])

    def metadata(self, study: str, name: str) -> str | None:
        status, value = self.call(f"/studies/{study}/metadata/{name}")
        return str(value) if status == 200 else None

    def waiting(self) -> int:
        return int(self.get("/ich-node/status")["waiting_images"])

    def reprocess(self, study: str) -> tuple[int, Any]:
        path = f"/ich-node/studies/{study}/reprocess"
        return self.call(path, b"{}", X_Requested_With="XMLHttpRequest")

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @contextmanager
    def running(self, *, node_port: int, web_port: int, **section: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run it; what it holds stays in its folder."""
        example = json.loads((SCRIPTS / "orthanc.json").read_text())
        settings = {
            **example,
            "StorageDirectory": str(self.folder / "db"),
            "IndexDirectory": str(self.folder / "db"),
            "DicomPort": self.dicom_port,
            "HttpPort": self.http_port,
            "AuthenticationEnabled": False,
            "RemoteAccessAllowed": False,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "Plugins": [str(PLUGIN)],
            "PythonScript": str(SCRIPTS / "ich_node_plugin.py"),
            "DicomModalities": {"ich-node": ["ICH_NODE", "127.0.0.1", node_port]},
            "IchNode": {**example["IchNode"], "Url": f"http://127.0.0.1:{web_port}", **section},
        }
        (self.folder / "db").mkdir(parents=True, exist_ok=True)
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        environ = {**os.environ, "TCP_NODELAY": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [ORTHANC, str(self.folder / "orthanc.json")], stdout=log, stderr=log, env=environ
            )
            try:
                wait_until(lambda: self._answers() or process.poll() is not None, "Orthanc answers", 60)
                assert process.poll() is None, self.log()
                yield process
            finally:
                process.terminate()
                process.wait(30)

    def _answers(self) -> bool:
        """Whether it and the plugin, which is told a moment later, have started."""
        try:
            return self.call("/system")[0] == 200 and self.call("/ich-node/status")[0] != 503
        except OSError:
            return False


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pacs, RunningNode]]:
    pacs = Pacs(tmp_path_factory.mktemp("pacs"))
    destination = f"""
[[pacs]]
name = "orthanc"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {pacs.dicom_port}
"""
    with (
        run_node(tmp_path_factory.mktemp("node"), destination) as node,
        pacs.running(node_port=node.port, web_port=node.web_port),
    ):
        yield pacs, node


@pytest.fixture(scope="module")
def bleed(peers: tuple[Pacs, RunningNode]) -> tuple[str, str]:
    """A study with a hemorrhage, read, and before it what is not to be forwarded: Orthanc's identifier, and UID."""
    pacs, node = peers
    pacs.upload(other_studies())
    images = phantom_series(
        head_phantom(bleeds=(IchSubtype.INTRAPARENCHYMAL, IchSubtype.INTRAVENTRICULAR), seed=21),
        name="orthanc-bleed",
    )
    study, uid = pacs.upload(images), str(images[0].StudyInstanceUID)
    node.row_when(uid, "READ")
    return study, uid


def other_studies() -> list[pydicom.Dataset]:
    """A localizer, a chest and an MR, each a study."""
    phantom = head_phantom(seed=5)
    chest = phantom_series(phantom, name="orthanc-chest")[:3]
    for image in chest:
        image.BodyPartExamined, image.SeriesDescription, image.StudyDescription = "CHEST", "Lung", "Thorax"
        image.ProtocolName = "Thorax"
    mr = phantom_series(phantom, name="orthanc-mr")[:2]
    for image in mr:
        image.Modality = "MR"
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    return [*localizer_series(phantom, name="orthanc-localizer"), *chest, *mr]


def test_head_ct_is_read_and_flagged(peers: tuple[Pacs, RunningNode], bleed: tuple[str, str]) -> None:
    pacs, node = peers
    study, uid = bleed
    priority = node.worklist()[uid]["priority"]
    assert priority in ("STAT", "HIGH")
    wait_until(lambda: pacs.metadata(study, "IchPriority") == priority, "the flag is on the study", 30)
    words = pacs.metadata(study, "IchReading")
    assert words is not None
    assert words.startswith("READ, suspicion ")
    assert "unverified" in words
    shown = pacs.get(f"/ich-node/studies/{study}")
    assert (shown["priority"], shown["state"], shown["words"]) == (priority, "READ", words)


def test_nothing_else_is_forwarded(peers: tuple[Pacs, RunningNode], bleed: tuple[str, str]) -> None:
    pacs, node = peers
    assert len(pacs.get("/studies")) >= 4
    assert set(node.worklist()) == {bleed[1]}


def test_results_that_come_back_are_not_forwarded_again(
    peers: tuple[Pacs, RunningNode], bleed: tuple[str, str]
) -> None:
    pacs, node = peers
    study, uid = bleed
    wait_until(lambda: node.worklist()[uid]["delivered_at"], "results are delivered", 60)
    modalities = {series["MainDicomTags"]["Modality"] for series in pacs.get(f"/studies/{study}/series")}
    assert {"CT", "SR"} < modalities
    last = pacs.get("/changes?last")["Last"]
    wait_until(lambda: looked_at(pacs) >= last and pacs.waiting() == 0, "the plugin has looked at all", 30)
    assert [series["modality"] for series in report(node, uid)["series"]] == ["CT"]


def report(node: RunningNode, uid: str) -> dict[str, Any]:
    """What the node says of a study, by its interface for scripts."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.web_port}/api/studies/{uid}", timeout=10) as answer:
        return dict(json.load(answer))


def held(node: RunningNode, uid: str) -> int:
    """How many images the node has of a study."""
    return sum(series["instances"] for series in report(node, uid)["series"])


def looked_at(pacs: Pacs) -> int:
    """Number of the last of Orthanc's changes that the plugin has looked at."""
    with closing(sqlite3.connect(pacs.folder / "db" / "ich-node-plugin.sqlite")) as queue:
        return int(queue.execute("SELECT value FROM mark").fetchone()[0])


def test_the_button_has_a_study_read_again(peers: tuple[Pacs, RunningNode], bleed: tuple[str, str]) -> None:
    pacs, node = peers
    study, uid = bleed
    path = f"/ich-node/studies/{study}/reprocess"
    assert pacs.call(path, b"{}")[0] == 403
    assert pacs.call(path)[0] == 405
    assert pacs.call(f"/ich-node/studies/{'0' * 44}/reprocess", b"{}", X_Requested_With="x")[0] == 404
    status, said = pacs.reprocess(study)
    assert status == 202, (said, pacs.log()[-2000:])
    asked = [step["actor"] for step in report(node, uid)["history"] if step["action"] == "reprocess"]
    assert len(asked) == 1
    status, said = pacs.reprocess(study)
    assert status == 409, said
    assert "already" in said["words"]


def test_orthanc_explorer_has_flag_and_button(
    peers: tuple[Pacs, RunningNode], bleed: tuple[str, str]
) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import expect, sync_playwright

    pacs, node = peers
    study, uid = bleed
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(f"{pacs.url}/app/explorer.html#study?uuid={study}")
        expect(page.locator("#ich-node .ich-flag")).to_have_text(f"ICH: {node.worklist()[uid]['priority']}")
        expect(page.locator("#ich-node .ich-words")).to_have_text(re.compile("unverified|QUEUED|READING"))
        page.get_by_text("ICH: read again").click()
        expect(page.locator("#ich-node .ich-words")).to_contain_text(re.compile("read again|already"))
        if folder := os.environ.get("ICH_NODE_TEST_PICTURES"):
            page.screenshot(path=f"{folder}/orthanc-explorer.png")
        browser.close()


def test_what_waits_survives_a_killed_orthanc_and_a_node_that_is_away(
    tmp_path: Path, peers: tuple[Pacs, RunningNode]
) -> None:
    _, node = peers
    pacs = Pacs(tmp_path)
    images = phantom_series(head_phantom(seed=33), name="orthanc-restart")
    uid = str(images[0].StudyInstanceUID)
    with pacs.running(node_port=free_port(), web_port=free_port()) as process:
        study = pacs.upload(images)
        wait_until(lambda: "the node does not answer" in pacs.log(), "a try that fails", 60)
        assert pacs.waiting() == len(images)
        words = pacs.get(f"/ich-node/studies/{study}")["words"]
        assert "the node did not answer" in words
        process.kill()
    assert uid not in node.worklist()
    with pacs.running(node_port=node.port, web_port=node.web_port):
        wait_until(lambda: pacs.waiting() == 0, "all images are sent", 60)
        node.row_when(uid, "RECEIVING", "QUEUED", "READING", "READ")  # rows follow the files
        wait_until(lambda: held(node, uid) == len(images), "each image once in the node", 60)
        wait_until(lambda: pacs.metadata(study, "IchPriority"), "a flag: not read yet is MEDIUM", 30)


def test_a_wrong_section_is_named_and_orthanc_runs_on(tmp_path: Path) -> None:
    pacs = Pacs(tmp_path)
    with pacs.running(node_port=1, web_port=1, Modaltiy="x"):
        assert pacs.get("/studies") == []
    assert "ich_node: IchNode.Modaltiy: unknown" in pacs.log()
