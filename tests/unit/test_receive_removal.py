"""Files go for good, whatever dies in between, and never one that took the place of the one that was meant."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ich_node.receive.removal import modified_ns, remove_files
from ich_node.receive.spool import Spool
from tests.small_objects import encoded, small_object

OLD_NS = 1_700_000_000_123_456_789


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def store(spool: Spool, uid: str = "1.2.3") -> Path:
    dataset = small_object(SOPInstanceUID=uid)
    stored = spool.store(
        encoded(dataset),
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=uid,
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        source_ae_title="CT",
    )
    return stored.path


def store_old(spool: Spool, uid: str = "1.2.3") -> tuple[Path, str]:
    path = store(spool, uid)
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path, path.relative_to(spool.root).as_posix()


def aside(spool: Spool, path: Path) -> Path:
    return spool.root / "removing" / path.name


def test_files_go_and_others_stay(spool: Spool) -> None:
    names = [store_old(spool, f"1.2.{n}")[1] for n in range(5)]
    kept, _ = store_old(spool, "1.3")
    assert remove_files(spool.root, dict.fromkeys(names, OLD_NS)) == {}
    assert list(spool.scan()) == [kept]
    assert list((spool.root / "removing").iterdir()) == []
    assert remove_files(spool.root, dict.fromkeys(names, OLD_NS)) == {}  # again, as after a kill


def test_a_file_that_was_stored_again_stays(spool: Spool) -> None:
    path, name = store_old(spool)
    assert store(spool) == path
    remove_files(spool.root, {name: OLD_NS})
    assert path.exists()


def test_what_a_killed_process_had_moved_aside_goes(spool: Spool) -> None:
    path, name = store_old(spool)
    (spool.root / "removing").mkdir()
    path.rename(aside(spool, path))
    remove_files(spool.root, {name: OLD_NS})
    assert not path.exists()
    assert not aside(spool, path).exists()


def test_what_a_killed_process_had_moved_aside_by_mistake_comes_back(spool: Spool) -> None:
    path, name = store_old(spool)
    store(spool)
    content, new_ns = path.read_bytes(), modified_ns(spool.root, name)
    (spool.root / "removing").mkdir()
    path.rename(aside(spool, path))
    remove_files(spool.root, {name: OLD_NS})
    assert path.read_bytes() == content
    assert modified_ns(spool.root, name) == new_ns
    assert not aside(spool, path).exists()


def test_a_file_moved_aside_by_mistake_does_not_replace_a_still_newer_one(spool: Spool) -> None:
    path, name = store_old(spool)
    store(spool)
    (spool.root / "removing").mkdir()
    path.rename(aside(spool, path))
    store(spool)
    inode = path.stat().st_ino
    remove_files(spool.root, {name: OLD_NS})
    assert path.stat().st_ino == inode
    assert not aside(spool, path).exists()


def test_an_object_that_comes_again_during_its_removal_is_kept_every_time(spool: Spool) -> None:
    """Two processes remove it while it is stored again; its sender has had success, so it must be there."""
    for round_number in range(150):
        path, name = store_old(spool)
        start = threading.Barrier(3)

        def remove(name: str = name, start: threading.Barrier = start) -> None:
            start.wait(20)
            remove_files(spool.root, {name: OLD_NS})

        removers = [threading.Thread(target=remove) for _ in range(2)]
        for remover in removers:
            remover.start()
        start.wait(20)
        store(spool)
        for remover in removers:
            remover.join(20)
        assert path.exists(), round_number
        assert not aside(spool, path).exists()


def test_what_cannot_be_removed_is_said_and_the_others_go(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [store_old(spool, f"1.2.{n}")[1] for n in range(3)]
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path == spool.root / names[1]:
            raise PermissionError(13, "Permission denied")
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    refused = remove_files(spool.root, dict.fromkeys(names, OLD_NS))
    assert list(refused) == [names[1]]
    assert [path.relative_to(spool.root).as_posix() for path in spool.scan()] == [names[1]]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "3f/../../outside", ""])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        remove_files(tmp_path, {name: 1})
