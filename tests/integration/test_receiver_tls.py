"""DICOM over TLS with real peers: OpenSSL by way of `ssl`, DCMTK, and sockets that behave badly."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from ich_node.receive import tls, tls_reasons
from ich_node.receive.tls import (
    TLS_1_2_CIPHER_SUITES,
    ServerIdentity,
    TlsFiles,
    TlsRefused,
    certificate_carries,
    client_context,
    handshake,
    server_context,
)
from tests.certificates import Authority

HOST = "127.0.0.1"
WAIT_S = 30.0
LONG_S = 20.0
SHORT_S = 2.0
SLACK_S = 5.0
"""A handshake with a deadline ends so long after it at the latest, on a busy machine."""
A_ASSOCIATE_RQ = bytes.fromhex("0100000000cd")
UNKNOWN_AUTHORITY = "the certificate is of an unknown authority, that is, of none in receiver.tls.ca"
OVERDUE = "timed out: the handshake did not come to its end"
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a handshake of the server ended."""

    refusal: str
    seconds: float
    version: str = ""
    suite: str = ""
    timeout_s: float | None = None
    names_ct: bool = False
    first: bytes = b""


@dataclass
class Echo:
    """Accepts connections, makes the handshake of each in a thread of its own, and sends back what comes."""

    identity: ServerIdentity
    deadline_s: float
    listening: socket.socket = field(default_factory=lambda: socket.create_server((HOST, 0)))
    outcomes: list[Outcome] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        began = time.monotonic()
        try:
            secured = handshake(connection, self.identity.context(), deadline_s=self.deadline_s)
        except TlsRefused as refused:
            self._note(Outcome(refusal=refused.reason, seconds=time.monotonic() - began))
            return
        seconds = time.monotonic() - began
        with secured:
            timeout_s = secured.gettimeout()
            secured.settimeout(WAIT_S)
            first = secured.recv(6)
            suite = secured.cipher()
            self._note(
                Outcome(
                    refusal="",
                    seconds=seconds,
                    version=secured.version() or "",
                    suite=suite[0] if suite else "",
                    timeout_s=timeout_s,
                    names_ct=certificate_carries(secured, "ct.example"),
                    first=first,
                )
            )
            with contextlib.suppress(OSError):  # a DICOM peer does not wait for its own request
                while first:
                    secured.sendall(first)
                    first = secured.recv(65536)

    def _note(self, outcome: Outcome) -> None:
        with self.changed:
            self.outcomes.append(outcome)
            self.changed.notify_all()

    def wait(self, count: int = 1) -> Outcome:
        """The last outcome, when there are so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.outcomes) >= count, WAIT_S)
            return self.outcomes[-1]

    def connect(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), WAIT_S)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def node(authority: Authority) -> TlsFiles:
    return authority.issue("node.example")


@pytest.fixture(scope="module")
def ct(authority: Authority) -> TlsFiles:
    return authority.issue("ct.example")


OpenEcho = Callable[..., Echo]


@pytest.fixture
def open_echo(node: TlsFiles) -> Iterator[OpenEcho]:
    opened: list[tuple[Echo, threading.Thread]] = []

    def start(files: TlsFiles = node, deadline_s: float = LONG_S) -> Echo:
        echo = Echo(ServerIdentity(files), deadline_s)
        thread = threading.Thread(target=echo.accept, daemon=True)
        thread.start()
        opened.append((echo, thread))
        return echo

    yield start
    for echo, thread in opened:
        echo.listening.shutdown(socket.SHUT_RDWR)
        echo.listening.close()
        thread.join(WAIT_S)


def any_client(files: TlsFiles | None = None) -> ssl.SSLContext:
    """A client that takes any server and may be told anything: no profile."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if files:
        context.load_cert_chain(files.certificate, files.key)
    return context


def exchange(echo: Echo, context: ssl.SSLContext, sent: bytes = b"hello") -> bytes:
    """Send and read the echo."""
    with context.wrap_socket(echo.connect()) as connection:
        connection.sendall(sent)
        return connection.recv(65536)


