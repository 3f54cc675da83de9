"""The tables. Times are UTC; text columns hold what the DICOM attribute of the same name holds."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Computed,
    ForeignKey,
    Index,
    SmallInteger,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ich_node.database.column_types import AnyText, UtcDateTime


class Table(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own protocol
        datetime: UtcDateTime,
        str: AnyText,
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


PRECEDENCE = (
    "CASE WHEN reviewed_at IS NULL THEN 4 ELSE 0 END + "
    "CASE priority WHEN 'STAT' THEN 3 WHEN 'HIGH' THEN 2 WHEN 'MEDIUM' THEN 1 ELSE 0 END"
)
"""The unreviewed before the reviewed, then by urgency: 7 is read first. An index can keep that order."""


class StudyRow(Table):
    """One study: what it is, where it stands, how urgent it is, and who works on it."""

    __tablename__ = "study"
    __table_args__ = (
        Index("study_by_precedence", "precedence", "received_at", "study_instance_uid"),
        Index("study_by_state", "state", "precedence", "received_at", "study_instance_uid"),
        Index(
            "study_by_modality_ae_title",
            "modality_ae_title",
            "precedence",
            "received_at",
            "study_instance_uid",
        ),
        Index("study_by_received_at", "received_at"),
        Index("study_by_study_date", "study_date"),
        # All that a search looks at, so that text which is in few of a million is sought in an index alone.
        Index(
            "study_by_patient_name", "patient_name", "patient_id", "accession_number", "study_instance_uid"
        ),
        Index("study_by_accession_number", "accession_number"),
        Index("study_by_patient_id", "patient_id"),
        Index(
            "study_with_reprocess_request",
            "study_instance_uid",
            sqlite_where=text("reprocess_requested_at IS NOT NULL"),
            postgresql_where=text("reprocess_requested_at IS NOT NULL"),
        ),
        Index(
            "study_by_flagged_at",
            "flagged_at",
            sqlite_where=text("flagged_at IS NOT NULL"),
            postgresql_where=text("flagged_at IS NOT NULL"),
        ),
        Index(
            "study_by_read_at",
            "read_at",
            sqlite_where=text("read_at IS NOT NULL"),
            postgresql_where=text("read_at IS NOT NULL"),
        ),
    )

    study_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    patient_id: Mapped[str]
    patient_name: Mapped[str]
    patient_birth_date: Mapped[str]
    patient_sex: Mapped[str]
    accession_number: Mapped[str]
    study_date: Mapped[str]
    study_time: Mapped[str]
    study_description: Mapped[str]
    modality_ae_title: Mapped[str]
    received_at: Mapped[datetime]
    last_received_at: Mapped[datetime]

    state: Mapped[str]
    reason: Mapped[str | None]
    reason_detail: Mapped[str | None]
    priority: Mapped[str]
    suspicion: Mapped[float | None]
    subtypes: Mapped[dict[str, Any] | None]
    reading_id: Mapped[int | None]
    """The reading that the priority comes from."""
    read_at: Mapped[datetime | None]
    flagged_at: Mapped[datetime | None]
    reviewed_at: Mapped[datetime | None]
    reviewed_by: Mapped[str | None]

    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    claim_number: Mapped[int]
    """Counts the claims, so that an earlier holder of the lease is told from the present one."""
    enqueued_at: Mapped[datetime | None]
    retry_at: Mapped[datetime | None]
    """Not to be taken up before, because something outside did not answer."""
    attempts: Mapped[int]
    """Times a worker took the study up and neither finished nor gave it back."""
    reprocess_requested_at: Mapped[datetime | None]
    reprocess_series_instance_uid: Mapped[str | None]
    reprocess_model: Mapped[str | None]
    """Names of bundles with commas between; an empty one, or NULL, stands for those that the settings name. A
    ``*`` goes before them when a worker has begun."""
    purged_at: Mapped[datetime | None]
    """When images of it were last removed from the spool."""
    precedence: Mapped[int] = mapped_column(SmallInteger, Computed(PRECEDENCE, persisted=True), deferred=True)
    """Place on the worklist, kept by the database itself."""


class SeriesRow(Table):
    """One series: when it is due, and why it was not read if it was not."""

    __tablename__ = "series"
    __table_args__ = (Index("series_by_study", "study_instance_uid"), Index("series_by_due_at", "due_at"))

    series_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("study.study_instance_uid"))
    modality: Mapped[str]
    series_number: Mapped[int | None]
    series_description: Mapped[str]
    revision: Mapped[int]
    """Counts the objects that arrived."""
    handled_revision: Mapped[int]
    """The revision that was last looked at by a worker."""
    due_at: Mapped[datetime | None]
    """When a worker may look at it; empty once it has."""
    exclusion_reason: Mapped[str | None]
    exclusion_detail: Mapped[str | None]
    purged_instances: Mapped[int] = mapped_column(server_default="0")
    """How many images it had when they were purged. With fewer it is not whole, and must not be read."""


class InstanceRow(Table):
    """One object in the spool; its row goes when it is purged.

    The same SOP Instance UID with other bytes has a row of its own, as a conflict.
    """

    __tablename__ = "instance"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid", "content_hash", name="instance_once"),
        Index(
            "instance_without_conflict",
            "sop_instance_uid",
            unique=True,
            sqlite_where=text("NOT conflict"),
            postgresql_where=text("NOT conflict"),
        ),
        Index("instance_by_series", "series_instance_uid", "size_bytes"),
        Index(
            "instance_in_conflict",
            "received_at",
            sqlite_where=text("conflict"),
            postgresql_where=text("conflict"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[str]
    series_instance_uid: Mapped[str] = mapped_column(ForeignKey("series.series_instance_uid"))
    sop_class_uid: Mapped[str]
    transfer_syntax_uid: Mapped[str]
    instance_number: Mapped[int | None]
    number_of_frames: Mapped[int]
    position_mm: Mapped[list[Any] | None]
    orientation: Mapped[list[Any] | None]
    file_name: Mapped[str]
    """Below the spool folder."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    content_hash: Mapped[str]
    source_ae_title: Mapped[str]
    received_at: Mapped[datetime]
    conflict: Mapped[bool]


