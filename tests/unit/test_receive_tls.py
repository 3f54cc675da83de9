"""The files of DICOM over TLS, the contexts made of them, and what an administrator is told."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat

from ich_node.cli import checks
from ich_node.cli.checks import Check
from ich_node.errors import ConfigurationError
from ich_node.receive import tls
from ich_node.receive.tls import (
    TLS_1_2_CIPHER_SUITES,
    ServerIdentity,
    TlsFiles,
    client_context,
    expires_at,
    server_context,
)
from ich_node.settings import ReceiverSettings, Settings, TlsSettings
from tests.certificates import Authority, key_bytes

NOBODY = 65534
Contexts = Callable[[TlsFiles], ssl.SSLContext]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.mark.parametrize("make", [server_context, client_context])
def test_the_profile(authority: Authority, make: Contexts) -> None:
    context = make(authority.issue("node.example"))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.maximum_version is ssl.TLSVersion.MAXIMUM_SUPPORTED
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.security_level == 2
    for option in ("NO_COMPRESSION", "NO_RENEGOTIATION", "NO_TICKET", "CIPHER_SERVER_PREFERENCE"):
        assert context.options & getattr(ssl, f"OP_{option}"), option
    suites = context.get_ciphers()
    assert [suite["name"] for suite in suites if suite["protocol"] == "TLSv1.2"] == list(
        TLS_1_2_CIPHER_SUITES
    )
    assert {suite["name"] for suite in suites if suite["protocol"] == "TLSv1.3"} == {
        "TLS_AES_256_GCM_SHA384",
        "TLS_AES_128_GCM_SHA256",
        "TLS_CHACHA20_POLY1305_SHA256",
    }


def without(which: str, path: str = "/nowhere/file.pem") -> Callable[[Authority], TlsFiles]:
    return lambda authority: replace(authority.issue("node.example"), **{which: Path(path)})


def containing(which: str, content: bytes) -> Callable[[Authority], TlsFiles]:
    def make(authority: Authority) -> TlsFiles:
        files = authority.issue("node.example")
        getattr(files, which).write_bytes(content)
        return files

    return make


def damaged(which: str) -> Callable[[Authority], TlsFiles]:
    def make(authority: Authority) -> TlsFiles:
        files = authority.issue("node.example")
        # The authority's own file stays whole.
        path = Path(shutil.copy(getattr(files, which), files.key.with_name("damaged.pem")))
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:2], lines[2][:10], *lines[3:]]))
        return replace(files, **{which: path})

    return make


def swapped(authority: Authority) -> TlsFiles:
    files = authority.issue("node.example")
    return replace(files, certificate=files.key, key=files.certificate)


def of_another_key(authority: Authority) -> TlsFiles:
    return replace(authority.issue("node.example"), key=authority.issue("other.example").key)


def of_another_kind_of_key(authority: Authority) -> TlsFiles:
    return replace(
        authority.issue("node.example"),
        key=authority.issue_odd(key=rsa.generate_private_key(65537, 2048)).key,
    )


def encrypted(form: PrivateFormat) -> Callable[[Authority], TlsFiles]:
    def make(authority: Authority) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        files = authority.issue_odd(key=key)
        files.key.write_bytes(key_bytes(key, encrypted=True, form=form))
        return files

    return make


def of_a_short_key(authority: Authority) -> TlsFiles:
    return authority.issue_odd(key=rsa.generate_private_key(65537, 1024))


def in_der(authority: Authority) -> TlsFiles:
    files = authority.issue("node.example")
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    files.certificate.write_bytes(certificate.public_bytes(Encoding.DER))
    return files


@pytest.mark.parametrize(
    ("make", "setting", "what", "remedy"),
    [
        (without("certificate"), "certificate", "does not exist", "name the file"),
        (without("key"), "key", "does not exist", "name the file"),
        (without("ca"), "ca", "does not exist", "name the file"),
        (without("key", "/"), "key", "cannot be read: Is a directory", ""),
        (containing("certificate", b""), "certificate", "holds no certificate", "openssl x509 -inform der"),
        (in_der, "certificate", "holds no certificate", "openssl x509 -inform der"),
        (swapped, "certificate", "holds a private key", "swapped"),
        (damaged("certificate"), "certificate", "damaged", "copy it again"),
        (containing("key", b"hello"), "key", "holds no private key", ""),
        (damaged("key"), "key", "cannot be used", "copy it again"),
        (encrypted(PrivateFormat.PKCS8), "key", "encrypted", "openssl pkey"),
        (encrypted(PrivateFormat.TraditionalOpenSSL), "key", "encrypted", "openssl pkey"),
        (of_another_key, "key", "does not belong to", "made together"),
        (of_another_kind_of_key, "key", "does not belong to", "made together"),
        (of_a_short_key, "certificate", "too weak (ee key too small)", "2048"),
        (damaged("ca"), "ca", "damaged", "copy it again"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(
    authority: Authority, make: Callable[[Authority], TlsFiles], setting: str, what: str, remedy: str
) -> None:
    files = make(authority)
    for context in (server_context, client_context):
        with pytest.raises(ConfigurationError) as raised:
            context(files)
        message = str(raised.value)
        assert message.startswith(f"receiver.tls.{setting}: {getattr(files, setting)} ")
        assert what in message
        assert remedy in message


def test_a_revocation_list_alone_is_no_authority(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "list.pem").write_bytes(authority.revocation_list())
    with pytest.raises(ConfigurationError, match=r"receiver\.tls\.ca: .* holds no certificate"):
        server_context(authority.issue("node.example", trusts=tmp_path / "list.pem"))


def test_a_file_of_another_user_is_named(authority: Authority) -> None:
    files = authority.issue("node.example")
    files.certificate.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read any file
        os.seteuid(NOBODY)
    try:
        with pytest.raises(
            ConfigurationError, match=r"receiver\.tls\.certificate: .* cannot be read by the user"
        ):
            server_context(files)
    finally:
        os.seteuid(user)


def test_an_expired_certificate_is_used_and_logged(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    server_context(authority.issue("node.example", days=1))
    assert not caplog.records
    server_context(authority.issue("node.example", begins_in_days=-9, days=-1))
    assert "receiver.tls.certificate expired on" in caplog.text


@pytest.mark.parametrize(
    "not_after",
    [
        datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2050, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
)
def test_the_end_of_a_certificate(authority: Authority, not_after: datetime) -> None:
    """On both sides of 2050 dates are written in two forms (RFC 5280 section 4.1.2.5)."""
    files = authority.files(
        authority.ca.issue_cert("a.example", not_before=datetime(1990, 1, 1), not_after=not_after)
        .cert_chain_pems[0]
        .bytes(),
        b"",
    )
    assert expires_at(files.certificate) == not_after


def test_the_end_of_the_certificate_is_that_of_the_first_in_the_chain(authority: Authority) -> None:
    files = authority.issue("node.example", days=5)
    text = "node's certificate\n" + files.certificate.read_text() + authority.file.read_text()
    files.certificate.write_text(text)
    expected = x509.load_pem_x509_certificate(files.certificate.read_bytes()).not_valid_after_utc
    assert expires_at(files.certificate) == expected


def test_no_date_is_read_from_what_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "file.pem").write_text("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigurationError, match="damaged"):
        expires_at(tmp_path / "file.pem")


def replace_by(target: TlsFiles, source: TlsFiles, *which: str) -> None:
    for name in which:
        new = getattr(target, name).with_suffix(".new")
        shutil.copy(getattr(source, name), new)
        new.replace(getattr(target, name))


def test_renewed_files_are_taken_and_unusable_ones_are_not(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files, renewed = authority.issue("node.example"), authority.issue("node.example")
    identity = ServerIdentity(files)
    first = identity.context()
    assert identity.context() is first

    replace_by(files, renewed, "certificate")
    assert identity.context() is first
    assert identity.context() is first
    assert caplog.text.count("TLS goes on with what was read before: receiver.tls.key") == 1

    replace_by(files, renewed, "key")
    second = identity.context()
    assert second is not first
    files.key.unlink()
    assert identity.context() is second
    assert "does not exist" in caplog.records[-1].getMessage()
    assert all(record.levelno == logging.ERROR for record in caplog.records)


def test_a_context_does_not_gather_sessions_for_ever(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_HANDSHAKES_PER_CONTEXT", 3)
    identity = ServerIdentity(authority.issue("node.example"))
    contexts = [identity.context() for _ in range(7)]
    assert [contexts.index(context) for context in contexts] == [0, 0, 0, 3, 3, 3, 6]


Doctor = Callable[[TlsFiles | None], dict[str, Check]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    monkeypatch.setattr(checks, "count_workers", lambda _settings: ())  # waits for seconds for their answers

    def examine(files: TlsFiles | None) -> dict[str, Check]:
        own = files and TlsSettings(certificate=str(files.certificate), key=str(files.key), ca=str(files.ca))
        settings = Settings(data_dir=tmp_path, receiver=ReceiverSettings(port=1, tls=own or TlsSettings()))
        return {check.name: check for check in checks.run_checks(settings)}

    return examine


@pytest.mark.parametrize(
    ("days", "ok", "found"),
    [
        (40.5, True, "in 40 days"),
        (30.5, True, "in 30 days"),
        (29.5, False, "in 29 days"),
        (-2, False, "expired"),
    ],
)
def test_the_doctor_sees_a_certificate_end(
    authority: Authority, doctor: Doctor, days: float, ok: bool, found: str
) -> None:
    check = doctor(authority.issue("node.example", begins_in_days=-60, days=days))["tls certificate"]
    assert check.ok is ok
    assert found in check.found


def test_the_doctor_says_nothing_of_tls_where_there_is_none(doctor: Doctor) -> None:
    assert "tls certificate" not in doctor(None)


def test_the_doctor_sees_files_that_the_next_start_would_refuse(authority: Authority, doctor: Doctor) -> None:
    check = doctor(of_another_key(authority))["tls certificate"]
    assert not check.ok
    assert "does not belong to" in check.found
