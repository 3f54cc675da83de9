"""Why a TLS handshake failed, in words for a log line: nothing in them was sent by the peer."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import MappingProxyType

_UNKNOWN_AUTHORITY = "the certificate is of an unknown authority, that is, of none in receiver.tls.ca"
_TOO_OLD = "protocol too old: TLS 1.2 or 1.3 is needed"
_NOT_TLS = "not TLS"

_VERIFICATION: Mapping[int, str] = MappingProxyType(
    {
        2: _UNKNOWN_AUTHORITY,  # unable to get issuer certificate
        3: "receiver.tls.ca has revocation lists, but none of the authority that signed the certificate",
        9: "the certificate is not valid yet, or a clock is wrong",
        10: "the certificate has expired",
        11: "the revocation list in receiver.tls.ca is not valid yet, or a clock is wrong",
        12: "the revocation list in receiver.tls.ca has expired",
        18: "the certificate is self-signed and not in receiver.tls.ca",
        19: _UNKNOWN_AUTHORITY,  # self-signed certificate in the chain
        20: _UNKNOWN_AUTHORITY,  # unable to get local issuer certificate
        21: _UNKNOWN_AUTHORITY,  # unable to verify the first certificate
        23: "the certificate has been revoked",
        26: "the certificate is not meant for this side of TLS (extended key usage)",
        66: "the certificate's key is too short",
        67: "the authority's key is too short",
        68: "the certificate is signed with a digest that is too weak",
    }
)
"""By OpenSSL's X509_V_ERR numbers."""
_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate was shown",
        "UNSUPPORTED_PROTOCOL": _TOO_OLD,
        "VERSION_TOO_LOW": _TOO_OLD,
        "WRONG_SSL_VERSION": _TOO_OLD,
        "NO_SHARED_CIPHER": "no cipher suite in common",
        "NO_SHARED_SIGNATURE_ALGORITHMS": "no signature algorithm in common",
        "NO_SUITABLE_SIGNATURE_ALGORITHM": "no signature algorithm in common",
        "NO_SUITABLE_KEY_SHARE": "no elliptic curve in common",
        "WRONG_VERSION_NUMBER": _NOT_TLS,
        "UNKNOWN_PROTOCOL": _NOT_TLS,
        "HTTP_REQUEST": f"{_NOT_TLS}: an HTTP request arrived on the TLS port",
        "HTTPS_PROXY_REQUEST": f"{_NOT_TLS}: an HTTP request arrived on the TLS port",
    }
)
_ALERTS: Mapping[str, str] = MappingProxyType(
    {
        "UNKNOWN_CA": "it does not know the authority of receiver.tls.certificate",
        "BAD_CERTIFICATE": "it does not accept receiver.tls.certificate",
        "UNSUPPORTED_CERTIFICATE": "it does not accept receiver.tls.certificate for this purpose",
        "CERTIFICATE_UNKNOWN": "it does not accept receiver.tls.certificate",
        "CERTIFICATE_EXPIRED": "it says that receiver.tls.certificate has expired",
        "CERTIFICATE_REVOKED": "it says that receiver.tls.certificate has been revoked",
        "PROTOCOL_VERSION": "it has no TLS version in common with this node",
    }
)


def reason_of(error: OSError) -> str:
    """One sentence for what `ssl` or the socket raised during a handshake."""
    if isinstance(error, TimeoutError):
        return "timed out: the handshake did not come to its end"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFICATION.get(error.verify_code) or f"the certificate is not valid: {error.verify_message}"
    closed = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    # Without a library it is the socket's fault: the peer was gone before TLS began.
    if isinstance(error, ssl.SSLError) and error.library and not closed:
        reason = error.reason or ""
        if "_ALERT_" in reason:
            return f"the peer refused what this node showed: {_alert(reason)}"
        return _FAULTS.get(reason) or f"the handshake failed: {words(reason)}"
    return "the peer closed the connection during the handshake"


def _alert(reason: str) -> str:
    alert = reason.partition("_ALERT_")[2]
    return _ALERTS.get(alert) or f"alert {words(alert)}"


def words(reason: str | None) -> str:
    """An OpenSSL reason or alert such as ``EE_KEY_TOO_SMALL`` in small letters."""
    return (reason or "no reason given").lower().replace("_", " ")
