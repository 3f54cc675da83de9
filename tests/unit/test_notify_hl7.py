from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import hl7
import pytest
from hl7apy.exceptions import MaxLengthReached
from hl7apy.parser import parse_message
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.errors import ConfigurationError
from ich_node.findings import Priority, StudyState
from ich_node.notify.hl7 import (
    CharacterSet,
    Hl7Header,
    Hl7Version,
    message_control_id,
    oru_r01,
    read_acknowledgment,
)
from ich_node.notify.mllp import MllpDestination, send_oru
from ich_node.notify.notice import Disclosure, Notice, PatientIdentity
from ich_node.notify.outcome import NoticeResult
from tests.notice_builders import IDENTIFYING, KEY, REPORT_UID, STUDY_UID, not_read, notice

HEADER = Hl7Header(
    sending_application="ICH_NODE",
    sending_facility="RAD",
    receiving_application="RIS",
    receiving_facility="HOSP",
    patient_id_authority="HOSPITAL",
)
ANONYMOUS = notice().disclosing(Disclosure.PSEUDONYM, key=KEY)
VERSIONS = pytest.mark.parametrize("version", list(Hl7Version))
TOLD = {
    "with identity": notice(),
    "without": notice(identity=None),
    "pseudonym": ANONYMOUS,
    "not read": not_read(),
    "failed": not_read(state=StudyState.FAILED, identity=None),
    "nothing found": notice(priority=Priority.ROUTINE, suspicion=0.01, subtypes=()),
}


def observations(text: str) -> dict[str, hl7.Segment]:
    """OBX by the code of its identifier, by the local one where there is one; the last of several."""
    found = {}
    for segment in hl7.parse(text).segments("OBX"):
        identifier = segment[3][0]
        local = identifier[3][0] if len(identifier) > 3 else ""
        found[local or identifier[0][0]] = segment
    return found


@VERSIONS
@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD)
def test_a_message_has_the_structure_of_its_version(
    version: Hl7Version, told: Notice, tmp_path: Path
) -> None:
    text = oru_r01(told, Hl7Header(version=version, sending_facility="RAD"))
    report = tmp_path / "report"
    assert parse_message(text, find_groups=True).validate(report_file=str(report))
    # Tables that a site or another standard fills: coding schemes, and a character set that HL7 2.5 lists.
    allowed = ("not in table HL70396", "UNICODE UTF-8 not in table HL70211")
    problems = report.read_text().splitlines()
    assert [line for line in problems if not any(words in line for words in allowed)] == []
    message = hl7.parse(text)
    assert str(message.segment("MSH")[12]) == version
    assert str(message).strip("\r") == text.strip("\r")


def test_the_header_says_who_to_whom_and_in_which_mode() -> None:
    msh = hl7.parse(oru_r01(notice(), HEADER)).segment("MSH")
    assert [str(msh[n]) for n in (3, 4, 5, 6)] == ["ICH_NODE", "RAD", "RIS", "HOSP"]
    assert str(msh[7]) == "20240506070810+0000"
    assert str(msh[9]) == "ORU^R01^ORU_R01"
    assert str(msh[10]) == message_control_id(notice())
    assert len(str(msh[10])) == 20
    assert [str(msh[n]) for n in (11, 12)] == ["P", "2.5.1"]
    assert [str(msh[n]) for n in (15, 16)] == ["", ""]  # original acknowledgment mode


def test_the_result_is_preliminary_and_coded() -> None:
    text = oru_r01(notice(), HEADER)
    obr = hl7.parse(text).segment("OBR")
    assert (str(obr[3]), str(obr[25])) == ("ACC-4711", "P")
    assert str(obr[4]) == "303653007^Computed tomography of head^SCT"
    found = observations(text)
    assert {str(segment[11]) for segment in found.values()} == {"P"}
    assert str(found["1386000"][5]) == "52101004^Present^SCT"
    assert str(found["1386000"][8]) == "AA"
    certainty = found["111012"]
    assert [str(certainty[n]) for n in (2, 5, 6)] == ["NM", "93.4", "%^Percent^UCUM"]
    assert str(found["INTRAVENTRICULAR"][5]) == "52101004^Present^SCT"
    assert str(found["SUBDURAL"][3]).startswith("35486000^")
    assert str(found["PRIORITY"][5]) == "STAT"
    assert (str(found["111001"][5]), str(found["111003"][5])) == ("test-model", "1.2.3")
    assert (str(found["110180"][5]), str(found["RESULT"][5])) == (STUDY_UID, REPORT_UID)
    assert "AI result, unverified, not for primary diagnosis" in text


