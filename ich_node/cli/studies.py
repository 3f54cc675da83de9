"""Commands that look at studies: worklist, study show."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ich_node.cli.completion import complete_studies
from ich_node.cli.lazy import LazyCommands, LazyGroup
from ich_node.cli.moments import MOMENT, local
from ich_node.cli.settings import Loader, open_database
from ich_node.cli.terminal import cell, console, is_wide, print_json
from ich_node.database.engine import Database, Session
from ich_node.database.worklist import study_report, worklist_row
from ich_node.database.worklist import worklist as worklist_rows
from ich_node.errors import IchNodeError, TransientError
from ich_node.findings import Priority, StudyState

PRIORITY_STYLES = {
    "STAT": "bold white on red",
    "HIGH": "bold black on yellow",
    "MEDIUM": "cyan",
    "ROUTINE": "dim",
}
_ROOM_FOR_TIMES = 105
"""Columns from which on a terminal has room for when a study was delivered and reviewed."""
_CUT = ("Patient", "Accession", "Reason/model")
"""Columns that end in an ellipsis where there is no room for them."""
_LOOK_SECONDS = 1.0
_AROUND_TABLE = 3
"""Lines of a watched screen that are not rows."""
_RECENT = 200
"""Studies among which one is looked for that a mistyped UID may have meant."""


@click.group(
    cls=LazyGroup, commands=LazyCommands({"external": "external_worklist"}), invoke_without_command=True
)
@click.option(
    "--priority",
    "priorities",
    multiple=True,
    type=click.Choice([str(p) for p in Priority], case_sensitive=False),
    help="Only this priority; may be given again.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([str(s) for s in StudyState], case_sensitive=False),
    help="Only this state; may be given again.",
)
@click.option("--unreviewed", is_flag=True, help="Only what nobody has reviewed.")
@click.option("--since", type=MOMENT, help="Received so long ago at most (8h, 7d), or since a local time.")
@click.option("--station", help="Sent by this AE title.")
@click.option("--search", help="In patient name and ID, accession number and study UID.")
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="Rows at most.")
@click.option("--watch", is_flag=True, help="Stay, and show every change, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print worklist_v1 as JSON.")
@click.pass_context
def worklist(
    context: click.Context,
    priorities: tuple[str, ...],
    states: tuple[str, ...],
    unreviewed: bool,
    since: datetime | None,
    station: str | None,
    search: str | None,
    limit: int,
    watch: bool,
    as_json: bool,
) -> None:
    """Show the reading worklist, the most urgent first."""
    if context.invoked_subcommand:
        return
    load: Loader = context.obj
    if watch and as_json:
        raise click.UsageError("--watch shows a screen, --json prints once: choose one")
    if watch and not console.is_terminal:
        raise click.UsageError("--watch needs a terminal")
    question = Question(
        priorities=tuple(map(Priority, priorities)),
        states=tuple(map(StudyState, states)),
        unreviewed=unreviewed,
        since=since,
        station=station,
        search=search,
        limit=limit,
    )
    database = open_database(load)
    if watch:
        _watch(database, question)
        return
    with database.reading() as session:
        rows = question.ask(session)
    if as_json:
        print_json(rows)
        return
    console.print(worklist_table(rows) if rows else "No study fits.")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What of the worklist is wanted."""

    priorities: tuple[Priority, ...] = ()
    states: tuple[StudyState, ...] = ()
    unreviewed: bool = False
    since: datetime | None = None
    station: str | None = None
    search: str | None = None
    limit: int = 200

    def ask(self, session: Session, *, at_most: int | None = None) -> list[dict[str, Any]]:
        """Rows of ``worklist_v1``."""
        return worklist_rows(
            session,
            limit=self.limit if at_most is None else min(self.limit, at_most),
            priorities=self.priorities or None,
            states=self.states or None,
            unreviewed=True if self.unreviewed else None,
            received_since=self.since,
            modality_ae_title=self.station,
            search=self.search,
        )


@click.group()
def study() -> None:
    """Look at one study."""


@study.command("show")
@click.argument("name", metavar="UID", shell_complete=complete_studies)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_obj
def show(load: Loader, name: str, as_json: bool) -> None:
    """Show a study's state, its series, and what each reading found.

    UID is its Study Instance UID, or its accession number where only one study has that.
    """
    with open_database(load).reading() as session:
        uid = _find(session, name)
        report, row = study_report(session, uid), worklist_row(session, uid)
    if report is None or row is None:  # it cannot go away within one snapshot
        raise IchNodeError(f"no study {name} is here")
    if as_json:
        print_json(report)
        return
    _print_study(report, row)


def _find(session: Session, name: str) -> str:
    """The study of this UID, or the only one of this accession number."""
    if worklist_row(session, name) is not None:
        return name
    found = worklist_rows(session, search=name, limit=_RECENT) if name.strip() else []
    same = [row["study_instance_uid"] for row in found if row["accession_number"] == name]
    if len(same) == 1:
        return str(same[0])
    if same:
        raise IchNodeError(f"{len(same)} studies have accession number {name}: " + ", ".join(sorted(same)))
    recent = [row["study_instance_uid"] for row in worklist_rows(session, limit=_RECENT)]
    near = get_close_matches(name, recent, n=1, cutoff=0.9)
    hint = f"did you mean {near[0]}?" if near else "'ich-node worklist' lists those that are"
    raise IchNodeError(f"no study {name} is here; {hint}")


