"""Response headers that keep a page what it is, and the check that it is asked for by a loopback name."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ich_node.settings import is_loopback
from ich_node.web.caller import Caller, Role

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""On every response; a response that sets one of them itself keeps its own."""

_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_WRONG_HOST = "This worklist has no login yet and answers under localhost or 127.0.0.1 only.\n"
_WRONG_ORIGIN = "A page of another origin may not send this.\n"


class Guard:
    """ASGI middleware around every page.

    The server listens on loopback and has no login, so a page from elsewhere must not reach it under a name
    of its own that it has pointed at 127.0.0.1 (DNS rebinding): a request must name a loopback host. Nor may
    a page from elsewhere, in the browser of somebody who can reach the server, change anything here: browsers
    say where such a request comes from, other programs do not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        if not names_loopback(headers.get("host", "")):
            refusal = PlainTextResponse(_WRONG_HOST, status_code=421)
        elif scope["method"] not in _SAFE_METHODS and comes_from_elsewhere(headers):
            refusal = PlainTextResponse(_WRONG_ORIGIN, status_code=403)
        else:
            scope.setdefault("state", {})["caller"] = _local_caller(scope)
            await self.app(scope, receive, send_guarded)
            return
        await refusal(scope, receive, send_guarded)


def _local_caller(scope: Scope) -> Caller:
    """Whoever uses this machine: there is no login on loopback."""
    source = scope["client"][0] if scope.get("client") else ""
    return Caller(name="local", role=Role.ADMIN, source=source)


def names_loopback(host: str) -> bool:
    """Whether a Host header names this machine itself."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)


def comes_from_elsewhere(headers: Headers) -> bool:
    """Whether a browser sends this for a page that is not ours (Origin, RFC 6454; Fetch Metadata)."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    if origin is None:
        return False
    _, _, host = origin.partition("://")
    return host.lower() != headers.get("host", "").lower()
