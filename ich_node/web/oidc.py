"""The hospital's own login: OpenID Connect Core 1.0, authorization code flow with PKCE (RFC 7636).

What a token is worth is decided by joserfc; requests go through `ich_node.http_exchange`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, KeySet

from ich_node.client_tls import ClientTls
from ich_node.errors import IchNodeError
from ich_node.http_exchange import HttpTimeouts, NoAnswer, Request, exchange
from ich_node.web.caller import Role
from ich_node.web_settings import OidcSettings, is_loopback

CALLBACK = "/login/oidc/callback"
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
"""Signatures by a key that only the provider has: neither "none" nor one that a client's secret could make."""
_TIMEOUTS = HttpTimeouts(connection_s=5.0, step_s=5.0, answer_s=10.0)
_MAX_ANSWER_BYTES = 2**20
_KNOWN_FOR_S = 3600.0
_AWAY_FOR_S = 5.0
"""A provider that has not answered is not asked again so long: everybody who logs in would wait, and hold a thread."""
_LEEWAY_S = 60
"""Between two clocks."""
_LONGEST_NAME = 64


class OidcRefused(IchNodeError):
    """The provider, or what it says, lets nobody in. The text is for the person at the browser."""


class OidcUnavailable(IchNodeError):
    """The provider does not answer, or not as one."""


@dataclass(frozen=True, kw_only=True)
class OidcAttempt:
    """One login that is on its way through the provider; a cookie binds it to the browser that began it."""

    state: str
    nonce: str
    code_verifier: str
    next: str

    @classmethod
    def begin(cls, next_address: str) -> OidcAttempt:
        """A new one."""
        return cls(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            code_verifier=secrets.token_urlsafe(48),
            next=next_address,
        )

    @classmethod
    def from_cookie(cls, text: str) -> OidcAttempt | None:
        """That of a browser; `None` where there is none."""
        try:
            values = json.loads(base64.urlsafe_b64decode(text))
            attempt = cls(**values)
        except (ValueError, TypeError, RecursionError):
            return None
        # ASCII: what we write is, and a lone surrogate could be sent nowhere.
        sound = all(isinstance(value, str) and value and value.isascii() for value in values.values())
        return attempt if sound else None

    def to_cookie(self) -> str:
        """For the browser."""
        return base64.urlsafe_b64encode(json.dumps(asdict(self)).encode()).decode()


@dataclass(frozen=True, kw_only=True)
class OidcUser:
    """Somebody whom the provider vouches for."""

    name: str
    role: Role


