"""UIDs that follow from what an object is, so that making it again makes the same object.

PS3.5 B.2 allows UIDs of the form 2.25.<UUID as a decimal integer>; the UUID is of version 5 (RFC 9562: SHA-1
of a namespace and a name), so two different readings collide no sooner than two random UUIDs do.
"""

from __future__ import annotations

import uuid

from ich_node.report.reading_report import Predecessor, ReadingReport

_NAMESPACE = uuid.UUID("2f1d7f2e-61d0-4f3c-9d05-0d4d0c9cf0a3")
"""Drawn once; changing it would make every retry a new object."""


def derived_uid(*parts: str) -> str:
    """UID under 2.25 that depends on the given parts and their order, and on nothing else."""
    # Length prefixes keep ("a", "bc") and ("ab", "c") apart whatever the parts contain.
    name = "".join(f"{len(part)}:{part}" for part in parts)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def result_uid(report: ReadingReport, role: str) -> str:
    """UID of one result of a reading: from the source series, model name and version, run number and role."""
    algorithm = report.finding.algorithm
    return _run_uid(report, algorithm.name, algorithm.version, report.run_number, role)


def predecessor_uid(report: ReadingReport, earlier: Predecessor, role: str) -> str:
    """UID that the result of the same role had in the reading that a report supersedes."""
    return _run_uid(report, earlier.model_name, earlier.model_version, earlier.run_number, role)


def _run_uid(report: ReadingReport, name: str, version: str, run_number: int, role: str) -> str:
    return derived_uid("result", report.series_instance_uid, name, version, str(run_number), role)


def tracking_uid(report: ReadingReport, what: str) -> str:
    """Tracking Unique Identifier (112040, DCM): the same for one finding of one series in every run of every
    model.
    """
    return derived_uid("tracking", report.series_instance_uid, what)


def device_uid(report: ReadingReport) -> str:
    """Device Observer UID (121012, DCM): one per model, version and weights."""
    algorithm = report.finding.algorithm
    return derived_uid("device", algorithm.name, algorithm.version, algorithm.weights_sha256)
