"""What the tests of the decoder process share."""

from __future__ import annotations

import os
import select
import sys
import textwrap
from pathlib import Path

import numpy as np

from ich_node.decoding import DecodeLimits, DecoderProcess
from ich_node.pixels import read_pixels
from tests.unit.encoded_images import smooth_hu

_END_SECONDS = 30.0


def is_right(path: Path, decoder: DecoderProcess, limits: DecodeLimits | None = None) -> bool:
    return np.array_equal(read_pixels(path, limits, decoder).hu, smooth_hu()[0])


def gone(pid: int, seconds: float = _END_SECONDS) -> bool:
    """Wait for the end of a process, whoever its parent is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def server_with(codec: str) -> tuple[str, ...]:
    """Command of the real process, with ``codec`` as the body of what decodes a frame."""
    script = f"""
        import ctypes, os, sys
        from ich_node.decoding import server
        def decode_frame(frame, expected):
            {codec}
        server.decode_frame = decode_frame
        sys.exit(server.main(sys.argv[1:]))
    """
    return (sys.executable, "-c", textwrap.dedent(script))