@dataclass(frozen=True, kw_only=True)
class _Provider:
    """What is used of the provider's metadata (OpenID Connect Discovery 1.0 section 3)."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    takes_secret_in_body: bool
    names_itself: bool
    """It says in the answer which provider it is (RFC 9207)."""
    read_at: float


class OidcClient:
    """The provider, as this node asks it. From any thread."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._redirect_uri = settings.base_url.rstrip("/") + CALLBACK
        self._lock = threading.Lock()
        self._provider: _Provider | None = None
        self._away_until = -_AWAY_FOR_S
        self._keys: KeySet | None = None

    def authorization_url(self, attempt: OidcAttempt) -> str:
        """Where to send the browser (section 3.1.2.1).

        Raises
        ------
        OidcUnavailable
        """
        challenge = hashlib.sha256(attempt.code_verifier.encode()).digest()
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._settings.client_id,
                "redirect_uri": self._redirect_uri,
                "scope": " ".join(self._settings.scopes),
                "state": attempt.state,
                "nonce": attempt.nonce,
                "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
                "code_challenge_method": "S256",
            }
        )
        endpoint = self._metadata().authorization_endpoint
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}"

    def user(self, attempt: OidcAttempt, answer: Mapping[str, str]) -> OidcUser:
        """Who comes back from the provider.

        Parameters
        ----------
        answer
            The query that the browser brings.

        Raises
        ------
        OidcRefused
        OidcUnavailable
        """
        if not secrets.compare_digest(answer.get("state", "").encode(), attempt.state.encode()):
            raise OidcRefused("This login was not begun in this browser, or too long ago: log in anew.")
        provider = self._metadata()
        if answer.get("iss", self._settings.issuer) != self._settings.issuer or (
            provider.names_itself and "iss" not in answer
        ):
            raise OidcRefused("The answer does not come from the login service that was asked.")
        if "code" not in answer:
            raise OidcRefused("The login service has not let you in.")
        return self._of_claims(self._claims(self._id_token(provider, attempt, answer["code"]), attempt.nonce))

    # requests

    def _metadata(self) -> _Provider:
        with self._lock:
            now = time.monotonic()
            if self._provider is None or self._provider.read_at < now - _KNOWN_FOR_S:
                if now < self._away_until:
                    raise OidcUnavailable("the provider did not answer a moment ago")
                try:
                    self._provider = self._read_metadata()
                except OidcUnavailable:
                    self._away_until = time.monotonic() + _AWAY_FOR_S
                    raise
            return self._provider

    def _read_metadata(self) -> _Provider:
        found = self._asked("GET", self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != self._settings.issuer:
            raise OidcUnavailable(
                f"web.oidc.issuer: the provider calls itself {str(found.get('issuer'))[:200]!r}"
            )
        methods = found.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        try:
            return _Provider(
                authorization_endpoint=_endpoint(found["authorization_endpoint"]),
                token_endpoint=_endpoint(found["token_endpoint"]),
                jwks_uri=_endpoint(found["jwks_uri"]),
                takes_secret_in_body="client_secret_basic" not in methods,
                names_itself=found.get("authorization_response_iss_parameter_supported") is True,
                read_at=time.monotonic(),
            )
        except (KeyError, TypeError, ValueError):
            raise OidcUnavailable("the provider's metadata lack an https endpoint") from None

    def _id_token(self, provider: _Provider, attempt: OidcAttempt, code: str) -> str:
        """Section 3.1.3.1."""
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": attempt.code_verifier,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        client_id, secret = self._settings.client_id, self._secret()
        if secret and not provider.takes_secret_in_body:
            pair = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            fields |= {"client_id": client_id} | ({"client_secret": secret} if secret else {})
        found = self._asked("POST", provider.token_endpoint, headers, urlencode(fields).encode())
        if not isinstance(found.get("id_token"), str):
            raise OidcRefused("The login service has given no ID token.")
        return str(found["id_token"])

    def _secret(self) -> str:
        if not self._settings.client_secret_file:
            return ""
        try:
            return Path(self._settings.client_secret_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OidcUnavailable(f"web.oidc.client_secret_file cannot be read: {error}") from None

    def _asked(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> dict[str, Any]:
        ca = Path(self._settings.ca) if self._settings.ca else None
        request = Request(
            to="the login service",
            method=method,
            url=url,
            headers={"Accept": "application/json", "Content-Length": str(len(body)), **(headers or {})},
            body=[body] if body else None,
            tls=ClientTls(ca=ca, table="[web.oidc]").context,
        )
        try:
            with exchange(request, _TIMEOUTS) as answer:
                content = bytearray()
                for piece in answer.content:
                    content += piece
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise OidcUnavailable("the provider's answer is too long")
                status = answer.status
        except NoAnswer as error:
            raise OidcUnavailable(str(error)) from None
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            raise OidcUnavailable(f"the provider answered HTTP {status} without JSON") from None
        if 400 <= status < 500 and method == "POST":
            raise OidcRefused("The login service does not take this login: log in anew.")
        if status != 200 or not isinstance(found, dict):
            raise OidcUnavailable(f"the provider answered HTTP {status}")
        return found

    # the ID token

    def _claims(self, id_token: str, nonce: str) -> Mapping[str, Any]:
        """Section 3.1.3.7."""
        try:
            try:
                token = jwt.decode(id_token, self._known_keys(), algorithms=_ALGORITHMS)
            except (JoseError, ValueError):  # it may have a new key
                token = jwt.decode(id_token, self._read_keys(), algorithms=_ALGORITHMS)
            jwt.JWTClaimsRegistry(
                leeway=_LEEWAY_S,
                iss={"essential": True, "value": self._settings.issuer},
                sub={"essential": True},
                aud={"essential": True, "value": self._settings.client_id},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": nonce},
            ).validate(token.claims)
        except (JoseError, ValueError, TypeError) as error:
            raise OidcRefused(
                f"The ID token of the login service is not valid ({type(error).__name__})."
            ) from None
        claims = token.claims
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if ("azp" in claims or several) and claims.get("azp") != self._settings.client_id:
            raise OidcRefused("The ID token of the login service is for another client.")
        return claims

    def _known_keys(self) -> KeySet:
        return self._keys or self._read_keys()

    def _read_keys(self) -> KeySet:
        found = self._asked("GET", self._metadata().jwks_uri).get("keys")
        keys = []
        for key in found if isinstance(found, list) else []:
            # One of a kind that is not known here keeps none of the others out (RFC 7517 section 5).
            with contextlib.suppress(JoseError, ValueError, TypeError, LookupError, AttributeError):
                keys.append(JWKRegistry.import_key(key))
        self._keys = KeySet(keys)
        return self._keys

    def _of_claims(self, claims: Mapping[str, Any]) -> OidcUser:
        name = claims.get(self._settings.user_claim)
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise OidcRefused(
                f"The login service does not say who you are (claim {self._settings.user_claim})."
            )
        values, roles = _values(claims, self._settings.role_claim), self._settings.roles
        for role, needed in (
            (Role.ADMIN, roles.admin),
            (Role.RADIOLOGIST, roles.radiologist),
            (Role.VIEWER, roles.viewer),
        ):
            if values.intersection(needed):
                return OidcUser(name=name.strip()[:_LONGEST_NAME], role=role)
        raise OidcRefused("Your account has no role on this worklist: ask its administrator.")


def _values(claims: Mapping[str, Any], path: str) -> set[str]:
    """The words of a claim; a name with dots is looked for as it is, then as a way into objects."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
    words = found if isinstance(found, list) else [found]
    return {word for word in words if isinstance(word, str)}


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError
    return url
