"""Commands about model bundles."""

from __future__ import annotations

import click
from rich.table import Table

from ich_node.cli.settings import Loader, console, print_json, settings_of


@click.group()
def models() -> None:
    """Look at the model bundles that can read."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def list_(load: Loader, as_json: bool) -> None:
    """List the bundles, with the one that reads marked."""
    from ich_node.model.bundle import find_bundles, read_description

    settings = settings_of(load)
    found = {name: read_description(path) for name, path in find_bundles(settings.bundles_dir).items()}
    if as_json:
        print_json(found)
        return
    table = Table("", "Name", "Version", "Architecture", "Weights SHA-256", box=None)
    for name, about in found.items():
        mark = "reads" if name in settings.model.bundles else ""
        table.add_row(mark, name, about["version"], about["architecture"], about["weights_sha256"][:16])
    console.print(table)


@models.command("show")
@click.argument("name")
@click.pass_obj
def show(load: Loader, name: str) -> None:
    """Print everything that a bundle says of itself."""
    from ich_node.model.bundle import find_bundle, read_description

    print_json(read_description(find_bundle(name, settings_of(load).bundles_dir)))


@models.command("verify")
@click.argument("name")
@click.pass_obj
def verify(load: Loader, name: str) -> None:
    """Check that a bundle's weights are the ones that its description names."""
    from ich_node.model.bundle import find_bundle, verify_bundle

    click.echo(verify_bundle(find_bundle(name, settings_of(load).bundles_dir)))
