"""Logging in by a password that this node keeps the hash of, at a pace that makes guessing hopeless."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ich_node.database.engine import Database
from ich_node.database.login_failures import add_failure, forget_failures, waiting_time
from ich_node.database.users import User, password_of, rehash_password
from ich_node.web import passwords


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of a login."""

    user: User | None = None
    """Who may come in."""
    known_name: str = ""
    """The name that was typed where there is such a user; nothing else that was typed is kept."""
    known_role: str = ""
    """That this user has."""
    wait_s: int = 0
    """For so long the next attempt is not even looked at."""


class LocalLogin:
    """Checks names and passwords.

    An attempt is written down as a failure before its password is looked at, so that many at once gain nothing.
    A name that is not known takes as long as one that is.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._one_at_a_time = threading.Lock()

    def attempt(self, name: str, password: str, source: str) -> Attempt:
        """Look at a name and a password. Takes about a tenth of a second: call it in a thread."""
        name = name.strip().lower()
        wait = self._begin(name, source)
        if wait > timedelta(0):
            return Attempt(wait_s=math.ceil(wait.total_seconds()))
        with self._database.reading() as session:
            found = password_of(session, name)
        user, password_hash = found or (None, None)
        if not passwords.is_password(password, password_hash) or user is None or user.disabled_at is not None:
            return Attempt(known_name=user.name, known_role=user.role) if user else Attempt()
        assert password_hash is not None
        after = passwords.hash_password(password) if passwords.is_outdated(password_hash) else password_hash
        with self._database.writing() as session:
            forget_failures(session, user_name=name)
            if after != password_hash:
                rehash_password(session, name=name, before=password_hash, after=after)
        return Attempt(user=user, known_name=name, known_role=user.role)

    def _begin(self, name: str, source: str) -> timedelta:
        now = datetime.now(UTC)
        with self._database.reading() as session:
            wait = waiting_time(session, user_name=name, source=source, now=now)
        if wait > timedelta(0):  # a flood of guesses must not take turns with who writes the worklist
            return wait
        with self._one_at_a_time, self._database.writing() as session:
            wait = waiting_time(session, user_name=name, source=source, now=now)
            if wait <= timedelta(0):
                add_failure(session, user_name=name, source=source, now=now)
        return wait
