"""What ``ich-node doctor`` looks at."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ich_node.cli.settings import existing_database
from ich_node.database import chores, drift, outbox, retention
from ich_node.database.metrics import outbox_standing, unread_images
from ich_node.database.receipt import conflicts
from ich_node.database.worklist import overdue, state_counts
from ich_node.deliver.query import Presence, StoredObject, stored
from ich_node.deliver.scu import Destination, echo
from ich_node.destination_settings import PacsSettings
from ich_node.destinations import pacs_destination
from ich_node.errors import IchNodeError
from ich_node.model.bundle import find_bundle, prove_bundle
from ich_node.purge_job import CHORE, NO_DESTINATION, spool_space
from ich_node.receive.commitment_folder import waiting
from ich_node.receive.free_space import in_gib
from ich_node.receive.tls import TlsFiles, expires_at, server_context
from ich_node.settings import ReceiverSettings, Settings, TlsSettings
from ich_node.tasks import Queue, count_workers, worker_name

_LONG_WAIT = timedelta(minutes=15)
_LONG_COMMITMENT = timedelta(days=1)
_CERTIFICATE_RENEWAL = timedelta(days=30)
_HANDSHAKE_SECONDS = 10.0
_NOBODY = "2.25.0"
"""UID of nothing, for a question whose answer does not matter."""


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
    mend = "free space there: 'ich-node purge --dry-run' says what may go; see disk.retention_days"
    yield "disk", lambda: _disk(settings), mend
    yield "database", lambda: _database(settings), "run 'ich-node db upgrade', or mend database.url"
    yield "workers", lambda: _workers(settings), "start 'ich-node up' or 'ich-node worker'; see its messages"
    yield "model", lambda: _model(settings), "install the package again, or mend model.bundles"
    if not receiver.tls.only:
        yield "receiver", lambda: _receiver(own, settings), "start 'ich-node up' or 'ich-node receiver'"
    if receiver.tls.certificate:
        mend = "renew it, or mend the file that is named; a running receiver takes the new one by itself"
        yield "tls certificate", lambda: _tls_certificate(receiver.tls), mend
        yield "receiver over TLS", lambda: _receiver_over_tls(receiver), "see the receiver's log"
    for pacs in settings.pacs:
        mend = "check url, token, user and password, and the certificate's authority (ca)"
        if not pacs.url:
            mend = f"check host, port and AE title, and that the PACS knows {receiver.ae_title} as a caller"
        yield f"PACS {pacs.name}", lambda pacs=pacs: _answers(pacs, settings), mend  # type: ignore[misc]
    if not settings.pacs:
        yield "PACS", lambda: (False, "no destination is set"), "add a [[pacs]] table to the settings file"
    yield "deliveries", lambda: _deliveries(settings), "see 'ich-node deliveries --failed', then '--retry'"
    mend = "see 'ich-node deliveries'; a PACS that can neither commit nor be queried needs confirm = \"none\""
    yield "waiting", lambda: _waiting(settings), mend
    mend = "see the log of 'ich-node worker --queue deliver'; 'ich-node purge' does the same by hand"
    yield "retention", lambda: _retention(settings), mend
    mend = "give those peers a port that answers, in their [[peers]] tables"
    yield "commitment", lambda: _commitment(settings), mend
    yield "studies", lambda: _studies(settings), "see 'ich-node worklist', then 'ich-node reprocess --failed'"
    mend = (
        "see what has changed (scanner, protocol, contrast medium, reconstruction, rules that forward), check a "
        "sample of readings by hand, and until then do not rely on the thresholds: docs/operations.md, Drift"
    )
    yield "drift", lambda: _drift(settings), mend
    yield (
        "objects",
        lambda: _conflicts(settings),
        "a sender uses one SOP Instance UID for two images: ask its vendor",
    )


def _disk(settings: Settings) -> tuple[bool, str]:
    if not os.access(settings.data_dir, os.W_OK):
        return False, f"{settings.data_dir} does not exist or cannot be written"
    space = spool_space(settings)
    free, mark = space.free_bytes(), space.min_free_bytes
    found = f"{in_gib(free)} free at {settings.spool_dir}"
    if free < mark:
        enough = in_gib(space.enough_bytes)
        return False, f"{found}: new images are refused with 0xA700 until {enough} are free"
    if free < 2 * mark:
        found += f"; nearly low: below {in_gib(mark)} new images are refused"
    return True, found


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
    bundles = [find_bundle(name, settings.bundles_dir) for name in settings.model.bundles]
    return True, "; ".join(map(prove_bundle, bundles))


def _echo(to: Destination, settings: Settings) -> tuple[bool, str]:
    outcome = echo(to, calling_ae_title=settings.receiver.ae_title)
    return outcome.ok, outcome.detail


def _answers(pacs: PacsSettings, settings: Settings) -> tuple[bool, str]:
    to = pacs_destination(pacs)
    if isinstance(to, Destination):
        ok, found = _echo(to, settings)
        may_call = not settings.peers or any(peer.ae_title == to.ae_title for peer in settings.peers)
        if ok and pacs.confirm == "commitment" and not may_call:
            return False, f"{found}; but it is none of [[peers]]: where it calls to commit, it is rejected"
        return ok, found
    asked = StoredObject(study_instance_uid=_NOBODY, series_instance_uid=_NOBODY, sop_instance_uid=_NOBODY)
    (answer,) = stored([asked], to)
    return answer.presence is not Presence.CANNOT_TELL, (
        "answers QIDO-RS" if answer.presence is not Presence.CANNOT_TELL else answer.detail
    )


def _receiver(own: Destination, settings: Settings) -> tuple[bool, str]:
    ok, found = _echo(own, settings)
    if not ok and settings.peers and "Calling AE title not recogni" in found:
        return True, "listens, and admits its peers only"
    return ok, found


def _receiver_over_tls(receiver: ReceiverSettings) -> tuple[bool, str]:
    """Whether the port answers a handshake; a caller without a peer's certificate gets no further."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(receiver.tls.certificate, receiver.tls.key)
    port = receiver.tls.port
    with (
        socket.create_connection((receiver.host, port), _HANDSHAKE_SECONDS) as connection,
        context.wrap_socket(connection) as secured,
    ):
        return True, f"port {port} answers with {secured.version()}"


