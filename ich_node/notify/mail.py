"""A notice as plain-text mail to people, by a mail relay (RFC 5321) with STARTTLS or TLS."""

from __future__ import annotations

import base64
import contextlib
import smtplib
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from typing import Any, BinaryIO, Literal

from ich_node.client_tls import ClientTls
from ich_node.errors import ConfigurationError
from ich_node.findings import Priority
from ich_node.notify.notice import Notice
from ich_node.notify.outcome import NoticeOutcome, NoticeResult, outcome
from ich_node.notify.wording import headline, identity_lines, result_lines, subject, time_lines

_MAX_REPLY_BYTES = 64 * 1024
"""Of all replies of a relay to one mail."""


@dataclass(frozen=True, kw_only=True)
class MailRelay:
    """The mail server that takes our mail, and from whom to whom.

    Raises
    ------
    ConfigurationError
        An address is none, nobody is to get the mail, a password is not ASCII or would go out in the clear.
    """

    host: str
    port: int = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    trust: ClientTls = field(default_factory=lambda: ClientTls(table="[[mail]]"))
    user: str = ""
    """Empty: without login."""
    password: str = field(default="", repr=False)
    sender: str
    """Address that the mail comes from."""
    recipients: tuple[str, ...]
    helo_name: str | None = None
    """How the node introduces itself; ``None``: by its host name."""
    connection_timeout_s: float = 10.0
    timeout_s: float = 60.0
    """For everything after the connection."""

    def __post_init__(self) -> None:
        if not self.recipients:
            raise ConfigurationError("mail needs at least one recipient")
        for address in (self.sender, *self.recipients):
            try:
                usable = Address(addr_spec=address).domain and address.isascii() and address.isprintable()
            except (HeaderParseError, ValueError, IndexError):
                usable = False
            if not usable:
                raise ConfigurationError(f"{address!r} is not a mail address of the form name@domain")
        if self.user and self.security == "none":
            raise ConfigurationError(
                "a password must not go to a mail server without TLS; use starttls or tls"
            )
        if not (self.user + self.password).isascii():
            raise ConfigurationError("user and password of a mail server may hold ASCII characters only")


def mail_message(notice: Notice, relay: MailRelay) -> EmailMessage:
    """Write a notice as mail: the same notice to the same people is the same bytes.

    The subject never names a patient. Auto-Submitted (RFC 3834) keeps out-of-office replies away.
    """
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"] = relay.sender
    message["To"] = ", ".join(relay.recipients)
    message["Subject"] = subject(notice)
    message["Date"] = format_datetime(notice.happened_at)
    message["Message-ID"] = f"<{notice.notice_id}@{Address(addr_spec=relay.sender).domain}>"
    message["Auto-Submitted"] = "auto-generated"
    if notice.priority is Priority.STAT:
        message["Importance"] = "high"
    parts = ([headline(notice)], identity_lines(notice), time_lines(notice), result_lines(notice))
    text = "\n\n".join("\n".join(_one_line(line) for line in lines) for lines in parts)
    message.set_content(f"{text}\n", cte="quoted-printable")
    return message


def send_mail(notice: Notice, relay: MailRelay) -> NoticeOutcome:
    """Send a notice to all recipients in one mail.

    Returns
    -------
    NoticeOutcome
        ``SENT`` only when the relay took it for all recipients. If it took it for some, the detail says who was
        refused and the result is that of the refusals; another attempt goes to all, with the same Message-ID.
        ``REFUSED`` for 5xx and where the relay offers no STARTTLS or login that is asked for; ``TRANSIENT`` for 4xx,
        a lost connection and no answer in time. Nothing is raised for any of it.
    """
    secrets = tuple(_secrets(relay))
    try:
        with _connection(relay) as client:
            refused = _transmit(client, mail_message(notice, relay), relay)
    except smtplib.SMTPRecipientsRefused as error:
        return _recipients_refused(error.recipients, relay, secrets)
    except smtplib.SMTPResponseException as error:
        said = f"{relay.host}: {error.smtp_code} {_decoded(error.smtp_error)}"
        return outcome(_result(error.smtp_code), said, secrets=secrets)
    except (OSError, ConfigurationError, smtplib.SMTPServerDisconnected) as error:
        # SMTPException is an OSError: those that say what the relay cannot do come here too.
        why = (error.strerror if isinstance(error, OSError) else None) or str(error) or "no answer in time"
        result = NoticeResult.REFUSED if _is_lacking(error) else NoticeResult.TRANSIENT
        return outcome(result, f"mail by {relay.host}:{relay.port} failed: {why}", secrets=secrets)
    except ValueError as error:  # a login's challenge that is no Base64, a name that cannot be looked up
        why = f"mail by {relay.host}:{relay.port} failed: {type(error).__name__}"
        return outcome(NoticeResult.TRANSIENT, why, secrets=secrets)
    if refused:
        return _recipients_refused(refused, relay, secrets)
    return outcome(NoticeResult.SENT, f"{relay.host} took the mail for {len(relay.recipients)} recipients")


