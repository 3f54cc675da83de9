"""Who calls: a person with a session, a system with a token, or anybody on this machine where no login is set."""

from __future__ import annotations

import contextlib
import hmac
import html
import logging
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ich_node.database.access import AccessAction
from ich_node.database.sessions import TOUCH_EVERY, session_of, touch_session
from ich_node.database.tokens import USED_EVERY, token_of, token_was_used
from ich_node.errors import ConfigurationError, IchNodeError, TransientError
from ich_node.web.caller import Caller, Role, nobody
from ich_node.web.security import SAFE_METHODS, is_secured, own_address, refuse, source_of
from ich_node.web.site import Site
from ich_node.web.small_form import NotAForm, read_form

logger = logging.getLogger(__name__)

CSRF_HEADER, CSRF_FIELD = "x-csrf-token", "csrf_token"
_OPEN = ("/static/", "/health/", "/login")
"""Addresses that tell nothing of a study."""
_FOR_SYSTEMS = ("/dicom-web", "/api", "/metrics", "/ws")
"""Addresses where a token counts, and where nobody is led to the login page."""
_LOOK_AGAIN_S = 60.0
"""How often it is looked whether who gets a long answer may still get it."""
_STUDY = re.compile(r"/studies/([0-9.]{1,64})(?:/|$)")
_AWAY = "The database does not answer at the moment, so nobody can be let in.\n"
_LOG_IN = "Log in first: load this page anew.\n"
_NEEDS_TOKEN = "A bearer token is needed: 'ich-node tokens create' makes one.\n"
_WRONG_TOKEN = "This token is unknown, revoked or expired.\n"
_NO_CSRF = (
    "This request does not come from a page of this worklist, or from one of another login: load it anew.\n"
)
_NOT_FOR_MACHINES = "This token may send images by STOW-RS and read /metrics, nothing else.\n"
_MAY_NOT_SEND = "Images are sent with a token of the role machine, or by a radiologist.\n"


@dataclass(frozen=True, kw_only=True)
class _Known:
    """Somebody who is let in, and by what."""

    caller: Caller
    cookie: str = ""
    token: str = ""


class _Refused(Exception):
    """A request that is answered here."""

    def __init__(self, response: Response, *, detail: str = "") -> None:
        super().__init__()
        self.response = response
        self.detail = detail


def cookie_name(scope: Scope) -> str:
    """Of the session; by https no other host of the domain can set it (RFC 6265bis section 4.1.3.2)."""
    return "__Host-ich_session" if is_secured(scope) else "ich_session"


def go_on(address: str) -> HTMLResponse:
    """A page that leads to another of ours.

    A browser sends a cookie that is SameSite=Strict with a request that begins on our own page, not with one that
    another site has led to, however many redirections lie between.
    """
    target = html.escape(address, quote=True)
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>ICH node</title>'
        f'<meta http-equiv="refresh" content="0;url={target}"></head>'
        f'<body><p><a href="{target}">Go on</a></p></body></html>'
    )


