"""Commands about model bundles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ich_node.cli.completion import complete_models
from ich_node.cli.settings import Loader, settings_of
from ich_node.cli.terminal import cell, console, print_json, say
from ich_node.errors import ConfigurationError

if TYPE_CHECKING:
    from ich_node.model.bundle_install import InstalledBundle
    from ich_node.model.costs import Costs

_POINT = click.FloatRange(0, 1, min_open=True)
_FILE = click.Path(path_type=Path)


@click.group()
def models() -> None:
    """Look at the model bundles that can read, and bring more here."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """List the bundles, with those that read marked; exit code 1 where one is damaged or missing.

    Damaged is one whose description or weights are not what they should be ("models verify" also loads each), and
    missing one that model.bundles names but that is not here.
    """
    from ich_node.model.bundle import find_bundles

    settings = settings_of(context.obj)
    names = dict.fromkeys((*find_bundles(settings.bundles_dir), *settings.model.bundles))
    found = {name: _described(name, settings.bundles_dir) for name in names}
    if as_json:
        print_json(found)
    else:
        console.print(_bundles_table(found, settings.model.bundles))
    context.exit(1 if any("error" in about for about in found.values()) else 0)


@models.command("show")
@click.argument("name", shell_complete=complete_models)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def show(load: Loader, name: str, as_json: bool) -> None:
    """Print everything that a bundle says of itself."""
    from ich_node.model.bundle import find_bundle, read_description

    about = read_description(find_bundle(name, settings_of(load).bundles_dir))
    if as_json:
        print_json(about)
        return
    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _lines(about):
        table.add_row(cell(key), cell(value))
    console.print(table)


@models.command("verify")
@click.argument("name", required=False, shell_complete=complete_models)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def verify(context: click.Context, name: str | None, as_json: bool) -> None:
    """Check that the weights of a bundle, or of all, are the ones that its description names, and load them.

    Goes on after a faulty one; exit code 1 if there was any.
    """
    from ich_node.model.bundle import find_bundle, find_bundles, prove_bundle

    folder = settings_of(context.obj).bundles_dir
    there = find_bundles(folder)
    if name is not None and name not in there:
        find_bundle(name, folder)  # says what there is
    found: dict[str, dict[str, Any]] = {}
    for each in there if name is None else (name,):
        try:
            found[each] = {"ok": True, "found": prove_bundle(find_bundle(each, folder))}
        except ConfigurationError as error:
            found[each] = {"ok": False, "found": str(error)}
        if not as_json:
            ok, words = found[each].values()
            say(words if ok else f"{each}: FAULT: {words}", err=not ok)
    if as_json:
        print_json(found)
    context.exit(0 if all(about["ok"] for about in found.values()) else 1)


@models.command("import")
@click.argument("system", type=click.Choice(["vicar", "burduja"]))
@click.argument("checkpoint", type=_FILE)
@click.option("--name", help="Of the bundle; by default that of the system.")
@click.option("--version", default="1.0.0", show_default=True, help="Of the bundle.")
@click.option("--licence", default="unknown", show_default=True, help="Of the weights.")
@click.option("--sensitive", type=_POINT, help="Sensitive operating point, from validation data.")
@click.option("--high-confidence", type=_POINT, help="High-confidence operating point, from validation data.")
@click.option("--backbone", help="Of burduja's CNN; by default resnext101_32x8d.")
@click.option("--replace", is_flag=True, help="Put it in the place of another bundle of the name.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def import_(
    load: Loader,
    system: str,
    checkpoint: Path,
    name: str | None,
    version: str,
    licence: str,
    sensitive: float | None,
    high_confidence: float | None,
    backbone: str | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Make a bundle of a checkpoint that a system's authors published, and install it.

    SYSTEM is vicar (the published attention or max pooling network) or burduja (a ResNeXt of six outputs, without a
    sequence model). CHECKPOINT is a state dict of PyTorch; it is read as plain tensors, and one that holds anything
    else is refused. Without operating points the bundle gets 0.5 and 0.9 and says that they were not chosen on data.
    """
    if (sensitive is None) != (high_confidence is None):
        raise click.UsageError("--sensitive and --high-confidence go together")
    if sensitive is not None and high_confidence is not None and not sensitive <= high_confidence:
        raise click.UsageError("--sensitive has to be at most --high-confidence")  # NaN is neither
    if not version.strip():
        raise click.BadParameter("it is empty", param_hint="--version")
    if backbone is not None and system != "burduja":
        raise click.UsageError("--backbone goes with burduja")
    from ich_node.findings import OperatingPoints
    from ich_node.model.bundle_import import ImportTerms, import_burduja, import_vicar

    points = None
    if sensitive is not None and high_confidence is not None:
        points = OperatingPoints(high_confidence=high_confidence, sensitive=sensitive)
    terms = ImportTerms(name=name, version=version, licence=licence, points=points)
    into = settings_of(load).bundles_dir
    if system == "vicar":
        installed = import_vicar(checkpoint, into, terms, replace=replace)
    else:
        chosen: dict[str, Any] = {"backbone": backbone} if backbone else {}
        installed = import_burduja(checkpoint, into, terms, replace=replace, **chosen)
    _say(installed, as_json)
    if points is None:
        say("Its operating points were not chosen on data: evaluate it before it reads.", err=True)


