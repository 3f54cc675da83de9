"""What ``ich-node doctor`` looks at on this machine: folders, ports, clock, device, certificates."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

from ich_node.cli.check_run import Outcome
from ich_node.cli.settings import looking_into
from ich_node.database.examination import last_change_at, server_time
from ich_node.deliver.web_client import WebDestination
from ich_node.destination_settings import PacsSettings
from ich_node.destinations import pacs_destination
from ich_node.errors import ConfigurationError, IchNodeError
from ich_node.http_exchange import HttpTimeouts, NoAnswer, Request, exchange
from ich_node.receive.tls import expires_at
from ich_node.settings import Settings

_CONNECT_SECONDS = 4.0
_RENEWAL = timedelta(days=30)
_WRONG_CLOCK = timedelta(seconds=60)
_UNSURE_CLOCK = timedelta(seconds=5)
_OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def folders(settings: Settings) -> tuple[Outcome, str]:
    """Whether this user may write where the node does, and others may not read there."""
    there = [f for f in (settings.data_dir, settings.spool_dir, settings.results_dir) if f.exists()]
    if not there:
        return Outcome.FAIL, f"{settings.data_dir} does not exist"
    for folder in there:
        if not folder.is_dir():
            return Outcome.FAIL, f"{folder} is not a folder"
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            owner = folder.stat().st_uid
            return (
                Outcome.FAIL,
                f"{folder} cannot be written by this user ({os.getuid()}); it is user {owner}'s",
            )
    if not settings.data_dir.stat().st_mode & _OPEN_TO_OTHERS:
        return Outcome.OK, f"{settings.data_dir} is this user's alone"
    opened = [folder for folder in there if folder.stat().st_mode & _OPEN_TO_OTHERS]
    if opened == [settings.data_dir]:
        return Outcome.OK, f"{settings.data_dir} can be entered by others, what names patients in it cannot"
    names = ", ".join(str(folder) for folder in opened)
    return Outcome.WARN, f"other users of this machine may look into {names}"


def device(settings: Settings) -> tuple[Outcome, str]:
    """What the networks run on, and whether a GPU lies idle."""
    from ich_node.model.execution import Execution  # with torch

    found = str(Execution(settings.model.device, settings.model.precision).device)
    if found == "cpu" and settings.model.device == "auto" and Path("/dev/nvidia0").exists():
        return Outcome.WARN, "the processor, though a GPU is here (/dev/nvidia0) that torch cannot use"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Outcome.OK, f"the processor, {cores} cores" if found == "cpu" else found


def page(settings: Settings) -> tuple[Outcome, str]:
    """Whether the worklist page answers, or who else has its port."""
    host, port = called_by(settings.web.host), settings.web.port
    secured = settings.web.tls.certificate
    connection: HTTPConnection = HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
    if secured:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = (
            False,
            ssl.CERT_NONE,
        )  # it is ours, and only asked for life
        connection = HTTPSConnection(host, port, timeout=_CONNECT_SECONDS, context=context)
    with closing(connection):
        try:
            connection.request("GET", "/health/live")
            answer = connection.getresponse()
            content = answer.read(200)
        except ConnectionRefusedError:
            return Outcome.FAIL, f"nothing listens on {host}:{port}; the port is free"
        except (HTTPException, ssl.SSLError):
            return (
                Outcome.FAIL,
                f"another program listens on {host}:{port}: its answer is none of this page's",
            )
    if answer.status == 200 and b"live" in content:
        return Outcome.OK, f"answers on {host}:{port}"
    if answer.status in (400, 403, 421):
        return (
            Outcome.WARN,
            f"answers on {host}:{port}, but not to that name ({answer.status}): web.trusted_hosts",
        )
    return Outcome.FAIL, f"another program listens on {host}:{port}: it answers {answer.status}"


def called_by(host: str) -> str:
    """The address by which this machine calls what listens on ``host``."""
    return _EVERYWHERE.get(host, host)


def port_in_words(host: str, port: int) -> str:
    """Who has a port that did not answer as it should."""
    try:
        with socket.create_connection((called_by(host), port), _CONNECT_SECONDS):
            return f"; some program listens on port {port}"
    except ConnectionRefusedError:
        return f"; nothing listens on port {port}, it is free"
    except OSError:
        return ""


def clock(settings: Settings) -> tuple[Outcome, str]:
    """How this machine's clock stands to those of others. Times of studies, deliveries and audit come from it."""
    now = datetime.now().astimezone()
    found = [f"{now:%Y-%m-%d %H:%M:%S} {now.tzname()} (UTC{now:%z})"]
    worst = timedelta()
    for whose, off in _differences(settings):
        worst = max(worst, abs(off))
        if abs(off) > _UNSURE_CLOCK:
            found.append(
                f"{abs(off).total_seconds():.0f} s {'behind' if off > timedelta() else 'ahead of'} {whose}"
            )
        else:
            found.append(f"as {whose}")
    if len(found) == 1:
        found.append("nothing to compare it with")
    outcome = Outcome.WARN if worst > _UNSURE_CLOCK else Outcome.OK
    return (Outcome.FAIL if worst > _WRONG_CLOCK else outcome), ", ".join(found)


def _differences(settings: Settings) -> Iterator[tuple[str, timedelta]]:
    """Whose clock, and by how much it is ahead of ours."""
    try:
        with looking_into(settings) as session:
            then, last = server_time(session), last_change_at(session)
        if then is not None:
            yield "the database server", then - datetime.now(UTC)
        if last is not None and last - datetime.now(UTC) > _UNSURE_CLOCK:
            yield "the last change in the database", last - datetime.now(UTC)
    except IchNodeError:
        pass  # the check of the database says so
    for pacs in settings.pacs:
        if pacs.url and (date := _date_of(pacs)) is not None:
            yield f"PACS {pacs.name}", date - datetime.now(UTC)


def _date_of(pacs: PacsSettings) -> datetime | None:
    """The Date (RFC 9110 section 6.6.1) of whatever a DICOMweb service answers; it has whole seconds."""
    try:
        to = pacs_destination(pacs)
        if not isinstance(to, WebDestination):
            return None
        request = Request(to=pacs.name, method="GET", url=pacs.url, headers={}, tls=to.tls.context)
        waits = HttpTimeouts(
            connection_s=_CONNECT_SECONDS, step_s=_CONNECT_SECONDS, answer_s=_CONNECT_SECONDS
        )
        with exchange(request, waits) as answer:
            date = parsedate_to_datetime(answer.headers.get("Date", ""))
    except (NoAnswer, IchNodeError, OSError, ValueError):
        return None
    return date if date.tzinfo is not None else None


def certificate(file: str) -> tuple[Outcome, str]:
    """Whether a certificate is valid for a while yet."""
    try:
        expires = expires_at(Path(file))
    except ConfigurationError:  # its words name the receiver's certificate
        return Outcome.FAIL, f"{file} cannot be read as a certificate"
    left = expires - datetime.now(UTC)
    if left <= timedelta():
        return Outcome.FAIL, f"expired on {expires:%Y-%m-%d}"
    found = f"expires on {expires:%Y-%m-%d}, in {left.days} days"
    return (Outcome.OK if left > _RENEWAL else Outcome.FAIL), found
