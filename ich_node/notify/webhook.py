"""A notice as JSON by HTTPS POST, signed so that the receiver can tell who wrote it and when."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from ich_node.client_tls import ClientTls
from ich_node.errors import ConfigurationError
from ich_node.http_exchange import HttpAnswer, HttpTimeouts, NoAnswer, Request, exchange
from ich_node.notify.notice import Notice
from ich_node.notify.outcome import NoticeOutcome, NoticeResult, outcome

SIGNATURE_HEADER = "X-ICH-Node-Signature"
_MAX_WORDS_BYTES = 4096
_SHORTEST_SECRET_BYTES = 16
_LONGEST_RETRY_AFTER_S = 3600.0
_SUCCESS = range(200, 300)
_MAY_PASS = frozenset({408, 425, 429})
"""Request timeout, too early, too many requests; every other 4xx is about the request."""


@dataclass(frozen=True, kw_only=True)
class WebhookEndpoint:
    """Where notices are posted to.

    Raises
    ------
    ConfigurationError
        The URL is none, is not HTTPS where it has to be, or has a user name in it; or the secret is short.
    """

    url: str = field(repr=False)
    """Hidden, because a path or a query is often what lets one in."""
    secret: bytes = field(repr=False)
    """Key of the signature, as the receiver has it."""
    trust: ClientTls = field(default_factory=lambda: ClientTls(table="[[webhook]]"))
    plain_http_allowed: bool = False
    """Whether the URL may be ``http:``, so that everybody on the way can read."""
    connection_timeout_s: float = 10.0
    """For the TCP connection, and again for the TLS handshake."""
    timeout_s: float = 30.0
    """For everything after the connection."""

    def __post_init__(self) -> None:
        try:
            url = parse_url(self.url)
        except LocationParseError:
            # Without the cause: it may quote the URL.
            raise ConfigurationError("the URL of a webhook is not a URL") from None
        schemes = ("https", "http") if self.plain_http_allowed else ("https",)
        if url.scheme not in schemes or not url.host:
            raise ConfigurationError(f"the URL of a webhook begins with {' or '.join(schemes)}:// and a host")
        if url.auth:
            raise ConfigurationError("the URL of a webhook has a user name or password in it; take it out")
        if len(self.secret) < _SHORTEST_SECRET_BYTES:
            raise ConfigurationError(
                f"a webhook needs a secret of {_SHORTEST_SECRET_BYTES} bytes or more to sign with; "
                "`openssl rand -hex 32` makes one"
            )

    @property
    def host(self) -> str:
        """Host of the URL, which may be shown."""
        return (parse_url(self.url).host or "").strip("[]")


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """Return the value of the header ``X-ICH-Node-Signature``: ``t=<timestamp>,v1=<signature>``.

    The signature is HMAC-SHA-256 in hexadecimal digits over the timestamp (seconds since 1970 in decimal digits), a
    full stop and the body. A receiver computes it anew over the bytes that it got, compares in constant time, and
    refuses a timestamp that is minutes old.
    """
    signed = b"%d." % timestamp + body
    return f"t={timestamp},v1={hmac.new(secret, signed, hashlib.sha256).hexdigest()}"


def post_notice(
    notice: Notice, endpoint: WebhookEndpoint, *, clock: Callable[[], float] = time.time
) -> NoticeOutcome:
    """Post a notice.

    The header ``Idempotency-Key`` is the notice's id, by which a receiver knows a repetition. Redirects are not
    followed and settings of the environment (proxies, ``.netrc``) not used.

    Returns
    -------
    NoticeOutcome
        ``SENT`` for 2xx; ``TRANSIENT`` for 408, 425, 429, 5xx, no answer in time and no connection; ``REFUSED`` for
        everything else. Nothing is raised for any of it.
    """
    secrets = (endpoint.url, _after_host(endpoint.url), endpoint.secret.decode(errors="replace"))
    request = _request(notice, endpoint, int(clock()))
    timeouts = HttpTimeouts(
        connection_s=endpoint.connection_timeout_s, step_s=endpoint.timeout_s, answer_s=endpoint.timeout_s
    )
    try:
        with exchange(request, timeouts) as answer:
            return _judged(answer, secrets)
    except NoAnswer as error:
        return outcome(NoticeResult.TRANSIENT, str(error), secrets=secrets)


def _request(notice: Notice, endpoint: WebhookEndpoint, now: int) -> Request:
    body = notice.as_json().encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Idempotency-Key": notice.notice_id,
        SIGNATURE_HEADER: signature(endpoint.secret, now, body),
    }
    return Request(
        to=endpoint.host,
        method="POST",
        url=endpoint.url,
        headers=headers,
        body=[body],
        tls=endpoint.trust.context,
    )


def _judged(answer: HttpAnswer, secrets: tuple[str, ...]) -> NoticeOutcome:
    if answer.status in _SUCCESS:
        return outcome(NoticeResult.SENT, answer.status_line, secrets=secrets)
    words = _beginning(answer)
    wait_s = answer.retry_after_s
    return outcome(
        _result(answer.status),
        f"{answer.status_line}: {words}" if words else answer.status_line,
        secrets=secrets,
        retry_after_s=None if wait_s is None else min(wait_s, _LONGEST_RETRY_AFTER_S),
    )


def _beginning(answer: HttpAnswer) -> str:
    words = bytearray()
    with contextlib.suppress(NoAnswer):  # the status has been said; the words are an extra
        for piece in answer.content:
            words += piece
            if len(words) >= _MAX_WORDS_BYTES:
                break
    return words[:_MAX_WORDS_BYTES].decode("utf-8", errors="replace")


def _result(status: int) -> NoticeResult:
    return NoticeResult.TRANSIENT if status >= 500 or status in _MAY_PASS else NoticeResult.REFUSED


def _after_host(url: str) -> str:
    path = parse_url(url).request_uri
    return path if len(path) > 1 else ""
