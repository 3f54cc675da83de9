"""Bundles are installed whole or not at all, and nothing leads out of their folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from ich_node.errors import ConfigurationError
from ich_node.model import bundle_install
from ich_node.model.bundle import SHIPPED, find_bundle, verify_bundle
from ich_node.model.bundle_install import install_bundle
from ich_node.model.vicar_mil import VicarMil, VicarMilConfig

FILES = ("bundle.json", "model.safetensors", "MODEL_CARD.md")


@lru_cache
def small_weights(seed: int) -> bytes:
    """Of one small network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VicarMil(VicarMilConfig(widths=(2, 2), attention_width=2))
    return save({f"0.{name}": tensor for name, tensor in network.state_dict().items()})


WEIGHTS, OTHER = small_weights(0), small_weights(1)


def make_bundle(
    folder: Path, name: str = "small", version: str = "1", weights: bytes = WEIGHTS, **said: Any
) -> Path:
    """A bundle that can read, unless the weights are others or what is said of it is wrong."""
    folder.mkdir(parents=True)
    about = json.loads((SHIPPED / "vicar-attention-v1" / "bundle.json").read_text())
    about |= {"name": name, "version": version, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    about |= {"config": {"widths": [2, 2], "attention_width": 2}} | said
    (folder / "bundle.json").write_text(json.dumps(about))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "MODEL_CARD.md").write_text(f"# {name}\n")
    return folder


def zipped(bundle: Path, prefix: str = "") -> Path:
    file = bundle.parent / "bundle.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            archive.write(bundle / name, prefix + name)
    return file


def tarred(bundle: Path, prefix: str = "", suffix: str = ".tar") -> Path:
    file = bundle.parent / f"bundle{suffix}"
    with tarfile.open(file, "w" if suffix == ".tar" else "w:gz") as archive:
        for name in FILES:
            archive.add(bundle / name, prefix + name)
    return file


def nothing_installed(into: Path) -> bool:
    return not into.exists() or not list(into.iterdir())


@pytest.mark.parametrize(
    "pack",
    [
        lambda b: b,
        zipped,
        lambda b: zipped(b, "any-folder/"),
        tarred,
        lambda b: tarred(b, "./"),
        lambda b: tarred(b, "any-folder/", ".tar.gz"),
        lambda b: tarred(b, "", ".tgz"),
        lambda b: Path(shutil.make_archive(str(b.parent / "made"), "gztar", b.parent, b.name)),
        lambda b: Path(shutil.make_archive(str(b.parent / "made"), "zip", b)),
    ],
)
def test_bundle_from_folder_and_archives(tmp_path: Path, pack: Callable[[Path], Path]):
    bundle, into = make_bundle(tmp_path / "source" / "b"), tmp_path / "data" / "models"
    made = install_bundle(pack(bundle), into)
    assert (made.name, made.version, made.folder, made.replaced) == ("small", "1", into / "small", None)
    assert find_bundle("small", into) == made.folder
    verify_bundle(made.folder)
    assert sorted(p.name for p in made.folder.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (made.folder / name).read_bytes() == (bundle / name).read_bytes()
    assert [p.name for p in into.iterdir()] == ["small"]


def test_other_files_of_a_folder_stay_there(tmp_path: Path):
    bundle = make_bundle(tmp_path / "b")
    (bundle / "notes.txt").write_text("mine")
    (bundle / "LICENSE").write_text("MIT")
    made = install_bundle(bundle, tmp_path / "models")
    assert sorted(p.name for p in made.folder.iterdir()) == sorted((*FILES, "LICENSE"))


@pytest.mark.parametrize(
    "path",
    [
        "../bundle.json",
        "/bundle.json",
        "a/../../bundle.json",
        "a/b/bundle.json",
        "..\\bundle.json",
        "C:/bundle.json",
        "a//bundle.json",
        "evil.py",
        "a/model.pt",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_entries_that_no_bundle_has(tmp_path: Path, path: str, kind: str):
    bundle = make_bundle(tmp_path / "b")
    if kind == "zip":
        file = zipped(bundle)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(zipfile.ZipInfo(path), b"x")
    else:
        file = tarred(bundle)
        with tarfile.open(file, "a") as archive:
            archive.addfile(tarfile.TarInfo(path), io.BytesIO())
    with pytest.raises(ConfigurationError, match=r"bundle\.(zip|tar)"):
        install_bundle(file, tmp_path / "models")
    assert nothing_installed(tmp_path / "models")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["b", file.name, "models"])


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes):
    file = tarred(make_bundle(tmp_path / "b"))
    with tarfile.open(file, "a") as archive:
        entry = tarfile.TarInfo("LICENSE")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(ConfigurationError, match="'LICENSE' is a link"):
        install_bundle(file, tmp_path / "models")
    assert nothing_installed(tmp_path / "models")


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600, stat.S_IFCHR | 0o600])
def test_links_and_devices_in_a_zip(tmp_path: Path, mode: int):
    file = zipped(make_bundle(tmp_path / "b"))
    with zipfile.ZipFile(file, "a") as archive:
        entry = zipfile.ZipInfo("LICENSE")
        entry.create_system, entry.external_attr = 3, mode << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(ConfigurationError, match="'LICENSE' is a link"):
        install_bundle(file, tmp_path / "models")
    assert nothing_installed(tmp_path / "models")


