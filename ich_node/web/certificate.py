"""https: the context of the web server's connections, which takes a renewed certificate without a restart."""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path
from typing import Any

from ich_node.errors import ConfigurationError
from ich_node.receive.tls import TLS_1_2_CIPHER_SUITES
from ich_node.receive.tls_files import TlsFiles, load_own
from ich_node.web_settings import WebTlsSettings

logger = logging.getLogger(__name__)


class WebCertificate:
    """The certificate as its files hold it now.

    Raises
    ------
    ConfigurationError
        A file cannot be used; the message names it and says what to do.
    """

    def __init__(self, settings: WebTlsSettings) -> None:
        certificate = Path(settings.certificate)
        self._files = TlsFiles(certificate=certificate, key=Path(settings.key), ca=certificate)
        self._lock = threading.Lock()
        self._stamps = self._files.stamps()
        self._current = _context(self._files)

    def context(self) -> ssl.SSLContext:
        """For the listening socket; each handshake goes on with the newest certificate."""
        context = _context(self._files)
        context.sni_callback = self._choose
        return context

    def _choose(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest()

    def _newest(self) -> ssl.SSLContext:
        with self._lock:
            if (stamps := self._files.stamps()) != self._stamps:
                self._stamps = stamps
                try:
                    self._current = _context(self._files)
                except ConfigurationError as error:
                    logger.error("https goes on with the certificate that was read before: %s", error)
            return self._current


def _context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 as RFC 9325 wants it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join((*TLS_1_2_CIPHER_SUITES, "@SECLEVEL=2")))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        load_own(context, files)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("receiver.tls.", "web.tls.")) from None
    return context
