"""Commands about bundles: from a finished run to one, and what one is worth."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from ich_node.model.bundle import read_description
from training.options import (
    FOLDER,
    cache_,
    data,
    phantoms_,
    processes_of_here,
    read_all,
    threads_,
    use_threads,
)
from training.phantom_sets import training_phantoms
from training.readers import ReadOptions
from training.scan import PRESENT
from training.split import Split

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("release")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@data
@cache_
@phantoms_
@click.option("--out", type=FOLDER, required=True, help="Folder of the bundle.")
@click.option("--version", required=True, help="Of the bundle.")
@click.option("--sensitivity", type=click.FloatRange(0.5, 1), default=0.95, show_default=True)
@click.option("--specificity", type=click.FloatRange(0.5, 1), default=0.95, show_default=True)
@click.option(
    "--outlined", type=click.IntRange(0), default=30, show_default=True, help="Phantoms to point at."
)
@click.option(
    "--remark", "remarks", multiple=True, help="A sentence for the card: what else was tried and seen."
)
@click.option(
    "--detector",
    "detector_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `tune` wrote, detector.json; without, the recipe's own.",
)
@threads_
def release_(
    run: Path,
    sources: tuple[str, ...],
    cache: Path,
    phantoms: int,
    out: Path,
    version: str,
    sensitivity: float,
    specificity: float,
    outlined: int,
    remarks: tuple[str, ...],
    detector_file: Path | None,
    threads: int | None,
) -> None:
    """Evaluate a finished RUN and write its networks, as one ensemble, into a bundle with its card."""
    from training.phantom_sets import unseen_phantoms
    from training.release import Wanted, read_detector, release

    use_threads(threads)
    options = ReadOptions(cache=cache, processes=processes_of_here())
    scans = [*read_all(sources, cache), *training_phantoms(phantoms, options)]
    wanted = Wanted(
        version=version,
        sensitivity=sensitivity,
        specificity=specificity,
        remarks=remarks,
        detector=read_detector(detector_file) if detector_file else None,
    )
    shown = partial(unseen_phantoms, outlined, options) if outlined else None
    metrics = release(run, scans, out, wanted, shown)
    click.echo(json.dumps(metrics, indent=2))


@click.command("point")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data", "sources", multiple=True, metavar="NAME=FOLDER", help="Data with outlines; without, phantoms."
)
@cache_
@click.option(
    "--phantoms", type=click.IntRange(1), default=30, show_default=True, help="That train nothing here."
)
@threads_
def point(bundle: Path, sources: tuple[str, ...], cache: Path, phantoms: int, threads: int | None) -> None:
    """Count how often the strongest point of a slice with hemorrhage lies in the bleed, as BUNDLE reads it."""
    from training.phantom_sets import unseen_phantoms
    from training.pointing import pointing

    use_threads(threads)
    options = ReadOptions(cache=cache, processes=processes_of_here())
    scans = read_all(sources, cache) if sources else unseen_phantoms(phantoms, options)
    positive = [scan for scan in scans if scan.outlined and (scan.labels[:, 0] == PRESENT).any()]
    if not positive:
        raise ValueError(
            "no slice with hemorrhage has an outline here: give data with masks, or more phantoms"
        )
    click.echo(json.dumps(pointing(bundle, positive).as_dict(), indent=1))


@click.command("out-of-fold")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@data
@cache_
@click.option("--split", "split_file", type=_FILE, required=True, help="That its networks were trained on.")
@click.option("--upright", is_flag=True, help="Not on the mirror images too: half of what `pair` makes.")
@click.option("--out", type=_NEW_FILE, required=True, help="Record, as `results` keeps them.")
@threads_
def out_of_fold_(
    bundle: Path,
    sources: tuple[str, ...],
    cache: Path,
    split_file: Path,
    upright: bool,
    out: Path,
    threads: int | None,
) -> None:
    """Measure BUNDLE anew: read the patients of each fold with the network that never saw them."""
    from training.evaluation.operating_point import choose
    from training.evaluation.paper_tables import auc_of
    from training.evaluation.scored import Scored
    from training.out_of_fold import out_of_fold
    from training.records import keep

    use_threads(threads)
    scans = read_all(sources, cache)
    said = out_of_fold(bundle, scans, Split.load(split_file), upright=upright)
    keep(said, scans, out)
    scored = Scored(predictions=said[0], decision=choose(said[0]).decision)
    for items in ("slices", "scans"):
        click.echo(f"AUC of {items}, any: {auc_of(scored, items).text()}")
    click.echo(f"record: {out}")


@click.command("pair")
@click.argument("vicar", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("lite", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--vicar-said", type=_FILE, required=True, help="Record of VICAR, by `out-of-fold --upright`.")
@click.option("--lite-said", type=_FILE, required=True, help="The same of LITE.")
@data
@cache_
@click.option("--out", type=FOLDER, required=True, help="Folder of the bundle.")
@click.option("--record", type=_NEW_FILE, required=True, help="Where what the pair says is recorded.")
@click.option("--version", required=True, help="Of the bundle.")
@click.option("--sensitivity", type=click.FloatRange(0.5, 1), default=0.95, show_default=True)
@click.option("--specificity", type=click.FloatRange(0.5, 1), default=0.95, show_default=True)
@click.option(
    "--outlined", type=click.IntRange(0), default=30, show_default=True, help="Phantoms to point at."
)
@click.option(
    "--remark", "remarks", multiple=True, help="A sentence for the card: what else was tried and seen."
)
@threads_
def pair_(
    vicar: Path,
    lite: Path,
    vicar_said: Path,
    lite_said: Path,
    sources: tuple[str, ...],
    cache: Path,
    out: Path,
    record: Path,
    version: str,
    sensitivity: float,
    specificity: float,
    outlined: int,
    remarks: tuple[str, ...],
    threads: int | None,
) -> None:
    """Put VICAR and LITE, bundles of those architectures, together as one that reads with both."""
    from training.pair import pair, part_of
    from training.phantom_sets import unseen_phantoms
    from training.records import keep, recall
    from training.release import Wanted

    use_threads(threads)
    options = ReadOptions(cache=cache, processes=processes_of_here())
    scans = read_all(sources, cache)
    wanted = Wanted(version=version, sensitivity=sensitivity, specificity=specificity, remarks=remarks)
    parts = [
        part_of(bundle, recall(said, scans)) for bundle, said in ((vicar, vicar_said), (lite, lite_said))
    ]
    shown = partial(unseen_phantoms, outlined, options) if outlined else None
    metrics, predictions = pair(parts[0], parts[1], scans, out, wanted, shown)
    written = read_description(out)
    named = {key: written[key] for key in ("name", "version", "weights_sha256")}
    folds = len(set(predictions.fold.tolist()))
    keep((predictions, {"bundle": named, "folds": folds, "upright": True}), scans, record)
    click.echo(json.dumps(metrics, indent=2))
