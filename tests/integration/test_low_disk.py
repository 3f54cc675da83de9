"""A real receiver on a small disk: it refuses below the mark, says so, and receives again by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ich_node.testing.scu import send_images
from tests.receiver_process import AE_TITLE, HOST, ReceiverProcess, running_receiver, wait_until
from tests.small_objects import small_object

MIB = 2**20
DISK_MIB, MARK_MIB = 64, 24


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[ReceiverProcess]:
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(mount)]
    if subprocess.run(["mount", *options], capture_output=True).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with running_receiver(mount, f"[disk]\nmin_free_gib = {MARK_MIB / 1024}\n") as receiver:
            yield receiver
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def send(receiver: ReceiverProcess) -> int:
    (status,) = send_images([small_object()], host=HOST, port=receiver.port, called_ae_title=AE_TITLE)
    return status


def answers(receiver: ReceiverProcess) -> set[int]:
    """Of several associations, so that each receiving process gives some."""
    return {send(receiver) for _ in range(10)}


def disk_check(receiver: ReceiverProcess) -> dict[str, Any]:
    command = [sys.executable, "-m", "ich_node", "--config", str(receiver.folder / "ich-node.toml")]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ICH_NODE_")}
    done = subprocess.run(
        [*command, "doctor", "--json"], capture_output=True, text=True, env=environ, timeout=120
    )
    found: dict[str, Any] = next(check for check in json.loads(done.stdout) if check["name"] == "disk")
    return found


def test_a_receiver_on_a_disk_that_fills_and_empties(receiver: ReceiverProcess) -> None:
    assert send(receiver) == 0x0000
    ballast = receiver.folder / "ballast"
    ballast.write_bytes(bytes((DISK_MIB - MARK_MIB) * MIB))
    wait_until(lambda: answers(receiver) == {0xA700}, "images are refused")
    stored = len(receiver.objects())
    assert answers(receiver) == {0xA700}
    assert len(receiver.objects()) == stored
    assert receiver.unfinished() == []
    check = disk_check(receiver)
    assert not check["ok"]
    assert "new images are refused with 0xA700 until 26.4 MiB are free" in check["found"]
    ballast.unlink()
    wait_until(lambda: answers(receiver) == {0x0000}, "images are accepted again")
    assert answers(receiver) == {0x0000}
    wait_until(lambda: "new objects are accepted again" in receiver.log, "the log says so")
    assert f"less than {MARK_MIB}.0 MiB: new objects are refused until 26.4 MiB are free" in receiver.log
