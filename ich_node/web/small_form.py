"""The fields of a form of our pages, read within bounds before anybody has logged in."""

from __future__ import annotations

from collections import deque
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Message, Receive

FORM = "application/x-www-form-urlencoded"
MAX_BYTES = 64 * 1024
_MAX_FIELDS = 50


class NotAForm(Exception):
    """The body is none of our forms."""


async def read_form(headers: Headers, receive: Receive) -> tuple[dict[str, str], Receive]:
    """Read a form.

    Returns
    -------
    tuple
        The fields, of which the last counts where one comes twice; and what gives the same body once more.

    Raises
    ------
    NotAForm
        It is something else, or larger than any of our forms; part of it may have been read.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise NotAForm
    body, read = bytearray(), deque[Message]()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise NotAForm
        read.append(message)
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            raise NotAForm
        if not message.get("more_body", False):
            break

    async def again() -> Message:
        return read.popleft() if read else await receive()

    try:
        pairs = parse_qsl(
            body.decode("utf-8", "replace"),
            keep_blank_values=True,
            errors="replace",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        raise NotAForm from None
    return dict(pairs), again
