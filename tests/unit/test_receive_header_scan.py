"""The quick look at a header agrees with pydicom wherever it answers."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ich_node.receive.header import HEADER_TAGS, ends_header, header_from_dataset
from ich_node.receive.header_scan import scan

UID = "1.2.826.0.1.3680043.10.9"


def image(**values: Any) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = f"{UID}.1"
    dataset.StudyInstanceUID = f"{UID}.2"
    dataset.SeriesInstanceUID = f"{UID}.3"
    dataset.Modality = "CT"
    dataset.ImagePositionPatient = [1.5, -2, 3]
    dataset.Rows = dataset.Columns = 2
    dataset.PixelData = b"\1\2\3\4\5\6\7\10"
    dataset["PixelData"].VR = "OW"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def written(dataset: Dataset, *, implicit_vr: bool = False) -> bytes:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, implicit_vr
    write_dataset(file, dataset)
    return bytes(file.getvalue())


def scanned(encoded: bytes, *, implicit_vr: bool = False) -> Any:
    syntax = ImplicitVRLittleEndian if implicit_vr else ExplicitVRLittleEndian
    return scan(encoded, implicit_vr=implicit_vr, transfer_syntax_uid=syntax)


def by_pydicom(encoded: bytes, *, implicit_vr: bool = False) -> Dataset:
    return read_dataset(
        BytesIO(encoded), implicit_vr, True, stop_when=lambda tag, _vr, _length: ends_header(int(tag))
    )


def values(dataset: Any) -> dict[int, tuple[str | None, bytes | None]]:
    elements = {tag: dataset.get_item(tag) for tag in HEADER_TAGS if tag in dataset}
    return {tag: (element.VR, element.value or b"") for tag, element in elements.items()}


def nested(depth: int, *, undefined: bool) -> Sequence:
    item = Dataset()
    item.CodeValue = "x"
    if depth:
        item.ConceptNameCodeSequence = nested(depth - 1, undefined=undefined)
        item["ConceptNameCodeSequence"].is_undefined_length = undefined
    item.is_undefined_length_sequence_item = undefined
    return Sequence([item])


@pytest.mark.parametrize("implicit_vr", [False, True])
@pytest.mark.parametrize("undefined", [False, True])
def test_it_reads_what_pydicom_reads(implicit_vr: bool, undefined: bool) -> None:
    dataset = image(PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100", InstanceNumber=7)
    dataset.ProcedureCodeSequence = nested(3, undefined=undefined)
    dataset["ProcedureCodeSequence"].is_undefined_length = undefined
    encoded = written(dataset, implicit_vr=implicit_vr)
    header, has_pixel_data = scanned(encoded, implicit_vr=implicit_vr)
    reference = by_pydicom(encoded, implicit_vr=implicit_vr)
    assert has_pixel_data
    assert values(header) == values(reference)
    reference.file_meta = FileMetaDataset()
    reference.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    assert header_from_dataset(header, Path()) == header_from_dataset(reference, Path())


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        written(image())[:-30],
        written(image())[4:],
        written(image(ProcedureCodeSequence=nested(12, undefined=True))).replace(b"SQ\0\0", b"ZZ\0\0"),
        b"\x08\x00\x18\x00ZZ\x02\x001\x00",
        written(image())[8:] + written(image()),
        b"\x08\x00\x18\x00UI\x02\x001\x00\xfe\xff\xdd\xe0UN" + bytes(8),
    ],
    ids=[
        "empty",
        "cut off",
        "not at an element",
        "unknown VR within",
        "unknown VR",
        "tags descend",
        "delimiter",
    ],
)
def test_what_is_not_plain_is_left_to_pydicom(encoded: bytes) -> None:
    assert scanned(encoded) is None


def test_an_element_of_undefined_length_that_is_no_sequence_is_left_to_pydicom() -> None:
    # Without VRs nothing but the dictionary tells; pydicom takes its value to the next sequence delimiter.
    dataset = image(ProcedureCodeSequence=nested(1, undefined=True))
    dataset["ProcedureCodeSequence"].is_undefined_length = True
    encoded = written(dataset, implicit_vr=True)
    sequence, text = struct.pack("<HH", 0x0008, 0x1032), struct.pack("<HH", 0x0008, 0x1030)
    assert scanned(encoded, implicit_vr=True) is not None
    assert encoded.count(sequence) == 1
    assert scanned(encoded.replace(sequence, text), implicit_vr=True) is None


@given(st.binary(max_size=40), st.integers(0, 400), st.integers(0, 8), st.booleans())
def test_damage_is_never_read_otherwise_than_by_pydicom(
    junk: bytes, place: int, cut: int, implicit_vr: bool
) -> None:
    dataset = image(InstanceNumber=3, ProcedureCodeSequence=nested(2, undefined=True))
    dataset["ProcedureCodeSequence"].is_undefined_length = True
    encoded = written(dataset, implicit_vr=implicit_vr)
    damaged = encoded[:place] + junk + encoded[place + cut :]
    found = scanned(damaged, implicit_vr=implicit_vr)
    if found is None:
        return
    try:
        reference = by_pydicom(damaged, implicit_vr=implicit_vr)
    except Exception:  # pydicom gives up over what is passed over here
        return
    assert values(found[0]) == values(reference)