class Admission:
    """ASGI middleware that says who calls, lets in who may, and keeps a record of whom it did not."""

    def __init__(self, app: ASGIApp, *, site: Site) -> None:
        self.app = app
        self._site = site
        self._web = site.settings.web
        self._idle = timedelta(minutes=self._web.login.idle_minutes)
        self._wrong_tokens = Seldom(60.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            known = await self._admitted(scope)
            if known is not None:
                scope.setdefault("state", {})["caller"] = known.caller
                receive = await self._checked(scope, receive, known)
        except _Refused as refusal:
            await self._record_refusal(scope, refusal.detail)
            await refuse(refusal.response, scope, receive, send)
            return
        if known is None:
            await self.app(scope, receive, send)
            return
        answer = _Answer(self, scope, send, known)
        try:
            await self.app(scope, receive, answer)
        except Exception:
            if not answer.is_cut_off:
                raise

    async def _admitted(self, scope: Scope) -> _Known | None:
        """Whoever calls; `None` where that does not matter.

        Raises
        ------
        _Refused
            Nobody who is known.
        """
        path = scope["path"]
        if path.startswith(_OPEN):
            return None
        if not self._web.login_required:
            return _Known(caller=Caller(name="local", role=Role.ADMIN, source=source_of(scope)))
        try:
            known = await run_in_threadpool(self._known, scope)
        except (TransientError, ConfigurationError) as error:
            logger.warning("%s", error)
            raise _Refused(self._fault(scope, 503, _AWAY)) from None
        if known is None:
            response = self._led_to_login(scope)
            if cookie_name(scope) in HTTPConnection(scope).cookies:
                # A session has ended by itself: nobody has logged out, and pictures may be in the browser's cache.
                response.headers["Clear-Site-Data"] = '"cache"'
            raise _Refused(response)
        return known

    def _known(self, scope: Scope) -> _Known | None:
        now, source = datetime.now(UTC), source_of(scope)
        connection = HTTPConnection(scope)
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and scope["path"].startswith(_FOR_SYSTEMS):
            return self._system(token.strip(), source, now)
        cookie = connection.cookies.get(cookie_name(scope), "")
        if not cookie:
            return None
        with self._site.database.reading() as session:
            found = session_of(session, cookie, now=now, idle=self._idle)
        if found is None:
            return None
        if found.last_seen_at < now - TOUCH_EVERY:
            with contextlib.suppress(IchNodeError), self._site.database.writing() as session:
                touch_session(session, cookie, now=now)
        caller = Caller(
            name=found.user_name, role=Role(found.role), source=source, csrf_token=found.csrf_token
        )
        return _Known(caller=caller, cookie=cookie)

    def _system(self, token: str, source: str, now: datetime) -> _Known:
        with self._site.database.reading() as session:
            found = token_of(session, token, now=now)
        if found is None:
            detail = "unknown token" if self._wrong_tokens.is_due(source) else ""
            raise _Refused(_unauthorized(_WRONG_TOKEN, error="invalid_token"), detail=detail)
        if found.last_used_at is None or found.last_used_at < now - USED_EVERY:
            with contextlib.suppress(IchNodeError), self._site.database.writing() as session:
                token_was_used(session, found.name, now=now)
        return _Known(caller=Caller(name=found.name, role=Role(found.role), source=source), token=token)

    async def _checked(self, scope: Scope, receive: Receive, known: _Known) -> Receive:
        """Refuse what this caller may never send; gives the body anew where it was looked into.

        Raises
        ------
        _Refused
            With the reason.
        """
        path, caller = scope["path"], known.caller
        method = scope.get("method", "GET")
        sends_images = method == "POST" and path.startswith("/dicom-web/studies")
        if caller.role is Role.MACHINE and not (sends_images or path == "/metrics"):
            raise _Refused(PlainTextResponse(_NOT_FOR_MACHINES, 403), detail=f"{method} {path}")
        if sends_images and not (caller.role is Role.MACHINE or caller.role.covers(Role.RADIOLOGIST)):
            raise _Refused(PlainTextResponse(_MAY_NOT_SEND, 403), detail=f"{method} {path}")
        if not known.cookie or scope["type"] == "websocket" or method in SAFE_METHODS:
            return receive
        headers = Headers(scope=scope)
        shown = headers.get(CSRF_HEADER)
        if shown is None:
            with contextlib.suppress(NotAForm):
                fields, receive = await read_form(headers, receive)
                shown = fields.get(CSRF_FIELD)
        if not hmac.compare_digest((shown or "").encode(), caller.csrf_token.encode()):
            raise _Refused(self._fault(scope, 403, _NO_CSRF), detail=f"no CSRF token: {method} {path}")
        return receive

    def _led_to_login(self, scope: Scope) -> Response:
        headers, path = Headers(scope=scope), scope["path"]
        if scope["type"] == "websocket" or path.startswith(_FOR_SYSTEMS):
            return _unauthorized(_NEEDS_TOKEN)
        if scope["method"] not in ("GET", "HEAD") or "text/html" not in headers.get("accept", ""):
            return _unauthorized(_LOG_IN)
        path, query = scope.get("raw_path", b"").decode("latin-1"), scope["query_string"].decode("latin-1")
        address = own_address(f"{path}?{query}" if query else path)
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return go_on(address)
        return RedirectResponse(
            "/login" + ("" if address == "/" else f"?{urlencode({'next': address})}"), 303
        )

    def _fault(self, scope: Scope, status: int, words: str) -> Response:
        if scope["type"] == "websocket" or "text/html" not in Headers(scope=scope).get("accept", ""):
            return PlainTextResponse(words, status)
        page = self._site.render(Request(scope), "fault.html", status=status, words=words.strip())
        page.status_code = status
        return page

    async def _record_refusal(self, scope: Scope, detail: str) -> None:
        if detail:
            caller = scope.get("state", {}).get("caller") or nobody(source_of(scope))
            await run_in_threadpool(self.record, scope, caller, detail)

    def record(self, scope: Scope, caller: Caller, detail: str) -> None:
        """Write down that somebody tried what he may not."""
        study = _STUDY.search(scope["path"])
        self._site.record(
            HTTPConnection(scope),
            _action(scope),
            study[1] if study else None,
            detail=detail[:200],
            refused=True,
            caller=caller,
        )

    async def is_still_in(self, scope: Scope) -> bool:
        """Whether who was let in would be let in now; not being able to tell is no reason to throw anybody out."""
        try:
            return await run_in_threadpool(self._known, scope) is not None
        except _Refused:
            return False
        except (TransientError, ConfigurationError):
            return True


class _Answer:
    """Sends an answer; writes down a refusal, and cuts a long one off when its reader is logged out."""

    def __init__(self, admission: Admission, scope: Scope, send: Send, known: _Known) -> None:
        self._admission = admission
        self._scope = scope
        self._send = send
        self._known = known
        self._looked_at = time.monotonic()
        self.is_cut_off = False

    async def __call__(self, message: Message) -> None:
        """Send a part."""
        if message["type"] == "http.response.start" and message["status"] == 403:
            detail = f"{self._scope['method']} {self._scope['path']}"
            await run_in_threadpool(self._admission.record, self._scope, self._known.caller, detail)
        if self._is_long(message) and not await self._admission.is_still_in(self._scope):
            if self._scope["type"] == "websocket":
                await self._send({"type": "websocket.close", "code": 1008, "reason": "logged out"})
            else:
                await self._send({"type": "http.response.body"})
            self.is_cut_off = True
        if self.is_cut_off:
            raise OSError("logged out")  # as if the reader had gone
        await self._send(message)

    def _is_long(self, message: Message) -> bool:
        goes_on = message["type"] == "websocket.send" or message.get("more_body", False)
        if not goes_on or not (self._known.cookie or self._known.token):
            return False
        if time.monotonic() - self._looked_at < _LOOK_AGAIN_S:
            return False
        self._looked_at = time.monotonic()
        return True


class Seldom:
    """Lets one of many through for each source and time, so that a flood fills no table."""

    _MOST: Final = 10_000

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: dict[str, float] = {}

    def is_due(self, source: str) -> bool:
        """Whether it is this one's turn."""
        now = time.monotonic()
        if now - self._last.get(source, -self._seconds) < self._seconds:
            return False
        if len(self._last) >= self._MOST:
            self._last.clear()
        self._last[source] = now
        return True


def _unauthorized(words: str, **parameters: str) -> Response:
    """RFC 6750 section 3."""
    challenge = ", ".join(f'{name}="{value}"' for name, value in {"realm": "ich_node", **parameters}.items())
    return PlainTextResponse(words, 401, headers={"WWW-Authenticate": f"Bearer {challenge}"})


def _action(scope: Scope) -> AccessAction:
    method, path = scope.get("method", "GET"), scope["path"]
    if method not in SAFE_METHODS:
        return AccessAction.CHANGE
    if path.startswith(_FOR_SYSTEMS):
        return AccessAction.RETRIEVE if _STUDY.search(path) else AccessAction.QUERY
    return AccessAction.VIEW
