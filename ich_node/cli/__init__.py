"""The command ``ich-node``. Exit codes: 0 done, 1 the work failed, 2 wrong usage or settings."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from ich_node import __version__
from ich_node.cli.demo import demo
from ich_node.cli.models import models
from ich_node.cli.processes import receiver, up, web, worker
from ich_node.cli.purge import purge
from ich_node.cli.setup import config, db, doctor
from ich_node.cli.studies import deliveries, reprocess, study, worklist
from ich_node.errors import ConfigurationError, IchNodeError
from ich_node.settings_sources import LoadedSettings, load_settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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


for _command in (
    up,
    receiver,
    worker,
    web,
    worklist,
    study,
    reprocess,
    deliveries,
    purge,
    doctor,
    config,
    db,
    models,
    demo,
):
    root.add_command(_command)


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
    try:
        code = root.main(arguments, prog_name="ich-node", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code if not isinstance(error, click.UsageError) else 2)
    except ConfigurationError as error:
        click.echo(f"ich-node: {error}", err=True)
        sys.exit(2)
    except IchNodeError as error:
        click.echo(f"ich-node: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
