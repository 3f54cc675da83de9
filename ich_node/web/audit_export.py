"""Tells the site's audit repository of accesses, by syslog over TLS (RFC 5425), until it has been told of all."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ich_node.client_tls import ClientTls, PeerCheck
from ich_node.database.access import accesses_were_sent, unsent_accesses
from ich_node.database.engine import Database
from ich_node.errors import ConfigurationError, IchNodeError
from ich_node.web.audit_message import syslog_message
from ich_node.web_settings import AuditSettings

logger = logging.getLogger(__name__)

BATCH = 500
LOOK_EVERY_S, LONGEST_WAIT_S = 1.0, 300.0
_CONNECTION_S, _EXCHANGE_S = 10.0, 30.0
_CLOSED_WITHOUT_ALERT = 0
"""errno of the error that Python raises then."""


class NotTold(Exception):
    """The repository was not told, and why: one line for an administrator."""


class AuditExport:
    """Sends what `access_export` holds, and forgets it when the repository has it.

    Syslog knows no acknowledgement. So each batch has a connection of its own, which ends with the alert that
    closes TLS, in both directions: whoever answers it has taken all that came before it. Where the connection
    ends otherwise the batch is sent again, so that the repository may hear of an access twice, and of none never.
    """

    def __init__(
        self, database: Database, settings: AuditSettings, *, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        self._database = database
        self._settings = settings
        self._look_every_s = look_every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-export", daemon=True)

    def __enter__(self) -> AuditExport:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_CONNECTION_S + _EXCHANGE_S)

    def send_some(self) -> int:
        """Tell of up to `BATCH` accesses, the oldest first; gives how many those were.

        Raises
        ------
        NotTold
        TransientError
            The database did not answer.
        """
        with self._database.reading() as session:
            unsent = unsent_accesses(session, limit=BATCH)
        if not unsent:
            return 0
        self._send([syslog_message(each, self._settings) for each in unsent])
        with self._database.writing() as session:
            accesses_were_sent(session, [each.id for each in unsent])
        return len(unsent)

    def _run(self) -> None:
        wait = self._look_every_s
        is_away = False
        while not self._stop.wait(wait):
            try:
                count = self.send_some()
            except Exception as error:  # the only one who tells: it goes on whatever happens
                if not is_away:
                    logger.error(
                        "the audit repository is not told of accesses, they are kept: %s",
                        error,
                        exc_info=not isinstance(error, (NotTold, IchNodeError)),
                    )
                is_away, wait = True, min(max(wait, 1.0) * 2, LONGEST_WAIT_S)
                continue
            if is_away:
                logger.warning("the audit repository is told of accesses again")
            is_away = False
            wait = 0.0 if count == BATCH else self._look_every_s

    def _send(self, messages: list[bytes]) -> None:
        settings, check = self._settings, PeerCheck()
        trust = ClientTls(
            ca=Path(settings.ca) if settings.ca else None,
            certificate=Path(settings.certificate) if settings.certificate else None,
            key=Path(settings.key) if settings.key else None,
            table="[web.audit]",
        )
        where = f"{settings.host}:{settings.port}"
        try:
            context = trust.context(check)
            with socket.create_connection((settings.host, settings.port), timeout=_CONNECTION_S) as plain:
                plain.settimeout(_EXCHANGE_S)
                with context.wrap_socket(plain, server_hostname=settings.host) as secured:
                    secured.sendall(b"".join(messages))
                    _close(secured)
        except ConfigurationError as error:
            raise NotTold(str(error)) from None
        except (OSError, UnicodeError) as error:  # the latter: of a host name that is none
            late = "timed out" if isinstance(error, TimeoutError) else type(error).__name__
            why = check.refusal or getattr(error, "strerror", None) or late
            raise NotTold(f"{where}: {why}") from None


def _close(secured: ssl.SSLSocket) -> None:
    """Say that no more comes, and wait until the other side says so too."""
    try:
        secured.unwrap()
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        pass  # it has read ours and closed without its own
    except OSError as error:
        if error.errno != _CLOSED_WITHOUT_ALERT or isinstance(error, ssl.SSLError):
            raise


@contextmanager
def exporting_accesses(database: Database, settings: AuditSettings) -> Iterator[None]:
    """Tell the repository from now on, where there is one."""
    if not settings.host:
        yield
        return
    with AuditExport(database, settings):
        yield
