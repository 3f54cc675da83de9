"""The command ``ich-node``. Exit codes: 0 done, 1 the work failed, 2 wrong usage or settings, 130 ended by Ctrl-C."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from ich_node import __version__
from ich_node.cli.lazy import LazyCommands, LazyGroup
from ich_node.cli.terminal import print_what_can_be_printed, say
from ich_node.errors import ConfigurationError, IchNodeError
from ich_node.settings_sources import LoadedSettings, load_settings

_INTERRUPTED = 128 + 2
_COMMANDS = {  # name: module
    "up": "processes",
    "receiver": "processes",
    "worker": "processes",
    "web": "processes",
    "worklist": "studies",
    "study": "studies",
    "reprocess": "reprocess",
    "deliveries": "deliveries",
    "purge": "purge",
    "doctor": "setup",
    "config": "setup",
    "db": "setup",
    "models": "models",
    "demo": "demo",
    "users": "users",
    "tokens": "users",
    "completion": "completion",
}


@click.group(
    cls=LazyGroup,
    commands=LazyCommands(_COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML settings file.")
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
@click.version_option(__version__, prog_name="ich-node")
@click.pass_context
def root(context: click.Context, config_file: Path | None, verbose: bool) -> None:
    """Read head CT for intracranial hemorrhage and raise a flag on the worklist.

    A reading supports the order in which studies are looked at. It never replaces looking.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("pynetdicom", "celery", "kombu", "alembic", "uvicorn", "pydicom", "highdicom"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # pynetdicom's lower levels print identifiers
    context.obj = _Lazy(config_file)


class _Lazy:
    """Loads the settings when a command first asks, so that ``--help`` works with broken ones."""

    def __init__(self, config_file: Path | None) -> None:
        self.config_file = config_file
        self._loaded: LoadedSettings | None = None

    def __call__(self) -> LoadedSettings:
        if self._loaded is None:
            self._loaded = load_settings(self.config_file, os.environ)
        return self._loaded


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and exits."""
    print_what_can_be_printed()
    try:
        code = root.main(arguments, prog_name="ich-node", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code if not isinstance(error, click.UsageError) else 2)
    except ConfigurationError as error:
        say(f"ich-node: {error}", err=True)
        sys.exit(2)
    except IchNodeError as error:
        say(f"ich-node: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # What reads has gone; the interpreter must not try to flush to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
