"""Tables of the web service: who its users are, what they said, what they looked at, which workitems they perform."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from ich_node.database.tables import Table


class ReviewRow(Table):
    """What a person said of a study, and of the reading that counted then. Only ever added to."""

    __tablename__ = "review"
    __table_args__ = (Index("review_by_study", "study_instance_uid"), Index("review_by_time", "at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("study.study_instance_uid"))
    reading_id: Mapped[int | None] = mapped_column(ForeignKey("reading.id"))
    reviewer: Mapped[str]
    verdict: Mapped[str]
    """SEEN, AGREE, DISAGREE, or UNSEEN, which takes back what was said before."""
    reason: Mapped[str | None]
    """Of a DISAGREE: MISSED, FALSE_ALARM, WRONG_PLACE, WRONG_SUBTYPE or OTHER."""
    comment: Mapped[str | None]
    priority: Mapped[str]
    """That the study had then."""


class AccessRow(Table):
    """Who looked at what, or tried to. Only ever added to."""

    __tablename__ = "access"
    __table_args__ = (Index("access_by_study", "study_instance_uid"), Index("access_by_time", "at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    caller: Mapped[str]
    role: Mapped[str]
    source: Mapped[str]
    """Network address."""
    action: Mapped[str]
    study_instance_uid: Mapped[str | None]
    outcome: Mapped[str]
    """SUCCESS or REFUSED."""
    detail: Mapped[str | None]


class AccessExportRow(Table):
    """An access that the site's audit repository has not been told of yet; the row goes when it has."""

    __tablename__ = "access_export"

    access_id: Mapped[int] = mapped_column(ForeignKey("access.id"), primary_key=True)


class UserRow(Table):
    """A person who may log in by a password that this node keeps the Argon2 hash of."""

    __tablename__ = "web_user"

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    password_hash: Mapped[str]
    created_at: Mapped[datetime]
    password_changed_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class SessionRow(Table):
    """A browser that somebody has logged in with."""

    __tablename__ = "web_session"
    __table_args__ = (Index("web_session_by_user", "user_name"),)

    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    """Of the cookie, which is kept nowhere."""
    user_name: Mapped[str]
    role: Mapped[str]
    origin: Mapped[str]
    """LOCAL or OIDC."""
    csrf_token: Mapped[str]
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class TokenRow(Table):
    """A bearer token of a system."""

    __tablename__ = "api_token"
    __table_args__ = (UniqueConstraint("name", name="api_token_name"),)

    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    created_at: Mapped[datetime]
    created_by: Mapped[str]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class LoginFailureRow(Table):
    """A login that failed, for the rate limit; old ones go."""

    __tablename__ = "login_failure"
    __table_args__ = (
        Index("login_failure_by_user", "user_name", "at"),
        Index("login_failure_by_source", "source", "at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    user_name: Mapped[str]
    source: Mapped[str]


class WorkitemRow(Table):
    """What a performer did with the UPS workitem of a study (PS3.4 CC); a study without a row is SCHEDULED."""

    __tablename__ = "workitem"
    __table_args__ = (UniqueConstraint("study_instance_uid", name="workitem_once"),)

    sop_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("study.study_instance_uid"))
    procedure_step_state: Mapped[str]
    """SCHEDULED, IN PROGRESS, COMPLETED or CANCELED (0074,1000)."""
    transaction_uid: Mapped[str | None]
    """Transaction UID (0008,1195): the lock of who performs it."""
    performer: Mapped[str | None]
    attributes: Mapped[dict[str, Any]]
    """What the performer has set, as DICOM JSON."""
    changed_at: Mapped[datetime]


class SubscriptionRow(Table):
    """Who is told of changes of workitems (PS3.18 11.10)."""

    __tablename__ = "workitem_subscription"
    __table_args__ = (UniqueConstraint("ae_title", "workitem_uid", name="workitem_subscription_once"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    ae_title: Mapped[str]
    workitem_uid: Mapped[str]
    """A workitem's, or the well-known UID of all (filtered or not)."""
    deletion_lock: Mapped[bool]
    filter: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class WorkitemEventRow(Table):
    """An event report that subscribers get; old ones go."""

    __tablename__ = "workitem_event"
    __table_args__ = (Index("workitem_event_by_time", "at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    sop_instance_uid: Mapped[str]
    study_instance_uid: Mapped[str]
    content: Mapped[dict[str, Any]]
    """The event report, as DICOM JSON."""
