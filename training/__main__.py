"""``python -m training``: labelled data, recipes, runs, their evaluation, and the bundle that comes of them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ich_node.errors import ConfigurationError
from training.blast_ct import BlastCt
from training.bundle_commands import out_of_fold_, pair_, point, release_
from training.options import (
    FOLDER,
    cache_,
    data,
    one_source,
    phantoms_,
    processes_of_here,
    read_all,
    teacher_,
    threads_,
    use_threads,
)
from training.phantom_sets import training_phantoms
from training.readers import ReadOptions
from training.recipe import SHIPPED, Recipe, find_recipe
from training.scan import Scan
from training.split import Split, make_split


class _Commands(click.Group):
    """Tells a mistake in settings or data by one line instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigurationError, LookupError, OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands)
def main() -> None:
    """Train, compare and release what the node reads with."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


@main.command("recipes")
def recipes() -> None:
    """List the recipes that come with the package."""
    for file in sorted(SHIPPED.glob("*.toml")):
        recipe = find_recipe(str(file))
        click.echo(f"{recipe.name:30} {recipe.architecture:12} {recipe.source}")


@main.command("split")
@data
@cache_
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file.")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--test", type=click.FloatRange(0, 0.9), default=0.0, help="Share of patients in no fold.")
@click.option("--seed", type=int, default=20, show_default=True)
def split_(sources: tuple[str, ...], cache: Path, out: Path, folds: int, test: float, seed: int) -> None:
    """Deal patients out to folds, stratified, and write who is where."""
    scans = read_all(sources, cache)
    made = make_split(scans, name=out.stem, seed=seed, folds=folds, test=test)
    made.save(out)
    click.echo(f"{len(made.folds)} patients in {made.count} folds, {len(made.held_out)} held out: {out}")


@main.command("teach")
@data
@cache_
@click.option("--weights", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@threads_
def teach(sources: tuple[str, ...], cache: Path, weights: Path, threads: int | None) -> None:
    """Ask BLAST-CT where the bleeds of labelled slices lie; answers are kept and asked for once."""
    use_threads(threads)
    teacher = BlastCt(weights, cache)
    for scan in read_all(sources, cache):
        teacher(scan)


@main.command("fit")
@click.argument("recipe")
@data
@cache_
@click.option("--out", type=FOLDER, required=True, help="Folder of the run.")
@click.option("--split", "split_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--folds", type=click.IntRange(2), default=5, show_default=True, help="Where no split is given."
)
@click.option("--fold", "only", type=click.IntRange(0), multiple=True, help="Only these folds, from 0.")
@phantoms_
@teacher_
@click.option("--limit", type=click.IntRange(4), help="Only so many patients: a trial.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--steps", type=click.IntRange(1), help="Per epoch, instead of the recipe's.")
@click.option("--accelerator", default="auto", show_default=True, help="As Lightning has it: cpu, gpu, auto.")
@click.option("--devices", default="auto", show_default=True)
@threads_
def fit(
    recipe: str,
    sources: tuple[str, ...],
    cache: Path,
    out: Path,
    split_file: Path | None,
    folds: int,
    only: tuple[int, ...],
    phantoms: int,
    teacher: Path | None,
    limit: int | None,
    epochs: int | None,
    steps: int | None,
    accelerator: str,
    devices: str,
    threads: int | None,
) -> None:
    """Train RECIPE, a name or a file, on all folds but one, for each fold; goes on where it was stopped."""
    from training.run import train_folds

    use_threads(threads)
    chosen = _shortened(find_recipe(recipe), epochs, steps)
    scans = _limited(read_all(sources, cache), limit)
    split = (
        Split.load(split_file)
        if split_file
        else make_split(scans, name=out.name, seed=chosen.schedule.seed, folds=folds)
    )
    split.verify(scans)
    if any(fold >= split.count for fold in only):
        raise click.BadParameter(f"folds are numbered 0 to {split.count - 1}", param_hint="--fold")
    everything = [
        *scans,
        *training_phantoms(phantoms, ReadOptions(cache=cache, processes=processes_of_here())),
    ]
    done = train_folds(
        chosen,
        everything,
        split,
        cache,
        out,
        only=only,
        teacher=BlastCt(teacher, cache) if teacher else None,
        engine={"accelerator": accelerator, "devices": devices, "progress": True},
    )
    click.echo(
        f"Predictions of all folds are in {out}." if done else "These folds are done; others are not yet."
    )


@main.command("evaluate")
@click.argument(
    "runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--sensitivity", type=click.FloatRange(0.5, 1), default=0.95, show_default=True)
@click.option("--specificity", type=click.FloatRange(0.5, 1), default=0.95, show_default=True)
def evaluate(runs: tuple[Path, ...], sensitivity: float, specificity: float) -> None:
    """Write report, numbers and plots of finished runs, each into its folder, and print the papers' tables."""
    from training.evaluation.operating_point import choose
    from training.evaluation.report import write_report
    from training.run import predictions_of

    for run in runs:
        predictions = predictions_of(run)
        if predictions is None:
            raise ValueError(f"{run}: not all folds are done")
        choice = choose(predictions, sensitivity=sensitivity, specificity=specificity)
        out = run / "report"
        write_report(
            predictions, choice.decision, choice.points, out, sensitivity=sensitivity, specificity=specificity
        )
        click.echo((out / "report.md").read_text(encoding="utf-8"))


