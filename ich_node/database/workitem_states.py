"""How the state of a workitem may change: PS3.4 tables CC.1.1-2, CC.2.1-2 and CC.2.2-2."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum

from ich_node.errors import IchNodeError


class WorkitemState(StrEnum):
    """Procedure Step State (0074,1000)."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"


class WorkitemStatus(IntEnum):
    """What a request leads to, by the status codes of PS3.4 CC.2."""

    SUCCESS = 0x0000
    ALREADY_CANCELED = 0xB304
    ALREADY_COMPLETED = 0xB306
    MAY_NO_LONGER_BE_UPDATED = 0xC300
    TRANSACTION_UID_INCORRECT = 0xC301
    ALREADY_IN_PROGRESS = 0xC302
    ONLY_SCHEDULED_BY_CREATION = 0xC303
    FINAL_STATE_NOT_MET = 0xC304
    NOT_HERE = 0xC307
    NOT_YET_IN_PROGRESS = 0xC310
    CANNOT_BE_CANCELED_ANY_MORE = 0xC311

    @property
    def is_failure(self) -> bool:
        """Whether nothing changes and the request is refused."""
        return self >> 12 == 0xC


class WorkitemRefused(IchNodeError):
    """A request that a workitem does not allow as it stands.

    Parameters
    ----------
    status
        Why.
    detail
        What is missing, for a person; empty where the status says all.
    """

    def __init__(self, status: WorkitemStatus, detail: str = "") -> None:
        super().__init__(detail or status.name.replace("_", " ").lower())
        self.status = status
        self.detail = detail


_S, _P, _C, _X = WorkitemState
_CHANGES: Mapping[tuple[WorkitemState, WorkitemState], WorkitemStatus] = {
    # from, to: with the Transaction UID that holds the workitem, or any where none does yet
    (_S, _P): WorkitemStatus.SUCCESS,
    (_S, _C): WorkitemStatus.NOT_YET_IN_PROGRESS,
    (_S, _X): WorkitemStatus.NOT_YET_IN_PROGRESS,
    (_P, _P): WorkitemStatus.ALREADY_IN_PROGRESS,
    (_P, _C): WorkitemStatus.SUCCESS,
    (_P, _X): WorkitemStatus.SUCCESS,
    (_C, _P): WorkitemStatus.MAY_NO_LONGER_BE_UPDATED,
    (_C, _C): WorkitemStatus.ALREADY_COMPLETED,
    (_C, _X): WorkitemStatus.MAY_NO_LONGER_BE_UPDATED,
    (_X, _P): WorkitemStatus.MAY_NO_LONGER_BE_UPDATED,
    (_X, _C): WorkitemStatus.MAY_NO_LONGER_BE_UPDATED,
    (_X, _X): WorkitemStatus.ALREADY_CANCELED,
}
_CANCEL_REQUESTS: Mapping[WorkitemState, WorkitemStatus] = {
    _S: WorkitemStatus.SUCCESS,
    _P: WorkitemStatus.SUCCESS,
    _C: WorkitemStatus.CANNOT_BE_CANCELED_ANY_MORE,
    _X: WorkitemStatus.ALREADY_CANCELED,
}


def judge_change(
    state: WorkitemState, requested: WorkitemState, *, holds_lock: bool, final_state_is_met: bool = True
) -> WorkitemStatus:
    """What a request for another state leads to.

    A performer who is late with a claim learns that the workitem is taken, and not that its fresh Transaction UID
    is none that anybody knows.

    Parameters
    ----------
    holds_lock
        Whether the Transaction UID (0008,1195) of the request is the one that the workitem was claimed with.
    final_state_is_met
        Whether the attributes are set that the requested state demands (table CC.2.5-3).
    """
    if requested is WorkitemState.SCHEDULED:
        return WorkitemStatus.ONLY_SCHEDULED_BY_CREATION
    if state is not WorkitemState.SCHEDULED and requested is not WorkitemState.IN_PROGRESS and not holds_lock:
        return WorkitemStatus.TRANSACTION_UID_INCORRECT
    status = _CHANGES[state, requested]
    if status is WorkitemStatus.SUCCESS and not final_state_is_met:
        return WorkitemStatus.FINAL_STATE_NOT_MET
    return status


def judge_cancel_request(state: WorkitemState) -> WorkitemStatus:
    """What a request of somebody else to cancel leads to."""
    return _CANCEL_REQUESTS[state]
