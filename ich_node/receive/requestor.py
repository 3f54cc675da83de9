"""Associations that this node requests, with two races of pynetdicom 3.0.4 taken out.

Upstream runs the state machine in one thread and its reactor, which takes what the peer sends unasked, in
another, beside the caller's. The classes here change where they meet; each override says what it replaces,
and ``tests/unit/test_receive_requestor.py`` holds them to that version.
"""

from __future__ import annotations

import threading
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import AssociationSocket

_REJECTED = (0x01, 0x02)
"""Results of an A-ASSOCIATE response: for good, for now (PS3.8 table 9-21)."""


class RequestingEntity(AE):
    """An application entity that requests associations."""

    def associate(self, *args: Any, **kwargs: Any) -> Association:
        """Request an association, as upstream does, and notice a rejection however fast it came.

        Upstream looks whether the connection stands after it has been told that it does. When the peer
        has rejected and the connection has been closed in between, it takes the rejection for a
        connection that failed.
        """
        association = super().associate(*args, **kwargs)
        if not association.is_established and not association.is_rejected:
            answer = association.dul.receive_pdu(wait=False)
            if isinstance(answer, A_ASSOCIATE) and answer.result in _REJECTED:
                association.acceptor.primitive = answer
                association.is_rejected, association.is_aborted = True, False
        return association

    def _create_socket(self, assoc: Association, *args: Any) -> AssociationSocket:
        """Make the socket: the last call before the association's threads start.

        Upstream's `associate` makes the association of its own class and offers no other place to change.
        """
        assoc._reactor_checkpoint = _Checkpoint()
        assoc.__class__ = RequestedAssociation
        return super()._create_socket(assoc, *args)


class RequestedAssociation(Association):
    """An association whose reactor has stopped when it says so.

    A thread that sends a request stops the reactor, waits until it has stopped, and takes the answer itself.
    Upstream's reactor says that it has stopped before it has, and while it serves a request: then it may take
    the answer, and drops it; the sender waits for its timeout, and aborts. And the thread that serves an
    N-EVENT-REPORT says that the reactor goes on when it does not: then the sender waits for ever.
    """

    _reactor_checkpoint: _Checkpoint

    @property
    def _is_paused(self) -> bool:
        """Whether the reactor takes nothing: what every sender of a request waits for."""
        return (
            self._reactor_checkpoint.is_reached
            # A request's handler, in the reactor's own thread: an association is that thread.
            or threading.current_thread() is self
            or not self.is_alive()
            # Let go meanwhile: aborted, or another thread has its answer.
            or self._reactor_checkpoint.is_set()
        )

    @_is_paused.setter
    def _is_paused(self, _: bool) -> None:
        """Upstream's word for it is not taken."""


class _Checkpoint(threading.Event):
    """Where the reactor stops, on each of its rounds, while it is not set."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()
        self._is_here = False
        self.set()

    @property
    def is_reached(self) -> bool:
        """Whether the reactor waits here, and will until it is set."""
        with self._turn:
            return self._is_here and not self.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until set, as an event does, and say so while it lasts."""
        while True:
            with self._turn:
                self._is_here = True
            super().wait(timeout)
            with self._turn:
                self._is_here = False
                # If not: cleared again before this thread came to run, and a sender may have seen it here.
                if self.is_set() or timeout is not None:
                    return self.is_set()
