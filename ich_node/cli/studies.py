"""Commands about studies: worklist, study show, reprocess, deliveries."""

from __future__ import annotations

import getpass
import os
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from ich_node.cli.settings import Loader, console, open_database, print_json, settings_of
from ich_node.database import outbox, queue
from ich_node.database.engine import Database
from ich_node.database.retention import purged_studies
from ich_node.database.worklist import find_studies, study_report, worklist_row
from ich_node.database.worklist import worklist as worklist_rows
from ich_node.errors import IchNodeError
from ich_node.findings import StudyState

PRIORITY_STYLES = {
    "STAT": "bold white on red",
    "HIGH": "bold black on yellow",
    "MEDIUM": "cyan",
    "ROUTINE": "dim",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print worklist_v1 as JSON.")
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="Rows at most.")
@click.pass_obj
def worklist(load: Loader, as_json: bool, limit: int) -> None:
    """Show the reading worklist, the most urgent first."""
    with open_database(load).reading() as session:
        rows = worklist_rows(session, limit=limit)
    if as_json:
        print_json(rows)
        return
    console.print(worklist_table(rows))


@click.group()
def study() -> None:
    """Look at one study."""


@study.command("show")
@click.argument("uid")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_obj
def show(load: Loader, uid: str, as_json: bool) -> None:
    """Show a study's state, its series, and what each reading found."""
    with open_database(load).reading() as session:
        report, row = study_report(session, uid), worklist_row(session, uid)
    if report is None or row is None:
        raise IchNodeError(f"no study {uid} is here; 'ich-node worklist' lists those that are")
    if as_json:
        print_json(report)
        return
    _print_study(report, row)


@click.command()
@click.argument("uids", nargs=-1)
@click.option("--series", help="Read this series, whatever the selection would choose.")
@click.option("--model", help="Read with this bundle.")
@click.option("--failed", is_flag=True, help="Every study that is FAILED.")
@click.option("--since", type=click.DateTime(), help="Every study received since, local time.")
@click.option("--dry-run", is_flag=True, help="Only say what would be read.")
@click.pass_obj
def reprocess(
    load: Loader,
    uids: tuple[str, ...],
    series: str | None,
    model: str | None,
    failed: bool,
    since: datetime | None,
    dry_run: bool,
) -> None:
    """Read studies again; the new results supersede the old ones."""
    if not uids and not failed and since is None:
        raise click.UsageError("name studies by UID, or use --failed or --since")
    if series is not None and len(uids) != 1:
        raise click.UsageError("--series goes with exactly one study UID")
    if model is not None:
        _require_bundle(load, model)
    database = open_database(load)
    with database.reading() as session:
        found = find_studies(
            session,
            study_instance_uids=uids or None,
            states=[StudyState.FAILED] if failed else None,
            received_since=since.astimezone(UTC) if since else None,
        )
    if missing := set(uids) - set(found) if not failed and since is None else set():
        raise IchNodeError("not here: " + ", ".join(sorted(missing)))
    if series is not None:
        _require_series(load, uids[0], series)
    named = () if failed or since is not None else uids
    found = _with_images(database, found, named=named)
    if not found:
        click.echo("No study fits.", err=True)
    for uid in found:
        click.echo(f"{'would read' if dry_run else 'queued'} {uid}")
    if dry_run:
        return
    with database.writing() as session:
        for uid in found:
            queue.request_reprocess(
                session,
                uid,
                series_instance_uid=series,
                model=model,
                actor=f"cli:{user_name()}",
                now=datetime.now(UTC),
            )


