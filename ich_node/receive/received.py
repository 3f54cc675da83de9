"""What the receiver hands on, and how to hand it on again from the spool alone."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Container
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydicom.filereader import read_file_meta_info

from ich_node.errors import StudyRejected
from ich_node.receive.header import read_header
from ich_node.receive.spool import Spool, SpooledObject
from ich_node.study import Instance, StudyHeader

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReceivedInstance:
    """One object that is safe in the spool."""

    spooled: SpooledObject
    instance: Instance
    study: StudyHeader
    """Identifying: never logged."""
    source_ae_title: str
    """Calling AE title of the sender."""
    received_at: datetime
    """UTC, with its time zone."""
    association_id: str = ""
    """Of the association that brought it, the same in its summary; empty: read back from the spool."""


@dataclass(frozen=True, kw_only=True)
class AssociationSummary:
    """What one association brought. Given also for one that brought nothing."""

    association_id: str = ""
    """Unique while the node runs."""
    calling_ae_title: str
    peer_host: str
    released: bool
    """The peer said that it was done; ``False``: it aborted, vanished or was cut off."""
    series_instance_uids: tuple[str, ...]
    """Series of the acknowledged objects, in the order of their first object, unrecorded ones among them."""
    stored: int
    """Objects acknowledged with success, duplicates among them."""
    refused: int
    """Objects answered with a failure status."""
    unrecorded: int
    """Objects acknowledged and safe in the spool for which ``on_instance`` failed: `rebuild` is due."""
    ended_at: datetime
    """UTC, with its time zone."""


@dataclass(frozen=True, kw_only=True)
class RebuildSummary:
    """What `rebuild` did."""

    recorded: int
    known: int
    failed: tuple[str, ...]
    """File names that could not be read or recorded this time."""


def rebuild(
    spool: Spool, on_instance: Callable[[ReceivedInstance], None], *, known: Container[str] = frozenset()
) -> RebuildSummary:
    """Hand every spooled object on again that is not known yet.

    The spool alone is the truth about received images, so this mends whatever a failing or lost database
    missed.

    Parameters
    ----------
    spool
        Where the objects lie.
    on_instance
        As for the receiver. One that raises is counted and does not stop the others.
    known
        File names to pass over.

    Returns
    -------
    RebuildSummary
        Counts, and the names that failed.
    """
    recorded, passed, failed = 0, 0, []
    for path in spool.scan():
        file_name = path.relative_to(spool.root).as_posix()
        if file_name in known:
            passed += 1
            continue
        try:
            on_instance(read_received(spool, path))
            recorded += 1
        except FileNotFoundError:
            continue  # purged meanwhile
        except Exception as error:
            log_without_values(_LOG, "a spooled object was not recorded", error)
            failed.append(file_name)
    return RebuildSummary(recorded=recorded, known=passed, failed=tuple(failed))


def read_received(spool: Spool, path: Path) -> ReceivedInstance:
    """Read back what was handed on when a spooled object arrived.

    Raises
    ------
    StudyRejected
        The file cannot be read.
    """
    instance, study = read_header(path)
    meta = read_file_meta_info(path)
    return ReceivedInstance(
        spooled=spool.describe(path),
        instance=instance,
        study=study,
        source_ae_title=str(meta.get("SourceApplicationEntityTitle", "")).strip(),
        received_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
    )


def log_without_values(logger: logging.Logger, message: str, error: BaseException) -> None:
    """Log where an error came from, but not its text: that may hold what a data set or a row contains."""
    reason = f" {error.reason}" if isinstance(error, StudyRejected) else ""
    places = "".join(traceback.format_tb(error.__traceback__)[-3:])
    logger.error("%s: %s%s\n%s", message, type(error).__name__, reason, places)
