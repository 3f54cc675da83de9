"""What an installation can choose: every setting with its default, bounds, unit and meaning."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

from pydantic import field_validator, model_validator

from ich_node.destination_settings import HL7Settings, MailSettings, PacsSettings, WebhookSettings
from ich_node.settings_section import Section, check_ae_title, setting
from ich_node.viewer_settings import ViewerSettings
from ich_node.web_settings import WebSettings
from ich_node.web_settings import is_loopback as is_loopback
from ich_node.worklist_settings import ExternalWorklistSettings, WorklistSettings

SQLITE_FILE = "ich-node.sqlite"
"""In data_dir, where database.url names nothing else."""


class TlsSettings(Section):
    """The DICOM server over TLS (PS3.15 B.12, BCP 195): mutual, TLS 1.2 and 1.3."""

    certificate: str = setting("", "PEM file with the node's certificate chain; empty: no TLS")
    key: str = setting("", "PEM file with the certificate's private key")
    ca: str = setting("", "PEM file with the authorities that sign callers' certificates")
    port: int = setting(2762, "TCP port of the DICOM server over TLS", ge=0, le=65535)
    only: bool = setting(False, "receive over TLS alone; the plain port is not opened")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if any((self.certificate, self.key, self.ca)) and not all((self.certificate, self.key, self.ca)):
            raise ValueError(
                "certificate, key and ca are needed together: callers must show a certificate too"
            )
        if self.only and not self.certificate:
            raise ValueError("only = true needs certificate, key and ca")
        return self


class ReceiverSettings(Section):
    """The DICOM server: storage, verification and storage commitment."""

    host: str = setting("127.0.0.1", "address that the DICOM server listens on", min_length=1)
    port: int = setting(11112, "TCP port of the DICOM server", ge=0, le=65535)
    ae_title: str = setting("ICH_NODE", "AE title that callers must name")
    allow_any_peer: bool = setting(
        False, "accept callers that are not listed under [[peers]] on a public address"
    )
    processes: int = setting(0, "processes that receive; 0: one per core, four at most", ge=0, le=16)
    max_associations: int = setting(100, "associations open at once", ge=1, le=500)
    max_associations_per_peer: int = setting(25, "associations open at once from one peer", ge=1, le=500)
    max_object_mib: int = setting(2048, "largest object", "MiB", ge=1, le=65536)
    max_association_gib: float = setting(64.0, "most that one association may bring", "GiB", gt=0)
    max_study_gib: float = setting(64.0, "most that one study may hold", "GiB", gt=0)
    max_peer_gib_per_day: float = setting(
        1024.0, "most that one peer may bring in 24 hours, counted anew at each start", "GiB", gt=0
    )
    idle_seconds: float = setting(
        60.0, "an association without traffic is aborted after this", "s", ge=1, le=3600
    )
    min_bytes_per_second: int = setting(
        4096, "a sender that is slower over 30 s of one message is cut off", "bytes/s", ge=1
    )
    settle_seconds: float = setting(
        1.0, "wait after an association has ended with a gapless series", "s", ge=0, le=60
    )
    quiet_seconds: float = setting(
        10.0, "wait after an association has ended with a series that has gaps", "s", ge=0, le=600
    )
    stalled_seconds: float = setting(
        60.0, "wait for the next image while an association is still open", "s", ge=1, le=3600
    )

    tls: TlsSettings = TlsSettings()

    _ae_title = field_validator("ae_title")(check_ae_title)


class DiskSettings(Section):
    """What the disk must hold, and for how long."""

    min_free_gib: float = setting(5.0, "with less free space new objects are refused (0xA700)", "GiB", ge=0)
    retention_days: float = setting(
        0.0, "images of a study are purged so long after its results are delivered; 0: never", "days", ge=0
    )
    purge_every_hours: float = setting(6.0, "how often the schedule purges", "h", ge=0.1, le=720)


class DatabaseSettings(Section):
    """Where the truth lives."""

    url: str = setting("", "SQLAlchemy URL; empty: SQLite in data_dir")


class BrokerSettings(Section):
    """What carries task messages; losing all of them loses nothing."""

    url: str = setting(
        "", "Celery broker URL; empty: an embedded server in data_dir; filesystem://: files there"
    )


class WorkerSettings(Section):
    """The processes that read studies."""

    processes: int = setting(1, "studies read at once on this host; 0: none", ge=0, le=64)
    lease_seconds: float = setting(
        15.0, "a worker that has not shown life for so long has lost its study", "s", ge=2, le=600
    )
    max_image_mib: int = setting(
        1024, "largest image that is decoded: rows x columns x frames x bytes", "MiB", ge=1, le=16384
    )
    decoder_memory_mib: int = setting(
        4096, "memory of the process that decodes compressed images", "MiB", ge=256, le=65536
    )
    max_attempts: int = setting(3, "times a study may take its worker down before it is FAILED", ge=1, le=20)


class ModelSettings(Section):
    """Which published systems read."""

    bundles: tuple[str, ...] = setting(
        ("mil-pair-v1",),
        "model bundles by name; each reads every study, and the most urgent of what they find counts",
        min_length=1,
    )
    device: str = setting("auto", "torch device: auto, cpu or cuda:N", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    engine: Literal["torch"] = setting("torch", "inference engine")
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "arithmetic of the networks; bfloat16 is faster on some hardware"
    )

    @field_validator("bundles")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a bundle is named twice")
        return value


class PeerSettings(Section):
    """Who may send: both AE title and host must match."""

    name: str = setting(..., "a name for people")
    ae_title: str = setting(..., "calling AE title")
    host: str = setting(..., "IP address that the peer calls from")
    port: int = setting(
        0, "TCP port on which it answers calls of this node (storage commitment); 0: none", ge=0, le=65535
    )
    tls: bool = setting(False, "it must call over TLS")
    certificate: str = setting(
        "", "what its certificate must carry: a SHA-256 fingerprint, or a subject alternative or common name"
    )

    _ae_title = field_validator("ae_title")(check_ae_title)

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        return str(ipaddress.ip_address(value))

    @model_validator(mode="after")
    def _bound_to_a_certificate(self) -> Self:
        if self.tls and not self.certificate:
            raise ValueError("a peer that calls over TLS needs certificate, which binds it to its AE title")
        if self.certificate and not self.tls:
            raise ValueError("certificate binds a peer that calls over TLS: set tls = true as well")
        return self


class Settings(Section):
    """Everything that an installation can choose."""

    data_dir: Path = setting(Path("ich-node-data"), "folder that holds all state")
    receiver: ReceiverSettings = ReceiverSettings()
    disk: DiskSettings = DiskSettings()
    web: WebSettings = WebSettings()
    viewer: ViewerSettings = ViewerSettings()
    worklist: WorklistSettings = WorklistSettings()
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    worker: WorkerSettings = WorkerSettings()
    model: ModelSettings = ModelSettings()
    peers: tuple[PeerSettings, ...] = setting((), "scanners and PACS that may send; empty: any local caller")
    pacs: tuple[PacsSettings, ...] = setting((), "PACS that results are sent to")
    hl7: tuple[HL7Settings, ...] = setting(
        (), "systems that are told of studies by HL7 v2 (ORU^R01 over MLLP)"
    )
    webhook: tuple[WebhookSettings, ...] = setting((), "services that are told of studies by HTTP")
    mail: tuple[MailSettings, ...] = setting((), "people that are told of studies by e-mail")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            return value.expanduser().resolve()
        except RuntimeError as error:
            raise ValueError(f"{value} cannot be expanded: {error}") from None

    @field_validator("data_dir", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("an empty name would put all state into the current folder; write . for that")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # An error's text begins with the key that it is about.
        self.web.refuse_unsafe()
        if not self.peers and not self.receiver.allow_any_peer and not is_loopback(self.receiver.host):
            raise ValueError(
                f"receiver.host: {self.receiver.host} lets any host call: list the callers under [[peers]], "
                "or set receiver.allow_any_peer = true"
            )
        if any(peer.tls for peer in self.peers) and not self.receiver.tls.certificate:
            raise ValueError("peers: one must call over TLS, but receiver.tls.certificate is not set")
        callers = [(peer.ae_title, peer.host) for peer in self.peers]
        if len(set(callers)) != len(callers):
            raise ValueError("peers: two [[peers]] have the same AE title and host")
        seen: set[str] = set()
        for key in ("pacs", "hl7", "webhook", "mail"):
            for each in getattr(self, key):
                if each.name in seen:
                    raise ValueError(
                        f"{key}: {each.name!r} is the name of another [[pacs]], [[hl7]], [[webhook]] or [[mail]]"
                    )
                seen.add(each.name)
        if self.worklist.external.is_on and self.worklist.external.name in seen:
            raise ValueError(
                f"worklist.external.name: {self.worklist.external.name!r} is the name of another"
            )
        return self

    @property
    def notified(self) -> tuple[HL7Settings | WebhookSettings | MailSettings | ExternalWorklistSettings, ...]:
        """Whoever is told of studies."""
        external = (self.worklist.external,) if self.worklist.external.is_on else ()
        return (*self.hl7, *self.webhook, *self.mail, *external)

    @property
    def database_url(self) -> str:
        """The database's SQLAlchemy URL with the default filled in."""
        return self.database.url or f"sqlite:///{quote(str(self.data_dir / SQLITE_FILE))}"

    @property
    def spool_dir(self) -> Path:
        """Received objects."""
        return self.data_dir / "spool"

    @property
    def commitment_dir(self) -> Path:
        """Storage commitment requests that are still to be answered."""
        return self.data_dir / "commitment"

    @property
    def bundles_dir(self) -> Path:
        """Model bundles installed here, beside those that the package ships."""
        return self.data_dir / "models"

    @property
    def results_dir(self) -> Path:
        """Structured reports and secondary captures made here."""
        return self.data_dir / "results"
