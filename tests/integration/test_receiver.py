"""The receiver against real senders: DCMTK, pynetdicom, and bare sockets where those behave too well."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import build_context
from pynetdicom.association import Association

from ich_node.errors import ConfigurationError
from ich_node.receive.accepted import TRANSFER_SYNTAXES
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.received import AssociationSummary, ReceivedInstance, rebuild
from ich_node.receive.receiver import Receiver
from ich_node.receive.requestor import RequestingEntity
from ich_node.receive.spool import Spool, SpoolWriter, part10_header
from ich_node.receive.upper_layer import configure_pynetdicom
from tests.small_objects import PATIENT_ID, PATIENT_NAME, ROOT, data_set_of, encoded, saved, small_object

AE_TITLE = "ICH_TEST"
DEADLINE_S = 30.0


@dataclass
class Desk:
    """A running receiver and what it has handed on."""

    receiver: Receiver
    spool: Spool
    received: list[ReceivedInstance] = field(default_factory=list)
    ended: list[AssociationSummary] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for_end(self, count: int = 1) -> AssociationSummary:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.ended) >= count, DEADLINE_S)
            return self.ended[-1]

    def files(self) -> list[Path]:
        return list(self.spool.scan())


OpenDesk = Callable[..., Desk]


@pytest.fixture
def open_desk(tmp_path: Path) -> Iterator[OpenDesk]:
    opened: list[Desk] = []

    def start(
        *,
        on_instance: Callable[[ReceivedInstance], None] | None = None,
        spool: Spool | None = None,
        **options: object,
    ) -> Desk:
        def record(received: ReceivedInstance) -> None:
            if on_instance is not None:
                on_instance(received)
            with desk.changed:
                desk.received.append(received)
                desk.changed.notify_all()

        def end(summary: AssociationSummary) -> None:
            with desk.changed:
                desk.ended.append(summary)
                desk.changed.notify_all()

        place = spool or Spool(tmp_path / "spool")
        receiver = Receiver(
            ae_title=AE_TITLE,
            port=0,
            spool=place,
            on_instance=record,
            on_association_end=end,
            **options,  # type: ignore[arg-type]
        )
        desk = Desk(receiver=receiver, spool=place)
        receiver.start()
        opened.append(desk)
        return desk

    yield start
    for desk in opened:
        desk.receiver.stop()


@pytest.fixture
def desk(open_desk: OpenDesk) -> Desk:
    return open_desk()


def request_association(
    desk: Desk,
    contexts: list[tuple[str, str]] | None = None,
    *,
    called: str = AE_TITLE,
    calling: str = "SCANNER",
) -> Association:
    configure_pynetdicom()
    entity = RequestingEntity(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = DEADLINE_S
    wanted = contexts or [(CTImageStorage, ExplicitVRLittleEndian)]
    return entity.associate(
        "127.0.0.1", desk.receiver.port, [build_context(*context) for context in wanted], ae_title=called
    )


@contextmanager
def associated(
    desk: Desk, contexts: list[tuple[str, str]] | None = None, **options: str
) -> Iterator[Association]:
    association = request_association(desk, contexts, **options)
    assert association.is_established
    yield association
    if association.is_established:
        association.release()


def send(desk: Desk, *datasets: FileDataset) -> list[int]:
    contexts = {(d.SOPClassUID, d.file_meta.TransferSyntaxUID): None for d in datasets}
    with associated(desk, list(contexts)) as association:
        return [association.send_c_store(dataset).Status for dataset in datasets]


def send_raw(desk: Desk, folder: Path, data_set: bytes, *, sop_instance_uid: str) -> tuple[int, str]:
    """Send bytes as a CT image whatever they are; gives status and error comment."""
    header = part10_header(
        sop_class_uid=CTImageStorage,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        source_ae_title="SCANNER",
    )
    path = folder / "raw.dcm"
    path.write_bytes(header + data_set)
    with associated(desk) as association:
        status = association.send_c_store(path)
    return status.Status, status.get("ErrorComment", "")


def dcmtk(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"DCMTK's {name} is not installed")
    return program


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, **environment},
        check=False,
    )


# DCMTK


def test_echoscu_is_answered(desk: Desk) -> None:
    result = run(dcmtk("echoscu"), "-aec", AE_TITLE, "127.0.0.1", str(desk.receiver.port))
    assert result.returncode == 0, result.stderr
    summary = desk.wait_for_end()
    assert (summary.stored, summary.released, summary.calling_ae_title) == (0, True, "ECHOSCU")


def test_echoscu_with_the_wrong_called_ae_title_is_rejected(desk: Desk) -> None:
    result = run(dcmtk("echoscu"), "-aec", "SOMEBODY", "127.0.0.1", str(desk.receiver.port))
    assert result.returncode != 0
    assert "Called AE Title Not Recognized" in result.stderr


@pytest.mark.parametrize("nagle", ["0", "1"])
def test_storescu_sends_a_study_bit_for_bit(desk: Desk, tmp_path: Path, nagle: str) -> None:
    datasets = [small_object(SeriesInstanceUID=f"{ROOT}.2.{number % 2}") for number in range(20)]
    paths = [saved(dataset, tmp_path) for dataset in datasets]
    result = run(
        dcmtk("storescu"), "-aec", AE_TITLE, "127.0.0.1", str(desk.receiver.port), *paths, TCP_NODELAY=nagle
    )
    assert result.returncode == 0, result.stderr
    summary = desk.wait_for_end()
    assert (summary.stored, summary.refused, summary.unrecorded) == (20, 0, 0)
    assert summary.released
    assert summary.peer_host == "127.0.0.1"
    assert summary.series_instance_uids == (f"{ROOT}.2.0", f"{ROOT}.2.1")
    by_uid = {one.instance.sop_instance_uid: one for one in desk.received}
    for dataset in datasets:
        one = by_uid[dataset.SOPInstanceUID]
        assert data_set_of(one.spooled.path) == encoded(dataset)
        assert one.instance.path == one.spooled.path
        assert one.source_ae_title == "STORESCU"
        assert one.study.patient_id == PATIENT_ID
        assert one.received_at.tzinfo is not None


def test_four_storescu_at_once(desk: Desk, tmp_path: Path) -> None:
    program = dcmtk("storescu")
    senders = []
    for sender in range(4):
        folder = tmp_path / str(sender)
        folder.mkdir()
        paths = [saved(small_object(SeriesInstanceUID=f"{ROOT}.2.{sender}"), folder) for _ in range(15)]
        command = [
            program,
            "-aec",
            AE_TITLE,
            "-aet",
            f"CT{sender}",
            "127.0.0.1",
            str(desk.receiver.port),
            *paths,
        ]
        senders.append(subprocess.Popen([str(part) for part in command]))
    assert [sender.wait(DEADLINE_S) for sender in senders] == [0] * 4
    desk.wait_for_end(4)
    assert {(s.calling_ae_title, s.stored, s.series_instance_uids) for s in desk.ended} == {
        (f"CT{sender}", 15, (f"{ROOT}.2.{sender}",)) for sender in range(4)
    }
    assert len(desk.files()) == 60


# what is accepted


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_every_transfer_syntax_of_images_is_accepted(desk: Desk, syntax: str) -> None:
    with associated(desk, [(CTImageStorage, syntax)]) as association:
        assert [context.transfer_syntax for context in association.accepted_contexts] == [[syntax]]


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_deflated_and_big_endian_are_not_accepted(desk: Desk, syntax: str) -> None:
    with associated(
        desk, [(CTImageStorage, ImplicitVRLittleEndian), (CTImageStorage, syntax)]
    ) as association:
        assert [context.transfer_syntax for context in association.rejected_contexts] == [[syntax]]
        assert [context.result for context in association.rejected_contexts] == [4]


@pytest.mark.parametrize(
    ("sop_class_uid", "modality"),
    [
        (MRImageStorage, "MR"),
        (EnhancedCTImageStorage, "CT"),
        (SecondaryCaptureImageStorage, "OT"),
        (ComprehensiveSRStorage, "SR"),
    ],
)
def test_what_is_no_ct_slice_is_accepted_and_handed_on(desk: Desk, sop_class_uid: str, modality: str) -> None:
    assert send(desk, small_object(sop_class_uid=sop_class_uid, Modality=modality)) == [0x0000]
    assert [(one.instance.sop_class_uid, one.instance.modality) for one in desk.received] == [
        (sop_class_uid, modality)
    ]


def test_compressed_pixels_are_kept_as_they_came(desk: Desk, tmp_path: Path) -> None:
    dataset = small_object()
    dataset.compress(RLELossless, generate_instance_uid=False)
    with associated(desk, [(CTImageStorage, RLELossless)]) as association:
        assert association.send_c_store(saved(dataset, tmp_path)).Status == 0x0000
    (one,) = desk.received
    assert one.instance.transfer_syntax_uid == RLELossless
    assert data_set_of(one.spooled.path) == encoded(dataset)
    assert (pydicom.dcmread(one.spooled.path).pixel_array == dataset.pixel_array).all()


def test_the_same_object_twice_is_one_object(desk: Desk) -> None:
    dataset = small_object()
    assert send(desk, dataset, dataset) == [0x0000, 0x0000]
    assert [one.spooled.duplicate for one in desk.received] == [False, True]
    assert len(desk.files()) == 1


def test_other_bytes_under_one_uid_are_kept_apart(desk: Desk) -> None:
    first = small_object()
    second = small_object(SOPInstanceUID=first.SOPInstanceUID, InstanceNumber=2)
    assert send(desk, first, second) == [0x0000, 0x0000]
    assert [one.spooled.duplicate for one in desk.received] == [False, False]
    assert {data_set_of(path) for path in desk.files()} == {encoded(first), encoded(second)}


# what is refused


def test_a_uid_that_leads_elsewhere_is_refused(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    evil = "../../../../tmp/ich_evil"
    content = encoded(small_object(SOPInstanceUID="1.2.3.4.5.6.7.8.9.10.110"))
    content = content.replace(b"1.2.3.4.5.6.7.8.9.10.110", evil.encode())
    assert evil.encode() in content
    assert send_raw(desk, tmp_path, content, sop_instance_uid=evil)[0] == 0x0117
    assert desk.files() == []
    assert not Path("/tmp/ich_evil").exists()
    assert desk.wait_for_end().refused == 1


def test_garbage_is_refused_and_the_next_object_is_taken(desk: Desk, tmp_path: Path) -> None:
    assert send_raw(desk, tmp_path, b"\xff" * 5000, sop_instance_uid="1.2.3")[0] == 0xC000
    dataset = small_object()
    status, comment = send_raw(desk, tmp_path, encoded(dataset), sop_instance_uid="1.2.3")
    assert status == 0xA900
    assert "SOP Instance UID" in comment
    status, comment = send_raw(
        desk,
        tmp_path,
        encoded(small_object(SOPInstanceUID="1.2.3", SeriesInstanceUID=None)),
        sop_instance_uid="1.2.3",
    )
    assert (status, "SeriesInstanceUID" in comment) == (0xA900, True)
    assert desk.files() == []
    assert send(desk, dataset) == [0x0000]


def test_a_full_disk_is_answered_with_out_of_resources(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    dataset = small_object()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert send(desk, dataset) == [0xA700]
    assert desk.received == []
    assert desk.files() == []
    assert send(desk, dataset) == [0x0000]


def test_a_disk_that_fills_up_loses_nothing_acknowledged(open_desk: OpenDesk, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    made = run("mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", mount)
    if made.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        desk = open_desk(spool=Spool(mount / "spool"))
        datasets = [small_object(Rows=128, Columns=128, PixelData=b"\1" * 32768) for _ in range(20)]
        statuses = send(desk, *datasets)
        taken = [d for d, status in zip(datasets, statuses, strict=True) if status == 0x0000]
        assert 0 < len(taken) < 20
        assert set(statuses) == {0x0000, 0xA700}
        assert sorted(map(data_set_of, desk.files())) == sorted(map(encoded, taken))
        desk.receiver.stop()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_wrong_called_ae_title_is_rejected_as_the_standard_says(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    association = request_association(desk, called="SOMEBODY")
    assert association.is_rejected
    answer = association.acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 7)
    assert "'SCANNER' from 127.0.0.1: Called AE title not recognised" in caplog.text


def test_only_listed_peers_may_call(open_desk: OpenDesk, caplog: pytest.LogCaptureFixture) -> None:
    peers = [AllowedPeer(ae_title="CT1", host="127.0.0.1"), AllowedPeer(ae_title="CT2", host="192.0.2.9")]
    desk = open_desk(peers=peers)
    with associated(desk, calling="CT1") as association:
        assert association.send_c_store(small_object()).Status == 0x0000
    for calling in ("CT2", "CT3"):
        association = request_association(desk, calling=calling)
        assert association.is_rejected
        answer = association.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 3)
        assert f"'{calling}' from 127.0.0.1: Calling AE title not recognised" in caplog.text
    assert len(desk.received) == 1


def test_one_association_too_many_is_rejected_for_now(open_desk: OpenDesk) -> None:
    desk = open_desk(limits=Limits(max_associations=2))
    with associated(desk), associated(desk):
        association = request_association(desk)
        assert association.is_rejected
        answer = association.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 2)
    desk.wait_for_end(2)


def test_an_object_above_the_limit_ends_the_association(open_desk: OpenDesk) -> None:
    desk = open_desk(limits=Limits(max_object_bytes=100_000))
    with associated(desk) as association:
        assert association.send_c_store(small_object(PixelData=b"\1" * 90_000)).Status == 0x0000
        answer = association.send_c_store(small_object(PixelData=b"\1" * 3_000_000))
        assert "Status" not in answer
    assert not desk.wait_for_end().released
    assert len(desk.files()) == 1


# connections that break


def test_an_association_that_is_aborted_keeps_what_was_acknowledged(desk: Desk) -> None:
    association = request_association(desk)
    assert [association.send_c_store(small_object()).Status for _ in range(3)] == [0x0000] * 3
    association.abort()
    summary = desk.wait_for_end()
    assert (summary.released, summary.stored) == (False, 3)
    assert summary.series_instance_uids == (f"{ROOT}.2",)
    assert len(desk.files()) == 3


def test_a_connection_that_breaks_within_an_object_leaves_nothing_of_it(desk: Desk) -> None:
    association = request_association(desk)
    assert association.send_c_store(small_object()).Status == 0x0000
    connection = association.dul.socket.socket
    # a P-DATA-TF PDU of 4096 bytes of which 100 come
    connection.sendall(b"\x04\x00" + (4096).to_bytes(4, "big") + b"\0" * 100)
    connection.shutdown(socket.SHUT_RDWR)
    summary = desk.wait_for_end()
    assert (summary.released, summary.stored, summary.refused) == (False, 1, 0)
    assert len(desk.files()) == 1
    assert desk.spool.remove_leftovers() == 0
    association.abort()


@pytest.mark.parametrize("kind", [b"\x01", b"\x04"])
def test_a_pdu_that_claims_four_gigabytes_is_not_awaited(open_desk: OpenDesk, kind: bytes) -> None:
    desk = open_desk(limits=Limits(acse_timeout_s=2.0))
    with socket.create_connection(("127.0.0.1", desk.receiver.port), DEADLINE_S) as connection:
        connection.sendall(kind + b"\x00\xff\xff\xff\xff")
        assert connection.recv(10)[:1] == b"\x07"  # A-ABORT
    assert send(desk, small_object()) == [0x0000]


def test_a_silent_connection_is_closed_and_holds_up_no_one(open_desk: OpenDesk) -> None:
    desk = open_desk(limits=Limits(acse_timeout_s=1.0, network_timeout_s=1.0))
    with socket.create_connection(("127.0.0.1", desk.receiver.port), DEADLINE_S) as silent:
        assert send(desk, small_object()) == [0x0000]
        assert silent.recv(1) == b""


def test_a_peer_that_stops_within_a_pdu_is_cut_off(open_desk: OpenDesk) -> None:
    desk = open_desk(limits=Limits(network_timeout_s=1.0))
    association = request_association(desk)
    association.dul.socket.socket.sendall(b"\x04\x00\x00\x00")
    assert not desk.wait_for_end().released
    association.abort()


def test_stopping_ends_open_associations_and_reports_them(open_desk: OpenDesk) -> None:
    desk = open_desk()
    association = request_association(desk)
    assert association.send_c_store(small_object()).Status == 0x0000
    desk.receiver.stop()
    assert [(summary.released, summary.stored) for summary in desk.ended] == [(False, 1)]
    association.join(DEADLINE_S)
    assert association.is_aborted
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", desk.receiver.port or 1), DEADLINE_S)


def test_a_port_that_is_taken_is_said_plainly(desk: Desk, tmp_path: Path) -> None:
    second = Receiver(
        ae_title=AE_TITLE,
        port=desk.receiver.port,
        spool=desk.spool,
        on_instance=lambda _: None,
        on_association_end=lambda _: None,
    )
    leftover = desk.spool.root / "incoming" / "1-1-aa.part"
    leftover.write_bytes(b"being written by the first receiver")
    with pytest.raises(ConfigurationError, match=f"port {desk.receiver.port}"):
        second.start()
    assert leftover.exists()


# the database fails, the log is read by others


def test_a_failing_record_loses_nothing_and_can_be_made_good(open_desk: OpenDesk) -> None:
    broken = threading.Event()
    broken.set()

    def on_instance(_: ReceivedInstance) -> None:
        if broken.is_set():
            raise RuntimeError("database is locked")

    desk = open_desk(on_instance=on_instance)
    dataset = small_object()
    assert send(desk, dataset) == [0x0000]
    summary = desk.wait_for_end()
    assert (summary.stored, summary.unrecorded) == (1, 1)
    assert summary.series_instance_uids == (f"{ROOT}.2",)
    assert desk.received == []
    made_good: list[ReceivedInstance] = []
    assert rebuild(desk.spool, made_good.append).recorded == 1
    assert made_good[0].instance.sop_instance_uid == dataset.SOPInstanceUID
    assert made_good[0].source_ae_title == "SCANNER"
    broken.clear()
    assert send(desk, dataset) == [0x0000]
    assert desk.received[0].spooled.duplicate


def test_no_identifying_value_reaches_the_log(
    open_desk: OpenDesk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_instance(received: ReceivedInstance) -> None:
        raise RuntimeError(f"cannot insert {received.study}")

    class BrokenSpool(Spool):
        def writer(self) -> SpoolWriter:
            raise ValueError(f"{PATIENT_NAME}")

    with caplog.at_level(logging.DEBUG):
        desk = open_desk(on_instance=on_instance)
        first = small_object()
        send(desk, first, small_object(SOPInstanceUID=first.SOPInstanceUID, InstanceNumber=7))
        send_raw(
            desk,
            tmp_path,
            encoded(first)[: encoded(first).index(b"\x10\x00\x20\x00") + 9],
            sop_instance_uid="1.2",
        )
        broken = open_desk(spool=BrokenSpool(tmp_path / "broken"))
        assert send(broken, small_object()) == [0xA701]
        broken.wait_for_end()
    assert "RuntimeError" in caplog.text
    assert "ValueError" in caplog.text
    assert "Zyxwv" not in caplog.text
    assert PATIENT_ID not in caplog.text


# the process dies

_RECEIVER_PROCESS = """
import sys
from pathlib import Path
from ich_node.receive.receiver import Receiver
from ich_node.receive.spool import Spool
receiver = Receiver(ae_title="ICH_TEST", port=0, spool=Spool(Path(sys.argv[1])),
                    on_instance=lambda _: None, on_association_end=lambda _: None)