def test_two_bundles_in_one_archive(tmp_path: Path):
    bundle = make_bundle(tmp_path / "b")
    for prefix in ("", "c/"):
        file = zipped(bundle, "a/")
        with zipfile.ZipFile(file, "a") as archive:
            archive.write(bundle / "bundle.json", f"{prefix}bundle.json")
        with pytest.raises(ConfigurationError, match="more than one bundle"):
            install_bundle(file, tmp_path / "models")
    file = tarred(bundle)
    with tarfile.open(file, "a") as again:
        again.add(bundle / "bundle.json", "bundle.json")
    with pytest.raises(ConfigurationError, match="more than one bundle"):
        install_bundle(file, tmp_path / "models")


@pytest.mark.parametrize("pack", [lambda b: b, zipped, lambda b: tarred(b, "", ".tar.gz")])
def test_size_is_counted_while_it_unpacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[Path], Path]
):
    bundle = make_bundle(tmp_path / "b", weights=bytes(3 * 2**20))
    source = pack(bundle)
    assert source.is_dir() or source.stat().st_size < 2**16
    monkeypatch.setattr(bundle_install, "MOST_BYTES", 2**21)
    with pytest.raises(ConfigurationError, match="more than 2097152 bytes"):
        install_bundle(source, tmp_path / "models")
    assert nothing_installed(tmp_path / "models")


def test_too_many_entries(tmp_path: Path):
    file = zipped(make_bundle(tmp_path / "b"))
    with zipfile.ZipFile(file, "a") as archive:
        for number in range(62):
            archive.writestr(f"folder{number}/", b"")
    with pytest.raises(ConfigurationError, match="more than 64"):
        install_bundle(file, tmp_path / "models")


def test_extended_header_that_unpacks_to_much(tmp_path: Path):
    """Tar keeps such a header in memory; this one is 64 MiB of nothing in 64 KiB."""
    entry = tarfile.TarInfo("PaxHeaders/x")
    entry.type, entry.size = tarfile.XHDTYPE, 2**26
    file = tmp_path / "bundle.tar.gz"
    with gzip.open(file, "wb") as packed:
        packed.write(entry.tobuf(tarfile.USTAR_FORMAT))
        packed.write(bytes(2**26))
    with pytest.raises(ConfigurationError, match="extended header is too large"):
        install_bundle(file, tmp_path / "models")


