"""Secondary Captures compressed without loss, for a PACS that wants them small.

The encoders are those that the node has for reading images: GDCM for JPEG Lossless, OpenJPEG for JPEG 2000.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import gdcm
import numpy as np
import numpy.typing as npt
from openjpeg.utils import encode_array
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1

from ich_node.report.uids import derived_uid

_OPENJPEG_SRGB = 1


class Compression(StrEnum):
    """How the pixels of Secondary Captures are written. All keep every pixel as it is."""

    NONE = "none"
    """Explicit VR Little Endian (1.2.840.10008.1.2.1): every PACS takes it; 2 MB a page."""
    JPEG_LOSSLESS = "jpeg-lossless"
    """JPEG Lossless, process 14, selection value 1 (1.2.840.10008.1.2.4.70): about a third of that."""
    JPEG_2000_LOSSLESS = "jpeg-2000-lossless"
    """JPEG 2000, lossless only (1.2.840.10008.1.2.4.90): about an eighth, for three times the work."""


def compress_capture(capture: Dataset, compression: Compression) -> Dataset:
    """Return an uncompressed Secondary Capture in another encoding; with ``NONE`` the capture itself.

    What is compressed is an instance of its own, with a SOP Instance UID that follows from the uncompressed one's:
    two encodings of one page never meet under one UID in an archive that got both.

    Parameters
    ----------
    capture
        RGB with 8 bits a sample, one frame, as `build_secondary_captures` makes it.

    Raises
    ------
    RuntimeError
        The encoder failed.
    """
    if compression is Compression.NONE:
        return capture
    encoding = _ENCODINGS[compression]
    # The pixels are not copied: they are the largest part of the object.
    shape = (int(capture.Rows), int(capture.Columns), 3)
    pixels = np.frombuffer(capture.PixelData, np.uint8, count=int(np.prod(shape))).reshape(shape)
    compressed = Dataset()
    compressed.update({tag: capture[tag] for tag in list(capture.keys()) if tag != _PIXEL_DATA})
    compressed = copy.deepcopy(compressed)
    compressed.file_meta = copy.deepcopy(capture.file_meta)
    compressed.SOPInstanceUID = derived_uid("compressed", str(capture.SOPInstanceUID), compression)
    compressed.file_meta.MediaStorageSOPInstanceUID = UID(compressed.SOPInstanceUID)
    compressed.file_meta.TransferSyntaxUID = encoding.transfer_syntax_uid
    compressed.PhotometricInterpretation = encoding.photometric_interpretation
    # PS3.5 8.2.1 and 8.2.4: the samples of a pixel lie side by side.
    compressed.PlanarConfiguration = 0
    compressed.PixelData = encapsulate([encoding.encode(pixels)])
    compressed["PixelData"].VR = "OB"
    compressed["PixelData"].is_undefined_length = True
    return compressed


_PIXEL_DATA = 0x7FE00010


def _jpeg_lossless(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode (rows, columns, 3) uint8 RGB; the colours are not transformed (PS3.5 8.2.1)."""
    # An image made by itself is freed while GDCM still points at it; one of a writer lives as long as the writer.
    writer = gdcm.ImageWriter()
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimension(0, pixels.shape[1])
    image.SetDimension(1, pixels.shape[0])
    image.SetPixelFormat(gdcm.PixelFormat(3, 8, 8, 7, 0))
    rgb = gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.RGB)
    image.SetPhotometricInterpretation(rgb)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(pixels.tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(image)
    if not change.Change():
        raise RuntimeError(f"GDCM could not write a picture of {pixels.shape} as JPEG Lossless.")
    # For the same reason each part keeps a name until the end.
    output = change.GetOutput()
    pixel_data = output.GetDataElement()
    fragments = pixel_data.GetSequenceOfFragments()
    fragment = fragments.GetFragment(0)
    value = fragment.GetByteValue()
    # SWIG hands bytes over as text, those that are no UTF-8 as surrogates.
    stream: bytes = value.GetBuffer().encode("utf-8", "surrogateescape")
    return stream


def _jpeg_2000_lossless(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode (rows, columns, 3) uint8 RGB by the reversible transforms of wavelets and colours (PS3.5 8.2.4)."""
    return bytes(encode_array(pixels, photometric_interpretation=_OPENJPEG_SRGB, use_mct=True))


@dataclass(frozen=True, kw_only=True)
class _Encoding:
    transfer_syntax_uid: UID
    photometric_interpretation: str
    encode: Callable[[npt.NDArray[np.uint8]], bytes]


_ENCODINGS = {
    Compression.JPEG_LOSSLESS: _Encoding(
        transfer_syntax_uid=JPEGLosslessSV1, photometric_interpretation="RGB", encode=_jpeg_lossless
    ),
    Compression.JPEG_2000_LOSSLESS: _Encoding(
        transfer_syntax_uid=JPEG2000Lossless,
        photometric_interpretation="YBR_RCT",
        encode=_jpeg_2000_lossless,
    ),
}
