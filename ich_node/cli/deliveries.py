"""The command ``deliveries``: results and notices on their way."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table

from ich_node.cli.moments import local
from ich_node.cli.settings import Loader, open_database
from ich_node.cli.terminal import cell, console, print_json, say
from ich_node.database import outbox


@click.command()
@click.option(
    "--failed",
    is_flag=True,
    help="Only what failed at least once, or was not confirmed, and is not delivered.",
)
@click.option("--retry", is_flag=True, help="Send what failed again now.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="Rows at most.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def deliveries(load: Loader, failed: bool, retry: bool, limit: int, as_json: bool) -> None:
    """Show results on their way to the PACS, the newest first."""
    database = open_database(load)
    if retry:
        with database.writing() as session:
            count = outbox.retry_failed(session, now=datetime.now(UTC))
        say(f"{count} deliveries are tried again now", err=True)
    with database.reading() as session:
        records = outbox.deliveries(session, failed=failed, limit=limit)
    if as_json:
        print_json([_as_json(record) for record in records])
    elif records:
        console.print(_table(records))
    else:
        console.print("Nothing to show.")
    if len(records) == limit:
        say(f"note: there may be more than {limit}; see --limit", err=True)


def _as_json(record: outbox.DeliveryRecord) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in vars(record).items()}


def _table(records: list[outbox.DeliveryRecord]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("Destination", "State", "Attempts", "Kind"):
        table.add_column(title, no_wrap=True, justify="right" if title == "Attempts" else "left")
    table.add_column("Study", overflow="fold", min_width=16)
    table.add_column("Since", no_wrap=True)
    table.add_column("Note", overflow="fold", min_width=20)
    for r in records:
        table.add_row(
            cell(r.destination),
            cell(r.state, {"DEAD": "bold red", "DELIVERED": "dim"}.get(r.state, "")),
            str(r.attempts),
            cell(r.kind),
            cell(r.study_instance_uid),
            local(r.created_at.isoformat()),
            cell(r.note),
        )
    return table
