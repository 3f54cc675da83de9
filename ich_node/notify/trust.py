"""Whom a sender of notices believes: the TLS context of HL7, webhook and e-mail."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from ich_node.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class TlsTrust:
    """Which certificate authorities are believed, and what the node shows of itself. PEM files throughout."""

    ca_file: Path | None = None
    """Authorities of the receiver's certificate; ``None``: those of the operating system."""
    certificate_file: Path | None = None
    """The node's own certificate with its chain, for receivers that ask for one."""
    key_file: Path | None = None
    """Its key, without a pass phrase; ``None``: in ``certificate_file``."""

    def context(self) -> ssl.SSLContext:
        """Make a context that checks the receiver's certificate and name, TLS 1.2 or later.

        Raises
        ------
        ConfigurationError
            A file is absent, cannot be read, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate_file is not None:
                # Without this OpenSSL asks the terminal for a pass phrase, and the process stands still.
                context.load_cert_chain(self.certificate_file, self.key_file, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = ", ".join(str(f) for f in (self.ca_file, self.certificate_file, self.key_file) if f)
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigurationError(f"TLS files cannot be used ({files}): {why}") from error
        return context
