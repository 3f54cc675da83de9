"""One HTTP request to a DICOMweb service, within bounds: of time, however slow the service is, and of memory.

By urllib3, whose connection lets the wait for each step be set; what it has no setting for is here: a deadline
for all of a request. Proxies of the environment are not used, and redirects are not followed: results and
passwords go where the settings say.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import SplitResult, urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry, make_headers

from ich_node.codes import IMPLEMENTATION_CLASS_UID
from ich_node.deliver.scu import Timeouts
from ich_node.deliver.tls import ClientTls, PeerCheck, checking_context
from ich_node.errors import ConfigurationError

MAX_WORDS = 200
"""Characters of a detail."""
_USER_AGENT = f"ich_node ({IMPLEMENTATION_CLASS_UID})"
_BLOCK = 2**16
_MARKUP = re.compile(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>")
_CLOSED_BY_PEER = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


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


class NoAnswer(Exception):
    """A service did not answer. The text is one line for a person."""


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
    """Make one request, over a connection of its own.

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
    to = urlsplit(destination.url)
    check = PeerCheck()
    try:
        sent = {**headers, **_credentials(destination), "User-Agent": _USER_AGENT, "Connection": "close"}
        connection = _connection(destination, to, check, timeouts)
    except (ConfigurationError, ValueError) as error:
        raise NoAnswer(str(error)) from None
    with contextlib.closing(connection):
        try:
            connection.connect()
        except (OSError, HTTPError) as error:
            raise NoAnswer(_why_not_connected(to, check, error)) from None
        with _Deadline(connection, answer_s) as deadline:
            try:
                _send(connection, method, to.path.rstrip("/") + path, sent, body, timeouts, answer_s)
                answer = _receive(connection, destination, max_bytes)
            except (OSError, HTTPError, HTTPException) as error:
                if check.refusal:
                    raise NoAnswer(f"no TLS with {to.hostname}: {check.refusal}") from None
                late = deadline.has_passed or isinstance(error, TimeoutError)
                how = "did not answer in time" if late else "broke off before it had answered"
                raise NoAnswer(f"{destination.name} {how}") from None
            if deadline.has_passed:  # the end of the connection may look like the end of the answer
                raise NoAnswer(f"{destination.name} did not answer in time")
            return answer


class _Deadline:
    """Shuts a connection down when its time is over, so that whoever waits for it waits no longer."""

    def __init__(self, connection: HTTPConnection, seconds: float) -> None:
        self._socket = connection.sock
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.has_passed = False

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self.has_passed = True
        with contextlib.suppress(OSError):
            # Not of `ssl.SSLSocket`, which takes the encryption off first.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _connection(
    destination: WebDestination, to: SplitResult, check: PeerCheck, timeouts: Timeouts
) -> HTTPConnection:
    host, port = to.hostname or "", to.port
    if to.scheme == "http":
        return HTTPConnection(host, port, timeout=timeouts.connection_s)
    return HTTPSConnection(
        host,
        port,
        timeout=timeouts.connection_s,
        ssl_context=checking_context(destination.tls, check),
        assert_hostname=False if destination.tls.expected else None,
    )


def _credentials(destination: WebDestination) -> dict[str, str]:
    if destination.token:
        token = destination.token.strip()
        if not token.isascii() or not token.isprintable():
            raise ConfigurationError(f"the token for {destination.name} is not of printable ASCII characters")
        return {"Authorization": f"Bearer {token}"}
    if destination.user:
        pair = f"{destination.user}:{destination.password.rstrip(chr(10))}"
        return make_headers(basic_auth=pair, basic_auth_encoding="utf-8")
    return {}


def _send(
    connection: HTTPConnection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Iterable[bytes] | None,
    timeouts: Timeouts,
    answer_s: float,
) -> None:
    connection.timeout = timeouts.network_s
    # Who will not have all of the body says why, and closes: the answer is there to be read.
    with contextlib.suppress(*_CLOSED_BY_PEER):
        connection.request(
            method, target, body=body, headers=headers, preload_content=False, decode_content=False
        )
    connection.timeout = answer_s


def _receive(connection: HTTPConnection, destination: WebDestination, max_bytes: int) -> WebAnswer:
    response = connection.getresponse()
    content = bytearray()
    with contextlib.closing(response):
        for chunk in response.stream(_BLOCK, decode_content=False):
            content += chunk
            if len(content) > max_bytes:
                raise NoAnswer(f"{destination.name} answered with more than {max_bytes} bytes")
    words = f"HTTP {response.status} {response.reason or ''}".strip()
    notes = [response.headers.get(name, "") for name in ("Location", "Warning")]
    said = _said(notes, bytes(content), destination)
    return WebAnswer(
        status=response.status,
        content=bytes(content),
        words=shortened(f"{words}: {said}" if said else words),
        retry_after_s=_seconds(response.headers.get("Retry-After")),
    )


def shortened(text: str) -> str:
    """What is printable of a text, in one line of at most 200 characters."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:MAX_WORDS]


def _said(notes: list[str], content: bytes, destination: WebDestination) -> str:
    text = _MARKUP.sub(" ", " ".join([*notes, content[: 16 * MAX_WORDS].decode(errors="replace")]))
    for secret in (destination.token.strip(), destination.password.strip()):
        if secret:
            text = text.replace(secret, "...")
    return shortened(text)


def _seconds(retry_after: str | None) -> float | None:
    if retry_after is None:
        return None
    try:
        return Retry().parse_retry_after(retry_after)
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _why_not_connected(to: SplitResult, check: PeerCheck, error: Any) -> str:
    if check.refusal:
        return f"no TLS with {to.hostname}: {check.refusal}"
    # urllib3 wraps what the socket said.
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    reason = getattr(cause, "strerror", None) or (
        "timed out" if isinstance(cause, TimeoutError) else "no connection"
    )
    return f"cannot connect to {to.hostname}: {reason}"