class ReadingRow(Table):
    """What one model found in one series at one time. Kept for good; a later one supersedes it."""

    __tablename__ = "reading"
    __table_args__ = (
        UniqueConstraint("series_instance_uid", "model_name", "run_number", name="reading_once"),
        Index("reading_by_study", "study_instance_uid"),
        Index("reading_by_read_at", "read_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("study.study_instance_uid"))
    series_instance_uid: Mapped[str] = mapped_column(ForeignKey("series.series_instance_uid"))
    run_number: Mapped[int]
    model_name: Mapped[str]
    model_version: Mapped[str]
    weights_sha256: Mapped[str]
    content_sha256: Mapped[str]
    """Of the sorted hashes of the objects that were read."""
    suspicion: Mapped[float]
    operating_points: Mapped[dict[str, Any]]
    """The thresholds on the suspicion that gave the priority."""
    priority: Mapped[str]
    subtypes: Mapped[dict[str, Any]]
    caveats: Mapped[list[Any]]
    slices: Mapped[list[Any]]
    timeline: Mapped[dict[str, Any]]
    read_at: Mapped[datetime]
    superseded: Mapped[bool]
    sr_sop_instance_uid: Mapped[str]
    sr_series_instance_uid: Mapped[str]
    input_features: Mapped[dict[str, Any] | None]
    """What the input was like, number by name; NULL in readings older than the column."""
    unlike_training: Mapped[list[Any] | None]
    """Names of those that lie outside of what the model was trained on; NULL where its bundle does not say that."""
    maps_file_name: Mapped[str | None]
    """File with the likelihood maps that the study page lays over the slices, below the results folder; NULL where
    there is none, or none any more."""


class ResultObjectRow(Table):
    """One DICOM object that was made from a reading, or from the fact that there was none."""

    __tablename__ = "result_object"
    __table_args__ = (
        Index("result_object_by_reading", "reading_id"),
        Index("result_object_by_study", "study_instance_uid"),
    )

    sop_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    reading_id: Mapped[int | None] = mapped_column(ForeignKey("reading.id"))
    """NULL for a report that says why a study was not read."""
    sop_class_uid: Mapped[str]
    kind: Mapped[str]
    """SR, SC, SEG, GSPS, KOS or PM; with a form behind it where it is not the one that the node itself shows."""
    position: Mapped[int]
    """Order in which a person looks at the objects of a reading."""
    file_name: Mapped[str]
    """Below the results folder."""
    purged_at: Mapped[datetime | None]
    """When its file was given up for removal; every PACS has the object."""
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("study.study_instance_uid"))


class NoticeRow(Table):
    """What people are told of a study at one time."""

    __tablename__ = "notice"
    __table_args__ = (Index("notice_by_study", "study_instance_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("study.study_instance_uid"))
    reading_id: Mapped[int | None] = mapped_column(ForeignKey("reading.id"))
    facts: Mapped[dict[str, Any]]
    """How the study stood; who the patient is stands in the study's row alone."""
    created_at: Mapped[datetime]


class OutboxRow(Table):
    """One object or one notice on its way to one destination."""

    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid", "destination", name="outbox_once"),
        UniqueConstraint("notice_id", "destination", name="outbox_notice_once"),
        Index("outbox_by_due", "state", "next_attempt_at"),
        Index(
            "outbox_by_transaction",
            "transaction_uid",
            sqlite_where=text("transaction_uid IS NOT NULL"),
            postgresql_where=text("transaction_uid IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[str | None] = mapped_column(ForeignKey("result_object.sop_instance_uid"))
    destination: Mapped[str]
    urgency: Mapped[int]
    """0 is the most urgent."""
    state: Mapped[str]
    """PENDING, SENT, DELIVERED or DEAD."""
    attempts: Mapped[int]
    created_at: Mapped[datetime]
    next_attempt_at: Mapped[datetime]
    """When it is sent next, or once it is sent, when the destination is asked next whether it keeps it."""
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    """When the destination took it."""
    note: Mapped[str | None]
    """The peer's own words at the last attempt."""
    notice_id: Mapped[int | None] = mapped_column(ForeignKey("notice.id"))
    """Where it is a notice; there is no object then."""
    delivered_at: Mapped[datetime | None]
    """When the destination was known to keep it."""
    confirm_attempts: Mapped[int] = mapped_column(server_default="0")
    """How often it was asked, since it took it last."""
    transaction_uid: Mapped[str | None]
    """Of the last request for storage commitment."""


class AuditRow(Table):
    """Who or what changed which state or priority, when and why. Only ever added to."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_by_study", "study_instance_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    study_instance_uid: Mapped[str]
    actor: Mapped[str]
    action: Mapped[str]
    state: Mapped[str]
    priority: Mapped[str]
    why: Mapped[str | None]


class RemovalRow(Table):
    """A file that nothing needs any more; the row goes when the file has gone for good."""

    __tablename__ = "removal"
    __table_args__ = (UniqueConstraint("folder", "file_name", name="removal_once"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    folder: Mapped[str]
    """SPOOL or RESULTS."""
    file_name: Mapped[str]
    """Below that folder."""
    modified_ns: Mapped[int] = mapped_column(BigInteger)
    """Modification time of the file that is meant: one that took its place since is another object's."""
    decided_at: Mapped[datetime]


class ChoreRow(Table):
    """Work that is done now and then, by one process of all hosts."""

    __tablename__ = "chore"

    name: Mapped[str] = mapped_column(primary_key=True)
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    """Later than its start where the last round came to its end."""
    note: Mapped[str | None]
    """What the last round did."""
