from __future__ import annotations

from email import message_from_bytes
from email.policy import default as default_policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.errors import ConfigurationError
from ich_node.findings import Priority
from ich_node.notify.mail import MailRelay, mail_message
from ich_node.notify.notice import Disclosure, PatientIdentity
from tests.notice_builders import IDENTIFYING, KEY, STUDY_UID, not_read, notice

RELAY = MailRelay(
    host="mail.invalid", sender="node@hospital.example", recipients=("a@x.example", "b@x.example")
)


def text_of(raw: bytes) -> str:
    return str(message_from_bytes(raw, policy=default_policy).get_content()).replace("\r\n", "\n")


def test_the_mail_says_what_was_found() -> None:
    message = mail_message(notice(), RELAY)
    assert message["Subject"] == "[ICH AI] STAT: suspected intracranial hemorrhage"
    assert message["To"] == "a@x.example, b@x.example"
    assert message["Message-ID"] == "<2.25.1234567890@hospital.example>"
    assert message["Date"] == "Mon, 06 May 2024 07:08:10 +0000"
    assert (message["Auto-Submitted"], message["Importance"]) == ("auto-generated", "high")
    assert text_of(message.as_bytes()) == (
        "Suspected hemorrhage: high confidence.\n\n"
        f"Study Instance UID: {STUDY_UID}\n"
        "Accession number: ACC-4711\nPatient ID: MRN-0815\nPatient name: Müller^Änne^B^Dr.^Jr.=x=y\n\n"
        "First image received: 2024-05-06 07:07 UTC\nRead: 2024-05-06 07:08 UTC\n\n"
        "Suggested reading priority: STAT\nSuspicion: 93 %\nFlagged: intraventricular, subdural\n"
        "Algorithm: test-model 1.2.3\nAI result, unverified, not for primary diagnosis\n"
    )


@pytest.mark.parametrize(
    ("told", "subject"),
    [
        (notice(priority=Priority.HIGH), "[ICH AI] HIGH: possible intracranial hemorrhage"),
        (notice(priority=Priority.ROUTINE), "[ICH AI] ROUTINE: no hemorrhage flagged"),
        (not_read(), "[ICH AI] MEDIUM: head CT was not read, a person must look"),
        (not_read(priority=Priority.STAT), "[ICH AI] STAT: head CT was not read, a person must look"),
    ],
)
def test_the_subject_fits(told: object, subject: str) -> None:
    assert mail_message(told, RELAY)["Subject"] == subject  # type: ignore[arg-type]


def test_a_mail_without_identity_has_none_and_no_subject_ever_has() -> None:
    full = notice()
    pseudonymous = mail_message(full.disclosing(Disclosure.PSEUDONYM, key=KEY), RELAY)
    text = text_of(pseudonymous.as_bytes()) + str(pseudonymous.items())
    assert not any(value in text for value in (*IDENTIFYING, STUDY_UID))
    headers = str(mail_message(full, RELAY).items())
    assert not any(value in headers for value in IDENTIFYING)


@given(st.text(max_size=80))
def test_any_name_stays_on_its_line_and_the_same_notice_is_the_same_mail(name: str) -> None:
    told = notice(identity=PatientIdentity(patient_name="x" + name))
    raw = mail_message(told, RELAY).as_bytes()
    assert raw == mail_message(told, RELAY).as_bytes()
    parsed = message_from_bytes(raw, policy=default_policy)
    assert parsed.keys() == mail_message(notice(), RELAY).keys()
    assert raw.isascii()
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    lines = text_of(raw).split("\n")
    assert sum(line.startswith("Patient name: x") for line in lines) == 1


def test_a_long_notice_id_is_a_message_id() -> None:
    raw = mail_message(notice(notice_id="a" * 64), RELAY).as_bytes()
    assert str(message_from_bytes(raw, policy=default_policy)["Message-ID"]).strip() == (
        f"<{'a' * 64}@hospital.example>"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"recipients": ()},
        {"recipients": ("nobody",)},
        {"recipients": ("a@x.example\r\nBcc: all@x.example",)},
        {"recipients": ("ä@x.example",)},
        {"sender": ""},
        {"security": "none", "user": "u", "password": "p"},
        {"user": "u", "password": "pässword"},
    ],
)
def test_wrong_settings_are_refused_without_the_password(changes: dict[str, object]) -> None:
    values = {"host": "h", "sender": "a@x.example", "recipients": ("b@x.example",)} | changes
    with pytest.raises(ConfigurationError) as raised:
        MailRelay(**values)  # type: ignore[arg-type]
    assert "pässword" not in str(raised.value)


def test_the_password_is_not_in_the_representation() -> None:
    relay = MailRelay(host="h", sender="a@x.example", recipients=("b@x.example",), user="u", password="hush")
    assert "hush" not in repr(relay)
