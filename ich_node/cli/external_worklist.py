"""The command ``worklist external``: what would be written into somebody else's worklist, and whether it can be."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ich_node.cli.settings import Loader, settings_of
from ich_node.cli.terminal import print_json, say
from ich_node.database.external_worklist import Statement, check_external, planned_statements
from ich_node.destinations import external_table
from ich_node.errors import ConfigurationError, IchNodeError
from ich_node.findings import DISCLAIMER, IchSubtype, Priority, StudyState
from ich_node.notify.notice import Notice, PatientIdentity
from ich_node.settings import Settings
from ich_node.worklist_settings import ExternalWorklistSettings

_EXAMPLE = Notice(
    notice_id="example",
    study_instance_uid="1.2.3.4.5",
    identity=PatientIdentity(
        accession_number="EXAMPLE-1", patient_id="EXAMPLE", patient_name="Example^Patient"
    ),
    priority=Priority.STAT,
    state=StudyState.READ,
    happened_at=datetime(2026, 3, 1, 3, 0, 45, tzinfo=UTC),
    received_at=datetime(2026, 3, 1, 3, 0, 0, tzinfo=UTC),
    read_at=datetime(2026, 3, 1, 3, 0, 44, tzinfo=UTC),
    suspicion=0.93,
    subtypes=(IchSubtype.SUBDURAL,),
    model_name="example-model",
    model_version="1",
    disclaimer=DISCLAIMER,
)


@click.command()
@click.option("--dry-run", is_flag=True, help="Show the SQL for a study that was flagged; nothing is asked.")
@click.option("--check", is_flag=True, help="Try connection, table, columns and rights; nothing is changed.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def external(context: click.Context, dry_run: bool, check: bool, as_json: bool) -> None:
    """Show or try what [worklist.external] writes into another system's table."""
    if not dry_run and not check:
        raise click.UsageError("say --dry-run, --check or both")
    load: Loader = context.obj
    table = external_table(_chosen(settings_of(load)))
    statements = planned_statements(_EXAMPLE, table) if dry_run else []
    found, ok = None, True
    if check:
        try:
            found = check_external(table)
        except IchNodeError as error:
            found, ok = str(error), False
    if as_json:
        print_json({"statements": [_as_json(one) for one in statements], "check": found, "ok": ok})
    else:
        for statement in statements:
            say(_in_words(statement))
        if found is not None:
            say(f"{'OK' if ok else 'FAIL'}  {found}", err=not ok)
    context.exit(0 if ok else 1)


def look_at_external(settings: Settings) -> tuple[bool, str]:
    """What ``doctor`` says of it; errors of the package are its faults.

    Raises
    ------
    ConfigurationError, TransientError
        It cannot be written to; says what to do.
    """
    return True, check_external(external_table(_chosen(settings)))


def _chosen(settings: Settings) -> ExternalWorklistSettings:
    chosen = settings.worklist.external
    if not chosen.is_on:
        raise ConfigurationError(
            "no other worklist is written to: url or url_file of [worklist.external] is not set"
        )
    return chosen


def _as_json(statement: Statement) -> dict[str, object]:
    parameters = {name: _plain(value) for name, value in statement.parameters.items()}
    return {"purpose": statement.purpose, "sql": statement.sql, "parameters": parameters}


def _in_words(statement: Statement) -> str:
    width = max(map(len, statement.parameters), default=0)
    values = [f"    {name:{width}} = {value!r}" for name, value in _shown(statement)]
    return "\n".join([f"-- {statement.purpose}", f"{statement.sql};", *values, ""])


def _shown(statement: Statement) -> list[tuple[str, object]]:
    return [(name, _plain(value)) for name, value in statement.parameters.items()]


def _plain(value: object) -> object:
    return str(value) if isinstance(value, datetime) else value