def refused_exchange(echo: Echo, context: ssl.SSLContext) -> str:
    """What OpenSSL tells the client, in the handshake or (TLS 1.3) with the first bytes read."""
    with pytest.raises(ssl.SSLError) as raised:
        exchange(echo, context)
    return raised.value.reason or ""


# Those who are let in


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_both_versions_and_both_sides_of_the_module(
    open_echo: OpenEcho, ct: TlsFiles, version: ssl.TLSVersion
) -> None:
    echo = open_echo()
    context = client_context(ct)
    context.maximum_version = version
    with handshake(echo.connect(), context, deadline_s=LONG_S) as connection:
        assert connection.gettimeout() is None
        assert certificate_carries(connection, "node.example")
        assert not certificate_carries(connection, "ct.example")
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
    outcome = echo.wait()
    assert outcome.version == version.name.replace("_", ".")
    assert outcome.timeout_s is None
    assert outcome.names_ct


@pytest.mark.parametrize("suite", TLS_1_2_CIPHER_SUITES)
def test_every_suite_of_the_profile(
    open_echo: OpenEcho, authority: Authority, ct: TlsFiles, suite: str
) -> None:
    echo = open_echo(authority.issue("node.example", rsa_key="-RSA-" in suite))
    context = any_client(ct)
    context.maximum_version = TLS_1_2
    context.set_ciphers(suite)
    assert exchange(echo, context) == b"hello"
    assert echo.wait().suite == suite


def test_the_server_chooses_the_suite(open_echo: OpenEcho, ct: TlsFiles) -> None:
    echo = open_echo()
    context = any_client(ct)
    context.maximum_version = TLS_1_2
    context.set_ciphers(
        "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384"
    )
    exchange(echo, context)
    assert echo.wait().suite == "ECDHE-ECDSA-AES256-GCM-SHA384"


@pytest.mark.parametrize(
    "suite", ["ECDHE-RSA-AES128-SHA256", "AES128-GCM-SHA256", "DHE-RSA-AES256-GCM-SHA384"]
)
def test_other_suites_are_refused(
    open_echo: OpenEcho, authority: Authority, ct: TlsFiles, suite: str
) -> None:
    echo = open_echo(authority.issue("node.example", rsa_key=True))
    context = any_client(ct)
    context.maximum_version = TLS_1_2
    context.set_ciphers(suite)
    assert refused_exchange(echo, context) == "SSLV3_ALERT_HANDSHAKE_FAILURE"
    assert echo.wait().refusal == "no cipher suite in common"


def test_what_is_in_the_file_is_trusted(open_echo: OpenEcho, authority: Authority, tmp_path: Path) -> None:
    """An issuing authority without its root, and one device's own certificate."""
    issuing = Authority(tmp_path)
    issuing.ca = authority.ca.create_child_ca()
    (tmp_path / "trusted.pem").write_bytes(issuing.ca.cert_pem.bytes())
    echo = open_echo(authority.issue("node.example", trusts=tmp_path / "trusted.pem"))
    device, stranger = issuing.issue("ct.example"), issuing.issue("stranger.example")
    assert exchange(echo, any_client(device)) == b"hello"

    echo = open_echo(authority.issue("node.example", trusts=device.certificate))
    (tmp_path / "leaf.pem").write_text(
        device.certificate.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
    )
    echo = open_echo(authority.issue("node.example", trusts=tmp_path / "leaf.pem"))
    assert exchange(echo, any_client(device)) == b"hello"
    refused_exchange(echo, any_client(stranger))
    assert echo.wait(2).refusal == UNKNOWN_AUTHORITY


def test_no_session_is_resumed(open_echo: OpenEcho, ct: TlsFiles) -> None:
    echo = open_echo()
    context = any_client(ct)
    with context.wrap_socket(echo.connect()) as first:
        first.sendall(b"hello")
        assert first.recv(5) == b"hello"
        session = first.session
    with context.wrap_socket(echo.connect(), session=session) as second:
        second.sendall(b"hello")
        assert second.recv(5) == b"hello"
        assert not second.session_reused
        assert not (second.session and second.session.has_ticket)


