"""Commands about the installation: config, db, doctor."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from ich_node.cli.settings import Loader, console, print_json, settings_of
from ich_node.database.engine import Database


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def config_show(load: Loader, as_json: bool) -> None:
    """Print each setting with its value, unit and source."""
    rows = load().rows()
    if as_json:
        print_json([vars(row) for row in rows])
        return
    table = Table("Setting", "Value", "Unit", "Source", "Meaning", box=None)
    for row in rows:
        table.add_row(row.key, Text(str(row.value)), row.unit, Text(row.source), Text(row.description))
    console.print(table)


@config.command("check")
@click.pass_obj
def config_check(load: Loader) -> None:
    """Say whether the settings are valid; exit code 2 and the faulty keys if not."""
    load()
    click.echo("The settings are valid.")


@click.group()
def db() -> None:
    """Look after the database."""


@db.command("upgrade")
@click.pass_obj
def db_upgrade(load: Loader) -> None:
    """Bring the database to this version's schema."""
    database = Database(settings_of(load).database_url)
    before, head = database.revision()
    database.upgrade()
    click.echo(f"The database was at revision {before or 'none'} and is at {head}.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Check settings, disk, database, broker, workers, model and every PACS, and say how to mend each."""
    from ich_node.cli.checks import run_checks

    checks = run_checks(settings_of(context.obj))
    if as_json:
        print_json([vars(check) for check in checks])
    else:
        table = Table("", "Check", "Found", "Mend", box=None)
        for check in checks:
            mark = Text("ok", style="green") if check.ok else Text("FAULT", style="bold red")
            table.add_row(mark, Text(check.name), Text(check.found), Text("" if check.ok else check.mend))
        console.print(table)
    context.exit(0 if all(check.ok for check in checks) else 1)
