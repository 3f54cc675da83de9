"""The command ``purge``: images whose results every PACS has go from the disk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table

from ich_node.cli.completion import complete_studies
from ich_node.cli.settings import Loader, actor, open_database, settings_of
from ich_node.cli.terminal import cell, console, print_json, say
from ich_node.node import Node
from ich_node.purge_job import (
    NO_DESTINATION,
    PurgedStudy,
    PurgeReport,
    Terms,
    finish_removals,
    purge_delivered,
    purge_studies,
)
from ich_node.receive.free_space import in_gib


@click.command()
@click.argument("study_uids", nargs=-1, metavar="[UID]...", shell_complete=complete_studies)
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    help="Delivered longer ago than so many days; without it disk.retention_days, or any time for named studies.",
)
@click.option("--force", is_flag=True, help="Named studies also where they were not read or not delivered.")
@click.option("--dry-run", is_flag=True, help="Only say what would be purged.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def purge(
    context: click.Context,
    study_uids: tuple[str, ...],
    days: float | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove the images of studies that are read and delivered, all or those named.

    What was found stays: the worklist row, readings and history. A study that is arriving, waiting or being read
    is never purged.
    """
    load: Loader = context.obj
    settings = settings_of(load)
    if force and not study_uids:
        raise click.UsageError("--force goes with studies that are named by UID")
    if days is None and not study_uids:
        days = settings.disk.retention_days
        if days == 0:
            raise click.UsageError(
                "disk.retention_days is 0 (never): say --older-than DAYS, or name studies by UID"
            )
    terms = Terms(
        before=None if days is None else datetime.now(UTC) - timedelta(days=days),
        actor=actor(),
        force=force,
        dry_run=dry_run,
    )
    report = _purge(Node(settings=settings, database=open_database(load)), study_uids, terms)
    note = NO_DESTINATION if not settings.pacs and not force else None
    if as_json:
        print_json(_as_json(report, days, dry_run, note))
    else:
        _print(report, dry_run, note)
    refused = study_uids and len(report.purged) < len(report.studies)
    context.exit(1 if refused or report.files_left else 0)


def _purge(node: Node, study_uids: tuple[str, ...], terms: Terms) -> PurgeReport:
    if not terms.dry_run:
        finish_removals(node)
    if study_uids:
        return purge_studies(node, list(dict.fromkeys(study_uids)), terms)
    return purge_delivered(node, terms)


def _outcome(study: PurgedStudy, dry_run: bool) -> str:
    if not study.purged:
        return "kept"
    return "would purge" if dry_run else "purged"


def _as_json(report: PurgeReport, days: float | None, dry_run: bool, note: str | None) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "older_than_days": days,
        "note": note,
        "studies": [
            {
                "study_instance_uid": study.study_instance_uid,
                "purged": study.purged,
                "obstacles": [str(obstacle) for obstacle in study.obstacles],
                "objects": study.objects,
                "size_bytes": study.size_bytes,
                "result_objects": study.result_objects,
            }
            for study in report.studies
        ],
        "objects": sum(study.objects for study in report.purged),
        "size_bytes": sum(study.size_bytes for study in report.purged),
        "files_left": report.files_left,
    }


def _print(report: PurgeReport, dry_run: bool, note: str | None) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("Study", overflow="fold", min_width=16)
    for title in ("Images", "Size"):
        table.add_column(title, no_wrap=True, justify="right")
    table.add_column("Why", overflow="fold")
    for study in report.studies:
        why = "; ".join(obstacle.words for obstacle in study.obstacles)
        if not study.purged and any(obstacle.may_be_forced for obstacle in study.obstacles):
            why += " (--force)" if all(obstacle.may_be_forced for obstacle in study.obstacles) else ""
        table.add_row(
            cell(_outcome(study, dry_run), "" if study.purged else "bold red"),
            cell(study.study_instance_uid),
            str(study.objects),
            in_gib(study.size_bytes),
            cell(f"although {why}" if study.purged and why else why),
        )
    if report.studies:
        console.print(table)
    if note:
        say(f"note: {note}", err=True)
    say(f"{'would purge' if dry_run else 'purged'} {report.summary}")
