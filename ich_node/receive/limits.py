"""What the receiver admits: sizes, times, UIDs and callers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_UID_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one caller can make this node hold or wait for."""

    max_associations: int = 20
    """Associations open at once; one more is rejected as "local limit exceeded" (PS3.8 table 9-21)."""
    max_pdu_bytes: int = 131072
    """Maximum Length (PS3.8 D.1) that is offered, and the longest PDU that is read."""
    max_object_bytes: int = 2**30
    """The longest message, so the largest object; the association that exceeds it is aborted."""
    acse_timeout_s: float = 15.0
    """Wait for the association request after the connection, and for the peer to close after a rejection."""
    dimse_timeout_s: float = 30.0
    """Wait for the rest of a message exchange."""
    network_timeout_s: float = 60.0
    """Wait for the next byte from an idle peer."""


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


def is_allowed(peers: Sequence[AllowedPeer], ae_title: str, host: str) -> bool:
    """Whether a caller may open an association; without a list everyone may."""
    return not peers or any(p.ae_title.strip() == ae_title.strip() and p.host == host for p in peers)


def is_valid_uid(text: str) -> bool:
    """Whether ``text`` follows PS3.5 section 9.1: at most 64 characters, numbers without leading zeros, dots.

    A UID of one number is refused too: it names a whole arc of ISO 8824, never an object.
    """
    return len(text) <= _UID_LENGTH and _UID.fullmatch(text) is not None
