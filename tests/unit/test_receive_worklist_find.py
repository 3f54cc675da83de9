from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pynetdicom.dsutils import decode, encode
from pynetdicom.sop_class import ModalityWorklistInformationFind  # type: ignore[attr-defined]

from ich_node.receive import worklist_line
from ich_node.receive.upper_layer import configure_pynetdicom
from ich_node.receive.worklist_find import (
    MOST_ANSWERS,
    SOP_CLASS_UID,
    FindRefused,
    FindStatus,
    WorklistItem,
    WorklistProvider,
    WorklistQuestion,
    encode_item,
    read_question,
)
from ich_node.receive.worklist_line import WorklistLine, answer_questions

RECEIVED = datetime(2026, 3, 1, 7, 30, 15, tzinfo=UTC)
ITEM = WorklistItem(
    study_instance_uid="1.2.3",
    patient_name="MÜLLER^JÖRG",
    patient_id="P1",
    patient_birth_date="19600101",
    patient_sex="M",
    accession_number="A1",
    study_description="CT head",
    modality="CT",
    station_ae_title="CT_ER",
    received_at=RECEIVED,
    reason=None,
    priority="STAT",
    suspicion=0.93,
)


def identifier(step: dict[str, Any] | None = None, **keys: Any) -> Dataset:
    asked, inner = _dataset(keys), _dataset(step or {})
    asked.ScheduledProcedureStepSequence = [inner] if step is not None else []
    return asked


def _dataset(values: dict[str, Any]) -> Dataset:
    """With values that are none, too, as a peer may send them."""
    made = Dataset()
    for keyword, value in values.items():
        tag = Tag(keyword)
        made[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE)
    return made


@pytest.fixture(autouse=True, scope="module")
def _as_in_a_receiver() -> None:
    configure_pynetdicom()


def question(asked: Dataset) -> WorklistQuestion:
    return read_question(asked, asker="RIS", host="127.0.0.1")[0]


def answers(asked: Dataset, found: list[WorklistItem]) -> list[tuple[int, Dataset | None]]:
    provider = WorklistProvider(lambda question: found[: question.limit])
    return [(int(s.Status), i) for s, i in provider.answers(asked, asker="RIS", host="127.0.0.1")]


def test_the_class_is_the_one_that_pynetdicom_serves() -> None:
    assert ModalityWorklistInformationFind == SOP_CLASS_UID


def test_matching_keys_are_read() -> None:
    local = RECEIVED.astimezone()
    step = {
        "Modality": "CT",
        "ScheduledStationAETitle": "CT*",
        "ScheduledProcedureStepStartDate": local.strftime("%Y%m%d"),
        "ScheduledProcedureStepStartTime": local.strftime("%H%M-%H%M"),
    }
    read = question(
        identifier(
            step,
            PatientName="M?LLER*",
            PatientID="*",
            AccessionNumber="A1",
            StudyInstanceUID=["1.2.3", "1.2.4"],
            RequestedProcedurePriority="STAT",
        )
    )
    assert (read.asker, read.host) == ("RIS", "127.0.0.1")
    assert (read.patient_name, read.patient_id, read.accession_number) == ("M?LLER*", "", "A1")
    assert (read.modality, read.station_ae_title, read.priorities) == ("CT", "CT*", ("STAT",))
    assert read.study_instance_uids == ("1.2.3", "1.2.4")
    assert read.received_from == local.replace(second=0)
    assert read.received_before is not None
    assert read.received_before > local.replace(second=0)


@pytest.mark.parametrize(
    ("date", "begin", "end"),
    [
        ("20260301", (2026, 3, 1), (2026, 3, 2)),
        ("20260301-20260303", (2026, 3, 1), (2026, 3, 4)),
        ("20260301-", (2026, 3, 1), None),
        ("-20260301", None, (2026, 3, 2)),
        ("2026.03.01", (2026, 3, 1), (2026, 3, 2)),
        ("", None, None),
        ("*", None, None),
    ],
)
def test_date_ranges(date: str, begin: tuple[int, int, int] | None, end: tuple[int, int, int] | None) -> None:
    read = question(identifier({"ScheduledProcedureStepStartDate": date}))
    expected = [None if day is None else datetime(*day).astimezone() for day in (begin, end)]
    assert [read.received_from, read.received_before] == expected