def _is_lacking(error: Exception) -> bool:
    """Whether the relay does not offer what the settings ask for."""
    return isinstance(error, smtplib.SMTPException) and not isinstance(error, smtplib.SMTPServerDisconnected)


class _BoundedReplies:
    """Part of a client: all replies together end in time and at a size.

    `smtplib` waits anew for each byte, and reads a reply for as long as its lines say that another follows.
    """

    sock: Any
    file: Any

    def __init__(self, *, ends_at: float, **arguments: Any) -> None:
        self._ends_at = ends_at
        self._bytes_left = _MAX_REPLY_BYTES
        super().__init__(**arguments)

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None:
            self.file = _ReplyLines(self, self.sock.makefile("rb"))
        self.keep_time()
        reply: tuple[int, bytes] = super().getreply()  # type: ignore[misc]
        return reply

    def keep_time(self) -> None:
        """Let the next operation on the socket end in time."""
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        if self.sock is not None:
            self.sock.settimeout(left)

    def take_byte(self) -> None:
        """Count one more byte of replies."""
        self._bytes_left -= 1
        if self._bytes_left < 0:
            raise OSError(f"the server wrote more than {_MAX_REPLY_BYTES} bytes")


class _ReplyLines:
    """The file that `smtplib` reads replies from, byte by byte; they are short."""

    def __init__(self, client: _BoundedReplies, file: BinaryIO) -> None:
        self._client = client
        self._file = file

    def readline(self, limit: int) -> bytes:
        line = bytearray()
        while len(line) < limit and not line.endswith(b"\n"):
            self._client.keep_time()
            byte = self._file.read(1)
            if not byte:
                break
            self._client.take_byte()
            line += byte
        if len(line) >= limit:
            raise OSError("a line of the server's reply has no end")
        return bytes(line)

    def close(self) -> None:
        self._file.close()


class _Client(_BoundedReplies, smtplib.SMTP):
    pass


class _TlsClient(_BoundedReplies, smtplib.SMTP_SSL):
    pass


@contextlib.contextmanager
def _connection(relay: MailRelay) -> Iterator[smtplib.SMTP]:
    arguments: dict[str, Any] = {
        "ends_at": time.monotonic() + relay.connection_timeout_s + relay.timeout_s,
        "host": relay.host,
        "port": relay.port,
        "local_hostname": relay.helo_name or socket.gethostname(),
        "timeout": relay.connection_timeout_s,
    }
    context = None if relay.security == "none" else relay.trust.context()
    client = _TlsClient(context=context, **arguments) if relay.security == "tls" else _Client(**arguments)
    try:
        if relay.security == "starttls":
            client.starttls(context=context)
        yield client
        # The mail is taken by now; what the relay says of the farewell changes nothing.
        with contextlib.suppress(OSError):
            client.quit()
    finally:
        client.close()


def _transmit(client: smtplib.SMTP, message: EmailMessage, relay: MailRelay) -> dict[str, tuple[int, bytes]]:
    if relay.user:
        client.login(relay.user, relay.password)
    return client.sendmail(relay.sender, list(relay.recipients), message.as_bytes())


def _recipients_refused(
    refused: Mapping[str, tuple[int, bytes]], relay: MailRelay, secrets: tuple[str, ...]
) -> NoticeOutcome:
    said = "; ".join(f"{who}: {code} {_decoded(words)}" for who, (code, words) in refused.items())
    results = {_result(code) for code, _ in refused.values()}
    result = NoticeResult.TRANSIENT if NoticeResult.TRANSIENT in results else NoticeResult.REFUSED
    detail = f"not for {len(refused)} of {len(relay.recipients)} recipients: {said}"
    return outcome(result, detail, secrets=secrets)


def _result(code: int) -> NoticeResult:
    return NoticeResult.REFUSED if 500 <= code < 600 else NoticeResult.TRANSIENT


def _secrets(relay: MailRelay) -> Iterator[str]:
    """The password as it is and as the two usual ways of login write it."""
    if relay.password:
        yield relay.password
        for encoded in (relay.password, f"\0{relay.user}\0{relay.password}"):
            yield base64.b64encode(encoded.encode()).decode()


def _decoded(words: bytes | str) -> str:
    return words.decode("utf-8", errors="replace") if isinstance(words, bytes) else words


def _one_line(text: str) -> str:
    return " ".join(text.split())
