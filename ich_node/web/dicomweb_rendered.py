"""Pictures of stored images for any browser (PS3.18 8.3.5): windowed, cropped, scaled, as JPEG or PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.pixels.utils import pixel_array
from starlette.exceptions import HTTPException

from ich_node.decoding import DecodeLimits, DecoderProcess
from ich_node.decoding.stored_image import quietly
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.web.dicomweb_pixels import StoredPixels
from ich_node.web.pictures import MAX_PIXELS
from ich_node.web.slice_images import StoredFrame, stored_frame

JPEG, PNG = "image/jpeg", "image/png"
THUMBNAIL_PIXELS = 128
_MOST_VIEWPORT_PIXELS = 4096
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?")
_DEFAULT_QUALITY = 90
_LARGEST = 1e9

Gray: TypeAlias = npt.NDArray[np.uint8]


class VoiFunction(StrEnum):
    """VOI LUT Function (0028,1056), as the parameter ``window`` names it."""

    LINEAR = "linear"
    LINEAR_EXACT = "linear-exact"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, kw_only=True)
class Window:
    """What of the values is shown, in rescaled units."""

    center: float
    width: float
    function: VoiFunction = VoiFunction.LINEAR

    def apply(self, values: npt.NDArray[np.float32]) -> Gray:
        """Map to 0 to 255 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
        if self.function is VoiFunction.SIGMOID:
            shown = 1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -80, 80)))
        elif self.function is VoiFunction.LINEAR_EXACT:
            shown = (values - self.center) / self.width + 0.5
        elif self.width > 1:
            shown = (values - (self.center - 0.5)) / (self.width - 1) + 0.5
        else:
            shown = (values > self.center - 0.5).astype(np.float32)
        gray: Gray = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
        return gray


