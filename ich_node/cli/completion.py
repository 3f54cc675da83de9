"""The command ``completion``, and what it completes from this installation: studies, models, destinations.

A shell waits for this at a key. So what does not answer within a second, or fails, completes nothing and says nothing.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from ich_node.settings import Settings

_WAIT_SECONDS = 1.0
_MOST = 100
_VARIABLE = "_ICH_NODE_COMPLETE"
"""That click looks at, by the program's name."""
_INERT = re.compile(r"[A-Za-z0-9._+@:/-]+")
"""A word that a shell takes as it is. A header must not put a command into somebody's line."""

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that has a shell complete commands, options, studies, models and destinations.

    For bash: eval "$(ich-node completion bash)", in ~/.bashrc to have it for good.
    """
    made_for = get_completion_class(shell)
    assert made_for is not None  # click knows these three
    source = made_for(context.find_root().command, {}, "ich-node", _VARIABLE).source()
    click.echo(source)


def completer(find: Callable[[Settings, str], list[str]]) -> Completer:
    """What a parameter's ``shell_complete`` takes, of a function from the settings and what is typed to words."""

    def complete(
        context: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found: list[str] = []
        config = context.find_root().params.get("config_file")

        def look() -> None:
            try:
                from ich_node.settings_sources import load_settings

                found.extend(find(load_settings(config, os.environ).settings, incomplete))
            except Exception:
                return  # a shell's line is no place for an error

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(_WAIT_SECONDS)
        fitting = (word for word in list(found) if word.startswith(incomplete) and _INERT.fullmatch(word))
        return [CompletionItem(word) for word in fitting]

    return complete


def _studies(column: str) -> Callable[[Settings, str], list[str]]:
    def find(settings: Settings, incomplete: str) -> list[str]:
        from ich_node.cli.settings import existing_database
        from ich_node.database.worklist import worklist

        with existing_database(settings).reading() as session:
            rows = worklist(session, limit=_MOST, search=incomplete or None)
        return list(dict.fromkeys(row[column] for row in rows))

    return find


def _models(settings: Settings, _incomplete: str) -> list[str]:
    from ich_node.model.bundle import find_bundles

    return list(find_bundles(settings.bundles_dir))


def _pacs(settings: Settings, _incomplete: str) -> list[str]:
    return [pacs.name for pacs in settings.pacs]


complete_studies = completer(_studies("study_instance_uid"))
complete_accession_numbers = completer(_studies("accession_number"))
complete_patients = completer(_studies("patient_id"))
complete_models = completer(_models)
complete_pacs = completer(_pacs)
