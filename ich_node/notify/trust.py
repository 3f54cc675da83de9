"""Whom a sender of notices believes, over HL7, webhook and e-mail; how, says `ich_node.client_tls`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from ich_node.client_tls import PeerCheck, connection_context


@dataclass(frozen=True, kw_only=True)
class TlsTrust:
    """Which certificate authorities are believed, and what the node shows of itself. PEM files throughout."""

    ca_file: Path | None = None
    """Authorities of the receiver's certificate; ``None``: those of the operating system."""
    certificate_file: Path | None = None
    """The node's own certificate with its chain, for receivers that ask for one."""
    key_file: Path | None = None
    """Its key, without a pass phrase; ``None``: in ``certificate_file``."""

    def context(self, check: PeerCheck | None = None, *, table: str = "the setting") -> ssl.SSLContext:
        """Make the context of one connection, which checks the receiver's certificate and name.

        Parameters
        ----------
        check
            Is told when the handshake fails.
        table
            Of the settings, where the files are named: for the words of an error.

        Raises
        ------
        ConfigurationError
            A file is absent, cannot be read, or is not what it should be.
        """
        return connection_context(
            ca=self.ca_file,
            certificate=self.certificate_file,
            key=self.key_file,
            expected="",
            check=check or PeerCheck(),
            table=table,
        )
