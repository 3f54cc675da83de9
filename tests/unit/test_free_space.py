"""The low-water mark: where it lies, that it does not flap, and that it looks seldom."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from ich_node.receive import free_space
from ich_node.receive.free_space import FreeSpace, in_gib

GIB, MIB = 2**30, 2**20


@dataclass
class Disk:
    """What the file system would say."""

    free_bytes: int = 100 * GIB
    fault: OSError | None = None
    looks: int = 0
    now_s: float = 1000.0
    asked_of: list[Path] = field(default_factory=list)

    def statvfs(self, folder: Path) -> SimpleNamespace:
        self.looks += 1
        self.asked_of.append(Path(folder))
        if self.fault:
            raise self.fault
        # root may use more than this
        return SimpleNamespace(f_bavail=self.free_bytes // 4096, f_bfree=2**60, f_frsize=4096, f_bsize=1)

    def later(self) -> None:
        self.now_s += 0.5


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "statvfs", disk.statvfs)
    monkeypatch.setattr(free_space, "time", SimpleNamespace(monotonic=lambda: disk.now_s))
    return disk


@pytest.fixture
def ask(disk: Disk, tmp_path: Path) -> Callable[[int], bool]:
    space = FreeSpace(tmp_path, 10 * MIB)

    def ask(free_bytes: int) -> bool:
        disk.free_bytes = free_bytes
        disk.later()
        return space.is_low()

    return ask


def test_low_below_the_mark_and_fine_again_a_tenth_above_it(ask: Callable[[int], bool]) -> None:
    assert not ask(10 * MIB)
    assert ask(10 * MIB - 4096)
    assert ask(11 * MIB - 4096)  # what refusing has freed is not spent at once
    assert not ask(11 * MIB)
    assert not ask(10 * MIB)


@pytest.mark.parametrize(
    ("mark", "enough"),
    [(0, 0), (10 * MIB, 11 * MIB), (GIB, GIB + GIB // 10), (500 * GIB, 500 * GIB + 256 * MIB)],
)
def test_a_large_mark_holds_back_no_more_than_256_mib(
    disk: Disk, tmp_path: Path, mark: int, enough: int
) -> None:
    assert FreeSpace(tmp_path, mark).enough_bytes == enough


def test_without_a_mark_it_is_never_low(disk: Disk, tmp_path: Path) -> None:
    space = FreeSpace(tmp_path, 0)
    disk.free_bytes = 0
    disk.later()
    assert not space.is_low()
    disk.fault = OSError("gone")
    disk.later()
    assert not space.is_low()


def test_it_looks_twice_a_second_at_most(disk: Disk, tmp_path: Path) -> None:
    space = FreeSpace(tmp_path, 10 * MIB)
    assert not space.is_low()
    disk.free_bytes = 0
    assert disk.looks == 1
    assert [space.is_low() for _ in range(1000)] == [False] * 1000
    disk.later()
    assert [space.is_low() for _ in range(1000)] == [True] * 1000
    assert disk.looks == 2


def test_a_file_system_that_does_not_answer_is_low(disk: Disk, tmp_path: Path) -> None:
    space = FreeSpace(tmp_path, 10 * MIB)
    disk.fault = OSError("stale file handle")
    disk.later()
    assert space.is_low()
    with pytest.raises(OSError, match="stale"):
        space.free_bytes()
    disk.fault = None
    disk.later()
    assert not space.is_low()


def test_each_change_is_logged_once(ask: Callable[[int], bool], caplog: pytest.LogCaptureFixture) -> None:
    for free_bytes in (20 * MIB, 9 * MIB, 8 * MIB, 10 * MIB, 12 * MIB, 30 * MIB):
        ask(free_bytes)
    assert [record.message.split(": ", 1)[1] for record in caplog.records] == [
        "9.0 MiB free, less than 10.0 MiB: new objects are refused until 11.0 MiB are free",
        "12.0 MiB free: new objects are accepted again",
    ]


def test_a_thread_that_is_stuck_in_a_look_holds_up_no_other(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = FreeSpace(tmp_path, 10 * MIB)
    disk.later()
    stuck, release = threading.Event(), threading.Event()

    def slow(folder: Path) -> SimpleNamespace:
        stuck.set()
        assert release.wait(20)
        return disk.statvfs(folder)

    monkeypatch.setattr(os, "statvfs", slow)
    disk.free_bytes = 0
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(space.is_low()))
    thread.start()
    assert stuck.wait(20)
    assert not space.is_low()
    release.set()
    thread.join(20)
    assert answers == [True]
    assert space.is_low()


def test_before_the_folder_is_made_the_one_above_counts(disk: Disk, tmp_path: Path) -> None:
    FreeSpace(tmp_path / "data" / "spool", 1).free_bytes()
    assert set(disk.asked_of) == {tmp_path}


def test_sizes_for_people() -> None:
    assert [in_gib(n) for n in (0, 5 * MIB, GIB, 5 * GIB + GIB // 2)] == [
        "0.0 MiB",
        "5.0 MiB",
        "1.0 GiB",
        "5.5 GiB",
    ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_real_disk_that_fills_and_empties(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_space, "_LOOK_SECONDS", 0.0)
    space = FreeSpace(small_disk / "spool", 4 * MIB)
    assert space.free_bytes() == 8 * MIB
    assert not space.is_low()
    (small_disk / "images").write_bytes(bytes(5 * MIB))
    assert space.is_low()
    assert space.free_bytes() == 3 * MIB
    (small_disk / "images").write_bytes(bytes(4 * MIB))
    assert space.is_low()  # 4.0 MiB are free, 4.4 are enough
    (small_disk / "images").unlink()
    assert not space.is_low()
