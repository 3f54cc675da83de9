"""Attributes that are encoded without pydicom are those that pydicom writes, and captures share no value."""

from __future__ import annotations

import io

import pytest
from pydicom import Dataset, config, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from ich_node.report.encoded_attributes import SharedAttributes, encoded_attribute


def written(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, implicit_vr=False, little_endian=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("SOPInstanceUID", ["1.2.3"]),
        ("ImageType", ["DERIVED", "SECONDARY", "OTHER", "SUMMARY"]),
        ("InstanceNumber", [2]),
        ("DerivationDescription", ["odd"]),
        ("PixelSpacing", ["0.5", "0.29947933333333"]),
        ("PositionReferenceIndicator", []),
        ("Rows", [904]),
        ("PixelData", [b"\1\2\3\4"]),
    ],
)
def test_an_attribute_is_what_pydicom_writes(keyword: str, values: list[str | int | bytes]) -> None:
    ours, theirs = Dataset(), Dataset()
    element = encoded_attribute(keyword, *values)
    ours[element.tag] = element
    setattr(theirs, keyword, values[0] if len(values) == 1 else values)
    if keyword == "PixelData":
        theirs[keyword].VR = "OB"
    ours.set_original_encoding(False, True, "iso8859")
    assert written(ours) == written(theirs)


def test_pixels_of_an_odd_number_of_bytes_are_padded() -> None:
    assert encoded_attribute("PixelData", b"\1\2\3").value == b"\1\2\3\0"


def blank(**values: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    item = Dataset()
    item.CodeValue = "113085"
    dataset.DerivationCodeSequence = [item]
    with config.disable_value_validation():
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize("patient_id", ["1", "x" * 80])
def test_each_object_has_values_of_its_own(patient_id: str) -> None:
    shared = SharedAttributes(blank(PatientID=patient_id))
    first, second = (shared.with_own([encoded_attribute("SOPInstanceUID", f"1.2.{n}")]) for n in (4, 5))
    first.DerivationCodeSequence[0].CodeValue = "changed"
    first.PatientID = "other"
    first.file_meta.ImplementationVersionName = "changed"
    assert second.DerivationCodeSequence[0].CodeValue == "113085"
    assert second.PatientID == patient_id
    assert [one.file_meta.MediaStorageSOPInstanceUID for one in (first, second)] == ["1.2.4", "1.2.5"]
    third = shared.with_own([encoded_attribute("SOPInstanceUID", "1.2.5")])
    assert third.file_meta.get("ImplementationVersionName") != "changed"


def test_text_is_in_the_character_set_that_the_object_declares() -> None:
    dataset = blank()
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=山田^太郎"
    made = SharedAttributes(dataset).with_own([])
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    file.seek(0)
    assert str(dcmread(file).PatientName) == str(made.PatientName) == "Yamada^Tarou=山田^太郎"
