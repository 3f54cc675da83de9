"""DICOM over TLS: contexts, the handshake, and what a peer's certificate says of it.

Profile: PS3.15 B.12, "BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile". TLS 1.2 and 1.3, both
sides show a certificate, and every cipher suite has forward secrecy and authenticated encryption.
docs/decisions/0010-dicom-tls.md says why, and why not B.13.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import logging
import re
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from typing import Any, Final, cast

from ich_node.errors import ConfigurationError
from ich_node.receive.tls_files import TlsFiles, expires_at, load_authorities, load_own
from ich_node.receive.tls_reasons import reason_of

__all__ = [
    "TLS_1_2_CIPHER_SUITES",
    "ServerIdentity",
    "TlsFiles",
    "TlsRefused",
    "certificate_carries",
    "client_context",
    "expires_at",
    "handshake",
    "server_context",
]

_LOG = logging.getLogger(__name__)

TLS_1_2_CIPHER_SUITES: Final = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
"""By their OpenSSL names, in the node's order of preference: those that RFC 9325 section 4.2 recommends, and
ChaCha20 for devices without AES in hardware. DHE is absent because RFC 9325 section 4.1 advises against it.
For TLS 1.3 the three suites that OpenSSL offers by default stand."""

_SECURITY_LEVEL = "@SECLEVEL=2"
"""112 bits: RSA of 2048 bits or more, elliptic curves of 224 or more, no SHA-1 signatures; said here because
the distribution's own level may be lower."""

_HANDSHAKES_PER_CONTEXT = 256
_ALERT_LINGER_S = 1.0
_ALERT_LINGER_BYTES = 2**20
_A_ASSOCIATE_RQ = 0x01
"""First byte of the PDU that opens an association (PS3.8 9.3.2); a TLS record begins with 0x14 to 0x18."""


class TlsRefused(Exception):
    """A handshake that came to no secured connection. The connection is closed.

    Parameters
    ----------
    reason
        For a log line: what was wrong, without anything that the peer sent.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Make the context for connections that peers open.

    An expired certificate is logged and used all the same: many modalities do not look at the date, and a node
    that starts takes their images.

    Raises
    ------
    ConfigurationError
        A file is missing, cannot be read, is not what it should be, or key and certificate do not belong
        together; the message names the setting and the file and says what to do.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    if (expires := expires_at(files.certificate)) <= datetime.now(UTC):
        _LOG.error("receiver.tls.certificate expired on %s: peers may refuse it", f"{expires:%Y-%m-%d}")
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Make the context for connections that this node opens to a peer.

    The peer's certificate must come from one of the authorities, but no host name is checked: certificates of
    modalities and PACS seldom carry the address that they are called at. Ask `certificate_carries` before
    anything is sent.

    Raises
    ------
    ConfigurationError
        As `server_context`.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)


class ServerIdentity:
    """The server's context, made anew when one of its files changes, so that renewing needs no restart.

    It is also made anew after some handshakes: OpenSSL keeps 12 KiB of each TLS 1.2 session for two hours, for
    a resumption that no modality asks for, up to 20,480 sessions, and Python has no switch for that.

    Parameters
    ----------
    files
        Read now, and whenever they have changed.

    Raises
    ------
    ConfigurationError
        As `server_context`.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = files.stamps()
        self._context = server_context(files)
        self._handed_out = 0
        self._lock = threading.Lock()

    def context(self) -> ssl.SSLContext:
        """Give the context for one handshake. From any thread.

        Files that have changed and cannot be used are logged, and the context from before goes on.
        """
        with self._lock:
            stamps = self._files.stamps()
            if stamps != self._stamps or self._handed_out >= _HANDSHAKES_PER_CONTEXT:
                self._stamps, self._handed_out = stamps, 0
                try:
                    self._context = server_context(self._files)
                except ConfigurationError as error:
                    _LOG.error("TLS goes on with what was read before: %s", error)
            self._handed_out += 1
            return self._context