@dataclass(frozen=True, kw_only=True)
class Viewport:
    """Size that a picture has to fit in, and the region of the image that it shows."""

    width: int
    height: int
    left: float = 0.0
    top: float = 0.0
    source_width: float | None = None
    """Below zero: mirrored. None: up to the right border."""
    source_height: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How an image is to be shown."""

    window: Window | None = None
    viewport: Viewport | None = None
    quality: int = _DEFAULT_QUALITY
    """Of JPEG, 1 to 100."""


def parse_rendering(parameters: Mapping[str, str], *, thumbnail: bool = False) -> Rendering:
    """Read query parameters; those that are not known are ignored, as the standard wants.

    Raises
    ------
    HTTPException
        400 with a line that says which one is wrong.
    """
    viewport = _viewport(parameters["viewport"]) if "viewport" in parameters else None
    if viewport is None and thumbnail:
        viewport = Viewport(width=THUMBNAIL_PIXELS, height=THUMBNAIL_PIXELS)
    quality = _DEFAULT_QUALITY
    if "quality" in parameters:
        if (
            not re.fullmatch(r"[0-9]{1,3}", parameters["quality"])
            or not 1 <= int(parameters["quality"]) <= 100
        ):
            raise _wrong("quality is to be a whole number from 1 to 100")
        quality = int(parameters["quality"])
    window = _window(parameters["window"]) if "window" in parameters else None
    return Rendering(window=window, viewport=viewport, quality=quality)


def render(
    pixels: StoredPixels, frame_number: int, rendering: Rendering, media_type: str, decoder: DecoderProcess
) -> bytes:
    """Draw one frame.

    Raises
    ------
    StudyRejected
        What decoding raises; ``UNSUPPORTED_TRANSFER_SYNTAX`` where it can be decoded by others only.
    TransientError
        It cannot be decoded now.
    """
    if pixels.samples_per_pixel == 1:
        limits = DecodeLimits()
        picture = Image.fromarray(
            _gray(stored_frame(pixels.path, frame_number, decoder, limits=limits), rendering.window)
        )
    else:
        picture = Image.fromarray(_color(pixels, frame_number))
    if rendering.viewport is not None:
        picture = _fitted(picture, rendering.viewport)
    file = io.BytesIO()
    if media_type == PNG:
        picture.save(file, "PNG", compress_level=4)
    else:
        picture.save(file, "JPEG", quality=rendering.quality)
    return file.getvalue()


def _gray(frame: StoredFrame, window: Window | None) -> Gray:
    values, meaning = frame.rescaled(), frame.meaning
    if frame.photometric_interpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise StudyRejected(
            RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX,
            "Images of this photometric interpretation are not drawn.",
        )
    if window is None and meaning.window_center is not None and meaning.window_width is not None:
        window = Window(center=meaning.window_center, width=meaning.window_width)
    if window is None:
        low, high = float(values.min()), float(values.max())
        window = Window(
            center=(low + high) / 2, width=max(high - low, 1.0), function=VoiFunction.LINEAR_EXACT
        )
    gray = window.apply(values)
    return 255 - gray if frame.photometric_interpretation == "MONOCHROME1" else gray


def _color(pixels: StoredPixels, frame_number: int) -> npt.NDArray[np.uint8]:
    """Color pictures made here, and those of others where no codec is needed."""
    if pixels.fragments is not None and not pixels.is_ours:
        raise StudyRejected(
            RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX, "Compressed color images of others are not drawn."
        )
    if pixels.format.rows * pixels.format.columns > MAX_PIXELS:
        raise StudyRejected(RejectionReason.TOO_LARGE, "The picture is too large to be drawn.")
    try:
        array = quietly(lambda: pixel_array(pixels.path, index=frame_number - 1))
    except Exception as error:  # whatever the damage leads to
        raise StudyRejected(
            RejectionReason.CORRUPT_PIXEL_DATA, f"The pixel data cannot be decoded ({type(error).__name__})."
        ) from error
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise StudyRejected(
            RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX, "Only color images of 8 bits are drawn."
        )
    drawn: npt.NDArray[np.uint8] = np.ascontiguousarray(array)
    return drawn


def _fitted(picture: Image.Image, viewport: Viewport) -> Image.Image:
    """Crop to the region, mirror it, and scale it to fit, its shape kept."""
    width = picture.width - viewport.left if viewport.source_width is None else viewport.source_width
    height = picture.height - viewport.top if viewport.source_height is None else viewport.source_height
    left, top = int(viewport.left), int(viewport.top)
    right, bottom = (math.ceil(a + abs(b)) for a, b in ((viewport.left, width), (viewport.top, height)))
    inside = 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height
    if not inside:
        raise _wrong("the region of viewport does not lie inside the image")
    region = picture.crop((left, top, right, bottom))
    if width < 0:
        region = region.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if height < 0:
        region = region.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    scale = min(viewport.width / region.width, viewport.height / region.height)
    size = (max(1, round(region.width * scale)), max(1, round(region.height * scale)))
    return region.resize(size, Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.BOX)


def _viewport(text: str) -> Viewport:
    values = text.split(",")
    numbers = [_number(value) if value else None for value in values]
    if len(values) not in (2, 6) or any(
        value and number is None for value, number in zip(values, numbers, strict=True)
    ):
        raise _wrong("viewport is to be width,height or width,height,left,top,width,height")
    width, height, left, top, source_width, source_height = [*numbers, None, None, None, None][:6]
    if not all(size and size.is_integer() and 1 <= size <= _MOST_VIEWPORT_PIXELS for size in (width, height)):
        raise _wrong(f"a viewport has 1 to {_MOST_VIEWPORT_PIXELS} pixels a side")
    if source_width == 0 or source_height == 0:
        raise _wrong("the region of viewport is empty")
    return Viewport(
        width=int(width or 1),
        height=int(height or 1),
        left=left or 0.0,
        top=top or 0.0,
        source_width=source_width,
        source_height=source_height,
    )


def _window(text: str) -> Window:
    center, width, function = (*text.split(","), "linear")[:3] if text.count(",") in (1, 2) else ("", "", "")
    numbers = (_number(center), _number(width))
    if None in numbers or function.lower() not in list(VoiFunction) or (numbers[1] or 0) <= 0:
        raise _wrong(f"window is to be center,width,function, the last one of {', '.join(VoiFunction)}")
    return Window(center=numbers[0] or 0.0, width=numbers[1] or 1.0, function=VoiFunction(function.lower()))


def _number(text: str) -> float | None:
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if abs(number) < _LARGEST else None


def _wrong(words: str) -> HTTPException:
    return HTTPException(400, f"This picture cannot be drawn: {words}.")
