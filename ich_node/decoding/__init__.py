"""Stored values of images: where they lie in a file, whether they may be decoded, and who decodes them.

Uncompressed values are read by numpy. Compressed ones go to a process of their own (`DecoderProcess`), so that a
codec that crashes, hangs or eats memory costs one image and never the worker.
"""

from ich_node.decoding.limits import DecodeLimits
from ich_node.decoding.process import DecoderProcess, shared_decoder
from ich_node.decoding.stored_image import (
    MAX_ROWS_OR_COLUMNS,
    MissingAttributes,
    StoredImage,
    open_image,
)

__all__ = [
    "MAX_ROWS_OR_COLUMNS",
    "DecodeLimits",
    "DecoderProcess",
    "MissingAttributes",
    "StoredImage",
    "open_image",
    "shared_decoder",
]
