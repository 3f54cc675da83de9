"""The worklist by C-FIND, from a receiver in several processes on a real database."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, events
from pynetdicom.dsutils import encode
from sqlalchemy import select

from ich_node.database.engine import Database
from ich_node.database.tables import StudyRow
from ich_node.database.web_tables import AccessRow
from ich_node.receive.limits import AllowedPeer
from ich_node.receive.receiver import Receiver
from ich_node.receive.spool import Spool
from ich_node.receive.upper_layer import StorageAssociation
from ich_node.receive.worklist_association import WorklistAnswers
from ich_node.receive.worklist_find import (
    SOP_CLASS_UID,
    FindRefused,
    FindStatus,
    WorklistItem,
    WorklistQuestion,
)
from ich_node.reception import open_receiver
from ich_node.settings import Settings
from tests.bare_peer import (
    C_CANCEL_RQ,
    C_FIND_RQ,
    COMMAND,
    DATA,
    ECHO_CONTEXT,
    LAST,
    P_DATA_TF,
    VERIFICATION,
    WITH_DATA_SET,
    BarePeer,
    associate_rq,
    command_set,
    echo_rq,
    elements_of,
    fragments,
    p_data,
    pdv,
    store_rq,
    ui,
    us,
)
from tests.small_objects import encoded, small_object
from tests.stored_studies import StoredStudies
from tests.unit.test_receive_worklist_find import ITEM, identifier

NOW = datetime.now(UTC)
FIND_CONTEXT, CT_CONTEXT = 3, 5
CONTEXTS = (
    (VERIFICATION, (ExplicitVRLittleEndian,)),
    (SOP_CLASS_UID, (ExplicitVRLittleEndian,)),
    (CTImageStorage, (ExplicitVRLittleEndian,)),
)


@dataclass
class Node:
    studies: StoredStudies
    port: int

    def ask(self, **keys: Any) -> list[tuple[int, Dataset | None]]:
        return ask(self.port, identifier(keys.pop("step", {}), **keys))

    def names(self, **keys: Any) -> list[str]:
        found = self.ask(**{"PatientName": "", **keys})
        assert found[-1][0] == 0
        return [str(item.PatientName) for _, item in found[:-1] if item is not None]


def ask(port: int, asked: Dataset) -> list[tuple[int, Dataset | None]]:
    entity = AE(ae_title="RIS")
    entity.add_requested_context(SOP_CLASS_UID)
    association = entity.associate("127.0.0.1", port, ae_title="ICH_NODE")
    assert association.is_established
    found = [(int(status.Status), item) for status, item in association.send_c_find(asked, SOP_CLASS_UID)]
    association.release()
    return found


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("worklist")
    settings = Settings(data_dir=folder, receiver={"port": 0, "processes": 2})
    database = Database(settings.database_url)
    database.upgrade()
    studies = StoredStudies(database=database, results_dir=folder / "results")
    for number, name in enumerate(("MÜLLER^JÖRG", "Muller^Ann", "ROE^100%", "GONE^BY")):
        studies.receive(
            f"1.2.3.{number}",
            at=NOW - timedelta(hours=3 - number),
            patient_name=name,
            patient_id=f"P{number}",
            accession_number=f"A_{number}",
        )
    studies.read("1.2.3.2", at=NOW, suspicion=0.95)
    studies.read("1.2.3.1", at=NOW, suspicion=0.01)
    with database.writing() as session:
        session.get_one(StudyRow, "1.2.3.3").reviewed_at = NOW
    with open_receiver(settings, database) as receiving:
        yield Node(studies, receiving.ports[0])
    database.dispose()


def test_the_most_urgent_comes_first_and_what_was_reviewed_does_not_come(node: Node) -> None:
    assert node.names() == ["ROE^100%", "MÜLLER^JÖRG", "Muller^Ann"]
    found = node.ask(RequestedProcedurePriority="", PatientID="")
    assert [(i.PatientID, i.RequestedProcedurePriority) for _, i in found[:-1] if i is not None] == [
        ("P2", "STAT"),
        ("P0", "MEDIUM"),
        ("P1", "ROUTINE"),
    ]


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"PatientName": "mUll*"}, ["Muller^Ann"]),
        ({"PatientName": "M?LLER*", "SpecificCharacterSet": "ISO_IR 192"}, ["MÜLLER^JÖRG", "Muller^Ann"]),
        ({"PatientName": "müller^jörg", "SpecificCharacterSet": "ISO_IR 100"}, ["MÜLLER^JÖRG"]),
        ({"PatientName": "*%*"}, ["ROE^100%"]),
        ({"PatientID": "P1"}, ["Muller^Ann"]),
        ({"PatientID": "p1"}, []),
        ({"AccessionNumber": "A_2"}, ["ROE^100%"]),
        ({"AccessionNumber": "A%"}, []),
        ({"StudyInstanceUID": ["1.2.3.0", "1.2.3.2", "1.2.9"]}, ["ROE^100%", "MÜLLER^JÖRG"]),
        ({"RequestedProcedurePriority": "STAT"}, ["ROE^100%"]),
        (
            {"step": {"Modality": "CT", "ScheduledStationAETitle": "CT_E?"}, "PatientID": "P0"},
            ["MÜLLER^JÖRG"],
        ),
        ({"step": {"Modality": "MR"}}, []),
        ({"step": {"ScheduledStationAETitle": "OTHER"}}, []),
        ({"step": {"ScheduledProcedureStepStartDate": "19990101-20000101"}}, []),
        ({"step": {"ScheduledProcedureStepStartDate": "20200101-"}, "PatientID": "P1"}, ["Muller^Ann"]),
    ],
)
def test_what_matches(node: Node, keys: dict[str, Any], names: list[str]) -> None:
    assert node.names(**keys) == names


def test_findscu_of_dcmtk_reads_the_worklist(node: Node) -> None:
    keys = ["PatientName", "RequestedProcedurePriority", "ScheduledProcedureStepSequence[0].Modality=CT"]
    command = ["findscu", "-W", "-aec", "ICH_NODE", "127.0.0.1", str(node.port)]
    for key in keys:
        command += ["-k", key]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    said = (done.stdout + done.stderr).decode("latin-1")
    assert said.count("(Pending)") == 3
    assert "STAT" in said
    assert "MÜLLER^JÖRG" in said


def test_who_asked_is_written_down(node: Node) -> None:
    before = node.names(PatientID="P1")
    with node.studies.database.reading() as session:
        last = session.scalars(select(AccessRow).order_by(AccessRow.id.desc())).first()
    assert before
    assert last is not None
    assert (last.caller, last.source, last.action) == ("RIS", "127.0.0.1", "QUERY")
    assert last.detail == "C-FIND of the worklist: 1 found"


def test_images_and_questions_over_one_association(node: Node) -> None:
    with BarePeer.associated(node.port, associate_rq(CONTEXTS)) as peer:
        dataset = small_object()
        for _ in range(2):
            peer.send(find(identifier({}, PatientID="P1")))
            assert statuses(peer) == [0xFF00, 0]
            peer.send(
                p_data(pdv(CT_CONTEXT, COMMAND | LAST, store_rq(dataset.SOPInstanceUID)))
                + p_data(pdv(CT_CONTEXT, DATA | LAST, encoded(dataset)))
            )
            assert peer.status() == 0
        assert peer.echo() == 0
        peer.release()


def find(asked: Dataset, *, data: bytes = b"") -> bytes:
    content = data or encode(asked, False, True) or b""
    question = command_set(C_FIND_RQ, {0x0002: ui(SOP_CLASS_UID), 0x0700: us(0), 0x0800: us(WITH_DATA_SET)})
    return p_data(pdv(FIND_CONTEXT, COMMAND | LAST, question)) + p_data(
        pdv(FIND_CONTEXT, DATA | LAST, content)
    )


def statuses(peer: BarePeer) -> list[int]:
    """Of the answers up to the last."""
    found: list[int] = []
    while not found or found[-1] in (0xFF00, 0xFF01):
        kind, body = peer.answer()
        assert kind == P_DATA_TF, kind
        if body[5] & COMMAND:
            found.append(int.from_bytes(elements_of(body[6:])[0x0900], "little"))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A receiver of one process whose worklist is what a test asks for by the patient ID."""

    def look_up(question: WorklistQuestion) -> list[WorklistItem]:
        if question.patient_id == "AWAY":
            raise FindRefused(FindStatus.OUT_OF_RESOURCES, "the database does not answer")
        if question.patient_id == "BROKEN":
            raise RuntimeError(ITEM.patient_name)
        if question.patient_id == "ODD":
            return [replace(ITEM, patient_sex="男"), ITEM]
        wanted = int(question.patient_id) if question.patient_id.isdecimal() else 1
        return [ITEM] * min(wanted, question.limit)

    receiver = Receiver(
        ae_title="ICH_NODE",
        spool=Spool(tmp_path_factory.mktemp("spool")),
        on_instance=lambda received: None,
        on_association_end=lambda summary: None,
        port=0,
        worklist=look_up,
    )
    receiver.start()
    yield receiver.port
    receiver.stop()


