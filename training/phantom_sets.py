"""Which phantoms train and which are pointed at afterwards."""

from __future__ import annotations

from training.readers.faults import ReadOptions
from training.readers.phantom import FIRST_SEED, read_phantom
from training.scan import Scan

_THIN, _UNSEEN = 100_000, 1_000_000
"""Added to the first seed."""


def training_phantoms(count: int, options: ReadOptions) -> list[Scan]:
    """Phantoms to train on: two thirds with 5 mm slices, a third thin, noisy and of few pixels."""
    return _both_kinds(count, FIRST_SEED, options)


def unseen_phantoms(count: int, options: ReadOptions) -> list[Scan]:
    """Phantoms that train nothing, of both kinds of slices: for counting where points lie."""
    return _both_kinds(count, FIRST_SEED + _UNSEEN, options)


def _both_kinds(count: int, first: int, options: ReadOptions) -> list[Scan]:
    thin = count // 3
    return [
        *read_phantom(options=options, count=count - thin, first_seed=first, pixels=384, slices=32),
        *read_phantom(options=options, count=thin, first_seed=first + _THIN, pixels=256, slices=64),
    ]
