"""TLS towards whoever this node calls: a PACS, a web service, an HL7 receiver, a mail server.

The profile is that of the receiver: PS3.15 B.12, see `ich_node.receive.tls`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ich_node.errors import ConfigurationError
from ich_node.receive.tls import TLS_1_2_CIPHER_SUITES, TlsFiles, certificate_carries
from ich_node.receive.tls_files import load_authorities, load_own
from ich_node.receive.tls_reasons import reason_of

_OTHER_HOST = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL."""
_CIPHERS = ":".join((*TLS_1_2_CIPHER_SUITES, "@SECLEVEL=2"))

_Wording = Callable[[str], str]


@dataclass(kw_only=True)
class PeerCheck:
    """What came of a handshake, for who does not see it happen."""

    refusal: str = ""
    """Why there is no secured connection, for a person; nothing in it was sent by the peer."""


class _OtherCertificate(OSError):
    """The peer has shown a valid certificate, but another one than it should."""


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """Whom to trust, and who this node says that it is. The files are PEM, and read anew for each connection, so that
    renewing a certificate needs no restart.
    """

    ca: Path | None = None
    """The authorities that sign the peer's certificate, or that certificate; ``None``: the authorities that the
    operating system trusts."""
    certificate: Path | None = None
    """The node's certificate chain, for a peer that asks for one."""
    key: Path | None = None
    """Its private key, without a pass phrase; ``None``: in ``certificate``."""
    expected: str = ""
    """What the peer's certificate must carry: its SHA-256 fingerprint, or a whole subjectAltName. Empty: the host that
    is called, as a browser wants it."""
    table: str = "[[pacs]]"
    """Of the settings, where these files are named: for the words of an error."""

    def context(self, check: PeerCheck | None = None) -> ssl.SSLContext:
        """Make the context of one connection, whose handshake ends with a look at the peer's certificate.

        So nothing is sent to a peer that is not the one that is meant, whichever library makes the handshake.

        Parameters
        ----------
        check
            Is told when the handshake fails.

        Raises
        ------
        ConfigurationError
            A file cannot be used; the message names it and says what to do.
        """
        context = _bare_context()
        context.check_hostname = not self.expected
        context.sslsocket_class = _checked_socket(self.expected, check or PeerCheck(), self._worded)
        try:
            if self.certificate is not None:
                files = TlsFiles(
                    certificate=self.certificate, key=self.key or self.certificate, ca=self.certificate
                )
                load_own(context, files)
            if self.ca is None:
                context.load_default_certs()
            else:
                load_authorities(context, self.ca)
        except ConfigurationError as error:
            raise ConfigurationError(self._worded(str(error))) from None
        return context

    def _worded(self, words: str) -> str:
        # The receiver's words for the same faults name the receiver's settings.
        return words.replace("receiver.tls.", f"{self.table} ")


def _bare_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    # A file may hold an issuing authority without its root, or one device's self-signed certificate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _checked_socket(expected: str, check: PeerCheck, worded: _Wording) -> type[ssl.SSLSocket]:
    class CheckedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            try:
                super().do_handshake(block)
                if expected and not certificate_carries(self, expected):
                    raise _OtherCertificate("its certificate is not the one that it is bound to")
            except OSError as error:
                check.refusal = worded(_why(error))
                raise

        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            try:
                return super().read(len, buffer)
            except ssl.SSLError as error:
                # Whether the peer takes our certificate shows here: in TLS 1.3 our side of the handshake ends first.
                if "_ALERT_" in (error.reason or ""):
                    check.refusal = worded(_why(error))
                raise

    return CheckedSocket


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _OTHER_HOST:
        return "its certificate is not for the host that is called"
    if isinstance(error, _OtherCertificate):
        return str(error)
    return reason_of(error)
