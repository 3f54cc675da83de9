"""The process that decodes compressed frames, seen from the worker.

The worker sends the open file, the place of each frame's fragments in it and a block of shared memory; the process
answers frame by frame when the stored values are in that block. Nothing is pickled, and no pixels go through the
socket. The process is a plain subprocess, because Celery's pool processes are daemonic and may have no children
through multiprocessing. It ends with the worker, however that ends: see `ich_node.decoding.server`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ich_node.decoding.encapsulation import Fragment
from ich_node.decoding.life import Died, Life
from ich_node.decoding.limits import DecodeLimits
from ich_node.decoding.pixel_format import PixelFormat
from ich_node.decoding.shared_block import SharedBlock
from ich_node.errors import RejectionReason, StudyRejected, TransientError

logger = logging.getLogger(__name__)

_TRIES = 2
"""One death may be chance or somebody's kill; the second on the same frame is that frame's doing."""
_MOST_BATCH_FRAMES = 8
_MOST_BATCH_BYTES = 8 * 2**20
_MOST_DETAIL_CHARACTERS = 300
_DTYPES = frozenset(("|u1", "|i1", "<u2", "<i2", "<u4", "<i4"))


class DecoderProcess:
    """Decodes compressed frames in a process of its own, which is started when needed and again after its death.

    Safe to use from several threads, one batch of frames after the other, and after a fork: the forked process gets a
    decoder of its own.

    Parameters
    ----------
    memory_bytes
        What the codecs may take (RLIMIT_DATA), the interpreter and its libraries' data included, some 75 MiB.
    """

    def __init__(self, memory_bytes: int = DecodeLimits().decoder_memory_bytes) -> None:
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._life: Life | None = None
        self._block: SharedBlock | None = None
        _decoders.add(self)

    @property
    def pid(self) -> int | None:
        """Of the process; ``None`` where there is none now."""
        life = self._life
        return life.pid if life else None

    def start(self) -> None:
        """Start the process without waiting for it, so that it is there when the first image comes.

        Raises
        ------
        TransientError
            No process can be started now.
        """
        with self._lock:
            self._started()

    def close(self) -> None:
        """End the process. It may be used again, and is started again then."""
        with self._lock:
            self._end()
            if self._block:
                self._block.close()
                self._block = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decode(
        self,
        file: int,
        pixel_format: PixelFormat,
        frames: Sequence[list[Fragment]],
        *,
        seconds_per_frame: float = DecodeLimits().seconds_per_frame,
    ) -> Iterator[npt.NDArray[np.integer]]:
        """Decode frames in order, a few at a time.

        Parameters
        ----------
        file
            Descriptor of the file that holds them.
        pixel_format
            What the header says of each of them; it has been held against the limits.
        frames
            Fragments of each frame.
        seconds_per_frame
            A codec that takes longer is ended.

        Yields
        ------
        (rows, columns) integers
            Stored values as `ich_node.decoding.codecs.decode_frame` gives them.

        Raises
        ------
        StudyRejected
            ``CORRUPT_PIXEL_DATA`` where the frame is not what the header says, its codec fails, or ended or hung the
            process twice; ``TOO_LARGE`` where decoding needs more memory than is allowed.
        TransientError
            The process cannot be started, or there is no memory for the result.
        """
        count = max(1, min(_MOST_BATCH_FRAMES, _MOST_BATCH_BYTES // pixel_format.frame_bytes))
        for first in range(0, len(frames), count):
            yield from self._decode_batch(
                file, pixel_format, frames[first : first + count], seconds_per_frame
            )

    def _decode_batch(
        self, file: int, pixel_format: PixelFormat, frames: Sequence[list[Fragment]], seconds: float
    ) -> list[npt.NDArray[np.integer]]:
        done: list[npt.NDArray[np.integer]] = []
        deaths = 0
        with self._lock:
            while len(done) < len(frames):
                before = len(done)
                try:
                    self._exchange(file, pixel_format, frames[before:], seconds, done)
                except Died as death:
                    self._end()
                    deaths = 1 + (deaths if len(done) == before else 0)
                    logger.warning("the process that decodes images ended while at work: %s", death)
                    if deaths == _TRIES:
                        raise self._rejected(death) from death
                except StudyRejected:
                    raise
                except (
                    BaseException
                ):  # an answer may still be under way: what comes next would be taken for another's
                    self._end()
                    raise
        return done

    def _exchange(
        self,
        file: int,
        pixel_format: PixelFormat,
        frames: Sequence[list[Fragment]],
        seconds: float,
        done: list[npt.NDArray[np.integer]],
    ) -> None:
        """Send one request; what is decoded is in ``done``, whatever happens then."""
        life = self._ready()
        block = self._block_of(len(frames) * pixel_format.frame_bytes)
        descriptors = (file,) if life.has_block else (file, block.descriptor)
        life.send({"format": asdict(pixel_format), "frames": list(frames)}, descriptors, seconds)
        life.has_block = True
        for index in range(len(frames)):
            dtype = _dtype(life.receive(seconds), pixel_format)
            shape = (pixel_format.rows, pixel_format.columns)
            done.append(block.copy(index * pixel_format.frame_bytes, dtype, shape))

    def _ready(self) -> Life:
        how: object = ""
        for _ in range(_TRIES):
            life = self._started()
            try:
                life.wait_until_ready()
                return life
            except Died as death:
                how = death
                self._end()
        raise TransientError(f"the process that decodes images does not start: {how}")

    def _started(self) -> Life:
        if self._life is None:
            try:
                self._life = Life(self._memory_bytes)
            except OSError as error:
                raise TransientError(
                    f"no process to decode images can be started: {error.strerror}"
                ) from error
        return self._life

    def _block_of(self, size: int) -> SharedBlock:
        """Give the shared block, a larger one where needed."""
        if self._block is None or self._block.size < size:
            if self._block:
                self._block.close()
                self._block = None
            try:
                self._block = SharedBlock(size)
            except OSError as error:
                raise TransientError(f"no shared memory for decoded images: {error.strerror}") from error
            if self._life:
                self._life.has_block = False
        return self._block

    def _end(self) -> None:
        life, self._life = self._life, None
        if life:
            life.end()

    def _rejected(self, death: Died) -> StudyRejected:
        return StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA,
            f"The codec ended abnormally on an image, twice: {death}; it may use "
            f"{self._memory_bytes / 2**20:g} MiB (worker.decoder_memory_mib).",
        )

    def _forget(self) -> None:
        """Let go of what belongs to the process that this one was forked from."""
        self._lock = threading.Lock()
        if self._life:
            self._life.forget()
            self._life = None
        if self._block:
            self._block.close()
            self._block = None


def shared_decoder(memory_bytes: int = DecodeLimits().decoder_memory_bytes) -> DecoderProcess:
    """Give this process's decoder, made at the first call and closed at its exit.

    To hide the third of a second that it takes to come up, call `DecoderProcess.start` of it early.
    """
    if memory_bytes not in _shared:
        _shared.setdefault(memory_bytes, DecoderProcess(memory_bytes))
    return _shared[memory_bytes]


def _dtype(answer: dict[str, Any], pixel_format: PixelFormat) -> np.dtype[np.integer]:
    """What a frame was decoded to; a refusal is raised. The process is not trusted: codecs run in it."""
    if "reason" in answer:
        known = answer["reason"] in list(RejectionReason)
        raise StudyRejected(
            RejectionReason(answer["reason"]) if known else RejectionReason.CORRUPT_PIXEL_DATA,
            str(answer.get("detail"))[:_MOST_DETAIL_CHARACTERS],
        )
    name = str(answer.get("dtype"))
    if name not in _DTYPES:
        raise Died("it does not answer as it should")
    dtype: np.dtype[np.integer] = np.dtype(name)
    if 8 * dtype.itemsize > pixel_format.bits_allocated:
        raise Died("it does not answer as it should")
    return dtype


_decoders: weakref.WeakSet[DecoderProcess] = weakref.WeakSet()
_shared: dict[int, DecoderProcess] = {}


@atexit.register
def _close_shared() -> None:
    for decoder in _shared.values():
        decoder.close()


def _forget_all() -> None:
    for decoder in list(_decoders):
        decoder._forget()


os.register_at_fork(after_in_child=_forget_all)
