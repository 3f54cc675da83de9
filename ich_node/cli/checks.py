"""What ``ich-node doctor`` looks at."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from ich_node.cli import machine_checks, work_checks
from ich_node.cli.check_run import Check as Check
from ich_node.cli.check_run import Examination, Outcome, run_examinations
from ich_node.cli.external_worklist import look_at_external
from ich_node.cli.settings import existing_database
from ich_node.cli.work_checks import model_drift as _drift
from ich_node.deliver.query import Presence, StoredObject, stored
from ich_node.deliver.scu import Destination, Timeouts, echo
from ich_node.destination_settings import PacsSettings
from ich_node.destinations import pacs_destination
from ich_node.model.bundle import find_bundle, prove_bundle
from ich_node.purge_job import spool_space
from ich_node.receive.free_space import in_gib
from ich_node.receive.tls import TlsFiles, server_context
from ich_node.settings import ReceiverSettings, Settings, TlsSettings
from ich_node.tasks import Queue, count_workers, create_app, worker_name

_HANDSHAKE_SECONDS = 5.0
_TORCH_SECONDS = 60.0
"""torch comes from a cold disk in seconds, and from a slow one in many; nothing waits for a peer."""
_TIMEOUTS = Timeouts(connection_s=5.0, acse_s=5.0, dimse_s=5.0, network_s=5.0)
_NOBODY = "2.25.0"
"""UID of nothing, for a question whose answer does not matter."""


def run_checks(settings: Settings, *, pacs: Collection[str] = ()) -> list[Check]:
    """Look at everything at once, or at the named PACS alone."""
    examinations = list(_pacs(settings)) if pacs else [*_machine(settings), *_services(settings)]
    if pacs:
        wanted = {f"PACS {name}" for name in pacs}
        examinations = [each for each in examinations if each.name in wanted]
    return run_examinations(examinations)


def _machine(settings: Settings) -> Iterator[Examination]:
    yield Examination(
        name="disk",
        look=lambda: _disk(settings),
        mend="free space there: 'ich-node purge --dry-run' says what may go; see disk.retention_days",
    )
    yield Examination(
        name="folders",
        look=lambda: machine_checks.folders(settings),
        mend=f"run this as the node's user, who owns {settings.data_dir}; 'chmod -R go-rwx' keeps others out",
    )
    yield Examination(
        name="clock",
        look=lambda: machine_checks.clock(settings),
        mend="have every host follow the hospital's time server (NTP): 'timedatectl' says how this one stands",
        worst=Outcome.WARN,
    )
    yield Examination(
        name="device",
        look=lambda: machine_checks.device(settings),
        mend="install the GPU's driver and a torch for it, or set model.device",
        seconds=_TORCH_SECONDS,
    )
    yield Examination(
        name="model",
        look=lambda: _model(settings),
        mend="install the package again, or mend model.bundles; 'ich-node models verify' says more",
        seconds=_TORCH_SECONDS,
    )
    yield from _certificates(settings)


def _certificates(settings: Settings) -> Iterator[Examination]:
    mend = "renew it, or mend the file that is named; a running receiver takes the new one by itself"
    tls = settings.receiver.tls
    if tls.certificate:
        yield Examination(name="tls certificate", look=lambda: _tls_certificate(tls), mend=mend)
    files = {"web": settings.web.tls.certificate, "audit": settings.web.audit.certificate}
    files |= {f"PACS {pacs.name}": pacs.certificate for pacs in settings.pacs}
    for name, file in files.items():
        if file:
            yield Examination(
                name=f"certificate of {name}",
                look=partial(machine_checks.certificate, file),
                mend="renew it, or mend the file that is named",
            )


def _services(settings: Settings) -> Iterator[Examination]:
    yield Examination(
        name="database",
        look=lambda: _database(settings),
        mend="run 'ich-node db upgrade', or mend database.url, or start its server",
    )
    yield Examination(
        name="broker",
        look=lambda: _broker(settings),
        mend="start 'ich-node up', which runs one, or mend broker.url; nothing is lost meanwhile",
    )
    yield Examination(
        name="workers",
        needs="broker",
        look=lambda: _workers(settings),
        mend="start 'ich-node up' or 'ich-node worker'; see its messages",
    )
    receiver = settings.receiver
    if not receiver.tls.only:
        host = machine_checks.called_by(receiver.host)
        own = Destination(name="self", ae_title=receiver.ae_title, host=host, port=receiver.port)
        yield Examination(
            name="receiver",
            look=lambda: _receiver(own, settings),
            mend="start 'ich-node up' or 'ich-node receiver'; where another program has the port, end that",
        )
    if receiver.tls.certificate:
        yield Examination(
            name="receiver over TLS", look=lambda: _receiver_over_tls(receiver), mend="see the receiver's log"
        )
    yield Examination(
        name="web",
        look=lambda: machine_checks.page(settings),
        mend="start 'ich-node up' or 'ich-node web'; where another program has the port, end that or set web.port",
    )
    if settings.worklist.external.is_on:
        yield Examination(
            name="external worklist",
            look=lambda: look_at_external(settings),
            mend="see 'ich-node worklist external --check' and [worklist.external]",
        )
    yield from _pacs(settings)
    yield from _work(settings)


def _pacs(settings: Settings) -> Iterator[Examination]:
    for pacs in settings.pacs:
        mend = "check url, token, user and password, and the certificate's authority (ca)"
        if not pacs.url:
            mend = f"check host, port and AE title, and that the PACS knows {settings.receiver.ae_title} as a caller"
        yield Examination(name=f"PACS {pacs.name}", look=partial(_answers, pacs, settings), mend=mend)
    if not settings.pacs:
        mend = "add a [[pacs]] table to the settings file"
        yield Examination(name="PACS", look=lambda: (False, "no destination is set"), mend=mend)


def _work(settings: Settings) -> Iterator[Examination]:
    """What stands in the database, and so says whether the rest does its work."""
    see_failed = "see 'ich-node deliveries --failed', then '--retry'"
    for name, look, mend, worst in (
        ("deliveries", work_checks.failed_deliveries, see_failed, Outcome.FAIL),
        (
            "waiting",
            work_checks.waiting_work,
            "see 'ich-node deliveries'; a PACS that can neither commit nor be queried needs confirm = \"none\"",
            Outcome.FAIL,
        ),
        (
            "retention",
            work_checks.retention_rounds,
            "see the log of 'ich-node worker --queue deliver'; 'ich-node purge' does the same by hand",
            Outcome.FAIL,
        ),
        (
            "studies",
            work_checks.unfinished_studies,
            "see 'ich-node worklist --state FAILED', then 'ich-node reprocess --failed'",
            Outcome.FAIL,
        ),
        (
            "orphaned work",
            work_checks.orphaned_work,
            "start the workers: they take it up again by themselves; see the log of the one that died",
            Outcome.FAIL,
        ),
        (
            "drift",
            _drift,
            "see what has changed (scanner, protocol, contrast medium, reconstruction, rules that forward), check a "
            "sample of readings by hand, and until then do not rely on the thresholds: docs/operations.md, Drift",
            Outcome.WARN,
        ),
        (
            "objects",
            work_checks.conflicting_objects,
            "a sender uses one SOP Instance UID for two images: ask its vendor",
            Outcome.WARN,
        ),
    ):
        yield Examination(name=name, look=partial(look, settings), mend=mend, worst=worst, needs="database")
    mend = "give those peers a port that answers, in their [[peers]] tables"
    yield Examination(name="commitment", look=lambda: work_checks.commitment_reports(settings), mend=mend)


def _disk(settings: Settings) -> tuple[bool | Outcome, str]:
    if not os.access(settings.data_dir, os.W_OK):
        return False, f"{settings.data_dir} does not exist or cannot be written"
    space = spool_space(settings)
    free, mark = space.free_bytes(), space.min_free_bytes
    found = f"{in_gib(free)} free at {settings.spool_dir}"
    if free < mark:
        enough = in_gib(space.enough_bytes)
        return False, f"{found}: new images are refused with 0xA700 until {enough} are free"
    if free < 2 * mark:
        return Outcome.WARN, f"{found}; nearly low: below {in_gib(mark)} new images are refused"
    return True, found


def _database(settings: Settings) -> tuple[bool, str]:
    database = existing_database(settings)
    try:
        database.require_current()
        return True, f"{database.engine.dialect.name}, revision {database.revision()[1]}"
    finally:
        database.dispose()


def _broker(settings: Settings) -> tuple[bool, str]:
    with create_app(settings).connection_for_write() as connection:
        try:
            connection.connect()
        except connection.connection_errors as error:
            return False, f"does not answer: {error}"
        return True, f"answers ({connection.transport_cls})"


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
    outcome = echo(to, calling_ae_title=settings.receiver.ae_title, timeouts=_TIMEOUTS)
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
    (answer,) = stored([asked], to, timeouts=_TIMEOUTS)
    return answer.presence is not Presence.CANNOT_TELL, (
        "answers QIDO-RS" if answer.presence is not Presence.CANNOT_TELL else answer.detail
    )


def _receiver(own: Destination, settings: Settings) -> tuple[bool, str]:
    ok, found = _echo(own, settings)
    if not ok and settings.peers and "Calling AE title not recogni" in found:
        return True, "listens, and admits its peers only"
    return ok, found if ok else found + machine_checks.port_in_words(own.host, own.port)


def _receiver_over_tls(receiver: ReceiverSettings) -> tuple[bool, str]:
    """Whether the port answers a handshake; a caller without a peer's certificate gets no further."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(receiver.tls.certificate, receiver.tls.key)
    port = receiver.tls.port
    with (
        socket.create_connection(
            (machine_checks.called_by(receiver.host), port), _HANDSHAKE_SECONDS
        ) as connection,
        context.wrap_socket(connection) as secured,
    ):
        return True, f"port {port} answers with {secured.version()}"


def _tls_certificate(tls: TlsSettings) -> tuple[bool | Outcome, str]:
    server_context(TlsFiles(certificate=Path(tls.certificate), key=Path(tls.key), ca=Path(tls.ca)))
    return machine_checks.certificate(tls.certificate)
