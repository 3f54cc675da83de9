"""Certificates for tests: usual ones from trustme, and odd ones that it does not make."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ich_node.receive.tls import TlsFiles

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PASS_PHRASE = b"pass phrase"
DAY = timedelta(days=1)


class Authority:
    """A certificate authority that writes what it issues to a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = trustme.CA()
        self.file = self._written("ca", self.ca.cert_pem.bytes())
        self._count = 0

    def issue(
        self,
        *names: str,
        common_name: str | None = None,
        days: float = 365,
        begins_in_days: float = -1,
        rsa_key: bool = False,
        trusts: Path | None = None,
    ) -> TlsFiles:
        """A certificate for a client and a server; its holder trusts this authority if none is named."""
        now = datetime.now(UTC)
        leaf = self.ca.issue_cert(
            *names,
            common_name=common_name,
            not_before=now + begins_in_days * DAY,
            not_after=now + days * DAY,
            key_type=trustme.KeyType.RSA if rsa_key else trustme.KeyType.ECDSA,
        )
        chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
        return self.files(chain, leaf.private_key_pem.bytes(), trusts)

    def issue_odd(
        self,
        *,
        common_names: Iterable[str] = (),
        uris: Iterable[str] = (),
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        key: PrivateKey | None = None,
        not_after: datetime | None = None,
    ) -> TlsFiles:
        """A certificate with several or no common names, with URIs, for one purpose, of a given key."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(not_after or now + 365 * DAY)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        alternatives = [x509.UniformResourceIdentifier(uri) for uri in uris]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return self.files(certificate.public_bytes(Encoding.PEM), key_bytes(key))

    def revocation_list(self, *revoked: TlsFiles, days: float = 7) -> bytes:
        """A list of what is revoked, as PEM."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - 30 * DAY)
            .next_update(now + days * DAY)
        )
        for files in revoked:
            serial_number = x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial_number).revocation_date(now - DAY)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def files(self, certificate: bytes, key: bytes, trusts: Path | None = None) -> TlsFiles:
        """Write a pair."""
        self._count += 1
        return TlsFiles(
            certificate=self._written(f"{self._count}", certificate),
            key=self._written(f"{self._count}-key", key),
            ca=trusts or self.file,
        )

    @property
    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())

    @property
    def _key(self) -> PrivateKey:
        key = load_pem_private_key(self.ca.private_key_pem.bytes(), password=None)
        assert isinstance(key, PrivateKey)
        return key

    def _written(self, name: str, content: bytes) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.pem"
        path.write_bytes(content)
        return path


def key_bytes(
    key: PrivateKey, *, encrypted: bool = False, form: PrivateFormat = PrivateFormat.PKCS8
) -> bytes:
    """A private key as PEM."""
    protection = BestAvailableEncryption(PASS_PHRASE) if encrypted else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, protection)
