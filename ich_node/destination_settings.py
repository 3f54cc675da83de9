"""Where results go and who is told: one table of the settings for each."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from ich_node.settings_section import Section, check_ae_title, setting

ObjectKind = Literal["SR", "SC", "SEG", "GSPS", "KOS", "PM"]
PriorityName = Literal["STAT", "HIGH", "MEDIUM", "ROUTINE"]


class PacsSettings(Section):
    """Where results go: a DICOM node (ae_title, host, port) or a DICOMweb service (url)."""

    name: str = setting(..., "a name for people; unique", min_length=1)
    ae_title: str = setting("", "called AE title")
    host: str = setting("", "host name or IP address")
    port: int = setting(0, "TCP port", ge=0, le=65535)
    url: str = setting("", "DICOMweb service, instead of ae_title, host and port; results go by STOW-RS")
    ca: str = setting(
        "", "PEM file with the authorities that sign its certificate; a DICOM node is called over TLS then"
    )
    certificate: str = setting("", "PEM file with the certificate chain that it is shown; empty: none")
    key: str = setting("", "PEM file with the private key of that certificate")
    peer_certificate: str = setting(
        "", "what its certificate must carry: a SHA-256 fingerprint or a name; empty: the host that is called"
    )
    token_file: str = setting("", "file with the bearer token for url")
    user: str = setting("", "user name for url")
    password_file: str = setting("", "file with the password of that user")
    objects: tuple[ObjectKind, ...] = setting(
        ("SR", "SC"), "what it gets of each reading: SR, SC, SEG, GSPS, KOS, PM", min_length=1
    )
    sr_class: Literal["comprehensive-3d", "comprehensive", "enhanced", "basic-text"] = setting(
        "comprehensive-3d", "SOP class of its structured reports; old PACS do not take the first"
    )
    sc_compression: Literal["none", "jpeg-lossless", "jpeg-2000-lossless"] = setting(
        "none", "how its secondary captures are compressed"
    )
    not_read_report: bool = setting(False, "it gets a short report of each study that was not read, and why")
    confirm: Literal["auto", "commitment", "query", "none"] = setting(
        "auto",
        "how it shows that it keeps what it took: storage commitment, a query (C-FIND or QIDO-RS), the first of them "
        "that it can (auto), or not at all (none)",
    )

    @field_validator("ae_title")
    @classmethod
    def _title(cls, value: str) -> str:
        return check_ae_title(value) if value else value

    @field_validator("url")
    @classmethod
    def _web(cls, value: str) -> str:
        return _check_url(value) if value else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.url) == any((self.ae_title, self.host, self.port)):
            raise ValueError("give ae_title, host and port of a DICOM node, or the url of a DICOMweb service")
        if not self.url and not all((self.ae_title, self.host, self.port)):
            raise ValueError("ae_title, host and port are needed together")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key are needed together")
        if self.url:
            self._check_web()
        elif (self.certificate or self.peer_certificate) and not self.ca:
            raise ValueError("certificate and peer_certificate are for calls over TLS, which need ca too")
        elif self.token_file or self.user or self.password_file:
            raise ValueError("token_file, user and password_file are for url")
        return self

    def _check_web(self) -> None:
        if self.confirm == "commitment":
            raise ValueError("confirm: a DICOMweb service knows no storage commitment: auto, query or none")
        if self.url.startswith("http:") and (self.ca or self.certificate or self.peer_certificate):
            raise ValueError("ca, certificate and peer_certificate are for a url that begins with https://")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file are needed together")
        if self.user and self.token_file:
            raise ValueError("give a token_file, or user and password_file")


class NotifiedSettings(Section):
    """What everybody who is told of studies has in common."""

    name: str = setting(..., "a name for people; unique", min_length=1)
    priorities: tuple[PriorityName, ...] = setting(
        ("STAT", "HIGH"),
        "of the studies that it is told of; a study that was not read has MEDIUM",
        min_length=1,
    )
    disclose: Literal["pseudonym", "study", "patient"] = setting(
        "pseudonym",
        "what names the study: a number that means nothing elsewhere, its UID, or the patient and the order too",
    )


class HL7Settings(NotifiedSettings):
    """A system that takes ORU^R01 over MLLP."""

    host: str = setting(..., "host name or IP address", min_length=1)
    port: int = setting(..., "TCP port", ge=1, le=65535)
    version: Literal["2.3.1", "2.4", "2.5.1"] = setting("2.5.1", "of HL7")
    sending_application: str = setting("ICH_NODE", "MSH-3", min_length=1, max_length=20)
    sending_facility: str = setting("", "MSH-4", max_length=20)
    receiving_application: str = setting("", "MSH-5", max_length=20)
    receiving_facility: str = setting("", "MSH-6", max_length=20)
    character_set: Literal["ASCII", "8859/1", "UNICODE UTF-8"] = setting("UNICODE UTF-8", "MSH-18")
    patient_id_authority: str = setting("", "who issues patient IDs (PID-3.4)", max_length=20)
    ca: str = setting(
        "", "PEM file with the authorities that sign its certificate; it is called over TLS then"
    )


class WebhookSettings(NotifiedSettings):
    """A service that takes JSON by POST."""

    url: str = setting(..., "where to, by https (http on this machine only)")
    secret_file: str = setting(..., "file with the secret that signs what is sent", min_length=1)
    ca: str = setting(
        "", "PEM file with the authorities that sign its certificate; empty: those of the system"
    )

    _url = field_validator("url")(lambda value: _check_url(value))


class MailSettings(NotifiedSettings):
    """People that get an e-mail."""

    host: str = setting(..., "mail server", min_length=1)
    port: int = setting(587, "TCP port", ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = setting("starttls", "how the connection is secured")
    user: str = setting("", "user name; empty: no login")
    password_file: str = setting("", "file with the password of that user")
    sender: str = setting(..., "From address", pattern=r"^[^@\s]+@[^@\s]+$")
    recipients: tuple[str, ...] = setting(..., "To addresses", min_length=1)
    ca: str = setting(
        "", "PEM file with the authorities that sign its certificate; empty: those of the system"
    )

    @model_validator(mode="after")
    def _login(self) -> Self:
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file are needed together")
        if self.user and self.security == "none":
            raise ValueError("a password does not go over a connection that is not secured: starttls or tls")
        return self


def _check_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"this is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("a URL that begins with http:// or https:// is needed")
    if parts.username or parts.password:
        raise ValueError("a password does not stand in a URL: name it in a file")
    if parts.query or parts.fragment:
        raise ValueError("a URL without ? and # is needed")
    return value.rstrip("/")
