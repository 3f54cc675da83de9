"""Commands about the installation: config, db, doctor."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from ich_node.cli.check_run import Check, Outcome
from ich_node.cli.completion import complete_pacs
from ich_node.cli.settings import Loader, settings_of
from ich_node.cli.terminal import cell, console, print_json, progress, say
from ich_node.database.engine import Database
from ich_node.errors import ConfigurationError

_MARKS = {Outcome.OK: "green", Outcome.WARN: "bold yellow", Outcome.FAIL: "bold red"}


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
    table = Table(box=None, header_style="bold")
    for title in ("Setting", "Value", "Unit", "Source", "Meaning"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(row.key, cell(row.value), row.unit, cell(row.source), cell(row.description))
    console.print(table)


@config.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def config_check(load: Loader, as_json: bool) -> None:
    """Say whether the settings are valid; exit code 2 and the faulty keys if not."""
    try:
        load()
    except ConfigurationError as error:
        if as_json:
            print_json({"valid": False, "faults": str(error).splitlines()})
        raise
    if as_json:
        print_json({"valid": True, "faults": []})
    else:
        say("The settings are valid.")


@click.group()
def db() -> None:
    """Look after the database."""


@db.command("upgrade")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def db_upgrade(load: Loader, as_json: bool) -> None:
    """Bring the database to this version's schema."""
    database = Database(settings_of(load).database_url)
    before, head = database.revision()
    database.upgrade()
    if as_json:
        print_json({"before": before, "now": head})
    else:
        say(f"The database was at revision {before or 'none'} and is at {head}.")


@click.command()
@click.option(
    "--pacs", multiple=True, shell_complete=complete_pacs, help="Look at this PACS only; may be given again."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def doctor(context: click.Context, pacs: tuple[str, ...], as_json: bool) -> None:
    """Check settings, disk, database, broker, workers, models, clock and every PACS, and say how to mend each.

    Exit code 0 where nothing is a fault (WARN is none), 1 where something is, 2 where the settings are.
    """
    load: Loader = context.obj
    try:
        settings = settings_of(load)
    except ConfigurationError as error:
        mend = "mend what is named; 'ich-node config check' says it again"
        _report([Check(name="settings", outcome=Outcome.FAIL, found=str(error), mend=mend)], as_json)
        context.exit(2)
    if unknown := set(pacs) - {each.name for each in settings.pacs}:
        raise click.UsageError(f"no [[pacs]] is called {', '.join(sorted(unknown))}")
    from ich_node.cli.checks import run_checks

    with progress.status("Looking at everything"):
        checks = run_checks(settings, pacs=pacs)
    source = sorted(set(load().sources.values())) or ["defaults alone"]
    valid = Check(name="settings", outcome=Outcome.OK, found="valid: " + ", ".join(source), mend="")
    _report(checks if pacs else [valid, *checks], as_json)
    context.exit(0 if all(check.ok for check in checks) else 1)


def _report(checks: list[Check], as_json: bool) -> None:
    if as_json:
        print_json([check.as_json() for check in checks])
        return
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(check.outcome, style=_MARKS[check.outcome]), cell(check.name), cell(check.found))
        if check.outcome is not Outcome.OK:
            table.add_row("", "", cell(f"-> {check.mend}", "italic"))
    console.print(table)
