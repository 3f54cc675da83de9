"""What is told of one study at one time."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ich_node.findings import IchSubtype, Priority, StudyState

SCHEMA = "ich-node/notice"
SCHEMA_VERSION = 1
"""Raised when a key is removed or changes its meaning; a new key is no new version."""
_NOTICE_ID = re.compile(r"(?=.{1,64}\Z)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
"""What may stand in an HTTP header, before the @ of a Message-ID and in a file name alike."""
_TOLD = (StudyState.READ, StudyState.NOT_READ, StudyState.FAILED)


class Disclosure(StrEnum):
    """How much a notice says of whose study it is."""

    PSEUDONYM = "pseudonym"
    """A keyed hash of the Study Instance UID: this node can tell the study, nobody else can."""
    STUDY = "study"
    """The Study Instance UID and those of the report, which a PACS can look up."""
    PATIENT = "patient"
    """Accession number, patient ID and patient name too."""


@dataclass(frozen=True, kw_only=True)
class PatientIdentity:
    """Identifying attributes of a study. Told only where the site allows it; never logged, not in ``repr``."""

    accession_number: str = field(default="", repr=False)
    """(0008,0050)."""
    patient_id: str = field(default="", repr=False)
    """(0010,0020)."""
    patient_name: str = field(default="", repr=False)
    """(0010,0010) as stored, with the PN component separators (``Family^Given``)."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """How a study stands at one time.

    Raises
    ------
    ValueError
        It names its study not at all or twice, a time has no time zone, the id has characters that do not travel,
        or it would make a study that was not read look like one.
    """

    notice_id: str
    """The same for each attempt to tell the same: receivers may know a repetition by it. 1 to 64 letters, digits,
    ``_``, ``-`` and single dots; a UID of `ich_node.report.uids.derived_uid` is one."""
    study_instance_uid: str = ""
    """(0020,000D); empty where ``pseudonym`` stands for it."""
    pseudonym: str = ""
    identity: PatientIdentity | None = None
    """``None`` where identifying data are not allowed."""
    priority: Priority
    state: StudyState
    """``READ``, ``NOT_READ`` or ``FAILED``."""
    happened_at: datetime
    """Since when this is so, with time zone. Stands for the time of each message, so that all attempts are equal."""
    received_at: datetime
    """When the study's first image came, with time zone."""
    read_at: datetime | None = None
    """When the model finished, with time zone."""
    suspicion: float | None = None
    """0 to 1; ``None`` where the study was not read."""
    subtypes: tuple[IchSubtype, ...] = ()
    """Those flagged, without ``ANY``."""
    model_name: str = ""
    model_version: str = ""
    reason: str = ""
    """Why it was not read: a code of `ich_node.errors.RejectionReason`; empty where it was."""
    reason_detail: str = ""
    """The same as one sentence, without identifying values."""
    report_sop_instance_uids: tuple[str, ...] = ()
    """SOP Instance UIDs (0008,0018) of the result objects."""
    disclaimer: str
    """What has to stand beside every result."""

    def __post_init__(self) -> None:
        if not _NOTICE_ID.fullmatch(self.notice_id):
            raise ValueError("notice_id has characters that do not travel, or is too long")
        if bool(self.study_instance_uid) == bool(self.pseudonym):
            raise ValueError("a notice names its study by Study Instance UID or by pseudonym")
        times = (self.happened_at, self.received_at, self.read_at)
        if any(time is not None and time.tzinfo is None for time in times):
            raise ValueError("the times of a notice need a time zone")
        if self.state not in _TOLD:
            raise ValueError(f"nothing is told of a study in state {self.state}")
        if self.state is StudyState.READ:
            self._check_read()
        elif self.priority is Priority.ROUTINE or self.suspicion is not None or self.subtypes:
            raise ValueError("a study that was not read must not look as if it was")

    def _check_read(self) -> None:
        if self.suspicion is None or not (math.isfinite(self.suspicion) and 0 <= self.suspicion <= 1):
            raise ValueError("a study that was read has a suspicion of 0 to 1")
        if not self.model_name or self.read_at is None:
            raise ValueError("a study that was read was read by a model at a time")

    @property
    def is_read(self) -> bool:
        """Whether the study was read."""
        return self.state is StudyState.READ

    def disclosing(self, disclosure: Disclosure, *, key: bytes) -> Notice:
        """Return the notice with no more of the identity than a receiver may have.

        Parameters
        ----------
        disclosure
            What the receiver may have.
        key
            A secret of this installation; who has it can tell whether a Study Instance UID belongs to a pseudonym.
        """
        if disclosure is Disclosure.PATIENT:
            return self
        if disclosure is Disclosure.STUDY:
            return replace(self, identity=None)
        pseudonym = self.pseudonym or pseudonym_of(self.study_instance_uid, key)
        return replace(
            self, identity=None, study_instance_uid="", pseudonym=pseudonym, report_sop_instance_uids=()
        )

    def as_json(self) -> str:
        """Write the notice as canonical JSON: ASCII, keys in order, no blanks; equal notices are equal bytes.

        Returns
        -------
        str
            One object with the keys ``schema`` ("ich-node/notice"), ``schema_version`` (1), ``notice_id``,
            ``study_instance_uid`` or null, ``pseudonym`` or null, ``identity`` (null, or ``accession_number``,
            ``patient_id``, ``patient_name``), ``priority`` (STAT, HIGH, MEDIUM, ROUTINE), ``state`` (READ, NOT_READ,
            FAILED), ``happened_at``, ``received_at``, ``read_at`` or null (ISO 8601 in UTC), ``suspicion`` (0 to 1 or
            null), ``subtypes`` (epidural, intraparenchymal, intraventricular, subarachnoid, subdural), ``model_name``
            and ``model_version`` or null, ``reason`` and ``reason_detail`` or null, ``report_sop_instance_uids``
            and ``disclaimer``.
        """
        content: dict[str, Any] = {key: _plain(value) for key, value in asdict(self).items()}
        content["identity"] = asdict(self.identity) if self.identity else None
        content |= {"schema": SCHEMA, "schema_version": SCHEMA_VERSION}
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def notice_from_json(text: str) -> Notice:
    """Read what `Notice.as_json` wrote; keys that came later are passed over.

    Raises
    ------
    ValueError
        It is not a notice of this version of the schema.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError("not a notice")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"a notice of schema version {content.get('schema_version')}, not {SCHEMA_VERSION}")
    try:
        return _notice(content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a notice that lacks something: {error}") from error


def _notice(content: dict[str, Any]) -> Notice:
    identity, read_at = content["identity"], content["read_at"]
    return Notice(
        notice_id=content["notice_id"],
        study_instance_uid=content["study_instance_uid"] or "",
        pseudonym=content["pseudonym"] or "",
        identity=PatientIdentity(**identity) if identity else None,
        priority=Priority(content["priority"]),
        state=StudyState(content["state"]),
        happened_at=datetime.fromisoformat(content["happened_at"]),
        received_at=datetime.fromisoformat(content["received_at"]),
        read_at=datetime.fromisoformat(read_at) if read_at else None,
        suspicion=content["suspicion"],
        subtypes=tuple(IchSubtype(subtype) for subtype in content["subtypes"]),
        model_name=content["model_name"] or "",
        model_version=content["model_version"] or "",
        reason=content["reason"] or "",
        reason_detail=content["reason_detail"] or "",
        report_sop_instance_uids=tuple(content["report_sop_instance_uids"]),
        disclaimer=content["disclaimer"],
    )


def pseudonym_of(study_instance_uid: str, key: bytes) -> str:
    """Return 32 hexadecimal digits that stand for a study: HMAC-SHA-256 of its UID, cut to 128 bits."""
    if not key:
        raise ValueError("a pseudonym needs a key: without one everybody could make it")
    return hmac.new(key, study_instance_uid.encode(), hashlib.sha256).hexdigest()[:32]


def utc_text(time: datetime) -> str:
    """Write a time as ISO 8601 in UTC, always with microseconds."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return utc_text(value)
    if isinstance(value, tuple):
        return list(value)
    return None if value == "" else value
