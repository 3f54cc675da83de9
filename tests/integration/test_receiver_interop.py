"""Real senders against a running ``ich-node receiver``: DCMTK's tools and Orthanc, bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from ich_node.receive.spool import part10_header
from tests.bare_peer import DATA, LAST, STORE_CONTEXT, p_data, pdv, store_rq
from tests.receiver_process import HOST, ReceiverProcess, free_port, running_receiver, wait_until
from tests.small_objects import ROOT, data_set_of, encoded, saved, small_object
from tests.unit.encoded_images import COMPRESSED, multi_frame, smooth_hu
from tests.unit.encoded_images import image as compressed_image

WAIT_S = 120.0
ECHO_S = 10.0
"""An echo is never as slow, however busy this machine is; its median is far below."""
ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with running_receiver(tmp_path_factory.mktemp("interop")) as running:
        yield running


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"DCMTK's {name} is not installed")
    return found


def start(*command: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, output
    return output


def run(*command: str | Path) -> str:
    return finish(start(*command))


def storescu(*arguments: str | Path) -> list[str | Path]:
    return [program("storescu"), "-aet", "CT01", "-aec", "ICH_NODE", *arguments]


def destination(receiver: ReceiverProcess) -> tuple[str, str]:
    return HOST, str(receiver.port)


def assert_kept(receiver: ReceiverProcess, *paths: Path) -> None:
    """The data set of each file lies in the spool with the same bytes, and has its row."""
    kept = {data_set_of(path): path for path in receiver.objects()}
    for path in paths:
        assert data_set_of(path) in kept, path.name
    names = {kept[data_set_of(path)].relative_to(receiver.spool).as_posix() for path in paths}
    wait_until(lambda: names <= {row["file_name"] for row in receiver.rows()}, "rows", WAIT_S)


# transfer syntaxes


def picture(**changes: object) -> pydicom.FileDataset:
    """A CT image of 12 bits that codecs take, with a UID of its own."""
    pixels = (np.add.outer(np.arange(64), np.arange(64)) * 11 % 4096).astype("<u2")
    values: dict[str, object] = {
        "Rows": 64,
        "Columns": 64,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": pixels.tobytes(),
    }
    return small_object(**{**values, **changes})


def eight_bits(**changes: object) -> pydicom.FileDataset:
    pixels = (np.add.outer(np.arange(64), np.arange(64)) % 256).astype(np.uint8)
    return picture(BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=pixels.tobytes(), **changes)


_ENCODERS = {
    "JPEG lossless": (JPEGLosslessSV1, "dcmcjpeg", ["+e1"], ["-xs"], picture),
    "JPEG lossless, any predictor": (JPEGLossless, "dcmcjpeg", ["+el", "+sv", "4"], [], picture),
    "JPEG baseline": (JPEGBaseline8Bit, "dcmcjpeg", ["+eb"], ["-xy"], eight_bits),
    "JPEG extended": (JPEGExtended12Bit, "dcmcjpeg", ["+ee"], ["-xx"], picture),
    "JPEG-LS": (JPEGLSLossless, "dcmcjpls", ["+el"], ["-xt"], picture),
    "JPEG-LS, near": (JPEGLSNearLossless, "dcmcjpls", ["+en"], ["-xu"], picture),
    "RLE": (RLELossless, "dcmcrle", [], ["-xr"], picture),
}


@pytest.mark.parametrize("name", _ENCODERS)
def test_what_dcmtk_compresses_and_sends(receiver: ReceiverProcess, tmp_path: Path, name: str) -> None:
    """By storescu where it can propose the transfer syntax, and by dcmsend, which goes by the files."""
    syntax, encoder, options, proposal, make = _ENCODERS[name]
    paths = []
    for tool in ("storescu", "dcmsend") if proposal else ("dcmsend",):
        original, path = saved(make(), tmp_path), tmp_path / f"{tool}.dcm"
        run(program(encoder), *options, original, path)
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert header.file_meta.TransferSyntaxUID == syntax
        if tool == "storescu":
            run(*storescu(*proposal), *destination(receiver), path)
        else:
            run(program("dcmsend"), "-aec", "ICH_NODE", "-dn", *destination(receiver), path)
        paths.append(path)
    assert_kept(receiver, *paths)
    sent = {str(pydicom.dcmread(path).SOPInstanceUID) for path in paths}
    rows = [row for row in receiver.rows() if row["sop_instance_uid"] in sent]
    assert {row["transfer_syntax_uid"] for row in rows} == {syntax}


def test_jpeg_2000(receiver: ReceiverProcess, tmp_path: Path) -> None:
    paths = []
    for tool in ("storescu", "dcmsend"):
        dataset = picture()
        before = dataset.pixel_array
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.save_as(tmp_path / f"{tool}.dcm", enforce_file_format=True)
        paths.append(tmp_path / f"{tool}.dcm")
    run(*storescu("-xv"), *destination(receiver), paths[0])
    run(program("dcmsend"), "-aec", "ICH_NODE", "-dn", *destination(receiver), paths[1])
    assert_kept(receiver, *paths)
    kept = {data_set_of(path): path for path in receiver.objects()}[data_set_of(paths[0])]
    assert (pydicom.dcmread(kept).pixel_array == before).all()


def test_implicit_vr(receiver: ReceiverProcess, tmp_path: Path) -> None:
    path = saved(small_object(transfer_syntax_uid=ImplicitVRLittleEndian), tmp_path)
    run(*storescu("-xi"), *destination(receiver), path)
    assert_kept(receiver, path)


def renamed(dataset: pydicom.FileDataset) -> pydicom.FileDataset:
    """Give it a UID that no other test uses."""
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = small_object().SOPInstanceUID
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *COMPRESSED])
def test_every_transfer_syntax_that_is_decoded_is_received(
    receiver: ReceiverProcess, tmp_path: Path, syntax: str
) -> None:
    path = tmp_path / "image.dcm"
    renamed(compressed_image(smooth_hu()[0], syntax)).save_as(path, enforce_file_format=True)
    run(program("dcmsend"), "-aec", "ICH_NODE", "-dn", *destination(receiver), path)
    assert_kept(receiver, path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless])
def test_enhanced_ct(receiver: ReceiverProcess, tmp_path: Path, syntax: str) -> None:
    dataset = renamed(multi_frame(smooth_hu(frames=12), syntax))
    path = tmp_path / "enhanced.dcm"
    dataset.save_as(path, enforce_file_format=True)
    run(program("dcmsend"), "-aec", "ICH_NODE", "-dn", *destination(receiver), path)
    assert_kept(receiver, path)
    (row,) = [row for row in receiver.rows() if row["sop_instance_uid"] == dataset.SOPInstanceUID]
    assert (row["sop_class_uid"], row["number_of_frames"]) == (EnhancedCTImageStorage, 12)


def test_secondary_captures(receiver: ReceiverProcess, tmp_path: Path) -> None:
    """Grey, in colour, and in colour as JPEG baseline."""
    grey = small_object(sop_class_uid=SecondaryCaptureImageStorage, Modality="OT")
    colour = small_object(
        sop_class_uid=SecondaryCaptureImageStorage,
        Modality="OT",
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        PhotometricInterpretation="RGB",
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        Rows=32,
        Columns=32,
        PixelData=bytes(range(256)) * 12,
    )
    paths = [saved(grey, tmp_path), saved(colour, tmp_path)]
    colour.SOPInstanceUID = colour.file_meta.MediaStorageSOPInstanceUID = f"{colour.SOPInstanceUID}.9"
    run(program("dcmcjpeg"), "+eb", saved(colour, tmp_path), tmp_path / "baseline.dcm")
    paths.append(tmp_path / "baseline.dcm")
    run(program("dcmsend"), "-aec", "ICH_NODE", "-dn", *destination(receiver), *paths)
    assert_kept(receiver, *paths)


# studies


def write_study(folder: Path, number: int, slices: int, *, side: int = 16, parts: int = 1) -> list[Path]:
    """Write CT slices of one study into as many folders as parts; quickly, by changing a template's UID."""
    pixels = np.zeros((side, side), "<i2").tobytes()
    template_uid = f"{ROOT}.77.{number}.100000"
    template = encoded(
        small_object(
            SOPInstanceUID=template_uid,
            StudyInstanceUID=f"{ROOT}.77.{number}",
            SeriesInstanceUID=f"{ROOT}.77.{number}.1",
            Rows=side,
            Columns=side,
            PixelData=pixels,
        )
    )
    folders = [folder / f"part-{part}" for part in range(parts)]
    for one in folders:
        one.mkdir(parents=True)
    for at in range(slices):
        uid = f"{ROOT}.77.{number}.{100001 + at}"
        header = part10_header(
            sop_class_uid=CTImageStorage,
            sop_instance_uid=uid,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            source_ae_title="CT01",
        )
        content = template.replace(template_uid.encode(), uid.encode())
        (folders[at * parts // slices] / f"{at:05}.dcm").write_bytes(header + content)
    return folders


def send_study(receiver: ReceiverProcess, folders: Sequence[Path], number: int, slices: int) -> float:
    """Send each folder over an association of its own, all at once; gives seconds till all rows are there."""
    began = time.monotonic()
    senders = [start(*storescu("-R", "+sd"), *destination(receiver), folder) for folder in folders]
    for sender in senders:
        finish(sender)
    series = f"{ROOT}.77.{number}.1"

    def rows() -> int:
        return sum(row["series_instance_uid"] == series for row in receiver.rows())

    wait_until(lambda: rows() >= slices, f"{slices} rows", WAIT_S)
    seconds = time.monotonic() - began
    assert rows() == slices
    assert_kept(receiver, *(path for folder in folders for path in folder.iterdir()))
    return seconds


@pytest.mark.parametrize("associations", [1, 4])
def test_a_study_of_400_slices(receiver: ReceiverProcess, tmp_path: Path, associations: int) -> None:
    folders = write_study(tmp_path, associations, 400, side=64, parts=associations)
    assert send_study(receiver, folders, associations, 400) < 60
    ends = re.findall(r"CT01: (\d+) images stored, 0 refused, association released", receiver.log)
    assert Counter(ends)[str(400 // associations)] >= associations


def test_a_study_of_3000_slices(receiver: ReceiverProcess, tmp_path: Path) -> None:
    folders = write_study(tmp_path, 3000, 3000)
    assert send_study(receiver, folders, 3000, 3000) < WAIT_S


def test_a_large_object_takes_no_more_memory(receiver: ReceiverProcess) -> None:
    uid = small_object().SOPInstanceUID
    size = 192 * 2**20
    whole = encoded(small_object(SOPInstanceUID=uid))
    at = whole.index(b"\xe0\x7f\x10\x00OW")
    beginning = whole[: at + 8] + size.to_bytes(4, "little")
    with receiver.peer() as peer:
        receiver.forget_peaks()
        before = receiver.peak_mib()
        peer.send(p_data(pdv(STORE_CONTEXT, 3, store_rq(uid))))
        peer.send(p_data(pdv(STORE_CONTEXT, DATA, beginning)))
        piece = p_data(pdv(STORE_CONTEXT, DATA, bytes(65536)))
        for _ in range(size // 65536 - 1):
            peer.send(piece)
        peer.send(p_data(pdv(STORE_CONTEXT, DATA | LAST, bytes(65536))))
        assert peer.status() == 0x0000
        assert receiver.peak_mib() < before + 8
        peer.release()
    (large,) = [path for path in receiver.objects() if path.stat().st_size > size]
    large.unlink()


# at the same time


def test_echoes_while_eight_senders_send(receiver: ReceiverProcess, tmp_path: Path) -> None:
    """Over new associations and over one that stays open."""
    folders = write_study(tmp_path, 8, 8 * 60, side=256, parts=8)
    echo = [program("echoscu"), "-aec", "ICH_NODE", HOST, str(receiver.port)]
    seconds: list[float] = []
    over = threading.Event()

    def keep_echoing() -> None:
        with receiver.peer() as peer:
            while not over.is_set():
                for _ in range(5):
                    began = time.monotonic()
                    assert peer.echo() == 0x0000
                    seconds.append(time.monotonic() - began)
                began = time.monotonic()
                run(*echo)
                seconds.append(time.monotonic() - began)
            peer.release()

    echoing = threading.Thread(target=keep_echoing)
    echoing.start()
    try:
        send_study(receiver, folders, 8, 8 * 60)
    finally:
        over.set()
        echoing.join(WAIT_S)
    assert len(seconds) >= 6
    assert max(seconds) < ECHO_S
    assert statistics.median(seconds) < 1.0


def test_interleaved_studies_over_one_association(receiver: ReceiverProcess, tmp_path: Path) -> None:
    paths = []
    for at in range(30):
        study = f"{ROOT}.88.{at % 3}"
        dataset = small_object(StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1", InstanceNumber=at)
        paths.append(saved(dataset, tmp_path))
    run(*storescu(), *destination(receiver), *paths)
    assert_kept(receiver, *paths)
    counts = Counter(row["series_instance_uid"] for row in receiver.rows())
    assert [counts[f"{ROOT}.88.{study}.1"] for study in range(3)] == [10, 10, 10]


def test_sent_again_and_changed(receiver: ReceiverProcess, tmp_path: Path) -> None:
    """The same bytes are one object; other bytes under its UID are kept beside it, and said so."""
    dataset = small_object()
    path = saved(dataset, tmp_path)
    before = len(receiver.objects())
    for _ in range(3):
        run(*storescu(), *destination(receiver), path)
    assert_kept(receiver, path)
    assert len(receiver.objects()) == before + 1
    dataset.InstanceNumber = 2
    changed = tmp_path / "changed.dcm"
    dataset.save_as(changed, enforce_file_format=True)
    run(*storescu(), *destination(receiver), changed)
    assert_kept(receiver, path, changed)
    assert len(receiver.objects()) == before + 2
    rows = [row for row in receiver.rows() if row["sop_instance_uid"] == dataset.SOPInstanceUID]
    assert sorted(row["conflict"] for row in rows) == [0, 1]
    assert "other content under a SOP Instance UID that is already here" in receiver.log


# Orthanc


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A PACS of another make, by its REST interface."""

    http_port: int

    def call(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"http://{HOST}:{self.http_port}{path}", data=body)
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return bytes(answer.read())

    def answers(self) -> bool:
        try:
            return bool(self.call("/system"))
        except OSError:
            return False


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, receiver: ReceiverProcess) -> Iterator[Orthanc]:
    if not Path(ORTHANC).exists():
        pytest.skip("Orthanc is not installed")
    folder, http_port = tmp_path_factory.mktemp("orthanc"), free_port()
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "DicomAet": "ORTHANC",
        "DicomPort": free_port(),
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomModalities": {"node": ["ICH_NODE", HOST, receiver.port]},
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        environ = {**os.environ, "TCP_NODELAY": "1"}
        command = [ORTHANC, str(folder / "orthanc.json")]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        pacs = Orthanc(http_port=http_port)
        try:
            wait_until(pacs.answers, "Orthanc answers", WAIT_S)
            yield pacs
        finally:
            process.terminate()
            process.wait(WAIT_S)


def test_orthanc_forwards_a_study(receiver: ReceiverProcess, orthanc: Orthanc) -> None:
    """Uncompressed and compressed slices of one study, by its number there."""
    ids, instances = set(), []
    syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless]
    for at in range(20):
        syntax = syntaxes[at % len(syntaxes)]
        dataset = picture(
            StudyInstanceUID=f"{ROOT}.99",
            SeriesInstanceUID=f"{ROOT}.99.{at % 2}",
            transfer_syntax_uid=ImplicitVRLittleEndian
            if syntax == ImplicitVRLittleEndian
            else ExplicitVRLittleEndian,
        )
        if syntax.is_compressed:
            dataset.compress(syntax, generate_instance_uid=False)
        file = BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        stored = json.loads(orthanc.call("/instances", file.getvalue()))
        ids.add(stored["ParentStudy"])
        instances.append(stored["ID"])
    (study,) = ids
    job = json.loads(
        orthanc.call(
            "/modalities/node/store", json.dumps({"Resources": [study], "Synchronous": True}).encode()
        )
    )
    assert (job["InstancesCount"], job["FailedInstancesCount"]) == (20, 0)
    kept = {data_set_of(path) for path in receiver.objects()}
    for instance in instances:
        whole = pydicom.dcmread(BytesIO(orthanc.call(f"/instances/{instance}/file")))
        assert encoded(whole) in kept
    assert orthanc.call("/modalities/node/echo", b"{}") == b"{}"
