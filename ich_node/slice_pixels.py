"""Where the pixels of slices come from: files of one frame, and files of many, each read once from its start."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import numpy as np

from ich_node import geometry
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.pixels import DecodeLimits, MissingAttributes, SlicePixels, read_frames, read_pixels
from ich_node.study import Instance


class PixelSource:
    """Decodes images and frames to HU.

    Parameters
    ----------
    limits
        What decoding one object may cost.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits

    def content_sha256s(self, images: Sequence[Instance]) -> dict[tuple[str, int], bytes]:
        """Hashes of the images' HU, by `ich_node.geometry.by_identity`.

        Raises
        ------
        StudyRejected
            As `decode`.
        """
        return {
            # adding zero makes one of the two zeros that floats have
            geometry.by_identity(images[index]): hashlib.sha256(
                (pixels.hu + np.float32(0)).tobytes()
            ).digest()
            for index, pixels in self.decode(images, are_slices=False)
        }

    def decode(
        self, images: Sequence[Instance], *, are_slices: bool = True
    ) -> Iterator[tuple[int, SlicePixels]]:
        """Decode images, file by file.

        Parameters
        ----------
        images
            Single-frame images and frames, in any order.
        are_slices
            Whether they are the slices of a head from below, so that a fault can name its slice.

        Yields
        ------
        tuple of int and SlicePixels
            Index in ``images``, and its pixels.

        Raises
        ------
        StudyRejected
            As `ich_node.pixels.read_frames`; ``MISSING_ATTRIBUTE`` counts absent attributes over all images.
        """
        missing: Counter[str] = Counter()
        for path, indices in _by_file(images).items():
            is_multi_frame = images[indices[0]].frame_number is not None
            read = self._frames if is_multi_frame else self._single
            count = len(images) if are_slices else 1
            try:
                for index, pixels in read(path, images, indices, count):
                    if not missing:
                        yield index, pixels
            except MissingAttributes as absent:
                missing.update(dict.fromkeys(absent.names, len(indices)))
        if missing:
            name, times = min(missing.items(), key=lambda item: (-item[1], item[0]))
            raise StudyRejected(
                RejectionReason.MISSING_ATTRIBUTE,
                f"{name} is absent or cannot be parsed in {times} of {len(images)} slices.",
            )

    def _single(
        self, path: Path, _: Sequence[Instance], indices: Sequence[int], count: int
    ) -> Iterator[tuple[int, SlicePixels]]:
        for index in indices:
            with _naming(f"Slice {index + 1} of {count}, counted from below: " if count > 1 else ""):
                pixels = read_pixels(path, self._limits)
            yield index, pixels

    def _frames(
        self, path: Path, images: Sequence[Instance], indices: Sequence[int], _: int
    ) -> Iterator[tuple[int, SlicePixels]]:
        wanted = {images[index].frame_number or 0: index for index in indices}
        total = images[indices[0]].number_of_frames
        # Closed as soon as the last frame that is wanted is here: the others are not decoded.
        with closing(cast(Generator[SlicePixels], read_frames(path, self._limits))) as frames:
            for number in range(1, max(wanted) + 1):
                # Frames are decoded a few at a time: what is wrong with one shows at the first of them.
                with _naming(f"At frame {number} of {total}, or shortly after: "):
                    pixels = next(frames, None)
                if pixels is None:
                    raise StudyRejected(
                        RejectionReason.CORRUPT_PIXEL_DATA,
                        f"A multi-frame object has {number - 1} frames in its Pixel Data and {total} in its header.",
                    )
                if number in wanted:
                    yield wanted[number], pixels


def _by_file(images: Sequence[Instance]) -> dict[Path, list[int]]:
    files: dict[Path, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        files[image.path].append(index)
    return files


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Say in a rejection where it happened."""
    try:
        yield
    except StudyRejected as rejected:
        raise StudyRejected(rejected.reason, place + rejected.detail) from rejected
