"""Storage commitment over the association that a request comes by: N-ACTION in, N-EVENT-REPORT out.

Who runs associations calls

- `CommitmentProvider.handle_n_action` as pynetdicom's handler of ``evt.EVT_N_ACTION``,
- `CommitmentProvider.report_due` when the answer to a request has been sent,
- `CommitmentProvider.answered` for every N-EVENT-REPORT response that arrives,
- `CommitmentProvider.association_ended` at its end, however it ends.

None of them waits for the peer, so an association goes on receiving objects, or is released, while a report
is not answered. What is not answered goes to `ich_node.receive.commitment_reports.CommitmentReporter`, which
calls the peer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import cast
from weakref import WeakKeyDictionary

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION

from ich_node.receive.commitment import CommitmentDesk, is_confirmed
from ich_node.receive.commitment_folder import PendingCommitment
from ich_node.receive.commitment_request import CommitmentRefused, CommitmentStatus
from ich_node.receive.received import log_without_values

_LOG = logging.getLogger(__name__)

_MAX_INFORMATION_BYTES = 2 * 2**20
"""Action Information with ten thousand references of the longest UIDs has 1.6 MB."""
_ITEM_TAG = b"\xfe\xff\x00\xe0"


@dataclass(kw_only=True)
class _Line:
    """An association over which requests came, until it ends."""

    context_id: int
    transfer_syntax: UID
    due: deque[PendingCommitment] = field(default_factory=deque)
    """Claimed for this association: one at most, as each claim keeps a file open."""
    behind: deque[str] = field(default_factory=deque)
    """File names of what came after it. Nobody has claimed these, so the reporter may be quicker."""
    asked: PendingCommitment | None = None
    """Its report has been sent and is not answered; one at a time, as without an asynchronous window."""
    is_ours: bool = False
    """``asked`` is still claimed for this association; ``False``: it took too long."""
    message_id: int = 0
    waits_since_s: float
    is_silent: bool = False
    """It did not answer in time, so nothing more is reported over it."""


class CommitmentProvider:
    """Answers requests and reports over the same association. Safe to use from several threads.

    Parameters
    ----------
    desk
        Takes requests and knows what to report.
    answer_seconds
        Wait for the answer to a report; after that the peer is called.
    """

    def __init__(self, desk: CommitmentDesk, *, answer_seconds: float = 10.0) -> None:
        self.desk = desk
        self._answer_seconds = answer_seconds
        self._lines: WeakKeyDictionary[Association, _Line] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def handle_n_action(self, event: evt.Event) -> tuple[Dataset, None]:
        """Answer N-ACTION: pynetdicom's handler of ``evt.EVT_N_ACTION``."""
        answer = Dataset()
        answer.Status = int(CommitmentStatus.SUCCESS)
        try:
            pending = self._accept(event)
        except CommitmentRefused as refusal:
            caller = str(event.assoc.requestor.ae_title).strip()
            _LOG.warning("refused a storage commitment request from %r: %s", caller, refusal)
            answer.Status, answer.ErrorComment = int(refusal.status), refusal.comment
            return answer, None
        except Exception as error:
            log_without_values(_LOG, "a storage commitment request was not taken", error)
            answer.Status = int(CommitmentStatus.PROCESSING_FAILURE)
            return answer, None
        if pending.claimed:
            self._line_up(event, pending)
        return answer, None

    def report_due(self, association: Association) -> bool:
        """Send the next report that is due over an association, unless one is not answered yet.

        To be called in the association's thread when the answer to an N-ACTION request has been sent. Cheap
        where nothing is due.

        Returns
        -------
        bool
            Whether a report was sent; `answered` takes its answer.
        """
        with self._lock:
            line = self._lines.get(association)
            if line is None or line.asked is not None or _is_leaving(association):
                return False  # where it is leaving, `association_ended` postpones what is due
            pending = self._next(line)
            if pending is None:
                return False
            line.asked, line.is_ours = pending, True
            line.message_id = line.message_id % 0xFFFF + 1
            line.waits_since_s = self.desk.clock()
        try:
            request = self.desk.event_report(pending, line.message_id, line.transfer_syntax)
            association.dimse.send_msg(request, line.context_id)
        except Exception as error:
            log_without_values(_LOG, "a storage commitment report was not sent", error)
            self._drop(line)
            return False
        return True

    def answered(self, association: Association, message_id: int | None, status: int | None) -> bool:
        """Take the answer to a report, and send the next one that is due.

        Parameters
        ----------
        association
            Over which it came.
        message_id
            Message ID Being Responded To (0000,0120).
        status
            Status (0000,0900).

        Returns
        -------
        bool
            Whether the peer has confirmed the report. If not, it will be called.
        """
        with self._lock:
            line = self._lines.get(association)
            if line is None or line.asked is None or line.message_id != message_id:
                return False
            pending, line.asked = line.asked, None
            in_time, line.is_ours = line.is_ours, False
        confirmed = is_confirmed(status)
        # One that was answered late is in the reporter's hands, or the reporter has it at work now.
        if confirmed and (in_time or self.desk.folder.claim(pending.file_name) is not None):
            self.desk.reported(pending)
        elif not confirmed and in_time:
            self.desk.postpone(pending)
        self.report_due(association)
        return confirmed

    def association_ended(self, association: Association) -> None:
        """Leave what was not reported over an association to the reporter. Cheap where nothing was due."""
        with self._lock:
            line = self._lines.pop(association, None)
        if line is not None:
            self._drop(line)

    def drop_silent_lines(self) -> None:
        """Leave to the reporter what associations were asked and did not answer in time."""
        deadline_s = self.desk.clock() - self._answer_seconds
        with self._lock:
            waiting = [line for line in self._lines.values() if line.due or line.is_ours]
        for line in waiting:
            if line.waits_since_s <= deadline_s:
                self._drop(line)

    def _accept(self, event: evt.Event) -> PendingCommitment:
        request = cast(N_ACTION, event.request)
        requestor = event.assoc.requestor
        return self.desk.accept(
            self._information(event, request),
            action_type=request.ActionTypeID,
            requested_sop_class_uid=str(request.RequestedSOPClassUID),
            requested_sop_instance_uid=str(request.RequestedSOPInstanceUID),
            calling_ae_title=str(requestor.ae_title).strip(),
            host=str(requestor.address),
        )

    def _information(self, event: evt.Event, request: N_ACTION) -> Dataset | None:
        encoded = request.ActionInformation.getvalue() if request.ActionInformation else b""
        # Counted before they are parsed; twice as many, because references may hold sequences themselves.
        too_many = encoded.count(_ITEM_TAG) > 2 * self.desk.folder.limits.max_references
        if len(encoded) > _MAX_INFORMATION_BYTES or too_many:
            raise CommitmentRefused(CommitmentStatus.RESOURCE_LIMITATION, "too many objects in one request")
        try:
            return event.action_information if encoded else None
        except Exception:  # pydicom raises whatever the damage leads to
            raise CommitmentRefused(
                CommitmentStatus.PROCESSING_FAILURE, "Action Information cannot be parsed"
            ) from None

    def _line_up(self, event: evt.Event, pending: PendingCommitment) -> None:
        now_s = self.desk.clock()
        with self._lock:
            line = self._lines.get(event.assoc)
            if line is None:
                line = self._lines[event.assoc] = _Line(
                    context_id=event.context.context_id,
                    transfer_syntax=UID(event.context.transfer_syntax),
                    waits_since_s=now_s,
                )
            if line.due or line.behind:
                line.behind.append(pending.file_name)
                self.desk.folder.release(pending.file_name)
                return
            if not line.is_silent:
                if line.asked is None:
                    line.waits_since_s = now_s
                line.due.append(pending)
                return
        self.desk.postpone(pending)

    def _next(self, line: _Line) -> PendingCommitment | None:
        pending = line.due.popleft() if line.due else None
        while pending is None and line.behind:
            pending = self.desk.folder.claim(line.behind.popleft())
        return pending

    def _drop(self, line: _Line) -> None:
        with self._lock:
            line.is_silent = True
            dropped = list(line.due)
            if line.asked is not None and line.is_ours:
                dropped.insert(0, line.asked)
            line.due.clear()
            line.behind.clear()
            line.is_ours = False
        for pending in dropped:
            self.desk.postpone(pending)


def _is_leaving(association: Association) -> bool:
    # What the peer has sent and is not handled yet can only be A-RELEASE or A-ABORT.
    return not association.is_established or association.dul.peek_next_pdu() is not None
