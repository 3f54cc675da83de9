"""Identity and order attributes arrive in the results as the images had them."""

from __future__ import annotations

import io
from datetime import datetime
from typing import Any

import pydicom
import pytest
from pydicom import Dataset

from ich_node.report import build_secondary_captures, build_structured_report
from tests.report_builders import make_report


def written(dataset: Dataset) -> Dataset:
    """What a PACS reads of an object."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return pydicom.dcmread(file)


def results(header: dict[str, Any], **changes: Any) -> list[Dataset]:
    """The structured report and the summary on images with these attributes."""
    report = make_report(0.1, header=header, **changes)
    return [
        written(build_structured_report(report)),
        *map(written, build_secondary_captures(report)),
    ]


def stored(header: dict[str, Any]) -> dict[str, Any]:
    """The attributes as they come out of a file, with the bytes of their character set."""
    image = Dataset()
    for keyword, value in header.items():
        setattr(image, keyword, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, image, implicit_vr=False, little_endian=True)
    file.seek(0)
    read = pydicom.dcmread(file, force=True)
    return {keyword: read[keyword].value for keyword in header}


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "Ωmega^Łukasz=山田^太郎"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 144", "Люкceмбypг"),
    ],
)
def test_character_set_and_name_are_kept(character_set: Any, name: str) -> None:
    header = stored({"SpecificCharacterSet": character_set, "PatientName": name})
    for result in results(header, caveats=("plain",)):
        assert result.SpecificCharacterSet == character_set
        assert str(result.PatientName) == name


def test_names_of_models_are_written_in_the_character_set_of_the_images() -> None:
    """Content is encoded apart from the rest of the report, and has to follow the same character set."""
    header = stored({"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada=山田"})
    report = make_report(0.1, header=header, caveats=("山田",))
    result = written(build_structured_report(report))
    assert result.SpecificCharacterSet == ["", "ISO 2022 IR 87"]
    assert "Caveat: 山田" in [e.value for e in result.iterall() if e.keyword == "TextValue"]


@pytest.mark.parametrize("character_set", ["ISO_IR 100", None])
def test_our_own_text_may_need_utf_8_and_the_name_is_recoded_with_it(character_set: str | None) -> None:
    image = stored({"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"})
    header = image | {"SpecificCharacterSet": character_set}
    report = make_report(0.1, header=header, caveats=("Größe 12 µm → 3",))
    result = written(build_structured_report(report))
    assert result.SpecificCharacterSet == "ISO_IR 192"
    assert str(result.PatientName) == "Müller^Jörg"
    (comment,) = (e.value for e in result.iterall() if e.keyword == "TextValue" and "Caveat" in e.value)
    assert comment == "Caveat: Größe 12 µm → 3"


def test_missing_type_2_attributes_are_there_and_empty() -> None:
    missing = ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"]
    missing += ["StudyID", "AccessionNumber", "ReferringPhysicianName", "SpecificCharacterSet"]
    for result in results(dict.fromkeys(missing)):
        for keyword in missing[:-1]:
            assert keyword in result
            assert not result[keyword].value


def test_values_that_break_their_representation_are_emptied_but_text_is_never_cut() -> None:
    with pydicom.config.disable_value_validation():
        header = {
            "PatientBirthDate": "unknown",
            "StudyTime": "noon",
            "PatientSex": "male, adult, thinks",
            "PatientID": "9" * 80,
            "PatientAge": "about 40",
        }
        report = make_report(0.1, header=header)
    result = build_structured_report(report)
    assert result.PatientBirthDate in ("", None)
    assert result.StudyTime in ("", None)
    assert result.PatientSex in ("", None)
    assert "PatientAge" not in result
    assert result.PatientID == "9" * 80


def dataset(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def order_item() -> Dataset:
    return dataset(
        RequestedProcedureID="RP1",
        RequestedProcedureDescription="CT head",
        ScheduledProcedureStepID="SPS1",
        ReasonForTheRequestedProcedure="Headache",
        RequestedProcedureCodeSequence=[
            dataset(CodeValue="HEAD", CodingSchemeDesignator="99SITE", CodeMeaning="CT of head")
        ],
    )


def test_order_is_copied() -> None:
    issuer = [dataset(LocalNamespaceEntityID="RIS")]
    header = {
        "AccessionNumber": "A1",
        "IssuerOfAccessionNumberSequence": issuer,
        "OrderPlacerIdentifierSequence": issuer,
        "PlacerOrderNumberImagingServiceRequest": "P7",
        "RequestAttributesSequence": [order_item()],
    }
    report, summary = results(header)
    (request,) = report.ReferencedRequestSequence
    assert request.AccessionNumber == "A1"
    assert request.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "RIS"
    assert request.OrderPlacerIdentifierSequence[0].LocalNamespaceEntityID == "RIS"
    assert request.PlacerOrderNumberImagingServiceRequest == "P7"
    assert request["FillerOrderNumberImagingServiceRequest"].is_empty
    assert request.RequestedProcedureID == "RP1"
    assert request.RequestedProcedureDescription == "CT head"
    assert request.RequestedProcedureCodeSequence[0].CodeValue == "HEAD"
    assert request.ReasonForTheRequestedProcedure == "Headache"
    assert "ScheduledProcedureStepID" not in request
    assert request.StudyInstanceUID == report.StudyInstanceUID
    assert summary.AccessionNumber == "A1"
    assert summary.RequestAttributesSequence[0].ScheduledProcedureStepID == "SPS1"


def test_without_order_none_is_invented() -> None:
    report, summary = results({"AccessionNumber": None, "RequestAttributesSequence": None})
    assert "ReferencedRequestSequence" not in report
    assert "RequestAttributesSequence" not in summary


def test_deidentification_flag_needs_its_method() -> None:
    for result in results({"PatientIdentityRemoved": "YES", "DeidentificationMethod": ""}):
        assert "PatientIdentityRemoved" not in result
    for result in results({"PatientIdentityRemoved": "YES", "DeidentificationMethod": "by hand"}):
        assert result.PatientIdentityRemoved == "YES"


@pytest.mark.parametrize(
    ("offset", "expected"),
    [("+0530", "20240506123809"), ("-0930", "20240505213809"), ("+0000", "20240506070809")],
)
def test_times_are_in_the_zone_of_the_images(offset: str, expected: str) -> None:
    for result in results({"TimezoneOffsetFromUTC": offset}):
        assert (result.ContentDate + result.ContentTime)[:14] == expected
        assert result.TimezoneOffsetFromUTC == offset


@pytest.mark.parametrize("offset", ["+9900", "local", ""])
def test_a_zone_that_is_none_leaves_that_of_this_machine(offset: str) -> None:
    with pydicom.config.disable_value_validation():
        report = make_report(0.1, header={"TimezoneOffsetFromUTC": offset})
    result = build_structured_report(report)
    local = report.read_at.astimezone()
    assert datetime.strptime(result.ContentDate + result.ContentTime, "%Y%m%d%H%M%S.%f") == local.replace(
        tzinfo=None
    )
