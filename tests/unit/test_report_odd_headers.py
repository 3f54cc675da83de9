"""Whatever bytes a vendor wrote into a header, the result is made, written and read back."""

from __future__ import annotations

import io
import warnings

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from ich_node.report import ReadingReport, build_secondary_captures, build_structured_report
from ich_node.report.header import TYPE_2, TYPE_3, choose_character_set, copy_identity, referenced_requests
from tests.report_builders import make_report

PLAIN = [k for k in (*TYPE_2, *TYPE_3) if dictionary_VR(k) != "SQ"]
OTHERS = ["InstanceNumber", "SeriesNumber", "PixelSpacing", "SliceThickness"]
OTHERS += ["ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "Rows", "Columns"]
OTHERS += ["LossyImageCompression", "LossyImageCompressionRatio"]
SEQUENCES = ["RequestAttributesSequence", "ProcedureCodeSequence", "OtherPatientIDsSequence"]
ODD_BYTES = st.one_of(
    st.binary(max_size=24),
    st.sampled_from(
        [b"abc", b"1.5", b"1\\2", b"-", b"nan", b"1e400", b"\\\\", b"^^=^=", b" " * 70, b"\x1b$B"]
    ),
)


IDENTITY = make_report(0.5, shape=(1, 8, 8))


def set_raw(report: ReadingReport, keyword: str, value: bytes) -> None:
    """Put bytes into every image as a file would have them."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    for image in report.source_images:
        image[tag] = RawDataElement(tag, dictionary_VR(keyword), len(value), value, 0, False, True, True)


def assert_writable(report: ReadingReport) -> None:
    with warnings.catch_warnings():
        # pydicom tells of the bytes that it cannot understand, which is what this test feeds it.
        warnings.simplefilter("ignore")
        for result in (build_structured_report(report), build_secondary_captures(report)[-1]):
            file = io.BytesIO()
            result.save_as(file, enforce_file_format=True)
            file.seek(0)
            assert pydicom.dcmread(file).SOPInstanceUID == result.SOPInstanceUID


@pytest.mark.parametrize("keyword", [*PLAIN, "SpecificCharacterSet", *SEQUENCES])
@settings(max_examples=20, deadline=None)
@given(value=ODD_BYTES)
def test_odd_bytes_in_identity_and_order(keyword: str, value: bytes) -> None:
    set_raw(IDENTITY, keyword, value)
    source, target = IDENTITY.source_images[0], Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy_identity(source, target)
        target.ReferencedRequestSequence = referenced_requests(source)
        choose_character_set(source, target)
        pydicom.dcmwrite(io.BytesIO(), target, implicit_vr=False, little_endian=True)
    assert target.StudyInstanceUID == source.StudyInstanceUID


@pytest.mark.parametrize("keyword", OTHERS)
@settings(max_examples=4, deadline=None)
@given(value=ODD_BYTES)
def test_odd_bytes_in_geometry_and_numbers(keyword: str, value: bytes) -> None:
    report = make_report(0.5, shape=(2, 32, 32))
    set_raw(report, keyword, value)
    assert_writable(report)


@settings(max_examples=10, deadline=None)
@given(values=st.dictionaries(st.sampled_from([*PLAIN, *SEQUENCES, *OTHERS]), ODD_BYTES, max_size=8))
def test_odd_bytes_in_many_attributes(values: dict[str, bytes]) -> None:
    report = make_report(0.5, shape=(2, 32, 32))
    for keyword, value in values.items():
        set_raw(report, keyword, value)
    assert_writable(report)
