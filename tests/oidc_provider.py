"""An OpenID provider of the tests' own, with real keys, that lets in whoever a test says."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from ich_node.receive.tls import TlsFiles

CLIENT_ID, CLIENT_SECRET = "ich-node", "s3cret/+:%"


@dataclass
class OidcProvider:
    """What it answers; a test changes it as it likes."""

    port: int = 0
    claims: dict[str, Any] = field(default_factory=lambda: {"preferred_username": "otto", "groups": ["rad"]})
    metadata: dict[str, Any] = field(default_factory=dict)
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"use": "sig"}, auto_kid=True))
    published: list[RSAKey] = field(default_factory=list)
    header: dict[str, Any] = field(default_factory=lambda: {"alg": "RS256"})
    is_down: bool = False
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def issuer(self) -> str:
        return f"https://localhost:{self.port}/realm"

    def known(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "authorization_response_iss_parameter_supported": True,
            **self.metadata,
        }

    def authorize(self, query: dict[str, str]) -> str:
        """Log somebody in without asking; gives where to go back to."""
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(8)
        self.codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state'], 'iss': self.issuer})}"

    def exchange(self, form: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """Give a token for a code, once, to whom it was made for."""
        asked = self.codes.pop(form.get("code", ""), None)
        kind, _, pair = authorization.partition(" ")
        name, _, secret = base64.b64decode(pair).decode().partition(":")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest())
        if (
            asked is None
            or kind != "Basic"
            or (unquote(name), unquote(secret)) != (CLIENT_ID, CLIENT_SECRET)
            or challenge.rstrip(b"=").decode() != asked["code_challenge"]
            or form["redirect_uri"] != asked["redirect_uri"]
            or form["grant_type"] != "authorization_code"
        ):
            return None
        return {"token_type": "Bearer", "access_token": "x", "id_token": self.id_token(asked["nonce"])}

    def id_token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "sub": "42",
            "iat": now,
            "exp": now + 60,
            "nonce": nonce,
            **self.claims,
        }
        claims = {key: value for key, value in claims.items() if value is not None}
        return jwt.encode({"kid": self.key.kid, **self.header}, claims, self.key)


class _Request(BaseHTTPRequestHandler):
    provider: OidcProvider

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.provider.asked.append(parts.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if self.provider.is_down:
            self._answer(503, {})
        elif parts.path.endswith("/openid-configuration"):
            self._answer(200, self.provider.known())
        elif parts.path.endswith("/keys"):
            keys = self.provider.published or [self.provider.key]
            self._answer(200, dict(KeySet(keys).as_dict(private=False)))
        else:
            self.send_response(302)
            self.send_header("Location", self.provider.authorize(query))
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_POST(self) -> None:
        self.provider.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {key: values[0] for key, values in parse_qs(body).items()}
        found = self.provider.exchange(form, self.headers.get("Authorization", ""))
        self._answer(200 if found else 400, found or {"error": "invalid_grant"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def oidc_provider(files: TlsFiles) -> Iterator[OidcProvider]:
    """Serve by https on a free port."""
    provider = OidcProvider()
    handler = type("Request", (_Request,), {"provider": provider})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    provider.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
