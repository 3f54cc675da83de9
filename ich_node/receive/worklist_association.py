"""C-FIND over an association: pynetdicom's handler around `ich_node.receive.worklist_find`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, cast

from pydicom.dataset import Dataset
from pynetdicom import evt

from ich_node.receive.limits import plain_address
from ich_node.receive.received import log_without_values
from ich_node.receive.upper_layer import StorageAssociation
from ich_node.receive.worklist_find import FindStatus, LookUp, WorklistProvider, failure

_LOG = logging.getLogger(__name__)

_TURN_SECONDS = 0.1


class WorklistAnswers:
    """Answers the questions of associations. Safe to use from several threads.

    Parameters
    ----------
    look_up
        Finds the items.
    anyone_may_call
        Whether associations are accepted of peers that nobody has listed. Such a peer may bring images, and learns of
        patients only where it runs on this machine.
    turn_seconds
        How long an answer waits for others to be encoded before it is encoded beside them.
    """

    def __init__(
        self, look_up: LookUp, *, anyone_may_call: bool, turn_seconds: float = _TURN_SECONDS
    ) -> None:
        self._provider = WorklistProvider(look_up)
        self._anyone_may_call = anyone_may_call
        self._turn_seconds = turn_seconds
        self._answering = threading.Lock()

    def handle(self, event: evt.Event) -> Iterator[tuple[Any, Dataset | None]]:
        """Answer C-FIND: pynetdicom's handler of ``evt.EVT_C_FIND``."""
        association = cast(StorageAssociation, event.assoc)
        asker = str(association.requestor.ae_title).strip()
        host = str(association.requestor.address)
        if self._anyone_may_call and not ip_address(plain_address(host)).is_loopback:
            _LOG.warning("refused a question about the worklist from %r: it is not among the peers", asker)
            yield failure(FindStatus.NOT_AUTHORIZED, "only [[peers]] may ask for the worklist"), None
            return
        try:
            answers = self._provider.answers(event.identifier, asker=asker, host=host)
            answer = next(answers, None)
            while answer is not None:
                if not association.looks_on():
                    if association.is_established:
                        yield int(FindStatus.CANCELED), None
                    return
                with self._turn():
                    yield answer
                    answer = next(answers, None)
        except Exception as error:  # pydicom raises whatever the damage leads to
            log_without_values(_LOG, "a question about the worklist was not answered", error)
            yield failure(FindStatus.UNABLE_TO_PROCESS, "the identifier cannot be read"), None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Encode one answer at a time: those who ask share what one of them takes, and images get the rest.

        Who is behind somebody that reads nothing goes on without a turn.
        """
        is_ours = self._answering.acquire(timeout=self._turn_seconds)
        try:
            yield
        finally:
            if is_ours:
                self._answering.release()