def test_a_time_of_the_day_without_a_date() -> None:
    local = RECEIVED.astimezone().strftime("%H%M%S")
    for times, fits in ((local, True), (local[:4], True), ("000000-000001", False), (f"{local}-", True)):
        found = answers(identifier({"ScheduledProcedureStepStartTime": times}), [ITEM])
        assert bool(found) is fits, times


@pytest.mark.parametrize(
    ("time", "begin", "end"),
    [
        ("10", (10, 0, 0), (11, 0, 0)),
        ("1030", (10, 30, 0), (10, 31, 0)),
        ("103015.25", (10, 30, 15), (10, 30, 16)),
        ("08-10", (8, 0, 0), (11, 0, 0)),
        ("-1030", (0, 0, 0), (10, 31, 0)),
    ],
)
def test_a_time_that_names_no_seconds_is_all_of_it(
    time: str, begin: tuple[int, int, int], end: tuple[int, int, int]
) -> None:
    step = {"ScheduledProcedureStepStartDate": "20260301", "ScheduledProcedureStepStartTime": time}
    read = question(identifier(step))
    assert [read.received_from, read.received_before] == [
        datetime(2026, 3, 1, *of_day).astimezone() for of_day in (begin, end)
    ]


@pytest.mark.parametrize(
    ("asked", "priorities"),
    [
        ("STAT", ("STAT",)),
        ("ST*", ("STAT",)),
        (["STAT", "H?GH "], ("STAT", "HIGH")),
        (["STAT", "*"], ()),
        ("LOW", ("LOW",)),
        ("X*", ("X*",)),
    ],
)
def test_priorities_are_matched_with_wild_cards(asked: str | list[str], priorities: tuple[str, ...]) -> None:
    assert question(identifier(RequestedProcedurePriority=asked)).priorities == priorities


@pytest.mark.parametrize(
    ("step", "keys"),
    [
        ({"ScheduledProcedureStepStartDate": "yesterday"}, {}),
        ({"ScheduledProcedureStepStartDate": "20261399"}, {}),
        ({"ScheduledProcedureStepStartTime": "25"}, {}),
        ({}, {"StudyInstanceUID": "1.2.x"}),
        ({}, {"PatientName": "x" * 300}),
    ],
)
def test_keys_that_are_none_are_refused(step: dict[str, str], keys: dict[str, str]) -> None:
    ((status, found),) = answers(identifier(step, **keys), [ITEM])
    assert (status, found) == (0xA900, None)


def test_two_steps_are_refused() -> None:
    asked = identifier()
    asked.ScheduledProcedureStepSequence = [Dataset(), Dataset()]
    assert answers(asked, [ITEM])[0][0] == 0xA900


def test_only_what_is_asked_for_is_answered() -> None:
    asked = identifier(
        {"Modality": "", "ScheduledProcedureStepID": ""}, PatientName="", RequestedProcedurePriority=""
    )
    ((status, found),) = answers(asked, [ITEM])
    assert status == 0xFF00
    assert found is not None
    assert {element.keyword for element in found} == {
        "SpecificCharacterSet",
        "PatientName",
        "RequestedProcedurePriority",
        "ScheduledProcedureStepSequence",
    }
    (step,) = found.ScheduledProcedureStepSequence
    assert {element.keyword for element in step} == {"Modality", "ScheduledProcedureStepID"}
    assert found.RequestedProcedurePriority == "STAT"


def test_a_sequence_without_items_asks_for_all_of_it() -> None:
    found = encode_item(ITEM, identifier(PatientID=""))
    (step,) = found.ScheduledProcedureStepSequence
    assert step.ScheduledProcedureStepStartDate == RECEIVED.astimezone().strftime("%Y%m%d")
    assert step.ScheduledStationAETitle == "CT_ER"
    assert "93%" in step.CommentsOnTheScheduledProcedureStep
    assert "not for primary diagnosis" in step.CommentsOnTheScheduledProcedureStep


def test_a_study_that_was_not_read_is_said_to_be_so() -> None:
    item = replace(ITEM, suspicion=None, reason="NOT_HEAD", priority="MEDIUM")
    found = encode_item(item, identifier(RequestedProcedureComments=""))
    assert found.RequestedProcedureComments == "No AI result: not a head"


