"""Storage commitment push model, user (PS3.4 annex J): ask a PACS to commit to results that it has stored.

The PACS answers the request at once and reports later, over the same association or over one that it opens to
this node's receiver. Whichever way it comes, the report is in the folder of results before it is answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, evt
from pynetdicom.association import Association
from pynetdicom.status import STORAGE_COMMITMENT_SERVICE_CLASS_STATUS

from ich_node.deliver.call import Call, Destination, Timeouts
from ich_node.deliver.scu import in_words
from ich_node.receive.commitment import is_confirmed
from ich_node.receive.commitment_event import ReportReception
from ich_node.receive.commitment_request import (
    REQUEST_STORAGE_COMMITMENT,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
)
from ich_node.receive.commitment_results import CommitmentResult, CommitmentResults

_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_NOT_OFFERED = frozenset({0x0118, 0x0122, 0x0211})
"""No such SOP class, SOP class not supported, unrecognized operation (PS3.7 annex C): from a PACS that accepts
whatever presentation context is proposed."""
_ANSWER_SECONDS = 5.0
"""For the answer to a report to leave, once the report is safe."""


class CommitmentState(StrEnum):
    """What became of a request."""

    REQUESTED = "REQUESTED"
    """Accepted; the result comes to the receiver."""
    ANSWERED = "ANSWERED"
    """The result came over the same association."""
    NOT_SUPPORTED = "NOT_SUPPORTED"
    """The PACS does not take the SOP class: ask it otherwise whether it has the objects."""
    FAILED = "FAILED"
    """Refused with another status."""
    NO_ANSWER = "NO_ANSWER"
    """It was not reached, or did not answer: worth another attempt. Its result may come all the same."""


@dataclass(frozen=True, kw_only=True)
class CommitmentOutcome:
    """What a PACS said to a request."""

    state: CommitmentState
    detail: str
    """One line for a person; may quote what the PACS wrote, so it is shown and stored but not logged."""
    status: int | None = None
    """Status (0000,0900); ``None`` when the request was not answered."""
    result: CommitmentResult | None = None
    """Where it was answered; it stays in the folder of results until it is removed there."""


def request_commitment(
    references: Sequence[tuple[str, str]],
    transaction_uid: str,
    destination: Destination,
    *,
    results: CommitmentResults,
    calling_ae_title: str = "ICH_NODE",
    timeouts: Timeouts | None = None,
    report_wait_s: float = 1.0,
) -> CommitmentOutcome:
    """Ask a PACS to commit to objects that it has stored.

    Parameters
    ----------
    references
        SOP Class UID and SOP Instance UID of each object.
    transaction_uid
        Transaction UID (0008,1195). A new one for each attempt: a PACS may refuse one that it knows.
    destination
        Whom to ask.
    results
        Where what the PACS reports is kept, also of earlier transactions: it may report these over any
        association.
    calling_ae_title
        Ours; the PACS calls it with its report.
    timeouts
        How long to wait for the association and the answer.
    report_wait_s
        How long to wait for the report over the same association, in seconds. One that comes later comes to
        the receiver.

    Returns
    -------
    CommitmentOutcome
        Whatever goes wrong on the way is in there; nothing is raised for it.

    Raises
    ------
    ValueError
        There is no reference.
    """
    if not references:
        raise ValueError("storage commitment is asked for of one object at least")
    request = _Request(_information(references, transaction_uid), transaction_uid, results, report_wait_s)
    contexts = [build_context(SOP_CLASS_UID, list(_UNCOMPRESSED))]
    with Call(destination, contexts, calling_ae_title, timeouts or Timeouts()) as call:
        if call.failure:
            return CommitmentOutcome(state=CommitmentState.NO_ANSWER, detail=call.failure)
        if not call.accepts(SOP_CLASS_UID, _UNCOMPRESSED):
            return CommitmentOutcome(
                state=CommitmentState.NOT_SUPPORTED,
                detail=f"{destination.name} does not support storage commitment",
            )
        answer = call.request(request.run)
        lost = f"{call.lost}; to report it must know {calling_ae_title} as a storage commitment user"
        return _outcome(answer, request.result, lost)


class _Request:
    """One N-ACTION and the wait for its report."""

    def __init__(
        self, information: Dataset, transaction_uid: str, results: CommitmentResults, report_wait_s: float
    ) -> None:
        self._information = information
        self._transaction_uid = transaction_uid
        self._reception = ReportReception(results, on_result=self._take)
        self._report_wait_s = report_wait_s
        self._changed = threading.Condition()
        self._has_ended = False
        self._serving: list[threading.Thread] = []
        self.result: CommitmentResult | None = None
        """Of this transaction."""

    def run(self, association: Association, message_id: int) -> Dataset:
        """Send the request and wait for its report; the status, empty where it was not answered."""
        association.bind(evt.EVT_N_EVENT_REPORT, self._serve)
        for event in (evt.EVT_RELEASED, evt.EVT_ABORTED, evt.EVT_CONN_CLOSE):
            association.bind(event, self._end)
        try:
            status, _ = association.send_n_action(
                self._information, REQUEST_STORAGE_COMMITMENT, SOP_CLASS_UID, SOP_INSTANCE_UID, message_id
            )
        except (RuntimeError, AttributeError):  # it was lost in this moment; or another service was answered
            status = Dataset()
        if is_confirmed(status.get("Status")):
            self._wait()
        self._let_answers_leave()
        return status

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.result is not None or self._has_ended, self._report_wait_s)

    def _let_answers_leave(self) -> None:
        """Wait for pynetdicom's threads that serve reports: a release would overtake what they answer."""
        end_s = time.monotonic() + _ANSWER_SECONDS
        with self._changed:
            serving = tuple(self._serving)
        for thread in serving:
            thread.join(max(0.0, end_s - time.monotonic()))

    def _serve(self, event: evt.Event) -> tuple[Dataset, None]:
        with self._changed:
            self._serving.append(threading.current_thread())
        return self._reception.handle(event)

    def _take(self, result: CommitmentResult) -> None:
        with self._changed:
            if result.report.transaction_uid == self._transaction_uid:
                self.result = result
            self._changed.notify_all()

    def _end(self, _: evt.Event) -> None:
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


def _information(references: Sequence[tuple[str, str]], transaction_uid: str) -> Dataset:
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = []
    for sop_class_uid, sop_instance_uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = sop_instance_uid
        information.ReferencedSOPSequence.append(item)
    return information


def _outcome(answer: Dataset | None, result: CommitmentResult | None, lost: str) -> CommitmentOutcome:
    status = None if answer is None else int(answer.Status)
    if result is not None:  # it may be quicker than the answer to the request
        return CommitmentOutcome(
            state=CommitmentState.ANSWERED,
            detail=f"{len(result.report.committed)} committed, {len(result.report.failed)} failed",
            status=status,
            result=result,
        )
    if answer is None or status is None:
        return CommitmentOutcome(state=CommitmentState.NO_ANSWER, detail=lost)
    state = CommitmentState.NOT_SUPPORTED if status in _NOT_OFFERED else CommitmentState.FAILED
    if is_confirmed(status):
        state = CommitmentState.REQUESTED
    return CommitmentOutcome(
        state=state, detail=in_words(answer, STORAGE_COMMITMENT_SERVICE_CLASS_STATUS), status=status
    )