# Those who are not


@dataclass(frozen=True, kw_only=True)
class Case:
    """A client's certificate, what the server makes of it, and what the client is told."""

    reason: str
    told: str
    make: Callable[[Authority, Authority], TlsFiles | None]


EXPIRED = "SSLV3_ALERT_CERTIFICATE_EXPIRED"
CASES = {
    "none": Case(
        make=lambda _authority, _other: None,
        reason="no certificate was shown",
        told="TLSV13_ALERT_CERTIFICATE_REQUIRED",
    ),
    "other authority": Case(
        make=lambda _authority, other: other.issue("ct.example"),
        reason=UNKNOWN_AUTHORITY,
        told="TLSV1_ALERT_UNKNOWN_CA",
    ),
    "self-signed": Case(
        make=lambda _authority, other: other.files(
            other.ca.cert_pem.bytes(), other.ca.private_key_pem.bytes()
        ),
        reason="the certificate is self-signed and not in receiver.tls.ca",
        told="TLSV1_ALERT_UNKNOWN_CA",
    ),
    "expired": Case(
        make=lambda authority, _other: authority.issue("ct.example", begins_in_days=-9, days=-1),
        reason="the certificate has expired",
        told=EXPIRED,
    ),
    "not yet valid": Case(
        make=lambda authority, _other: authority.issue("ct.example", begins_in_days=2),
        reason="the certificate is not valid yet, or a clock is wrong",
        told="SSLV3_ALERT_BAD_CERTIFICATE",
    ),
    "of a server": Case(
        make=lambda authority, _other: authority.issue_odd(
            common_names=["ct.example"], usage=ExtendedKeyUsageOID.SERVER_AUTH
        ),
        reason="the certificate is not meant for this side of TLS (extended key usage)",
        told="SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    ),
}


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("name", CASES)
def test_a_certificate_that_is_refused(
    open_echo: OpenEcho, authority: Authority, other: Authority, name: str, version: ssl.TLSVersion
) -> None:
    """The client sends at once after its handshake, as one with an association request does."""
    case, echo = CASES[name], open_echo()
    context = any_client(case.make(authority, other))
    context.maximum_version = version
    told = refused_exchange(echo, context)
    assert echo.wait().refusal == case.reason
    assert told == ("SSLV3_ALERT_HANDSHAKE_FAILURE" if name == "none" and version is TLS_1_2 else case.told)


def test_revocation_lists(open_echo: OpenEcho, authority: Authority, tmp_path: Path) -> None:
    revoked, valid = authority.issue("ct.example"), authority.issue("ct2.example")

    def echo_with(content: bytes) -> Echo:
        (tmp_path / "ca.pem").write_bytes(authority.file.read_bytes() + content)
        return open_echo(authority.issue("node.example", trusts=tmp_path / "ca.pem"))

    echo = echo_with(authority.revocation_list(revoked))
    assert exchange(echo, any_client(valid)) == b"hello"
    assert refused_exchange(echo, any_client(revoked)) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
    assert echo.wait(2).refusal == "the certificate has been revoked"

    echo = echo_with(authority.revocation_list(days=-1))
    refused_exchange(echo, any_client(valid))
    assert echo.wait().refusal == "the revocation list in receiver.tls.ca has expired"

    (tmp_path / "ca.pem").write_bytes(
        authority.file.read_bytes() + Authority(tmp_path / "3").revocation_list()
    )
    echo = open_echo(authority.issue("node.example", trusts=tmp_path / "ca.pem"))
    refused_exchange(echo, any_client(valid))
    assert echo.wait().refusal.startswith("receiver.tls.ca has revocation lists, but none of the authority")


def test_tls_1_1_is_too_old(open_echo: OpenEcho, ct: TlsFiles) -> None:
    echo = open_echo()
    context = any_client(ct)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    assert refused_exchange(echo, context) == "TLSV1_ALERT_PROTOCOL_VERSION"
    assert echo.wait().refusal == "protocol too old: TLS 1.2 or 1.3 is needed"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (A_ASSOCIATE_RQ + bytes(205), "not TLS: a plain DICOM association request arrived on the TLS port"),
        (A_ASSOCIATE_RQ[:1], "not TLS: a plain DICOM association request arrived on the TLS port"),
        (b"GET / HTTP/1.1\r\nHost: node.example\r\n\r\n", "not TLS: an HTTP request arrived on the TLS port"),
        (bytes(range(32, 64)), "not TLS"),
    ],
)
def test_who_does_not_speak_tls_is_told_so(open_echo: OpenEcho, sent: bytes, reason: str) -> None:
    echo = open_echo()
    with echo.connect() as connection:
        connection.sendall(sent)
        assert echo.wait().refusal == reason
        read_to_the_end(connection)


