"""Which representation a client of DICOMweb gets: Accept, q values and transfer syntaxes (PS3.18 8.7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.request import parse_http_list

from fastapi import Request
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)
from starlette.exceptions import HTTPException

from ich_node.receive.multipart_related import MediaType

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
JSON = "application/json"
OCTET_STREAM = "application/octet-stream"
_MULTIPART = "multipart/related"
_ANY = "*/*"
_MOST_RANGES = 32
_IMAGE_TYPES: dict[str, str] = {
    **dict.fromkeys(JPEGTransferSyntaxes, "image/jpeg"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "image/jls"),
    **dict.fromkeys(JPEG2000TransferSyntaxes, "image/jp2"),
    RLELossless: "image/dicom-rle",
}


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One representation that a resource can have."""

    name: str
    """Media type of it, or of each part."""
    transfer_syntax_uid: str = ""
    """Empty where the media type has none."""
    is_default: bool = True
    """Whether it is meant where a range names the media type and no transfer syntax."""
    is_stored: bool = False
    """Whether nothing is decoded for it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a client gets."""

    offer: Offer
    is_multipart: bool


@dataclass(frozen=True, kw_only=True)
class _Range:
    """One media range of an Accept header."""

    name: str
    is_multipart: bool | None
    """None: either is right."""
    transfer_syntax: str
    """A UID, ``*``, or empty for the default of the media type."""
    quality: float

    def specificity(self, offer: Offer, *, is_multipart: bool) -> int:
        """How exactly it names a representation; 0: it does not."""
        kind, _, subtype = offer.name.partition("/")
        if self.is_multipart not in (None, is_multipart) or self.name not in (offer.name, f"{kind}/*", _ANY):
            return 0
        if self.transfer_syntax not in ("", "*", offer.transfer_syntax_uid):
            return 0
        if not self.transfer_syntax and self.name != _ANY and not offer.is_default:
            return 0
        exact = 4 if self.name == f"{kind}/{subtype}" else 2 if self.name != _ANY else 0
        return 1 + exact + (2 if self.transfer_syntax == offer.transfer_syntax_uid != "" else 0)


def image_type(transfer_syntax_uid: str) -> str:
    """Media type of a compressed frame (PS3.18 Table 8.7.3-5); octet-stream where it has none."""
    return _IMAGE_TYPES.get(transfer_syntax_uid, OCTET_STREAM)


def choose(
    request: Request,
    offers: Sequence[Offer],
    *,
    single: bool,
    multipart: bool = True,
    prefer_single: bool = False,
) -> Choice:
    """Choose the representation that a request wants most (RFC 9110 12.5.1).

    Parameters
    ----------
    request
        Its query parameter ``accept`` goes before its header (PS3.18 8.3.3.1).
    offers
        What there is, the server's preference first.
    single, multipart
        Whether the resource can be a single part, and parts of ``multipart/related``.
    prefer_single
        Which of both a client gets that does not care; by default the second.

    Raises
    ------
    HTTPException
        406 where nothing of it is wanted.
    """
    ranges = _ranges(request)
    shapes = [shape for shape, possible in ((True, multipart), (False, single)) if possible]
    ranked = []
    for order, offer in enumerate(offers):
        for is_multipart in shapes:
            rank = _rank(ranges, offer, is_multipart)
            if rank is not None:
                ranked.append(
                    (
                        rank,
                        order,
                        is_multipart is prefer_single,
                        Choice(offer=offer, is_multipart=is_multipart),
                    )
                )
    if not ranked:
        raise HTTPException(406, _refusal(offers, single=single, multipart=multipart))
    return min(ranked, key=lambda one: one[:3])[3]


def content_type(offer: Offer) -> str:
    """Of a body or part."""
    syntax = f"; transfer-syntax={offer.transfer_syntax_uid}" if offer.transfer_syntax_uid else ""
    return f"{offer.name}{syntax}"


def _rank(ranges: Sequence[_Range], offer: Offer, is_multipart: bool) -> tuple[float, int, bool] | None:
    """The lower, the more it is wanted: quality, place in the header, and what ``transfer-syntax=*`` prefers."""
    matches = [
        (-specificity, place)
        for place, one in enumerate(ranges)
        if (specificity := one.specificity(offer, is_multipart=is_multipart))
    ]
    if not matches:
        return None
    _, place = min(matches)
    chosen = ranges[place]
    if chosen.quality <= 0:
        return None
    return -chosen.quality, place, chosen.transfer_syntax == "*" and not offer.is_stored


def _ranges(request: Request) -> list[_Range]:
    header = ", ".join((*request.query_params.getlist("accept"),)) or ", ".join(
        request.headers.getlist("accept")
    )
    found = [_range(text) for text in parse_http_list(header)[:_MOST_RANGES]]
    return found or [_range(_ANY)]


def _range(text: str) -> _Range:
    media_type = MediaType.parse(text)
    name, is_multipart = media_type.name, None if media_type.name == _ANY else False
    if name == _MULTIPART:
        name, is_multipart = media_type.parameters.get("type", _ANY).lower(), True
    return _Range(
        name=name,
        is_multipart=is_multipart,
        transfer_syntax=media_type.parameters.get("transfer-syntax", ""),
        quality=_quality(media_type.parameters.get("q", "1")),
    )


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return min(1.0, value) if math.isfinite(value) else 0.0


def _refusal(offers: Sequence[Offer], *, single: bool, multipart: bool) -> str:
    words = []
    for offer in offers:
        syntax = f"; transfer-syntax={offer.transfer_syntax_uid}" if offer.transfer_syntax_uid else ""
        if multipart:
            words.append(f'{_MULTIPART}; type="{offer.name}"{syntax}')
        if single:
            words.append(f"{offer.name}{syntax}")
    return (
        f"Nothing that is accepted can be had of this. It can be had as {' or '.join(dict.fromkeys(words))}."
    )
