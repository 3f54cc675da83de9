from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import FileDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.receive import header as header_module
from ich_node.receive.header import header_from_dataset, read_header
from ich_node.testing.series import ct_series


def one_slice(**options: object) -> FileDataset:
    hu = np.arange(64 * 64, dtype=np.float32).reshape(1, 64, 64)
    return ct_series(hu, (5.0, 0.5, 0.25), **options)[0]


def save(dataset: FileDataset, folder: Path) -> Path:
    path = folder / "object.dcm"
    dataset.save_as(path)
    return path


def save_with(folder: Path, keyword: str, value: bytes, vr: str = "") -> Path:
    """Save a slice and put bytes that pydicom would not write into one element."""
    path = save(one_slice(), folder)
    write_raw(path, keyword, value, vr)
    return path


def write_raw(path: Path, keyword: str, value: bytes, vr: str = "") -> None:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + dictionary_VR(tag).encode()
    content = path.read_bytes()
    assert content.count(start) == 1
    at = content.index(start)
    (length,) = struct.unpack_from("<H", content, at + 6)
    new_vr = vr.encode() or start[4:]
    size = struct.pack("<HL", 0, len(value)) if new_vr == b"UN" else struct.pack("<H", len(value))
    path.write_bytes(content[:at] + start[:4] + new_vr + size + value + content[at + 8 + length :])


def test_reads_what_the_header_says(tmp_path: Path) -> None:
    path = save(one_slice(contrast_bolus_agent="IOPAMIDOL", patient_name="Family^Given"), tmp_path)
    instance, study = read_header(path)
    assert instance.path == path
    assert (instance.rows, instance.columns) == (64, 64)
    assert instance.pixel_spacing_mm == (0.5, 0.25)
    assert instance.modality == "CT"
    assert instance.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert instance.convolution_kernel == ("STANDARD",)
    assert instance.contrast_bolus_agent == "IOPAMIDOL"
    assert instance.image_orientation_patient == (1, 0, 0, 0, 1, 0)
    assert instance.instance_number == 1
    assert instance.series_number == 2
    assert instance.samples_per_pixel == 1
    assert instance.number_of_frames == 1
    assert instance.has_pixel_data
    assert study.patient_name == "Family^Given"
    assert study.study_date == "20200101"
    assert study.study_instance_uid == instance.study_instance_uid


def test_file_and_dataset_give_the_same(tmp_path: Path) -> None:
    path = save(one_slice(), tmp_path)
    assert read_header(path) == header_from_dataset(dcmread(path), path)
    assert read_header(path) == header_from_dataset(one_slice(), path)


def test_of_endless_values_only_the_first_are_kept(tmp_path: Path) -> None:
    # 25,000 values of two characters would be a megabyte of memory for each object that waits for its row.
    instance, _ = read_header(save_with(tmp_path, "ImageType", b"\\".join([b"AB"] * 20_000)))
    assert instance.image_type == ("AB",) * 64


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, JPEG2000Lossless]
)
def test_reads_any_encoding(tmp_path: Path, syntax: str) -> None:
    expected, _ = header_from_dataset(one_slice(), tmp_path / "object.dcm")
    if syntax == ExplicitVRBigEndian:
        dataset = one_slice()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dcmwrite(tmp_path / "object.dcm", dataset, implicit_vr=False, little_endian=False)
    else:
        save(one_slice(transfer_syntax_uid=syntax), tmp_path)
    instance, _ = read_header(tmp_path / "object.dcm")
    assert instance.transfer_syntax_uid == syntax
    assert (instance.rows, instance.pixel_spacing_mm) == (expected.rows, expected.pixel_spacing_mm)
    assert instance.has_pixel_data


def test_two_digits_of_implicit_vr_are_no_binary_number(tmp_path: Path) -> None:
    dataset = one_slice(transfer_syntax_uid=ImplicitVRLittleEndian)
    dataset.InstanceNumber = 12
    assert read_header(save(dataset, tmp_path))[0].instance_number == 12


@pytest.mark.parametrize(
    ("keyword", "value", "field"),
    [
        ("SliceThickness", b"5 mm", "slice_thickness_mm"),
        ("SliceThickness", b"nan ", "slice_thickness_mm"),
        ("KVP", b"1e999 ", "kvp"),
        ("InstanceNumber", b"3.75", "instance_number"),
        ("InstanceNumber", b"99999999999 ", "instance_number"),
        ("ImagePositionPatient", b"1\\2 ", "image_position_patient_mm"),
        ("ImagePositionPatient", b"1\\2\\x ", "image_position_patient_mm"),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\1 ", "image_orientation_patient"),
        ("PixelSpacing", b"0\\0 ", "pixel_spacing_mm"),
        ("PixelSpacing", b"-1\\1", "pixel_spacing_mm"),
        ("Rows", b"\0\0", "rows"),
        ("Rows", b"", "rows"),
        ("GantryDetectorTilt", b"\xff\xfe\xfd\xfc", "gantry_detector_tilt_deg"),
    ],
)
def test_a_bad_value_is_absent_and_the_rest_is_read(
    tmp_path: Path, keyword: str, value: bytes, field: str
) -> None:
    instance, _ = read_header(save_with(tmp_path, keyword, value))
    assert getattr(instance, field) is None
    assert instance.columns == 64
    assert instance.modality == "CT"


def test_a_value_with_a_wrong_vr_is_read_by_its_bytes(tmp_path: Path) -> None:
    path = save_with(tmp_path, "Rows", b"\x00\x02", "UN")
    write_raw(path, "SeriesDescription", b"HEAD", "UN")
    write_raw(path, "SliceThickness", b"2.50", "LO")
    instance, _ = read_header(path)
    assert (instance.rows, instance.series_description, instance.slice_thickness_mm) == (512, "HEAD", 2.5)


