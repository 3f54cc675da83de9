"""CT images in every transfer syntax that is received, of one frame or more, by real encoders."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    JPEG2000,
    UID,
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
)

from ich_node.testing.series import ct_series

INTERCEPT = -1024.0
TOLERANCE_HU = {JPEGBaseline8Bit: 8, JPEGExtended12Bit: 8, JPEGLSNearLossless: 3, JPEG2000: 30}
"""Of the lossy transfer syntaxes; 8 HU are two steps of the 8-bit image."""
COMPRESSED = (
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    RLELossless,
)
EXTENDED_12_BIT = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWIC"
    "wgIyYnKSopGR8tMC0oMCUoKSj/wQALDAAoACABAREA/8QAGAABAQEBAQAAAAAAAAAAAAAACAkKBwb/xAAmEAAABQMDBAMB"
    "AAAAAAAAAAABAgMEEQAGBwUTMQgiQVEVIWGh/9oACAEBAAA/AMibzFAIkEdj+V4q4bRDTimHbiPyuV3LqXxgmADRFc31fJ"
    "QszCG9EftW0uPH5E2phBHx6ovZht0rNNaCRE+KAmbnwsTLwMRNCjIl7nbuFQ3RD791r3vHR0isj9ocUIOodkRJBzAeBqUX"
    "UwqKR3UDHNTVy7qihHa3cPI1tnvLV0jMj9wcUH+od4RRBzA+6lF1MpCqd1H7U1Mu6Yod2tBR5GtctyZBIo1OG6HHui9mG4"
    "QeJLAB5kBoA5vYi+MvATM0Jsh2Sdy4VEEx+xHxX//Z"
)
"""``smooth_hu()[0]`` by DCMTK's ``dcmcjpeg +ee +q 80``; no encoder of 12-bit DCT can be called from Python."""
EXTENDED_12_BIT_SHA256 = "ad60d3f2b0f19a2482463702ca6418c4a995b92a718719bbf9fdd1cf30f5caa3"
"""Of the values (uint16, little endian) that DCMTK's ``dcmdjpeg`` decodes it to."""
_EXTENDED_12_BIT_INTERCEPT = -1603
_GDCM = {
    JPEGBaseline8Bit: gdcm.TransferSyntax.JPEGBaselineProcess1,
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}


def smooth_hu(frames: int = 1, rows: int = 40, columns: int = 32) -> npt.NDArray[np.float32]:
    """Make (frames, rows, columns) whole HU that lossy codecs keep nearly as they are; no two frames alike."""
    f, y, x = np.meshgrid(np.arange(frames), np.arange(rows), np.arange(columns), indexing="ij")
    hu = 400 * np.sin(y / 15 + f) * np.cos(x / 11 - f / 3) - 200
    return (np.rint(hu / 4) * 4).astype(np.float32)


def image(hu: npt.ArrayLike, syntax: str = str(ExplicitVRLittleEndian), **options: Any) -> FileDataset:
    """Make a CT image of one (rows, columns) slice; in JPEG Extended it must be ``smooth_hu()[0]``."""
    (dataset,) = ct_series(np.asarray(hu)[None], (5.0, 1.0, 1.0), **options)
    dataset.BitsStored, dataset.HighBit = 12, 11
    if syntax == JPEGBaseline8Bit:
        _to_8_bit(dataset)
    return encoded(dataset, syntax)


def encoded(dataset: FileDataset, syntax: str) -> FileDataset:
    """Encode a native image."""
    uid = UID(syntax)
    if uid == JPEGExtended12Bit:
        dataset.RescaleIntercept = _EXTENDED_12_BIT_INTERCEPT
        with_frames(dataset, [EXTENDED_12_BIT]).file_meta.TransferSyntaxUID = uid
    elif uid in _GDCM:
        with_frames(dataset, _by_gdcm(dataset, uid)).file_meta.TransferSyntaxUID = uid
    elif uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        dataset.file_meta.TransferSyntaxUID = uid
    else:
        lossy: dict[str, Any] = {JPEGLSNearLossless: {"jls_error": 2}, JPEG2000: {"j2k_cr": [6]}}
        dataset.compress(uid, generate_instance_uid=False, **lossy.get(uid, {}))
    return dataset


