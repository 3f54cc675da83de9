"""One HTTP request, within bounds: of time, however slow the other side is, and of memory.

By urllib3, whose connection lets the wait for each step be set; what it has no setting for is here: a deadline
for all of a request. Proxies of the environment are not used, and redirects are not followed: results and
passwords go where the settings say.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, InvalidHeader, LocationParseError
from urllib3.exceptions import TimeoutError as StepTimeout
from urllib3.util import Retry, Url, parse_url

from ich_node.client_tls import PeerCheck
from ich_node.codes import IMPLEMENTATION_CLASS_UID
from ich_node.errors import ConfigurationError

_USER_AGENT = f"ich_node ({IMPLEMENTATION_CLASS_UID})"
_BLOCK = 2**16
_CLOSED_BY_PEER = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError)

# It logs the URL of an answer whose headers are damaged, and the path of a webhook is often its password.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


class NoAnswer(Exception):
    """A service did not answer. The text is one line for a person, with no URL and nothing that it wrote."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked, of whom."""

    to: str
    """Who that is, for people."""
    method: str
    url: str
    headers: Mapping[str, str]
    """With Content-Length where there is a body."""
    body: Iterable[bytes] | None = None
    """Read while it is sent. What it raises comes out, unless it is an `OSError`."""
    tls: Callable[[PeerCheck], ssl.SSLContext]
    """Makes the context of the connection where the URL begins with ``https``; it may raise
    `ConfigurationError`."""


@dataclass(frozen=True, kw_only=True)
class HttpTimeouts:
    """How long to wait, in seconds."""

    connection_s: float
    """For the connection to each address of the host, and again for the TLS handshake."""
    step_s: float
    """For each piece of the body to be taken."""
    answer_s: float
    """From the connection to the end of the answer."""


@dataclass(frozen=True, kw_only=True)
class HttpAnswer:
    """What came back. Its content is read by who wants it, and only where the request was made."""

    status: int
    """Status code (RFC 9110 section 15)."""
    reason: str
    """Words of the status line; they may hold anything."""
    headers: Mapping[str, str]
    """By their names in any case."""
    content: Iterator[bytes]
    """Of at most 64 KiB each, not decompressed. Raises `NoAnswer` where the rest does not come."""

    @property
    def status_line(self) -> str:
        """Status and reason, as ``HTTP 404 Not Found``."""
        return f"HTTP {self.status} {self.reason}".strip()

    @property
    def retry_after_s(self) -> float | None:
        """Retry-After (RFC 9110 section 10.2.3) in seconds, `None` where it is absent or unreadable."""
        try:
            return float(Retry().parse_retry_after(self.headers.get("Retry-After", "")))
        except (InvalidHeader, ValueError, OverflowError):
            return None


@contextlib.contextmanager
def exchange(request: Request, timeouts: HttpTimeouts) -> Iterator[HttpAnswer]:
    """Make a request over a connection of its own, which lasts as long as the block.

    Raises
    ------
    NoAnswer
        There is none, or not a whole one.
    """
    check = PeerCheck()
    url = _parsed(request)
    with (
        contextlib.closing(_connected(request, url, check, timeouts)) as connection,
        _Deadline(connection, timeouts.answer_s) as deadline,
    ):
        hearing = _Hearing(request.to, url.host or "", check, deadline)
        with hearing:
            _send(connection, request, url.request_uri, timeouts)
            response = connection.getresponse()
        with contextlib.closing(response):
            yield HttpAnswer(
                status=response.status,
                reason=response.reason or "",
                headers=response.headers,
                content=_content(response, hearing),
            )


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


class _Hearing:
    """Within it, what goes wrong with a connection becomes `NoAnswer`, in words."""

    def __init__(self, to: str, host: str, check: PeerCheck, deadline: _Deadline) -> None:
        self._to = to
        self._host = host
        self._check = check
        self._deadline = deadline

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # The end of the connection may look like the end of the answer.
        if self._deadline.has_passed and (error is None or _is_loss(error)):
            raise NoAnswer(f"{self._to} did not answer in time") from None
        if error is None or not _is_loss(error):
            return
        if self._check.refusal:
            raise NoAnswer(f"no TLS with {self._host}: {self._check.refusal}") from None
        late = isinstance(error, TimeoutError | StepTimeout)
        how = "did not answer in time" if late else "broke off before it had answered"
        raise NoAnswer(f"{self._to} {how}") from None


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, OSError | HTTPError | HTTPException)


def _pieces(response: Any) -> Iterator[bytes]:
    try:
        yield from response.stream(_BLOCK, decode_content=False)
    except ValueError:  # urllib3 takes a chunk of a negative size, and cannot read so much
        raise HTTPException from None


def _parsed(request: Request) -> Url:
    """With path and query percent-encoded as far as they are not yet."""
    try:
        return parse_url(request.url)
    except LocationParseError:  # it quotes the URL
        raise NoAnswer(f"the URL of {request.to} is not a URL") from None


def _connected(request: Request, url: Url, check: PeerCheck, timeouts: HttpTimeouts) -> HTTPConnection:
    host = (url.host or "").strip("[]")
    try:
        connection = _connection(request, host, url, check, timeouts)
    except ConfigurationError as error:
        raise NoAnswer(str(error)) from None
    try:
        connection.connect()
    except (OSError, HTTPError) as error:
        connection.close()
        raise NoAnswer(_why_not_connected(host, check, error)) from None
    return connection


def _connection(
    request: Request, host: str, url: Url, check: PeerCheck, timeouts: HttpTimeouts
) -> HTTPConnection:
    if url.scheme == "http":
        return HTTPConnection(host, url.port, timeout=timeouts.connection_s)
    context = request.tls(check)
    return HTTPSConnection(
        host,
        url.port,
        timeout=timeouts.connection_s,
        ssl_context=context,
        # Where the context does not look at the name, urllib3 would.
        assert_hostname=None if context.check_hostname else False,
    )


def _send(connection: HTTPConnection, request: Request, target: str, timeouts: HttpTimeouts) -> None:
    connection.timeout = timeouts.step_s
    # Who will not have all of the body says why, and closes: the answer is there to be read.
    with contextlib.suppress(*_CLOSED_BY_PEER):
        connection.request(
            request.method,
            target,
            body=request.body,
            headers={**request.headers, "User-Agent": _USER_AGENT, "Connection": "close"},
            preload_content=False,
            decode_content=False,
        )
    connection.timeout = timeouts.answer_s


def _content(response: Any, hearing: _Hearing) -> Iterator[bytes]:
    with hearing:
        yield from _pieces(response)


def _why_not_connected(host: str, check: PeerCheck, error: Any) -> str:
    if check.refusal:
        return f"no TLS with {host}: {check.refusal}"
    # urllib3 wraps what the socket said.
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    reason = getattr(cause, "strerror", None) or (
        "timed out" if isinstance(cause, TimeoutError) else "no connection"
    )
    return f"cannot connect to {host}: {reason}"