def test_a_possible_hemorrhage_is_indeterminate_and_nothing_flagged_is_not_normal() -> None:
    possible = observations(oru_r01(notice(priority=Priority.HIGH), HEADER))["1386000"]
    assert (str(possible[5]), str(possible[8])) == ("82334004^Indeterminate^SCT", "A")
    nothing = observations(oru_r01(TOLD["nothing found"], HEADER))["1386000"]
    assert (str(nothing[5]), str(nothing[8])) == ("2667000^Absent^SCT", "")


def test_a_study_that_was_not_read_has_no_result_and_says_why() -> None:
    text = oru_r01(not_read(priority=Priority.STAT), HEADER)
    found = observations(text)
    assert (str(found["1386000"][5]), str(found["1386000"][11])) == ("", "X")
    assert "111012" not in found
    assert str(hl7.parse(text).segment("OBR")[25]) == "I"
    assert str(found["121077"][5]) == ("NOT READ, a person must look: The series has 3 slices; 8 are needed.")
    assert not {"Present", "Absent", "Indeterminate"} & set(text.replace("^", " ").split())


def test_identity_goes_out_only_where_it_is_in_the_notice() -> None:
    pid = hl7.parse(oru_r01(notice(), HEADER)).segment("PID")
    assert str(pid[3]) == "MRN-0815^^^HOSPITAL^PI"
    assert str(pid[5]) == "Müller^Änne^B^Jr.^Dr.^^L"
    for told in (ANONYMOUS, notice(identity=None), not_read(identity=None)):
        text = oru_r01(told, HEADER)
        assert not any(value in text for value in IDENTIFYING)
        pid = hl7.parse(text).segment("PID")
        assert str(pid[3]).endswith("^^^ICH_NODE^ANON")
        assert str(pid[5]) == "^^^^^^S"
    assert STUDY_UID not in oru_r01(ANONYMOUS, HEADER)


def test_the_character_set_is_named_and_kept_to() -> None:
    def named(text: str) -> str:
        return str(hl7.parse(text).segment("MSH")[18])

    assert named(oru_r01(ANONYMOUS, HEADER)) == "ASCII"
    assert named(oru_r01(notice(), HEADER)) == "UNICODE UTF-8"
    latin = Hl7Header(character_set=CharacterSet.LATIN_1)
    told = notice(identity=PatientIdentity(patient_name="Müller^Łukasz"))
    text = oru_r01(told, latin)
    assert named(text) == "8859/1"
    assert text.encode("latin-1")
    assert "Müller^?ukasz" in text
    assert oru_r01(told, Hl7Header(character_set=CharacterSet.ASCII)).isascii()


def test_the_same_notice_is_the_same_message() -> None:
    assert oru_r01(notice(), HEADER) == oru_r01(notice(), HEADER)
    other = notice(notice_id="another")
    assert message_control_id(other) != message_control_id(notice())


TRICKY = st.text(alphabet=st.sampled_from("\\|^&~FSTREX0DH.a ü\r\n\x0b\x1c\x00\u2028"), max_size=30)


