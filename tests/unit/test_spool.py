from __future__ import annotations

import errno
import hashlib
import os
import string
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ich_node.receive.spool import Spool, SpooledObject, SpoolWriter, part10_header
from tests.small_objects import data_set_of, encoded, small_object

UID = "1.2.826.0.1.3680043.8.498.77"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    return Spool(tmp_path_factory.mktemp("spool") / "spool")


@pytest.fixture
def spool(made_once: Spool) -> Spool:
    for path in made_once.scan():
        path.unlink()
    return made_once


def store(
    spool: Spool, content: bytes, *, uid: str = UID, syntax: str = ExplicitVRLittleEndian
) -> SpooledObject:
    return spool.store(
        content,
        sop_class_uid=CTImageStorage,
        sop_instance_uid=uid,
        transfer_syntax_uid=syntax,
        source_ae_title="SCANNER",
    )


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def begin(writer: SpoolWriter, uid: str = UID) -> None:
    writer.begin(
        sop_class_uid=CTImageStorage,
        sop_instance_uid=uid,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        source_ae_title="SCANNER",
    )


def test_a_stored_object_is_a_part_10_file_with_the_bytes_that_came(spool: Spool) -> None:
    dataset = small_object(SOPInstanceUID=UID)
    stored = store(spool, encoded(dataset))
    assert data_set_of(stored.path) == encoded(dataset)
    back = dcmread(stored.path)
    assert back.PatientName == dataset.PatientName
    assert back.file_meta.MediaStorageSOPInstanceUID == UID
    assert back.file_meta.MediaStorageSOPClassUID == CTImageStorage
    assert back.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert back.file_meta.SourceApplicationEntityTitle == "SCANNER"
    assert stored.size_bytes == stored.path.stat().st_size
    digest = blake3(ExplicitVRLittleEndian.encode() + b"\0" + encoded(dataset)).hexdigest()
    uid_hash = hashlib.sha256(UID.encode()).hexdigest()[:32]
    assert stored.content_hash == digest
    assert stored.file_name == f"{uid_hash[:2]}/{uid_hash}-{digest}.dcm"
    assert not stored.duplicate


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_stored(spool: Spool, make: type[bytes]) -> None:
    assert data_set_of(store(spool, make(b"abcd")).path) == b"abcd"


def test_the_same_object_twice_is_one_object(spool: Spool) -> None:
    first, second = store(spool, b"one"), store(spool, b"one")
    assert second.file_name == first.file_name
    assert second.duplicate
    assert list(spool.scan()) == [first.path]


def test_other_bytes_under_the_same_uid_are_kept_apart(spool: Spool) -> None:
    first, second, again = store(spool, b"one"), store(spool, b"two"), store(spool, b"one")
    assert [first.duplicate, second.duplicate, again.duplicate] == [False, False, True]
    assert again.file_name == first.file_name
    assert set(spool.files_of(UID)) == {first.path, second.path}
    assert data_set_of(first.path) == b"one"
    assert data_set_of(second.path) == b"two"


def test_the_same_bytes_in_another_transfer_syntax_are_another_object(spool: Spool) -> None:
    first, second = store(spool, b"one"), store(spool, b"one", syntax=ImplicitVRLittleEndian)
    assert first.file_name != second.file_name
    assert first.content_hash != second.content_hash
    assert set(spool.files_of(UID)) == {first.path, second.path}


def test_a_damaged_file_is_mended_by_sending_it_again(spool: Spool) -> None:
    stored = store(spool, b"x" * 1000)
    os.truncate(stored.path, 600)
    assert not store(spool, b"x" * 1000).duplicate
    assert data_set_of(stored.path) == b"x" * 1000


def test_files_and_folders_are_for_their_owner_only(spool: Spool) -> None:
    stored = store(spool, b"one")
    assert stored.path.stat().st_mode & 0o077 == 0
    assert stored.path.parent.stat().st_mode & 0o077 == 0


def test_scan_gives_what_was_stored_and_nothing_else(spool: Spool) -> None:
    stored = {store(spool, bytes([i]), uid=f"{UID}.{i}").path for i in range(20)}
    (spool.root / "incoming" / "1-2-3.part").write_bytes(b"half")
    (next(iter(stored)).parent / "notes.dcm").write_bytes(b"not ours")
    assert set(spool.scan()) == stored
    assert spool.remove_leftovers() == 1


def test_what_is_being_written_is_no_leftover(spool: Spool) -> None:
    writer = spool.writer()
    begin(writer)
    writer.write(b"half")
    (spool.root / "incoming" / "1-2-3.part").write_bytes(b"of a process that died")
    assert Spool(spool.root).remove_leftovers() == 1
    writer.write(b" and half")
    assert data_set_of(writer.commit().path) == b"half and half"
    assert list((spool.root / "incoming").iterdir()) == []


def test_a_file_that_nothing_was_written_to_is_no_object(spool: Spool) -> None:
    (spool.root / "incoming" / "1-2-3.part").touch()
    assert spool.remove_leftovers() == 0
    assert list((spool.root / "incoming").iterdir()) == []


