"""Everything that is made of a reading, by the real jobs to a real PACS and back: its bytes, and that they are kept."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
from sqlalchemy import select, update

from ich_node.confirmation_job import take_answers
from ich_node.database import outbox
from ich_node.database.engine import Database
from ich_node.database.outbox import DeliveryRecord
from ich_node.database.readings import NewReading, finish_read
from ich_node.database.tables import OutboxRow
from ich_node.database.worklist import worklist_row
from ich_node.delivery_job import Deliverer, deliver_due
from ich_node.node import Node
from ich_node.reception import open_receiver
from ich_node.result_files import ResultFiles
from ich_node.settings import PacsSettings, ReceiverSettings, Settings
from tests.integration.test_deliver import DEADLINE_S, free_port, is_listening, running, wait_until
from tests.report_builders import make_report
from tests.small_objects import data_set_of
from tests.stored_studies import StoredStudies

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
NODE_TITLE = "ICH_TEST"
ALL_KINDS = ("SR", "SC", "SEG", "GSPS", "KOS", "PM")
WISHES: Mapping[str, dict[str, Any]] = {
    "everything": {"objects": ALL_KINDS},
    "comprehensive": {"sr_class": "comprehensive", "sc_compression": "jpeg-lossless"},
    "enhanced": {"sr_class": "enhanced", "sc_compression": "jpeg-2000-lossless"},
    "old": {"objects": ("SR",), "sr_class": "basic-text"},
    "plain": {"objects": ("SR",)},
}
"""Destinations that together want each kind in each form; all of them are the same PACS."""
KINDS = {
    *("SR", "SR/SEG", "SR/comprehensive", "SR/enhanced", "SR/basic-text"),
    *("SC", "SC/jpeg-lossless", "SC/jpeg-2000-lossless"),
    *("SEG", "GSPS", "KOS", "PM"),
}


@pytest.fixture(autouse=True)
def _without_nagle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or Orthanc waits 40 ms with each answer."""
    monkeypatch.setenv("TCP_NODELAY", "1")


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """Where it listens."""

    dicom_port: int
    http_port: int

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def rest(self, path: str, *, method: str = "GET") -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", method=method)
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return json.loads(answer.read() or b"null")

    def retrieved(self, path: Path) -> bytes:
        """The file of an object as WADO-RS gives it back in the transfer syntax that it came in."""
        sent = pydicom.dcmread(path, stop_before_pixels=True)
        place = (
            f"/studies/{sent.StudyInstanceUID}/series/{sent.SeriesInstanceUID}"
            f"/instances/{sent.SOPInstanceUID}"
        )
        request = urllib.request.Request(self.web + place)
        request.add_header("Accept", 'multipart/related; type="application/dicom"; transfer-syntax=*')
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            boundary = re.search(r'boundary="?([^";]+)', answer.headers["Content-Type"])
            content: bytes = answer.read()
        assert boundary is not None
        head, _, rest = content.partition(b"\r\n\r\n")
        assert head.startswith(f"--{boundary[1]}".encode())
        part, end, _ = rest.rpartition(f"\r\n--{boundary[1]}--".encode())
        assert end
        return part


@contextmanager
def orthanc_beside(node_port: int, folder: Path) -> Iterator[Orthanc]:
    """An Orthanc that commits to what the node sends it, and that anybody may query."""
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.exists():
        pytest.skip("Orthanc or its DICOMweb plugin is not installed")
    orthanc = Orthanc(dicom_port=free_port(), http_port=free_port())
    folder.mkdir(exist_ok=True)
    caller = {"AET": NODE_TITLE, "Host": "127.0.0.1", "Port": node_port, "AllowStorageCommitment": True}
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "DicomAet": "ORTHANC",
        "DicomPort": orthanc.dicom_port,
        "DicomAlwaysAllowFind": True,
        "HttpPort": orthanc.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomModalities": {"node": caller},
        "SyncStorageArea": False,
        "Plugins": [str(PLUGIN)],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with running([program, str(folder / "orthanc.json")], orthanc.dicom_port, folder / "log"):
        wait_until(lambda: is_listening(orthanc.http_port))
        yield orthanc


@contextmanager
def reading_delivered_to(
    folder: Path, *, wishes: Sequence[str] = tuple(WISHES), by_web: bool = False, confirm: str = "auto"
) -> Iterator[tuple[Orthanc, Node]]:
    """A node with a receiver, whose reading waits for a PACS."""
    port = free_port()
    with orthanc_beside(port, folder / "pacs") as orthanc:
        address: dict[str, Any] = {
            "ae_title": "ORTHANC",
            "host": "127.0.0.1",
            "port": orthanc.dicom_port,
        }
        if by_web:
            address = {"url": orthanc.web}
        settings = Settings(
            data_dir=folder / "data",
            receiver=ReceiverSettings(ae_title=NODE_TITLE, port=port, processes=1),
            pacs=tuple(
                PacsSettings.model_validate({"name": name, "confirm": confirm, **address, **WISHES[name]})
                for name in wishes
            ),
        )
        database = Database(settings.database_url)
        database.upgrade()
        try:
            node = Node(settings=settings, database=database)
            read_one(node)
            with open_receiver(settings, database):
                yield orthanc, node
        finally:
            database.dispose()