@settings(max_examples=25, deadline=None)
@given(TRICKY, TRICKY)
def test_no_text_breaks_out_of_its_field(name: str, reason: str) -> None:
    told = not_read(reason_detail="x" + reason, identity=PatientIdentity(patient_id=name))
    text = oru_r01(told, HEADER)
    message = hl7.parse(text)
    assert [str(segment[0]) for segment in message] == ["MSH", "PID", "OBR", *["OBX"] * (len(message) - 3)]
    assert "\x0b" not in text
    assert "\x1c" not in text
    expected = "NOT READ, a person must look: x" + "".join(c if c.isprintable() else " " for c in reason)
    said = str(observations(text)["121077"][5])
    assert message.unescape(said) == expected.rstrip()
    patient_id = str(message.segment("PID")[3]).split("^")[0]
    assert message.unescape(patient_id) == "".join(c if c.isprintable() else " " for c in name).strip()


def test_long_values_are_sent_whole() -> None:
    told = notice(
        identity=PatientIdentity(accession_number="A" * 16, patient_id="P" * 64, patient_name="N" * 64),
        model_name="m" * 300,
    )
    text = oru_r01(told, HEADER)
    for value in ("P" * 64, "N" * 64, "m" * 300):
        assert value in text


def test_a_header_that_does_not_fit_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match="receiving_facility"):
        Hl7Header(receiving_facility="x" * 21)
    with pytest.raises(ConfigurationError, match="sending_application"):
        Hl7Header(sending_application="")


# acknowledgments


def test_an_acknowledgment_of_hl7_2_5_is_read() -> None:
    said = read_acknowledgment(
        "MSH|^~\\&|RIS|H|ICH_NODE||20240101||ACK^R01^ACK|9|P|2.5.1\r"
        "MSA|AE|X1\r"
        "ERR||PID^1^3|101^Required field missing^HL70357|E|||no \\T\\ id|Ask the help desk\r"
    )
    assert (said.code, said.control_id, said.conditions) == ("AE", "X1", ("101",))
    assert said.words == "101 Required field missing HL70357 no & id Ask the help desk PID 1 3"


def test_an_acknowledgment_of_hl7_2_3_is_read() -> None:
    said = read_acknowledgment(
        "MSH|^~\\&|RIS|H|ICH_NODE||20240101||ACK|9|P|2.3.1\rMSA|AR|X1|no such order|||204^Unknown key\r"
        "ERR|OBR^1^3^207&Application internal error\r"
    )
    assert (said.code, said.conditions) == ("AR", ("204", "207"))
    assert said.words.startswith("no such order")


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("version", ["2.1", "2.5.1^DEU", "", "9.9"])
def test_line_ends_and_versions_do_not_matter(end: str, version: str) -> None:
    said = read_acknowledgment(f"MSH|^~\\&|R|||||ACK||9|P|{version}{end}MSA|AA|X1{end}ZZZ|{end}")
    assert (said.code, said.control_id, said.words) == ("AA", "X1", "")


def test_other_marks_are_those_of_the_acknowledgment() -> None:
    said = read_acknowledgment("MSH$%?!@$R\rMSA$AE$X1$a!F!b%c\r")
    assert (said.code, said.words) == ("AE", "a$b c")


@given(st.text(max_size=200))
def test_any_answer_is_an_acknowledgment_or_none(text: str) -> None:
    said = read_acknowledgment("MSH|^~\\&|\rMSA|" + text)
    assert said.code in text
    assert said.control_id in text
    with pytest.raises(ValueError, match="no HL7 message"):
        read_acknowledgment("MSA|" + text)
    with pytest.raises(ValueError, match="without MSA"):
        read_acknowledgment("MSH|^~\\&|" + text.replace("MSA", ""))


def test_times_are_in_utc() -> None:
    local = datetime.fromisoformat("2024-05-06T09:08:10+02:00")
    assert oru_r01(notice(happened_at=local), HEADER) == oru_r01(
        notice(happened_at=local.astimezone(UTC)), HEADER
    )


def test_a_message_that_cannot_be_made_is_refused_and_quotes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MaxLengthReached("MRN-0815", 3)

    monkeypatch.setattr("hl7apy.core.Message.validate", refuse)
    outcome = send_oru(notice(), HEADER, MllpDestination(host="ris.invalid", port=2575))
    assert (outcome.result, outcome.detail) == (
        NoticeResult.REFUSED,
        "the notice cannot be written as HL7 2.5.1: MaxLengthReached",
    )
