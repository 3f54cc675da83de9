"""The decoder process: its limits, and its deaths."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from ich_node.decoding import DecodeLimits, DecoderProcess, life, shared_decoder
from ich_node.errors import RejectionReason, StudyRejected, TransientError
from ich_node.pixels import read_frames, read_pixels
from ich_node.settings import WorkerSettings
from tests.unit.decoder_cases import gone, is_right, server_with
from tests.unit.encoded_images import (
    frames_of,
    image,
    multi_frame,
    save,
    smooth_hu,
    with_frames,
)

MIB = 2**20
SHORT = DecodeLimits(seconds_per_frame=0.3)


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess() as process:
        yield process


@pytest.fixture
def j2k(tmp_path: Path) -> Path:
    return save(image(smooth_hu()[0], JPEG2000Lossless), tmp_path, "j2k.dcm")


@pytest.fixture(scope="module")
def large_j2k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2048 x 2048 pixels of noise: OpenJPEG takes a good part of a second for it."""
    noise = np.random.default_rng(0).integers(-1000, 2000, (2048, 2048)).astype(np.float32)
    return save(image(noise, JPEG2000Lossless), tmp_path_factory.mktemp("large"))


def rejected(path: Path, decoder: DecoderProcess, limits: DecodeLimits | None = None) -> StudyRejected:
    with pytest.raises(StudyRejected) as caught:
        read_pixels(path, limits, decoder)
    return caught.value


def test_it_has_no_torch_and_no_secrets_and_its_limits(
    tmp_path: Path, j2k: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICH_NODE_DATABASE__URL", "postgresql://user:pa55word@host/db")
    monkeypatch.setenv("SOME_TOKEN", "pa55word")
    with DecoderProcess(300 * MIB) as decoder:
        assert is_right(j2k, decoder)
        pid = decoder.pid
        assert pid is not None
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert "openjpeg" in loaded
        assert "torch" not in loaded
        assert b"pa55word" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert resource.prlimit(pid, resource.RLIMIT_DATA) == (300 * MIB, 300 * MIB)
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"


def test_limits_are_the_settings_defaults() -> None:
    settings, limits = WorkerSettings(), DecodeLimits()
    assert limits.max_image_bytes == settings.max_image_mib * MIB
    assert limits.decoder_memory_bytes == settings.decoder_memory_mib * MIB


def test_uncompressed_images_need_no_process(tmp_path: Path) -> None:
    decoder = DecoderProcess()
    assert is_right(save(image(smooth_hu()[0]), tmp_path), decoder)
    assert decoder.pid is None


def test_the_shared_decoder_is_one_for_each_limit(j2k: Path) -> None:
    assert shared_decoder() is shared_decoder()
    assert shared_decoder(400 * MIB) is not shared_decoder()
    assert is_right(j2k, shared_decoder(400 * MIB))
    shared_decoder(400 * MIB).close()


# --- deaths


def test_a_process_killed_between_images_is_started_again(decoder: DecoderProcess, j2k: Path) -> None:
    assert is_right(j2k, decoder)
    first = decoder.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert is_right(j2k, decoder)
    assert decoder.pid not in (None, first)


def test_a_process_killed_in_the_middle_costs_nothing(
    decoder: DecoderProcess, j2k: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_right(j2k, decoder)
    first = decoder.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)  # so that it is killed before it can answer
    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING):
        reading = pool.submit(is_right, j2k, decoder)
        os.kill(first, signal.SIGKILL)
        assert reading.result(60)
    assert decoder.pid != first
    assert "SIGKILL" in caplog.text


def test_frames_decoded_before_a_death_are_kept(decoder: DecoderProcess, tmp_path: Path) -> None:
    hu = smooth_hu(20)
    frames = read_frames(save(multi_frame(hu, JPEGLSLossless), tmp_path), decoder=decoder)
    got = [next(frames).hu]
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGKILL)
    got += [frame.hu for frame in frames]
    np.testing.assert_array_equal(np.stack(got), hu)


def test_a_process_that_hangs_once_is_replaced(decoder: DecoderProcess, j2k: Path) -> None:
    assert is_right(j2k, decoder)
    first = decoder.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    assert is_right(j2k, decoder, SHORT)
    assert decoder.pid != first
    assert gone(first)


def test_an_image_that_takes_too_long_twice_is_rejected(
    decoder: DecoderProcess, j2k: Path, large_j2k: Path
) -> None:
    assert is_right(j2k, decoder)
    first = decoder.pid
    error = rejected(large_j2k, decoder, DecodeLimits(seconds_per_frame=0.02))
    assert error.reason is RejectionReason.CORRUPT_PIXEL_DATA
    assert "no answer for 0.02 s" in error.detail
    assert first is not None
    assert gone(first)
    assert is_right(j2k, decoder)