def worklist_table(rows: list[dict[str, Any]]) -> Table:
    """The worklist for a terminal, a line for each study; ``rows`` are those of ``worklist_v1``."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    titles = _titles()
    for title in titles:
        right = title == "Suspicion"
        table.add_column(title, no_wrap=title not in _CUT, justify="right" if right else "left")
    for row in rows:
        cells = _cells(row)
        table.add_row(*(cells[title] for title in titles))
    return table


def _titles() -> list[str]:
    """Columns that there is room for."""
    titles = ["Priority", "State", "Suspicion", "Patient", "Accession", "Received"]
    if console.width >= _ROOM_FOR_TIMES:
        titles += ["Delivered", "Reviewed"]
    return [*titles, "Reason/model", *(["Study"] if is_wide() else [])]


def _cells(row: dict[str, Any]) -> dict[str, Text]:
    read_by = f"{row['model_name']} {row['model_version']}" if row["model_name"] else ""
    return {
        "Priority": cell(f" {row['priority']} ", PRIORITY_STYLES[row["priority"]]),
        "State": cell(row["state"]),
        "Suspicion": cell("" if row["suspicion"] is None else f"{row['suspicion']:.0%}"),
        "Patient": _one_line(row["patient_name"].replace("^", " ").strip()),
        "Accession": _one_line(row["accession_number"]),
        "Received": cell(local(row["received_at"])),
        "Delivered": cell(local(row["delivered_at"])),
        "Reviewed": cell(local(row["reviewed_at"])),
        "Reason/model": _one_line(row["reason"] or read_by),
        "Study": cell(row["study_instance_uid"]),
    }


def _one_line(text: str) -> Text:
    line = cell(text)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _watch(database: Database, question: Question) -> None:
    """Show the worklist until Ctrl-C; a database that is away for a while does not end it."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_screen(lambda: _ask(database, question)), refresh=True)
            time.sleep(_LOOK_SECONDS)


def _ask(database: Database, question: Question) -> list[dict[str, Any]]:
    with database.reading() as session:
        return question.ask(session, at_most=max(1, console.height - _AROUND_TABLE))


def _screen(ask: Callable[[], list[dict[str, Any]]]) -> Group | Text:
    clock = datetime.now().astimezone().strftime("%H:%M:%S")
    try:
        rows = ask()
    except TransientError as error:
        return cell(f"{clock}  what stands here is not known: {error}", "bold red")
    counts = ", ".join(
        f"{sum(row['priority'] == p for row in rows)} {p}" for p in (Priority.STAT, Priority.HIGH)
    )
    head = Text(f"{clock}  {len(rows)} studies shown: {counts}.  Ctrl-C ends.", style="dim")
    return Group(head, Text(), worklist_table(rows) if rows else Text("No study fits."))


def _print_study(report: dict[str, Any], row: dict[str, Any]) -> None:
    console.print(worklist_table([row]))
    console.print()
    console.print(cell(f"Study {report['study_instance_uid']}"))
    if report["reason_detail"]:
        console.print(cell(f"{report['reason']}: {report['reason_detail']}"))
    if any(s["purged_instances"] for s in report["series"]):
        day = local(report["purged_at"])
        console.print(f"Images purged {day}: to have it read again, send it again from the PACS.")
    console.print()
    console.print(_series_table(report["series"]))
    for reading in report["readings"]:
        _print_reading(reading)


def _series_table(series: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("Series", overflow="fold")
    table.add_column("Modality", no_wrap=True)
    for title in ("Images", "Description", "Not read because"):
        table.add_column(title, overflow="fold")
    for s in series:
        purged = f" ({s['purged_instances']} were purged)" if s["purged_instances"] else ""
        why = f"{s['exclusion_reason']}: {s['exclusion_detail']}" if s["exclusion_reason"] else ""
        table.add_row(
            cell(s["series_instance_uid"]),
            cell(s["modality"]),
            f"{s['instances']}{purged}",
            cell(s["series_description"]),
            cell(why),
        )
    return table


def _print_reading(reading: dict[str, Any]) -> None:
    state = " (superseded)" if reading["superseded"] else ""
    points = reading["operating_points"]
    console.print()
    console.print(
        cell(f"Reading {reading['run_number']}", "bold"),
        cell(
            f"by {reading['model_name']} {reading['model_version']} at {local(reading['read_at'])}{state}: "
            f"{reading['priority']}, suspicion {reading['suspicion']:.1%} (flagged from {points['sensitive']:.0%}, "
            f"with high confidence from {points['high_confidence']:.0%})"
        ),
    )
    for caveat in reading["caveats"]:
        console.print(cell(f"  caveat: {caveat}"))
    own = [s for s in enumerate(reading["slices"], 1) if s[1]["shown_on"] in (None, s[0] - 1)]
    worst = sorted(own, key=lambda s: -s[1]["probabilities"]["any"])[:5]
    for number, finding in worst:
        places = "; ".join(
            f"{p['kind']} at ({', '.join(f'{c:.0f}' for c in p['coordinates'])}), {p['score']:.0%}"
            for p in finding["localizations"]
        )
        frame = f" (frame {finding['frame_number']})" if finding.get("frame_number") else ""
        line = f"  slice {number:3d}{frame}: {finding['probabilities']['any']:6.1%}  {places}"
        console.print(cell(line.rstrip()))
    for delivery in reading["deliveries"]:
        if delivery["state"] != "DELIVERED":
            note = delivery["note"] or ""
            console.print(cell(f"  {delivery['destination']}: {delivery['state']} {note}".rstrip()))
