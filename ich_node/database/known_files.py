"""Which spooled files have a row, asked for in portions."""

from __future__ import annotations

from collections.abc import Callable

from ich_node.database import receipt
from ich_node.database.engine import Database


class KnownFiles:
    """Names of spooled files that have a row: a container that looks them up by their first character.

    Holds a sixteenth of the names at a time and no transaction in between. Ask for names in their order.

    Parameters
    ----------
    stopped
        When it says so, every name is taken for known, so that whoever goes through the spool comes to an end.
    """

    def __init__(self, database: Database, *, stopped: Callable[[], bool] = lambda: False) -> None:
        self._database = database
        self._stopped = stopped
        self._beginning = ""
        self._names: set[str] = set()

    def __contains__(self, file_name: object) -> bool:
        if self._stopped():
            return True
        beginning = str(file_name)[:1]
        if beginning != self._beginning:
            with self._database.reading() as session:
                self._names = receipt.known_file_names(session, beginning=beginning)
            self._beginning = beginning
        return file_name in self._names
