"""The shipped PACS and modality against each other and against DCMTK; headers against dicom3tools."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, RLELossless, SecondaryCaptureImageStorage

from ich_node.errors import TransientError
from ich_node.testing.pacs import DemoPacs
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.scu import SOP_CLASS_NOT_SUPPORTED, echo, send_images
from ich_node.testing.series import localizer_series, phantom_series

HOST = "127.0.0.1"


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return head_phantom(seed=1, rows=128, columns=128, slices=4)


@pytest.fixture
def files(phantom: HeadPhantom, tmp_path: Path) -> list[Path]:
    return save(phantom_series(phantom), tmp_path / "source")


def save(images: Sequence[pydicom.Dataset], folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number}.dcm" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save_as(path, enforce_file_format=True)
    return paths


@pytest.mark.parametrize(
    "build",
    [
        phantom_series,
        lambda p: phantom_series(p, gantry_tilt_deg=-18.5, signed=True, contrast_bolus_agent="IODINE"),
        lambda p: phantom_series(p, transfer_syntax_uid=RLELossless, image_comments="spacing is assumed"),
        localizer_series,
    ],
    ids=["plain", "tilted", "compressed", "localizer"],
)
def test_dciodvfy_finds_nothing(
    build: Callable[[HeadPhantom], list[pydicom.Dataset]], phantom: HeadPhantom, tmp_path: Path
) -> None:
    validator = program("dciodvfy")
    for path in save(build(phantom), tmp_path / "series"):
        verdict = subprocess.run([validator, path], capture_output=True, text=True, timeout=60, check=False)
        assert verdict.stderr.strip() == "CTImage", verdict.stderr


def test_pacs_takes_what_storescu_sends(files: list[Path], phantom: HeadPhantom, tmp_path: Path) -> None:
    storescu = program("storescu")
    with DemoPacs(tmp_path / "pacs") as pacs:
        subprocess.run(
            [storescu, "-aet", "SCANNER", "-aec", pacs.ae_title, HOST, str(pacs.port), *files],
            check=True,
            timeout=60,
            # Nagle's algorithm and delayed acknowledgements would cost 40 ms an image
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        received = pacs.wait_for(lambda objects: len(objects) == len(files), 10)
    assert {r.calling_ae_title for r in received} == {"SCANNER"}
    assert {r.sop_class_uid for r in received} == {CTImageStorage}
    for taken, sent, hu in zip(received, files, phantom.hu, strict=True):
        assert taken.path == tmp_path / "pacs" / f"{pydicom.dcmread(sent).SOPInstanceUID}.dcm"
        np.testing.assert_allclose(taken.read().pixel_array - 1024.0, hu, atol=0.5)


def test_pacs_answers_echoscu(tmp_path: Path) -> None:
    echoscu = program("echoscu")
    with DemoPacs(tmp_path) as pacs:
        subprocess.run([echoscu, "-aec", pacs.ae_title, HOST, str(pacs.port)], check=True, timeout=60)


def test_images_of_several_encodings_in_one_association(
    phantom: HeadPhantom, files: list[Path], tmp_path: Path
) -> None:
    compressed = phantom_series(phantom, name="compressed", transfer_syntax_uid=RLELossless)
    with DemoPacs(tmp_path / "pacs") as pacs:
        statuses = send_images(
            [*files, *compressed], host=HOST, port=pacs.port, called_ae_title=pacs.ae_title
        )
        received = pacs.received
    assert statuses == [0] * 8
    assert [r.transfer_syntax_uid == RLELossless for r in received] == [False] * 4 + [True] * 4
    np.testing.assert_array_equal(received[6].read().pixel_array, compressed[2].pixel_array)
    # a file is sent with the bytes that it has
    assert received[0].read().PixelData == pydicom.dcmread(files[0]).PixelData


def test_echo(tmp_path: Path) -> None:
    with DemoPacs(tmp_path) as pacs:
        assert echo(host=HOST, port=pacs.port, called_ae_title=pacs.ae_title) == 0


def test_failing_status_keeps_nothing_and_warning_keeps_all(files: list[Path], tmp_path: Path) -> None:
    with DemoPacs(tmp_path / "pacs", store_status=0xA700) as pacs:
        to = {"host": HOST, "port": pacs.port, "called_ae_title": pacs.ae_title}
        assert send_images(files[:2], **to) == [0xA700, 0xA700]
        assert pacs.received == ()
        pacs.store_status = lambda sop_class: 0xB000 if sop_class == CTImageStorage else 0
        assert send_images(files[:2], **to) == [0xB000, 0xB000]
        assert len(pacs.received) == len(list((tmp_path / "pacs").iterdir())) == 2


def test_refused_sop_class_is_reported_not_sent(files: list[Path], tmp_path: Path) -> None:
    with DemoPacs(tmp_path / "pacs", refuse_sop_classes=[CTImageStorage]) as pacs:
        statuses = send_images(files, host=HOST, port=pacs.port, called_ae_title=pacs.ae_title)
        assert statuses == [SOP_CLASS_NOT_SUPPORTED] * len(files)
        assert pacs.received == ()


def test_rejected_association_is_transient_and_says_who(files: list[Path], tmp_path: Path) -> None:
    with DemoPacs(tmp_path / "pacs", reject_associations=True) as pacs:
        to = {"host": HOST, "port": pacs.port, "called_ae_title": pacs.ae_title}
        with pytest.raises(
            TransientError, match=r"DEMO_PACS at .* rejected the association: .*Calling AE title"
        ):
            send_images(files, **to)
        pacs.reject_associations = False
        assert send_images(files[:1], **to) == [0]


def test_nobody_there_is_transient(tmp_path: Path) -> None:
    with DemoPacs(tmp_path) as pacs:
        port = pacs.port
    with pytest.raises(TransientError, match=r"DEMO_PACS at .* cannot be reached"):
        echo(host=HOST, port=port, called_ae_title="DEMO_PACS")
    with pytest.raises(RuntimeError, match="with"):
        _ = pacs.port


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("uid", ["../../evil", "1.2/3", "1..2"])
def test_a_uid_that_is_no_uid_is_refused(uid: str, phantom: HeadPhantom, tmp_path: Path) -> None:
    image = phantom_series(phantom)[0]
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
    with DemoPacs(tmp_path / "pacs") as pacs:
        assert send_images([image], host=HOST, port=pacs.port, called_ae_title=pacs.ae_title) == [0x0117]
    assert [p.name for p in tmp_path.rglob("*")] == ["pacs"]


def test_waiting_in_vain_ends(tmp_path: Path) -> None:
    with DemoPacs(tmp_path) as pacs, pytest.raises(TimeoutError, match="0 objects"):
        pacs.wait_for(
            lambda objects: any(o.sop_class_uid == SecondaryCaptureImageStorage for o in objects), 0.05
        )


def test_nothing_to_send_needs_no_peer() -> None:
    assert send_images([], host=HOST, port=1, called_ae_title="NOBODY") == []
