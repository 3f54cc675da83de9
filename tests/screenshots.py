"""Pages compared with pictures of them that are kept under ``tests/screenshots``.

    SCREENSHOTS=write python -m pytest tests/integration/test_web_live.py

makes the pictures anew; look at them before they are kept. They are small and blurred by that: what is compared is
where things are and what color they have. Another Debian machine draws letters a little wider or narrower, and must
not fail; a page that lacks a column or a bar must.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = Path(__file__).with_name("screenshots")
SCALE = 3
"""Kept pictures are so many times smaller than the page, along each side."""
_BLUR = 2.0
"""Standard deviation in pixels of a kept picture: about a letter, so that what counts is the gray of a word."""
_DIFFERENCE = 20
"""Of 255, in one channel, after the blur: such a place has something else on it."""
_SHARE = 0.03
"""Share of such places that is too much."""


def assert_looks_like(page: Page, name: str, *, masked: Sequence[str] = ("#freshness",)) -> None:
    """Compare what a page shows now with the picture that is kept under a name.

    Parameters
    ----------
    masked
        CSS selectors of what is never the same, such as a clock.
    """
    shown = page.screenshot(
        animations="disabled", caret="hide", mask=[page.locator(one) for one in masked], mask_color="#000000"
    )
    picture = _reduced(Image.open(io.BytesIO(shown)).convert("RGB"))
    kept = FOLDER / f"{name}.png"
    if os.environ.get("SCREENSHOTS") == "write":
        FOLDER.mkdir(exist_ok=True)
        picture.save(kept, optimize=True)
        return
    assert kept.exists(), f"there is no {kept}; SCREENSHOTS=write makes it"
    share = difference(picture, Image.open(kept).convert("RGB"))
    if share > _SHARE:
        folder = Path(tempfile.mkdtemp(prefix="screenshots-"))
        picture.save(folder / f"{name}.png")
        raise AssertionError(
            f"{share:.1%} of the page looks unlike {kept}; now it is {folder / f'{name}.png'}"
        )


def difference(one: Image.Image, other: Image.Image) -> float:
    """Share of the places that have something else on them, 0 to 1; 1 for another size."""
    if one.size != other.size:
        return 1.0
    apart = np.abs(_blurred(one) - _blurred(other)).max(axis=-1)
    return float((apart > _DIFFERENCE).mean())


def _reduced(picture: Image.Image) -> Image.Image:
    return picture.reduce(SCALE)


def _blurred(picture: Image.Image) -> npt.NDArray[np.int16]:
    """(rows, columns, channels) int16."""
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(_BLUR)), np.int16)
