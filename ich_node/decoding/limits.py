"""How much an image may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """Bounds on decoding one image; the defaults are those of the settings."""

    max_image_bytes: int = 1024 * 2**20
    """Largest image: rows x columns x frames x bytes (``worker.max_image_mib``)."""
    decoder_memory_bytes: int = 4096 * 2**20
    """Memory of the process that decodes compressed images (``worker.decoder_memory_mib``)."""
    seconds_per_frame: float = 20.0
    """A codec that takes longer for one frame is ended. A CT slice takes hundredths of a second."""
