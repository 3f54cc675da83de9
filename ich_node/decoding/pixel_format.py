"""What the header says of one frame's stored values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """One frame of one sample per pixel, as the Image Pixel module describes it (PS3.3 C.7.6.3)."""

    transfer_syntax_uid: str
    rows: int
    columns: int
    bits_allocated: int
    """8, 16 or 32."""
    bits_stored: int
    is_signed: bool

    @property
    def frame_bytes(self) -> int:
        """Size of a decoded frame."""
        return self.rows * self.columns * (self.bits_allocated // 8)

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """Of uncompressed little-endian values."""
        return np.dtype(f"<{'i' if self.is_signed else 'u'}{self.bits_allocated // 8}")
