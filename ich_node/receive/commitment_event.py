"""Takes reports of storage commitment (N-EVENT-REPORT, PS3.4 J.3.3) of what this node has asked a PACS for.

They come over the association of the request or over one that the PACS opens. Either way a report is
answered with success when it is safe on disk. Nothing in it is trusted, and no value of it is quoted: neither
in a log nor in an error comment.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT

from ich_node.receive.admission import Refusal
from ich_node.receive.commitment_folder import FolderFull, Reference
from ich_node.receive.commitment_request import (
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    CommitmentRefused,
    CommitmentStatus,
    items_of,
    reference_of,
    uid_of,
)
from ich_node.receive.commitment_results import (
    CommitmentReport,
    CommitmentResult,
    CommitmentResults,
    FailedReference,
)
from ich_node.receive.received import log_without_values

_LOG = logging.getLogger(__name__)

_EVENT_TYPES = frozenset({1, 2})
"""All committed, failures exist: PS3.4 table J.3-2. What is true is what the sequences say."""
_MAX_INFORMATION_BYTES = 4 * 2**20
"""Event Information with ten thousand references has 1.6 MB, twice that with where to retrieve each."""
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class EventStatus(IntEnum):
    """Status codes that N-EVENT-REPORT is answered with (PS3.7 10.1.1.1.8 and annex C)."""

    SUCCESS = 0x0000
    """The report is safe on disk."""
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_SOP_INSTANCE = 0x0112
    """The affected instance is not the well-known one."""
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT_VALUE = 0x0115
    NO_SUCH_SOP_CLASS = 0x0118
    RESOURCE_LIMITATION = 0x0213
    """Too many objects, or too many reports wait to be dealt with, or the disk is full."""


class ReportRefused(Refusal):
    """A report that is answered with a failure status and not kept."""

    status: EventStatus


class ReportReception:
    """Answers reports, over whatever association they come.

    Parameters
    ----------
    results
        Where they are kept.
    on_result
        Called for each that is kept, before it is answered, in the thread that serves it.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self,
        results: CommitmentResults,
        *,
        on_result: Callable[[CommitmentResult], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._results = results
        self._on_result = on_result
        self._clock = clock

    def handle(self, event: evt.Event) -> tuple[Dataset, None]:
        """Answer N-EVENT-REPORT: pynetdicom's handler of ``evt.EVT_N_EVENT_REPORT``."""
        association = event.assoc
        peer = association.requestor if association.is_acceptor else association.acceptor
        answer = Dataset()
        answer.Status = int(EventStatus.SUCCESS)
        try:
            result = self._keep(event, str(peer.ae_title).strip(), str(peer.address))
            _LOG.info("storage commitment: %r has reported, kept as %s", peer.ae_title, result.file_name)
            self._on_result(result)
        except ReportRefused as refusal:
            _LOG.warning("refused a storage commitment report of %r: %s", peer.ae_title, refusal)
            answer.Status, answer.ErrorComment = int(refusal.status), refusal.comment
        except Exception as error:
            log_without_values(_LOG, "a storage commitment report was not taken", error)
            answer.Status = int(EventStatus.PROCESSING_FAILURE)
        return answer, None

    def _keep(self, event: evt.Event, ae_title: str, host: str) -> CommitmentResult:
        request = cast(N_EVENT_REPORT, event.request)
        report = read_report(
            self._information(event, request),
            event_type=request.EventTypeID,
            affected_sop_class_uid=str(event.context.abstract_syntax),
            affected_sop_instance_uid=str(request.AffectedSOPInstanceUID),
            max_references=self._results.limits.max_references,
        )
        try:
            received_at = datetime.fromtimestamp(self._clock(), UTC)
            return self._results.add(report, calling_ae_title=ae_title, host=host, received_at=received_at)
        except FolderFull as error:
            raise ReportRefused(EventStatus.RESOURCE_LIMITATION, str(error)) from None
        except OSError as error:
            _LOG.error("a storage commitment report could not be written: %s", error.strerror)
            full = error.errno in _NO_ROOM
            status = EventStatus.RESOURCE_LIMITATION if full else EventStatus.PROCESSING_FAILURE
            raise ReportRefused(status, f"cannot write: {error.strerror}") from None

    def _information(self, event: evt.Event, request: N_EVENT_REPORT) -> Dataset:
        encoded = request.EventInformation.getvalue() if request.EventInformation else b""
        # Counted before they are parsed; twice as many, because references may hold sequences themselves.
        too_many = encoded.count(_ITEM_TAG) > 2 * self._results.limits.max_references
        if len(encoded) > _MAX_INFORMATION_BYTES or too_many:
            raise ReportRefused(EventStatus.RESOURCE_LIMITATION, "too many objects in one report")
        try:
            return event.event_information if encoded else Dataset()
        except Exception:  # pydicom raises whatever the damage leads to
            raise ReportRefused(
                EventStatus.PROCESSING_FAILURE, "Event Information cannot be parsed"
            ) from None


def read_report(
    information: Dataset,
    *,
    event_type: int | None,
    affected_sop_class_uid: str,
    affected_sop_instance_uid: str,
    max_references: int,
) -> CommitmentReport:
    """Check a report.

    What it calls committed and failed at once has failed.

    Parameters
    ----------
    information
        Event Information as parsed.
    event_type
        Event Type ID (0000,1002).
    affected_sop_class_uid, affected_sop_instance_uid
        (0000,0002), or the abstract syntax that it came over, and (0000,1000).
    max_references
        Most items of both sequences together.

    Raises
    ------
    ReportRefused
        With the status that the standard gives for what is wrong.
    """
    if affected_sop_class_uid != SOP_CLASS_UID:
        raise ReportRefused(EventStatus.NO_SUCH_SOP_CLASS, "not the push model of storage commitment")
    if affected_sop_instance_uid != SOP_INSTANCE_UID:
        raise ReportRefused(EventStatus.NO_SUCH_SOP_INSTANCE, "not the well-known SOP instance")
    if event_type not in _EVENT_TYPES:
        raise ReportRefused(EventStatus.NO_SUCH_EVENT_TYPE, "the event types are 1 and 2")
    try:
        return _read_information(information, max_references)
    except (ReportRefused, CommitmentRefused) as refusal:
        is_limit = refusal.status in (CommitmentStatus.RESOURCE_LIMITATION, EventStatus.RESOURCE_LIMITATION)
        status = EventStatus.RESOURCE_LIMITATION if is_limit else EventStatus.INVALID_ARGUMENT_VALUE
        raise ReportRefused(status, refusal.comment) from None
    except Exception:  # pydicom raises whatever the damage leads to
        raise ReportRefused(EventStatus.PROCESSING_FAILURE, "Event Information cannot be parsed") from None


def _read_information(information: Dataset, max_references: int) -> CommitmentReport:
    transaction_uid = uid_of(information, "TransactionUID")
    failed: dict[Reference, FailedReference] = {}
    for item in _items(information, "FailedSOPSequence", max_references):
        reference = reference_of(item)
        failed[reference] = FailedReference(reference=reference, failure_reason=_reason(item))
    items = _items(information, "ReferencedSOPSequence", max_references - len(failed))
    committed = dict.fromkeys(map(reference_of, items))
    if not committed and not failed:
        raise ReportRefused(EventStatus.INVALID_ARGUMENT_VALUE, "no object is named")
    return CommitmentReport(
        transaction_uid=transaction_uid,
        committed=tuple(one for one in committed if one not in failed),
        failed=tuple(failed.values()),
    )


def _items(information: Dataset, keyword: str, most: int) -> list[Dataset]:
    """Return the items of a sequence that may be absent or empty: some send both whatever the event type."""
    try:
        return items_of(information, keyword, most)
    except CommitmentRefused as refusal:
        if refusal.status in (CommitmentStatus.MISSING_ATTRIBUTE, CommitmentStatus.MISSING_ATTRIBUTE_VALUE):
            return []
        raise


def _reason(item: Dataset) -> int | None:
    value: Any = item.get("FailureReason")
    return value if isinstance(value, int) else None
