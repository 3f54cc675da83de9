from __future__ import annotations

import hashlib
import hmac
import ssl
from pathlib import Path

import pytest

from ich_node.client_tls import ClientTls
from ich_node.errors import ConfigurationError
from ich_node.notify.mllp import MllpDestination
from ich_node.notify.webhook import WebhookEndpoint, signature

SECRET = b"0123456789abcdef"
NOW = 1_700_000_000


def test_the_signature_is_over_time_and_body() -> None:
    expected = hmac.new(b"secret", b'1700000000.{"a":1}', hashlib.sha256).hexdigest()
    assert signature(b"secret", NOW, b'{"a":1}') == f"t=1700000000,v1={expected}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h.example/x", "begins with https://"),
        ("ftp://h.example/x", "begins with https://"),
        ("https:///hush", "and a host"),
        ("hush", "begins with"),
        ("https://u:hush@h.example/", "take it out"),
        ("https://h.example:hush/", "not a URL"),
        ("https://h.example:65536/hush", "not a URL"),
    ],
)
def test_a_wrong_url_is_refused_without_being_shown(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        WebhookEndpoint(url=url, secret=SECRET)
    assert "hush" not in str(raised.value)


def test_a_webhook_needs_a_secret_and_hides_it() -> None:
    with pytest.raises(ConfigurationError, match="needs a secret"):
        WebhookEndpoint(url="https://h.example/", secret=b"x" * 15)
    shown = repr(WebhookEndpoint(url="https://h.example/token", secret=b"hush" * 4))
    assert "token" not in shown
    assert "hush" not in shown
    assert (
        WebhookEndpoint(url="http://h.example/", secret=SECRET, plain_http_allowed=True).host == "h.example"
    )


def test_tls_files_that_are_not_there_or_none_are_named(tmp_path: Path) -> None:
    garbage = tmp_path / "ca.pem"
    garbage.write_text("no certificate")
    for trust in (
        ClientTls(ca=tmp_path / "absent.pem"),
        ClientTls(ca=garbage),
        ClientTls(certificate=garbage),
    ):
        with pytest.raises(ConfigurationError, match=str(tmp_path)):
            trust.context()


def test_a_connection_has_forward_secrecy_and_looks_at_the_certificate() -> None:
    context = ClientTls().context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert all(cipher["name"].startswith(("ECDHE-", "TLS_")) for cipher in context.get_ciphers())
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(("host", "port"), [("", 2575), ("h", 0), ("h", 65536)])
def test_an_hl7_receiver_has_a_host_and_a_port(host: str, port: int) -> None:
    with pytest.raises(ConfigurationError, match="host and port"):
        MllpDestination(host=host, port=port)