def test_a_cancel_ends_the_answers(alone: int) -> None:
    with BarePeer.associated(alone, associate_rq(CONTEXTS)) as peer:
        cancel = p_data(
            pdv(FIND_CONTEXT, COMMAND | LAST, command_set(C_CANCEL_RQ, {0x0110: None, 0x0120: us(1)}))
        )
        peer.send(find(identifier({}, PatientID="400")) + cancel)
        said = statuses(peer)
        assert said[-1] == 0xFE00
        assert len(said) < 400
        peer.send(find(identifier({}, PatientID="3")))  # the cancel is used up
        assert statuses(peer) == [0xFF00] * 3 + [0]
        peer.send(cancel)  # and one that nothing is under way for is passed over
        assert peer.echo() == 0
        peer.release()


def test_more_than_is_answered(alone: int) -> None:
    with BarePeer.associated(alone, associate_rq(CONTEXTS)) as peer:
        peer.send(find(identifier({}, PatientID="600")))
        assert statuses(peer) == [0xFF00] * 500 + [0xA700]
        peer.release()


def test_what_cannot_be_answered_is_said_and_the_association_goes_on(
    alone: int, caplog: pytest.LogCaptureFixture
) -> None:
    with BarePeer.associated(alone, associate_rq(CONTEXTS)) as peer:
        for patient_id, status in (("AWAY", 0xA700), ("BROKEN", 0xC000)):
            peer.send(find(identifier({}, PatientID=patient_id)))
            assert statuses(peer) == [status]
        peer.send(find(Dataset(), data=b"\x10\x00\x20\x00LO\xff\xff nonsense"))
        assert statuses(peer)[-1] in (0xC000, 0xA900, 0)
        assert peer.echo() == 0
        peer.release()
    assert ITEM.patient_name not in caplog.text