def read_one(node: Node) -> None:
    """Make and write the objects of a reading as the worker does, with their rows."""
    report, at = make_report(), datetime.now(UTC)
    study = str(report.source_images[0].StudyInstanceUID)
    studies = StoredStudies(
        database=node.database, results_dir=node.settings.results_dir, slices=len(report.source_images)
    )
    series = studies.receive(study, at=at)
    claim = studies.claim(study, at=at)
    files = ResultFiles.of(node.settings)
    objects, shown = files.write(report)
    files.sync()
    reading = NewReading(
        series_instance_uid=series,
        run_number=1,
        finding=report.finding,
        sop_instance_uids=tuple(f"{series}.{number}" for number in range(1, studies.slices + 1)),
        content_sha256="content",
        caveats=(),
        timeline={"started": at.isoformat()},
        read_at=at,
        sr_sop_instance_uid=str(shown.SOPInstanceUID),
        sr_series_instance_uid=str(shown.SeriesInstanceUID),
        objects=tuple(objects),
    )
    with node.database.writing() as session:
        finish_read(session, claim, exclusions=(), readings=[reading], now=at)


def deliver_all(node: Node) -> None:
    deliverer = Deliverer(node)
    for pacs in node.settings.pacs:
        deliverer.deliver_due(pacs.name)


def records(node: Node) -> list[DeliveryRecord]:
    with node.database.reading() as session:
        return outbox.deliveries(session)


def files_by_kind(node: Node) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for record in records(node):
        path = node.settings.results_dir / f"{record.sop_instance_uid}.dcm"
        files.setdefault(record.kind, []).append(path)
    return files


def requests_for_commitment(node: Node) -> set[str | None]:
    with node.database.reading() as session:
        return set(session.scalars(select(OutboxRow.transaction_uid)))


def assert_kept(orthanc: Orthanc, node: Node, same: Callable[[bytes, Path], bool]) -> None:
    """Each kind in each form is there, once, and nothing else; and the worklist says so."""
    files = files_by_kind(node)
    assert set(files) == KINDS
    changed = [
        kind for kind, paths in files.items() for path in paths if not same(orthanc.retrieved(path), path)
    ]
    assert changed == []
    assert orthanc.rest("/statistics")["CountInstances"] == sum(map(len, files.values()))
    assert {(record.state, record.attempts, record.note) for record in records(node)} == {
        ("DELIVERED", 1, None)
    }
    assert all(
        record.delivered_at >= record.sent_at
        for record in records(node)
        if record.delivered_at and record.sent_at
    )
    with node.database.reading() as session:
        row = worklist_row(session, records(node)[0].study_instance_uid)
    assert row is not None
    assert row["delivered_at"]


def same_file(content: bytes, path: Path) -> bool:
    return content == path.read_bytes()


def same_data_set(content: bytes, path: Path) -> bool:
    """All bytes behind the File Meta Information, which is the receiver's own (PS3.10 7.1)."""
    returned = path.with_suffix(".returned")
    returned.write_bytes(content)
    try:
        ours, theirs = pydicom.dcmread(path).file_meta, pydicom.dcmread(returned).file_meta
        return data_set_of(returned) == data_set_of(path) and all(
            ours[keyword] == theirs[keyword]
            for keyword in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
        )
    finally:
        returned.unlink()


def test_all_objects_by_c_store_and_storage_commitment(tmp_path: Path) -> None:
    with reading_delivered_to(tmp_path, confirm="commitment") as (orthanc, node):
        deliver_all(node)
        taken = {record.state for record in records(node)}
        assert taken <= {"SENT", "DELIVERED"}, {record.note for record in records(node)}
        assert None not in requests_for_commitment(node)
        # The reports come over associations that Orthanc opens.
        wait_until(lambda: take_answers(node) is None and "SENT" not in {r.state for r in records(node)})
        assert_kept(orthanc, node, same_data_set)


def test_all_objects_by_c_store_and_c_find(tmp_path: Path) -> None:
    with reading_delivered_to(tmp_path, confirm="query") as (orthanc, node):
        deliver_all(node)
        assert requests_for_commitment(node) == {None}
        assert_kept(orthanc, node, same_data_set)


def test_all_objects_by_stow_rs_and_qido_rs(tmp_path: Path) -> None:
    with reading_delivered_to(tmp_path, by_web=True) as (orthanc, node):
        deliver_all(node)
        assert_kept(orthanc, node, same_file)


def test_what_orthanc_lost_is_not_committed_and_goes_again(tmp_path: Path) -> None:
    with reading_delivered_to(tmp_path, wishes=("everything",), confirm="commitment") as (orthanc, node):

        def ask() -> dict[str, DeliveryRecord]:
            Deliverer(node).deliver_due("everything")
            wait_until(lambda: take_answers(node) is None and "SENT" not in {r.state for r in records(node)})
            return {str(record.sop_instance_uid): record for record in records(node)}

        deliver_due(node, "everything")
        lost = orthanc.rest("/instances")[0]
        uid = orthanc.rest(f"/instances/{lost}/simplified-tags")["SOPInstanceUID"]
        orthanc.rest(f"/instances/{lost}", method="DELETE")
        told = ask()
        assert [each for each, record in told.items() if record.state != "DELIVERED"] == [uid]
        assert (told[uid].state, told[uid].note) == (
            "PENDING",
            "taken, then not committed: 0x0112 no such object instance",
        )
        with node.database.writing() as session:
            session.execute(update(OutboxRow).values(next_attempt_at=datetime.now(UTC)))
        assert {record.state for record in ask().values()} == {"DELIVERED"}
        path = node.settings.results_dir / f"{uid}.dcm"
        assert same_data_set(orthanc.retrieved(path), path)