def multi_frame(
    hu: npt.ArrayLike, syntax: str = str(ExplicitVRLittleEndian), rescales: Sequence[tuple[float, float]] = ()
) -> FileDataset:
    """Make an Enhanced CT image of (frames, rows, columns) HU, as far as its pixels go.

    Parameters
    ----------
    rescales
        Slope and intercept of each frame; without them one of all frames, in the shared functional groups.
    """
    volume = np.asarray(hu)
    dataset = image(volume[0])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = len(volume)
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
    shared = Dataset()
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    groups = [Dataset() for _ in volume]
    for group, rescale in zip(groups, rescales or [(1.0, INTERCEPT)] * len(volume), strict=True):
        (group if rescales else shared).PixelValueTransformationSequence = Items([_transformation(*rescale)])
        group.PlanePositionSequence = Items([Dataset()])
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    pairs = zip(volume, rescales or [(1.0, INTERCEPT)] * len(volume), strict=True)
    stored = [np.rint((frame - intercept) / slope).astype("<u2") for frame, (slope, intercept) in pairs]
    dataset.PixelData = np.stack(stored).tobytes()
    return encoded(dataset, syntax)


def frames_of(dataset: FileDataset) -> list[bytes]:
    """Split the compressed frames of an image apart."""
    return list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1))))


def with_frames(dataset: FileDataset, frames: Sequence[bytes], **options: Any) -> FileDataset:
    """Give an image other compressed frames."""
    dataset.PixelData = encapsulate(list(frames), **options)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def save(dataset: FileDataset, folder: Path, name: str = "object.dcm") -> Path:
    """Write an image as the spool would."""
    path = folder / name
    dataset.save_as(path, enforce_file_format=True)
    return path


def _transformation(slope: float, intercept: float) -> Dataset:
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, intercept, "HU"
    return item


def _to_8_bit(dataset: FileDataset) -> None:
    """Store steps of 4 HU in 8 bits."""
    values = np.frombuffer(dataset.PixelData, "<u2").astype(np.int32) + int(dataset.RescaleIntercept)
    dataset.PixelData = ((values + 700) // 4).clip(0, 255).astype("u1").tobytes()
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.RescaleSlope, dataset.RescaleIntercept = 4, -700


def _by_gdcm(dataset: FileDataset, uid: UID) -> list[bytes]:
    """Encode frame by frame with GDCM; pydicom has no encoder of the JPEG family."""
    size = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    starts = range(0, len(dataset.PixelData), size)
    return [_gdcm_frame(dataset, uid, dataset.PixelData[at : at + size]) for at in starts]


def _gdcm_frame(dataset: FileDataset, uid: UID, pixels: bytes) -> bytes:
    (single,) = ct_series(np.zeros((1, dataset.Rows, dataset.Columns)), (5.0, 1.0, 1.0))
    for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(single, keyword, getattr(dataset, keyword))
    single.PixelData = pixels
    with tempfile.TemporaryDirectory() as folder:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(save(single, Path(folder), "native.dcm")))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(_GDCM[uid]))
        if uid in TOLERANCE_HU:
            codec = gdcm.JPEGCodec()
            codec.SetLossless(False)
            codec.SetQuality(100)
            change.SetUserCodec(codec)
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(f"{folder}/encoded.dcm")
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        (stream,) = frames_of(dcmread(f"{folder}/encoded.dcm"))
    return stream


def gdcm_values(path: Path) -> npt.NDArray[np.integer]:
    """Decode a whole file with GDCM's own reader, apart from pydicom."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    header = dcmread(path, stop_before_pixels=True)
    buffer = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    kind = f"<{'i' if header.PixelRepresentation else 'u'}{header.BitsAllocated // 8}"
    return np.frombuffer(buffer, kind).reshape(header.Rows, header.Columns)