@pytest.mark.parametrize(
    ("codec", "says"),
    [
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("os._exit(3)", "exit status 3"),
    ],
)
def test_an_image_that_crashes_its_codec_twice_is_rejected(
    monkeypatch: pytest.MonkeyPatch, j2k: Path, codec: str, says: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(life, "COMMAND", server_with(codec))
        with DecoderProcess() as decoder:
            error = rejected(j2k, decoder)
            patch.undo()
            assert is_right(j2k, decoder)
    assert error.reason is RejectionReason.CORRUPT_PIXEL_DATA
    assert says in error.detail
    assert "worker.decoder_memory_mib" in error.detail


def test_one_wrong_byte_that_aborts_gdcm_costs_one_image(
    decoder: DecoderProcess, tmp_path: Path, j2k: Path
) -> None:
    """GDCM throws where nobody can catch when the marker of a Huffman table is damaged."""
    dataset = image(smooth_hu()[0], JPEGLosslessSV1)
    (stream,) = frames_of(dataset)
    path = save(with_frames(dataset, [stream.replace(b"\xff\xc4", b"\x70\xc4", 1)]), tmp_path)
    error = rejected(path, decoder)
    assert error.reason is RejectionReason.CORRUPT_PIXEL_DATA
    assert "SIGABRT" in error.detail
    assert is_right(j2k, decoder)


@pytest.mark.parametrize("answer", ['{"dtype": "<f8"}', '{"dtype": ["|u1"]}', "[]", "}", '{"dtype": "<u4"}'])
def test_an_answer_that_is_none_is_a_death(monkeypatch: pytest.MonkeyPatch, j2k: Path, answer: str) -> None:
    codec = (
        f"os.write(0, {len(answer).to_bytes(4, 'little') + answer.encode()!r}); ctypes.PyDLL(None).pause()"
    )
    monkeypatch.setattr(life, "COMMAND", server_with(codec))
    with DecoderProcess() as decoder:
        assert "twice" in rejected(j2k, decoder).detail


@pytest.mark.parametrize("command", [("/nonexistent",), (sys.executable, "-c", "raise SystemExit(4)")])
def test_a_process_that_does_not_start_is_tried_later(
    monkeypatch: pytest.MonkeyPatch, j2k: Path, command: tuple[str, ...]
) -> None:
    decoder = DecoderProcess()
    with monkeypatch.context() as patch:
        patch.setattr(life, "COMMAND", command)
        with pytest.raises(TransientError, match="process"):
            read_pixels(j2k, decoder=decoder)
        assert decoder.pid is None
    assert is_right(j2k, decoder)
    decoder.close()


def test_an_image_larger_than_the_memory_limit_is_rejected(j2k: Path, large_j2k: Path) -> None:
    with DecoderProcess(128 * MIB) as decoder:
        assert is_right(j2k, decoder)
        first = decoder.pid
        error = rejected(large_j2k, decoder)
        assert error.reason is RejectionReason.TOO_LARGE
        assert "worker.decoder_memory_mib" in error.detail
        assert is_right(j2k, decoder)
        assert decoder.pid == first


def test_a_stream_that_eats_memory_stays_below_the_limit(tmp_path: Path, j2k: Path, large_j2k: Path) -> None:
    dataset = dcmread(large_j2k)
    (stream,) = frames_of(dataset)
    # 51,984 tiles instead of one: without a limit OpenJPEG takes 600 MiB for them
    tiles = stream[:24] + struct.pack(">2L", 9, 9) + stream[32:]
    path = save(with_frames(dataset, [tiles]), tmp_path)
    with DecoderProcess(256 * MIB) as decoder:
        assert is_right(j2k, decoder)
        pid = decoder.pid
        with contextlib.suppress(StudyRejected):
            read_pixels(path, None, decoder)
            pytest.fail("it was decoded within the limit: make it eat more")
        status = Path(f"/proc/{pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) < 300 * 1024
        assert is_right(j2k, decoder)


def test_an_interrupted_request_leaves_no_answer_behind(
    decoder: DecoderProcess, tmp_path: Path, j2k: Path
) -> None:
    assert is_right(j2k, decoder)
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGSTOP)

    class TimeLimit(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(TimeLimit):
            read_pixels(j2k, decoder=decoder)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    other = save(image(-smooth_hu()[0] - 200, JPEG2000Lossless), tmp_path)
    np.testing.assert_array_equal(read_pixels(other, decoder=decoder).hu, -smooth_hu()[0] - 200)
