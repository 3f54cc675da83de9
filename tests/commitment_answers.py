"""What a report of storage commitment leaves open, for the tests of it."""

from __future__ import annotations

from collections.abc import Sequence

from ich_node.receive.commitment_results import CommitmentResult


def not_committed(references: Sequence[tuple[str, str]], result: CommitmentResult) -> dict[str, str]:
    """Say which objects of a request a result does not commit to.

    Parameters
    ----------
    references
        As they were requested: SOP Class UID and SOP Instance UID of each object.
    result
        Of the same transaction.

    Returns
    -------
    dict of str to str
        Why, for a person, by SOP Instance UID; an object that the PACS says nothing of is not committed.
    """
    committed = {(one.sop_class_uid, one.sop_instance_uid) for one in result.report.committed}
    words = {one.reference.sop_instance_uid: one.words for one in result.report.failed}
    return {
        reference[1]: words.get(reference[1], "not in the report")
        for reference in references
        if reference not in committed or reference[1] in words
    }
