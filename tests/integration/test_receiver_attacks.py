"""Attacks on ``ich-node receiver`` from outside: whatever comes, it does not grow, and others are served."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
)

from ich_node.receive.tls import TlsFiles, client_context
from tests.bare_peer import (
    A_ABORT,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_ASSOCIATE_RQ,
    A_RELEASE_RQ,
    COMMAND,
    DATA,
    DEFAULT_CONTEXTS,
    HOST,
    LAST,
    P_DATA_TF,
    STORE_CONTEXT,
    VERIFICATION,
    BarePeer,
    associate_rq,
    p_data,
    pdu,
    pdv,
    store_rq,
)
from tests.certificates import Authority
from tests.integration.conftest import Attacked, tls_settings
from tests.receiver_process import free_port, running_receiver, wait_until
from tests.small_objects import PATIENT_NAME, encoded, saved, small_object

PROMPT_S = 10.0
"""Nobody who behaves waits so long, however busy this machine is; the receiver's own waits are longer."""
FOUR_GIB = 0xFFFFFFFF
FLOOD_BYTES = 32 * 2**20
BY_USER, BY_PROVIDER = 0, 2
EXPLICIT = (str(ExplicitVRLittleEndian),)


def assert_aborted(peer: BarePeer) -> None:
    """The receiver aborts with the source that PS3.8 gives (AA-1, AA-8), and the connection ends."""
    kind, body = peer.answer()
    assert kind == A_ABORT, (kind, body)
    assert body[2] == (BY_PROVIDER if peer.is_associated else BY_USER)
    assert peer.answer()[0] == 0


def assert_given_up(peer: BarePeer) -> None:
    """The connection ends; the A-ABORT may be lost when more was sent than anybody reads."""
    kind = peer.answer()[0]
    assert kind in (0, A_ABORT)
    assert kind == 0 or peer.answer()[0] == 0


def dcmtk(name: str, port: int, *arguments: str | Path, options: tuple[str | Path, ...] = ()) -> list[str]:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"DCMTK's {name} is not installed")
    return [str(part) for part in (program, "-aec", "ICH_NODE", *options, HOST, str(port), *arguments)]


