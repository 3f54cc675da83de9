"""The whole way on one machine: three studies go in, reports, overlays and priorities come out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pydicom
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ich_node.cli.studies import worklist_table
from ich_node.cli.supervisor import python_command
from ich_node.cli.terminal import cell, console, print_json, progress
from ich_node.database.engine import Database
from ich_node.database.worklist import study_report, worklist
from ich_node.errors import IchNodeError
from ich_node.findings import IchSubtype, Priority, StudyState
from ich_node.settings_sources import load_settings

_FINAL = (StudyState.READ, StudyState.NOT_READ, StudyState.FAILED)
_LOG = "node.log"
"""Also what tells a folder that a demo filled from any other."""
_COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True, kw_only=True)
class DemoStudy:
    """One study that the demo sends, and what must become of it."""

    title: str
    images: Sequence[pydicom.Dataset]
    priorities: tuple[Priority, ...]
    state: StudyState
    reason: str | None = None

    @property
    def study_instance_uid(self) -> str:
        """Of its images."""
        return str(self.images[0].StudyInstanceUID)


@dataclass(kw_only=True)
class _Outcome:
    faults: list[str] = field(default_factory=list)

    def require(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True)
@click.option("--timeout", "timeout_s", type=float, default=90.0, show_default=True, help="Seconds to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print the worklist and what is wrong as JSON.")
def demo(output: Path, timeout_s: float, as_json: bool) -> None:
    """Send three phantom studies through a node of their own and check what comes out."""
    from ich_node.testing.pacs import DemoPacs
    from ich_node.testing.scu import send_images

    _empty(output)
    with DemoPacs(output / "pacs") as pacs, _node(output, pacs.port, timeout_s) as (port, database):
        studies = _studies()
        progress.print("Sending a study with a hemorrhage, one without, and one that is a localizer only.")
        for study in studies:
            statuses = send_images(study.images, host="127.0.0.1", port=port, called_ae_title="ICH_NODE")
            if any(statuses):
                raise IchNodeError(f"the node refused images of '{study.title}'")
        _wait(database, studies, timeout_s)
        faults = _check(database, studies, output)
        with database.reading() as session:
            rows = worklist(session)
        (output / "worklist.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    if as_json:
        print_json({"output": str(output), "worklist": rows, "faults": faults})
    else:
        _tell(rows, faults, output)
    if faults:
        raise IchNodeError("the demo did not end as it should")


def _tell(rows: list[dict[str, Any]], faults: Sequence[str], output: Path) -> None:
    console.print()
    console.print(worklist_table(rows))
    console.print()
    console.print(cell(f"Reports, overlays and the worklist are in {output}/."))
    for fault in faults:
        console.print(cell(f"not as it should be: {fault}", "bold red"))
    if not faults:
        console.print("[green]Every priority, report and overlay is as it should be.[/green]")


def _empty(output: Path) -> None:
    """Make the folder, or empty it where an earlier demo filled it; nothing else is ever removed."""
    if output.exists() and not (output / _LOG).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise click.UsageError(f"{output} is not from a demo, and is not overwritten; name another --output")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / _LOG).touch()


def _studies() -> list[DemoStudy]:
    from ich_node.testing.phantom import head_phantom
    from ich_node.testing.series import localizer_series, phantom_series

    bleed = head_phantom(bleeds=(IchSubtype.INTRAPARENCHYMAL, IchSubtype.INTRAVENTRICULAR), seed=11)
    normal = head_phantom(seed=12)
    return [
        DemoStudy(
            title="hemorrhage",
            images=phantom_series(
                bleed,
                name="demo-bleed",
                patient_name="Phantom^Bleed",
                patient_id="DEMO-1",
                accession_number="DEMO-A1",
            ),
            priorities=(Priority.STAT, Priority.HIGH),
            state=StudyState.READ,
        ),
        DemoStudy(
            title="no hemorrhage",
            images=phantom_series(
                normal,
                name="demo-normal",
                patient_name="Phantom^Normal",
                patient_id="DEMO-2",
                accession_number="DEMO-A2",
            ),
            priorities=(Priority.ROUTINE,),
            state=StudyState.READ,
        ),
        DemoStudy(
            title="localizer only",
            images=localizer_series(
                normal,
                name="demo-localizer",
                patient_name="Phantom^Localizer",
                patient_id="DEMO-3",
                accession_number="DEMO-A3",
            ),
            priorities=(Priority.MEDIUM,),
            state=StudyState.NOT_READ,
            reason="LOCALIZER",
        ),
    ]


@contextmanager
def _node(output: Path, pacs_port: int, timeout_s: float) -> Iterator[tuple[int, Database]]:
    """Run ``ich-node up`` with a data folder of its own; gives its DICOM port and its database."""
    data_dir = (output / "node").resolve()
    port, web_port = _free_ports(2)
    config = output / "ich-node.toml"
    config.write_text(
        f'data_dir = "{data_dir}"\n[receiver]\nport = {port}\nquiet_seconds = 3.0\n[web]\nport = {web_port}\n'
        f'[[pacs]]\nname = "demo"\nae_title = "DEMO_PACS"\nhost = "127.0.0.1"\nport = {pacs_port}\n',
        encoding="utf-8",
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ICH_NODE_")}
    with (output / _LOG).open("wb") as log:
        command = python_command("--config", str(config), "up")
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, process_group=0)
        try:
            _wait_until_up(process, data_dir, output, timeout_s)
            database = Database(load_settings(config, {}).settings.database_url)
            yield port, database
            database.dispose()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], data_dir: Path, output: Path, timeout_s: float) -> None:
    with progress.status("Starting the node: broker, receiver, workers, worklist page"):
        deadline = time.monotonic() + timeout_s
        while not (data_dir / "run" / "worker-read").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                log = (output / _LOG).read_text(errors="replace")[-2000:]
                raise IchNodeError(f"the node did not start:\n{log}")
            time.sleep(0.1)


def _wait(database: Database, studies: Sequence[DemoStudy], timeout_s: float) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:16}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
    )
    deadline = time.monotonic() + timeout_s
    with Progress(*columns, TimeElapsedColumn(), console=progress) as shown:
        bars = {s.study_instance_uid: shown.add_task(s.title, total=3, state="sent") for s in studies}
        while bars and time.monotonic() < deadline:
            with database.reading() as session:
                rows = {row["study_instance_uid"]: row for row in worklist(session)}
            for uid, bar in list(bars.items()):
                done, text = _progress(rows.get(uid))
                shown.update(bar, completed=done, state=text)
                if done == 3:
                    del bars[uid]
            time.sleep(0.2)


def _progress(row: dict[str, Any] | None) -> tuple[int, str]:
    if row is None:
        return 0, "sent"
    if row["state"] not in _FINAL:
        return 1, row["state"].lower()
    if row["state"] == StudyState.READ and row["delivered_at"] is None:
        return 2, f"read: {row['priority']}, results on their way"
    return 3, f"{row['state']}: {row['priority']}"


def _check(database: Database, studies: Sequence[DemoStudy], output: Path) -> list[str]:
    outcome = _Outcome()
    received = [pydicom.dcmread(path) for path in sorted((output / "pacs").glob("*.dcm"))]
    for study in studies:
        with database.reading() as session:
            report = study_report(session, study.study_instance_uid)
        if report is None:
            outcome.require(False, f"{study.title}: the study is not on the worklist")
            continue
        outcome.require(
            report["state"] == study.state and report["priority"] in study.priorities,
            f"{study.title}: {report['state']} {report['priority']} {report['reason_detail'] or ''}",
        )
        outcome.require(report["reason"] == study.reason, f"{study.title}: reason {report['reason']}")
        own = [d for d in received if d.StudyInstanceUID == study.study_instance_uid]
        _check_objects(outcome, study, own, output)
    return outcome.faults


def _check_objects(
    outcome: _Outcome, study: DemoStudy, received: Sequence[pydicom.Dataset], output: Path
) -> None:
    from ich_node.report import sc_to_png

    reports = [d for d in received if d.SOPClassUID == _COMPREHENSIVE_3D_SR]
    captures = [d for d in received if d.SOPClassUID == _SECONDARY_CAPTURE]
    read = study.state is StudyState.READ
    outcome.require(
        len(reports) == int(read), f"{study.title}: {len(reports)} structured reports at the PACS"
    )
    outcome.require(bool(captures) == read, f"{study.title}: {len(captures)} secondary captures at the PACS")
    sources = {str(image.SOPInstanceUID) for image in study.images}
    for report in reports:
        referenced = {str(e.value) for e in report.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
        outcome.require(sources <= referenced, f"{study.title}: the report does not name every slice")
        outcome.require(report.CompletionFlag == "COMPLETE", f"{study.title}: the report is not complete")
    for number, capture in enumerate(sorted(captures, key=lambda d: int(d.InstanceNumber))):
        path = output / f"{study.title.replace(' ', '-')}-{number:02d}.png"
        path.write_bytes(sc_to_png(capture))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