@pytest.mark.parametrize("name", ["b.zip", "b.tar", "b.tar.gz", "b.tgz"])
@pytest.mark.parametrize(
    "content", [b"", b"no archive" * 100, b"PK\x03\x04" + bytes(50), b"\x1f\x8b\x08" + bytes(50)]
)
def test_broken_archives(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"models|b\."):
        install_bundle(tmp_path / name, tmp_path / "models")
    assert nothing_installed(tmp_path / "models")


@pytest.mark.parametrize("pack", [zipped, lambda b: tarred(b, "", ".tar.gz")])
def test_truncated_archives(tmp_path: Path, pack: Callable[[Path], Path]):
    source = pack(make_bundle(tmp_path / "b", weights=os.urandom(5000)))
    whole = source.read_bytes()
    for length in (len(whole) // 2, len(whole) * 4 // 5):
        source.write_bytes(whole[:length])
        with pytest.raises(ConfigurationError, match="cannot be read as a"):
            install_bundle(source, tmp_path / "models")


def test_corrupt_lzma_in_a_zip(tmp_path: Path):
    bundle, file = make_bundle(tmp_path / "b"), tmp_path / "bundle.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.write(bundle / "bundle.json", "bundle.json")
    content = bytearray(file.read_bytes())
    at = content.index(b"bundle.json") + len("bundle.json")
    content[at + 4] = 0xFF  # the properties: literal and position bits that LZMA does not have
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"bundle\.zip: cannot be read as a zip archive") as refused:
        install_bundle(file, tmp_path / "models")
    assert isinstance(refused.value.__cause__, lzma.LZMAError)
    assert nothing_installed(tmp_path / "models")