def read_to_the_end(connection: socket.socket) -> None:
    """Return when the peer has closed."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        any_client().wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def test_who_goes_away_is_noticed_at_once(open_echo: OpenEcho) -> None:
    echo = open_echo()
    echo.connect().close()
    assert echo.wait().refusal == "the peer closed the connection without a word"
    for count, end in enumerate((b"", b"\x01\x00\x00\x00\x00\x00\x00\x00"), start=2):
        with echo.connect() as connection:
            connection.sendall(client_hello()[:50])
            if end:  # closes by a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, end)
        outcome = echo.wait(count)
        assert outcome.refusal == "the peer closed the connection during the handshake"
        assert outcome.seconds < LONG_S / 2


def test_silent_and_dripping_peers_are_cut_off_and_hold_up_nobody(open_echo: OpenEcho, ct: TlsFiles) -> None:
    """A byte every 20 ms would keep a timeout of each read alive for ten times the deadline."""
    echo = open_echo(deadline_s=SHORT_S)
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        for byte in client_hello()[:-1]:
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                return
            if stop.wait(0.02):
                return

    with echo.connect() as silent, echo.connect() as half, echo.connect() as dripping:
        assert len(client_hello()) * 0.02 > 3 * SHORT_S
        half.sendall(client_hello()[:100])
        dripper = threading.Thread(target=drip, args=(dripping,))
        dripper.start()
        assert exchange(echo, client_context(ct)) == b"hello"
        assert [outcome.refusal for outcome in echo.outcomes] == [""]
        echo.wait(4)
        for connection in (silent, half, dripping):
            read_to_the_end(connection)
        stop.set()
        dripper.join(WAIT_S)
    refusals = sorted(outcome.refusal for outcome in echo.outcomes[1:])
    assert refusals == [OVERDUE, OVERDUE, "timed out: the peer connected and said nothing"]
    for outcome in echo.outcomes[1:]:
        assert SHORT_S - 0.1 <= outcome.seconds < SHORT_S + SLACK_S


def send_for_ever(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(65536))


def test_a_peer_that_never_stops_sending_after_its_refusal_is_cut_off(
    open_echo: OpenEcho, other: Authority
) -> None:
    echo = open_echo()
    context = any_client(other.issue("ct.example"))
    with context.wrap_socket(echo.connect()) as connection, pytest.raises(OSError):  # noqa: PT011
        send_for_ever(connection)
    outcome = echo.wait()
    assert outcome.refusal == UNKNOWN_AUTHORITY
    assert outcome.seconds < LONG_S / 2


# This node as the client


def test_a_server_of_another_authority_is_refused(
    open_echo: OpenEcho, other: Authority, ct: TlsFiles
) -> None:
    echo = open_echo(other.issue("pacs.example", trusts=ct.ca))
    with pytest.raises(TlsRefused) as refused:
        handshake(echo.connect(), client_context(ct), deadline_s=LONG_S)
    assert refused.value.reason == UNKNOWN_AUTHORITY
    assert echo.wait().refusal == (
        "the peer refused what this node showed: it does not know the authority of receiver.tls.certificate"
    )


def test_a_server_that_says_nothing_is_given_up(ct: TlsFiles) -> None:
    with socket.create_server((HOST, 0)) as silent:
        connection = socket.create_connection(silent.getsockname())
        began = time.monotonic()
        with pytest.raises(TlsRefused) as refused:
            handshake(connection, client_context(ct), deadline_s=0.5)
        assert refused.value.reason == OVERDUE
        assert 0.4 <= time.monotonic() - began < 0.5 + SLACK_S
        assert connection.fileno() == -1


# What a peer is bound to


@pytest.fixture
def shows(node: TlsFiles) -> Iterator[Callable[[TlsFiles], ssl.SSLSocket]]:
    """The server's side of a connection whose client shows a certificate."""
    opened: list[socket.socket] = []

    def show(files: TlsFiles) -> ssl.SSLSocket:
        ours, theirs = socket.socketpair()
        client = threading.Thread(
            target=lambda: opened.append(handshake(theirs, client_context(files), deadline_s=LONG_S))
        )
        client.start()
        secured = handshake(ours, server_context(node), deadline_s=LONG_S)
        client.join(WAIT_S)
        opened.append(secured)
        return secured

    yield show
    for connection in opened:
        connection.close()


