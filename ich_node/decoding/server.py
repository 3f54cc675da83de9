"""The process that decodes compressed frames: ``python -m ich_node.decoding.server LIFELINE MEMORY_BYTES``.

Started by `ich_node.decoding.process` with a socket as standard input. What a codec can do here is bounded:

- RLIMIT_DATA bounds its memory. It counts what is allocated, and not the libraries' code nor the result's shared
  block, which RLIMIT_AS counts too; against both, numpy, OpenJPEG, CharLS, GDCM and the RLE codec either report
  the lack of memory or end the process.
- The worker's death ends it, even if a codec hangs: LIFELINE is a pipe that only the worker can write to, and at
  its end the kernel sends SIGKILL. (PR_SET_PDEATHSIG would go by the thread that started the process.)
- If the host runs out of memory, the kernel chooses this process first.
- It leaves no core file: that would hold pixels.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import resource
import signal
import socket
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ich_node.decoding.codecs import decode_frame
from ich_node.decoding.encapsulation import Fragment
from ich_node.decoding.messages import receive_message, send_message
from ich_node.decoding.pixel_format import PixelFormat
from ich_node.errors import RejectionReason, StudyRejected

_MEMORY_PER_FRAME_BYTE = 12
"""GDCM takes 10 bytes for each byte of a frame at its peak, the other codecs 5 to 6."""
_DATA_PAGES = 5
"""Place in /proc/self/statm, proc(5)."""


def main(arguments: list[str]) -> int:
    """Answer requests until the worker closes the socket."""
    lifeline, memory_bytes = (int(argument) for argument in arguments)
    # Ends with the worker and not before it: a service manager signals all processes at once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_the_worker(lifeline)
    budget = memory_bytes - _own_data_bytes()
    _limit(memory_bytes)
    with socket.socket(fileno=0) as connection:
        send_message(connection, {"ready": True})
        _be_quiet()
        block: mmap.mmap | None = None
        while True:
            try:
                request, descriptors = receive_message(connection, 2)
            except (EOFError, ConnectionError):
                return 0
            file, *new_block = descriptors
            for descriptor in new_block:
                block = mmap.mmap(descriptor, 0)
                os.close(descriptor)
            assert block is not None
            try:
                _answer(connection, request, file, block, budget)
            finally:
                os.close(file)


def _end_with_the_worker(lifeline: int) -> None:
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _limit(memory_bytes: int) -> None:
    already = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = memory_bytes if already == resource.RLIM_INFINITY else min(memory_bytes, already)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _be_quiet() -> None:
    """Codecs print; what matters of it is in the answers. Errors of the start have been shown by now."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _answer(
    connection: socket.socket, request: dict[str, Any], file: int, block: mmap.mmap, budget: int
) -> None:
    """Decode the frames of a request one after the other, until one cannot be."""
    pixel_format = PixelFormat(**request["format"])
    for index, fragments in enumerate(request["frames"]):
        try:
            _check_memory(pixel_format, budget)
            array = decode_frame(_read(file, fragments), pixel_format)
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            offset = index * pixel_format.frame_bytes
            np.frombuffer(block, array.dtype, array.size, offset).reshape(array.shape)[:] = array
        except BaseException as error:  # a panic of the RLE codec is no Exception
            refused = _refusal(error)
            send_message(connection, {"reason": refused.reason, "detail": refused.detail})
            return
        send_message(connection, {"dtype": array.dtype.str})


def _own_data_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[_DATA_PAGES]) * resource.getpagesize()


def _check_memory(pixel_format: PixelFormat, budget: int) -> None:
    """Say so where the limit is too low for the image: some codecs end the process instead."""
    if _MEMORY_PER_FRAME_BYTE * pixel_format.frame_bytes > budget:
        raise MemoryError


def _read(file: int, fragments: list[Fragment]) -> bytes:
    parts = [os.pread(file, length, offset) for offset, length in fragments]
    if any(len(part) != length for part, (_, length) in zip(parts, fragments, strict=True)):
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, "The compressed Pixel Data ends early: the file is short."
        )
    return b"".join(parts)


def _refusal(error: BaseException) -> StudyRejected:
    if isinstance(error, StudyRejected):
        return error
    if isinstance(error, MemoryError):
        return StudyRejected(
            RejectionReason.TOO_LARGE,
            "Decoding an image needs more memory than worker.decoder_memory_mib allows.",
        )
    return StudyRejected(
        RejectionReason.CORRUPT_PIXEL_DATA, f"Pixel Data cannot be decoded ({type(error).__name__})."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