_WRITES_AND_DIES = """
import os, sys
from pathlib import Path
from ich_node.receive.spool import Spool
writer = Spool(Path(sys.argv[1])).writer()
writer.begin(sop_class_uid="1.2", sop_instance_uid="1.3", transfer_syntax_uid="1.4", source_ae_title="CT")
writer.write(b"half")
print("written", flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_another_process_leaves_a_leftover_only_when_it_dies(spool: Spool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITES_AND_DIES, str(spool.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        assert spool.remove_leftovers() == 0
        process.stdin.close()
        process.wait(30)
    assert spool.remove_leftovers() == 1
    assert list((spool.root / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    "pieces", [[b"whole"], [b"wh", b"ole"], [b"w", b"", b"hole"], [b"", b"whole"], [bytes(300_000)] * 3]
)
def test_pieces_become_what_they_are_together(spool: Spool, pieces: list[bytes]) -> None:
    writer = spool.writer()
    begin(writer)
    for piece in pieces:
        writer.write(piece)
    assert writer.size_bytes == sum(map(len, pieces))
    with writer.data_set() as data_set:
        assert data_set.read() == b"".join(pieces)
    in_pieces = writer.commit()
    assert data_set_of(in_pieces.path) == b"".join(pieces)
    at_once = store(spool, b"".join(pieces))
    assert (at_once.file_name, at_once.content_hash, at_once.size_bytes) == (
        in_pieces.file_name,
        in_pieces.content_hash,
        in_pieces.size_bytes,
    )


def test_what_is_discarded_leaves_nothing_and_what_is_durable_stays(spool: Spool) -> None:
    unused, half, whole = spool.writer(), spool.writer(), spool.writer()
    for writer in (half, whole):
        begin(writer)
        writer.write(b"one")
    stored = whole.commit()
    before = open_descriptors()
    for writer in (unused, half, whole, unused):
        writer.discard()
    assert open_descriptors() == before - 2
    assert list((spool.root / "incoming").iterdir()) == []
    assert list(spool.scan()) == [stored.path]


def test_a_disk_that_allows_nothing_any_more_costs_no_descriptor(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    writer = spool.writer()
    begin(writer)
    writer.write(b"half")
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", read_only)
        writer.discard()
        writer.discard()
    assert open_descriptors() == before - 1
    assert spool.remove_leftovers() == 1


def test_an_object_describes_itself_again(spool: Spool) -> None:
    stored = [store(spool, b"one"), store(spool, b"two"), store(spool, b"three", uid=f"{UID}.1")]
    again = {spool.describe(path).file_name: spool.describe(path) for path in spool.scan()}
    assert {name: (o.content_hash, o.size_bytes, o.path) for name, o in again.items()} == {
        o.file_name: (o.content_hash, o.size_bytes, o.path) for o in stored
    }
    assert spool.path(stored[0].file_name) == stored[0].path


@pytest.mark.parametrize(
    "name", ["", "../etc/passwd", "incoming/1-2-3.part", "abc/../../x.dcm", "/etc/passwd"]
)
def test_only_names_made_by_the_spool_become_paths(spool: Spool, name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        spool.path(name)


@given(st.text(max_size=80))
def test_no_uid_leads_out_of_the_spool(made_once: Spool, uid: str) -> None:
    stored = store(made_once, b"x", uid=uid)
    assert stored.path.resolve().is_relative_to(made_once.root.resolve())
    assert made_once.path(stored.file_name) == stored.path


def test_file_then_rename_then_folder_are_made_durable(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(f"fsync {'folder' if target.is_dir() else target.suffix}")
        fsync(descriptor)

    def recorded_rename(source: str, target: str) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    for _ in range(2):  # a duplicate no less: what is there may be damaged, or not durable yet
        store(spool, b"one")
        assert events == ["fsync .part", "rename", "fsync folder"]
        events.clear()


@pytest.mark.parametrize("call", ["writev", "fsync", "rename"])
def test_a_full_disk_raises_and_leaves_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            store(spool, b"one")
    assert list(spool.scan()) == []
    assert spool.remove_leftovers() == 0
    assert not store(spool, b"one").duplicate


def test_a_short_write_is_continued(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:7])))
    monkeypatch.setattr(os, "writev", lambda descriptor, parts: write(descriptor, b"".join(parts)[:7]))
    assert data_set_of(store(spool, b"0123456789" * 10).path) == b"0123456789" * 10


def test_threads_that_store_at_once_agree(spool: Spool) -> None:
    results: list[SpooledObject] = []
    start = threading.Barrier(8)

    def run(number: int) -> None:
        start.wait()
        results.append(store(spool, b"even" if number % 2 else b"odd"))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(spool.scan())) == 2
    assert len({result.file_name for result in results}) == 2
    assert spool.remove_leftovers() == 0
    assert {data_set_of(path) for path in spool.scan()} == {b"even", b"odd"}


uids = st.lists(st.integers(0, 10**8), min_size=2, max_size=6).map(lambda n: ".".join(map(str, n)))
ae_titles = st.text(string.ascii_uppercase + string.digits + "_", min_size=1, max_size=16)


@given(uids, uids, uids, ae_titles)
def test_the_file_meta_information_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    source_ae_title: str,
) -> None:
    header = part10_header(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        source_ae_title=source_ae_title,
    )
    path = tmp_path_factory.getbasetemp() / "header.dcm"
    path.write_bytes(header)
    meta = read_file_meta_info(path)
    assert meta.FileMetaInformationGroupLength == len(header) - 144
    assert meta.FileMetaInformationVersion == b"\x00\x01"
    assert meta.MediaStorageSOPClassUID == sop_class_uid
    assert meta.MediaStorageSOPInstanceUID == sop_instance_uid
    assert meta.TransferSyntaxUID == transfer_syntax_uid
    assert meta.SourceApplicationEntityTitle == source_ae_title
    assert len(meta.ImplementationVersionName) <= 16