Shows = Callable[[TlsFiles], ssl.SSLSocket]


def test_a_fingerprint(shows: Shows, authority: Authority) -> None:
    files = authority.issue("ct.example")
    connection = shows(files)
    digits = hashlib.sha256(ssl.PEM_cert_to_DER_cert(files.certificate.read_text())).hexdigest()
    colons = ":".join(digits[at : at + 2] for at in range(0, 64, 2))
    for written in (digits, digits.upper(), colons, f" {colons.upper()}\n"):
        assert certificate_carries(connection, written)
        assert certificate_carries(connection, f"sha256 Fingerprint={written.strip()}")
    last = "0" if digits[-1] != "0" else "1"
    for wrong in (digits[:-1] + last, digits[:-2], digits + "00", colons[:-1], digits[:40], ""):
        assert not certificate_carries(connection, wrong)


def test_what_looks_like_a_fingerprint_is_no_name(shows: Shows, authority: Authority) -> None:
    name = "ab" * 32
    assert not certificate_carries(shows(authority.issue_odd(common_names=[name])), name)


def test_alternative_names(shows: Shows, authority: Authority) -> None:
    connection = shows(
        authority.issue(
            "ct.example",
            "*.wild.example",
            "192.0.2.17",
            "2001:db8::1",
            "ct@Hospital.example",
            common_name="CT1",
        )
    )
    for name in (
        "ct.example",
        "CT.Example",
        "192.0.2.17",
        "2001:DB8:0::1",
        "ct@Hospital.example",
        "*.wild.example",
    ):
        assert certificate_carries(connection, name), name
    for name in (
        "a.wild.example",
        "ct",
        "example",
        "ct.example.org",
        "192.0.2.170",
        "2001:db8::",
        "CT@hospital.example",
    ):
        assert not certificate_carries(connection, name), name
    # The common name does not count beside them.
    assert not certificate_carries(connection, "CT1")


def test_a_uri(shows: Shows, authority: Authority) -> None:
    connection = shows(authority.issue_odd(common_names=["CT1"], uris=["urn:device:CT1"]))
    assert certificate_carries(connection, "urn:device:CT1")
    assert not certificate_carries(connection, "urn:device:ct1")
    assert not certificate_carries(connection, "CT1")


def test_a_common_name_counts_where_it_is_the_only_one(shows: Shows, authority: Authority) -> None:
    connection = shows(authority.issue_odd(common_names=["CT emergency room"]))
    assert certificate_carries(connection, "ct Emergency room")
    assert not certificate_carries(connection, "CT")
    connection = shows(authority.issue_odd(common_names=["CT1", "CT2"]))
    assert not certificate_carries(connection, "CT1")
    assert not certificate_carries(connection, "CT2")
    assert not certificate_carries(shows(authority.issue_odd()), "")


# DCMTK


def dcmtk(tool: str, echo: Echo, *options: str | Path) -> str:
    """Run a tool that fails in DICOM at the latest, since nobody answers its association request."""
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"{tool} (DCMTK) is not here")
    command = [program, *map(str, options), HOST, str(echo.port)]
    if tool == "storescu":
        command.append(__file__)
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode != 0
    return done.stderr


