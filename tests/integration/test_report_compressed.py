"""Compressed Secondary Captures, read back by decoders that did not write them: no pixel differs."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import gdcm
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1

from ich_node.report import ReadingReport, build_secondary_captures
from ich_node.report.compression import Compression, compress_capture
from tests.integration.test_report_validators import _complaints, _unexpected
from tests.report_builders import make_report

COMPRESSED = [c for c in Compression if c is not Compression.NONE]
SYNTAX = {
    Compression.JPEG_LOSSLESS: (JPEGLosslessSV1, "RGB"),
    Compression.JPEG_2000_LOSSLESS: (JPEG2000Lossless, "YBR_RCT"),
}


@pytest.fixture(scope="module")
def report() -> ReadingReport:
    return make_report(0.9, shape=(1, 64, 64))


@pytest.fixture(scope="module")
def plain(report: ReadingReport) -> list[Dataset]:
    """The summary and an overlay."""
    captures = build_secondary_captures(report)
    assert len(captures) == 2
    return captures


@pytest.fixture(scope="module")
def compressed(plain: list[Dataset]) -> dict[Compression, list[Dataset]]:
    return {c: [compress_capture(capture, c) for capture in plain] for c in COMPRESSED}


Encoded = dict[Compression, list[Dataset]]


def encoded(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("compression", COMPRESSED)
def test_header_says_what_the_stream_is(
    plain: list[Dataset], compressed: Encoded, compression: Compression
) -> None:
    for capture, other in zip(plain, compressed[compression], strict=True):
        read = dcmread(io.BytesIO(encoded(other)))
        syntax, photometric = SYNTAX[compression]
        assert read.file_meta.TransferSyntaxUID == syntax
        assert read.PhotometricInterpretation == photometric
        assert (read.SamplesPerPixel, read.PlanarConfiguration) == (3, 0)
        assert (read.BitsAllocated, read.BitsStored, read.HighBit) == (8, 8, 7)
        assert read.LossyImageCompression == "00"
        assert len(read.PixelData) < len(capture.PixelData) / 2


@pytest.mark.parametrize("compression", COMPRESSED)
def test_an_encoding_is_an_instance_of_its_own(
    plain: list[Dataset], compressed: Encoded, compression: Compression
) -> None:
    every = [*plain, *(capture for captures in compressed.values() for capture in captures)]
    uids = [str(capture.SOPInstanceUID) for capture in every]
    assert len(set(uids)) == len(uids)
    assert all(UID(uid).is_valid for uid in uids)
    differing = {"SOPInstanceUID", "PhotometricInterpretation", "PixelData"}
    for capture, other in zip(plain, compressed[compression], strict=True):
        assert other.file_meta.MediaStorageSOPInstanceUID == other.SOPInstanceUID
        assert {e.keyword for e in capture} == {e.keyword for e in other}
        for element in capture:
            if element.keyword not in differing:
                assert other[element.tag] == element


@pytest.mark.parametrize("compression", COMPRESSED)
def test_same_reading_gives_the_same_bytes_and_leaves_the_plain_ones_alone(
    report: ReadingReport, plain: list[Dataset], compressed: Encoded, compression: Compression
) -> None:
    again = build_secondary_captures(report, compression)
    assert [encoded(c) for c in again] == [encoded(c) for c in compressed[compression]]
    assert [encoded(c) for c in build_secondary_captures(report)] == [encoded(c) for c in plain]
    assert all(compress_capture(capture, Compression.NONE) is capture for capture in plain)


def test_a_lossy_source_stays_lossy_in_a_lossless_encoding() -> None:
    (capture,) = build_secondary_captures(
        make_report(0.1, header={"LossyImageCompression": "01", "LossyImageCompressionRatio": 8.0}),
        Compression.JPEG_LOSSLESS,
    )
    assert capture.LossyImageCompression == "01"


@pytest.mark.parametrize(
    ("compression", "plugin"),
    [
        (Compression.JPEG_LOSSLESS, "gdcm"),
        (Compression.JPEG_2000_LOSSLESS, "pylibjpeg"),
        (Compression.JPEG_2000_LOSSLESS, "gdcm"),
        (Compression.JPEG_2000_LOSSLESS, "pillow"),
    ],
)
def test_pydicom_reads_every_pixel(
    plain: list[Dataset], compressed: Encoded, compression: Compression, plugin: str
) -> None:
    assert plugin in get_decoder(SYNTAX[compression][0]).available_plugins
    for capture, other in zip(plain, compressed[compression], strict=True):
        read = dcmread(io.BytesIO(encoded(other)))
        read.pixel_array_options(decoding_plugin=plugin)
        assert np.array_equal(read.pixel_array, capture.pixel_array)


@pytest.mark.parametrize("compression", COMPRESSED)
def test_gdcm_reads_every_pixel(
    plain: list[Dataset], compressed: Encoded, compression: Compression, tmp_path: Path
) -> None:
    path, out = tmp_path / "sc.dcm", tmp_path / "plain.dcm"
    for capture, other in zip(plain, compressed[compression], strict=True):
        other.save_as(path, enforce_file_format=True)
        reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetFileName(str(out))
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        assert np.array_equal(dcmread(out).pixel_array, capture.pixel_array)


def test_dcmtk_reads_every_pixel_of_jpeg_lossless(
    plain: list[Dataset], compressed: Encoded, tmp_path: Path
) -> None:
    program = shutil.which("dcmdjpeg")
    if program is None:
        pytest.skip("dcmdjpeg is not installed (Debian: dcmtk)")
    path, out = tmp_path / "sc.dcm", tmp_path / "plain.dcm"
    for capture, other in zip(plain, compressed[Compression.JPEG_LOSSLESS], strict=True):
        other.save_as(path, enforce_file_format=True)
        subprocess.run([program, str(path), str(out)], check=True, timeout=60, capture_output=True)
        read = dcmread(out)
        assert read.PhotometricInterpretation == "RGB"
        assert np.array_equal(read.pixel_array, capture.pixel_array)


@pytest.mark.parametrize("compression", COMPRESSED)
def test_compressed_captures_are_valid(compressed: Encoded, compression: Compression, tmp_path: Path) -> None:
    path = tmp_path / "sc.dcm"
    for capture in compressed[compression]:
        capture.save_as(path, enforce_file_format=True)
        assert _unexpected(_complaints(path)) == []


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_page_of_odd_proportions_is_encoded(compression: Compression) -> None:
    """A stream of odd length is padded, and no row is lost."""
    report = make_report(0.9, shape=(1, 31, 48), spacing_mm=(5.0, 0.61, 0.5))
    capture = build_secondary_captures(report)[1]
    assert capture.Rows % 2
    read = dcmread(io.BytesIO(encoded(compress_capture(capture, compression))))
    assert np.array_equal(read.pixel_array, capture.pixel_array)
