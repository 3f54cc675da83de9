from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.findings import IchSubtype, Priority, StudyState
from ich_node.notify.notice import Disclosure, Notice, PatientIdentity, notice_from_json
from ich_node.notify.outcome import NoticeResult, outcome
from tests.notice_builders import IDENTIFYING, KEY, REPORT_UID, STUDY_UID, not_read, notice

TIMES = st.datetimes(
    min_value=datetime(1990, 1, 1),
    max_value=datetime(2090, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45))]),
)
TEXTS = st.text(max_size=40)


@st.composite
def notices(draw: st.DrawFn) -> Notice:
    made = notice(
        identity=draw(
            st.none()
            | st.builds(PatientIdentity, accession_number=TEXTS, patient_id=TEXTS, patient_name=TEXTS)
        ),
        priority=draw(st.sampled_from([Priority.STAT, Priority.HIGH, Priority.ROUTINE])),
        happened_at=draw(TIMES),
        received_at=draw(TIMES),
        read_at=draw(TIMES),
        suspicion=draw(st.floats(0, 1)),
        subtypes=tuple(draw(st.lists(st.sampled_from(list(IchSubtype)[1:]), unique=True))),
        model_name=draw(st.text(min_size=1, max_size=40)),
        model_version=draw(TEXTS),
    )
    return draw(st.sampled_from([made, not_read(identity=made.identity, reason_detail=made.model_name)]))


@given(notices())
def test_json_brings_the_notice_back(made: Notice) -> None:
    text = made.as_json()
    again = notice_from_json(text)
    assert again == made
    assert again.as_json() == text
    assert text.isascii()


def test_json_has_these_keys_and_values() -> None:
    content = json.loads(notice(identity=None).as_json())
    assert content == {
        "schema": "ich-node/notice",
        "schema_version": 1,
        "notice_id": "2.25.1234567890",
        "study_instance_uid": STUDY_UID,
        "pseudonym": None,
        "identity": None,
        "priority": "STAT",
        "state": "READ",
        "happened_at": "2024-05-06T07:08:10.250000+00:00",
        "received_at": "2024-05-06T07:07:00.000000+00:00",
        "read_at": "2024-05-06T07:08:09.123456+00:00",
        "suspicion": 0.934,
        "subtypes": ["intraventricular", "subdural"],
        "model_name": "test-model",
        "model_version": "1.2.3",
        "reason": None,
        "reason_detail": None,
        "report_sop_instance_uids": [REPORT_UID],
        "disclaimer": "AI result, unverified, not for primary diagnosis",
    }
    assert list(content) == sorted(content)


def test_a_key_of_a_later_version_is_passed_over() -> None:
    content = json.loads(notice().as_json())
    assert notice_from_json(json.dumps(content | {"colour": "red"})) == notice()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema":"ich-node/notice","schema_version":2}',
        '{"schema":"ich-node/notice","schema_version":1}',
    ],
)
def test_what_is_no_notice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"notice|Expecting"):
        notice_from_json(text)


def test_a_receiver_learns_no_more_than_it_may() -> None:
    full = notice()
    assert full.disclosing(Disclosure.PATIENT, key=KEY) == full
    study = full.disclosing(Disclosure.STUDY, key=KEY)
    assert study == replace(full, identity=None)
    pseudonymous = full.disclosing(Disclosure.PSEUDONYM, key=KEY)
    for secret in (*IDENTIFYING, STUDY_UID, REPORT_UID):
        assert secret not in json.dumps(json.loads(pseudonymous.as_json()), ensure_ascii=False)
    assert (pseudonymous.suspicion, pseudonymous.priority) == (full.suspicion, full.priority)
    assert pseudonymous.disclosing(Disclosure.PSEUDONYM, key=b"another") == pseudonymous


def test_a_pseudonym_depends_on_study_and_key() -> None:
    def pseudonym(uid: str, key: bytes) -> str:
        return notice(study_instance_uid=uid).disclosing(Disclosure.PSEUDONYM, key=key).pseudonym

    assert pseudonym(STUDY_UID, KEY) == pseudonym(STUDY_UID, KEY)
    assert len({pseudonym(STUDY_UID, KEY), pseudonym(STUDY_UID + "1", KEY), pseudonym(STUDY_UID, b"x")}) == 3
    with pytest.raises(ValueError, match="needs a key"):
        pseudonym(STUDY_UID, b"")


def test_the_identity_is_not_in_the_representation() -> None:
    assert not any(value in repr(notice()) for value in IDENTIFYING)


@pytest.mark.parametrize(
    "changes",
    [
        {"priority": Priority.ROUTINE},
        {"suspicion": 0.1},
        {"subtypes": (IchSubtype.SUBDURAL,)},
        {"state": StudyState.READING},
        {"state": StudyState.READ},
    ],
)
def test_a_study_that_was_not_read_cannot_look_as_if_it_was(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must not look|nothing is told|has a suspicion"):
        not_read(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"suspicion": float("nan")},
        {"suspicion": 1.5},
        {"suspicion": None},
        {"model_name": ""},
        {"read_at": None},
        {"happened_at": datetime(2024, 1, 1)},
        {"study_instance_uid": ""},
        {"pseudonym": "both"},
        {"notice_id": ""},
        {"notice_id": "a b"},
        {"notice_id": "a..b"},
        {"notice_id": "a\r\nX: y"},
        {"notice_id": "a\n"},
        {"notice_id": "a" * 65},
    ],
)
def test_a_notice_that_says_nonsense_is_not_made(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        notice(**changes)


@given(st.text(max_size=600), st.text(min_size=1, max_size=20).map(lambda s: " ".join(s.split())))
def test_a_detail_is_one_printable_line_without_secrets(words: str, secret: str) -> None:
    printable = "".join(c for c in secret if c.isprintable() and not c.isspace() and c != "*")
    detail = outcome(NoticeResult.REFUSED, words + printable + words, secrets=[printable]).detail
    assert detail.isprintable()
    assert len(detail) <= 200
    assert not printable or printable not in detail


def test_an_unprintable_character_does_not_hide_a_secret_and_a_longer_secret_goes_first() -> None:
    assert outcome(NoticeResult.SENT, "say a\x00b ab", secrets=["a b"]).detail == "say *** ab"
    assert outcome(NoticeResult.SENT, "abc ab", secrets=["ab", "abc"]).detail == "*** ***"
