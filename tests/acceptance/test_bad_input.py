"""Bad input gets a NOT_READ row with its reason or a DICOM failure status: never silence, never a negative."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, JPEGLSLossless

from ich_node.findings import IchSubtype
from ich_node.testing.phantom import head_phantom
from ich_node.testing.series import phantom_series

from .conftest import Orthanc, RunningNode

Store = Callable[..., int]
Spoil = Callable[[list[pydicom.Dataset]], Sequence[pydicom.Dataset]]


def each(change: Callable[[pydicom.Dataset], None]) -> Spoil:
    def spoil(images: list[pydicom.Dataset]) -> list[pydicom.Dataset]:
        for image in images:
            change(image)
        return images

    return spoil


def another_class(image: pydicom.Dataset) -> None:
    image.Modality = "MR"
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


def chest(image: pydicom.Dataset) -> None:
    image.BodyPartExamined = "CHEST"
    image.StudyDescription = image.SeriesDescription = image.ProtocolName = "CT Chest"


def contrast(image: pydicom.Dataset) -> None:
    image.ContrastBolusAgent = "Iohexol 300"


def bone(image: pydicom.Dataset) -> None:
    image.ConvolutionKernel = "H60s"
    image.SeriesDescription = "Head bone"


def truncated(image: pydicom.Dataset) -> None:
    image.PixelData = image.PixelData[: len(image.PixelData) // 2]


def damaged(image: pydicom.Dataset) -> None:
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    image["PixelData"].value = image.PixelData[:60] + bytes(len(image.PixelData) - 60)


def without(keyword: str) -> Callable[[pydicom.Dataset], None]:
    return lambda image: delattr(image, keyword)


def one_position_twice(images: list[pydicom.Dataset]) -> list[pydicom.Dataset]:
    for a, b in zip(images[::2], images[1::2], strict=False):
        b.ImagePositionPatient, b.SliceLocation = a.ImagePositionPatient, a.get("SliceLocation")
    return images


def noise_only(image: pydicom.Dataset) -> None:
    image.PixelData = np.zeros((image.Rows, image.Columns), np.uint16).tobytes()


CASES: dict[str, tuple[Spoil, set[str], tuple[str, ...]]] = {
    "not CT": (each(another_class), {"NOT_CT"}, ()),
    "not a head": (each(chest), {"NOT_HEAD"}, ()),
    "too few slices": (lambda images: images[10:14], {"TOO_FEW_SLICES"}, ()),
    "one slice missing in the middle": (lambda images: images[:15] + images[16:], {"MISSING_SLICES"}, ()),
    "duplicate positions": (one_position_twice, {"DUPLICATE_POSITIONS"}, ()),
    "contrast": (each(contrast), {"CONTRAST"}, ()),
    "bone kernel only": (each(bone), {"BONE_KERNEL"}, ()),
    "truncated pixel data": (each(truncated), {"CORRUPT_PIXEL_DATA"}, ()),
    "damaged JPEG-LS": (each(damaged), {"CORRUPT_PIXEL_DATA"}, ("-xt",)),
    "no position": (each(without("ImagePositionPatient")), {"MISSING_ATTRIBUTE"}, ()),
    "no spacing": (each(without("PixelSpacing")), {"MISSING_ATTRIBUTE"}, ()),
    "empty pixels": (each(noise_only), {"IMPLAUSIBLE_VALUES"}, ()),
}


@pytest.mark.parametrize("case", CASES)
def test_unreadable_study_has_its_reason(
    node: RunningNode, orthanc: Orthanc, store: Store, case: str
) -> None:
    spoil, reasons, options = CASES[case]
    phantom = head_phantom(bleeds=(IchSubtype.EPIDURAL,), seed=31, rows=256, columns=256)
    images = spoil(phantom_series(phantom, name=f"bad {case}"))
    uid = str(images[0].StudyInstanceUID)
    assert store(images, *options) == 0
    row = node.row_when(uid, "NOT_READ", "READ", "FAILED")
    assert (row["state"], row["priority"], row["suspicion"]) == ("NOT_READ", "MEDIUM", None)
    assert row["reason"] in reasons
    assert orthanc.objects(uid) == []


def test_unknown_transfer_syntax_is_refused_at_the_association(node: RunningNode, store: Store) -> None:
    images = phantom_series(head_phantom(seed=32, rows=256, columns=256), name="bad syntax")[:1]
    images[0].file_meta.TransferSyntaxUID = MPEG2MPML
    images[0].PixelData = encapsulate([bytes(64)])
    images[0]["PixelData"].is_undefined_length = True
    assert store(images, "-xv") != 0
    assert str(images[0].StudyInstanceUID) not in node.worklist()


def test_object_without_identity_is_refused(node: RunningNode, store: Store) -> None:
    images = phantom_series(head_phantom(seed=33, rows=256, columns=256), name="bad identity")[:1]
    uid = str(images[0].StudyInstanceUID)
    del images[0].SeriesInstanceUID
    assert store(images) != 0
    assert uid not in node.worklist()
