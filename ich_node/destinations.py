"""From the settings of a destination to what calls it. Secrets are read from their files at each use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from ich_node.client_tls import ClientTls
from ich_node.database.external_worklist import ExternalTable
from ich_node.deliver.scu import Destination
from ich_node.deliver.web_client import WebDestination
from ich_node.destination_settings import HL7Settings, MailSettings, PacsSettings, WebhookSettings
from ich_node.errors import ConfigurationError
from ich_node.notify.hl7 import CharacterSet, Hl7Header, Hl7Version
from ich_node.notify.mail import MailRelay, send_mail
from ich_node.notify.mllp import MllpDestination, send_oru
from ich_node.notify.notice import Notice
from ich_node.notify.outcome import NoticeOutcome
from ich_node.notify.webhook import WebhookEndpoint, post_notice
from ich_node.settings import is_loopback
from ich_node.worklist_settings import ExternalWorklistSettings, check_backend

Sender = Callable[[Notice], NoticeOutcome]


def pacs_destination(pacs: PacsSettings) -> Destination | WebDestination:
    """How a PACS is called.

    Raises
    ------
    ConfigurationError
        A file with a secret cannot be read.
    """
    tls = ClientTls(
        ca=_path(pacs.ca),
        certificate=_path(pacs.certificate),
        key=_path(pacs.key),
        expected=pacs.peer_certificate,
    )
    if not pacs.url:
        return Destination(
            name=pacs.name,
            ae_title=pacs.ae_title,
            host=pacs.host,
            port=pacs.port,
            tls=tls if pacs.ca else None,
        )
    return WebDestination(
        name=pacs.name,
        url=pacs.url,
        tls=tls,
        token=_secret(pacs.token_file),
        user=pacs.user,
        password=_secret(pacs.password_file),
    )


def notice_sender(listener: HL7Settings | WebhookSettings | MailSettings) -> Sender:
    """How somebody is told.

    Raises
    ------
    ConfigurationError
        A file with a secret cannot be read, or what it holds does not do.
    """
    if isinstance(listener, HL7Settings):
        return _hl7(listener)
    if isinstance(listener, WebhookSettings):
        endpoint = WebhookEndpoint(
            url=listener.url,
            secret=_secret(listener.secret_file).encode(),
            trust=ClientTls(ca=_path(listener.ca), table="[[webhook]]"),
            plain_http_allowed=is_loopback(urlsplit(listener.url).hostname or ""),
        )
        return lambda notice: post_notice(notice, endpoint)
    relay = MailRelay(
        host=listener.host,
        port=listener.port,
        security=listener.security,
        trust=ClientTls(ca=_path(listener.ca), table="[[mail]]"),
        user=listener.user,
        password=_secret(listener.password_file),
        sender=listener.sender,
        recipients=listener.recipients,
    )
    return lambda notice: send_mail(notice, relay)


def external_table(external: ExternalWorklistSettings) -> ExternalTable:
    """Which table of somebody else's is written to.

    Raises
    ------
    ConfigurationError
        The file with the URL cannot be read, or what it holds does not do.
    """
    url = _secret(external.url_file) or external.url
    try:
        check_backend(url)
    except ValueError as error:
        raise ConfigurationError(f"{external.url_file}: {error}") from None
    return ExternalTable(
        url=url,
        schema=external.table_schema or None,
        table=external.table,
        key=external.key,
        columns={str(name): theirs for name, theirs in external.columns.items()},
        values=external.values,
        constants=external.constants,
        makes_rows=external.mode == "upsert",
        zone=ZoneInfo(external.time_zone),
    )


def _hl7(listener: HL7Settings) -> Sender:
    header = Hl7Header(
        sending_application=listener.sending_application,
        sending_facility=listener.sending_facility,
        receiving_application=listener.receiving_application,
        receiving_facility=listener.receiving_facility,
        version=Hl7Version(listener.version),
        character_set=CharacterSet(listener.character_set),
        patient_id_authority=listener.patient_id_authority,
    )
    trust = ClientTls(ca=_path(listener.ca), table="[[hl7]]") if listener.ca else None
    destination = MllpDestination(host=listener.host, port=listener.port, trust=trust)
    return lambda notice: send_oru(notice, header, destination)


def _path(name: str) -> Path | None:
    return Path(name) if name else None


def _secret(name: str) -> str:
    """What a file holds, without the line's end."""
    if not name:
        return ""
    try:
        secret = Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the secret in {name} cannot be read: {error}") from None
    if not secret:
        raise ConfigurationError(f"{name} is empty: it has to hold a secret")
    return secret
