"""Questions about the worklist between a receiving process and the one that listens, which has the database."""

from __future__ import annotations

import logging
import threading
from multiprocessing.connection import Connection

from ich_node.receive.priority import yield_to_receiving
from ich_node.receive.received import log_without_values
from ich_node.receive.worklist_find import FindRefused, FindStatus, LookUp, WorklistItem, WorklistQuestion

_LOG = logging.getLogger(__name__)

_ANSWER_SECONDS = 20.0


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
        self._asked = 0

    def look_up(self, question: WorklistQuestion) -> list[WorklistItem]:
        """Ask, and wait for the answer.

        Raises
        ------
        FindRefused
            There is none in time, or the other process refuses.
        """
        with self._turn:
            self._asked += 1
            try:
                self._connection.send((self._asked, question))
                while self._connection.poll(self._answer_seconds):
                    number, found, refusal = self._connection.recv()
                    if number != self._asked:
                        continue  # of a question that nobody waits for any more
                    if refusal is not None:
                        raise FindRefused(*refusal)
                    items: list[WorklistItem] = found
                    return items
            except (OSError, EOFError):
                raise FindRefused(FindStatus.UNABLE_TO_PROCESS, "the worklist cannot be asked") from None
        raise FindRefused(FindStatus.OUT_OF_RESOURCES, "the worklist does not answer in time")


def answer_questions(connection: Connection, look_up: LookUp) -> None:
    """Answer until the other process ends; in a thread of its own, behind those that receive."""
    yield_to_receiving()
    with connection:
        while True:
            try:
                number, question = connection.recv()
                connection.send((number, *_answer(look_up, question)))
            except (OSError, EOFError):
                return


def _answer(
    look_up: LookUp, question: WorklistQuestion
) -> tuple[list[WorklistItem], tuple[FindStatus, str] | None]:
    try:
        return look_up(question), None
    except FindRefused as refusal:
        return [], (refusal.status, refusal.comment)
    except Exception as error:
        log_without_values(_LOG, "the worklist could not be looked up", error)
        return [], (FindStatus.UNABLE_TO_PROCESS, "internal error")
