"""What the receiver admits: sizes, times, UIDs and callers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_UID_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one caller can make this node hold or wait for."""

    max_associations: int = 100
    """Associations open at once; one more is rejected as "local limit exceeded" (PS3.8 table 9-21)."""
    max_associations_per_peer: int = 25
    """Associations open at once from one AE title and address; one more is rejected likewise."""
    max_opening: int = 200
    """Connections that have sent something but are no association yet; one more is closed."""
    max_opening_per_host: int = 150
    """Of those, from one address; one more cuts the oldest of them."""
    max_silent: int = 1000
    """Connections that have not sent anything yet; one more closes the oldest."""
    max_pdu_bytes: int = 131072
    """Maximum Length (PS3.8 D.1) that is offered, and the longest P-DATA-TF PDU that is read."""
    max_object_bytes: int = 2**31
    """The largest object; the association that exceeds it is aborted."""
    max_association_bytes: int = 2**36
    """What one association may bring; further objects are refused as "out of resources"."""
    acse_timeout_s: float = 15.0
    """Wait for the association request after the connection, and for the TLS handshake before it."""
    dimse_timeout_s: float = 30.0
    """Wait for the answer to a request of this node."""
    network_timeout_s: float = 60.0
    """Wait for the next byte from an idle peer."""
    min_bytes_per_second: int = 4096
    """What a peer must send on average over a message that takes longer than 30 s."""


@dataclass(frozen=True, kw_only=True)
class AllowedPeer:
    """A caller that may send: AE title and host must both match."""

    ae_title: str
    host: str
    """IP address that the peer calls from."""
    port: int = 0
    """TCP port on which it answers calls of this node; 0: none."""
    tls: bool = False
    """It must call over TLS."""
    certificate: str = ""
    """What its certificate must carry: SHA-256 fingerprint, subject alternative name or common name."""


def find_peer(peers: Sequence[AllowedPeer], ae_title: str, host: str) -> AllowedPeer | None:
    """Return the listed peer that calls with this AE title from this address."""
    address = plain_address(host)
    return next(
        (p for p in peers if p.ae_title == ae_title.strip() and plain_address(p.host) == address), None
    )


def plain_address(host: str) -> str:
    """An IPv4 caller of a socket that listens on IPv6 shows as ``::ffff:192.0.2.1``."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def is_valid_uid(text: str) -> bool:
    """Whether ``text`` follows PS3.5 section 9.1: at most 64 characters, numbers without leading zeros, dots.

    A UID of one number is refused too: it names a whole arc of ISO 8824, never an object.
    """
    return len(text) <= _UID_LENGTH and _UID.fullmatch(text) is not None
