"""A DICOMweb service (PS3.18) as it is asked: where it is, who asks, and what it said, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from urllib3.util import make_headers

from ich_node.client_tls import ClientTls
from ich_node.deliver.call import Timeouts
from ich_node.http_exchange import HttpAnswer, HttpTimeouts, NoAnswer, Request
from ich_node.http_exchange import exchange as exchange_http

MAX_WORDS = 200
"""Characters of a detail."""
_MARKUP = re.compile(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>")


@dataclass(frozen=True, kw_only=True)
class WebDestination:
    """A PACS that takes results and answers queries by DICOMweb (PS3.18)."""

    name: str
    """For people."""
    url: str
    """Base of the service, as ``https://pacs.example/dicom-web``: ``/studies`` comes behind it."""
    tls: ClientTls = field(default_factory=ClientTls)
    """Where the URL begins with ``https``."""
    token: str = field(default="", repr=False)
    """Bearer token (RFC 6750), or"""
    user: str = ""
    """user and password (Basic, RFC 7617)."""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class WebAnswer:
    """What a service answered."""

    status: int
    """Status code (RFC 9110 section 15)."""
    content: bytes
    words: str
    """Status and what the service wrote, for a person: printable, at most 200 characters, without the
    credentials that it was shown."""
    retry_after_s: float | None
    """Retry-After, in seconds; `None` where it is absent or unreadable."""


def exchange(
    destination: WebDestination,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str],
    body: Iterable[bytes] | None = None,
    timeouts: Timeouts,
    answer_s: float,
    max_bytes: int,
) -> WebAnswer:
    """Make one request, over a connection of its own, and read all of the answer.

    Parameters
    ----------
    destination
        Where to.
    method, path
        Of the request; the path goes behind the destination's URL.
    headers
        With Content-Length where there is a body.
    body
        Read while it is sent. What it raises comes out, unless it is an `OSError`.
    timeouts
        ``connection_s`` for the connection and again for the TLS handshake, ``network_s`` for each piece of
        the body to be taken.
    answer_s
        From the connection to the end of the answer, in seconds.
    max_bytes
        Of the answer.

    Raises
    ------
    NoAnswer
        There is none, or not a whole one.
    """
    request = Request(
        to=destination.name,
        method=method,
        url=destination.url.rstrip("/") + path,
        headers={**headers, **_credentials(destination)},
        body=body,
        tls=destination.tls.context,
    )
    waits = HttpTimeouts(connection_s=timeouts.connection_s, step_s=timeouts.network_s, answer_s=answer_s)
    with exchange_http(request, waits) as answer:
        return _read(answer, destination, max_bytes)


def _credentials(destination: WebDestination) -> dict[str, str]:
    if destination.token:
        token = destination.token.strip()
        if not token.isascii() or not token.isprintable():
            raise NoAnswer(f"the token for {destination.name} is not of printable ASCII characters")
        return {"Authorization": f"Bearer {token}"}
    if destination.user:
        pair = f"{destination.user}:{destination.password.rstrip(chr(10))}"
        return make_headers(basic_auth=pair, basic_auth_encoding="utf-8")
    return {}


def _read(answer: HttpAnswer, destination: WebDestination, max_bytes: int) -> WebAnswer:
    content = bytearray()
    for piece in answer.content:
        content += piece
        if len(content) > max_bytes:
            raise NoAnswer(f"{destination.name} answered with more than {max_bytes} bytes")
    notes = [answer.headers.get(name, "") for name in ("Location", "Warning")]
    said = _said(notes, bytes(content), destination)
    status_line = _without_secrets(answer.status_line, destination)
    return WebAnswer(
        status=answer.status,
        content=bytes(content),
        words=shortened(f"{status_line}: {said}" if said else status_line),
        retry_after_s=answer.retry_after_s,
    )


def shortened(text: str) -> str:
    """What is printable of a text, in one line of at most 200 characters."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:MAX_WORDS]


def _said(notes: list[str], content: bytes, destination: WebDestination) -> str:
    text = _MARKUP.sub(" ", " ".join([*notes, content[: 16 * MAX_WORDS].decode(errors="replace")]))
    return shortened(_without_secrets(text, destination))


def _without_secrets(text: str, destination: WebDestination) -> str:
    # As they are, and as they went out: a service that is asked wrongly may say back what it was asked.
    sent = [value.partition(" ")[2] for value in _credentials(destination).values()]
    for secret in (*sent, destination.token.strip(), destination.password.strip()):
        if secret:
            text = text.replace(secret, "...")
    return text
