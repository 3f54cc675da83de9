"""Options that several commands of ``python -m training`` have, and what they stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from training.readers import READERS, ReadOptions, read
from training.scan import Scan

FOLDER = click.Path(file_okay=False, path_type=Path)
data = click.option(
    "--data",
    "sources",
    multiple=True,
    required=True,
    metavar="NAME=FOLDER",
    help=f"Labelled data; NAME is one of {', '.join(READERS)}. May be given several times.",
)
cache_ = click.option(
    "--cache",
    type=FOLDER,
    default=Path("training-cache"),
    show_default=True,
    help="Where preprocessed slices, indices of headers and a teacher's answers are kept.",
)
phantoms_ = click.option(
    "--phantoms",
    type=click.IntRange(0),
    default=72,
    show_default=True,
    help="Trained on beside the patients.",
)
teacher_ = click.option(
    "--teacher",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of BLAST-CT weights, which say where labelled bleeds lie. Without: slice labels alone.",
)
threads_ = click.option("--threads", type=click.IntRange(1), help="CPU threads of torch.")


def one_source(source: str, options: ReadOptions) -> list[Scan]:
    """Scans of one ``NAME=FOLDER``."""
    name, _, folder = source.partition("=")
    if name not in READERS or not folder:
        raise click.BadParameter(f"{source!r} is not NAME=FOLDER with a known NAME", param_hint="--data")
    return read(name, Path(folder), options)


def read_all(sources: Sequence[str], cache: Path) -> list[Scan]:
    """All scans of the named data; what is wrong with them is told, and nothing stops because of it."""
    scans: list[Scan] = []
    for source in sources:
        options = ReadOptions(cache=cache, processes=processes_of_here())
        scans += one_source(source, options)
        for fault in options.faults[:20]:
            click.echo(f"{fault.kind}: {fault.where}: {fault.what}", err=True)
        if len(options.faults) > 20:
            click.echo(f"and {len(options.faults) - 20} more; `check` shows all", err=True)
    return scans


def processes_of_here() -> int:
    """How many may read at once."""
    return os.cpu_count() or 1


def use_threads(threads: int | None) -> None:
    """Let torch have so many; all where none are named."""
    if threads:
        torch.set_num_threads(threads)
