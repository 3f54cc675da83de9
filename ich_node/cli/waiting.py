"""Stay with studies until they are read, with a bar; Ctrl-C ends the waiting, not the reading."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ich_node.cli.terminal import progress, say
from ich_node.database.chosen_studies import ChosenStudy, StudyChoice, choose_studies
from ich_node.database.engine import Database
from ich_node.errors import TransientError
from ich_node.findings import StudyState

_LOOK_SECONDS = 0.5
_HINT_SECONDS = 30.0
_AT_ONCE = 5000
"""Studies that are asked for in one look."""


def wait_for(database: Database, uids: Sequence[str]) -> dict[str, StudyState]:
    """Wait until none of the studies is under way; gives the state that each came to.

    Raises
    ------
    click.Abort
        Somebody pressed Ctrl-C.
    """
    ended: dict[str, StudyState] = {}
    waiting = list(dict.fromkeys(uids))
    columns = (TextColumn("Reading"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    try:
        with Progress(*columns, TimeElapsedColumn(), console=progress) as shown:
            bar = shown.add_task("", total=len(waiting))
            moved_at = time.monotonic()
            while waiting:
                states, found = _look(database, waiting)
                if found:
                    moved_at = time.monotonic()
                for uid in found:
                    ended[uid] = states[uid].state
                waiting = [uid for uid in waiting if uid not in found]
                stuck = time.monotonic() - moved_at > _HINT_SECONDS
                shown.update(bar, completed=len(ended), description=_words(states, found, ended, stuck))
                if waiting:
                    time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        say(
            f"No longer waiting for {len(waiting)} studies; they are read all the same: 'ich-node worklist'.",
            err=True,
        )
        raise click.Abort from None
    _tell(ended)
    return ended


def _look(database: Database, waiting: Sequence[str]) -> tuple[Mapping[str, ChosenStudy], set[str]]:
    """How the studies stand, and which of them have come to an end; nothing where the database does not answer."""
    try:
        with database.reading() as session:
            found = choose_studies(session, StudyChoice(study_instance_uids=tuple(waiting[:_AT_ONCE])))
    except TransientError:
        return {}, set()
    states = {study.study_instance_uid: study for study in found}
    return states, {uid for uid, study in states.items() if not study.is_under_way}


def _words(
    states: Mapping[str, ChosenStudy], found: set[str], ended: Mapping[str, StudyState], stuck: bool
) -> str:
    under_way = Counter(str(s.state) for uid, s in states.items() if uid not in found)
    parts = [f"{n} {state.lower()}" for state, n in sorted(under_way.items())]
    failed = sum(state is StudyState.FAILED for state in ended.values())
    parts += [f"{failed} FAILED"] if failed else []
    if not states:
        parts.append("the database does not answer")
    elif stuck:
        parts.append("nothing moves: see 'ich-node doctor'")
    return ", ".join(parts)


def _tell(ended: Mapping[str, StudyState]) -> None:
    for state, count in sorted(Counter(ended.values()).items()):
        say(f"{count} {state}", err=True)
    for uid, state in ended.items():
        if state is StudyState.FAILED:
            say(f"FAILED: {uid}; 'ich-node study show' says why", err=True)
    sys.stderr.flush()