def _tls_certificate(tls: TlsSettings) -> tuple[bool, str]:
    files = TlsFiles(certificate=Path(tls.certificate), key=Path(tls.key), ca=Path(tls.ca))
    server_context(files)
    expires = expires_at(files.certificate)
    left = expires - datetime.now(UTC)
    if left <= timedelta():
        return False, f"expired on {expires:%Y-%m-%d}"
    return left > _CERTIFICATE_RENEWAL, f"expires on {expires:%Y-%m-%d}, in {left.days} days"


def _deliveries(settings: Settings) -> tuple[bool, str]:
    with existing_database(settings).reading() as session:
        failed = outbox.deliveries(session, failed=True)
    return not failed, f"{len(failed)} failed" if failed else "none failed"


def _waiting(settings: Settings) -> tuple[bool, str]:
    now = datetime.now(UTC)
    with existing_database(settings).reading() as session:
        waiting = unread_images(session)
        standing = outbox_standing(session)
    found = [f"{waiting.objects} images of {waiting.studies} studies to be read"]
    if waiting.oldest_at is not None:
        found[0] += f", the oldest for {_minutes(now - waiting.oldest_at)}"
    found += [
        f"{one.pending} results for {one.destination}, the oldest for {_minutes(now - one.oldest_at)}"
        for one in standing
        if one.oldest_at is not None
    ]
    late = any(one.oldest_at is not None and now - one.oldest_at > _LONG_WAIT for one in standing)
    for one in standing:
        if one.oldest_unconfirmed_at is not None:
            since = now - one.oldest_unconfirmed_at
            late |= since > _LONG_WAIT
            found.append(
                f"{one.unconfirmed} that {one.destination} took and has not confirmed, the oldest for {_minutes(since)}"
            )
    return not late, "; ".join(found)


def _retention(settings: Settings) -> tuple[bool, str]:
    days, hours = settings.disk.retention_days, settings.disk.purge_every_hours
    with existing_database(settings).reading() as session:
        last = chores.last_round(session, CHORE)
        left = retention.count_removals(session)
    found = "images are never purged (disk.retention_days = 0)"
    if days > 0:
        found = f"images are purged {days:g} days after delivery, looked for every {hours:g} h"
        if not settings.pacs:
            return False, f"{found}; but {NO_DESTINATION}"
    if last is None or last.ended_at is None:
        return True, f"{found}; not looked for yet"
    found += f"; last at {last.ended_at.astimezone():%Y-%m-%d %H:%M}: {last.note}"
    if left:
        found += f"; {left} files wait to be removed"
    late = datetime.now(UTC) - last.ended_at > timedelta(hours=2 * hours) + _LONG_WAIT
    return not (days > 0 and late), found


def _minutes(span: timedelta) -> str:
    return f"{max(0.0, span.total_seconds()) / 60:.0f} min"


def _commitment(settings: Settings) -> tuple[bool, str]:
    counts = waiting(settings.commitment_dir)
    found = [f"{counts.waiting} reports wait for their peer" if counts.waiting else "no report waits"]
    if counts.dead:
        found.append(f"{counts.dead} were given up (*.dead in {settings.commitment_dir})")
    oldest = counts.oldest_accepted_at
    late = oldest is not None and datetime.now(UTC) - oldest > _LONG_COMMITMENT
    return not counts.dead and not late, ", ".join(found)


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


def _drift(settings: Settings) -> tuple[bool, str]:
    with existing_database(settings).reading() as session:
        drifts = drift.model_drifts(session, now=datetime.now(UTC))
    found = "; ".join(map(_drift_of, drifts))
    return not any(one.drifted or one.often_unlike for one in drifts), found or "no readings in 7 days"


def _drift_of(one: drift.ModelDrift) -> str:
    """What one model was shown and said in the last 7 days."""
    found = [f"{one.recent.readings} readings in 7 days, {one.reference.readings} in the 28 days before"]
    if drift.SUSPICION not in one.stability:
        found.append(f"too few to compare (each needs {drift.MIN_READINGS})")
    elif not one.drifted:
        found.append("scores and inputs are as before")
    if one.drifted:
        moved = ", ".join(f"{name} (PSI {one.stability[name].psi:.2f})" for name in one.drifted)
        found.append(f"not as before: {moved}")
    share = one.recent.unlike_share
    if share is not None:
        often = max(one.recent.unlike, key=lambda name: one.recent.unlike[name], default="")
        found.append(f"{share:.0%} unlike the training data" + (f", most by {often}" if often else ""))
    return f"{one.model_name} ({one.weights_sha256[:12]}): " + ", ".join(found)
