"""The login through a provider, without sockets: what is sent to us, and a provider that is away or odd."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from ich_node.web import oidc
from ich_node.web.oidc import OidcAttempt, OidcClient, OidcUnavailable
from ich_node.web_settings import OidcSettings
from tests.stored_studies import StoredStudies
from tests.unit.test_web_login import HOST, Site, filled, studies

__all__ = ["filled", "studies"]  # fixtures

ISSUER = "https://login.hospital.example"
SETTINGS: dict[str, Any] = {
    "issuer": ISSUER,
    "client_id": "ich-node",
    "base_url": f"https://{HOST}",
    "roles": {"viewer": ["all"]},
}
CALLBACK = "/login/oidc/callback?state=s&code=c"


@pytest.fixture
def site(studies: StoredStudies) -> Site:
    tls = {"certificate": "/etc/web.pem", "key": "/etc/web.key"}
    return Site(
        studies=studies,
        web={"host": "0.0.0.0", "trusted_hosts": [HOST], "tls": tls, "oidc": SETTINGS},
    )


def cookie(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def attempt(**more: str) -> str:
    return cookie(json.dumps({"state": "s", "nonce": "n", "code_verifier": "v", "next": "/", **more}))


@pytest.mark.parametrize(
    "odd",
    [cookie("[" * 30_000), *(attempt(**{name: "\ud800"}) for name in ("state", "code_verifier", "next"))],
)
def test_a_cookie_that_we_have_not_written_is_none(site: Site, odd: str) -> None:
    site.cookies = {"__Host-ich_oidc": odd}
    assert site.get(CALLBACK).status_code == 403


def test_whoever_calls_the_way_back_again_and_again_fills_no_table(site: Site) -> None:
    for _ in range(20):
        site.cookies = {}
        assert site.get(CALLBACK).status_code == 403
    (row,) = site.accesses()
    assert (row.action, row.outcome, row.source) == ("LOGIN", "REFUSED", site.client)
    site.client = "192.0.2.10"
    site.get(CALLBACK)
    site.cookies = {"__Host-ich_oidc": attempt()}
    assert len(site.accesses()) == 2


def test_a_provider_that_is_away_is_asked_once_by_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(self: OidcClient, method: str, url: str, *_: Any) -> dict[str, Any]:
        asked.append(url)
        raise OidcUnavailable("no answer")

    monkeypatch.setattr(OidcClient, "_asked", away)
    client = OidcClient(OidcSettings.model_validate(SETTINGS))
    for _ in range(5):
        with pytest.raises(OidcUnavailable):
            client.authorization_url(OidcAttempt.begin("/"))
    assert len(asked) == 1
    later = time.monotonic() + 6
    monkeypatch.setattr(oidc.time, "monotonic", lambda: later)
    with pytest.raises(OidcUnavailable, match="no answer"):
        client.authorization_url(OidcAttempt.begin("/"))


def test_a_key_of_a_kind_that_is_not_known_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    key = RSAKey.generate_key(2048, {"use": "sig"}, auto_kid=True)
    begun, now = OidcAttempt.begin("/"), int(time.time())
    claims = {
        "iss": ISSUER, "aud": "ich-node", "sub": "1", "iat": now, "exp": now + 60,
        "nonce": begun.nonce, "groups": ["all"], "preferred_username": "otto",
    }  # fmt: skip
    odd = [
        {"kty": "EC", "crv": "P-1024", "x": "AA", "y": "AA", "kid": "1"},
        {"kty": "NEW", "kid": "2"},
        {"kid": "3"},
        {"kty": ["RSA"]},
        "x",
        None,
    ]
    answers: Mapping[str, dict[str, Any]] = {
        f"{ISSUER}/.well-known/openid-configuration": {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/a",
            "token_endpoint": f"{ISSUER}/t",
            "jwks_uri": f"{ISSUER}/k",
        },
        f"{ISSUER}/t": {"id_token": jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key)},
        f"{ISSUER}/k": {"keys": [*odd, key.as_dict(private=False)]},
    }
    monkeypatch.setattr(OidcClient, "_asked", lambda self, method, url, *_: answers[url])
    client = OidcClient(OidcSettings.model_validate(SETTINGS))
    assert client.user(begun, {"state": begun.state, "code": "c"}).name == "otto"
    answers[f"{ISSUER}/k"]["keys"] = odd
    with pytest.raises(oidc.OidcRefused, match="not valid"):
        OidcClient(OidcSettings.model_validate(SETTINGS)).user(begun, {"state": begun.state, "code": "c"})