def test_keys_that_are_matched_by_nothing_are_named_in_the_status() -> None:
    assert answers(identifier({}, PatientWeight="70"), [ITEM])[0][0] == 0xFF01
    assert answers(identifier({"ScheduledStationName": "X"}), [ITEM])[0][0] == 0xFF01
    assert (
        answers(identifier({}, PatientWeight=None, SpecificCharacterSet="ISO_IR 100"), [ITEM])[0][0] == 0xFF00
    )


def test_constants_and_empty_attributes_are_matched() -> None:
    assert len(answers(identifier({}, RequestedProcedureID="1"), [ITEM])) == 1
    assert answers(identifier({}, RequestedProcedureID="2"), [ITEM]) == []
    assert answers(identifier({"ScheduledPerformingPhysicianName": "WHO"}), [ITEM]) == []


def test_who_asks_for_too_much_is_told_so() -> None:
    many = [ITEM] * (MOST_ANSWERS + 20)
    found = answers(identifier({}, PatientID=""), many)
    assert [status for status, _ in found] == [0xFF00] * MOST_ANSWERS + [0xA700]
    assert len(answers(identifier({}), many[:MOST_ANSWERS])) == MOST_ANSWERS


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("ROE^ANN", "", None),
        ("MÜLLER^JÖRG", "", "ISO_IR 100"),
        ("MÜLLER^JÖRG", "ISO_IR 192", "ISO_IR 192"),
        ("ИВАНОВ", "ISO_IR 144", "ISO_IR 144"),
        ("ИВАНОВ", "ISO_IR 100", "ISO_IR 192"),
        ("Yamada^Tarou=山田^太郎", "", "ISO_IR 192"),
        ("ИВАНОВ", "NONSENSE", "ISO_IR 192"),
        ("山田^太郎", "ISO 2022 IR 87", "ISO_IR 192"),
        ("ヤマダ^タロウ", "ISO_IR 13", "ISO_IR 192"),
        ("MÜLLER^JÖRG", "ISO_IR 6", "ISO_IR 100"),
    ],
)
def test_character_sets(name: str, own: str, expected: str | None) -> None:
    asked = identifier(PatientName="")
    if own:
        asked.SpecificCharacterSet = own
    found = encode_item(replace(ITEM, patient_name=name), asked)
    assert found.get("SpecificCharacterSet") == expected
    encoded = encode(found, False, True)
    assert encoded is not None
    assert decode(_file(encoded), False, True).PatientName == name


@pytest.mark.parametrize(
    "keyword", ["patient_sex", "patient_birth_date", "modality", "station_ae_title", "study_instance_uid"]
)
def test_a_value_that_cannot_be_sent_is_left_out(keyword: str) -> None:
    asked = identifier({}, PatientSex="", PatientBirthDate="", StudyInstanceUID="", PatientName="")
    found = encode_item(replace(ITEM, patient_name="王^小东", **{keyword: "男"}), asked)
    encoded = encode(found, False, True)
    assert encoded is not None
    assert decode(_file(encoded), False, True).PatientName == "王^小东"
    assert sum(not found[name].value for name in ("PatientSex", "PatientBirthDate", "StudyInstanceUID")) == (
        0 if keyword in ("modality", "station_ae_title") else 1
    )


def _file(content: bytes) -> Any:
    from io import BytesIO

    return BytesIO(content)


