"""What the jobs need of this installation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from ich_node.database.engine import Database
from ich_node.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Node:
    """An installation: its settings and its database."""

    settings: Settings
    database: Database

    @property
    def destination_names(self) -> tuple[str, ...]:
        """The PACS that results go to, and whoever is told."""
        return tuple(each.name for each in (*self.settings.pacs, *self.settings.notified))


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
