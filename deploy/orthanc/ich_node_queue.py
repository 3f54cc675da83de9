"""What is still to be done, in a file: neither a restart of Orthanc nor a node that is away for days loses it."""

import sqlite3
import threading
from collections import namedtuple

_SCHEMA = """
CREATE TABLE IF NOT EXISTS mark (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS image (
    instance TEXT PRIMARY KEY, series TEXT NOT NULL, study TEXT NOT NULL,
    found_at REAL NOT NULL, due_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS question (
    study TEXT PRIMARY KEY, since REAL NOT NULL, due_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS request (
    study TEXT PRIMARY KEY, since REAL NOT NULL, due_at REAL NOT NULL);
"""
_CHANGES = "changes"

QUIET_SECONDS = 0.7
"""A series of which nothing has come for so long is sent."""
FULL_SECONDS = 3.0
"""One of which something waits for so long is sent too, and the rest follows."""
BACKOFF_SECONDS = (5, 15, 60, 300, 900)
GIVE_UP_ATTEMPTS = 50
"""Refusals of one image by a node that answers: about half a day."""

Batch = namedtuple("Batch", "series study instances")


class Queue:
    """Images to send, studies to ask about, and requests to read again; may be used by several threads."""

    def __init__(self, path):
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.executescript(_SCHEMA)

    def close(self):
        """End; what is in the file stays."""
        with self._lock:
            self._connection.close()

    def last_change(self):
        """Number of the last of Orthanc's changes that was looked at; `None` when there was none yet."""
        return self._value("SELECT value FROM mark WHERE name = ?", _CHANGES)

    def take(self, images, last_change, now):
        """Remember images, as (instance, series, study), and in the same breath how far the changes were read."""
        with self._lock, self._connection:
            self._connection.executemany(
                "INSERT INTO image (instance, series, study, found_at, due_at) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (instance) DO UPDATE SET due_at = excluded.due_at, attempts = 0",
                [(*image, now, now) for image in images],
            )
            if last_change is not None:
                self._connection.execute("INSERT OR REPLACE INTO mark VALUES (?, ?)", (_CHANGES, last_change))

    def due(self, now, busy):
        """What may be sent now, by series; alone what was refused before, so that one image holds up no other."""
        rows = self._rows(
            "SELECT series, study, instance, attempts, found_at FROM image WHERE due_at <= ? "
            "ORDER BY found_at, instance LIMIT 5000",
            now,
        )
        by_series = {}
        for series, study, instance, attempts, found_at in rows:
            if series not in busy:
                by_series.setdefault((series, study), []).append((instance, attempts, found_at))
        batches = []
        for (series, study), images in by_series.items():
            found = [found_at for _, _, found_at in images]
            if now - max(found) < QUIET_SECONDS and now - min(found) < FULL_SECONDS:
                continue
            fresh = [instance for instance, attempts, _ in images if attempts == 0]
            batches.append(Batch(series, study, tuple(fresh or [images[0][0]])))
        return batches

    def sent(self, batch):
        """The node has these images."""
        self._forget(batch.instances)

    def gone(self, instance):
        """Orthanc has it no longer."""
        self._forget((instance,))

    def refused(self, batch, now):
        """The node answers, and did not take these; those that are given up are counted in the answer."""
        with self._lock, self._connection:
            for instance in batch.instances:
                row = self._connection.execute(
                    "SELECT attempts FROM image WHERE instance = ?", (instance,)
                ).fetchone()
                attempts = row[0] if row else 0
                wait = BACKOFF_SECONDS[min(attempts, len(BACKOFF_SECONDS) - 1)]
                self._connection.execute(
                    "UPDATE image SET attempts = attempts + 1, due_at = ? WHERE instance = ?",
                    (now + (wait if len(batch.instances) == 1 else 0), instance),
                )
            given_up = self._connection.execute("DELETE FROM image WHERE attempts > ?", (GIVE_UP_ATTEMPTS,))
            return given_up.rowcount

    def waiting(self):
        """How many images wait, and since when the oldest does."""
        return self._rows("SELECT count(*), min(found_at) FROM image")[0]

    def waits_for(self, study):
        """Whether an image of the study is still to be sent."""
        return self._value("SELECT 1 FROM image WHERE study = ? LIMIT 1", study) is not None

    def ask(self, study, now):
        """Have the node asked how a study stands, until it comes to an end."""
        self._put("question", study, now)

    def questions(self, now):
        """(study, since when) to ask about now."""
        return self._rows("SELECT study, since FROM question WHERE due_at <= ? ORDER BY due_at LIMIT 20", now)

    def request(self, study, now):
        """Have a study read again once its images are sent."""
        self._put("request", study, now)

    def requests(self, now):
        """(study, since when) to have read again now."""
        return self._rows("SELECT study, since FROM request WHERE due_at <= ? ORDER BY due_at LIMIT 20", now)

    def later(self, table, study, due_at):
        """Try a question or a request again then."""
        self._do(f"UPDATE {table} SET due_at = ? WHERE study = ?", due_at, study)

    def done(self, table, study):
        """A question or a request has come to its end."""
        self._do(f"DELETE FROM {table} WHERE study = ?", study)

    def _forget(self, instances):
        with self._lock, self._connection:
            self._connection.executemany(
                "DELETE FROM image WHERE instance = ?", [(instance,) for instance in instances]
            )

    def _put(self, table, study, now):
        self._do(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", study, now, now)

    def _do(self, statement, *values):
        with self._lock, self._connection:
            self._connection.execute(statement, values)

    def _rows(self, query, *values):
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def _value(self, query, *values):
        rows = self._rows(query, *values)
        return rows[0][0] if rows else None