KEYWORDS = st.sampled_from(
    [
        "PatientName",
        "PatientID",
        "StudyInstanceUID",
        "AccessionNumber",
        "RequestedProcedurePriority",
        "PatientWeight",
    ]
)
STEP = st.sampled_from(["Modality", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime"])
TEXT = st.text("0123456789-.*?\\^A ", max_size=20)


@given(keys=st.dictionaries(KEYWORDS, TEXT), step=st.dictionaries(STEP, TEXT))
def test_whatever_is_asked_gets_an_answer(keys: dict[str, str], step: dict[str, str]) -> None:
    def raw(values: dict[str, str]) -> Dataset:
        made = Dataset()
        for keyword, value in values.items():
            tag = Tag(keyword)
            vr, encoded = dictionary_VR(tag), value.encode()
            made[tag] = RawDataElement(tag, vr, len(encoded), encoded, 0, False, True)
        return made

    asked = raw(keys)
    asked.ScheduledProcedureStepSequence = Sequence([raw(step)])
    found = answers(asked, [ITEM])
    assert all(status in (0xFF00, 0xFF01, 0xA900) for status, _ in found)
    for _, item in found:
        assert item is None or encode(item, False, True) is not None


@contextmanager
def line(
    look_up: Callable[[WorklistQuestion], list[WorklistItem]], seconds: float = 30.0
) -> Iterator[WorklistLine]:
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())
    thread = threading.Thread(target=answer_questions, args=(theirs, look_up))
    thread.start()
    yield WorklistLine(ours, answer_seconds=seconds)
    ours.close()
    thread.join(30)
    assert not thread.is_alive()


QUESTION = WorklistQuestion(asker="RIS", host="127.0.0.1", patient_id="P1")


def test_questions_cross_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist_line, "yield_to_receiving", lambda: None)  # this thread is a test's
    with line(lambda asked: [replace(ITEM, patient_id=asked.patient_id)] * 3) as ends:
        assert ends.look_up(QUESTION) == [ITEM] * 3
        assert ends.look_up(QUESTION) == [ITEM] * 3


def test_what_goes_wrong_at_the_other_end_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worklist_line, "yield_to_receiving", lambda: None)

    def broken(asked: WorklistQuestion) -> list[WorklistItem]:
        if asked.patient_id:
            raise FindRefused(FindStatus.OUT_OF_RESOURCES, "away")
        raise RuntimeError(ITEM.patient_name)

    with line(broken) as ends:
        for asked, status in ((QUESTION, 0xA700), (replace(QUESTION, patient_id=""), 0xC000)):
            with pytest.raises(FindRefused) as caught:
                ends.look_up(asked)
            assert caught.value.status == status
    assert "MÜLLER" not in caplog.text


def test_an_answer_that_comes_too_late_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist_line, "yield_to_receiving", lambda: None)
    may_go_on = threading.Event()

    def slow(asked: WorklistQuestion) -> list[WorklistItem]:
        if asked.patient_id == "slow":
            assert may_go_on.wait(30)
        return [replace(ITEM, patient_id=asked.patient_id)]

    with line(slow, seconds=0.05) as ends:
        with pytest.raises(FindRefused):
            ends.look_up(replace(QUESTION, patient_id="slow"))
        may_go_on.set()
        ends._answer_seconds = 30.0
        assert [item.patient_id for item in ends.look_up(QUESTION)] == ["P1"]


def test_nobody_waits_in_a_row_for_a_database_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist_line, "yield_to_receiving", lambda: None)
    may_go_on = threading.Event()
    asked: list[str] = []

    def hanging(question: WorklistQuestion) -> list[WorklistItem]:
        asked.append(question.patient_id)
        assert may_go_on.wait(30)
        return [ITEM]

    refused: list[float] = []

    def ask(ends: WorklistLine, number: int) -> None:
        begun = time.monotonic()
        with pytest.raises(FindRefused) as caught:
            ends.look_up(replace(QUESTION, patient_id=str(number)))
        assert caught.value.status == 0xA700
        refused.append(time.monotonic() - begun)

    with line(hanging, seconds=0.5) as ends:
        askers = [threading.Thread(target=ask, args=(ends, number)) for number in range(8)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join(30)
        may_go_on.set()
        ends._answer_seconds = 30.0
        assert ends.look_up(replace(QUESTION, patient_id="last")) == [ITEM]
    assert len(refused) == 8
    assert max(refused) < 2.0  # one after the other they would wait for 4 s
    assert len(asked) == 2  # and a database that recovers is not asked for what nobody waits for
    assert asked[-1] == "last"


def test_a_line_that_is_cut_is_a_refusal() -> None:
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())
    theirs.close()
    with pytest.raises(FindRefused) as caught:
        WorklistLine(ours).look_up(QUESTION)
    assert caught.value.status == 0xC000
    ours.close()


def test_times_are_local_on_both_sides() -> None:
    at = RECEIVED.astimezone()
    read = question(identifier({"ScheduledProcedureStepStartDate": at.strftime("%Y%m%d")}))
    assert read.received_from is not None
    assert read.received_from <= RECEIVED < read.received_from + timedelta(days=1, hours=1)