@main.command("tune")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@data
@cache_
@teacher_
@click.option("--trials", type=click.IntRange(1), default=60, show_default=True)
@click.option("--seed", type=int, default=20, show_default=True)
@threads_
def tune_(
    run: Path,
    sources: tuple[str, ...],
    cache: Path,
    teacher: Path | None,
    trials: int,
    seed: int,
    threads: int | None,
) -> None:
    """Choose the detector's h, T and d of a finished RUN by Bayesian optimization of Dice; goes on where it stopped."""
    from training.tune_detector import tune_run

    use_threads(threads)
    asked = BlastCt(teacher, cache) if teacher else None
    found = tune_run(run, read_all(sources, cache), run / "detector", asked, trials=trials, seed=seed)
    click.echo(json.dumps(found, indent=1))


@main.command("compare")
@data
@cache_
@click.option("--runs", type=FOLDER, default=Path("training-runs"), show_default=True)
@click.option("--split", "split_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--folds", type=click.IntRange(2), default=5, show_default=True, help="Where no split is given."
)
@click.option("--fold", "only", type=click.IntRange(0), multiple=True, help="Only these folds, from 0.")
@click.option("--recipe", "recipes_", multiple=True, help="Only these, of those that are compared.")
@phantoms_
@teacher_
@click.option("--limit", type=click.IntRange(4), help="Only so many patients: a trial.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipes'.")
@click.option("--steps", type=click.IntRange(1), help="Per epoch, instead of the recipes'.")
@threads_
def compare(
    sources: tuple[str, ...],
    cache: Path,
    runs: Path,
    split_file: Path | None,
    folds: int,
    only: tuple[int, ...],
    recipes_: tuple[str, ...],
    phantoms: int,
    teacher: Path | None,
    limit: int | None,
    epochs: int | None,
    steps: int | None,
    threads: int | None,
) -> None:
    """Train all systems and their ablations that are not done, on one split; `results` writes the page."""
    from training.comparison import read_rows, run_missing
    from training.run import train_folds

    use_threads(threads)
    rows = read_rows()
    if unknown := sorted({*recipes_} - {row.recipe for row in rows}):
        known = ", ".join(row.recipe for row in rows)
        raise click.BadParameter(f"{unknown[0]!r} is not compared; there is {known}", param_hint="--recipe")
    scans = _limited(read_all(sources, cache), limit)
    split = (
        Split.load(split_file) if split_file else make_split(scans, name="comparison", seed=20, folds=folds)
    )
    split.verify(scans)
    everything = [
        *scans,
        *training_phantoms(phantoms, ReadOptions(cache=cache, processes=processes_of_here())),
    ]
    asked = BlastCt(teacher, cache) if teacher else None

    def train(name: str, out: Path) -> bool:
        chosen = _shortened(find_recipe(name), epochs, steps)
        return train_folds(chosen, everything, split, cache, out, only=only, teacher=asked) is not None

    run_missing(runs, train, [row for row in rows if not recipes_ or row.recipe in recipes_])


@main.command("results")
@data
@cache_
@click.option(
    "--runs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Record first what is done here: folder of `compare`.",
)
@click.option("--records", type=FOLDER, default=Path("docs/results"), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("docs/results.md"))
def results(sources: tuple[str, ...], cache: Path, runs: Path | None, records: Path, out: Path) -> None:
    """Record what the comparison's runs said, and write the page of results from all records and the labels."""
    from training.comparison import record_runs, write_page
    from training.records import Said, file_of, recall

    scans = read_all(sources, cache)
    for recipe, done in (record_runs(runs, scans, records) if runs else {}).items():
        click.echo(f"{recipe}: {'recorded' if done else 'not done'}")

    def said(recipe: str) -> Said | None:
        file = file_of(records, recipe)
        return recall(file, scans) if file.is_file() else None

    given = " ".join(f"--data {source.partition('=')[0]}=FOLDER" for source in sources)
    bundles = [recall(file, scans) for file in sorted((records / "bundles").glob("*.npz"))]
    command = f"python -m training results {given} --records {records} --out {out}"
    lines = write_page(said, out, command, bundles=bundles)
    click.echo(f"{len(lines)} runs, {len(bundles)} bundles: {out}")


@main.command("check")
@data
@cache_
@click.option("--split", "split_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--images", is_flag=True, help="Read every image too: finds damaged ones and copies.")
@click.option("--json", "as_json", is_flag=True)
def check_(
    sources: tuple[str, ...], cache: Path, split_file: Path | None, images: bool, as_json: bool
) -> None:
    """Say what is missing, doubled, damaged or leaking between the parts of a split."""
    from training.check import check

    options = ReadOptions(cache=cache, processes=processes_of_here())
    scans = [scan for source in sources for scan in one_source(source, options)]
    split = Split.load(split_file) if split_file else None
    report = check(scans, split, faults=options.faults, read_images=images, processes=processes_of_here())
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else report.text())
    if not report.is_sound:
        raise SystemExit(1)


def _limited(scans: list[Scan], limit: int | None) -> list[Scan]:
    """Only so many, half of them with hemorrhage where there are so many."""
    if limit is None:
        return scans
    positive = [scan for scan in scans if scan.scan_labels[0] == 1][: limit // 2]
    return positive + [scan for scan in scans if scan.scan_labels[0] == 0][: limit - len(positive)]


def _shortened(recipe: Recipe, epochs: int | None, steps: int | None) -> Recipe:
    schedule = recipe.schedule
    return replace(
        recipe,
        schedule=replace(
            schedule,
            epochs=epochs or schedule.epochs,
            steps_per_epoch=steps or schedule.steps_per_epoch,
        ),
    )


for command in (release_, point, out_of_fold_, pair_):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m training")
