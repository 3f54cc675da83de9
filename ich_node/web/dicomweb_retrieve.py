"""Objects, metadata and long values as they go out (WADO-RS, PS3.18 10.4): in pieces, one object at a time."""

from __future__ import annotations

import json
import logging
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from fastapi.responses import Response, StreamingResponse
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.filebase import DicomBytesIO
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian
from starlette.exceptions import HTTPException

from ich_node.decoding import DecoderProcess
from ich_node.decoding.stored_image import quietly
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.web.dicomweb_headers import PIXEL_DATA, whole_header
from ich_node.web.dicomweb_json import Attributes, in_order, to_json
from ich_node.web.dicomweb_media_types import Offer, content_type
from ich_node.web.dicomweb_pixels import StoredPixels, file_part, stored_pixels

logger = logging.getLogger(__name__)

_LONGEST_ELEMENT = 0xFFFFFFFE
_PIXEL_GROUP = 0x7FE00000
_LONG_ELEMENT = struct.Struct("<HH2sHL")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One representation on its way."""

    offer: Offer
    pieces: Iterator[bytes]
    location: str = ""
    """Content-Location; empty: none."""


def answer(parts: Iterable[Part], *, is_multipart: bool, headers: dict[str, str] | None = None) -> Response:
    """Send parts one after the other.

    What is wrong with the first of them shows before anything is sent; later, the connection is broken off, so that
    nobody takes half of an answer for the whole.

    Raises
    ------
    FileNotFoundError, StudyRejected, TransientError
        Of the first part.
    """
    coming = iter(parts)
    first = next(coming)
    begun = next(first.pieces, b"")
    opened = Part(offer=first.offer, pieces=chain((begun,), first.pieces), location=first.location)
    if not is_multipart:
        return StreamingResponse(opened.pieces, media_type=content_type(first.offer), headers=headers)
    boundary = secrets.token_hex(16)
    media_type = f'multipart/related; type="{first.offer.name}"; boundary={boundary}'
    return StreamingResponse(
        _multipart(chain((opened,), coming), boundary), media_type=media_type, headers=headers
    )


def _multipart(parts: Iterable[Part], boundary: str) -> Iterator[bytes]:
    for part in parts:
        location = f"Content-Location: {part.location}\r\n" if part.location else ""
        yield f"--{boundary}\r\nContent-Type: {content_type(part.offer)}\r\n{location}\r\n".encode()
        yield from part.pieces
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def explicit_object(path: Path, *, is_ours: bool, decoder: DecoderProcess) -> Iterator[bytes]:
    """Write an object in Explicit VR Little Endian, its frames one by one.

    Attributes behind the pixel data, which are padding and signatures that no longer hold, are left out.

    Raises
    ------
    FileNotFoundError, TransientError
        As the parts it is made of.
    StudyRejected
        ``UNSUPPORTED_TRANSFER_SYNTAX`` where it can only be had as it is stored, and what decoding raises.
    """
    pixels = stored_pixels(path, is_ours=is_ours)
    if pixels is not None and (not pixels.is_decodable or pixels.decoded_bytes > _LONGEST_ELEMENT):
        raise StudyRejected(
            RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX, "This object can only be had as it is stored."
        )
    dataset = whole_header(path, defer=False).dataset
    yield _explicit_header(dataset, pixels)
    if pixels is not None:
        yield from _explicit_pixels(pixels, decoder)


def _explicit_header(dataset: FileDataset, pixels: StoredPixels | None) -> bytes:
    buffer = DicomBytesIO()

    def write() -> None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if pixels is not None:
            for tag in [tag for tag in sorted(dataset.keys()) if tag >= _PIXEL_GROUP]:
                del dataset[tag]  # offset tables of compressed frames
            if pixels.fragments is not None and pixels.samples_per_pixel == 3:
                dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
        dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)

    try:
        quietly(write)
    except Exception as error:  # whatever an odd value leads to
        raise StudyRejected(
            RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX,
            f"This object can only be had as it is stored: it cannot be written anew ({type(error).__name__}).",
        ) from error
    return buffer.getvalue()


def _explicit_pixels(pixels: StoredPixels, decoder: DecoderProcess) -> Iterator[bytes]:
    size = pixels.decoded_bytes
    vr = b"OB" if pixels.format.bits_allocated <= 8 else b"OW"
    yield _LONG_ELEMENT.pack(PIXEL_DATA.group, PIXEL_DATA.element, vr, 0, size + size % 2)
    if pixels.fragments is None:
        yield from pixels.native()
    else:
        yield from pixels.decoded(range(1, pixels.number_of_frames + 1), decoder)
    yield b"\x00" * (size % 2)


def metadata(path: Path, address: str) -> Attributes:
    """All of an object but its pixels and long values, which stand as addresses below the object's.

    Raises
    ------
    FileNotFoundError, StudyRejected
        As `whole_header`.
    """
    header = whole_header(path)
    attributes = to_json(header.dataset, lambda value: f"{address}/bulkdata/{value}")
    if header.has_pixel_data:
        uri = f"{address}/bulkdata/{PIXEL_DATA:08X}"
        vr = "OW" if header.dataset.get("BitsAllocated", 16) != 8 else "OB"
        attributes[f"{PIXEL_DATA:08X}"] = {"vr": vr, "BulkDataURI": uri}
    return in_order(attributes)


def json_array(entries: Iterable[Attributes]) -> Iterator[bytes]:
    """Write an array, entry by entry."""
    before = b"["
    for entry in entries:
        yield before + json.dumps(entry, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        before = b","
    yield before.replace(b",", b"") + b"]"


def bulk_value(path: Path, place: str) -> Iterator[bytes]:
    """One value by its path, as `metadata` gives it; not of the pixel data.

    Raises
    ------
    HTTPException
        404 where there is no such value.
    FileNotFoundError, StudyRejected
        As `whole_header`.
    """
    steps = place.split(".")
    dataset: Dataset = whole_header(path).dataset
    element = quietly(lambda: _element_at(dataset, steps))
    if isinstance(element, RawDataElement) and element.value is None and element.length:
        return file_part(path, element.value_tell, element.length)
    value = getattr(element, "value", None)
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes) or not value:
        raise HTTPException(404, "The object has no such value.")
    return iter((value,))


def _element_at(dataset: Dataset, steps: Sequence[str]) -> object:
    tag, *rest = steps
    try:
        if not rest:
            return dict(dataset.items())[BaseTag(int(tag, 16))]  # one left in the file as well
        number, *within = rest
        return _element_at(dataset[int(tag, 16)].value[int(number) - 1], within)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
