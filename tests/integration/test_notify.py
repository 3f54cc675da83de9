"""Notices to real receivers: HL7 over MLLP, HTTPS, a mail server; and to some that behave badly."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from email.policy import default as default_policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hl7
import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session

from ich_node.client_tls import ClientTls
from ich_node.notify.hl7 import Hl7Header, message_control_id, oru_r01
from ich_node.notify.mail import MailRelay, mail_message, send_mail
from ich_node.notify.mllp import MllpDestination, MllpTimeouts, send_oru
from ich_node.notify.notice import Disclosure, Notice, notice_from_json
from ich_node.notify.outcome import NoticeOutcome, NoticeResult
from ich_node.notify.webhook import WebhookEndpoint, post_notice
from tests.notice_builders import IDENTIFYING, KEY, not_read, notice

HOST = "localhost"
WAIT_S = 20.0
SHORT_S = 0.5
SLACK_S = 8.0
"""Something that ends after SHORT_S has ended so long after it, on a busy machine."""
SECRET = b"a secret of the two"
HEADER = Hl7Header(receiving_application="RIS")
SENT, REFUSED, TRANSIENT = NoticeResult.SENT, NoticeResult.REFUSED, NoticeResult.TRANSIENT


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and what a server of it and its clients need."""

    server: ssl.SSLContext
    trust: ClientTls


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ca = trustme.CA()
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(HOST).configure_cert(context)
    return Authority(context, ClientTls(ca=file))


