"""Which representations an object, its frames and its pictures can have, and the one that a request gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi import Request
from pydicom.uid import ExplicitVRLittleEndian
from starlette.exceptions import HTTPException

from ich_node.decoding import DecoderProcess
from ich_node.web.dicomweb_media_types import (
    DICOM,
    OCTET_STREAM,
    Choice,
    Offer,
    choose,
    image_type,
)
from ich_node.web.dicomweb_pixels import StoredPixels
from ich_node.web.dicomweb_rendered import JPEG, PNG
from ich_node.web.dicomweb_retrieve import Part

MOST_FRAMES = 4096
"""In one request."""
PICTURES = (Offer(name=JPEG), Offer(name=PNG))
OCTETS = Offer(name=OCTET_STREAM, transfer_syntax_uid=str(ExplicitVRLittleEndian), is_stored=True)


def object_offers(transfer_syntax_uid: str, *, can_be_decoded: bool) -> list[Offer]:
    """Of a whole object: Explicit VR Little Endian first, which is meant where no transfer syntax is named."""
    explicit = str(ExplicitVRLittleEndian)
    if transfer_syntax_uid == explicit:
        return [Offer(name=DICOM, transfer_syntax_uid=explicit, is_stored=True)]
    stored = Offer(name=DICOM, transfer_syntax_uid=transfer_syntax_uid, is_default=False, is_stored=True)
    return [*([Offer(name=DICOM, transfer_syntax_uid=explicit)] if can_be_decoded else []), stored]


def frame_offers(pixels: StoredPixels) -> list[Offer]:
    """Of a frame."""
    if pixels.fragments is None:
        if pixels.frame_bits % 8 and pixels.number_of_frames > 1:
            raise HTTPException(
                406,
                "Frames of one bit per pixel begin within a byte: retrieve the object, or its pixel data as bulk data.",
            )
        return [OCTETS]
    syntax = pixels.format.transfer_syntax_uid
    decoded = Offer(name=OCTET_STREAM, transfer_syntax_uid=str(ExplicitVRLittleEndian))
    offers = [decoded] if pixels.is_decodable else []
    if image_type(syntax) != OCTET_STREAM:
        offers.append(Offer(name=image_type(syntax), transfer_syntax_uid=syntax, is_stored=True))
    offers.append(Offer(name=OCTET_STREAM, transfer_syntax_uid=syntax, is_default=False, is_stored=True))
    return offers


def frame_parts(
    pixels: StoredPixels, numbers: Sequence[int], offer: Offer, decoder: DecoderProcess, address: str
) -> Iterator[Part]:
    """Frames, one at a time."""
    frames = pixels.stored(numbers) if offer.is_stored else pixels.decoded(numbers, decoder)
    for number, frame in zip(numbers, frames, strict=True):
        yield Part(offer=offer, pieces=iter((frame,)), location=f"{address}/frames/{number}")


def choose_frames(request: Request, pixels: StoredPixels, numbers: Sequence[int]) -> Choice:
    """What a request for frames gets.

    Raises
    ------
    HTTPException
        406 where nothing of it is wanted.
    """
    return choose(request, frame_offers(pixels), single=len(numbers) == 1)


def frame_numbers(text: str, pixels: StoredPixels) -> list[int]:
    """Read a list of frame numbers.

    Raises
    ------
    HTTPException
        400 where it is none, 404 where the object has not so many.
    """
    parts = text.split(",")
    if len(parts) > MOST_FRAMES or not all(
        part.isascii() and part.isdigit() and len(part) < 9 for part in parts
    ):
        raise HTTPException(
            400, f"Frames are named by whole numbers from 1 with commas between, at most {MOST_FRAMES}."
        )
    numbers = [int(part) for part in parts]
    if min(numbers) < 1:
        raise HTTPException(400, "Frames are counted from 1.")
    if max(numbers) > pixels.number_of_frames:
        raise HTTPException(404, f"The object has {pixels.number_of_frames} frame(s).")
    return numbers
