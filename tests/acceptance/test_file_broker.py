"""A node on a platform without an embedded server: the same workers, with messages in files."""

from __future__ import annotations

from pathlib import Path

from ich_node.testing.pacs import DemoPacs
from ich_node.testing.phantom import head_phantom
from ich_node.testing.scu import send_images
from ich_node.testing.series import localizer_series, phantom_series

from .conftest import run_node, wait_until


def test_studies_are_read_and_delivered_with_messages_in_files(tmp_path: Path) -> None:
    phantom = head_phantom(seed=41, slices=24, rows=128, columns=128)
    axial, scout = phantom_series(phantom, name="files"), localizer_series(phantom, name="files scout")
    with DemoPacs(tmp_path / "pacs") as pacs:
        settings = f"""
[broker]
url = "filesystem://"
[[pacs]]
name = "demo"
ae_title = "DEMO_PACS"
host = "127.0.0.1"
port = {pacs.port}
"""
        with run_node(tmp_path, settings) as node:
            assert "messages go through files" in node.log.read_text()
            for images in (axial, scout):
                assert set(
                    send_images(images, host="127.0.0.1", port=node.port, called_ae_title="ICH_NODE")
                ) == {0}
            uid = str(axial[0].StudyInstanceUID)
            assert node.row_when(uid, "READ", "NOT_READ", "FAILED")["state"] == "READ"
            assert node.row_when(str(scout[0].StudyInstanceUID), "NOT_READ")["reason"] == "LOCALIZER"
            wait_until(lambda: node.worklist()[uid]["delivered_at"], "results sent", 60)
        assert len(pacs.received) >= 2
