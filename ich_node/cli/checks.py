"""What ``ich-node doctor`` looks at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ich_node.cli.settings import existing_database
from ich_node.database import outbox
from ich_node.database.receipt import conflicts
from ich_node.database.worklist import overdue, state_counts
from ich_node.deliver.scu import Destination, echo
from ich_node.errors import IchNodeError
from ich_node.model.bundle import find_bundle, verify_bundle
from ich_node.settings import Settings
from ich_node.tasks import Queue, count_workers, worker_name

_LOW_DISK_BYTES = 5 * 2**30
_LONG_WAIT = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's report."""

    name: str
    ok: bool
    found: str
    mend: str


def run_checks(settings: Settings) -> list[Check]:
    """Look at everything, one after the other; a check that breaks is a fault, not an end."""
    checks: list[Check] = []
    for name, check, mend in _checks(settings):
        try:
            ok, found = check()
        except (IchNodeError, OSError) as error:
            ok, found = False, str(error)
        except Exception as error:
            ok, found = False, f"the check itself failed: {type(error).__name__}: {error}"
        checks.append(Check(name=name, ok=ok, found=found, mend=mend))
    return checks


def _checks(settings: Settings) -> Iterator[tuple[str, Callable[[], tuple[bool, str]], str]]:
    receiver = settings.receiver
    own = Destination(name="self", ae_title=receiver.ae_title, host=receiver.host, port=receiver.port)
    yield "disk", lambda: _disk(settings), "free space below data_dir, or move data_dir"
    yield "database", lambda: _database(settings), "run 'ich-node db upgrade', or mend database.url"
    yield "workers", lambda: _workers(settings), "start 'ich-node up' or 'ich-node worker'; see its messages"
    yield "model", lambda: _model(settings), "install the package again, or mend model.bundles"
    yield "receiver", lambda: _receiver(own, settings), "start 'ich-node up' or 'ich-node receiver'"
    for pacs in settings.pacs:
        to = Destination(name=pacs.name, ae_title=pacs.ae_title, host=pacs.host, port=pacs.port)
        mend = f"check host, port and AE title, and that the PACS knows {receiver.ae_title} as a caller"
        yield f"PACS {pacs.name}", lambda to=to: _echo(to, settings), mend  # type: ignore[misc]
    if not settings.pacs:
        yield "PACS", lambda: (False, "no destination is set"), "add a [[pacs]] table to the settings file"
    yield "deliveries", lambda: _deliveries(settings), "see 'ich-node deliveries --failed', then '--retry'"
    yield "studies", lambda: _studies(settings), "see 'ich-node worklist', then 'ich-node reprocess --failed'"
    yield (
        "objects",
        lambda: _conflicts(settings),
        "a sender uses one SOP Instance UID for two images: ask its vendor",
    )


def _disk(settings: Settings) -> tuple[bool, str]:
    if not os.access(settings.data_dir, os.W_OK):
        return False, f"{settings.data_dir} does not exist or cannot be written"
    free = shutil.disk_usage(settings.data_dir).free
    return free > _LOW_DISK_BYTES, f"{free / 2**30:.1f} GiB free at {settings.data_dir}"


def _database(settings: Settings) -> tuple[bool, str]:
    database = existing_database(settings)
    database.require_current()
    return True, f"{database.engine.dialect.name}, revision {database.revision()[1]}"


def _workers(settings: Settings) -> tuple[bool, str]:
    # Of all hosts: one with worker.processes = 0 lives on the workers of the others.
    names = count_workers(settings)
    missing = [role for role in Queue if not any(name.startswith(f"{worker_name(role)}@") for name in names)]
    if missing:
        return False, "no worker answers over the broker for: " + ", ".join(missing)
    return True, ", ".join(names)


def _model(settings: Settings) -> tuple[bool, str]:
    bundle = find_bundle(settings.model.bundles[0], settings.bundles_dir)
    return True, verify_bundle(bundle)


def _echo(to: Destination, settings: Settings) -> tuple[bool, str]:
    outcome = echo(to, calling_ae_title=settings.receiver.ae_title)
    return outcome.ok, outcome.detail


def _receiver(own: Destination, settings: Settings) -> tuple[bool, str]:
    ok, found = _echo(own, settings)
    if not ok and settings.peers and "Calling AE title not recogni" in found:
        return True, "listens, and admits its peers only"
    return ok, found


def _deliveries(settings: Settings) -> tuple[bool, str]:
    with existing_database(settings).reading() as session:
        failed = outbox.deliveries(session, failed=True)
    return not failed, f"{len(failed)} failed" if failed else "none failed"


def _studies(settings: Settings) -> tuple[bool, str]:
    with existing_database(settings).reading() as session:
        counts = state_counts(session)
        late = overdue(session, before=datetime.now(UTC) - _LONG_WAIT)
    found = [f"{n} {state}" for state, n in sorted(counts.items())]
    if late:
        found.append(f"{late} without an end after {_LONG_WAIT.total_seconds() / 60:.0f} min")
    return not counts.get("FAILED") and not late, ", ".join(found) or "none yet"


def _conflicts(settings: Settings) -> tuple[bool, str]:
    with existing_database(settings).reading() as session:
        count = conflicts(session, since=timedelta(days=7), now=datetime.now(UTC))
    return (
        count == 0,
        f"{count} with a UID that another object has, in 7 days" if count else "no UID used twice",
    )
