"""A worker's job with whoever is told of studies: send the notices that wait. `ich_node.tasks` runs it."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from ich_node.database import notices, outbox
from ich_node.database.engine import Database
from ich_node.database.external_worklist import write_notice
from ich_node.database.notices import Listener, NoticeDelivery
from ich_node.deliver.outbox import next_attempt
from ich_node.destination_settings import HL7Settings, MailSettings, WebhookSettings
from ich_node.destinations import Sender, external_table, notice_sender
from ich_node.errors import ConfigurationError, TransientError
from ich_node.findings import Priority
from ich_node.lease import showing_life, work_owner
from ich_node.node import Node, now
from ich_node.notify.notice import Disclosure
from ich_node.notify.outcome import NoticeOutcome, NoticeResult
from ich_node.settings import Settings
from ich_node.worklist_settings import ExternalWorklistSettings

logger = logging.getLogger(__name__)

_LEASE = timedelta(seconds=20)
_BATCH = 10
_KEY_BYTES = 32

Listening = HL7Settings | WebhookSettings | MailSettings | ExternalWorklistSettings
"""Settings of somebody who is told."""


def listeners_of(settings: Settings) -> tuple[Listener, ...]:
    """Who is told of which studies."""
    return tuple(
        Listener(name=each.name, priorities=frozenset(map(Priority, each.priorities)))
        for each in settings.notified
    )


def tell_due(node: Node, listener: Listening) -> None:
    """Tell somebody what waits for them, the most urgent first, until nothing is due."""
    if isinstance(listener, ExternalWorklistSettings):
        _write_due(node, listener)
        return
    disclosure, key = Disclosure(listener.disclose), pseudonym_key(node.settings.data_dir)
    while True:
        with node.database.writing() as session:
            claimed = notices.claim_notices(
                session, listener.name, owner=work_owner(), now=now(), lease=_LEASE, limit=_BATCH
            )
        if not claimed:
            return
        try:
            send = notice_sender(listener)
        except ConfigurationError as error:
            send = _failing(error)
        with showing_life(_renewal(node.database, claimed), _LEASE):
            for delivery in claimed:
                _record(node.database, delivery, send(delivery.notice.disclosing(disclosure, key=key)))


def _write_due(node: Node, external: ExternalWorklistSettings) -> None:
    """Write what waits into somebody else's worklist, until nothing is due or its database cannot be used."""
    seen: set[str] = set()
    while True:
        with node.database.reading() as session:
            due = notices.studies_to_tell(session, external.name, now=now(), limit=_BATCH)
        studies = [study for study in due if study not in seen]
        if not studies or not all(_write_last(node, external, study) for study in studies):
            return
        seen.update(studies)


def _write_last(node: Node, external: ExternalWorklistSettings, study_instance_uid: str) -> bool:
    """Write how a study stands now, where that waits; false where the database cannot be used.

    The lease is asked for before the commit there: of two processes the one that knows less never writes last.
    """
    with node.database.writing() as session:
        delivery = notices.claim_last_notice(
            session, external.name, study_instance_uid, owner=work_owner(), now=now(), lease=_LEASE
        )
    if delivery is None:
        return True
    renew = _renewal(node.database, [delivery])
    with showing_life(renew, _LEASE):
        try:
            outcome = write_notice(delivery.notice, external_table(external), may_commit=renew)
        except (ConfigurationError, TransientError) as error:
            _record(node.database, delivery, NoticeOutcome(result=NoticeResult.TRANSIENT, detail=str(error)))
            return False
        _record(node.database, delivery, outcome, note=outcome.detail or None)
    return True


def pseudonym_key(data_dir: Path) -> bytes:
    """The secret that pseudonyms of this installation are made with; it is drawn at first use."""
    file = data_dir / "pseudonym.key"
    try:
        return file.read_bytes()
    except FileNotFoundError:
        pass
    data_dir.mkdir(parents=True, exist_ok=True)
    drawn = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    drawn.touch(mode=0o600)
    with drawn.open("wb") as output:
        output.write(secrets.token_bytes(_KEY_BYTES))
        output.flush()
        os.fsync(output.fileno())  # an empty key after a power cut would be everybody's
    try:
        os.link(drawn, file)  # the first of several processes wins
    except FileExistsError:
        pass
    finally:
        drawn.unlink()
    return file.read_bytes()


def _failing(error: ConfigurationError) -> Sender:
    return lambda notice: NoticeOutcome(result=NoticeResult.TRANSIENT, detail=str(error))


def _record(
    database: Database, delivery: NoticeDelivery, outcome: NoticeOutcome, *, note: str | None = None
) -> None:
    at = now()
    with database.writing() as session:
        if outcome.result is NoticeResult.SENT:
            outbox.record_taken(session, delivery, now=at, note=note, confirm=False)
            return
        logger.warning("%s did not take a notice: %s", delivery.destination, outcome.result)
        again = _again(delivery, outcome, at) if outcome.result is NoticeResult.TRANSIENT else None
        outbox.record_failed(session, delivery, next_attempt_at=again, note=outcome.detail)


def _again(delivery: NoticeDelivery, outcome: NoticeOutcome, at: datetime) -> datetime | None:
    again = next_attempt(delivery.attempts, at)
    if again is None or outcome.retry_after_s is None:
        return again
    return max(again, at + timedelta(seconds=outcome.retry_after_s))


def _renewal(database: Database, claimed: Sequence[NoticeDelivery]) -> Callable[[], bool]:
    def renew() -> bool:
        with database.writing() as session:
            return outbox.renew_leases(session, claimed, now=now(), lease=_LEASE) > 0

    return renew