def test_chained_extended_headers_of_a_tar(tmp_path: Path):
    """Each is read while the one before is: 3,000 are deeper than Python goes."""
    record = b"13 comment=x\n"
    entry = tarfile.TarInfo("PaxHeaders/x")
    entry.type, entry.size = tarfile.XHDTYPE, len(record)
    file = tmp_path / "bundle.tar"
    file.write_bytes((entry.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")) * 3000 + bytes(1024))
    with pytest.raises(ConfigurationError, match=r"bundle\.tar: cannot be read as a tar archive"):
        install_bundle(file, tmp_path / "models")
    assert nothing_installed(tmp_path / "models")


CANNOT_READ: dict[str, dict[str, Any]] = {
    "'architecture'": {"architecture": "no-such-net"},
    "tensor .* expected": {"config": {"widths": [4, 4], "attention_width": 2}},
    "'decision.rule'": {"decision": {"rule": "nonesuch"}},
    "'config': widths is empty": {"config": {"widths": []}},
}
"""Bundles of sound weights that nothing can be done with, by what has to be said of them."""


@pytest.mark.parametrize("named", CANNOT_READ)
@pytest.mark.parametrize("pack", [lambda b: b, zipped])
def test_bundle_that_cannot_read(tmp_path: Path, pack: Callable[[Path], Path], named: str):
    source = pack(make_bundle(tmp_path / "b", **CANNOT_READ[named]))
    with pytest.raises(ConfigurationError, match=named) as refused:
        install_bundle(source, tmp_path / "models")
    assert str(source) in str(refused.value)
    assert nothing_installed(tmp_path / "models")


def test_encrypted_zip(tmp_path: Path):
    file = zipped(make_bundle(tmp_path / "b"))
    content = bytearray(file.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1  # flag bit 0 in the first entry of the directory
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="encrypted"):
        install_bundle(file, tmp_path / "models")


@pytest.mark.parametrize("name", ["absent", "file.rar"])
def test_neither_folder_nor_archive(tmp_path: Path, name: str):
    (tmp_path / "file.rar").touch()
    with pytest.raises(ConfigurationError, match=name):
        install_bundle(tmp_path / name, tmp_path / "models")


@pytest.mark.parametrize("pack", [lambda b: b, zipped])
def test_bundle_that_does_not_verify(tmp_path: Path, pack: Callable[[Path], Path]):
    bundle = make_bundle(tmp_path / "b")
    (bundle / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ConfigurationError, match="weights_sha256"):
        install_bundle(pack(bundle), tmp_path / "models")
    assert nothing_installed(tmp_path / "models")


def test_another_bundle_of_the_name_stays_unless_it_is_to_be_replaced(tmp_path: Path):
    into = tmp_path / "models"
    install_bundle(make_bundle(tmp_path / "one", version="1"), into)
    other = make_bundle(tmp_path / "two", version="2", weights=OTHER)
    with pytest.raises(ConfigurationError, match=r"small 1 is installed.*small 2; --replace"):
        install_bundle(other, into)
    assert (into / "small" / "model.safetensors").read_bytes() == WEIGHTS
    made = install_bundle(other, into, replace=True)
    assert (made.version, made.replaced) == ("2", "1")
    assert (into / "small" / "model.safetensors").read_bytes() == OTHER
    assert [p.name for p in into.iterdir()] == ["small"]


def test_same_version_with_other_weights_is_another_bundle(tmp_path: Path):
    install_bundle(make_bundle(tmp_path / "one"), tmp_path / "models")
    with pytest.raises(ConfigurationError, match="is not the same"):
        install_bundle(make_bundle(tmp_path / "two", weights=OTHER), tmp_path / "models")


def test_what_is_there_already_is_left_alone(tmp_path: Path):
    bundle = make_bundle(tmp_path / "b")
    first = install_bundle(bundle, tmp_path / "models")
    before = first.folder.stat().st_ino
    assert install_bundle(bundle, tmp_path / "models").unchanged
    assert first.folder.stat().st_ino == before


def test_damaged_bundle_is_replaced(tmp_path: Path):
    bundle = make_bundle(tmp_path / "b")
    installed = install_bundle(bundle, tmp_path / "models").folder
    (installed / "bundle.json").write_text("{")
    assert install_bundle(bundle, tmp_path / "models", replace=True).replaced == "(damaged)"
    verify_bundle(installed)


def test_failure_while_replacing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    into = tmp_path / "models"
    install_bundle(make_bundle(tmp_path / "one"), into)
    other = make_bundle(tmp_path / "two", version="2", weights=OTHER)
    verify = bundle_install.verify_bundle

    def disk_fails(folder: Path) -> str:
        if folder == into / "small":
            (folder / "model.safetensors").write_bytes(b"torn")
        return verify(folder)

    monkeypatch.setattr(bundle_install, "verify_bundle", disk_fails)
    with pytest.raises(ConfigurationError, match="weights_sha256"):
        install_bundle(other, into, replace=True)
    assert (into / "small" / "model.safetensors").read_bytes() == WEIGHTS
    assert [p.name for p in into.iterdir()] == ["small"]


def test_name_of_a_shipped_bundle_is_taken(tmp_path: Path):
    bundle = make_bundle(tmp_path / "b", name="vicar-attention-v1")
    with pytest.raises(ConfigurationError, match="comes with the package"):
        install_bundle(bundle, tmp_path / "models")
    made = install_bundle(bundle, tmp_path / "models", replace=True)
    assert find_bundle("vicar-attention-v1", tmp_path / "models") == made.folder


def test_something_else_in_its_place_is_never_removed(tmp_path: Path):
    into = tmp_path / "models"
    bundle = make_bundle(tmp_path / "b")
    (into / "small").mkdir(parents=True)
    (into / "small" / "letter").touch()
    with pytest.raises(ConfigurationError, match="move it away"):
        install_bundle(bundle, into, replace=True)
    assert (into / "small" / "letter").exists()
    shutil.rmtree(into / "small")
    (into / "small").symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="move it away"):
        install_bundle(bundle, into, replace=True)


def test_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        install_bundle(make_bundle(tmp_path / "b"), tmp_path / "file" / "models")