@models.command("install")
@click.argument("source", type=_FILE)
@click.option("--replace", is_flag=True, help="Put it in the place of another bundle of the name.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def install(load: Loader, source: Path, replace: bool, as_json: bool) -> None:
    """Copy a bundle into data_dir from a folder or an archive (.zip, .tar, .tar.gz).

    It is verified before and after, and loaded once: one that cannot read is refused. A bundle that is there stays
    as it is unless --replace is given.
    """
    from ich_node.model.bundle_install import install_bundle

    _say(install_bundle(source, settings_of(load).bundles_dir, replace=replace), as_json)


@models.command("costs")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_models)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def costs(load: Loader, names: tuple[str, ...], as_json: bool) -> None:
    """Count parameters of systems, and the multiply-adds of reading one slice.

    NAME is an architecture or a bundle; without any, all architectures are counted. No weights are needed.
    """
    from ich_node.model.costs import find_costs

    found = find_costs(names, settings_of(load).bundles_dir)
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        console.print(_costs_table(found))


def _costs_table(found: Sequence[Costs]) -> Table:
    table = Table("Name", "Architecture", "Configuration", box=None)
    for title in ("Input", "Networks", "Parameters", "Multiply-adds per slice"):
        table.add_column(title, justify="right")
    for each in found:
        rows, columns = each.input_size
        table.add_row(
            cell(each.name),
            each.architecture,
            cell(each.config or "default"),
            f"{rows} x {columns}",
            str(each.networks),
            f"{each.parameters:,}",
            f"{each.multiply_adds / 1e9:.3f} G",
        )
    return table


def _bundles_table(found: dict[str, dict[str, Any]], reading: Sequence[str]) -> Table:
    table = Table("", "Name", "Version", "Architecture", "Weights SHA-256", "", box=None, header_style="bold")
    for name, about in found.items():
        mark = "reads" if name in reading and "error" not in about else ""
        said = [cell(str(about.get(key, ""))[:40]) for key in ("version", "architecture", "weights_sha256")]
        said[2].truncate(16)
        table.add_row(mark, cell(name), *said, cell(about.get("error", ""), "bold red"))
    return table


def _lines(about: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key and value of each thing in a JSON object, however deep."""
    if isinstance(about, dict) and about:
        for name, value in about.items():
            yield from _lines(value, f"{key}.{name}" if key else str(name))
    elif isinstance(about, list) and any(isinstance(value, dict | list) for value in about):
        for number, value in enumerate(about, 1):
            yield from _lines(value, f"{key} {number}")
    else:
        yield key, ", ".join(map(str, about)) if isinstance(about, list) else str(about)


def _described(name: str, folder: Path) -> dict[str, Any]:
    """What a bundle says of itself, and under ``error`` what is wrong with it."""
    from ich_node.model.bundle import find_bundle, read_description, verify_bundle

    described: dict[str, Any] = {}
    try:
        bundle = find_bundle(name, folder)
        described = read_description(bundle)
        verify_bundle(bundle)
    except ConfigurationError as error:
        return described | {"error": str(error)}
    return described


def _say(installed: InstalledBundle, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(installed), "folder": str(installed.folder)})
        return
    what = "installed"
    if installed.unchanged:
        what = "was already installed"
    elif installed.replaced is not None:
        what = f"installed in place of {installed.replaced}"
    say(f"{installed.name} {installed.version} {what}: {installed.folder}")
    if not installed.unchanged:
        setting = f'model.bundles = ["{installed.name}"]'
        say(f"To have it read, set {setting} and start the workers again.", err=True)
