"""Response headers that keep a page what it is, and the checks that it is asked for by our own name, safely."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ich_node.web_settings import WebSettings, is_loopback

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser says "Origin: null" of our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""On every response; a response that sets one of them itself keeps its own."""

HSTS = {"Strict-Transport-Security": "max-age=31536000"}
"""On every response by https (RFC 6797)."""

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_LONGEST_ADDRESS = 2000
_SECURED = frozenset(("https", "wss"))
_WRONG_HOST = (
    "This worklist does not answer under this name. It answers under localhost, and under the names that its "
    "administrator sets as web.trusted_hosts.\n"
)
_NOT_SECURED = "This worklist answers by https only: begin its address with https://.\n"
_WRONG_ORIGIN = "A page of another origin may not send this.\n"


class Guard:
    """ASGI middleware around everything, before anybody is asked who he is.

    - A page from elsewhere must not reach this server under a name of its own that it has pointed here (DNS
      rebinding): a request names a host that is known.
    - Nor may a page from elsewhere, in the browser of somebody who can reach the server, change anything here or
      open a WebSocket: browsers say where such a request comes from, other programs do not.
    - What crosses the network is encrypted, by this server or by a proxy that it trusts.
    """

    def __init__(self, app: ASGIApp, *, web: WebSettings) -> None:
        self.app = app
        self._names = frozenset((*web.trusted_hosts, web.host.lower())) - {"0.0.0.0", "::"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = SECURITY_HEADERS | (HSTS if is_secured(scope) else {})

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in headers.items():
                    sent.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send_guarded)
        else:
            await refuse(refusal, scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        name = host_name(headers.get("host", ""))
        if not is_loopback(name) and name not in self._names:
            return PlainTextResponse(_WRONG_HOST, 421)
        if not is_secured(scope) and not (is_loopback(name) and is_loopback(source_of(scope) or "localhost")):
            return PlainTextResponse(_NOT_SECURED, 403)
        changes = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
        if changes and comes_from_elsewhere(headers, is_secured(scope)):
            return PlainTextResponse(_WRONG_ORIGIN, 403)
        return None


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request that goes no further; a WebSocket is not opened."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await response(scope, receive, send)


def is_secured(scope: Scope) -> bool:
    """Whether a request came by TLS."""
    return scope.get("scheme") in _SECURED


def source_of(scope: Scope) -> str:
    """Network address of whoever sends a request."""
    return str(scope["client"][0])[:64] if scope.get("client") else ""


def host_name(host: str) -> str:
    """The name in a Host header, in lower case, without port; empty where there is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return ""
    return (parts.hostname or "").rstrip(".")


def own_address(text: str) -> str:
    """An address on this server, as it came; the worklist's for anything else that a browser could go to."""
    if len(text) > _LONGEST_ADDRESS or not text.isascii() or not text.isprintable():
        return "/"
    is_path = text.startswith("/") and not text.startswith("//")
    # Browsers read a backslash as a slash, and leave out tabs and line breaks.
    return text if is_path and "\\" not in text and " " not in text else "/"


def comes_from_elsewhere(headers: Headers, is_secured: bool = False) -> bool:
    """Whether a browser sends this for a page that is not ours (Origin, RFC 6454; Fetch Metadata)."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    if origin is None:
        return False
    scheme, _, host = origin.partition("://")
    return scheme != ("https" if is_secured else "http") or host.lower() != headers.get("host", "").lower()