def run(command: list[str], *, timeout_s: float = 60.0) -> float:
    """Run a program that must succeed; gives how long it took, in seconds."""
    began = time.monotonic()
    environ = {**os.environ, "TCP_NODELAY": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env=environ, check=False
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


# lengths that are claimed


@pytest.mark.parametrize("kind", [*range(9), 0xFF])
def test_a_pdu_that_claims_4_gib_is_refused_before_it_is_read(attacked: Attacked, kind: int) -> None:
    """Before the association and within one, for each type there is, and for some that there are not."""
    attacked.process.forget_peaks()
    before = attacked.process.peak_mib()
    for begin in (lambda: BarePeer(attacked.port), attacked.peer):
        with begin() as peer:
            peer.send(pdu(kind, claimed=FOUR_GIB))
            assert_aborted(peer)
    attacked.logs("aborting an association from 127.0.0.1: a PDU")
    assert attacked.process.peak_mib() < before + 8


@pytest.mark.parametrize("kind", [A_ASSOCIATE_RQ, P_DATA_TF])
def test_what_follows_such_a_claim_is_not_kept(attacked: Attacked, kind: int) -> None:
    attacked.process.forget_peaks()
    before = attacked.process.peak_mib()
    for begin in (lambda: BarePeer(attacked.port), attacked.peer):
        with begin() as peer, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            peer.send(pdu(kind, claimed=FOUR_GIB))
            for _ in range(FLOOD_BYTES // 2**16):
                peer.send(bytes(2**16))
    assert attacked.process.peak_mib() < before + 8


@pytest.mark.parametrize("kind", [A_ASSOCIATE_RQ, P_DATA_TF])
@pytest.mark.parametrize("claimed", [2**19, 2**31])
def test_a_pdu_above_its_limit_is_refused(attacked: Attacked, kind: int, claimed: int) -> None:
    with BarePeer(attacked.port) if kind == A_ASSOCIATE_RQ else attacked.peer() as peer:
        peer.send(pdu(kind, claimed=claimed))
        assert_aborted(peer)
    attacked.logs("a PDU is longer than is allowed for its type")


def test_a_presentation_data_value_that_claims_4_gib(attacked: Attacked) -> None:
    for claimed in (FOUR_GIB, 2**31, 1000, 1, 0):
        with attacked.peer() as peer:
            peer.send(p_data(pdv(STORE_CONTEXT, COMMAND, b"abcd", claimed=claimed)))
            assert_aborted(peer)
    attacked.logs("a presentation data value has a wrong length")


def test_an_element_that_claims_4_gib(attacked: Attacked) -> None:
    """In the command set, and in the data set before its pixel data."""
    with attacked.peer() as peer:
        peer.send(p_data(pdv(STORE_CONTEXT, COMMAND | LAST, struct.pack("<HHI", 0, 2, FOUR_GIB))))
        assert_aborted(peer)
    attacked.process.forget_peaks()
    before = attacked.process.peak_mib()
    dataset = small_object(PatientComments="x" * 10)
    content = encoded(dataset)
    at = content.index(struct.pack("<HH", 0x0010, 0x4000))
    for claimed in (b"OB\0\0\xff\xff\xff\xff", b"UN\0\0\xfe\xff\xff\xff", b"UT\0\0\xf0\xff\xff\x7f"):
        with attacked.peer() as peer:
            mutilated = content[: at + 4] + claimed + content[at + 8 :]
            assert peer.store(dataset.SOPInstanceUID, mutilated) in (0xA900, 0xC000)
            peer.release()
    assert attacked.process.peak_mib() < before + 8
    attacked.logs("refused an object from 'SCANNER': 0x")


# UIDs

_BAD_UIDS = [
    b"../../../../tmp/evil",
    b"/etc/passwd",
    b"1.2.3/../../4",
    b"..",
    b"1.2.3\x004.5",
    b"1.2.3\n4",
    b"1.2.3 4",
    b"1.2." + b"3" * 61,
    b"1." * 5000 + b"1",
    b"1..2",
    b"1.02",
    b"1.2.",
    b".1.2",
    b"1.2.3;rm -rf",
    b"1.2.\xc3\xa4",
    b"1.2.\xff\xfe",
    b"%2e%2e%2f",
    "1.2.\u0663".encode(),
    b"7",
    b"",
]


@pytest.mark.parametrize("uid", _BAD_UIDS, ids=lambda uid: repr(uid[:24]))
def test_a_sop_instance_uid_that_is_none_is_refused(attacked: Attacked, uid: bytes) -> None:
    stored = set(attacked.process.folder.rglob("*"))
    own = small_object().SOPInstanceUID
    content = encoded(small_object(SOPInstanceUID=own)).replace(
        struct.pack("<HH2sH", 8, 0x18, b"UI", len(own) + len(own) % 2) + own.encode(),
        struct.pack("<HH2sH", 8, 0x18, b"UI", len(uid) + len(uid) % 2) + uid,
    )
    with attacked.peer() as peer:
        assert peer.store(uid, content) == 0x0117
        attacked.store_with(peer)
        peer.release()
    attacked.logs("0x0117 SOP Instance UID violates PS3.5 section 9.1")
    assert "evil" not in attacked.log
    assert not Path("/tmp/evil").exists()
    new = set(attacked.process.folder.rglob("*")) - stored
    assert len([path for path in new if path.suffix == ".dcm"]) == 1
    assert [path for path in new if "evil" in path.name] == []


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_study_and_series_uids_that_are_none_are_refused(attacked: Attacked, keyword: str) -> None:
    dataset = small_object()
    content = encoded(dataset)
    good = f"{dataset[keyword].value}".encode()
    bad = b"../" * len(good)
    with attacked.peer() as peer:
        mutilated = content.replace(b"UI" + _padded(good), b"UI" + _padded(bad[: len(good)]))
        assert mutilated != content
        assert peer.store(dataset.SOPInstanceUID, mutilated) == 0xA900
        peer.release()
    attacked.logs(f"0xA900 {keyword} is absent or not valid")


def _padded(uid: bytes) -> bytes:
    uid += b"\0" * (len(uid) % 2)
    return struct.pack("<H", len(uid)) + uid


def test_a_uid_may_be_padded(attacked: Attacked) -> None:
    dataset = small_object()
    with attacked.peer() as peer:
        assert peer.store(dataset.SOPInstanceUID + "\0\0", encoded(dataset)) == 0x0000
        peer.release()


@pytest.mark.parametrize(
    "calling", [b"EVIL\nERROR fake line", b"", b"\xff\xfeSCANNER", b"A\\B", b"A\0B", b"\x1b[31mRED"]
)
def test_a_calling_ae_title_that_is_none(attacked: Attacked, calling: bytes) -> None:
    with BarePeer(attacked.port) as peer:
        peer.send(associate_rq(calling=calling))
        assert_aborted(peer)
    attacked.logs("a PDU cannot be decoded")
    assert "ERROR fake" not in attacked.log
    assert "\x1b" not in attacked.log


def test_an_ae_title_that_looks_like_a_path(attacked: Attacked) -> None:
    with attacked.peer(associate_rq(calling=b"../../tmp/evil")) as peer:
        path = attacked.store_with(peer)
        peer.release()
    assert b"../../tmp/evil" in path.read_bytes()[:400]
    assert not Path("/tmp/evil").exists()


# bombs


@functools.cache
def deflate_bomb() -> bytes:
    """400 MiB of zeros."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(deflater.compress(bytes(2**22)) for _ in range(100)) + deflater.flush()


def test_deflated_and_big_endian_are_not_agreed_upon(attacked: Attacked) -> None:
    contexts = [
        (CTImageStorage, (syntax,)) for syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
    ]
    bomb = deflate_bomb()
    with BarePeer(attacked.port) as peer:
        peer.send(associate_rq([*contexts, *DEFAULT_CONTEXTS]))
        kind, body = peer.answer()
        assert kind == A_ASSOCIATE_AC
        assert results(body) == {1: 4, 3: 4, 5: 0, 7: 0}
        attacked.process.forget_peaks()
        before = attacked.process.peak_mib()
        peer.send(p_data(pdv(1, COMMAND | LAST, store_rq("1.2.3"))))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # given up before all was sent
            for at in range(0, len(bomb), 16000):
                peer.send(p_data(pdv(1, DATA, bomb[at : at + 16000])))
            assert_given_up(peer)
    attacked.logs("over a presentation context that was not accepted")
    assert attacked.process.peak_mib() < before + 8


def results(accept: bytes) -> dict[int, int]:
    """Result of each presentation context of an A-ASSOCIATE-AC."""
    found, at = {}, 68
    while at < len(accept):
        kind, _, length = struct.unpack_from(">BBH", accept, at)
        if kind == 0x21:
            found[accept[at + 4]] = accept[at + 6]
        at += 4 + length
    return found


def test_a_deflate_bomb_under_another_name_stays_small(attacked: Attacked) -> None:
    """As the data set of an uncompressed syntax, and as a value of a data set."""
    bomb = deflate_bomb()
    attacked.process.forget_peaks()
    before = attacked.process.peak_mib()
    dataset = small_object(PixelData=bomb + b"\0" * (len(bomb) % 2))
    with attacked.peer() as peer:
        assert peer.store(dataset.SOPInstanceUID, bomb) == 0xC000
        assert peer.store(dataset.SOPInstanceUID, encoded(dataset)) == 0x0000
        peer.release()
    assert attacked.process.peak_mib() < before + 8


def test_an_object_that_promises_huge_frames_is_not_decoded(attacked: Attacked) -> None:
    attacked.process.forget_peaks()
    before = attacked.process.peak_mib()
    dataset = small_object(Rows=65535, Columns=65535, NumberOfFrames=65535)
    with attacked.peer() as peer:
        assert peer.store(dataset.SOPInstanceUID, encoded(dataset)) == 0x0000
        peer.release()
    assert attacked.process.peak_mib() < before + 8


def sequence(content: bytes) -> bytes:
    """(0040,0555) Acquisition Context Sequence, of undefined length."""
    begin = struct.pack("<HH2sHI", 0x0040, 0x0555, b"SQ", 0, 0xFFFFFFFF)
    return begin + content + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


EMPTY_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0)


def with_sequence(content: bytes, *, uid: str) -> bytes:
    """A data set with this before its pixel data."""
    whole = encoded(small_object(SOPInstanceUID=uid))
    at = whole.index(struct.pack("<HH", 0x7FE0, 0x0010))
    return whole[:at] + sequence(content) + whole[at:]


def test_items_in_millions_are_passed_over(attacked: Attacked) -> None:
    """Of 8 bytes each, and 600 in memory; they stand behind what is looked at, so the object is stored."""
    attacked.process.forget_peaks()
    before = attacked.process.peak_mib()
    uid = small_object().SOPInstanceUID
    with attacked.peer() as peer:
        assert peer.store(uid, with_sequence(EMPTY_ITEM * 1_000_000, uid=uid)) == 0x0000
        peer.release()
    assert attacked.process.peak_mib() < before + 250


def test_a_huge_value_in_an_item_is_not_loaded(attacked: Attacked) -> None:
    attacked.process.forget_peaks()
    before = attacked.process.peak_mib()
    uid = small_object().SOPInstanceUID
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    value = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 70 * 2**20) + bytes(70 * 2**20)
    with attacked.peer() as peer:
        content = with_sequence(item + value + struct.pack("<HHI", 0xFFFE, 0xE00D, 0), uid=uid)
        assert peer.store(uid, content) == 0x0000
        peer.release()
    assert attacked.process.peak_mib() < before + 16


def test_sequences_nested_without_end_are_refused(attacked: Attacked) -> None:
    uid = small_object().SOPInstanceUID
    begin = struct.pack("<HH2sHI", 0x0040, 0x0555, b"SQ", 0, 0xFFFFFFFF)
    deep = (begin + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)) * 20_000
    with attacked.peer() as peer:
        assert peer.store(uid, with_sequence(deep, uid=uid)) == 0xC000
        peer.release()


# many connections


@contextlib.contextmanager
def connections(port: int, count: int, first_words: bytes = b"") -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection((HOST, port), 30))
            if first_words:
                opened[-1].sendall(first_words)
        yield opened
    finally:
        for connection in opened:
            connection.close()


def test_hundreds_of_half_open_connections_hold_up_nobody(attacked: Attacked, tmp_path: Path) -> None:
    paths = [saved(small_object(), tmp_path) for _ in range(20)]
    send = dcmtk("storescu", attacked.port, *paths)
    echo = dcmtk("echoscu", attacked.port)
    half = associate_rq()[:150]
    before = len(attacked.process.objects())
    with connections(attacked.port, 500) as silent, connections(attacked.port, 200, half) as begun:
        for _ in range(3):
            assert run(echo) < PROMPT_S
        assert run(send) < PROMPT_S
        assert run(echo) < PROMPT_S
        for connection in (*silent, *begun):  # each is still there: it was not by closing them
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
    assert len(attacked.process.objects()) == before + 20


def test_more_silent_connections_than_descriptors(tmp_path: Path) -> None:
    """Linux allows a service 1024 descriptors unless told otherwise."""
    with (
        running_receiver(tmp_path / "node", descriptor_limit=1024) as receiver,
        connections(receiver.port, 1200),
        receiver.peer() as peer,
    ):
        dataset = small_object()
        assert peer.store(dataset.SOPInstanceUID, encoded(dataset)) == 0x0000
        peer.release()
        assert "cannot accept" not in receiver.log


def test_connections_that_come_and_go_leave_nothing(attacked: Attacked) -> None:
    for first_words in (b"", b"\x01", associate_rq()[:80], b"GET / HTTP/1.0\r\n\r\n"):
        with connections(attacked.port, 100, first_words) as opened:
            for connection in opened[::2]:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# TLS


def test_idle_tls_clients_hold_up_nobody(
    attacked: Attacked, ct_certificate: TlsFiles, tmp_path: Path
) -> None:
    """Silent ones, such as have said half a hello, and such as say nothing after the handshake."""
    context = client_context(ct_certificate)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    hello = outgoing.read()
    with_tls = ("+tls", ct_certificate.key, ct_certificate.certificate, "+cf", ct_certificate.ca)
    paths = [saved(small_object(), tmp_path) for _ in range(5)]
    with (
        connections(attacked.tls_port, 50),
        connections(attacked.tls_port, 50, hello[: len(hello) // 2]),
        contextlib.ExitStack() as stack,
    ):
        for _ in range(10):
            secured = socket.create_connection((HOST, attacked.tls_port), 30)
            stack.enter_context(context.wrap_socket(secured))
        assert run(dcmtk("echoscu", attacked.tls_port, options=with_tls)) < PROMPT_S
        assert run(dcmtk("storescu", attacked.tls_port, *paths, options=with_tls)) < PROMPT_S
        assert run(dcmtk("echoscu", attacked.port)) < PROMPT_S
        assert run(dcmtk("storescu", attacked.port, *paths)) < PROMPT_S


def test_plain_dicom_on_the_tls_port_and_tls_on_the_plain_one(
    attacked: Attacked, ct_certificate: TlsFiles
) -> None:
    with BarePeer(attacked.tls_port) as peer:
        peer.send(associate_rq())
        assert peer.answer()[0] == 0
    attacked.logs("not TLS: a plain DICOM association request arrived on the TLS port")
    with pytest.raises(OSError):  # noqa: PT011 - OpenSSL's reasons differ by version
        BarePeer(attacked.port, context=client_context(ct_certificate))
    attacked.logs("a PDU of type 0x16 has no place here")


def test_a_tls_sender_that_resets_its_connection(attacked: Attacked, ct_certificate: TlsFiles) -> None:
    peer = BarePeer.associated(attacked.tls_port, context=client_context(ct_certificate))
    attacked.store_with(peer)
    peer.send(half_an_object())
    peer.reset()
    attacked.logs("1 images stored, 0 refused, association aborted")


# associations that break off


def half_an_object() -> bytes:
    dataset = small_object()
    return p_data(
        pdv(STORE_CONTEXT, COMMAND | LAST, store_rq(dataset.SOPInstanceUID)),
        pdv(STORE_CONTEXT, DATA, encoded(dataset)[:200]),
    )


def _close(peer: BarePeer) -> None:
    peer.connection.close()


def _shut_down(peer: BarePeer) -> None:
    peer.connection.shutdown(socket.SHUT_WR)
    assert_given_up(peer)


def _abort(peer: BarePeer) -> None:
    peer.send(pdu(A_ABORT, bytes(4)))
    assert peer.answer()[0] == 0


def _release(peer: BarePeer) -> None:
    peer.release()


_ENDS: list[Callable[[BarePeer], None]] = [_close, _shut_down, BarePeer.reset, _abort, _release]


@pytest.mark.parametrize(
    ("part", "within_a_pdu"), [*((part, False) for part in _ENDS), *((part, True) for part in _ENDS[:3])]
)
def test_an_association_abandoned_in_the_middle_of_an_object(
    attacked: Attacked, part: Callable[[BarePeer], None], within_a_pdu: bool
) -> None:
    with attacked.peer() as peer:
        attacked.store_with(peer)
        before = set(attacked.process.objects())
        peer.send(half_an_object())
        if within_a_pdu:
            peer.send(pdu(P_DATA_TF, b"abc", claimed=4000))
        part(peer)
    outcome = "released" if part is _release else "aborted"
    attacked.logs(f"SCANNER: 1 images stored, 0 refused, association {outcome}")
    assert set(attacked.process.objects()) == before


# who may call


CALLERS = """max_associations = 4
max_associations_per_peer = 2
{tls}
[[peers]]
name = "one"
ae_title = "CT1"
host = "127.0.0.1"
[[peers]]
name = "two"
ae_title = "CT2"
host = "127.0.0.1"
[[peers]]
name = "three"
ae_title = "CT3"
host = "127.0.0.1"
[[peers]]
name = "elsewhere"
ae_title = "FAR"
host = "192.0.2.9"
[[peers]]
name = "secured"
ae_title = "CT_TLS"
host = "127.0.0.1"
tls = true
certificate = "ct.example"
"""


@pytest.fixture(scope="module")
def shared_guarded(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Attacked]:
    tls_port = free_port()
    settings = CALLERS.format(tls=tls_settings(authority.issue("node.example"), tls_port))
    with running_receiver(tmp_path_factory.mktemp("guarded"), settings) as process:
        yield _Guarded(process=process, tls_port=tls_port, authority=authority)


class _Guarded(Attacked):
    """As `Attacked`, with listed peers and low limits."""

    def __post_init__(self) -> None:
        self.idle = self.process.use()

    def peer(self, request: bytes = b"") -> BarePeer:
        return BarePeer.associated(self.port, request or associate_rq(calling=b"CT1"))


@pytest.fixture
def guarded(shared_guarded: Attacked) -> Attacked:
    shared_guarded.seen = len(shared_guarded.process.log)
    wait_until(lambda: _is_free(shared_guarded), "no association is open")
    return shared_guarded


def _is_free(guarded: Attacked) -> bool:
    return guarded.process.use().threads <= guarded.idle.threads


def rejection(port: int, request: bytes, context: ssl.SSLContext | None = None) -> tuple[int, int, int]:
    """Result, source and reason (PS3.8 table 9-21)."""
    with BarePeer(port, context=context) as peer:
        peer.send(request)
        kind, body = peer.answer()
        assert kind == A_ASSOCIATE_RJ, (kind, body)
        assert peer.answer()[0] == 0
    return body[1], body[2], body[3]


def test_one_association_too_many(guarded: Attacked) -> None:
    def call(name: bytes) -> BarePeer:
        return guarded.peer(associate_rq(calling=name))

    with call(b"CT1") as first, call(b"CT1"):
        assert rejection(guarded.port, associate_rq(calling=b"CT1")) == (2, 3, 2)
        guarded.logs("rejected an association of 'CT1' from 127.0.0.1: Local limit exceeded")
        with call(b"CT2"), call(b"CT2"):
            assert rejection(guarded.port, associate_rq(calling=b"CT3")) == (2, 3, 2)
            guarded.logs("rejected an association of 'CT3' from 127.0.0.1: Local limit exceeded")
            guarded.store_with(first)
        with call(b"CT3") as third:
            guarded.store_with(third)


def test_a_place_is_free_again_whatever_way_an_association_ends(guarded: Attacked) -> None:
    for part in _ENDS * 2:
        with guarded.peer() as peer:
            part(peer)
        wait_until(lambda: _is_free(guarded), "its place is free")


@pytest.mark.parametrize(
    ("request_", "reason", "words"),
    [
        (associate_rq(calling=b"CT1", called=b"SOMEBODY"), 7, "Called AE title not recogni"),
        (associate_rq(calling=b"CT1", called=b"ich_node"), 7, "Called AE title not recogni"),
        (associate_rq(calling=b"STRANGER"), 3, "'STRANGER' from 127.0.0.1: Calling AE title not recogni"),
        (associate_rq(calling=b"ct1"), 3, "'ct1' from 127.0.0.1: Calling AE title not recogni"),
        (associate_rq(calling=b"FAR"), 3, "'FAR' from 127.0.0.1: Calling AE title not recogni"),
        (associate_rq(calling=b"CT_TLS"), 3, "'CT_TLS' from 127.0.0.1: Calling AE title not recogni"),
    ],
    ids=["called", "case of called", "unlisted", "case of calling", "other host", "plain instead of TLS"],
)
def test_who_may_not_call_is_rejected_for_good(
    guarded: Attacked, request_: bytes, reason: int, words: str
) -> None:
    assert rejection(guarded.port, request_) == (1, 1, reason)
    guarded.logs(words)


def test_an_ae_title_is_bound_to_a_certificate(guarded: Attacked, ct_certificate: TlsFiles) -> None:
    request = associate_rq(calling=b"CT_TLS")
    with BarePeer.associated(guarded.tls_port, request, context=client_context(ct_certificate)) as peer:
        guarded.store_with(peer)
        peer.release()
    another = client_context(guarded.authority.issue("other.example"))
    assert rejection(guarded.tls_port, request, another) == (1, 1, 3)
    guarded.logs("'CT_TLS' called with a certificate that is not bound to it")


def test_a_certificate_of_nobody_known(guarded: Attacked, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger").issue("ct.example", trusts=guarded.authority.file)
    try:
        with BarePeer(guarded.tls_port, context=client_context(stranger)) as peer:
            peer.send(associate_rq(calling=b"CT_TLS"))
            assert peer.answer()[0] == 0
    except ssl.SSLError:  # as a server of TLS 1.3 says it, or the kernel first
        pass
    guarded.logs("refused a connection over TLS from 127.0.0.1")


def test_rejected_callers_take_no_places(guarded: Attacked) -> None:
    for _ in range(30):
        assert rejection(guarded.port, associate_rq(calling=b"STRANGER")) == (1, 1, 3)
    with guarded.peer() as peer:
        guarded.store_with(peer)


# all at once


def test_senders_go_on_under_a_mixture_of_attacks(attacked: Attacked) -> None:
    over = threading.Event()

    def attack(words: bytes) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), BarePeer(attacked.port) as peer:
                peer.connection.settimeout(5)
                peer.send(words)
                if words[:1] == b"\x01":
                    peer.answer()
                    peer.send(half_an_object())

    words = [
        pdu(P_DATA_TF, claimed=FOUR_GIB),
        associate_rq(),
        associate_rq(called=b"SOMEBODY"),
        os.urandom(300),
        associate_rq([(VERIFICATION, EXPLICIT)]),
        pdu(A_RELEASE_RQ, bytes(4)),
    ]
    attackers = [threading.Thread(target=attack, args=(one,)) for one in words]
    for attacker in attackers:
        attacker.start()
    try:
        began = time.monotonic()
        with attacked.peer() as peer:
            for _ in range(30):
                dataset = small_object(PatientName=PATIENT_NAME)
                assert peer.store(dataset.SOPInstanceUID, encoded(dataset)) == 0x0000
                assert peer.echo() == 0x0000
            peer.release()
        assert time.monotonic() - began < 3 * PROMPT_S
    finally:
        over.set()
        for attacker in attackers:
            attacker.join()