receiver.start()
print(receiver.port, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("acknowledged_before", [1, 17, 40])
def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_half(
    open_desk: OpenDesk, tmp_path: Path, acknowledged_before: int
) -> None:
    folder = tmp_path / "spool"
    process = subprocess.Popen(
        [sys.executable, "-c", _RECEIVER_PROCESS, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    port = int(process.stdout.readline())
    acknowledged: dict[str, bytes] = {}
    changed = threading.Condition()

    def send_until_dead() -> None:
        entity = RequestingEntity(ae_title="SCANNER")
        # pynetdicom waits that long when the connection breaks just before it asks for the answer
        entity.dimse_timeout = 3.0
        association = entity.associate(
            "127.0.0.1", port, [build_context(CTImageStorage, ExplicitVRLittleEndian)], ae_title=AE_TITLE
        )
        while association.is_established:
            dataset = small_object(Rows=256, Columns=256, PixelData=os.urandom(131072))
            try:
                answer = association.send_c_store(dataset)
            except (RuntimeError, ValueError):
                break
            if answer.get("Status") == 0x0000:
                with changed:
                    acknowledged[dataset.SOPInstanceUID] = encoded(dataset)
                    changed.notify_all()

    configure_pynetdicom()
    senders = [threading.Thread(target=send_until_dead) for _ in range(3)]
    for sender in senders:
        sender.start()
    with changed:
        assert changed.wait_for(lambda: len(acknowledged) >= acknowledged_before, DEADLINE_S)
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    process.stdin.close()
    process.stdout.close()
    for sender in senders:
        sender.join(DEADLINE_S)
        assert not sender.is_alive()

    desk = open_desk(spool=Spool(folder))
    assert list((folder / "incoming").iterdir()) == []
    found: list[ReceivedInstance] = []
    assert rebuild(desk.spool, found.append).failed == ()
    on_disk = {one.instance.sop_instance_uid: data_set_of(one.spooled.path) for one in found}
    assert len(on_disk) == len(found)
    assert {uid: on_disk[uid] for uid in acknowledged} == acknowledged
    for one in found:
        whole = pydicom.dcmread(one.spooled.path)
        assert len(whole.PixelData) == 131072
