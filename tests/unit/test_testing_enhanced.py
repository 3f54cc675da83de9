"""The shipped Enhanced CT builder: the slices that went in are the frames that come out, by pydicom alone."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_rescale
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ich_node.testing.enhanced import enhanced_ct, enhanced_phantom
from ich_node.testing.functional_groups import EnhancedFrame
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import phantom_series


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return head_phantom(seed=1, rows=128, columns=128, slices=5)


def through_a_file(dataset: pydicom.Dataset) -> pydicom.Dataset:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return pydicom.dcmread(BytesIO(buffer.getvalue()))


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
        JPEGLSLossless,
    ],
    ids=lambda uid: uid.name,
)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_hounsfield_units_survive(phantom: HeadPhantom, syntax: str, signed: bool) -> None:
    (dataset,) = enhanced_phantom(phantom, transfer_syntax_uid=syntax, signed=signed)
    found = through_a_file(dataset)
    assert found.file_meta.TransferSyntaxUID == syntax
    assert found.SOPClassUID == found.file_meta.MediaStorageSOPClassUID == EnhancedCTImageStorage
    item = found.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    np.testing.assert_array_equal(apply_rescale(found.pixel_array, item), np.rint(phantom.hu))


def test_what_differs_stands_at_the_frame_and_what_does_not_is_shared(phantom: HeadPhantom) -> None:
    images = phantom_series(phantom)
    images[2].RescaleIntercept = "-1000"
    (dataset,) = enhanced_ct([EnhancedFrame(image=image) for image in images])
    (shared,) = dataset.SharedFunctionalGroupsSequence
    each = dataset.PerFrameFunctionalGroupsSequence
    assert len(each) == dataset.NumberOfFrames == 5
    assert "PixelValueTransformationSequence" not in shared
    intercepts = [float(g.PixelValueTransformationSequence[0].RescaleIntercept) for g in each]
    assert intercepts == [-1024, -1024, -1000, -1024, -1024]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == images[0].PixelSpacing
    positions = [g.PlanePositionSequence[0].ImagePositionPatient for g in each]
    assert positions == [image.ImagePositionPatient for image in images]
    for group in each:
        assert not set(group.keys()) & set(shared.keys())


def test_frames_are_shared_out_in_runs(phantom: HeadPhantom) -> None:
    parts = enhanced_phantom(phantom, objects=2, concatenated=True)
    assert [p.NumberOfFrames for p in parts] == [2, 3]
    assert [p.ConcatenationFrameOffsetNumber for p in parts] == [0, 2]
    assert len({p.SOPInstanceUID for p in parts}) == 2
    assert len({p.ConcatenationUID for p in parts}) == 1
    assert "ConcatenationUID" not in enhanced_phantom(phantom, objects=2)[0]


def test_the_same_name_gives_the_same_object(phantom: HeadPhantom) -> None:
    once, again = (enhanced_phantom(phantom, name="again")[0] for _ in range(2))
    assert once == again
    assert enhanced_phantom(phantom, name="other")[0].SOPInstanceUID != once.SOPInstanceUID


def test_what_cannot_be_written_is_refused(phantom: HeadPhantom) -> None:
    with pytest.raises(ValueError, match="Big Endian"):
        enhanced_phantom(phantom, transfer_syntax_uid=ExplicitVRBigEndian)
    with pytest.raises(ValueError, match="5 frames make no 6 objects"):
        enhanced_phantom(phantom, objects=6)
    with pytest.raises(TypeError):
        enhanced_phantom(phantom, no_such_option=1)