@click.command()
@click.option(
    "--failed",
    is_flag=True,
    help="Only what failed at least once, or was not confirmed, and is not delivered.",
)
@click.option("--retry", is_flag=True, help="Send what failed again now.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def deliveries(load: Loader, failed: bool, retry: bool, as_json: bool) -> None:
    """Show results on their way to the PACS."""
    database = open_database(load)
    if retry:
        with database.writing() as session:
            count = outbox.retry_failed(session, now=datetime.now(UTC))
        click.echo(f"{count} deliveries are tried again now", err=True)
    with database.reading() as session:
        records = outbox.deliveries(session, failed=failed)
    if as_json:
        print_json(
            [
                {k: v.isoformat() if isinstance(v, datetime) else v for k, v in vars(r).items()}
                for r in records
            ]
        )
        return
    table = Table("Destination", "State", "Attempts", "Kind", "Study", "Since", "Note", box=None)
    for r in records:
        style = {"DEAD": "bold red", "DELIVERED": "dim"}.get(r.state, "")
        table.add_row(
            Text(r.destination),
            Text(r.state, style=style),
            str(r.attempts),
            r.kind,
            r.study_instance_uid,
            _local(r.created_at.isoformat()),
            Text(r.note or ""),
        )
    console.print(table if records else "Nothing to show.")


def worklist_table(rows: list[dict[str, Any]]) -> Table:
    """The worklist for a terminal; ``rows`` are those of ``worklist_v1``."""
    table = Table(
        "Priority",
        "State",
        "Suspicion",
        "Patient",
        "Accession",
        "Received",
        "Delivered",
        "Reason / model",
        box=None,
    )
    for row in rows:
        suspicion = "" if row["suspicion"] is None else f"{row['suspicion']:.0%}"
        read_by = f"{row['model_name']} {row['model_version']}" if row["model_name"] else ""
        table.add_row(
            Text(f" {row['priority']} ", style=PRIORITY_STYLES[row["priority"]]),
            row["state"],
            suspicion,
            Text(row["patient_name"].replace("^", " ").strip()),
            Text(row["accession_number"]),
            _local(row["received_at"]),
            _local(row["delivered_at"]),
            row["reason"] or read_by,
        )
    return table


def _print_study(report: dict[str, Any], row: dict[str, Any]) -> None:
    console.print(worklist_table([row]))
    if report["reason_detail"]:
        console.print(f"\n{report['reason']}: {report['reason_detail']}", markup=False)
    if any(s["purged_instances"] for s in report["series"]):
        console.print(
            f"\nImages purged {_local(report['purged_at'])}: to have it read again, send it again from the PACS.",
            markup=False,
        )
    series = Table(
        "Series",
        "Modality",
        "Images",
        "Description",
        "Not read because",
        box=None,
        title="Series",
        title_justify="left",
    )
    for s in report["series"]:
        why = f"{s['exclusion_reason']}: {s['exclusion_detail']}" if s["exclusion_reason"] else ""
        series.add_row(
            s["series_instance_uid"],
            Text(s["modality"]),
            f"{s['instances']} ({s['purged_instances']} were purged)"
            if s["purged_instances"]
            else str(s["instances"]),
            Text(s["series_description"]),
            Text(why),
        )
    console.print()
    console.print(series)
    for reading in report["readings"]:
        _print_reading(reading)


def _print_reading(reading: dict[str, Any]) -> None:
    state = " (superseded)" if reading["superseded"] else ""
    points = reading["operating_points"]
    console.print(
        f"\n[bold]Reading {reading['run_number']}[/bold] by {reading['model_name']} {reading['model_version']}"
        f" at {_local(reading['read_at'])}{state}: {reading['priority']}, suspicion {reading['suspicion']:.1%}"
        f" (flagged from {points['sensitive']:.0%}, with high confidence from {points['high_confidence']:.0%})"
    )
    for caveat in reading["caveats"]:
        console.print(f"  caveat: {caveat}", markup=False)
    worst = sorted(enumerate(reading["slices"], 1), key=lambda s: -s[1]["probabilities"]["any"])[:5]
    for number, finding in worst:
        places = "; ".join(
            f"{p['kind']} at ({', '.join(f'{c:.0f}' for c in p['coordinates'])}), {p['score']:.0%}"
            for p in finding["localizations"]
        )
        frame = f" (frame {finding['frame_number']})" if finding.get("frame_number") else ""
        console.print(
            f"  slice {number:3d}{frame}: {finding['probabilities']['any']:6.1%}  {places}", markup=False
        )
    for delivery in reading["deliveries"]:
        if delivery["state"] != "DELIVERED":
            console.print(
                f"  {delivery['destination']}: {delivery['state']} {delivery['note'] or ''}", markup=False
            )


def _with_images(database: Database, found: list[str], *, named: Collection[str]) -> list[str]:
    """Pass over studies whose images are purged; where they are named, nothing is done at all."""
    with database.reading() as session:
        purged = purged_studies(session, found)
    for uid, at in purged.items():
        day = at.astimezone().strftime("%Y-%m-%d %H:%M")
        click.echo(f"images purged on {day}, send it again from the PACS: {uid}", err=True)
    if missing := set(named) & purged.keys():
        raise IchNodeError(f"{len(missing)} of the named studies cannot be read again; nothing was queued")
    return [uid for uid in found if uid not in purged]


def _require_bundle(load: Loader, name: str) -> None:
    """Refuse a bundle that cannot read, before studies wait for it."""
    from ich_node.model.bundle import find_bundle, prove_bundle

    prove_bundle(find_bundle(name, settings_of(load).bundles_dir))


def _require_series(load: Loader, study_uid: str, series_uid: str) -> None:
    with open_database(load).reading() as session:
        report = study_report(session, study_uid)
    if report is None or all(s["series_instance_uid"] != series_uid for s in report["series"]):
        raise IchNodeError(f"study {study_uid} has no series {series_uid}; 'ich-node study show' lists them")


def user_name() -> str:
    """Who runs the command, for the audit."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())


def _local(iso: str | None) -> str:
    if not iso:
        return ""
    time = datetime.fromisoformat(iso).astimezone()
    recent = datetime.now(UTC) - time < timedelta(hours=12)
    return time.strftime("%H:%M:%S" if recent else "%Y-%m-%d %H:%M")
