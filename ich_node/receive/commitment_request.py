"""What a storage commitment request (N-ACTION, PS3.4 J.3.2) asks for, and what is wrong with one that is refused.

Nothing in a request is trusted, and no value of it is quoted: neither in a log nor in an error comment.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from ich_node.receive.admission import Refusal
from ich_node.receive.commitment_folder import Reference
from ich_node.receive.limits import is_valid_uid

SOP_CLASS_UID = UID("1.2.840.10008.1.20.1")
"""Storage Commitment Push Model SOP Class."""
SOP_INSTANCE_UID = UID("1.2.840.10008.1.20.1.1")
"""Its well-known instance."""
REQUEST_STORAGE_COMMITMENT = 1
"""Action Type ID, PS3.4 table J.3-1."""


class CommitmentStatus(IntEnum):
    """Status codes that N-ACTION is answered with (PS3.7 annex C, PS3.4 J.3.2)."""

    SUCCESS = 0x0000
    """The request is safe on disk; a report will follow."""
    INVALID_ATTRIBUTE_VALUE = 0x0106
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_SOP_INSTANCE = 0x0112
    """The requested instance is not the well-known one."""
    NO_SUCH_SOP_CLASS = 0x0118
    MISSING_ATTRIBUTE = 0x0120
    MISSING_ATTRIBUTE_VALUE = 0x0121
    NO_SUCH_ACTION = 0x0123
    RESOURCE_LIMITATION = 0x0213
    """Too many objects, or too many requests wait to be reported, or the disk is full."""


class CommitmentRefused(Refusal):
    """A request that is answered with a failure status and never reported."""

    status: CommitmentStatus


def read_request(
    information: Dataset | None,
    *,
    action_type: int | None,
    requested_sop_class_uid: str,
    requested_sop_instance_uid: str,
    max_references: int,
) -> tuple[str, tuple[Reference, ...]]:
    """Check a request.

    Parameters
    ----------
    information
        Action Information as parsed; ``None``: there was none.
    action_type
        Action Type ID (0000,1008).
    requested_sop_class_uid, requested_sop_instance_uid
        (0000,0003) and (0000,1001).
    max_references
        Most items of Referenced SOP Sequence.

    Returns
    -------
    tuple of str and tuple of Reference
        Transaction UID (0008,1195), and what Referenced SOP Sequence (0008,1199) names, in its order.

    Raises
    ------
    CommitmentRefused
        With the status that the standard gives for what is wrong.
    """
    if requested_sop_class_uid != SOP_CLASS_UID:
        raise CommitmentRefused(
            CommitmentStatus.NO_SUCH_SOP_CLASS, "not the push model of storage commitment"
        )
    if requested_sop_instance_uid != SOP_INSTANCE_UID:
        raise CommitmentRefused(CommitmentStatus.NO_SUCH_SOP_INSTANCE, "not the well-known SOP instance")
    if action_type != REQUEST_STORAGE_COMMITMENT:
        raise CommitmentRefused(CommitmentStatus.NO_SUCH_ACTION, "the only action type is 1")
    if information is None:
        raise CommitmentRefused(CommitmentStatus.MISSING_ATTRIBUTE, "no Action Information")
    try:
        transaction_uid = uid_of(information, "TransactionUID")
        items = items_of(information, "ReferencedSOPSequence", max_references)
        references = tuple(reference_of(item) for item in items)
    except CommitmentRefused:
        raise
    except Exception:  # pydicom raises whatever the damage leads to
        raise CommitmentRefused(
            CommitmentStatus.PROCESSING_FAILURE, "Action Information cannot be parsed"
        ) from None
    return transaction_uid, references


def items_of(information: Dataset, keyword: str, most: int) -> list[Dataset]:
    """Return the items of a sequence that must have some.

    Raises
    ------
    CommitmentRefused
        It is absent, empty, too long or no sequence.
    """
    tag = Tag(keyword)
    if tag not in information:
        raise CommitmentRefused(CommitmentStatus.MISSING_ATTRIBUTE, f"no {keyword}")
    # No value representation: Implicit VR, not converted yet.
    if information.get_item(tag).VR not in (None, "SQ"):
        raise CommitmentRefused(CommitmentStatus.INVALID_ATTRIBUTE_VALUE, f"{keyword} is no sequence")
    items = list(information[tag].value or ())
    if not items:
        raise CommitmentRefused(CommitmentStatus.MISSING_ATTRIBUTE_VALUE, f"{keyword} is empty")
    if len(items) > most:
        raise CommitmentRefused(CommitmentStatus.RESOURCE_LIMITATION, f"{keyword} has more than {most} items")
    return items


def reference_of(item: Dataset) -> Reference:
    """Read what an item names: SOP Class and Instance UID (0008,1150 and 0008,1155).

    Raises
    ------
    CommitmentRefused
        One of them is absent or not valid.
    """
    return Reference(
        sop_class_uid=uid_of(item, "ReferencedSOPClassUID"),
        sop_instance_uid=uid_of(item, "ReferencedSOPInstanceUID"),
    )


def uid_of(dataset: Dataset, keyword: str) -> str:
    """Read a UID.

    Raises
    ------
    CommitmentRefused
        It is absent or not valid.
    """
    if keyword not in dataset:
        raise CommitmentRefused(CommitmentStatus.MISSING_ATTRIBUTE, f"no {keyword}")
    # The stored bytes: pydicom's conversion warns of a value that breaks the rules, and quotes it.
    value: Any = dataset.get_item(keyword).value
    text = value.decode("latin-1").rstrip("\0 ") if isinstance(value, bytes) else str(value or "")
    if not text:
        raise CommitmentRefused(CommitmentStatus.MISSING_ATTRIBUTE_VALUE, f"{keyword} is empty")
    if not is_valid_uid(text):
        raise CommitmentRefused(CommitmentStatus.INVALID_ATTRIBUTE_VALUE, f"{keyword} is not a valid UID")
    return text
