"""Questions about the worklist between a receiving process and the one that listens, which has the database."""

from __future__ import annotations

import logging
import threading
import time
from multiprocessing.connection import Connection
from typing import TypeAlias

from ich_node.receive.priority import yield_to_receiving
from ich_node.receive.received import log_without_values
from ich_node.receive.worklist_find import FindRefused, FindStatus, LookUp, WorklistItem, WorklistQuestion

_LOG = logging.getLogger(__name__)

_ANSWER_SECONDS = 20.0
_Answer: TypeAlias = tuple[list[WorklistItem], tuple[FindStatus, str] | None]
"""What was found, or status and comment of a refusal."""


class WorklistLine:
    """The end of the line that asks; one question at a time.

    Parameters
    ----------
    connection
        To the process that answers.
    answer_seconds
        A database that takes longer is away.
    """

    def __init__(self, connection: Connection, *, answer_seconds: float = _ANSWER_SECONDS) -> None:
        self._connection = connection
        self._answer_seconds = answer_seconds
        self._turn = threading.Lock()
        self._is_open = False
        """Whether an answer is still to come, of a question that nobody may wait for any more."""

    def look_up(self, question: WorklistQuestion) -> list[WorklistItem]:
        """Ask, and wait for the answer; those who asked before are waited for in the same time.

        Raises
        ------
        FindRefused
            There is none in time, or the other process refuses.
        """
        until = time.monotonic() + self._answer_seconds
        if not self._turn.acquire(timeout=self._answer_seconds):
            raise _too_late()
        try:
            if self._is_open:  # nothing more is asked of a database that hangs
                self._answer(until)
            self._connection.send(question)
            self._is_open = True
            found, refusal = self._answer(until)
        except (OSError, EOFError):
            raise FindRefused(FindStatus.UNABLE_TO_PROCESS, "the worklist cannot be asked") from None
        finally:
            self._turn.release()
        if refusal is not None:
            raise FindRefused(*refusal)
        return found

    def _answer(self, until: float) -> _Answer:
        if not self._connection.poll(max(0.0, until - time.monotonic())):
            raise _too_late()
        answer: _Answer = self._connection.recv()
        self._is_open = False
        return answer


def _too_late() -> FindRefused:
    return FindRefused(FindStatus.OUT_OF_RESOURCES, "the worklist does not answer in time")


def answer_questions(connection: Connection, look_up: LookUp) -> None:
    """Answer until the other process ends; in a thread of its own, behind those that receive."""
    yield_to_receiving()
    with connection:
        while True:
            try:
                connection.send(_answer(look_up, connection.recv()))
            except (OSError, EOFError):
                return


def _answer(look_up: LookUp, question: WorklistQuestion) -> _Answer:
    try:
        return look_up(question), None
    except FindRefused as refusal:
        return [], (refusal.status, refusal.comment)
    except Exception as error:
        log_without_values(_LOG, "the worklist could not be looked up", error)
        return [], (FindStatus.UNABLE_TO_PROCESS, "internal error")
