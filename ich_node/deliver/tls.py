"""TLS towards a destination, for DICOM and for DICOMweb alike; how, says `ich_node.client_tls`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from ich_node.client_tls import PeerCheck, connection_context

__all__ = ["ClientTls", "PeerCheck", "checking_context"]


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """Whom to trust, and who this node says that it is."""

    ca: Path | None = None
    """PEM file with the authorities that sign the destination's certificate, or with that certificate;
    ``None``: the authorities that the operating system trusts."""
    certificate: Path | None = None
    """PEM file with the node's certificate chain, for a destination that asks for one."""
    key: Path | None = None
    """PEM file with its private key; ``None``: in ``certificate``."""
    expected: str = ""
    """What the destination's certificate must carry: its SHA-256 fingerprint, or a whole subjectAltName.
    Empty: the host that is called, as a browser wants it."""


def checking_context(tls: ClientTls, check: PeerCheck) -> ssl.SSLContext:
    """Make the context of one connection to a destination; ``check`` is told when the handshake fails.

    Raises
    ------
    ConfigurationError
        A file cannot be used; the message names it and says what to do.
    """
    return connection_context(
        ca=tls.ca,
        certificate=tls.certificate,
        key=tls.key,
        expected=tls.expected,
        check=check,
        table="[[pacs]]",
    )
