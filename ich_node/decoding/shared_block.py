"""Memory that worker and decoder process share."""

from __future__ import annotations

import fcntl
import mmap
import os

import numpy as np
import numpy.typing as npt


class SharedBlock:
    """Anonymous shared memory of a fixed size; its descriptor can be sent to another process.

    Raises
    ------
    OSError
        There is not so much memory.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.descriptor = os.memfd_create("ich-node-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Pages are taken now: later, a lack of them would be a SIGBUS. Sealed, nobody can take them away.
            os.posix_fallocate(self.descriptor, 0, size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            self._memory = mmap.mmap(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise

    def copy(
        self, offset: int, dtype: np.dtype[np.integer], shape: tuple[int, int]
    ) -> npt.NDArray[np.integer]:
        """Copy an array out."""
        values = np.frombuffer(self._memory, dtype, shape[0] * shape[1], offset)
        return values.reshape(shape).copy()

    def close(self) -> None:
        """Give the memory back, as far as this process holds it."""
        self._memory.close()
        os.close(self.descriptor)