@contextmanager
def server_of(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Answer each connection with `serve`, until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(WAIT_S)
                    if over.is_set():
                        return
                    # The client has gone, or does not want our certificate.
                    with suppress(OSError):
                        serve(connection)

        over = threading.Event()
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            over.set()
            socket.create_connection(listening.getsockname()).close()
            thread.join(WAIT_S)
            assert not thread.is_alive()


def wait_for_the_end(connection: socket.socket) -> None:
    """Until the client closes the connection."""
    while connection.recv(4096):
        pass


def dribble(connection: socket.socket, piece: bytes) -> None:
    """Send a piece again and again, until the client has gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    gone = threading.Event()
    while not gone.wait(0.02):
        connection.sendall(piece)


def flood(connection: socket.socket, first: bytes, piece: bytes) -> None:
    connection.sendall(first)
    while True:
        connection.sendall(piece)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# HL7


def block_of(connection: socket.socket) -> str:
    """One MLLP block, read to its last byte."""
    received = b""
    while not received.endswith(b"\x1c\r"):
        piece = connection.recv(4096)
        if not piece:
            raise ConnectionError
        received += piece
    assert received.startswith(b"\x0b")
    return received[1:-2].decode()


@contextmanager
def hl7_receiver(
    answer: Callable[[hl7.Message], str], *, context: ssl.SSLContext | None = None
) -> Iterator[tuple[int, list[hl7.Message]]]:
    """A receiver that reads with python-hl7 and answers as it is told."""
    messages: list[hl7.Message] = []

    def serve(connection: socket.socket) -> None:
        if context is not None:
            with context.wrap_socket(connection, server_side=True) as secured:
                converse(secured)
        else:
            converse(connection)

    def converse(connection: socket.socket) -> None:
        message = hl7.parse(block_of(connection))
        messages.append(message)
        connection.sendall(b"\x0b" + answer(message).encode() + b"\x1c\r")

    with server_of(serve) as port:
        yield port, messages


def accept(message: hl7.Message) -> str:
    return str(message.create_ack("AA"))


def oru_to(port: int, told: Notice | None = None, **changes: Any) -> NoticeOutcome:
    to = replace(MllpDestination(host=HOST, port=port), **changes)
    timeouts = MllpTimeouts(exchange_s=WAIT_S)
    return send_oru(told or notice(), HEADER, to, timeouts=timeouts)


def test_a_receiver_acknowledges_what_it_read() -> None:
    with hl7_receiver(accept) as (port, messages):
        outcome = oru_to(port)
        assert oru_to(port, not_read()).result is SENT
    assert (outcome.result, outcome.detail) == (SENT, "AA")
    first, second = messages
    assert str(first).strip() == oru_r01(notice(), HEADER).strip()
    assert str(first.segment("MSH")[10]) == message_control_id(notice())
    assert str(first.segment("PID")[5]).startswith("Müller^Änne")
    assert "NOT READ" in str(second)


def test_a_repetition_is_the_same_message() -> None:
    with hl7_receiver(accept) as (port, messages):
        for _ in range(2):
            assert oru_to(port).result is SENT
    assert str(messages[0]) == str(messages[1])


def test_a_receiver_with_tls(authority: Authority) -> None:
    with hl7_receiver(accept, context=authority.server) as (port, messages):
        assert oru_to(port, trust=authority.trust).result is SENT
        stranger = oru_to(port, trust=ClientTls())
        elsewhere = oru_to(port, trust=authority.trust, host="127.0.0.1")
        absent = oru_to(port, trust=ClientTls(ca=Path("absent.pem")))
    assert (stranger.result, elsewhere.result, absent.result) == (TRANSIENT,) * 3
    assert "verify failed" in stranger.detail.lower()
    assert "absent.pem" in absent.detail
    assert len(messages) == 1


MSH = "MSH|^~\\&|RIS||ICH_NODE||20240101||ACK^R01^ACK|9|P|2.5.1\r"


@pytest.mark.parametrize(
    ("answer", "result", "words"),
    [
        ("MSA|CA|{id}\r", SENT, "CA"),
        ("MSA|AA|{id}|thank you\r", SENT, "AA thank you"),
        ("MSA|AE|{id}|queue is full\r", TRANSIENT, "AE queue is full"),
        ("MSA|CE|{id}\r", TRANSIENT, "CE"),
        ("MSA|AR|{id}|not from you\r", REFUSED, "AR not from you"),
        ("MSA|CR|{id}\r", REFUSED, "CR"),
        ("MSA|AE|{id}\rERR||OBR^1^4|103^Table value not found\r", REFUSED, "Table value not found"),
        ("MSA|AR|{id}\rERR|||207^Application internal error|E\r", TRANSIENT, "internal error"),
        ("MSA|AE|{id}|||204^Unknown key identifier\r", TRANSIENT, "AE"),
        ("MSA|AA|another\r", TRANSIENT, "another message was acknowledged: AA"),
        ("MSA|AA\r", TRANSIENT, "another message was acknowledged"),
        ("MSA|YES|{id}\r", TRANSIENT, "does not have: YES"),
        ("PID|1\r", TRANSIENT, "without MSA"),
    ],
)
def test_each_acknowledgment_means_something(answer: str, result: NoticeResult, words: str) -> None:
    def say(message: hl7.Message) -> str:
        return MSH + answer.format(id=str(message.segment("MSH")[10]))

    with hl7_receiver(say) as (port, _):
        outcome = oru_to(port)
    assert outcome.result is result
    assert words in outcome.detail


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection"),
        (b"\x0bMSH|^~", "closed the connection within it"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak MLLP"),
        (b"\x0b\x15\x1c\r", "no HL7 message"),
        (b"\x0b\xff\xfe\x00\x1c\r", "no HL7 message"),
    ],
)
def test_what_is_no_acknowledgment_is_none(answer: bytes, words: str) -> None:
    def serve(connection: socket.socket) -> None:
        block_of(connection)
        connection.sendall(answer)

    with server_of(serve) as port:
        outcome = oru_to(port)
    assert outcome.result is TRANSIENT
    assert words in outcome.detail


@pytest.mark.parametrize("piece", [b"", b"x"], ids=["silent", "dribbling"])
def test_a_slow_hl7_receiver_is_not_waited_for(piece: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        block_of(connection)
        connection.sendall(b"\x0b")
        dribble(connection, piece) if piece else wait_for_the_end(connection)

    begin = time.monotonic()
    with server_of(serve) as port:
        to = MllpDestination(host=HOST, port=port)
        outcome = send_oru(notice(), HEADER, to, timeouts=MllpTimeouts(exchange_s=SHORT_S))
        seconds = time.monotonic() - begin
    assert outcome.result is TRANSIENT
    assert "did not acknowledge in time" in outcome.detail
    assert SHORT_S <= seconds < SHORT_S + SLACK_S


def test_an_endless_acknowledgment_is_cut_off() -> None:
    def serve(connection: socket.socket) -> None:
        block_of(connection)
        flood(connection, b"\x0b", b"x" * 65536)

    with server_of(serve) as port:
        outcome = oru_to(port)
    assert (outcome.result, "more than 65536 bytes" in outcome.detail) == (TRANSIENT, True)


def test_nobody_there_is_worth_another_attempt(authority: Authority) -> None:
    port = free_port()
    endpoint = WebhookEndpoint(url=f"https://{HOST}:{port}/", secret=SECRET, trust=authority.trust)
    for outcome in (
        oru_to(port),
        oru_to(port, host="ris.invalid"),
        post_notice(notice(), endpoint),
        post_notice(notice(), replace(endpoint, url="https://web.invalid/")),
        send_mail(notice(), relay_at(port, security="none")),
        send_mail(notice(), relay_at(port, security="none", host="mail.invalid")),
    ):
        assert outcome.result is TRANSIENT
        assert outcome.detail


# webhook


@dataclass
class Web:
    """What a web server of a test got, and what it says."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def web_server(web: Web, authority: Authority) -> Iterator[WebhookEndpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            web.got.append((self.path, dict(self.headers), body))
            self.send_response(web.status)
            for name, value in web.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(web.body)))
            self.end_headers()
            self.wfile.write(web.body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # clients that do not want our certificate

    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = authority.server.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield WebhookEndpoint(
                url=f"https://{HOST}:{server.server_address[1]}/hook/token-in-path?key=token-in-query",
                secret=SECRET,
                trust=authority.trust,
                timeout_s=WAIT_S,
            )
        finally:
            server.shutdown()
            thread.join(WAIT_S)


def test_a_web_server_gets_a_notice_that_it_can_check(authority: Authority) -> None:
    web = Web(status=202)
    told = notice().disclosing(Disclosure.PSEUDONYM, key=KEY)
    with web_server(web, authority) as endpoint:
        outcome = post_notice(told, endpoint, clock=lambda: 1_700_000_000.9)
    assert (outcome.result, outcome.detail) == (SENT, "HTTP 202 Accepted")
    ((path, headers, body),) = web.got
    assert path == "/hook/token-in-path?key=token-in-query"
    assert notice_from_json(body.decode()) == told
    assert not any(value in json.dumps(json.loads(body), ensure_ascii=False) for value in IDENTIFYING)
    assert headers["Content-Type"] == "application/json"
    assert headers["Idempotency-Key"] == told.notice_id
    stamp, mark = headers["X-ICH-Node-Signature"].split(",")
    expected = hmac.new(SECRET, b"1700000000." + body, hashlib.sha256).hexdigest()
    assert (stamp, mark) == ("t=1700000000", f"v1={expected}")


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (204, SENT),
        (301, REFUSED),
        (307, REFUSED),
        (400, REFUSED),
        (401, REFUSED),
        (404, REFUSED),
        (410, REFUSED),
        (408, TRANSIENT),
        (425, TRANSIENT),
        (429, TRANSIENT),
        (500, TRANSIENT),
        (503, TRANSIENT),
    ],
)
def test_each_status_means_something(authority: Authority, status: int, result: NoticeResult) -> None:
    web = Web(status=status, headers={"Retry-After": "17", "Location": "/elsewhere"})
    web.body = b"" if status == 204 else b"because of\r\nthe moon"
    with web_server(web, authority) as endpoint:
        outcome = post_notice(notice(), endpoint)
    assert outcome.result is result
    assert outcome.detail.startswith(f"HTTP {status} ")
    assert len(web.got) == 1, "redirects are not followed"
    if result is not SENT:
        assert outcome.detail.endswith(": because of the moon")
        assert outcome.retry_after_s == 17.0