def test_who_goes_on_asking_in_the_midst_of_the_answers_fills_no_memory(
    alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    looks_on = StorageAssociation.looks_on

    def looking(association: StorageAssociation) -> bool:
        goes_on = looks_on(association)
        waiting.append(association.dimse.msg_queue.qsize())
        return goes_on

    monkeypatch.setattr(StorageAssociation, "looks_on", looking)
    echo = p_data(pdv(ECHO_CONTEXT, COMMAND | LAST, echo_rq()))
    with BarePeer.associated(alone, associate_rq(CONTEXTS)) as peer:
        peer.send(find(identifier({}, PatientID="50")) + echo * 2000)
        assert statuses(peer) == [0xFF00] * 50 + [0]
        assert [peer.status() for _ in range(2000)] == [0] * 2000
        peer.release()
    assert len(waiting) == 50
    assert max(waiting) == 1


def test_an_image_that_comes_in_the_midst_of_the_answers_is_stored(alone: int) -> None:
    dataset = small_object()
    message = p_data(pdv(CT_CONTEXT, COMMAND | LAST, store_rq(dataset.SOPInstanceUID))) + b"".join(
        p_data(value) for value in fragments(CT_CONTEXT, DATA, encoded(dataset), 200)
    )
    with BarePeer.associated(alone, associate_rq(CONTEXTS)) as peer:
        peer.send(find(identifier({}, PatientID="300")) + message[:500])
        peer.send(message[500:])
        found = statuses(peer) + statuses(peer)
        assert (found.count(0xFF00), found.count(0)) == (300, 2)
        assert peer.echo() == 0
        peer.release()


def test_one_odd_header_keeps_nothing_back(alone: int) -> None:
    with BarePeer.associated(alone, associate_rq(CONTEXTS)) as peer:
        peer.send(find(identifier({}, PatientID="ODD", PatientSex="")))
        assert statuses(peer) == [0xFF00, 0xFF00, 0]
        peer.release()


@pytest.mark.parametrize("how", ["release", "reset", "abort", "close"])
def test_who_leaves_in_the_midst_of_the_answers_harms_nobody(alone: int, how: str) -> None:
    with BarePeer.associated(alone, associate_rq(CONTEXTS)) as peer:
        peer.send(find(identifier({}, PatientID="400")))
        assert peer.answer()[0] == P_DATA_TF
        if how == "reset":
            peer.reset()
        elif how == "abort":
            peer.send(b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00")
        elif how == "release":
            peer.send(b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00")
    with BarePeer.associated(alone, associate_rq(CONTEXTS)) as other:
        assert other.echo() == 0
        other.release()


def test_a_question_over_a_context_for_something_else_is_aborted_or_refused(alone: int) -> None:
    question = command_set(C_FIND_RQ, {0x0002: ui(SOP_CLASS_UID), 0x0110: us(77)})
    with BarePeer.associated(alone, associate_rq(CONTEXTS)) as peer:
        peer.send(p_data(pdv(ECHO_CONTEXT, COMMAND | LAST, question)))
        assert peer.status() == 0x0211


class _Event:
    def __init__(self, address: str) -> None:
        class Requestor:
            ae_title = "RIS"

        class Association:
            requestor = Requestor()
            is_established = True

            def looks_on(self) -> bool:
                return True

        self.assoc = Association()
        self.assoc.requestor.address = address  # type: ignore[attr-defined]
        self.identifier = identifier({}, PatientID="")


@pytest.mark.parametrize(
    ("anyone", "address", "may_ask"),
    [
        (True, "127.0.0.1", True),
        (True, "::ffff:127.0.0.1", True),
        (True, "192.0.2.7", False),
        (False, "192.0.2.7", True),
    ],
)
def test_who_is_listed_nowhere_learns_of_no_patient(anyone: bool, address: str, may_ask: bool) -> None:
    answers = WorklistAnswers(lambda question: [ITEM], anyone_may_call=anyone)
    event: events.Event = _Event(address)  # type: ignore[assignment]
    ((status, found),) = answers.handle(event)
    assert (found is not None) is may_ask
    assert may_ask or status.Status == FindStatus.NOT_AUTHORIZED


def _ask_at_once(answers: WorklistAnswers, count: int) -> tuple[int, int]:
    """How many were answered at one time at most, and how many were answered to the end."""
    event: events.Event = _Event("192.0.2.7")  # type: ignore[assignment]
    at_once, most, done = 0, 0, 0
    counting = threading.Lock()

    def send_all() -> None:
        nonlocal at_once, most, done
        for _ in answers.handle(event):
            with counting:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.001)
            with counting:
                at_once -= 1
        with counting:
            done += 1

    askers = [threading.Thread(target=send_all) for _ in range(count)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    return most, done


def test_who_ask_at_once_take_turns() -> None:
    answers = WorklistAnswers(lambda question: [ITEM] * 20, anyone_may_call=False, turn_seconds=60)
    assert _ask_at_once(answers, 6) == (1, 6)


def test_nobody_waits_for_one_that_reads_nothing() -> None:
    answers = WorklistAnswers(lambda question: [ITEM] * 2, anyone_may_call=False)
    stuck = answers.handle(_Event("192.0.2.7"))  # type: ignore[arg-type]
    next(stuck)
    assert _ask_at_once(answers, 2)[1] == 2
    stuck.close()  # type: ignore[attr-defined]
    assert answers._answering.acquire(timeout=1)


def test_a_peer_that_is_not_listed_gets_no_association(tmp_path: Path) -> None:
    receiver = Receiver(
        ae_title="ICH_NODE",
        spool=Spool(tmp_path),
        on_instance=lambda received: None,
        on_association_end=lambda summary: None,
        port=0,
        peers=(AllowedPeer(ae_title="PACS", host="127.0.0.1"),),
        worklist=lambda question: [ITEM],
    )
    receiver.start()
    try:
        with pytest.raises(AssertionError):
            BarePeer.associated(receiver.port, associate_rq(CONTEXTS, calling=b"RIS"))
        with BarePeer.associated(receiver.port, associate_rq(CONTEXTS, calling=b"PACS")) as peer:
            peer.send(find(identifier({}, PatientID="")))
            assert statuses(peer) == [0xFF00, 0]
            peer.release()
    finally:
        receiver.stop()
