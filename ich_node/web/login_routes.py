"""Logging in and out."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ich_node.database.access import AccessAction
from ich_node.database.sessions import SessionOrigin, end_session, open_session, session_of
from ich_node.web.caller import Caller, Role, caller_of, nobody
from ich_node.web.local_login import Attempt, LocalLogin
from ich_node.web.oidc import CALLBACK, OidcAttempt, OidcClient, OidcRefused, OidcUnavailable
from ich_node.web.security import is_secured, own_address, source_of
from ich_node.web.sessions import Seldom, cookie_name, go_on
from ich_node.web.site import Site
from ich_node.web.small_form import NotAForm, read_form

logger = logging.getLogger(__name__)

_OIDC_SECONDS = 600
_REFUSAL_EVERY_S = 60.0
_WRONG = "The name or the password is not right."


class LoginRoutes:
    """The login page, the way through the hospital's own login, and the way out."""

    def __init__(self, site: Site) -> None:
        web = site.settings.web
        self._site = site
        self._login = web.login
        self._label = web.oidc.label if web.oidc.issuer else ""
        self._is_needed = web.login_required
        self._local = LocalLogin(site.database) if web.login.local_users else None
        self._oidc = OidcClient(web.oidc) if web.oidc.issuer else None
        self._refusals = Seldom(_REFUSAL_EVERY_S)

    def router(self) -> APIRouter:
        """Addresses below ``/login``, and ``/logout``."""
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/login", self.page, methods=["GET", "HEAD"])
        router.add_api_route("/login", self.log_in, methods=["POST"])
        router.add_api_route("/login/oidc", self.to_provider, methods=["GET"])
        router.add_api_route(CALLBACK, self.from_provider, methods=["GET"])
        router.add_api_route("/logout", self.log_out, methods=["POST"])
        return router

    def page(self, request: Request) -> Response:
        """Where somebody says who he is."""
        address = _next(request.query_params.get("next", "/"))
        if not self._is_needed or self._is_in(request):
            return RedirectResponse(address, 303)
        return self._page(request, address)

    async def log_in(self, request: Request) -> Response:
        """A name and a password."""
        if self._local is None:
            raise HTTPException(404, "People do not log in by a password here.")
        try:
            fields, _ = await read_form(request.headers, request.receive)
        except NotAForm:
            raise HTTPException(400, "This is not the form of the login page.") from None
        return await run_in_threadpool(self._log_in, self._local, request, fields)

    def to_provider(self, request: Request) -> Response:
        """Begin a login at the provider."""
        attempt = OidcAttempt.begin(_next(request.query_params.get("next", "/")))
        try:
            response = RedirectResponse(self._provider().authorization_url(attempt), 303)
        except OidcUnavailable as error:
            raise self._unavailable(error) from None
        self._set_cookie(request, response, _oidc_cookie(request), attempt.to_cookie(), strict=False)
        return response

    def from_provider(self, request: Request) -> Response:
        """End a login at the provider."""
        provider = self._provider()
        attempt = OidcAttempt.from_cookie(request.cookies.get(_oidc_cookie(request), ""))
        try:
            if attempt is None:
                raise OidcRefused("This login was not begun in this browser, or too long ago: log in anew.")
            user = provider.user(attempt, request.query_params)
        except OidcUnavailable as error:
            raise self._unavailable(error) from None
        except OidcRefused as error:
            source = source_of(request.scope)
            # Anybody can call this address, as often as he likes.
            if self._refusals.is_due(f"{source} {error}"):
                self._record(request, nobody(source), f"OIDC: {error}", refused=True)
            response = self._page(request, _next(attempt.next if attempt else "/"), str(error), status=403)
        else:
            # The provider has led here: see `go_on`.
            response = go_on(_next(attempt.next))
            self._begin(request, response, user.name, user.role, SessionOrigin.OIDC)
        response.delete_cookie(_oidc_cookie(request), secure=is_secured(request.scope), httponly=True)
        return response

    def log_out(self, request: Request) -> Response:
        """End a session; the browser forgets what it has kept."""
        caller = caller_of(request)
        name = cookie_name(request.scope)
        with self._site.database.writing() as session:
            end_session(session, request.cookies.get(name, ""))
        self._site.record(request, AccessAction.LOGOUT, caller=caller)
        response = RedirectResponse("/login", 303, headers={"Clear-Site-Data": '"cache"'})
        response.delete_cookie(name, secure=is_secured(request.scope), httponly=True, samesite="strict")
        return response

    def _log_in(self, local: LocalLogin, request: Request, fields: dict[str, str]) -> Response:
        source, address = source_of(request.scope), _next(fields.get("next", "/"))
        attempt = local.attempt(fields.get("name", ""), fields.get("password", ""), source)
        if attempt.user is None:
            return self._refused(request, attempt, address)
        response = RedirectResponse(address, 303)
        self._begin(request, response, attempt.user.name, Role(attempt.user.role), SessionOrigin.LOCAL)
        return response

    def _refused(self, request: Request, attempt: Attempt, address: str) -> Response:
        if attempt.wait_s:
            words = f"Too many logins have failed. Wait {_duration(attempt.wait_s)}, then try again."
            response = self._page(request, address, words, status=429)
            response.headers["Retry-After"] = str(attempt.wait_s)
            return response
        source = source_of(request.scope)
        who = nobody(source)
        if attempt.known_name:
            who = Caller(name=attempt.known_name, role=Role(attempt.known_role), source=source)
        self._record(request, who, "name or password is wrong, or the user is disabled", refused=True)
        return self._page(request, address, _WRONG, status=403)

    def _begin(
        self, request: Request, response: Response, name: str, role: Role, origin: SessionOrigin
    ) -> None:
        """A session with a token of its own, whatever cookie the browser had before."""
        cookie = cookie_name(request.scope)
        with self._site.database.writing() as session:
            end_session(session, request.cookies.get(cookie, ""))
            token = open_session(
                session,
                user_name=name,
                role=role,
                origin=origin,
                now=datetime.now(UTC),
                lifetime=timedelta(hours=self._login.absolute_hours),
            )
        self._set_cookie(request, response, cookie, token, strict=True)
        who = Caller(name=name, role=role, source=source_of(request.scope))
        self._record(request, who, f"{origin}, {role}")

    def _record(self, request: Request, who: Caller, detail: str, *, refused: bool = False) -> None:
        self._site.record(request, AccessAction.LOGIN, detail=detail, refused=refused, caller=who)

    def _page(self, request: Request, address: str, words: str = "", *, status: int = 200) -> Response:
        response = self._site.render(
            request,
            "login.html",
            next=address,
            words=words,
            by_password=self._local is not None,
            label=self._label,
        )
        response.status_code = status
        return response

    def _is_in(self, request: Request) -> bool:
        token = request.cookies.get(cookie_name(request.scope), "")
        idle = timedelta(minutes=self._login.idle_minutes)
        with self._site.database.reading() as session:
            return bool(token) and session_of(session, token, now=datetime.now(UTC), idle=idle) is not None

    def _provider(self) -> OidcClient:
        if self._oidc is None:
            raise HTTPException(404, "There is no other login here.")
        return self._oidc

    def _unavailable(self, error: OidcUnavailable) -> HTTPException:
        logger.error("nobody can log in by OpenID Connect: %s", error)
        return HTTPException(
            502, "The hospital's login service does not answer as it should; try again later."
        )

    def _set_cookie(
        self, request: Request, response: Response, name: str, value: str, *, strict: bool
    ) -> None:
        response.set_cookie(
            name,
            value,
            max_age=None if strict else _OIDC_SECONDS,
            secure=is_secured(request.scope),
            httponly=True,
            samesite="strict" if strict else "lax",  # the provider leads back here from another site
        )


def _oidc_cookie(request: Request) -> str:
    return cookie_name(request.scope).replace("session", "oidc")


def _next(text: str) -> str:
    """Where to go after the login: an address of this server, and not the login again."""
    address = own_address(text)
    return "/" if address.startswith(("/login", "/logout")) else address


def _duration(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} second{'' if seconds == 1 else 's'}"
    minutes = -(-seconds // 60)
    return f"{minutes} minute{'' if minutes == 1 else 's'}"
