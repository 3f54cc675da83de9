"""The command ``reprocess``: studies are read again, and nothing twice that is to be read anyhow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from ich_node.cli.completion import (
    complete_accession_numbers,
    complete_models,
    complete_patients,
    complete_studies,
)
from ich_node.cli.moments import MOMENT
from ich_node.cli.settings import Loader, actor, open_database, settings_of
from ich_node.cli.terminal import print_json, say
from ich_node.database.engine import Database
from ich_node.errors import IchNodeError
from ich_node.findings import StudyState

if TYPE_CHECKING:
    from ich_node.database.chosen_studies import ChosenStudy, StudyChoice

_ASK_FROM = 50
"""More studies than these are queued only where a person has said yes."""
_AT_ONCE = 50
"""Studies in one transaction: receivers and workers wait for no more."""
_UNDER_WAY_WORDS = {
    StudyState.RECEIVING: "still arriving, and will be read",
    StudyState.QUEUED: "queued already",
    StudyState.READING: "being read already",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of the studies that were asked for."""

    again: tuple[str, ...]
    under_way: tuple[ChosenStudy, ...]
    purged: tuple[ChosenStudy, ...]


@click.command()
@click.argument("uids", nargs=-1, metavar="[UID]...", shell_complete=complete_studies)
@click.option(
    "--accession",
    "accession_numbers",
    multiple=True,
    shell_complete=complete_accession_numbers,
    help="Studies of this accession number; may be given again.",
)
@click.option(
    "--patient",
    "patient_ids",
    multiple=True,
    shell_complete=complete_patients,
    help="Studies of this patient ID; may be given again.",
)
@click.option("--since", type=MOMENT, help="Received so long ago at most (8h, 7d), or since a local time.")
@click.option("--until", type=MOMENT, help="Received so long ago at least, or before a local time.")
@click.option("--failed", is_flag=True, help="Only studies that are FAILED.")
@click.option("--not-read", is_flag=True, help="Only studies that are NOT_READ.")
@click.option(
    "--read-by", shell_complete=complete_models, help="Only studies whose result is by this bundle."
)
@click.option("--series", help="Read this series, whatever the selection would choose.")
@click.option("--model", shell_complete=complete_models, help="Read with this bundle.")
@click.option("--dry-run", is_flag=True, help="Only say what would be read.")
@click.option("--yes", is_flag=True, help=f"Do not ask, however many there are (more than {_ASK_FROM}).")
@click.option("--wait", is_flag=True, help="Stay until they are read; exit code 1 where one is FAILED.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.pass_context
def reprocess(
    context: click.Context,
    uids: tuple[str, ...],
    accession_numbers: tuple[str, ...],
    patient_ids: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    failed: bool,
    not_read: bool,
    read_by: str | None,
    series: str | None,
    model: str | None,
    dry_run: bool,
    yes: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Read studies again; the new results supersede the old ones.

    Studies are named by UID, accession number or patient ID, or it is all that the conditions leave. One that is
    arriving, waiting or being read is not read twice, unless with a series or a model of your choice.
    """
    from ich_node.database.chosen_studies import (
        StudyChoice,
    )  # with the report's writer: too slow for completion

    load: Loader = context.obj
    choice = StudyChoice(
        study_instance_uids=uids,
        accession_numbers=accession_numbers,
        patient_ids=patient_ids,
        states=tuple(
            s for s, is_set in ((StudyState.FAILED, failed), (StudyState.NOT_READ, not_read)) if is_set
        ),
        received_since=since,
        received_until=until,
        read_by=read_by,
    )
    _check_usage(choice, series=series, dry_run=dry_run, wait=wait)
    if model is not None:
        _require_bundle(load, model)
    database = open_database(load)
    plan = _plan(database, choice, beside=series is not None or model is not None)
    if series is not None:
        _require_series(database, uids[0], series)
    if not as_json:
        _tell(plan, dry_run)
    if dry_run:
        queued: list[str] = []
    else:
        _confirm(len(plan.again), yes)
        queued = _queue(database, plan.again, series=series, model=model, quiet=as_json)
    ended = _wait(database, [*queued, *(s.study_instance_uid for s in plan.under_way)]) if wait else {}
    if as_json:
        print_json(_as_json(plan, dry_run, queued, ended))
    context.exit(1 if StudyState.FAILED in ended.values() else 0)


def _check_usage(choice: StudyChoice, *, series: str | None, dry_run: bool, wait: bool) -> None:
    conditions = (choice.states, choice.received_since, choice.received_until, choice.read_by)
    if not choice.is_named and not any(conditions):
        raise click.UsageError(
            "say which studies: UIDs, --accession, --patient, --since, --until, --failed, --not-read or --read-by"
        )
    only_one = len(choice.study_instance_uids) == 1 and choice.names == choice
    if series is not None and not (only_one and not choice.accession_numbers and not choice.patient_ids):
        raise click.UsageError("--series goes with exactly one study UID and no condition")
    if dry_run and wait:
        raise click.UsageError("--dry-run reads nothing, so there is nothing to --wait for")
    since, until = choice.received_since, choice.received_until
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--since is not before --until: no study can fit")


def _plan(database: Database, choice: StudyChoice, *, beside: bool) -> Plan:
    """Sort the studies; where one is named that cannot be read again, nothing is done at all."""
    from ich_node.database.chosen_studies import choose_studies

    with database.reading() as session:
        found = choose_studies(session, choice)
        named = choose_studies(session, choice.names) if choice.is_named else []
    if missing := _missing(choice, named):
        raise IchNodeError("not here: " + ", ".join(missing))
    purged = tuple(study for study in found if study.purged_at is not None)
    for study in purged:
        day = study.purged_at.astimezone().strftime("%Y-%m-%d %H:%M") if study.purged_at else ""
        say(f"images purged on {day}, send it again from the PACS: {study.study_instance_uid}", err=True)
    if purged and choice.names == choice:
        raise IchNodeError(f"{len(purged)} of the named studies cannot be read again; nothing was queued")
    left = [study for study in found if study.purged_at is None]
    under_way = tuple(study for study in left if study.is_under_way and not beside)
    again = tuple(study.study_instance_uid for study in left if beside or not study.is_under_way)
    return Plan(again=again, under_way=under_way, purged=purged)


def _missing(choice: StudyChoice, named: Sequence[ChosenStudy]) -> list[str]:
    uids = {study.study_instance_uid for study in named}
    accession_numbers = {study.accession_number for study in named}
    patient_ids = {study.patient_id for study in named}
    return [
        *sorted(set(choice.study_instance_uids) - uids),
        *(f"accession number {n}" for n in sorted(set(choice.accession_numbers) - accession_numbers)),
        *(f"patient ID {n}" for n in sorted(set(choice.patient_ids) - patient_ids)),
    ]


def _tell(plan: Plan, dry_run: bool) -> None:
    for study in plan.under_way:
        words = _UNDER_WAY_WORDS.get(study.state, "to be read again already")
        say(f"{words}: {study.study_instance_uid}", err=True)
    if not plan.again and not plan.under_way:
        say("No study fits.", err=True)
    if dry_run:
        for uid in plan.again:
            say(f"would read {uid}")


def _confirm(count: int, yes: bool) -> None:
    if count <= _ASK_FROM or yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{count} studies would be read again: add --yes, or look first with --dry-run"
        )
    if not click.confirm(f"{count} studies are to be read again. Queue them?", err=True):
        raise IchNodeError("nothing was queued")


def _queue(
    database: Database, uids: Sequence[str], *, series: str | None, model: str | None, quiet: bool
) -> list[str]:
    """Ask for the runs; gives those that it has asked for."""
    queued: list[str] = []
    for some in _portions(uids):
        asked = _queue_some(database, some, series=series, model=model)
        queued += asked
        if not quiet:
            for uid in asked:
                say(f"queued {uid}")
    return queued


def _queue_some(
    database: Database, uids: Sequence[str], *, series: str | None, model: str | None
) -> list[str]:
    from ich_node.database.chosen_studies import request_again

    asked = []
    with database.writing() as session:
        for uid in uids:
            state = request_again(
                session, uid, series_instance_uid=series, model=model, actor=actor(), now=datetime.now(UTC)
            )
            if state is None:
                asked.append(uid)
            else:  # it has come about since we looked
                say(f"{_UNDER_WAY_WORDS.get(state, 'to be read again already')}: {uid}", err=True)
    return asked


def _portions(uids: Sequence[str]) -> Iterator[list[str]]:
    left = iter(uids)
    while some := list(islice(left, _AT_ONCE)):
        yield some


def _wait(database: Database, uids: Sequence[str]) -> dict[str, StudyState]:
    from ich_node.cli.waiting import wait_for

    return wait_for(database, uids)


def _as_json(
    plan: Plan, dry_run: bool, queued: Sequence[str], ended: dict[str, StudyState]
) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "would_read" if dry_run else "queued": list(plan.again if dry_run else queued),
        "under_way": [{"study_instance_uid": s.study_instance_uid, "state": s.state} for s in plan.under_way],
        "purged": [
            {"study_instance_uid": s.study_instance_uid, "purged_at": s.purged_at.isoformat()}
            for s in plan.purged
            if s.purged_at is not None
        ],
        "ended": ended,
    }


def _require_bundle(load: Loader, name: str) -> None:
    """Refuse a bundle that cannot read, before studies wait for it."""
    from ich_node.model.bundle import find_bundle, prove_bundle

    prove_bundle(find_bundle(name, settings_of(load).bundles_dir))


def _require_series(database: Database, study_uid: str, series_uid: str) -> None:
    from ich_node.database.worklist import study_report

    with database.reading() as session:
        report = study_report(session, study_uid)
    if report is None or all(s["series_instance_uid"] != series_uid for s in report["series"]):
        raise IchNodeError(f"study {study_uid} has no series {series_uid}; 'ich-node study show' lists them")
