"""A notice as JSON by HTTPS POST, signed so that the receiver can tell who wrote it and when."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from ich_node.errors import ConfigurationError
from ich_node.notify.notice import Notice
from ich_node.notify.outcome import NoticeOutcome, NoticeResult, outcome
from ich_node.notify.trust import TlsTrust

SIGNATURE_HEADER = "X-ICH-Node-Signature"
_MAX_ANSWER_BYTES = 4096
_SHORTEST_SECRET_BYTES = 16
_LONGEST_RETRY_AFTER_S = 3600.0
_MAY_PASS = frozenset({408, 425, 429})
"""Request timeout, too early, too many requests; every other 4xx is about the request."""

# They log each URL, and the path of a webhook is often its password.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


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
    trust: TlsTrust = field(default_factory=TlsTrust)
    plain_http_allowed: bool = False
    """Whether the URL may be ``http:``, so that everybody on the way can read."""
    timeout_s: float = 30.0
    """For the whole exchange, from the name's look-up to the answer."""

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL:
            # Without the cause: it may quote the URL.
            raise ConfigurationError("the URL of a webhook is not a URL") from None
        schemes = ("https", "http") if self.plain_http_allowed else ("https",)
        if url.scheme not in schemes or not url.host:
            raise ConfigurationError(f"the URL of a webhook begins with {' or '.join(schemes)}:// and a host")
        if url.userinfo:
            raise ConfigurationError("the URL of a webhook has a user name or password in it; take it out")
        if len(self.secret) < _SHORTEST_SECRET_BYTES:
            raise ConfigurationError(
                f"a webhook needs a secret of {_SHORTEST_SECRET_BYTES} bytes or more to sign with; "
                "`openssl rand -hex 32` makes one"
            )

    @property
    def host(self) -> str:
        """Host of the URL, which may be shown."""
        return httpx.URL(self.url).host


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
    """Post a notice. Not to be called where an event loop runs.

    The header ``Idempotency-Key`` is the notice's id, by which a receiver knows a repetition. Redirects are not
    followed and settings of the environment (proxies, ``.netrc``) not used.

    Returns
    -------
    NoticeOutcome
        ``SENT`` for 2xx; ``TRANSIENT`` for 408, 425, 429, 5xx, no answer in time and no connection; ``REFUSED`` for
        everything else. Nothing is raised for any of it.
    """
    secrets = (endpoint.url, _after_host(endpoint.url), endpoint.secret.decode(errors="replace"))
    try:
        return asyncio.run(_post(notice, endpoint, int(clock()), secrets))
    except TimeoutError:
        return outcome(NoticeResult.TRANSIENT, f"{endpoint.host} did not answer in time")
    except (httpx.HTTPError, OSError, ConfigurationError) as error:
        why = str(error) or type(error).__name__
        return outcome(NoticeResult.TRANSIENT, f"cannot reach {endpoint.host}: {why}", secrets=secrets)


async def _post(
    notice: Notice, endpoint: WebhookEndpoint, now: int, secrets: tuple[str, ...]
) -> NoticeOutcome:
    body = notice.as_json().encode()
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": notice.notice_id,
        SIGNATURE_HEADER: signature(endpoint.secret, now, body),
        "User-Agent": "ich-node",
        "Accept-Encoding": "identity",  # nothing to unpack, so nothing that swells
    }
    # One limit on all of it: httpx's own begin anew with every byte that comes.
    async with (
        asyncio.timeout(endpoint.timeout_s),
        httpx.AsyncClient(verify=endpoint.trust.context(), trust_env=False, timeout=None) as client,
        client.stream("POST", endpoint.url, content=body, headers=headers) as answer,
    ):
        said = f"HTTP {answer.status_code} {answer.reason_phrase}"
        if answer.is_success:
            return outcome(NoticeResult.SENT, said, secrets=secrets)
        said = f"{said}: {await _beginning(answer)}"
        return outcome(
            _result(answer.status_code),
            said,
            secrets=secrets,
            retry_after_s=_retry_after_s(answer.headers.get("Retry-After", ""), now),
        )


async def _beginning(answer: httpx.Response) -> str:
    read = bytearray()
    try:
        async for piece in answer.aiter_raw():
            read += piece
            if len(read) >= _MAX_ANSWER_BYTES:
                break
    except httpx.HTTPError:
        pass  # the status has been said; the words are an extra
    return read[:_MAX_ANSWER_BYTES].decode("utf-8", errors="replace")


def _result(status: int) -> NoticeResult:
    return NoticeResult.TRANSIENT if status >= 500 or status in _MAY_PASS else NoticeResult.REFUSED


def _retry_after_s(value: str, now: int) -> float | None:
    """Seconds that a Retry-After (RFC 9110 10.2.3) asks for, an hour at most; ``None`` where it says nothing."""
    try:
        if value.isascii() and value.isdigit():
            seconds = float(value)
        else:
            until = parsedate_to_datetime(value)
            aware = until if until.tzinfo else until.replace(tzinfo=UTC)
            seconds = (aware - datetime.fromtimestamp(now, UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)


def _after_host(url: str) -> str:
    path = httpx.URL(url).raw_path.decode("ascii", errors="replace")
    return path if len(path) > 1 else ""
