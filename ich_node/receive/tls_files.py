"""The PEM files of DICOM over TLS: into a context, or an error that says which file and what to do."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ich_node.errors import ConfigurationError
from ich_node.receive.tls_reasons import words

_PEM_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_OTHER_KEY = frozenset(("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"))
_TOO_WEAK = frozenset(("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"))
_PEM_FROM_DER = "; for a DER file run 'openssl x509 -inform der -in {} -out NEW'"
_VERSION, _UTC_TIME = 0xA0, 0x17


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """The three PEM files that TLS needs."""

    certificate: Path
    """The node's certificate, then the intermediate authorities that lead to its root."""
    key: Path
    """The certificate's private key, without a pass phrase."""
    ca: Path
    """The authorities that sign peers' certificates, and their revocation lists where there are any."""

    def stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Something that changes when one of the files is changed or replaced."""
        return tuple(_stamp(path) for path in (self.certificate, self.key, self.ca))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def expires_at(path: Path) -> datetime:
    """Read until when the first certificate of a PEM file is valid (aware, UTC).

    Raises
    ------
    ConfigurationError
        The file cannot be read or holds no certificate.
    """
    pem = _read_certificates(path, "receiver.tls.certificate")
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(pem))
    except (ValueError, IndexError):
        raise ConfigurationError(
            f"receiver.tls.certificate: {path} has no date of the form of RFC 5280"
        ) from None


def load_own(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Load the node's certificate, its chain and its key; `ConfigurationError` where they cannot be used."""
    _read_certificates(files.certificate, "receiver.tls.certificate")
    key = _read(files.key, "receiver.tls.key")
    if "PRIVATE KEY-----" not in key:
        raise ConfigurationError(f"receiver.tls.key: {files.key} holds no private key in PEM form")
    if "ENCRYPTED" in key:
        raise ConfigurationError(
            f"receiver.tls.key: {files.key} is encrypted, and nobody is there to type the pass phrase: write it "
            f"without one ('openssl pkey -in {files.key.name} -out NEW'), readable for the service's user alone"
        )
    try:
        # With a password OpenSSL never asks for one at the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
    except ssl.SSLError as error:
        raise ConfigurationError(_why_not_loaded(files, error.reason or "")) from None


def _why_not_loaded(files: TlsFiles, reason: str) -> str:
    if reason in _OTHER_KEY:
        return (
            f"receiver.tls.key: {files.key} does not belong to the first certificate in {files.certificate}: "
            "name the pair that was made together, with the node's own certificate before its authorities'"
        )
    if reason in _TOO_WEAK:
        return (
            f"receiver.tls.certificate: {files.certificate} is too weak ({words(reason)}): get one with RSA of "
            "at least 2048 bits or P-256, signed with SHA-256"
        )
    return f"receiver.tls.key: {files.key} cannot be used ({words(reason)}): copy it again from where it was made"


def load_authorities(context: ssl.SSLContext, path: Path) -> None:
    """Load whom to trust, and check for revocation where the file says who is revoked."""
    _read_certificates(path, "receiver.tls.ca")
    context.load_verify_locations(path)
    if context.cert_store_stats()["crl"]:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _read_certificates(path: Path, setting: str) -> str:
    """The first certificate of a file all of whose certificates OpenSSL can read."""
    text = _read(path, setting)
    first = _PEM_CERTIFICATE.search(text)
    if first is None:
        hint = "; it holds a private key: are two files swapped?" if "PRIVATE KEY-----" in text else ""
        raise ConfigurationError(
            f"{setting}: {path} holds no certificate in PEM form{hint or _PEM_FROM_DER.format(path.name)}"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"{setting}: {path} is damaged ({words(error.reason)}): copy it again from where it was made"
        ) from None
    return first[0]


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="latin-1")
    except FileNotFoundError:
        raise ConfigurationError(
            f"{setting}: {path} does not exist: name the file, or put it there"
        ) from None
    except PermissionError:
        raise ConfigurationError(
            f"{setting}: {path} cannot be read by the user of this process: give it to that user, or to its group"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{setting}: {path} cannot be read: {error.strerror}") from None


def _not_after(der: bytes) -> datetime:
    """Validity, notAfter (RFC 5280 section 4.1). OpenSSL has read the certificate before, so it is well-formed.

    `ssl` tells the date of a peer's certificate and of an authority's, but not of one's own.
    """
    at = _element(der, _element(der, 0)[1])[1]  # Certificate, TBSCertificate
    if _element(der, at)[0] == _VERSION:
        at = _element(der, at)[2]
    for _ in ("serialNumber", "signature", "issuer"):
        at = _element(der, at)[2]
    not_before_ends = _element(der, _element(der, at)[1])[2]
    tag, start, end = _element(der, not_before_ends)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year, from 1950 to 2049
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, begin and end of the content of the DER element at an offset (X.690 section 8.1)."""
    tag, length, begin = der[at], der[at + 1], at + 2
    if length > 0x7F:
        size = length - 0x80
        length, begin = int.from_bytes(der[begin : begin + size], "big"), begin + size
    return tag, begin, begin + length
