"""Media types, and bodies of several parts (RFC 2046 section 5.1, RFC 2387), read as they arrive.

`python_multipart` does the parsing; it was made for forms. What a body of ``multipart/related`` may have
beside is here: text before the first part, and the demand that the last boundary is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.message import Message
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

_BOUNDARY = re.compile(r"[ -~]{0,69}[!-~]")
"""RFC 2046: 1 to 70 characters, the last no space. More characters than it allows do no harm."""
_MAX_PREAMBLE_BYTES = 8192
_MAX_PADDING_BYTES = 64
"""White space after a boundary: RFC 2046 names no limit, and nobody sends any."""
_MAX_HEADERS = 32
_MAX_HEADER_BYTES = 8192


class MultipartError(Exception):
    """The body is not what its Content-Type says. The text quotes nothing of it."""


@dataclass(frozen=True, kw_only=True)
class MediaType:
    """A media type with its parameters (RFC 9110 section 8.3.1)."""

    name: str
    """``type/subtype`` in lower case; empty where the header has none."""
    parameters: dict[str, str] = field(default_factory=dict)
    """By their names in lower case; values without quotes and escapes."""

    @classmethod
    def parse(cls, header: str) -> MediaType:
        """Read a Content-Type header, or one media range of an Accept header; an unreadable one has no name."""
        message = Message()
        message["Content-Type"] = header
        try:
            (name, _), *parameters = message.get_params() or [("", "")]
        except Exception:  # email raises whatever parameters that contradict each other lead to
            return cls(name="")
        return cls(
            name=name.strip().lower(),
            parameters={key.lower(): value for key, value in parameters if isinstance(value, str)},
        )


def is_boundary(text: str) -> bool:
    """Whether a multipart body can have this boundary."""
    return _BOUNDARY.fullmatch(text) is not None


class PartTaker(Protocol):
    """What is told of the parts of a body."""

    def begin_part(self, headers: dict[str, str]) -> None:
        """A part begins; names of headers are in lower case."""

    def take(self, fragment: memoryview) -> None:
        """A piece of its content."""

    def end_part(self) -> None:
        """It is whole."""


class MultipartReader:
    """Splits a body into its parts while it arrives; keeps no more than a header of it.

    Parameters
    ----------
    boundary
        As in the Content-Type header.
    taker
        Gets the parts. What it raises comes out of `feed`.
    """

    def __init__(self, boundary: str, taker: PartTaker) -> None:
        delimiter = b"--" + boundary.encode("ascii")
        self._taker = taker
        self._delimiter = delimiter
        self._first = re.compile(
            rb"\r\n%b(?:[ \t]{0,%d}(?=\r\n)|(?=--))" % (re.escape(delimiter), _MAX_PADDING_BYTES)
        )
        self._first_bytes = 2 + len(delimiter) + _MAX_PADDING_BYTES + 2
        self._preamble: bytearray | None = bytearray(b"\r\n")
        self._ended = False
        self._headers: dict[str, str] = {}
        self._name = b""
        self._value = b""
        self._parser = MultipartParser(
            delimiter[2:],
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": taker.end_part,
                "on_end": self._end,
            },
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body.

        Raises
        ------
        MultipartError
            It cannot be read any further.
        """
        if self._preamble is not None:
            chunk = self._after_preamble(self._preamble, chunk)
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise MultipartError("a part's header or a boundary is malformed") from None

    def close(self) -> None:
        """Say that the body has ended.

        Raises
        ------
        MultipartError
            The last boundary did not come, so the last part may be cut off.
        """
        if not self._ended:
            raise MultipartError("the last boundary is missing")

    def _after_preamble(self, preamble: bytearray, chunk: bytes) -> bytes:
        preamble += chunk
        found = self._first.search(preamble)
        # One that begins in time may end later: however the body is cut into pieces, the answer is the same.
        late = len(preamble) - self._first_bytes if found is None else found.start()
        if late > _MAX_PREAMBLE_BYTES:
            raise MultipartError("no boundary where the first part should begin")
        if found is None:
            return b""
        self._preamble = None
        return self._delimiter + preamble[found.end() :]

    def _begin(self) -> None:
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1").strip()
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        self._taker.begin_part(self._headers)

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._taker.take(memoryview(data)[start:end])

    def _end(self) -> None:
        self._ended = True