def with_certificate(files: TlsFiles) -> list[str | Path]:
    return ["+tls", files.key, files.certificate, "+cf", files.ca]


@pytest.mark.parametrize("tool", ["echoscu", "storescu"])
@pytest.mark.parametrize("profile", [(), ("+py",), ("+px",), ("+pz",)])
@pytest.mark.parametrize("rsa_key", [False, True])
def test_dcmtk_negotiates_with_each_of_its_profiles(
    open_echo: OpenEcho, authority: Authority, tool: str, profile: tuple[str, ...], rsa_key: bool
) -> None:
    echo = open_echo(authority.issue("node.example", rsa_key=rsa_key))
    dcmtk(tool, echo, *with_certificate(authority.issue("ct.example", rsa_key=rsa_key)), *profile)
    outcome = echo.wait()
    assert outcome.refusal == ""
    assert outcome.first[:2] == A_ASSOCIATE_RQ[:2]
    assert outcome.names_ct
    # The extended profile of PS3.15 B.11 knows TLS 1.2 only.
    assert outcome.version == ("TLSv1.2" if profile == ("+pz",) else "TLSv1.3")


def test_dcmtk_is_refused_for_what_it_lacks(
    open_echo: OpenEcho, authority: Authority, other: Authority, ct: TlsFiles
) -> None:
    echo = open_echo()
    stranger = other.issue("ct.example", trusts=authority.file)
    for count, (options, reason) in enumerate(
        [
            ([], "not TLS: a plain DICOM association request arrived on the TLS port"),
            (["+tla", "+cf", authority.file], "no certificate was shown"),
            (with_certificate(stranger), UNKNOWN_AUTHORITY),
            ([*with_certificate(ct), "+pa"], "no cipher suite in common"),
            (
                ["+tls", ct.key, ct.certificate],
                "the peer refused what this node showed: it does not know the authority of "
                "receiver.tls.certificate",
            ),
        ],
        start=1,
    ):
        dcmtk("echoscu", echo, *options)
        assert echo.wait(count).refusal == reason


# What the documentation says


DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "tls.md").read_text(encoding="utf-8")


def run_openssl_of_the_document(folder: Path) -> None:
    """Make the files as an administrator does who copies the commands: all of one's own authority last."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not here")
    for block in re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL):
        if "openssl" in block:
            done = subprocess.run(
                ["sh", "-e"],
                input=block,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=WAIT_S,
                check=False,
            )
            assert done.returncode == 0, done.stderr


def test_the_documents_commands_make_certificates_that_work(open_echo: OpenEcho, tmp_path: Path) -> None:
    run_openssl_of_the_document(tmp_path)
    files = TlsFiles(
        certificate=tmp_path / "node.pem", key=tmp_path / "node.key", ca=tmp_path / "imaging-ca.pem"
    )
    assert files.key.stat().st_mode & 0o077 == 0
    echo = open_echo(files)
    with handshake(echo.connect(), client_context(files), deadline_s=LONG_S) as connection:
        assert certificate_carries(connection, "ich-node.hospital.example")
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"


def test_the_document_names_the_suites() -> None:
    def parts(name: str) -> list[str]:
        """Of the names that RFCs and OpenSSL use for the same suite: what both name."""
        words = re.findall(r"[A-Z]+|\d+", name.partition("SHA")[0])
        return [word for word in words if word not in ("TLS", "WITH")]

    named = re.findall(r"`(TLS_ECDHE_\w+)`", DOCUMENT)
    assert [parts(name) for name in named] == [parts(suite) for suite in TLS_1_2_CIPHER_SUITES]


def test_the_document_quotes_what_the_log_says() -> None:
    rows = re.findall(r"^\| (.+?) \| .+ \|$", DOCUMENT.partition("| the log says |")[2], re.MULTILINE)
    sources = "".join(Path(module.__file__ or "").read_text() for module in (tls, tls_reasons))
    quoted = [piece.strip() for row in rows for piece in row.split(";")]
    assert len(quoted) > 8
    assert [piece for piece in quoted if piece not in sources] == []
