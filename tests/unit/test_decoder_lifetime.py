"""The decoder process together with its worker: threads, forks, and the end of either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from ich_node.decoding import DecodeLimits, DecoderProcess, life, open_image
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.pixels import read_frames, read_pixels
from tests.unit.decoder_cases import gone, is_right, server_with
from tests.unit.encoded_images import image, multi_frame, save, smooth_hu


@pytest.fixture(scope="module")
def steady() -> Iterator[DecoderProcess]:
    """One process for the tests that should not harm it."""
    with DecoderProcess() as process:
        yield process


@pytest.fixture
def j2k(tmp_path: Path) -> Path:
    return save(image(smooth_hu()[0], JPEG2000Lossless), tmp_path, "j2k.dcm")


def test_threads_share_it(steady: DecoderProcess, tmp_path: Path) -> None:
    hu = smooth_hu(12)
    paths = [
        save(image(frame, (JPEG2000Lossless, RLELossless, JPEGLSLossless)[n % 3]), tmp_path, f"{n}.dcm")
        for n, frame in enumerate(hu)
    ]

    def read(number: int) -> npt.NDArray[np.float32]:
        return read_pixels(paths[number % 12], decoder=steady).hu

    with ThreadPoolExecutor(4) as pool:
        for number, got in enumerate(pool.map(read, range(120))):
            np.testing.assert_array_equal(got, hu[number % 12])


def test_two_images_may_be_read_in_turns(steady: DecoderProcess, tmp_path: Path) -> None:
    hu = smooth_hu(20)
    one = read_frames(save(multi_frame(hu, JPEGLSLossless), tmp_path, "1.dcm"), decoder=steady)
    other = read_frames(save(multi_frame(hu[::-1], RLELossless), tmp_path, "2.dcm"), decoder=steady)
    for first, second, expected, reverse in zip(one, other, hu, hu[::-1], strict=True):
        np.testing.assert_array_equal(first.hu, expected)
        np.testing.assert_array_equal(second.hu, reverse)


def worker(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process that uses a decoder."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


READ_AND_WAIT = """
    import sys
    from pathlib import Path
    from ich_node.decoding import shared_decoder
    from ich_node.pixels import read_pixels
    read_pixels(Path(sys.argv[1]))
    print(shared_decoder().pid, flush=True)
    sys.stdin.read()
"""


def first_line(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.mark.parametrize("state", ["idle", "stopped"])
def test_it_ends_with_a_killed_worker(j2k: Path, state: str) -> None:
    with worker(READ_AND_WAIT, j2k) as process:
        pid = first_line(process)
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
        process.kill()
        assert gone(pid)


def test_a_codec_that_hangs_with_the_interpreter_locked_ends_with_a_killed_worker(
    j2k: Path, tmp_path: Path
) -> None:
    hangs = tmp_path / "hangs"
    script = f"""
        import sys
        from pathlib import Path
        from ich_node.decoding import life, shared_decoder
        from ich_node.pixels import read_pixels
        life.COMMAND = {server_with(f"open({str(hangs)!r}, 'w').close(); ctypes.PyDLL(None).pause()")!r}
        shared_decoder().start()
        print(shared_decoder().pid, flush=True)
        read_pixels(Path(sys.argv[1]))
    """
    with worker(script, j2k) as process:
        pid = first_line(process)
        while not hangs.exists():
            assert not gone(pid, 0.01)
        process.kill()
        assert gone(pid)


def test_it_is_closed_at_exit(j2k: Path) -> None:
    with worker(READ_AND_WAIT, j2k) as process:
        pid = first_line(process)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert gone(pid)


def test_it_ignores_the_signals_that_a_service_manager_sends_to_all(
    j2k: Path, steady: DecoderProcess
) -> None:
    assert is_right(j2k, steady)
    first = steady.pid
    assert first is not None
    os.kill(first, signal.SIGTERM)
    os.kill(first, signal.SIGINT)
    assert is_right(j2k, steady)
    assert steady.pid == first


def test_it_works_in_a_daemonic_pool_process_and_forks_have_their_own(j2k: Path) -> None:
    """A Celery prefork pool process is a daemonic billiard process, forked from one that may use a decoder too."""
    script = """
        import os, sys
        from pathlib import Path
        import billiard
        from ich_node.decoding import shared_decoder
        from ich_node.pixels import read_pixels

        def work(path, pids):
            before = shared_decoder().pid
            read_pixels(path)
            pids.send((before, shared_decoder().pid, billiard.current_process().daemon))
            pids.recv()

        path = Path(sys.argv[1])
        read_pixels(path)
        mine = shared_decoder().pid
        ours, theirs = billiard.Pipe()
        child = billiard.get_context("fork").Process(target=work, args=(path, theirs), daemon=True)
        child.start()
        before, pid, daemonic = ours.recv()
        assert daemonic and before is None and pid not in (None, mine), (daemonic, before, pid, mine)
        read_pixels(path)
        assert shared_decoder().pid == mine
        shared_decoder().close()          # it ends, though the forked process has lived on
        print(pid, child.pid, flush=True)
        sys.stdin.read()
        os.kill(child.pid, 9)
        child.join()
    """
    with worker(script, j2k) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the script failed"
        pid, child = map(int, line.split())
        assert not gone(pid, 0)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert gone(child)
        assert gone(pid)


def test_a_fork_that_outlives_the_worker_does_not_keep_its_decoder(j2k: Path) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from ich_node.decoding import shared_decoder
        from ich_node.pixels import read_pixels
        read_pixels(Path(sys.argv[1]))
        mine = shared_decoder().pid
        child = os.fork()
        if child == 0:
            sys.stdin.read()
            os._exit(0)
        print(mine, child, flush=True)
        os.waitpid(child, 0)
    """
    with worker(script, j2k) as process:
        assert process.stdout is not None
        decoder, child = map(int, process.stdout.readline().split())
        process.kill()
        assert gone(decoder)
        assert not gone(child, 0)
        os.kill(child, signal.SIGKILL)
        assert gone(child)


def test_a_file_that_shrinks_while_it_is_read_is_refused(steady: DecoderProcess, j2k: Path) -> None:
    with open_image(j2k, DecodeLimits(), ()) as opened:
        assert opened.fragments is not None
        os.truncate(j2k, j2k.stat().st_size - 300)
        with pytest.raises(StudyRejected) as short:
            list(steady.decode(opened.file.fileno(), opened.format, opened.fragments))
    assert short.value.reason is RejectionReason.CORRUPT_PIXEL_DATA


def test_start_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "COMMAND", (sys.executable, "-c", "import signal; signal.pause()"))
    decoder = DecoderProcess()
    decoder.start()
    first = decoder.pid
    assert first is not None
    decoder.start()
    assert decoder.pid == first
    decoder.close()
    assert decoder.pid is None
    assert gone(first, 0)