def handshake(connection: socket.socket, context: ssl.SSLContext, *, deadline_s: float) -> ssl.SSLSocket:
    """Secure a connection. Blocks: call it in the connection's own thread, never where others are accepted.

    Parameters
    ----------
    connection
        Connected, nothing read from it yet. It is used up: after the call only the returned socket may be used,
        and after a refusal there is nothing left to close.
    context
        Of `server_context` or `client_context`, which also decides who speaks first.
    deadline_s
        For the whole handshake, in seconds, however often the peer sends a byte.

    Returns
    -------
    ssl.SSLSocket
        In blocking mode; the peer has shown a certificate of a known authority. As a client of a TLS 1.3
        server, that the server accepts ours is known only after the first bytes it sends.

    Raises
    ------
    TlsRefused
        With the reason.
    """
    ends_at = time.monotonic() + deadline_s
    server_side = context.protocol is ssl.PROTOCOL_TLS_SERVER
    current = connection
    try:
        if server_side:
            _expect_tls(current, ends_at)
        current = context.wrap_socket(current, server_side=server_side, do_handshake_on_connect=False)
        # Python takes the timeout of a handshake as one for all of it, not for each read.
        current.settimeout(_left(ends_at))
        current.do_handshake()
        current.settimeout(None)
    except TlsRefused:
        current.close()
        raise
    except OSError as error:
        _close_after_alert(current, ends_at)
        raise TlsRefused(reason_of(error)) from None
    except BaseException:
        current.close()
        raise
    return current


def certificate_carries(connection: ssl.SSLSocket, expected: str) -> bool:
    """Whether the peer's certificate is the one that it is bound to.

    Parameters
    ----------
    connection
        After the handshake.
    expected
        The SHA-256 fingerprint of the certificate, 64 hexadecimal digits with or without colons; or the whole
        of one subjectAltName: a DNS name (in any case), an IP address, a URI or an e-mail address. Wildcards
        stand for nothing but themselves.

    Notes
    -----
    The common name counts only in a certificate that has no such subjectAltName and one common name (RFC 6125
    section 6.4.4; RFC 9525 drops it, but the certificates of many modalities have nothing else).
    """
    wanted = expected.strip()
    if fingerprint := _FINGERPRINT.fullmatch(wanted):
        shown = connection.getpeercert(binary_form=True) or b""
        return hashlib.sha256(shown).hexdigest() == fingerprint[1].replace(":", "").lower()
    certificate = cast(dict[str, Any], connection.getpeercert() or {})
    names = [name for name in certificate.get("subjectAltName", ()) if name[0] in _NAME_KINDS]
    if names:
        return any(_is_same_name(kind, name, wanted) for kind, name in names)
    common_names = [
        value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"
    ]
    return len(common_names) == 1 and common_names[0].casefold() == wanted.casefold()


def _context(protocol: ssl._SSLMethod, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join((*TLS_1_2_CIPHER_SUITES, _SECURITY_LEVEL)))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    # No tickets: RFC 9325 section 3.4 wants their keys changed, which Python cannot do, and an association is
    # long enough to pay for a whole handshake, which looks at the peer's certificate every time.
    context.options |= (
        ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    if protocol is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    # Whatever stands in the file is trusted: an issuing authority without its root, or one device's
    # self-signed certificate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    load_own(context, files)
    load_authorities(context, files.ca)
    return context


# The handshake


def _left(ends_at: float) -> float:
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _expect_tls(connection: socket.socket, ends_at: float) -> None:
    connection.settimeout(_left(ends_at))
    try:
        first = connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        raise TlsRefused("timed out: the peer connected and said nothing") from None
    if not first:
        raise TlsRefused("the peer closed the connection without a word")
    if first[0] == _A_ASSOCIATE_RQ:
        raise TlsRefused("not TLS: a plain DICOM association request arrived on the TLS port")


def _close_after_alert(connection: socket.socket, ends_at: float) -> None:
    """Close so that the alert, which tells the peer's administrator what is wrong, is not lost.

    Closing a socket from which not everything was read resets the connection, and that may overtake the alert.
    """
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        ends_at = min(ends_at, time.monotonic() + _ALERT_LINGER_S)
        taken = 0
        while taken < _ALERT_LINGER_BYTES:
            connection.settimeout(_left(ends_at))
            received = len(connection.recv(65536))
            if not received:
                break
            taken += received
    connection.close()


# The peer's certificate

_FINGERPRINT = re.compile(
    r"(?:sha-?256(?: fingerprint)?[=:]\s*)?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE
)
"""As it is usually written, and as ``openssl x509 -fingerprint -sha256`` prints it."""
_NAME_KINDS = ("DNS", "IP Address", "URI", "email")


def _is_same_name(kind: str, shown: str, wanted: str) -> bool:
    if kind == "DNS":
        return shown.casefold() == wanted.casefold()
    if kind == "IP Address":
        try:
            return ipaddress.ip_address(shown.strip()) == ipaddress.ip_address(wanted)
        except ValueError:
            return False
    return shown == wanted