def test_no_secret_is_shown_even_where_the_server_echoes_it(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    web = Web(status=400)
    with web_server(web, authority) as endpoint:
        web.body = (
            f"{endpoint.url} /hook/token-in-path?key=token-in-query {SECRET.decode()}".encode() + b"\0" * 9000
        )
        outcome = post_notice(notice(), endpoint)
    for shown in (outcome.detail, caplog.text, repr(endpoint)):
        assert "token" not in shown
        assert SECRET.decode() not in shown
    assert len(outcome.detail) <= 200


def test_a_damaged_header_does_not_bring_the_url_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def serve(connection: socket.socket) -> None:
        received = connection.recv(65536)
        while not received.endswith(b"}"):
            received += connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: 1\r\nno header\r\nContent-Length: 0\r\n\r\n")

    with server_of(serve) as port:
        url = f"http://{HOST}:{port}/token-in-path"
        endpoint = WebhookEndpoint(url=url, secret=SECRET, plain_http_allowed=True, timeout_s=WAIT_S)
        assert post_notice(notice(), endpoint).result is SENT
    assert "token" not in caplog.text


def test_a_path_goes_out_percent_encoded_and_is_hidden_in_both_forms(authority: Authority) -> None:
    web = Web(status=400)
    with web_server(web, authority) as endpoint:
        spoken = replace(endpoint, url=endpoint.url.replace("/hook/token-in-path", "/schlüssel 1%2F"))
        web.body = f"{spoken.url} /schl%C3%BCssel%201%2F?key=token-in-query".encode()
        outcome = post_notice(notice(), spoken)
    ((path, _, _),) = web.got
    assert path == "/schl%C3%BCssel%201%2F?key=token-in-query"
    assert outcome.detail == "HTTP 400 Bad Request: *** ***"


def test_a_web_server_that_asks_for_weeks_is_left_alone_for_an_hour(authority: Authority) -> None:
    with web_server(Web(status=503, headers={"Retry-After": "2000000"}), authority) as endpoint:
        assert post_notice(notice(), endpoint).retry_after_s == 3600.0


def test_a_web_server_of_a_stranger_gets_nothing(authority: Authority) -> None:
    web = Web()
    with web_server(web, authority) as endpoint:
        outcomes = [
            post_notice(notice(), replace(endpoint, trust=ClientTls(table="[[webhook]]"))),
            post_notice(notice(), replace(endpoint, url=endpoint.url.replace(HOST, "127.0.0.1"))),
            post_notice(
                notice(), replace(endpoint, trust=ClientTls(ca=Path("absent.pem"), table="[[webhook]]"))
            ),
        ]
    assert [outcome.result for outcome in outcomes] == [TRANSIENT] * 3
    assert "unknown authority, that is, of none in [[webhook]] ca" in outcomes[0].detail
    assert "not for the host that is called" in outcomes[1].detail
    assert outcomes[2].detail.startswith("[[webhook]] ca: absent.pem does not exist")
    assert web.got == []


@pytest.mark.parametrize(
    ("first", "piece", "result", "detail"),
    [
        (b"", b"", TRANSIENT, "localhost did not answer in time"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x", TRANSIENT, "localhost did not answer in time"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 4000\r\n\r\n", b"x", TRANSIENT, "HTTP 500 No"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 4000\r\n\r\n", b"x", REFUSED, "HTTP 404 No"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", b"x", SENT, "HTTP 200 OK"),
    ],
    ids=["silent", "dribbling a header", "dribbling an error", "dribbling a refusal", "dribbling success"],
)
def test_a_slow_web_server_is_not_waited_for(
    first: bytes, piece: bytes, result: NoticeResult, detail: str
) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(first)
        dribble(connection, piece) if piece else wait_for_the_end(connection)

    begin = time.monotonic()
    with server_of(serve) as port:
        endpoint = WebhookEndpoint(
            url=f"http://{HOST}:{port}/", secret=SECRET, plain_http_allowed=True, timeout_s=SHORT_S
        )
        outcome = post_notice(notice(), endpoint)
        seconds = time.monotonic() - begin
    assert (outcome.result, outcome.detail.rstrip(": x")) == (result, detail)
    assert seconds < SHORT_S + SLACK_S


def test_a_handshake_that_does_not_come_is_not_waited_for(authority: Authority) -> None:
    begin = time.monotonic()
    with server_of(wait_for_the_end) as port:
        url = f"https://{HOST}:{port}/"
        endpoint = WebhookEndpoint(
            url=url, secret=SECRET, trust=authority.trust, connection_timeout_s=SHORT_S
        )
        outcome = post_notice(notice(), endpoint)
        seconds = time.monotonic() - begin
    assert (outcome.result, "timed out" in outcome.detail) == (TRANSIENT, True)
    assert seconds < SHORT_S + SLACK_S


@pytest.mark.parametrize(
    ("first", "piece", "result"),
    [
        (b"HTTP/1.1 404 No\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536, REFUSED),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536, TRANSIENT),
        (b"SSH-2.0-OpenSSH\r\n", b"", TRANSIENT),
        (b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"", REFUSED),
    ],
    ids=["endless body", "endless header", "no HTTP", "broken body"],
)
def test_a_web_server_that_writes_nonsense(first: bytes, piece: bytes, result: NoticeResult) -> None:
    def serve(connection: socket.socket) -> None:
        received = connection.recv(65536)
        while not received.endswith(b"}"):  # the last byte of a notice
            received += connection.recv(65536)
        flood(connection, first, piece) if piece else connection.sendall(first)

    with server_of(serve) as port:
        url = f"http://{HOST}:{port}/"
        endpoint = WebhookEndpoint(url=url, secret=SECRET, plain_http_allowed=True, timeout_s=WAIT_S)
        outcome = post_notice(notice(), endpoint)
    assert outcome.result is result
    assert len(outcome.detail) <= 200


# mail


class Inbox:
    """What a mail server of a test does with a mail: aiosmtpd calls these."""

    def __init__(self, refused: dict[str, str] | None = None, data_reply: str = "250 taken") -> None:
        self.refused = refused or {}
        self.data_reply = data_reply
        self.mails: list[tuple[list[str], bytes]] = []

    async def handle_RCPT(
        self, _: object, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 fine"

    async def handle_DATA(self, _: object, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        self.mails.append((envelope.rcpt_tos, envelope.content))
        return self.data_reply


def authenticate(_: object, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
    assert isinstance(data, LoginPassword)
    return AuthResult(success=data == LoginPassword(b"node", b"hush hush"), handled=False)


@contextmanager
def mail_server(inbox: Inbox, **arguments: Any) -> Iterator[int]:
    port = free_port()
    controller = Controller(inbox, hostname="127.0.0.1", port=port, server_hostname="test", **arguments)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


def relay_at(port: int, **changes: Any) -> MailRelay:
    values: dict[str, Any] = {
        "host": HOST,
        "port": port,
        "sender": "node@hospital.example",
        "recipients": ("a@x.example", "b@x.example"),
        "connection_timeout_s": WAIT_S,
        "timeout_s": WAIT_S,
    }
    return MailRelay(**values | changes)


def test_a_mail_server_with_starttls_and_login_takes_the_mail(authority: Authority) -> None:
    inbox = Inbox()
    with mail_server(
        inbox,
        tls_context=authority.server,
        require_starttls=True,
        authenticator=authenticate,
        auth_required=True,
    ) as port:
        relay = relay_at(port, trust=authority.trust, user="node", password="hush hush")
        outcome = send_mail(notice(), relay)
        wrong = send_mail(notice(), replace(relay, password="hush"))
        stranger = send_mail(notice(), replace(relay, trust=ClientTls()))
    assert (outcome.result, outcome.detail) == (SENT, f"{HOST} took the mail for 2 recipients")
    ((recipients, content),) = inbox.mails
    assert recipients == ["a@x.example", "b@x.example"]
    mail = message_from_bytes(content, policy=default_policy)
    assert mail["Subject"] == "[ICH AI] STAT: suspected intracranial hemorrhage"
    sent = mail_message(notice(), relay)
    assert mail["Message-ID"] == sent["Message-ID"]
    assert mail.get_content().splitlines() == sent.get_content().splitlines()
    assert (wrong.result, "535" in wrong.detail) == (REFUSED, True)
    assert "hush" not in wrong.detail
    assert (stranger.result, "verify failed" in stranger.detail) == (TRANSIENT, True)


def test_a_mail_server_with_tls_from_the_start(authority: Authority) -> None:
    inbox = Inbox()
    with mail_server(inbox, ssl_context=authority.server) as port:
        relay = relay_at(port, trust=authority.trust, security="tls")
        assert send_mail(notice(), relay).result is SENT
        assert send_mail(notice(), replace(relay, host="127.0.0.1")).result is TRANSIENT
    assert len(inbox.mails) == 1


def test_no_mail_goes_out_in_the_clear_where_tls_is_asked_for() -> None:
    inbox = Inbox()
    with mail_server(inbox) as port:
        outcome = send_mail(notice(), relay_at(port))
        plain = send_mail(notice(), relay_at(port, security="none"))
    assert (outcome.result, "STARTTLS" in outcome.detail) == (REFUSED, True)
    assert plain.result is SENT
    assert len(inbox.mails) == 1


def test_a_mail_server_without_login(authority: Authority) -> None:
    inbox = Inbox()
    with mail_server(inbox, tls_context=authority.server, auth_exclude_mechanism=["LOGIN", "PLAIN"]) as port:
        outcome = send_mail(notice(), relay_at(port, trust=authority.trust, user="node", password="hush"))
    assert outcome.result is REFUSED
    assert inbox.mails == []


@pytest.mark.parametrize(
    ("refused", "result", "mails"),
    [
        ({"a@x.example": "550 nobody here", "b@x.example": "550 nobody here"}, REFUSED, 0),
        ({"a@x.example": "451 greylisted", "b@x.example": "550 nobody here"}, TRANSIENT, 0),
        ({"a@x.example": "550 nobody here"}, REFUSED, 1),
        ({"a@x.example": "451 greylisted"}, TRANSIENT, 1),
    ],
)
def test_refused_recipients_are_named(refused: dict[str, str], result: NoticeResult, mails: int) -> None:
    inbox = Inbox(refused)
    with mail_server(inbox) as port:
        outcome = send_mail(notice(), relay_at(port, security="none"))
    assert outcome.result is result
    assert outcome.detail.startswith(f"not for {len(refused)} of 2 recipients: a@x.example: ")
    assert refused["a@x.example"] in outcome.detail
    assert len(inbox.mails) == mails


@pytest.mark.parametrize(("reply", "result"), [("552 too large", REFUSED), ("452 disk full", TRANSIENT)])
def test_the_refusal_of_a_mail_is_in_the_words_of_the_server(reply: str, result: NoticeResult) -> None:
    with mail_server(Inbox(data_reply=reply)) as port:
        outcome = send_mail(notice(), relay_at(port, security="none"))
    assert (outcome.result, outcome.detail) == (result, f"{HOST}: {reply}")


@pytest.mark.parametrize(
    ("first", "piece", "result"),
    [
        (b"554 go away\r\n", b"", REFUSED),
        (b"421 busy\r\n", b"", TRANSIENT),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", TRANSIENT),
        (b"220 hi\r\n", b"250-more\r\n" * 4096, TRANSIENT),
        (b"220 ", b"x" * 65536, TRANSIENT),
    ],
    ids=["unwelcome", "busy", "no SMTP", "endless reply", "endless line"],
)
def test_a_mail_server_that_writes_nonsense(first: bytes, piece: bytes, result: NoticeResult) -> None:
    def serve(connection: socket.socket) -> None:
        flood(connection, first, piece) if piece else connection.sendall(first)

    with server_of(serve) as port:
        outcome = send_mail(notice(), relay_at(port, security="none"))
    assert outcome.result is result
    assert 0 < len(outcome.detail) <= 200


@pytest.mark.parametrize(
    ("first", "piece"),
    [(b"", b""), (b"220 ", b"x"), (b"220 hi\r\n", b"250-x\r\n")],
    ids=["silent", "dribbling a line", "dribbling lines"],
)
def test_a_slow_mail_server_is_not_waited_for(first: bytes, piece: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(first)
        dribble(connection, piece) if piece else wait_for_the_end(connection)

    begin = time.monotonic()
    with server_of(serve) as port:
        relay = relay_at(port, security="none", connection_timeout_s=SHORT_S, timeout_s=SHORT_S)
        outcome = send_mail(notice(), relay)
        seconds = time.monotonic() - begin
    assert outcome.result is TRANSIENT
    assert seconds < 2 * SHORT_S + SLACK_S


def test_a_mail_server_that_is_lost_after_it_took_the_mail_has_taken_it() -> None:
    replies = {"ehlo": b"250 hi\r\n", "mail": b"250 ok\r\n", "rcpt": b"250 ok\r\n", "data": b"354 go\r\n"}

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"220 hi\r\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                word = line[:4].decode().lower()
                connection.sendall(replies[word])
                if word == "data":
                    while lines.readline() != b".\r\n":
                        pass
                    connection.sendall(b"250 taken\r\n")
                    return

    with server_of(serve) as port:
        outcome = send_mail(notice(), relay_at(port, security="none"))
    assert outcome.result is SENT