def test_control_characters_and_endless_text_do_not_pass(tmp_path: Path) -> None:
    path = save_with(tmp_path, "SeriesDescription", b"HEAD\0\x07AXIAL\n" + b"x" * 5001)
    text = read_header(path)[0].series_description
    assert text.startswith("HEAD  AXIAL x")
    assert len(text) <= 324
    assert text.isprintable()


@pytest.mark.parametrize(
    ("character_set", "stored", "name"),
    [
        (b"ISO_IR 100", "Müller^Jörg".encode("latin_1"), "Müller^Jörg"),
        (b"ISO_IR 192", "Łukasz^Ż".encode(), "Łukasz^Ż"),
        (b"ISO_IR 144", "Иванов".encode("iso8859_5"), "Иванов"),
        (b"NO SUCH SET ", "Müller".encode("latin_1"), "Müller"),
        (b"", "Müller".encode("latin_1"), "Müller"),
        (
            rb"ISO 2022 IR 13\ISO 2022 IR 87 ",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
        ),
    ],
)
def test_text_is_decoded_by_the_character_set(
    tmp_path: Path, character_set: bytes, stored: bytes, name: str
) -> None:
    path = save_with(tmp_path, "SpecificCharacterSet", character_set)
    write_raw(path, "PatientName", stored)
    assert read_header(path)[1].patient_name == name


def test_a_character_set_that_is_none_is_not_quoted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_with(tmp_path, "SpecificCharacterSet", b"ISO 2022 IR!999\x10\x00Zyxwv^Quentin\\ISO_IR 999")
    write_raw(path, "PatientName", "Müller".encode("latin_1"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert read_header(path)[1].patient_name == "Müller"
    assert "Zyxwv" not in caplog.text + "".join(str(warning.message) for warning in warned)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", [None, b"", b"../../../../tmp/evil", b"1." * 40])
def test_without_identity_it_is_rejected(tmp_path: Path, keyword: str, value: bytes | None) -> None:
    dataset = one_slice()
    del dataset.file_meta.MediaStorageSOPInstanceUID
    if value is None:
        del dataset[keyword]
    path = tmp_path / "object.dcm"
    dataset.save_as(path, enforce_file_format=False)
    if value is not None:
        write_raw(path, keyword, value)
    with pytest.raises(StudyRejected) as rejected:
        read_header(path)
    assert rejected.value.reason is RejectionReason.MISSING_ATTRIBUTE
    assert keyword in rejected.value.detail


@pytest.mark.parametrize("pixel_data", [None, b""])
def test_an_object_without_pixels_says_so(tmp_path: Path, pixel_data: bytes | None) -> None:
    dataset = one_slice()
    del dataset.PixelData
    if pixel_data is not None:
        dataset.PixelData = pixel_data
    assert not read_header(save(dataset, tmp_path))[0].has_pixel_data


def test_what_is_no_dicom_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not an image\n" * 100)
    with pytest.raises(StudyRejected) as rejected:
        read_header(path)
    assert rejected.value.reason is RejectionReason.NOT_AN_IMAGE


def test_a_deflated_bomb_is_refused_before_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ct_series(
        np.zeros((1, 512, 512)), (5, 1, 1), transfer_syntax_uid=DeflatedExplicitVRLittleEndian
    )[0]
    path = save(dataset, tmp_path)
    assert read_header(path)[0].rows == 512
    monkeypatch.setattr(header_module, "MAX_INFLATED_BYTES", 100_000)
    with pytest.raises(StudyRejected) as rejected:
        read_header(path)
    assert rejected.value.reason is RejectionReason.TOO_LARGE


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 1800), noise=st.binary(max_size=40), at=st.integers(0, 1500))
def test_damage_rejects_and_never_crashes(tmp_path: Path, cut: int, noise: bytes, at: int) -> None:
    buffer = io.BytesIO()
    one_slice().save_as(buffer)
    content = bytearray(buffer.getvalue()[:cut])
    content[at : at + len(noise)] = noise
    path = tmp_path / "damaged.dcm"
    path.write_bytes(content)
    allowed = (RejectionReason.NOT_AN_IMAGE, RejectionReason.MISSING_ATTRIBUTE)
    assert outcome(path) in (None, *allowed)


def outcome(path: Path) -> RejectionReason | None:
    try:
        read_header(path)
    except StudyRejected as rejected:
        return rejected.reason
    return None


def test_reading_headers_loads_no_network() -> None:
    code = "import sys, ich_node.receive.header; sys.exit('pynetdicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_directory_file_is_no_image(shared_data: Path) -> None:
    with pytest.raises(StudyRejected) as rejected:
        read_header(shared_data / "philips_head_phantom" / "S2010" / "DIRFILE")
    assert rejected.value.reason is RejectionReason.NOT_AN_IMAGE


def test_real_headers(shared_data: Path) -> None:
    ge, _ = read_header(shared_data / "ge_head_tilted" / "15.dcm")
    assert (ge.slice_thickness_mm, ge.gantry_detector_tilt_deg) == (7.0, 18.5)
    assert ge.convolution_kernel == ("STD+",)
    assert ge.series_description == ""
    philips, _ = read_header(shared_data / "philips_head_phantom" / "S1000" / "I10")
    assert philips.image_type[2] == "LOCALIZER"
    sheet, _ = read_header(shared_data / "philips_head_phantom" / "S4010" / "I30")
    assert sheet.samples_per_pixel == 3
    assert sheet.image_position_patient_mm is None
