"""Codes in words, as the pages show them."""

from __future__ import annotations

from dataclasses import dataclass

from ich_node.errors import REASON_WORDS
from ich_node.findings import IchSubtype, Priority, StudyState

DISCLAIMER = "AI result, unverified, not for primary diagnosis"

PRIORITY: dict[str, str] = {
    Priority.STAT: "Suspected hemorrhage",
    Priority.HIGH: "Possible hemorrhage",
    Priority.MEDIUM: "Not read: a person must look",
    Priority.ROUTINE: "Read, nothing flagged",
}

STATE: dict[str, str] = {
    StudyState.RECEIVING: "Receiving images",
    StudyState.QUEUED: "Waiting to be read",
    StudyState.READING: "Being read now",
    StudyState.READ: "Read",
    StudyState.NOT_READ: "Not read",
    StudyState.FAILED: "Reading failed",
}

PENDING = (StudyState.RECEIVING, StudyState.QUEUED, StudyState.READING)
"""States that end by themselves."""

SUBTYPE: dict[str, str] = {
    IchSubtype.ANY: "Any hemorrhage",
    IchSubtype.EPIDURAL: "Epidural",
    IchSubtype.INTRAPARENCHYMAL: "Intraparenchymal",
    IchSubtype.INTRAVENTRICULAR: "Intraventricular",
    IchSubtype.SUBARACHNOID: "Subarachnoid",
    IchSubtype.SUBDURAL: "Subdural",
}

DELIVERY: dict[str, str] = {
    "PENDING": "Waiting",
    "SENT": "Taken, not yet confirmed",
    "DELIVERED": "Delivered",
    "DEAD": "Given up: a person must look",
}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a study stands, in words that can never be taken for a negative reading."""

    priority: str
    priority_words: str
    state: str
    state_words: str
    reason_words: str


def standing(priority: str, state: str, reason: str | None) -> Standing:
    """Put priority, state and reason of a study into words."""
    words = PRIORITY.get(priority, priority)
    if priority == Priority.MEDIUM and state in PENDING:
        words = "Not read yet"
    elif priority == Priority.ROUTINE and state != StudyState.READ:
        words = "Not read completely"  # the node raises these to MEDIUM; a page must not depend on it
    return Standing(
        priority=priority,
        priority_words=words,
        state=state,
        state_words=STATE.get(state, words_of(state)),
        reason_words=REASON_WORDS.get(reason, words_of(reason)) if reason else "",
    )


def words_of(code: str) -> str:
    """A code that has no words here, readable all the same."""
    return code.replace("_", " ").lower()
